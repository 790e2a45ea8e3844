# SPDX-License-Identifier: Apache-2.0
"""A hashable key of all that a jaxpr computes, with its derivative rules."""

from collections.abc import Hashable
import functools
import types
from typing import Any
import weakref

import numpy as np

import jax
from jax import Array
import jax.core
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
import jax.numpy as jnp
from jax.tree_util import tree_structure

from numpyro_infograd._jaxpr_walk import EXOGENOUS, in_scope

# Rules are traced up to this derivative order; beyond it their source is the key.
_RULE_DEPTH = 3
# Rules of these packages depend only on their code and closure.
_LIBRARIES = frozenset({"jax", "numpyro", "flax", "optax"})
_MAX_CACHED_RULES = 4096
_library_rules: dict[Hashable, Hashable] = {}
# The key of an inner jaxpr, and the arrays inside.
_closed_keys: "weakref.WeakKeyDictionary[ClosedJaxpr, tuple[Hashable, list[Any]]]" = (
    weakref.WeakKeyDictionary()
)


class _Same:
    """Compares an object by identity; keeps it alive, so its id stays unique."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        """Text for `Code.text`, equal in all processes."""
        held = self.value.tobytes() if isinstance(self.value, np.ndarray) else ""
        return f"{type(self.value).__name__} {held!r}"


class KeyMaker:
    """Turns a jaxpr into a hashable value that determines what it computes.

    The printed jaxpr is not enough: it rounds literals, leaves out arrays, and has
    addresses of objects that differ in each trace.
    """

    def __init__(self) -> None:
        self.held: list[Any] = []  # arrays inside inner jaxprs
        self._rules: list[Hashable] = []  # stack of enclosing derivative rules
        self._functions: list[Any] = []  # stack of enclosing closures

    def jaxpr(self, jaxpr: Jaxpr) -> Hashable:
        given = (*jaxpr.constvars, *jaxpr.invars)
        numbers: dict[Any, int] = {var: index for index, var in enumerate(given)}
        equations = []
        for eqn in jaxpr.eqns:
            operands = tuple([self._atom(atom, numbers) for atom in eqn.invars])
            for var in eqn.outvars:
                numbers[var] = len(numbers)
            equations.append(
                (
                    eqn.primitive,
                    eqn.ctx,
                    in_scope(eqn, EXOGENOUS),
                    operands,
                    tuple([var.aval for var in eqn.outvars]),
                    self._params(eqn),
                    frozenset(map(str, map(type, eqn.effects))),
                )
            )
        return (
            tuple([var.aval for var in jaxpr.constvars]),
            tuple([var.aval for var in jaxpr.invars]),
            tuple(equations),
            tuple([self._atom(atom, numbers) for atom in jaxpr.outvars]),
        )

    def _atom(self, atom: Any, numbers: dict[Any, int]) -> Hashable:
        if isinstance(atom, Literal):
            return atom.aval, self.value(atom.val)
        return numbers[atom]

    def _params(self, eqn: JaxprEqn) -> Hashable:
        params = dict(eqn.params)
        name = eqn.primitive.name
        if name == "jit":
            del params["name"]
        elif name in ("custom_jvp_call", "custom_vjp_call"):
            primal = self.value(params["call_jaxpr"])
            return params["num_consts"], primal, self._rule(eqn, primal)
        elif name == "call_hi_primitive":  # an object of JAX 0.12
            return type(params["_prim"]), self.value(params["_prim"].params)
        return tuple([(key, self.value(value)) for key, value in params.items()])

    def value(self, value: Any) -> Hashable:
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return kind, value
        if isinstance(value, (float, complex, np.ndarray, np.generic)):
            array = np.asarray(value)
            return kind, array.dtype, array.shape, array.tobytes()
        if isinstance(value, ClosedJaxpr):
            return self._closed(value)
        if isinstance(value, Jaxpr):
            return Jaxpr, self.jaxpr(value)
        if isinstance(value, (tuple, list)):
            return kind, tuple([self.value(item) for item in value])
        if isinstance(value, dict):
            return kind, tuple([(k, self.value(v)) for k, v in value.items()])
        if isinstance(value, jax.core.Tracer):
            return _Same(value)
        if isinstance(value, Array):
            if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
                return value.dtype, self.value(jax.random.key_data(value))
            return self.value(np.asarray(value))
        if callable(value):
            return self._function(value)
        return self._opaque(value)

    def _closed(self, closed: ClosedJaxpr) -> Hashable:
        # Jitted functions of a library keep their jaxprs between traces. Inside a rule
        # a key may contain "recursion", which is relative to that rule, so do not
        # cache.
        known = None if self._rules else _closed_keys.get(closed)
        if known is None:
            start = len(self.held)
            self.held.extend(closed.consts)
            consts = tuple([self.value(const) for const in closed.consts])
            known = ((consts, self.jaxpr(closed.jaxpr)), self.held[start:])
            if not self._rules:
                _closed_keys[closed] = known
        else:
            self.held.extend(known[1])
        return ClosedJaxpr, known[0]

    def _opaque(self, value: Any) -> Hashable:
        try:
            hash(value)
        except TypeError:
            return _Same(value)
        return type(value), value

    def _function(self, function: Any) -> Hashable:
        if isinstance(function, functools.partial):
            call = (function.func, function.args, function.keywords)
            return functools.partial, self.value(call)
        if isinstance(function, types.MethodType):
            owner = function.__self__
            return types.MethodType, self._function(function.__func__), _Same(owner)
        if hasattr(function, "callback_func"):  # jax.pure_callback wraps in each trace
            parts = [function.callback_func, function.in_tree]
            return type(function), self.value(parts)
        if isinstance(function, (jax.custom_jvp, jax.custom_vjp)):
            names = ("fun", "jvp", "fwd", "bwd", "nondiff_argnums", "symbolic_zeros")
            fields = [getattr(function, name, None) for name in names]
            return type(function), self.value(fields)
        if not isinstance(function, types.FunctionType):
            return self._opaque(function)
        if vars(function):
            return _Same(function)
        for depth, outer in enumerate(self._functions):
            if outer is function:
                return "recursion", depth
        self._functions.append(function)
        try:
            cells = [cell.cell_contents for cell in function.__closure__ or ()]
            return (
                function.__code__,
                _Same(function.__globals__),
                self.value(function.__defaults__),
                self.value(function.__kwdefaults__),
                tuple([self._cell(cell) for cell in cells]),
            )
        except ValueError:  # an empty cell
            return _Same(function)
        finally:
            self._functions.pop()

    def _cell(self, cell: Any) -> Hashable:
        # A mutable object is read when the function runs, so the same object means the
        # same behaviour.
        mutable = isinstance(cell, (list, dict, np.ndarray))
        return _Same(cell) if mutable else self.value(cell)

    def _rule(self, eqn: JaxprEqn, primal: Hashable) -> Hashable:
        """The derivative rule of a custom_jvp or custom_vjp function.

        The rule is a Python function that is wrapped again in each trace. Its key is
        its jaxpr; its source is used only to detect recursion.
        """
        wrapped = [
            _unwrap(eqn.params[name])
            for name in ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd")
            if name in eqn.params
        ]
        source = self.value([[rule.f, _static_args(rule)] for rule in wrapped])
        symbolic = eqn.params["symbolic_zeros"]
        name = (eqn.primitive, symbolic, source, primal)
        if name in self._rules:
            return "recursion", self._rules.index(name)
        if len(self._rules) >= _RULE_DEPTH:
            return "deep", source
        shared = not self._rules and all(
            not _static_args(rule) and _of_library(rule.f) for rule in wrapped
        )
        if shared and name in _library_rules:
            return _library_rules[name]
        held = len(self.held)
        self._rules.append(name)
        try:
            traced = tuple([self.value(part) for part in _trace_rule(eqn)])
        except Exception:  # the rule is user code and may fail on these inputs
            return _Same(eqn)
        finally:
            self._rules.pop()
            del self.held[held:]
        # With symbolic zeros a rule has other branches than the traced one.
        key = (traced, source if symbolic else None)
        if shared:
            if len(_library_rules) >= _MAX_CACHED_RULES:
                _library_rules.clear()
            _library_rules[name] = key
        return key


def _unwrap(rule: Any) -> Any:
    """The user's rule inside the memoizing thunks of JAX."""
    inner = rule.f
    while str(getattr(inner, "__module__", "")).startswith("jax._src."):
        cells = [c.cell_contents for c in getattr(inner, "__closure__", None) or ()]
        rules = [cell for cell in cells if hasattr(cell, "call_wrapped")]
        functions = [cell for cell in cells if isinstance(cell, types.FunctionType)]
        if rules:
            rule, inner = rules[0], rules[0].f
        elif functions and inner.__name__ == "memoized":
            inner = functions[0]
        else:
            break
    return rule


