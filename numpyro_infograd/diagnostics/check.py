# SPDX-License-Identifier: Apache-2.0
"""Checks of the scores of a gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
import math
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import as_args, as_key, as_power_of_two
from numpyro_infograd._certificate import Certificate, certify
from numpyro_infograd._density import Density, Values, simulate
from numpyro_infograd._doors import public
from numpyro_infograd._estimation import estimate_gradient, unchecked
from numpyro_infograd._gradient import pose_by
from numpyro_infograd._noise import draw_noise, subkeys
from numpyro_infograd._objectives import Objective, check_is_objective
from numpyro_infograd._problem import (
    Posed,
    Problem,
    enter_tunable,
    fit_anew,
    is_learned,
    pose,
)
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._text import draw
from numpyro_infograd.scores import MCMC, Denoising, resolve_method
from numpyro_infograd.scores.base import TOLERATED, Layout, Scores, about
from numpyro_infograd.scores.stein import standard

_FAR = 5.0  # largest deviation of E[s] from zero, in standard errors


class SetCheck(NamedTuple):
    """Checks of the score of one set of sites.

    Attributes:
        label: The set, as "y" or "y|x".
        certificate: The score's mean-square error over its mean square: an upper bound
            in expectation, from Markov chains that do not use the score. It also
            includes the error of chains that still depend on their start. NaN if no
            chain can check the score.
        certificate_error: Standard error of `certificate`.
        mean: Mean of the score's component that is farthest from zero, in standard
            errors. The true mean is 0.
        residual: Stein residual, E<y, s(y)> / d + 1 before the correction. The true
            value is 0. `mean` and `residual` use log or logit coordinates for positive
            or unit-interval values. They are NaN if a boundary remains, or if only
            conditions have a score.
        residual_error: Standard error of `residual`.
        gain: Reduction of the mean-square error against the score of a normal
            distribution, on held-out samples, in units of the Fisher information of
            that distribution; NaN for methods that do not measure it.
        warnings: Sentences that say what is wrong.

    Example:
        >>> from numpyro_infograd.diagnostics import SetCheck
        >>> seen = SetCheck("y", 0.002, 0.003, 0.8, -0.0012, 0.0168, 0.35, ())
        >>> seen.certificate < 0.05
        True
    """

    label: str
    certificate: float
    certificate_error: float
    mean: float
    residual: float
    residual_error: float
    gain: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ScoreCheck:
    """The result of `check_scores`; its repr is a table and a conclusion.

    Attributes:
        method: The method that was checked.
        sets: One `SetCheck` for each set of sites whose score is estimated.
        cotangents: For each site of each set, its part of the cotangent by the method
            and by chains at the same samples, for a plot; (2, num_samples, *shape), in
            nats per unit of the site.

    Example:
        >>> from numpyro_infograd.diagnostics import ScoreCheck, SetCheck
        >>> warning = "the score of 'y' is wrong."
        >>> seen = SetCheck("y", 0.4, 0.01, 0.8, -0.0012, 0.0168, 0.35, (warning,))
        >>> found = ScoreCheck("denoising", (seen,))  # `check_scores` makes them
        >>> found.trusted, found.warnings
        (False, ("the score of 'y' is wrong.",))
    """

    method: str
    sets: tuple[SetCheck, ...]
    cotangents: dict[str, np.ndarray] = field(repr=False, default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that say what is wrong with the scores; empty if nothing is."""
        return tuple(warning for each in self.sets for warning in each.warnings)

    @property
    def trusted(self) -> bool:
        """Whether no check found a problem."""
        return not self.warnings

    def __repr__(self) -> str:
        beside = self.method == "mcmc" and bool(self.sets)
        also = ", with networks to compare" if beside else ""
        rows = [f"Scores by '{self.method}'{also}:"]
        row = "  {:<12} {:>18} {:>10} {:>20} {:>14}".format
        if self.sets:
            first = "networks' error" if beside else "certificate"
            rows.append(row("set", first, "E[s]", "Stein residual", "held-out gain"))
        else:
            rows.append("  all are known in closed form")
        for each in self.sets:
            wrong = _with(each.certificate, each.certificate_error, ".4f")
            residual = _with(each.residual, each.residual_error, "+.4f")
            gain = f"{each.gain:+.4f}" if np.isfinite(each.gain) else "-"
            mean = f"{each.mean:.1f} s.e." if np.isfinite(each.mean) else "-"
            rows.append(row(each.label, wrong, mean, residual, gain))
        apart = [
            f"The networks differ from the chains at {each.label!r}, so they do "
            "not confirm the chains. Chains are more reliable; compare with "
            "differences of values."
            for each in self.sets
            if beside and each.certificate - 2 * each.certificate_error > TOLERATED
        ]
        rows += apart
        if self.trusted:
            other = "other check" if apart else "check"
            rows.append(f"No {other} found a problem with these scores.")
        else:
            rows.append("Do not trust these scores yet:")
            rows += [f"  - {warning}" for warning in self.warnings]
        return "\n".join(rows)

    def plot(self, ax: Any = None) -> Any:
        """Draw the scores against those of chains: see `plots.plot_score_check`."""
        return draw("plot_score_check", self, ax)


def _with(value: float, error: float, form: str) -> str:
    """A number and its error as text; a dash for NaN."""
    return f"{value:{form}} +- {error:.4f}" if np.isfinite(value) else "-"


