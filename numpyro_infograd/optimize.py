# SPDX-License-Identifier: Apache-2.0
"""Ascent along the information gradient.

`InfoMax` has the shape of NumPyro's `SVI`: `init`, `update`, `run`, `get_params`.
`maximize`, `minimize` and `maximize_mi` run it with defaults that converge untuned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
import functools
import math
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

import jax
import jax.numpy as jnp
import optax

from numpyro.distributions import biject_to

from numpyro_infograd import checks
from numpyro_infograd.errors import ArgumentError, DensityError
from numpyro_infograd.gradient import (
    Problem,
    choose,
    fit_scores,
    initial_states,
    is_sound,
    pose,
    pull_back,
    trace_expectations,
)
from numpyro_infograd.objectives import MI, Objective, Sites, Term
from numpyro_infograd.program import Program
from numpyro_infograd.scores import Denoising, Mixture, resolve_method
from numpyro_infograd.scores.base import ScoreMethod
from numpyro_infograd.scores.exact import gaussian_entropies
from numpyro_infograd.structure import (
    Density,
    NoiseSpec,
    StructuralModel,
    base_points,
    draw_noise,
)
from numpyro_infograd.tracing import structural_model
from numpyro_infograd.values import Estimate, estimate

Projection = Callable[[Any], Any]

CHUNK = 20  # steps of one compiled scan; the progress bar moves between them
CYCLE = 200  # steps of one cosine decay when the number of steps is left open
MAX_CYCLES = 10
NEGLIGIBLE = 1e-4  # nats promised by a move of one percent: the ascent has arrived
RATE = 0.05  # peak rate of the default optimizer, as a share of the parameters' size
_STEP_SAMPLES = {"Mixture": 512, "Denoising": 4096}


class InfoMaxState(NamedTuple):
    """What an ascent carries from step to step.

    Attributes:
        free: Parameters in the space that is optimised: constrained where a
            projection is given, unconstrained (as in SVI) otherwise.
        opt_state: The optimizer's state.
        scores: Fitted scores, one for each entropy that hides noise.
        rng_key: Key of the run; step k draws from `fold_in(rng_key, k)`.
        step: Number of steps taken.
    """

    free: Any
    opt_state: Any
    scores: tuple[Any, ...]
    rng_key: jax.Array
    step: jax.Array


class StepInfo(NamedTuple):
    """What one step reports.

    Attributes:
        params: Parameters before the step, in constrained space.
        gradient_norm: Norm of the gradient in the optimised space.
        gain: First-order change of the objective over the step, in nats.
        objective: Value before the step where it is known exactly, else NaN.
        finite: Whether the step was taken; otherwise the state is unchanged.
        effective_sample_size: Lowest of the mixture's, infinite for other methods.
        gradient: The gradient in the optimised space; with a projection, the part of
            it along which the constraint lets the parameters move.
    """

    params: Any
    gradient_norm: jax.Array
    gain: jax.Array
    objective: jax.Array
    finite: jax.Array
    effective_sample_size: jax.Array
    gradient: Any


@dataclass(frozen=True)
class Result:
    """Where an ascent ended.

    Attributes:
        params: The parameters, in constrained space.
        estimate: The objective there, with a standard error; None (and a reason in
            `status`) where no estimator applies.
        history: Arrays over steps: "gradient_norm", "gain", "params" (a dict),
            and "objective" where it is known exactly.
        status: How it ended, in words.
        diagnostics: Score method and why it was chosen; skipped steps; restarts.
    """

    params: dict[str, Any]
    estimate: Estimate | None
    history: dict[str, Any]
    status: str
    diagnostics: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        rows = ["Result:"]
        for name, value in self.params.items():
            leaves = jax.tree.leaves(value)
            size = sum(leaf.size for leaf in leaves)
            if len(leaves) == 1 and size <= 8:
                text = np.array2string(np.asarray(leaves[0]), precision=5)
            else:
                norm = math.sqrt(sum(float(jnp.sum(x**2)) for x in leaves))
                text = f"{size} numbers, norm {norm:.5g}"
            rows.append(f"  {name} = {text}")
        rows.append(f"  objective: {self.estimate}")
        scores = self.diagnostics.get("method", "?")
        rows.append(f"  scores: {scores} ({self.diagnostics.get('reason', '')})")
        rows.append(f"  {self.status}")
        return "\n".join(rows)


class _Setting(NamedTuple):
    """The static part of a step."""

    method: ScoreMethod | None
    terms: tuple[Term, ...]
    constraints: tuple[tuple[str, Any], ...] | None  # None with a projection
    projection: Projection | None
    optimizer: optax.GradientTransformation
    spec: NoiseSpec
    num_samples: int


class _System(NamedTuple):
    """The traced part of a step: programs and the arrays that they captured."""

    forward: Program
    densities: tuple[Density, ...]
    coefficients: jax.Array
    expectations: tuple[tuple[jax.Array, Program], ...]
    points: Any
    scale: Any


@functools.cache
def _default_optimizer() -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=0.9, b2=0.95)


class InfoMax:
    """Maximise an objective by stochastic ascent along its information gradient.

    Args:
        model: A NumPyro model.
        objective: Built from `MI`, `Entropy`, `Expectation`.
        optimizer: An optax transformation or a numpyro optimizer, descending as they
            do on the negative objective. None is Adam with a cosine decay and a rate
            scaled to the parameters.
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
        power = num_samples is None or (
            isinstance(num_samples, int)
            and num_samples > 1
            and num_samples & (num_samples - 1) == 0
        )
        if not power:
            raise ArgumentError(
                f"num_samples must be a power of two, got {num_samples!r}."
            )
        self.model = model
        self.objective = objective
        self.scores = resolve_method(scores)
        self.num_samples = num_samples
        self.projection = projection
        self.allow_jumps = allow_jumps
        self.scaled = optimizer is None
        self.optimizer = _as_optax(optimizer)
        self.problem: Problem | None = None

    # -- SVI's four methods ------------------------------------------------------

    def init(
        self,
        rng_key: jax.Array,
        *args: Any,
        init_params: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> InfoMaxState:
        """Check the model, choose the scores, fit them once.

        Args:
            rng_key: A JAX PRNG key.
            *args: Arguments of the model.
            init_params: Starting values; what is missing takes the model's.
            **kwargs: Keyword arguments of the model.
        """
        params = self._pose(rng_key, args, kwargs, init_params)
        return self._start(rng_key, params)

    def update(
        self, state: InfoMaxState, *args: Any, **kwargs: Any
    ) -> tuple[InfoMaxState, StepInfo]:
        """One step. Arguments, if any, replace those that `init` had."""
        if args or kwargs:
            self._repose(args, kwargs)
        setting, system = self._parts(self.get_params(state))
        state, infos = _ascend(setting, system, state, jnp.ones(1))
        return state, jax.tree.map(lambda x: x[0], infos)

    def get_params(self, state: InfoMaxState) -> dict[str, Any]:
        """Parameters of a state, in constrained space."""
        return _constrained(state.free, self._constraints())

    def run(
        self,
        rng_key: jax.Array,
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
            if number is not None and (not isinstance(number, int) or number < 1):
                raise ArgumentError(f"{name} must be a positive int, got {number!r}.")
        params = self._pose(rng_key, args, kwargs, init_params)
        starts = [params]
        for index in range(1, num_restarts):
            key = jax.random.fold_in(rng_key, index)
            starts.append(self._random_start(key, params, args, kwargs, init_params))
        return _Run(self, rng_key, starts, num_steps, progress_bar).result()

    # -- posing -------------------------------------------------------------------

    def _pose(
        self, rng_key: Any, args: Any, kwargs: Any, init_params: Any
    ) -> dict[str, Any]:
        sm = structural_model(self.model, *args, **kwargs)
        params = sm.complete_params(init_params)
        checks.check_objective(self.objective, sm)
        if not params:
            raise ArgumentError(
                "the model has no parameters: mark what can be tuned with "
                "numpyro.param."
            )
        if self.projection is not None:
            params = self._project(params)
        checks.check_gradient(self.objective, sm, params, self.allow_jumps)
        if isinstance(self.scores, str):
            self.problem, _ = choose(self.objective, sm, params, rng_key)
        else:
            self.problem = pose(self.objective, sm, self.scores, params, "asked for")
        return params

    def _repose(self, args: Any, kwargs: Any) -> None:
        assert self.problem is not None, "call init first"
        old = self.problem
        sm = structural_model(self.model, *args, **kwargs)
        if old.sm.appended:
            sm = sm.append_noise(old.sm.appended)
        densities = tuple(sm.density(t.sites, t.given) for t in old.terms)
        self.problem = old._replace(
            sm=sm, densities=densities if old.method is not None else ()
        )

    def _project(self, params: Any) -> dict[str, Any]:
        assert self.projection is not None
        projected = self.projection(params)
        if jax.tree.structure(projected) != jax.tree.structure(params):
            raise ArgumentError(
                "projection must return a dict of the same structure as the parameters "
                f"({', '.join(params)})."
            )
        return _cast(projected, params)

    def _constraints(self) -> tuple[tuple[str, Any], ...] | None:
        assert self.problem is not None, "call init first"
        if self.projection is not None:
            return None
        return tuple(self.problem.sm.constraints.items())

    def _start(self, rng_key: jax.Array, params: Any) -> InfoMaxState:
        problem = self.problem
        assert problem is not None
        free = _unconstrained(params, self._constraints())
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
            free, self.optimizer.init(free), states, rng_key, jnp.zeros((), jnp.int32)
        )

    def _parts(self, params: Any) -> tuple[_Setting, _System]:
        problem = self.problem
        assert problem is not None
        method = problem.method
        default = _STEP_SAMPLES.get(type(method).__name__, 4096)
        size = self.num_samples or default
        spec = problem.sm.spec
        setting = _Setting(
            method,
            problem.terms,
            self._constraints(),
            self.projection,
            self.optimizer,
            spec,
            size,
        )
        free = _unconstrained(params, self._constraints())
        scale = _scales(free) if self.scaled else jax.tree.map(jnp.ones_like, free)
        system = _System(
            problem.sm.forward,
            problem.densities,
            jnp.asarray(problem.coefficients if method is not None else ()),
            trace_expectations(problem.objective, problem.sm),
            base_points(spec, size),
            scale,
        )
        return setting, system

    def _random_start(
        self, key: jax.Array, params: Any, args: Any, kwargs: Any, init_params: Any
    ) -> dict[str, Any]:
        """A start of the same size as the given one, in a random direction."""
        del args, kwargs, init_params
        free = _unconstrained(params, self._constraints())
        scale = _scales(free)
        leaves, tree = jax.tree.flatten(free)
        keys = jax.random.split(key, len(leaves))
        drawn = [
            s / RATE * jax.random.normal(k, leaf.shape, leaf.dtype)
            for leaf, s, k in zip(leaves, jax.tree.leaves(scale), keys, strict=True)
        ]
        start = _constrained(jax.tree.unflatten(tree, drawn), self._constraints())
        return self._project(start) if self.projection is not None else start


# -- one step ---------------------------------------------------------------------


def _constrained(free: Any, constraints: Any) -> Any:
    if constraints is None:
        return free
    return {
        name: jax.tree.map(biject_to(c), free[name]) if _is_bounded(c) else free[name]
        for name, c in constraints
    }


def _unconstrained(params: Any, constraints: Any) -> Any:
    if constraints is None:
        return params
    return {
        name: jax.tree.map(biject_to(c).inv, params[name])
        if _is_bounded(c)
        else params[name]
        for name, c in constraints
    }


def _is_bounded(constraint: Any) -> bool:
    return type(constraint).__name__ not in ("_Real", "_IndependentConstraint") or (
        "real" not in repr(constraint).lower()
    )


def _scales(free: Any) -> Any:
    """Peak rate of the default optimizer for each leaf: a share of its size."""
    leaves = jax.tree.leaves(free)
    total = sum(float(jnp.sum(x**2)) for x in leaves)
    overall = math.sqrt(total / max(sum(x.size for x in leaves), 1)) or 1.0

    def one(leaf: jax.Array) -> jax.Array:
        size = float(jnp.sqrt(jnp.mean(leaf**2))) if leaf.size else 0.0
        return jnp.asarray(RATE * max(size, 0.3 * overall), leaf.dtype)

    return jax.tree.map(one, free)


def _step(
    setting: _Setting, system: _System, state: InfoMaxState, rate: jax.Array
) -> tuple[InfoMaxState, StepInfo]:
    """Refit the scores, pull the gradient back, move."""
    params = _constrained(state.free, setting.constraints)
    key = jax.random.fold_in(state.rng_key, state.step)
    fit_key, noise_key, score_key = jax.random.split(key, 3)

    def exact(params: Any) -> jax.Array:
        return gaussian_entropies(system.forward, setting.spec, setting.terms, params)

    value, scores = jnp.asarray(jnp.nan), state.scores
    smallest = jnp.asarray(jnp.inf)
    gradient = jax.tree.map(jnp.zeros_like, params)
    if setting.method is None:
        value, gradient = jax.value_and_grad(exact)(params)
        if system.expectations:
            value = jnp.asarray(jnp.nan)
    else:
        scores = fit_scores(
            setting.method,
            scores,
            system.densities,
            system.forward,
            params,
            fit_key,
            warm=True,
        )
    if setting.method is not None or system.expectations:
        noise = draw_noise(setting.spec, noise_key, setting.num_samples, system.points)
        pulled = pull_back(
            system.forward,
            system.densities,
            system.coefficients,
            system.expectations,
            setting.method,
            scores,
            params,
            noise,
            score_key,
        )
        gradient = jax.tree.map(jnp.add, gradient, pulled.gradient)
        for name, size in pulled.evidence.items():
            if name.startswith("effective_sample_size_low"):
                smallest = jnp.minimum(smallest, size)

    _, chain = jax.vjp(lambda f: _constrained(f, setting.constraints), state.free)
    gradient = chain(gradient)[0]
    if setting.projection is not None:
        gradient = _gradient_mapping(setting.projection, state.free, gradient)
    descent = jax.tree.map(jnp.negative, gradient)
    updates, opt_state = setting.optimizer.update(descent, state.opt_state, state.free)
    updates = jax.tree.map(lambda u, s: rate * s * u, updates, system.scale)
    free = optax.apply_updates(state.free, updates)
    if setting.projection is not None:
        free = _cast(setting.projection(free), state.free)
    new = InfoMaxState(free, opt_state, scores, state.rng_key, state.step)
    leaves = jax.tree.leaves((gradient, free, scores_of(scores)))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))
    kept = jax.tree.map(
        lambda a, b: jnp.where(finite, a, b) if _is_number(a) else a, new, state
    )
    moved = jax.tree.map(jnp.subtract, kept.free, state.free)
    gains = jax.tree.map(lambda g, m: jnp.sum(jnp.nan_to_num(g) * m), gradient, moved)
    info = StepInfo(
        params,
        optax.tree.norm(gradient),
        sum(jax.tree.leaves(gains), jnp.zeros(())),
        value,
        finite,
        smallest,
        gradient,
    )
    return kept._replace(step=state.step + 1), info


