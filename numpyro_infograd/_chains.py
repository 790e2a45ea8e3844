# SPDX-License-Identifier: Apache-2.0
"""Markov chains over hidden noise that start at an exact draw of the posterior.

The noise that made a sample is an exact draw of the posterior of the noise given the
sample. A chain for this posterior that starts there is stationary from its first step.
Integrator, metric and flips are those of BlackJAX. The moves are written here, because
they share random numbers, so that a gradient compiles in three quarters of the time. A
pilot batch (`_pilot`) tunes the moves, and then they are fixed: a chain that adapts to
its own states would not stay stationary.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import lazy_loader

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
import optax

from numpyro_infograd._density import Values, flatten
from numpyro_infograd._hidden import Hidden, Position
from numpyro_infograd._noise import spare_key

blackjax = lazy_loader.load("blackjax")  # only chains need it

# One of four moves draws from the reference, to reach other modes. One is a trajectory
# with small steps, for samples with a narrow posterior.
_ROUND = 4
_SMALL = 0.15
_REDRAWN = 16  # coordinates that are drawn again one by one, after all together
_JITTER = (0.4, 1.2)  # range of factors of the step size, against periodic trajectories
_GOLDEN = 0.5 * (math.sqrt(5.0) - 1.0)
_TIME = 4.0  # length of a trajectory, in standard deviations of the average posterior
_MOST_LEAPS = 64
CLIP = 4.0  # widths at which values are clipped in the reference


class Reference(NamedTuple):
    """A distribution of the hidden noise given values, with exact draws.

    The continuous coordinates are normal around a linear function of the values. The
    discrete ones are independent, with their frequencies in the pilot batch.
    """

    middle: jax.Array  # median of each value, (num_values,)
    width: jax.Array  # width of each value, (num_values,)
    offset: jax.Array  # mean of the continuous coordinates, (num_dimensions,)
    slope: jax.Array  # their regression on the values, (num_dimensions, num_values)
    root: jax.Array  # root of the residual covariance: a matrix, or its diagonal
    unroot: jax.Array  # inverse of the root
    # Log frequencies of discrete choices, (num_discrete, most choices).
    tables: jax.Array
    # Mean and deviation of each discrete coordinate, (num_discrete, 2).
    spread: jax.Array

    def mean(self, values: jax.Array) -> jax.Array:
        """Mean of the continuous coordinates, given flat values of one sample."""
        seen = jnp.clip((values - self.middle) / self.width, -CLIP, CLIP)
        return self.offset + self.slope @ seen

    def draw(
        self, normal: jax.Array, rng_key: jax.Array, hidden: Hidden, mean: jax.Array
    ) -> Position:
        """One position, from normal noise and a key for discrete coordinates."""
        free = mean + _times(self.root, normal)
        if not hidden.walked:
            return Position(free, jnp.zeros(0, int))
        table_key, far_key = jax.random.split(rng_key)
        chosen = jax.random.categorical(table_key, self.tables)
        centre, spread = self.spread.T
        far = jnp.round(centre + spread * jax.random.normal(far_key, centre.shape))
        counted = jnp.asarray(hidden.counts) > 0
        return Position(free, jnp.where(counted, chosen, far.astype(chosen.dtype)))

    def redraw(
        self, normal: jax.Array, index: jax.Array, mean: jax.Array, free: jax.Array
    ) -> jax.Array:
        """The coordinates with one of them drawn again, given all others."""
        if self.unroot.ndim == 2:
            row = self.unroot[:, index] @ self.unroot
            precision, off = row[index], row @ (free - mean)
        else:
            precision = self.unroot[index] ** 2
            off = precision * (free - mean)[index]
        moved = free[index] - off / precision + normal / jnp.sqrt(precision)
        return free.at[index].set(moved)

    def log_prob(self, hidden: Hidden, mean: jax.Array, at: Position) -> jax.Array:
        """Log density of a position, a scalar in nats."""
        left = _times(self.unroot, at.free - mean)
        diagonal = jnp.diag(self.unroot) if self.unroot.ndim == 2 else self.unroot
        constant = 0.5 * left.size * math.log(2 * math.pi)
        found = -0.5 * left @ left + jnp.sum(jnp.log(diagonal)) - constant
        if not hidden.walked:
            return found
        counts = jnp.asarray(hidden.counts)
        row = jnp.arange(len(counts))
        few = self.tables[row, jnp.clip(at.states, 0, self.tables.shape[1] - 1)]
        centre, spread = self.spread.T
        far = jnp.abs(at.states - centre)  # the lower tail keeps all digits
        near, beyond = (ndtr((half - far) / spread) for half in (0.5, -0.5))
        many = jnp.log(jnp.maximum(near - beyond, jnp.finfo(far.dtype).tiny))
        return found + jnp.sum(jnp.where(counts > 0, few, many))


def _times(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """A product with a matrix, or with its diagonal."""
    return matrix @ vector if matrix.ndim == 2 else matrix * vector


class Tuning(NamedTuple):
    """The tuning of chains, from a pilot batch."""

    # Standard deviation of each coordinate under the prior, (num_dimensions,).
    scale: jax.Array
    # Eigenvectors of the mean precision of the posterior in the scaled coordinates,
    # (num_dimensions, rank).
    directions: jax.Array
    information: jax.Array  # their eigenvalues minus one, (rank,)
    reference: Reference  # distribution of proposals, and of the start of an annealing
    step_size: jax.Array  # step size of the leapfrog integrator, a scalar
    # Coefficients of the control variate of scores in unbounded coordinates,
    # (num_scores, num_dimensions).
    slope: jax.Array
    # Steps after which a chain is independent of its start, a scalar.
    num_steps: jax.Array

    def unwhiten(self, move: jax.Array) -> jax.Array:
        """A move of the position, from coordinates with unit mean precision.

        A mass matrix would need the squares of these numbers. In single precision they
        are lost where a coordinate is known to three digits.
        """
        shrink = 1.0 / jnp.sqrt(1.0 + self.information) - 1.0
        along = self.directions @ (shrink * (move @ self.directions))
        return self.scale * (move + along)


class Chain(NamedTuple):
    """A chain of one sample: its position, and the densities there."""

    at: Position  # the position
    log_prob: jax.Array  # log density of position and values, in nats
    gradient: jax.Array  # its gradient in the continuous coordinates, (num_dimensions,)
    score: jax.Array  # the complete-data score of the set's moved sites, (num_scores,)


class Walk(NamedTuple):
    """The posterior of one sample's hidden noise, and the moves of its chains.

    With a power below one the posterior is tempered: reference^(1 - power)
    posterior^power.
    """

    hidden: Hidden  # the hidden noise of a set of sites
    params: Any  # parameters, in constrained space
    values: Values  # one value of each site of the set
    tuning: Tuning  # the tuning from a pilot batch
    mean: jax.Array  # mean of the reference, (num_dimensions,)

    @staticmethod
    def of(hidden: Hidden, params: Any, values: Values, tuning: Tuning) -> Walk:
        """The walk for one sample, from the values of all sites."""
        values = {name: values[name] for name in hidden.sites}
        flat = flatten({n: v[None] for n, v in values.items()}, hidden.sites)[0]
        mean = tuning.reference.mean(flat)
        return Walk(hidden, params, values, tuning, mean)

    def chain(self, at: Position) -> Chain:
        return evaluate(self.hidden, self.params, self.values, at)

    def score(self, chain: Chain) -> jax.Array:
        """The chain's complete-data score with a control variate, (num_scores,).

        The gradient of a log density has mean zero (Stein's identity). In a
        linear-Gaussian model the result is the score itself, at every position.
        """
        stretch = self.hidden.stretch(self.values)
        return chain.score + self.tuning.slope @ chain.gradient / stretch

    def log_prob(self, at: Position) -> jax.Array:
        """Log density of position and values; -inf where it is NaN."""
        found = self.hidden.log_prob(self.params, at, self.values)
        return jnp.where(jnp.isnan(found), -jnp.inf, found)

    def log_reference(self, at: Position) -> jax.Array:
        return self.tuning.reference.log_prob(self.hidden, self.mean, at)

    def begin(self, rng_key: jax.Array) -> Position:
        """A draw from the reference."""
        normal, key = jax.random.normal(rng_key, self.mean.shape), spare_key(rng_key)
        return self.tuning.reference.draw(normal, key, self.hidden, self.mean)

    def step(
        self,
        rng_key: jax.Array,
        index: jax.Array,
        chain: Chain,
        power: jax.Array | float = 1.0,
    ) -> tuple[Position, jax.Array]:
        """The next position of a chain; acceptance of the move and of the flips, (2,).

        The move is a trajectory, or every fourth time draws from the reference; then
        discrete values flip. Both moves use the same noise, because random numbers take
        most of the compile time.
        """
        size, redrawn = self.hidden.size, min(self.hidden.size, _REDRAWN)
        draw_key = flip_key = rng_key
        if self.hidden.walked:
            rng_key, draw_key, flip_key = jax.random.split(rng_key, 3)
        noise = jax.random.normal(rng_key, (size + 2 * redrawn + 1,))
        normal, more = noise[:size], noise[size:]

        def refresh() -> tuple[Position, jax.Array]:
            return self._refresh(normal, more, draw_key, index, chain, power)

        def travel() -> tuple[Position, jax.Array]:
            return self._trajectory(normal, ndtr(more[0]), index, chain, power)

        at, accepted = jax.lax.cond(index % _ROUND == 0, refresh, travel)
        flipped = jnp.ones(())
        if self.hidden.walked:
            at, flipped = self._flip(flip_key, at, power)
        return at, jnp.stack([accepted, flipped])

    def _tempered(self, at: Position, power: jax.Array | float) -> jax.Array:
        found = self.log_prob(at)
        if _is_one(power):
            return found
        return power * found + (1.0 - power) * self.log_reference(at)

    def _trajectory(
        self,
        normal: jax.Array,
        uniform: jax.Array,
        index: jax.Array,
        chain: Chain,
        power: jax.Array | float,
    ) -> tuple[Position, jax.Array]:
        """Hamiltonian Monte Carlo in the continuous coordinates."""
        if not self.hidden.size:
            return chain.at, jnp.ones(())
        step_size, at = self.tuning.step_size, chain.at
        low, high = _JITTER
        share = low + (high - low) * (index * _GOLDEN % 1.0)
        share *= jnp.where(index % _ROUND == _ROUND - 1, _SMALL, 1.0)
        log_prob, slope = chain.log_prob, chain.gradient
        if not _is_one(power):
            own, own_slope = jax.value_and_grad(
                lambda free: self.log_reference(Position(free, at.states))
            )(at.free)
            log_prob = power * log_prob + (1.0 - power) * own
            slope = power * slope + (1.0 - power) * own_slope
        still = jnp.zeros_like(at.free)
        _, whiten = jax.vjp(self.tuning.unwhiten, still)

        def target(move: jax.Array) -> jax.Array:
            free = at.free + self.tuning.unwhiten(move)
            return self._tempered(Position(free, at.states), power)

        energy = blackjax.mcmc.metrics.default_metric(still + 1.0).kinetic_energy
        integrators = blackjax.mcmc.integrators
        leapfrog = integrators.velocity_verlet(target, energy)
        end = blackjax.mcmc.trajectory.static_integration(leapfrog)(
            integrators.IntegratorState(still, normal, log_prob, *whiten(slope)),
            share * step_size,
            jnp.clip(jnp.ceil(_TIME / step_size), 1, _MOST_LEAPS).astype(int),
        )
        gain = end.logdensity - log_prob + energy(normal) - energy(end.momentum)
        takes, probability = _metropolis(uniform, gain)
        moved = at.free + self.tuning.unwhiten(end.position)
        return Position(jnp.where(takes, moved, at.free), at.states), probability

    def _flip(
        self, rng_key: jax.Array, at: Position, power: jax.Array | float
    ) -> tuple[Position, jax.Array]:
        """Metropolis steps of single discrete values, one for each value."""
        random_walk = blackjax.mcmc.random_walk
        kernel = random_walk.build_rmh()

        def log_prob(states: jax.Array) -> jax.Array:
            return self._tempered(Position(at.free, states), power)

        def flip(index: jax.Array, carry: Any) -> Any:
            state, accepted = carry
            key = jax.random.fold_in(rng_key, index)
            state, info = kernel(key, state, log_prob, self._proposed)
            return state, accepted + info.acceptance_rate

        begun = random_walk.init(at.states, log_prob), jnp.zeros(())
        count = at.states.size
        state, accepted = jax.lax.fori_loop(0, count, flip, begun)
        return Position(at.free, state.position), accepted / count

    def _proposed(self, rng_key: jax.Array, states: jax.Array) -> jax.Array:
        """Another choice for one value; a step up or down if choices are unlimited."""
        index_key, other_key, far_key, sign_key = jax.random.split(rng_key, 4)
        index = jax.random.randint(index_key, (), 0, states.size)
        count, now = jnp.asarray(self.hidden.counts)[index], states[index]
        other = jax.random.randint(other_key, (), 1, jnp.maximum(count, 2))
        reach = 0.5 * self.tuning.reference.spread[index, 1]
        far = 1 + jnp.floor(reach * jax.random.exponential(far_key)).astype(now.dtype)
        step = jnp.where(jax.random.bernoulli(sign_key), far, -far)
        new = jnp.where(count > 0, (now + other) % jnp.maximum(count, 1), now + step)
        return states.at[index].set(new)

    def _refresh(
        self,
        normal: jax.Array,
        more: jax.Array,
        rng_key: jax.Array,
        number: jax.Array,
        chain: Chain,
        power: jax.Array | float,
    ) -> tuple[Position, jax.Array]:
        """Metropolis-Hastings steps with proposals from the reference.

        First the whole position is proposed, then single coordinates. Their choice
        depends only on the step's number. The acceptance of the first is returned.
        """
        size, redrawn = self.hidden.size, (len(more) - 1) // 2
        uniforms, moves = ndtr(more[: redrawn + 1]), more[redrawn:]
        whole = self.tuning.reference.draw(normal, rng_key, self.hidden, self.mean)
        first = number // _ROUND * redrawn  # index of the first coordinate, minus one

        def weight(at: Position, log_prob: jax.Array) -> jax.Array:
            return power * (log_prob - self.log_reference(at))

        def draw(index: jax.Array, carry: Any) -> Any:
            at, now, probability = carry
            proposed = whole
            if size:
                mean, reference = self.mean, self.tuning.reference
                one = (first + index) % size
                free = reference.redraw(moves[index], one, mean, at.free)
                alone = Position(free, at.states)
                proposed = optax.tree.where(index == 0, whole, alone)
            new = weight(proposed, self.log_prob(proposed))
            takes, accepted = _metropolis(uniforms[index], new - now)
            return (
                optax.tree.where(takes, proposed, at),
                jnp.where(takes, new, now),
                jnp.where(index == 0, accepted, probability),
            )

        begun = chain.at, weight(chain.at, chain.log_prob), jnp.zeros(())
        at, _, probability = jax.lax.fori_loop(0, redrawn + 1, draw, begun)
        return at, probability


def _is_one(power: jax.Array | float) -> bool:
    """Whether the power is known to be one: no tempering."""
    return isinstance(power, float) and power == 1.0


def _metropolis(
    uniform: jax.Array, log_ratio: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Whether a proposal is accepted, and the probability; never if NaN."""
    probability = jnp.exp(jnp.minimum(jnp.nan_to_num(log_ratio, nan=-jnp.inf), 0.0))
    return uniform < probability, probability


def evaluate(hidden: Hidden, params: Any, values: Values, at: Position) -> Chain:
    """A chain at a position, for one sample."""

    def joint(free: jax.Array, moved: Values) -> jax.Array:
        return hidden.log_prob(params, Position(free, at.states), values | moved)

    moved = {name: values[name] for name in hidden.joint.moved_sites}
    found, (gradient, score) = jax.value_and_grad(joint, argnums=(0, 1))(at.free, moved)
    flat = [jnp.zeros(0), *(score[name].ravel() for name in moved)]
    return Chain(at, found, gradient, jnp.concatenate(flat))


def average(
    walk: Walk, at: Position, led: jax.Array, rng_key: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Means (num_windows, num_scores) over consecutive windows of one chain, mean
    acceptances of moves and of flips, (2,), and discrete values at the end.

    `led` says whether the start is a draw of the reference; then the chain is annealed
    to the posterior during the first window. `lengths` are the steps of each window.
    """

    def step(index: jax.Array, carry: Any) -> Any:
        at, total, accepted = carry
        chain = walk.chain(at)
        key = jax.random.fold_in(rng_key, index)
        power = jnp.where(led, jnp.minimum((index + 1) / lengths[0], 1.0), 1.0)
        at, probability = walk.step(key, index, chain, power)
        return at, total + walk.score(chain), accepted + probability

    def window(carry: Any, length: jax.Array) -> Any:
        start, at, accepted = carry
        stop = start + length
        begun = at, jnp.zeros(walk.tuning.slope.shape[0]), accepted
        at, total, accepted = jax.lax.fori_loop(start, stop, step, begun)
        return (stop, at, accepted), total / length

    begun = jnp.zeros((), lengths.dtype), at, jnp.zeros(2)
    (count, end, accepted), means = jax.lax.scan(window, begun, lengths)
    return means, accepted / count, end.states
