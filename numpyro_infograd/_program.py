# SPDX-License-Identifier: Apache-2.0
"""A traced function as a pytree: arrays are leaves, the computation is static.

Tracing a Python function is fast and includes changed closures; compiling is slow. A
`Program` is an argument of jitted functions: its arrays are ordinary arguments, and its
code is static data that is equal if and only if the computation is the same. So JAX
compiles only for new computations.
"""

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
import re
import threading
from typing import Any
import weakref

import jax
from jax import Array, lax
import jax.core
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
import jax.numpy as jnp
from jax.tree_util import tree_flatten, tree_structure, tree_unflatten

from numpyro_infograd import _jaxpr_facts
from numpyro_infograd._compiling import pytree
from numpyro_infograd._jaxpr_facts import Jump
from numpyro_infograd._jaxpr_key import KeyMaker
from numpyro_infograd._jaxpr_replay import HiddenError, replay
from numpyro_infograd._jaxpr_walk import Path, open_jaxpr, sub_jaxprs
from numpyro_infograd.errors import ModelError


def _holds_arrays(eqn: JaxprEqn) -> bool:
    """Whether an inner jaxpr that can be opened safely has arrays as constants."""
    if eqn.primitive.name not in ("jit", "closed_call", "scan", "cond", "while"):
        return False
    return any(
        bool(isinstance(body, ClosedJaxpr) and body.consts)
        or any(map(_holds_arrays, open_jaxpr(body).eqns))
        for body in sub_jaxprs(eqn.params)
    )


def _lift(closed: ClosedJaxpr, held: Sequence[Any]) -> ClosedJaxpr:
    """Move the arrays of inner jaxprs to the constants of the outer jaxpr."""
    arrays = list({id(array): array for array in held}.values())
    count = len(closed.consts)

    def whole(consts: Sequence[Any], *args: Any) -> list[Any]:
        lifted = dict(zip(map(id, arrays), consts[count:], strict=True))
        outs, _ = replay(
            closed.jaxpr,
            consts[:count],
            args,
            enter=lambda eqn, path: _holds_arrays(eqn),
            fetch=lambda body: [lifted[id(array)] for array in body.consts],
        )
        return outs

    return close_over(whole, [*closed.consts, *arrays], closed.jaxpr)


def close_over(
    fn: Callable[..., Any], consts: Sequence[Any], like: Jaxpr
) -> ClosedJaxpr:
    """Trace `fn(consts, *args)` with `consts` as constants and `args` as in `like`."""
    shapes = [jax.typeof(const) for const in consts]
    traced = jax.make_jaxpr(fn)(shapes, *[var.aval for var in like.invars])
    jaxpr, split = traced.jaxpr, len(consts)
    jaxpr = jaxpr.replace(
        constvars=[*jaxpr.constvars, *jaxpr.invars[:split]],
        invars=jaxpr.invars[split:],
        debug_info=like.debug_info,
    )
    return ClosedJaxpr(jaxpr, [*traced.consts, *consts])


@dataclass(frozen=True, eq=False)
class Code:
    """The static part of a `Program`: one object for each computation, while it exists.

    The captured arrays are constants of `jaxpr`; `in_tree` is the structure of the
    tuple of arguments, and `out_tree` that of the result.
    """

    jaxpr: Jaxpr
    in_tree: Any
    out_tree: Any
    key: Hashable
    facts: dict[Hashable, Any] = field(default_factory=dict)

    @staticmethod
    def of(jaxpr: Jaxpr, in_tree: Any, out_tree: Any, key: Hashable) -> "Code":
        """The one code with this computation and these structures."""
        value = KeyMaker().value
        key = (key, value(in_tree), value(out_tree))
        with _lock:  # threads must find the same one
            code = _codes.get(key)
            if code is None:
                code = _codes[key] = Code(jaxpr, in_tree, out_tree, key)
            return code

    @property
    def text(self) -> str:
        """The computation as text that is equal in all processes."""
        return re.sub(r" at 0x[0-9a-f]+", "", repr(self.key))

    def fact(self, compute: Callable[..., Any], *wrt: frozenset[int]) -> Any:
        """`compute(jaxpr, *wrt)`, cached."""
        key = (compute, *wrt)
        if key not in self.facts:
            self.facts[key] = compute(self.jaxpr, *wrt)
        return self.facts[key]


# So comparison is fast, and cached facts can be used for later traces.
_lock = threading.Lock()
_codes: "weakref.WeakValueDictionary[Hashable, Code]" = weakref.WeakValueDictionary()


