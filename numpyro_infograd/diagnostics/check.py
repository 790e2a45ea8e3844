# SPDX-License-Identifier: Apache-2.0
"""Whether to trust the scores behind a gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
import importlib
import math
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd import checks
from numpyro_infograd.arguments import as_args, as_key, as_power_of_two
from numpyro_infograd.density import Density, Values, flatten, simulate
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.gradient import choose, fit_scores
from numpyro_infograd.noise import draw_noise
from numpyro_infograd.objectives import Objective
from numpyro_infograd.problem import Problem, admit, initial_states, is_learned, pose
from numpyro_infograd.pullback import cotangents, score_of
from numpyro_infograd.scores import Exact, resolve_method
from numpyro_infograd.scores.base import Layout, Scores
from numpyro_infograd.scores.stein import calibrate, standard
from numpyro_infograd.structure import StructuralModel

_FAR = 5.0  # standard errors by which a mean that is zero may be off
_APART = 0.05  # share of the cotangent by which two methods may differ


class SetCheck(NamedTuple):
    """What was found for the score of one set of sites.

    Attributes:
        label: The set, as "y" or "y|x".
        mean: Largest mean of a component of the score, in standard errors; truly 0.
        residual: Stein residual, E<y, s(y)> / d + 1 before calibration; truly 0. Both
            are in log or logit coordinates for positive or unit-interval values, and
            NaN where a boundary remains or a score is only of what is conditioned on.
        residual_error: Its standard error.
        gain: Share of the Fisher information by which the score's held-out loss is
            below that of a normal law; NaN where the method knows none.
        doubts: What is wrong, in sentences.

    Example:
        >>> from numpyro_infograd.diagnostics import SetCheck
        >>> seen = SetCheck("y", 0.8, -0.0012, 0.0168, gain=0.35, doubts=())
        >>> abs(seen.residual) < 3 * seen.residual_error
        True
    """

    label: str
    mean: float
    residual: float
    residual_error: float
    gain: float
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class ScoreCheck:
    """What `check_scores` found; its repr is a table and a verdict.

    Attributes:
        method: The method that was checked.
        against: The method that it was held against, or "" for none.
        sets: One `SetCheck` for each set of sites whose score is learned.
        disagreement: For each site, the mean-square difference of the two methods'
            cotangents over the larger mean square.
        trusted: Whether nothing speaks against the scores.
        cotangents: For each site, both methods' cotangents at the same samples, (2,
            num_samples, dimensions), in nats per unit of the site, to plot.

    Example:
        >>> from numpyro_infograd.diagnostics import ScoreCheck, SetCheck
        >>> seen = SetCheck("y", 0.8, -0.0012, 0.0168, gain=0.35, doubts=())
        >>> found = ScoreCheck("denoising", "sliced", (seen,), {"y": 0.12})
        >>> found.trusted  # by hand; `check_scores` makes them
        False
        >>> found.doubts
        ("'denoising' and 'sliced' differ by 12.0% at 'y'.",)
    """

    method: str
    against: str
    sets: tuple[SetCheck, ...]
    disagreement: dict[str, float]
    cotangents: dict[str, np.ndarray] = field(repr=False, default_factory=dict)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against the scores, in words; empty if nothing does."""
        found = [doubt for each in self.sets for doubt in each.doubts]
        found += [
            f"'{self.method}' and '{self.against}' differ by {apart:.1%} at {site!r}."
            for site, apart in self.disagreement.items()
            if not apart <= _APART
        ]
        return tuple(found)

    @property
    def trusted(self) -> bool:
        """Whether nothing speaks against the scores."""
        return not self.doubts

    def __repr__(self) -> str:
        rows = [f"Scores by '{self.method}':"]
        if not self.sets:
            rows.append("  all are known in closed form")
        else:
            names = f"{'E[s]':>10} {'Stein residual':>20} {'held-out gain':>14}"
            rows.append(f"  {'set':<12} {names}")
        for each in self.sets:
            residual = "-"
            if np.isfinite(each.residual):
                residual = f"{each.residual:+.4f} +- {each.residual_error:.4f}"
            gain = f"{each.gain:+.4f}" if np.isfinite(each.gain) else "-"
            mean = f"{each.mean:.1f} s.e." if np.isfinite(each.mean) else "-"
            rows.append(f"  {each.label:<12} {mean:>10} {residual:>20} {gain:>14}")
        for site, apart in self.disagreement.items():
            rows.append(f"  at {site!r} '{self.against}' differs by {apart:.2%}")
        if self.trusted:
            rows.append("Nothing speaks against these scores.")
        else:
            rows.append("Do not trust these scores yet:")
            rows += [f"  - {doubt}" for doubt in self.doubts]
            rows.append(
                "Check the formula of a score, or make the posterior richer, that is "
                "yours; else give the method more (num_steps, hidden, pool_size), or "
                "take another."
            )
        return "\n".join(rows)

    def plot(self, ax: Any = None) -> Any:
        """Draw one method's cotangents against the other's.

        Args:
            ax: Matplotlib axes to draw on; None makes a figure.

        Returns:
            The axes.

        Raises:
            ArgumentError: if no second method was asked for.
            ImportError: if the `plots` extra is not installed.
        """
        plots = importlib.import_module("numpyro_infograd.plots")
        return plots.plot_score_check(self, ax)


