# SPDX-License-Identifier: Apache-2.0
"""Ascent on the unit circle in steps of 0.1 (Fig. 5 of the paper).

Learned scores against the same ascent with the closed-form gradient.
"""

from pathlib import Path

import matplotlib
import numpy as np

import jax
import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STEPS = 60


def channel():
    a, b = numpyro.param("a", 1.0), numpyro.param("b", 0.0)
    x = numpyro.sample("x", dist.Normal(0, 1))
    v1 = numpyro.sample("v1", dist.Normal(a * x, 1))
    v2 = numpyro.sample("v2", dist.Normal(x, 1))
    numpyro.sample("y", dist.Normal(b * v1 + v2, 1))


def information(eta):
    a, b = eta
    return 0.5 * jnp.log1p((1 + a * b) ** 2 / (b**2 + 2))


result = ig.maximize_mi(
    channel,
    "x",
    "y",
    scores="denoising",
    optimizer=optax.sgd(0.1),  # optimizers descend; the sign is taken care of
    projection=optax.projections.projection_l2_sphere,
    num_steps=STEPS,
)
history = result.history["params"]  # the parameters before each step
path = np.stack([history["a"], history["b"]], axis=1)

reference = [jnp.array([1.0, 0.0])]
for _ in range(STEPS - 1):
    moved = reference[-1] + 0.1 * jax.grad(information)(reference[-1])
    reference.append(moved / jnp.linalg.norm(moved))
reference = np.stack(reference)

learned, exact = (jax.vmap(information)(jnp.array(p)) for p in (path, reference))
print(f"{'step':>4}{'learned scores':>26}{'closed form':>26}")
for step in (0, 10, 20, 35, 46, STEPS - 1):
    (a, b), (c, d) = path[step], reference[step]
    print(
        f"{step:4}   ({a:.4f}, {b:.4f}) {learned[step]:.5f}"
        f"   ({c:.4f}, {d:.4f}) {exact[step]:.5f}"
    )
print(f"Final: {result.estimate}; the maximum is 0.328312 nats.")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
left.plot(exact, "k", label="closed form")
left.plot(learned, "C1--", label="learned scores")
left.axhline(0.328312, color="0.6", lw=0.8, label="maximum")
left.set(xlabel="step", ylabel="I(x;y) in nats")
left.legend()
right.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.8"))
right.plot(*reference.T, "k", label="closed form")
right.plot(*path.T, "C1--", label="learned scores")
right.set(xlabel="a", ylabel="b", xlim=(0, 1.05), ylim=(-0.05, 1), aspect="equal")
file = Path(__file__).resolve().parent / "output" / "fig5_ascent.png"
file.parent.mkdir(exist_ok=True)
figure.savefig(file, dpi=120)
print(file)
