# SPDX-License-Identifier: Apache-2.0
"""The distribution of the output of a quantiser."""

from __future__ import annotations

from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro.distributions import Distribution, constraints
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.util import promote_shapes, validate_sample

from numpyro_infograd._text import brief
from numpyro_infograd.distributions.arrays import (
    as_floats,
    as_shape,
    is_known,
    promoted,
)
from numpyro_infograd.distributions.tails import check_base, tails_of
from numpyro_infograd.errors import ArgumentError


class Quantized(Distribution):
    """The output of a quantiser with a noisy input, such as a one-bit receiver.

    For an input X ~ base with cumulative distribution function F and edges
    e_1 < ... < e_n, the value is the number k of edges below X,

        P(k) = F(e_{k+1}) - F(e_k),    e_0 = -inf, e_{n+1} = inf,

    or `levels[k]`. The log probability has finite derivatives in the parameters of
    `base` and in the edges. Its accuracy for an improbable cell depends on `base`:

    - Cauchy, Exponential, HalfNormal, Laplace, Logistic, LogNormal, Normal, Uniform,
      Weibull, and MixtureSameFamily of these: accurate, even if P(k) is too small
      for a floating-point number.
    - Chi2, Gamma, SoftLaplace, StudentT: accurate in both tails, as long as P(k) is
      not too small for a floating-point number. (JAX has no derivative in the degrees
      of freedom of StudentT.)
    - Others: differences of `base.cdf`, which lose digits above the median.

    Where a probability of the last two kinds rounds to zero, `log_prob` is the log of
    the smallest normal number, with derivative zero.

    Draws have no derivative. A vector of independent quantisers is
    `Quantized(...).to_event(1)`, for a base with a batch shape.

    Args:
        base: A univariate continuous distribution with a `cdf`.
        edges: Strictly increasing numbers, shape (num_edges,), or with batch
            dimensions in front. As a parameter they need the constraint
            `constraints.ordered_vector`.
        levels: Different numbers, shape (num_edges + 1,), or with batch dimensions in
            front; None for the indices 0, ..., num_edges.
        validate_args: Whether to check values, as in NumPyro.

    Raises:
        ArgumentError: If `base` is of another kind, if edges do not increase, or if
            levels repeat or have another number.

    Example:
        >>> import numpyro.distributions as dist
        >>> from numpyro_infograd.distributions import Quantized
        >>> fn = Quantized(dist.Normal(0.0, 1.0), [-1.0, 1.0], levels=[-1.5, 0.0, 1.5])
        >>> [round(float(p), 4) for p in fn.probs]
        [0.1587, 0.6827, 0.1587]
        >>> one_bit = Quantized(dist.Normal(0.0, 1.0), [40.0])
        >>> round(float(one_bit.log_prob(1)), 1)
        -804.6
    """

    arg_constraints = {
        "edges": constraints.ordered_vector,
        "levels": constraints.dependent(is_discrete=False, event_dim=1),
    }
    pytree_data_fields = ("base_dist", "edges", "levels")
    has_enumerate_support = True

    def __init__(
        self,
        base: Distribution,
        edges: Any,
        levels: Any = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        check_base("Quantized", base)
        edges = _as_edges(edges)
        if levels is not None:
            levels = _as_levels(levels, edges.shape[-1] + 1)
        shapes = base.batch_shape, edges.shape[:-1], np.shape(levels)[:-1]
        batch_shape = as_shape(*shapes, names="base, edges and levels")
        self.base_dist = base.expand(batch_shape)
        (self.edges,) = promote_shapes(edges, shape=(*batch_shape, 1))
        self.levels = levels
        if levels is not None:
            (self.levels,) = promote_shapes(levels, shape=(*batch_shape, 1))
        super().__init__(batch_shape, (), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """The indices, or the levels."""
        if self.levels is None:
            return constraints.integer_interval(0, self.edges.shape[-1])
        return _OneOf(self.levels)

    @property
    def values(self) -> Any:
        """The indices or levels, shape (num_edges + 1,) or with batch dimensions."""
        if self.levels is None:
            return np.arange(self.edges.shape[-1] + 1)
        return self.levels

    def decode(self, index: Any) -> jax.Array:
        """The value of each index.

        Args:
            index: Whole numbers, shape (..., *batch_shape).

        Returns:
            Indices or levels of the same shape.
        """
        if self.levels is None:
            return jnp.asarray(index, jnp.result_type(int))
        return _take(self.levels, jnp.asarray(index))

    def encode(self, x: Any) -> jax.Array:
        """The value for an input of the quantiser.

        Args:
            x: Values of the base, shape (..., *batch_shape).

        Returns:
            Indices or levels of the same shape.
        """
        x = jnp.asarray(x)
        if self.edges.size == self.edges.shape[-1]:
            edges = jnp.asarray(self.edges).ravel()
            return self.decode(jnp.searchsorted(edges, x, side="left"))
        return self.decode(jnp.sum(x[..., None] > self.edges, axis=-1))

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws, shape sample_shape + batch_shape."""
        return self.encode(self.base_dist.sample(key, sample_shape))

    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        """Log probability, shape of the value; -inf for what is not a value."""
        value, last = jnp.asarray(value), self.edges.shape[-1]
        if self.levels is None:
            index = jnp.clip(value, 0, last).astype(jnp.result_type(int))
            known = index == value
        else:
            far = jnp.abs(value[..., None] - self.levels)
            index, known = jnp.argmin(far, axis=-1), jnp.min(far, axis=-1) == 0
        shape = jnp.broadcast_shapes(jnp.shape(index), self.batch_shape)
        index = jnp.broadcast_to(index, shape)
        base, tails = tails_of(self.base_dist)
        high = _take(self.edges, jnp.minimum(index, last - 1))
        first = index == 0
        if last == 1:  # no cell has two edges
            found = jnp.where(first, tails.below(base, high), tails.above(base, high))
        else:
            low = _take(self.edges, jnp.maximum(index - 1, 0))
            found = tails.cell(base, low, high, first, index == last)
        found = jnp.where(known, found, -jnp.inf)
        if is_known(self.edges):  # and so were seen to increase
            return found
        rises = jnp.all(jnp.diff(self.edges) > 0, axis=-1)
        return found * jnp.where(rises, 1.0, jnp.nan)  # its derivative is NaN too

    @property
    def log_probs(self) -> jax.Array:
        """Log probability of each cell, shape batch_shape + (num_edges + 1,)."""
        base, tails = tails_of(self.base_dist)
        edges = jnp.moveaxis(jnp.asarray(self.edges), -1, 0)
        edges = jnp.broadcast_to(edges, (len(edges), *self.batch_shape))
        parts = [tails.below(base, edges[:1]), tails.above(base, edges[-1:])]
        if len(edges) > 1:
            parts.insert(1, tails.between(base, edges[:-1], edges[1:]))
        return jnp.moveaxis(jnp.concatenate(parts), 0, -1)

    @property
    def probs(self) -> jax.Array:
        """Probability of each cell, shape batch_shape + (num_edges + 1,)."""
        return jnp.exp(self.log_probs)

    @property
    def mean(self) -> jax.Array:
        """Mean, shape batch_shape."""
        return jnp.sum(self.probs * self.values, axis=-1)

    @property
    def variance(self) -> jax.Array:
        """Variance, shape batch_shape."""
        away = self.values - self.mean[..., None]
        return jnp.sum(self.probs * away**2, axis=-1)

    @property
    def mode(self) -> jax.Array:
        """The most probable value, shape batch_shape."""
        return self.decode(jnp.argmax(self.log_probs, axis=-1))

    def entropy(self) -> jax.Array:
        """Shannon's entropy in nats, shape batch_shape."""
        log_probs = self.log_probs
        some = jnp.isfinite(log_probs)
        safe = jnp.where(some, log_probs, 0.0)
        return -jnp.sum(jnp.where(some, jnp.exp(safe) * safe, 0.0), axis=-1)

    def cdf(self, value: Any) -> jax.Array:
        """The probability of the values up to this number."""
        below = self.values <= jnp.asarray(value)[..., None]
        return jnp.minimum(jnp.sum(jnp.where(below, self.probs, 0.0), axis=-1), 1.0)

    def enumerate_support(self, expand: bool = True) -> Any:
        """All values, shape (num_edges + 1, *batch_shape); ones without `expand`."""
        found = np.moveaxis if is_known(self.values) else jnp.moveaxis
        values = found(self.values, -1, 0)
        ones = (1,) * (1 + len(self.batch_shape) - values.ndim)
        values = values.reshape(len(values), *ones, *values.shape[1:])
        if expand:
            values = jnp.broadcast_to(values, (len(values), *self.batch_shape))
        return values


class _OneOf(constraints.Constraint):
    """Equal to one of some numbers, which are along the last axis."""

    is_discrete = True

    def __init__(self, levels: Any) -> None:
        self.levels = levels

    def __call__(self, x: Any) -> Any:
        return (jnp.asarray(x)[..., None] == self.levels).any(axis=-1)

    def feasible_like(self, prototype: Any) -> Any:
        return jnp.broadcast_to(self.levels[..., 0], jnp.shape(prototype))

    def eq(self, other: object, static: bool = False) -> Any:
        if not isinstance(other, _OneOf):
            return False
        same = np.array_equal if static else jnp.array_equal
        return same(self.levels, other.levels)

    def tree_flatten(self) -> Any:
        return (self.levels,), (("levels",), {})


@promote_batch_shape.register
def _promoted(d: Quantized) -> Quantized:
    return promoted(d, d.edges.shape[:-1])


def _as_edges(edges: Any) -> Any:
    found = as_floats("edges", edges)
    if found.ndim == 0 or found.shape[-1] == 0:
        raise ArgumentError(
            f"edges must be an array of at least one number, got {brief(edges)}. Write "
            "[0.0] for a one-bit quantiser."
        )
    if is_known(found) and not np.all(found[..., 1:] > found[..., :-1]):
        raise ArgumentError(
            f"edges must be strictly increasing, got {brief(edges)}. Sort them, and "
            "leave out repeated ones."
        )
    return found


def _as_levels(levels: Any, count: int) -> Any:
    found = as_floats("levels", levels)
    if found.shape[-1:] != (count,):
        raise ArgumentError(
            f"levels has shape {found.shape}, but {count - 1} edges make {count} cells:"
            f" the last axis must have size {count}. Pass one level for each cell."
        )
    if is_known(found) and not np.all(np.diff(np.sort(found, axis=-1), axis=-1)):
        raise ArgumentError(
            f"levels must differ from each other, got {brief(levels)}. Remove the edge "
            "between two cells of the same level."
        )
    return found


def _take(array: Any, index: jax.Array) -> jax.Array:
    """The entries of the last axis at these indices."""
    array = jnp.asarray(array)
    if array.size == array.shape[-1]:
        return array.ravel()[index]
    array = jnp.broadcast_to(array, (*index.shape, array.shape[-1]))
    return jnp.take_along_axis(array, index[..., None], axis=-1)[..., 0]
