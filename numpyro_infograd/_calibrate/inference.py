# SPDX-License-Identifier: Apache-2.0
"""Inference of the parameters: corrections, errors, divergences, tests."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from scipy.linalg import eigh
from scipy.spatial.distance import cdist
from scipy.stats import permutation_test

import jax.numpy as jnp

from numpyro_infograd._calibrate.features import Moments
from numpyro_infograd._calibrate.matching import Local, Match
from numpyro_infograd._calibrate.result import TwoSample
from numpyro_infograd._noise import standard_error, student
from numpyro_infograd.values.base import Estimate, report

Inner = TypeVar("Inner")
_FARTHEST = 0.3  # largest correction, in units of the parameters' size
# Slopes and curvatures below this share of the largest curvature are rounding errors;
# so are slopes along unknown directions below _MIXED of the largest slope.
_ROUNDING = 32.0  # in units of the machine's epsilon
_MIXED = 1e-3
_RELABELLINGS = 499  # permutations of a two-sample test


class Directions(NamedTuple):
    """Directions of the unconstrained numbers in which the curvature is diagonal."""

    # Directions that the recordings determine, (numbers, rank), each of length one in
    # units of the parameters' sizes.
    known: np.ndarray
    curvature: np.ndarray  # curvature along each of these, (rank,)
    error: np.ndarray  # standard error along each of these, (rank,)
    unknown: np.ndarray  # the other directions in which the parameters may move
    # Number of unknown directions that may be known with less noisy derivatives of the
    # twin.
    rough: int
    floor: float  # largest rounding error of a slope or a curvature

    def slope(
        self, gradient: np.ndarray, covariance: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """The way down along `unknown`, and its steepness in standard errors.

        Far from the best parameters, the curvature along a direction may be small or
        negative although the recordings determine it. Then the gradient along it, whose
        covariance is given, is not zero.
        """
        along = gradient @ self.unknown
        size = np.einsum("pi,pq,qi->i", self.unknown, covariance, self.unknown)
        mixed = _MIXED * np.abs(gradient @ self.known).max(initial=0.0)
        least = max(self.floor, mixed, 1e-30)
        ratio = np.abs(along) / np.maximum(np.sqrt(np.maximum(size, 0.0)), least)
        steep = ratio > 1
        way = -self.unknown[:, steep] @ np.sign(along[steep])
        return _FARTHEST * way, float(ratio[steep].max(initial=0.0))

    def solve(self, gradient: np.ndarray) -> np.ndarray:
        """The Newton step along `known` for gradients (..., numbers)."""
        return -((gradient @ self.known) / self.curvature) @ self.known.T


def find_directions(
    curvatures: np.ndarray,
    size: np.ndarray,
    allowed: np.ndarray,
    information: np.ndarray,
) -> Directions:
    """The directions that the recordings determine.

    `curvatures` of the divergence are by independent draws of the twin, (draws,
    numbers, numbers); one draw has no noise. `allowed` has orthonormal columns.
    `information` is the covariance of the gradient over resamples of the recordings.
    """
    each = allowed.T @ (curvatures + np.swapaxes(curvatures, 1, 2)) @ allowed / 2
    metric = allowed.T @ (allowed / size[:, None] ** 2)
    curvature, vectors = eigh(each.mean(0), metric)
    error = np.zeros(len(curvature))
    if len(each) > 1:
        error = standard_error(np.einsum("pi,rpq,qi->ri", vectors, each, vectors))
    vectors = allowed @ vectors
    variance = np.einsum("pi,pq,qi->i", vectors, information, vectors)
    recorded = np.sqrt(np.maximum(variance, 0.0))
    # Known: the standard error is below the parameters' size, and the curvature is well
    # above its own noise, and above rounding.
    eps = float(jnp.finfo(jnp.result_type(float)).eps)
    floor = _ROUNDING * eps * float(np.abs(curvature).max(initial=0.0))
    known = (curvature > recorded) & (curvature > np.maximum(3 * error, floor))
    rough = int(np.sum(~known & (3 * error > 20 * recorded)))
    return Directions(
        vectors[:, known],
        curvature[known],
        recorded[known] / curvature[known],
        vectors[:, ~known],
        rough,
        floor,
    )


def curvatures_of(local: Local, match: Match) -> np.ndarray:
    """Curvature of the divergence by each draw of the twin, (draws, numbers, numbers).

    The slopes of the other draws multiply the factor of a draw: their noise is
    independent.
    """
    factor, slopes = _double(match.factor(local), local.slopes)
    others = (slopes.sum(0) - slopes) / (len(slopes) - 1)
    flat = (*factor.shape[:2], -1)
    return factor.reshape(flat) @ np.swapaxes(others.reshape(flat), 1, 2)


def mean_gradient(
    local: Local, weights: Any, match: Match
) -> tuple[np.ndarray, np.ndarray]:
    """The gradient, and its covariance over draws of the twin."""
    mean = match.factor(local).mean(axis=0)
    factor, gap = _double(mean, weights - match.target)
    found = np.einsum("plwd,rlwd->rp", factor, gap)
    covariance = np.atleast_2d(np.cov(found.T)) * student(len(found)) ** 2 / len(found)
    return found.mean(0), covariance


class Place(NamedTuple, Generic[Inner]):
    """The start of a correction."""

    flat: np.ndarray  # the unconstrained numbers, (numbers,)
    gradient: np.ndarray  # gradient of the divergence, (numbers,)
    noise: np.ndarray  # covariance of the gradient over draws of the twin
    # Curvature by each draw of the twin, (draws, numbers, numbers).
    curvatures: np.ndarray
    inside: Inner  # what else the divergence was computed from


def apart(weights: Any, match: Match) -> tuple[float, float]:
    """The Fisher divergence from the recordings of the fit, and its error over draws.

    It uses all pairs of different draws, so the noise of a draw causes no bias.
    """
    gap, gram, shares = _double(weights - match.target, match.law.gram, match.shares)
    products = np.einsum("l,rlwd,slwd->rs", shares, gap, gram @ gap)
    count = len(gap)
    value = (products.sum() - np.trace(products)) / (2 * count * (count - 1))
    return float(value), float(standard_error(products.mean(axis=1)))


def limited(step: np.ndarray, size: np.ndarray) -> np.ndarray:
    """A correction, shortened to a share of the parameters' size."""
    length = np.sqrt(np.mean((step / size) ** 2))
    return step * min(1.0, _FARTHEST / max(length, 1e-30))


