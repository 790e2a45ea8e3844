# SPDX-License-Identifier: Apache-2.0
"""Values by nested averages of the model's own densities, with bounds."""

from __future__ import annotations

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import check_powers_of_two
from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._density import Density, Values, simulate
from numpyro_infograd._doors import settings_class
from numpyro_infograd._noise import NoiseSource, squares, standard_error
from numpyro_infograd._objectives import Objective
from numpyro_infograd._problem import REPLICATES, check_num_samples
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import (
    Means,
    Term,
    has_density,
    resolve,
    trace_expectations,
)
from numpyro_infograd.errors import VOUCH, ArgumentError, DensityError
from numpyro_infograd.scores import Mixture
from numpyro_infograd.scores.exact import GaussianEntropy
from numpyro_infograd.scores.mixture import SOUND_SAMPLE_SIZE
from numpyro_infograd.values.base import Estimate, Sum

_EVALUATIONS = 2**26  # density evaluations of one estimate
_CHUNK = 1024  # samples evaluated at once
_AT_ONCE = 2**20  # values whose log densities are evaluated at once, at most
_ALONE = 2.0  # correction in nats of a sample that only its own noise explains
_STEP = math.log(2.0)  # largest correction by a jackknife over halves


@settings_class
class Nested:
    """Averages of log densities, each of which is an average over its hidden noise.

    For draws a with hidden noise u_0, and L fresh draws u_1, ..., u_L of that noise,

        -E log mean_{1..L} p(a | u_l) >= h >= -E log mean_{0..L} p(a | u_l),

    the leave-one-out and the contrastive bound. The first is Jensen's inequality and
    also holds for quasi-random draws. The second holds for independent draws, and for
    draws whose averages vary less. The value is the first bound with its bias removed
    by a jackknife over two halves; the standard error includes half of the correction.
    For a sample that only its own u_0 explains, the value uses u_0, and the standard
    error includes two nats for that sample. For an information whose outputs have a
    density given the inputs, the bounds are the prior contrastive and the nested Monte
    Carlo bound. `Estimate.diagnostics` has each with its standard error, as
    "lower_bound" and "upper_bound".

    Args:
        num_components: Initial L, the fresh draws of each replicate; a power of two.
        max_components: Maximum of L, which grows with the information.
        num_samples: Outer draws, a power of two; None uses 2^26 / L, but at least 2^14
            and at most 2^18.

    Example:
        >>> import numpyro_infograd as ig
        >>> method = ig.values.Nested(num_components=4096)  # `method=` of `estimate`
        >>> method.max_components
        65536
    """

    num_components: int = 1024
    max_components: int = 65536
    num_samples: int | None = None

    def __post_init__(self) -> None:
        check_powers_of_two(self, 2, "num_components", "max_components")
        if self.max_components < self.num_components:
            raise ArgumentError(
                f"max_components ({self.max_components}) is below num_components "
                f"({self.num_components}). Raise it."
            )
        check_num_samples(self.num_samples, None)

    def _outer(self, components: int) -> int:
        if self.num_samples is not None:
            return self.num_samples
        return min(max(_EVALUATIONS // components, 2**14), 2**18)

    def value(
        self, sm: StructuralModel, objective: Objective, params: Any, rng_key: jax.Array
    ) -> Estimate:
        """The value and its bounds, from as many components as needed."""
        terms = resolve(objective, sm)
        refuse_without_density(sm, terms)
        expectations = trace_expectations(objective, sm)
        count = self.num_components
        while True:
            outer = self._outer(count)
            found = average_each(
                terms, expectations, sm, params, {}, rng_key, outer, count
            )
            if found.is_sound or count >= self.max_components:
                break
            count = min(enough_components(count, found.effective), self.max_components)
        warnings: tuple[str, ...] = ()
        if not found.is_sound:
            size = 0.0 if math.isnan(found.effective) else found.effective
            warnings = (
                f"the inner effective sample size is only {size:.0f} with "
                f"{count} components: the information is too high for nested averages, "
                "and the error may exceed the standard error. The bounds still hold. "
                "Raise max_components, or use method='mcmc'.",
            )
        return Estimate(
            found.value,
            found.error,
            found.lower,
            found.upper,
            "nested" if objective.sites else "sampled",
            warnings=warnings,
            diagnostics={
                "num_components": count,
                "correction": found.correction,
                "effective_sample_size_low": found.effective,
                **found.bounds,
            },
        )


def enough_components(count: int, effective: float) -> int:
    """Components for a sound average: the effective size grows in proportion to L."""
    have = effective if effective > 1.0 else 1.0  # or NaN
    return count * 2 ** math.ceil(math.log2(max(SOUND_SAMPLE_SIZE / have, 2.0)))


class Average(NamedTuple):
    """A nested average, as numbers or arrays."""

    value: Any  # in nats
    error: Any  # its standard error, with half of the bias that was removed
    lower: Any  # a lower bound, minus two standard errors of that bound
    upper: Any  # an upper bound, plus two standard errors of that bound
    correction: Any  # the bias that was removed
    effective: Any  # effective number of components, infinite if no noise is hidden
    bias: Any  # the part of `error` that does not come from sampling
    replicates: Any  # value, lower and upper bound of each replicate, (16, 3)

    @property
    def is_sound(self) -> bool:
        """Whether there are enough effective components for the jackknife."""
        return self.effective >= SOUND_SAMPLE_SIZE

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Mean and standard error of the lower and of the upper bound of one average.

        With L components they are the contrastive and the nested Monte Carlo bound of
        an information.
        """
        means = np.mean(self.replicates, axis=0)
        with np.errstate(invalid="ignore"):  # infinite bounds
            errors = np.asarray(standard_error(self.replicates))
        ends = zip(("lower", "upper"), means[1:], errors[1:], strict=True)
        limits = {"lower": self.lower, "upper": self.upper}
        return {
            f"{name}_bound": (float(mean), float(error))
            if math.isfinite(limits[name])
            else (limits[name], 0.0)
            for name, mean, error in ends
        }


def refuse_without_density(sm: StructuralModel, terms: tuple[Term, ...]) -> None:
    """Raise for a deterministic site, which has no density."""
    for term in terms:
        for site in term.sites:
            if not has_density(sm, site):
                raise DensityError(
                    f"site {site!r} is deterministic, so it has no density, which this "
                    "method needs. Use method='fisher' if its values are continuous, "
                    "or add noise to it in a sample site: numpyro.sample(name, "
                    f"Normal({site}, scale)). {VOUCH}"
                )


def as_floats(found: Average) -> Average:
    """The average at one design as numbers."""
    found = jax.device_get(found)
    return jax.tree.map(lambda x: float(x) if np.ndim(x) == 0 else x, found)


def average_each(
    terms: tuple[Term, ...],
    expectations: Means,
    sm: StructuralModel,
    params: Any,
    designs: Any,
    rng_key: jax.Array,
    num_samples: int,
    num_components: int = 2,
    *,
    closed_form: bool = False,
) -> Average:
    """sum of coefficient * h(sites | given), plus the expectations, in nats.

    It is computed at each of many values of some parameters, on the same random
    numbers, by one compiled call. The `designs` have a leading axis, as the arrays of
    the `Average` do; they are empty for one average, of numbers. With `closed_form`
    each entropy is a closed form given its conditions, which alone are sampled.
    """
    densities = tuple(
        GaussianEntropy.of(sm, t.sites, t.given)
        if closed_form
        else sm.density(t.sites, t.given, whole=True)
        for t in terms
    )
    mixture = Mixture(num_components=num_components)
    components = tuple(
        mixture.init(d, rng_key) if isinstance(d, Density) and d.hidden else None
        for d in densities
    )
    total = Sum.of(sm, terms, expectations, densities)
    source = NoiseSource.of(sm.spec, num_samples // REPLICATES)
    found = _averages(
        total, components, params, designs, source, rng_key, method=mixture
    )
    return found if designs else as_floats(found)


@quick_jit(static_argnames=("method",))
def _averages(
    total: Sum,
    components: tuple[Any, ...],
    params: Any,
    designs: Any,
    source: NoiseSource,
    rng_key: jax.Array,
    *,
    method: Mixture,
) -> Average:
    """The average at each design, one after the other, which limits memory."""

    def one(design: Any) -> Average:
        return _average(total, components, params | design, source, rng_key, method)

    return jax.lax.map(one, designs) if designs else one({})


def _average(
    total: Sum,
    components: tuple[Any, ...],
    params: Any,
    source: NoiseSource,
    rng_key: jax.Array,
    method: Mixture,
) -> Average:
    """The average at one value of the parameters.

    The squares of the normal noise have known means and are control variates: log
    densities are nearly quadratic in the tails, where quasi-random points are few.
    """
    size = source.size

    def replicate(keys: jax.Array) -> Any:
        noise_key, inner_key = keys
        noise = source(noise_key)
        values = simulate(total.forward, params, noise)
        each = jnp.zeros((size, 3))  # the value, its lower and its upper bound
        removed, smallest = jnp.zeros(()), jnp.asarray(jnp.inf)
        unexplained, lost = jnp.zeros(()), jnp.zeros(2, bool)
        entropy = jnp.zeros(0)
        for i, density in enumerate(total.densities):
            c = total.coefficients[i]
            if isinstance(density, GaussianEntropy):
                held = {s: values[s] for s in density.given}
                entropy = _over(density, params, held, entropy)
                each += c * entropy[:, None]
                continue
            inside = density.pick(values)
            hidden = {n: noise[n] for n in density.hidden}
            # At once where that takes little memory, which compiles faster.
            large = size * sum(density.sizes) > _AT_ONCE
            own = jax.lax.map(
                lambda at, density=density: density.log_prob(params, *at),
                (hidden, inside),
                batch_size=_CHUNK if large else 0,  # 0 is all of them
            )
            if not density.hidden:
                each -= c * own[:, None]
                continue
            inner = jax.random.fold_in(inner_key, i)
            log_density = functools.partial(
                method.log_density, components[i], density, params, rng_key=inner
            )
            fresh, correction, effective = _in_chunks(log_density, inside)
            count = method.num_components
            joined = jnp.logaddexp(fresh + math.log(count), own) - math.log(count + 1)
            fits = jnp.isfinite(fresh)
            lost |= jnp.stack([c < 0, c > 0]) & ~jnp.all(fits)
            fresh = jnp.where(fits, fresh, joined)
            # A sample that no fresh component explains also uses its own noise.
            alone = ~fits | (own > fresh + math.log(count))
            correction = jnp.where(alone, 0.0, jnp.clip(correction, -_STEP, _STEP))
            best = jnp.where(alone, joined - _ALONE, fresh + correction)
            low, high = jnp.where(c > 0, joined, fresh), jnp.where(c > 0, fresh, joined)
            each -= c * jnp.stack([best, low, high], axis=1)
            unexplained += jnp.abs(c) * jnp.mean(alone)
            removed -= c * jnp.mean(correction)
            smallest = jnp.minimum(smallest, 1 / jnp.mean(1 / effective))
        expected = total.expectations_at(values)
        each += expected[:, None]
        known = squares(source.spec, noise, min(REPLICATES * size // 64, 256))
        gram, cross = known.T @ known, known.T @ (each - jnp.mean(each, axis=0))
        means = jnp.mean(each, axis=0)
        sums = means, jnp.mean(known, axis=0), gram, cross
        reach = jnp.max(expected) - jnp.min(expected)
        return sums, (removed, smallest, unexplained, lost, reach)

    keys = jax.random.split(rng_key, (REPLICATES, 2))
    sums, others = jax.lax.map(replicate, keys)
    removed, smallest, unexplained, lost, reach = others
    totals, known, gram, cross = sums
    if known.shape[1]:
        slope = jnp.linalg.solve(jnp.sum(gram, axis=0), jnp.sum(cross, axis=0))
        totals -= known @ slope
    value, low, high = jnp.mean(totals, axis=0)
    errors = standard_error(totals)
    # All quasi-random sets may have equally many draws of a rare value: a part of the
    # weight of one draw is missed then, which their scatter does not show.
    least = total.counts * jnp.max(reach) / (REPLICATES * size)
    errors = jnp.hypot(errors, least)
    correction = jnp.mean(removed)
    bias = jnp.hypot(0.5 * correction, _ALONE * jnp.mean(unexplained))
    without = jnp.any(lost, axis=0)  # bounds that are infinite for some sample
    return Average(
        value,
        jnp.hypot(errors[0], bias),
        jnp.where(without[0], -jnp.inf, low - 2 * errors[1]),
        jnp.where(without[1], jnp.inf, high + 2 * errors[2]),
        correction,
        1 / jnp.mean(1 / smallest),
        bias,
        totals,
    )


def _over(
    entropy: GaussianEntropy, params: Any, held: Values, after: jax.Array
) -> jax.Array:
    """The entropy at each of a batch of conditions; one number without conditions."""
    if not held:
        return entropy(params, {}, after)[None]
    return jax.lax.map(lambda at: entropy(params, at, after), held, batch_size=_CHUNK)


def _in_chunks(run: Callable[[Values], Any], values: Values) -> Any:
    """`run` on consecutive parts of a batch, which limits memory."""
    size = next(iter(values.values())).shape[0]
    chunk = min(size, _CHUNK)
    parts = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), values)
    log_p, correction, effective = jax.lax.map(run, parts)
    return log_p.ravel(), correction.ravel(), effective
