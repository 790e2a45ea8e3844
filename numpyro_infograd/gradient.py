# SPDX-License-Identifier: Apache-2.0
"""The gradient of an objective with standard errors, and `scores="auto"`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
import math
from typing import Any
import warnings

import numpy as np

import jax
import jax.numpy as jnp
import optax

from numpyro_infograd import checks
from numpyro_infograd.arguments import as_args, as_key
from numpyro_infograd.certificate import certify
from numpyro_infograd.density import Density
from numpyro_infograd.errors import DensityError
from numpyro_infograd.linear import information
from numpyro_infograd.noise import NoiseSpec, base_points, draw_noise, student
from numpyro_infograd.objectives import Objective
from numpyro_infograd.problem import (
    REPLICATES,
    Problem,
    admit,
    check_num_samples,
    initial_states,
    is_learned,
    noise_warnings,
    pose,
)
from numpyro_infograd.program import Program
from numpyro_infograd.pullback import Pulled, pull_back
from numpyro_infograd.scores import MCMC, Denoising, Exact, Mixture, resolve_method
from numpyro_infograd.scores.base import ScoreMethod, after
from numpyro_infograd.scores.exact import GaussianEntropies, why_not_exact
from numpyro_infograd.scores.mixture import FEW_UNEXPLAINED, SOUND_SAMPLE_SIZE
from numpyro_infograd.structure import StructuralModel
from numpyro_infograd.terms import Means, trace_expectations
from numpyro_infograd.text import html_table, with_error


@dataclass(frozen=True)
class Gradient:
    """The gradient of an objective with respect to every parameter.

    Attributes:
        value: Mirrors the parameters (constrained space), nats per unit of parameter.
        standard_error: The same shape; includes what the fit of a score adds.
        diagnostics: What was chosen, why, and the evidence for it.
        warnings: Sentences that a careful user should read.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1))
        >>> g = ig.gradient(model, ig.MI("x", "y"), params={"a": 1.0})
        >>> g
        Gradient by exact scores (the model is linear-Gaussian):
          a: 0.5 +- 0
        >>> g.diagnostics["method"], g.warnings
        ('exact', ())
    """

    value: dict[str, Any]
    standard_error: dict[str, Any]
    diagnostics: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def _title(self) -> str:
        reason = self.diagnostics.get("reason")
        title = f"Gradient by {self.diagnostics.get('method', '?')} scores"
        return f"{title} ({reason})" if reason else title

    def _rows(self) -> list[tuple[str, str]]:
        errors = self.standard_error
        return [(n, with_error(value, errors[n])) for n, value in self.value.items()]

    def __repr__(self) -> str:
        rows = [f"{self._title()}:", *(f"  {n}: {text}" for n, text in self._rows())]
        return "\n".join([*rows, *(f"  warning: {w}" for w in self.warnings)])

    def _repr_html_(self) -> str:
        notes = [f"warning: {sentence}" for sentence in self.warnings]
        return html_table(self._title(), self._rows(), notes)


_HOPELESS = 4.0  # nats in more than two dimensions, beyond which no mixture is tried
_BALANCE = 0.7  # error of fits over that of sampling, above which a fit is improved


@jax.jit(static_argnames=("method", "spec", "num_samples"))
def _replicated(
    forward: Program,
    densities: tuple[Density, ...],
    coefficients: jax.Array,
    expectations: Means,
    states: tuple[Any, ...],
    params: Any,
    points: Any,
    rng_key: jax.Array,
    method: ScoreMethod | None,
    spec: NoiseSpec,
    num_samples: int,
) -> tuple[Any, Any, Any, dict[str, jax.Array]]:
    """Gradient, its errors of sampling and of fit, evidence; independent scrambles."""

    def replicate(key: jax.Array, member: jax.Array) -> Pulled:
        noise_key, score_key = jax.random.split(key)
        noise = draw_noise(spec, noise_key, num_samples // REPLICATES, points)
        return pull_back(
            forward,
            densities,
            coefficients,
            expectations,
            method,
            states,
            params,
            noise,
            score_key,
            member,
        )

    keys = jax.random.split(rng_key, REPLICATES)
    pulled = jax.vmap(replicate)(keys, jnp.arange(REPLICATES))
    value = jax.tree.map(lambda g: jnp.mean(g, axis=0), pulled.gradient)
    error = jax.tree.map(_standard_error, pulled.gradient)
    fit = jax.tree.map(jnp.zeros_like, error)
    if pulled.deviation is not None:
        assert method is not None  # exact scores deviate from nothing
        count = method.num_deviations

        def fit_error(each: jax.Array) -> jax.Array:
            # Squares of means, less what sampling adds to them on average.
            grouped = each.reshape(REPLICATES // count, count, *each.shape[1:])
            squares = jnp.mean(grouped, axis=0) ** 2
            squares -= jnp.var(grouped, axis=0, ddof=1) / (REPLICATES // count)
            return jnp.sqrt(jnp.maximum(jnp.sum(squares, axis=0), 0.0))

        fit = jax.tree.map(fit_error, pulled.deviation)
    # Sample sizes average as variances do, by their reciprocals.
    evidence = {
        name: 1 / jnp.mean(1 / v) if name.startswith("effective") else jnp.mean(v)
        for name, v in pulled.evidence.items()
    }
    evidence |= {
        name.replace("residual", "residual_error"): _standard_error(v)
        for name, v in pulled.evidence.items()
        if name.startswith("stein_residual")
    }
    return value, error, fit, evidence


def _with_shift(
    error: jax.Array, shift: jax.Array, shift_error: jax.Array
) -> jax.Array:
    """A standard error with a shift beyond what noise makes of none on average."""
    return jnp.sqrt(error**2 + jnp.maximum(shift**2 - shift_error**2, 0.0))


def _standard_error(replicates: jax.Array) -> jax.Array:
    deviation = jnp.std(replicates, axis=0, ddof=1)
    return student(REPLICATES) * deviation / math.sqrt(REPLICATES)


def fit_scores(
    method: ScoreMethod,
    states: tuple[Any, ...],
    densities: tuple[Density, ...],
    forward: Program,
    params: Any,
    rng_key: jax.Array,
    warm: bool = False,
) -> tuple[Any, ...]:
    """Fit the score of every density that hides noise, one after the other."""
    fitted: list[Any] = []
    for i, (density, state) in enumerate(zip(densities, states, strict=True)):
        if is_learned(method, density):
            key = jax.random.fold_in(rng_key, i)
            state = _fit(method, state, density, forward, params, key, warm)
            params = after(params, state)
        fitted.append(state)
    return tuple(fitted)


@jax.jit(static_argnames=("method", "warm"))
def _fit(
    method: ScoreMethod,
    state: Any,
    density: Density,
    forward: Program,
    params: Any,
    rng_key: jax.Array,
    warm: bool,
) -> Any:
    return method.fit(state, density, forward, params, rng_key, warm)


# -- the public door -----------------------------------------------------------


def estimate_gradient(
    problem: Problem, params: Any, num_samples: int | None, rng_key: jax.Array
) -> Gradient:
    """The gradient of a posed problem; see `gradient`."""
    fit_key, key = jax.random.split(rng_key)
    diagnostics: dict[str, Any] = {
        "method": problem.method_name,
        "reason": problem.reason,
        "terms": tuple(problem.terms),
    }
    expectations = trace_expectations(problem.objective, problem.sm)
    value = jax.tree.map(jnp.zeros_like, params)
    error = value
    if problem.exact is not None:
        value = _exact_gradient(problem.exact, params)
    if problem.method is not None or expectations.programs:
        size = check_num_samples(num_samples, problem.method)
        states: tuple[Any, ...] = ()
        if problem.method is not None:
            states = initial_states(problem, fit_key)
            states = fit_scores(
                problem.method,
                states,
                problem.densities,
                problem.sm.forward,
                params,
                fit_key,
            )
        spec = problem.sm.spec
        while True:
            sampled, error, fit, evidence = _replicated(
                problem.sm.forward,
                problem.densities,
                problem.coefficients,
                expectations,
                states,
                params,
                base_points(spec, size // REPLICATES),
                key,
                method=problem.method,
                spec=spec,
                num_samples=size,
            )
            excess = float(optax.tree.norm(fit) / optax.tree.norm(error))
            better = [problem.method and problem.method.improve(s) for s in states]
            if not excess > _BALANCE or all(b is None for b in better):
                break
            states = tuple(
                s if b is None else b for s, b in zip(states, better, strict=True)
            )
        value = jax.tree.map(jnp.add, value, sampled)
        error = jax.tree.map(jnp.hypot, error, fit)
        checked = certify(problem, states, params, jax.random.fold_in(key, 1))
        if checked is not None:
            error = jax.tree.map(_with_shift, error, checked.shift, checked.shift_error)
            for label, number in checked.error.items():
                diagnostics[f"certificate({label})"] = float(number)
                spread = float(checked.standard_error[label])
                diagnostics[f"certificate_error({label})"] = spread
        diagnostics["num_samples"] = size
        diagnostics["fit_error_ratio"] = excess
        diagnostics |= {name: float(v) for name, v in evidence.items()}
    doubts = _doubts(problem, diagnostics)
    both = {name: (value[name], error[name]) for name in value}
    bad = [n for n in both if not all(map(_is_finite, jax.tree.leaves(both[n])))]
    if bad:
        doubts += (
            f"the gradient of {', '.join(map(repr, bad))} or its standard error is not "
            "finite at these "
            "parameter values. Move away from where a density degenerates, or enable "
            "x64.",
        )
        warnings.warn(doubts[-1], stacklevel=3)
    return Gradient(value, error, diagnostics, doubts)


def _doubts(problem: Problem, evidence: Mapping[str, Any]) -> tuple[str, ...]:
    """Why the standard error may not hold all of the error."""
    doubts = noise_warnings(problem.sm)
    if problem.method is None:
        return doubts
    ratio = {"fit_error_ratio": evidence.get("fit_error_ratio", 0.0)}
    for density in problem.densities:
        if not is_learned(problem.method, density):
            continue
        mark = f"({density.label})"
        own = {k.removesuffix(mark): v for k, v in evidence.items() if k.endswith(mark)}
        own |= ratio
        doubts += tuple(problem.method.doubts(density, own))
        doubts += unchecked(problem.method, density, own)
    return doubts


def unchecked(
    method: ScoreMethod, density: Density, evidence: Mapping[str, Any]
) -> tuple[str, ...]:
    """A warning where a learned score has no certificate."""
    if not method.needs_certificate or "certificate" in evidence:
        return ()
    why = f", because {density.why_no_walk}" if density.why_no_walk else ""
    return (
        f"no chain can check the score of {density.label!r}{why}: its standard error "
        "rests on what the method says of itself, and may be too small. Hold it "
        "against another method, or observe the set through a sample site.",
    )


@jax.jit
def _exact_gradient(exact: GaussianEntropies, params: Any) -> Any:
    return jax.grad(exact)(params)


def _is_finite(x: jax.Array) -> bool:
    return bool(jnp.all(jnp.isfinite(x)))


def why_not_mixture(evidence: Mapping[str, Any]) -> str:
    """What a mixture's evidence says against its scores; "" if nothing."""
    missed = [np.mean(v) for k, v in evidence.items() if k.startswith("unexplained")]
    if any(share > FEW_UNEXPLAINED for share in missed):
        return "some samples lie where a half of a mixture's components has no density"
    low = lowest_size(evidence)
    if low >= SOUND_SAMPLE_SIZE:
        return ""
    return f"a mixture's effective sample size is only {low:.0f}"


