# SPDX-License-Identifier: Apache-2.0
"""The law of the input, optimised through a generative sub-graph (Section VI-C).

A flow pushed forward from Gaussian noise under a peak amplitude, where the best law has
a few points (Smith 1971; the truth is computed by Blahut-Arimoto); a Gaussian mixture
under average power, where the best law is Gaussian; and the points of a constellation,
under average and under peak power. The noise has variance one throughout.
"""

from pathlib import Path

import matplotlib
import numpy as np
import scipy.optimize

from flax import nnx
import jax
import jax.numpy as jnp
from optax.projections import projection_l2_ball

import numpyro
from numpyro.contrib.module import nnx_module
import numpyro.distributions as dist

import numpyro_infograd as ig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PEAKS = (1.0, 2.0)
POWER = 4.0  # of the mixture
LEVELS, LINE_POWER = 8, 10.0  # of the constellation on a line
RING = 3.5  # largest amplitude of the one in the plane


class Flow(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(1, 16, rngs=rngs)
        self.last = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, u):
        return self.last(jnp.tanh(self.first(u[None])))[0]


def pushed(peak):
    flow = nnx_module("flow", Flow(nnx.Rngs(0)))
    u = numpyro.sample("u", dist.Normal(0, 1))
    # steep at the start, so that points can form; clipped, so that they can be sharp
    x = numpyro.deterministic("x", jnp.clip(2 * flow(3 * u), -peak, peak))
    numpyro.sample("y", dist.Normal(x, 1))


def mixture():
    # where the components lie and how wide they are; the choice is no parameter
    means = numpyro.param("means", jnp.array([-2.5, -1.0, 1.0, 2.5]))
    widths = numpyro.param("widths", 0.3 * jnp.ones(4))
    k = numpyro.sample("k", dist.Categorical(probs=jnp.ones(4) / 4))
    z = numpyro.sample("z", dist.Normal(0, 1))
    x = numpyro.deterministic("x", means[k] + widths[k] * z)
    numpyro.sample("y", dist.Normal(x, 1))


def constellation(start):
    points = numpyro.param("points", start)
    k = numpyro.sample("k", dist.Categorical(probs=jnp.ones(len(start)) / len(start)))
    x = points[k]
    numpyro.sample("y", dist.Normal(x, 1).to_event(x.ndim))


def blahut_arimoto(peak, tolerance=1e-4):
    """Capacity of |x| <= peak in unit noise, in nats, from below to `tolerance`."""
    x = np.linspace(-peak, peak, 101)
    y = np.linspace(-peak - 8, peak + 8, 801)
    p = np.exp(-0.5 * (y - x[:, None]) ** 2) / np.sqrt(2 * np.pi) * (y[1] - y[0])
    law = np.full(len(x), 1 / len(x))
    while True:
        gain = np.sum(p * np.log(p / (law @ p)), axis=1)  # D(p(y|x) || p(y))
        low, high = np.log(law @ np.exp(gain)), gain.max()
        if high - low < tolerance:
            return low
        law = law * np.exp(gain)
        law /= law.sum()


