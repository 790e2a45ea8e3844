# SPDX-License-Identifier: Apache-2.0
"""Log probabilities of half-lines and intervals that are accurate far out.

A difference of two cdfs near 1 has no digits left. Here each distribution has formulas
without such differences, or at least uses the smaller of the two tails. All derivatives
are finite: a branch of `jnp.where` that is not chosen is evaluated at a harmless point,
because zero times an infinite derivative is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc, erfcx, gammainc, gammaincc, ndtr

import numpyro.distributions as dist
from numpyro.distributions import Distribution

from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError

_LOG_HALF = math.log(0.5)
_LOG_ROOT = 0.5 * math.log(2 * math.pi)


class Tails(NamedTuple):
    """Log probabilities of a distribution, each broadcast to the points."""

    below: Callable[[Any, Any], jax.Array]  # from distribution and x to log P(X <= x)
    above: Callable[[Any, Any], jax.Array]  # from distribution and x to log P(X > x)
    # From distribution, a and b to log P(a < X <= b); -inf unless a < b.
    between: Callable[[Any, Any, Any], jax.Array]
    # The same from a and b, and from whether a is -inf and whether b is inf instead;
    # not both are.
    cell: Callable[[Any, Any, Any, Any, Any], jax.Array]


def tails_of(fn: Distribution) -> tuple[Distribution, Tails]:
    """The distribution without its expansion, and its log probabilities."""
    while type(fn) is dist.ExpandedDistribution:
        fn = fn.base_dist
    return fn, _TAILS.get(type(fn), _ANY)


def check_base(name: str, fn: Any) -> None:
    """Raise unless a distribution is univariate and continuous, and has a cdf."""
    if not isinstance(fn, Distribution):
        raise ArgumentError(
            f"base of {name} must be a NumPyro distribution, got {brief(fn)}. Call its "
            "class: dist.Normal(0.0, 1.0)."
        )
    leaf, tails = tails_of(fn)
    kind = type(leaf).__name__
    if fn.event_shape:
        raise ArgumentError(
            f"base of {name} must be univariate, got {kind} with event shape "
            f"{fn.event_shape}. Give it a batch shape, and write {name}(...).to_event()"
            " for a vector of independent entries."
        )
    if fn.support.is_discrete:
        raise ArgumentError(
            f"base of {name} must be continuous, got {kind}, which is discrete. Use "
            "dist.Categorical with the probabilities of the outcomes."
        )
    if tails is _MIXTURE:
        check_base(name, leaf.component_distribution)
    if tails is not _ANY:
        return
    try:
        jax.eval_shape(leaf.cdf, jnp.zeros(leaf.batch_shape))
    except (AttributeError, NotImplementedError):
        raise ArgumentError(
            f"base of {name} must have a cdf, but {kind} has none. Use a base such as "
            "dist.Normal, dist.Logistic or dist.StudentT."
        ) from None


# --- pieces ------------------------------------------------------------------------


def _log1mexp(x: Any) -> jax.Array:
    """log(1 - exp(-x)) for x > 0."""
    small = x < math.log(2.0)
    near = jnp.log(-jnp.expm1(-jnp.where(small, x, 1.0)))
    return jnp.where(small, near, jnp.log1p(-jnp.exp(-jnp.where(small, 1.0, x))))


def _ordered(formula: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A formula of a, b and width b - a > 0; -inf where the width is not positive."""

    def between(a: Any, b: Any, width: Any) -> jax.Array:
        ok = width > 0
        a, b = jnp.where(ok, a, -1.0), jnp.where(ok, b, 1.0)
        return jnp.where(ok, formula(a, b, jnp.where(ok, width, 2.0)), -jnp.inf)

    return between


def _tails(below: Any, above: Any, between: Any) -> Tails:
    """Tails from separate formulas for open and closed intervals."""

    def cell(d: Any, a: Any, b: Any, first: Any, last: Any) -> jax.Array:
        closed = between(d, a, b)
        return jnp.where(first, below(d, b), jnp.where(last, above(d, a), closed))

    return Tails(below, above, between, cell)


