# SPDX-License-Identifier: Apache-2.0
"""Markov chains over hidden noise that start at an exact draw of it.

The noise that made a sample is a draw of its law given the sample. A chain that leaves
this law unchanged and starts there is stationary from its first step: all it has to do
is to forget its start. The kernels are BlackJAX's. What they need to know is found on
a pilot batch and then frozen, because a chain that adapts to its own states would not
stay stationary.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from blackjax.adaptation.step_size import dual_averaging_adaptation
from blackjax.mcmc import hmc, random_walk
from blackjax.mcmc.metrics import LowRankInverseMassMatrix

import jax
import jax.numpy as jnp

from numpyro_infograd.density import Values, flatten
from numpyro_infograd.hidden import Hidden, LogProbs, Position

# Of four trajectories one has a small step, for samples whose posterior is narrow, and
# before one a draw from the prior is proposed, for samples that say little.
_ROUND = 4
_SMALL = 0.15
_JITTER = (0.4, 1.2)
_GOLDEN = 0.5 * (math.sqrt(5.0) - 1.0)
_TIME = 4.0  # length of a trajectory, in standard deviations of the average posterior
_MOST_LEAPS = 64
_ACCEPTED = 0.8
_ROUNDS = 24  # steps of the pilot that the step size is tuned on
FEWEST_STEPS = 16
_REMEMBERED = 0.005  # share of a score's mean square that chains may still remember
_RIDGE = 1e-5  # of each column's mean square, in the fit of a control variate
_WIDEST = 1024  # values and dimensions that a control variate is fitted for


class Tuning(NamedTuple):
    """What chains need to know, from a pilot batch.

    Attributes:
        scale: Standard deviation of each coordinate under the prior, (num_dimensions,).
        directions: Eigenvectors of the mean Fisher information that the values have
            of the scaled coordinates, (num_dimensions, rank).
        information: Their eigenvalues, (rank,).
        step_size: Of the leapfrog integrator, a scalar.
        slope: Coefficients of the control variate, (num_scores, num_dimensions).
        num_steps: Steps after which a chain has forgotten its start, a power of two.
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
        likelihood: The part of it that a prior draw is accepted by, in nats.
        gradient: Its gradient in the free coordinates, (num_dimensions,).
        score: The complete-data score of the set's blocks, (num_scores,).
    """

    at: Position
    log_prob: jax.Array
    likelihood: jax.Array
    gradient: jax.Array
    score: jax.Array


class Walk(NamedTuple):
    """Chains over what one sample hides: prior times likelihood to a power."""

    hidden: Hidden
    params: Any
    values: Values
    tuning: Any
    power: jax.Array | float = 1.0

    def log_probs(self, at: Position, blocks: Values | None = None) -> LogProbs:
        """Log densities at a position, the likelihood to its power."""
        values = self.values if blocks is None else {**self.values, **blocks}
        prior, likelihood = self.hidden.log_probs(self.params, at, values)
        return LogProbs(prior, self.power * likelihood)

    def chain(self, at: Position) -> Chain:
        """A chain at a position."""

        def joint(free: jax.Array, blocks: Values) -> tuple[jax.Array, jax.Array]:
            found = self.log_probs(Position(free, at.states), blocks)
            return found.joint, found.likelihood

        blocks = {name: self.values[name] for name in self.hidden.blocks}
        (log_prob, likelihood), (gradient, score) = jax.value_and_grad(
            joint, argnums=(0, 1), has_aux=True
        )(at.free, blocks)
        flat = [jnp.zeros(0), *(score[name].ravel() for name in self.hidden.blocks)]
        return Chain(at, log_prob, likelihood, gradient, jnp.concatenate(flat))

    def score(self, chain: Chain) -> jax.Array:
        """The chain's complete-data score less a control variate, (num_scores,).

        The gradient of a log density has mean zero under it (Stein's identity). What
        is left in a linear-Gaussian model is the score itself, wherever the chain is.
        """
        return chain.score + self.tuning.slope @ chain.gradient

    def step(
        self, rng_key: jax.Array, index: jax.Array, chain: Chain
    ) -> tuple[Chain, jax.Array]:
        """A trajectory, and what else is due; with the trajectory's acceptance."""
        keys = jax.random.split(rng_key, 3)
        at, accepted = chain.at, jnp.ones(())
        likelihood = chain.likelihood
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
        # Lengths that never repeat are spread evenly by the golden ratio.
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
        walk: The chain's law.
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


def tune(
    hidden: Hidden,
    params: Any,
    noise: Values,
    values: Values,
    rng_key: jax.Array,
    most_steps: int,
) -> Tuning:
    """What chains need to know, from a pilot batch of samples.

    The metric is the mean Fisher information that the values have of the position, and
    the precision of the prior. The step size gives the acceptance that is best for
    long trajectories. Chains then grow until what they remember of their start is a
    small share of the score's mean square, or is lost in the pilot's noise.

    Args:
        hidden: What a set of sites hides.
        params: Parameters, in constrained space.
        noise: A batch of noise, (num_samples, *shape).
        values: The values that it makes, of all sites.
        rng_key: A JAX PRNG key.
        most_steps: Steps that a chain may take.
    """
    start = jax.vmap(hidden.start)(noise, values)
    values = {name: values[name] for name in hidden.sites}
    tuning, chains = _statistics(hidden, params, start, values)
    own = jax.vmap(Walk(hidden, params, values, tuning).score)(chains)
    num_samples, scale = len(own), jnp.mean(jnp.sum(own**2, axis=1))
    init, update, final = dual_averaging_adaptation(_ACCEPTED)

    def step(tuning: Tuning, index: jax.Array, chains: Chain) -> Any:
        def one(key: jax.Array, chain: Chain, values: Values) -> Any:
            walk = Walk(hidden, params, values, tuning)
            chain, accepted = walk.step(key, index, chain)
            return chain, accepted, walk.score(chain)

        keys = jax.random.split(jax.random.fold_in(rng_key, index), num_samples)
        return jax.vmap(one)(keys, chains, values)

    def body(carry: _Pilot) -> _Pilot:
        tuned, length = carry.index >= 0, carry.index + 1
        now = jnp.exp(carry.step_size.log_step_size)
        size = jnp.where(tuned, final(carry.step_size), now)
        # The step size is tuned on the second step of a round, which is a usual one.
        index = jnp.where(tuned, carry.index, 1)
        now = tuning._replace(step_size=size)
        moved, accepted, score = step(now, index, carry.chains)
        adapted = update(carry.step_size, jnp.mean(accepted))
        total = jnp.where(tuned, carry.total + score, 0.0)
        # A window ends at each power of two.
        ends = tuned & (length & (length - 1) == 0)
        product = jnp.sum(own * total, axis=1) / jnp.maximum(length // 2, 1)
        change = carry.before - product
        noise = jnp.std(change) / math.sqrt(num_samples)
        forgot = jnp.mean(change) <= _REMEMBERED * scale + noise
        forgot = (forgot & (length >= FEWEST_STEPS)) | (length >= most_steps)
        # Chains start anew once the step size is tuned.
        return _Pilot(
            length,
            _where(tuned, carry.step_size, adapted),
            _where(length == 0, chains, moved),
            jnp.where(ends, 0.0, total),
            jnp.where(ends, product, carry.before),
            ends & forgot,
        )

    begun = _Pilot(
        jnp.asarray(-_ROUNDS),
        init(tuning.step_size),
        chains,
        jnp.zeros_like(own),
        jnp.full(num_samples, jnp.inf, own.dtype),
        jnp.asarray(False),
    )
    last = jax.lax.while_loop(lambda carry: ~carry.done, body, begun)
    return tuning._replace(step_size=final(last.step_size), num_steps=last.index)


class _Pilot(NamedTuple):
    """The state of a pilot run, on a batch of chains."""

    index: jax.Array  # of the step; negative while the step size is tuned
    step_size: Any
    chains: Chain
    total: jax.Array  # of the scores in the present window
    before: jax.Array  # product of the start's score and the last window's mean
    done: jax.Array


def _where(condition: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _statistics(
    hidden: Hidden, params: Any, start: Position, values: Values
) -> tuple[Tuning, Chain]:
    """Metric and control variate; and chains at their starts."""

    def one(at: Position, values: Values) -> tuple[Chain, jax.Array]:
        def prior(free: jax.Array) -> jax.Array:
            return hidden.log_probs(params, Position(free, at.states), values).prior

        chain = Walk(hidden, params, values, None).chain(at)
        return chain, chain.gradient - jax.grad(prior)(at.free)

    chains, likelihood = jax.vmap(one)(start, values)
    num_samples, size = start.free.shape
    scale = jnp.std(start.free, axis=0)
    scaled = likelihood * scale / math.sqrt(num_samples)
    _, singular, directions = jnp.linalg.svd(scaled, full_matrices=False)
    slope = jnp.zeros((chains.score.shape[1], size))
    if 0 < size + sum(hidden.sizes) <= _WIDEST:
        flat = flatten(values, hidden.sites)
        slope = _slope(flat, chains.gradient * scale, chains.score) * scale
    information = singular**2
    half, none = jnp.asarray(0.5), jnp.asarray(0)
    return Tuning(scale, directions.T, information, half, slope, none), chains


def _slope(values: jax.Array, gradient: jax.Array, score: jax.Array) -> jax.Array:
    """Minus the regression of scores on gradients, beside that on the values."""
    centred = values - jnp.mean(values, axis=0)
    columns = jnp.concatenate([centred, gradient], axis=1)
    power = jnp.sqrt(jnp.mean(columns**2, axis=0))
    columns = columns / jnp.where(power > 0, power, 1.0)
    gram = columns.T @ columns / len(columns)
    cross = columns.T @ score / len(columns)
    solved = jnp.linalg.solve(gram + _RIDGE * jnp.eye(len(gram)), cross)
    solved = solved / jnp.where(power > 0, power, 1.0)[:, None]
    return -solved[values.shape[1] :].T


def _number(log_prob: jax.Array) -> jax.Array:
    """A log density outside its support may be NaN: minus infinity."""
    return jnp.where(jnp.isnan(log_prob), -jnp.inf, log_prob)
