# SPDX-License-Identifier: Apache-2.0
"""Checks of scores and of a twin's errors, and results as ArviZ data."""

from numpyro_infograd.diagnostics.check import ScoreCheck, SetCheck, check_scores
from numpyro_infograd.diagnostics.ranks import RankCheck, simulation_based_calibration

__all__ = [
    "RankCheck",
    "ScoreCheck",
    "SetCheck",
    "check_scores",
    "simulation_based_calibration",
]
