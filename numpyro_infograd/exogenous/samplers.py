# SPDX-License-Identifier: Apache-2.0
"""Longer formulas of the exogenous table."""

import math

import jax.numpy as jnp
from jax.scipy.special import erfinv, ndtri

import numpyro.distributions as dist


def halves(below, above):
    """A quantile function from the quantile at t < 1/2 and that at 1 - t."""

    # Each half uses the distance from its own end: 1 - u is exact only for u >= 1/2.
    def quantile(u):
        t = jnp.where(u < 0.5, u, 1 - u)
        return jnp.where(u < 0.5, below(t), above(t))

    return quantile


def odd(below):
    """A quantile function that is symmetric about zero, from its lower half."""
    return halves(below, lambda t: -below(t))


laplace = odd(lambda t: jnp.log(2 * t))
cauchy = odd(lambda t: -1 / jnp.tan(jnp.pi * t))
soft_laplace = odd(lambda t: jnp.log(jnp.tan(jnp.pi / 2 * t)))
half_normal = halves(lambda t: math.sqrt(2) * erfinv(t), lambda t: -ndtri(t / 2))
half_cauchy = halves(
    lambda t: jnp.tan(jnp.pi / 2 * t), lambda t: 1 / jnp.tan(jnp.pi / 2 * t)
)


def dagum(d, u):
    """The inverse cdf at u, without overflow."""
    y = -jnp.log(u) / d.concentration  # below, log(expm1(y)) without overflow
    return d.scale * jnp.exp(-(y + jnp.log(-jnp.expm1(-y))) / d.sharpness)


def kumaraswamy(d, u):
    """The inverse cdf at u, kept inside (0, 1)."""
    power = -jnp.expm1(jnp.log1p(-u) / d.concentration0)
    x = power ** (1 / d.concentration1)
    info = jnp.finfo(x.dtype)  # the log density may be infinite at 0 and at 1
    return jnp.clip(x, info.tiny, 1 - info.epsneg)


def bernoulli(d, u):
    """One if u is among the largest, whose share is `probs`."""
    return (u > 1 - d.probs).astype(jnp.result_type(int))


def categorical(d, u):
    """From a uniform u, the number of cumulative probabilities below u."""
    below = jnp.cumsum(d.probs, axis=-1)
    below = below[..., :-1] / below[..., -1:]
    return jnp.sum(u[..., None] > below, axis=-1, dtype=jnp.result_type(int))


def discrete_uniform(d, u):
    """The inverse cdf at u."""
    count = d.high - d.low + 1
    step = jnp.floor(u * count).astype(jnp.result_type(d.low, int))
    return d.low + jnp.minimum(step, count - 1)


def times(matrix, z):
    """Matrices (..., i, j) times vectors (..., j)."""
    return jnp.einsum("...ij,...j->...i", matrix, z)


def low_rank(d, z):
    """LowRankMultivariateNormal from normals; those of the diagonal come first."""
    n = d.event_shape[0]
    return d.loc + times(d.cov_factor, z[..., n:]) + jnp.sqrt(d.cov_diag) * z[..., :n]


def car(d, z):
    """CAR (a Gaussian with a given precision matrix) from normals."""
    fn = dist.MultivariateNormal(d.mean, precision_matrix=d.precision_matrix)
    return fn.loc + times(fn.scale_tril, z)


def projected_normal(d, z):
    """ProjectedNormal from normals: a shifted Gaussian projected to the sphere."""
    x = d.concentration + z
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def cdf(d, x):
    """The cumulative distribution function of d at x."""
    if type(d) is not dist.Laplace:
        return d.cdf(x)
    # NumPyro's cdf of Laplace has derivative 0 at the median, a common place for a
    # truncation.
    z = (x - d.loc) / d.scale
    tail = 0.5 * jnp.exp(jnp.where(z < 0, z, -z))
    return jnp.where(z < 0, tail, 1 - tail)
