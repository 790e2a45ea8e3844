# SPDX-License-Identifier: Apache-2.0
"""The likelihood of recordings by a sum over draws of the hidden noise.

With draws u_k of the noise that the recorded sites hide, and draws z_k of the sites
whose draws have no derivative (identity V),

    log p(y; theta) = log mean_k p(y, z_k | u_k; theta) / p(z_k | u_k; theta_0).

At theta = theta_0 the ratio is p(y | z_k, u_k). Its derivatives in theta include how
theta changes the probability of each draw. Half of the u_k have one number from a wider
distribution, with weights that correct for this: recordings far out are rare but say
much about a scale, and few other draws come near them. Nothing is learned, and sites
may be discrete, continuous, or both. The bias falls as one over the number of draws; a
jackknife over independent sets of draws removes its first order.
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Any, NamedTuple

import numpy as np

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp

from numpyro_infograd._arguments import explain_grad_errors
from numpyro_infograd._calibrate.matching import Descent
from numpyro_infograd._compiling import pytree, quick_jit
from numpyro_infograd._density import Density, Values, quantiles, simulate
from numpyro_infograd._noise import NoiseSource, NoiseSpec
from numpyro_infograd._optimize.move import Move, constrained
from numpyro_infograd._program import Program
from numpyro_infograd._structure import StructuralModel

_AT_ONCE = 2**18  # recordings times draws that are evaluated at once
_LOW = 0.05  # share of recordings below the reported effective sample size
_MOST_SPREAD = 16  # numbers of hidden noise of which one is drawn from farther out
_WIDE = 2.0  # standard deviation of a standard normal number that is


@pytree("forward", "joint", "drawn", "constraints")
@dataclass(frozen=True)
class Likelihood:
    """A twin with a likelihood."""

    forward: Program  # the twin's map from parameters and noise to sites
    joint: Density  # density of the recorded and the drawn sites given the hidden noise
    drawn: Density | None  # density of the drawn sites; None without any
    constraints: dict[str, Any] | None  # of the parameters; None with a projection
    spec: NoiseSpec  # distributions of the noise that is drawn; empty if none is hidden

    @staticmethod
    def of(
        sm: StructuralModel, density: Density, constraints: dict[str, Any] | None
    ) -> Likelihood:
        """The likelihood of recordings of the sites of a density."""
        sites, forward = density.sites, sm.forward
        drawn = tuple(s for s in sm.drawn if s in density.hidden and s not in sites)
        if not drawn:
            return Likelihood(forward, density, None, constraints, density.hidden_spec)
        both = sm.density(sm.in_order(drawn + sites), whole=True)
        held = sm.density(drawn, whole=True)
        return Likelihood(forward, both, held, constraints, sm.spec)

    def draw(self, params: Any, noise: Values) -> Draws:
        """Draws of what the recorded sites hide, each of the noise's leading shape."""
        noise, log_ratio = spread(noise, self.spec)
        if self.drawn is None:
            return Draws(noise, {}, log_ratio)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), noise)
        values = simulate(self.forward, params, flat)
        held = {s: values[s] for s in self.drawn.sites}
        log_prob = jax.vmap(self.drawn.log_prob, in_axes=(None, 0, 0))
        found = held, log_prob(params, flat, held)
        shape = next(iter(noise.values())).shape[:2]
        found = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found)
        held, log_prob = jax.lax.stop_gradient(found)
        return Draws(noise, held, log_prob + log_ratio)

    def __call__(self, unconstrained_params: Any, draws: Draws, row: Values) -> Any:
        """log p of one recording by each set of draws, and its effective sample size.

        The first is (sets,) in nats, -inf where no draw can make the recording; the
        second is the size of all sets together, by Kish's formula.
        """
        params = constrained(unconstrained_params, self.constraints)

        def one(noise: Values, held: Values, log_prob: jax.Array) -> jax.Array:
            return self.joint.log_prob(params, noise, row | held) - log_prob

        if not self.spec:
            found = one({}, {}, draws.log_prob)
            return jnp.where(jnp.isnan(found), -jnp.inf, found)[None], jnp.inf
        each = jax.vmap(jax.vmap(one))(*draws)
        # In forward mode this also drops derivatives that are not finite.
        each = jnp.where(jnp.isfinite(each), each, -jnp.inf)
        peak = jax.lax.stop_gradient(jnp.max(each, axis=1))
        peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
        weight = jnp.exp(each - peak[:, None])
        total = jnp.sum(weight, axis=1)
        some = total > 0
        log_mean = jnp.log(jnp.where(some, total, 1.0) / each.shape[1]) + peak
        weight *= jnp.exp(peak - jnp.max(peak))[:, None]
        size = jnp.sum(weight) ** 2 / jnp.maximum(jnp.sum(weight**2), 1e-30)
        return jnp.where(some, log_mean, -jnp.inf), size


