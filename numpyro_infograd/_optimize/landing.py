# SPDX-License-Identifier: Apache-2.0
"""The last correction of an ascent with constraints: onto the bounds that hold it.

An augmented Lagrangian ends near its bounds, within the noise of its steps. Newton's
method then moves the parameters the shortest way onto the bounds that have multipliers
or are exceeded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import jax

from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._optimize.budgets import PENALTY
from numpyro_infograd._optimize.move import constrained, onto
from numpyro_infograd._optimize.remaining import flat
from numpyro_infograd._optimize.step import Ascent
from numpyro_infograd._pullback import pull_back

_STEPS = 8  # of Newton's method, at most
_MARGIN = 2.0  # distance from a bound, in standard errors of the expectation
_NEAR = 0.25  # distance from the goal at which the steps end, in the same unit
_RIDGE = 1e-6  # of the normal equations, relative to their trace


@quick_jit
def slopes(ascent: Ascent, params: Any, rng_key: jax.Array) -> Any:
    """Gradient of each relative excess, along what the projection allows."""
    budgets, move = ascent.budgets, ascent.move
    problem, noise = ascent.problem.without_entropies(), ascent.source(rng_key)
    seen, back = jax.vjp(
        lambda x: constrained(onto(move.projection, x), move.constraints), params
    )

    def slope(row: jax.Array) -> Any:
        pulled = pull_back(problem, (), seen, noise, rng_key, None, lambda _: row)
        return back(pulled.gradient)[0]

    return jax.lax.map(slope, budgets.weights / budgets.scales[:, None])


def _within(normals: np.ndarray, mean: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """The margins, smaller between opposite bounds that have no room for both.

    An equality is two such bounds, without any room.
    """
    size = np.maximum(np.linalg.norm(normals, axis=1), 1e-30)
    cosines = (normals @ normals.T) / np.outer(size, size)
    found = margin.copy()
    for i, j in np.argwhere(np.triu(cosines < -0.999)):
        room = -(mean[i] / size[i] + mean[j] / size[j])
        wanted = margin[i] / size[i] + margin[j] / size[j]
        share = min(max(room, 0.0) / max(wanted, 1e-30), 1.0)
        found[[i, j]] = np.minimum(found[[i, j]], share * margin[[i, j]])
    return found


def land(
    ascent: Ascent,
    params: Any,
    multipliers: Any,
    measure: Callable[[Any], tuple[np.ndarray, np.ndarray]],
    rng_key: jax.Array,
) -> Any:
    """Unconstrained parameters on the inner side of the bounds that hold them.

    `measure` gives the excess of each constraint at unconstrained parameters, and its
    standard error. Returns `params` if no correction meets all bounds. Means of
    discrete draws jump, so steps may miss their goal: the nearest place inside counts.
    """
    units = np.asarray(ascent.budgets.scales)
    rounding = np.asarray(ascent.budgets.rounding)
    leaves, tree = jax.tree.flatten(params)
    scales = jax.tree.leaves(ascent.move.scale)
    scale = flat(list(map(np.broadcast_to, scales, map(np.shape, leaves))))
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    here, landed, least = params, params, np.inf
    for _ in range(_STEPS):
        mean, error = (each / units for each in measure(here))
        if not np.all(np.isfinite(mean + error)):
            break
        normals = flat(jax.device_get(slopes(ascent, here, rng_key)), 1) * scale
        gap = mean + _within(normals, mean, _MARGIN * error + rounding)
        near = _NEAR * error + rounding
        active = (gap > near) | (np.asarray(multipliers) > PENALTY * np.abs(gap))
        if np.all(gap <= near):
            off = float(np.max(np.abs(gap[active] / near[active]), initial=0.0))
            if off < least:
                landed, least = here, off
            if off <= 1:
                break
        normals = normals[active]
        gram = normals @ normals.T
        gram += _RIDGE * max(np.trace(gram), 1e-30) * np.eye(len(gram))
        step = -scale * (normals.T @ np.linalg.solve(gram, gap[active]))
        moved = [
            leaf + part.reshape(leaf.shape).astype(leaf.dtype)
            for leaf, part in zip(
                jax.tree.leaves(here), np.split(step, ends), strict=True
            )
        ]
        here = onto(ascent.move.projection, jax.tree.unflatten(tree, moved))
    return landed
