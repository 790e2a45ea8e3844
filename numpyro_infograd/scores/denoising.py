# SPDX-License-Identifier: Apache-2.0
"""Scores by denoising score matching, the model's own noise or appended noise."""

from __future__ import annotations

from dataclasses import dataclass
import math

import jax
import jax.numpy as jnp

from numpyro_infograd.arguments import as_floats, check_numbers
from numpyro_infograd.density import Density
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.scores.base import Layout
from numpyro_infograd.scores.coordinates import Frame
from numpyro_infograd.scores.learned import FAINT, Learned
from numpyro_infograd.scores.pool import Pool
from numpyro_infograd.scores.quadratic import Batch, score_matching


@dataclass(frozen=True, kw_only=True)
class Denoising(Learned):
    """Regression of the complete-data score on the values it is conditioned on.

    The score is the Gaussian score of the fitted moments plus a whitened residual
    network that starts at zero: a linear-Gaussian model is right before any training.
    An ensemble on disjoint samples gives the error that the fit adds.

    Where every site has a density given the other noise, the corruption is the model's
    own noise, and the score is unbiased. Where one has none, such as a deterministic
    site, noise of several variances is appended at once, one network learns the score
    at all of them (eq. 4 of the paper), and the score is extrapolated to no noise; half
    of what the last variance adds to the extrapolation enters the standard error.

    Args:
        noise_variance: Appends noise of this variance, as published, to every site
            that a parameter reaches. This changes the question: the result is the
            gradient for sites seen through that noise. None does as above.
        noise_levels: Variances of the noise that is extrapolated away, relative to
            that of the sites given all else in their set.
        hidden: Widths of the hidden layers; None is two layers, wider with the inputs.
        network: Your own in place of the built-in one: `make(inputs, rngs=...)` that
            returns an `nnx.Module`, or functions `(init(rng_key, inputs),
            apply(parameters, x))`. It maps (num_samples, inputs) to features of any
            width. Steps of each input alone, at its quantiles, are added to them, and
            a linear layer on top is fitted.
        num_networks: Size of the ensemble: 2, 4 or 8.
        num_steps: Training steps of a fit from scratch.
        num_warm_steps: Training steps of a refit at fixed intervals.
        batch_size: Samples of a training step, shared out among the networks.
        pool_size: Samples drawn for a fit from scratch, a power of two.
        warm_pool_size: Samples drawn for a refit, a power of two.
        learning_rate: Peak of the cosine schedule.
        num_samples: Default number of samples of a gradient, a power of two.
        refit: When to train again during an ascent: after so many steps, or "auto":
            once the scores are stale by held-out samples (they lost a hundredth of the
            Fisher information) or by Stein's identity (the score of the fitted moments
            moved by two hundredths). The moments follow the parameters at every step.

    Example:
        >>> import numpyro_infograd as ig
        >>> method = ig.scores.Denoising(hidden=(32, 32), num_networks=2)
        >>> method.refit
        'auto'
    """

    noise_variance: float | None = None
    noise_levels: tuple[float, ...] = (0.002, 0.01, 0.05)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_variance is not None:
            check_numbers(self, "noise_variance")
        levels = as_floats("noise_levels", self.noise_levels)
        rising = all(a < b for a, b in zip(levels[:-1], levels[1:], strict=True))
        if len(levels) < 2 or not 0 < levels[0] or not rising or levels[-1] == math.inf:
            raise ArgumentError(
                "noise_levels must be two or more variances, positive and rising, got "
                f"{levels}."
            )

    def levels(self, density: Density) -> tuple[float, ...]:
        """None where every site has a density, else `noise_levels`."""
        return self.noise_levels if density.without_density else (0.0,)

    def see(
        self, frame: Frame, centred: jax.Array, level: jax.Array | float
    ) -> jax.Array:
        """Whitened values, and the variance of the noise if there is any."""
        seen = frame.features(centred)
        if isinstance(level, float) and level == 0.0:
            return seen
        low, high = math.log(self.noise_levels[0]), math.log(self.noise_levels[-1])
        share = FAINT * (2 * (jnp.log(level) - low) / max(high - low, 1.0) - 1)
        return jnp.concatenate(
            [seen, jnp.broadcast_to(share, (*seen.shape[:-1], 1))], axis=-1
        )

    def problem(self, density: Density, frame: Frame, pool: Pool) -> Batch:
        """Regression of what the normal law leaves of the target."""
        levels = self.levels(density)
        centred = pool.values - frame.mean
        if levels == (0.0,):
            wanted = pool.target @ frame.fisher_inv_sqrt - frame.gaussian(centred)
            seen = self.see(frame, centred, 0.0)
            return Batch(seen, jnp.ones((len(seen), 1)), wanted)
        # Gaussian integration by parts turns the target -z / sqrt(t) of the noise into
        # the divergence that score matching has, whose variance does not grow.
        index = jnp.clip(pool.position * len(levels), 0, len(levels) - 1).astype(int)
        level, layout = jnp.asarray(levels)[index, None], Layout.of(density)
        moved = frame.moved(centred, layout, pool.noise, level)
        seen, gaussian = self.see(frame, moved, level), frame.gaussian(moved)
        return score_matching(frame, layout, seen, gaussian / (1.0 + level), pool)
