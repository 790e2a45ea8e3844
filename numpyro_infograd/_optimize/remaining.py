# SPDX-License-Identifier: Apache-2.0
"""What a continued ascent would gain, and what noise may hide, from its gradients."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

import jax


class Steepness(NamedTuple):
    """The squared norm of a mean gradient, from independent noisy gradients.

    It is the mean product of two different ones (Chen and Qin, 2010), so noise adds
    nothing on average, and one gradient far from all others hardly moves it.
    """

    square: float  # the squared norm; may be negative
    error: float  # its standard error if the mean is zero

    @property
    def is_clear(self) -> bool:
        """Whether the gradient can be told from its noise."""
        return self.square > 2.0 * self.error

    @staticmethod
    def of(gradients: np.ndarray) -> Steepness:
        """From gradients of shape (num_gradients, num_parameters)."""
        count = len(gradients)
        if count < 2:
            return Steepness(0.0, math.inf)
        products = gradients @ gradients.T
        apart = products[~np.eye(count, dtype=bool)]
        error = math.sqrt(2.0 * float(np.mean(apart**2)) / apart.size)
        return Steepness(float(np.mean(apart)), error)


def flat(tree: Any, leading: int = 0) -> np.ndarray:
    """The leaves of a tree as one array, in double precision; keeps leading axes."""
    leaves = [np.asarray(x, float) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(*x.shape[:leading], -1) for x in leaves], axis=-1)


class Outlook(NamedTuple):
    """What the gradients at the end of an ascent say about a longer one."""

    gain: float  # estimated gain of a longer ascent, in nats
    error: float  # its standard error
    is_clear: bool  # whether the gradient can be told from its noise

    @property
    def is_rising(self) -> bool:
        """Whether the gain can be told from its noise."""
        return self.gain > 2.0 * self.error

    @property
    def most(self) -> float:
        """The gain that noise may hide, in nats."""
        return self.gain + 2.0 * self.error


def outlook(
    gradients: np.ndarray,
    before: np.ndarray,
    moved: np.ndarray,
    scale: np.ndarray,
    ratio: float,
) -> Outlook:
    """The outlook along the last moves, by a quadratic model of each line.

    The fall of the slope over a move gives the curvature, and thus the maximum of the
    model on the line. If the slope has not fallen, or the maximum is farther than a
    longer ascent would come, the gain is that of the longest continuation, `ratio`
    times the move. Each parameter whose slope can be told from noise has its own line:
    one that swings about its optimum must not hide another that still climbs. All
    others share one. `gradients` are those of the last steps, (num_steps,
    num_parameters), `before` is the one before the move, and `scale` the unit of each
    parameter.
    """
    if not all(np.all(np.isfinite(x)) for x in (gradients, before, moved)):
        return Outlook(0.0, 0.0, True)  # the steps say nothing
    each = gradients * moved  # slopes, in nats for a move of the same length
    # Noise rarely exceeds so many standard errors in any of the numbers.
    least = 2.0 + math.sqrt(2.0 * math.log(max(moved.size, 1)))
    alone = np.mean(each, axis=0) > least * _error(each)
    rest = ~alone
    slopes = np.column_stack([each[:, alone], np.sum(each[:, rest], axis=1)])
    start = np.append((before * moved)[alone], np.sum((before * moved)[rest]))
    slope, error = np.mean(slopes, axis=0), _error(slopes)
    bend = np.maximum(start - slope, 1e-30)
    share = np.minimum(np.maximum(slope, 0.0) / bend, ratio)
    falls = start > slope
    gain = slope * share - 0.5 * np.where(falls, start - slope, 0.0) * share**2
    reach = np.maximum(share, np.minimum(error / bend, ratio))
    clear = Steepness.of(gradients * scale).is_clear
    return Outlook(
        float(np.sum(np.maximum(gain, 0.0))),
        float(np.linalg.norm(error * reach)),
        clear,
    )


def _error(draws: np.ndarray) -> np.ndarray:
    """Standard error of the mean of each column."""
    return np.std(draws, axis=0) / math.sqrt(max(len(draws) - 1, 1))