def information(points):
    """I(k;y) of equally likely points, on a Gauss-Hermite grid around each."""
    points = np.asarray(points, float).reshape(len(points), -1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    size = points.shape[1]
    noise = np.stack(np.meshgrid(*[nodes] * size), -1).reshape(-1, size)
    share = np.prod(np.meshgrid(*[weights] * size), axis=0).ravel()
    y = points[:, None] + noise
    far = np.sum((y[:, :, None] - points) ** 2, -1) - np.sum(noise**2, -1)[:, None]
    hidden = np.log(np.mean(np.exp(-0.5 * far), axis=-1))
    return -np.mean(hidden @ share / share.sum())


def best_levels():
    """The best levels of a symmetric constellation on a line, by SciPy."""

    def spread(half):
        levels = np.concatenate([-half, half])
        return levels * np.sqrt(LINE_POWER / np.mean(levels**2))

    start = np.arange(1, LEVELS, 2.0)
    found = scipy.optimize.minimize(lambda h: -information(spread(h)), start)
    return np.sort(spread(found.x))


def ball(power, count):
    """E|x|^2 <= power for `count` equally likely terms."""
    return lambda p: projection_l2_ball(p, (power * count) ** 0.5)


def disc(p):
    norm = jnp.linalg.norm(p["points"], axis=1, keepdims=True)
    return {"points": p["points"] * jnp.minimum(1.0, RING / jnp.maximum(norm, 1e-9))}


def row(name, result, found, truth):
    print(f"{name:>34}{found:10.5f}{truth:10.5f}   {result.status}")


figure, grid = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
print(f"{'nats':>34}{'found':>10}{'truth':>10}")
for peak in PEAKS:
    result = ig.maximize_mi(
        pushed, "x", "y", model_args=(peak,), num_steps=300, progress_bar=False
    )
    row(
        f"flow, amplitude at most {peak:g}",
        result,
        result.estimate.value,
        blahut_arimoto(peak),
    )
    model = ig.structural_model(pushed, peak)
    drawn = model.sample(jax.random.key(1), 20000, result.params)["x"]
    grid[0].hist(np.asarray(drawn), 80, density=True, histtype="step", label=peak)
grid[0].set(title="input laws under a peak", xlabel="x")
grid[0].legend()

result = ig.maximize_mi(
    mixture,
    "x",
    "y",
    projection=ball(POWER, 4),
    progress_bar=False,
)
truth = 0.5 * np.log1p(POWER)
row(f"mixture, power at most {POWER:g}", result, result.estimate.value, truth)

start = jnp.linspace(-1.0, 1.0, LEVELS)
result = ig.maximize_mi(
    constellation,
    "k",
    "y",
    model_args=(start * (3 * LINE_POWER) ** 0.5,),
    projection=ball(LINE_POWER, LEVELS),
    progress_bar=False,
)
levels, best = np.sort(np.asarray(result.params["points"])), best_levels()
name = f"{LEVELS} levels, power at most {LINE_POWER:g}"
row(name, result, information(levels), information(best))
even = np.arange(1 - LEVELS, LEVELS, 2.0)
even *= np.sqrt(LINE_POWER / np.mean(even**2))
print(f"{'the same, evenly spaced':>34}{information(even):10.5f}")
for height, (points, label) in enumerate(
    ((best, "SciPy"), (levels, "found"), (even, "even"))
):
    grid[1].plot(points, np.full(LEVELS, height), "o", label=label)
grid[1].set(title=f"{LEVELS} levels, power {LINE_POWER:g}", xlabel="x")
grid[1].set(yticks=[], ylim=(-0.5, 3.5))
grid[1].legend()

side = jnp.linspace(-1.0, 1.0, 4)
square = RING / 2**0.5 * jnp.stack(jnp.meshgrid(side, side), -1).reshape(16, 2)
result = ig.maximize_mi(
    constellation,
    "k",
    "y",
    model_args=(square,),
    projection=disc,
    num_restarts=4,
    progress_bar=False,
)
points = np.asarray(result.params["points"])
value = information(points)
row(f"16 points, amplitude at most {RING:g}", result, result.estimate.value, value)
print(f"{'the same, as a square':>34}{information(square):10.5f}")
ig.plots.plot_constellation(square, ax=grid[2], label="square")
ig.plots.plot_constellation(points, ax=grid[2], label="found")
grid[2].add_patch(plt.Circle((0, 0), RING, fill=False))
grid[2].set(title=f"16 points, amplitude {RING:g}")
file = Path(__file__).resolve().parent / "output" / "input_shaping.png"
file.parent.mkdir(exist_ok=True)
figure.savefig(file, dpi=120)
print(file)
