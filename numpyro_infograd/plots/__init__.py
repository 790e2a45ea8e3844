# SPDX-License-Identifier: Apache-2.0
"""Figures, in one style; they need the extra `plots`.

Colours are those of Okabe and Ito, which most colour-blind eyes tell apart. Line styles
and markers change along with them, and error bars are two standard errors long on each
side. Each function draws on axes of yours, or makes a figure, and returns the axes;
matplotlib's settings stay as they are.
"""

from numpyro_infograd.plots.gradients import plot_ascent, plot_gradient_sweep
from numpyro_infograd.plots.outcomes import plot_score_check, plot_twin
from numpyro_infograd.plots.planes import plot_constellation, plot_rate_region

__all__ = [
    "plot_ascent",
    "plot_constellation",
    "plot_gradient_sweep",
    "plot_rate_region",
    "plot_score_check",
    "plot_twin",
]
