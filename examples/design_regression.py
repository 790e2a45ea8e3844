# SPDX-License-Identifier: Apache-2.0
"""Where to measure a line: experimental design with a closed form to hold it against.

Six measurements of intercept + slope * x, x in [-1, 1]. The design is a parameter, what
is to be learned a latent site, and a good design has much information from the latter
to the measurements.
"""

import numpy as np

import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

SCALES, SIGMA, NUMBER = np.array([1.0, 3.0]), 0.5, 6


def experiment():
    x = numpyro.param("x", jnp.linspace(-0.5, 0.6, NUMBER))
    line = numpyro.sample("line", dist.Normal(jnp.zeros(2), SCALES).to_event(1))
    mean = line[0] + line[1] * x
    numpyro.sample("y", dist.Normal(mean, SIGMA).to_event(1))


def information(x):
    """ln det(I + X P X^T / sigma^2) / 2."""
    rows = np.stack([np.ones_like(x), x], axis=1) * SCALES
    return 0.5 * np.linalg.slogdet(np.eye(len(x)) + rows @ rows.T / SIGMA**2)[1]


best = ig.maximize_mi(
    experiment,
    "line",
    "y",
    projection=lambda p: {"x": jnp.clip(p["x"], -1, 1)},
    progress_bar=False,
)
print(best)
ends = np.array([-1.0] * 3 + [1.0] * 3)
print(f"closed form at three measurements on each end: {information(ends):.6f} nats")
print(f"closed form at the design found: {information(np.array(best.params['x'])):.6f}")
