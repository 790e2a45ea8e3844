# SPDX-License-Identifier: Apache-2.0
"""Directions in the space of rates, and polytopes of rates."""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy.optimize import linprog

from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.values import Estimate

BoundValues = dict[tuple[str, ...], Estimate]
_DIRECTIONS = 2**14  # directions, at most


def simplex_grid(num_rates: int, num_weights: int) -> np.ndarray:
    """Non-negative weights that sum to one, `num_weights` along each edge."""
    steps, bars = num_weights - 1, num_rates - 1
    count = math.comb(steps + bars, bars)
    if count > _DIRECTIONS:
        raise ArgumentError(
            f"num_weights={num_weights} makes {count} directions of {num_rates} rates, "
            f"more than {_DIRECTIONS}. Lower num_weights."
        )
    # All ways to write `steps` as a sum: the gaps between bars in a row.
    ends = np.array(list(itertools.combinations(range(steps + bars), bars)))
    gaps = np.diff(ends, prepend=-1, append=steps + bars, axis=1) - 1
    return gaps[::-1] / steps


def multipliers_of(
    weight: np.ndarray, rates: tuple[str, ...], values: BoundValues
) -> dict[tuple[str, ...], float]:
    """The multipliers y_S of the bounds in one direction, without zeros."""
    sets = {frozenset(subset): subset for subset in values}
    holds = np.array([[rate in subset for subset in values] for rate in rates])
    costs = np.array([e.value for e in values.values()]) + 1e-9
    solved = linprog(costs, A_ub=-holds.astype(float), b_ub=-weight)
    found = dict(zip(values, map(float, np.round(solved.x, 9)), strict=True))
    # If several solutions are optimal, take the greedy one: for a polymatroid it is
    # optimal at all parameters.
    order = np.argsort(-weight, kind="stable")
    chain = [frozenset(rates[i] for i in order[: k + 1]) for k in range(len(order))]
    if all(subset in sets for subset in chain):
        steps = weight[order] - np.append(weight[order][1:], 0.0)
        greedy = {sets[s]: float(y) for s, y in zip(chain, steps, strict=True)}
        cost = sum(y * values[s].value for s, y in greedy.items())
        noise = 2 * sum(e.standard_error for e in values.values())
        if cost <= solved.fun * (1 + 1e-4) + 1e-6 + noise:
            found = greedy
    return {subset: y for subset, y in found.items() if y > 1e-9}


def corners_of(
    rates: tuple[str, ...], values: BoundValues
) -> tuple[np.ndarray, np.ndarray]:
    """Corners of {r >= 0, sum of r over each set <= its value}, and their errors.

    The error is the largest of the rates of a corner, if all errors of the bounds add
    up: a rate may be the difference of two bounds.
    """
    size = len(rates)
    sets = [[float(rate in subset) for rate in rates] for subset in values]
    rows = np.concatenate([sets, -np.eye(size)])
    limits, errors = (
        np.append([getattr(e, name) for e in values.values()], np.zeros(size))
        for name in ("value", "standard_error")
    )
    found, spreads = [], []
    for chosen in map(list, itertools.combinations(range(len(rows)), size)):
        matrix = rows[chosen]
        if abs(np.linalg.det(matrix)) > 1e-9:
            inverse = np.linalg.inv(matrix)
            corner = inverse @ limits[chosen]
            if np.all(rows @ corner <= limits + 1e-9):
                found.append(np.maximum(corner, 0.0))
                spreads.append(np.max(np.abs(inverse) @ errors[chosen]))
    corners, first = np.unique(np.round(found, 12), axis=0, return_index=True)
    return corners, np.array(spreads)[first]