def _located(below: Any, between: Any, far: float) -> Tails:
    """A location-scale family, symmetric about zero, from its standard formulas.

    Beyond -far - |z|, it has no probability next to that below z.
    """
    between = _ordered(between)

    def z(d: Any, x: Any) -> Any:
        return (x - d.loc) / d.scale

    def cell(d: Any, a: Any, b: Any, first: Any, last: Any) -> jax.Array:
        # The width is not a difference of two rounded numbers.
        a, b, width = z(d, a), z(d, b), (b - a) / d.scale
        low, high = (jax.lax.stop_gradient(far + jnp.abs(x)) for x in (b, a))
        width = jnp.where(first, b + low, jnp.where(last, high - a, width))
        return between(jnp.where(first, -low, a), jnp.where(last, high, b), width)

    return Tails(
        lambda d, x: below(z(d, x)),
        lambda d, x: below(-z(d, x)),
        lambda d, a, b: cell(d, a, b, False, False),
        cell,
    )


def _by_tails(cdf: Any, survival: Any) -> Tails:
    """From both tail probabilities, with differences in the smaller tail."""

    def log(p: Any) -> jax.Array:
        # A probability that is rounded to zero has a finite log and no derivative.
        tiny = jnp.finfo(jnp.result_type(p)).tiny
        return jnp.log(jnp.where(p > tiny, p, tiny))

    def between(d: Any, a: Any, b: Any) -> jax.Array:
        low, high = cdf(d, a), survival(d, b)
        other = jnp.where(low < high, cdf(d, b) - low, survival(d, a) - high)
        return jnp.where(a < b, log(other), -jnp.inf)

    return _tails(
        lambda d, x: log(cdf(d, x)), lambda d, x: log(survival(d, x)), between
    )


def _moved(tails: Tails, base: Any, coordinate: Any) -> Tails:
    """The distribution of an increasing function of another variable."""
    below, above, between, cell = tails
    return Tails(
        lambda d, x: below(base(d), coordinate(d, x)),
        lambda d, x: above(base(d), coordinate(d, x)),
        lambda d, a, b: between(base(d), coordinate(d, a), coordinate(d, b)),
        lambda d, a, b, *ends: cell(base(d), coordinate(d, a), coordinate(d, b), *ends),
    )


# --- normal --------------------------------------------------------------------------


def _erfcx(u: Any) -> jax.Array:
    """exp(u^2) erfc(u) for u >= 0, from its asymptotic series for large u.

    The function of JAX is zero where erfc is a subnormal number, near 9.3 in single
    precision and 26.6 in double precision.
    """
    far = u > (8.0 if jnp.finfo(jnp.result_type(u)).bits == 32 else 20.0)
    large = jnp.where(far, u, 8.0)
    series = jnp.ones(())
    for k in range(9, 0, -1):
        series = 1.0 - (k - 0.5) / large**2 * series
    series = series / (large * math.sqrt(math.pi))
    return jnp.where(far, series, erfcx(jnp.where(far, 1.0, u)))


def _normal_below(z: Any) -> jax.Array:
    left = z < 0
    u = jnp.where(left, -z, 1.0) * math.sqrt(0.5)
    far = jnp.log(_erfcx(u)) - u * u + _LOG_HALF
    return jnp.where(left, far, jnp.log1p(-ndtr(jnp.where(left, -1.0, -z))))


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(6)
_PAIRS = tuple(zip(_NODES[3:].tolist(), _WEIGHTS[3:].tolist(), strict=True))


def _normal_between(a: Any, b: Any, width: Any) -> jax.Array:
    flip = a + b > 0  # then the interval is on the left, or around zero
    low, high = jnp.where(flip, -b, a), jnp.where(flip, -a, b)
    middle = low + 0.5 * width
    slope = 0.5 * middle * width
    narrow = (width < 0.5) & (slope > -0.5)
    across = ~narrow & (high > 0)
    tail = ~narrow & ~across

    # The density at six nodes of Gauss and Legendre, in pairs about the middle.
    w, c = jnp.where(narrow, width, 0.5), jnp.where(narrow, slope, -0.5)
    mean = jnp.zeros(())
    for t, weight in _PAIRS:
        fall = 0.125 * (w * t) ** 2
        mean += 0.5 * weight * (jnp.exp(c * t - fall) + jnp.exp(-c * t - fall))
    by_density = jnp.log(w * mean) - 0.5 * middle**2 - _LOG_ROOT

    # Phi(b) - Phi(a), divided by exp(-b^2 / 2), from scaled complements.
    low_t, high_t = jnp.where(tail, low, -2.0), jnp.where(tail, high, -1.0)
    ratio = jnp.exp(2.0 * jnp.where(tail, slope, -1.0))
    root = math.sqrt(0.5)
    scaled = _erfcx(-root * high_t) - _erfcx(-root * low_t) * ratio
    by_tail = jnp.log(0.5 * scaled) - 0.5 * high_t**2

    low_c, high_c = jnp.where(across, low, -1.0), jnp.where(across, high, 1.0)
    by_rest = jnp.log1p(-ndtr(low_c) - ndtr(-high_c))
    return jnp.where(narrow, by_density, jnp.where(tail, by_tail, by_rest))


