# SPDX-License-Identifier: Apache-2.0
"""An abstract interpreter of jaxprs.

`propagate` goes through the equations and handles control flow (calls, `cond`, `while`,
`scan`). A `Domain` defines abstract values and the effect of one equation on them.
"""

from collections.abc import Iterator, Sequence
import functools
from itertools import chain
from typing import Any

import numpy as np

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
import jax.numpy as jnp

from numpyro_infograd.errors import ModelError

Path = tuple[int, ...]
"""Position of an equation: its index in each of the enclosing jaxprs."""

EXOGENOUS = "exogenous"
"""Name scope of trusted samplers, which the search for jumps skips."""

FACTORS: dict[str, frozenset[int]] = {
    "eig": frozenset(),
    "eigh": frozenset({1}),
    "geqrf": frozenset(),
    "qr": frozenset(),
    "schur": frozenset(),
    "svd": frozenset({0}),
}
"""Primitives whose factors are unique only up to signs and order, so that they may
jump, and which of their outputs are continuous nevertheless."""

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


def body_of(eqn: JaxprEqn) -> ClosedJaxpr | Jaxpr | None:
    """The jaxpr that a call-like equation evaluates on its own operands."""
    body = eqn.params.get(CALLS.get(eqn.primitive.name, ""))
    if eqn.primitive.name == "call_hi_primitive":
        hidden = eqn.params["_prim"]
        body = _expansion(hidden, tuple(hidden.in_avals_flat))
    if body is None or len(open_jaxpr(body).invars) != len(eqn.invars):
        return None
    return body


@functools.lru_cache(maxsize=1024)
def _expansion(hidden: Any, avals: tuple[Any, ...]) -> ClosedJaxpr:
    """The jaxpr of an operation that JAX 0.12 stores as an object."""
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    return jax.make_jaxpr(hidden.expand)(*jax.tree.unflatten(hidden.in_tree, shapes))


def bind(eqn: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """The results of an equation for these operands."""
    outs = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(outs) if eqn.primitive.multiple_results else [outs]


def open_jaxpr(jaxpr: ClosedJaxpr | Jaxpr) -> Jaxpr:
    """The jaxpr without its constants."""
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def scan_splits(params: dict[str, Any]) -> tuple[int, int]:
    """Indices of a scan's operands where the carry and where the inputs begin."""
    if "ft_in" in params:  # jax 0.12 stores the tree of the operands
        consts, carry, _ = params["ft_in"].unpack()
        return len(consts), len(consts) + len(carry)
    return params["num_consts"], params["num_consts"] + params["num_carry"]


def in_scope(eqn: JaxprEqn, scope: str) -> bool:
    """Whether the equation was traced under `jax.named_scope(scope)`."""
    return any(
        type(entry).__name__ == "Scope" and entry.name == scope
        for entry in eqn.source_info.name_stack.stack
    )


def sub_jaxprs(value: Any) -> Iterator[ClosedJaxpr | Jaxpr]:
    """All jaxprs in an equation's parameters, at any depth of containers."""
    if isinstance(value, (ClosedJaxpr, Jaxpr)):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        items = value.values() if isinstance(value, dict) else value
        yield from chain.from_iterable(map(sub_jaxprs, items))


class Domain:
    """Abstract values; here the union of the labels of all inputs of a value."""

    empty: Any = frozenset()

    def join(self, values: Sequence[Any]) -> Any:
        """The least upper bound of `values`."""
        return self.empty.union(*values)

    def equation(self, eqn: JaxprEqn, values: list[Any], path: Path) -> list[Any]:
        """The results of an equation without control flow."""
        return [self.join(values)] * len(eqn.outvars)

    def control(self, eqn: JaxprEqn, predicate: Any, path: Path) -> Any:
        """The value that a `cond` or a `while` adds to each of its results."""
        return predicate

    def opaque(self, eqn: JaxprEqn) -> bool:
        """Whether to join the operands without going into inner jaxprs."""
        return False

    def leave(self, eqn: JaxprEqn, outs: list[Any]) -> list[Any]:
        """The results of a call, after a change."""
        return outs


def propagate(
    domain: Domain, jaxpr: ClosedJaxpr | Jaxpr, values: Sequence[Any], path: Path = ()
) -> list[Any]:
    """Abstract values of the flat outputs of a jaxpr, from those of its flat inputs.

    Its constants have the value `domain.empty`; `path` is that of the jaxpr itself.
    """
    jaxpr, empty = open_jaxpr(jaxpr), domain.empty
    env = dict(zip(jaxpr.invars, values, strict=True))

    def read(atom: Any) -> Any:
        return empty if isinstance(atom, Literal) else env.get(atom, empty)

    for index, eqn in enumerate(jaxpr.eqns):
        if eqn.effects and any(hasattr(e, "input") for e in eqn.effects):
            raise ModelError(
                "the model or an Expectation writes to a mutable reference "
                "(jax.new_ref), through which it is not known what depends on what. "
                "Use arrays: x = x.at[i].set(value)."
            )
        operands = [read(atom) for atom in eqn.invars]
        env.update(
            zip(eqn.outvars, _step(domain, eqn, operands, (*path, index)), strict=True)
        )
    return [read(atom) for atom in jaxpr.outvars]


def _step(domain: Domain, eqn: JaxprEqn, values: list[Any], path: Path) -> list[Any]:
    name, params, join = eqn.primitive.name, eqn.params, domain.join
    if domain.opaque(eqn):
        return [join(values)] * len(eqn.outvars)
    if name == "cond":
        control = domain.control(eqn, values[0], path)
        branches = [
            propagate(domain, branch, values[1:], (*path, number))
            for number, branch in enumerate(params["branches"])
        ]
        return [join([control, *outs]) for outs in zip(*branches, strict=True)]
    if name == "while":
        split = params["cond_nconsts"]
        start = split + params["body_nconsts"]
        carry = values[start:]
        while True:
            test = values[:split] + carry
            (predicate,) = propagate(domain, params["cond_jaxpr"], test, (*path, 0))
            control = domain.control(eqn, predicate, path)
            inner = values[split:start] + carry
            outs = propagate(domain, params["body_jaxpr"], inner, (*path, 1))
            step = [
                join([old, new, control]) for old, new in zip(carry, outs, strict=True)
            ]
            if step == carry:
                return carry
            carry = step
    if name == "scan":
        split, start = scan_splits(params)
        carry = values[split:start]
        while True:
            inner = values[:split] + carry + values[start:]
            outs = propagate(domain, params["jaxpr"], inner, path)
            step = [join(pair) for pair in zip(carry, outs, strict=False)]
            if step == carry:
                return carry + outs[len(carry) :]
            carry = step
    body = body_of(eqn)
    if body is not None:
        return domain.leave(eqn, propagate(domain, body, values, path))
    return domain.equation(eqn, values, path)


def dtype_of(atom: Any) -> Any:
    """The dtype of a variable."""
    return getattr(atom.aval, "dtype", np.dtype(np.int32))  # references, tokens


def is_inexact(atom: Any) -> bool:
    """Whether a variable holds floats or complex numbers."""
    return bool(jnp.issubdtype(dtype_of(atom), jnp.inexact))