class Draws(NamedTuple):
    """Draws of hidden noise and of drawn sites, (sets, draws, *shape)."""

    noise: Values  # by site
    held: Values  # values of the drawn sites
    # Log probability of the drawn sites at the parameters that drew them, plus the log
    # of how much more often the noise is drawn than its distribution says.
    log_prob: jax.Array


def spread(noise: Values, spec: NoiseSpec) -> tuple[Values, jax.Array]:
    """Draws of noise with more of them far out, and the log of their relative density.

    Leading axes are (sets, draws). In the second half of the draws one number, a
    different one in each block, is from a wider distribution. The density is that of
    the mixture of all draws, so no weight exceeds two.
    """
    kinds = [(n, law.kind) for n, law in spec if law.kind in ("normal", "uniform")]
    shape = next((x.shape[:2] for x in noise.values()), (1, 1))
    sizes = [math.prod(noise[n].shape[2:]) for n, _ in kinds]
    numbers, (_, count) = sum(sizes), shape
    if not 0 < numbers <= min(_MOST_SPREAD, count // 2):
        return noise, jnp.zeros(shape)
    parts = [noise[n].reshape(*shape, -1) for n, _ in kinds]
    normal = np.repeat([kind == "normal" for _, kind in kinds], sizes)
    # Blocks of consecutive points: each is spread evenly, unlike every second point.
    block = 2 * numbers * np.arange(count) // count - numbers
    picked = block[:, None] == np.arange(numbers)
    here = jnp.concatenate(parts, axis=2)
    # Half of the wider uniform numbers crowd at each end of the interval.
    ends = jnp.where(here < 0.5, (2 * here) ** 3, 1 - (2 - 2 * here) ** 3)
    # Rounding must not reach the ends.
    ends = jnp.clip(ends, jnp.finfo(here.dtype).tiny, 1 - jnp.finfo(here.dtype).epsneg)
    here = jnp.where(picked, jnp.where(normal, _WIDE * here, ends), here)
    far = 0.5 * (1 - _WIDE**-2) * here**2 - math.log(_WIDE)
    inside = jnp.where(normal, 0.5, here)
    near_end = (inside ** (-2 / 3) + (1 - inside) ** (-2 / 3)) / 6
    log_wide = jnp.where(normal, far, jnp.log(near_end))
    shares = jnp.asarray(np.append(1 - picked.mean(0).sum(), picked.mean(0)))
    each = jnp.concatenate([jnp.zeros((*shape, 1), here.dtype), log_wide], axis=2)
    moved = jnp.split(here, np.cumsum(sizes)[:-1], axis=2)
    put = {n: x.reshape(noise[n].shape) for (n, _), x in zip(kinds, moved, strict=True)}
    return noise | put, jax.nn.logsumexp(each, axis=2, b=shares)


class Rows(NamedTuple):
    """Different recordings, and how often each occurs."""

    values: dict[str, Any]  # by site, (num_rows, *shape)
    # Share of each row in each block of recordings, (blocks, num_rows). It is zero for
    # a few last rows, which repeat the first one.
    shares: Any


def _flat(recorded: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Rows of all sites side by side, (num_rows, numbers)."""
    columns = [v[rows.ravel()].reshape(rows.size, -1) for v in recorded.values()]
    return np.concatenate(columns, axis=1)


def count_rows(recorded: dict[str, np.ndarray], blocks: np.ndarray) -> int:
    """The number of different recordings in blocks."""
    return len(np.unique(_flat(recorded, blocks), axis=0))


def rows_of(recorded: dict[str, np.ndarray], blocks: np.ndarray) -> Rows:
    """The different recordings among blocks of rows, (blocks, length)."""
    flat = _flat(recorded, blocks)
    _, first, which = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    # A few sizes, so that other recordings compile nothing.
    quarter = 1 << max(len(first).bit_length() - 3, 0)
    shares = np.zeros((len(blocks), -(-len(first) // quarter) * quarter))
    first = np.append(first, np.full(shares.shape[1] - len(first), first[0]))
    owner = np.repeat(np.arange(len(blocks)), blocks.shape[1])
    np.add.at(shares, (owner, which.ravel()), 1 / blocks.shape[1])
    first = blocks.ravel()[first]
    rows = {n: jnp.asarray(v[first]) for n, v in recorded.items()}
    return Rows(rows, shares)


class Around(NamedTuple):
    """The mean log likelihood, and its derivatives in the unconstrained numbers.

    The last axis has one entry for each set of draws, and one for all of them.
    """

    value: jax.Array  # of each block, (blocks, sets + 1)
    slope: jax.Array  # of each block, (numbers, blocks, sets + 1)
    bend: jax.Array  # of all blocks, (numbers, numbers, sets + 1)
    size: jax.Array  # a low quantile of the effective sample sizes


@quick_jit
def draw_sets(
    twin: Likelihood, unconstrained_params: Any, keys: jax.Array, source: NoiseSource
) -> Draws:
    """A set of draws for each key, (sets, draws, *shape); see `Likelihood.draw`.

    Samplers take long to compile, so this is a function for itself.
    """
    params = constrained(unconstrained_params, twin.constraints)
    return twin.draw(params, _noise(source, keys))


@quick_jit(static_argnames="derivatives")
def look_around(
    twin: Likelihood,
    unconstrained_params: Any,
    offsets: jax.Array,
    rows: Rows,
    draws: Draws,
    *,
    derivatives: bool,
) -> tuple[Around | None, jax.Array, jax.Array]:
    """The mean log likelihood around some parameters, (num_offsets, numbers) from them.

    Returns value and derivatives; the mean of each block at each offset, (num_offsets,
    blocks); and the share of recordings that a set of draws cannot make, which are left
    out of all means.
    """
    flat, unravel = ravel_pytree(unconstrained_params)
    size = max(1, _AT_ONCE // draws.log_prob.size)

    def at(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        """log p of each row by each set and by all, (num_rows, sets + 1), and sizes."""

        def one(row: Values) -> tuple[jax.Array, jax.Array]:
            found, effective = twin(unravel(flat), draws, row)
            whole = jax.nn.logsumexp(found) - np.log(len(found))
            return jnp.append(found, whole), jnp.asarray(effective, found.dtype)

        return jax.lax.map(one, rows.values, batch_size=size)

    def means(flat: jax.Array) -> jax.Array:
        found = at(flat)[0]
        # A recording that one set misses counts for no set.
        usable = jnp.all(jnp.isfinite(found), axis=1, keepdims=True)
        return rows.shares @ jnp.where(usable, found, 0.0)

    def mean(flat: jax.Array) -> jax.Array:
        return jnp.mean(means(flat), axis=0)

    elsewhere = jax.lax.map(lambda offset: means(flat + offset)[:, -1], offsets)
    found, effective = at(flat)
    missed = jnp.mean(rows.shares, axis=0) @ ~jnp.all(jnp.isfinite(found), axis=1)
    if not derivatives:
        return None, elsewhere, missed
    basis = jnp.eye(len(flat), dtype=flat.dtype)

    def slope(along: jax.Array) -> jax.Array:
        return jax.jvp(means, (flat,), (along,))[1]

    def bend(pair: jax.Array) -> jax.Array:
        inner = lambda flat: jax.jvp(mean, (flat,), (basis[pair[0]],))[1]  # noqa: E731
        return jax.jvp(inner, (flat,), (basis[pair[1]],))[1]

    first, second = np.triu_indices(len(flat))
    half = jax.lax.map(bend, jnp.stack([first, second], axis=1))
    whole = jnp.zeros((len(flat), len(flat), half.shape[1]), flat.dtype)
    whole = whole.at[first, second].set(half).at[second, first].set(half)
    low = quantiles(effective, _LOW)[0]
    around = Around(means(flat), jax.lax.map(slope, basis), whole, low)
    return around, elsewhere, missed


def _noise(source: NoiseSource, keys: jax.Array) -> Values:
    """A set of draws of noise for each key, (sets, draws, *shape)."""
    return jax.tree.map(lambda *x: jnp.stack(x), *map(source, keys))


@quick_jit(static_argnames="batch")
def descend(
    twin: Likelihood,
    move: Move,
    state: Descent,
    rates: jax.Array,
    rows: Rows,
    rng_key: jax.Array,
    source: NoiseSource,
    *,
    batch: int,
) -> tuple[Descent, dict[str, Any]]:
    """A chunk of steps up the likelihood of all recordings, with fresh draws.

    If more than `batch` of them are different, each step takes so many at random.
    """
    share = jnp.mean(rows.shares, axis=0)

    def loss(unconstrained_params: Any, draws: Draws, rows: Values, share: Any) -> Any:
        found = jax.vmap(lambda row: twin(unconstrained_params, draws, row)[0][0])(rows)
        usable = jnp.isfinite(found)
        total = jnp.sum(share * jnp.where(usable, found, 0.0))
        return -total / jnp.sum(share * usable)

    def step(state: Descent, rate: jax.Array) -> tuple[Descent, dict[str, Any]]:
        keys = jax.random.split(jax.random.fold_in(rng_key, state.step))
        here = state.unconstrained_params
        params = constrained(here, twin.constraints)
        draws = twin.draw(params, _noise(source, jax.random.split(keys[0], 1)))
        values, weight = rows.values, share
        if len(share) > batch:
            uniform = jax.random.uniform(keys[1], (batch,))
            picked = jnp.searchsorted(jnp.cumsum(share), uniform)
            picked = jnp.minimum(picked, len(share) - 1)
            values = {name: each[picked] for name, each in rows.values.items()}
            weight = jnp.ones(batch)
        with explain_grad_errors():
            value, gradient = jax.value_and_grad(loss)(here, draws, values, weight)
        new, info = state.moved(move, gradient, rate)
        return new, info | {"params": params, "negative_log_likelihood": value}

    return jax.lax.scan(step, state, rates)
