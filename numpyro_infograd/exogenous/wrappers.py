# SPDX-License-Identifier: Apache-2.0
"""Rows of distributions that wrap others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
import weakref

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

import numpyro.distributions as dist
from numpyro.distributions import Distribution, constraints, transforms as maps

from numpyro_infograd.exogenous import samplers
from numpyro_infograd.exogenous.lookup import (
    ends_of,
    noise_of,
    reason_not_reparametrized,
    row_of,
    transform,
)
from numpyro_infograd.exogenous.rows import (
    TABLE,
    WRAPPERS,
    Noise,
    Row,
    keyed,
    on_the_line,
    trusted,
)

# --- where densities jump --------------------------------------------------------


def parts_ends(d):
    """Where the densities of a distribution's parts jump."""
    is_fn = lambda x: isinstance(x, Distribution)  # noqa: E731
    parts = filter(is_fn, jax.tree.leaves(list(vars(d).values()), is_leaf=is_fn))
    known = [ends for ends in map(ends_of, parts) if ends is not None]
    return sum(known, ()) if known else None


def _transformed_ends(d):
    # A map onto a part of the line makes ends. There a Gaussian tail falls faster than
    # any power, but other tails may not. Folding makes a jump for every tail.
    onto_part = any(not on_the_line(t.codomain) for t in d.transforms)
    folds = any(isinstance(t, maps.AbsTransform) for t in d.transforms)
    ends, kind = ends_of(d.base_dist), row_of(d.base_dist).noise(d.base_dist, ()).kind
    smooth = ends is None and not folds and (kind == "normal" or not onto_part)
    if smooth and not d.base_dist.support.is_discrete:  # whose values a map moves
        return None
    return (*(ends or ()), *jax.tree.leaves(d.transforms))


# --- with quantile functions -----------------------------------------------------


def _quantile(d, p):
    row = TABLE[type(d)]
    return row.transform(d, ndtri(p) if row.noise(d, ()).kind == "normal" else p, ())


def truncated(d, u):
    """The quantile function of a truncated distribution at uniform noise."""
    # The base is symmetric about loc. Both tail probabilities are interpolated and the
    # smaller one is inverted, which is accurate far out on both sides.
    base = d.base_dist
    low, high = getattr(d, "low", None), getattr(d, "high", None)

    def interpolate(sign):
        def at(x):
            return samplers.cdf(base, base.loc + sign * (x - base.loc))

        first = 0.5 - 0.5 * sign if low is None else at(low)
        last = 0.5 + 0.5 * sign if high is None else at(high)
        return (1 - u) * first + u * last

    below, above = interpolate(1), interpolate(-1)
    tail = jnp.maximum(jnp.minimum(below, above), jnp.finfo(u.dtype).tiny)
    x = _quantile(base, tail)
    return jnp.clip(jnp.where(below < above, x, 2 * base.loc - x), low, high)


_SYMMETRIC = (dist.Cauchy, dist.Laplace, dist.Logistic, dist.Normal, dist.SoftLaplace)


def truncated_reason(d) -> str:
    """Why a truncated distribution has no transform; "" if it has one."""
    known = type(d.base_dist) in _SYMMETRIC
    return "" if known else _no_quantile(d, d.base_dist)


def _no_quantile(d, base) -> str:
    name = type(base).__name__
    return f"{type(d).__name__}: no quantile function of {name} is known"


def copula(d, z):
    """Marginal quantiles of correlated normal noise."""
    g = samplers.times(d.base_dist.scale_tril, z)
    row = TABLE[type(d.marginal_dist)]
    if row.noise(d.marginal_dist, ()).kind == "uniform":
        eps = jnp.finfo(g.dtype).epsneg
        g = jnp.clip(ndtr(g), eps, 1 - eps)
    return row.transform(d.marginal_dist, g, ())


def copula_reason(d) -> str:
    """Why a copula has no transform; "" if it has one."""
    m = d.marginal_dist
    row = TABLE.get(type(m))
    ours = row is not None and not row.registered and type(m) not in WRAPPERS
    known = (
        ours
        and not m.event_shape
        and row_of(m).noise(m, ()).kind in ("normal", "uniform")
    )
    return reason_not_reparametrized(m) if known else _no_quantile(d, m)