def lowest_size(evidence: Mapping[str, Any]) -> float:
    """A mixture's least effective sample size at the lowest tenth of the samples."""
    named = "effective_sample_size_low"
    sizes = [np.min(v) for k, v in evidence.items() if k.startswith(named)]
    return float(np.min(sizes)) if sizes else math.inf


def choose(
    sm: StructuralModel,
    objective: Objective,
    params: Any,
    rng_key: jax.Array,
    num_samples: int | None = None,
) -> tuple[Problem, Gradient | None]:
    """`scores="auto"`: exact, a sound mixture, chains, or learned: the first that can.

    Returns the posed problem, and the gradient where finding out gave it.
    """
    why = why_not_exact(sm, objective.sites)
    if not why:
        reason = "the model is linear-Gaussian" if objective.entropies else ""
        return pose(sm, objective, Exact(), params, reason), None
    try:
        problem = pose(sm, objective, Mixture(), params)
    except DensityError as error:
        return pose(sm, objective, Denoising(), params, _first(error)), None
    far = information(problem.sm, problem.densities, params)
    if not far > _HOPELESS:
        found = estimate_gradient(problem, params, num_samples, rng_key)
        unsound = why_not_mixture(found.diagnostics)
        if not unsound:
            reason = f"{why}; {_why_mixture(found.diagnostics)}"
            named = found.diagnostics | {"reason": reason}
            return problem._replace(reason=reason), replace(found, diagnostics=named)
    else:
        unsound = f"about {far:.0f} nats are too many for a mixture"
    return pose_beyond_mixtures(sm, objective, params, f"{why}; {unsound}"), None


