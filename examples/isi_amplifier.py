# SPDX-License-Identifier: Apache-2.0
"""The transmit filter of a cable whose driver saturates.

Symbols of four levels pass a filter of three taps, a driver that saturates like tanh,
and a cable whose second tap smears each symbol into the next (intersymbol
interference). Textbooks design the filter for a driver without saturation. Here that
filter gets its best power and its best gain, and then the information gradient tunes
it for the driver as it is.
"""

import numpy as np

import jax.numpy as jnp
import optax

import numpyro
from numpyro.contrib.control_flow import scan
import numpyro.distributions as dist

import numpyro_infograd as ig

USES, TAPS = 32, 3
CABLE, NOISE = np.array([0.8, 0.6], np.float32), 0.3  # taps, deviation of the noise
POWERS = (0.25, 1.0, 4.0)  # of a linear driver
GAINS = 2.0 ** (np.arange(17) / 8)  # in front of the driver


def link():
    """Symbols of four levels and mean power one; silence before the first."""
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


# The filter of unit energy that is best for a linear driver, at each power ...
textbook = [
    ig.maximize_mi(
        linear,
        "x",
        "y",
        projection=optax.projections.projection_l2_sphere,
        model_args=(power,),
        progress_bar=False,
    ).params["taps"]
    for power in POWERS
]
# ... and the best of them at all gains, on common random numbers.
candidates = jnp.concatenate([GAINS[:, None] * taps for taps in textbook])
sweep = ig.design(link, {"taps": candidates}, "x", "y", num_samples=256)
best = sweep.best["taps"]

# The density of the outputs is a sum over the symbols, by the forward algorithm.
tuned = ig.maximize_mi(
    link, "x", "y", init_params={"taps": best}, num_steps=40, num_samples=512
)
both = {"taps": jnp.stack([best, tuned.params["taps"]])}
compared = ig.design(link, both, "x", "y", num_samples=16384)

print("\nfilter              taps                    nats for each use")
for i, name in enumerate(("best linear design", "tuned")):
    taps = "".join(f"{tap:8.3f}" for tap in both["taps"][i])
    value, error = compared.value[i] / USES, compared.standard_error[i] / USES
    print(f"{name:18}{taps}  {value:.5f} +- {error:.1g}")
gain, error = -compared.difference[0], compared.difference_error[0]
print(f"gain of the tuned filter: {gain / USES:.5f} +- {error / USES:.1g}")
assert gain > 4 * error
