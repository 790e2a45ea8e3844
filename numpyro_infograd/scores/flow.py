# SPDX-License-Identifier: Apache-2.0
"""Scores by flow matching, from samples only."""

from __future__ import annotations

from itertools import pairwise

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import as_number_tuple
from numpyro_infograd._density import Density
from numpyro_infograd._doors import settings_class
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.scores.base import Layout
from numpyro_infograd.scores.coordinates import Frame
from numpyro_infograd.scores.learned import FAINT, Learned
from numpyro_infograd.scores.pool import Pool
from numpyro_infograd.scores.quadratic import Batch

_FIRST = 0.75  # earliest time at which a velocity is learned; values are at time 1


@settings_class(kw_only=True)
class FlowMatching(Learned):
    """Flow matching on straight lines from noise to values (Lipman et al., Liu et al.).

    On x = tau w + (1 - tau) z, with w the whitened values and z standard normal, a
    network learns the velocity v(x, tau) = E[w - z | x]. The score of x is then

        s(x, tau) = (tau v(x, tau) - x) / (1 - tau),

    that of w with noise of variance ((1 - tau) / tau)^2. It is evaluated at a few times
    close to 1 and extrapolated to zero variance. There the regression target stays
    bounded, unlike that of denoising. The method uses only samples.

    The noise z makes the fit less accurate, so by default it takes twice the samples
    and steps of `Denoising`.

    Args:
        times: Times below 1, in falling order, at which the velocity is learned and the
            score is evaluated.

    The other settings are those of `Denoising`, without its noise.

    Example:
        >>> import numpyro_infograd as ig
        >>> ig.scores.FlowMatching(times=(0.9, 0.85)).num_networks
        4
    """

    times: tuple[float, ...] = (0.998, 0.996)
    num_steps: int = 400
    pool_size: int = 2**17
    samples_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        times = as_number_tuple("times", self.times)
        falling = all(a > b for a, b in pairwise(times))
        if len(times) < 2 or not _FIRST <= times[-1] or not times[0] < 1 or not falling:
            raise ArgumentError(
                f"times must be two or more numbers in falling order, below 1 and at "
                f"least {_FIRST}, got {times}."
            )

    def levels(self, density: Density) -> tuple[float, ...]:
        """The noise variance that belongs to each time."""
        return tuple(((1.0 - tau) / tau) ** 2 for tau in self.times)

    def caution(self, density: Density) -> float:
        """Twice that of other methods from samples: all targets contain the noise z."""
        return 2.0

    def see(
        self, frame: Frame, centred: jax.Array, level: jax.Array | float
    ) -> jax.Array:
        """Inputs of a network: whitened values, and the time."""
        time = 1.0 / (1.0 + jnp.sqrt(level))
        share = FAINT * (2 * (time - _FIRST) / (1 - _FIRST) - 1)
        return frame.features(centred, share)

    def problem(self, density: Density, frame: Frame, pool: Pool) -> Batch:
        """Regression of the velocity w - z minus its Gaussian part."""
        count = len(self.times)
        index = jnp.clip(_twice(pool.position) * count, 0, count - 1).astype(int)
        tau = jnp.asarray(self.times)[index, None]
        noise, centred = _twice(pool.noise, -1.0), pool.values - frame.mean
        level, centred = ((1 - tau) / tau) ** 2, _twice(centred)
        moved = frame.moved(centred, Layout.of(density), noise, level)
        w, x = -frame.gaussian(centred), -tau * frame.gaussian(moved)
        normal = (2 * tau - 1) / (tau**2 + (1 - tau) ** 2) * x
        seen = self.see(frame, moved, level)
        # The network learns the score, not the velocity. The weights are the geometric
        # mean of those of a velocity and of a score: else the last time would dominate.
        gain = (1 - tau) / tau**2
        weight = 1 / jnp.sqrt(gain)
        return Batch(seen, weight * gain, weight * (w - noise - normal))


def _twice(x: jax.Array, sign: float = 1.0) -> jax.Array:
    """A batch followed by `sign` times the batch."""
    return jnp.concatenate([x, sign * x])