def _gradient_mapping(projection: Projection, free: Any, gradient: Any) -> Any:
    """The part of the gradient along which the constraint lets the parameters move.

    (P(x + t g) - x) / t for a short t: it vanishes exactly at constrained optima. An
    optimizer that scales components one by one, such as Adam, would otherwise come to
    rest where the scaled gradient, not the gradient, is normal to the constraint.
    """
    size = optax.tree.norm(free)
    reach = RATE * jnp.where(size > 0, size, 1.0)
    t = reach / jnp.maximum(optax.tree.norm(gradient), 1e-20)
    target = projection(jax.tree.map(lambda x, g: x + t * g, free, gradient))
    return jax.tree.map(lambda new, old: (new - old) / t, _cast(target, free), free)


def _cast(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), tree, like)


def scores_of(states: Any) -> list[jax.Array]:
    """The floating-point leaves of score states."""
    return [
        x
        for x in jax.tree.leaves(states)
        if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
    ]


def _is_number(x: Any) -> bool:
    return not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


@jax.jit(static_argnames=("setting",))
def _ascend(
    setting: _Setting, system: _System, state: InfoMaxState, rates: jax.Array
) -> tuple[InfoMaxState, StepInfo]:
    """A chunk of steps."""
    return jax.lax.scan(
        lambda carry, rate: _step(setting, system, carry, rate), state, rates
    )


