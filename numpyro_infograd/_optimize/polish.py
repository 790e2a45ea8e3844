# SPDX-License-Identifier: Apache-2.0
"""The last climb of an ascent whose objective is known in closed form.

It is the spectral projected gradient method (Birgin, Martinez and Raydan, 2000): steps
along the projected gradient, of the length that Barzilai and Borwein derive from the
last two gradients, and accepted against the lowest of the last ten values. It needs
exact values, so it is not for sampled gradients.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._optimize.move import RATE, Move, constrained, onto
from numpyro_infograd.scores.exact import GaussianEntropies

LIMIT = 400  # steps of one climb
WINDOW = 20  # steps over which the rise is measured
FLAT = 1e-6  # rise over a window, relative to the value, at which the climb ends
NUDGE = 0.01  # random move, as a share of the size of the parameters
_MEMORY = 10  # values with which a new one is compared
_SLOPE = 1e-4  # least share of the first-order rise
_HALVINGS = 30


class Peak(NamedTuple):
    """Where a climb ended."""

    params: Any  # unconstrained parameters of the highest value
    value: jax.Array  # this value, in nats
    remaining: jax.Array  # estimated rise of a longer climb, in nats


class _Climb(NamedTuple):
    params: Any
    gradient: Any
    length: jax.Array  # of the next step, relative to the gradient
    values: jax.Array  # the last ones, (_MEMORY,)
    best: Any
    record: jax.Array  # highest value before each step, (LIMIT + 1,)
    step: jax.Array
    is_stuck: jax.Array


@quick_jit
def climb(exact: GaussianEntropies, move: Move, start: Any) -> Peak:
    """Climb from unconstrained parameters to the maximum above them."""

    def height(params: Any) -> jax.Array:
        return exact(constrained(params, move.constraints))

    rise = jax.value_and_grad(height)
    sizes = jax.tree.map(lambda s, x: s / RATE * math.sqrt(x.size), move.scale, start)
    size = optax.tree.norm(sizes)

    def reach(gradient: Any) -> jax.Array:
        """The longest step: a move by the parameters' size."""
        return size / jnp.maximum(optax.tree.norm(gradient), 1e-30)

    def advance(state: _Climb) -> _Climb:
        here, gradient = state.params, state.gradient
        least = jnp.min(state.values)
        slack = 2 * jnp.finfo(least.dtype).eps * jnp.abs(least)

        def halved(count: jax.Array) -> tuple[jax.Array, Any, jax.Array, jax.Array]:
            """A shorter step, its end, the value there, and what the slope promised."""
            length = state.length * 0.5**count
            there = jax.tree.map(lambda x, g: x + length * g, here, gradient)
            there = onto(move.projection, there)
            step = jax.tree.map(jnp.subtract, there, here)
            return count, there, height(there), optax.tree.vdot(gradient, step)

        def is_low(trial: tuple[jax.Array, Any, jax.Array, jax.Array]) -> jax.Array:
            count, _, value, promised = trial
            enough = value >= least + _SLOPE * promised - slack
            return ~enough & (count < _HALVINGS)

        count, there, *_ = jax.lax.while_loop(
            is_low, lambda trial: halved(trial[0] + 1), halved(jnp.zeros((), jnp.int32))
        )
        value, after = rise(there)
        step = jax.tree.map(jnp.subtract, there, here)
        change = jax.tree.map(jnp.subtract, gradient, after)
        square, bend = optax.tree.vdot(step, step), optax.tree.vdot(step, change)
        length = jnp.where(bend > 0, square / bend, 4 * state.length)
        top = state.record[state.step]
        is_best = value > top
        return _Climb(
            there,
            after,
            jnp.minimum(length, reach(after)),
            jnp.roll(state.values, 1).at[0].set(value),
            optax.tree.where(is_best, there, state.best),
            state.record.at[state.step + 1].set(jnp.where(is_best, value, top)),
            state.step + 1,
            (count == _HALVINGS) | ~jnp.isfinite(value) | (square == 0),
        )

    def last_rise(state: _Climb, windows: int) -> jax.Array:
        """The rise over a window that ended so many windows ago."""
        end = state.step - windows * WINDOW
        before = state.record[jnp.maximum(end - WINDOW, 0)]
        return state.record[jnp.maximum(end, 0)] - before

    def goes_on(state: _Climb) -> jax.Array:
        top = state.record[state.step]
        flat = last_rise(state, 0) <= FLAT * jnp.maximum(jnp.abs(top), 1.0)
        is_done = flat & (state.step >= WINDOW) | state.is_stuck
        return ~is_done & (state.step < LIMIT)

    value, gradient = rise(start)
    end = jax.lax.while_loop(
        goes_on,
        advance,
        _Climb(
            start,
            gradient,
            RATE * reach(gradient),
            jnp.full(_MEMORY, value),
            start,
            jnp.full(LIMIT + 1, value),
            jnp.zeros((), jnp.int32),
            ~jnp.isfinite(value),
        ),
    )
    now, before = last_rise(end, 0), last_rise(end, 1)
    # The sum of a geometric series; without decline, as much again as in the climb.
    whole = end.record[end.step] - end.record[0]
    tail = jnp.where(before > now, now**2 / jnp.maximum(before - now, 1e-30), whole)
    halted = end.is_stuck | (now == 0)
    remaining = jnp.where(halted, 0.0, jnp.minimum(tail, whole))
    return Peak(end.best, end.record[end.step], remaining)


def top(exact: GaussianEntropies, move: Move, start: Any, rng_key: jax.Array) -> Peak:
    """The maximum above a start, also if the climb meets a saddle or a flat place."""
    peak = climb(exact, move, start)
    beside = climb(exact, move, _nudged(move, peak.params, rng_key))
    return beside if _is_higher(beside, peak) else peak


def is_below_others(
    exact: GaussianEntropies, move: Move, here: Any, rng_key: jax.Array
) -> bool:
    """Whether a random small move leads to a higher maximum."""
    beside = climb(exact, move, _nudged(move, here, rng_key))
    return _is_higher(beside, climb(exact, move, here))


def _is_higher(one: Peak, other: Peak) -> bool:
    least = FLAT * max(abs(float(other.value)), 1.0)
    return bool(one.value > other.value + least)


def _nudged(move: Move, params: Any, rng_key: jax.Array) -> Any:
    """A random point near unconstrained parameters: a climb from it leaves a saddle."""

    def one(leaf: jax.Array, scale: jax.Array, index: int) -> jax.Array:
        key = jax.random.fold_in(rng_key, index)
        return leaf + NUDGE * scale / RATE * jax.random.normal(key, leaf.shape)

    leaves, tree = jax.tree.flatten(params)
    near = map(one, leaves, jax.tree.leaves(move.scale), range(len(leaves)))
    return onto(move.projection, jax.tree.unflatten(tree, list(near)))
