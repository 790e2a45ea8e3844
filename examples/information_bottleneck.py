# SPDX-License-Identifier: Apache-2.0
"""The Gaussian information bottleneck (Section V-D3 of the paper).

A code t = E x + noise of x should tell much about y and little about x. For each price
beta, maximise beta I(t;y) - I(x;t) over E, against the closed form: a component with
correlation rho is kept if beta rho^2 > 1, and then I(x;t) is
1/2 log((beta - 1) rho^2 / (1 - rho^2)), and I(t;y) is 1/2 log(beta rho^2) less.
"""

from pathlib import Path

import matplotlib
import numpy as np

import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BETAS = (1.4, 2.0, 4.0, 8.0, 20.0)
SOURCES = {"scalar": [0.8], "four components": [0.9, 0.8, 0.6, 0.3]}


def make_bottleneck(rho):
    """The source with these canonical correlations, and a full matrix to encode it."""
    rho = jnp.array(rho)
    size = len(rho)
    # E = 0 is a saddle, so the start is away from it; a full matrix also finds the
    # basis, for which any rotation of t is as good.
    start = np.eye(size) + 0.2 * np.random.default_rng(0).standard_normal((size, size))

    def bottleneck():
        e = numpyro.param("e", jnp.array(start, jnp.float32))
        x = numpyro.sample("x", dist.Normal(jnp.zeros(size), 1).to_event(1))
        y_given_x = dist.Normal(rho * x, jnp.sqrt(1 - rho**2)).to_event(1)
        numpyro.sample("y", y_given_x)
        numpyro.sample("t", dist.Normal(e @ x, 1).to_event(1))

    return bottleneck


def optimum(rho, beta):
    """I(x;t) and I(t;y) of the best code, in nats."""
    kept = np.array([r for r in rho if beta * r**2 > 1])
    price = 0.5 * np.log((beta - 1) * kept**2 / (1 - kept**2))
    return price.sum(), (price - 0.5 * np.log(beta * kept**2)).sum()


figure, grid = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for axes, (name, rho) in zip(grid, SOURCES.items(), strict=True):
    model = ig.structural_model(make_bottleneck(rho))
    print(f"{name}, correlations {rho}")
    print(f"{'beta':>6}{'I(x;t)':>10}{'truth':>9}{'I(t;y)':>10}{'truth':>9}  rank")
    found = []
    for beta in BETAS:
        objective = beta * ig.MI("t", "y") - ig.MI("x", "t")
        result = ig.maximize(model, objective, progress_bar=False)
        rates = [
            float(ig.estimate(model, ig.MI("t", other), params=result.params).value)
            for other in ("x", "y")
        ]
        found.append(rates)
        gains = np.linalg.svd(result.params["e"], compute_uv=False)
        true = optimum(rho, beta)
        print(
            f"{beta:6.1f}{rates[0]:10.5f}{true[0]:9.5f}{rates[1]:10.5f}{true[1]:9.5f}"
            f"  {np.sum(gains > 0.05)} of {sum(beta * r**2 > 1 for r in rho)} kept"
        )
    curve = np.array([optimum(rho, b) for b in np.geomspace(1.01, BETAS[-1], 400)])
    axes.plot(*curve.T, "k", label="closed form")
    axes.plot(*np.array(found).T, "C1o", label="found")
    axes.set(title=name, xlabel="I(x;t), nats", ylabel="I(t;y), nats")
    axes.legend()
file = Path(__file__).resolve().parent / "output" / "information_bottleneck.png"
file.parent.mkdir(exist_ok=True)
figure.savefig(file, dpi=120)
print(file)
