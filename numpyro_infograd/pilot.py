# SPDX-License-Identifier: Apache-2.0
"""The pilot batch: what chains need to know before they are run.

Samples of a model come with exact draws of what they hide, so metric, step size and
length are found on a batch of its own, and are constants of the chains proper.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from numpyro_infograd.chains import (
    CLIP,
    Chain,
    Reference,
    Tuning,
    Walk,
    evaluate,
    where,
)
from numpyro_infograd.density import Values, flatten
from numpyro_infograd.hidden import Hidden, Position

FEWEST_STEPS = 16
_ROUNDS, _WARM_ROUNDS = 12, 2  # steps of the pilot that tune the step size
_ACCEPTED = 0.8  # by a trajectory whose step is nine tenths of the step size
_GAIN = 1.5  # of the logarithm of the step size, for what the acceptance is off
_REMEMBERED = 0.005  # share of a score's mean square that chains may still remember
_RIDGE = 8.0  # roundings of each column's mean square, in a least squares fit
_WIDEST = 1024  # values and dimensions together that a control variate is fitted for
_LARGEST = 4096  # samples of a pilot batch


def pilot_size(least: int, columns: int) -> int:
    """Samples of a pilot batch: several for each column that is regressed on."""
    return max(least, min(1 << (8 * columns).bit_length(), _LARGEST))


def tune(
    hidden: Hidden,
    params: Any,
    noise: Values,
    values: Values,
    rng_key: jax.Array,
    most_steps: int,
    last: Tuning | None = None,
) -> Tuning:
    """What chains need to know, from a pilot batch of samples.

    The metric is the mean Fisher information that the values carry about the position,
    plus the precision of the prior. The mean acceptance of a whole batch is close to a
    function of the step size, so its root is found by plain steps. Chains then grow
    until the mean product of their score with that of their start no longer falls, by
    half a percent or by what the pilot can see.

    Args:
        hidden: What a set of sites hides.
        params: Parameters, in constrained space.
        noise: A batch of noise, (num_samples, *shape).
        values: The values that it makes, of all sites.
        rng_key: A JAX PRNG key.
        most_steps: Steps that a chain may take.
        last: The tuning at parameters close by, whose step size is taken up.
    """
    start = jax.vmap(hidden.start)(noise, values)
    values = {name: values[name] for name in hidden.sites}
    tuning, chains = _statistics(hidden, params, start, values)
    rounds = _ROUNDS
    if last is not None:
        tuning, rounds = tuning._replace(step_size=last.step_size), _WARM_ROUNDS

    def step(tuning: Tuning, index: jax.Array, at: Position) -> tuple[Any, ...]:
        """Where all chains go, their scores before that, and their acceptance."""

        def one(key: jax.Array, at: Position, values: Values) -> tuple[Any, ...]:
            walk = Walk.of(hidden, params, values, tuning)
            chain = walk.chain(at)
            moved, accepted = walk.step(key, index, chain)
            return moved, walk.score(chain), accepted

        keys = jax.random.split(jax.random.fold_in(rng_key, index), num_samples)
        return jax.vmap(one)(keys, at, values)

    stretch = jax.vmap(hidden.stretch)(values)
    own = chains.score + chains.gradient @ tuning.slope.T / stretch
    num_samples = len(own)

    def body(carry: _Pilot) -> _Pilot:
        tuned, length = carry.number >= 0, carry.number + 1
        # The second step of a round is a usual one.
        index = jnp.where(tuned, carry.number, 1)
        now = tuning._replace(step_size=carry.step_size)
        moved, scores, accepted = step(now, index, carry.at)
        change = jnp.where(tuned, 0.0, _GAIN * (jnp.mean(accepted[:, 0]) - _ACCEPTED))
        total = carry.total + scores
        # A window ends at each power of two.
        ends = tuned & (length & (length - 1) == 0)
        product = jnp.sum(own * total, axis=1) / jnp.maximum(length // 2, 1)
        fallen = carry.product - product
        noise = jnp.std(fallen) / math.sqrt(num_samples)
        forgot = jnp.mean(fallen) <= _REMEMBERED * jnp.abs(jnp.mean(product)) + noise
        forgot = (forgot & (length >= FEWEST_STEPS)) | (length >= most_steps)
        return _Pilot(
            length,
            carry.step_size * jnp.exp(change),
            # Chains start anew once the step size is tuned.
            where(length == 0, start, moved),
            jnp.where(tuned & ~ends, total, 0.0),
            jnp.where(ends, product, carry.product),
            ends & forgot,
        )

    begun = _Pilot(
        jnp.asarray(-rounds),
        tuning.step_size,
        start,
        jnp.zeros_like(own),
        jnp.full(num_samples, jnp.inf, own.dtype),
        jnp.asarray(False),
    )
    end = jax.lax.while_loop(lambda carry: ~carry.done, body, begun)
    return tuning._replace(step_size=end.step_size, num_steps=end.number)


class _Pilot(NamedTuple):
    """The state of a pilot run, on a batch of chains."""

    number: jax.Array  # of the step; negative while the step size is tuned
    step_size: jax.Array
    at: Position
    total: jax.Array  # of the scores in the present window, (num_samples, num_scores)
    product: jax.Array  # of the start's score and the last window's mean
    done: jax.Array


def _statistics(
    hidden: Hidden, params: Any, start: Position, values: Values
) -> tuple[Tuning, Chain]:
    """Metric, reference and control variate; and chains at their starts."""
    num_samples, size = start.free.shape
    chains = jax.vmap(lambda v, at: evaluate(hidden, params, v, at))(values, start)
    scale = jnp.std(start.free, axis=0)
    scaled = chains.gradient * scale / math.sqrt(num_samples)
    _, singular, directions = jnp.linalg.svd(scaled, full_matrices=False)
    flat = flatten(values, hidden.sites)
    narrow = 0 < size and size + flat.shape[1] <= _WIDEST
    slope = jnp.zeros((chains.score.shape[1], size))
    if narrow:
        free = chains.score * jax.vmap(hidden.stretch)(values)
        slope = _slope(flat, chains.gradient * scale, free) * scale
        # Stein's identity needs a density that is continuous in the coordinate.
        slope = slope * jnp.asarray(hidden.smooth)
    return Tuning(
        scale,
        directions.T,
        jnp.maximum(singular**2 - 1.0, 0.0),
        _reference(hidden, start, flat, narrow),
        jnp.asarray(0.5),
        slope,
        jnp.asarray(0),
    ), chains


def _reference(
    hidden: Hidden, start: Position, values: jax.Array, narrow: bool
) -> Reference:
    """The normal law of the free coordinates given the values, by their moments."""
    low, middle, high = jnp.quantile(values, jnp.asarray([0.16, 0.5, 0.84]), axis=0)
    width = jnp.where(high > low, 0.5 * (high - low), jnp.std(values, axis=0))
    width = jnp.where(width > 0, width, 1.0)
    offset, root = jnp.mean(start.free, axis=0), jnp.std(start.free, axis=0)
    slope, unroot = jnp.zeros((len(root), values.shape[1])), 1.0 / root
    if narrow:
        seen = jnp.clip((values - middle) / width, -CLIP, CLIP)
        shift = jnp.mean(seen, axis=0)
        seen = seen - shift
        slope = _regression(seen, start.free).T
        left = start.free - offset - seen @ slope.T
        degrees = max(len(left) - seen.shape[1] - 1, 1)
        covariance = left.T @ left / degrees + 1e-6 * jnp.diag(root**2)
        root = jnp.linalg.cholesky(covariance)
        unroot = solve_triangular(root, jnp.eye(len(root)), lower=True)
        offset = offset - slope @ shift
    tables, spread = _frequencies(hidden, start)
    return Reference(middle, width, offset, slope, root, unroot, tables, spread)


def _frequencies(hidden: Hidden, start: Position) -> tuple[jax.Array, jax.Array]:
    """Log frequencies of choices, and moments of what has endlessly many."""
    states, most = start.states, max(hidden.counts, default=0) or 1
    every = jnp.arange(most)
    counts = jnp.sum(states[:, :, None] == every, axis=0)
    allowed = every < jnp.asarray(hidden.counts, int)[:, None]
    share = jnp.where(allowed, counts + 1.0, 0.0)  # so that none is impossible
    share = share / jnp.maximum(jnp.sum(share, axis=1, keepdims=True), 1.0)
    numbers = states.astype(share.dtype)
    moments = jnp.mean(numbers, axis=0), jnp.std(numbers, axis=0) + 0.5
    return jnp.log(share), jnp.stack(moments, axis=1)


def _slope(values: jax.Array, gradient: jax.Array, score: jax.Array) -> jax.Array:
    """Minus the regression of scores on gradients, beside that on the values."""
    centred = values - jnp.mean(values, axis=0)
    ones = jnp.ones((len(values), 1))
    found = _regression(jnp.concatenate([ones, centred, gradient], axis=1), score)
    return -found[-gradient.shape[1] :].T


def _regression(columns: jax.Array, wanted: jax.Array) -> jax.Array:
    """Least squares coefficients, (columns, outputs)."""
    power = jnp.sqrt(jnp.mean(columns**2, axis=0))
    power = jnp.where(power > 0, power, 1.0)
    columns = columns / power
    ridge = _RIDGE * jnp.finfo(columns.dtype).eps * jnp.eye(len(power))
    gram = columns.T @ columns / len(columns) + ridge
    solved = jnp.linalg.solve(gram, columns.T @ wanted / len(columns))
    return solved / power[:, None]
