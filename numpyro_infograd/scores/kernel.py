# SPDX-License-Identifier: Apache-2.0
"""Scores by the spectral Stein gradient estimator: samples only, nothing trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_infograd.arguments import as_power_of_two, check_numbers
from numpyro_infograd.density import Density, Values
from numpyro_infograd.noise import base_points
from numpyro_infograd.program import Program
from numpyro_infograd.scores.base import (
    Layout,
    ScoreMethod,
    Scores,
)
from numpyro_infograd.scores.coordinates import Frame, Free
from numpyro_infograd.scores.learned import report_scores
from numpyro_infograd.scores.pool import draw_pool, with_noise

_MEMBERS = 4
# Times the share left out, to see what eigenfunctions still added, and would yet add.
_OTHERS = (5.0, 0.1)


class _Expansion(NamedTuple):
    frame: Frame
    centres: jax.Array  # (members, num_points, inputs)
    weights: jax.Array  # (members, num_points, outputs)
    others: tuple[jax.Array, ...]  # the same by fewer and by more eigenfunctions
    width: jax.Array  # of the kernel


@dataclass(frozen=True, kw_only=True)
class Kernel(ScoreMethod):
    """The spectral Stein gradient estimator (Shi, Sun and Zhu 2018), as in MIGE.

    The score is expanded in the eigenfunctions of a Gaussian kernel under the law of
    the samples, by the Nystrom method; Stein's identity gives the coefficients,
    -E[grad psi_j]. Here it expands what the normal law of the moments leaves. It sees
    samples alone and suits a few dimensions. Its standard error holds the scatter of
    four independent expansions, what the last eigenfunctions added and what more of
    them would add.

    Args:
        num_points: Samples that carry each expansion, a power of two.
        share: Of the kernel's trace that the eigenfunctions kept stand for.
        num_samples: Default number of samples of a gradient, a power of two.

    Example:
        >>> import numpyro_infograd as ig
        >>> ig.scores.Kernel(num_points=256).num_deviations
        8
    """

    num_points: int = 512
    share: float = 0.99
    num_samples: int = 16384

    samples_only = True
    num_deviations = 2 * _MEMBERS

    def __post_init__(self) -> None:
        as_power_of_two("num_points", self.num_points, 32)
        as_power_of_two("num_samples", self.num_samples, 256)
        check_numbers(self, "share", high=1.0)

    def init(self, density: Density, rng_key: jax.Array) -> Any:
        """The point set of a pool."""
        return base_points(with_noise(density), self.num_points), None

    def fit(
        self,
        state: Any,
        density: Density,
        forward: Program,
        params: Any,
        rng_key: jax.Array,
        warm: bool = False,
    ) -> Any:
        """Expand anew: there is nothing to keep."""
        points, _ = state
        pool = draw_pool(
            density, forward, params, rng_key, _MEMBERS, self.num_points, points
        )
        layout = Layout.of(density)
        frame = Frame.of(pool.values, layout)
        centres = frame.white(pool.values - frame.mean)
        distances = jax.vmap(lambda x: _squares(x, x))(centres)
        width = jnp.sqrt(0.5 * jnp.median(distances[:, ::4, 1::4]))
        outputs = jnp.asarray(layout.outputs, int)
        directions = frame.unspread @ frame.whiten[:, outputs].T

        def expand(pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
            values, x = pair
            count = len(x)
            gram = jnp.exp(-_squares(x, x) / (2 * width**2))
            sizes, vectors = jnp.linalg.eigh(gram)
            sizes, vectors = sizes[::-1], vectors[:, ::-1]
            before = jnp.cumsum(sizes) - sizes
            # E[dk(x, x_m) / dx] and E[k(x, x_m) s(x)] of the normal law, for each m.
            along = x @ directions.T
            slope = (gram.T @ along - gram.sum(0)[:, None] * along) / width**2
            known = gram @ frame.gaussian(values - frame.mean)
            means = (slope - known) / count

            def weights(share: float) -> jax.Array:
                kept = before < share * jnp.sum(sizes)
                inverse = jnp.where(kept, count / jnp.maximum(sizes, 1e-12) ** 2, 0.0)
                return vectors @ (inverse[:, None] * (vectors.T @ means))

            left = 1.0 - self.share
            return tuple(weights(1.0 - times * left) for times in (1.0, *_OTHERS))

        # One after the other: together they hang CPUs that play several devices.
        weights, *others = jax.lax.map(expand, (pool.values, centres))
        return points, _Expansion(frame, centres, weights, tuple(others), width)

    def score(
        self,
        state: Any,
        density: Density,
        params: Any,
        values: Values,
        rng_key: jax.Array,
    ) -> Scores:
        """Mean of the expansions, with their spread as the error."""
        found: _Expansion = state[-1]
        centred = Free.of(density, values).values - found.frame.mean
        seen = found.frame.white(centred)

        def member(centres: jax.Array, weights: jax.Array) -> jax.Array:
            return jnp.exp(-_squares(seen, centres) / (2 * found.width**2)) @ weights

        residual = jax.vmap(member)(found.centres, found.weights)
        each = (found.frame.gaussian(centred) + residual) @ found.frame.spread
        doubts = tuple(
            jnp.mean(jax.vmap(member)(found.centres, other - found.weights), axis=0)
            @ found.frame.spread
            for other in found.others
        )
        return report_scores(density, values, each, doubts, {})


def _squares(a: jax.Array, b: jax.Array) -> jax.Array:
    """Squared distances between two sets of points."""
    inner = a @ b.T
    sizes = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)
    return jnp.maximum(sizes - 2 * inner, 0.0)
