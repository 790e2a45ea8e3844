# SPDX-License-Identifier: Apache-2.0
"""Functions that lose nothing, because a user says so and gives the inverse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import JaxprEqn
import jax.numpy as jnp

from numpyro.distributions.transforms import Transform

from numpyro_infograd._doors import public
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError

# Names of identity equations around the two functions, which a trace keeps in order.
_ARGUMENT, _RESULT, _RETURNED = (f"injective {s}" for s in ("in", "out", "back"))


@public(inside=True)
def injective(
    fn: Callable[[Any], Any], inverse: Callable[[Any], Any] | None = None
) -> Callable[[Any], jax.Array]:
    """Mark a function as one-to-one, so that its result loses no information.

    The information of `fn(y)` is that of `y`, so no density of `fn(y)` is needed.
    Rearranged values, constant linear maps and monotone functions of each component are
    recognised without a mark. The inverse is only used to check, at draws of the model,
    that the function loses nothing.

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

    def readout(value: Any) -> jax.Array:
        array = checkpoint_name(jnp.asarray(value), _ARGUMENT)
        made = checkpoint_name(_as_array(forth(array), "fn"), _RESULT)
        # The inverse is a part of the trace, where `_recovery` finds it. Its result is
        # not used, so it is not compiled.
        returned = _as_array(back(jax.lax.stop_gradient(made)), "inverse")
        if returned.shape != array.shape:
            raise ArgumentError(
                f"the inverse of an injective function returned shape {returned.shape} "
                f"for a value of shape {array.shape}. It must return that value."
            )
        checkpoint_name(returned, _RETURNED)
        return made

    return readout


def _as_array(value: Any, name: str) -> jax.Array:
    if not hasattr(value, "dtype") and not isinstance(value, (int, float, complex)):
        raise ArgumentError(
            f"{name} of an injective function must return one array, got "
            f"{brief(value)}."
        )
    return jnp.asarray(value)


def marked_calls(eqns: Iterable[JaxprEqn]) -> dict[Any, tuple[Any, Any]]:
    """The calls of marked functions in a trace without calls, by their results: the
    argument, and what the inverse made of the result.
    """
    found: dict[Any, tuple[Any, Any]] = {}
    calls: list[list[Any]] = []  # calls inside of others are complete before these
    for eqn in eqns:
        name = eqn.params.get("name") if eqn.primitive.name == "name" else ""
        if name == _ARGUMENT:
            calls.append([eqn.outvars[0]])
        elif name in (_RESULT, _RETURNED) and not calls:
            return {}  # something removed equations
        elif name == _RESULT:
            calls[-1].append(eqn.outvars[0])
        elif name == _RETURNED:
            argument, *result = calls.pop()
            if len(result) != 1:
                return {}
            found[result[0]] = argument, eqn.invars[0]
    return {} if calls else found
