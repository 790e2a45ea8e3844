# SPDX-License-Identifier: Apache-2.0
"""Scores by Markov chains over the hidden noise; nothing is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_infograd.arguments import as_power_of_two
from numpyro_infograd.chains import FEWEST_STEPS, Tuning, Walk, average, tune
from numpyro_infograd.density import Density, Values, simulate, unflatten
from numpyro_infograd.errors import DensityError
from numpyro_infograd.noise import base_points, draw_noise
from numpyro_infograd.program import Program
from numpyro_infograd.scores.base import ScoreMethod, Scores


class Pilot(NamedTuple):
    """The state of the method: points for pilot batches, and what they told."""

    points: Any
    tuning: Tuning | None


@dataclass(frozen=True)
class MCMC(ScoreMethod):
    num_samples: int = 8192
    pilot_size: int = 1024
    max_steps: int = 256

    @property
    def step_samples(self) -> int:
        return 2048

    def init(self, density, rng_key):
        return Pilot(base_points(density.spec, self.pilot_size), None)

    def fit(self, state, density, forward, params, rng_key, warm=False):
        noise_key, key = jax.random.split(rng_key)
        noise = draw_noise(density.spec, noise_key, self.pilot_size, state.points)
        values = simulate(forward, params, noise)
        found = tune(density.walk, params, noise, values, key, self.max_steps)
        return state._replace(tuning=found)

    def improve(self, state):
        if state is None or int(state.tuning.num_steps) >= self.max_steps:
            return None
        longer = 2 * state.tuning.num_steps
        return state._replace(tuning=state.tuning._replace(num_steps=longer))

    def score(self, state, density, params, noise, values, rng_key):
        hidden, tuning = density.walk, state.tuning
        half = tuning.num_steps // 2
        lengths = jnp.stack([half // 2, half // 2, half])

        def one(key, noise, values):
            own = {name: values[name] for name in density.all_sites}
            walk = Walk(hidden, params, own, tuning)
            return average(walk, hidden.start(noise, values), key, lengths)

        num_samples = next(iter(values.values())).shape[0]
        keys = jax.random.split(rng_key, num_samples)
        means, accepted = jax.vmap(one)(keys, noise, values)
        found = means[:, -1]
        change = means[:, -2] - found
        evidence = {
            "acceptance": jnp.mean(accepted),
            "num_steps": tuning.num_steps.astype(found.dtype),
        }
        return Scores(
            unflatten(found, values, density.blocks),
            unflatten(change[None], values, density.blocks),
            evidence,
        )
