# SPDX-License-Identifier: Apache-2.0
"""Complex numbers as pairs of real ones, in a new last axis."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp


def to_pair(value: Any) -> Any:
    """A complex array as its real and imaginary parts, in a new last axis."""
    if not jnp.iscomplexobj(value):
        return value
    return jnp.stack([jnp.real(value), jnp.imag(value)], axis=-1)


def from_pair(pair: Any) -> jax.Array:
    """Inverse of `to_pair`."""
    return jax.lax.complex(pair[..., 0], pair[..., 1])


def with_pairs(names: Collection[str], params: Any) -> Any:
    """Parameters or values as a model takes them: those of these names as pairs."""
    if not names or not isinstance(params, Mapping):
        return params
    return {n: jax.tree.map(to_pair, p) if n in names else p for n, p in params.items()}


def without_pairs(names: Collection[str], params: dict[str, Any]) -> dict[str, Any]:
    """What a user sees: pairs as complex numbers.

    A gradient is then the direction of steepest ascent, d/dRe + i d/dIm.
    """
    return {
        n: jax.tree.map(from_pair, p) if n in names else p for n, p in params.items()
    }
