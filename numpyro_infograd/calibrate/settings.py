# SPDX-License-Identifier: Apache-2.0
"""How to calibrate: divergence, levels of noise, optimizer, numbers of draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from numpyro_infograd.optimize.step import Projection
from numpyro_infograd.scores.network import Network, perceptron

# Variances of the noise of the average, in units of the recordings.
LEVELS: tuple[float, ...] = (0.0, 0.05, 0.2, 0.6)
NUM_STEPS = 150  # half of them after the features were trained anew


@dataclass(frozen=True)
class Settings:
    """How to calibrate, checked.

    Attributes:
        divergence: "fisher" or "kl".
        used: Levels of noise in the divergence that is made small.
        reported: Levels of noise in the divergence that is reported.
        optimizer: None, or an optax or numpyro optimizer.
        projection: Of the parameters, or None.
        network: What makes the features' networks.
        num_steps: Of the optimizer.
        num_samples: Draws of the twin in a step.
        num_draws: Bootstrap draws of the parameters.
    """

    divergence: str
    used: tuple[float, ...]
    reported: tuple[float, ...]
    optimizer: Any = None
    projection: Projection | None = None
    network: Network = perceptron((32, 32))
    num_steps: int = NUM_STEPS
    num_samples: int = 4096
    num_draws: int = 200

    @property
    def levels(self) -> tuple[float, ...]:
        """All levels, rising."""
        return tuple(sorted({*self.used, *self.reported}))


def shares_of(levels: tuple[float, ...], divergence: str) -> np.ndarray:
    """Weight of each level: for "fisher" the trapezoid rule's, so that nats come out.

    One level alone counts in full, and several alike under "kl".
    """
    if divergence == "kl" or len(levels) == 1:
        return np.full(len(levels), 1 / len(levels))
    width = np.diff(levels)
    return (np.append(width, 0.0) + np.append(0.0, width)) / 2
