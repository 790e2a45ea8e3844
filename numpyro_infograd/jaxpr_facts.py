# SPDX-License-Identifier: Apache-2.0
"""Facts about a jaxpr that hold for every input: dependence, affinity, jumps.

One abstract interpreter, `propagate`, walks the equations and knows the control
flow (calls, `cond`, `while`, `scan`); a `Domain` says what a value is and what one
equation does to it. Every fact errs to the safe side: a dependence or a jump may be
claimed that is not there, an affine output may be missed, never the other way round.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
import functools
from itertools import chain
import os
from typing import Any, NamedTuple

import numpy as np

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
import jax.numpy as jnp

Path = tuple[int, ...]
"""Where an equation stands: its index in each of the jaxprs around it."""

EXOGENOUS = "exogenous"
"""Name scope of trusted samplers: no jump is looked for inside."""

SWITCHES = frozenset({"select_n", "cond", "while", "sign", "rem", "atan2"})
"""Primitives that may be continuous, by what they choose from or are passed on to."""

_CALLS = {
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
    body = eqn.params.get(_CALLS.get(eqn.primitive.name, ""))
    if eqn.primitive.name == "call_hi_primitive":
        hidden = eqn.params["_prim"]
        body = _expansion(hidden, tuple(hidden.in_avals_flat))
    if body is None or len(open_jaxpr(body).invars) != len(eqn.invars):
        return None
    return body


@functools.lru_cache(maxsize=1024)
def _expansion(hidden: Any, avals: tuple[Any, ...]) -> ClosedJaxpr:
    """What an operation of JAX 0.12 computes that is an object, not a jaxpr."""
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    return jax.make_jaxpr(hidden.expand)(*jax.tree.unflatten(hidden.in_tree, shapes))


def open_jaxpr(jaxpr: ClosedJaxpr | Jaxpr) -> Jaxpr:
    """The bare jaxpr, without its constants."""
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def scan_splits(params: dict[str, Any]) -> tuple[int, int]:
    """Where a scan's operands turn from constants to carry, then to inputs."""
    if "ft_in" in params:  # jax 0.12 keeps the operands' tree instead of their numbers
        consts, carry, _ = params["ft_in"].unpack()
        return len(consts), len(consts) + len(carry)
    return params["num_consts"], params["num_consts"] + params["num_carry"]


def in_scope(eqn: JaxprEqn, scope: str) -> bool:
    """Whether the equation was traced under `jax.named_scope(scope)`."""
    stack = eqn.source_info.name_stack.stack
    return bool(stack) and any(
        type(entry).__name__ == "Scope" and entry.name == scope for entry in stack
    )


def sub_jaxprs(value: Any) -> Iterator[ClosedJaxpr | Jaxpr]:
    """All jaxprs in an equation's parameters, at any depth of containers."""
    if isinstance(value, (ClosedJaxpr, Jaxpr)):
        yield value
    elif isinstance(value, (tuple, list)):
        yield from chain.from_iterable(map(sub_jaxprs, value))
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(sub_jaxprs, value.values()))


class MutableError(Exception):
    """A value is kept in a mutable reference, which no equation returns."""


class Domain:
    """What an abstract value is: here the union of the labels of its origins."""

    empty: Any = frozenset()

    def join(self, values: Sequence[Any]) -> Any:
        """The least value above all of `values`."""
        return self.empty.union(*values)

    def equation(self, eqn: JaxprEqn, values: list[Any], path: Path) -> list[Any]:
        """What an equation without known control flow makes of its operands."""
        return [self.join(values)] * len(eqn.outvars)

    def control(self, eqn: JaxprEqn, predicate: Any, path: Path) -> Any:
        """What a `cond` or a `while` adds to each of its results."""
        return predicate

    def opaque(self, eqn: JaxprEqn) -> bool:
        """Whether to join the operands without a look inside."""
        return False

    def leave(self, eqn: JaxprEqn, outs: list[Any]) -> list[Any]:
        """A last word on the results of a call."""
        return outs


