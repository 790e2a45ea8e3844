# SPDX-License-Identifier: Apache-2.0
"""Scores trained once for a whole range of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp

from numpyro.distributions import Distribution

from numpyro_infograd import _checks
from numpyro_infograd._arguments import as_args, as_key, as_power_of_two, is_real
from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._density import Density
from numpyro_infograd._doors import public
from numpyro_infograd._noise import NoiseSource, sobol_points, subkeys
from numpyro_infograd._objectives import Objective, check_is_objective
from numpyro_infograd._problem import appends_noise, enter, pose
from numpyro_infograd._program import Program
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError, ScoreError
from numpyro_infograd.scores import resolve_method
from numpyro_infograd.scores.base import sequence_after
from numpyro_infograd.scores.learned import Learned
from numpyro_infograd.scores.pool import share_of, with_noise
from numpyro_infograd.scores.pretrained import Pretrained, Range

_LONGER = 5  # training steps, in units of a fit at one value of the parameters
_LARGER = 8  # samples, in units of the pool of such a fit


@public
def pretrain_scores(
    model: Callable[..., Any] | StructuralModel,
    objective: Objective,
    over: Mapping[str, Any],
    *,
    scores: Any = "denoising",
    num_points: int = 256,
    rng_key: jax.Array | None = None,
    allow_jumps: bool = False,
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
) -> Pretrained:
    """Train scores s(y; params) once for a range of parameters.

    The networks take the values and the parameters as inputs. Pass the result as
    `scores=`. Then a sweep or an ascent trains no network, and fits only the moments at
    each point.

    Args:
        model: A NumPyro model, or the result of `structural_model`.
        objective: An objective with the entropies whose scores are needed.
        over: For every parameter that reaches the objective, bounds `(low, high)`,
            which are numbers or arrays of its shape, or a NumPyro distribution of its
            shape. Then the range is that of `num_points` draws.
        scores: "denoising", "sliced", "flow", or an object of these methods.
        num_points: Number of parameter values for the training, a power of two.
        rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
        allow_jumps: As in `gradient`.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.

    Returns:
        A score method. For parameters outside the range it raises an error. An ascent
        that leaves the range stops soon after, and its status says so.

    Raises:
        InfogradError: A subclass that names the site or argument at fault.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     gain = numpyro.param("gain", 1.0)
        ...     numpyro.sample("y", dist.Normal(jnp.tanh(gain * x), 0.5))
        >>> trained = ig.pretrain_scores(model, ig.MI("x", "y"), {"gain": (0.0, 3.0)})
        >>> g = ig.gradient(model, ig.MI("x", "y"), params={"gain": 1}, scores=trained)
        >>> abs(float(g.value["gain"]) - 0.25256) < 0.005
        True
    """
    check_is_objective(objective)
    key = as_key(rng_key)
    args, kwargs = as_args(model_args, model_kwargs)
    method = resolve_method(scores)
    if not isinstance(method, Learned):
        raise ArgumentError(
            f"pretrain_scores needs a method that learns scores, got {scores!r}. Use "
            "'denoising', 'sliced' or 'flow'."
        )
    as_power_of_two("num_points", num_points, 16)
    sm, objective, initial = enter(
        model, objective, args, kwargs, None, keeps_readouts=appends_noise(method)
    )
    _checks.check_tunable(sm)
    _checks.check_real_params(sm)
    needed = sm.params_of(objective.sites)
    _check_names(over, needed, sm)
    names = tuple(name for name in sm.params if name in over)
    draw_key, fit_key = subkeys(key, 2)
    drawn, ranges = _draw(over, names, initial, num_points, draw_key)
    first = {n: jax.tree.map(lambda x: x[0], v) for n, v in drawn.items()}
    params = initial | first
    _check_constraints(drawn, sm)
    _checks.check_finite(objective, sm, params)
    _checks.check_gradient(objective, sm, params, allow_jumps)
    problem = pose(sm, objective, method, params).problem
    trained: dict[Any, Any] = {}
    size = max(_LARGER * method.pool_size // num_points, 16 * method.num_networks)
    for i, density in enumerate(problem.densities):
        if density.is_known:
            continue
        method.ensemble(density).check()
        networks = _train(
            method,
            density,
            problem.forward,
            initial,
            drawn,
            ranges,
            NoiseSource.of(with_noise(density), share_of(size, method.num_networks)),
            jax.random.fold_in(fit_key, i),
            names=names,
        )
        if not all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(networks)):
            raise ScoreError(
                f"the training for {density.all_sites} was not finite, because a draw "
                "or a density is not finite somewhere in the range. Use a smaller "
                "range."
            )
        trained[density.sites, density.given] = networks
    return Pretrained(method, names, ranges, trained, problem.forward)


@quick_jit(static_argnames=("method", "names"))
def _train(
    method: Learned,
    density: Density,
    forward: Program,
    initial: Any,
    drawn: Any,
    ranges: Range,
    source: NoiseSource,
    rng_key: jax.Array,
    *,
    names: tuple[str, ...],
) -> Any:
    """Networks trained on pools at many parameter values."""
    pool_key, init_key, train_key = jax.random.split(rng_key, 3)
    num_points = len(jax.tree.leaves(drawn)[0])

    def at(one: Any) -> Any:
        own, key = one
        params = initial | own
        setting = ranges.setting(params, names)
        return method.draw(density, forward, params, key, source, setting)

    keys = jax.random.split(pool_key, num_points)
    frames, pools = jax.lax.map(at, (drawn, keys), batch_size=16)
    frames = jax.tree.map(lambda x: x[:, 0], frames)
    pools = jax.tree.map(lambda x: jnp.moveaxis(x[:, :, 0], 0, 1), pools)
    ensemble = method.ensemble(density, frames.setting.shape[-1])
    networks = sequence_after(ensemble.init(init_key, method.num_networks), pools)
    steps = _LONGER * method.num_steps
    return method.train(density, frames, pools, networks, train_key, steps)


def _check_names(over: Any, needed: frozenset[str], sm: StructuralModel) -> None:
    if not isinstance(over, Mapping):
        raise ArgumentError(
            "over must be a dict from names of parameters to (low, high) or a NumPyro "
            f"distribution, got {brief(over)}."
        )
    for name in over:
        if name not in sm.params:
            known = ", ".join(sm.params) or "none"
            raise ArgumentError(
                f"over names {name!r}, but the model has no such parameter (it has: "
                f"{known}). Name one of these."
            )
    for name in sorted(needed - set(over)):
        raise ArgumentError(
            f"over lacks parameter {name!r}, which reaches the objective. Add bounds "
            "(low, high) for it."
        )
    if not over:
        raise ArgumentError(
            "over is empty, and no parameter reaches the objective, so there is "
            "nothing to train. Use sites in the objective that depend on a parameter."
        )


def _check_constraints(drawn: Mapping[str, Any], sm: StructuralModel) -> None:
    for name, values in drawn.items():
        for leaf in jax.tree.leaves(values):
            inside = np.asarray(sm.constraints[name](leaf)).reshape(len(leaf), -1)
            if not inside.all():
                worst = np.asarray(leaf)[np.argmin(inside.all(axis=1))]
                raise ArgumentError(
                    f"over[{name!r}] leaves the parameter's constraint "
                    f"{sm.constraints[name]}: it contains {worst}. Give a range inside."
                )


def _draw(
    over: Mapping[str, Any],
    names: tuple[str, ...],
    initial: Any,
    num_points: int,
    rng_key: jax.Array,
) -> tuple[dict[str, Any], Range]:
    """Parameter values with a leading axis, in random order, and their bounds."""
    flats = {name: ravel_pytree(initial[name]) for name in names}
    sizes = [flat.size for flat, _ in flats.values()]
    uniforms = sobol_points(num_points, sum(sizes)).astype(np.float64) / 2.0**32
    uniforms = np.random.default_rng(0).permutation(uniforms)
    drawn, lows, highs = {}, [], []
    parts = np.split(uniforms, np.cumsum(sizes)[:-1], axis=1)
    for i, (name, u) in enumerate(zip(names, parts, strict=True)):
        size = u.shape[1]
        if isinstance(over[name], Distribution):
            key = jax.random.fold_in(rng_key, i)
            each = np.asarray(over[name].sample(key, (num_points,)), np.float64)
            if each.size != num_points * size:
                raise ArgumentError(
                    f"over[{name!r}] draws values of shape {each.shape[1:]}, but the "
                    f"parameter has {size} numbers. Use a distribution of its shape."
                )
            flat = each.reshape(num_points, size)
            low, high = flat.min(0), flat.max(0)
        else:
            low, high = _bounds(name, over[name], jax.tree.leaves(initial[name]))
            flat = low + (high - low) * u
        if not np.all(low < high) or not np.isfinite([low, high]).all():
            raise ArgumentError(
                f"over[{name!r}] must have low < high, both finite, got "
                f"{brief(over[name])}."
            )
        one, unravel = flats[name]
        drawn[name] = jax.vmap(unravel)(jnp.asarray(flat, one.dtype))
        lows.append(low)
        highs.append(high)
    ends = (np.concatenate(side) for side in (lows, highs))
    return drawn, Range(*(jnp.asarray(end, jnp.zeros(()).dtype) for end in ends))


def _bounds(name: str, bounds: Any, leaves: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Flat lower and upper bounds of a parameter."""
    try:
        low, high = map(np.asarray, bounds)
        if not is_real(low) or not is_real(high):
            raise TypeError("bounds are numbers")
        low, high = (
            np.concatenate([np.broadcast_to(x, leaf.shape).ravel() for leaf in leaves])
            for x in (low.astype(np.float64), high.astype(np.float64))
        )
    except (TypeError, ValueError):
        raise ArgumentError(
            f"over[{name!r}] must be (low, high), numbers or arrays of the parameter's "
            f"shape, or a NumPyro distribution, got {brief(bounds)}."
        ) from None
    return low, high
