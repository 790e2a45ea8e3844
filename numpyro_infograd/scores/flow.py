# SPDX-License-Identifier: Apache-2.0
"""Scores by flow matching, from samples alone."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from numpyro_infograd.arguments import as_floats
from numpyro_infograd.density import Density
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.scores.base import Layout
from numpyro_infograd.scores.coordinates import Frame
from numpyro_infograd.scores.learned import FAINT, Learned
from numpyro_infograd.scores.pool import Pool
from numpyro_infograd.scores.quadratic import Batch

_FIRST = 0.75  # the earliest time to learn the velocity at; values are at time 1


@dataclass(frozen=True, kw_only=True)
class FlowMatching(Learned):
    """Flow matching on straight lines from noise to values (Lipman et al., Liu et al.).

    On x = tau w + (1 - tau) z, with w the whitened values and z standard normal, a
    network learns the velocity v(x, tau) = E[w - z | x]. The score of x is then

        s(x, tau) = (tau v(x, tau) - x) / (1 - tau),

    that of w with noise of variance ((1 - tau) / tau)^2. It is read off at a few times
    close to 1 and extrapolated to no noise. The target of the velocity stays bounded
    there while that of denoising does not. It sees samples alone.

    The noise of the lines costs accuracy: twice the samples and steps make up for it.

    Args:
        times: Times below 1 at which the velocity is learned and the score is read
            off, falling.

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
        times = as_floats("times", self.times)
        falling = all(a > b for a, b in zip(times[:-1], times[1:], strict=True))
        if len(times) < 2 or not _FIRST <= times[-1] or not times[0] < 1 or not falling:
            raise ArgumentError(
                f"times must be two or more, falling from below 1 to {_FIRST} at "
                f"least, got {times}."
            )

    def levels(self, density: Density) -> tuple[float, ...]:
        """The variances of noise that the times stand for."""
        return tuple(((1.0 - tau) / tau) ** 2 for tau in self.times)

    def caution(self, density: Density) -> float:
        """Twice that of other samples: the noise of the lines is in every target."""
        return 2.0

    def see(
        self, frame: Frame, centred: jax.Array, level: jax.Array | float
    ) -> jax.Array:
        """Whitened values, and the time."""
        seen = frame.features(centred)
        time = 1.0 / (1.0 + jnp.sqrt(level))
        share = FAINT * (2 * (time - _FIRST) / (1 - _FIRST) - 1)
        return jnp.concatenate(
            [seen, jnp.broadcast_to(share, (*seen.shape[:-1], 1))], axis=-1
        )

    def problem(self, density: Density, frame: Frame, pool: Pool) -> Batch:
        """Regression of what the normal law leaves of the velocity w - z."""
        count = len(self.times)
        index = jnp.clip(_twice(pool.position) * count, 0, count - 1).astype(int)
        tau = jnp.asarray(self.times)[index, None]
        noise, centred = _twice(pool.noise, -1.0), pool.values - frame.mean
        level, centred = ((1 - tau) / tau) ** 2, _twice(centred)
        moved = frame.moved(centred, Layout.of(density), noise, level)
        w, x = -frame.gaussian(centred), -tau * frame.gaussian(moved)
        normal = (2 * tau - 1) / (tau**2 + (1 - tau) ** 2) * x
        seen = self.see(frame, moved, level)
        # The network is the score that the velocity beyond the normal law's stands for.
        # Weights half way from velocity to score: else the last time would count most.
        gain = (1 - tau) / tau**2
        weight = 1 / jnp.sqrt(gain)
        return Batch(seen, weight * gain, weight * (w - noise - normal))


def _twice(x: jax.Array, sign: float = 1.0) -> jax.Array:
    """A batch and once more, as it is or with the other sign."""
    return jnp.concatenate([x, sign * x])
