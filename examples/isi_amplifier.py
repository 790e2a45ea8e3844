# SPDX-License-Identifier: Apache-2.0
"""The transmit filter of a cable whose driver saturates.

Symbols of four levels pass a filter of three taps, a driver that saturates like tanh,
and a cable whose second tap smears each symbol into the next (intersymbol
interference). Textbooks design the filter for a driver without saturation. Here that
filter gets its best power and its best gain, and then the information gradient tunes
it for the driver as it is.
"""

from pathlib import Path

import matplotlib
import numpy as np
import optax

import jax
import jax.numpy as jnp

import numpyro
from numpyro.contrib.control_flow import scan
import numpyro.distributions as dist

import numpyro_infograd as ig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

USES, TAPS = 32, 3
CABLE, NOISE = np.array([0.8, 0.6], np.float32), 0.3  # taps, deviation of the noise
RATE = ig.MI("x", "y") / USES  # nats for each use


def link():
    """Symbols of four levels and mean power one; the line is silent before the first."""
    taps = numpyro.param("taps", jnp.eye(TAPS)[0])

    def use(line, _):
        symbols, sent = line  # the last ones, newest first
        x = numpyro.sample("x", dist.Categorical(probs=jnp.ones(4) / 4))
        symbols = jnp.append((2.0 * x - 3.0) / jnp.sqrt(5.0), symbols[:-1])
        sent = jnp.append(jnp.tanh(taps @ symbols), sent[:-1])
        numpyro.sample("y", dist.Normal(CABLE @ sent, NOISE))
        return (symbols, sent), None

    scan(use, (jnp.zeros(TAPS), jnp.zeros(len(CABLE))), None, length=USES)


def linear(power):
    """The same without saturation, for normal symbols; the information is exact."""
    taps = numpyro.param("taps", jnp.eye(TAPS)[0])
    x = numpyro.sample("x", dist.Normal(0, 1).expand([USES]).to_event(1))
    received = jnp.convolve(jnp.convolve(x, taps), CABLE)[:USES]
    received = jnp.sqrt(power) * received
    numpyro.sample("y", dist.Normal(received, NOISE).to_event(1))


# The filter of unit energy that is best for a linear driver, at several powers ...
textbook = [
    ig.maximize(
        linear,
        RATE,
        projection=optax.projections.projection_l2_sphere,
        model_args=(power,),
        progress_bar=False,
    ).params["taps"]
    for power in (0.25, 0.5, 1.0, 2.0, 4.0)
]
# ... and the gain in front of the driver that is best for each of them.
gains = 2.0 ** (np.arange(0, 17) / 8)
candidates = jnp.concatenate([gains[:, None] * taps for taps in textbook])
sweep = ig.design(link, {"taps": candidates}, "x", "y", num_samples=256)
best = sweep.best["taps"]

tuned = ig.maximize(
    link, RATE, init_params={"taps": best}, num_steps=60, num_samples=512
)
both = {"taps": jnp.stack([best, tuned.params["taps"]])}
compared = ig.design(link, both, "x", "y", num_samples=4096)
