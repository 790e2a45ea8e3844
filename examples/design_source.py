# SPDX-License-Identifier: Apache-2.0
"""Where to listen for two hidden sources: a batch of experiments on a plane.

Sources of unit strength stand at unknown places; a detector at x hears the logarithm of
the sum of their strengths over squared distances, with noise (Foster et al. 2021, Deep
Adaptive Design, section 6.1). Four detectors are placed at once.
"""

import numpy as np

import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

DETECTORS, SOURCES, NOISE = 4, 2, 0.5


def experiment():
    x = numpyro.param(
        "x", jnp.array([[1.0, 0.3], [-0.6, 0.9], [-0.4, -1.0], [0.8, -0.7]])
    )
    place = numpyro.sample("place", dist.Normal(0, 1).expand([SOURCES, 2]).to_event(2))
    squares = jnp.sum((x[:, None] - place) ** 2, axis=-1)
    heard = jnp.log(0.1 + jnp.sum(1 / (1e-4 + squares), axis=-1))
    numpyro.sample("y", dist.Normal(heard, NOISE).to_event(1))


start = ig.mutual_information(experiment, "place", "y")
best = ig.maximize_mi(experiment, "place", "y", progress_bar=False)
print(f"at the start: {start}")
print(f"at the design: {best.estimate}")
print(np.round(best.params["x"], 2))
print(best.status)
