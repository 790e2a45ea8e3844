# SPDX-License-Identifier: Apache-2.0
"""What can be computed back from the outputs of a program, read off its jaxpr.

Every value of a program is described by rows: each of its real components is an affine
function of atoms, with known coefficients. Atoms are the components of chosen inputs
(the sources), and one-to-one functions of such affine functions. From known components
a linear solve gives atoms, and an atom gives the value that it is a function of, until
it is known which sources can be computed back. A value that is not recognised is a new
atom that gives nothing. So a source may be reported as lost although it is not, but
never the reverse.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

import jax
from jax.extend.core import JaxprEqn, Literal
import jax.numpy as jnp

from numpyro_infograd.injective import Marked, marked_calls
from numpyro_infograd.jaxpr_monotone import is_elementwise, is_monotone, is_one_to_one
from numpyro_infograd.jaxpr_replay import replay
from numpyro_infograd.jaxpr_walk import body_of, dtype_of
from numpyro_infograd.program import Program

_REARRANGES = frozenset(
    """reshape transpose broadcast_in_dim slice concatenate stack unstack rev squeeze
    expand_dims copy copy_p split pad gather scatter dynamic_slice dynamic_update_slice
    select_n optimization_barrier device_put""".split()
)
_LINEAR = frozenset(
    """dot_general conv_general_dilated fft cumsum reduce_sum reduce_window_sum
    triangular_solve""".split()
)
_SHIFTS = frozenset({"add", "sub", "neg", "copy"})
_POSITIVE = frozenset({"exp", "exp2", "logistic"})
_KEEPS_SIGN = frozenset(
    """mul div add sqrt rsqrt integer_pow broadcast_in_dim reshape squeeze expand_dims
    convert_element_type copy slice concatenate stack""".split()
)
_LARGEST = 1 << 22  # entries of a dense matrix, at most
_INVERTS = 0.01  # largest error of an inverse, of the spread of its draws
_CANCELS = 1e-5  # a sum that is smaller than this share of its parts is zero


class NotInverseError(Exception):
    """The inverse of a marked function does not return its argument."""


class Source(NamedTuple):
    """A flat input to compute back: its support, as in `Site`, and its atoms."""

    support: str
    atoms: range


class _Link(NamedTuple):
    """Atoms from which rows can be computed: each its own, or all rows from all."""

    atoms: range
    rows: Any
    jointly: bool


class Recovery:
    """A program, the rows of its values, and what can be computed back from them.

    Args:
        program: The program.
        sources: Support of each flat input that is a source.
        positive: Flat inputs that are positive numbers.
        inputs: A batch of draws for each flat input; those in `shared` have no batch.
        shared: Flat inputs that are the same for all draws.
    """

    def __init__(
        self,
        program: Program,
        sources: Mapping[int, str],
        positive: Collection[int],
        inputs: Sequence[Any],
        shared: Collection[int],
    ) -> None:
        code = program.code
        shapes = [jax.typeof(const) for const in program.consts]
        closed = jax.make_jaxpr(
            lambda consts, *args: replay(
                code.jaxpr,
                consts,
                args,
                enter=lambda eqn, _: body_of(eqn) is not None,
            )[0]
        )(shapes, *[var.aval for var in code.jaxpr.invars])
        self.jaxpr = closed.jaxpr
        split = len(program.consts)
        held = [*self.jaxpr.constvars, *self.jaxpr.invars[:split]]
        self._known = dict(zip(held, [*closed.consts, *program.consts], strict=True))
        args = self.jaxpr.invars[split:]
        self._positive = {args[i]: True for i in positive}
        self._inputs = dict(zip(args, inputs, strict=True))
        self._axes = {v: None if i in shared else 0 for i, v in enumerate(args)}
        self._made_by = {v: e for e in self.jaxpr.eqns for v in e.outvars}
        self._marked = marked_calls(self.jaxpr.eqns)
        self._moves = {v for v in args if self._axes[v] == 0}
        for eqn in self.jaxpr.eqns:
            if any(map(self._is_moving, eqn.invars)):
                self._moves.update(eqn.outvars)
        self._rows: dict[Any, Any] = {}
        self._base: dict[Any, Any] = {}
        self._links: list[_Link] = []
        self._num_atoms = 0
        self._visited: set[int] = set()
        self._pending: set[Any] = set()
        self.sources: dict[int, Source] = {}
        self._support: dict[Any, str] = {}
        for index, support in sources.items():
            var = args[index]
            if jnp.issubdtype(dtype_of(var), jnp.inexact):
                self.sources[index] = Source(support, self._new(_size(var)))
                self._rows[var] = self._unit(self.sources[index].atoms)
                self._support[var] = support

    # -- the public part ----------------------------------------------------------

    def read(self, outputs: Collection[int]) -> Any:
        """The rows of some flat outputs, or None.

        Raises:
            NotInverseError: If an inverse is wrong at a draw.
        """
        wanted = [self.jaxpr.outvars[i] for i in outputs]
        for eqn in self._cone(wanted):
            if id(eqn) not in self._visited:
                self._visited.add(id(eqn))
                self._visit(eqn)
        found = [self._rows_of(v) for v in wanted]
        return None if any(r is None for r in found) else self._stack(found)

    def recovered(self, known: Collection[int], rows: Sequence[Any]) -> set[int]:
        """The sources that known sources and rows determine completely."""
        have = np.zeros(self._num_atoms, bool)
        for index in known:
            have[self.sources[index].atoms] = True
        table = self._stack(rows)
        unread = [np.ones(len(link.atoms), bool) for link in self._links]
        while True:
            table = _solve(table, have)
            more = []
            for link, left in zip(self._links, unread, strict=True):
                new = left & have[link.atoms]
                if new.any() and (new.all() or not link.jointly):
                    more.append(link.rows if link.jointly else link.rows[new])
                    left &= ~new
            if not more:
                return {i for i, s in self.sources.items() if have[s.atoms].all()}
            table = self._stack([table, *more])

    # -- one equation -------------------------------------------------------------

    def _visit(self, eqn: JaxprEqn) -> None:
        """Set what is known of the results of an equation, from its operands."""
        moving = [i for i, a in enumerate(eqn.invars) if self._is_moving(a)]
        if not moving:
            if all(self._value(a) is not None for a in eqn.invars) and not eqn.effects:
                self._known.update(zip(eqn.outvars, _bind(eqn, self._values(eqn))))
            return
        for var in eqn.outvars:
            self._base[var] = var
        marked = self._marked.get(eqn.outvars[0])
        if marked is not None and self._is_moving(marked.argument):
            self._set(eqn, self._by_word(marked, eqn.outvars[0]))
            return
        if is_elementwise(eqn) and not _rounds(eqn):
            var, base = eqn.outvars[0], self._common_base(eqn, moving)
            waits = any(eqn.invars[i] in self._pending for i in moving)
            if base is not None and (waits or not self._is_direct(eqn, moving)):
                self._base[var] = base
                self._pending.add(var)
                return
            if base is not None:
                self._base[var] = base
        self._set(eqn, self._linear(eqn, moving) or self._direct(eqn, moving))

    def _set(self, eqn: JaxprEqn, found: list[Any] | None) -> None:
        """Keep the rows of results; those that are not known are new atoms."""
        lost = [None] * len(eqn.outvars)
        for var, rows in zip(eqn.outvars, found or lost, strict=True):
            if jnp.issubdtype(dtype_of(var), jnp.inexact):
                if rows is None:
                    rows = self._unit(self._new(_size(var)))
                self._rows[var] = rows

    def _common_base(self, eqn: JaxprEqn, moving: list[int]) -> Any:
        """The value of which each component of a result is a known function."""
        fixed = [a for i, a in enumerate(eqn.invars) if i not in moving]
        bases = {self._base.get(eqn.invars[i], eqn.invars[i]) for i in moving}
        shapes = {base.aval.shape for base in bases} | {eqn.outvars[0].aval.shape}
        known = all(self._value(a) is not None for a in fixed)
        return bases.pop() if len(bases) == len(shapes) == 1 and known else None

    def _is_direct(self, eqn: JaxprEqn, moving: list[int]) -> bool:
        """Whether the rows of an elementwise result follow from those of its operand."""
        name = eqn.primitive.name
        if len(moving) > 1 or name == "convert_element_type":
            return len(moving) == 1 and _is_real(eqn.invars[0])
        scales = name == "mul" or name == "div" and moving == [0]
        return scales or name in _SHIFTS or self._one_to_one(eqn, moving[0])

    def _direct(self, eqn: JaxprEqn, moving: list[int]) -> list[Any] | None:
        """The row of a new atom for each component, if it is one-to-one."""
        source, var = eqn.invars[moving[0]], eqn.outvars[0]
        if not is_elementwise(eqn) or len(moving) > 1:
            return None
        same = source.aval.shape == var.aval.shape
        real = _is_real(var) and _is_real(source)
        scaled = eqn.primitive.name in ("mul", "div") and _is_complex(source)
        if not same or not (real or scaled) or not self._one_to_one(eqn, moving[0]):
            return None
        return [self._linked(self._rows_of(source))]

    def _one_to_one(self, eqn: JaxprEqn, moving: int) -> bool:
        name, others = eqn.primitive.name, self._values(eqn)
        if name in ("mul", "div"):
            other = eqn.invars[1 - moving]
            if self._value(other) is None and self._is_positive(other):
                return _is_real(eqn.invars[moving]) or moving == 0 or name == "mul"
        return is_one_to_one(eqn, moving, others)

    def _resolved(self, eqn: JaxprEqn) -> None:
        """Set the rows of an elementwise result, by a test if need be."""
        var = eqn.outvars[0]
        self._pending.discard(var)
        moving = [i for i, a in enumerate(eqn.invars) if self._is_moving(a)]
        if self._is_direct(eqn, moving):
            self._set(eqn, self._linear(eqn, moving) or self._direct(eqn, moving))
            return
        found = None
        if eqn.primitive.name in ("add", "sub"):
            found = self._linear(eqn, moving)
        mixed = found is None or np.all(np.diff(found[0].indptr) > 1)
        base = self._base[var]
        if mixed and _is_real(var) and _is_real(base) and self._is_monotone(base, var):
            found = [self._linked(self._rows_of(base))]
        self._set(eqn, found)

    def _by_word(self, marked: Marked, result: Any) -> list[Any] | None:
        """Rows of the result of a marked function, after a test of its inverse."""
        true, back = (np.asarray(self._draws(v)) for v in marked)
        spread = np.max(np.abs(true - np.mean(true, axis=0)), initial=0.0)
        if not np.all(np.abs(back - true) <= _INVERTS * spread):
            raise NotInverseError
        rows = self._rows_of(marked.argument)
        if rows is None:
            return None  # an argument that is not a float
        made = self._new(_size(result))
        self._links.append(_Link(made, rows, True))
        return [self._unit(made)]

    def _linear(self, eqn: JaxprEqn, moving: list[int]) -> list[Any] | None:
        """Rows of the results of an equation that is linear, or None."""
        name, atoms = eqn.primitive.name, eqn.invars
        rows = {i: self._rows_of(atoms[i]) for i in moving}
        if any(r is None for r in rows.values()):
            return None
        if name in _REARRANGES:
            try:
                return self._rearranged(eqn, rows)
            except (TypeError, ValueError, NotImplementedError):
                return None  # it does not accept whole numbers
        if not all(jnp.issubdtype(dtype_of(v), jnp.inexact) for v in eqn.outvars):
            return None
        size = _size(eqn.outvars[0])
        zero = sparse.csr_matrix((size, self._num_atoms))
        first = rows[moving[0]]
        if name in ("add", "sub", "add_any") and is_elementwise(eqn):
            if any(r.shape[0] != size for r in rows.values()):
                return None  # a scalar that is broadcast
            right = -1.0 if name == "sub" else 1.0
            parts = [rows.get(0, zero), right * rows.get(1, zero)]
            return [_sum(*map(self._widen, parts))]
        if name in ("neg", "name"):
            return [first if name == "name" else -first]
        if name == "convert_element_type":
            if _rounds(eqn) or _is_complex(eqn.invars[0]) > _is_complex(eqn.outvars[0]):
                return None
            return [self._stack([first, zero[first.shape[0] :]])]
        if name in ("real", "imag"):
            half = first.shape[0] // 2
            return [first[:half] if name == "real" else first[half:]]
        if name == "complex":
            half = zero[: size // 2]
            return [self._stack([rows.get(0, half), rows.get(1, half)])]
        factors = [self._value(a) for i, a in enumerate(atoms) if i not in moving]
        if any(f is None or not np.all(np.isfinite(f)) for f in factors):
            return None
        conjugates = name == "conj" and first.shape[0] == size
        if name in ("mul", "div") and len(moving) == 1 and moving[0] <= (name == "mul"):
            factor = np.asarray(factors[0]) ** (-1.0 if name == "div" else 1.0)
            if first.shape[0] != size or not np.all(np.isfinite(factor)):
                return None
            return [self._widen(_scaled(first, factor))]
        if (name in _LINEAR and len(moving) == 1) or conjugates:
            return self._mapped(eqn, moving[0], first)
        return None

    def _rearranged(self, eqn: JaxprEqn, rows: Mapping[int, Any]) -> list[Any] | None:
        """Rows of the results of an equation that moves components."""
        operands = [eqn.invars[i] for i in rows]
        kinds = {_is_complex(v) for v in (*operands, *eqn.outvars)}
        if len(kinds) > 1:
            return None
        table, start = [sparse.csr_matrix((1, self._num_atoms))], 1
        parts: dict[int, list[np.ndarray]] = {}
        for i, each in rows.items():
            if not jnp.issubdtype(dtype_of(eqn.invars[i]), jnp.inexact):
                return None  # an index
            table.append(each)
            shape = eqn.invars[i].aval.shape
            labels = np.arange(start, start + each.shape[0], dtype=np.int32)
            count = 2 if _is_complex(eqn.invars[i]) else 1
            parts[i] = list(labels.reshape(count, *shape))
            start += each.shape[0]
        whole = self._stack(table)
        results: list[list[np.ndarray]] = [[] for _ in eqn.outvars]
        for part in range(2 if _is_complex(eqn.outvars[0]) else 1):
            labelled: list[Any] = []
            for i, atom in enumerate(eqn.invars):
                value = self._value(atom)
                if i in parts:
                    labelled.append(jnp.asarray(parts[i][part]))
                elif jnp.issubdtype(dtype_of(atom), jnp.inexact):
                    labelled.append(jnp.zeros(atom.aval.shape, jnp.int32))
                elif value is None:
                    return None  # an unknown index
                else:
                    labelled.append(value)
            for found, labels in zip(results, _bind(eqn, labelled), strict=True):
                found.append(np.maximum(np.asarray(labels), 0).ravel())
        return [whole[np.concatenate(found)] for found in results]

    def _mapped(self, eqn: JaxprEqn, moving: int, rows: Any) -> list[Any] | None:
        """Rows of the result of a linear map of one operand, by its matrix."""
        var, size = eqn.invars[moving], rows.shape[0]
        if size * _size(eqn.outvars[0]) > _LARGEST:
            return None
        values = self._values(eqn)

        def run(column: jax.Array) -> jax.Array:
            parts = column.reshape(-1, *var.aval.shape)
            whole = parts[0] + 1j * parts[1] if _is_complex(var) else parts[0]
            operands = [
                whole.astype(dtype_of(var)) if i == moving else v
                for i, v in enumerate(values)
            ]
            out = _bind(eqn, operands)[0].ravel()
            both = [out.real, out.imag] if jnp.iscomplexobj(out) else [out]
            return jnp.concatenate(both)

        matrix = np.asarray(jax.vmap(run, out_axes=1)(jnp.eye(size)), np.float64)
        return [_product(sparse.csr_matrix(matrix), rows)]

    # -- atoms and rows -----------------------------------------------------------

    def _new(self, count: int) -> range:
        self._num_atoms += count
        return range(self._num_atoms - count, self._num_atoms)

    def _unit(self, atoms: range) -> Any:
        entries = np.ones(len(atoms)), (np.arange(len(atoms)), np.asarray(atoms))
        shape = len(atoms), self._num_atoms
        return sparse.csr_matrix(entries, shape=shape)

    def _linked(self, rows: Any) -> Any:
        """Rows of new atoms, each a one-to-one function of one of the rows."""
        atoms = self._new(rows.shape[0])
        self._links.append(_Link(atoms, rows, False))
        return self._unit(atoms)

    def _widen(self, rows: Any) -> Any:
        rows = rows.copy()
        rows.resize(rows.shape[0], self._num_atoms)
        return rows

    def _stack(self, tables: Sequence[Any]) -> Any:
        empty = sparse.csr_matrix((0, self._num_atoms))
        return sparse.vstack([empty, *map(self._widen, tables)], format="csr")

    def _rows_of(self, atom: Any) -> Any:
        """The rows of a moving value; None if it is not a float or complex."""
        if isinstance(atom, Literal):
            return None
        if atom in self._pending:
            self._resolved(self._made_by[atom])
        if atom in self._inputs and atom not in self._rows and self._is_moving(atom):
            self._rows[atom] = self._unit(self._new(_size(atom)))
        return self._rows.get(atom)

    def _is_monotone(self, base: Any, var: Any) -> bool:
        """Whether a value is a monotone function of its base, by a test."""
        eqns = self._cone([var], stop={base})

        def run(x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
            env, switches = {base: x}, []
            for eqn in eqns:
                values = [
                    env[a] if self._is_moving(a) else _doubled(self._value(a))
                    for a in eqn.invars
                ]
                name = eqn.primitive.name
                if name in ("select_n", "sign"):
                    switches.append(jnp.sign(values[0]) if name == "sign" else values[0])
                keeps = name == "convert_element_type" and _is_real(eqn.outvars[0])
                outs = [_doubled(values[0])] if keeps else _bind(eqn, values)
                env.update(zip(eqn.outvars, outs, strict=True))
            return env[var], switches

        return is_monotone(run, self._draws(base), self._support.get(base, "real"))

    # -- values -------------------------------------------------------------------

    def _is_moving(self, atom: Any) -> bool:
        return not isinstance(atom, Literal) and atom in self._moves

    def _value(self, atom: Any) -> Any:
        """A constant; None if it is not known or moves."""
        return atom.val if isinstance(atom, Literal) else self._known.get(atom)

    def _values(self, eqn: JaxprEqn) -> list[Any]:
        return [self._value(a) for a in eqn.invars]

    def _is_positive(self, atom: Any) -> bool:
        """Whether a value that does not move is positive for all parameters."""
        value = self._value(atom)
        if value is not None:
            return bool(np.all(np.isreal(value)) and np.all(np.real(value) > 0))
        if atom not in self._positive:
            eqn = self._made_by.get(atom)
            name = "" if eqn is None else eqn.primitive.name
            self._positive[atom] = eqn is not None and (
                name in _POSITIVE
                or (name in _KEEPS_SIGN and all(map(self._is_positive, eqn.invars)))
            )
        return self._positive[atom]

    def _draws(self, var: Any) -> Any:
        """Draws of a value, with a leading axis if it moves."""
        if var in self._inputs:
            return self._inputs[var]
        eqns = self._cone([var])
        known = [v for v in self._known if not isinstance(self._known[v], Literal)]
        names = [*self._inputs, *known]

        def run(*values: Any) -> Any:
            env = dict(zip(names, values, strict=True))
            for eqn in eqns:
                operands = [
                    a.val if isinstance(a, Literal) else env[a] for a in eqn.invars
                ]
                env.update(zip(eqn.outvars, _bind(eqn, operands), strict=True))
            return env[var]

        axes = [*self._axes.values(), *[None] * len(known)]
        out = 0 if var in self._moves else None
        values = [*self._inputs.values(), *(self._known[v] for v in known)]
        return jax.jit(jax.vmap(run, in_axes=axes, out_axes=out))(*values)

    def _cone(self, wanted: Sequence[Any], stop: Collection[Any] = ()) -> list[Any]:
        """The equations that make some values from others, in order."""
        left, needed = list(wanted), set()
        while left:
            var = left.pop()
            if isinstance(var, Literal) or var in stop or var not in self._made_by:
                continue
            eqn = self._made_by[var]
            if id(eqn) not in needed and not (stop and var in self._known):
                needed.add(id(eqn))
                left += eqn.invars
        return [eqn for eqn in self.jaxpr.eqns if id(eqn) in needed]


def _solve(table: Any, have: np.ndarray) -> Any:
    """Mark the atoms that the rows of a table determine; returns the rows left."""
    while True:
        unknown = np.flatnonzero(~have)
        left = table[:, unknown]
        table = table[np.flatnonzero(np.diff(left.indptr))]
        left = table[:, unknown]
        single = np.diff(left.indptr) == 1
        found = np.unique(left[np.flatnonzero(single)].indices)
        if not len(found):
            found = _joint(left)
        if not len(found):
            return table
        have[unknown[found]] = True


def _joint(left: Any) -> np.ndarray:
    """The columns of connected blocks of a table that have full column rank."""
    num_rows, num_columns = left.shape
    graph = sparse.bmat([[None, left], [left.T, None]])
    if not left.nnz:
        return np.zeros(0, int)
    _, label = connected_components(graph, directed=False)
    found = []
    for block in np.unique(label[:num_rows]):
        rows = np.flatnonzero(label[:num_rows] == block)
        columns = np.flatnonzero(label[num_rows:] == block)
        if len(rows) < len(columns) or len(rows) * len(columns) > _LARGEST:
            continue
        dense = left[rows][:, columns].toarray()
        dense /= np.linalg.norm(dense, axis=1, keepdims=True)
        tolerance = _CANCELS * max(dense.shape)
        singular = np.linalg.svd(dense, compute_uv=False)
        if singular[-1] > tolerance * singular[0]:
            found.append(columns)
    return np.concatenate([np.zeros(0, int), *found])


def _sum(a: Any, b: Any) -> Any:
    return _without_rounding(a + b, abs(a) + abs(b))


def _product(a: Any, b: Any) -> Any:
    return _without_rounding(a @ b, abs(a) @ abs(b))


def _without_rounding(total: Any, parts: Any) -> Any:
    """The entries of a sum of which more than rounding is left."""
    kept = abs(total) > _CANCELS * parts
    found = total.multiply(kept).tocsr()
    found.eliminate_zeros()
    return found


def _scaled(rows: Any, factor: np.ndarray) -> Any:
    """Rows times a constant for each component; complex factors turn pairs."""
    half = rows.shape[0] // 2
    if not np.iscomplexobj(factor):
        each = np.broadcast_to(factor.ravel(), rows.shape[0])
        return sparse.csr_matrix(sparse.diags(each.astype(np.float64)) @ rows)
    each = np.broadcast_to(factor.ravel(), half)
    turn = sparse.bmat(
        [
            [sparse.diags(each.real), sparse.diags(-each.imag)],
            [sparse.diags(each.imag), sparse.diags(each.real)],
        ],
        format="csr",
    )
    return _product(turn, rows)


def _bind(eqn: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """The results of an equation."""
    outs = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(outs) if eqn.primitive.multiple_results else [outs]


def _doubled(value: Any) -> Any:
    """A float as a float of 64 bits; other values are not changed."""
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return value
    return jnp.asarray(value, jnp.float64)


def _is_complex(var: Any) -> bool:
    return bool(jnp.issubdtype(dtype_of(var), jnp.complexfloating))


def _is_real(var: Any) -> bool:
    return bool(jnp.issubdtype(dtype_of(var), jnp.floating))


def _size(var: Any) -> int:
    """Number of real components of a value."""
    return int(np.prod(var.aval.shape, dtype=int)) * (2 if _is_complex(var) else 1)


def _rounds(eqn: JaxprEqn) -> bool:
    """Whether it converts a float or complex number to one of fewer digits."""
    if eqn.primitive.name != "convert_element_type":
        return False
    old, new = dtype_of(eqn.invars[0]), eqn.params["new_dtype"]
    if not jnp.issubdtype(old, jnp.inexact) or not jnp.issubdtype(new, jnp.inexact):
        return jnp.issubdtype(old, jnp.inexact)  # to whole numbers
    return jnp.finfo(new).bits < min(jnp.finfo(old).bits, 32)
