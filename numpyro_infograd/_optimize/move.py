# SPDX-License-Identifier: Apache-2.0
"""How a gradient moves parameters: coordinates, projections, optimizers."""

from __future__ import annotations

from collections.abc import Callable, Collection
import functools
import math
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp
import optax

from numpyro.distributions import biject_to
from numpyro.distributions.transforms import IdentityTransform

from numpyro_infograd._arguments import explain_trace_errors
from numpyro_infograd._pairs import with_pairs, without_pairs
from numpyro_infograd._parameters import bijection, check_inside
from numpyro_infograd._program import Program
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError, ParameterError
from numpyro_infograd.exogenous.rows import innermost
from numpyro_infograd.scores.base import floating_leaves

Projection = Callable[[Any], Any]

RATE = 0.05  # peak rate of the default optimizer, as a share of the parameters' size
SLOWDOWNS = (1.0, 10.0, 100.0, 1000.0)  # tried one after the other
_ADAM = optax.adam(1.0, b2=0.95)  # the default optimizer before that scale


class Move(NamedTuple):
    """How a step moves the parameters along a gradient."""

    projection: Program | None  # applied after the step, or None
    update: Program  # of the optimizer, a function of gradient, state and parameters
    scale: Any  # factor of each parameter's update
    constraints: dict[str, Any] | None  # of the parameters; None with a projection

    @staticmethod
    def trace(
        params: Any,
        optimizer: optax.GradientTransformation,
        projection: Projection | None,
        constraints: dict[str, Any] | None,
        scale: Any,
    ) -> Move:
        """The move from unconstrained parameters; a scale of None is one everywhere."""
        if scale is None:
            scale = jax.tree.map(jnp.ones_like, params)
        return Move(
            projection and Program.trace(projection, params),
            _trace_update(optimizer, optimizer.init(params), params),
            scale,
            constraints,
        )

    def __call__(
        self, params: Any, opt_state: Any, gradient: Any, rate: jax.Array
    ) -> tuple[Any, Any, Any]:
        """One step that raises the objective; `rate` is a factor of all updates.

        Returns parameters, the state of the optimizer, and the part of the gradient
        along which the projection lets the parameters move.
        """
        if self.projection is not None:
            gradient = gradient_mapping(self.projection, params, gradient)
        descent = jax.tree.map(jnp.negative, gradient)
        updates, opt_state = self.update(descent, opt_state, params)
        updates = jax.tree.map(lambda u, s: rate * s * u, updates, self.scale)
        moved = onto(self.projection, optax.apply_updates(params, updates))
        return moved, opt_state, gradient


def all_finite(*trees: Any) -> jax.Array:
    """Whether every floating-point number is finite."""
    finite = [jnp.all(jnp.isfinite(x)) for x in floating_leaves(trees)]
    return jnp.all(jnp.stack(finite))


def constrained(unconstrained_params: Any, constraints: dict[str, Any] | None) -> Any:
    """Parameters as the model sees them."""
    if constraints is None:
        return unconstrained_params
    return {
        n: jax.tree.map(biject_to(c), unconstrained_params[n])
        for n, c in constraints.items()
    }


def unconstrained(params: Any, constraints: dict[str, Any] | None) -> Any:
    """Parameters as the optimizer moves them."""
    if constraints is None:
        return params
    found = {}
    for name, constraint in constraints.items():
        transform = bijection(constraint)
        if transform is None:
            raise ArgumentError(
                f"parameter {name!r} has the constraint {constraint}, but NumPyro has "
                "no bijection from real numbers to it. Pass a projection onto it."
            )
        found[name] = jax.tree.map(transform.inv, params[name])
    return found


def check_interior(params: Any, constraints: dict[str, Any]) -> None:
    """Raise for a start on the boundary of its constraint: no step leaves it."""
    for name, tree in unconstrained(params, constraints).items():
        constraint = constraints[name]
        for start, leaf in zip(
            jax.tree.leaves(params[name]), jax.tree.leaves(tree), strict=True
        ):
            start = np.asarray(start)
            inside = bool(np.all(np.isfinite(leaf)))
            # NumPyro clips values at the boundary.
            if innermost(constraint).event_dim == 0:
                nudge = np.finfo(start.dtype).eps * np.abs(start) + 1e-30
                sides = (constraint(start - nudge), constraint(start + nudge))
                inside = inside and all(bool(np.all(side)) for side in sides)
            if not inside:
                raise ParameterError(
                    f"parameter {name!r} starts on the boundary of its constraint "
                    f"{constraint}: {np.asarray(start)}. Pass init_params inside it, "
                    "or a projection onto the constraint."
                )


