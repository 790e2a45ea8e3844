# SPDX-License-Identifier: Apache-2.0
"""Markov chains over hidden noise that start at an exact draw of it.

The noise that made a sample is a draw of its law given the sample. A chain that leaves
this law unchanged and starts there is stationary from its first step, whatever its
length: it only has to forget its start. The kernels are BlackJAX's. What they need to
know is found on a pilot batch (`pilot`) and then frozen, because a chain that adapts to
its own states would not stay stationary.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from blackjax.mcmc import hmc, random_walk
from blackjax.mcmc.metrics import LowRankInverseMassMatrix

import jax
import jax.numpy as jnp

from numpyro_infograd.density import Values
from numpyro_infograd.hidden import Hidden, LogProbs, Position

# Every fourth trajectory has small steps, for samples whose posterior is narrow, and
# after every fourth a draw from the prior is proposed, for samples that say little.
_ROUND = 4
_SMALL = 0.15
_JITTER = (0.4, 1.2)  # of the step size, so that no period of the dynamics is hit
_GOLDEN = 0.5 * (math.sqrt(5.0) - 1.0)
_TIME = 4.0  # length of a trajectory, in standard deviations of the average posterior
_MOST_LEAPS = 64


class Tuning(NamedTuple):
    """What chains need to know, from a pilot batch.

    Attributes:
        scale: Standard deviation of each coordinate under the prior, (num_dimensions,).
        directions: Eigenvectors of the mean Fisher information that the values carry
            about the scaled coordinates, (num_dimensions, rank).
        information: Their eigenvalues, (rank,).
        step_size: Of the leapfrog integrator, a scalar.
        slope: Coefficients of the control variate, (num_scores, num_dimensions).
        num_steps: Steps after which a chain has forgotten its start, a scalar.
    """

    scale: jax.Array
    directions: jax.Array
    information: jax.Array
    step_size: jax.Array
    slope: jax.Array
    num_steps: jax.Array

    def metric(self, power: jax.Array | float) -> LowRankInverseMassMatrix:
        """The inverse of the average posterior's precision, likelihood tempered."""
        shrunk = 1.0 / (1.0 + power * self.information)
        return LowRankInverseMassMatrix(self.scale, self.directions, shrunk)


class Chain(NamedTuple):
    """A chain of one sample: where it is, and what is known there.

    Attributes:
        at: The position.
        log_prob: Log density that the chain leaves unchanged, in nats.
        gradient: Its gradient in the free coordinates, (num_dimensions,).
        score: The complete-data score of the set's blocks, (num_scores,).
    """

    at: Position
    log_prob: jax.Array
    gradient: jax.Array
    score: jax.Array


