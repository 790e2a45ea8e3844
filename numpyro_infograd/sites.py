# SPDX-License-Identifier: Apache-2.0
"""What is known about one site without drawing it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_infograd.exogenous import Noise


class Site(NamedTuple):
    """Static information about one site."""

    name: str
    kind: str  # "sample" or "deterministic"
    shape: tuple[int, ...]
    dtype: Any
    noise: Noise | None = None
    distribution: str = ""
    reason: str = ""  # why a parameter may not flow into it; "" if it may
    discrete: bool = False
    support: str = "real"  # also "positive", "unit", "bounded", "thin", "mixed" (atoms)
    state: str = "free"  # "free", "observed", "substituted" or "intervened"
    masked: bool = False  # whether it has a mask, which does not change draws
    control_flow: bool = False  # whether it is inside a scan or a cond
    unconstrain: Any = None  # NumPyro transform from real numbers to the support
    choices: tuple[float, ...] | None = ()  # values of a discrete site, if few

    pair: bool = False  # whether a last axis has the real and the imaginary part

    @property
    def size(self) -> int:
        """Number of scalars in one draw of the site."""
        return math.prod(self.shape)


def to_pair(value: Any) -> jax.Array:
    """A complex array as its real and imaginary parts, in a new last axis."""
    return jnp.stack([jnp.real(value), jnp.imag(value)], axis=-1)


def from_pair(pair: Any) -> jax.Array:
    """Inverse of `to_pair`."""
    return jax.lax.complex(pair[..., 0], pair[..., 1])
