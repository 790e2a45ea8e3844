# SPDX-License-Identifier: Apache-2.0
"""The gradient of a multipath channel along two lines (Fig. 4 of the paper).

Scores from a mixture and scores learned by denoising, against the closed form.
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
import matplotlib.pyplot as plt


def channel():
    a, b = numpyro.param("a", 1.0), numpyro.param("b", 1.0)
    x = numpyro.sample("x", dist.Normal(0, 1))
    v1 = numpyro.sample("v1", dist.Normal(a * x, 1))
    v2 = numpyro.sample("v2", dist.Normal(x, 1))
    numpyro.sample("y", dist.Normal(b * v1 + v2, 1))


def information(params):
    a, b = params["a"], params["b"]
    return 0.5 * jnp.log1p((1 + a * b) ** 2 / (b**2 + 2))


model = ig.structural_model(channel)  # traced once, used for all points
line = np.linspace(-3, 3, 21)
lines = {
    "a": [{"a": v, "b": 1.0} for v in line],  # b = 1 while a moves
    "b": [{"a": 1.0, "b": v} for v in line],
}
figure, grid = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
for axes, (moving, points) in zip(grid, lines.items(), strict=True):
    truth = [jax.grad(information)(params) for params in points]
    sweeps = {
        scores: [
            ig.gradient(model, ig.MI("x", "y"), params=params, scores=scores)
            for params in points
        ]
        for scores in ("mixture", "denoising")
    }
    ig.plots.plot_gradient_sweep(line, sweeps, truth, ax=axes)
    for scores, found in sweeps.items():
        for name in ("a", "b"):
            pairs = zip(found, truth, strict=True)
            off = [abs(g.value[name] - t[name]) for g, t in pairs]
            print(
                f"{moving} from -3 to 3, {scores:>9}: error of dI/d{name} "
                f"{np.mean(off):.1e} on average, {np.max(off):.1e} at most"
            )
    axes.set(xlabel=moving, title=f"{moving} moves, the other is 1")
file = Path(__file__).resolve().parent / "output" / "fig4_gradient_sweep.png"
file.parent.mkdir(exist_ok=True)
figure.savefig(file, dpi=120)
print(file)
