# SPDX-License-Identifier: Apache-2.0
"""Exact sums over many hidden discrete sites, by the forward algorithm.

A channel with memory, or a plate of members with hidden classes, has too many joint
states to list. But each entry of a log density reads only a few neighbouring hidden
values. With the hidden values in an order d_1, ..., d_n in which no entry reads two
that are m or more places apart,

    p(a, d) = prod_t f_t(d_{t-m+1}, ..., d_t),

and the sum over all d takes n steps over the states of m values. The order is that of
Cuthill and McKee, or that of the model if it needs fewer states. What each entry reads
is found by changing one hidden value at a time at random points.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import reverse_cuthill_mckee

import jax
import jax.numpy as jnp

from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._density import Density, Values, sum_over, summed
from numpyro_infograd._noise import probe_noise
from numpyro_infograd._parameters import bijection
from numpyro_infograd._program import Program
from numpyro_infograd._sites import (
    Site,
    choice_counts,
    choice_numbers,
    choice_values,
    joint_states,
)

_MOST_VALUES = 2048  # hidden values that are summed over, at most
_MOST_TABLE = 1024  # joint states of neighbouring hidden values, at most
_CHECKS = 256  # random states at which an order is checked, some at each point
_POINTS = 128  # fresh points at which an order is checked
_PROBES = 16  # random points at which each hidden value is changed
_NEVER = -1e30  # log of a probability of zero, with finite derivatives


def sum_hidden(density: Density, sm: Any) -> Density:
    """The density as a sum over its hidden discrete sites, if that is possible.

    The same density if there are too many joint states, also of neighbouring hidden
    values.
    """
    known = sm.site_info.keys() - set(density.all_sites)
    discrete = tuple(
        n for n in density.hidden if n in known and sm.site_info[n].discrete
    )
    if not discrete or density.without_density or density.hidden_deterministic:
        return density
    inputs = sm.example_inputs(density.all_sites)
    if states := joint_states(sm.site_info, discrete):
        return sum_over(density, sm.run, inputs, states)
    return _sum_along(density, sm, inputs, [sm.site_info[n] for n in discrete])


class Order(NamedTuple):
    """Hidden values in an order in which each factor reads only neighbours.

    The arrays are JAX's, so that they are arguments of compiled programs: XLA would
    spend minutes on folding constants.
    """

    # Number of states of each colour. The colour of a hidden value is its place in the
    # order, modulo the number of colours: a factor reads at most one value of each
    # colour.
    shape: tuple[int, ...]
    # For each joint state of the colours, the state of each hidden value, (num_states,
    # num_values).
    states: jax.Array
    # For each place and joint state of the colours, whether the value at that place has
    # that state, (num_places, *shape).
    open: jax.Array
    # The factors that are complete at each place, (num_places, most); the number of
    # factors where there are fewer.
    factors: jax.Array
    free: jax.Array  # whether a factor reads no hidden value
    place: np.ndarray  # the place of each hidden value in the order
    last: np.ndarray  # the last place that a factor reads; -1 for a free factor

    @staticmethod
    def of(reads: np.ndarray, counts: np.ndarray, given: np.ndarray) -> Order | None:
        """The order for what each factor reads; None if it needs too many states.

        `reads` says whether a factor reads a hidden value, (num_factors, num_values);
        `given` is an order to try too, as indices of the hidden values.
        """
        wide = reads.astype(np.float32)
        graph = csr_matrix(wide.T @ wide > 0)
        rows, columns = graph.nonzero()
        found: list[tuple[tuple[int, ...], np.ndarray]] = []
        for order in (reverse_cuthill_mckee(graph, symmetric_mode=True), given):
            place = np.argsort(order)
            reach = 1 + int(np.max(np.abs(place[rows] - place[columns]), initial=0))
            for colours in range(reach, reach + 3):
                own = [counts[order][c::colours] for c in range(colours)]
                shape = tuple(int(np.max(x, initial=1)) for x in own)
                found.append((shape, order))
        shape, order = min(found, key=lambda each: math.prod(map(float, each[0])))
        if math.prod(map(float, shape)) > _MOST_TABLE:
            return None
        place = np.argsort(order)
        length = -(-len(order) // len(shape)) * len(shape)
        at = np.arange(length) % len(shape)
        ends = np.concatenate([counts[order], np.ones(length - len(order), int)])
        numbers = np.indices(shape)
        open_ = np.stack([numbers[c] < end for c, end in zip(at, ends, strict=True)])
        last = np.where(reads, place, -1).max(axis=1)
        done = [np.flatnonzero(last == t) for t in range(length)]
        most = max(map(len, done))
        factors = [
            np.pad(x, (0, most - len(x)), constant_values=len(reads)) for x in done
        ]
        states = numbers.reshape(len(shape), -1).T[:, place % len(shape)]
        arrays = states, open_, np.stack(factors), last < 0
        a, b, c, d = map(jnp.asarray, arrays)
        return Order(shape, a, b, c, d, place, last)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """For each factor, the row of `states` that has the values that it reads."""
        count = len(self.shape)
        ordered = numbers[np.argsort(self.place)]
        colour = np.arange(count)
        at = self.last[:, None] - (self.last[:, None] - colour) % count
        own = np.where(at < 0, 0, ordered[np.maximum(at, 0)])
        return np.ravel_multi_index(tuple(own.T), self.shape)

    def log_sum(self, factors: Callable[[Any], jax.Array]) -> jax.Array:
        """log sum_d exp(sum of factors(d)), from factors of the hidden values' states.

        The sum over the value at each place keeps the axis of its colour, which the
        next value of that colour takes.
        """
        count = len(self.shape)
        each = jax.vmap(factors)(self.states)
        # Some distributions have NaN outside of their support.
        each = jnp.where(jnp.isnan(each), _NEVER, jnp.maximum(each, _NEVER))
        free = jnp.sum(jnp.where(self.free, each[0], 0.0))
        each = jnp.pad(each, ((0, 0), (0, 1)))
        table = jnp.sum(each.T[self.factors], axis=1)  # (num_places, num_states)
        table = table.reshape(-1, *self.shape)
        table = jnp.where(self.open, table, _NEVER)
        start = jnp.full(self.shape, _NEVER).at[(0,) * count].set(0.0)

        def step(log_sum: jax.Array, block: jax.Array) -> tuple[jax.Array, None]:
            for axis in range(count):
                log_sum = jax.nn.logsumexp(log_sum, axis=axis, keepdims=True)
                log_sum = log_sum + block[axis]
            return log_sum, None

        blocks = table.reshape(-1, count, *self.shape)
        total = jax.nn.logsumexp(jax.lax.scan(step, start, blocks)[0]) + free
        return jnp.where(total > 0.1 * _NEVER, total, -jnp.inf)


def _sum_along(
    density: Density, sm: Any, inputs: tuple[Any, ...], sites: list[Site]
) -> Density:
    """A density as a sum over hidden discrete sites of which each factor reads few."""
    counts = np.asarray(choice_counts(sites))
    if counts.min() < 1 or len(counts) > _MOST_VALUES:
        return density
    wanted = (*density.log_prob_sites, *(site.name for site in sites))

    def factors(params: Any, noise: Values, values: Values, numbers: Any) -> jax.Array:
        held = values | choice_values(sites, jnp.minimum(numbers, counts - 1))
        found = sm.run(params, noise, held, log_prob_sites=wanted).log_prob
        return jnp.concatenate([found[name].ravel() for name in wanted])

    program = Program.trace(factors, *inputs, jnp.zeros(len(counts), int))
    # The first value of each site, then each second value, ...
    places = np.concatenate([np.arange(site.size) for site in sites])
    interleaved = np.argsort(places, kind="stable")
    for probes in (_PROBES, 16 * _PROBES):
        reads = _reads(program, density, sm, sites, _points(sm, probes))
        order = Order.of(reads, counts, interleaved)
        if order is None:
            return density
        if _fits(order, program, density, sm, sites):
            break
    else:  # some reads are rare, and no probe saw them
        return density

    def log_sum(params: Any, noise: Values, values: Values) -> jax.Array:
        return order.log_sum(lambda numbers: factors(params, noise, values, numbers))

    return summed(density, log_sum, inputs, [site.name for site in sites])


def _points(sm: Any, count: int) -> tuple[Any, Values]:
    """Random parameters and noise, with a leading axis of points.

    The parameters are moved because a factor may not depend on a hidden value at some
    values of them, such as a transition probability of one half.
    """
    rng = np.random.default_rng(0)
    moved = {
        name: jax.tree.map(
            lambda x, own: jnp.asarray(x).at[::2].set(own),
            _moved(rng, value, sm.constraints.get(name), count),
            value,
        )
        for name, value in sm.params.items()
    }
    return moved, probe_noise(sm.spec, 11, count)


def _reads(
    factors: Program,
    density: Density,
    sm: Any,
    sites: list[Site],
    points: tuple[Any, Values],
) -> np.ndarray:
    """Whether each factor reads each hidden value, (num_factors, num_values)."""
    params, noise = points
    counts = np.asarray(choice_counts(sites))
    rng = np.random.default_rng(1)
    shape = (len(jax.tree.leaves(noise)[0]), len(counts))
    start = rng.integers(counts, size=shape)
    # Half of the states are drawn by the model: some are reached by no other way.
    values = jax.vmap(sm.forward)(params, noise)
    drawn = np.asarray(_choices(sites, values))
    own = np.arange(len(start)) % 4 < 2
    start = np.where(own[:, None], drawn, start)
    # Another choice of each value, if it has more than one.
    other = (start + rng.integers(1, np.maximum(counts, 2), size=shape)) % counts
    held = density.pick(values)
    return np.asarray(_changed(factors, params, noise, held, start, other)).T


def _fits(
    order: Order, factors: Program, density: Density, sm: Any, sites: list[Site]
) -> bool:
    """Whether the factors at other points are those of the table of an order.

    A factor that also reads a value that no probe showed to be read would differ.
    """
    counts = choice_counts(sites)
    numbers = np.random.default_rng(2).integers(counts, size=(_CHECKS, len(counts)))
    noise = probe_noise(sm.spec, 14, _POINTS)
    values = jax.vmap(sm.forward, (None, 0))(sm.params, noise)
    own = np.asarray(_choices(sites, values))
    at = np.concatenate([own[:, None], numbers.reshape(_POINTS, -1, len(counts))], 1)
    rows = np.stack([[order.rows(each) for each in point] for point in at])
    points = noise, density.pick(values), at, rows
    direct, table = _at(factors, sm.params, points, order.states)
    return np.allclose(direct, table, rtol=1e-3, atol=1e-3, equal_nan=True)


def _choices(sites: list[Site], values: Values) -> jax.Array:
    """The index of each hidden value's choice, of a batch of values."""
    return jax.vmap(functools.partial(choice_numbers, sites))(values)