_NORMAL = _located(_normal_below, _normal_between, 1e3)


def _log_of(d: Any, x: Any) -> Any:
    """log(x) for a positive base; far below every draw where x is not positive."""
    least = jnp.finfo(jnp.result_type(x)).tiny
    return jnp.log(jnp.where(x > least, x, least))


def _half_normal_between(d: Any, a: Any, b: Any) -> jax.Array:
    whole = dist.Normal(0.0, d.scale)
    return _NORMAL.between(whole, _positive(a), _positive(b)) - _LOG_HALF


_HALF_NORMAL = _tails(
    lambda d, x: _half_normal_between(d, jnp.zeros_like(x), x),
    lambda d, x: _NORMAL.above(dist.Normal(0.0, d.scale), _positive(x)) - _LOG_HALF,
    _half_normal_between,
)


# --- other formulas ----------------------------------------------------------------


def _logistic_between(a: Any, b: Any, width: Any) -> jax.Array:
    return jax.nn.log_sigmoid(b) + jax.nn.log_sigmoid(-a) + _log1mexp(width)


def _laplace_below(z: Any) -> jax.Array:
    tail = 0.5 * jnp.exp(-jnp.where(z < 0, 1.0, z))
    return jnp.where(z < 0, z + _LOG_HALF, jnp.log1p(-tail))


def _laplace_between(a: Any, b: Any, width: Any) -> jax.Array:
    across = (a < 0) & (b > 0)
    low, high = jnp.where(across, a, -1.0), jnp.where(across, b, 1.0)
    around = jnp.log(-0.5 * jnp.expm1(low) - 0.5 * jnp.expm1(-high))
    side = jnp.where(b <= 0, b, -a) + _log1mexp(width) + _LOG_HALF
    return jnp.where(across, around, side)


def _cauchy_below(z: Any) -> jax.Array:
    left = z < 0
    tail = jnp.arctan2(1.0, jnp.where(left, -z, z)) / jnp.pi
    return jnp.where(left, jnp.log(tail), jnp.log1p(-tail))


def _cauchy_between(a: Any, b: Any, width: Any) -> jax.Array:
    # The difference of two arctangents as one, divided by a length that cancels.
    first, last = (jax.lax.stop_gradient(1 + jnp.abs(x)) for x in (a, b))
    angle = jnp.arctan2(
        width / first / last, 1 / first / last + (a / first) * (b / last)
    )
    return jnp.log(angle / jnp.pi)


def _positive(x: Any) -> Any:
    return jnp.where(x > 0, x, 0.0)


def _exponential_below(d: Any, x: Any) -> jax.Array:
    ok = x > 0
    return jnp.where(ok, _log1mexp(d.rate * jnp.where(ok, x, 1.0)), -jnp.inf)


def _exponential_between(d: Any, a: Any, b: Any) -> jax.Array:
    a, b = _positive(a), _positive(b)
    ok = a < b
    width = d.rate * jnp.where(ok, b - a, 1.0)
    return jnp.where(ok, _log1mexp(width) - d.rate * a, -jnp.inf)


_EXPONENTIAL = _tails(
    _exponential_below, lambda d, x: -d.rate * _positive(x), _exponential_between
)


def _weibull_power(d: Any, x: Any) -> jax.Array:
    """What is exponential with rate 1; zero where x is not positive."""
    ok = x > 0
    return jnp.where(ok, (jnp.where(ok, x, 1.0) / d.scale) ** d.concentration, 0.0)


def _uniform_between(d: Any, a: Any, b: Any) -> jax.Array:
    low, high = jnp.where(a > d.low, a, d.low), jnp.where(b < d.high, b, d.high)
    ok, share = low < high, (high - low) / (d.high - d.low)
    return jnp.where(ok, jnp.log(jnp.where(ok, share, 1.0)), -jnp.inf)


_UNIFORM = _tails(
    lambda d, x: _uniform_between(d, d.low, x),
    lambda d, x: _uniform_between(d, x, d.high),
    _uniform_between,
)


def _reflected(cdf: Any) -> Tails:
    """A distribution that is symmetric about loc, with an accurate lower tail."""
    return _by_tails(cdf, lambda d, x: cdf(d, 2 * d.loc - x))


