# SPDX-License-Identifier: Apache-2.0
"""Settings of a calibration: divergence, noise levels, optimizer, numbers of draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from numpyro_infograd._optimize.move import Projection
from numpyro_infograd.scores.network import Network, perceptron

# Default variances of the appended noise, in units of the recordings.
LEVELS: tuple[float, ...] = (0.0, 0.05, 0.2, 0.6)
NUM_STEPS = 150  # the features are trained again after half of them


@dataclass(frozen=True)
class Settings:
    """Settings of a calibration, after checks."""

    divergence: str  # "fisher", "kl" or "likelihood"
    used: tuple[float, ...]  # noise levels of the divergence that is minimised
    reported: tuple[float, ...]  # noise levels of the divergence that is reported
    optimizer: Any = None  # None, or an optax or numpyro optimizer
    projection: Projection | None = None  # projection of the parameters, or None
    # Function or functions that make the networks of the features.
    network: Network = perceptron((32, 32))
    num_steps: int = NUM_STEPS  # steps of the optimizer
    num_samples: int = 4096  # draws of the twin in a step
    num_draws: int = 200  # bootstrap draws of the parameters
    robust: bool = False  # whether recordings far out have no weight

    @property
    def levels(self) -> tuple[float, ...]:
        """All levels, in rising order."""
        return tuple(sorted({*self.used, *self.reported}))


def shares_of(levels: tuple[float, ...], divergence: str) -> np.ndarray:
    """Weight of each level in the divergence.

    For "fisher" they are the weights of the trapezoid rule, which gives nats. A single
    level has weight one; for "kl" all levels have equal weights.
    """
    if divergence == "kl" or len(levels) == 1:
        return np.full(len(levels), 1 / len(levels))
    width = np.diff(levels)
    return (np.append(width, 0.0) + np.append(0.0, width)) / 2
