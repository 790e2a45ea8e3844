# SPDX-License-Identifier: Apache-2.0
"""The gradient of a posed problem: fit scores, pull them back, sum the errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
import math
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp
import optax

from numpyro_infograd._certificate import certify
from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._density import Density, simulate
from numpyro_infograd._doors import warn
from numpyro_infograd._noise import NoiseSource, standard_error, subkeys
from numpyro_infograd._problem import (
    REPLICATES,
    Posed,
    Problem,
    check_num_samples,
    fit_anew,
    is_learned,
    noise_warnings,
)
from numpyro_infograd._pullback import Pulled, pull_back
from numpyro_infograd._text import html_table, warned, with_error
from numpyro_infograd.errors import VOUCH
from numpyro_infograd.scores import Mixture
from numpyro_infograd.scores.base import Evidence, Measure, ScoreMethod, about
from numpyro_infograd.scores.exact import GaussianEntropies


@dataclass(frozen=True)
class Gradient:
    """The gradient of an objective with respect to every parameter.

    Attributes:
        value: Arrays by parameter name, in constrained space, in nats per unit of the
            parameter.
        standard_error: Of the same shapes; includes the error of fitted scores.
        diagnostics: A dict: "method" and "reason" (why it was chosen), "terms" (the
            entropies), "num_samples", "fit_error_ratio" (fit error over sampling
            error), and numbers that show how good the scores of each set of sites are,
            such as "stein_residual(y)".
        warnings: Sentences that say why a standard error may be too small.

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
        rows = map(": ".join, self._rows())
        return "\n  ".join([f"{self._title()}:", *rows, *warned(self.warnings)])

    def _repr_html_(self) -> str:
        return html_table(self._title(), self._rows(), warned(self.warnings))


# Draws of sites without a derivative are noisy, so a gradient takes up to so many
# batches of samples until its error is this share of it.
_MOST_BATCHES, _SHARP = 32, 0.015
_AT_ONCE = 2**20  # numbers drawn for all replicates at once, at most
_BALANCE = 0.7  # a fit is improved if its error exceeds this share of sampling error
_SIGNIFICANT = math.sqrt(3.0)  # noise alone is larger in 8 to 10 % of cases


class Batch(NamedTuple):
    """The gradient from one batch of samples, as arrays by parameter."""

    value: Any
    error: Any  # of sampling
    missed: Any  # by the fit of the scores
    # Fit error, less its noise, over sampling error; 0 if it may be noise alone.
    excess: jax.Array
    evidence: dict[Measure, jax.Array]