def _finer(
    problem: Problem,
    found: Gradient,
    params: Any,
    num_samples: int | None,
    rng_key: jax.Array,
) -> Gradient:
    """A sound mixture's gradient; or that by chains, if it is coarse and theirs is not.

    Coarse is an error of a twentieth of the gradient that matters: one of more than
    0.002 nats for a change of the parameters by their own size.
    """
    error = float(optax.tree.norm(found.standard_error))
    moved = jax.tree.map(jnp.multiply, found.standard_error, params)
    fine = error <= 0.05 * float(optax.tree.norm(found.value))
    if fine or float(optax.tree.norm(moved)) <= 0.002:
        return found
    reason = f"{problem.reason}; but its error is the larger one"
    other = pose_beyond_mixtures(problem.sm, problem.objective, params, reason)
    if not isinstance(other.method, MCMC):
        return found
    tried = estimate_gradient(other, params, num_samples, rng_key)
    better = float(optax.tree.norm(tried.standard_error)) < error
    return tried if better and not tried.warnings else found


def pose_beyond_mixtures(
    sm: StructuralModel, objective: Objective, params: Any, reason: str
) -> Problem:
    """The problem for chains, or for networks where no chain can walk."""
    try:
        return pose(sm, objective, MCMC(), params, reason)
    except DensityError as error:
        return pose(sm, objective, Denoising(), params, f"{reason}; {_first(error)}")


