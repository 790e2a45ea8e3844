# SPDX-License-Identifier: Apache-2.0
"""Scores as linear functions of features, which need only two moments.

In the span of features phi(z), the score of a distribution is phi(z) W with

    W = E[phi phi^T]^-1 E[-d phi / dz],

by integration by parts (score matching, Hyvarinen 2005), from samples only. The
features are trained on recordings and on draws of the twin, and then fixed: the twin's
score depends on its parameters through W. If both distributions are equal, so are both
W, even for poor features.

Noise of several levels is appended to both distributions, in units of the recordings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import chi2

import jax
import jax.numpy as jnp

from numpyro_infograd._compiling import pytree, quick_jit
from numpyro_infograd._density import Density, Values, quantiles
from numpyro_infograd._noise import draw_noise, permutation, spare_key, subkeys
from numpyro_infograd.scores.base import Layout
from numpyro_infograd.scores.coordinates import CLIP, HEAVY, Frame, Free, tails_of
from numpyro_infograd.scores.network import Ensemble, Network
from numpyro_infograd.scores.pool import Pool, extra_noise
from numpyro_infograd.scores.quadratic import Batch, train

_WHOLE = 0.995  # share of a normal distribution with full weight
_NEAR = 2.0  # distance to the median, in widths of the middle 68 %
_END = 1.5  # distance at which the weight of a sample is zero, in reaches
_RIDGE = 1e-2  # relative to each feature's mean square; the same for all distributions
_DIRECTIONS = 8  # random directions for derivatives, if there are more dimensions
_POOL = 16384  # training samples of each distribution
_BATCH = 512
_NUM_STEPS = 400
_RATE = 4e-3


class Moments(NamedTuple):
    """Moments of a distribution with noise of each level."""

    gram: Any  # E[phi phi^T], (levels, width, width)
    slope: Any  # E[-d phi / dz], (levels, width, dimensions)


@pytree("density", "mean", "whiten", "networks", "power")
@dataclass(frozen=True)
class Features:
    """Features of a set of sites, and the coordinates that they are functions of."""

    density: Density  # the sites
    mean: jax.Array  # mean of the recordings in unbounded coordinates
    whiten: jax.Array  # matrix that makes their covariance the identity
    networks: Any  # parameters of two networks, one for each distribution
    power: jax.Array  # mean square of each feature on the recordings, (levels, width)
    levels: tuple[float, ...]  # variances of the appended noise
    network: Network  # function or functions that make a network
    reach: float = np.inf  # distance from the mean up to which samples have full weight

    def at(self, levels: tuple[float, ...]) -> Features:
        """The features with only these levels."""
        return replace(self, levels=levels, power=self.power[self.index(levels)])

    def index(self, levels: tuple[float, ...]) -> np.ndarray:
        """Indices of these levels."""
        return np.asarray([self.levels.index(level) for level in levels])

    @property
    def dimensions(self) -> int:
        """Number of coordinates."""
        return len(self.whiten)

    @property
    def ensemble(self) -> Ensemble:
        """The networks; their inputs are the coordinates and the level."""
        size = self.dimensions
        return Ensemble(self.network, size + 1, size, size)

    def coordinates(self, values: Values) -> jax.Array:
        """Values of the sites, whitened, (num_samples, dimensions)."""
        return self.whitened(Free.of(self.density, values).values)

    def whitened(self, values: Any) -> Any:
        """Values in unbounded coordinates, whitened; JAX or NumPy arrays."""
        return (values - self.mean) @ self.whiten.T

    def weigh(self, z: jax.Array) -> Any:
        """Weight of each sample, (num_samples, 1): from one within `reach` to zero.

        Both distributions are multiplied by it. If they agree, so do their products,
        and outliers of the recordings have weight zero.
        """
        if self.reach == np.inf:
            return 1.0
        far = jnp.sum(z**2, axis=-1, keepdims=True) / self.reach**2
        x = jnp.clip((_END**2 - far) / (_END**2 - 1), 0.0, 1.0)
        return x**2 * (3 - 2 * x)

    def __call__(self, z: jax.Array, level: jax.Array | float) -> jax.Array:
        """All features: coordinates, steps, networks and a constant, (..., width)."""
        seen = see(z, level)
        over = jax.vmap(self.ensemble.features, (0, None))
        first, second = over(self.networks, seen)
        own = self.ensemble.knots[0] * self.ensemble.knots[1]  # steps, taken only once
        return jnp.concatenate([seen[..., :-1], first, second[..., own:-1]], axis=-1)

    def moments(self, z: jax.Array, blur: jax.Array, rng_key: jax.Array) -> Moments:
        """Moments of the distribution of z, (num_samples, dimensions).

        `blur` is standard normal noise of the same shape. The key may be that of
        `blur`; it is for random directions, if there are many dimensions.
        """

        def at(level: jax.Array) -> Moments:
            phi, slope = self._phi_and_slope(z, blur, rng_key, level)
            return Moments(phi.T @ (self.weigh(z) * phi) / len(z), slope)

        return jax.lax.map(at, jnp.asarray(self.levels))  # a loop compiles faster

    def defect(
        self,
        z: jax.Array,
        blur: jax.Array,
        rng_key: jax.Array,
        level: jax.Array,
        weights: jax.Array,
    ) -> jax.Array:
        """E[-d phi / dz] - E[phi phi^T] W for z at one level, (width, dimensions).

        It is zero if W are the weights of z.
        """
        phi, slope = self._phi_and_slope(z, blur, rng_key, level)
        return slope - phi.T @ (self.weigh(z) * (phi @ weights)) / len(z)

    def _phi_and_slope(
        self, z: jax.Array, blur: jax.Array, rng_key: jax.Array, level: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The features, and E[-d phi / dz] by directional derivatives."""
        size = self.dimensions
        if size <= _DIRECTIONS:
            along = jnp.sqrt(size) * jnp.eye(size)[:, None]
        else:
            key = spare_key(rng_key)
            along = jax.random.rademacher(key, (_DIRECTIONS, *z.shape), z.dtype)
        phi, push = jax.linearize(lambda z: self(z, level), z + level**0.5 * blur)
        slope = jnp.zeros((phi.shape[1], size))
        for each in along:
            each = jnp.broadcast_to(each, z.shape)
            slope -= push(each).T @ (self.weigh(z) * each) / (len(along) * len(z))
        return phi, slope

    def weights(self, law: Moments) -> Any:
        """W for these moments, (levels, width, dimensions)."""
        return self.solve(law.gram, law.slope)

    def solve(self, gram: Any, right: Any) -> Any:
        """G^-1 `right` with the ridge, (levels, width, any); JAX or NumPy arrays."""
        xp = gram.__array_namespace__()
        scale = xp.asarray(self.power, dtype=gram.dtype)[..., None] ** -0.5
        gram = scale * self.ridged(gram) * xp.swapaxes(scale, -1, -2)
        solve = xp.linalg.solve if xp is np else _one_by_one
        return scale * solve(gram, scale * right)

    def ridged(self, gram: Any) -> Any:
        """G plus the ridge, (..., levels, width, width)."""
        xp = gram.__array_namespace__()
        power = xp.asarray(self.power, dtype=gram.dtype)[..., None]
        return gram + _RIDGE * power * xp.eye(gram.shape[-1], dtype=gram.dtype)


