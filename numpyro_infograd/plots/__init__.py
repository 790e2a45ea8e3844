# SPDX-License-Identifier: Apache-2.0
"""Figures in one style; they need the extra `plots`.

The colours are those of Okabe and Ito, which most people with colour blindness can
distinguish. Line styles and markers change together with the colours. Error bars are
two standard errors long on each side. Each function draws on your axes, or makes a
figure, and returns the axes. Settings of matplotlib are not changed.
"""

from numpyro_infograd.plots.gradients import plot_ascent, plot_gradient_sweep
from numpyro_infograd.plots.outcomes import plot_ranks, plot_score_check, plot_twin
from numpyro_infograd.plots.planes import plot_constellation, plot_rate_region

__all__ = [
    "plot_ascent",
    "plot_constellation",
    "plot_gradient_sweep",
    "plot_ranks",
    "plot_rate_region",
    "plot_score_check",
    "plot_twin",
]