@jax.jit(static_argnames=("setting",))
def _ascend_many(
    setting: _Setting, system: _System, states: InfoMaxState, rates: jax.Array
) -> tuple[InfoMaxState, StepInfo]:
    """A chunk of steps for each restart, as one batch."""
    return jax.vmap(lambda s: _ascend(setting, system, s, rates))(states)


# -- a whole run -------------------------------------------------------------------


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
        self._begin([ascent._start(k, p) for k, p in self._keyed(starts)])

    def _keyed(self, starts: list[Any]) -> list[tuple[jax.Array, Any]]:
        return [(jax.random.fold_in(self.rng_key, i), p) for i, p in enumerate(starts)]

    def _begin(self, states: list[InfoMaxState]) -> None:
        self.states = jax.tree.map(lambda *x: jnp.stack(x), *states)
        self.setting, self.system = self.ascent._parts(self.starts[0])

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
            for start in range(0, total, CHUNK):
                steps = np.arange(start, min(start + CHUNK, total))
                rates = np.ones(len(steps))
                if self.ascent.scaled:
                    rates = 0.5 * (1 + np.cos(np.pi * steps / total))
                rates = jnp.asarray(rates, jnp.zeros(()).dtype)
                self.states, infos = _ascend_many(
                    self.setting, self.system, self.states, rates
                )
                self.chunks.append(jax.device_get(infos))
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
            f"stopped after {done} steps while the objective still rose: is a "
            "constraint or a projection missing?"
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
        params = [_constrained(f, ascent._constraints()) for f in self._free()]
        reason = f"a mixture's effective sample size fell to {smallest:.0f}"
        ascent.problem = pose(
            problem.objective, problem.sm, Denoising(), params[0], reason
        )
        old = self.states
        self._begin([ascent._start(k, p) for k, p in self._keyed(params)])
        self.states = self.states._replace(
            opt_state=old.opt_state, rng_key=old.rng_key, step=old.step
        )

    def _free(self) -> list[Any]:
        count = self.states.step.shape[0]
        return [
            jax.tree.map(lambda x, i=i: x[i], self.states.free) for i in range(count)
        ]

    def _is_stationary(self) -> bool:
        """Whether moving on by one percent of the parameters' size promises nothing.

        The gradient is averaged over the cycle's last steps, where the parameters
        stand still, and what noise adds to its squared norm is taken off.
        """
        gradients = jax.tree.leaves(self.chunks[-1].gradient)
        for index, free in enumerate(self._free()):
            each = np.concatenate(
                [g[index].reshape(g.shape[1], -1) for g in gradients], axis=1
            ).astype(np.float64)
            noise = np.sum(np.var(each, axis=0)) / max(len(each) - 1, 1)
            norm = math.sqrt(max(np.sum(np.mean(each, axis=0) ** 2) - noise, 0.0))
            size = float(optax.tree.norm(free)) or 1.0
            if not 0.01 * size * norm <= NEGLIGIBLE:
                return False
        return True

    def _finish(self) -> Result:
        ascent = self.ascent
        problem = ascent.problem
        assert problem is not None
        infos = (
            jax.tree.map(lambda *x: np.concatenate(x, axis=1), *self.chunks)
            if (self.chunks)
            else None
        )
        finals = [_constrained(f, ascent._constraints()) for f in self._free()]
        estimates = [self._estimate(params) for params in finals]
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
        if skipped:
            status += f"; {skipped} steps were not finite and were skipped"
        if estimates[best] is None:
            status += "; no estimator of the value applies to this model"
        diagnostics = {
            "method": type(problem.method).__name__.lower()
            if problem.method
            else "exact",
            "reason": problem.reason,
            "skipped_steps": skipped,
            "restarts": [e.value if e is not None else None for e in estimates],
        }
        return Result(finals[best], estimates[best], history, status, diagnostics)

    def _estimate(self, params: Any) -> Estimate | None:
        problem = self.ascent.problem
        assert problem is not None
        try:
            return estimate(
                problem.objective,
                problem.sm,
                params=params,
                rng_key=jax.random.fold_in(self.rng_key, 7),
            )
        except DensityError:
            return None


