# SPDX-License-Identifier: Apache-2.0
"""The distribution of a clipped variable."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr

import numpyro.distributions as dist
from numpyro.distributions import Distribution, biject_to, constraints
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.util import promote_shapes, validate_sample

from numpyro_infograd.distributions.arrays import (
    as_floats,
    as_shape,
    is_known,
    promoted,
)
from numpyro_infograd.distributions.tails import check_base, tails_of
from numpyro_infograd.errors import ArgumentError


class Mixed(constraints.Constraint):
    """The support of a density on an interval together with atoms at its ends.

    `biject_to` raises NotImplementedError for it, because a density on the real numbers
    has no atoms.
    """

    def __init__(self, low: Any, high: Any) -> None:
        self.low, self.high = low, high

    def __call__(self, x: Any) -> Any:
        return (x >= self.low) & (x <= self.high)

    def feasible_like(self, prototype: Any) -> Any:
        """A bound."""
        bound = jnp.where(jnp.isfinite(self.low), self.low, self.high)
        return jnp.broadcast_to(bound, jnp.shape(prototype))

    def eq(self, other: object, static: bool = False) -> Any:
        """Whether the other one has the same bounds."""
        if not isinstance(other, Mixed):
            return False
        same = np.array_equal if static else jnp.array_equal
        return same(self.low, other.low) & same(self.high, other.high)

    def tree_flatten(self) -> Any:
        """The bounds, as in NumPyro."""
        return (self.low, self.high), (("low", "high"), {})


@biject_to.register(Mixed)
def _no_coordinates(constraint: Any) -> Any:
    raise NotImplementedError(
        "a Clipped site is not observed, but its atoms have no unconstrained "
        "coordinates. Sample its base, and clip the value."
    )


class Clipped(Distribution):
    """A variable clipped to an interval: a rating, a saturating sensor, a rectifier.

    For X ~ base with density f and cumulative distribution function F, the value is
    min(max(X, low), high). It has a density inside the interval and atoms at its ends:

        p(v) = F(low)         at v = low,
        p(v) = f(v)           for low < v < high,
        p(v) = 1 - F(high)    at v = high.

    So `log_prob` is relative to Lebesgue measure plus a unit mass at each bound, as are
    entropies of such a site; information does not depend on the measure. For the bases
    that `Quantized` lists, the log probabilities of the bounds are accurate even if
    they are very small. All derivatives in parameters are finite. NumPyro cannot sample
    an unobserved Clipped site by NUTS, because it has no unconstrained coordinates.

    Args:
        base: A univariate continuous distribution with a `cdf`.
        low: Lower bound, broadcast with the batch shape of `base`; None for no bound.
        high: Upper bound, likewise. At least one bound is needed.
        validate_args: Whether to check values, as in NumPyro.

    Raises:
        ArgumentError: If `base` is of another kind, if there is no bound, or if `low`
            is not below `high`.

    Example:
        >>> import numpyro.distributions as dist
        >>> from numpyro_infograd.distributions import Clipped
        >>> fn = Clipped(dist.Normal(0.0, 1.0), low=0.0)  # a rectifier
        >>> [round(float(fn.log_prob(v)), 4) for v in (0.0, 1.0)]
        [-0.6931, -1.4189]
        >>> round(float(fn.mean), 4)
        0.3989
    """

    arg_constraints = {
        "low": constraints.dependent(is_discrete=False, event_dim=0),
        "high": constraints.dependent(is_discrete=False, event_dim=0),
    }
    pytree_data_fields = ("base_dist", "low", "high")

    def __init__(
        self,
        base: Distribution,
        low: Any = None,
        high: Any = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        check_base("Clipped", base)
        if low is None and high is None:
            raise ArgumentError(
                "Clipped needs low or high, got neither. Pass a bound, or use the base "
                "itself."
            )
        low = None if low is None else as_floats("low", low)
        high = None if high is None else as_floats("high", high)
        shapes = base.batch_shape, np.shape(low), np.shape(high)  # () for None
        batch_shape = as_shape(*shapes, names="base, low and high")
        closed = low is not None and high is not None
        if closed and is_known((low, high)) and not np.all(low < high):
            raise ArgumentError(
                f"low must be below high, got low={low} and high={high}. Exchange "
                "them, or leave one out."
            )
        self.base_dist = base.expand(batch_shape)
        self.low, self.high = (
            x if x is None else promote_shapes(x, shape=batch_shape)[0]
            for x in (low, high)
        )
        super().__init__(batch_shape, (), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        """The closed interval; its ends are atoms."""
        low = -np.inf if self.low is None else self.low
        high = np.inf if self.high is None else self.high
        return Mixed(low, high)

    def clip(self, x: Any) -> jax.Array:
        """The value for an input, shape (..., *batch_shape)."""
        return jnp.clip(x, self.low, self.high)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws, shape sample_shape + batch_shape."""
        return self.clip(self.base_dist.sample(key, sample_shape))

    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        """Log density or log probability; -inf outside of the interval."""
        shape = jnp.broadcast_shapes(jnp.shape(value), self.batch_shape)
        value = jnp.broadcast_to(value, shape)
        base, tails = tails_of(self.base_dist)
        at_low = jnp.zeros(shape, bool) if self.low is None else value <= self.low
        at_high = jnp.zeros(shape, bool) if self.high is None else value >= self.high
        # The density is evaluated at a harmless point if the value is a bound.
        point = base.support.feasible_like(jnp.zeros(shape))
        found = base.log_prob(jnp.where(at_low | at_high, point, value))
        if self.low is not None:
            atom = tails.below(base, jnp.broadcast_to(self.low, shape))
            atom = jnp.where(value < self.low, -jnp.inf, atom)
            found = jnp.where(at_low, atom, found)
        if self.high is not None:
            atom = tails.above(base, jnp.broadcast_to(self.high, shape))
            atom = jnp.where(value > self.high, -jnp.inf, atom)
            found = jnp.where(at_high, atom, found)
        return found

    def cdf(self, value: Any) -> jax.Array:
        """The probability of values up to this one."""
        base, tails = tails_of(self.base_dist)
        shape = jnp.broadcast_shapes(jnp.shape(value), self.batch_shape)
        value = jnp.broadcast_to(value, shape)
        found = jnp.exp(tails.below(base, self.clip(value)))
        if self.low is not None:
            found = jnp.where(value < self.low, 0.0, found)
        return found if self.high is None else jnp.where(value < self.high, found, 1.0)

    def icdf(self, q: Any) -> jax.Array:
        """The quantile function, for a base that has one."""
        base, _ = tails_of(self.base_dist)
        return self.clip(base.icdf(q))

    @property
    def mean(self) -> jax.Array:
        """Mean, shape batch_shape; of a normal base."""
        center, first, _ = self._moments()
        return center + first

    @property
    def variance(self) -> jax.Array:
        """Variance, shape batch_shape; of a normal base."""
        _, first, second = self._moments()
        return jnp.maximum(second - first**2, 0.0)

    def _moments(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A center, and the first two moments about it."""
        base, _ = tails_of(self.base_dist)
        if type(base) is not dist.Normal:
            raise NotImplementedError(
                f"the moments of a clipped {type(base).__name__} have no closed form"
            )
        center = self.clip(jnp.broadcast_to(base.loc, self.batch_shape))
        shift, scale = base.loc - center, base.scale
        inside, slope, curve = jnp.ones(()), jnp.zeros(()), jnp.zeros(())
        first, second = jnp.zeros(()), jnp.zeros(())
        for bound, sign in ((self.low, 1.0), (self.high, -1.0)):
            if bound is None:
                continue
            z = (bound - base.loc) / scale
            mass, density = ndtr(sign * z), jnp.exp(-0.5 * z * z) / _ROOT
            inside, slope = inside - mass, slope + sign * density
            curve += sign * z * density
            first += (bound - center) * mass
            second += (bound - center) ** 2 * mass
        first += shift * inside + scale * slope
        second += shift**2 * inside + 2 * shift * scale * slope
        second += scale**2 * (inside + curve)
        return center, first, second


_ROOT = math.sqrt(2 * math.pi)


@promote_batch_shape.register
def _promoted(d: Clipped) -> Clipped:
    bounds: Any = d.low, d.high
    return promoted(d, *map(np.shape, bounds))  # () for None