def check_scores(
    objective: Objective,
    model: Callable[..., Any] | StructuralModel,
    *,
    params: Mapping[str, Any] | None = None,
    scores: Any = "auto",
    against: Any = "sliced",
    num_samples: int = 16384,
    rng_key: jax.Array | None = None,
    allow_jumps: bool = False,
    verbose: bool = True,
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
) -> ScoreCheck:
    """Whether to trust the scores behind a gradient, in numbers and in words.

    For each set of sites: E[s], which is zero; the Stein residual E<y, s(y)> / d + 1,
    which is zero too; the held-out gain over a normal law. And how far another method,
    fitted to samples of its own, comes to another cotangent.

    Args:
        objective: As in `gradient`.
        model: As in `gradient`.
        params: As in `gradient`.
        scores: The method to check, as in `gradient`.
        against: Another method to hold it against, or the same for another fit; None
            for none.
        num_samples: Fresh samples to check on, a power of two of at least 256.
        rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
        allow_jumps: As in `gradient`.
        verbose: Print the result.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.

    Returns:
        A `ScoreCheck`: `.trusted`, `.doubts`, `.sets`, `.disagreement`, `.plot()`.

    Raises:
        InfogradError: a subclass that names the site or argument at fault.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     gain = numpyro.param("gain", 1.0)
        ...     numpyro.sample("y", dist.Normal(jnp.tanh(gain * x), 0.5))
        >>> found = ig.diagnostics.check_scores(
        ...     ig.MI("x", "y"), model, scores="denoising", verbose=False
        ... )
        >>> found.trusted
        True
    """
    key = as_key(rng_key)
    args, kwargs = as_args(model_args, model_kwargs)
    method = resolve_method(scores)
    other = None if against is None else resolve_method(against, "against")
    if isinstance(other, (str, Exact)):
        raise ArgumentError(
            f"against must be a method that learns, or None, got {against!r}."
        )
    as_power_of_two("num_samples", num_samples, 256)
    sm, complete = admit(objective, model, args, kwargs, params)
    sm.check_constraints(complete)
    checks.check_tunable(sm)
    checks.check_finite(objective, sm, complete)
    checks.check_gradient(objective, sm, complete, allow_jumps)
    fit_key, sample_key, other_key = jax.random.split(key, 3)
    if isinstance(method, str):
        problem, _ = choose(objective, sm, complete, fit_key)
    else:
        problem = pose(objective, sm, method, complete)
    if problem.method is None:
        report = ScoreCheck("exact", "", (), {})
    else:
        seen = problem.sm  # with the noise that the method appends
        noise = draw_noise(seen.spec, sample_key, num_samples)
        values = simulate(seen.forward, complete, noise)
        sets, own = _look(problem, complete, noise, values, fit_key)
        names, apart, both = "", {}, {}
        if other is not None and sets:
            if other.noise_variance not in (None, problem.method.noise_variance):
                raise ArgumentError(
                    f"against appends noise of variance {other.noise_variance}, and "
                    f"scores of {problem.method.noise_variance}: these are scores of "
                    "different laws. Give both the same noise_variance."
                )
            own_noise = other.noise_variance is not None
            second = pose(objective, sm if own_noise else seen, other, complete)
            _, theirs = _look(second, complete, noise, values, other_key)
            names = second.method_name
            for site in own:
                a, b = (flatten(c, (site,)) for c in (own, theirs))
                size = max(float(jnp.mean(a**2)), float(jnp.mean(b**2)))
                apart[site] = float(jnp.mean((a - b) ** 2)) / (size or 1.0)
                both[site] = np.stack([a, b])
        report = ScoreCheck(problem.method_name, names, sets, apart, both)
    if verbose:
        print(report)
    return report


def _look(
    problem: Problem, params: Any, noise: Values, values: Values, rng_key: jax.Array
) -> tuple[tuple[SetCheck, ...], Values]:
    """Fit the scores; look at each, and at the cotangents that they make."""
    method = problem.method
    assert method is not None
    states = initial_states(problem, rng_key)
    densities = problem.densities
    states = fit_scores(method, states, densities, problem.sm.forward, params, rng_key)
    sets: list[SetCheck] = []
    found: list[Scores] = []
    for density, state in zip(densities, states, strict=True):
        if not is_learned(method, density):
            found.append(score_of(None, state, density, params, noise, values, rng_key))
            continue
        raw = method.score(state, density, params, noise, values, rng_key)
        found.append(calibrate(density, raw, values))
        mean, residual, error = _stein(density, raw, values)
        evidence = {name: float(v) for name, v in raw.evidence.items()}
        doubts = method.doubts(
            density,
            evidence | {"stein_residual": residual, "stein_residual_error": error},
        )
        if mean > _FAR:
            doubts.append(
                f"E[s({density.label})] is {mean:.1f} standard errors off zero."
            )
        gain = evidence.get("held_out_gain", math.nan)
        sets.append(SetCheck(density.label, mean, residual, error, gain, tuple(doubts)))
    cotangent, _ = cotangents(densities, problem.coefficients, found)
    return tuple(sets), cotangent


def _stein(density: Density, raw: Scores, values: Values) -> tuple[float, float, float]:
    """Largest E[s] in standard errors; E<y, s(y)> / d + 1 and its standard error.

    In coordinates without bounds; NaN where the identities do not hold.
    """
    seen = standard(density, raw, values)
    if seen is None:
        return math.nan, math.nan, math.nan
    free, scores = seen
    columns = jnp.asarray(Layout.of(density).own_columns, int)
    y, s = np.asarray(free.values[:, columns], float), np.asarray(scores, float)
    root = len(y) ** 0.5
    off = np.abs(s.mean(0)) / np.maximum(s.std(0) / root, 1e-30)
    product = ((y - y.mean(0)) * s).mean(1)
    worst = float(off.max()) if np.all(np.isfinite(s)) else math.inf
    return worst, float(product.mean() + 1), float(product.std() / root)
