# SPDX-License-Identifier: Apache-2.0
"""Scores by self-normalised importance weights over draws of the hidden noise."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import check_powers_of_two
from numpyro_infograd._density import Density, Values, quantiles
from numpyro_infograd._doors import settings_class
from numpyro_infograd._noise import NoiseSource
from numpyro_infograd.errors import VOUCH, DensityError
from numpyro_infograd.scores.base import Measure, ScoreMethod, Scores

# Below this effective sample size (the 10 % quantile over samples) the jackknife no
# longer removes a mixture's bias.
SOUND_SAMPLE_SIZE = 200.0
# Share of samples that may lie outside the support of all components of a half.
FEW_UNEXPLAINED = 1e-3
LOWEST = "effective_sample_size_low"  # evidence: its 10 % quantile over samples


class _Sums(NamedTuple):
    """Sums over components for each sample, relative to the largest weight so far."""

    peak: jax.Array  # largest log weight, (num_samples,)
    weight: jax.Array  # sum of weights / exp(peak)
    square: jax.Array  # sum of squared weights / exp(2 peak)
    score: Values  # sum of weights / exp(peak) times complete-data scores

    def plus(self, other: _Sums) -> _Sums:
        """The sums over both sets of components."""
        peak = jnp.maximum(self.peak, other.peak)
        safe = jnp.where(jnp.isfinite(peak), peak, 0.0)
        a, b = jnp.exp(self.peak - safe), jnp.exp(other.peak - safe)
        score = jax.tree.map(
            lambda x, y: expand(a, x) * x + expand(b, y) * y, self.score, other.score
        )
        return _Sums(
            peak,
            a * self.weight + b * other.weight,
            a**2 * self.square + b**2 * other.square,
            score,
        )

    @property
    def log_sum(self) -> jax.Array:
        """Log of the sum of weights."""
        return self.peak + jnp.log(self.weight)

    @property
    def mean_score(self) -> Values:
        """Weighted mean of the complete-data scores; zero if all weights are zero."""
        weight = jnp.where(self.weight > 0, self.weight, 1.0)
        return jax.tree.map(lambda x: x / expand(weight, x), self.score)

    @property
    def effective_sample_size(self) -> jax.Array:
        """Kish's (sum w)^2 / sum w^2; zero if all weights are zero."""
        square = jnp.where(self.weight > 0, self.square, 1.0)
        return self.weight**2 / square


class LogDensity(NamedTuple):
    """Estimated log densities of some values."""

    value: jax.Array  # from all components, in nats
    correction: jax.Array  # for the bias, by a jackknife over two halves, in nats
    effective_sample_size: jax.Array  # the 10 % quantile over values

    @property
    def is_explained(self) -> jax.Array:
        """Whether each value lies in the support of both halves of the components."""
        return jnp.isfinite(self.value) & jnp.isfinite(self.correction)

    def evidence(self, label: str) -> dict[Measure, jax.Array]:
        """How good the components are, for the set of sites with this label."""
        return {
            Measure(LOWEST, label): self.effective_sample_size,
            Measure("unexplained", label): jnp.mean(~self.is_explained),
        }


