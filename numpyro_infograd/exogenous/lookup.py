# SPDX-License-Identifier: Apache-2.0
"""Functions that look a distribution up in the table."""

from __future__ import annotations

import copy
import operator
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp

import numpyro.distributions as dist
from numpyro.distributions import Distribution, constraints

from numpyro_infograd._arguments import is_real
from numpyro_infograd._jaxpr_walk import EXOGENOUS
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError, ModelError
from numpyro_infograd.exogenous.rows import (
    TABLE,
    WRAPPERS,
    Noise,
    Row,
    keyed,
    leaf_of,
    mixes_atoms,
)

_DRAWN = keyed()  # distributions with a reason are drawn from a key
_INEXACT = 1e-3  # how wrong probabilities may be
_ROUNDING = 1e-5  # how far outside two bounds an argument may be, in their distance


def row_of(fn) -> Row:
    """The row that makes draws of a distribution."""
    leaf = leaf_of(fn)
    few = type(leaf) in TABLE and TABLE[type(leaf)].few
    if reason_not_reparametrized(fn) and not few:
        return _DRAWN
    return TABLE[type(fn)]


def ends_of(fn) -> tuple[Any, ...] | None:
    """Where the density of a distribution jumps; see `Row`."""
    row = TABLE.get(type(fn))
    if row is not None:
        return row.ends(fn)
    return None if fn.support.is_discrete else tuple(jax.tree.leaves(fn))


def broken_constraints(fn: Distribution) -> dict[str, Array]:
    """Whether each argument of a distribution is NaN or outside its bounds.

    Also the arguments of distributions inside it. A zero scale counts as inside, and
    so does a probability that is rounded to above one. Matrices are not checked.
    """
    found: dict[str, Array] = {}
    validate = fn._validate_args
    if validate is None:  # a distribution that a scan has stacked
        validate = Distribution._validate_args
    for name, value in fn.get_args().items() if validate else ():
        rule = fn.arg_constraints[name]
        if constraints.is_dependent(rule) or not is_real(value) or rule.event_dim > 1:
            continue
        rule = getattr(rule, "base_constraint", rule)
        low = getattr(rule, "lower_bound", -jnp.inf)
        high = getattr(rule, "upper_bound", jnp.inf)
        if isinstance(rule, type(constraints.circular)):
            low, high = -jnp.inf, jnp.inf
        width = jnp.asarray(high - low, float)
        near = jnp.where(jnp.isfinite(width), _ROUNDING * width, 0.0)
        inside = (value >= low - near) & (value <= high + near)
        found[f"{name} of {type(fn).__name__}"] = ~jnp.all(inside)
    inner = jax.tree.leaves(fn, is_leaf=lambda x: x is not fn and _is_law(x))
    for each in filter(_is_law, inner):
        found |= broken_constraints(each)
    return found


def _is_law(value: Any) -> bool:
    return isinstance(value, Distribution)


def noise_of(fn: Distribution, sample_shape: tuple[int, ...] = ()) -> Noise:
    """The distribution of the noise that `transform` takes.

    Args:
        fn: Any distribution that can be sampled. Its expanded cells are independent.
        sample_shape: Leading shape of independent draws.

    Returns:
        Explicit noise of shape `sample_shape + batch_shape + base event shape`, or a
        key, or none. A distribution with a `reason_not_reparametrized` takes a key,
        except discrete ones with few values, which take uniforms.

    Raises:
        ModelError: If `fn` is improper, a factor statement, or a real distribution
            with a complex mean.
        ArgumentError: If `fn` is not a distribution.

    Example:
        >>> import numpyro.distributions as dist
        >>> from numpyro_infograd.exogenous import noise_of
        >>> noise_of(dist.Normal(0.0, 1.0).expand((3,)), (100,))
        Noise(kind='normal', shape=(100, 3))
    """
    if not isinstance(fn, Distribution):
        raise ArgumentError(
            f"fn must be a NumPyro distribution, got {brief(fn)}. Call its class: "
            "dist.Normal(0.0, 1.0)."
        )
    leaf = leaf_of(fn, WRAPPERS)
    if isinstance(leaf, (dist.ImproperUniform, dist.Unit)):
        raise ModelError(
            f"{type(leaf).__name__} has no draws, but every site of a generative model "
            "needs one. Use a distribution with a proper density instead."
        )
    if isinstance(leaf, dist.Normal) and jnp.iscomplexobj(leaf.loc):
        raise ModelError(
            "Normal has a complex mean, but its noise is real. Use "
            "numpyro_infograd.distributions.ComplexNormal(mean, scale)."
        )
    kind, shape = row_of(fn).noise(fn, tuple(sample_shape))
    try:
        return Noise(kind, tuple(map(operator.index, shape)))  # also of NumPy arrays
    except jax.errors.JAXTypeError:  # a traced size, which is explained elsewhere
        raise
    except TypeError:
        raise ModelError(
            f"{type(fn).__name__} has the sizes {shape}: use whole numbers."
        ) from None