def _static_args(rule: Any) -> list[Any]:
    """The non-differentiated arguments that JAX binds to a rule."""
    leaves = jax.tree.leaves([args for _, args in rule.transforms])
    return [leaf.val for leaf in leaves if type(leaf).__name__ == "Unhashable"]


def _of_library(value: Any) -> bool:
    """Whether a rule, and all functions in its closure, belong to known packages."""
    if isinstance(value, (tuple, list)):
        return all(map(_of_library, value))
    if not callable(value):
        return True
    if str(getattr(value, "__module__", "")).split(".")[0] not in _LIBRARIES:
        return False
    cells = getattr(value, "__closure__", None) or ()
    return all(_of_library(cell.cell_contents) for cell in cells)


def _trace_rule(eqn: JaxprEqn) -> list[Any]:
    """Jaxprs of a derivative rule, with no tangent or cotangent zero."""
    params = eqn.params
    avals = params["call_jaxpr"].in_avals
    count = len(avals) - params["num_consts"]
    if eqn.primitive.name == "custom_jvp_call":
        jaxpr, consts, zeros = params["jvp_jaxpr_fun"].call_wrapped(*[False] * count)
        return [ClosedJaxpr(jaxpr, consts), tuple(zeros)]
    jaxpr, consts = params["fwd_jaxpr_thunk"].call_wrapped(*[True] * count)
    forward = ClosedJaxpr(jaxpr, consts)
    out_tree, residual_tree, forwarded = params["out_trees"]()
    fresh = iter(forward.out_avals)
    residuals = [next(fresh) if i is None else avals[i] for i in forwarded]
    cotangents = [aval.to_ct_aval() for aval in params["call_jaxpr"].out_avals]
    blanks = [_blank(aval) for aval in (*residuals, *cotangents)]
    kept = [isinstance(blank, jax.ShapeDtypeStruct) for blank in blanks]
    shapes = [blank for blank, keep in zip(blanks, kept, strict=True) if keep]

    def backward(*arrays: Any) -> list[Any]:
        given = iter(arrays)
        args = [
            next(given) if keep else b for b, keep in zip(blanks, kept, strict=True)
        ]
        outs = params["bwd"].call_wrapped(*args)
        return [None if type(out).__name__ == "Zero" else out for out in outs]

    jaxpr, shape = jax.make_jaxpr(backward, return_shape=True)(*shapes)
    trees = (out_tree, residual_tree, tree_structure(shape))
    return [forward, jaxpr, trees, tuple(forwarded)]


def _blank(aval: Any) -> Any:
    if aval.dtype == jax.dtypes.float0:
        return np.zeros(aval.shape, jax.dtypes.float0)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)
