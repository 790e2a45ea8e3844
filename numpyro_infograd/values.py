# SPDX-License-Identifier: Apache-2.0
"""How many nats: values of objectives, with standard errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
import math
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_infograd import checks
from numpyro_infograd.arguments import as_args, as_key
from numpyro_infograd.errors import ArgumentError, DensityError
from numpyro_infograd.gradient import SOUND_SAMPLE_SIZE, STUDENT
from numpyro_infograd.noise import NoiseSpec, base_points, draw_noise, squares
from numpyro_infograd.objectives import (
    MI,
    Means,
    Objective,
    Sites,
    at_each,
    resolve,
    trace_expectations,
)
from numpyro_infograd.problem import (
    REPLICATES,
    admit,
    check_num_samples,
    noise_warnings,
)
from numpyro_infograd.program import Program
from numpyro_infograd.scores import Mixture
from numpyro_infograd.scores.exact import GaussianEntropies, why_not_exact
from numpyro_infograd.structure import Density, StructuralModel, simulate

METHODS = ("auto", "exact", "nested")
_COMPONENTS = (4096, 16384)  # inner draws at first, and where these are too few
_BITS = 1.0 / math.log(2.0)


@dataclass(frozen=True)
class Estimate:
    """A value in nats (or bits) and how far it can be trusted.

    Attributes:
        value: The estimate.
        standard_error: Sampling error and what the inner average's bias may add.
        lower: Two standard errors below the value.
        upper: Two standard errors above the value.
        method: "exact" (expectations in it are sampled all the same), "nested", or
            "sampled" where there is nothing but expectations.
        unit: "nats" or "bits".
        warnings: Sentences that a careful user should read.
    """

    value: float
    standard_error: float
    lower: float
    upper: float
    method: str
    unit: str = "nats"
    warnings: tuple[str, ...] = ()
    diagnostics: dict[str, Any] = field(default_factory=dict, compare=False)

    def __neg__(self) -> Estimate:
        """The estimate of minus the objective."""
        return replace(self, value=-self.value, lower=-self.upper, upper=-self.lower)

    def __repr__(self) -> str:
        error = f" +- {self.standard_error:.2g}" if self.standard_error else ""
        notes = "".join(f"\n  warning: {w}" for w in self.warnings)
        return f"{self.value:.6g}{error} {self.unit} ({self.method}){notes}"


def estimate(
    objective: Objective,
    model: Callable[..., Any] | StructuralModel,
    *,
    params: Mapping[str, Any] | None = None,
    method: str = "auto",
    num_samples: int | None = None,
    num_components: int | None = None,
    rng_key: jax.Array | None = None,
    unit: str = "nats",
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
) -> Estimate:
    """The value of an objective.

    Args:
        objective: Built from `MI`, `Entropy`, `Expectation`.
        model: A NumPyro model, or the result of `structural_model`.
        params: Where to evaluate; what is missing takes its initial value.
        method: "exact" for linear-Gaussian models; "nested" averages the model's own
            densities over fresh draws of hidden noise; "auto" is exact where it can be.
        num_samples: Outer samples, a power of two; None for 16384.
        num_components: Inner draws for each outer replicate, a power of two; None for
            4096, and 16384 where the information is too high for these.
        rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
        unit: "nats" or "bits".
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.

    Returns:
        An `Estimate`. The nested value has a bias that falls with the effective
        sample size; its first order is removed, half of that is in the standard
        error, and `.warnings` says when the sample is too small.

    Raises:
        InfogradError: a subclass that names the site or argument at fault.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1))
        >>> ig.estimate(ig.MI("x", "y"), model, params={"a": 3.0})  # log(10) / 2
        1.15129 nats (exact)
    """
    if method not in METHODS:
        raise ArgumentError(f"method must be one of {METHODS}, got {method!r}.")
    if unit not in ("nats", "bits"):
        raise ArgumentError(f"unit must be 'nats' or 'bits', got {unit!r}.")
    key = as_key(rng_key)
    args, kwargs = as_args(model_args, model_kwargs)
    sm, complete = admit(objective, model, args, kwargs, params)
    size = check_num_samples(num_samples, None)
    found = value_of(objective, sm, complete, key, method, size, num_components)
    scale = _BITS if unit == "bits" else 1.0
    return replace(
        found,
        value=scale * found.value,
        standard_error=scale * found.standard_error,
        lower=scale * found.lower,
        upper=scale * found.upper,
        unit=unit,
    )


def value_of(
    objective: Objective,
    sm: StructuralModel,
    params: Any,
    rng_key: jax.Array,
    method: str = "auto",
    num_samples: int = 16384,
    num_components: int | None = None,
) -> Estimate:
    """`estimate` of a traced model at complete parameters, in nats."""
    found = _value_of(
        objective, sm, params, rng_key, method, num_samples, num_components
    )
    return replace(found, warnings=found.warnings + noise_warnings(sm))


def _value_of(
    objective: Objective,
    sm: StructuralModel,
    params: Any,
    rng_key: jax.Array,
    method: str,
    num_samples: int,
    num_components: int | None,
) -> Estimate:
    checks.check_finite(objective, sm, params)
    checks.check_rank(objective, sm, params)
    why = why_not_exact(sm, objective.sites)
    if method == "exact" and why:
        raise ArgumentError(
            f"method='exact' needs a linear-Gaussian model, but {why}. Use 'nested'."
        )
    if method != "nested" and not why:
        value = float(_exact_value(GaussianEntropies.of(objective, sm), params))
        if not objective.expectations:
            return _report(value, 0.0, "exact")
        rest = Objective({}, objective.expectations)
        sampled = _nested_estimate(
            rest, sm, params, num_samples, num_components, rng_key
        )
        kind = "exact" if objective.entropies else "sampled"
        return _report(value + sampled.value, sampled.standard_error, kind)
    return _nested_estimate(objective, sm, params, num_samples, num_components, rng_key)


def mutual_information(
    model: Callable[..., Any] | StructuralModel,
    inputs: Sites,
    outputs: Sites,
    given: Sites = (),
    **settings: Any,
) -> Estimate:
    """I(inputs; outputs | given); the settings are those of `estimate`.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(x, 1))
        >>> ig.mutual_information(model, "x", "y", unit="bits")
        0.5 bits (exact)
    """
    return estimate(MI(inputs, outputs, given), model, **settings)


@jax.jit
def _exact_value(exact: GaussianEntropies, params: Any) -> jax.Array:
    return exact(params)


def _report(
    value: float,
    error: float,
    method: str,
    warnings: tuple[str, ...] = (),
    diagnostics: Mapping[str, Any] | None = None,
) -> Estimate:
    return Estimate(
        value,
        error,
        value - 2 * error,
        value + 2 * error,
        method,
        warnings=warnings,
        diagnostics=dict(diagnostics or {}),
    )


def _nested_estimate(
    objective: Objective,
    sm: StructuralModel,
    params: Any,
    num_samples: int,
    num_components: int | None,
    rng_key: jax.Array,
) -> Estimate:
    terms = resolve(objective, sm)
    densities = []
    for term in terms:
        for site in term.sites:
            info = sm.site_info[site]
            if info.kind == "deterministic" and site not in sm.appended:
                raise DensityError(
                    f"site {site!r} is deterministic, so it has no density to average. "
                    "Observe it through a sample site."
                )
        densities.append(sm.density(term.sites, term.given, whole=True))
    first = _COMPONENTS[0] if num_components is None else num_components
    mixture = Mixture(num_components=first)
    points = tuple(mixture.init(d, rng_key) if d.hidden else None for d in densities)
    value, error, correction, effective = _nested(
        sm.forward,
        tuple(densities),
        jnp.asarray([term.coefficient for term in terms]),
        trace_expectations(objective, sm),
        points,
        params,
        base_points(sm.spec, num_samples // REPLICATES),
        rng_key,
        method=mixture,
        spec=sm.spec,
        num_samples=num_samples,
    )
    smallest = float(effective)  # infinite where nothing is hidden
    sound = smallest >= SOUND_SAMPLE_SIZE  # false for NaN, where no component fits
    if not sound and num_components is None:
        return _nested_estimate(
            objective, sm, params, num_samples, _COMPONENTS[1], rng_key
        )
    warnings = []
    if not sound:
        warnings.append(
            f"the inner effective sample size is only {smallest:.0f}: the information "
            "is high for nested averaging, and the value may be off by more than its "
            "standard error. Raise num_components."
        )
    diagnostics = {
        "correction": float(correction),
        "effective_sample_size_low": smallest,
    }
    kind = "nested" if objective.entropies else "sampled"
    return _report(float(value), float(error), kind, tuple(warnings), diagnostics)


@jax.jit(static_argnames=("method", "spec", "num_samples"))
def _nested(
    forward: Program,
    densities: tuple[Density, ...],
    coefficients: jax.Array,
    expectations: Means,
    points: tuple[Any, ...],
    params: Any,
    outer_points: Any,
    rng_key: jax.Array,
    method: Mixture,
    spec: NoiseSpec,
    num_samples: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Value, standard error, total correction, lowest effective sample size.

    Log densities are near quadratic in the tails, where quasi-random points are few, so
    the squares of the normal noise, whose means are known, serve as control variates.
    """

    def replicate(key: jax.Array) -> tuple[jax.Array, ...]:
        noise_key, inner_key = jax.random.split(key)
        noise = draw_noise(spec, noise_key, num_samples // REPLICATES, outer_points)
        values = simulate(forward, params, noise)
        each = jnp.zeros(num_samples // REPLICATES)
        removed, smallest = jnp.zeros(()), jnp.asarray(jnp.inf)
        for i, density in enumerate(densities):
            if density.hidden:
                log_p, correction, effective = method.log_density(
                    points[i],
                    density,
                    params,
                    values,
                    jax.random.fold_in(inner_key, i),
                )
                removed -= coefficients[i] * jnp.mean(correction)
                smallest = jnp.minimum(smallest, effective)
            else:
                inside = {s: values[s] for s in density.all_sites}
                log_p = jax.vmap(lambda v, d=density: d.log_prob(params, {}, v))(inside)
            each -= coefficients[i] * log_p
        each += expectations.coefficients @ at_each(expectations, values)
        known = squares(spec, noise, min(num_samples // 64, 256))
        gram, cross = known.T @ known, known.T @ (each - jnp.mean(each))
        return jnp.mean(each), jnp.mean(known, axis=0), gram, cross, removed, smallest

    keys = jax.random.split(rng_key, REPLICATES)
    totals, known, gram, cross, removed, smallest = jax.lax.map(replicate, keys)
    if known.shape[1]:
        slope = jnp.linalg.solve(jnp.sum(gram, axis=0), jnp.sum(cross, axis=0))
        totals -= known @ slope
    sampling = STUDENT * jnp.std(totals, ddof=1) / math.sqrt(REPLICATES)
    correction = jnp.mean(removed)
    error = jnp.hypot(sampling, 0.5 * correction)
    return jnp.mean(totals), error, correction, 1 / jnp.mean(1 / smallest)
