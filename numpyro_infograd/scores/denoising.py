# SPDX-License-Identifier: Apache-2.0
"""Scores by denoising score matching, with the model's own or appended noise."""

from __future__ import annotations

from itertools import pairwise
import math

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import as_number_tuple, check_numbers
from numpyro_infograd._density import Density
from numpyro_infograd._doors import settings_class
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.scores.base import Layout
from numpyro_infograd.scores.coordinates import Frame
from numpyro_infograd.scores.learned import FAINT, Learned
from numpyro_infograd.scores.pool import Pool
from numpyro_infograd.scores.quadratic import Batch, score_matching


@settings_class(kw_only=True)
class Denoising(Learned):
    """Regression of the complete-data score on the values it is conditioned on.

    The score is the Gaussian score of the fitted moments plus a network that starts at
    zero, so a linear-Gaussian model is exact before any training. The networks of an
    ensemble learn from disjoint samples; their scatter measures the error of the fit.

    If every site has a density given the other noise, the target uses the model's own
    noise, and the score is unbiased. If a site has no density, for instance because it
    is deterministic, noise of several variances is appended. One network learns the
    score at all variances (eq. 4 of the paper), and the score is extrapolated to zero
    variance. The standard error includes half of what the last variance adds to the
    extrapolation.

    Args:
        noise_variance: Variance of noise to append, as in the paper, to every site that
            a parameter reaches. The result is then the gradient for sites observed
            through that noise, not for the sites themselves. None appends no noise.
        noise_levels: Variances of the noise that is extrapolated to zero, relative to
            the conditional variance of a site given the rest of its set.
        hidden: Widths of the hidden layers; None makes two layers that widen with the
            number of inputs.
        network: Your network in place of the built-in one: `make(inputs, rngs=...)`
            that returns an `nnx.Module`, or functions `(init(rng_key, inputs),
            apply(parameters, x))`. It maps (num_samples, inputs) to features of any
            width. Sigmoid steps of each single input are added to the features, and a
            linear layer on top is fitted.
        num_networks: Size of the ensemble: 2, 4 or 8.
        num_steps: Training steps of a fit from scratch.
        num_warm_steps: Training steps of a refit at fixed intervals.
        batch_size: Samples of a training step, divided among the networks.
        pool_size: Samples drawn for a fit from scratch, a power of two.
        warm_pool_size: Samples drawn for a refit, a power of two.
        learning_rate: Peak of the cosine schedule.
        num_samples: Default number of samples of a gradient, a power of two.
        refit: When to train again during an ascent: a number of steps, or "auto".
            "auto" trains when held-out samples show that the networks lost 1 % of the
            Fisher information, or when the score of the fitted moments moved by 2 %.
            The moments themselves are fitted at every step.

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
        levels = as_number_tuple("noise_levels", self.noise_levels)
        rising = all(a < b for a, b in pairwise(levels))
        if len(levels) < 2 or not 0 < levels[0] or not rising or levels[-1] == math.inf:
            raise ArgumentError(
                "noise_levels must be two or more variances, positive and rising, got "
                f"{levels}."
            )

    def levels(self, density: Density) -> tuple[float, ...]:
        """(0,) if every site has a density, else `noise_levels`."""
        return self.noise_levels if density.without_density else (0.0,)

    def see(
        self, frame: Frame, centred: jax.Array, level: jax.Array | float
    ) -> jax.Array:
        """Inputs of a network: whitened values, and the noise variance if not zero."""
        if isinstance(level, float) and level == 0.0:
            return frame.features(centred)
        low, high = math.log(self.noise_levels[0]), math.log(self.noise_levels[-1])
        share = FAINT * (2 * (jnp.log(level) - low) / max(high - low, 1.0) - 1)
        return frame.features(centred, share)

    def problem(self, density: Density, frame: Frame, pool: Pool) -> Batch:
        """Regression of the target minus the Gaussian score."""
        levels = self.levels(density)
        centred = pool.values - frame.mean
        if levels == (0.0,):
            wanted = pool.target @ frame.fisher_inv_sqrt - frame.gaussian(centred)
            seen = self.see(frame, centred, 0.0)
            return Batch(seen, jnp.ones((len(seen), 1)), wanted)
        # Integration by parts turns the target -z / sqrt(t) of the noise into the
        # divergence of score matching, whose variance stays bounded for small t.
        index = (pool.position * len(levels)).astype(int)
        level, layout = jnp.asarray(levels)[index, None], Layout.of(density)
        moved = frame.moved(centred, layout, pool.noise, level)
        seen, gaussian = self.see(frame, moved, level), frame.gaussian(moved)
        return score_matching(frame, layout, seen, gaussian / (1.0 + level), pool)
