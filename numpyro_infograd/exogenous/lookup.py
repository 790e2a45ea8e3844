# SPDX-License-Identifier: Apache-2.0
"""What the table says of a distribution."""

from __future__ import annotations

import copy
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp

import numpyro.distributions as dist
from numpyro.distributions import Distribution

from numpyro_infograd.errors import ArgumentError, ModelError
from numpyro_infograd.exogenous.rows import TABLE, WRAPPERS, Noise, Row, keyed

_DRAWN = keyed()  # a law with a reason is drawn whole


def reason_of(fn) -> str:
    """`reason_not_reparametrized`, in the table's own words."""
    row, name = TABLE.get(type(fn)), type(fn).__name__
    if row is not None and row.reason(fn):
        return row.reason(fn)
    # The support says what is discrete; the dtype does not (Geometric draws floats).
    if row is None or row.registered:
        if fn.support.is_discrete:
            return f"{name} is discrete"
    return "" if row else f"{name} is not a distribution this package knows"


def row_of(fn) -> Row:
    """The row by which draws of a distribution are made."""
    leaf = fn
    while type(leaf) in (
        dist.ExpandedDistribution,
        dist.Independent,
        dist.MaskedDistribution,
    ):
        leaf = leaf.base_dist
    if reason_of(fn) and not (type(leaf) in TABLE and TABLE[type(leaf)].few):
        return _DRAWN
    return TABLE[type(fn)]


def ends_of(fn) -> tuple[Any, ...] | None:
    """Where the density of a distribution jumps; see `Row`."""
    row = TABLE.get(type(fn))
    if row is not None:
        return row.ends(fn)
    return None if fn.support.is_discrete else tuple(jax.tree.leaves(fn))


def noise_of(fn: Distribution, sample_shape: tuple[int, ...] = ()) -> Noise:
    """Returns the law of the noise that `transform` takes.

    Args:
        fn: Any distribution that can be sampled. Its expanded cells are independent.
        sample_shape: Leading shape of independent draws.

    Returns:
        Explicit noise of shape `sample_shape + batch_shape + base event shape`, or a
        key, or none. A distribution with a `reason_not_reparametrized` takes a key, but
        for laws of a few values.

    Raises:
        ModelError: `fn` is improper, or a factor statement.
        ArgumentError: `fn` is no distribution.

    Example:
        >>> import numpyro.distributions as dist
        >>> from numpyro_infograd.exogenous import noise_of
        >>> noise_of(dist.Normal(0.0, 1.0).expand((3,)), (100,))
        Noise(kind='normal', shape=(100, 3))
    """
    if not isinstance(fn, Distribution):
        raise ArgumentError(
            f"fn must be a NumPyro distribution, got {fn!r:.80}. Call its class: "
            "dist.Normal(0.0, 1.0)."
        )
    leaf: Any = fn
    while type(leaf) in WRAPPERS:
        leaf = leaf.base_dist
    if isinstance(leaf, (dist.ImproperUniform, dist.Unit)):
        raise ModelError(
            f"{type(leaf).__name__} has no draws, but every site of a generative model "
            f"needs one. Use a distribution with a proper density instead."
        )
    return row_of(fn).noise(fn, tuple(sample_shape))


def transform(fn: Distribution, noise: Any, sample_shape: tuple[int, ...] = ()) -> Any:
    """Returns the value of a site as a function of its parameters and its noise.

    The derivative with respect to the parameters of `fn` is the right pathwise one
    whenever `reason_not_reparametrized(fn)` is empty; otherwise this is a plain draw.

    Args:
        fn: The distribution; its parameters may be traced.
        noise: What `noise_of(fn, sample_shape)` describes, an array of its shape or a
            key; ignored for kind "none".
        sample_shape: Leading shape of independent draws.

    Returns:
        Array of shape `sample_shape + fn.batch_shape + fn.event_shape`.

    Raises:
        ModelError: `fn` is improper, or a factor statement.
        ArgumentError: `noise` has another shape than `noise_of` says; `fn` is no
            distribution.

    Example:
        >>> import numpyro.distributions as dist
        >>> from numpyro_infograd.exogenous import transform
        >>> float(transform(dist.Normal(1.0, 2.0), 0.5))
        2.0
    """
    kind, shape = noise_of(fn, sample_shape)
    if kind in ("normal", "uniform") and jnp.shape(noise) != shape:
        raise ArgumentError(
            f"noise for {type(fn).__name__} has shape {jnp.shape(noise)}, expected "
            f"{shape}: draw it as noise_of(fn, sample_shape) says."
        )
    return row_of(fn).transform(fn, noise, tuple(sample_shape))


def reason_not_reparametrized(fn: Distribution) -> str:
    """Returns why the pathwise gradient of `fn` would be wrong, in one clause.

    Args:
        fn: Any distribution.

    Returns:
        "" if the gradient with respect to every parameter of `fn` is right.

    Example:
        >>> import numpyro.distributions as dist
        >>> from numpyro_infograd.exogenous import reason_not_reparametrized
        >>> reason_not_reparametrized(dist.VonMises(0.0, 1.0))
        'VonMises: the gradient does not pass its rejection sampler'
        >>> reason_not_reparametrized(dist.Gamma(3.0))
        ''
    """
    return reason_of(fn)


def density(fn: Distribution) -> Distribution:
    """Returns the distribution whose `log_prob` is the density of the site.

    A mask changes what is summed into a likelihood, not how the site is drawn: it is
    taken off wherever it is nested. And NumPyro's densities end with their support only
    where arguments are validated: here they always are.

    Args:
        fn: Any distribution.

    Example:
        >>> import numpyro.distributions as dist
        >>> from numpyro_infograd.exogenous import density
        >>> fn = dist.Normal(0.0, 1.0).mask(False)
        >>> float(fn.log_prob(0.0)), round(float(density(fn).log_prob(0.0)), 4)
        (0.0, -0.9189)
    """
    if type(fn) is dist.MaskedDistribution:
        return density(fn.base_dist)
    bare = copy.copy(fn)
    bare._validate_args = True
    for name, part in vars(fn).items():
        if isinstance(part, Distribution):
            setattr(bare, name, density(part))
        elif type(part) in (list, tuple) and all(
            isinstance(each, Distribution) for each in part
        ):
            setattr(bare, name, type(part)(map(density, part)))
    return bare


def has_edge(fn: Distribution) -> bool:
    """Returns whether the density of `fn` jumps somewhere, or may.

    Args:
        fn: Any distribution.

    Example:
        >>> import numpyro.distributions as dist
        >>> from numpyro_infograd.exogenous import has_edge
        >>> has_edge(dist.Normal(0.0, 1.0)), has_edge(dist.Exponential(1.0))
        (False, True)
    """
    return ends_of(fn) is not None


def boundary(fn: Distribution) -> tuple[Array, ...]:
    """Returns the arrays that locate the jumps of the density of `fn`.

    A score misses what a moving jump contributes, so what these arrays depend on
    matters.

    Args:
        fn: Any distribution.

    Returns:
        () if the density is continuous, or jumps only where no parameter can move it.
        For a class that is not known, every array of `fn`.

    Example:
        >>> import numpyro.distributions as dist
        >>> from numpyro_infograd.exogenous import boundary
        >>> [float(end) for end in boundary(dist.Uniform(-1.0, 3.0))]
        [-1.0, 3.0]
        >>> boundary(dist.Exponential(2.0))  # jumps at 0, always
        ()
    """
    return tuple(jnp.asarray(end) for end in ends_of(fn) or ())