@pytree("consts")
@dataclass(frozen=True, eq=False)
class Program:
    """A traced pure function whose captured arrays are pytree leaves.

    Flat inputs and outputs are the leaves of the tuple of arguments and of the
    result, in the order of `jax.tree.leaves`.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np
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
        code: The computation on these arrays and the arguments.
    """

    consts: list[Any]
    code: Code

    @classmethod
    def trace(cls, fn: Callable[..., Any], *example_args: Any) -> "Program":
        """Trace a pure function for the shapes and dtypes of some arguments: pytrees of
        arrays, keys or `jax.ShapeDtypeStruct`.
        """
        leaves, in_tree = tree_flatten(example_args)
        shapes = [_shape(leaf) for leaf in leaves]
        closed, result = jax.make_jaxpr(fn, return_shape=True)(
            *tree_unflatten(in_tree, shapes)
        )
        maker = KeyMaker()
        key = maker.jaxpr(closed.jaxpr)
        if maker.held and any(map(_holds_arrays, closed.jaxpr.eqns)):
            closed = _lift(closed, maker.held)
            key = maker.jaxpr(closed.jaxpr)
        code = Code.of(closed.jaxpr, in_tree, tree_structure(result), key)
        return cls([jnp.asarray(const) for const in closed.consts], code)

    def __call__(self, *args: Any) -> Any:
        """Evaluate the function; arguments must have the shapes of the examples."""
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
        arrays = [
            # A constant output is a literal in the jaxpr.
            out if isinstance(out, Array) else jnp.asarray(out, shape.dtype)
            for out, shape in zip(outs, self.code.jaxpr.out_avals, strict=True)
        ]
        return tree_unflatten(self.code.out_tree, arrays)

    def check_batches(self, what: str) -> None:
        """Raise for a callback that cannot run on a batch of samples."""
        for kind, name in _jaxpr_facts.callbacks_that_cannot_batch(self.code.jaxpr):
            raise ModelError(
                f"{what} calls {name} by jax.{kind}, which does not run on a batch of "
                "samples. Write the function in jax.numpy; or use jax.pure_callback "
                "with vmap_method='sequential', inside a jax.custom_jvp function that "
                "gives its derivative."
            )

    def input_indices(self, *path: Any) -> list[int]:
        """Flat inputs under a path of indices, keys and attribute names."""
        return _indices(self.code.in_tree, path)

    def output_indices(self, *path: Any) -> list[int]:
        """Flat outputs under a path of indices, keys and attribute names."""
        return _indices(self.code.out_tree, path)

    def dependencies(self) -> list[frozenset[int]]:
        """For each flat output, the flat inputs on which it depends."""
        return self.code.fact(_jaxpr_facts.dependencies)

    def largest(self) -> int:
        """The number of entries of the largest array that it computes."""
        return self.code.fact(_jaxpr_facts.largest)

    def affine_outputs(self, wrt: Collection[int]) -> list[bool]:
        """For each flat output, whether it is certainly affine in the inputs `wrt`
        jointly.
        """
        return self.code.fact(_jaxpr_facts.affine_outputs, frozenset(wrt))

    def jumps(
        self, wrt: Collection[int], noise: Collection[int] | None = None
    ) -> list[Jump]:
        """The jumps and switches that depend on the inputs `wrt`, and on `noise` if
        given, and reach an output.

        Equations under `jax.named_scope("exogenous")` are skipped.
        """
        found = self.code.fact(_jaxpr_facts.jumps, frozenset(wrt))
        if noise is None:
            return found
        reached = {jump.path for jump in self.jumps(noise)}
        return [jump for jump in found if jump.path in reached]

    def stops(self, wrt: Collection[int]) -> frozenset[int]:
        """The flat outputs whose derivative in the inputs `wrt` may be wrong."""
        return self.code.fact(_jaxpr_facts.stopped_outputs, frozenset(wrt))

    def predicates(
        self, wrt: Collection[int], noise: Collection[int] | None = None
    ) -> "Program | None":
        """A program of the same inputs that returns the predicate of each switch.

        Its output is a list with one array for each switch of `jumps(wrt, noise)`, in
        that order: the bools of a `select_n`, the branch index of a `cond`, the side of
        the cut of a `sign` or an `atan2`, the multiple that a `rem` subtracts. Each has
        a leading time axis for each enclosing `scan`. None if a predicate is in a
        branch or a `while`.
        """
        taps = frozenset(jump.path for jump in self.jumps(wrt, noise) if jump.switch)
        known = self.code.facts
        if ("predicates", taps) not in known:
            known["predicates", taps] = self._tapped(taps)
        code, own = known["predicates", taps]
        return code and Program([*map(jnp.asarray, own), *self.consts], code)

    def _tapped(self, taps: frozenset[Path]) -> tuple[Code | None, list[Any]]:
        """The code of `predicates`, and its arrays without those of this program."""
        around = {path[:end] for path in taps for end in range(1, len(path))}
        code = self.code

        def tapped(consts: Sequence[Any], *args: Any) -> list[Any]:
            return replay(
                code.jaxpr,
                consts,
                args,
                enter=lambda _, path: path in around,
                taps=taps,
            )[1]

        try:
            closed = close_over(tapped, self.consts, code.jaxpr)
        except HiddenError:
            return None, []
        key = KeyMaker().jaxpr(closed.jaxpr)
        out_tree = tree_structure([0] * len(taps))
        found = Code.of(closed.jaxpr, code.in_tree, out_tree, key)
        # This program's arrays come last.
        return found, closed.consts[: len(closed.consts) - len(self.consts)]


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype without weak type, so that floats and arrays are equal."""
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


def _paths(tree: Any) -> list[tuple[Any, ...]]:
    """The path of each leaf of a structure."""
    leaves = tree_unflatten(tree, range(tree.num_leaves))
    return [path for path, _ in jax.tree_util.tree_leaves_with_path(leaves)]


def _indices(tree: Any, path: Sequence[Any]) -> list[int]:
    return [
        index
        for index, keys in enumerate(_paths(tree))
        if tuple(map(_entry, keys[: len(path)])) == tuple(path)
    ]


def _entry(key: Any) -> Any:
    for name in ("key", "idx", "name"):
        if hasattr(key, name):
            return getattr(key, name)
    return key


def dependencies_by_name(
    program: Program, key: Callable[[Any], Any] = lambda path: path[0].key
) -> dict[Any, tuple[frozenset[str], ...]]:
    """Output name -> for each input dict, the names that the output depends on."""
    code = program.code
    labels = [(argument.idx, name.key) for argument, name, *_ in _paths(code.in_tree)]
    found: dict[Any, list[set[str]]] = {}
    for path, used in zip(_paths(code.out_tree), program.dependencies(), strict=True):
        row = found.setdefault(key(path), [set() for _ in code.in_tree.children()])
        for position, label in (labels[index] for index in used):
            row[position].add(label)
    return {name: tuple(map(frozenset, row)) for name, row in found.items()}
