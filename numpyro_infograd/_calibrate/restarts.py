# SPDX-License-Identifier: Apache-2.0
"""Several starts of a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
import math
from typing import Any

import jax
from jax.flatten_util import ravel_pytree

from numpyro_infograd._calibrate.result import Calibration
from numpyro_infograd._optimize.move import (
    RATE,
    Projection,
    constrained,
    is_mapped,
    project,
    scales,
    unconstrained,
)

_REJECTED = 0.01  # p-value below which a two-sample test rejects a twin


def random_start(
    key: jax.Array,
    params: Any,
    constraints: dict[str, Any],
    projection: Projection | None,
) -> Any:
    """Parameters moved at random: a scale by a factor e, others by twice their size."""
    laws = constraints if projection is None else None
    given = unconstrained(params, laws)
    flat, unravel = ravel_pytree(given)
    noise = unravel(jax.random.normal(key, flat.shape, flat.dtype))
    rates = scales(given, laws)
    moved = {}
    for name, start in given.items():
        far = (1.0 if is_mapped(name, laws) else 2.0) / RATE
        moved[name] = jax.tree.map(
            lambda x, rate, z, far=far: x + far * rate * z,
            start,
            rates[name],
            noise[name],
        )
    return project(projection, moved) if projection else constrained(moved, laws)


def best_of(ends: Sequence[Calibration]) -> Calibration:
    """The calibration with the smallest divergence from held-out recordings.

    One that the two-sample test rejects is worse than one that it does not: the
    divergences come from different features, so the test is the fairer judge.
    """

    def rank(end: Calibration) -> tuple[bool, float]:
        assert end.after is not None and end.test_after is not None
        value = end.after.value
        return end.test_after.pvalue < _REJECTED, math.inf if value != value else value

    if len(ends) == 1:
        return ends[0]
    values = [end.after.value if end.after else None for end in ends]
    best = min(ends, key=rank)
    return replace(
        best,
        diagnostics=best.diagnostics | {"restarts": values},
        histories=tuple(end.history for end in ends),
    )
