# SPDX-License-Identifier: Apache-2.0
"""Noise annealing: an ascent that starts with noise appended to the model.

Noise smooths the objective, so local optima that depend on fine structure disappear.
The variance of the noise then falls geometrically, and at last the noise is removed.
"""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any

import numpy as np

import jax

from numpyro_infograd._density import draw_values
from numpyro_infograd._edits import append_noise
from numpyro_infograd._noise import NoiseSource
from numpyro_infograd._problem import Posed, pose
from numpyro_infograd.errors import ArgumentError

COLDEST = 1e-4  # last variance before the noise is removed, relative to the first

Annealing = float | Mapping[str, float] | None


def initial_variances(
    posed: Posed, params: Any, annealing: Annealing
) -> dict[str, float]:
    """Initial variance of the noise appended to each site; empty without annealing."""
    if annealing is None:
        return {}
    sm = posed.sm
    moved = [s for s in posed.objective.sites if sm.params_of((s,))]
    asked: dict[str, Any] = (
        dict(annealing)
        if isinstance(annealing, Mapping)
        else dict.fromkeys(moved, annealing)
    )
    for site, variance in asked.items():
        number = np.asarray(variance).dtype.kind in "fiu" and np.ndim(variance) == 0
        if not number or not 0 < variance < math.inf:
            raise ArgumentError(
                "annealing must be a positive number, or a dict from sites to positive "
                f"numbers, got {annealing!r}."
            )
        if site not in moved:
            shown = ", ".join(map(repr, moved))
            raise ArgumentError(
                f"annealing names {site!r}, but noise can only be appended to sites of "
                f"the objective that a parameter reaches: {shown}."
            )
    if isinstance(annealing, Mapping):
        return asked
    source = NoiseSource.independent(sm.spec, 1024)
    values = draw_values(sm.forward, params, source, jax.random.key(4))
    spread = {s: float(np.mean(np.var(values[s], axis=0))) for s in asked}
    return {s: float(v) * spread[s] for s, v in asked.items()}


def cooled(
    posed: Posed, start: Mapping[str, float], share: float, params: Any
) -> Posed:
    """The problem with the appended noise after this share of the cooling."""
    variances = {site: v * COLDEST**share for site, v in start.items()}
    # `pose` appends the method's own noise again.
    noisy = append_noise(posed.sm.clean or posed.sm, variances)
    return pose(noisy, posed.objective, posed.method, params, posed.reason)
