# SPDX-License-Identifier: Apache-2.0
"""One step of an ascent, as a pure function of arrays."""

from __future__ import annotations

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp
import optax

from numpyro.distributions import biject_to
from numpyro.distributions.transforms import IdentityTransform

from numpyro_infograd.arguments import explain_trace_errors
from numpyro_infograd.density import Density
from numpyro_infograd.errors import ArgumentError, ParameterError
from numpyro_infograd.estimation import fit_scores
from numpyro_infograd.noise import NoiseSpec, draw_noise
from numpyro_infograd.optimize.budgets import Budgets
from numpyro_infograd.program import Program
from numpyro_infograd.pullback import pull_back
from numpyro_infograd.scores.base import ScoreMethod
from numpyro_infograd.scores.exact import GaussianEntropies
from numpyro_infograd.terms import Means

Projection = Callable[[Any], Any]

RATE = 0.05  # peak rate of the default optimizer, as a share of the parameters' size


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
    evidence: dict[str, jax.Array]
    excess: jax.Array
    gradient: Any


class Setting(NamedTuple):
    """The static part of a step."""

    method: ScoreMethod | None
    spec: NoiseSpec
    num_samples: int


class System(NamedTuple):
    """The traced part of a step: programs with the arrays that they capture."""

    forward: Program
    exact: GaussianEntropies | None
    densities: tuple[Density, ...]
    coefficients: jax.Array
    expectations: Means
    budgets: Budgets
    points: Any
    projection: Program | None
    update: Program  # of the optimizer
    scale: Any
    constraints: dict[str, Any] | None  # None with a projection


def constrained(unconstrained_params: Any, constraints: dict[str, Any] | None) -> Any:
    """Parameters as the model sees them."""
    if constraints is None:
        return unconstrained_params
    return {
        n: jax.tree.map(biject_to(c), unconstrained_params[n])
        for n, c in constraints.items()
    }


def unconstrained(params: Any, constraints: dict[str, Any] | None) -> Any:
    """Parameters as the optimizer moves them.

    Raises:
        ArgumentError: For a constraint without a bijection from real numbers.
    """
    if constraints is None:
        return params
    found = {}
    for name, constraint in constraints.items():
        try:
            transform = biject_to(constraint)
        except NotImplementedError:
            raise ArgumentError(
                f"parameter {name!r} has the constraint {constraint}, but NumPyro has "
                "no bijection from real numbers to it. Pass a projection onto it."
            ) from None
        found[name] = jax.tree.map(transform.inv, params[name])
    return found


def check_interior(params: Any, constraints: dict[str, Any] | None) -> None:
    """Raise for a start on the boundary of its constraint: no step leaves it.

    Raises:
        ParameterError: Names the parameter and the constraint.
    """
    if constraints is None:
        return
    for name, tree in unconstrained(params, constraints).items():
        constraint = constraints[name]
        for start, leaf in zip(
            jax.tree.leaves(params[name]), jax.tree.leaves(tree), strict=True
        ):
            inside = bool(jnp.all(jnp.isfinite(leaf)))
            if _elementwise(constraint):  # NumPyro clips values at the boundary
                nudge = jnp.finfo(start.dtype).eps * jnp.abs(start) + 1e-30
                sides = (constraint(start - nudge), constraint(start + nudge))
                inside = inside and all(bool(jnp.all(side)) for side in sides)
            if not inside:
                raise ParameterError(
                    f"parameter {name!r} starts on the boundary of its constraint "
                    f"{constraint}: {np.asarray(start)}. Pass init_params inside it, "
                    "or a projection onto the constraint."
                )


def check_projection(projection: Any) -> None:
    """Raise unless `projection` is a function or None.

    Raises:
        ArgumentError: If it is something else.
    """
    if projection is not None and not callable(projection):
        raise ArgumentError(
            f"projection must be a function of the parameter dict, got {projection!r}."
        )


def project(projection: Projection, params: Any) -> dict[str, Any]:
    """The projected parameters, in their own types.

    Raises:
        ArgumentError: If the projection fails on the dict of all parameters, or returns
            something else.
    """
    shapes = jax.tree.map(jnp.shape, params)
    holds = (
        f"the dict of the parameters {', '.join(params)}. Use these names; apply a "
        "function f of one array by lambda p: {n: f(v) for n, v in p.items()}"
    )
    with explain_trace_errors("projection", holds):
        projected = jax.eval_shape(projection, params)
    if jax.tree.map(lambda x: x.shape, projected) != shapes:
        raise ArgumentError(
            "projection must return a dict like the parameters, got "
            f"{projected!r}. Return all of them, in these shapes: {shapes}."
        )
    kinds = {str(x.dtype) for x in jax.tree.leaves(projected)}
    if not all(jnp.issubdtype(kind, jnp.floating) for kind in kinds):
        raise ArgumentError(
            "projection must return floats, as the parameters are, got "
            f"{', '.join(sorted(kinds))}. Return real numbers without rounding."
        )
    moved = cast(projection(params), params)
    for name, value in moved.items():
        if not all(np.all(np.isfinite(x)) for x in jax.tree.leaves(value)):
            raise ArgumentError(
                f"projection takes parameter {name!r} from {params[name]!r:.80} to "
                f"{value!r:.80}, which is not finite. Guard its divisions and roots."
            )
    return moved