@quick_jit
def _replicated(
    problem: Problem,
    states: tuple[Any, ...],
    params: Any,
    source: NoiseSource,
    rng_key: jax.Array,
) -> Batch:
    """The gradient from 16 replicates, whose scatter gives the error."""

    def replicate(keys: jax.Array, deviation_index: jax.Array) -> Pulled:
        noise_key, score_key = keys
        noise = source(noise_key)
        return pull_back(problem, states, params, noise, score_key, deviation_index)

    given = jax.random.split(rng_key, (REPLICATES, 2)), jnp.arange(REPLICATES)
    numbers = sum(math.prod(law.shape) for _, law in problem.spec)
    if problem.chance:
        numbers *= problem.chance.num_states
    if REPLICATES * source.size * numbers <= _AT_ONCE:
        pulled = jax.vmap(replicate)(*given)
    else:  # one after the other, which limits memory
        pulled = jax.lax.map(lambda each: replicate(*each), given)
    value = jax.tree.map(lambda g: jnp.mean(g, axis=0), pulled.gradient)
    error = jax.tree.map(standard_error, pulled.gradient)
    missed = jax.tree.map(jnp.zeros_like, error)
    excess = jnp.zeros(())
    if pulled.deviation is not None:
        assert problem.method is not None  # exact scores have no deviations
        count = problem.method.num_deviations

        def grouped(each: jax.Array) -> jax.Array:
            return each.reshape(REPLICATES // count, count, *each.shape[1:])

        def fit_error(each: jax.Array) -> jax.Array:
            # With its noise: a deviation below its noise is not known to be zero.
            return jnp.sqrt(jnp.sum(jnp.mean(grouped(each), axis=0) ** 2, axis=0))

        def noise(each: jax.Array) -> jax.Array:
            if count == REPLICATES:  # one replicate of each shows no noise
                return jnp.zeros(each.shape[1:])
            variance = jnp.var(grouped(each), axis=0, ddof=1)
            return jnp.sqrt(jnp.sum(variance, axis=0) / (REPLICATES // count))

        missed = jax.tree.map(fit_error, pulled.deviation)
        noises = jax.tree.map(noise, pulled.deviation)
        size, noise_size = optax.tree.norm(missed), optax.tree.norm(noises)
        clear = jnp.sqrt(jnp.maximum(size**2 - noise_size**2, 0.0))
        clear = jnp.where(size > _SIGNIFICANT * noise_size, clear, 0.0)
        excess = clear / optax.tree.norm(error)
    # Effective sample sizes are averaged by their reciprocals, as variances.
    evidence = {
        measure: 1 / jnp.mean(1 / v) if measure.is_size else jnp.mean(v)
        for measure, v in pulled.evidence.items()
    }
    evidence |= {
        measure._replace(name="stein_residual_error"): standard_error(v)
        for measure, v in pulled.evidence.items()
        if measure.name == "stein_residual"
    }
    return Batch(value, error, missed, excess, evidence)


def _pooled(batches: list[Batch]) -> Batch:
    """The mean of independent batches."""

    def mean(*each: Any) -> Any:
        return np.mean(each, axis=0)

    def error(*each: Any) -> Any:
        return np.sqrt(np.sum(np.square(each), axis=0)) / len(batches)

    errors = jax.tree.map(error, *(batch.error for batch in batches))
    return jax.tree.map(mean, *batches)._replace(error=errors)


def _needs_more(batches: list[Batch]) -> bool:
    """Whether the draws of drawn sites leave more than a share of `_SHARP`."""
    pooled = _pooled(batches)
    noisy = norm(pooled.error) > _SHARP * norm(pooled.value)
    return noisy and len(batches) < _MOST_BATCHES


def norm(tree: Any) -> float:
    """The Euclidean norm of all leaves, on the host."""
    return math.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


def _with_shift(error: Any, shift: Any, shift_error: Any) -> Any:
    """A standard error that includes a shift, minus the shift that noise explains."""
    return np.sqrt(error**2 + np.maximum(shift**2 - shift_error**2, 0.0))


def _refined(problem: Problem, evidence: Evidence) -> Problem | None:
    """The problem with more components for drawn sites; None if these are enough."""
    chance = problem.chance
    finer = chance.finer(evidence) if chance and _is_poor(problem, evidence) else None
    return replace(problem, chance=finer) if finer else None


def _is_poor(problem: Problem, evidence: Evidence) -> bool:
    """Whether the log densities of drawn sites may be wrong."""
    return bool(problem.chance and problem.chance.warnings_for(evidence))


@quick_jit
def _components(
    problem: Problem, params: Any, source: NoiseSource, rng_key: jax.Array
) -> dict[Measure, jax.Array]:
    """How good all components of mixtures are, without scores."""
    mixture, chance = problem.method, problem.chance
    noise_key, key = jax.random.split(rng_key)
    noise = source(noise_key)
    values = simulate(problem.forward, params, noise)
    evidence: dict[Measure, jax.Array] = {}
    if chance:
        means = problem.expectations
        held = {name: values[name] for name in chance.sites}
        likelihood = chance.likelihood(params, noise, held)
        _, _, evidence = chance.cotangent(params, noise, values, means, likelihood, key)
    if isinstance(mixture, Mixture):
        for density in (d for d in problem.densities if is_learned(mixture, d)):
            state = mixture.init(density, key)
            log_p = mixture.log_density(state, density, params, values, key)
            evidence |= log_p.evidence(density.label)
    return evidence


def judge_components(
    posed: Posed, params: Any, rng_key: jax.Array
) -> tuple[Posed, Evidence]:
    """Evidence about the components of mixtures, and the problem with as many of them
    as its drawn sites need. It takes the samples of one step of an ascent.
    """
    problem, size = posed.problem, Mixture.step_samples
    source = NoiseSource.of(problem.spec, size)
    while True:
        evidence = jax.device_get(_components(problem, params, source, rng_key))
        finer = _refined(problem, evidence)
        if finer is None:
            return posed._replace(problem=problem), evidence
        problem = finer


class Estimated(NamedTuple):
    """A gradient, the problem with the components that it needed, and its evidence."""

    gradient: Gradient
    posed: Posed
    evidence: Evidence


def _sample(
    problem: Problem, params: Any, size: int, is_default: bool, rng_key: jax.Array
) -> tuple[Problem, tuple[Any, ...], list[Batch]]:
    """Batches of `size` samples, with the problem and the fitted scores behind them.

    Scores are improved while their fit adds more to the error than sampling does. By
    default, drawn sites get as many components and batches as they need; as many
    components also beside scores of another kind, which have no number of them.
    """
    refines = is_default or not isinstance(problem.method, Mixture)
    fit_key, key = subkeys(rng_key, 2)
    states = fit_anew(problem, params, fit_key)
    source = NoiseSource.of(problem.spec, size // REPLICATES)
    while True:
        batches = [jax.device_get(_replicated(problem, states, params, source, key))]
        if refines and (finer := _refined(problem, batches[0].evidence)):
            problem = finer
            continue
        better = [problem.method and problem.method.improve(s) for s in states]
        if not batches[0].excess > _BALANCE or all(b is None for b in better):
            break
        pairs = zip(states, better, strict=True)
        states = tuple(s if b is None else b for s, b in pairs)
    # A bias does not average out.
    unbiased = problem.chance and not _is_poor(problem, batches[0].evidence)
    while is_default and unbiased and _needs_more(batches):
        own = jax.random.fold_in(key, len(batches))
        batches.append(
            jax.device_get(_replicated(problem, states, params, source, own))
        )
    return problem, states, batches


def estimate_gradient(
    posed: Posed, params: Any, num_samples: int | None, rng_key: jax.Array
) -> Estimated:
    """The gradient of a posed problem; see `gradient`."""
    problem = posed.problem
    diagnostics: dict[str, Any] = {
        "method": posed.method_name,
        "reason": posed.reason,
        "terms": posed.terms,
    }
    evidence: dict[Measure, float] = {}
    # The host uses NumPy, which has nothing to compile.
    value = error = jax.tree.map(np.zeros_like, params)
    if problem.exact is not None:
        value = jax.device_get(_exact_gradient(problem.exact, params))
    if problem.is_sampled:
        size = check_num_samples(num_samples, problem.method)
        is_default = num_samples is None
        problem, states, batches = _sample(problem, params, size, is_default, rng_key)
        pooled = _pooled(batches)
        value = jax.tree.map(np.add, value, pooled.value)
        error = jax.tree.map(np.hypot, pooled.error, pooled.missed)
        checked = certify(posed, states, params, jax.random.fold_in(rng_key, 2))
        if checked is not None:
            shift, noise = jax.device_get((checked.shift, checked.shift_error))
            error = jax.tree.map(_with_shift, error, shift, noise)
            for label, number in checked.error.items():
                spread = checked.standard_error[label]
                evidence[Measure("certificate", label)] = float(number)
                evidence[Measure("certificate_error", label)] = float(spread)
        evidence |= {measure: float(v) for measure, v in pooled.evidence.items()}
        diagnostics |= {
            "num_samples": size * len(batches),
            "fit_error_ratio": float(batches[0].excess),
            **{str(measure): v for measure, v in evidence.items()},
        }
    ratio = diagnostics.get("fit_error_ratio", 0.0)
    sentences = noise_warnings(posed.sm) + _warnings_for(problem, evidence, ratio)
    both = {name: (value[name], error[name]) for name in value}
    finite = jax.tree.map(lambda x: np.all(np.isfinite(x)), both)
    bad = [name for name in both if not jax.tree.all(finite[name])]
    if bad:
        sentences += (
            f"the gradient of {', '.join(map(repr, bad))} or its standard error is not "
            "finite at these parameter values. A density may degenerate here, or lack "
            "digits: enable x64 (numpyro.enable_x64()), or choose other values.",
        )
        warn(sentences[-1])
    value, error = jax.tree.map(jnp.asarray, (value, error))
    found = Gradient(value, error, diagnostics, sentences)
    return Estimated(found, posed._replace(problem=problem), evidence)


def _warnings_for(
    problem: Problem, evidence: Evidence, fit_error_ratio: float
) -> tuple[str, ...]:
    """Sentences that say why the standard error may be too small."""
    chance = problem.chance
    sentences = tuple(chance.warnings_for(evidence)) if chance else ()
    if problem.method is None:
        return sentences
    for density in problem.densities:
        if not is_learned(problem.method, density):
            continue
        own = about(evidence, density.label) | {"fit_error_ratio": fit_error_ratio}
        sentences += tuple(problem.method.warnings_for(density, own))
        sentences += unchecked(problem.method, density, own)
    return sentences


def unchecked(
    method: ScoreMethod, density: Density, evidence: Mapping[str, Any]
) -> tuple[str, ...]:
    """A warning for a learned score without a certificate."""
    if not method.needs_certificate or "certificate" in evidence:
        return ()
    why = f", because {density.why_no_walk}" if density.why_no_walk else ""
    computed = density.without_density + density.hidden_deterministic
    remedy = f"{VOUCH} Otherwise compare" if computed else "Compare"
    return (
        f"no chain can check the score of {density.label!r}{why}. Its standard error "
        f"is only the method's own estimate, and may be too small. {remedy} with "
        "another method, or add the noise of the set as a sample site: "
        "numpyro.sample(name, Normal(mean, scale)).",
    )


@jax.jit
def _exact_gradient(exact: GaussianEntropies, params: Any) -> Any:
    return jax.grad(exact)(params)
