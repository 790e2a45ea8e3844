# SPDX-License-Identifier: Apache-2.0
"""Samples from which scores are learned."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_infograd._density import Density, flatten, simulate
from numpyro_infograd._noise import NoiseSource, NoiseSpec
from numpyro_infograd._program import Program
from numpyro_infograd.exogenous import Noise
from numpyro_infograd.scores.base import Layout, complete_data_scores
from numpyro_infograd.scores.coordinates import Free


class Pool(NamedTuple):
    """Samples to learn from, in unbounded coordinates."""

    values: jax.Array  # (..., num_samples, inputs)
    target: jax.Array  # complete-data scores, (..., num_samples, outputs)
    noise: jax.Array  # standard normal noise to append, (..., num_samples, outputs)
    position: jax.Array  # uniform, chooses the variance, (..., num_samples)
    slices: jax.Array  # random signs, (..., num_samples, outputs)

    @staticmethod
    def of(values: jax.Array, target: jax.Array, extra: dict[str, jax.Array]) -> Pool:
        """A pool with the draws of `extra_noise`."""
        signs = jnp.where(extra["+slices"] < 0.5, -1.0, 1.0)
        return Pool(values, target, extra["+noise"], extra["+position"], signs)


def extra_noise(outputs: int) -> NoiseSpec:
    """The distributions of the draws of a `Pool` besides its samples."""
    return (
        ("+noise", Noise("normal", (outputs,))),
        ("+position", Noise("uniform", ())),
        ("+slices", Noise("uniform", (outputs,))),
    )


def with_noise(density: Density) -> NoiseSpec:
    """The distributions of the model's noise and of the other draws of a `Pool`."""
    return *density.spec, *extra_noise(len(Layout.of(density).outputs))


class Learning(NamedTuple):
    """The state of a score that is fitted to samples."""

    cold: NoiseSource  # of the samples for each network in a fit from scratch
    again: NoiseSource  # and in a refit
    fitted: Any = None  # what the last fit made

    @staticmethod
    def of(spec: NoiseSpec, method: Any, members: int) -> Learning:
        """The state before the first fit."""
        sizes = method.pool_size, method.warm_pool_size
        return Learning(*(NoiseSource.of(spec, share_of(x, members)) for x in sizes))


def share_of(total: int, members: int) -> int:
    """The largest power of two whose `members`-fold is at most `total`."""
    return 1 << ((total // members).bit_length() - 1)


def draw_pool(
    density: Density,
    forward: Program,
    params: Any,
    rng_key: jax.Array,
    members: int,
    source: NoiseSource,
) -> Pool:
    """A pool for each network, from quasi-random sets with different shifts."""

    def one(key: jax.Array) -> Pool:
        noise = source(key)
        extra = {name: noise.pop(name) for name, _ in extra_noise(1)}
        values = simulate(forward, params, noise)
        target = complete_data_scores(density, params, noise, values)
        free = Free.of(density, values)
        own = free.slope * flatten(target, density.moved_sites) + free.bend
        return Pool.of(free.values, own, extra)

    keys = jax.random.split(rng_key, members)
    return jax.lax.stop_gradient(jax.vmap(one)(keys))
