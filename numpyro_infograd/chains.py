# SPDX-License-Identifier: Apache-2.0
"""Markov chains over hidden noise that start at an exact draw of it.

The noise that made a sample is a draw of its law given the sample. A chain that leaves
this law unchanged and starts there is stationary from its first step, whatever its
length: it only has to forget its start. Integrator, metric and flips are BlackJAX's.
The moves around them are ours: they share their random numbers, and a gradient compiles
in three quarters of the time. What moves need to know is found on a pilot batch
(`pilot`) and then frozen: a chain that adapts to its own states would not stay
stationary.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from blackjax.mcmc import integrators, random_walk, trajectory
from blackjax.mcmc.metrics import LowRankInverseMassMatrix, Metric, default_metric

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr

from numpyro_infograd.density import Values, flatten
from numpyro_infograd.hidden import Hidden, Position

# Of four moves one is draws from the reference, to reach other modes, and one is a
# trajectory with small steps, for samples whose posterior is narrow.
_ROUND = 4
_SMALL = 0.15
_REDRAWN = 16  # coordinates that are drawn anew one by one, after all of them together
_JITTER = (0.4, 1.2)  # of the step size, so that no period of the dynamics is hit
_GOLDEN = 0.5 * (math.sqrt(5.0) - 1.0)
_TIME = 4.0  # length of a trajectory, in standard deviations of the average posterior
_MOST_LEAPS = 64
CLIP = 4.0  # deviations beyond which a value tells the reference nothing more


class Reference(NamedTuple):
    """A law of the hidden noise given values that is drawn from exactly.

    The free coordinates are normal around a linear function of the values; the
    discrete ones are independent, with the frequencies that they have.

    Attributes:
        middle: Of the values, (num_values,).
        width: Of the values, (num_values,).
        offset: Mean of the free coordinates, (num_dimensions,).
        slope: Their regression on the values, (num_dimensions, num_values).
        root: Root of the covariance that is left: a matrix, or its diagonal.
        unroot: Its inverse.
        tables: Log frequency of the choices of each discrete coordinate, (num_discrete,
            most choices).
        spread: Mean and deviation of each discrete coordinate, (num_discrete, 2).
    """

    middle: jax.Array
    width: jax.Array
    offset: jax.Array
    slope: jax.Array
    root: jax.Array
    unroot: jax.Array
    tables: jax.Array
    spread: jax.Array

    def mean(self, values: jax.Array) -> jax.Array:
        """Mean of the free coordinates given flat values of one sample."""
        seen = jnp.clip((values - self.middle) / self.width, -CLIP, CLIP)
        return self.offset + self.slope @ seen

    def draw(
        self, normal: jax.Array, rng_key: jax.Array, hidden: Hidden, mean: jax.Array
    ) -> Position:
        """One position, from normal noise and a key for what is discrete."""
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
        """One coordinate drawn anew, given all others."""
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
        far = jnp.abs(at.states - centre)  # in the lower tail, where no digit is lost
        near, beyond = (ndtr((half - far) / spread) for half in (0.5, -0.5))
        many = jnp.log(near - beyond)
        return found + jnp.sum(jnp.where(counts > 0, few, many))


def _times(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """A product with a matrix, or with its diagonal."""
    return matrix @ vector if matrix.ndim == 2 else matrix * vector


class Tuning(NamedTuple):
    """What chains need to know, from a pilot batch.

    Attributes:
        scale: Standard deviation of each coordinate under the prior, (num_dimensions,).
        directions: Eigenvectors of the mean precision of the posterior in the scaled
            coordinates, (num_dimensions, rank).
        information: Their eigenvalues less one, (rank,).
        reference: What is proposed now and then, and where values begin.
        step_size: Of the leapfrog integrator, a scalar.
        slope: Coefficients of the control variate of scores in coordinates without
            bounds, (num_scores, num_dimensions).
        num_steps: Steps after which a chain has forgotten its start, a scalar.
    """

    scale: jax.Array
    directions: jax.Array
    information: jax.Array
    reference: Reference
    step_size: jax.Array
    slope: jax.Array
    num_steps: jax.Array

    @property
    def metric(self) -> Metric:
        """That whose mass is the posterior's mean precision."""
        shrunk = 1.0 / (1.0 + self.information)
        return default_metric(
            LowRankInverseMassMatrix(self.scale, self.directions, shrunk)
        )

    def momentum(self, normal: jax.Array) -> jax.Array:
        """Standard normal noise as a momentum, (num_dimensions,)."""
        stretch = jnp.sqrt(1.0 + self.information) - 1.0
        along = self.directions @ (stretch * (normal @ self.directions))
        return (normal + along) / self.scale


class Chain(NamedTuple):
    """A chain of one sample: where it is, and what is known there.

    Attributes:
        at: The position.
        log_prob: Log density of position and values, in nats.
        gradient: Its gradient in the free coordinates, (num_dimensions,).
        score: The complete-data score of the set's moved sites, (num_scores,).
    """

    at: Position
    log_prob: jax.Array
    gradient: jax.Array
    score: jax.Array