def check_projection(projection: Any) -> None:
    """Raise unless `projection` is a function or None."""
    if projection is not None and not callable(projection):
        raise ArgumentError(
            f"projection must be a function of the parameter dict, got {projection!r}."
        )


def projection_of(user: Projection | None, pairs: Collection[str]) -> Projection | None:
    """The user's projection, for complex parameters that are given as pairs."""
    if user is None or not pairs:
        return user

    def on_pairs(params: Any) -> Any:
        start = without_pairs(pairs, params)
        check_projected(moved := user(start), start)
        whole = {
            name: jax.tree.map(lambda x: x + 0j, p) if name in pairs else p
            for name, p in moved.items()
        }
        return with_pairs(pairs, whole)

    return on_pairs


def check_projected(projected: Any, params: Any) -> None:
    """Raise unless a projection returned all parameters in their shapes."""
    got, shapes = (jax.tree.map(jnp.shape, tree) for tree in (projected, params))
    if got != shapes:
        raise ArgumentError(
            "projection must return a dict like the parameters, got the shapes "
            f"{got!r}. Return all of them, in these shapes: {shapes}."
        )


def project(projection: Projection, params: Any) -> dict[str, Any]:
    """The projected parameters, in their own types."""
    holds = (
        f"the dict of the parameters {', '.join(params)}. Use these names; apply a "
        "function f of one array by lambda p: {n: f(v) for n, v in p.items()}"
    )
    with explain_trace_errors("projection", holds):
        projected = jax.eval_shape(projection, params)
    check_projected(projected, params)
    kinds = {str(x.dtype) for x in jax.tree.leaves(projected)}
    if not all(jnp.issubdtype(kind, jnp.floating) for kind in kinds):
        raise ArgumentError(
            "projection must return floats, as the parameters are, got "
            f"{', '.join(sorted(kinds))}. Return real numbers without rounding."
        )
    moved = cast(projection(params), params)
    for name, value in moved.items():
        if not all(np.all(np.isfinite(x)) for x in jax.tree.leaves(value)):
            raise ArgumentError(
                f"projection takes parameter {name!r} from {brief(params[name])} to "
                f"{brief(value)}, which is not finite. Guard its divisions and roots."
            )
    return moved


def check_enforces(
    projection: Projection, params: Any, constraints: dict[str, Any]
) -> None:
    """Raise for a projection that leaves a NumPyro constraint, as probes show.

    A projection takes the place of the constraints, so it must enforce them. It may
    reach their boundaries, such as a power of zero.
    """
    noise = optax.tree.random_like(jax.random.key(0), params, jax.random.normal)
    for reach in (1.0, -1.0, 30.0, -30.0):

        def away(x: jax.Array, direction: jax.Array, reach: float = reach) -> jax.Array:
            return x + reach * jnp.max(jnp.abs(x), initial=0.1) * direction

        probe = jax.tree.map(away, params, noise)
        moved = onto(projection, probe)
        for name, constraint in constraints.items():
            starts = jax.tree.leaves(params[name])
            for leaf, start in zip(jax.tree.leaves(moved[name]), starts, strict=True):
                finite = np.all(np.isfinite(leaf))
                if finite and not _in_closure(constraint, leaf, start):
                    raise ArgumentError(
                        f"projection takes parameter {name!r} to {brief(leaf)}, which "
                        f"is outside its constraint {constraint}. A projection "
                        "replaces the constraints, so make it enforce them too, or "
                        "remove constraint= from numpyro.param."
                    )


def as_start(
    projection: Projection | None, params: Any, constraints: dict[str, Any]
) -> dict[str, Any]:
    """Parameters that a step can leave: projected, or inside their constraints."""
    if projection is None:
        check_inside(constraints, params)
        check_interior(params, constraints)
        return params
    params = project(projection, params)
    check_enforces(projection, params, constraints)
    return params


def _in_closure(constraint: Any, value: jax.Array, start: jax.Array) -> bool:
    """Whether a value meets a constraint, up to rounding and its boundary.

    A value slightly nearer to an interior point then survives the way to real numbers
    and back. The start is that point unless it is on the boundary.
    """
    transform = bijection(constraint)
    if transform is None:
        return bool(np.all(constraint(np.asarray(value))))
    interior = start
    if not np.all(np.isfinite(transform.inv(start))):
        zeros = jnp.zeros(transform.inverse_shape(value.shape), value.dtype)
        interior = transform(zeros)
    near = value + 1e-3 * (interior - value)
    size = float(jnp.max(jnp.abs(near), initial=0.0))
    return np.allclose(transform(transform.inv(near)), near, rtol=0, atol=5e-3 * size)


