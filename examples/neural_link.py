# SPDX-License-Identifier: Apache-2.0
"""An encoder and a decoder network for an amplifier that saturates.

A message s of two numbers is sent in three uses of y = tanh(x) + noise, with a codeword
x of fixed power. Both networks are ordinary flax.nnx modules. The encoder needs no
decoder to be trained; a decoder for the finished encoder then shows what the receiver
can make of the information.
"""

from pathlib import Path

import matplotlib
import numpy as np

from flax import nnx
import jax
import jax.numpy as jnp

import numpyro
from numpyro.contrib.module import nnx_module
import numpyro.distributions as dist

import numpyro_infograd as ig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

USES, POWER, NOISE = 3, 2.0, 0.4  # channel uses, power of each, noise deviation


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 32, rngs=rngs)
        self.last = nnx.Linear(32, USES, rngs=rngs)

    def __call__(self, s):
        u = self.last(jnp.tanh(self.first(s)))
        # Every codeword has the full power, so no bound needs to be watched.
        return u * jnp.sqrt(USES * POWER / (jnp.sum(u**2) + 1e-6))


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(USES, 64, rngs=rngs)
        self.last = nnx.Linear(64, 2, rngs=rngs)

    def __call__(self, y):
        return self.last(jnp.tanh(self.first(y)))


def transmit(codeword):
    x = numpyro.deterministic("x", codeword)
    return numpyro.sample("y", dist.Normal(jnp.tanh(x), NOISE).to_event(1))


def neural():
    encoder = nnx_module("encoder", Encoder(nnx.Rngs(0)))
    s = numpyro.sample("s", dist.Normal(0, 1).expand([2]).to_event(1))
    return transmit(encoder(s))


def received(encoder):
    """The link behind an encoder that stands, with a decoder to be trained."""
    y = numpyro.handlers.substitute(neural, data=encoder)()
    decoder = nnx_module("decoder", Decoder(nnx.Rngs(1)))
    numpyro.deterministic("t", decoder(y))


def error(values):
    return jnp.mean((values["s"] - values["t"]) ** 2)


def linear():
    # each use carries the message seen from another of three directions
    angle = 2 * jnp.pi * jnp.arange(USES) / USES
    s = numpyro.sample("s", dist.Normal(0, 1).expand([2]).to_event(1))
    x = POWER**0.5 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1) @ s
    transmit(x)


untrained = ig.mutual_information(neural, "s", "y")
plain = ig.mutual_information(linear, "s", "y")
# "auto" would try a mixture first and find that there is too much information for it.
trained = ig.maximize_mi(neural, "s", "y", scores="denoising", num_steps=70)
# No code beats a Gaussian channel with the power that leaves the amplifier, which is
# largest when the uses share the codeword's power equally.
bound = USES / 2 * np.log1p(np.tanh(POWER**0.5) ** 2 / NOISE**2)

decoded = ig.minimize(
    received,
    ig.Expectation(error),
    model_args=(trained.params,),
    num_steps=100,
)
# No decoder of I nats about two Gaussian numbers has a smaller error than exp(-I). The
# encoder was not asked for a small error but for information, which may lie in signs.
least = np.exp(-trained.estimate.value)
print(f"\nencoder before training   {untrained}")
print(f"linear encoder            {plain}")
print(
    f"encoder after training    {trained.estimate}, by {trained.diagnostics['method']}"
)
print(f"upper bound               {bound:.6g} nats (capacity of a Gaussian channel)")
print(f"error of the decoder      {decoded.estimate}; no decoder is below {least:.4g}")

model = ig.structural_model(neural)
figure, grid = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for axes, params, title in (
    (grid[0], {}, f"before: {untrained.value:.3f} nats"),
    (grid[1], trained.params, f"after: {trained.estimate.value:.3f} nats"),
):
    values = model.sample(jax.random.key(1), 4000, params)
    # Colour shows the direction of the message, place the first two codeword entries.
    angle = np.arctan2(*values["s"].T)
    axes.scatter(*values["x"].T[:2], c=angle, s=4, cmap="twilight")
    axes.set(xlabel="$x_1$", ylabel="$x_2$", title=title, aspect="equal")
file = Path(__file__).resolve().parent / "output" / "neural_link.png"
file.parent.mkdir(exist_ok=True)
figure.savefig(file, dpi=120)
print(file)
