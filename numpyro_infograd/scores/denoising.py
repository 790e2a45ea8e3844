# SPDX-License-Identifier: Apache-2.0
"""Scores by denoising score matching, with the model's own noise as corruption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from numpyro_infograd.arguments import as_power_of_two
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.noise import NoiseSpec, base_points, draw_noise
from numpyro_infograd.program import Program
from numpyro_infograd.scores.base import (
    Layout,
    Scores,
    complete_data_scores,
    flatten,
    refuse_moving_boundary,
    symmetric_power,
    unflatten,
)
from numpyro_infograd.scores.network import Ensemble
from numpyro_infograd.structure import Density, Values, simulate

# Student's t at 97.5 %, over 2, for the spread of so many networks: two standard errors
# then cover 95 %. The replicates of a gradient are shared out among the networks.
_STUDENT = {2: 6.353, 4: 1.591, 8: 1.182}


class _State(NamedTuple):
    """A fitted ensemble: s(m + v) = base v + spread @ network(whiten v)."""

    networks: Any  # parameters with a leading ensemble axis
    mean: jax.Array  # (inputs,)
    whiten: jax.Array  # (inputs, inputs)
    base: jax.Array  # (outputs, inputs): the Gaussian score of the fitted moments
    spread: jax.Array  # (outputs, outputs)
    shrink: jax.Array  # (members,): weight of the residual, from held-out samples
    gain: jax.Array  # relative fall of the held-out loss below the Gaussian baseline


@dataclass(frozen=True)
class Denoising:
    """Regression of the complete-data score on the values it is conditioned on.

    The score is the Gaussian score of the fitted moments plus a whitened residual
    network that starts at zero: a linear-Gaussian model is right before any training.
    An ensemble on disjoint samples gives the error that the fit adds. Held-out
    samples then weigh the residual of a warm refit; a fit from scratch ends in least
    squares for the last layer, which leaves a bias of second order.

    Args:
        noise_variance: Variance of Gaussian noise appended to the sites without a
            parameter-free law (eq. 4 of the paper as published). None takes the
            model's own noise where a site has a density, and appends a hundredth of
            the site's variance where it has none. Appended noise changes the
            question: the result is the gradient for sites seen through that noise.
        hidden: Widths of the hidden layers.
        num_networks: Size of the ensemble: 2, 4 or 8.
        num_steps: Training steps of a fit from scratch.
        num_warm_steps: Training steps of a refit during an ascent.
        batch_size: Samples of a training step, shared out among the networks.
        pool_size: Samples drawn for a fit from scratch, a power of two.
        warm_pool_size: Samples drawn for a refit, a power of two.
        learning_rate: Peak of the cosine schedule.
        num_samples: Default number of samples of a gradient, a power of two.
    """

    noise_variance: float | None = None
    hidden: tuple[int, ...] = (64, 64)
    num_networks: int = 4
    num_steps: int = 200
    num_warm_steps: int = 20
    batch_size: int = 1024
    pool_size: int = 32768
    warm_pool_size: int = 4096
    learning_rate: float = 4e-3
    num_samples: int = 32768

    @property
    def num_deviations(self) -> int:
        """One for each network."""
        return self.num_networks

    def __post_init__(self) -> None:
        if self.noise_variance is not None and not self.noise_variance > 0:
            raise ArgumentError(
                f"noise_variance must be positive, got {self.noise_variance}."
            )
        if self.num_networks not in _STUDENT:
            raise ArgumentError(
                f"num_networks must be 2, 4 or 8, got {self.num_networks}."
            )
        for name in ("pool_size", "warm_pool_size"):
            as_power_of_two(name, getattr(self, name), 256)

    def check(self, density: Density) -> None:
        """Raise for a density that jumps at a place that moves."""
        refuse_moving_boundary(density)

    def init(self, density: Density, rng_key: jax.Array) -> Any:
        """Point sets for the pools of a first and of a warm fit."""
        members = self.num_networks
        return (
            base_points(density.spec, _share(self.pool_size, members)),
            base_points(density.spec, _share(self.warm_pool_size, members)),
            None,
        )

    def fit(
        self,
        state: Any,
        density: Density,
        forward: Program,
        params: Any,
        rng_key: jax.Array,
        warm: bool = False,
    ) -> Any:
        """Draw a pool, fit the moments, train the residual, calibrate."""
        points, warm_points, fitted = state
        pool_key, init_key, train_key = jax.random.split(rng_key, 3)
        size = self.warm_pool_size if warm else self.pool_size
        inputs, targets = self._pool(
            density,
            forward,
            params,
            pool_key,
            _share(size, self.num_networks),
            warm_points if warm else points,
        )
        layout = Layout.of(density)
        mean, whiten, base, spread = _gaussian(inputs, layout)
        ensemble = Ensemble(inputs.shape[-1], targets.shape[-1], self.hidden)
        if warm:
            networks = fitted.networks
        else:
            networks = ensemble.init(init_key, self.num_networks)
        centred = inputs - mean
        features = jnp.clip(centred @ whiten.T, -8.0, 8.0)
        baseline = centred @ base.T
        wanted = (targets - baseline) @ symmetric_power(spread, -1.0)
        networks = self._train(ensemble, networks, features, wanted, train_key, warm)

        if not warm:
            networks = ensemble.solve_last(networks, features, wanted)

        # Each network is held against the pool of the next one.
        held_features, held_wanted = jnp.roll(features, -1, 0), jnp.roll(wanted, -1, 0)
        residual = ensemble(networks, held_features)
        agreement = jnp.sum(residual * held_wanted, axis=(1, 2))
        power = jnp.sum(residual**2, axis=(1, 2))
        shrink = jnp.clip(agreement / jnp.maximum(power, 1e-12), 0.0, 1.0)
        if not warm:
            shrink = jnp.ones_like(shrink)
        gained = jnp.sum(2 * shrink * agreement - shrink**2 * power)
        gain = gained / jnp.maximum(jnp.sum(held_wanted**2), 1e-12)

        fitted = _State(networks, mean, whiten, base, spread, shrink, gain)
        return points, warm_points, fitted

    def score(
        self,
        state: Any,
        density: Density,
        params: Any,
        values: Values,
        rng_key: jax.Array,
    ) -> Scores:
        """Mean score of the ensemble, with its spread as the fit's error."""
        fitted: _State = state[-1]
        free = _Free.of(density, flatten(values, density.all_sites))
        centred = free.values - fitted.mean
        features = jnp.clip(centred @ fitted.whiten.T, -8.0, 8.0)
        blocks = density.blocks
        width = sum(values[name][0].size for name in blocks)
        ensemble = Ensemble(centred.shape[-1], width, self.hidden)
        residual = ensemble(fitted.networks, features, common=True)
        weighted = fitted.shrink[:, None, None] * residual
        each = centred @ fitted.base.T + weighted @ fitted.spread
        mean = jnp.mean(each, axis=0)
        members = self.num_networks
        scale = _STUDENT[members] / (members * (members - 1)) ** 0.5
        evidence = {"held_out_gain": fitted.gain}
        return Scores(
            unflatten((mean - free.bend) / free.slope, values, blocks),
            unflatten(scale * (each - mean) / free.slope, values, blocks),
            evidence,
        )

    # -- parts of a fit ----------------------------------------------------------

    def _pool(
        self,
        density: Density,
        forward: Program,
        params: Any,
        rng_key: jax.Array,
        size: int,
        points: Any,
    ) -> tuple[jax.Array, jax.Array]:
        """Values and complete-data scores, each network its own quasi-random set."""
        spec: NoiseSpec = density.spec

        def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            noise = draw_noise(spec, key, size, points)
            values = simulate(forward, params, noise)
            target = complete_data_scores(density, params, noise, values)
            free = _Free.of(density, flatten(values, density.all_sites))
            flat = flatten(target, density.blocks)
            return free.values, free.slope * flat + free.bend

        keys = jax.random.split(rng_key, self.num_networks)
        return jax.lax.stop_gradient(jax.vmap(one)(keys))

    def _train(
        self,
        ensemble: Ensemble,
        networks: Any,
        features: jax.Array,
        wanted: jax.Array,
        rng_key: jax.Array,
        warm: bool,
    ) -> Any:
        """Adam on the mean-square error, a cosine schedule, all networks at once."""
        steps = self.num_warm_steps if warm else self.num_steps
        members, size = features.shape[:2]
        batch = min(_share(self.batch_size, members), size)
        peak = 0.5 * self.learning_rate if warm else self.learning_rate
        optimizer = optax.adam(optax.cosine_decay_schedule(peak, steps))

        def loss(networks: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            return jnp.sum(jnp.mean((ensemble(networks, x) - y) ** 2, axis=(1, 2)))

        # Shuffled once; then the batches are consecutive blocks.
        order = jax.random.permutation(rng_key, size)
        features, wanted = features[:, order], wanted[:, order]
        num_blocks = size // batch

        def step(carry: Any, index: jax.Array) -> tuple[Any, None]:
            networks, opt_state = carry
            start = (index % num_blocks) * batch
            x = jax.lax.dynamic_slice_in_dim(features, start, batch, axis=1)
            y = jax.lax.dynamic_slice_in_dim(wanted, start, batch, axis=1)
            gradient = jax.grad(loss)(networks, x, y)
            updates, opt_state = optimizer.update(gradient, opt_state, networks)
            return (optax.apply_updates(networks, updates), opt_state), None

        start = (networks, optimizer.init(networks))
        return jax.lax.scan(step, start, jnp.arange(steps))[0][0]


def _share(total: int, members: int) -> int:
    """The largest power of two whose `members`-fold is at most `total`."""
    return 1 << ((total // members).bit_length() - 1)


class _Free(NamedTuple):
    """Values in coordinates without bounds: z = log u or logit u, to learn in.

    A score becomes ds/dz = u'(z) s + d log u'(z) / dz; the second part only for the
    sites whose density it is.
    """

    values: jax.Array  # (num_samples, inputs)
    slope: jax.Array  # u'(z) for each score component, (num_samples, outputs)
    bend: jax.Array  # d log u'(z) / dz, or 0 for `given`, (num_samples, outputs)

    @staticmethod
    def of(density: Density, u: jax.Array) -> _Free:
        layout = Layout.of(density)
        names = [
            s
            for s, n in zip(density.supports, density.sizes, strict=True)
            for _ in range(n)
        ]
        positive = jnp.asarray([name == "positive" for name in names])
        unit = jnp.asarray([name == "unit" for name in names])
        small = jnp.finfo(u.dtype).tiny
        above = jnp.where(positive | unit, jnp.maximum(u, small), 1.0)
        below = jnp.where(unit, jnp.maximum(1.0 - u, small), 1.0)
        values = jnp.where(positive | unit, jnp.log(above / below), u)
        own = jnp.zeros(len(layout.outputs)).at[jnp.asarray(layout.own, int)].set(1.0)
        columns = jnp.asarray(layout.outputs, int)
        bend = jnp.where(positive, 1.0, jnp.where(unit, 1.0 - 2.0 * u, 0.0))
        return _Free(values, (above * below)[:, columns], own * bend[:, columns])


def _gaussian(
    inputs: jax.Array, layout: Layout
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Mean, whitening, base score and residual scale from the pool's moments.

    The base score is that of p(sites | given) for a joint Gaussian of the pool's
    covariance. Columns with tails so heavy that the variance says nothing (the middle
    68 % is more than three times narrower than the variance claims) are scaled by
    quantiles and get no Gaussian part.
    """
    flat = inputs.reshape(-1, inputs.shape[-1])
    low, middle, high = jnp.quantile(flat, jnp.asarray([0.16, 0.5, 0.84]), axis=0)
    robust = 0.5 * (high - low)
    deviation = jnp.std(flat, axis=0)
    heavy = (deviation > 3.0 * robust) & (robust > 0)
    mean = jnp.where(heavy, middle, jnp.mean(flat, axis=0))
    scale = jnp.where(heavy, robust, deviation)
    scale = jnp.where(scale > 0, scale, 1.0)
    standard = (flat - mean) / scale
    light = 1.0 - heavy.astype(flat.dtype)
    correlation = standard.T @ standard / flat.shape[0] * light[:, None] * light
    eye = jnp.eye(flat.shape[1], dtype=bool)
    correlation = jnp.where(eye, 1.0, correlation)
    precision = symmetric_power(correlation, -1.0)
    whiten = symmetric_power(correlation, -0.5) / scale

    outputs = jnp.asarray(layout.outputs, int)
    information = precision[outputs][:, outputs] / scale[outputs][:, None]
    spread = symmetric_power(information / scale[outputs], 0.5)
    conditional = precision
    if layout.given:
        given = jnp.asarray(layout.given, int)
        alone = symmetric_power(correlation[given][:, given], -1.0)
        conditional = precision.at[given[:, None], given].add(-alone)
    base = -(conditional * light[:, None])[outputs] / scale[outputs][:, None] / scale
    return mean, whiten, base, spread
