# SPDX-License-Identifier: Apache-2.0
"""Constraints on expectations, by an augmented Lagrangian.

With the relative excess g_i = (E[f_i] - bound_i) / scale_i of each constraint, an
ascent climbs

    objective - sum_i (max(0, m_i + w g_i)^2 - m_i^2) / (2 w),

whose gradient is that of the objective with price max(0, m_i + w g_i) on each g_i
(Rockafellar 1973). The multipliers m_i follow the excess until it is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.objectives import Constraint, Means, Objective, trace_expectations
from numpyro_infograd.structure import StructuralModel

PENALTY = 10.0  # w above, in nats
FOLLOW = 0.1  # share of the augmented step that a multiplier takes at each step
FARTHEST = 0.3  # relative excess beyond which a multiplier goes no faster
SLACK = 0.005  # relative excess at which a constraint counts as met


class Budgets(NamedTuple):
    """Bounds on combinations of expectations, as arrays.

    Attributes:
        weights: Row i combines the means into what constraint i bounds; negative for
            a lower bound, (num_constraints, num_programs).
        bounds: Upper bounds of these, (num_constraints,).
        scales: What an excess is measured by: the size of the bound, or 1 for 0.
    """

    weights: jax.Array
    bounds: jax.Array
    scales: jax.Array

    def excess(self, means: jax.Array) -> jax.Array:
        """How far each constraint is exceeded, relative to its scale."""
        return (self.weights @ means - self.bounds) / self.scales

    def price(self, multipliers: jax.Array, means: jax.Array) -> jax.Array:
        """What the augmented Lagrangian adds to the coefficient of each mean."""
        force = jnp.maximum(multipliers + PENALTY * self.excess(means), 0.0)
        return -(force / self.scales) @ self.weights

    def follow(
        self, multipliers: jax.Array, means: jax.Array, rate: jax.Array
    ) -> jax.Array:
        """The next multipliers; they slow down with the parameters."""
        excess = jnp.clip(self.excess(means), -FARTHEST, FARTHEST)
        return jnp.maximum(multipliers + rate * FOLLOW * PENALTY * excess, 0.0)


def is_settled(excess: np.ndarray, multipliers: np.ndarray) -> bool:
    """Whether each constraint is met, and either tight or without a price."""
    open_gap = np.minimum(-excess, np.asarray(multipliers) / PENALTY)
    return bool(np.all(np.abs(open_gap) <= SLACK))


class ConstraintReport(NamedTuple):
    """How a constraint stands at the end of an ascent.

    Attributes:
        constraint: What was asked for.
        value: The expectation.
        standard_error: Of the value.
        bound: Its bound.
        violation: By how much the value is on the wrong side; 0 if it is not.
        multiplier: What a unit more of the bound is worth, in nats.
    """

    constraint: Constraint
    value: float
    standard_error: float
    bound: float
    violation: float
    multiplier: float

    @property
    def is_met(self) -> bool:
        """Whether the value is inside, up to half a percent and two standard errors."""
        slack = SLACK * (abs(self.bound) or 1.0) + 2 * self.standard_error
        return self.violation <= slack

    def __repr__(self) -> str:
        state = "met" if self.is_met else f"violated by {self.violation:.3g}"
        return f"{self.constraint!r}: {self.value:.5g} ({state})"


def check_constraints(subject_to: Any) -> tuple[Constraint, ...]:
    """The constraints as a tuple.

    Raises:
        ArgumentError: if something else is among them.
    """
    listed = (subject_to,) if isinstance(subject_to, Constraint) else subject_to
    if not isinstance(listed, Iterable):
        listed = (listed,)
    found = tuple(listed)
    for item in found:
        if not isinstance(item, Constraint):
            raise ArgumentError(
                f"subject_to must hold comparisons such as Expectation(f) <= 1.0, got "
                f"{item!r}."
            )
    return found


def with_constraints(
    objective: Objective, constraints: tuple[Constraint, ...]
) -> Objective:
    """The objective with every constrained expectation at weight one, for checks."""
    return sum((c.expectations for c in constraints), objective)


def trace_budgets(
    objective: Objective, constraints: tuple[Constraint, ...], sm: StructuralModel
) -> tuple[Means, Budgets]:
    """All expectations of an ascent, and the bounds on some of them."""
    own = trace_expectations(objective, sm)
    parts = [trace_expectations(c.expectations, sm) for c in constraints]
    programs = sum((part.programs for part in parts), own.programs)
    coefficients = (
        jnp.zeros(len(programs)).at[: len(own.programs)].set(own.coefficients)
    )
    weights = jnp.zeros((len(parts), len(programs)))
    bounds = []
    start = len(own.programs)
    for row, (constraint, part) in enumerate(zip(constraints, parts, strict=True)):
        sign = 1.0 if constraint.sense == "<=" else -1.0
        stop = start + len(part.programs)
        weights = weights.at[row, start:stop].set(sign * part.coefficients)
        bounds.append(sign * float(constraint.bound))
        start = stop
    array = jnp.asarray(bounds, weights.dtype)
    scales = jnp.where(array == 0, 1.0, jnp.abs(array))
    return Means(coefficients, programs), Budgets(weights, array, scales)
