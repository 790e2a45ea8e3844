# SPDX-License-Identifier: Apache-2.0
"""Values of models with memory, by particle filters."""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import as_power_of_two, check_powers_of_two
from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._density import Density, simulate
from numpyro_infograd._doors import settings_class
from numpyro_infograd._noise import NoiseSource, standard_error
from numpyro_infograd._objectives import Objective
from numpyro_infograd._particles import Filter
from numpyro_infograd._problem import REPLICATES
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import resolve, trace_expectations
from numpyro_infograd.errors import ArgumentError, DensityError
from numpyro_infograd.values.base import Estimate, Sum, report
from numpyro_infograd.values.nested import refuse_without_density

_CHUNK = 64  # samples that are filtered at once
_SMALL = 0.5  # variance of a log density at which its bias is known, in nats^2


@settings_class
class Particles:
    """Averages of log densities, each by two particle filters.

    A filter's estimate Z of a density is unbiased, so log Z is too small by about half
    of its variance V. The value uses 2 log((Z_1 + Z_2) / 2) - (log Z_1 + log Z_2) / 2,
    whose bias is about V^2 / 8. The standard error includes half of what this changes,
    about V / 8 for each density. Sets whose densities are known, also by sums over
    hidden discrete values, need no filter.

    Args:
        num_particles: Initial number of copies of the state in each filter, a power of
            two.
        max_particles: Maximum of that number, which grows until V is at most 1/2.
        num_samples: Outer draws, a power of two.

    Example:
        >>> import numpyro_infograd as ig
        >>> method = ig.values.Particles(num_particles=512)  # `method=` of `estimate`
        >>> method.num_samples
        2048
    """

    num_particles: int = 128
    max_particles: int = 1024
    num_samples: int = 2048

    def __post_init__(self) -> None:
        check_powers_of_two(self, 2, "num_particles", "max_particles")
        if self.max_particles < self.num_particles:
            raise ArgumentError(
                f"max_particles ({self.max_particles}) is below num_particles "
                f"({self.num_particles}). Raise it, or start with fewer."
            )
        as_power_of_two("num_samples", self.num_samples, 16 * REPLICATES)

    def value(
        self, sm: StructuralModel, objective: Objective, params: Any, rng_key: jax.Array
    ) -> Estimate:
        """The value; its bounds are two standard errors away."""
        terms = resolve(objective, sm)
        refuse_without_density(sm, terms)
        densities = [sm.density(t.sites, t.given, whole=True) for t in terms]
        expectations = trace_expectations(objective, sm)
        source = NoiseSource.of(sm.spec, self.num_samples // REPLICATES)
        count = self.num_particles
        while True:
            filters = with_filters(sm, densities, count)
            total = Sum.of(sm, terms, expectations, filters)
            found = jax.tree.map(float, _average(total, params, source, rng_key))
            if found.variance <= _SMALL or count >= self.max_particles:
                break
            # The variance falls as one over the number of particles.
            step = min(self.max_particles / count, found.variance / _SMALL)
            count *= 2 ** math.ceil(math.log2(step))
        warnings: tuple[str, ...] = ()
        if not found.variance <= 1.0:
            warnings = (
                "the particle filters' log densities have a variance of "
                f"{found.variance:.2g}, so the bias that is left may exceed the "
                "standard error. Raise max_particles: "
                "values.Particles(max_particles=...).",
            )
        return report(
            found.value,
            found.error,
            "particles",
            warnings,
            {
                "num_particles": count,
                "num_samples": self.num_samples,
                "correction": found.correction,
                "log_density_variance": found.variance,
                "effective_sample_size_low": found.effective,
            },
        )


def with_filters(
    sm: StructuralModel, densities: Sequence[Density], num_particles: int
) -> tuple[Density | Filter, ...]:
    """The densities, with a filter for each that hides noise."""
    found: list[Density | Filter] = []
    for density in densities:
        filtered = Filter.of(sm, density, num_particles) if density.hidden else density
        if filtered is None:
            raise DensityError(
                "particle filters need a model in which the noise that the set "
                f"{density.label!r} hides is in the body of one scan, or reaches it "
                "through the first carry. Write its sites in the body of "
                "numpyro.contrib.control_flow.scan, or use method='mcmc'."
            )
        found.append(filtered)
    return tuple(found)


class _Found(NamedTuple):
    value: Any  # in nats
    error: Any  # standard error, with half of the bias that was removed
    correction: Any  # sum of the sizes of the biases that were removed
    variance: Any  # largest mean variance of a filter's log density, in nats^2
    effective: Any  # smallest effective sample size of a step, mean over samples


@quick_jit
def _average(
    total: Sum, params: Any, source: NoiseSource, rng_key: jax.Array
) -> _Found:
    def replicate(key: jax.Array) -> Any:
        noise_key, key = jax.random.split(key)
        values = simulate(total.forward, params, source(noise_key))
        each = total.expectations_at(values)
        removed = variance = jnp.zeros(())
        smallest = jnp.asarray(jnp.inf)
        for i, density in enumerate(total.densities):
            c = total.coefficients[i]
            if isinstance(density, Density):
                each -= c * density.log_probs(params, values)
                continue
            inside = {s: values[s] for s in density.sites}
            keys = jax.random.split(jax.random.fold_in(key, i), (source.size, 2))

            def run(at: Any, density: Filter = density) -> Any:
                inside, keys = at
                over = jax.vmap(density.log_density, (None, None, 0))
                return over(params, inside, keys)

            log_p, sizes = jax.lax.map(run, (inside, keys), batch_size=_CHUNK)
            halves = jnp.mean(log_p, axis=1)
            whole = jax.nn.logsumexp(log_p, axis=1) - jnp.log(2.0)
            each -= c * (2 * whole - halves)
            removed += jnp.abs(c * jnp.mean(whole - halves))
            spread = 0.5 * jnp.mean((log_p[:, 0] - log_p[:, 1]) ** 2)
            variance = jnp.maximum(variance, spread)
            smallest = jnp.minimum(smallest, jnp.mean(sizes))
        return jnp.mean(each), removed, variance, smallest

    found = jax.lax.map(replicate, jax.random.split(rng_key, REPLICATES))
    values, removed, variance, smallest = found
    correction = jnp.mean(removed)
    error = jnp.hypot(standard_error(values), 0.5 * correction)
    return _Found(
        jnp.mean(values), error, correction, jnp.mean(variance), jnp.mean(smallest)
    )
