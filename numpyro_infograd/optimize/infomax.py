# SPDX-License-Identifier: Apache-2.0
"""The ascent as an object in the shape of NumPyro's `SVI`, and its host loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import math
from typing import Any

import numpy as np
from tqdm.auto import tqdm

import jax
import jax.numpy as jnp
import optax

from numpyro_infograd import checks
from numpyro_infograd.arguments import as_key, as_power_of_two, tracing
from numpyro_infograd.errors import ArgumentError, InfogradError
from numpyro_infograd.gradient import choose, fit_scores, is_sound
from numpyro_infograd.noise import base_points
from numpyro_infograd.objectives import Objective, trace_expectations
from numpyro_infograd.optimize.result import Result
from numpyro_infograd.optimize.step import (
    RATE,
    InfoMaxState,
    Projection,
    Setting,
    StepInfo,
    System,
    as_optax,
    ascend_many,
    cast,
    check_interior,
    constrained,
    scales,
    unconstrained,
)
from numpyro_infograd.problem import (
    Problem,
    admit,
    initial_states,
    pose,
)
from numpyro_infograd.program import Program
from numpyro_infograd.scores import Denoising, Exact, Mixture, resolve_method
from numpyro_infograd.scores.exact import GaussianEntropies
from numpyro_infograd.structure import StructuralModel
from numpyro_infograd.tracing import structural_model
from numpyro_infograd.values import Estimate, value_of

CHUNK = 20  # steps of one compiled scan; the progress bar moves between them
CYCLE = 200  # steps of one cosine decay when the number of steps is left open
MAX_CYCLES = 5
DRIFT = (
    0.5  # share of the optimizer's top speed at which a parameter is still on its way
)
NEGLIGIBLE = 3e-4  # nats (or share of the gain) that a move of one percent promises
_STEP_SAMPLES = {"Mixture": 2048, "Denoising": 4096}


class InfoMax:
    """Maximise an objective by stochastic ascent along its information gradient.

    Args:
        model: A NumPyro model.
        objective: Built from `MI`, `Entropy`, `Expectation`.
        optimizer: An optax transformation or a numpyro optimizer, descending as they
            do on the negative objective. None is Adam with a cosine decay and a rate
            scaled to the parameters. With a projection it sees the part of the
            gradient along which the constraint lets the parameters move.
        scores: As in `gradient`.
        num_samples: Samples of a step, a power of two; None for the method's default.
        projection: Function of the parameter dict, in constrained space, applied
            after every step (`optax.projections`). With one, the parameters' NumPyro
            constraints are not applied as well.
        allow_jumps: As in `gradient`.

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
        allow_jumps: bool = False,
    ) -> None:
        if projection is not None and not callable(projection):
            raise ArgumentError(
                f"projection must be a function of the parameter dict, got "
                f"{projection!r}."
            )
        if num_samples is not None:
            num_samples = as_power_of_two("num_samples", num_samples, 2)
        self.model = model
        self.objective = objective
        self.scores = resolve_method(scores)
        self.num_samples = num_samples
        self.projection = projection
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
        """Check the model, choose the scores, fit them once.

        Args:
            rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
            *args: Arguments of the model.
            init_params: Starting values; what is missing takes the model's.
            **kwargs: Keyword arguments of the model.
        """
        rng_key = as_key(rng_key)
        params = self._pose(rng_key, args, kwargs, init_params)
        self._parts = None
        return self._start(rng_key, params)

    def update(
        self, state: InfoMaxState, *args: Any, **kwargs: Any
    ) -> tuple[InfoMaxState, StepInfo]:
        """One step. Arguments, if any, replace those that `init` had."""
        if args or kwargs:
            self._repose(args, kwargs, self.get_params(state))
            self._parts = None
        if self._parts is None:
            self._parts = self._make_parts(self.get_params(state))
        setting, system = self._parts
        batch = jax.tree.map(lambda x: x[None], state)
        batch, infos = ascend_many(setting, system, batch, jnp.ones(1))
        state = jax.tree.map(lambda x: x[0], batch)
        return state, jax.tree.map(lambda x: x[0, 0], infos)

    def get_params(self, state: InfoMaxState) -> dict[str, Any]:
        """Parameters of a state, in constrained space."""
        return constrained(state.free, self._constraints())

    def run(
        self,
        rng_key: jax.Array | None,
        num_steps: int | None,
        *args: Any,
        progress_bar: bool = True,
        init_params: Mapping[str, Any] | None = None,
        num_restarts: int = 1,
        **kwargs: Any,
    ) -> Result:
        """Ascend for `num_steps`, or until the gradient vanishes if that is None.

        Raises:
            ArgumentError: for a number of steps or restarts below one.
        """
        for name, number in (("num_steps", num_steps), ("num_restarts", num_restarts)):
            whole = isinstance(number, (int, np.integer))
            if number is not None and not (whole and number > 0):
                raise ArgumentError(f"{name} must be a positive int, got {number!r}.")
        rng_key = as_key(rng_key)
        params = self._pose(rng_key, args, kwargs, init_params)
        starts = [params]
        for index in range(1, num_restarts):
            key = jax.random.fold_in(rng_key, index)
            starts.append(self._random_start(key, params))
        return _Run(self, rng_key, starts, num_steps, progress_bar).result()

    # -- posing -------------------------------------------------------------------

    def _pose(
        self, rng_key: Any, args: Any, kwargs: Any, init_params: Any
    ) -> dict[str, Any]:
        sm, params = admit(self.objective, self.model, args, kwargs, init_params)
        if not params:
            raise ArgumentError(
                "the model has no parameters: mark what can be tuned with "
                "numpyro.param."
            )
        if self.projection is not None:
            params = self._project(params)
        else:
            sm.check_constraints(params)
            check_interior(params, sm.constraints)
        sm.check_values(self.objective.sites, params)
        checks.check_gradient(self.objective, sm, params, self.allow_jumps)
        if isinstance(self.scores, str):
            self.problem, _ = choose(self.objective, sm, params, rng_key)
        else:
            self.problem = pose(self.objective, sm, self.scores, params, "asked for")
        return params

    def _repose(self, args: Any, kwargs: Any, params: Any) -> None:
        """Take new arguments; where they change the computation, check all anew."""
        assert self.problem is not None, "call init first"
        old = self.problem
        sm = structural_model(self.model, *args, **kwargs)
        if sm.forward.code == (old.sm.clean or old.sm).forward.code:
            if old.sm.appended:
                sm = sm.append_noise(old.sm.appended)
            if old.exact is not None:
                exact = GaussianEntropies.of(old.objective, sm)
                self.problem = old._replace(sm=sm, exact=exact)
            else:
                densities = tuple(sm.density(t.sites, t.given) for t in old.terms)
                self.problem = old._replace(sm=sm, densities=densities)
            return
        admit(self.objective, self.model, args, kwargs, params)
        sm.check_values(self.objective.sites, params)
        checks.check_gradient(self.objective, sm, params, self.allow_jumps)
        new = pose(self.objective, sm, old.method or Exact(), params, old.reason)
        if [t[1:] for t in new.terms] != [t[1:] for t in old.terms]:
            raise ArgumentError(
                "the arguments give the model another structure, for which the scores "
                "of this state are not meant. Call init with them."
            )
        self.problem = new

    def _project(self, params: Any) -> dict[str, Any]:
        assert self.projection is not None
        shapes = jax.tree.map(jnp.shape, params)
        with tracing("projection", f"the parameters {', '.join(params)}. Use these"):
            projected = jax.eval_shape(self.projection, params)
        if jax.tree.map(lambda x: x.shape, projected) != shapes:
            raise ArgumentError(
                "projection must return a dict like the parameters, got "
                f"{projected!r}. Return all of them, in these shapes: {shapes}."
            )
        return cast(self.projection(params), params)

    def _constraints(self) -> dict[str, Any] | None:
        assert self.problem is not None, "call init first"
        if self.projection is not None:
            return None
        return self.problem.sm.constraints

    def _start(self, rng_key: jax.Array, params: Any) -> InfoMaxState:
        problem = self.problem
        assert problem is not None
        free = unconstrained(params, self._constraints())
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
            free,
            free,
            self.optimizer.init(free),
            states,
            rng_key,
            jnp.zeros((), jnp.int32),
        )

    def _make_parts(self, params: Any) -> tuple[Setting, System]:
        problem = self.problem
        assert problem is not None
        method = problem.method
        default = _STEP_SAMPLES.get(type(method).__name__, 4096)
        size = self.num_samples or default
        spec = problem.sm.spec
        free = unconstrained(params, self._constraints())
        scale = (
            scales(free, self._constraints())
            if self.scaled
            else jax.tree.map(jnp.ones_like, free)
        )
        opt_state = self.optimizer.init(free)
        system = System(
            problem.sm.forward,
            problem.exact,
            problem.densities,
            problem.coefficients,
            trace_expectations(problem.objective, problem.sm),
            base_points(spec, size),
            self.projection and Program.trace(self.projection, free),
            Program.trace(self.optimizer.update, free, opt_state, free),
            scale,
            self._constraints(),
        )
        return Setting(method, spec, size), system

    def _random_start(self, key: jax.Array, params: Any) -> dict[str, Any]:
        """A start of the same size as the given one, in a random direction."""
        free = unconstrained(params, self._constraints())
        scale = scales(free, self._constraints())
        leaves, tree = jax.tree.flatten(free)
        keys = jax.random.split(key, len(leaves))
        drawn = [
            s / RATE * jax.random.normal(k, leaf.shape, leaf.dtype)
            for leaf, s, k in zip(leaves, jax.tree.leaves(scale), keys, strict=True)
        ]
        start = constrained(jax.tree.unflatten(tree, drawn), self._constraints())
        return self._project(start) if self.projection is not None else start


