# SPDX-License-Identifier: Apache-2.0
"""The arguments of an ascent, and the ascent that they make of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from numpyro_infograd import _checks
from numpyro_infograd._gradient import pose_by
from numpyro_infograd._noise import NoiseSource, spare_key
from numpyro_infograd._objectives import Constraint, Objective
from numpyro_infograd._optimize.budgets import trace_budgets, with_constraints
from numpyro_infograd._optimize.move import (
    RATE,
    Move,
    Projection,
    as_start,
    constrained,
    project,
    projection_of,
    scales,
    unconstrained,
)
from numpyro_infograd._optimize.step import Ascent, InfoMaxState
from numpyro_infograd._problem import (
    Posed,
    appends_noise,
    enter,
    fit_anew,
    pose,
    pose_again,
    with_expectations,
)
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._tracing import trace_model
from numpyro_infograd.errors import ArgumentError

_FEWEST = 2048  # samples of a step with drawn sites or constraints


@dataclass(frozen=True)
class Plan:
    """The arguments of an ascent, after checks."""

    model: Callable[..., Any] | StructuralModel
    objective: Objective
    optimizer: optax.GradientTransformation
    is_default: bool  # whether the optimizer's rates are scaled to the parameters
    scores: Any  # "auto" or a method
    num_samples: int | None  # of a step
    projection: Projection | None
    subject_to: tuple[Constraint, ...]
    allow_jumps: bool
    slowdown: float = 1.0  # of the rates of the default optimizer

    def pose(
        self, rng_key: Any, args: Any, kwargs: Any, init_params: Any
    ) -> tuple[Posed, dict[str, Any]]:
        """The posed problem and where the ascent starts."""
        sm, seen, params = self._enter(self.model, args, kwargs, init_params)
        _checks.check_tunable(sm)
        params = as_start(
            projection_of(self.projection, sm.pairs), params, sm.constraints
        )
        self._check(sm, seen, params)
        return pose_by(sm, seen, self.scores, params, rng_key), params

    def pose_again(self, old: Posed, args: Any, kwargs: Any, params: Any) -> Posed:
        """Use new model arguments; check again if they change the computation."""
        sm = trace_model(self.model, args, kwargs)
        same = sm.forward.code == (old.sm.clean or old.sm).forward.code
        if same and old.objective is self.objective:
            return pose_again(old, sm, params)
        sm, seen, _ = self._enter(sm, (), {}, params)
        self._check(sm, seen, params)
        new = pose(sm, seen, old.method, params, old.reason)
        if [t[1:] for t in new.terms] != [t[1:] for t in old.terms]:
            raise ArgumentError(
                "these arguments change the structure of the model, so the scores of "
                "this state do not fit it. Call init with these arguments."
            )
        return new

    def _enter(self, model: Any, args: Any, kwargs: Any, params: Any) -> Any:
        keeps = appends_noise(self.scores)
        return enter(model, self.objective, args, kwargs, params, keeps_readouts=keeps)

    def _check(self, sm: StructuralModel, objective: Objective, params: Any) -> None:
        """Raise for an objective or constraint without a right gradient."""
        seen = with_constraints(objective, self.subject_to)
        _checks.check_finite(seen, sm, params)
        _checks.check_gradient(seen, sm, params, self.allow_jumps)

    def constraints(self, posed: Posed) -> dict[str, Any] | None:
        """Constraints of the parameters; None with a projection."""
        return None if self.projection is not None else posed.sm.constraints

    def start(self, posed: Posed, rng_key: jax.Array, params: Any) -> InfoMaxState:
        """The state before the first step."""
        key = spare_key(rng_key)
        start = unconstrained(params, self.constraints(posed))
        problem = posed.problem
        return InfoMaxState(
            start,
            start,
            self.optimizer.init(start),
            fit_anew(problem, params, key),
            jnp.zeros(len(self.subject_to)),
            rng_key,
            jnp.zeros((), jnp.int32),
        )

    def make_ascent(self, posed: Posed, params: Any) -> Ascent:
        """What all steps of an ascent from these parameters have in common."""
        constraints, method = self.constraints(posed), posed.problem.method
        size = 4096 if method is None else method.step_samples
        if posed.problem.chance or self.subject_to:
            size = max(size, _FEWEST)  # chains do not reduce the noise of these
        start = unconstrained(params, constraints)
        scale = self.scales(start, constraints) if self.is_default else None
        means, budgets = trace_budgets(
            posed.objective, self.subject_to, posed.sm, params
        )
        return Ascent(
            with_expectations(posed, means),
            budgets,
            NoiseSource.of(posed.sm.spec, self.num_samples or size),
            Move.trace(
                start,
                self.optimizer,
                projection_of(self.projection, posed.sm.pairs),
                constraints,
                scale,
            ),
        )

    def scales(self, start: Any, constraints: dict[str, Any] | None) -> Any:
        """The rates of the default optimizer from a start, in unconstrained space."""
        return jax.tree.map(lambda s: s / self.slowdown, scales(start, constraints))

    def random_start(self, posed: Posed, key: jax.Array, params: Any) -> Any:
        """A random start of the same size as `params`."""
        constraints = self.constraints(posed)
        given = unconstrained(params, constraints)
        sizes = jax.tree.map(lambda s: s / RATE, scales(given, constraints))
        normal = optax.tree.random_like(key, given, jax.random.normal)
        start = constrained(jax.tree.map(jnp.multiply, sizes, normal), constraints)
        projection = projection_of(self.projection, posed.sm.pairs)
        return project(projection, start) if projection else start
