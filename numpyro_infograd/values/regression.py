# SPDX-License-Identifier: Apache-2.0
"""The least squares problem of `DeBruijn`: coordinates, target, solution."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._noise import standard_error

_HIGHEST = 100.0  # highest noise variance, in units of the values' variance
_LOWEST = 1e-3  # lowest noise variance, in units of the model's own smoothing
_UNSMOOTHED = 0.1  # largest value of that smoothing, and its value without any
_RAW_RIDGE = 1e-5  # of the mean square feature
_RIDGE = 1e-4  # of orthogonal features


class Draws(NamedTuple):
    """Samples; a leading axis of samples, or axes of replicates and samples."""

    values: jax.Array  # (dimensions,)
    given: jax.Array  # (inputs,)
    score: jax.Array  # complete-data score, or zero if that would be biased
    position: jax.Array  # in (0, 1), gives the logarithm of the noise variance
    noise: jax.Array  # standard normal, (dimensions,)


class Frame(NamedTuple):
    """Coordinates: w = whiten (values - mean - slope inputs), standardised inputs."""

    mean: jax.Array
    whiten: jax.Array
    unwhiten: jax.Array
    log_volume: jax.Array  # log |det unwhiten|
    slope: jax.Array  # (dimensions, inputs): linear regression on given sites
    given_mean: jax.Array
    given_scale: jax.Array
    axes: jax.Array  # eigenvectors of the mean square of the complete-data score of w
    sharpness: jax.Array  # its eigenvalues
    smoothing: jax.Array  # variance by which the model's own noise smooths w
    lowest: jax.Array  # log of the lowest variance of the integral

    @staticmethod
    def of(pool: Draws) -> Frame:
        """The frame of a pool's moments. Any frame is correct; this one is accurate."""
        values, given, score = (np.asarray(x, np.float64) for x in pool[:3])
        mean, given_mean = values.mean(0), given.mean(0)
        scale = given.std(0)
        scale = np.where(scale > 0, scale, 1.0)
        inputs, centred = (given - given_mean) / scale, values - mean
        slope = np.linalg.lstsq(inputs, centred, rcond=1e-6)[0].T
        centred = centred - inputs @ slope.T
        deviation = centred.std(0)
        standard = centred / deviation
        share, turn = np.linalg.eigh(standard.T @ standard / len(standard))
        share = np.sqrt(np.maximum(share, 1e-6))
        unwhiten = deviation[:, None] * turn * share
        target = score @ unwhiten
        sharpness, axes = np.linalg.eigh(target.T @ target / len(target))
        if not score.any():
            sharpness[:] = np.inf  # an infinite variance has no weight
        smoothing = _UNSMOOTHED
        if np.isfinite(sharpness).all():
            smoothing = min(1.0 / np.mean(sharpness), _UNSMOOTHED)
        frame = (
            mean,
            (turn / share).T / deviation,
            unwhiten,
            np.sum(np.log(deviation)) + np.sum(np.log(share)),
            slope,
            given_mean,
            scale,
            axes,
            np.maximum(sharpness, 0.0),
            smoothing,
            math.log(_LOWEST * smoothing),
        )
        return Frame(*(jnp.asarray(x, pool.values.dtype) for x in frame))

    @property
    def span(self) -> jax.Array:
        """Length of the integral over log t; its first unit stands for all below."""
        return math.log(_HIGHEST) - self.lowest + 1.0

    def regression(self, draws: Draws) -> Regression:
        """Inputs, gain and target of the least squares problem, for a batch."""
        below = (draws.position * self.span < 1.0).astype(draws.values.dtype)
        level = jnp.maximum(self.lowest - 1.0 + draws.position * self.span, self.lowest)
        t = jnp.exp(level)[:, None]
        inputs = (draws.given - self.given_mean) / self.given_scale
        w = (draws.values - self.mean - inputs @ self.slope.T) @ self.whiten.T
        w_t = w + jnp.sqrt(t) * draws.noise
        # The model's own score and that of the appended noise both have mean s_t. These
        # weights give the least variance if the model's own noise is normal.
        own = 1.0 / (1.0 + t * self.sharpness)
        score = (draws.score @ self.unwhiten @ self.axes) * own
        score -= (draws.noise / jnp.sqrt(t) @ self.axes) * (1.0 - own)
        target = jnp.sqrt(t) * (score @ self.axes.T + w_t / (1.0 + t))
        gain = jnp.sqrt(t / (self.smoothing + t)) * (1.0 + t) ** -1.5
        levels = jnp.stack(
            [
                2.0 * (level - self.lowest) / self.span - 1.0,
                jnp.log(self.smoothing + t[:, 0]) / 3.0,
            ],
            axis=1,
        )
        columns = [w_t / jnp.sqrt(1.0 + t), inputs]
        clipped = jnp.clip(jnp.concatenate(columns, axis=1), -8.0, 8.0)
        seen = jnp.concatenate([clipped, levels], axis=1)
        return Regression(seen, gain, target, w, below)


class Regression(NamedTuple):
    """The regression: gain * network(seen) approximates the target."""

    seen: jax.Array
    gain: jax.Array
    target: jax.Array
    w: jax.Array
    below: jax.Array  # 1 if the sample represents variances below the lowest


def orthogonal(gram: np.ndarray) -> np.ndarray:
    """A triangular map that makes the features nearly orthogonal.

    Smooth features are nearly collinear. Separated modes depend on differences that are
    too small for sums in single precision; a second round of sums with this map
    resolves them. The first columns still span the first features.
    """
    gram = gram.astype(np.float64)
    ridge = _RAW_RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    return np.linalg.inv(np.linalg.cholesky(gram + ridge)).T


def solve(gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """The last layer from its normal equations."""
    found: np.ndarray = np.linalg.solve(gram + _RIDGE * np.eye(len(gram)), cross)
    return found


def explained(gram: np.ndarray, cross: np.ndarray) -> float:
    """What a regression explains, from its normal equations."""
    solved = solve(gram, cross)
    return float(2 * np.sum(solved * cross) - np.sum(solved * (gram @ solved)))


def least_squares(gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """What a regression explains, for all replicates and with each left out."""
    return np.array([*map(explained, leave_one_out(gram), leave_one_out(cross))])


def leave_one_out(each: np.ndarray) -> np.ndarray:
    """The mean over replicates, then the means with each of them left out."""
    total, count = each.sum(0), len(each)
    return np.concatenate([total[None] / count, (total - each) / (count - 1)])


def jackknife(found: np.ndarray) -> tuple[float, float]:
    """Value and standard error of a statistic, without its first-order bias."""
    count = len(found) - 1
    pseudo = count * found[0] - (count - 1) * found[1:]
    return float(np.mean(pseudo)), float(standard_error(pseudo))
