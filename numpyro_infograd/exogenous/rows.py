# SPDX-License-Identifier: Apache-2.0
"""What a row of the table is, and the kinds of rows."""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import numpy as np

import jax

import numpyro.distributions as dist
from numpyro.distributions import constraints

from numpyro_infograd.jaxpr_walk import EXOGENOUS


class Noise(NamedTuple):
    """The law of a site's exogenous noise; static and hashable.

    Attributes:
        kind: "normal" (independent N(0, 1)), "uniform" (independent on the open unit
            interval), "key" (one PRNG key) or "none" (`Delta`).
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
    """One row of the table.

    `ends` gives the arrays that locate the jumps of the density: () if it jumps where
    no parameter can move it, None if it is continuous. The difference matters when a
    transform moves the value. `few` says of a law of a few values that its draws are
    made from its noise although no gradient passes; `registered`, that a user added it.
    """

    noise: Callable[[Any, tuple[int, ...]], Noise]
    transform: Callable[[Any, Any, tuple[int, ...]], Any]
    ends: Callable[[Any], tuple[Any, ...] | None] = lambda d: None
    reason: Callable[[Any], str] = lambda d: ""
    few: bool = False
    registered: bool = False


TABLE: dict[type, Row] = {}
"""Every known distribution: the rows of `table`, and what users registered."""

WRAPPERS = (
    dist.ExpandedDistribution,
    dist.FoldedDistribution,
    dist.Independent,
    dist.MaskedDistribution,
    dist.TransformedDistribution,
)
"""Classes that leave the making of draws to their `base_dist`."""


def trusted(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same formula under the scope where no jump is looked for."""

    @functools.wraps(fn)
    def scoped(*args):
        with jax.named_scope(EXOGENOUS):
            return fn(*args)

    return scoped


def normal(formula, *tags, event=lambda d: d.event_shape) -> Row:
    def noise(d, s):
        return Noise("normal", s + d.batch_shape + tuple(event(d)))

    return Row(noise, trusted(lambda d, z, s: formula(d, z)), *tags)


def uniform(formula, *tags) -> Row:
    # Every formula must increase in u: truncation and copulas use it as a quantile.
    def noise(d, s):
        return Noise("uniform", s + d.batch_shape)

    return Row(noise, trusted(lambda d, u, s: formula(d, u)), *tags)


def _sample(d, key, s):
    # NumPyro's rsample is sample behind a flag that some right samplers do not set.
    return d.rsample(key, s) if d.has_rsample else d.sample(key, s)


def keyed(*tags) -> Row:
    return Row(lambda d, s: Noise("key", ()), trusted(_sample), *tags)


# --- where densities jump --------------------------------------------------------


def at(*names: str) -> Callable[[Any], tuple[Any, ...]]:
    return lambda d: tuple(getattr(d, name) for name in names)


FIXED = at()


def unless_above_one(power: Callable[[Any], Any]) -> Callable[[Any], Any]:
    # x**(power - 1) vanishes at the end of the support only for power > 1; a power
    # that is being traced is not known, hence may jump.
    def ends(d):
        p = power(d)
        traced = isinstance(p, jax.core.Tracer)
        return () if traced or np.any(np.asarray(p) <= 1) else None

    return ends


def on_the_line(support) -> bool:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is constraints.real