@public
def check_scores(
    model: Callable[..., Any] | StructuralModel,
    objective: Objective,
    *,
    params: Mapping[str, Any] | None = None,
    scores: Any = "auto",
    num_samples: int = 16384,
    rng_key: jax.Array | None = None,
    allow_jumps: bool = False,
    verbose: bool = True,
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
) -> ScoreCheck:
    """Check the scores of a gradient, in numbers and in words.

    For each set of sites it reports the certificate, which bounds the error of the
    score by Markov chains over the hidden noise; E[s] and the Stein residual
    E<y, s(y)> / d + 1, whose true values are zero; and the held-out gain over a normal
    distribution. Scores by chains are compared with networks: if both agree, both are
    right.

    Args:
        model: As in `gradient`.
        objective: As in `gradient`.
        params: As in `gradient`.
        scores: The method to check, as in `gradient`.
        num_samples: Number of fresh samples for the checks, a power of two of at least
            256.
        rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
        allow_jumps: As in `gradient`.
        verbose: Whether to print the result.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.

    Returns:
        A `ScoreCheck`: `.trusted`, `.warnings`, `.sets`, `.plot()`.

    Raises:
        InfogradError: A subclass that names the site or argument at fault.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     gain = numpyro.param("gain", 1.0)
        ...     numpyro.sample("y", dist.Normal(jnp.tanh(gain * x), 0.5))
        >>> found = ig.diagnostics.check_scores(
        ...     model, ig.MI("x", "y"), scores="denoising", verbose=False
        ... )
        >>> found.trusted, found.sets[0].certificate < 0.02
        (True, True)
    """
    check_is_objective(objective)
    key = as_key(rng_key)
    args, kwargs = as_args(model_args, model_kwargs)
    method = resolve_method(scores)
    as_power_of_two("num_samples", num_samples, 256)
    sm, objective, complete = enter_tunable(
        model, objective, args, kwargs, params, method, allow_jumps
    )
    fit_key, sample_key, score_key, other_key = subkeys(key, 4)
    posed = pose_by(sm, objective, method, complete, fit_key)
    problem = posed.problem
    report = ScoreCheck("exact", ())
    if problem.method is not None:
        states = fit_anew(problem, complete, fit_key)
        found = _certified(posed, states, complete, other_key)
        noise = draw_noise(problem.spec, sample_key, num_samples)
        values = simulate(problem.forward, complete, noise)
        ran = _as_in_gradient(posed, complete, fit_key)
        sets = _look(problem, states, complete, noise, values, score_key, found, ran)
        shown = {} if found is None else jax.device_get(found.cotangents)
        report = ScoreCheck(posed.method_name, sets, shown)
    if verbose:
        print(report)
    return report


def _certified(
    posed: Posed, states: tuple[Any, ...], params: Any, rng_key: jax.Array
) -> Certificate | None:
    """The certificate of the scores; for chains, of networks to compare with."""
    if isinstance(posed.problem.method, MCMC):
        posed = pose(posed.sm, posed.objective, Denoising(), params)
        states = fit_anew(posed.problem, params, rng_key)
    return certify(posed, states, params, rng_key)


def _as_in_gradient(
    posed: Posed, params: Any, rng_key: jax.Array
) -> dict[str, dict[str, float]]:
    """Evidence about the chains of each set, as long as a gradient makes them."""
    if not isinstance(posed.problem.method, MCMC):
        return {}
    found = estimate_gradient(posed, params, None, rng_key)
    ratio = {"fit_error_ratio": found.gradient.diagnostics["fit_error_ratio"]}
    labels = [density.label for density in posed.problem.densities]
    return {label: about(found.evidence, label) | ratio for label in labels}


def _look(
    problem: Problem,
    states: tuple[Any, ...],
    params: Any,
    noise: Values,
    values: Values,
    rng_key: jax.Array,
    certificate: Certificate | None,
    ran: Mapping[str, Mapping[str, float]],
) -> tuple[SetCheck, ...]:
    """A check of each score that is not known exactly, at fresh samples.

    `ran` has more evidence about each set, from a gradient.
    """
    method = problem.method
    assert method is not None
    sets = []
    for density, state in zip(problem.densities, states, strict=True):
        if not is_learned(method, density):
            continue
        raw = method.score(state, density, params, noise, values, rng_key)
        mean, residual, error = _stein(density, raw, values)
        evidence = {name: float(v) for name, v in raw.evidence.items()}
        evidence |= ran.get(density.label, {})
        evidence |= {"stein_residual": residual, "stein_residual_error": error}
        seen = math.nan, math.nan
        if certificate is not None and density.label in certificate.error:
            seen = (
                float(certificate.error[density.label]),
                float(certificate.standard_error[density.label]),
            )
            if not isinstance(method, MCMC):  # there it is the error of the networks
                evidence |= {"certificate": seen[0], "certificate_error": seen[1]}
        warnings = [
            *method.warnings_for(density, evidence),
            *unchecked(method, density, evidence),
        ]
        if mean > _FAR:
            warnings.append(
                f"E[s({density.label})] is {mean:.1f} standard errors from zero."
            )
        gain = evidence.get("held_out_gain", math.nan)
        sets.append(
            SetCheck(density.label, *seen, mean, residual, error, gain, tuple(warnings))
        )
    return tuple(sets)


def _stein(density: Density, raw: Scores, values: Values) -> tuple[float, float, float]:
    """Largest E[s] in standard errors; E<y, s(y)> / d + 1 and its standard error.

    In unbounded coordinates; NaN if the identities do not hold.
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