def resample(
    match: Match, weights: Any, blocks: Moments, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """W_p of resampled recordings, and G_p (W_q - W_p).

    `counts` has the share of each block in each resample, (num_draws, blocks).
    """
    weights, *whole = _double(weights, *blocks)

    def one(share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        law = Moments(*(np.tensordot(share, x, 1) for x in whole))
        target = match.features.weights(law)
        return target, law.gram @ (weights - target)

    targets, pulls = zip(*map(one, counts), strict=True)
    return np.stack(targets), np.stack(pulls)


def resampled_gradients(
    local: Local, weights: Any, match: Match, targets: np.ndarray, pulls: np.ndarray
) -> np.ndarray:
    """The gradient for each resample of the recordings, (num_draws, numbers)."""
    weights, slopes, flow = (x.mean(0) for x in _double(weights, *local))
    (shares,) = _double(match.shares)
    is_kl = match.divergence == "kl"
    pair = (flow, weights - targets) if is_kl else (slopes, pulls)
    return np.einsum("l,plwd,blwd->bp", shares, *pair)


def held_out(weights: Any, targets: Any, held: Moments, match: Match) -> Estimate:
    """Divergence from held-out recordings, without bias from the fit.

    It is 1/2 <W_q - W_p, G W_q - c>, with the moments G (plus the ridge) and c of the
    held-out recordings. Their own score has G W = c, so this is a product of
    independent errors. `targets` are W_p of resamples of the other recordings.
    """
    weights, target, targets, gram, slope, shares = _double(
        weights,
        match.target,
        targets,
        match.features.ridged(held.gram),
        held.slope,
        match.shares,
    )
    scaled = shares[:, None, None]
    mean, mean_gram, mean_slope = (x.mean(0) for x in (weights, gram, slope))
    first, second = scaled * (weights - target), mean_gram @ weights - mean_slope
    # The sum over all pairs of different draws.
    pairs = np.vdot(first.sum(0), second.sum(0)) - np.vdot(first, second)
    found = 0.5 * pairs / (len(weights) * (len(weights) - 1))
    by_block = 0.5 * np.einsum(
        "lwd,blwd->b", scaled * (mean - target), gram @ mean - slope
    )
    pull = scaled * (mean_gram @ mean - mean_slope)
    fit_error = 0.5 * np.einsum("blwd,lwd->b", targets, pull).std(ddof=1)
    alone = 0.5 * np.einsum("rlwd,lwd->r", weights - mean, 2 * pull)
    held_error, own_error = standard_error(by_block), standard_error(alone)
    error = float(np.sqrt(held_error**2 + fit_error**2 + own_error**2))
    return report(float(found), error, "features")


def two_sample(recorded: np.ndarray, drawn: np.ndarray) -> TwoSample:
    """Two-sample permutation test by energy distance, (num_samples, dimensions)."""
    both = np.concatenate([recorded, drawn])
    distances = cdist(both, both)

    def energy(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
        label = np.zeros((*first.shape[:-1], len(both)))
        for rows, sign in ((first, 1), (second, -1)):
            share = sign / rows.shape[-1]
            np.put_along_axis(label, rows.astype(int), share, axis=axis)
        return -np.sum((label @ distances) * label, axis=axis)

    found = permutation_test(
        (np.arange(len(recorded)), np.arange(len(recorded), len(both))),
        energy,
        alternative="greater",
        n_resamples=_RELABELLINGS,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return TwoSample(float(found.statistic), float(found.pvalue))


def _double(*arrays: Any) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(x, np.float64) for x in arrays)