class Walk(NamedTuple):
    """A law of the hidden noise of one sample: prior times likelihood to a power.

    Attributes:
        hidden: What a set of sites hides.
        params: Parameters, in constrained space.
        values: One value of each site of the set.
        tuning: From a pilot batch.
        power: Between 0, the prior, and 1, the posterior.
    """

    hidden: Hidden
    params: Any
    values: Values
    tuning: Tuning
    power: jax.Array | float = 1.0

    def log_probs(self, at: Position, blocks: Values | None = None) -> LogProbs:
        """Log densities at a position, the likelihood to its power."""
        values = self.values if blocks is None else {**self.values, **blocks}
        prior, likelihood = self.hidden.log_probs(self.params, at, values)
        return LogProbs(prior, self.power * likelihood)

    def chain(self, at: Position) -> Chain:
        """A chain at a position."""

        def joint(free: jax.Array, blocks: Values) -> jax.Array:
            return self.log_probs(Position(free, at.states), blocks).joint

        blocks = {name: self.values[name] for name in self.hidden.blocks}
        log_prob, (gradient, score) = jax.value_and_grad(joint, argnums=(0, 1))(
            at.free, blocks
        )
        flat = [jnp.zeros(0), *(score[name].ravel() for name in self.hidden.blocks)]
        return Chain(at, log_prob, gradient, jnp.concatenate(flat))

    def score(self, chain: Chain) -> jax.Array:
        """The chain's complete-data score with a control variate, (num_scores,).

        The gradient of a log density has mean zero under it (Stein's identity). What
        is left in a linear-Gaussian model is the score itself, wherever the chain is.
        """
        return chain.score + self.tuning.slope @ chain.gradient

    def step(
        self, rng_key: jax.Array, index: jax.Array, chain: Chain
    ) -> tuple[Chain, jax.Array]:
        """A trajectory and what else is due; with the acceptance of the trajectory."""
        keys = jax.random.split(rng_key, 3)
        at, accepted = chain.at, jnp.ones(())
        if self.hidden.size:
            at, accepted = self._trajectory(keys[0], index, chain)
        if self.hidden.walked:
            at = self._flip(keys[1], at)
        due = index % _ROUND == 0
        at = jax.lax.cond(due, self._refresh, lambda _, at: at, keys[2], at)
        return self.chain(at), accepted

    def _trajectory(
        self, rng_key: jax.Array, index: jax.Array, chain: Chain
    ) -> tuple[Position, jax.Array]:
        """Hamiltonian Monte Carlo in the continuous coordinates."""
        step_size, at = self.tuning.step_size, chain.at
        low, high = _JITTER
        share = low + (high - low) * (index * _GOLDEN % 1.0)
        share *= jnp.where(index % _ROUND == _ROUND - 1, _SMALL, 1.0)
        state, info = hmc.build_kernel()(
            rng_key,
            hmc.HMCState(at.free, chain.log_prob, chain.gradient),
            lambda free: _number(self.log_probs(Position(free, at.states)).joint),
            share * step_size,
            self.tuning.metric(self.power),
            jnp.clip(jnp.ceil(_TIME / step_size), 1, _MOST_LEAPS).astype(int),
        )
        return Position(state.position, at.states), info.acceptance_rate

    def _flip(self, rng_key: jax.Array, at: Position) -> Position:
        """Metropolis steps of single discrete values, as many as there are."""
        kernel = random_walk.build_rmh()

        def log_prob(states: jax.Array) -> jax.Array:
            return _number(self.log_probs(Position(at.free, states)).joint)

        def flip(index: jax.Array, state: Any) -> Any:
            key = jax.random.fold_in(rng_key, index)
            return kernel(key, state, log_prob, self._proposed)[0]

        state = random_walk.init(at.states, log_prob)
        state = jax.lax.fori_loop(0, at.states.size, flip, state)
        return Position(at.free, state.position)

    def _proposed(self, rng_key: jax.Array, states: jax.Array) -> jax.Array:
        """Another choice for one value; where endlessly many, a step up or down."""
        index_key, other_key, sign_key = jax.random.split(rng_key, 3)
        counts = [
            len(site.choices)
            for site in self.hidden.walked
            for _ in range(math.prod(site.shape))
        ]
        index = jax.random.randint(index_key, (), 0, len(counts))
        count, now = jnp.asarray(counts)[index], states[index]
        other = jax.random.randint(other_key, (), 1, jnp.maximum(count, 2))
        far = 1 + jnp.floor(jax.random.exponential(other_key)).astype(now.dtype)
        step = jnp.where(jax.random.bernoulli(sign_key), far, -far)
        new = jnp.where(count > 0, (now + other) % jnp.maximum(count, 1), now + step)
        return states.at[index].set(new)

    def _refresh(self, rng_key: jax.Array, at: Position) -> Position:
        """A draw from the prior, accepted by its likelihood."""

        def likelihood(at: Position) -> jax.Array:
            return _number(self.log_probs(at).likelihood)

        def draw(key: jax.Array) -> Position:
            return self.hidden.draw(self.params, key, self.values)

        state = random_walk.init(at, likelihood)
        return random_walk.build_irmh()(rng_key, state, likelihood, draw)[0].position


def average(
    walk: Walk, at: Position, rng_key: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean scores over consecutive windows of one chain, and its mean acceptance.

    Args:
        walk: The law that the chain leaves unchanged.
        at: Where it starts.
        rng_key: A JAX PRNG key.
        lengths: Steps of each window, (num_windows,).

    Returns:
        Means, (num_windows, num_scores), and a scalar.
    """

    def step(index: jax.Array, carry: Any) -> Any:
        chain, total, accepted = carry
        key = jax.random.fold_in(rng_key, index)
        chain, probability = walk.step(key, index, chain)
        return chain, total + walk.score(chain), accepted + probability

    def window(carry: Any, length: jax.Array) -> Any:
        start, chain, accepted = carry
        stop = start + length
        begun = chain, jnp.zeros(walk.tuning.slope.shape[0]), accepted
        chain, total, accepted = jax.lax.fori_loop(start, stop, step, begun)
        return (stop, chain, accepted), total / length

    begun = jnp.zeros((), lengths.dtype), walk.chain(at), jnp.zeros(())
    (count, _, accepted), means = jax.lax.scan(window, begun, lengths)
    return means, accepted / count


def _number(log_prob: jax.Array) -> jax.Array:
    """A log density outside its support may be NaN: minus infinity."""
    return jnp.where(jnp.isnan(log_prob), -jnp.inf, log_prob)
