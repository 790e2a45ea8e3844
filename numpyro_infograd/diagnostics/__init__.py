# SPDX-License-Identifier: Apache-2.0
"""Checks of scores, and results as ArviZ data."""

from numpyro_infograd.diagnostics.check import ScoreCheck, SetCheck, check_scores

__all__ = ["ScoreCheck", "SetCheck", "check_scores"]
