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

import jax
from jax.extend.core import JaxprEqn, Literal
import jax.numpy as jnp

from numpyro_infograd._injective import marked_calls
from numpyro_infograd._jaxpr_walk import bind, dtype_of, is_inexact
from numpyro_infograd._program import Program
from numpyro_infograd._recovery.equations import (
    doubled,
    is_complex,
    is_elementwise,
    is_one_to_one,
    is_real,
    rounds,
    shape_of,
    size_of,
)
from numpyro_infograd._recovery.monotone import is_monotone
from numpyro_infograd._recovery.rows import LARGEST, product, scaled, solve, total
from numpyro_infograd._recovery.trace import Trace

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
_INVERTS = 0.01  # largest error of an inverse, of the spread of its draws


class NotInverseError(Exception):
    """The inverse of a marked function does not return its argument."""


class _Link(NamedTuple):
    """Atoms from which rows can be computed: each its own, or all rows from all."""

    atoms: range
    rows: Any
    jointly: bool


class Recovery:
    """A program, the rows of its values, and what can be computed back from them.

    `sources` gives the support of each flat input that is a source, `inputs` a batch of
    draws for each flat input; those in `shared` are constants without a batch.
    """

    def __init__(
        self,
        program: Program,
        sources: Mapping[int, str],
        inputs: Sequence[Any],
        shared: Collection[int],
    ) -> None:
        self.trace = Trace(program, inputs, shared)
        self._marked = marked_calls(self.trace.jaxpr.eqns)
        self._rows: dict[Any, Any] = {}
        self._base: dict[Any, Any] = {}
        self._links: list[_Link] = []
        self._num_atoms = 0
        self._visited: set[int] = set()
        self._pending: set[Any] = set()
        self.sources: dict[int, range] = {}  # their atoms
        self._support: dict[Any, str] = {}
        for index, support in sources.items():
            var = self.trace.args[index]
            if is_inexact(var):
                self.sources[index] = self._new(size_of(var))
                self._rows[var] = self._unit(self.sources[index])
                self._support[var] = support

    # -- the public part ----------------------------------------------------------

    def read(self, outputs: Collection[int]) -> Any:
        """The rows of some flat outputs, or None."""
        wanted = [self.trace.jaxpr.outvars[i] for i in outputs]
        for eqn in self.trace.cone(wanted):
            if id(eqn) not in self._visited:
                self._visited.add(id(eqn))
                self._visit(eqn)
        found = [self._rows_of(v) for v in wanted]
        return None if any(r is None for r in found) else self._stack(found)

    def recovered(self, known: Collection[int], rows: Sequence[Any]) -> set[int]:
        """The sources that known sources and rows determine completely."""
        have = np.zeros(self._num_atoms, bool)
        for index in known:
            if index in self.sources:
                have[self.sources[index]] = True
        table = self._stack(rows)
        unread = [np.ones(len(link.atoms), bool) for link in self._links]
        while True:
            table = solve(table, have)
            more = []
            for link, left in zip(self._links, unread, strict=True):
                new = left & have[link.atoms]
                if new.any() and (new.all() or not link.jointly):
                    more.append(link.rows if link.jointly else link.rows[new])
                    left &= ~new
            if not more:
                return {i for i, atoms in self.sources.items() if have[atoms].all()}
            table = self._stack([table, *more])

    # -- one equation -------------------------------------------------------------

    def _visit(self, eqn: JaxprEqn) -> None:
        """Set what is known of the results of an equation, from its operands."""
        moving = self.trace.moving(eqn)
        if not moving:
            values = self.trace.values(eqn)
            if not eqn.effects and all(v is not None for v in values):
                made = bind(eqn, values)
                self.trace.known.update(zip(eqn.outvars, made, strict=True))
            return
        for var in eqn.outvars:
            self._base[var] = var
        if marked := self._marked.get(eqn.outvars[0]):
            self._set(eqn, self._by_word(*marked, eqn.outvars[0]))
            return
        if is_elementwise(eqn) and not rounds(eqn):
            var, base = eqn.outvars[0], self._common_base(eqn, moving)
            waits = any(eqn.invars[i] in self._pending for i in moving)
            if base is not None:
                self._base[var] = base
                if waits or not self._is_direct(eqn, moving):
                    self._pending.add(var)
                    return
        self._set(eqn, self._linear(eqn, moving) or self._direct(eqn, moving))

    def _set(self, eqn: JaxprEqn, found: list[Any] | None) -> None:
        """Keep the rows of results; those that are not known are new atoms."""
        lost = [None] * len(eqn.outvars)
        for var, rows in zip(eqn.outvars, found or lost, strict=True):
            if is_inexact(var):
                if rows is None:
                    rows = self._unit(self._new(size_of(var)))
                self._rows[var] = rows

    def _common_base(self, eqn: JaxprEqn, moving: list[int]) -> Any:
        """The value of which each component of a result is a known function."""
        fixed = [a for i, a in enumerate(eqn.invars) if i not in moving]
        bases = {self._base.get(eqn.invars[i], eqn.invars[i]) for i in moving}
        shapes = {shape_of(base) for base in bases} | {shape_of(eqn.outvars[0])}
        known = all(self.trace.value(a) is not None for a in fixed)
        return bases.pop() if len(bases) == len(shapes) == 1 and known else None

    def _is_direct(self, eqn: JaxprEqn, moving: list[int]) -> bool:
        """Whether the rows of a result follow from those of its operand."""
        name = eqn.primitive.name
        if len(moving) > 1 or name == "convert_element_type":
            return len(moving) == 1 and is_real(eqn.invars[0])
        scales = name == "mul" or name == "div" and moving == [0]
        return scales or name in _SHIFTS or self._one_to_one(eqn, moving[0])

    def _direct(self, eqn: JaxprEqn, moving: list[int]) -> list[Any] | None:
        """The row of a new atom for each component, if it is one-to-one."""
        source, var = eqn.invars[moving[0]], eqn.outvars[0]
        if not is_elementwise(eqn) or len(moving) > 1:
            return None
        same = shape_of(source) == shape_of(var)
        real = is_real(var) and is_real(source)
        if not same or not real or not self._one_to_one(eqn, moving[0]):
            return None
        return [self._linked(self._rows_of(source))]

    def _one_to_one(self, eqn: JaxprEqn, moving: int) -> bool:
        return is_one_to_one(eqn, moving, self.trace.values(eqn))

    def _resolved(self, eqn: JaxprEqn) -> None:
        """Set the rows of an elementwise result, by a test if need be."""
        var, moving = eqn.outvars[0], self.trace.moving(eqn)
        self._pending.discard(var)
        if self._is_direct(eqn, moving):
            self._set(eqn, self._linear(eqn, moving) or self._direct(eqn, moving))
            return
        found = None
        if eqn.primitive.name in ("add", "sub"):
            found = self._linear(eqn, moving)
        mixed = found is None or np.all(np.diff(found[0].indptr) > 1)
        base = self._base[var]
        if mixed and is_real(var) and is_real(base) and self._is_monotone(base, var):
            found = [self._linked(self._rows_of(base))]
        self._set(eqn, found)

    def _by_word(self, argument: Any, returned: Any, result: Any) -> list[Any] | None:
        """Rows of the result of a marked function, after a test of its inverse."""
        chain = (result, argument), (returned, result)
        if not all(self.trace.is_function(*pair) for pair in chain):
            raise NotInverseError("reads other random values than its argument")
        true, back = (np.asarray(self.trace.draws(v)) for v in (argument, returned))
        spread = np.max(np.abs(true - np.mean(true, axis=0)), initial=0.0)
        if not np.all(np.abs(back - true) <= _INVERTS * spread):
            raise NotInverseError("does not return the argument at draws of the model")
        rows = self._rows_of(argument)
        if rows is None:
            return None  # an argument that is not a float
        made = self._new(size_of(result))
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
        if not all(is_inexact(v) for v in eqn.outvars):
            return None
        size = size_of(eqn.outvars[0])
        zero = sparse.csr_matrix((size, self._num_atoms))
        first = rows[moving[0]]
        if name in ("add", "sub") and is_elementwise(eqn):
            if any(r.shape[0] != size for r in rows.values()):
                return None  # a scalar that is broadcast
            right = -1.0 if name == "sub" else 1.0
            parts = [rows.get(0, zero), right * rows.get(1, zero)]
            return [total(*map(self._widen, parts))]
        if name in ("neg", "name"):
            return [first if name == "name" else -first]
        if name == "convert_element_type":
            if rounds(eqn) or is_complex(eqn.invars[0]) > is_complex(eqn.outvars[0]):
                return None
            return [self._stack([first, zero[first.shape[0] :]])]
        if name in ("real", "imag"):
            half = first.shape[0] // 2
            return [first[:half] if name == "real" else first[half:]]
        if name == "complex":
            half = zero[: size // 2]
            return [self._stack([rows.get(0, half), rows.get(1, half)])]
        factors = [self.trace.value(a) for i, a in enumerate(atoms) if i not in moving]
        if any(f is None or not np.all(np.isfinite(f)) for f in factors):
            return None
        conjugates = name == "conj" and first.shape[0] == size
        if name in ("mul", "div") and len(moving) == 1 and moving[0] <= (name == "mul"):
            factor = np.asarray(factors[0]) ** (-1.0 if name == "div" else 1.0)
            if first.shape[0] != size or not np.all(np.isfinite(factor)):
                return None
            return [self._widen(scaled(first, factor))]
        linear = name in _LINEAR and len(moving) == 1
        if name == "triangular_solve":  # linear in the right-hand side alone
            linear = moving == [1]
        if linear or conjugates:
            return self._mapped(eqn, moving[0], first)
        return None

    def _rearranged(self, eqn: JaxprEqn, rows: Mapping[int, Any]) -> list[Any] | None:
        """Rows of the results of an equation that moves components."""
        operands = [eqn.invars[i] for i in rows]
        kinds = {is_complex(v) for v in (*operands, *eqn.outvars)}
        if len(kinds) > 1:
            return None
        count = 2 if True in kinds else 1  # real and imaginary parts
        table, start = [sparse.csr_matrix((1, self._num_atoms))], 1
        parts: dict[int, np.ndarray] = {}
        for i, each in rows.items():
            if not is_inexact(eqn.invars[i]):
                return None  # an index
            table.append(each)
            labels = np.arange(start, start + each.shape[0], dtype=np.int32)
            parts[i] = labels.reshape(count, *shape_of(eqn.invars[i]))
            start += each.shape[0]
        whole = self._stack(table)
        results: list[list[np.ndarray]] = [[] for _ in eqn.outvars]
        for part in range(count):
            labelled: list[Any] = []
            for i, atom in enumerate(eqn.invars):
                value = self.trace.value(atom)
                if i in parts:
                    labelled.append(jnp.asarray(parts[i][part]))
                elif is_inexact(atom):
                    labelled.append(jnp.zeros(shape_of(atom), jnp.int32))
                elif value is None:
                    return None  # an unknown index
                else:
                    labelled.append(value)
            for found, labels in zip(results, bind(eqn, labelled), strict=True):
                found.append(np.maximum(np.asarray(labels), 0).ravel())
        return [whole[np.concatenate(found)] for found in results]

    def _mapped(self, eqn: JaxprEqn, moving: int, rows: Any) -> list[Any] | None:
        """Rows of the result of a linear map of one operand, by its matrix."""
        var, size = eqn.invars[moving], rows.shape[0]
        if size * size_of(eqn.outvars[0]) > LARGEST:
            return None
        values = self.trace.values(eqn)

        def run(column: jax.Array) -> jax.Array:
            parts = column.reshape(-1, *shape_of(var))
            whole = parts[0] + 1j * parts[1] if is_complex(var) else parts[0]
            operands = [
                whole.astype(dtype_of(var)) if i == moving else v
                for i, v in enumerate(values)
            ]
            out = bind(eqn, operands)[0].ravel()
            both = [out.real, out.imag] if jnp.iscomplexobj(out) else [out]
            return jnp.concatenate(both)

        matrix = np.asarray(jax.vmap(run, out_axes=1)(jnp.eye(size)), np.float64)
        return [product(sparse.csr_matrix(matrix), rows)]

    # -- atoms and rows -----------------------------------------------------------

    def _new(self, count: int) -> range:
        self._num_atoms += count
        return range(self._num_atoms - count, self._num_atoms)

    def _unit(self, atoms: range) -> Any:
        entries = np.ones(len(atoms)), (np.arange(len(atoms)), np.asarray(atoms))
        return sparse.csr_matrix(entries, shape=(len(atoms), self._num_atoms))

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
            self._resolved(self.trace.made_by[atom])
        if atom in self.trace.inputs and atom not in self._rows:
            self._rows[atom] = self._unit(self._new(size_of(atom)))
        return self._rows.get(atom)

    def _is_monotone(self, base: Any, var: Any) -> bool:
        """Whether a value is a monotone function of its base, by a test."""
        eqns = self.trace.cone([var], stop={base})

        def run(x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
            env, switches = {base: x}, []
            for eqn in eqns:
                values = [
                    env[a] if self.trace.is_moving(a) else doubled(self.trace.value(a))
                    for a in eqn.invars
                ]
                name = eqn.primitive.name
                if name in ("select_n", "sign"):
                    switches.append(
                        jnp.sign(values[0]) if name == "sign" else values[0]
                    )
                keeps = name == "convert_element_type" and is_real(eqn.outvars[0])
                outs = [jnp.float64(values[0])] if keeps else bind(eqn, values)
                env.update(zip(eqn.outvars, outs, strict=True))
            return env[var], switches

        return is_monotone(run, self.trace.draws(base), self._support.get(base, "real"))
