# SPDX-License-Identifier: Apache-2.0
"""Rate regions beyond Gaussian channels: fading, and amplifiers that saturate.

Two senders with fading that the receiver knows, on one power; two senders whose
amplifiers saturate at different peaks; and one saturating sender with two receivers,
by superposition. Each is compared with its true region, by quadrature and SciPy.
"""

from pathlib import Path

import matplotlib
import numpy as np
import scipy.optimize
import scipy.spatial

import jax.numpy as jnp
from optax.projections import projection_box, projection_l2_ball

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

POWER = 10.0  # of both senders together, at unit noise
DRIVE = 2.5  # of an amplifier, at most
PEAKS, NOISE = (1.0, 0.6), 0.25  # of the two amplifiers; of the receiver
STRONG, WEAK = 0.2, 0.5  # noise of two receivers of one amplifier


def fading():
    a, b = numpyro.param("a", 1.0), numpyro.param("b", 1.0)
    h = numpyro.sample("h", dist.Exponential(1.0).expand([2]).to_event(1))
    x1 = numpyro.sample("x1", dist.Normal(0, 1))
    x2 = numpyro.sample("x2", dist.Normal(0, 1))
    mean = jnp.sqrt(h[0]) * a * x1 + jnp.sqrt(h[1]) * b * x2
    numpyro.sample("y", dist.Normal(mean, 1))


def amplifiers():
    a, b = numpyro.param("a", 1.0), numpyro.param("b", 1.0)  # drive levels
    x1 = numpyro.sample("x1", dist.Normal(0, 1))
    x2 = numpyro.sample("x2", dist.Normal(0, 1))
    mean = PEAKS[0] * jnp.tanh(a * x1) + PEAKS[1] * jnp.tanh(b * x2)
    numpyro.sample("y", dist.Normal(mean, NOISE))


def broadcast():
    # u carries the message of the weak receiver, v that of the strong one
    a, b = numpyro.param("a", 0.7), numpyro.param("b", 0.7)
    u = numpyro.sample("u", dist.Normal(0, 1))
    v = numpyro.sample("v", dist.Normal(0, 1))
    x = jnp.tanh(a * u + b * v)
    numpyro.sample("y1", dist.Normal(x, STRONG))
    numpyro.sample("y2", dist.Normal(x, WEAK))


def ball(params):
    return projection_l2_ball(params, POWER**0.5)


def box(params):
    return projection_box(params, *({n: x for n in params} for x in (0.0, DRIVE)))


# The truth: the bounds at given parameters by quadrature in double precision.
X = np.linspace(-6, 6, 101)  # a standard normal
NORMAL = np.exp(-0.5 * X**2) / np.exp(-0.5 * X**2).sum()
G = np.exp(np.linspace(-25, 4, 300))  # an exponential power
POWERS = G * np.exp(-G) / np.sum(G * np.exp(-G))


def fading_truth(a, b):
    p, q = 0.5 * np.log1p(a**2 * G), 0.5 * np.log1p(b**2 * G)
    both = 0.5 * np.log1p(a**2 * G[:, None] + b**2 * G)
    return POWERS @ p, POWERS @ q, POWERS @ both @ POWERS


def information(points, masses, noise):
    """I(point; point + noise) of points (..., n) with the same masses, by a grid."""
    limit = np.abs(points).max() + 7 * noise
    y = np.arange(-limit, limit, noise / 4)
    gap = (y - points[..., None]) / noise
    density = masses @ np.exp(-0.5 * gap**2) / (noise * np.sqrt(2 * np.pi)) + 1e-300
    entropy = -noise / 4 * np.sum(density * np.log(density), axis=-1)
    return entropy - 0.5 * np.log(2 * np.pi * np.e * noise**2)


def amplifiers_truth(a, b):
    one, two = PEAKS[0] * np.tanh(a * X), PEAKS[1] * np.tanh(b * X)
    sums, masses = one[:, None] + two, NORMAL[:, None] * NORMAL
    sets = (one, NORMAL), (two, NORMAL), (sums.ravel(), masses.ravel())
    return [information(*each, NOISE) for each in sets]