def _as_optax(optimizer: Any) -> optax.GradientTransformation:
    """An optax transformation from what the user gave.

    Raises:
        ArgumentError: if it is neither an optax nor a numpyro optimizer.
    """
    if optimizer is None:
        descend = _default_optimizer()
        return optax.chain(descend, _NEGATE)
    if hasattr(optimizer, "init") and hasattr(optimizer, "get_params"):
        return _from_numpyro(optimizer)
    if hasattr(optimizer, "init") and hasattr(optimizer, "update"):
        return optimizer
    raise ArgumentError(
        f"optimizer must be an optax GradientTransformation or a numpyro optimizer, "
        f"got {optimizer!r}."
    )


_NEGATE = optax.scale(-1.0)


def _from_numpyro(optimizer: Any) -> optax.GradientTransformation:
    """NumPyro's optimizers carry the parameters in their state; hand out the steps."""

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        before = optimizer.get_params(state)
        state = optimizer.update(gradient, state)
        after = optimizer.get_params(state)
        return jax.tree.map(jnp.subtract, after, before), state

    return optax.GradientTransformation(optimizer.init, update)


# -- the public door ------------------------------------------------------------------


def maximize(
    objective: Objective,
    model: Callable[..., Any] | StructuralModel,
    *,
    num_steps: int | None = None,
    optimizer: Any = None,
    projection: Projection | None = None,
    scores: Any = "auto",
    num_samples: int | None = None,
    num_restarts: int = 1,
    init_params: Mapping[str, Any] | None = None,
    rng_key: jax.Array | None = None,
    progress_bar: bool = True,
    allow_jumps: bool = False,
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
) -> Result:
    """Find the parameters that maximise an objective.

    Args:
        objective: Built from `MI`, `Entropy`, `Expectation`.
        model: A NumPyro model, or the result of `structural_model`.
        num_steps: Number of steps; None runs cycles of 200 until a stationarity test
            passes.
        optimizer: An optax transformation or a numpyro optimizer; None is Adam with a
            cosine decay and a rate scaled to the parameters.
        projection: Function of the parameter dict, in constrained space, applied
            after every step (`optax.projections`). Without one, parameters with a
            NumPyro constraint are optimised in unconstrained space, as in SVI.
        scores: As in `gradient`.
        num_samples: Samples of a step, a power of two; None for the method's default.
        num_restarts: Ascents from random starts, run as one batch; the first starts
            from the model's own values. The best by estimated value is returned.
        init_params: Starting values; what is missing takes the model's.
        rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
        progress_bar: Show a bar with the current gradient norm.
        allow_jumps: As in `gradient`.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.

    Returns:
        A `Result`: parameters, value with its standard error (nats), history, status.

    Raises:
        InfogradError: a subclass that names the site or argument at fault.

    Example:
        >>> import numpyro, optax, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     p = numpyro.param("p", 0.5 * jnp.ones(2))
        ...     x = numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
        ...     noise = jnp.array([1.0, 2.0])
        ...     numpyro.sample("y", dist.Normal(jnp.sqrt(p) * x, noise).to_event(1))
        >>> power = lambda p: optax.projections.projection_simplex(p, 5.0)
        >>> result = ig.maximize(
        ...     ig.MI("x", "y"), model, projection=power, progress_bar=False
        ... )
        >>> result.params["p"].round(2)  # water-filling
        Array([4., 1.], dtype=float32)
    """
    ascent = InfoMax(
        model,
        objective,
        optimizer,
        scores=scores,
        num_samples=num_samples,
        projection=projection,
        allow_jumps=allow_jumps,
    )
    return ascent.run(
        jax.random.key(0) if rng_key is None else rng_key,
        num_steps,
        *model_args,
        progress_bar=progress_bar,
        init_params=init_params,
        num_restarts=num_restarts,
        **(model_kwargs or {}),
    )


