# SPDX-License-Identifier: Apache-2.0
"""Constraints on expectations, by an augmented Lagrangian.

Let g_i = (E[f_i] - bound_i) / scale_i be the relative excess of constraint i. The
ascent maximises

    objective - sum_i (max(0, m_i + w g_i)^2 - m_i^2) / (2 w),

with multipliers m_i. Its gradient is that of the objective minus max(0, m_i + w g_i)
times that of each g_i (Rockafellar 1973). The factor stops growing far outside a
constraint, so that single steps stay small. The multipliers change with the excess
until the excess is zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._density import draw_values
from numpyro_infograd._noise import NoiseSource
from numpyro_infograd._objectives import Constraint, Objective
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import Means, at_each, trace_expectations
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError

PENALTY = 10.0  # w above, in nats
FOLLOW = 0.1  # share of w g_i that is added to a multiplier at each step
FARTHEST = 0.3  # relative excess at which g_i is clipped
SLACK = 0.005  # relative excess up to which an ascent may stop
ROUNDING = 1e-5  # relative excess that may be rounding, at least


class Budgets(NamedTuple):
    """Bounds on combinations of expectations, as arrays."""

    # Row i combines the means into the number that constraint i bounds from above, with
    # a changed sign for a lower bound; (num_constraints, num_programs).
    weights: jax.Array
    bounds: jax.Array  # upper bounds of these numbers, (num_constraints,)
    scales: jax.Array  # units of the excess, (num_constraints,)

    @property
    def rounding(self) -> jax.Array:
        """Relative excess of each constraint that may be rounding."""
        last = 4 * jnp.finfo(self.scales.dtype).eps * jnp.abs(self.bounds)
        return ROUNDING + last / self.scales

    def excess(self, means: jax.Array) -> jax.Array:
        """How far each constraint is exceeded, relative to its scale."""
        return (self.weights @ means - self.bounds) / self.scales

    def expectation_coefficients(
        self, multipliers: jax.Array, means: jax.Array
    ) -> jax.Array:
        """What the augmented Lagrangian adds to the coefficient of each mean."""
        excess = jnp.minimum(self.excess(means), FARTHEST)
        force = jnp.maximum(multipliers + PENALTY * excess, 0.0)
        return -(force / self.scales) @ self.weights

    def follow(
        self, multipliers: jax.Array, means: jax.Array, rate: jax.Array
    ) -> jax.Array:
        """The next multipliers; their rate falls with that of the parameters.

        Far inside a bound, stale multipliers decay.
        """
        excess = self.excess(means)
        kept = jnp.where(excess < -FARTHEST, 1.0 - FOLLOW, 1.0) * multipliers
        move = rate * FOLLOW * PENALTY * jnp.clip(excess, -FARTHEST, FARTHEST)
        return jnp.maximum(kept + move, 0.0)


def is_settled(excess: np.ndarray, multipliers: np.ndarray) -> bool:
    """Whether each constraint is met, and is tight or has a zero multiplier."""
    open_gap = np.minimum(-excess, np.asarray(multipliers) / PENALTY)
    return bool(np.all(np.abs(open_gap) <= SLACK))


def multipliers_from(normals: np.ndarray, gradients: np.ndarray) -> Any:
    """Multipliers of constraints at an optimum, and their standard errors.

    There, the gradient of the objective is a sum of multipliers times the gradients of
    the constraints. `normals` are the latter, (num_constraints, num_parameters), and
    `gradients` independent estimates of the former, (num_estimates, num_parameters).
    The error includes what no multiplier explains, because then the place is not the
    optimum. NaN if a gradient is not finite; one alone has an infinite error.
    """
    if not (np.all(np.isfinite(normals)) and np.all(np.isfinite(gradients))):
        return np.full((2, len(normals)), np.nan)
    back, others = np.linalg.pinv(normals, rcond=1e-6), len(gradients) - 1
    each = gradients @ back
    found = np.maximum(np.mean(each, axis=0), 0.0)
    if not others:
        return found, np.full(len(found), np.inf)
    left = gradients - each @ normals
    square = np.sum(np.mean(left, axis=0) ** 2) - np.sum(np.var(left, axis=0)) / others
    size = np.sqrt(max(square, 0.0)) * np.linalg.norm(back, axis=0)
    return found, np.hypot(np.std(each, axis=0) / np.sqrt(others), size)


class ConstraintReport(NamedTuple):
    """A constraint at the end of an ascent.

    Attributes:
        constraint: The constraint.
        value: The expectation.
        standard_error: Standard error of the value.
        bound: The bound.
        violation: Distance of the value from the bound on the wrong side; 0 on the
            right side.
        tolerance: Largest violation that counts as met: two standard errors, and
            rounding.
        multiplier: Nats gained for each unit by which the bound is relaxed.
        multiplier_error: Standard error of the multiplier.
    """

    constraint: Constraint
    value: float
    standard_error: float
    bound: float
    violation: float
    tolerance: float
    multiplier: float
    multiplier_error: float

    @property
    def is_met(self) -> bool:
        """Whether the violation is within the tolerance."""
        return self.violation <= self.tolerance

    def __repr__(self) -> str:
        state = "met" if self.is_met else f"violated by {self.violation:.3g}"
        error = f" +- {self.standard_error:.2g}" if self.standard_error else ""
        return f"{self.constraint!r}: {self.value:.5g}{error} ({state})"


def check_constraints(subject_to: Any) -> tuple[Constraint, ...]:
    """The constraints as a tuple."""
    several = isinstance(subject_to, Iterable) and not isinstance(subject_to, str)
    found = tuple(subject_to) if several else (subject_to,)
    for item in found:
        if not isinstance(item, Constraint):
            raise ArgumentError(
                "subject_to must hold comparisons such as Expectation(f) <= 1.0, got "
                f"{brief(item)}. Compare an expectation of a function of the sites "
                "with a number; write an equality as two comparisons, <= and >=."
            )
    return found


def with_constraints(
    objective: Objective, constraints: tuple[Constraint, ...]
) -> Objective:
    """The objective plus all constrained expectations, for checks."""
    return sum((c.expectations for c in constraints), objective)


def trace_budgets(
    objective: Objective,
    constraints: tuple[Constraint, ...],
    sm: StructuralModel,
    params: Any,
) -> tuple[Means, Budgets]:
    """All expectations of an ascent that starts at `params`, and their bounds."""
    own = trace_expectations(objective, sm)
    parts = [trace_expectations(c.expectations, sm) for c in constraints]
    programs = sum((part.programs for part in parts), own.programs)
    coefficients = (
        jnp.zeros(len(programs)).at[: len(own.programs)].set(own.coefficients)
    )
    weights = np.zeros((len(parts), len(programs)))
    start = len(own.programs)
    for row, (constraint, part) in enumerate(zip(constraints, parts, strict=True)):
        stop = start + len(part.programs)
        weights[row, start:stop] = constraint.sign * np.asarray(part.coefficients)
        start = stop
    bounds = np.array([c.sign * c.bound for c in constraints])
    means = Means(coefficients, programs)
    scales = np.ones(0)
    if constraints:
        source = NoiseSource.independent(sm.spec, 1024)
        values = draw_values(sm.forward, params, source, jax.random.key(9))
        each = np.asarray(at_each(means, values))
        scales = _scales(weights @ each, bounds)
    return means, Budgets(*map(jnp.asarray, (weights, bounds, scales)))


def _scales(draws: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Units of the excess, from draws at the start.

    The size of the bound, or the distance of the start and its draws from the bound if
    that is smaller. So a constant added to both sides does not loosen the tolerance.
    """
    mean, deviation = draws.mean(axis=1), draws.std(axis=1)
    near = np.maximum(np.abs(mean - bounds), deviation)
    size = np.abs(bounds)
    scales = np.where(size > 0, np.minimum(size, near), near)
    scales = np.maximum(scales, 1e-3 * np.maximum(size, np.abs(mean)))
    return np.where((scales > 0) & np.isfinite(scales), scales, 1.0)
