# SPDX-License-Identifier: Apache-2.0
"""The gradient of a channel that saturates, y = tanh(eta x) + N(0, 1/4) (Fig. 6).

No closed form exists; the truth is an integral on a dense grid.
"""

from pathlib import Path

import matplotlib
import numpy as np

import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

matplotlib.use("Agg")


def channel():
    eta = numpyro.param("eta", 1.0)
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(jnp.tanh(eta * x), 0.5))


def truth(eta):
    """dI/deta = -int p'(y) log p(y) dy, the prime being the derivative in eta."""
    x, dx = np.linspace(-9, 9, 2001, retstep=True)
    y, dy = np.linspace(-5.5, 5.5, 1101, retstep=True)
    mean = np.tanh(eta * x)
    residual = (y[:, None] - mean) / 0.25
    joint = np.exp(-(residual**2) / 8 - x**2 / 2) / np.pi * dx
    density = joint.sum(1)
    slope = (joint * residual * x * (1 - mean**2)).sum(1)
    return -np.sum(slope * np.log(density)) * dy


etas = np.linspace(-3, 3, 21)
expected = np.array([truth(eta) for eta in etas])
model = ig.structural_model(channel)  # traced once, used for all points
sweeps = {
    scores: [
        ig.gradient(model, ig.MI("x", "y"), params={"eta": eta}, scores=scores)
        for eta in etas
    ]
    for scores in ("mixture", "denoising")
}
for scores, found in sweeps.items():
    value = np.array([g.value["eta"] for g in found])
    error = np.array([g.standard_error["eta"] for g in found])
    off = np.abs(value - expected)
    print(
        f"{scores:>9}: error {off.mean():.1e} on average, {off.max():.1e} at most; "
        f"standard error {error.mean():.1e} on average"
    )
print("dI/deta at 0.6, 1.2, 3 on the grid:", expected[[12, 14, 20]].round(6))
axes = ig.plots.plot_gradient_sweep(etas, sweeps, expected)
axes.set(xlabel="eta", ylabel="dI(x;y)/deta in nats")
file = Path(__file__).resolve().parent / "output" / "fig6_tanh_channel.png"
file.parent.mkdir(exist_ok=True)
axes.figure.savefig(file, dpi=120)
print(file)
