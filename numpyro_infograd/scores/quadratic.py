# SPDX-License-Identifier: Apache-2.0
"""The quadratic loss of all learned scores.

All methods minimise over networks f the mean over samples of

    1/2 |g f(u)|^2 - g f(u) . y + q . (df/du) v

in whitened coordinates, where f is the score minus its Gaussian part. Methods differ in
u, g, y, q and v. Least squares gives the last layer of a network.

All arrays have an axis of frames before the axis of samples. There is one frame, or one
for each of several parameter values on which a network is trained at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_infograd._noise import permutation
from numpyro_infograd.scores.base import Layout, sequence_after
from numpyro_infograd.scores.coordinates import CLIP, Frame
from numpyro_infograd.scores.network import Ensemble, adam
from numpyro_infograd.scores.pool import Pool

_ROWS = 8  # frames in a training step, at most
# Ridges of least squares, relative to each feature's mean square.
_RIDGES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


class Batch(NamedTuple):
    """The loss of a batch; `pull` and `tangent` are q and v, or None for zero."""

    seen: jax.Array  # u, (num_samples, features)
    gain: jax.Array  # g, (num_samples, 1)
    wanted: jax.Array  # y, (num_samples, outputs)
    pull: jax.Array | None = None
    tangent: jax.Array | None = None


Problem = Callable[[Any, Pool], Batch]  # of one frame and its samples


def score_matching(
    frame: Frame, layout: Layout, seen: jax.Array, gaussian: jax.Array, pool: Pool
) -> Batch:
    """Sliced score matching of the score minus its Gaussian part.

    The score of a minimises the mean of 1/2 |s|^2 + v . (ds/da) v over values a and
    random signs v (Hyvarinen 2005; Song et al. 2019). A slice v in units of
    `fisher_sqrt` is the step `fisher_inv_sqrt` v of the values.
    """
    outputs = jnp.asarray(layout.outputs, int)
    tangent = pool.slices @ frame.fisher_inv_sqrt @ frame.whiten[:, outputs].T
    # The input of the network does not change where it is clipped.
    tangent *= jnp.abs(seen[:, : tangent.shape[1]]) < CLIP
    rest = jnp.zeros((len(seen), seen.shape[1] - tangent.shape[1]))
    tangent = jnp.concatenate([tangent, rest], axis=1)
    return Batch(seen, jnp.ones((len(seen), 1)), -gaussian, pool.slices, tangent)


def train(
    ensemble: Ensemble,
    problem: Problem,
    frames: Frame | None,
    pool: Pool,
    networks: Any,
    rng_key: jax.Array,
    *,
    steps: int,
    batch: int,
    peak: float,
    whole: bool,
) -> Any:
    """Train all networks on the quadratic loss, by Adam with a cosine schedule.

    The pool is (networks, frames, num_samples, ...); the key shuffles its samples once,
    and batches are consecutive blocks. With `whole` the last layer is fitted by least
    squares at the end: then the error of a linear functional of the score is of second
    order.
    """
    num_frames, size = pool.values.shape[1:3]
    rows = min(_ROWS, num_frames)
    share = min(batch // rows, size)

    def loss(networks: Any, at: tuple[Frame | None, Pool]) -> jax.Array:
        frames, part = at

        def member(network: Any, part: Pool) -> jax.Array:
            return _loss(ensemble, network, _at(problem, frames, part))

        return jnp.sum(jax.vmap(member)(networks, part))

    order = permutation(rng_key, size)
    shuffled = jax.tree.map(lambda x: x[:, :, order], pool)

    def at(index: jax.Array) -> tuple[Frame | None, Pool]:
        row = (index * rows) % num_frames
        column = ((index * rows) // num_frames % (size // share)) * share
        take = jax.lax.dynamic_slice_in_dim
        some = jax.tree.map(lambda x: take(x, row, rows), frames)
        part = jax.tree.map(
            lambda x: take(take(x, row, rows, axis=1), column, share, axis=2), shuffled
        )
        return some, part

    start, step = adam(loss, at, peak, steps)
    networks = jax.lax.scan(step, start(networks), jnp.arange(steps))[0][0]
    return solve(ensemble, problem, frames, pool, networks) if whole else networks


def solve(
    ensemble: Ensemble,
    problem: Problem,
    frames: Frame | None,
    pool: Pool,
    networks: Any,
) -> Any:
    """The networks with last layers from least squares on their own samples.

    A second fit uses half of the features. The difference shows what the other half
    adds.
    """

    def equations(network: Any, part: Pool) -> tuple[jax.Array, jax.Array]:
        return _equations(ensemble, network, _at(problem, frames, part))

    own = jax.vmap(equations)(networks, pool)
    held = jax.vmap(equations)(networks, _next(pool))
    last = _least_squares(own, held)
    half = jnp.arange(last.shape[1])[::-2]  # with the constant, the last
    own, held = (
        (gram[:, half[:, None], half], cross[:, half]) for gram, cross in (own, held)
    )
    part = _least_squares(sequence_after(own, last), held)
    part = jnp.zeros_like(last).at[:, half].set(part)
    return networks | {"last": last, "half": part}


def held_out_gain(
    ensemble: Ensemble, problem: Problem, frames: Frame, pool: Pool, networks: Any
) -> tuple[jax.Array, jax.Array]:
    """Weight of each network, (networks,), and the shares of the Fisher information
    that the weighted and the unweighted networks add to the Gaussian score.

    Each network is tested on the pool of the next one. A share is negative if the
    network overfits its own samples.
    """

    def one(network: Any, pool: Pool) -> tuple[jax.Array, jax.Array]:
        at = _at(problem, frames, pool)
        power = jnp.mean((at.gain * ensemble(network, at.seen)) ** 2)
        return 0.5 * power - _loss(ensemble, network, at), power

    agreement, power = jax.vmap(one)(networks, _next(pool))
    shrink = jnp.clip(agreement / jnp.maximum(power, 1e-12), 0.0, 1.0)
    kept = jnp.mean(shrink * (2 * agreement - shrink * power))
    return shrink, jnp.stack([kept, jnp.mean(2 * agreement - power)])


def _next(pool: Pool) -> Pool:
    """For each network the samples of the next one: its held-out samples."""
    rolled: Pool = jax.tree.map(lambda x: jnp.roll(x, -1, 0), pool)
    return rolled


def _at(problem: Problem, frames: Frame | None, pool: Pool) -> Batch:
    """The losses of all frames, as one batch."""
    each = jax.vmap(problem)(frames, pool)
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), each)


def _loss(ensemble: Ensemble, network: Any, at: Batch) -> jax.Array:
    """The mean loss over samples and outputs."""
    found, moved = _along(lambda seen: ensemble(network, seen), at)
    slope = jnp.zeros(()) if moved is None else at.pull * moved
    found = at.gain * found
    return jnp.mean(0.5 * found**2 - found * at.wanted + slope)


def _along(function: Callable[[jax.Array], jax.Array], at: Batch) -> tuple[Any, Any]:
    """A function of u, and its derivative along v; None if that is zero."""
    if at.tangent is None:
        return function(at.seen), None
    return jax.jvp(function, (at.seen,), (at.tangent,))


def _equations(
    ensemble: Ensemble, network: Any, at: Batch
) -> tuple[jax.Array, jax.Array]:
    """The normal equations of a last layer: (width, width) and (width, outputs)."""
    features, moved = _along(lambda seen: ensemble.features(network, seen), at)
    slope = jnp.zeros(()) if moved is None else moved.T @ at.pull / len(moved)
    features = at.gain * features
    gram = features.T @ features / len(features)
    return gram, features.T @ at.wanted / len(features) - slope


def _least_squares(
    own: tuple[jax.Array, jax.Array], held: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """Last layers of all networks, (networks, width, outputs).

    All networks share one ridge, one smaller than the best on the samples `held` out:
    the standard error includes noise, but not the bias of a ridge.
    """

    def path(gram: jax.Array, cross: jax.Array) -> jax.Array:
        power = jnp.diag(gram)
        scale = 1.0 / jnp.sqrt(jnp.maximum(power, 1e-6 * jnp.max(power)))
        values, vectors = jnp.linalg.eigh(scale[:, None] * gram * scale)
        inverse = 1.0 / (jnp.maximum(values, 0.0) + jnp.asarray(_RIDGES)[:, None])
        vectors = scale[:, None] * vectors
        return vectors @ (inverse[..., None] * (vectors.T @ cross))

    layers = jax.vmap(path)(*own)  # (networks, ridges, width, outputs)
    loss = jnp.einsum("mrio,mij,mrjo->r", layers, held[0], layers) / 2
    loss -= jnp.einsum("mrio,mio->r", layers, held[1])
    return layers[:, jnp.maximum(jnp.argmin(loss) - 1, 0)]
