# SPDX-License-Identifier: Apache-2.0
"""A calibration by the scores of twin and recordings: the divergences of `matching`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

import jax

from numpyro_infograd._calibrate.features import (
    Moments,
    block_moments,
    coordinates,
    make_features,
)
from numpyro_infograd._calibrate.fit import Fit
from numpyro_infograd._calibrate.inference import Place
from numpyro_infograd._calibrate.matching import (
    Local,
    Match,
    descend,
    draw_weights,
    look_around,
    with_blur,
)
from numpyro_infograd._density import Values
from numpyro_infograd._noise import NoiseSource, standard_error, student
from numpyro_infograd._optimize.move import Move
from numpyro_infograd.values import Estimate
from numpyro_infograd.values.base import report

_FINAL_SAMPLES = 16384  # draws of the twin for features, and near the end
_FEW_SAMPLES = 8192  # draws for derivatives in several numbers
_AT_ONCE = 2**20  # numbers in the moments of resamples that are solved together


class Inside(NamedTuple):
    """What a gradient is computed from."""

    local: Local  # derivatives of the twin in its parameters
    whole: Any  # W_q at all levels, (draws, levels, width, dimensions)
    weights: Any  # W_q at the levels in use


class MatchedFit(Fit[Inside]):
    """A calibration by the Fisher divergence or the reverse Kullback-Leibler one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.spec = with_blur(self.sm.spec, sum(self.density.sizes))

    def look(self) -> None:
        """Train features at the present parameters, and measure the recordings."""
        levels, settings = self.settings.levels, self.settings
        drawn = self.simulate(self.unconstrained_params, _FINAL_SAMPLES)
        features = make_features(
            self.density,
            self.recordings(self.train.ravel()),
            drawn,
            levels,
            settings.network,
            next(self.keys),
            settings.robust,
        )
        index = np.concatenate([self.train, self.held])  # one program for both
        every = block_moments(features, self.recordings(index), next(self.keys))
        every, count = jax.device_get(every), len(self.train)
        blocks = Moments(*(x[:count] for x in every))
        held = Moments(*(x[count:] for x in every))
        law = Moments(*(np.mean(x, axis=0) for x in blocks))
        whole = Match(
            self.sm.forward,
            features,
            law,
            features.weights(law),
            np.ones(len(levels), features.power.dtype),
            self.constraints,
            "fisher",
        )
        self.blocks, self.held_blocks, self.whole = blocks, held, whole
        self.reported = whole.at(settings.reported, "fisher")
        self.match = whole.at(settings.used, settings.divergence)

    def chunk(
        self, move: Move, state: Any, rates: Any, rng_key: jax.Array
    ) -> tuple[Any, dict[str, Any]]:
        size, divergence = self.settings.num_samples, self.settings.divergence
        # The Fisher divergence takes two draws of half the size.
        source = NoiseSource.of(self.spec, size if divergence == "kl" else size // 2)
        return descend(self.match, move, state, rates, rng_key, source)

    def place(self) -> Place[Inside] | None:
        """Gradient and curvature at the present parameters."""
        whole = self.draw_weights()
        weights = whole[:, self.whole.features.index(self.settings.used)]
        few = _FINAL_SAMPLES if self.flat.size == 1 else _FEW_SAMPLES
        local = look_around(
            self.match,
            self.unconstrained_params,
            weights,
            next(self.keys),
            NoiseSource.of(self.spec, _FINAL_SAMPLES),
            NoiseSource.of(self.spec, few),
        )
        local = jax.device_get(local)
        if not all(np.isfinite(x).all() for x in jax.tree.leaves((whole, local))):
            return None
        factor = self.match.factor(local)
        mean, gap = _double(factor.mean(axis=0), weights - self.match.target)
        found = np.einsum("plwd,rlwd->rp", mean, gap)
        noise = np.atleast_2d(np.cov(found.T)) * student(len(found)) ** 2 / len(found)
        return Place(
            np.asarray(self.flat, float),
            found.mean(0),
            noise,
            curvatures_of(factor, local.slopes),
            Inside(local, whole, weights),
        )

    def rises(self, last: Place[Inside], here: Place[Inside]) -> bool:
        """Whether the divergence rose by more than two standard errors.

        The value of the reverse KL is not known. Its rise is estimated by the step
        times the mean of the gradients at both ends.
        """
        if self.match.divergence == "kl":
            way = here.flat - last.flat
            rise = way @ (last.gradient + here.gradient) / 2
            return bool(rise > np.sqrt(way @ (last.noise + here.noise) @ way))
        before, now = (
            apart(place.inside.weights, self.match) for place in (last, here)
        )
        return now[0] - before[0] > 2 * np.hypot(before[1], now[1])

    def coordinates(self, values: Values) -> np.ndarray:
        """Whitened values of the recorded sites."""
        return np.asarray(coordinates(self.whole.features, values))

    def near(self, coordinates: Any) -> np.ndarray:
        weight = np.asarray(self.whole.features.weigh(coordinates))
        return np.broadcast_to(weight > 0, (len(coordinates), 1))[:, 0]

    def draw_weights(self) -> Any:
        """W_q of independent draws at the present parameters."""
        source = NoiseSource.of(self.spec, _FINAL_SAMPLES)
        here = self.unconstrained_params
        return np.asarray(draw_weights(self.whole, here, next(self.keys), source))

    def resample(
        self, weights: np.ndarray, num_draws: int, joined: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """W_p of resampled blocks of recordings, and G_p (W_q - W_p)."""
        mean, *whole = _double(weights.mean(axis=0), *self.blocks)
        parts = math.ceil(num_draws * whole[0][0].size / _AT_ONCE)
        targets, pulls = [], []
        for shares in np.array_split(self.shares(num_draws, joined), parts):
            law = Moments(*(np.tensordot(shares, x, 1) for x in whole))
            targets.append(self.whole.features.weights(law))
            pulls.append(law.gram @ (mean - targets[-1]))
        return np.concatenate(targets), np.concatenate(pulls)

    def resampled(
        self, place: Place[Inside], num_draws: int, joined: int = 1
    ) -> np.ndarray:
        local, whole, weights = place.inside
        targets, pulls = self.resample(whole, num_draws, joined)
        index = self.whole.features.index(self.settings.used)
        mean, slopes, flow = (x.mean(0) for x in _double(weights, *local))
        (shares,) = _double(self.match.shares)
        is_kl = self.match.divergence == "kl"
        pair = (flow, mean - targets[:, index]) if is_kl else (slopes, pulls[:, index])
        return np.einsum("l,plwd,blwd->bp", shares, *pair)

    def measure(self, num_draws: int) -> Estimate:
        """Divergence from the held-out recordings, averaged over all levels.

        It is 1/2 <W_q - W_p, G W_q - c>, with the moments G (plus the ridge) and c of
        the held-out recordings. Their own score has G W = c, so this is a product of
        independent errors, without bias from the fit.
        """
        whole, match = self.draw_weights(), self.reported
        resampled = self.resample(whole, num_draws)[0]
        index = self.whole.features.index(self.settings.reported)
        weights, target, targets, gram, slope, shares = _double(
            whole[:, index],
            match.target,
            resampled[:, index],
            match.features.ridged(self.held_blocks.gram[:, index]),
            self.held_blocks.slope[:, index],
            match.shares,
        )
        scaled = shares[:, None, None]
        mean, mean_gram, mean_slope = (x.mean(0) for x in (weights, gram, slope))
        first, second = scaled * (weights - target), mean_gram @ weights - mean_slope
        # The sum over all pairs of different draws.
        pairs = np.vdot(first.sum(0), second.sum(0)) - np.vdot(first, second)
        value = 0.5 * pairs / (len(weights) * (len(weights) - 1))
        by_block = 0.5 * np.einsum(
            "lwd,blwd->b", scaled * (mean - target), gram @ mean - slope
        )
        pull = scaled * (mean_gram @ mean - mean_slope)
        fit_error = 0.5 * np.einsum("blwd,lwd->b", targets, pull).std(ddof=1)
        alone = 0.5 * np.einsum("rlwd,lwd->r", weights - mean, 2 * pull)
        held_error, own_error = standard_error(by_block), standard_error(alone)
        error = np.sqrt(held_error**2 + fit_error**2 + own_error**2)
        return report(float(value), float(error), "features")


def curvatures_of(factor: Any, slopes: Any) -> np.ndarray:
    """Curvature of the divergence by each draw of the twin, (draws, numbers, numbers).

    The slopes of the other draws multiply the factor of a draw: their noise is
    independent.
    """
    factor, slopes = _double(factor, slopes)
    others = (slopes.sum(0) - slopes) / (len(slopes) - 1)
    flat = (*factor.shape[:2], -1)
    return factor.reshape(flat) @ np.swapaxes(others.reshape(flat), 1, 2)


def apart(weights: Any, match: Match) -> tuple[float, float]:
    """The Fisher divergence from the recordings of the fit, and its error over draws.

    It uses all pairs of different draws, so the noise of a draw causes no bias.
    """
    gap, gram, shares = _double(weights - match.target, match.law.gram, match.shares)
    products = np.einsum("l,rlwd,slwd->rs", shares, gap, gram @ gap)
    count = len(gap)
    value = (products.sum() - np.trace(products)) / (2 * count * (count - 1))
    return float(value), float(standard_error(products.mean(axis=1)))


def _double(*arrays: Any) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(x, np.float64) for x in arrays)
