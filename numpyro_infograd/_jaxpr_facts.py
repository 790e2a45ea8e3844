# SPDX-License-Identifier: Apache-2.0
"""Facts about a jaxpr that hold for every input: dependence, affinity, jumps.

Each fact is a `Domain` that `_jaxpr_walk.propagate` computes equation by equation. All
facts are conservative: they may report a dependence or a jump that does not exist, and
may miss an affine output, but never the reverse.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
import os
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, JaxprEqn
import jax.numpy as jnp

import numpyro

from numpyro_infograd._jaxpr_walk import (
    CALLS,
    EXOGENOUS,
    FACTORS,
    Domain,
    Path,
    dtype_of,
    in_scope,
    is_inexact,
    open_jaxpr,
    propagate,
    sub_jaxprs,
)
from numpyro_infograd.errors import ModelError

SWITCHES = frozenset({"select_n", "cond", "while", "sign", "rem", "atan2", *FACTORS})
"""Primitives that jump or not, depending on their operands and their use."""


def dependencies(jaxpr: Jaxpr) -> list[frozenset[int]]:
    """For each output, the inputs on which it depends."""
    inputs = [frozenset({index}) for index in range(len(jaxpr.invars))]
    return propagate(Domain(), jaxpr, inputs)


def largest(jaxpr: Jaxpr) -> int:
    """The number of entries of the largest array that it computes."""
    found = 1
    for eqn in jaxpr.eqns:
        own = (getattr(out.aval, "size", 1) for out in eqn.outvars)
        inner = (largest(open_jaxpr(body)) for body in sub_jaxprs(eqn.params))
        found = max((found, *own, *inner))
    return found


def callbacks_that_cannot_batch(jaxpr: Jaxpr) -> Iterator[tuple[str, str]]:
    """Calls of Python that `jax.vmap` refuses: operation and name of the function."""
    for eqn in jaxpr.eqns:
        kind, params = eqn.primitive.name, eqn.params
        single = kind == "pure_callback" and params.get("vmap_method") is None
        if single or (kind == "io_callback" and params.get("ordered")):
            function = getattr(params["callback"], "callback_func", None)
            yield kind, getattr(function, "__name__", "a function")
        for body in sub_jaxprs(params):
            yield from callbacks_that_cannot_batch(open_jaxpr(body))


# Affinity: 0 is constant, 1 affine, 2 anything else, in the chosen inputs jointly.

_LINEAR = frozenset(
    """add sub neg add_any reduce_sum cumsum reduce_window_sum reshape broadcast_in_dim
    transpose slice concatenate stack pad rev squeeze expand_dims copy copy_p real imag
    complex conj fft sharding_constraint layout_constraint""".split()
)
_PARALLEL = frozenset("optimization_barrier device_put split unstack name".split())
_BILINEAR = frozenset({"mul", "dot_general", "conv_general_dilated"})
# Linear in the other operands if these are constant: divisors, matrices, indices and
# arguments of a polynomial.
_LINEAR_GIVEN = {
    **dict.fromkeys(("triangular_solve", "polynomial", "select_n"), slice(1)),
    **dict.fromkeys(("div", "dynamic_slice", "gather"), slice(1, None)),
    "dynamic_update_slice": slice(2, None),
    **dict.fromkeys(
        "scatter scatter-add scatter_add scatter-sub scatter_sub".split(), slice(1, 2)
    ),
}


def keeps_floats(eqn: JaxprEqn) -> bool:
    """Whether a conversion is linear, with a rounding error of at most float32."""
    old, new = dtype_of(eqn.invars[0]), eqn.params["new_dtype"]
    if not (jnp.issubdtype(old, jnp.inexact) and jnp.issubdtype(new, jnp.inexact)):
        return False
    return jnp.finfo(new).bits >= min(jnp.finfo(old).bits, 32)


class _Levels(Domain):
    """Numbers, of which the largest counts."""

    empty = 0

    def join(self, values: Sequence[int]) -> int:
        return max(values, default=0)


def _has_rule(eqn: JaxprEqn) -> bool:
    """Whether it is a call with a custom derivative, which may differ from the true."""
    return eqn.primitive.name.startswith(("custom_", "call_hi_"))


class _Affine(_Levels):
    def control(self, eqn: JaxprEqn, predicate: int, path: Path) -> int:
        return 2 if predicate else 0

    def leave(self, eqn: JaxprEqn, outs: list[int]) -> list[int]:
        return [2 if out and _has_rule(eqn) else out for out in outs]

    def equation(self, eqn: JaxprEqn, values: list[int], path: Path) -> list[int]:
        name, top = eqn.primitive.name, self.join(values)
        if top == 0 or top == 2 and name not in _PARALLEL:
            return [top] * len(eqn.outvars)
        if name in _PARALLEL:
            same = len(values) == len(eqn.outvars)
            return values if same else [top] * len(eqn.outvars)
        if name in _BILINEAR:
            linear = min(values) == 0
        elif name in _LINEAR_GIVEN:
            linear = not any(values[_LINEAR_GIVEN[name]])
        elif name == "convert_element_type":
            linear = keeps_floats(eqn)
        elif name == "custom_linear_solve":
            linear = not any(values[: sum(eqn.params["const_lengths"])])
        elif name == "integer_pow":
            linear = eqn.params["y"] == 1
        else:
            linear = name in _LINEAR
        return [1 if linear else 2] * len(eqn.outvars)


def affine_outputs(jaxpr: Jaxpr, wrt: Collection[int]) -> list[bool]:
    """For each output, whether it is certainly affine in the inputs `wrt` jointly."""
    # Integers overflow and keys are hashed, so neither is affine.
    values = [
        (1 if is_inexact(var) else 2) * (index in wrt)
        for index, var in enumerate(jaxpr.invars)
    ]
    return [value < 2 for value in propagate(_Affine(), jaxpr, values)]


class Source(NamedTuple):
    """An equation that makes a jump or a switch."""

    path: Path
    primitive: str
    soft: bool = False
    """A bool converted to an integer: no jump if the integer is only a predicate."""


_WRT = Source((), "")
"""The label of values that depend on the chosen inputs."""

# Continuous, or assumed to be, for all inner jaxprs.
_SMOOTH = frozenset({"custom_linear_solve", "scatter-add", "scatter_add"})
_JUMPS = frozenset({"floor", "ceil", "round", "sign", "rem", "atan2"})
# Continuous functions of JAX whose code has jumps that cancel: they reduce an argument
# to a range near zero, split a float into two halves of its digits, or swap rows.
_STEPS_CANCEL = frozenset({"sinc", "_ndtri", "_erfcinv", "_erfcx", "_det"})
_PIVOTS = frozenset({"lu"})  # its row swaps cancel in the product
_ORDERS = frozenset({"sort", "top_k", "approx_top_k"})
# The outputs that are continuous. Sorted values are; other operands in that order are
# not.
_CONTINUOUS = FACTORS | dict.fromkeys(_ORDERS, frozenset({0}))


def _about(eqn: JaxprEqn) -> Any:
    """Name and file of the function that an equation calls, or None."""
    body = eqn.params.get(CALLS.get(eqn.primitive.name, ""))
    return None if body is None else open_jaxpr(body).debug_info


def _is_of(eqn: JaxprEqn, *packages: Any) -> bool:
    """Whether an equation calls a function that one of these packages defines."""
    about = _about(eqn)
    return about is not None and _is_in(about.func_filename, *packages)


def _is_in(file: str | None, *packages: Any) -> bool:
    """Whether a file is one of these packages."""
    folders = tuple(os.path.dirname(each.__file__) + os.sep for each in packages)
    return (file or "").startswith(folders)


def _is_stop(eqn: JaxprEqn) -> bool:
    """Whether it is a `stop_gradient` of the user. In those of JAX's and NumPyro's
    functions, such as `logsumexp`, the stopped derivative cancels.
    """
    if eqn.primitive.name != "stop_gradient":
        return False
    traceback = eqn.source_info.traceback
    frames: list[Any] = [] if traceback is None else list(traceback.frames)
    names = [frame.function_name for frame in frames]
    if "stop_gradient" not in names:
        return True
    callers = frames[names.index("stop_gradient") + 1 :]
    return not callers or not _is_in(callers[0].file_name, jax, numpyro)


class _Jumps(Domain):
    """Labels of dependence on `wrt`, and of the jumps in the computation."""

    def opaque(self, eqn: JaxprEqn) -> bool:
        if in_scope(eqn, EXOGENOUS):
            return True
        # A function of JAX, not another one of the same name.
        return _is_of(eqn, jax) and _about(eqn).func_name in _STEPS_CANCEL

    def control(self, eqn: JaxprEqn, predicate: Any, path: Path) -> Any:
        if _WRT not in predicate:
            return predicate
        hard = frozenset(label for label in predicate if not label.soft)
        return hard | {Source(path, eqn.primitive.name)}

    def equation(self, eqn: JaxprEqn, values: list[Any], path: Path) -> list[Any]:
        name, count = eqn.primitive.name, len(eqn.outvars)
        if name == "is_finite" or name == "ne" and eqn.invars[0] is eqn.invars[1]:
            return [self.empty]  # a test for NaN or infinity, which never switches
        if name == "select_n":
            return [self.join([self.control(eqn, values[0], path), *values[1:]])]
        joined = self.join(values)
        if _WRT not in joined:
            return [joined] * count
        if name in _ORDERS:
            keys = values[: eqn.params.get("num_keys", 1)]
            if _WRT not in self.join(keys):
                return [joined] * count
        if name in _CONTINUOUS:
            jump = joined | {Source(path, name)}
            return [joined if i in _CONTINUOUS[name] else jump for i in range(count)]
        for number, body in enumerate(sub_jaxprs(eqn.params)):
            if name not in _SMOOTH:
                # It is unknown which operand is which input, so use all for each.
                inner = [joined] * len(open_jaxpr(body).invars)
                try:
                    found = propagate(self, body, inner, (*path, number))
                except ModelError:  # a mutable reference
                    found = [frozenset({Source(path, name)})]
                joined |= self.join(found)
        return [joined | self._jump(eqn, values, path)] * count

    def _jump(self, eqn: JaxprEqn, values: list[Any], path: Path) -> frozenset[Source]:
        name, made = eqn.primitive.name, [dtype_of(var) for var in eqn.outvars]
        pairs = zip(eqn.invars, values, strict=True)
        kinds = [dtype_of(atom) for atom, value in pairs if _WRT in value]
        inexact = any(jnp.issubdtype(k, jnp.inexact) for k in kinds)
        whole = any(jnp.issubdtype(kind, jnp.integer) for kind in made)
        soft = False
        if name == "bitcast_convert_type" or name in _JUMPS and inexact:
            jump = True
        elif name == "convert_element_type" and inexact:
            jump = not jnp.issubdtype(made[0], jnp.inexact)
        elif inexact and whole and name not in _PIVOTS:
            jump = next(sub_jaxprs(eqn.params), None) is None
        else:  # arithmetic with the result of a comparison
            jump = jnp.bool_ in kinds and made[0] != jnp.bool_
            soft = jump and whole
        return frozenset({Source(path, name, soft)} if jump else ())


@dataclass(frozen=True)
class Jump:
    """An equation where a value that depends on chosen inputs may jump."""

    primitive: str  # the equation's primitive
    outputs: frozenset[int]  # the flat outputs that depend on its result
    path: Path = ()  # the position of the equation in the jaxpr

    @property
    def switch(self) -> bool:
        """Whether it chooses between values, which may be equal where it switches."""
        return self.primitive in SWITCHES


def jumps(jaxpr: Jaxpr, wrt: Collection[int]) -> list[Jump]:
    """All jumps and switches that depend on the inputs `wrt` and reach an output."""
    wrt_label, none = frozenset({_WRT}), frozenset[Source]()
    inputs = [wrt_label if i in wrt else none for i in range(len(jaxpr.invars))]
    reached: dict[Source, set[int]] = {}
    for index, labels in enumerate(propagate(_Jumps(), jaxpr, inputs)):
        for label in labels - wrt_label:
            reached.setdefault(label, set()).add(index)
    return [
        Jump(source.primitive, frozenset(outputs), source.path)
        for source, outputs in sorted(reached.items())
    ]


class _Stopped(_Levels):
    """Whether values depend on `wrt` (1), and by a derivative that may be wrong (2)."""

    def equation(self, eqn: JaxprEqn, values: list[int], path: Path) -> list[int]:
        stops = any(values) and _is_stop(eqn)
        return [2 if stops else self.join(values)] * len(eqn.outvars)

    def leave(self, eqn: JaxprEqn, outs: list[int]) -> list[int]:
        if not _has_rule(eqn) or in_scope(eqn, EXOGENOUS) or _is_of(eqn, jax, numpyro):
            return outs
        return [2 if out else 0 for out in outs]


def stopped_outputs(jaxpr: Jaxpr, wrt: Collection[int]) -> frozenset[int]:
    """The outputs whose derivative in the inputs `wrt` may be wrong.

    It is stopped, or follows a user's rule.
    """
    values = [int(index in wrt) for index in range(len(jaxpr.invars))]
    found = propagate(_Stopped(), jaxpr, values)
    return frozenset(index for index, value in enumerate(found) if value == 2)