def broadcast_truth(a, b):
    x, masses = np.tanh(a * X[:, None] + b * X), NORMAL[:, None] * NORMAL
    strong, weak = (NORMAL @ information(x, NORMAL, noise) for noise in (STRONG, WEAK))
    return strong, information(x.ravel(), masses.ravel(), WEAK) - weak


def weighted(weight, facets):
    """The largest weighted sum of rates; bounds of r1, r2 and perhaps of r1 + r2."""
    if len(facets) == 2:
        return weight @ facets
    high = int(np.argmax(weight))
    return weight[high] * facets[high] + weight.min() * (facets[2] - facets[high])


def corners(facets):
    """Corners of the rates under these bounds."""
    one, two, both = *facets[:2], min([sum(facets[:2]), *facets[2:]])
    return [[0, 0], [one, 0], [one, both - one], [both - two, two], [0, two]]


def sides(angle):
    return POWER**0.5 * np.array([np.cos(angle), np.sin(angle)])


def compare(ax, title, model, bounds, truth, grid, projection, num_weights=3):
    """Find a region, and compare each direction with the optimum of the truth.

    Returns:
        For each direction: the weighted sum of rates, its standard error, the truth at
        the same parameters, and the optimum: the best point of a grid, refined.
    """
    region = ig.rate_region(
        model,
        bounds,
        num_weights=num_weights,
        projection=projection,
        progress_bar=False,
    )
    place = sides if projection is ball else lambda *free: free
    known = [truth(*place(*point)) for point in grid]
    print(f"{title}\n{'direction':>12}{'rates':>18}{'weighted':>11}{'truth, best':>23}")
    rows, ends = [], []
    for weight, point, error, at in zip(
        region.weights,
        region.points,
        region.standard_error,
        region.params,
        strict=True,
    ):
        top = max(range(len(grid)), key=lambda k, w=weight: weighted(w, known[k]))
        best = scipy.optimize.minimize(
            lambda free, w=weight: -weighted(w, truth(*place(*free))),
            grid[top],
            method="Nelder-Mead",
            bounds=list(zip(grid.min(axis=0), grid.max(axis=0), strict=True)),
            options={"xatol": 1e-2, "fatol": 1e-5},
        )
        ends += corners(truth(*place(*best.x)))
        there = weighted(weight, truth(float(at["a"]), float(at["b"])))
        rows.append((weight @ point, error, there, -best.fun))
        print(f"{str(weight):>12}{str(point.round(4)):>18}", end="")
        print("{:11.5f} +- {:.1e}{:9.5f}{:9.5f}".format(*rows[-1]), flush=True)
    region.plot(ax)
    edge = np.array(ends)[scipy.spatial.ConvexHull(ends).vertices]
    ax.plot(*np.append(edge, edge[:1], axis=0).T, "k--", label="truth")
    ax.set_title(title)
    ax.legend(fontsize="small")
    print(*region.warnings, sep="\n")
    return rows


def two_senders(given=()):
    return {
        "r1": ig.MI("x1", "y", given=("x2", *given)),
        "r2": ig.MI("x2", "y", given=("x1", *given)),
        ("r1", "r2"): ig.MI(("x1", "x2"), "y", given=given),
    }


superposed = {"r1": ig.MI("v", "y1", given="u"), "r2": ig.MI("u", "y2")}
angles = np.linspace(0, np.pi / 2, 31)[:, None]
levels = np.linspace(0, DRIVE, 7)
drives = np.stack(np.meshgrid(levels, levels), axis=-1).reshape(-1, 2)
known = two_senders(given=("h",))
cases = [
    ("fading", fading, known, fading_truth, angles, ball),
    ("two amplifiers", amplifiers, two_senders(), amplifiers_truth, drives, box),
    ("one amplifier", broadcast, superposed, broadcast_truth, drives, box, 5),
]
figure, axes = plt.subplots(1, len(cases), figsize=(13, 4), layout="constrained")
found = [compare(ax, *case) for ax, case in zip(axes, cases, strict=True)]
file = Path(__file__).resolve().parent / "output" / "rate_regions.png"
file.parent.mkdir(exist_ok=True)
figure.savefig(file, dpi=120)
print(file)