def euler_maruyama(d, key, s):
    """A path of the stochastic differential equation, by NumPyro's steps."""
    # This table makes the initial value, NumPyro the steps. The steps call the user's
    # drift, so they are outside the trusted scope.
    key_init, key_steps = jax.random.split(key)
    init = d.init_dist.expand(s + d.batch_shape)
    noise: Any = key_init
    kind, shape = noise_of(init)
    if kind in ("normal", "uniform"):
        noise = getattr(jax.random, kind)(key_init, shape)
    start = dist.Delta(transform(init, noise), event_dim=len(init.event_shape))
    return dist.EulerMaruyama(d.t, d.sde_fn, start).sample(key_steps)


# --- with the row of the base ----------------------------------------------------


def _expanded_noise(d, s) -> Noise:
    kind, shape = row_of(d.base_dist).noise(d.base_dist, ())
    if kind in ("key", "none"):
        return Noise(kind, ())
    return Noise(kind, s + d.batch_shape + shape[len(d.base_dist.batch_shape) :])


def _expanded(d, noise, s):
    # Draw the base several times, so that all cells are independent. Batch dimension i
    # is more[i] * own[i], and one of the two is 1.
    base, n, cut = d.base_dist, len(d.batch_shape), len(s)
    own = (1,) * (n - len(base.batch_shape)) + tuple(base.batch_shape)
    more = tuple(b if a == 1 else 1 for a, b in zip(own, d.batch_shape, strict=True))
    if row_of(base).noise(base, ()).kind in ("normal", "uniform"):
        rest = jnp.shape(noise)[cut + n :]
        pairs = tuple(size for pair in zip(more, own, strict=True) for size in pair)
        noise = jnp.reshape(noise, s + pairs + rest)
        noise = jnp.moveaxis(noise, range(cut, cut + 2 * n, 2), range(cut, cut + n))
        noise = jnp.reshape(noise, s + more + tuple(base.batch_shape) + rest)
    value = row_of(base).transform(base, noise, s + more)
    value = jnp.reshape(value, s + more + own + d.event_shape)
    value = jnp.moveaxis(value, range(cut, cut + n), range(cut, cut + 2 * n, 2))
    return jnp.reshape(value, d.shape(s))


def _transformed(d, noise, s):
    value = row_of(d.base_dist).transform(d.base_dist, noise, s)
    for step in d.transforms:
        value = (trusted(step) if is_numpyros(step) else step)(value)
    return value


def is_numpyros(code) -> bool:
    """Whether it is NumPyro's code, including everything in its attributes."""
    parts = jax.tree.leaves(list(vars(code).values()), is_leaf=callable)
    inside = (p for p in parts if callable(p) and not isinstance(p, weakref.ref))
    ours = type(code).__module__.startswith("numpyro.")
    return ours and all(isinstance(p, _CODE) and is_numpyros(p) for p in inside)


_CODE = (maps.Transform, constraints.Constraint)


WRAPPED = Row(
    lambda d, s: row_of(d.base_dist).noise(d.base_dist, s),
    lambda d, noise, s: row_of(d.base_dist).transform(d.base_dist, noise, s),
    lambda d: ends_of(d.base_dist),
    lambda d: reason_not_reparametrized(d.base_dist),
)
EXPANDED = WRAPPED._replace(noise=_expanded_noise, transform=_expanded)
TRANSFORMED = WRAPPED._replace(transform=_transformed, ends=_transformed_ends)


def computed(formula: Callable[..., Any], *tags) -> Row:
    """The row of a function of a draw of the base, without a correct gradient."""

    def transform(d, noise, s):
        return formula(d, row_of(d.base_dist).transform(d.base_dist, noise, s))

    return Row(WRAPPED.noise, trusted(transform), *tags)._replace(few=True)


def refused(clause: str, law: bool = True) -> Row:
    """The row of a distribution whose draws have no correct gradient."""
    row = keyed(parts_ends, lambda d: f"{type(d).__name__}: {clause}")
    return row._replace(law=law)
