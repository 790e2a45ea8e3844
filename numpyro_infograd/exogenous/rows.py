# SPDX-License-Identifier: Apache-2.0
"""Rows of the table, and functions that make them."""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

import numpyro.distributions as dist
from numpyro.distributions import constraints

from numpyro_infograd._jaxpr_walk import EXOGENOUS


class Noise(NamedTuple):
    """The distribution of a site's exogenous noise; static and hashable.

    Attributes:
        kind: "normal" (independent N(0, 1)), "uniform" (independent on the open unit
            interval), "key" (one PRNG key), "held" (the value of a site
            itself) or "none" (`Delta`).
        shape: Shape of the noise array; () for "key" and "none".

    Example:
        >>> import numpyro.distributions as dist
        >>> from numpyro_infograd.exogenous import Noise, noise_of
        >>> noise_of(dist.Gamma(3.0)) == Noise("key", ())
        True
    """

    kind: str
    shape: tuple[int, ...]


class Row(NamedTuple):
    """One row of the table."""

    # From distribution and sample shape to `Noise`.
    noise: Callable[[Any, tuple[int, ...]], Noise]
    # From distribution, noise and sample shape to values.
    transform: Callable[[Any, Any, tuple[int, ...]], Any]
    # The arrays that locate the jumps of the density: () if it jumps where no parameter
    # can move it, None if it is continuous. The two differ if a transform moves the
    # value.
    ends: Callable[[Any], tuple[Any, ...] | None] = lambda d: None
    # Why the pathwise gradient would be wrong; "" if it is right.
    reason: Callable[[Any], str] = lambda d: ""
    # Whether draws are made from explicit noise although they have no gradient, for
    # instance those of a discrete distribution of few values.
    few: bool = False
    atoms: bool = False  # whether the distribution has a density and also atoms
    law: bool = True  # whether `log_prob` is the log density of its draws
    registered: bool = False  # whether a user registered it


TABLE: dict[type, Row] = {}
"""Every known distribution: the rows of `table`, and what users registered."""

PLAIN_WRAPPERS = (dist.ExpandedDistribution, dist.Independent, dist.MaskedDistribution)
"""Classes that draw as their `base_dist` does."""

WRAPPERS = (*PLAIN_WRAPPERS, dist.FoldedDistribution, dist.TransformedDistribution)
"""Classes whose draws are made by their `base_dist`."""


def trusted(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same formula in a scope that the search for jumps skips."""

    @functools.wraps(fn)
    def scoped(*args):
        with jax.named_scope(EXOGENOUS):
            return fn(*args)

    return scoped


def normal(formula, *tags, event=lambda d: d.event_shape) -> Row:
    """A row whose transform takes standard normal noise."""

    def noise(d, s):
        return Noise("normal", s + d.batch_shape + tuple(event(d)))

    return Row(noise, trusted(lambda d, z, s: formula(d, z)), *tags)


def uniform(formula, *tags) -> Row:
    """A row whose transform takes uniform noise."""

    # Every formula must increase in u: truncation and copulas use it as a quantile.
    def noise(d, s):
        return Noise("uniform", s + d.batch_shape)

    return Row(noise, trusted(lambda d, u, s: formula(d, u)), *tags)


def _sample(d, key, s):
    if isinstance(d, dist.BinomialProbs):  # whose sampler never ends outside of [0, 1]
        inside = jnp.clip(d.probs, 0.0, 1.0)
        d = dist.BinomialProbs(inside, d.total_count, validate_args=False)
    # rsample is sample with a check of has_rsample, which some correct samplers lack.
    return d.rsample(key, s) if d.has_rsample else d.sample(key, s)


def keyed(*tags) -> Row:
    """A row whose noise is a PRNG key, for NumPyro's own sampler."""
    return Row(lambda d, s: Noise("key", ()), trusted(_sample), *tags)


# --- where densities jump --------------------------------------------------------


def at(*names: str) -> Callable[[Any], tuple[Any, ...]]:
    """Boundaries at the arguments of these names."""
    return lambda d: tuple(getattr(d, name) for name in names)


FIXED = at()


def unless_above_one(power: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A fixed boundary where the density jumps, unless the power is above one."""

    # x**(power - 1) is zero at the end of the support only for power > 1. A traced
    # power is not known, so the density may jump.
    def ends(d):
        p = power(d)
        traced = isinstance(p, jax.core.Tracer)
        return () if traced or np.any(np.asarray(p) <= 1) else None

    return ends


def on_the_line(support) -> bool:
    """Whether a support is the real line, in each coordinate."""
    return innermost(support) is constraints.real


def innermost(constraint: Any) -> Any:
    """The constraint of one coordinate, without wrappers such as `independent`."""
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint


def mixes_atoms(fn: Any) -> bool:
    """Whether a mixture adds the probability of an atom to the densities of others."""
    if isinstance(fn, dist.MixtureGeneral):
        components = fn.component_distributions
    elif isinstance(fn, dist.MixtureSameFamily):
        components = [fn.component_distribution]
    else:
        return False
    leaves = [leaf_of(each, WRAPPERS) for each in components]
    rows = [TABLE.get(type(leaf)) for leaf in leaves]
    atoms = [row is not None and row.atoms for row in rows]
    return any(atoms) or any(isinstance(leaf, dist.Delta) for leaf in leaves)


def leaf_of(fn: Any, wrappers: tuple[type, ...] = PLAIN_WRAPPERS) -> Any:
    """The distribution inside of these wrappers."""
    while type(fn) in wrappers:
        fn = fn.base_dist
    return fn
