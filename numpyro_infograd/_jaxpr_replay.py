# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a jaxpr that also returns the predicates of its switches."""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
import jax.numpy as jnp

from numpyro_infograd._jaxpr_walk import (
    EXOGENOUS,
    FACTORS,
    Path,
    bind,
    body_of,
    in_scope,
    open_jaxpr,
    scan_splits,
)


class HiddenError(Exception):
    """The operands of an equation cannot be returned from where it is."""


def _predicate(eqn: JaxprEqn, values: list[Any]) -> Any:
    """A value that differs on the two sides of a switch."""
    match eqn.primitive.name:
        case "sign":
            return jnp.real(values[0]) >= 0
        case "atan2":  # the cut along the negative second axis
            return (values[1] < 0) & (values[0] >= 0)
        case "rem":  # from the remainder, so that rounding is the same
            return jnp.round((values[0] - lax.rem(*values)) / values[1])
        case name if name in FACTORS:
            outs = enumerate(bind(eqn, values))
            made = [x for i, x in outs if i not in FACTORS[name]]
            return jnp.concatenate([each for x in made for each in _pattern(x)])
    return values[0]


def _pattern(factor: Any) -> list[Any]:
    """Signs, and places of the largest entries: one changes if columns flip or swap."""
    largest = [
        jnp.argmax(jnp.abs(factor), axis) for axis in range(-min(factor.ndim, 2), 0)
    ]
    signs = jnp.real(factor) >= 0
    return [x.astype(jnp.int32).ravel() for x in (signs, *largest)]


def replay(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    *,
    enter: Callable[[JaxprEqn, Path], bool],
    taps: Collection[Path] = (),
    fetch: Callable[[ClosedJaxpr], Sequence[Any]] = lambda closed: closed.consts,
    path: Path = (),
) -> tuple[list[Any], list[Any]]:
    """Evaluate a jaxpr, and return predicates of the equations at `taps`.

    `enter` says which calls, loops and branches to evaluate equation by equation;
    `fetch` gives the constants of an inner jaxpr; `path` is that of the jaxpr itself.
    Returns the outputs, and the predicates with a leading axis for each scan. A tap in
    a branch, a `while` or an unknown primitive raises a `HiddenError`.
    """
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    seen: list[Any] = []

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else env[atom]

    def inner(body: ClosedJaxpr | Jaxpr, values: Sequence[Any], where: Path) -> Any:
        held = fetch(body) if isinstance(body, ClosedJaxpr) else ()
        return replay(
            open_jaxpr(body),
            held,
            values,
            enter=enter,
            taps=taps,
            fetch=fetch,
            path=where,
        )

    for index, eqn in enumerate(jaxpr.eqns):
        values, here = [read(atom) for atom in eqn.invars], (*path, index)
        if here in taps:
            if eqn.primitive.name == "while":
                raise HiddenError
            seen.append(_predicate(eqn, values))
        trusted = in_scope(eqn, EXOGENOUS)
        scope = jax.named_scope(EXOGENOUS) if trusted else nullcontext()
        with scope, eqn.ctx.manager:
            if enter(eqn, here):
                outs, found = _replay_inside(eqn, values, here, inner, bool(taps))
                seen += found
            else:
                outs = bind(eqn, values)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars], seen


def _replay_inside(
    eqn: JaxprEqn, values: list[Any], path: Path, inner: Any, tapped: bool
) -> tuple[list[Any], list[Any]]:
    name, params, body = eqn.primitive.name, eqn.params, body_of(eqn)
    if body is not None:
        return inner(body, values, path)
    if name == "scan":
        split, start = scan_splits(params)

        def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], Any]:
            outs, seen = inner(params["jaxpr"], [*values[:split], *carry, *xs], path)
            return outs[: len(carry)], (outs[len(carry) :], seen)

        carry, (ys, seen) = lax.scan(
            step,
            values[split:start],
            values[start:],
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        return [*carry, *ys], seen
    if tapped or name not in ("cond", "while"):
        raise HiddenError
    if name == "cond":

        def branch(body: ClosedJaxpr) -> Callable[..., list[Any]]:
            return lambda *operands: inner(body, operands, path)[0]

        return lax.switch(
            values[0], [branch(b) for b in params["branches"]], *values[1:]
        ), []
    split = params["cond_nconsts"]
    start = split + params["body_nconsts"]
    return lax.while_loop(
        lambda c: inner(params["cond_jaxpr"], [*values[:split], *c], path)[0][0],
        lambda c: inner(params["body_jaxpr"], [*values[split:start], *c], path)[0],
        values[start:],
    ), []
