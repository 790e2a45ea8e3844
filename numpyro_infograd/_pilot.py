# SPDX-License-Identifier: Apache-2.0
"""The pilot batch: tuning of Markov chains before they run.

Samples of a model come with exact draws of their hidden noise. So metric, step size and
length of chains can be tuned on a separate batch, and are constants afterwards.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
import optax

from numpyro_infograd._chains import (
    CLIP,
    Chain,
    Reference,
    Tuning,
    Walk,
    evaluate,
)
from numpyro_infograd._density import Values, flatten, quantiles
from numpyro_infograd._hidden import Hidden, Position

FEWEST_STEPS = 16
_ROUNDS, _WARM_ROUNDS = 12, 2  # steps of the pilot that tune the step size
_ACCEPTED = 0.8  # target acceptance
_GAIN = 1.5  # change of the log step size for each unit of acceptance error
_REMEMBERED = 0.005  # tolerated dependence on the start, as a share of mean square
_RIDGE = 8.0  # ridge of least squares, in units of rounding errors
_WIDEST = 1024  # values plus dimensions, at most, with a control variate
_LARGEST = 4096  # samples of a pilot batch, at most


def pilot_size(least: int, columns: int) -> int:
    """Number of samples of a pilot batch: several for each column of a regression."""
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
    """The tuning of chains, from a pilot batch of samples.

    The metric is the mean Fisher information of the values about the position, plus the
    precision of the prior. The mean acceptance of a whole batch is almost a function of
    the step size, so the step size for the target acceptance is found by fixed-point
    steps; the `last` tuning at nearby parameters gives the start. The number of steps
    grows until the mean product of a chain's score and the score at its start stops
    falling: by less than half a percent, or less than its noise.
    """
    start = jax.vmap(hidden.start)(noise, values)
    values = {name: values[name] for name in hidden.sites}
    tuning, chains = _statistics(hidden, params, start, values)
    rounds = _ROUNDS
    if last is not None:
        tuning, rounds = tuning._replace(step_size=last.step_size), _WARM_ROUNDS

    stretch = jax.vmap(hidden.stretch)(values)
    own = chains.score + chains.gradient @ tuning.slope.T / stretch
    num_samples = len(own)

    def body(carry: _Pilot) -> _Pilot:
        tuned, length = carry.number >= 0, carry.number + 1
        # The step size is tuned on the second step of a round, a normal trajectory.
        index = jnp.where(tuned, carry.number, 1)
        now = tuning._replace(step_size=carry.step_size)

        def step(key: jax.Array, at: Position, values: Values) -> tuple[Any, ...]:
            walk = Walk.of(hidden, params, values, now)
            chain = walk.chain(at)
            return *walk.step(key, index, chain), walk.score(chain)

        key = jax.random.fold_in(rng_key, carry.number + rounds)
        keys = jax.random.split(key, num_samples)
        moved, accepted, scores = jax.vmap(step)(keys, carry.at, values)
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
            # Chains start again when the step size is tuned.
            optax.tree.where(length == 0, start, moved),
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
    """The state of a pilot run of a batch of chains."""

    number: jax.Array  # number of the step; negative while the step size is tuned
    step_size: jax.Array
    at: Position
    total: jax.Array  # sum of scores in the window, (num_samples, num_scores)
    product: jax.Array  # score at the start times mean of the last window
    done: jax.Array


def _statistics(
    hidden: Hidden, params: Any, start: Position, values: Values
) -> tuple[Tuning, Chain]:
    """Metric, reference and control variate, and the chains at their starts."""
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
        # Stein's identity needs a continuous density in the coordinate.
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
    """The normal distribution of the coordinates given the values, by moments."""
    low, middle, high = quantiles(values, 0.16, 0.5, 0.84)
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
    """Log frequencies of choices, and moments of values with unlimited choices."""
    states, most = start.states, max(hidden.counts, default=0) or 1
    every = jnp.arange(most)
    counts = jnp.sum(states[:, :, None] == every, axis=0)
    allowed = every < jnp.asarray(hidden.counts, int)[:, None]
    share = jnp.where(allowed, counts + 1.0, 0.0)  # so that all are possible
    share = share / jnp.maximum(jnp.sum(share, axis=1, keepdims=True), 1.0)
    share = jnp.maximum(share, jnp.finfo(share.dtype).tiny)  # a finite logarithm
    numbers = states.astype(share.dtype)
    moments = jnp.mean(numbers, axis=0), jnp.std(numbers, axis=0) + 0.5
    return jnp.log(share), jnp.stack(moments, axis=1)


def _slope(values: jax.Array, gradient: jax.Array, score: jax.Array) -> jax.Array:
    """Minus the coefficients of gradients in a regression of scores on both."""
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
