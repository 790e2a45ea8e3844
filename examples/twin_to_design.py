# SPDX-License-Identifier: Apache-2.0
"""From recordings to a design: calibrate a twin of a link, then tune what is free.

A satellite's amplifier saturates, nobody knows how soon, and its transmitter can not be
probed with known inputs. Recordings of what arrives fix the amplifier's gain and the
noise. The design question is then one for the twin: how to share the power between two
carriers of different noise so that most information arrives.
"""

import numpy as np

import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

positive = dist.constraints.positive


def link(amplitudes):
    """Two carriers of these amplitudes, each through an amplifier of the same gain."""
    gain = numpyro.param("gain", 1.0, constraint=positive)
    noise = numpyro.param("noise", jnp.array([0.5, 0.5]), constraint=positive)
    x = numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
    mean = jnp.tanh(gain * amplitudes * x)
    numpyro.sample("y", dist.Normal(mean, noise).to_event(1))


def record(number, gain=1.7, noise=(0.2, 0.6)):
    """What the real link delivers while both carriers have unit amplitude."""
    x = np.random.default_rng(0).normal(size=(number, 2))
    y = np.tanh(gain * x)
    return y + np.array(noise) * np.random.default_rng(1).normal(size=y.shape)


twin = ig.calibrate(
    link,
    {"y": record(20_000)},
    divergence="kl",
    model_args=(np.ones(2, np.float32),),
    progress_bar=False,
)
print(twin)
print("the truth: gain 1.7, noise 0.2 and 0.6\n")


def design():
    """The calibrated twin, in which nothing but the amplitudes is left to tune."""
    amplitudes = numpyro.param("amplitudes", jnp.ones(2))
    with numpyro.handlers.substitute(data=twin.params):
        link(amplitudes)


best = ig.maximize_mi(
    design,
    "x",
    "y",
    projection=lambda p: optax.projections.projection_l2_ball(p, 2.0**0.5),
    progress_bar=False,
)
even = ig.mutual_information(design, "x", "y")
print(f"even amplitudes: {even}")
print(f"amplitudes {np.round(best.params['amplitudes'], 3)}: {best.estimate}")
