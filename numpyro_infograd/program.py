# SPDX-License-Identifier: Apache-2.0
"""A traced function as a pytree: arrays are leaves, the computation is static.

Retracing a Python function is cheap and sees every changed closure; compiling is
not. A `Program` passed to a jitted function splits the two: its arrays are ordinary
arguments, and its code is static data that compares equal if and only if the
computation is the same, so that JAX's own cache decides when to compile.
"""

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
import functools
import types
from typing import Any
import weakref

import numpy as np

import jax
from jax import Array, lax
import jax.core
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
import jax.numpy as jnp
from jax.tree_util import tree_flatten, tree_structure, tree_unflatten

from numpyro_infograd import jaxpr_facts
from numpyro_infograd.jaxpr_facts import Jump

# Rules are traced to this derivative order; beyond it their source stands for them.
_RULE_DEPTH = 3
# Rules of these packages depend on nothing but their code and closure.
_LIBRARIES = frozenset({"jax", "numpyro", "flax", "optax"})
_MAX_CACHED_RULES = 4096
_library_rules: dict[Hashable, Hashable] = {}
# The key of an inner jaxpr, and the arrays inside.
_closed_keys: "weakref.WeakKeyDictionary[ClosedJaxpr, tuple[Hashable, list[Any]]]" = (
    weakref.WeakKeyDictionary()
)


class _Same:
    """Compares an object by identity, and keeps it alive so that this is sound."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _KeyMaker:
    """Turns a jaxpr into a hashable value that says all it computes.

    Printing will not do: it rounds literals, hides arrays, and shows addresses of
    objects that are made anew in each trace.
    """

    def __init__(self) -> None:
        self.held: list[Any] = []  # arrays inside inner jaxprs
        self._rules: list[Hashable] = []  # the derivative rules around
        self._functions: list[Any] = []  # the closures around

    def jaxpr(self, jaxpr: Jaxpr) -> Hashable:
        numbers: dict[Any, int] = {}
        for var in (*jaxpr.constvars, *jaxpr.invars):
            numbers[var] = len(numbers)
        equations = []
        for eqn in jaxpr.eqns:
            operands = tuple([self._atom(atom, numbers) for atom in eqn.invars])
            for var in eqn.outvars:
                numbers[var] = len(numbers)
            equations.append(
                (
                    eqn.primitive,
                    eqn.ctx,
                    jaxpr_facts.in_scope(eqn, jaxpr_facts.EXOGENOUS),
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
        # Jitted functions of a library keep their jaxprs from trace to trace. Around
        # a rule the key may say "recursion", which is relative to that rule.
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
        if hasattr(function, "callback_func"):  # of jax.pure_callback, in each trace
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
        except ValueError:  # a cell that is not filled yet
            return _Same(function)
        finally:
            self._functions.pop()

    def _cell(self, cell: Any) -> Hashable:
        # What can change in place is read when the function runs: same object,
        # same behaviour.
        mutable = isinstance(cell, (list, dict, np.ndarray))
        return _Same(cell) if mutable else self.value(cell)

    def _rule(self, eqn: JaxprEqn, primal: Hashable) -> Hashable:
        """The derivative rule of a custom_jvp or custom_vjp function.

        The rule is a Python function, wrapped anew in each trace. What it computes
        is found by tracing it; its source only tells when it calls itself.
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
        except Exception:  # the rule is user code and may refuse what it is fed
            return _Same(eqn)
        finally:
            self._rules.pop()
            del self.held[held:]
        # A rule that sees symbolic zeros has more faces than the one traced here.
        key = (traced, source if symbolic else None)
        if shared:
            if len(_library_rules) >= _MAX_CACHED_RULES:
                _library_rules.clear()
            _library_rules[name] = key
        return key


def _unwrap(rule: Any) -> Any:
    """The user's rule behind the memoizing thunks that JAX puts around it."""
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
    """Jaxprs of a derivative rule, with all tangents and cotangents present."""
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


def _holds_arrays(eqn: JaxprEqn) -> bool:
    """Whether an inner jaxpr that can be opened safely has arrays of its own."""
    if eqn.primitive.name not in ("jit", "closed_call", "scan", "cond", "while"):
        return False
    return any(
        bool(isinstance(body, ClosedJaxpr) and body.consts)
        or any(map(_holds_arrays, jaxpr_facts.open_jaxpr(body).eqns))
        for body in jaxpr_facts.sub_jaxprs(list(eqn.params.values()))
    )


