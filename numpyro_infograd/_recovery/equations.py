# SPDX-License-Identifier: Apache-2.0
"""Facts about single equations: which are one-to-one in each component."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jax.extend.core import JaxprEqn
import jax.numpy as jnp

from numpyro_infograd._jaxpr_facts import keeps_floats
from numpyro_infograd._jaxpr_walk import dtype_of, is_inexact

# Strictly monotone, or at least one-to-one, on all real numbers of their domain.
_ONE_TO_ONE = frozenset(
    """exp exp2 log log1p expm1 tanh atanh sinh asinh acosh atan asin acos logistic erf
    erfc erf_inv sqrt rsqrt cbrt""".split()
)
# Without jumps where they are defined, except for `select_n` and `sign`, whose switches
# are counted.
_TESTED = _ONE_TO_ONE | frozenset(
    """abs sign max min clamp add sub mul div neg square integer_pow pow sin cos cosh
    lgamma select_n ge gt le lt eq ne and or not copy convert_element_type
    is_finite""".split()
)


def is_elementwise(eqn: JaxprEqn) -> bool:
    """Whether each component of the result depends on that of each operand only."""
    if eqn.primitive.name not in _TESTED:
        return False
    shapes = {shape_of(atom) for atom in eqn.invars} - {()}
    return shapes <= {shape_of(eqn.outvars[0])}


def is_one_to_one(eqn: JaxprEqn, moving: int, others: list[Any]) -> bool:
    """Whether a primitive is one-to-one in the real operand at `moving`, by its
    definition.

    `others` are the values of all operands; None for those that are not known.
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


def doubled(value: Any) -> Any:
    """A float as a float of 64 bits; other values are not changed."""
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return value
    return jnp.asarray(value, jnp.float64)


def shape_of(var: Any) -> tuple[int, ...]:
    """Shape of a value."""
    return var.aval.shape


def is_complex(var: Any) -> bool:
    """Whether a value is complex."""
    return bool(jnp.issubdtype(dtype_of(var), jnp.complexfloating))


def is_real(var: Any) -> bool:
    """Whether a value is a real floating-point number."""
    return bool(jnp.issubdtype(dtype_of(var), jnp.floating))


def size_of(var: Any) -> int:
    """Number of real components of a value."""
    return int(np.prod(shape_of(var), dtype=int)) * (2 if is_complex(var) else 1)


def rounds(eqn: JaxprEqn) -> bool:
    """Whether it converts a float or complex number to one of fewer digits."""
    if eqn.primitive.name != "convert_element_type":
        return False
    return is_inexact(eqn.invars[0]) and not keeps_floats(eqn)
