# SPDX-License-Identifier: Apache-2.0
"""`InfoMax`: the ascent as an object with the interface of NumPyro's `SVI`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import as_count, as_key, as_power_of_two
from numpyro_infograd._doors import check_outside, public, without_derivative
from numpyro_infograd._objectives import Constraint, Objective, check_is_objective
from numpyro_infograd._optimize.annealing import Annealing
from numpyro_infograd._optimize.budgets import check_constraints
from numpyro_infograd._optimize.finish import finish
from numpyro_infograd._optimize.move import (
    SLOWDOWNS,
    Projection,
    as_optax,
    check_projection,
    constrained,
)
from numpyro_infograd._optimize.plan import Plan
from numpyro_infograd._optimize.result import Ending, Result
from numpyro_infograd._optimize.run import Run
from numpyro_infograd._optimize.step import Ascent, InfoMaxState, StepInfo, ascend_many
from numpyro_infograd._pairs import without_pairs
from numpyro_infograd._problem import Posed
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.scores import resolve_method


class InfoMax:
    """Maximise an objective by stochastic ascent along its information gradient.

    Args:
        model: A NumPyro model, or the result of `structural_model`.
        objective: Built from `MI`, `Entropy`, `Expectation`.
        optimizer: An optax transformation or a numpyro optimizer. It minimises the
            negative objective. None is Adam with a cosine decay and a rate scaled to
            the parameters. With a projection, its input is the part of the gradient
            along which the projection lets the parameters move.
        scores: As in `gradient`.
        num_samples: Samples of a step, as in `maximize`.
        projection: As in `maximize`. It replaces the NumPyro constraints of the
            parameters.
        subject_to: Constraints, as in `maximize`.
        allow_jumps: As in `gradient`.

    Raises:
        ArgumentError: If an argument is not of the kind described above.

    Example:
        >>> import jax, numpyro, optax, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 0.1) * x, 1))
        >>> ascent = ig.InfoMax(model, ig.MI("x", "y"), optax.adam(0.1))
        >>> state = ascent.init(jax.random.key(0))
        >>> state, info = ascent.update(state)
        >>> bool(ascent.get_params(state)["a"] > 0.15)
        True
    """

    @public
    def __init__(
        self,
        model: Callable[..., Any] | StructuralModel,
        objective: Objective,
        optimizer: Any = None,
        *,
        scores: Any = "auto",
        num_samples: int | None = None,
        projection: Projection | None = None,
        subject_to: Iterable[Constraint] | Constraint = (),
        allow_jumps: bool = False,
    ) -> None:
        check_is_objective(objective)
        check_projection(projection)
        if num_samples is not None:
            num_samples = as_power_of_two("num_samples", num_samples, 2)
        self.plan = Plan(
            model,
            objective,
            as_optax(optimizer),
            optimizer is None,
            resolve_method(scores),
            num_samples,
            projection,
            check_constraints(subject_to),
            allow_jumps,
        )
        self._made: tuple[Posed, Ascent] | None = None

    # -- SVI's four methods ------------------------------------------------------

    @public
    def init(
        self,
        rng_key: jax.Array | None,
        *args: Any,
        init_params: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> InfoMaxState:
        """Check the model, choose the score method, and fit the scores.

        Args:
            rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
            *args: Arguments of the model.
            init_params: Starting values, each in its parameter's shape; a missing one
                takes the model's value.
            **kwargs: Keyword arguments of the model.

        Returns:
            The state for `update` and `get_params`, a pytree of arrays.

        Raises:
            InfogradError: A subclass that names the site or argument at fault.
        """
        rng_key = as_key(rng_key)
        posed, params = self.plan.pose(rng_key, args, kwargs, init_params)
        self._made = posed, self.plan.make_ascent(posed, params)
        state = self.plan.start(posed, rng_key, params)
        self._opt_structure: Any = jax.tree.structure(state.opt_state)
        return state

    @public(inside=True)
    def update(
        self, state: InfoMaxState, *args: Any, **kwargs: Any
    ) -> tuple[InfoMaxState, StepInfo]:
        """One step of the ascent. Arguments of the model replace those of `init`.

        Without arguments, it can be called inside `jax.jit`, `jax.vmap` and
        `jax.lax.scan`. It has no derivative.

        Args:
            state: What `init` or `update` returned.
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Returns:
            The next state, and a `StepInfo`: a NamedTuple with parameters, gradient and
            its norm, gain in nats, the objective (NaN unless it is known exactly), and
            numbers that show how good the scores are.

        Raises:
            ArgumentError: Before `init`, for the state of another model, or for
                arguments that change the structure of the model.
            TransformationError: Inside a JAX transformation with arguments, and if a
                step is differentiated.
        """
        posed, ascent = self._made_for(state)
        if args or kwargs:
            check_outside("InfoMax.update with arguments of the model")
            params = constrained(state.unconstrained_params, ascent.move.constraints)
            posed = self.plan.pose_again(posed, args, kwargs, params)
            new = self.plan.make_ascent(posed, params)
            # Rates and multipliers keep the units of the start of the ascent.
            budgets = new.budgets._replace(scales=ascent.budgets.scales)
            ascent = replace(new.rescaled(ascent.move.scale), budgets=budgets)
            self._made = posed, ascent
        params = without_derivative(state.unconstrained_params)
        state = state._replace(unconstrained_params=params)
        batch = jax.tree.map(lambda x: x[None], state)
        batch, infos = ascend_many(ascent, batch, jnp.ones(1))
        state = jax.tree.map(lambda x: x[0], batch)
        info = jax.tree.map(lambda x: x[0, 0], infos)
        params, slope = (
            without_pairs(posed.sm.pairs, each) for each in (info.params, info.gradient)
        )
        evidence = {str(measure): each for measure, each in info.evidence.items()}
        return state, info._replace(params=params, gradient=slope, evidence=evidence)

    @public(inside=True)
    def get_params(self, state: InfoMaxState) -> dict[str, Any]:
        """The parameters of a state.

        Args:
            state: What `init` or `update` returned.

        Returns:
            A dict by name of arrays in the parameters' shapes, in constrained space.

        Raises:
            ArgumentError: Before `init`, or for the state of another model.
        """
        posed, ascent = self._made_for(state)
        params = constrained(state.unconstrained_params, ascent.move.constraints)
        return without_pairs(posed.sm.pairs, params)

    @public
    def run(
        self,
        rng_key: jax.Array | None,
        num_steps: int | None,
        *args: Any,
        progress_bar: bool = True,
        init_params: Mapping[str, Any] | None = None,
        num_restarts: int = 1,
        annealing: Annealing = None,
        checkpoint: Any = None,
        **kwargs: Any,
    ) -> Result:
        """Run the whole ascent, as `maximize` does.

        Args:
            rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
            num_steps: Number of steps; None as in `maximize`.
            *args: Arguments of the model.
            progress_bar: As in `maximize`, like the settings that follow.
            init_params: Starting values.
            num_restarts: Number of ascents.
            annealing: Variance of the noise at the start.
            checkpoint: Folder to which the run is saved.
            **kwargs: Keyword arguments of the model.

        Returns:
            A `Result`, as `maximize` does.

        Raises:
            ArgumentError: For a number of steps or restarts below one, or an annealing
                that is not positive.
            InfogradError: Another subclass, as from `maximize`.
        """
        return self.ascend(
            rng_key,
            num_steps,
            args,
            kwargs,
            progress_bar=progress_bar,
            init_params=init_params,
            num_restarts=num_restarts,
            annealing=annealing,
            checkpoint=checkpoint,
        )

    def ascend(
        self,
        rng_key: jax.Array | None,
        num_steps: int | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        progress_bar: bool,
        init_params: Mapping[str, Any] | None,
        num_restarts: int,
        annealing: Annealing,
        checkpoint: Any,
    ) -> Result:
        """`run` with the arguments of the model as a tuple and a dict.

        The default rates are a share of the parameters' sizes. They are too high for a
        large parameter that matters by small changes, as an offset does. So an ascent
        that ends worse than its start is taken again, with lower rates.
        """
        if num_steps is not None:
            num_steps = as_count("num_steps", num_steps)
        num_restarts = as_count("num_restarts", num_restarts)
        rng_key = as_key(rng_key)
        posed, params = self.plan.pose(rng_key, args, kwargs, init_params)
        keys = [jax.random.fold_in(rng_key, i) for i in range(1, num_restarts)]
        starts = [params, *(self.plan.random_start(posed, k, params) for k in keys)]
        settings = num_steps, annealing, checkpoint
        for slowdown in SLOWDOWNS:
            plan = replace(self.plan, slowdown=slowdown)
            run = Run(plan, posed, rng_key, starts, *settings)
            result = finish(run.run(progress_bar))
            # A checkpoint is of one ascent.
            if result.status.ending is not Ending.BELOW_START or checkpoint is not None:
                break
        return result

    def _made_for(self, state: Any) -> tuple[Posed, Ascent]:
        """What `init` made, after a check that `state` is a state of this ascent."""
        if self._made is None:
            raise ArgumentError("this InfoMax has no state yet: call init first.")
        ours: Any = jax.tree.structure(self._made[0].sm.params)
        known = isinstance(state, InfoMaxState)
        if not known or jax.tree.structure(state.unconstrained_params) != ours:
            raise ArgumentError(
                f"state must be an InfoMaxState of this model, got {brief(state)}. "
                "Take the state from init, or the first output of update."
            )
        if jax.tree.structure(state.opt_state) != self._opt_structure:
            raise ArgumentError(
                "state is of an InfoMax with another optimizer. Take the state from "
                "init of this one."
            )
        return self._made