class _Run:
    """The host's side of an ascent: chunks, progress, interruption, when to stop."""

    def __init__(
        self,
        ascent: InfoMax,
        rng_key: jax.Array,
        starts: list[Any],
        num_steps: int | None,
        progress_bar: bool,
    ) -> None:
        self.ascent, self.rng_key, self.starts = ascent, rng_key, starts
        self.num_steps, self.progress_bar = num_steps, progress_bar
        self.chunks: list[StepInfo] = []
        self.status = ""
        self.middle: Any = None  # parameters in the middle of a cycle
        self._begin([ascent._start(k, p) for k, p in self._keyed(starts)])

    def _keyed(self, starts: list[Any]) -> list[tuple[jax.Array, Any]]:
        return [(jax.random.fold_in(self.rng_key, i), p) for i, p in enumerate(starts)]

    def _begin(self, states: list[InfoMaxState]) -> None:
        self.states = jax.tree.map(lambda *x: jnp.stack(x), *states)
        self.setting, self.system = self.ascent._make_parts(self.starts[0])

    def result(self) -> Result:
        """Ascend, choose the best restart, estimate the objective there."""
        total = self.num_steps or CYCLE
        bar = tqdm(total=total, disable=not self.progress_bar, desc="ascent")
        try:
            with bar:
                self._ascend(total, bar)
        except KeyboardInterrupt:
            self.status = "interrupted by the user"
        return self._finish()

    def _ascend(self, total: int, bar: Any) -> None:
        for cycle in range(1 if self.num_steps else MAX_CYCLES):
            if cycle:
                self._rescale()
            for start in range(0, total, CHUNK):
                if start == total // 2:
                    self.middle = self.states.free
                steps = np.arange(start, min(start + CHUNK, total))
                decay = _decay(steps, total)
                rates = jnp.asarray(
                    decay if self.ascent.scaled else np.ones(len(steps))
                )
                rates = rates.astype(jnp.zeros(()).dtype)
                self.states, infos = ascend_many(
                    self.setting, self.system, self.states, rates
                )
                self.chunks.append(jax.device_get(infos))
                if len(self.chunks) > 2:  # only the last two gradients are looked at
                    self.chunks[-3] = self.chunks[-3]._replace(gradient=None)
                bar.update(len(steps))
                norm = float(np.min(infos.gradient_norm[:, -1]))
                bar.set_postfix_str(f"gradient norm {norm:.3g}")
                self._watch(infos)
            done = sum(c.finite.shape[1] for c in self.chunks)
            if self.num_steps:
                self.status = f"took all of num_steps={total} steps"
                return
            if self._is_stationary():
                self.status = f"converged after {done} steps"
                return
            if cycle + 1 < MAX_CYCLES:
                bar.total += CYCLE
                bar.refresh()
        self.status = (
            f"stopped after {done} steps while the gradient still promised a rise: is "
            "a constraint or a projection missing?"
        )

    def _watch(self, infos: StepInfo) -> None:
        """Under "auto", leave a mixture whose effective sample size gave out."""
        ascent, problem = self.ascent, self.ascent.problem
        assert problem is not None
        automatic = isinstance(ascent.scores, str)
        if not automatic or not isinstance(problem.method, Mixture):
            return
        smallest = float(np.min(infos.effective_sample_size))
        if is_sound({"effective_sample_size_low": smallest}):
            return
        params = [constrained(f, ascent._constraints()) for f in self._free()]
        reason = f"a mixture's effective sample size fell to {smallest:.0f}"
        ascent.problem = pose(
            problem.objective, problem.sm, Denoising(), params[0], reason
        )
        old, scale = self.states, self.system.scale
        self._begin([ascent._start(k, p) for k, p in self._keyed(params)])
        self.states = self.states._replace(
            opt_state=old.opt_state, rng_key=old.rng_key, step=old.step
        )
        self.system = self.system._replace(scale=scale)

    def _free(self) -> list[Any]:
        count = self.states.step.shape[0]
        return [
            jax.tree.map(lambda x, i=i: x[i], self.states.free) for i in range(count)
        ]

    def _rescale(self) -> None:
        """A new cycle: rates to the size that the parameters have by now."""
        if self.ascent.scaled:
            scale = scales(self.states.free, self.ascent._constraints())
            self.system = self.system._replace(scale=scale)

    def _is_stationary(self) -> bool:
        """Whether no restart gains by moving on, be it by a percent or as it has."""
        return all(
            max(self._nudge(i), self._drift(i))
            <= NEGLIGIBLE * max(1.0, self._total_gain(i))
            for i in range(len(self.starts))
        )

    def _drift(self, index: int) -> float:
        """What another cycle promises (nats) along what is still on its way.

        The default optimizer moves a parameter by its rate at most. One that went on
        at that speed to the end of the cycle was stopped by the rate, not by the
        gradient, which may then be small and the optimum far away.
        """
        if not self.ascent.scaled:
            return 0.0
        share = float(np.sum(_decay(np.arange(CYCLE // 2, CYCLE), CYCLE)))
        ratio = float(np.sum(_decay(np.arange(CYCLE), CYCLE))) / share
        promised = 0.0
        for gradient, free, middle, scale in zip(
            *map(
                jax.tree.leaves,
                (
                    self.chunks[-1].gradient,
                    self.states.free,
                    self.middle,
                    self.system.scale,
                ),
            ),
            strict=True,
        ):
            moved = np.asarray(free[index] - middle[index])
            drifts = np.abs(moved) > DRIFT * share * np.asarray(scale)
            promised += float(
                np.vdot(np.mean(gradient[index], axis=0), ratio * drifts * moved)
            )
        return promised

    def _nudge(self, index: int) -> float:
        """What a move by one percent of the parameters' size promises, in nats.

        The squared norm of the gradient is the product of its means over the last two
        chunks of a cycle, where the parameters stand still and the noise is fresh: so
        noise adds nothing to it on average.
        """
        before, last = (jax.tree.leaves(chunk.gradient) for chunk in self.chunks[-2:])
        product = sum(
            float(np.vdot(np.mean(a[index], axis=0), np.mean(b[index], axis=0)))
            for a, b in zip(before, last, strict=True)
        )
        size = float(optax.tree.norm(self._free()[index])) or 1.0
        return 0.01 * size * math.sqrt(max(product, 0.0))

    def _total_gain(self, index: int) -> float:
        """First-order estimate of how much a restart has gained so far, in nats."""
        return float(sum(np.nansum(chunk.gain[index]) for chunk in self.chunks))

    def _finish(self) -> Result:
        ascent = self.ascent
        problem = ascent.problem
        assert problem is not None
        infos = (
            jax.tree.map(
                lambda *x: np.concatenate(x, axis=1),
                *(chunk._replace(gradient=None) for chunk in self.chunks),
            )
            if self.chunks
            else None
        )
        ends = [self._end(index) for index in range(len(self.starts))]
        finals, estimates, troubles = zip(*ends, strict=True)
        best = 0
        if len(finals) > 1:
            values = [e.value if e is not None else -np.inf for e in estimates]
            best = int(np.argmax(values))
        history: dict[str, Any] = {}
        skipped = 0
        if infos is not None:
            pick = jax.tree.map(lambda x: x[best], infos)
            history = {
                "gradient_norm": pick.gradient_norm,
                "gain": pick.gain,
                "params": pick.params,
                "finite": pick.finite,
            }
            if np.all(np.isfinite(pick.objective)):
                history["objective"] = pick.objective
            skipped = int(np.sum(~pick.finite))
        status = self.status
        if self._fell(best, estimates[best]):
            count = 0 if infos is None else infos.finite.shape[1]
            status = (
                f"diverged: after {count} steps the objective is worse than at the "
                "start. Lower the learning rate of the optimizer"
            )
        if infos is not None and infos.gradient_norm[best, 0] == 0:
            status += self._why_at_rest()
        if skipped:
            status += f"; {skipped} steps were not finite and were skipped"
        if estimates[best] is None:
            status += f"; no value: {troubles[best]}"
        diagnostics = {
            "method": problem.method_name,
            "reason": problem.reason,
            "skipped_steps": skipped,
            "restarts": [e.value if e is not None else None for e in estimates],
        }
        return Result(finals[best], estimates[best], history, status, diagnostics)

    def _why_at_rest(self) -> str:
        """What it may mean that the gradient was zero at the start."""
        problem = self.ascent.problem
        assert problem is not None
        sites = problem.objective.sites
        if not problem.objective.expectations and not problem.sm.params_of(sites):
            return f"; no parameter reaches {', '.join(map(repr, sites))}"
        if self.ascent.projection is not None:
            return "; the projection let nothing move from the start"
        return (
            "; the gradient was zero at the start, which may be a saddle: try other "
            "init_params or num_restarts"
        )

    def _fell(self, index: int, end: Estimate | None) -> bool:
        """Whether an optimizer from outside led away from the maximum."""
        if self.ascent.scaled or not self.chunks:
            return False
        start, _ = self._value(self.starts[index])
        return start is not None and (end is None or end.upper < start.lower)

    def _end(self, index: int) -> tuple[Any, Estimate | None, str]:
        """Where a restart ended, its value, or why it has none.

        The last step has not been looked at yet: if it led out of the domain, the
        point before it counts.
        """
        trouble = ""
        for free in (self.states.free, self.states.previous):
            free = jax.tree.map(lambda x: x[index], free)
            params = constrained(free, self.ascent._constraints())
            value, why = self._value(params)
            if value is not None:
                return params, value, ""
            trouble = trouble or why
        return params, None, trouble

    def _value(self, params: Any) -> tuple[Estimate | None, str]:
        """The objective at some parameters, or why it has no value there."""
        problem = self.ascent.problem
        assert problem is not None
        key = jax.random.fold_in(self.rng_key, 7)
        try:
            value = value_of(problem.objective, problem.sm, params, key)
        except InfogradError as error:
            return None, str(error)
        if math.isfinite(value.value):
            return value, ""
        return None, "it is not finite at the last parameters"


def _decay(steps: np.ndarray, total: int) -> np.ndarray:
    """Share of the peak rate at each step of a cycle."""
    return 0.5 * (1 + np.cos(np.pi * steps / total))
