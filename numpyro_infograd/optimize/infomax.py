# SPDX-License-Identifier: Apache-2.0
"""`InfoMax`: the ascent as an object with the interface of NumPyro's `SVI`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_infograd import checks
from numpyro_infograd.arguments import as_count, as_key, as_power_of_two
from numpyro_infograd.edits import append_noise
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.estimation import fit_scores
from numpyro_infograd.gradient import choose
from numpyro_infograd.noise import base_points
from numpyro_infograd.objectives import Constraint, Objective
from numpyro_infograd.optimize.annealing import Annealing
from numpyro_infograd.optimize.budgets import (
    check_constraints,
    trace_budgets,
    with_constraints,
)
from numpyro_infograd.optimize.finish import finish
from numpyro_infograd.optimize.result import Result
from numpyro_infograd.optimize.run import Run
from numpyro_infograd.optimize.step import (
    RATE,
    InfoMaxState,
    Projection,
    Setting,
    StepInfo,
    System,
    as_optax,
    ascend_many,
    check_interior,
    check_projection,
    constrained,
    project,
    scales,
    trace_update,
    unconstrained,
)
from numpyro_infograd.problem import (
    Problem,
    admit,
    densities_of,
    initial_states,
    pose,
)
from numpyro_infograd.program import Program
from numpyro_infograd.scores import Exact, resolve_method
from numpyro_infograd.scores.exact import GaussianEntropies
from numpyro_infograd.structure import StructuralModel
from numpyro_infograd.tracing import trace_model


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
        num_samples: Samples of a step, a power of two; None for the method's
            `step_samples`: 2048 for mixtures and chains, else 4096.
        projection: Function of the parameter dict, in constrained space, that is
            applied after every step (`optax.projections`). It replaces the NumPyro
            constraints of the parameters.
        subject_to: Constraints: comparisons of expectations with numbers, such as
            `Expectation(f) <= 1.0`, enforced by an augmented Lagrangian.
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
        checks.check_order("InfoMax(model, objective)", model, objective)
        check_projection(projection)
        if num_samples is not None:
            num_samples = as_power_of_two("num_samples", num_samples, 2)
        self.model = model
        self.objective = objective
        self.scores = resolve_method(scores)
        self.num_samples = num_samples
        self.projection = projection
        self.subject_to = check_constraints(subject_to)
        self.allow_jumps = allow_jumps
        self.scaled = optimizer is None
        self.optimizer = as_optax(optimizer)
        self.problem: Problem | None = None
        self._parts: tuple[Setting, System] | None = None

    # -- SVI's four methods ------------------------------------------------------

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
        params = self._pose(rng_key, args, kwargs, init_params)
        self._parts = self.make_parts(params)
        return self.start(rng_key, params)

    def update(
        self, state: InfoMaxState, *args: Any, **kwargs: Any
    ) -> tuple[InfoMaxState, StepInfo]:
        """One step of the ascent. Arguments of the model replace those of `init`.

        Without arguments, it can be called inside `jax.jit` and `jax.lax.scan`.

        Args:
            state: What `init` or `update` returned.
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Returns:
            The next state, and a `StepInfo`: a NamedTuple with parameters, gradient and
            its norm, gain in nats, and evidence about the scores.

        Raises:
            ArgumentError: Before `init`, for the state of another model, or for
                arguments that change the structure of the model.
        """
        self._check_state(state)
        assert self._parts is not None
        if args or kwargs:
            began = self._parts[1]
            self._repose(args, kwargs, self.get_params(state))
            setting, system = self.make_parts(self.get_params(state))
            # Rates and multipliers keep the units of the start of the ascent.
            budgets = system.budgets._replace(scales=began.budgets.scales)
            system = system._replace(scale=began.scale, budgets=budgets)
            self._parts = setting, system
        setting, system = self._parts
        batch = jax.tree.map(lambda x: x[None], state)
        batch, infos = ascend_many(setting, system, batch, jnp.ones(1))
        state = jax.tree.map(lambda x: x[0], batch)
        return state, jax.tree.map(lambda x: x[0, 0], infos)

    def get_params(self, state: InfoMaxState) -> dict[str, Any]:
        """Parameters of a state by name, in their shapes and constrained space.

        Raises:
            ArgumentError: Before `init`, or for the state of another model.
        """
        self._check_state(state)
        return constrained(state.unconstrained_params, self.constraints())

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
        """Ascend for `num_steps`, or until the gradient vanishes if that is None.

        Args:
            rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
            num_steps: As in `maximize`.
            *args: Arguments of the model.
            progress_bar: As in `maximize`.
            init_params: As in `maximize`.
            num_restarts: As in `maximize`.
            annealing: As in `maximize`.
            checkpoint: As in `maximize`.
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
            progress_bar,
            init_params,
            num_restarts,
            annealing,
            checkpoint,
        )

    def ascend(
        self,
        rng_key: jax.Array | None,
        num_steps: int | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        progress_bar: bool,
        init_params: Mapping[str, Any] | None,
        num_restarts: int,
        annealing: Annealing,
        checkpoint: Any,
    ) -> Result:
        """`run` with the arguments of the model as a tuple and a dict."""
        if num_steps is not None:
            num_steps = as_count("num_steps", num_steps)
        num_restarts = as_count("num_restarts", num_restarts)
        rng_key = as_key(rng_key)
        params = self._pose(rng_key, args, kwargs, init_params)
        starts = [params]
        for index in range(1, num_restarts):
            key = jax.random.fold_in(rng_key, index)
            starts.append(self._random_start(key, params))
        run = Run(self, rng_key, starts, num_steps, progress_bar, annealing, checkpoint)
        run.ascend()
        return finish(run)

    def _check_state(self, state: Any) -> None:
        """Raise unless `state` is a state of this ascent.

        Raises:
            ArgumentError: Before `init`, or for the state of another model.
        """
        if self._parts is None:
            raise ArgumentError("this InfoMax has no state yet: call init first.")
        assert self.problem is not None
        ours: Any = jax.tree.structure(self.problem.sm.params)
        known = isinstance(state, InfoMaxState)
        if not known or jax.tree.structure(state.unconstrained_params) != ours:
            raise ArgumentError(
                f"state must be an InfoMaxState of this model, got {state!r:.80}. Take "
                "the state from init, or the first output of update."
            )

    # -- posing -------------------------------------------------------------------

    def _pose(
        self, rng_key: Any, args: Any, kwargs: Any, init_params: Any
    ) -> dict[str, Any]:
        sm, params = admit(self.model, self.objective, args, kwargs, init_params)
        checks.check_tunable(sm)
        if self.projection is not None:
            params = project(self.projection, params)
        else:
            sm.check_constraints(params)
            check_interior(params, sm.constraints)
        seen = with_constraints(self.objective, self.subject_to)
        checks.check_finite(seen, sm, params)
        checks.check_gradient(seen, sm, params, self.allow_jumps)
        if isinstance(self.scores, str):
            self.problem, _ = choose(sm, self.objective, params, rng_key)
        else:
            self.problem = pose(sm, self.objective, self.scores, params, "requested")
        return params

    def _repose(self, args: Any, kwargs: Any, params: Any) -> None:
        """Use new model arguments; check again if they change the computation."""
        assert self.problem is not None
        old = self.problem
        sm = trace_model(self.model, args, kwargs)
        if sm.forward.code == (old.sm.clean or old.sm).forward.code:
            if old.sm.appended:
                sm = append_noise(sm, old.sm.appended)
            if old.exact is not None:
                exact = GaussianEntropies.of(old.objective, sm)
                self.problem = old._replace(sm=sm, exact=exact)
            else:
                densities = densities_of(sm, old.terms)
                self.problem = old._replace(sm=sm, densities=densities)
            return
        admit(self.model, self.objective, args, kwargs, params)
        seen = with_constraints(self.objective, self.subject_to)
        checks.check_finite(seen, sm, params)
        checks.check_gradient(seen, sm, params, self.allow_jumps)
        new = pose(sm, self.objective, old.method or Exact(), params, old.reason)
        if [t[1:] for t in new.terms] != [t[1:] for t in old.terms]:
            raise ArgumentError(
                "these arguments change the structure of the model, so the scores of "
                "this state do not fit it. Call init with these arguments."
            )
        self.problem = new

    def constraints(self) -> dict[str, Any] | None:
        assert self.problem is not None
        if self.projection is not None:
            return None
        return self.problem.sm.constraints

    def start(self, rng_key: jax.Array, params: Any) -> InfoMaxState:
        problem = self.problem
        assert problem is not None
        unconstrained_params = unconstrained(params, self.constraints())
        states: tuple[Any, ...] = ()
        if problem.method is not None:
            key = jax.random.fold_in(rng_key, 2**31 - 1)
            states = fit_scores(
                problem.method,
                initial_states(problem, key),
                problem.densities,
                problem.sm.forward,
                params,
                key,
            )
        return InfoMaxState(
            unconstrained_params,
            unconstrained_params,
            self.optimizer.init(unconstrained_params),
            states,
            jnp.zeros(len(self.subject_to)),
            rng_key,
            jnp.zeros((), jnp.int32),
        )

    def make_parts(self, params: Any) -> tuple[Setting, System]:
        problem = self.problem
        assert problem is not None
        method = problem.method
        size = self.num_samples or (4096 if method is None else method.step_samples)
        spec = problem.sm.spec
        unconstrained_params = unconstrained(params, self.constraints())
        scale = (
            scales(unconstrained_params, self.constraints())
            if self.scaled
            else jax.tree.map(jnp.ones_like, unconstrained_params)
        )
        opt_state = self.optimizer.init(unconstrained_params)
        means, budgets = trace_budgets(
            self.objective, self.subject_to, problem.sm, params
        )
        system = System(
            problem.sm.forward,
            problem.exact,
            problem.densities,
            problem.coefficients,
            means,
            budgets,
            base_points(spec, size),
            self.projection and Program.trace(self.projection, unconstrained_params),
            trace_update(self.optimizer, opt_state, unconstrained_params),
            scale,
            self.constraints(),
        )
        return Setting(method, spec, size), system

    def _random_start(self, key: jax.Array, params: Any) -> dict[str, Any]:
        """A random start of the same size as `params`."""
        unconstrained_params = unconstrained(params, self.constraints())
        scale = scales(unconstrained_params, self.constraints())
        leaves, tree = jax.tree.flatten(unconstrained_params)
        keys = jax.random.split(key, len(leaves))
        drawn = [
            s / RATE * jax.random.normal(k, leaf.shape, leaf.dtype)
            for leaf, s, k in zip(leaves, jax.tree.leaves(scale), keys, strict=True)
        ]
        start = constrained(jax.tree.unflatten(tree, drawn), self.constraints())
        return project(self.projection, start) if self.projection else start
