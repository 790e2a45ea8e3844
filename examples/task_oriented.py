# SPDX-License-Identifier: Apache-2.0
"""Sending what a task needs, and nothing else (Section V-D1 of the paper).

A sensor sees eight numbers. Two of them tell of the task t, hidden among six that are
stronger and tell nothing. An encoder network has two channel uses of limited average
power; trained for I(t;y) it finds the two numbers and sends nothing else. A decoder
network then estimates the task.
"""

from pathlib import Path

import matplotlib
import numpy as np
import scipy.stats

from flax import nnx
import jax
import jax.numpy as jnp

import numpyro
from numpyro.contrib.module import nnx_module
import numpyro.distributions as dist

import numpyro_infograd as ig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TASK, SEEN, USES = 2, 8, 2
POWER = 4.0  # of both channel uses together; their noise has variance one
BLUR = 0.3  # deviation of what blurs the task at the sensor
MIX = scipy.stats.ortho_group.rvs(SEEN, random_state=0)


class Network(nnx.Module):
    def __init__(self, inputs, outputs, rngs):
        self.first = nnx.Linear(inputs, 32, rngs=rngs)
        self.last = nnx.Linear(32, outputs, rngs=rngs)

    def __call__(self, v):
        return self.last(jnp.tanh(self.first(v)))


def sensor():
    t = numpyro.sample("t", dist.Normal(0, 1).expand([TASK]).to_event(1))
    blurred = numpyro.sample("blurred", dist.Normal(t, BLUR).to_event(1))
    rest = dist.Normal(0, 2).expand([SEEN - TASK]).to_event(1)
    nuisance = numpyro.sample("nuisance", rest)
    seen = jnp.array(MIX, jnp.float32) @ jnp.concatenate([blurred, nuisance])
    x = numpyro.deterministic("x", seen)
    encoder = nnx_module("encoder", Network(SEEN, USES, nnx.Rngs(0)))
    sent = numpyro.deterministic("sent", encoder(x))
    return numpyro.sample("y", dist.Normal(sent, 1).to_event(1))


def received(encoder):
    """The sensor with an encoder that stands, and a decoder to be trained."""
    y = numpyro.handlers.substitute(sensor, data=encoder)()
    decoder = nnx_module("decoder", Network(USES, TASK, nnx.Rngs(1)))
    numpyro.deterministic("guess", decoder(y))


def power(v):
    return jnp.sum(v["sent"] ** 2)


def error(v):
    return jnp.mean((v["guess"] - v["t"]) ** 2)


# The best code sends E[t|x] as it is: the two uses and the two numbers match.
snr, share = POWER / USES, 1 / (1 + BLUR**2)
least = 1 - share * snr / (1 + snr)  # error of each number
most = -0.5 * TASK * np.log(least)

task = ig.MI("t", "y")
budget = ig.Expectation(power) <= POWER
# Fitted scores are faster here than a mixture, which would run the encoder for every
# pair of a sample and a component.
code = ig.maximize(sensor, task, subject_to=budget, scores="denoising", num_steps=150)
decoded = ig.minimize(
    received, ig.Expectation(error), model_args=(code.params,), num_steps=120
)
untrained = ig.estimate(sensor, task)
print(f"\nI(t;y) before training   {untrained}")
print(f"after training           {code.estimate}; the most possible is {most:.5g}")
print(f"power                    {code.constraints[0]}")
print(f"error of the decoder     {decoded.estimate}; the least is {least:.5g}")

model = ig.structural_model(received, code.params)
values = model.sample(jax.random.key(1), 2000, decoded.params)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
left.scatter(values["t"][:, 0], values["guess"][:, 0], s=3)
left.set(xlabel="first number of the task", ylabel="decoded")
model = ig.structural_model(sensor)
for shift, label, params in ((-0.2, "before", {}), (0.2, "after", code.params)):
    values = model.sample(jax.random.key(1), 4000, params)
    numbers = np.concatenate([values["blurred"], values["nuisance"]], axis=1)
    correlation = np.corrcoef(numbers.T, values["sent"].T)[:SEEN, SEEN:]
    place = np.arange(SEEN) + shift
    right.bar(place, np.sum(correlation**2, axis=1), 0.4, label=label)
right.set(
    xlabel="number behind what is seen (the task: 0 and 1)",
    ylabel="squared correlation with what is sent",
)
right.legend()
file = Path(__file__).resolve().parent / "output" / "task_oriented.png"
file.parent.mkdir(exist_ok=True)
figure.savefig(file, dpi=120)
print(file)
