# SPDX-License-Identifier: Apache-2.0
"""A stochastic dynamical simulator fitted to recorded trajectories.

A buoy on a stiffening spring is shaken by random waves, and a sensor reads its position
eight times. Nobody recorded the waves. From the law of the trajectories alone the twin
finds the stiffness, the damping and how hard the waves hit, with standard errors; the
recorded trajectories are in no order, and no likelihood is written.
"""

from pathlib import Path

import matplotlib
import numpy as np

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

matplotlib.use("Agg")

positive = dist.constraints.positive
STEPS, EVERY, DT, SENSOR = 80, 10, 0.1, 0.05


def trajectory(force, stiffness, damping, strength):
    """Positions at every tenth step, by semi-implicit Euler-Maruyama steps."""

    def step(state, push):
        position, velocity = state
        pull = stiffness * position + position**3 + damping * velocity
        velocity = velocity - DT * pull + DT**0.5 * strength * push
        position = position + DT * velocity
        return (position, velocity), position

    start = (jnp.zeros(force.shape[1:]), jnp.zeros(force.shape[1:]))
    return jax.lax.scan(step, start, force)[1][EVERY - 1 :: EVERY]


def buoy():
    stiffness = numpyro.param("stiffness", 0.5, constraint=positive)
    damping = numpyro.param("damping", 1.0, constraint=positive)
    strength = numpyro.param("strength", 1.0, constraint=positive)
    force = numpyro.sample("force", dist.Normal(0, 1).expand([STEPS]).to_event(1))
    positions = trajectory(force, stiffness, damping, strength)
    numpyro.sample("y", dist.Normal(positions, SENSOR).to_event(1))


truth = {"stiffness": 1.0, "damping": 0.4, "strength": 0.6}
rng = np.random.default_rng(0)
force = jnp.asarray(rng.normal(size=(STEPS, 20_000)), jnp.float32)
recorded = np.asarray(trajectory(force, **truth)).T
recorded = recorded + SENSOR * rng.normal(size=recorded.shape)

twin = ig.calibrate(buoy, {"y": recorded}, divergence="kl", progress_bar=False)
print(twin)
for name, value in truth.items():
    off = (float(twin.params[name]) - value) / float(twin.standard_error[name])
    print(f"{name}: true {value}, off by {off:+.1f} standard errors")

file = Path(__file__).resolve().parent / "output" / "twin_of_trajectories.png"
file.parent.mkdir(exist_ok=True)
twin.plot()[0].figure.savefig(file, dpi=120)
print(file)