def propagate(
    domain: Domain,
    jaxpr: ClosedJaxpr | Jaxpr,
    values: Sequence[Any],
    path: Path = (),
) -> list[Any]:
    """Carries abstract values from the inputs of a jaxpr to its outputs.

    Args:
        domain: What the values are.
        jaxpr: What to walk; its constants have the value `domain.empty`.
        values: One value for each flat input.
        path: Where the jaxpr itself stands.

    Returns:
        One value for each flat output.
    """
    jaxpr = open_jaxpr(jaxpr)
    env = dict(zip(jaxpr.invars, values, strict=True))

    def read(atom: Any) -> Any:
        return domain.empty if isinstance(atom, Literal) else env.get(atom, empty)

    empty = domain.empty
    for index, eqn in enumerate(jaxpr.eqns):
        if eqn.effects and any(hasattr(e, "input") for e in eqn.effects):
            raise MutableError
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


def dependencies(jaxpr: Jaxpr) -> list[frozenset[int]]:
    """For each output, the inputs that it is computed from."""
    inputs = [frozenset({index}) for index in range(len(jaxpr.invars))]
    try:
        return propagate(Domain(), jaxpr, inputs)
    except MutableError:
        return [frozenset(range(len(inputs)))] * len(jaxpr.outvars)


# Affinity: 0 is constant, 1 affine, 2 anything, in the chosen inputs jointly.

_LINEAR = frozenset(
    """add sub neg add_any reduce_sum cumsum reduce_window_sum reshape broadcast_in_dim
    transpose slice concatenate stack pad rev squeeze expand_dims copy copy_p real imag
    complex conj fft sharding_constraint layout_constraint""".split()
)
_PARALLEL = frozenset("optimization_barrier device_put split unstack name".split())
_BILINEAR = frozenset({"mul", "dot_general", "conv_general_dilated"})
# Operands that must be constant, the rest being linear: divisor, matrix, indices,
# argument of a polynomial.
_LINEAR_GIVEN: dict[str, Callable[[list[int]], tuple[list[int], list[int]]]] = {
    "div": lambda v: (v[1:], v[:1]),
    "triangular_solve": lambda v: (v[:1], v[1:]),
    "polynomial": lambda v: (v[:1], v[1:]),
    "select_n": lambda v: (v[:1], v[1:]),
    "dynamic_slice": lambda v: (v[1:], v[:1]),
    "dynamic_update_slice": lambda v: (v[2:], v[:2]),
    "gather": lambda v: (v[1:], v[:1]),
    "scatter": lambda v: (v[1:2], v[:1] + v[2:]),
    "scatter-add": lambda v: (v[1:2], v[:1] + v[2:]),
    "scatter_add": lambda v: (v[1:2], v[:1] + v[2:]),
    "scatter-sub": lambda v: (v[1:2], v[:1] + v[2:]),
    "scatter_sub": lambda v: (v[1:2], v[:1] + v[2:]),
}


def _keeps_floats(eqn: JaxprEqn) -> bool:
    """Whether a conversion is linear, up to rounding no coarser than float32's."""
    old, new = _dtype(eqn.invars[0]), eqn.params["new_dtype"]
    if not (jnp.issubdtype(old, jnp.inexact) and jnp.issubdtype(new, jnp.inexact)):
        return False
    return jnp.finfo(new).bits >= min(jnp.finfo(old).bits, 32)


def _dtype(atom: Any) -> Any:
    return getattr(atom.aval, "dtype", np.dtype(np.int32))  # references, tokens


class _Affine(Domain):
    empty = 0

    def join(self, values: Sequence[int]) -> int:
        return max(values, default=0)

    def control(self, eqn: JaxprEqn, predicate: int, path: Path) -> int:
        return 2 if predicate else 0

    def leave(self, eqn: JaxprEqn, outs: list[int]) -> list[int]:
        # A custom derivative need not be the slope of the value.
        custom = eqn.primitive.name.startswith(("custom_", "call_hi_"))
        return [2 if custom and out else out for out in outs]

    def equation(self, eqn: JaxprEqn, values: list[int], path: Path) -> list[int]:
        name, top = eqn.primitive.name, max(values, default=0)
        if top == 0 or top == 2 and name not in _PARALLEL:
            return [top] * len(eqn.outvars)
        if name in _PARALLEL:
            same = len(values) == len(eqn.outvars)
            return values if same else [top] * len(eqn.outvars)
        if name in _BILINEAR:
            linear = min(values) == 0
        elif name in _LINEAR_GIVEN:
            linear = not any(_LINEAR_GIVEN[name](values)[0])
        elif name == "convert_element_type":
            linear = _keeps_floats(eqn)
        elif name == "custom_linear_solve":
            linear = not any(values[: sum(eqn.params["const_lengths"])])
        elif name == "integer_pow":
            linear = eqn.params["y"] == 1
        else:
            linear = name in _LINEAR
        return [1 if linear else 2] * len(eqn.outvars)


