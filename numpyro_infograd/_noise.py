# SPDX-License-Identifier: Apache-2.0
"""Draws of exogenous noise: pseudo-random, quasi-random, or constant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import functools
import math
from typing import Any

import numpy as np
import scipy
from scipy.special import stdtrit

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import is_key, is_real
from numpyro_infograd._compiling import pytree
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.exogenous import Noise

NoiseSpec = tuple[tuple[str, Noise], ...]

# In more dimensions than this, making a Sobol set is too slow.
MAX_SOBOL_DIMENSIONS = 4096
_EXPLICIT = ("normal", "uniform")
_AT_ONCE = 2**22  # pseudo-random numbers that are drawn in one call, at most


@functools.lru_cache(maxsize=16)
def sobol_points(num_points: int, dimensions: int) -> np.ndarray:
    """A scrambled Sobol set as 32-bit integers, shape (num_points, dimensions)."""
    sampler = scipy.stats.qmc.Sobol(dimensions, scramble=True, rng=0, bits=32)
    return (sampler.random(num_points) * 2.0**32).astype(np.uint32)


def _uniform_from_bits(bits: jax.Array) -> jax.Array:
    """Uniforms at the middle of cells: never 0 or 1, symmetric about one half."""
    dtype = jnp.zeros(()).dtype
    if dtype == jnp.float64:
        return (bits.astype(dtype) + 0.5) * 2.0**-32
    return ((bits >> 9).astype(dtype) + 0.5) * dtype.type(2.0**-23)


def _bits(rng_key: jax.Array, rows: int, columns: int) -> jax.Array:
    return jax.random.bits(rng_key, (rows, columns), jnp.uint32)


def _normal(uniform: jax.Array) -> jax.Array:
    """Standard normal numbers from uniform ones; compiles faster than `ndtri`."""
    return math.sqrt(2.0) * jax.lax.erf_inv(2.0 * uniform - 1.0)


def base_points(spec: NoiseSpec, num_samples: int) -> np.ndarray | None:
    """Sobol points for `draw_noise`; None if quasi-random noise is not possible."""
    dimensions = sum(math.prod(n.shape) for _, n in spec if n.kind in _EXPLICIT)
    if not 0 < dimensions <= MAX_SOBOL_DIMENSIONS:
        return None
    if num_samples & (num_samples - 1):  # a Sobol set is balanced at powers of two
        return None
    return sobol_points(num_samples, dimensions)


def draw_noise(
    spec: NoiseSpec, rng_key: jax.Array, num_samples: int, points: Any = None
) -> dict[str, jax.Array]:
    """Draw exogenous noise, each array of shape (num_samples, *shape).

    With `points` (see `base_points`) explicit noise is quasi-random: a random digital
    shift moves the point set, so each key gives an unbiased replicate. Every number
    has 32 random bits, or 23 in single precision; what one site draws depends on all of
    `spec`. The function is pure and traceable; `spec` and `num_samples` are static.
    """
    noise: dict[str, jax.Array] = {}
    keyed = [(name, law) for name, law in spec if law.kind == "key"]
    if keyed:
        rng_key, *keys = jax.random.split(rng_key, len(keyed) + 1)
        for (name, law), key in zip(keyed, keys, strict=True):
            # One key for each site, or for each step of a scan.
            noise[name] = jax.random.split(key, (num_samples, *law.shape))
    explicit = [(name, law) for name, law in spec if law.kind in _EXPLICIT]
    sizes = [math.prod(law.shape) for _, law in explicit]
    if explicit:
        # All bits at once, where these are few: each call takes XLA 50 ms to compile.
        if points is None and num_samples * sum(sizes) > _AT_ONCE:
            own = jax.random.split(rng_key, len(sizes))
            parts = [_bits(k, num_samples, n) for k, n in zip(own, sizes, strict=True)]
        else:
            rows = num_samples if points is None else 1
            bits = _bits(rng_key, rows, sum(sizes))
            bits = bits if points is None else points ^ bits
            parts = jnp.split(bits, np.cumsum(sizes)[:-1], axis=1)
        for (name, law), part in zip(explicit, parts, strict=True):
            u = _uniform_from_bits(part).reshape(num_samples, *law.shape)
            noise[name] = _normal(u) if law.kind == "normal" else u
    return noise


def permutation(rng_key: jax.Array, size: int) -> jax.Array:
    """A random order, which compiles in a third of the time of JAX's own."""
    return jnp.argsort(jax.random.bits(rng_key, (size,)))


def subkeys(rng_key: jax.Array, count: int) -> list[jax.Array]:
    """Independent keys, without a program for each count as `jax.random.split` has."""
    return [jax.random.fold_in(rng_key, index) for index in range(count)]


def spare_key(rng_key: jax.Array) -> jax.Array:
    """A key beside one that draws noise; unlike a split, free if it is not used."""
    return jax.random.fold_in(rng_key, 2**31 - 1)


@pytree("points")
@dataclass(frozen=True)
class NoiseSource:
    """Batches of noise of one size, quasi-random where that is possible: a pytree."""

    points: Any  # as in `draw_noise`
    spec: NoiseSpec
    size: int

    @staticmethod
    def independent(spec: NoiseSpec, size: int) -> NoiseSource:
        """Batches of independent draws."""
        return NoiseSource(None, spec, size)

    @staticmethod
    def of(spec: NoiseSpec, size: int) -> NoiseSource:
        return NoiseSource(base_points(spec, size), spec, size)

    def __call__(self, rng_key: jax.Array) -> dict[str, jax.Array]:
        """A batch, each array of shape (size, *shape)."""
        noise = draw_noise(self.spec, rng_key, self.size, self.points)
        return jax.tree.map(shard_samples, noise)