def _student(d: Any, x: Any) -> jax.Array:
    z = (x - d.loc) / d.scale
    # At the median betainc has an infinite derivative: there, a Taylor series.
    near = jnp.abs(z) < 1e-3
    square = jnp.where(near, 1.0, z * z)
    tail = 0.5 * betainc(0.5 * d.df, 0.5, d.df / (d.df + square))
    z = jnp.where(near, z, 0.0)
    density = jnp.exp(dist.StudentT(d.df).log_prob(0.0))
    middle = 0.5 + density * z * (1 - (d.df + 1) / d.df * z * z / 6)
    return jnp.where(near, middle, jnp.where(x < d.loc, tail, 1 - tail))


def _soft_laplace(d: Any, x: Any) -> jax.Array:
    z = (x - d.loc) / d.scale
    tail = jnp.arctan(jnp.exp(jnp.where(z < 0, z, -z))) * (2 / jnp.pi)
    return jnp.where(z < 0, tail, 1 - tail)


def _gamma(function: Any, at_zero: float) -> Callable[[Any, Any], jax.Array]:
    def probability(d: Any, x: Any) -> jax.Array:
        ok = x > 0
        found = function(d.concentration, d.rate * jnp.where(ok, x, 1.0))
        return jnp.where(ok, found, at_zero)

    return probability


_GAMMA = _by_tails(_gamma(gammainc, 0.0), _gamma(gammaincc, 1.0))


def _mixed(kind: str) -> Callable[..., jax.Array]:
    def log_probability(d: Any, *points: Any) -> jax.Array:
        part, tails = tails_of(d.component_distribution)
        at = (jnp.expand_dims(jnp.asarray(x), -1) for x in points)
        weights = jax.nn.log_softmax(d.mixing_distribution.logits, axis=-1)
        each = getattr(tails, kind)(part, *at) + weights
        # A component without mass, or a cell without any, has no derivative.
        some = jnp.any(jnp.isfinite(each), axis=-1)
        each = jnp.where(jnp.isfinite(each), each, -jnp.inf)
        total = jax.nn.logsumexp(jnp.where(some[..., None], each, 0.0), axis=-1)
        return jnp.where(some, total, -jnp.inf)

    return log_probability


_MIXTURE = Tails(*(_mixed(kind) for kind in Tails._fields))


# --- any other distribution ----------------------------------------------------------


def _middle(d: Any, x: Any) -> Any:
    """Points like x, where the cdf is neither 0 nor 1."""
    try:
        found = d.icdf(jnp.full(jnp.shape(x), 0.5))
    except NotImplementedError:
        found = d.support.feasible_like(x)
    return jax.lax.stop_gradient(found)


def _cdf(d: Any, x: Any) -> jax.Array:
    """The cdf, with derivatives only where it is neither 0 nor 1."""
    low = getattr(d.support, "lower_bound", -jnp.inf)
    high = getattr(d.support, "upper_bound", jnp.inf)
    middle = _middle(d, x)
    ok = (x > low) & (x < high)
    rough = jax.lax.stop_gradient(d.cdf(jnp.where(ok, x, middle)))
    rough = jnp.where(ok, rough, jnp.where(x >= high, 1.0, 0.0))
    ok &= (rough > 0) & (rough < 1)
    return jnp.where(ok, d.cdf(jnp.where(ok, x, middle)), rough)


_ANY = _by_tails(_cdf, lambda d, x: 1 - _cdf(d, x))

_TAILS: dict[type, Tails] = {
    dist.Cauchy: _located(_cauchy_below, _cauchy_between, 1e30),
    dist.Chi2: _GAMMA,
    dist.Exponential: _EXPONENTIAL,
    dist.Gamma: _GAMMA,
    dist.HalfNormal: _HALF_NORMAL,
    dist.Laplace: _located(_laplace_below, _laplace_between, 1e3),
    dist.Logistic: _located(jax.nn.log_sigmoid, _logistic_between, 1e3),
    dist.LogNormal: _moved(_NORMAL, lambda d: d.base_dist, _log_of),
    dist.MixtureSameFamily: _MIXTURE,
    dist.Normal: _NORMAL,
    dist.SoftLaplace: _reflected(_soft_laplace),
    dist.StudentT: _reflected(_student),
    dist.Uniform: _UNIFORM,
    dist.Weibull: _moved(_EXPONENTIAL, lambda d: dist.Exponential(), _weibull_power),
}
