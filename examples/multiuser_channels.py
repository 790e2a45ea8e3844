# SPDX-License-Identifier: Apache-2.0
"""Gaussian channels with several users (Section VI-A of the paper).

The multiple-access channel under one total power and under one power for each user, the
broadcast channel with superposition, the interference channel whose receivers take one
another's signal for noise, and the secrecy rate of a beam of two antennas. Each is
compared with its closed form; C(s) below is 1/2 log(1 + s).
"""

from pathlib import Path

import matplotlib
import numpy as np
import scipy.linalg

import jax.numpy as jnp
from optax.projections import projection_box, projection_l2_ball

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TOTAL, EACH, WEAK = 10.0, {"a": 6.0, "b": 2.0}, 4.0  # WEAK: noise of receiver 2
CROSS = (0.3, 1.2)  # gains of the interference
MAIN, EAVESDROPPER = np.array([1.0, 0.4]), np.array([0.5, 0.9])


def multiple_access():
    a, b = numpyro.param("a", 1.0), numpyro.param("b", 1.0)
    x1 = numpyro.sample("x1", dist.Normal(0, 1))
    x2 = numpyro.sample("x2", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(a * x1 + b * x2, 1))


def broadcast():
    # u carries the message of the weak receiver, v that of the strong one
    a, b = numpyro.param("a", 1.0), numpyro.param("b", 1.0)
    u = numpyro.sample("u", dist.Normal(0, 1))
    v = numpyro.sample("v", dist.Normal(0, 1))
    # as amplitudes, not as scales of u and v, because either may fall to zero
    x = a * u + b * v
    numpyro.sample("y1", dist.Normal(x, 1))
    numpyro.sample("y2", dist.Normal(x, WEAK**0.5))


def interference(cross):
    a, b = numpyro.param("a", 1.0), numpyro.param("b", 0.8)
    x1 = numpyro.sample("x1", dist.Normal(0, 1))
    x2 = numpyro.sample("x2", dist.Normal(0, 1))
    numpyro.sample("y1", dist.Normal(a * x1 + cross * b * x2, 1))
    numpyro.sample("y2", dist.Normal(b * x2 + cross * a * x1, 1))


def wiretap():
    beam = numpyro.param("beam", jnp.ones(2))
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(MAIN @ beam * x, 1))
    numpyro.sample("z", dist.Normal(EAVESDROPPER @ beam * x, 1))


def capacity(snr):
    return 0.5 * np.log1p(snr)


def ball(power):
    return lambda p: projection_l2_ball(p, power**0.5)


def balls(p):
    return {name: projection_l2_ball(a, EACH[name] ** 0.5) for name, a in p.items()}


def box(p):
    limit = TOTAL**0.5
    return {name: projection_box(a, -limit, limit) for name, a in p.items()}


def compare(axes, title, model, bounds, projection, edge, num_weights=3):
    """Find a region; `edge` holds points of the true boundary, whose hull is known."""
    region = ig.rate_region(
        model,
        bounds,
        num_weights=num_weights,
        projection=projection,
        progress_bar=False,
    )
    reached = np.sum(region.weights * region.points, axis=1)
    best = np.max(region.weights @ edge.T, axis=1)
    print(f"{title}\n{'direction':>16}{'rates':>18}{'weighted':>12}{'truth':>9}")
    for w, point, *values in zip(
        region.weights, region.points, reached, best, strict=True
    ):
        print(f"{str(w.round(3)):>16}{str(point.round(4)):>18}", end="")
        print("{:12.5f}{:9.5f}".format(*values))
    region.plot(axes)
    axes.plot(*edge.T, "k--", label="truth")
    axes.set_title(title)
    axes.legend(fontsize="small")


access = {
    "r1": ig.MI("x1", "y", given="x2"),
    "r2": ig.MI("x2", "y", given="x1"),
    ("r1", "r2"): ig.MI(("x1", "x2"), "y"),
}
superposed = {"r1": ig.MI("v", "y1", given="u"), "r2": ig.MI("u", "y2")}
share = np.linspace(0, 1, 1001)
one, two, both = (capacity(s) for s in (EACH["a"], EACH["b"], sum(EACH.values())))
edges = [
    np.array([[0, capacity(TOTAL)], [capacity(TOTAL), 0]]),
    np.array([[0, two], [both - two, two], [one, both - one], [one, 0]]),
    np.stack(
        [
            capacity(share * TOTAL),
            capacity((1 - share) * TOTAL / (share * TOTAL + WEAK)),
        ],
        axis=1,
    ),
]
figure, grid = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
compare(grid[0], "one power", multiple_access, access, ball(TOTAL), edges[0])
compare(grid[1], "a power each", multiple_access, access, balls, edges[1])
compare(grid[2], "broadcast", broadcast, superposed, ball(TOTAL), edges[2], 9)

# Full power for both, or silence for one: no other pair of powers is best.
for cross in CROSS:
    result = ig.maximize(
        interference,
        ig.MI("x1", "y1") + ig.MI("x2", "y2"),
        model_args=(cross,),
        projection=box,
        num_restarts=4,
        progress_bar=False,
    )
    used = [float(p) ** 2 for p in result.params.values()]
    truth = max(2 * capacity(TOTAL / (1 + cross**2 * TOTAL)), capacity(TOTAL))
    print(f"interference {cross:g}: sum rate {result.estimate.value:.5f}", end="")
    print(f", truth {truth:.5f}; powers {used[0]:.3f} and {used[1]:.3f}")

# max over beams of C((h.f)^2) - C((g.f)^2): the largest generalised eigenvalue
secret = ig.maximize(
    wiretap,
    ig.MI("x", "y") - ig.MI("x", "z"),
    projection=ball(TOTAL),
    progress_bar=False,
)
pencil = [np.eye(2) + TOTAL * np.outer(g, g) for g in (MAIN, EAVESDROPPER)]
values, vectors = scipy.linalg.eigh(*pencil)
beam = np.asarray(secret.params["beam"])
cosine = beam @ vectors[:, -1] / np.linalg.norm(beam) / np.linalg.norm(vectors[:, -1])
print(f"secrecy rate {float(secret.estimate.value):.5f} nats, truth ", end="")
print(f"{0.5 * np.log(values[-1]):.5f}; cosine of the two beams {abs(cosine):.6f}")
file = Path(__file__).resolve().parent / "output" / "multiuser_channels.png"
file.parent.mkdir(exist_ok=True)
figure.savefig(file, dpi=120)
print(file)