@quick_jit
def _at(
    factors: Program, params: Any, points: Any, states: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The factors at states of the hidden values, directly and from the table.

    Points are noise, values of the set, hidden values, and their rows of the table.
    """

    def each(point: Any) -> tuple[jax.Array, jax.Array]:
        noise, held, numbers, rows = point
        run = functools.partial(factors, params, noise, held)
        table = jax.lax.map(run, states, batch_size=64)
        return jax.vmap(run)(numbers), jnp.take_along_axis(table, rows, axis=0)

    return jax.lax.map(each, points)


@quick_jit
def _changed(
    factors: Program,
    params: Any,
    noise: Values,
    held: Values,
    start: jax.Array,
    other: jax.Array,
) -> jax.Array:
    """Whether a change of a hidden value changes a factor at any of the probes."""

    count = len(start[0])
    # The same code computes both sides, so factors that do not change are equal bit
    # for bit: batches are full, and both sides of a comparison have the same place.
    each = min(count, 64)
    index = jnp.arange(-(-count // each) * each) % count

    def probe(point: Any) -> jax.Array:
        params, noise, held, start, other = point

        def at(which: tuple[jax.Array, jax.Array]) -> jax.Array:
            i, change = which
            put = start.at[i].set(jnp.where(change, other[i], start[i]))
            return factors(params, noise, held, put)

        sides = jnp.tile(index, 2), jnp.repeat(jnp.arange(2) > 0, len(index))
        before, after = jnp.split(jax.lax.map(at, sides, batch_size=each), 2)
        same = (after == before) | (jnp.isnan(after) & jnp.isnan(before))
        return ~same[:count]

    found = jax.lax.map(probe, (params, noise, held, start, other))
    return jnp.any(found, axis=0)


def _moved(rng: np.random.Generator, value: Any, constraint: Any, count: int) -> Any:
    """A parameter at random points near its value, with a leading axis of points."""

    def spread(leaf: Any) -> np.ndarray:
        leaf = np.clip(np.asarray(leaf), -10.0, 10.0)
        steps = rng.standard_normal((count, *leaf.shape))
        return (leaf + 0.3 * (0.1 + np.abs(leaf)) * steps).astype(leaf.dtype)

    transform = bijection(constraint)
    if transform is None:
        return jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), value)
    return jax.tree.map(lambda leaf: transform(spread(transform.inv(leaf))), value)
