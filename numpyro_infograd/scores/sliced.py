# SPDX-License-Identifier: Apache-2.0
"""Scores by sliced score matching, from samples only."""

from __future__ import annotations

from numpyro_infograd._density import Density
from numpyro_infograd._doors import settings_class
from numpyro_infograd.scores.base import Layout
from numpyro_infograd.scores.coordinates import Frame
from numpyro_infograd.scores.learned import Learned
from numpyro_infograd.scores.pool import Pool
from numpyro_infograd.scores.quadratic import Batch, score_matching


@settings_class(kw_only=True)
class Sliced(Learned):
    """Sliced score matching with its variance reduced (Song et al. 2019, SSM-VR).

    Minimises E[1/2 |s(a)|^2 + v . (ds/da) v] over scores s. The mean over random signs
    v is the trace of score matching (Hyvarinen 2005). The method uses only samples:
    neither the model's densities nor noise.

    The settings are those of `Denoising`, without its noise.

    Example:
        >>> import numpyro_infograd as ig
        >>> ig.scores.Sliced(num_steps=400).num_networks
        4
    """

    samples_only = True

    def problem(self, density: Density, frame: Frame, pool: Pool) -> Batch:
        """The loss of score matching at the values, without noise."""
        centred = pool.values - frame.mean
        seen, gaussian = self.see(frame, centred, 0.0), frame.gaussian(centred)
        return score_matching(frame, Layout.of(density), seen, gaussian, pool)
