# SPDX-License-Identifier: Apache-2.0
"""Markov chains over hidden noise that start at an exact draw of it.

The noise that made a sample is a draw of its law given the sample. A chain that leaves
this law unchanged and starts there is stationary from its first step: all it has to do
is to forget its start. The kernels are BlackJAX's. What they need to know is found on
a pilot batch and then frozen, because a chain that adapts to its own states would not
stay stationary.
"""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any, NamedTuple

from blackjax.adaptation.step_size import dual_averaging_adaptation
from blackjax.mcmc import hmc, random_walk
from blackjax.mcmc.metrics import LowRankInverseMassMatrix

import jax
import jax.numpy as jnp

from numpyro_infograd.density import Values
from numpyro_infograd.hidden import Hidden, Position
from numpyro_infograd.scores.base import flatten

# Of four trajectories one has a small step, for samples whose posterior is narrow, and
# before one a draw from the prior is proposed, for samples that say little.
_ROUND = 4
_SMALL = 0.15
_JITTER = (0.4, 1.2)
_TIME = 4.0  # length of a trajectory, in standard deviations of the average posterior
_MOST_LEAPS = 64
_ACCEPTED = 0.8
_ROUNDS = 24  # steps of the pilot that the step size is tuned on
_FEWEST_STEPS = 16
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
    """A chain of one sample.

    Attributes:
        at: Where it is.
        log_prob: Log density there, in nats.
        gradient: Its gradient in the free coordinates, (num_dimensions,).
    """

    at: Position
    log_prob: jax.Array
    gradient: jax.Array


