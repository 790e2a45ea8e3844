# SPDX-License-Identifier: Apache-2.0
"""An encoder network for an amplifier that saturates, trained without a decoder.

A message s of two numbers is sent in three uses of y = tanh(x) + noise, with a codeword
x of fixed power. The encoder is an ordinary flax.nnx module.
"""

from pathlib import Path

import matplotlib
import numpy as np

from flax import nnx
import jax
import jax.numpy as jnp
import optax

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


def transmit(codeword):
    x = numpyro.deterministic("x", codeword)
    numpyro.sample("y", dist.Normal(jnp.tanh(x), NOISE).to_event(1))


def neural():
    encoder = nnx_module("encoder", Encoder(nnx.Rngs(0)))
    s = numpyro.sample("s", dist.Normal(0, 1).expand([2]).to_event(1))
    transmit(encoder(s))


def linear():
    a = numpyro.param("A", jnp.eye(USES, 2))
    s = numpyro.sample("s", dist.Normal(0, 1).expand([2]).to_event(1))
    transmit(a @ s)


def same_power(params):
    """E|A s|^2 = |A|^2: the power of a linear encoder holds on average only."""
    return optax.projections.projection_l2_ball(params, (USES * POWER) ** 0.5)


untrained = ig.mutual_information(neural, "s", "y")
best_linear = ig.maximize_mi(linear, "s", "y", projection=same_power, num_steps=100)
trained = ig.maximize_mi(neural, "s", "y", num_steps=200)
# No code beats a Gaussian channel with the power that leaves the amplifier, which is
# largest when the uses share the codeword's power equally.
bound = USES / 2 * np.log1p(np.tanh(POWER**0.5) ** 2 / NOISE**2)
print(f"\nencoder before training   {untrained}")
print(f"best linear encoder       {best_linear.estimate}")
print(
    f"encoder after training    {trained.estimate}, by {trained.diagnostics['method']}"
)
print(f"upper bound               {bound:.6g} nats (capacity of a Gaussian channel)")

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
file = Path("neural_link.png").resolve()
figure.savefig(file, dpi=120)
print(file)
