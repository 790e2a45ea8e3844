# SPDX-License-Identifier: Apache-2.0
"""Functions that lose nothing, by a user's word: a function with its inverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import JaxprEqn
import jax.numpy as jnp

from numpyro.distributions.transforms import Transform

from numpyro_infograd.errors import ArgumentError

_MARK = "injective_readout"


def injective(
    fn: Callable[[Any], Any], inverse: Callable[[Any], Any] | None = None
) -> Callable[[Any], jax.Array]:
    """The same function, marked as one that loses nothing.

    The information of `fn(y)` is that of `y`, so no density of `fn(y)` is needed.
    Rearranged values, constant linear maps and monotone functions of each component are
    recognised without a mark. The inverse is compared with draws of the model, and is
    not used otherwise.

    Args:
        fn: A function of one array, written in JAX, with one array as result; or a
            NumPyro transform, which has its own inverse.
        inverse: A function with `inverse(fn(y)) == y` for every `y` that the model can
            draw.

    Returns:
        A function with the values of `fn`, for use inside a model.

    Raises:
        ArgumentError: If `fn` or `inverse` is not callable; when called, if a result is
            not an array or `inverse` returns another shape. Functions of this package
            that use the model raise it if the inverse is wrong at a draw.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> polar = ig.injective(
        ...     lambda z: jnp.stack([jnp.hypot(*z), jnp.arctan2(z[1], z[0])]),
        ...     inverse=lambda p: p[0] * jnp.stack([jnp.cos(p[1]), jnp.sin(p[1])]),
        ... )
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
        ...     y = numpyro.sample("y", dist.Normal(x, 1).to_event(1))
        ...     numpyro.deterministic("radius and angle", polar(y))
        >>> ig.mutual_information(model, "x", "radius and angle")  # as of x and y
        0.693147 nats (exact)
    """
    if inverse is None and isinstance(fn, Transform):
        inverse = fn._inverse
    if not callable(fn) or not callable(inverse):
        raise ArgumentError(
            f"injective needs a function and its inverse, got {fn!r} and {inverse!r}. "
            "Pass injective(fn, inverse=...), or a NumPyro transform."
        )
    forth, back = fn, inverse

    def both(value: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The inverse is part of the trace, where `recovery` finds it. Its result is not
        # used, so it is not compiled.
        made = _as_array(forth(value), "fn")
        return made, _as_array(back(jax.lax.stop_gradient(made)), "inverse")

    both.__name__ = both.__qualname__ = _MARK
    marked = jax.jit(both)

    def readout(value: Any) -> jax.Array:
        array = jnp.asarray(value)
        made, returned = marked(array)
        if returned.shape != array.shape:
            raise ArgumentError(
                f"the inverse of an injective function returned shape {returned.shape} "
                f"for a value of shape {array.shape}. It must return that value."
            )
        return made

    return readout


def _as_array(value: Any, name: str) -> jax.Array:
    if not hasattr(value, "dtype") and not isinstance(value, (int, float, complex)):
        raise ArgumentError(
            f"{name} of an injective function must return one array, got {value!r:.80}."
        )
    return jnp.asarray(value)


def is_marked(eqn: JaxprEqn) -> bool:
    """Whether an equation is the call of a function that `injective` returned."""
    if eqn.params.get("name") != _MARK or "jaxpr" not in eqn.params:
        return False
    about = eqn.params["jaxpr"].jaxpr.debug_info
    return about is not None and about.func_filename == __file__