class Walk(NamedTuple):
    """Chains over what one sample hides: prior times likelihood to a power."""

    hidden: Hidden
    params: Any
    values: Values
    tuning: Tuning
    power: jax.Array | float = 1.0

    def log_prob(self, at: Position) -> jax.Array:
        """Log density that the chain leaves unchanged, in nats."""
        found = self.hidden.log_probs(self.params, at, self.values)
        return _number(found.prior + self.power * found.likelihood)

    def begin(self, at: Position) -> Chain:
        """A chain at a position."""
        slope = jax.value_and_grad(lambda free: self.log_prob(Position(free, at.states)))
        return Chain(at, *slope(at.free))

    def score(self, chain: Chain) -> jax.Array:
        """The complete-data score where the chain is, (num_scores,).

        With a control variate: the gradient of a log density has mean zero under it
        (Stein's identity). In a linear-Gaussian model it leaves the score itself.
        """
        found = self.hidden.score(self.params, chain.at, self.values)
        flat = [found[name].ravel() for name in self.hidden.blocks]
        return jnp.concatenate(flat) + self.tuning.slope @ chain.gradient

    def step(
        self, rng_key: jax.Array, index: jax.Array, chain: Chain
    ) -> tuple[Chain, jax.Array]:
        """One trajectory, and what else is due; with its acceptance probability."""
        keys = jax.random.split(rng_key, 3)
        if self.hidden.size:
            small = jnp.where(index % _ROUND == _ROUND - 1, _SMALL, 1.0)
            chain, accepted = self._trajectory(keys[0], chain, small)
        else:
            accepted = jnp.ones(())
        if self.hidden.walked:
            chain = self._flip(keys[1], chain)
        due = index % _ROUND == 0
        chain = jax.lax.cond(due, self._refresh, lambda _, c: c, keys[2], chain)
        return chain, accepted

    def _trajectory(
        self, rng_key: jax.Array, chain: Chain, small: jax.Array
    ) -> tuple[Chain, jax.Array]:
        """Hamiltonian Monte Carlo in the continuous coordinates."""
        jitter_key, rng_key = jax.random.split(rng_key)
        step_size = self.tuning.step_size
        jitter = small * jax.random.uniform(
            jitter_key, minval=_JITTER[0], maxval=_JITTER[1]
        )
        leaps = jnp.clip(jnp.ceil(_TIME / step_size), 1, _MOST_LEAPS).astype(int)
        at = chain.at
        state, info = hmc.build_kernel()(
            rng_key,
            hmc.HMCState(at.free, chain.log_prob, chain.gradient),
            lambda free: self.log_prob(Position(free, at.states)),
            jitter * step_size,
            self.tuning.metric(self.power),
            leaps,
        )
        at = Position(state.position, at.states)
        return Chain(at, state.logdensity, state.logdensity_grad), info.acceptance_rate

    def _flip(self, rng_key: jax.Array, chain: Chain) -> Chain:
        """Metropolis steps of single discrete values, as many as there are."""
        kernel, free = random_walk.build_rmh(), chain.at.free

        def log_prob(states: jax.Array) -> jax.Array:
            return self.log_prob(Position(free, states))

        def flip(_: int, carry: Any) -> Any:
            rng_key, state = carry
            rng_key, key = jax.random.split(rng_key)
            return rng_key, kernel(key, state, log_prob, self._proposed)[0]

        state = random_walk.RWState(chain.at.states, chain.log_prob)
        count = chain.at.states.size
        _, state = jax.lax.fori_loop(0, count, flip, (rng_key, state))
        return self.begin(Position(free, state.position))

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

    def _refresh(self, rng_key: jax.Array, chain: Chain) -> Chain:
        """A draw from the prior, accepted by its likelihood."""

        def likelihood(chain: Chain) -> jax.Array:
            found = self.hidden.log_probs(self.params, chain.at, self.values)
            return _number(self.power * found.likelihood)

        def drawn(key: jax.Array) -> Chain:
            return self.begin(self.hidden.draw(self.params, key, self.values))

        state = random_walk.RWState(chain, likelihood(chain))
        found, _ = random_walk.build_irmh()(rng_key, state, likelihood, drawn)
        return found.position


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

    begun = jnp.zeros((), lengths.dtype), walk.begin(at), jnp.zeros(())
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
    tuning, walk_of, own = _statistics(hidden, params, start, values)
    num_samples = start.free.shape[0]
    init, update, final = dual_averaging_adaptation(_ACCEPTED)
    chains = jax.vmap(lambda at, v: walk_of(tuning, v).begin(at))(start, values)

    def step(tuning: Tuning, index: jax.Array, chains: Chain) -> Any:
        def one(key: jax.Array, chain: Chain, v: Values) -> Any:
            walk = walk_of(tuning, v)
            chain, accepted = walk.step(key, index, chain)
            return chain, accepted, walk.score(chain)

        keys = jax.random.split(jax.random.fold_in(rng_key, index), num_samples)
        return jax.vmap(one)(keys, chains, values)

    class Carry(NamedTuple):
        index: jax.Array  # negative while the step size is tuned
        step_size: Any
        chains: Chain
        total: jax.Array  # of the scores in the present window
        before: jax.Array  # product with the start's score in the last window
        done: jax.Array

    def body(carry: Carry) -> Carry:
        tuned = carry.index >= 0
        size = jnp.where(
            tuned, final(carry.step_size), jnp.exp(carry.step_size.log_step_size)
        )
        now = tuning._replace(step_size=size)
        moved, accepted, score = step(now, jnp.where(tuned, carry.index, 1), carry.chains)
        adapted = update(carry.step_size, jnp.mean(accepted))
        adapted = jax.tree.map(
            lambda a, b: jnp.where(tuned, a, b), carry.step_size, adapted
        )
        again = carry.index == -1  # tuning may have ended anywhere
        moved = jax.tree.map(lambda a, b: jnp.where(again, a, b), chains, moved)
        total = jnp.where(tuned, carry.total + score, 0.0)
        # A window ends at each power of two.
        length = carry.index + 1
        ends = tuned & (length & (length - 1) == 0) & (length >= _FEWEST_STEPS // 2)
        product = jnp.sum(own * total, axis=1) / jnp.maximum(length // 2, 1)
        change = carry.before - product
        scale = jnp.mean(jnp.sum(own**2, axis=1))
        noise = jnp.std(change) / math.sqrt(num_samples)
        forgot = jnp.mean(change) <= _REMEMBERED * scale + noise
        forgot &= length > _FEWEST_STEPS
        return Carry(
            carry.index + 1,
            adapted,
            moved,
            jnp.where(ends, 0.0, total),
            jnp.where(ends, product, carry.before),
            ends & (forgot | (length >= 2 * most_steps)),
        )

    first = Carry(
        jnp.asarray(-_ROUNDS),
        init(tuning.step_size),
        chains,
        jnp.zeros_like(own),
        jnp.full(num_samples, jnp.inf, own.dtype),
        jnp.asarray(False),
    )
    last = jax.lax.while_loop(lambda carry: ~carry.done, body, first)
    return tuning._replace(
        step_size=final(last.step_size), num_steps=last.index // 2
    )


def _statistics(
    hidden: Hidden, params: Any, start: Position, values: Values
) -> tuple[Tuning, Callable[..., Walk], jax.Array]:
    """Metric and control variate; a walk from a tuning; the start's own scores."""

    def one(at: Position, v: Values) -> tuple[jax.Array, ...]:
        def parts(free: jax.Array) -> jax.Array:
            found = hidden.log_probs(params, Position(free, at.states), v)
            return jnp.stack(found)

        slopes = jax.jacrev(parts)(at.free)
        found = hidden.score(params, at, v)
        score = jnp.concatenate([found[name].ravel() for name in hidden.blocks])
        return slopes[0], slopes[1], score

    prior, likelihood, score = jax.vmap(one)(start, values)
    num_samples, size = start.free.shape
    scale = jnp.std(start.free, axis=0)
    scaled = likelihood * scale / math.sqrt(num_samples)
    _, singular, directions = jnp.linalg.svd(scaled, full_matrices=False)
    gradient = prior + likelihood
    slope = jnp.zeros((score.shape[1], size))
    if 0 < size + sum(hidden.sizes) <= _WIDEST:
        slope = _slope(flatten(values, hidden.sites), gradient * scale, score) * scale
    own = score + gradient @ slope.T
    tuning = Tuning(
        scale, directions.T, singular**2, jnp.asarray(0.5), slope, jnp.asarray(0)
    )
    return tuning, lambda t, v: Walk(hidden, params, v, t), own


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