def probe_noise(spec: NoiseSpec, seed: int, num_samples: int) -> dict[str, Any]:
    """Noise for checks, in the shapes of `draw_noise`, from NumPy: nothing compiles."""
    rng, dtype = np.random.default_rng(seed), jnp.result_type(float)
    noise: dict[str, Any] = {}
    for name, law in spec:
        shape = (num_samples, *law.shape)
        if law.kind == "key":
            key = jax.random.key(rng.integers(2**31))
            noise[name] = jax.random.split(key, shape)
        elif law.kind == "normal":
            noise[name] = rng.standard_normal(shape).astype(dtype)
        elif law.kind == "uniform":
            cells = rng.integers(2**23, size=shape)
            noise[name] = ((cells + 0.5) * 2.0**-23).astype(dtype)
    return noise


def one_draw(law: Noise, seed: int) -> jax.Array | None:
    """`probe_noise` of one site and one sample; None if it has no noise."""
    drawn = probe_noise((("", law),), seed, 1)
    return jnp.asarray(drawn[""][0]) if drawn else None


def shard_samples(samples: jax.Array) -> jax.Array:
    """Samples, split along their first axis over the devices in use.

    The compiler keeps values that are computed from samples on the same device, and
    adds up sums over devices. Samples are not split outside of compiled functions, nor
    on a mesh with explicit axes, which only a user sets. See `_arguments.use_mesh`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not _is_ours(mesh, samples) or len(samples) % mesh.size:
        return samples
    spec = jax.sharding.PartitionSpec(mesh.axis_names)
    return jax.lax.with_sharding_constraint(samples, spec)


def gather_samples(samples: jax.Array) -> jax.Array:
    """Split samples, whole on every device, so that every process can read them."""
    if not _is_ours(jax.sharding.get_abstract_mesh(), samples):
        return samples
    return jax.lax.with_sharding_constraint(samples, jax.sharding.PartitionSpec())


def _is_ours(mesh: Any, samples: jax.Array) -> bool:
    """Whether samples in a compiled function are split over this mesh."""
    ours = all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)
    return not mesh.empty and ours and isinstance(samples, jax.core.Tracer)


def squares(spec: NoiseSpec, noise: dict[str, jax.Array], limit: int) -> jax.Array:
    """z^2 - 1 of the normal noise, whose means are 0, (num_samples, columns).

    There is one column for each number drawn. If these are more than `limit`, there is
    one column for the average of each site, for at most `limit` sites.
    """
    found = [
        noise[name].reshape(noise[name].shape[0], -1) ** 2 - 1
        for name, law in spec
        if law.kind == "normal"
    ]
    if sum(each.shape[1] for each in found) > limit:
        found = [jnp.mean(each, axis=1, keepdims=True) for each in found[:limit]]
    num_samples = next(iter(noise.values())).shape[0] if noise else 1
    return jnp.concatenate([jnp.zeros((num_samples, 0)), *found], axis=1)


def noise_like(spec: NoiseSpec) -> dict[str, jax.Array]:
    """Constant noise in the shape of one draw, for functions that do not use it."""
    inert: dict[str, jax.Array] = {}
    for name, law in spec:
        if law.kind == "key":
            inert[name] = jax.random.split(jax.random.key(0), law.shape)
        elif law.kind != "none":
            middle = 0.5 if law.kind == "uniform" else 0.0
            inert[name] = jnp.full(law.shape, middle, float)
    return inert


def check_noise(spec: NoiseSpec, noise: Any) -> None:
    """Raise unless noise is a batch of draws, as from `draw_noise`."""
    names = ", ".join(name for name, _ in spec)
    if not isinstance(noise, Mapping) or set(noise) != set(dict(spec)):
        raise ArgumentError(
            "noise must be a dict with entries for exactly these sites: "
            f"{names or 'none'}; got {brief(noise)}. Draw it with sample_noise."
        )
    counts = {np.shape(draws)[:1] for draws in noise.values()}
    for name, law in spec:
        shape = np.shape(noise[name])
        fits = is_key(noise[name]) if law.kind == "key" else is_real(noise[name])
        if shape[1:] != law.shape or () in counts or len(counts) > 1 or not fits:
            wanted = ", ".join(("num_samples", *map(str, law.shape)))
            raise ArgumentError(
                f"the noise of {name!r} must be a {law.kind} array of shape "
                f"({wanted}), with the same num_samples for every site, got one of "
                f"shape {shape}. Draw it with sample_noise."
            )


def standard_error(replicates: Any) -> Any:
    """Standard error of the mean over the first axis, with Student's factor."""
    count = len(replicates)
    return student(count) * replicates.std(axis=0, ddof=1) / math.sqrt(count)


def student(count: int) -> float:
    """Factor for a standard error from `count` replicates.

    With it, two standard errors cover 95 %: it is Student's t at 97.5 %, divided by 2.
    """
    return float(stdtrit(count - 1, 0.975)) / 2
