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
from jax.extend.core import JaxprEqn
import jax.numpy as jnp

# Strictly monotone, or at least one-to-one, on all real numbers of their domain.
_ONE_TO_ONE = frozenset(
    """exp exp2 log log1p expm1 tanh atanh sinh asinh acosh atan asin acos logistic erf
    erfc erf_inv sqrt rsqrt cbrt""".split()
)
# Without jumps where they are defined, except for a `select_n`, which is tested.
_TESTED = _ONE_TO_ONE | frozenset(
    """abs max min clamp add sub mul div neg square integer_pow pow sin cos cosh lgamma
    select_n ge gt le lt eq ne and or not copy convert_element_type is_finite""".split()
)
_MOST_SWITCHES = 4  # along the grid, in each component
_ROUNDING = 1e-6


def is_elementwise(eqn: JaxprEqn) -> bool:
    """Whether each component of the result depends on that of each operand only."""
    if eqn.primitive.name not in _TESTED:
        return False
    shapes = {atom.aval.shape for atom in eqn.invars} - {()}
    return shapes <= {eqn.outvars[0].aval.shape}


def is_one_to_one(eqn: JaxprEqn, moving: int, others: list[Any]) -> bool:
    """Whether a primitive is one-to-one in one real operand, by its definition.

    Args:
        eqn: An elementwise equation.
        moving: The position of that operand.
        others: The values of all operands; None for those that are not known.
    """
    name = eqn.primitive.name
    if name in _ONE_TO_ONE:
        return True
    if name == "integer_pow":
        return eqn.params["y"] % 2 == 1
    if name == "div":  # of a constant by the operand
        return moving == 1 and _all(others[0], lambda c: c != 0)
    if name == "pow" and moving == 0:
        return _all(others[1], lambda c: (c % 2 == 1) | (c != np.floor(c)))
    if name == "pow":
        return _all(others[0], lambda c: (c > 0) & (c != 1))
    return False


def _all(value: Any, test: Callable[[np.ndarray], Any]) -> bool:
    known = value is not None and np.all(np.isfinite(value))
    return bool(known and np.all(test(np.asarray(value))))


def is_monotone(
    fn: Callable[[jax.Array], tuple[jax.Array, list[jax.Array]]],
    draws: np.ndarray,
    support: str,
) -> bool:
    """Whether an elementwise function is strictly monotone in each component.

    Tested on a grid that covers three times the range of the draws, as far as the
    support allows.

    Args:
        fn: From an array to the function's value and the predicates of its switches.
        draws: Draws of its argument, (num_draws, *shape).
        support: Of the argument, as in `Site`.
    """
    grid = _grid(draws, support)
    over = jax.vmap(fn)
    found = jax.jit(
        lambda x: jax.jvp(lambda y: over(y)[0], (x,), (jnp.ones_like(x),))
    )(grid)
    value, slope = (np.asarray(x, np.float64) for x in found)
    if not (np.all(np.isfinite(value)) and np.all(np.isfinite(slope))):
        return False
    for predicate in jax.jit(lambda x: over(x)[1])(grid):
        side = np.asarray(predicate)
        if np.any(np.sum(side[1:] != side[:-1], axis=0) > _MOST_SWITCHES):
            return False
    sign = np.sign(value[-1] - value[0])
    value, slope = sign * value, sign * slope
    flat = slope == 0
    if np.any(slope < 0) or np.any(flat[1:] & flat[:-1]) or np.any(sign == 0):
        return False
    # A jump down is a rise of less than half of what the derivative says.
    rise, step = np.diff(value, axis=0), np.diff(np.asarray(grid, np.float64), axis=0)
    least = 0.5 * step * np.minimum(slope[1:], slope[:-1])
    return bool(np.all(rise >= least - _ROUNDING * np.max(np.abs(value), axis=0)))


def _grid(draws: np.ndarray, support: str) -> jax.Array:
    """Sorted points for each component, (num_points, *shape), at uneven distances."""
    low, high = np.min(draws, axis=0), np.max(draws, axis=0)
    wide = high - low
    if support == "real":
        low, high = low - wide, high + wide
    elif support == "positive":
        low, high = 1e-3 * low, high + wide
    elif support == "unit":
        low, high = 1e-3 * low, 1 - 1e-3 * (1 - high)
    size = 4096 if low.size <= 64 else 1024
    ticks = (np.arange(size) + np.random.default_rng(2).uniform(size=size)) / size
    points = low + (high - low) * ticks.reshape(-1, *[1] * low.ndim)
    return jnp.asarray(points, draws.dtype)