@settings_class
class Mixture(ScoreMethod):
    """The conditional mean of Fisher's identity by importance weights.

    p(a) is the average of p(a | noise) over draws of the hidden noise: a mixture with
    one component for each draw. Its score is the weighted mean of the components'
    scores; nothing is learned. The bias falls as one over the effective sample size and
    does not show in the scatter. A jackknife over two halves of the components removes
    it to first order, and the standard error includes half of what was removed.

    Args:
        num_components: Draws of the hidden noise for each replicate, a power of two.
        num_samples: Default number of samples of a gradient, a power of two.
        block_size: Components evaluated at once, a power of two. Memory grows as the
            number of samples times this.

    Example:
        >>> import numpyro_infograd as ig
        >>> method = ig.scores.Mixture(num_components=4096)  # for `scores=`
        >>> method.num_samples
        16384
    """

    num_components: int = 1024
    num_samples: int = 16384
    block_size: int = 128

    step_samples = 2048
    needs_certificate = False  # nothing is learned

    def __post_init__(self) -> None:
        check_powers_of_two(self, 2, "num_components", "num_samples", "block_size")

    def check(self, density: Density) -> None:
        """Raise for a moving boundary, or for a site without a density."""
        super().check(density)
        if density.without_density:
            raise DensityError(
                f"site {density.without_density[0]!r} is deterministic: it has no "
                "density given the other noise. Use scores='denoising', "
                f"or observe it through a sample site. {VOUCH}"
            )
        if density.hidden_deterministic:
            raise DensityError(
                f"site {density.hidden_deterministic[0]!r} is deterministic and shares "
                "hidden noise with the rest of its set, so a mixture cannot condition "
                f"on it. Use scores='denoising'. {VOUCH}"
            )

    def warnings_for(self, density: Density, evidence: dict[str, float]) -> list[str]:
        """Also warns of too few components with weight."""
        size = evidence[LOWEST]
        found = super().warnings_for(density, evidence)
        if evidence["unexplained"] > FEW_UNEXPLAINED:
            found.append(
                f"{evidence['unexplained']:.2%} of the samples of {density.label!r} "
                "lie outside the support of all components in one half of the mixture, "
                "so their scores are poor. Raise num_components, or use "
                "scores='denoising'."
            )
        if not size >= SOUND_SAMPLE_SIZE:
            found.append(
                f"the mixture's effective sample size for {density.label!r} is only "
                f"{size:.0f}: the bias may exceed the standard error. Raise "
                "num_components, or use scores='mcmc'."
            )
        return found

    def init(self, density: Density, rng_key: jax.Array) -> Any:
        """Noise of the components."""
        return NoiseSource.of(density.hidden_spec, self.num_components)

    def score(
        self,
        state: Any,
        density: Density,
        params: Any,
        noise: Values,
        values: Values,
        rng_key: jax.Array,
    ) -> Scores:
        """Mixture scores at a batch of values, with the bias removed to first order."""
        first, second = self._halves(state, density, params, values, rng_key)
        both = first.plus(second)
        a, b, whole = first.mean_score, second.mean_score, both.mean_score
        explained = (first.weight > 0) & (second.weight > 0)

        def correction(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
            return jnp.where(expand(explained, w), w - 0.5 * (x + y), 0.0)

        removed = jax.tree.map(correction, whole, a, b)
        evidence = {
            "unexplained": jnp.mean(~explained),
            "effective_sample_size": jnp.mean(both.effective_sample_size),
            LOWEST: _lowest_tenth(first, second),
        }
        return Scores(
            jax.tree.map(jnp.add, whole, removed),
            jax.tree.map(lambda x: 0.5 * x[None], removed),
            evidence,
        )

    def log_density(
        self,
        state: Any,
        density: Density,
        params: Any,
        values: Values,
        rng_key: jax.Array,
    ) -> LogDensity:
        """log p(sites | given) of each value."""
        first, second = self._halves(
            state, density, params, values, rng_key, with_score=False
        )
        both = first.plus(second)
        count = math.log(self.num_components)
        whole = both.log_sum - count
        halves = 0.5 * (first.log_sum + second.log_sum) - (count - math.log(2.0))
        return LogDensity(whole, whole - halves, _lowest_tenth(first, second))

    def _halves(
        self,
        source: NoiseSource,
        density: Density,
        params: Any,
        values: Values,
        rng_key: jax.Array,
        with_score: bool = True,
    ) -> tuple[_Sums, _Sums]:
        """Sums of both halves of the components, block by block."""
        size = min(self.block_size, self.num_components // 2)
        stacked = {
            name: draws.reshape(2, -1, size, *draws.shape[1:])
            for name, draws in source(rng_key).items()
        }
        inside = density.pick(values)
        names = density.moved_sites if with_score else ()
        moved = {name: inside.pop(name) for name in names}

        def against(moved: Values, rest: Values, part: Values) -> _Sums:
            """Sums of one block of components for one sample.

            A value outside a component's support has log density -inf; some
            distributions give NaN, with a NaN gradient. Both get weight zero.
            """

            def log_prob(moved: Values, noise: Values) -> jax.Array:
                return density.log_prob(params, noise, {**rest, **moved})

            over_components = jax.vmap(jax.value_and_grad(log_prob), in_axes=(None, 0))
            each, gradients = over_components(moved, part)
            each = jnp.where(jnp.isnan(each), -jnp.inf, each)
            peak = jnp.max(each)
            weights = jnp.exp(each - jnp.where(jnp.isfinite(peak), peak, 0.0))

            def add_up(gradient: jax.Array) -> jax.Array:
                w = expand(weights, gradient)
                return jnp.sum(jnp.where(w > 0, w * gradient, 0.0), axis=0)

            return _Sums(
                peak,
                jnp.sum(weights),
                jnp.sum(weights**2),
                jax.tree.map(add_up, gradients),
            )

        def step(carry: _Sums, part: Values) -> tuple[_Sums, None]:
            new = jax.vmap(against, in_axes=(0, 0, None))(moved, inside, part)
            return carry.plus(new), None

        num_samples = next(iter(values.values())).shape[0]
        zero = jnp.zeros(num_samples)
        start = _Sums(zero - jnp.inf, zero, zero, jax.tree.map(jnp.zeros_like, moved))

        # A loop over the halves compiles in less time than two copies.
        halves = jax.lax.map(lambda half: jax.lax.scan(step, start, half)[0], stacked)
        first, second = (jax.tree.map(lambda x, i=i: x[i], halves) for i in (0, 1))
        return first, second


def _lowest_tenth(first: _Sums, second: _Sums) -> jax.Array:
    """Effective sample size, the 10 % quantile over samples.

    Kish's formula is for independent draws. Quasi-random draws do better in few
    dimensions. The sums of weights of the two halves show this: the square of their
    relative difference is one over the effective sample size on average.
    """
    (kish,) = quantiles(first.plus(second).effective_sample_size, 0.1)
    share = jnp.tanh(0.5 * (first.log_sum - second.log_sum))
    share = jnp.where(jnp.isnan(share), 1.0, share)  # if both sums are zero
    (widest,) = quantiles(share**2, 0.9)
    return jnp.maximum(kish, 1 / widest)


def expand(weight: jax.Array, like: jax.Array) -> jax.Array:
    """Weights of shape (num_samples,), reshaped to multiply `like`."""
    return weight.reshape(weight.shape + (1,) * (like.ndim - 1))