def _lift(closed: ClosedJaxpr, held: Sequence[Any]) -> ClosedJaxpr:
    """Moves the arrays of inner jaxprs out to the constants of the whole."""
    arrays = list({id(array): array for array in held}.values())
    count = len(closed.consts)

    def whole(consts: Sequence[Any], *args: Any) -> list[Any]:
        lifted = dict(zip(map(id, arrays), consts[count:], strict=True))
        outs, _ = jaxpr_facts.replay(
            closed.jaxpr,
            consts[:count],
            args,
            enter=lambda eqn, path: _holds_arrays(eqn),
            fetch=lambda body: [lifted[id(array)] for array in body.consts],
        )
        return outs

    return _close_over(whole, [*closed.consts, *arrays], closed.jaxpr)


def _close_over(
    fn: Callable[..., Any], consts: Sequence[Any], like: Jaxpr
) -> ClosedJaxpr:
    """Traces `fn(consts, *args)` with `consts` as constants and `args` as in `like`."""
    shapes = [jax.typeof(const) for const in consts]
    traced = jax.make_jaxpr(fn)(shapes, *[var.aval for var in like.invars])
    jaxpr, split = traced.jaxpr, len(consts)
    jaxpr = jaxpr.replace(
        constvars=[*jaxpr.constvars, *jaxpr.invars[:split]],
        invars=jaxpr.invars[split:],
        debug_info=like.debug_info,
    )
    return ClosedJaxpr(jaxpr, [*traced.consts, *consts])


class Code:
    """The static half of a `Program`; equal to another iff both compute the same.

    Attributes:
        jaxpr: The computation, with the captured arrays as its constants.
        in_tree: Structure of the tuple of arguments.
        out_tree: Structure of the result.
    """

    def __init__(self, jaxpr: Jaxpr, in_tree: Any, out_tree: Any, key: Hashable):
        self.jaxpr = jaxpr
        self.in_tree = in_tree
        self.out_tree = out_tree
        self.facts: dict[Hashable, tuple[Any, ...]] = {}
        self._key = key
        self._hash = hash(key)

    @staticmethod
    def of(jaxpr: Jaxpr, in_tree: Any, out_tree: Any, key: Hashable) -> "Code":
        """The one living code with this computation and these structures."""
        value = _KeyMaker().value
        key = (key, value(in_tree), value(out_tree))
        code = _codes.get(key)
        if code is None:
            code = _codes.setdefault(key, Code(jaxpr, in_tree, out_tree, key))
        return code

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Code) and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    def fact(self, name: Hashable, compute: Callable[[], list[Any]]) -> list[Any]:
        """`compute()`, remembered under `name`."""
        if name not in self.facts:
            self.facts[name] = tuple(compute())
        return list(self.facts[name])


