# SPDX-License-Identifier: Apache-2.0
"""A program as one list of equations, with draws of its values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import jax
from jax.extend.core import JaxprEqn, Literal

from numpyro_infograd._jaxpr_replay import replay
from numpyro_infograd._jaxpr_walk import bind, body_of
from numpyro_infograd._program import Program, close_over


class Trace:
    """A program without inner calls; see `Recovery` for the arguments.

    Attributes:
        jaxpr: The equations.
        args: The variables of the flat inputs.
        inputs: Draws of the inputs that move.
        known: Values of constants.
        made_by: The equation that makes a variable.
    """

    def __init__(
        self, program: Program, inputs: Sequence[Any], shared: Collection[int]
    ) -> None:
        code = program.code
        closed = close_over(
            lambda consts, *args: replay(
                code.jaxpr, consts, args, enter=lambda eqn, _: body_of(eqn) is not None
            )[0],
            program.consts,
            code.jaxpr,
        )
        self.jaxpr, self.args = closed.jaxpr, closed.jaxpr.invars
        self.known: dict[Any, Any] = dict(
            zip(self.jaxpr.constvars, closed.consts, strict=True)
        )
        self.known |= {self.args[i]: inputs[i] for i in shared}
        self.inputs = {
            var: inputs[i] for i, var in enumerate(self.args) if i not in shared
        }
        self.made_by = {var: eqn for eqn in self.jaxpr.eqns for var in eqn.outvars}
        self._moving = set(self.inputs)
        for eqn in self.jaxpr.eqns:
            if any(map(self.is_moving, eqn.invars)):
                self._moving.update(eqn.outvars)

    def is_moving(self, atom: Any) -> bool:
        """Whether a value depends on inputs that are not shared."""
        return not isinstance(atom, Literal) and atom in self._moving

    def moving(self, eqn: JaxprEqn) -> list[int]:
        """The operands of an equation that move, by number."""
        return [i for i, atom in enumerate(eqn.invars) if self.is_moving(atom)]

    def value(self, atom: Any) -> Any:
        """A constant; None if it is not known or moves."""
        return atom.val if isinstance(atom, Literal) else self.known.get(atom)

    def values(self, eqn: JaxprEqn) -> list[Any]:
        """The operands of an equation, as in `value`."""
        return [self.value(atom) for atom in eqn.invars]

    def draws(self, var: Any) -> Any:
        """Draws of a value that moves, with a leading axis."""
        if var in self.inputs:
            return self.inputs[var]
        eqns = self.cone([var])

        def run(*values: Any) -> Any:
            env = self.known | dict(zip(self.inputs, values, strict=True))
            for eqn in eqns:
                operands = [
                    a.val if isinstance(a, Literal) else env[a] for a in eqn.invars
                ]
                env.update(zip(eqn.outvars, bind(eqn, operands), strict=True))
            return env[var]

        return jax.jit(jax.vmap(run))(*self.inputs.values())

    def is_function(self, var: Any, source: Any) -> bool:
        """Whether a value moves with another one, and with nothing else."""
        moving = [
            atom
            for eqn in self.cone([var], stop={source})
            for atom in eqn.invars
            if self.is_moving(atom)
        ]
        others = {v for v in self.inputs if v is not source}
        return self.is_moving(var) and source in moving and not others & {*moving}

    def cone(self, wanted: Sequence[Any], stop: Collection[Any] = ()) -> list[JaxprEqn]:
        """The equations that make some values from others, in order."""
        left, needed = list(wanted), set()
        while left:
            var = left.pop()
            if isinstance(var, Literal) or var in stop or var not in self.made_by:
                continue
            eqn = self.made_by[var]
            if id(eqn) not in needed and not (stop and var in self.known):
                needed.add(id(eqn))
                left += eqn.invars
        return [eqn for eqn in self.jaxpr.eqns if id(eqn) in needed]