def minimize(
    objective: Objective, model: Callable[..., Any] | StructuralModel, **settings: Any
) -> Result:
    """Find the parameters that minimise an objective; settings as for `maximize`.

    Returns:
        A `Result` whose estimate is of `objective` itself.
    """
    result = maximize(-objective, model, **settings)
    history = dict(result.history)
    for name in {"objective", "gain"} & set(history):
        history[name] = -history[name]
    value = None if result.estimate is None else -result.estimate
    restarts = [None if v is None else -v for v in result.diagnostics["restarts"]]
    diagnostics = result.diagnostics | {"restarts": restarts}
    return replace(result, estimate=value, history=history, diagnostics=diagnostics)


def maximize_mi(
    model: Callable[..., Any] | StructuralModel,
    inputs: Sites,
    outputs: Sites,
    *,
    given: Sites = (),
    **settings: Any,
) -> Result:
    """Find the parameters that maximise I(inputs; outputs | given).

    The settings are those of `maximize`.

    Example:
        >>> import numpyro, optax, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     a, b = numpyro.param("a", 1.0), numpyro.param("b", 0.0)
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal((a + b) * x, 1))
        >>> result = ig.maximize_mi(
        ...     model, "x", "y", progress_bar=False,
        ...     projection=optax.projections.projection_l2_sphere,
        ... )
        >>> round(float(result.params["b"]), 3)
        0.707
    """
    return maximize(MI(inputs, outputs, given), model, **settings)