class Walk(NamedTuple):
    """The law of what one sample hides, given its values; and how to walk over it.

    Tempered by a power below one it is reference^(1 - power) posterior^power.

    Attributes:
        hidden: What a set of sites hides.
        params: Parameters, in constrained space.
        values: One value of each site of the set.
        tuning: From a pilot batch.
        mean: That of the reference, (num_dimensions,).
    """

    hidden: Hidden
    params: Any
    values: Values
    tuning: Tuning
    mean: jax.Array

    @staticmethod
    def of(hidden: Hidden, params: Any, values: Values, tuning: Tuning) -> Walk:
        """The walk for one sample, from the values of all sites."""
        values = {name: values[name] for name in hidden.sites}
        flat = flatten({n: v[None] for n, v in values.items()}, hidden.sites)[0]
        mean = tuning.reference.mean(flat)
        return Walk(hidden, params, values, tuning, mean)

    def chain(self, at: Position) -> Chain:
        """A chain at a position."""
        return evaluate(self.hidden, self.params, self.values, at)

    def score(self, chain: Chain) -> jax.Array:
        """The chain's complete-data score with a control variate, (num_scores,).

        The gradient of a log density has mean zero under it (Stein's identity). What
        is left in a linear-Gaussian model is the score itself, wherever the chain is.
        """
        stretch = self.hidden.stretch(self.values)
        return chain.score + self.tuning.slope @ chain.gradient / stretch

    def log_prob(self, at: Position) -> jax.Array:
        """Log density of position and values; it may be NaN outside of a support."""
        found = self.hidden.log_prob(self.params, at, self.values)
        return jnp.where(jnp.isnan(found), -jnp.inf, found)

    def log_reference(self, at: Position) -> jax.Array:
        """Log density of a position under the reference."""
        return self.tuning.reference.log_prob(self.hidden, self.mean, at)

    def begin(self, rng_key: jax.Array) -> Position:
        """A draw from the reference."""
        free_key, key = jax.random.split(rng_key)
        normal = jax.random.normal(free_key, self.mean.shape)
        return self.tuning.reference.draw(normal, key, self.hidden, self.mean)

    def step(
        self,
        rng_key: jax.Array,
        index: jax.Array,
        chain: Chain,
        power: jax.Array | float = 1.0,
    ) -> tuple[Position, jax.Array]:
        """Where a chain goes next; acceptance of the move and of the flips, (2,).

        A trajectory, or now and then draws from the reference; then flips. Both moves
        take the same noise: most of what a chain compiles to is random numbers.
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

        def target(free: jax.Array) -> jax.Array:
            return self._tempered(Position(free, at.states), power)

        energy = self.tuning.metric.kinetic_energy
        leapfrog = integrators.velocity_verlet(target, energy)
        momentum = self.tuning.momentum(normal)
        end = trajectory.static_integration(leapfrog)(
            integrators.IntegratorState(at.free, momentum, log_prob, slope),
            share * step_size,
            jnp.clip(jnp.ceil(_TIME / step_size), 1, _MOST_LEAPS).astype(int),
        )
        gain = end.logdensity - log_prob + energy(momentum) - energy(end.momentum)
        takes, probability = _metropolis(uniform, gain)
        return Position(jnp.where(takes, end.position, at.free), at.states), probability

    def _flip(
        self, rng_key: jax.Array, at: Position, power: jax.Array | float
    ) -> tuple[Position, jax.Array]:
        """Metropolis steps of single discrete values, as many as there are."""
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
        """Another choice for one value; where endlessly many, a step up or down."""
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
        """Draws from the reference, accepted by the posterior's share of the law.

        First of the whole position, then of one coordinate after the other. Which ones
        depends on the step's number alone. The probability of the first is returned.
        """
        size, redrawn = self.hidden.size, (len(more) - 1) // 2
        uniforms, moves = ndtr(more[: redrawn + 1]), more[redrawn:]
        whole = self.tuning.reference.draw(normal, rng_key, self.hidden, self.mean)
        first = number // _ROUND * redrawn  # of the coordinates, less one

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
                proposed = where(index == 0, whole, alone)
            new = weight(proposed, self.log_prob(proposed))
            takes, accepted = _metropolis(uniforms[index], new - now)
            return (
                where(takes, proposed, at),
                jnp.where(takes, new, now),
                jnp.where(index == 0, accepted, probability),
            )

        begun = chain.at, weight(chain.at, chain.log_prob), jnp.zeros(())
        at, _, probability = jax.lax.fori_loop(0, redrawn + 1, draw, begun)
        return at, probability


def where(condition: jax.Array, yes: Any, no: Any) -> Any:
    """`jnp.where` for trees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _is_one(power: jax.Array | float) -> bool:
    """Whether a law is known not to be tempered."""
    return isinstance(power, float) and power == 1.0


def _metropolis(
    uniform: jax.Array, log_ratio: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Whether a proposal is taken, and the probability of that; never if NaN."""
    probability = jnp.exp(jnp.minimum(jnp.nan_to_num(log_ratio, nan=-jnp.inf), 0.0))
    return uniform < probability, probability


def evaluate(hidden: Hidden, params: Any, values: Values, at: Position) -> Chain:
    """A chain at a position, for one sample."""

    def joint(free: jax.Array, moved: Values) -> jax.Array:
        return hidden.log_prob(params, Position(free, at.states), {**values, **moved})

    moved = {name: values[name] for name in hidden.moved_sites}
    found, (gradient, score) = jax.value_and_grad(joint, argnums=(0, 1))(at.free, moved)
    flat = [jnp.zeros(0), *(score[name].ravel() for name in hidden.moved_sites)]
    return Chain(at, found, gradient, jnp.concatenate(flat))


def average(
    walk: Walk,
    at: Position,
    led: jax.Array,
    rng_key: jax.Array,
    lengths: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Mean scores over consecutive windows of one chain, and mean acceptances.

    Args:
        walk: The law that the chain leaves unchanged.
        at: Where it starts.
        led: Whether that is a draw of the reference, from where the chain is led to
            its law during the first window.
        rng_key: A JAX PRNG key.
        lengths: Steps of each window, (num_windows,).

    Returns:
        Means, (num_windows, num_scores); acceptance of moves and of flips, (2,).
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
    (count, _, accepted), means = jax.lax.scan(window, begun, lengths)
    return means, accepted / count
