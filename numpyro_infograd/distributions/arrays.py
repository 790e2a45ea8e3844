# SPDX-License-Identifier: Apache-2.0
"""Arguments of distributions as arrays, with checks of the numbers that are known."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro.distributions.batch_util import promote_batch_shape

from numpyro_infograd._arguments import is_real
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError


def is_known(value: Any) -> bool:
    """Whether no part of a value is traced."""
    return not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(value))


def as_floats(name: str, value: Any, kind: type = float) -> Any:
    """Real or complex numbers as an array of this kind: of NumPy, or traced."""
    what = "finite real numbers" if kind is float else "finite numbers"
    wrong = f"{name} must be {what}, got {brief(value)}. Pass an array."
    try:
        array = np.asarray(value) if is_known(value) else jnp.asarray(value)
    except (TypeError, ValueError):
        raise ArgumentError(wrong) from None
    turns = kind is complex and jnp.issubdtype(array.dtype, jnp.complexfloating)
    if not turns and not is_real(array):
        raise ArgumentError(wrong)
    array = array.astype(jnp.result_type(kind))
    if isinstance(array, np.ndarray) and not np.all(np.isfinite(array)):
        raise ArgumentError(wrong)
    return array


def promoted(fn: Any, *shapes: tuple[int, ...]) -> Any:
    """A distribution with a `base_dist` in a scan, which adds an axis in front of all
    arrays; the shapes are those of its other arguments.
    """
    new = copy.copy(fn)
    new.base_dist = promote_batch_shape(fn.base_dist)
    new._batch_shape = np.broadcast_shapes(new.base_dist.batch_shape, *shapes)
    return new


def as_shape(*shapes: tuple[int, ...], names: str) -> tuple[int, ...]:
    """The batch shape of several arguments, whose `names` are for the message."""
    try:
        return tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        raise ArgumentError(
            f"the batch shapes of {names}, {', '.join(map(str, shapes))}, do not "
            "broadcast. Give each axis the same size, or size 1."
        ) from None