def _one_by_one(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """Solve in sequence: in parallel it can deadlock CPUs that emulate devices."""
    return jax.lax.map(lambda pair: jnp.linalg.solve(*pair), (matrix, right))


def see(z: jax.Array, level: jax.Array | float) -> jax.Array:
    """Inputs of the networks: clipped coordinates and the noise level."""
    mark = 0.3 * jnp.log(jnp.asarray(level) + 0.01)
    mark = jnp.broadcast_to(mark, (*z.shape[:-1], 1)).astype(z.dtype)
    return jnp.concatenate([jnp.clip(z, -CLIP, CLIP), mark], axis=-1)


def make_features(
    density: Density,
    recorded: Values,
    drawn: Values,
    levels: tuple[float, ...],
    network: Network,
    rng_key: jax.Array,
    robust: bool = False,
) -> Features:
    """Features trained on the scores of recordings and of draws of the twin.

    With heavy tails, as with `robust`, values far out have weight zero: the derivatives
    of draws grow without bound there, but features do not fall.
    """
    pick_key, key = subkeys(rng_key, 2)
    mixed = jax.device_get(_mixed(density, recorded, pick_key))
    size = mixed.shape[1]
    robust = robust or tails_of(mixed) > HEAVY
    reach = float(chi2.ppf(_WHOLE, size) ** 0.5) if robust else np.inf
    frame = jax.device_get(_frame(density, _middle(mixed) if robust else mixed))
    blank = Features(
        density, frame.mean, frame.whiten, None, jnp.ones(1), levels, network, reach
    )
    blank.ensemble.check()
    laws = [blank.whitened(mixed), np.asarray(coordinates(blank, drawn))]
    if robust:
        inside = [law[np.asarray(blank.weigh(law))[:, 0] > 0] for law in laws]
        laws = [x if len(x) else law for x, law in zip(inside, laws, strict=True)]
    pools = np.stack([law[np.arange(_POOL) % len(law)] for law in laws])
    return jax.device_get(_trained(blank, pools.reshape(2, 1, _POOL, size), key))


@quick_jit
def _mixed(density: Density, recorded: Values, rng_key: jax.Array) -> jax.Array:
    """Recordings in random order, in unbounded coordinates."""
    free = Free.of(density, recorded).values
    return free[permutation(rng_key, len(free))]


@quick_jit
def _frame(density: Density, values: jax.Array) -> Frame:
    return Frame.of(values, Layout.of(density))


@quick_jit
def coordinates(features: Features, values: Values) -> jax.Array:
    """`features.coordinates`, compiled."""
    return features.coordinates(values)


def _middle(values: np.ndarray) -> np.ndarray:
    """The rows that are near the median in all columns."""
    low, middle, high = quantiles(values, 0.16, 0.5, 0.84)
    return values[np.all(np.abs(values - middle) < _NEAR * (high - low), axis=1)]


@quick_jit
def _trained(blank: Features, values: jax.Array, rng_key: jax.Array) -> Features:
    """The features with networks trained on (2, 1, num_samples, dimensions)."""
    draw_key, init_key, train_key = jax.random.split(rng_key, 3)
    drawn = draw_noise(extra_noise(blank.dimensions), draw_key, values[..., 0].size)
    shaped = {name: x.reshape(2, 1, _POOL, *x.shape[1:]) for name, x in drawn.items()}
    pool = Pool.of(values, values, shaped)
    levels = jnp.asarray(blank.levels)

    def problem(_: Any, part: Pool) -> Batch:
        """Score matching of the score minus that of a standard normal."""
        level = levels[(part.position * len(levels)).astype(int)][:, None]
        z = part.values + jnp.sqrt(level) * part.noise
        tangent = jnp.pad(part.slices * (jnp.abs(z) < CLIP), ((0, 0), (0, 1)))
        one = jnp.ones((len(z), 1))
        return Batch(see(z, level), one, z / (1 + level), part.slices, tangent)

    ensemble = blank.ensemble
    networks = ensemble.init(init_key, 2)
    networks = ensemble.place(networks, jnp.clip(values[0, 0, :4096], -CLIP, CLIP))
    networks = train(
        ensemble,
        problem,
        None,  # the coordinates are white already
        pool,
        networks,
        train_key,
        steps=_NUM_STEPS,
        batch=_BATCH,
        peak=_RATE,
        whole=False,
    )
    features = replace(blank, networks=networks)
    z, noise = values[0, 0, :4096], pool.noise[0, 0, :4096]

    def power(level: float) -> jax.Array:
        return jnp.mean(features(z + level**0.5 * noise, level) ** 2, axis=0) + 1e-6

    return replace(features, power=jnp.stack([*map(power, blank.levels)]))


@quick_jit
def block_moments(features: Features, values: Values, rng_key: jax.Array) -> Moments:
    """Moments of each block, with two noise draws and their negatives."""

    def one(block: tuple[Values, jax.Array]) -> Moments:
        values, key = block
        z = features.coordinates(values)
        noise = jax.random.normal(key, (2, *z.shape))
        blur = jnp.concatenate([noise, -noise]).reshape(-1, z.shape[1])
        return features.moments(jnp.tile(z, (4, 1)), blur, key)

    count = len(jax.tree.leaves(values)[0])
    return jax.lax.map(one, (values, jax.random.split(rng_key, count)))