def _elementwise(constraint: Any) -> bool:
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint.event_dim == 0


def is_mapped(name: str, constraints: dict[str, Any] | None) -> bool:
    """Whether a parameter is optimised through a bijection."""
    return constraints is not None and not isinstance(
        biject_to(constraints[name]), IdentityTransform
    )


def scales(unconstrained_params: Any, constraints: dict[str, Any] | None) -> Any:
    """Peak rate of the default optimizer for each leaf: a share of the leaf's size.

    The size is at least one for coordinates of a bijection, and at least 0.3 of the
    typical size of all leaves for others.
    """
    leaves = jax.tree.leaves(unconstrained_params)
    total = sum(float(jnp.sum(x**2)) for x in leaves)
    typical = math.sqrt(total / max(sum(x.size for x in leaves), 1)) or 1.0 / 0.3

    def one(leaf: jax.Array, floor: float) -> jax.Array:
        size = float(jnp.sqrt(jnp.mean(leaf**2))) if leaf.size else 0.0
        return jnp.asarray(RATE * max(size, floor), leaf.dtype)

    rates = {}
    for name, tree in unconstrained_params.items():
        lowest = 1.0 if is_mapped(name, constraints) else 0.3 * typical
        rates[name] = jax.tree.map(lambda x, f=lowest: one(x, f), tree)
    return rates


def step(
    setting: Setting, system: System, state: InfoMaxState, rate: jax.Array
) -> tuple[InfoMaxState, StepInfo]:
    """One step: refit the scores, compute the gradient, move the parameters."""
    params = constrained(state.unconstrained_params, system.constraints)
    key = jax.random.fold_in(state.rng_key, state.step)
    fit_key, noise_key, score_key = jax.random.split(key, 3)

    value, scores = jnp.asarray(jnp.nan), state.scores
    evidence: dict[str, jax.Array] = {}
    gradient = jax.tree.map(jnp.zeros_like, params)
    if system.exact is not None:
        value, gradient = jax.value_and_grad(system.exact)(params)
        # The exact value lacks expectations that are part of the objective.
        sampled = jnp.any(system.expectations.coefficients != 0)
        value = jnp.where(sampled, jnp.nan, value)
    if setting.method is not None:
        scores = fit_scores(
            setting.method,
            scores,
            system.densities,
            system.forward,
            params,
            fit_key,
            warm=True,
        )
    means = jnp.zeros(0)
    if setting.method is not None or system.expectations.programs:
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
            expectation_coefficients=lambda m: (
                system.expectations.coefficients
                + system.budgets.expectation_coefficients(state.multipliers, m)
            ),
        )
        means = pulled.means
        gradient = jax.tree.map(jnp.add, gradient, pulled.gradient)
        evidence = pulled.evidence

    _, chain = jax.vjp(
        lambda f: constrained(f, system.constraints), state.unconstrained_params
    )
    gradient = chain(gradient)[0]
    if system.projection is not None:
        gradient = gradient_mapping(
            system.projection, state.unconstrained_params, gradient
        )
    descent = jax.tree.map(jnp.negative, gradient)
    updates, opt_state = system.update(
        descent, state.opt_state, state.unconstrained_params
    )
    updates = jax.tree.map(lambda u, s: rate * s * u, updates, system.scale)
    moved_params = optax.apply_updates(state.unconstrained_params, updates)
    moved_params = onto(system.projection, moved_params)
    multipliers = system.budgets.follow(state.multipliers, means, rate)
    new = InfoMaxState(
        moved_params,
        state.unconstrained_params,
        opt_state,
        scores,
        multipliers,
        state.rng_key,
        state.step,
    )
    back = state._replace(unconstrained_params=state.previous)
    leaves = jax.tree.leaves((gradient, moved_params, scores_of(scores)))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))
    kept = jax.tree.map(
        lambda a, b: jnp.where(finite, a, b) if _is_number(a) else a, new, back
    )
    moved = jax.tree.map(
        jnp.subtract, kept.unconstrained_params, state.unconstrained_params
    )
    gains = jax.tree.map(lambda g, m: jnp.sum(jnp.nan_to_num(g) * m), gradient, moved)
    info = StepInfo(
        params,
        optax.tree.norm(gradient),
        sum(jax.tree.leaves(gains), jnp.zeros(())),
        value,
        finite,
        evidence,
        system.budgets.excess(means),
        gradient,
    )
    return kept._replace(step=state.step + 1), info