def is_mapped(name: str, constraints: dict[str, Any] | None) -> bool:
    """Whether a parameter is optimised through a bijection."""
    return constraints is not None and not isinstance(
        biject_to(constraints[name]), IdentityTransform
    )


def scales(unconstrained_params: Any, constraints: dict[str, Any] | None) -> Any:
    """Peak rate of the default optimizer for each leaf: a share of the leaf's size.

    The size is at least one for coordinates of a bijection, and at least 0.3 of the
    typical size of all leaves for others.
    """
    leaves = jax.tree.leaves(unconstrained_params)
    total = sum(float(np.sum(np.square(x))) for x in leaves)
    typical = math.sqrt(total / max(sum(x.size for x in leaves), 1)) or 1.0 / 0.3

    def one(leaf: jax.Array, floor: float) -> jax.Array:
        size = math.sqrt(np.mean(np.square(leaf))) if leaf.size else 0.0
        return jnp.asarray(RATE * max(size, floor), leaf.dtype)

    rates = {}
    for name, tree in unconstrained_params.items():
        lowest = 1.0 if is_mapped(name, constraints) else 0.3 * typical
        rates[name] = jax.tree.map(lambda x, f=lowest: one(x, f), tree)
    return rates


def gradient_mapping(projection: Projection, params: Any, gradient: Any) -> Any:
    """The part of the gradient along which the projection lets the parameters move.

    It is (P(x + t g) - x) / t for a small t, which is zero exactly where no allowed
    move gains to first order. Without it, an optimizer that scales single components,
    such as Adam, would stop where the scaled gradient is normal to the constraint, not
    where the gradient is.
    """
    size = optax.tree.norm(params)
    reach = RATE * jnp.where(size > 0, size, 1.0)
    t = reach / jnp.maximum(optax.tree.norm(gradient), 1e-20)
    target = projection(jax.tree.map(lambda x, g: x + t * g, params, gradient))
    return jax.tree.map(lambda new, old: (new - old) / t, cast(target, params), params)


def cast(tree: Any, like: Any) -> Any:
    """The tree in the types of another."""
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), tree, like)


def onto(projection: Projection | None, params: Any) -> Any:
    """The projected parameters, in their own types; unchanged without projection."""
    return params if projection is None else cast(projection(params), params)


# -- optimizers ------------------------------------------------------------


def decay(steps: np.ndarray, total: int) -> np.ndarray:
    """Rate of the default optimizer at steps of a cycle, relative to its peak."""
    return 0.5 * (1 + np.cos(np.pi * steps / total))


def as_optax(optimizer: Any) -> optax.GradientTransformation:
    """The user's optimizer as an optax transformation."""
    if optimizer is None:
        return _ADAM
    made = hasattr(optimizer, "init") and not isinstance(optimizer, type)
    if made and hasattr(optimizer, "get_params"):
        return _from_numpyro(optimizer)
    if made and hasattr(optimizer, "update"):
        return optimizer
    raise ArgumentError(
        "optimizer must be an optax GradientTransformation or a numpyro optimizer, "
        f"got {optimizer!r}. Call its constructor, such as optax.adam(0.1)."
    )


def _trace_update(
    optimizer: optax.GradientTransformation, opt_state: Any, params: Any
) -> Program:
    """The update of an optimizer as a program of gradient, state and parameters."""
    try:
        return Program.trace(optimizer.update, params, opt_state, params)
    except TypeError as error:
        raise ArgumentError(
            "optimizer's update must take only a gradient, a state and parameters: an "
            "ascent has no value of the objective for a line search (optax.lbfgs) or "
            "for the detection of a plateau. Use another, such as optax.adam(0.1). The "
            f"error was: {error}"
        ) from None


@functools.lru_cache(maxsize=32)
def _from_numpyro(optimizer: Any) -> optax.GradientTransformation:
    """A NumPyro optimizer (its state holds the parameters) as an optax one."""

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        before = optimizer.get_params(state)
        state = optimizer.update(gradient, state)
        after = optimizer.get_params(state)
        return jax.tree.map(jnp.subtract, after, before), state

    return optax.GradientTransformation(optimizer.init, update)
