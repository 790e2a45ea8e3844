# SPDX-License-Identifier: Apache-2.0
"""Scores by Markov chains over the hidden noise; nothing is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import math
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_infograd.arguments import as_power_of_two
from numpyro_infograd.chains import Tuning, Walk, average, tune
from numpyro_infograd.density import Density, Values, simulate
from numpyro_infograd.errors import DensityError
from numpyro_infograd.noise import base_points, draw_noise
from numpyro_infograd.program import Program
from numpyro_infograd.scores.base import ScoreMethod, Scores, unflatten


@dataclass(frozen=True)
class MCMC(ScoreMethod):
    num_samples: int = 8192
    pilot_size: int = 1024
    max_steps: int = 256

    @property
    def step_samples(self) -> int:
        return 2048

    def init(self, density: Density, rng_key: jax.Array) -> Any:
        return base_points(density.spec, self.pilot_size), None

    def fit(self, state, density, forward, params, rng_key, warm=False):
        points, _ = state
        noise_key, key = jax.random.split(rng_key)
        noise = draw_noise(density.spec, noise_key, self.pilot_size, points)
        values = simulate(forward, params, noise)
        return points, tune(density.walk, params, noise, values, key, self.max_steps)

    def score(self, state, density, params, noise, values, rng_key):
        tuning: Tuning = state[1]
        walk = density.walk
        eighth = tuning.num_steps // 8
        lengths = jnp.stack([eighth, eighth, 2 * eighth, 4 * eighth])
        num_samples = next(iter(values.values())).shape[0]
        inside = {name: values[name] for name in density.all_sites}

        def one(key, noise, values):
            own = {name: values[name] for name in density.all_sites}
            return average(Walk(walk, params, own, tuning), walk.start(noise, values), key, lengths)

        keys = jax.random.split(rng_key, num_samples)
        means, accepted = jax.vmap(one)(keys, noise, values)
        last = means[:, -1]
        change = means[:, -2] - last
        evidence = {"acceptance": jnp.mean(accepted), "num_steps": tuning.num_steps.astype(float)}
        return Scores(
            unflatten(last, values, density.blocks),
            unflatten(change[None], values, density.blocks),
            evidence,
        )
