# SPDX-License-Identifier: Apache-2.0
"""Inference of the parameters: corrections, errors, a two-sample test."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import numpy as np
from scipy.linalg import eigh
from scipy.spatial.distance import cdist
from scipy.stats import permutation_test

import jax.numpy as jnp

from numpyro_infograd._calibrate.result import TwoSample
from numpyro_infograd._noise import standard_error

Inner = TypeVar("Inner")
_VAGUE = 3.0  # largest standard error, in units of the parameters' size
# The least size in standard errors with all others fixed, and its largest growth by it.
_ERRORS, _GROWN = 3.0, 10.0
_FARTHEST = 0.3  # largest correction, in units of the parameters' size
# Rounding error of a curvature along a direction, as a share of what the curvatures of
# the single numbers add up to, in units of the machine's epsilon.
_ROUNDING = 32.0
_MIXED = 1e-3  # share of the largest slope, below which others count as zero
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
    floor: np.ndarray  # rounding error of the curvature along each of `unknown`

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
        least = np.maximum(self.floor, max(mixed, 1e-30))
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
    # Known: the standard error is below a few sizes of the parameters, and the
    # curvature is well above its own noise, and above rounding.
    eps = float(jnp.finfo(jnp.result_type(float)).eps)
    alone = np.sqrt(np.abs(np.diag(curvatures.mean(0))))
    floor = _ROUNDING * eps * (alone @ np.abs(vectors)) ** 2
    known = (_VAGUE * curvature > recorded) & (curvature > np.maximum(3 * error, floor))
    rough = int(np.sum(~known & (3 * error > 20 * recorded)))
    return Directions(
        vectors[:, known],
        curvature[known],
        recorded[known] / curvature[known],
        vectors[:, ~known],
        rough,
        floor[~known],
    )


def grown(
    size: np.ndarray, curvatures: np.ndarray, information: np.ndarray
) -> np.ndarray:
    """Sizes of the parameters, at least a few of their errors with all others fixed.

    Else a mean that happens to be near zero would have almost no size.
    """
    own = np.diagonal(curvatures, axis1=1, axis2=2)
    noise = standard_error(own) if len(own) > 1 else 0.0
    curvature = np.maximum(own.mean(0), 3 * noise + 1e-30)
    alone = np.sqrt(np.diag(information)) / curvature
    return np.maximum(size, np.minimum(_ERRORS * alone, _GROWN * size))


class Place(NamedTuple, Generic[Inner]):
    """The start of a correction."""

    flat: np.ndarray  # the unconstrained numbers, (numbers,)
    gradient: np.ndarray  # gradient of the divergence, (numbers,)
    noise: np.ndarray  # covariance of the gradient over draws of the twin
    # Curvature by each draw of the twin, (draws, numbers, numbers).
    curvatures: np.ndarray
    inside: Inner  # what else the divergence was computed from


def limited(
    step: np.ndarray, size: np.ndarray, errors: np.ndarray, reach: float
) -> np.ndarray:
    """A correction, shortened to `reach` times a share of the parameters' size, or to
    the largest of their standard errors in units of their size.
    """
    length = np.sqrt(np.mean((step / size) ** 2))
    farthest = max(reach * _FARTHEST, errors.max(initial=0.0))
    return step * min(1.0, farthest / max(length, 1e-30))


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