# Equal codes are one object as long as it lives: comparison is then immediate, and
# what is known about a computation outlives the trace.
_codes: "weakref.WeakValueDictionary[Hashable, Code]" = weakref.WeakValueDictionary()


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["consts"], meta_fields=["code"]
)
@dataclass(frozen=True, eq=False)
class Program:
    """A traced pure function whose captured arrays are pytree leaves.

    Flat inputs and outputs are the leaves of the tuple of arguments and of the
    result, in the order of `jax.tree.leaves`.

    Example:
        >>> run = jax.jit(lambda program, x: program(x))
        >>> for scale in (np.full(3, 2.0), np.full(3, 5.0)):
        ...     program = Program.trace(lambda x: (x * scale, jnp.floor(x)), 0.0)
        ...     print(run(program, 1.5)[0])
        [3. 3. 3.]
        [7.5 7.5 7.5]
        >>> run._cache_size()
        1
        >>> program.affine_outputs([0]), program.jumps([0])[0].primitive
        ([True, False], 'floor')

    Attributes:
        consts: The arrays that the function captured.
        code: What it does with them and with its arguments.
    """

    consts: list[Any]
    code: Code

    @classmethod
    def trace(cls, fn: Callable[..., Any], *example_args: Any) -> "Program":
        """Traces `fn` on the shapes and dtypes of some arguments.

        Args:
            fn: A pure function of pytrees of arrays.
            *example_args: Pytrees of arrays, keys or `jax.ShapeDtypeStruct`.
        """
        leaves, in_tree = tree_flatten(example_args)
        shapes = [_shape(leaf) for leaf in leaves]
        closed, result = jax.make_jaxpr(fn, return_shape=True)(
            *tree_unflatten(in_tree, shapes)
        )
        maker = _KeyMaker()
        key = maker.jaxpr(closed.jaxpr)
        if maker.held and any(map(_holds_arrays, closed.jaxpr.eqns)):
            closed = _lift(closed, maker.held)
            key = maker.jaxpr(closed.jaxpr)
        code = Code.of(closed.jaxpr, in_tree, tree_structure(result), key)
        return cls([jnp.asarray(const) for const in closed.consts], code)

    def __call__(self, *args: Any) -> Any:
        """Evaluates the function; every argument must look like its example."""
        leaves, tree = tree_flatten(args)
        if tree != self.code.in_tree:
            raise TypeError(
                f"the arguments have the structure {tree}, but the program was "
                f"traced with {self.code.in_tree}"
            )
        values = [
            _fit(leaf, var.aval)
            for leaf, var in zip(leaves, self.code.jaxpr.invars, strict=True)
        ]
        outs = jax.core.eval_jaxpr(self.code.jaxpr, self.consts, *values)
        return tree_unflatten(self.code.out_tree, outs)

    def input_indices(self, *path: Any) -> list[int]:
        """Flat inputs under a path of indices, keys and attribute names."""
        return _indices(self.code.in_tree, path)

    def output_indices(self, *path: Any) -> list[int]:
        """Flat outputs under a path of indices, keys and attribute names."""
        return _indices(self.code.out_tree, path)

    def dependencies(self) -> list[frozenset[int]]:
        """For each flat output, the flat inputs that it is computed from."""
        code = self.code
        return code.fact("deps", lambda: jaxpr_facts.dependencies(code.jaxpr))

    def affine_outputs(self, wrt: Collection[int]) -> list[bool]:
        """For each flat output, whether it is surely affine in `wrt` jointly.

        Args:
            wrt: Flat inputs; all others are held fixed.
        """
        code, chosen = self.code, frozenset(wrt)
        return code.fact(
            ("affine", chosen), lambda: jaxpr_facts.affine_outputs(code.jaxpr, chosen)
        )

    def jumps(self, wrt: Collection[int]) -> list[Jump]:
        """The jumps and switches driven by `wrt` whose result reaches an output.

        Equations under `jax.named_scope("exogenous")` are trusted.

        Args:
            wrt: Flat inputs; all others are held fixed.
        """
        code, chosen = self.code, frozenset(wrt)
        return code.fact(
            ("jumps", chosen), lambda: jaxpr_facts.jumps(code.jaxpr, chosen)
        )

    def predicates(self, wrt: Collection[int]) -> "Program | None":
        """A program of the same inputs that computes the predicate of each switch.

        Its output is a list with one array for each switch of `jumps(wrt)`, in that
        order: the booleans of a `select_n`, the branch index of a `cond`, with a
        leading time axis for each `scan` around it.

        Args:
            wrt: Flat inputs; all others are held fixed.

        Returns:
            The program, or None if a predicate sits in a branch or a `while`.
        """
        taps = frozenset(jump.path for jump in self.jumps(wrt) if jump.switch)
        around = {path[:end] for path in taps for end in range(1, len(path))}
        code = self.code

        def tapped(consts: Sequence[Any], *args: Any) -> list[Any]:
            return jaxpr_facts.replay(
                code.jaxpr,
                consts,
                args,
                enter=lambda _, path: path in around,
                taps=taps,
            )[1]

        def compute() -> list[Any]:
            try:
                closed = _close_over(tapped, self.consts, code.jaxpr)
            except jaxpr_facts.HiddenError:
                return [None, []]
            key = _KeyMaker().jaxpr(closed.jaxpr)
            out_tree = tree_structure([0] * len(taps))
            found = Code.of(closed.jaxpr, code.in_tree, out_tree, key)
            # Remembered without this program's arrays, which come last.
            return [found, closed.consts[: len(closed.consts) - len(self.consts)]]

        found, own = code.fact(("predicates", frozenset(wrt)), compute)
        return found and Program([*map(jnp.asarray, own), *self.consts], found)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype only: a weak type would make floats and arrays differ."""
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        leaf = jax.typeof(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _fit(leaf: Any, aval: Any) -> Array:
    array = leaf if isinstance(leaf, Array) else jnp.asarray(leaf)
    weak = jax.typeof(array).weak_type
    fits = array.dtype == aval.dtype or (
        weak and jnp.result_type(array, aval.dtype) == aval.dtype
    )
    if array.shape != aval.shape or not fits:
        raise TypeError(
            f"an argument has shape {array.shape} and dtype {array.dtype}, but the "
            f"program was traced with shape {aval.shape} and dtype {aval.dtype}"
        )
    return lax.convert_element_type(array, aval.dtype) if weak else array


def _indices(tree: Any, path: Sequence[Any]) -> list[int]:
    leaves = tree_unflatten(tree, range(tree.num_leaves))
    return [
        index
        for keys, index in jax.tree_util.tree_leaves_with_path(leaves)
        if tuple(map(_entry, keys[: len(path)])) == tuple(path)
    ]


def _entry(key: Any) -> Any:
    for name in ("key", "idx", "name"):
        if hasattr(key, name):
            return getattr(key, name)
    return key
