# SPDX-License-Identifier: Apache-2.0
"""One step of an ascent, as a pure function of arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._noise import NoiseSource
from numpyro_infograd._optimize.budgets import Budgets
from numpyro_infograd._optimize.move import Move, all_finite, constrained
from numpyro_infograd._problem import Problem, fit
from numpyro_infograd._pullback import pull_back
from numpyro_infograd.scores.base import Measure


class InfoMaxState(NamedTuple):
    """The state of an ascent between steps.

    Attributes:
        unconstrained_params: Parameters in the space of the optimizer: unconstrained,
            as in SVI; with a projection they stay in constrained space.
        previous: The same before the last step, to go back to if that step led to
            values that are not finite.
        opt_state: The optimizer's state.
        scores: Fitted scores, one for each entropy that hides noise.
        multipliers: Multipliers of the constraints in `subject_to`, in nats for each
            unit of relative excess.
        rng_key: Key of the run; step k uses `fold_in(rng_key, k)`.
        step: Number of steps taken.
    """

    unconstrained_params: Any
    previous: Any
    opt_state: Any
    scores: tuple[Any, ...]
    multipliers: jax.Array
    rng_key: jax.Array
    step: jax.Array


class StepInfo(NamedTuple):
    """Numbers about one step.

    Attributes:
        params: Parameters before the step, in constrained space.
        gradient_norm: Norm of the gradient in the optimised space.
        gain: First-order change over the step, in nats, of the objective with the terms
            of `subject_to`.
        objective: Value before the step if it is known exactly, else NaN.
        finite: Whether the step was finite and taken; otherwise the step before is
            undone.
        evidence: Evidence about the scores, by name and set of sites: a mixture's
            sample sizes and unexplained share; held-out gain, drift, and whether
            networks were trained at this step; Stein residuals.
        excess: Relative excess of each constraint in `subject_to`; negative inside.
        gradient: The gradient in the optimised space; with a projection, the part of
            it along which the projection lets the parameters move.
    """

    params: Any
    gradient_norm: jax.Array
    gain: jax.Array
    objective: jax.Array
    finite: jax.Array
    evidence: dict[Any, jax.Array]
    excess: jax.Array
    gradient: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Ascent:
    """What all steps of an ascent have in common: a pytree."""

    problem: Problem  # its expectations include those that `budgets` bounds
    budgets: Budgets  # bounds on expectations
    source: NoiseSource  # of one step
    move: Move  # how a step moves the parameters

    def rescaled(self, scale: Any) -> Ascent:
        """The same with other factors of the updates."""
        return replace(self, move=self.move._replace(scale=scale))


def ascent_step(
    ascent: Ascent, state: InfoMaxState, rate: jax.Array
) -> tuple[InfoMaxState, StepInfo]:
    """One step: refit the scores, compute the gradient, move the parameters."""
    problem, budgets = ascent.problem, ascent.budgets
    key = jax.random.fold_in(state.rng_key, state.step)
    fit_key, noise_key, score_key = jax.random.split(key, 3)
    params, to_unconstrained = jax.vjp(
        lambda p: constrained(p, ascent.move.constraints), state.unconstrained_params
    )

    value, gradient = jnp.asarray(jnp.nan), jax.tree.map(jnp.zeros_like, params)
    evidence: dict[Measure, jax.Array] = {}
    own = problem.expectations.coefficients
    if problem.exact is not None:
        value, gradient = jax.value_and_grad(problem.exact)(params)
        # The exact value lacks expectations that are part of the objective.
        value = jnp.where(jnp.any(own != 0), jnp.nan, value)
    scores, means = state.scores, jnp.zeros(0)
    if problem.is_sampled:
        scores = fit(problem, scores, params, fit_key, warm=True)
        noise = ascent.source(noise_key)
        pulled = pull_back(
            problem,
            scores,
            params,
            noise,
            score_key,
            expectation_coefficients=lambda m: (
                own + budgets.expectation_coefficients(state.multipliers, m)
            ),
        )
        means, evidence = pulled.means, pulled.evidence
        gradient = jax.tree.map(jnp.add, gradient, pulled.gradient)

    here = state.unconstrained_params
    gradient = to_unconstrained(gradient)[0]
    there, opt_state, gradient = ascent.move(here, state.opt_state, gradient, rate)
    multipliers = budgets.follow(state.multipliers, means, rate)
    new = InfoMaxState(
        there, here, opt_state, scores, multipliers, state.rng_key, state.step
    )
    finite = all_finite(gradient, there, scores)
    back = state._replace(unconstrained_params=state.previous)
    kept = optax.tree.where(finite, new, back)
    moved = jax.tree.map(jnp.subtract, kept.unconstrained_params, here)
    info = StepInfo(
        params,
        optax.tree.norm(gradient),
        optax.tree.vdot(jax.tree.map(jnp.nan_to_num, gradient), moved),
        value,
        finite,
        evidence,
        budgets.excess(means),
        gradient,
    )
    return kept._replace(step=state.step + 1), info


def _ascend(
    ascent: Ascent, state: InfoMaxState, rates: jax.Array
) -> tuple[InfoMaxState, StepInfo]:
    """A chunk of steps."""
    return jax.lax.scan(
        lambda carry, rate: ascent_step(ascent, carry, rate), state, rates
    )


@quick_jit
def ascend_many(
    ascent: Ascent, states: InfoMaxState, rates: jax.Array
) -> tuple[InfoMaxState, StepInfo]:
    """A chunk of steps for each restart, as one batch.

    A single restart runs without vmap: under vmap both branches of a condition run, so
    scores would be trained even if they are not stale.
    """
    if states.step.shape[0] == 1:
        alone = jax.tree.map(lambda x: x[0], states)
        found = _ascend(ascent, alone, rates)
        return jax.tree.map(lambda x: x[None], found)
    return jax.vmap(lambda s: _ascend(ascent, s, rates))(states)