def affine_outputs(jaxpr: Jaxpr, wrt: Collection[int]) -> list[bool]:
    """For each output, whether it is surely affine in the inputs `wrt` jointly."""
    # Integers wrap around and keys are hashed: neither is affine in anything.
    values = [
        (1 if jnp.issubdtype(_dtype(var), jnp.inexact) else 2) * (index in wrt)
        for index, var in enumerate(jaxpr.invars)
    ]
    try:
        return [value < 2 for value in propagate(_Affine(), jaxpr, values)]
    except MutableError:
        return [False] * len(jaxpr.outvars)


class Source(NamedTuple):
    """An equation that makes a jump or a switch."""

    path: Path
    primitive: str
    soft: bool = False
    """A boolean made an integer: harmless where that integer is a mere predicate."""


_WRT = Source((), "")
"""The label of dependence on the chosen inputs."""

# Continuous, or trusted to be, whatever their inner jaxprs contain.
_SMOOTH = frozenset({"custom_linear_solve", "scatter-add", "scatter_add"})
_JUMPS = frozenset({"floor", "ceil", "round", "sign", "rem", "atan2"})
# Continuous functions of JAX that are made of steps which cancel: of an argument that
# is brought near zero, of floats split into halves of their digits.
_STEPS_CANCEL = frozenset({"sinc", "_ndtri", "_erfcinv", "_erfcx"})
_JAX_FOLDER = os.path.dirname(jax.__file__)
_PIVOTS = frozenset({"lu"})  # the rows it swaps, it swaps in the matrix too
_ORDERS = frozenset({"sort", "top_k", "approx_top_k"})


def _is_continuous_call(eqn: JaxprEqn) -> bool:
    """Whether JAX's own function of such a name is called, and not another's."""
    body = eqn.params.get(_CALLS.get(eqn.primitive.name, ""))
    about = None if body is None else open_jaxpr(body).debug_info
    return (
        about is not None
        and about.func_name in _STEPS_CANCEL
        and (about.func_filename or "").startswith(_JAX_FOLDER + os.sep)
    )


class _Jumps(Domain):
    """Labels of dependence on `wrt` and of the jumps met on the way."""

    def opaque(self, eqn: JaxprEqn) -> bool:
        return in_scope(eqn, EXOGENOUS) or _is_continuous_call(eqn)

    def control(self, eqn: JaxprEqn, predicate: Any, path: Path) -> Any:
        if _WRT not in predicate:
            return predicate
        hard = frozenset(label for label in predicate if not label.soft)
        return hard | {Source(path, eqn.primitive.name)}

    def equation(self, eqn: JaxprEqn, values: list[Any], path: Path) -> list[Any]:
        name, count = eqn.primitive.name, len(eqn.outvars)
        if name == "is_finite" or name == "ne" and eqn.invars[0] is eqn.invars[1]:
            return [self.empty]  # it tells errors from values and never switches
        if name == "select_n":
            return [self.join([self.control(eqn, values[0], path), *values[1:]])]
        joined = self.join(values)
        if _WRT not in joined:
            return [joined] * count
        if name in _ORDERS:
            # The values in order are continuous; what is carried along is not.
            keys = values[: eqn.params.get("num_keys", 1)]
            if _WRT not in self.join(keys):
                return [joined] * count
            jump = joined | {Source(path, name)}
            return [joined] + [jump] * (count - 1)
        for number, body in enumerate(sub_jaxprs(list(eqn.params.values()))):
            if name not in _SMOOTH:
                # How the operands meet these inputs is unknown: all meet all.
                inner = [joined] * len(open_jaxpr(body).invars)
                try:
                    found = propagate(self, body, inner, (*path, number))
                except MutableError:
                    found = [frozenset({Source(path, name)})]
                joined |= self.join(found)
        return [joined | self._jump(eqn, values, path)] * count

    def _jump(self, eqn: JaxprEqn, values: list[Any], path: Path) -> frozenset[Source]:
        name, made = eqn.primitive.name, [_dtype(var) for var in eqn.outvars]
        pairs = zip(eqn.invars, values, strict=True)
        kinds = [_dtype(atom) for atom, value in pairs if _WRT in value]
        inexact = any(jnp.issubdtype(k, jnp.inexact) for k in kinds)
        whole = any(jnp.issubdtype(kind, jnp.integer) for kind in made)
        soft = False
        if name == "bitcast_convert_type" or name in _JUMPS and inexact:
            jump = True
        elif name == "convert_element_type" and inexact:
            jump = not jnp.issubdtype(made[0], jnp.inexact)
        elif inexact and whole and name not in _PIVOTS:
            jump = next(sub_jaxprs(list(eqn.params.values())), None) is None
        else:  # arithmetic with the truth of a comparison
            jump = jnp.bool_ in kinds and made[0] != jnp.bool_
            soft = jump and whole
        return frozenset({Source(path, name, soft)} if jump else ())


