# SPDX-License-Identifier: Apache-2.0
"""Ascent along the information gradient, with defaults that need no tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
import os
from typing import Any

import jax

from numpyro_infograd._arguments import as_args, use_mesh
from numpyro_infograd._doors import public
from numpyro_infograd._objectives import (
    MI,
    Constraint,
    Objective,
    Sites,
    check_is_objective,
)
from numpyro_infograd._optimize.annealing import Annealing
from numpyro_infograd._optimize.infomax import InfoMax
from numpyro_infograd._optimize.move import Projection
from numpyro_infograd._optimize.result import Ending, Result, Status
from numpyro_infograd._optimize.step import InfoMaxState, StepInfo
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd.errors import ConstraintError

__all__ = [
    "Ending",
    "InfoMax",
    "InfoMaxState",
    "Result",
    "Status",
    "StepInfo",
    "maximize",
    "maximize_mi",
    "minimize",
]


@public
def maximize(
    model: Callable[..., Any] | StructuralModel,
    objective: Objective,
    *,
    num_steps: int | None = None,
    optimizer: Any = None,
    projection: Projection | None = None,
    subject_to: Iterable[Constraint] | Constraint = (),
    scores: Any = "auto",
    num_samples: int | None = None,
    num_restarts: int = 1,
    annealing: Annealing = None,
    init_params: Mapping[str, Any] | None = None,
    rng_key: jax.Array | None = None,
    progress_bar: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    allow_jumps: bool = False,
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Result:
    """Find the parameters that maximise an objective.

    Args:
        model: A NumPyro model, or the result of `structural_model`.
        objective: Built from `MI`, `Entropy`, `Expectation`.
        num_steps: Number of steps, exactly. None runs up to 5 cycles of 200 steps,
            until more steps would gain less than 0.02 % of the whole gain, or 0.0002
            nats if the whole gain is below one nat. An exact objective then ends with a
            climb by projected gradients.
        optimizer: An optax transformation or a numpyro optimizer; None is Adam with a
            cosine decay and a rate scaled to the parameters. With None, an ascent that
            ends worse than its start is taken again with a tenth of this rate, up to
            three times, unless it has a `checkpoint`.
        projection: Function of the parameter dict, in constrained space, that is
            applied after every step (`optax.projections`). Without one, parameters with
            a NumPyro constraint are optimised in unconstrained space, as in SVI.
        subject_to: Constraints: comparisons of expectations with numbers, such as
            `Expectation(f) <= 1.0` or `>=`, enforced by an augmented Lagrangian.
        scores: As in `gradient`.
        num_samples: Samples of a step, a power of two; None for the method's
            `step_samples`: 512 for "mcmc" and "contrastive", 2048 for mixtures, else
            4096; at least 2048 with drawn sites or `subject_to`. Drawn sites are those
            whose draws have no derivative in a parameter that reaches them.
        num_restarts: Number of ascents, run as one batch. The first starts from
            `init_params`, the others from random values. The one with the best
            estimated value is returned.
        annealing: Variance of Gaussian noise, relative to that of a site, that is
            appended at the start to the sites of the objective that a parameter
            reaches; or a dict of variances by site. The noise falls to zero over the
            first half of the steps (of the first cycle). The ascent can then escape
            local optima that disappear under noise.
        init_params: Starting values, each in its parameter's shape; a missing one takes
            the model's value.
        rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
        progress_bar: Whether to show a bar with the current gradient norm.
        checkpoint: Folder to which Orbax saves the run, about every second (between
            chunks of 20 steps) and at an interruption. The same call continues the run,
            with the same numbers as a run without interruption. If the run has ended,
            the call returns its result. A run of another model or other settings raises
            an error.
        allow_jumps: As in `gradient`.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.
        mesh: Devices to split the samples over; their number is a power of two.

    Returns:
        A `Result`: parameters, value with standard error (nats), history and status.

    Raises:
        InfogradError: A subclass that names the site or argument at fault.
        ConstraintError: If `num_steps` is None and the ascent found no parameters that
            satisfy `subject_to`.

    Example:
        >>> import jax.numpy as jnp, numpyro, optax, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     p = numpyro.param("p", 0.5 * jnp.ones(2))
        ...     x = numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
        ...     noise = jnp.array([1.0, 2.0])
        ...     numpyro.sample("y", dist.Normal(jnp.sqrt(p) * x, noise).to_event(1))
        >>> power = lambda p: optax.projections.projection_simplex(p, 5.0)
        >>> result = ig.maximize(
        ...     model, ig.MI("x", "y"), projection=power, progress_bar=False
        ... )
        >>> result.params["p"].round(2)  # water-filling
        Array([4., 1.], dtype=float32)
    """
    check_is_objective(objective)
    args, kwargs = as_args(model_args, model_kwargs)
    ascent = InfoMax(
        model,
        objective,
        optimizer,
        scores=scores,
        num_samples=num_samples,
        projection=projection,
        subject_to=subject_to,
        allow_jumps=allow_jumps,
    )
    with use_mesh(mesh):
        return ascent.ascend(
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


@public(settings_of=maximize)
def minimize(
    model: Callable[..., Any] | StructuralModel, objective: Objective, **settings: Any
) -> Result:
    """Find the parameters that minimise an objective.

    Args:
        model: A NumPyro model, or the result of `structural_model`.
        objective: Built from `MI`, `Entropy`, `Expectation`.
        **settings: As for `maximize`.

    Returns:
        A `Result`; its estimate in nats is that of `objective`, not of its negative.

    Raises:
        InfogradError: A subclass that names the site or argument at fault.

    Example:
        >>> import numpyro, optax, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     a, b = numpyro.param("a", 1.0), numpyro.param("b", 0.0)
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal((a + b) * x, 1))
        >>> result = ig.minimize(
        ...     model, ig.MI("x", "y"), progress_bar=False,
        ...     projection=optax.projections.projection_l2_sphere,
        ... )
        >>> round(float(result.params["b"]), 3)  # the paths cancel
        -0.707
        >>> abs(result.estimate.value) < 1e-5
        True
    """
    check_is_objective(objective)
    try:
        return _negated(maximize(model, -objective, **settings))
    except ConstraintError as error:
        error.result = _negated(error.result)
        raise


def _negated(result: Result) -> Result:
    """The result of maximising -objective, as a result for the objective."""

    def negated(history: dict[str, Any]) -> dict[str, Any]:
        signed = {"objective", "gain"} & set(history)
        return history | {name: -history[name] for name in signed}

    value = None if result.estimate is None else -result.estimate
    restarts = [None if v is None else -v for v in result.diagnostics["restarts"]]
    diagnostics = result.diagnostics | {"restarts": restarts}
    return replace(
        result,
        estimate=value,
        history=negated(result.history),
        diagnostics=diagnostics,
        histories=tuple(map(negated, result.histories)),
    )


@public(settings_of=maximize)
def maximize_mi(
    model: Callable[..., Any] | StructuralModel,
    inputs: Sites,
    outputs: Sites,
    *,
    given: Sites = (),
    **settings: Any,
) -> Result:
    """Find the parameters that maximise I(inputs; outputs | given).

    Args:
        model: A NumPyro model, or the result of `structural_model`.
        inputs: A site name or several.
        outputs: A site name or several.
        given: Sites to condition on.
        **settings: As for `maximize`.

    Returns:
        A `Result`: parameters, information with standard error (nats), history and
        status.

    Raises:
        InfogradError: A subclass that names the site or argument at fault.

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
    return maximize(model, MI(inputs, outputs, given), **settings)