def _first(error: Exception) -> str:
    """The first sentence of an error."""
    return str(error).split(". ")[0]


def _why_mixture(evidence: Mapping[str, Any]) -> str:
    """Why a mixture is sound."""
    low = lowest_size(evidence)
    if not math.isfinite(low):
        return "the hidden noise has few states, so the mixture enumerates all of them"
    size = f"{low:.0f}" if low < 10000 else "over 10000"
    return f"the mixture's effective sample size, {size}, is sound"


def gradient(
    model: Callable[..., Any] | StructuralModel,
    objective: Objective,
    *,
    params: Mapping[str, Any] | None = None,
    scores: Any = "auto",
    num_samples: int | None = None,
    rng_key: jax.Array | None = None,
    allow_jumps: bool = False,
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
) -> Gradient:
    """Gradient of an objective with respect to every parameter, with standard errors.

    grad I = E[(D_params values)^T cotangent], the cotangent of a site being the sum of
    -coefficient * score over the objective's entropies (eqs. 18, 39 and 63).

    Args:
        model: A NumPyro model, or the result of `structural_model`.
        objective: Built from `MI`, `Entropy`, `Expectation`.
        params: Where to evaluate, each parameter in its shape; what is missing takes
            its initial value.
        scores: "auto", "exact", "mixture", "mcmc", "denoising", "sliced", "flow",
            "posterior", a method of `numpyro_infograd.scores`, or what
            `pretrain_scores` returned.
        num_samples: A power of two of at least 256; None for the method's default.
        rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
        allow_jumps: Do not refuse parameters that reach a site through a jump.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.

    Returns:
        A `Gradient` whose `.value` and `.standard_error` mirror the parameters, shape
        by shape, in nats per unit. Unbiased but for what `.diagnostics` reports.

    Raises:
        InfogradError: a subclass that names the site or argument at fault.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1))
        >>> g = ig.gradient(model, ig.MI("x", "y"), params={"a": 2.0})
        >>> round(float(g.value["a"]), 6)  # a / (1 + a^2)
        0.4
    """
    checks.check_order("gradient(model, objective)", model, objective)
    key = as_key(rng_key)
    args, kwargs = as_args(model_args, model_kwargs)
    method = resolve_method(scores)
    sm, complete = admit(model, objective, args, kwargs, params)
    sm.check_constraints(complete)
    checks.check_tunable(sm)
    checks.check_finite(objective, sm, complete)
    checks.check_gradient(objective, sm, complete, allow_jumps)
    if num_samples is not None:
        check_num_samples(num_samples, method)
    if isinstance(method, str):
        problem, found = choose(sm, objective, complete, key, num_samples)
        if found is not None:
            return _finer(problem, found, complete, num_samples, key)
    else:
        problem = pose(sm, objective, method, complete, "asked for")
    return estimate_gradient(problem, complete, num_samples, key)