@dataclass(frozen=True)
class Jump:
    """An equation where a value that depends on chosen inputs may jump.

    Attributes:
        primitive: The equation's primitive.
        outputs: The flat outputs that its result reaches.
        path: Where the equation stands in the jaxpr.
    """

    primitive: str
    outputs: frozenset[int]
    path: Path = ()

    @property
    def switch(self) -> bool:
        """Whether it chooses between values, which may agree where it switches."""
        return self.primitive in SWITCHES


def jumps(jaxpr: Jaxpr, wrt: Collection[int]) -> list[Jump]:
    """All jumps and switches driven by the inputs `wrt` that reach an output."""
    wrt_label, none = frozenset({_WRT}), frozenset[Source]()
    inputs = [wrt_label if i in wrt else none for i in range(len(jaxpr.invars))]
    reached: dict[Source, set[int]] = {}
    try:
        outs = propagate(_Jumps(), jaxpr, inputs)
    except MutableError:
        everywhere = frozenset(range(len(jaxpr.outvars)))
        return [Jump("mutable", everywhere)] if any(inputs) else []
    for index, labels in enumerate(outs):
        for label in labels - wrt_label:
            reached.setdefault(label, set()).add(index)
    return [
        Jump(source.primitive, frozenset(outputs), source.path)
        for source, outputs in sorted(reached.items())
    ]


class HiddenError(Exception):
    """An equation stands where its operands cannot be handed out."""


def _predicate(eqn: JaxprEqn, values: list[Any]) -> Any:
    """What differs on the two sides of a switch."""
    match eqn.primitive.name:
        case "sign":
            return jnp.real(values[0]) >= 0
        case "atan2":  # the cut along the negative second axis
            return (values[1] < 0) & (values[0] >= 0)
        case "rem":  # from the remainder itself, which rounds as the result does
            return jnp.round((values[0] - lax.rem(*values)) / values[1])
    return values[0]


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
    """Evaluates a jaxpr and hands out predicates of chosen equations.

    Args:
        jaxpr: What to evaluate.
        consts: Values of its constants.
        args: Values of its inputs.
        enter: Which calls, loops and branches to open; calls lose their boundary.
        taps: The equations, in `path` form, whose predicate is wanted.
        fetch: Gives the constants of an inner jaxpr.
        path: Where the jaxpr itself stands.

    Returns:
        The outputs, and the wanted predicates with a leading axis for each scan.

    Raises:
        HiddenError: A tap lies in a branch, a `while` or an unknown primitive.
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
                params = eqn.primitive.get_bind_params(eqn.params)
                outs = eqn.primitive.bind(*values, **params)
                outs = outs if eqn.primitive.multiple_results else [outs]
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars], seen


def _replay_inside(
    eqn: JaxprEqn, values: list[Any], path: Path, inner: Any, tapped: bool
) -> tuple[list[Any], list[Any]]:
    name, params = eqn.primitive.name, eqn.params
    body = body_of(eqn)
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
