# SPDX-License-Identifier: Apache-2.0
"""Whether an elementwise computation is strictly monotone in each component.

Some primitives are monotone wherever they are defined. A composition of others, such as
v * sqrt(|v|), is tested: its derivative must keep its sign on a dense grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

_MOST_SWITCHES = 4  # along the grid, in each component
_ROUNDING = 1e-9


def is_monotone(
    fn: Callable[[jax.Array], tuple[jax.Array, list[jax.Array]]],
    draws: np.ndarray,
    support: str,
) -> bool:
    """Whether an elementwise function is strictly monotone in each component.

    Tested in 64 bits, on a grid that covers three times the range of the draws as far
    as the support allows. Further out it may also be constant, because of rounding.
    `fn` returns its value and the predicates of its switches.
    """
    with jax.enable_x64(True):
        run = jax.jit(
            lambda grid: jax.jvp(
                jax.vmap(fn), (grid,), (jnp.ones_like(grid),), has_aux=True
            )
        )
        near = _grid(draws, support, 1.0)
        if not _rises(near, run(near), strictly=True):
            return False
        far = _grid(draws, support, 1000.0)
        return _rises(far, run(far), strictly=False)


def _rises(grid: jax.Array, found: tuple[Any, Any, list[Any]], strictly: bool) -> bool:
    """Whether a function rises, or falls, along all of a grid.

    If not strictly, it may be constant or not finite at points of the grid.
    """
    (value, slope, switches), x = jax.device_get(found), np.asarray(grid)
    finite = np.isfinite(value) & np.isfinite(slope)
    if strictly and not np.all(finite):
        return False
    for side in switches:
        if np.any(np.sum(side[1:] != side[:-1], axis=0) > _MOST_SWITCHES):
            return False
    sign = np.sign(np.sum(np.where(finite, np.sign(slope), 0.0), axis=0))
    slope = np.where(finite, sign * slope, 0.0)
    flat = slope == 0
    if np.any(slope < 0) or strictly and np.any(flat[1:] & flat[:-1]):
        return False
    # A jump down is a rise of less than half of what the derivative says.
    with np.errstate(invalid="ignore", over="ignore"):
        rise, step = sign * np.diff(value, axis=0), np.diff(x, axis=0)
        least = 0.5 * step * np.minimum(slope[1:], slope[:-1])
        size = np.max(np.where(finite, np.abs(value), 0.0), axis=0)
        fine = rise >= least - _ROUNDING * size
    return bool(np.all(fine | ~finite[1:] | ~finite[:-1]))


def _grid(draws: np.ndarray, support: str, share: float) -> jax.Array:
    """Sorted points for each component, (num_points, *shape), at uneven distances.

    They extend the range of the draws by a share of it, where the support allows that.
    """
    low, high = (f(draws, axis=0).astype(np.float64) for f in (np.min, np.max))
    wide = share * (high - low)
    if support == "real":
        low, high = low - wide, high + wide
    elif support == "positive":
        low, high = 1e-3 * low, high + wide
    elif support == "unit":
        low, high = 1e-3 * low, 1 - 1e-3 * (1 - high)
    size = 4096 if low.size <= 64 else 1024
    ticks = (np.arange(size) + np.random.default_rng(2).uniform(size=size)) / size
    return jnp.asarray(low + (high - low) * ticks.reshape(-1, *[1] * low.ndim))