def transform(fn: Distribution, noise: Any, sample_shape: tuple[int, ...] = ()) -> Any:
    """The value of a site as a function of its parameters and its noise.

    If `reason_not_reparametrized(fn)` is empty, the derivative in the parameters of
    `fn` is the right pathwise derivative. Otherwise the value is only a draw.

    Args:
        fn: The distribution; its parameters may be traced.
        noise: Noise as `noise_of(fn, sample_shape)` describes it: an array of its shape
            or a key; ignored for kind "none".
        sample_shape: Leading shape of independent draws.

    Returns:
        Array of shape `sample_shape + fn.batch_shape + fn.event_shape`.

    Raises:
        ModelError: If `fn` is improper, or a factor statement.
        ArgumentError: If `noise` has another shape than `noise_of` says, or `fn` is not
            a distribution.

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
    """Why the pathwise gradient of `fn` would be wrong, in one clause.

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
    row, name = TABLE.get(type(fn)), type(fn).__name__
    if row is not None and row.reason(fn):
        return row.reason(fn)
    # The support shows what is discrete; the dtype does not (Geometric draws floats).
    if (row is None or row.registered) and fn.support.is_discrete:
        return f"{name} is discrete"
    return "" if row else f"{name} is not a distribution this package knows"


def density(fn: Distribution) -> Distribution:
    """The distribution whose `log_prob` is the log density of the site.

    Masks are removed, because a mask changes a likelihood but not how the site is
    drawn. Validation is switched on, because NumPyro's densities are zero outside their
    support only if arguments are validated.
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


def log_probs(fn: Distribution, value: Any) -> Array:
    """Log densities of independent entries, in nats; their sum is that of the value."""
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    each = fn.log_prob(value)
    leaf = leaf_of(fn)
    kind = leaf.arg_constraints.get("probs")
    if kind is None or not isinstance(probs := leaf.probs, jax.core.Tracer):
        return each  # NumPyro has checked known values
    # NumPyro takes impossible probabilities for possible ones. The product is NaN, and
    # so is its derivative, from which an ascent goes back.
    with jax.named_scope(EXOGENOUS):
        valid = jnp.all((probs > -_INEXACT) & (probs < 1.0 + _INEXACT))
        if kind == constraints.simplex:
            valid &= jnp.all(jnp.abs(jnp.sum(probs, axis=-1) - 1.0) < _INEXACT)
        return each * jnp.where(valid, 1.0, jnp.nan)


def has_edge(fn: Distribution) -> bool:
    """Whether the density of `fn` jumps, or may jump, somewhere."""
    return ends_of(fn) is not None


def has_atoms(fn: Distribution) -> bool:
    """Whether `fn` has a density and also values of positive probability."""
    row = TABLE.get(type(leaf_of(fn, WRAPPERS)))
    return row is not None and row.atoms


def has_law(fn: Distribution) -> bool:
    """Whether `log_prob` is the log density of draws, for `fn` and its parts.

    Of a class that this package does not know, only the parts are checked.
    """
    inside = jax.tree.leaves(
        fn, is_leaf=lambda x: x is not fn and isinstance(x, Distribution)
    )
    parts = [part for part in inside if isinstance(part, Distribution)]
    row = TABLE.get(type(fn))
    right = row is None or row.law and not mixes_atoms(fn)
    return right and all(map(has_law, parts))


def boundary(fn: Distribution) -> tuple[Array, ...]:
    """The arrays that locate the jumps of the density of `fn`.

    A score misses the contribution of a jump that moves, so it must be known whether
    these arrays depend on anything. They are () if the density is continuous, or jumps
    only where no parameter can move it; of an unknown class, all arrays.
    """
    return tuple(jnp.asarray(end) for end in ends_of(fn) or ())
