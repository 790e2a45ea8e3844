# SPDX-License-Identifier: Apache-2.0
"""Power for 64 sensors that forward what they see (Section V-D2 of the paper).

Sensor i sees v_i = h_i x + noise of variance s_i and sends a_i v_i over a channel of
its own with unit noise. All share one transmit power, sum_i a_i^2 E[v_i^2] <= P. In
powers the problem is concave, so the optimum is found by bisection on its multiplier.
"""

from pathlib import Path

import matplotlib
import numpy as np

import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SENSORS = 64
POWERS = (10.0, 50.0)
rng = np.random.default_rng(3)
h = rng.uniform(0.1, 1.5, SENSORS)
s = rng.uniform(0.2, 4.0, SENSORS)
seen = h**2 + s  # E[v_i^2]


def network():
    # u_i is the amplitude sent, so that the constraint is a ball: a_i^2 E v_i^2 = u_i^2
    u = numpyro.param("u", jnp.full(SENSORS, 0.1))
    x = numpyro.sample("x", dist.Normal(0, 1))
    v = numpyro.sample("v", dist.Normal(h * x, jnp.sqrt(s)).to_event(1))
    numpyro.sample("y", dist.Normal(u * v / jnp.sqrt(seen), 1).to_event(1))


def information(power):
    """I(x;y) of the powers sent: 1/2 log(1 + sum_i g_i), g_i the SNR of branch i."""
    return 0.5 * np.log1p(np.sum(power * h**2 / (seen + power * s)))


def best_powers(total):
    """The powers that maximise sum_i g_i, with g_i = p h^2 / (h^2 + s + p s)."""

    def powers(price):  # where dg_i/dp = h^2 seen / (seen + p s)^2 equals the price
        return np.maximum(0, (np.sqrt(h**2 * seen / price) - seen) / s)

    low, high = 1e-12, np.max(h**2 / seen)
    for _ in range(200):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if powers(middle).sum() > total else (low, middle)
    return powers(high)


model = ig.structural_model(network)
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
order = np.argsort(-(h**2) / seen)  # a sensor is used if h^2 / seen exceeds the price
print(f"{'P':>5}{'I(x;y)':>10}{'optimum':>10}{'equal':>9}  sensors off, optimum")
for k, total in enumerate(POWERS):
    radius = total**0.5
    result = ig.maximize(
        model,
        ig.MI("x", "y"),
        init_params={"u": jnp.full(SENSORS, radius / SENSORS**0.5)},
        projection=lambda p, r=radius: optax.projections.projection_l2_ball(p, r),
        progress_bar=False,
    )
    found, best = np.asarray(result.params["u"], float) ** 2, best_powers(total)
    equal = information(np.full(SENSORS, total / SENSORS))
    off = [int(np.sum(p < 1e-3 * total / SENSORS)) for p in (found, best)]
    print(
        f"{total:5.0f}{float(result.estimate.value):10.5f}{information(best):10.5f}"
        f"{equal:9.5f}  {off[0]:11}{off[1]:9}   {result.status}"
    )
    axes.plot(best[order] / total, f"C{k}", label=f"optimum, P = {total:g}")
    axes.plot(found[order] / total, f"C{k}.")
axes.set(xlabel="sensor, best first", ylabel="share of the power", title="dots: found")
axes.legend()
file = Path(__file__).resolve().parent / "output" / "sensor_network.png"
file.parent.mkdir(exist_ok=True)
figure.savefig(file, dpi=120)
print(file)