def gradient_mapping(projection: Projection, params: Any, gradient: Any) -> Any:
    """The part of the gradient along which the projection lets the parameters move.

    It is (P(x + t g) - x) / t for a small t, which is zero exactly where no allowed
    move gains to first order. Without it, an optimizer that scales single components,
    such as Adam, would stop where the scaled gradient is normal to the constraint, not
    where the gradient is.
    """
    size = optax.tree.norm(params)
    reach = RATE * jnp.where(size > 0, size, 1.0)
    t = reach / jnp.maximum(optax.tree.norm(gradient), 1e-20)
    target = projection(jax.tree.map(lambda x, g: x + t * g, params, gradient))
    return jax.tree.map(lambda new, old: (new - old) / t, cast(target, params), params)


def cast(tree: Any, like: Any) -> Any:
    """The tree in the types of another."""
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), tree, like)


def onto(projection: Projection | None, params: Any) -> Any:
    """The projected parameters, in their own types; unchanged without projection."""
    return params if projection is None else cast(projection(params), params)


def scores_of(states: Any) -> list[jax.Array]:
    """The floating-point leaves of score states."""
    return [
        x
        for x in jax.tree.leaves(states)
        if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
    ]


def _is_number(x: Any) -> bool:
    return not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _ascend(
    setting: Setting, system: System, state: InfoMaxState, rates: jax.Array
) -> tuple[InfoMaxState, StepInfo]:
    """A chunk of steps."""
    return jax.lax.scan(
        lambda carry, rate: step(setting, system, carry, rate), state, rates
    )


@jax.jit(static_argnames=("setting",))
def ascend_many(
    setting: Setting, system: System, states: InfoMaxState, rates: jax.Array
) -> tuple[InfoMaxState, StepInfo]:
    """A chunk of steps for each restart, as one batch.

    A single restart runs without vmap: under vmap both branches of a condition run, so
    scores would be trained even if they are not stale.
    """
    if states.step.shape[0] == 1:
        alone = jax.tree.map(lambda x: x[0], states)
        found = _ascend(setting, system, alone, rates)
        return jax.tree.map(lambda x: x[None], found)
    return jax.vmap(lambda s: _ascend(setting, system, s, rates))(states)


# -- optimizers ------------------------------------------------------------


@functools.cache
def _default_optimizer() -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(b1=0.9, b2=0.95), optax.scale(-1.0))


def as_optax(optimizer: Any) -> optax.GradientTransformation:
    """The user's optimizer as an optax transformation.

    Raises:
        ArgumentError: If it is neither an optax nor a numpyro optimizer.
    """
    if optimizer is None:
        return _default_optimizer()
    made = hasattr(optimizer, "init") and not isinstance(optimizer, type)
    if made and hasattr(optimizer, "get_params"):
        return _from_numpyro(optimizer)
    if made and hasattr(optimizer, "update"):
        return optimizer
    raise ArgumentError(
        "optimizer must be an optax GradientTransformation or a numpyro optimizer, "
        f"got {optimizer!r}. Call its constructor, such as optax.adam(0.1)."
    )


def trace_update(
    optimizer: optax.GradientTransformation, opt_state: Any, params: Any
) -> Program:
    """The update of an optimizer as a program of gradient, state and parameters.

    Raises:
        ArgumentError: If it needs more, such as the objective for a line search.
    """
    try:
        return Program.trace(optimizer.update, params, opt_state, params)
    except TypeError as error:
        raise ArgumentError(
            "optimizer's update must take only a gradient, a state and parameters: an "
            "ascent has no value of the objective for a line search (optax.lbfgs) or "
            "for the detection of a plateau. Use another, such as optax.adam(0.1). The "
            f"error was: {error}"
        ) from None


@functools.lru_cache(maxsize=32)
def _from_numpyro(optimizer: Any) -> optax.GradientTransformation:
    """A NumPyro optimizer (its state holds the parameters) as an optax one."""

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        before = optimizer.get_params(state)
        state = optimizer.update(gradient, state)
        after = optimizer.get_params(state)
        return jax.tree.map(jnp.subtract, after, before), state

    return optax.GradientTransformation(optimizer.init, update)
