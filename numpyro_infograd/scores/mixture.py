# SPDX-License-Identifier: Apache-2.0
"""Scores by self-normalised averaging over fresh draws of the hidden noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_infograd.program import Program
from numpyro_infograd.scores.base import Scores
from numpyro_infograd.structure import Density, Values, base_points, draw_noise


class _Half(NamedTuple):
    """Running sums over one half of the components, for each sample."""

    log_sum: jax.Array  # log sum of weights, (num_samples,)
    log_sum_squares: jax.Array  # log sum of squared weights
    score: Values  # weighted mean of complete-data scores


@dataclass(frozen=True)
class Mixture:
    """The conditional mean of Fisher's identity by importance weights.

    p(a) is the average of p(a | noise) over the hidden noise, a mixture with one
    component for each draw; its score is the weighted mean of the components' scores.
    Nothing is learned. The bias falls as one over the effective sample size and does
    not show in the scatter, so it is removed by a jackknife (all components against
    their two halves) and half of what was removed enters the standard error.

    Args:
        num_components: Draws of the hidden noise for each replicate, a power of two.
        num_samples: Default number of samples of a gradient, a power of two.
        block_size: Components handled at once; memory is samples times this.
    """

    num_components: int = 4096
    num_samples: int = 4096
    block_size: int = 64

    def check(self, density: Density) -> None:
        """A mixture serves every density."""

    def init(self, density: Density, rng_key: jax.Array) -> Any:
        """The Sobol points of the components, or None where noise has no points."""
        return base_points(density.hidden_spec, self.num_components)

    def fit(
        self,
        state: Any,
        density: Density,
        forward: Program,
        params: Any,
        rng_key: jax.Array,
        warm: bool = False,
    ) -> Any:
        """Nothing to fit."""
        return state

    def score(
        self,
        state: Any,
        density: Density,
        params: Any,
        values: Values,
        rng_key: jax.Array,
    ) -> Scores:
        """Mixture scores at a batch of values, bias removed to first order."""
        first, second = self._halves(state, density, params, values, rng_key)
        log_sum = jnp.logaddexp(first.log_sum, second.log_sum)
        share = jnp.exp(first.log_sum - log_sum)
        log_squares = jnp.logaddexp(first.log_sum_squares, second.log_sum_squares)
        effective = jnp.exp(2 * log_sum - log_squares)

        def combine(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
            w = _expand(share, a)
            whole = w * a + (1 - w) * b
            return whole, whole - 0.5 * (a + b)

        mean, correction = {}, {}
        for name in density.blocks:
            whole, removed = combine(first.score[name], second.score[name])
            mean[name] = whole + removed
            correction[name] = 0.5 * removed[None]
        evidence = {
            "effective_sample_size": jnp.mean(effective),
            "effective_sample_size_low": jnp.quantile(effective, 0.1),
        }
        return Scores(mean, correction, evidence)

    def log_density(
        self,
        state: Any,
        density: Density,
        params: Any,
        values: Values,
        rng_key: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """log p(sites | given) for each value: jackknifed, correction, sample size."""
        first, second = self._halves(
            state, density, params, values, rng_key, with_score=False
        )
        half = jnp.log(self.num_components / 2)
        log_sum = jnp.logaddexp(first.log_sum, second.log_sum)
        whole = log_sum - jnp.log(float(self.num_components))
        halves = 0.5 * (first.log_sum + second.log_sum) - half
        log_squares = jnp.logaddexp(first.log_sum_squares, second.log_sum_squares)
        effective = jnp.exp(2 * log_sum - log_squares)
        return 2 * whole - halves, whole - halves, effective

    def _halves(
        self,
        points: Any,
        density: Density,
        params: Any,
        values: Values,
        rng_key: jax.Array,
        with_score: bool = True,
    ) -> tuple[_Half, _Half]:
        """Stream over blocks of components with a running log-sum-exp."""
        noise = draw_noise(density.hidden_spec, rng_key, self.num_components, points)
        size = min(self.block_size, self.num_components // 2)
        stacked = {
            name: draws.reshape(2, -1, size, *draws.shape[1:])
            for name, draws in noise.items()
        }
        inside = {name: values[name] for name in density.all_sites}
        names = density.blocks if with_score else ()
        blocks = {name: inside.pop(name) for name in names}

        def against(block: Values, rest: Values, part: Values) -> _Half:
            """One sample against one block of components.

            A value outside a component's support has log density -inf, or NaN with a
            NaN gradient where the law does not say so: either has weight zero.
            """

            def log_prob(block: Values, noise: Values) -> jax.Array:
                return density.log_prob(params, noise, {**rest, **block})

            over_components = jax.vmap(jax.value_and_grad(log_prob), in_axes=(None, 0))
            each, gradients = over_components(block, part)
            each = jnp.where(jnp.isnan(each), -jnp.inf, each)
            log_sum = jax.nn.logsumexp(each)
            weights = jnp.where(each > -jnp.inf, jnp.exp(each - log_sum), 0.0)

            def average(gradient: jax.Array) -> jax.Array:
                w = _expand(weights, gradient)
                return jnp.sum(jnp.where(w > 0, w * gradient, 0.0), axis=0)

            score = jax.tree.map(average, gradients)
            return _Half(log_sum, jax.nn.logsumexp(2 * each), score)

        def step(carry: _Half, part: Values) -> tuple[_Half, None]:
            new = jax.vmap(against, in_axes=(0, 0, None))(blocks, inside, part)
            log_sum = jnp.logaddexp(carry.log_sum, new.log_sum)
            safe = jnp.where(jnp.isfinite(log_sum), log_sum, 0.0)
            keep, add = jnp.exp(carry.log_sum - safe), jnp.exp(new.log_sum - safe)
            score = jax.tree.map(
                lambda old, fresh: (
                    _expand(keep, old) * old + _expand(add, fresh) * fresh
                ),
                carry.score,
                new.score,
            )
            squares = jnp.logaddexp(carry.log_sum_squares, new.log_sum_squares)
            return _Half(log_sum, squares, score), None

        num_samples = next(iter(values.values())).shape[0]
        nothing = jnp.full(num_samples, -jnp.inf)
        start = _Half(nothing, nothing, jax.tree.map(jnp.zeros_like, blocks))

        def half(index: int) -> _Half:
            part = {name: draws[index] for name, draws in stacked.items()}
            return jax.lax.scan(step, start, part)[0]

        return half(0), half(1)


def _expand(weight: jax.Array, like: jax.Array) -> jax.Array:
    """Weights of shape (num_samples,) with trailing axes to multiply `like`."""
    return weight.reshape(weight.shape + (1,) * (like.ndim - 1))
