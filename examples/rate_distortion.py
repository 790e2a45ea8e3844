# SPDX-License-Identifier: Apache-2.0
"""Rate and distortion under budgets (Section IX of the paper).

First one encoder of three Gaussian components, against reverse water-filling. Then two
encoders that see one of two correlated sources each and do not talk to one another,
with a joint linear decoder, against the Berger-Tung sum rate, which is the optimum for
Gaussian sources: min over noise of I(x1,x2;u1,u2) subject to both distortions.
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

DEVIATIONS = np.array([2.0, 1.0, 0.5])
RHO = 0.7
MIX = np.linalg.cholesky([[1, RHO], [RHO, 1]])


def one_encoder():
    # u = g x + noise is sent, and c u is what is made of it
    g = numpyro.param("g", jnp.ones(3))
    c = numpyro.param("c", 0.5 * jnp.ones(3))
    x = numpyro.sample("x", dist.Normal(0, DEVIATIONS).to_event(1))
    u = numpyro.sample("u", dist.Normal(g * x, 1).to_event(1))
    numpyro.deterministic("xhat", c * u)


def two_encoders():
    g1, g2 = numpyro.param("g1", 1.0), numpyro.param("g2", 1.0)
    c = numpyro.param("c", 0.5 * jnp.eye(2))
    z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1).to_event(1))
    x1, x2 = jnp.array(MIX, jnp.float32) @ z
    u1 = numpyro.sample("u1", dist.Normal(g1 * x1, 1))
    u2 = numpyro.sample("u2", dist.Normal(g2 * x2, 1))
    numpyro.deterministic("error", jnp.stack([x1, x2]) - c @ jnp.stack([u1, u2]))


def reverse_water_filling(total):
    """Rate of three components whose distortions add up to `total`, in nats."""
    variances, low, high = DEVIATIONS**2, 0.0, float(np.max(DEVIATIONS**2))
    for _ in range(100):
        level = (low + high) / 2
        full = np.minimum(level, variances).sum() > total
        low, high = (low, level) if full else (level, high)
    return 0.5 * np.log(variances / np.minimum(level, variances)).sum()


def berger_tung(d1, d2, points=100_000):
    """The sum rate in nats, on a grid of what the first encoder sends."""
    # The inverse of the error covariance is [[a, -k], [-k, b]]; given a, the rate
    # grows in b, and both budgets bound b from below.
    alone, k = 1 / (1 - RHO**2), RHO / (1 - RHO**2)
    a = max(alone, 1 / d1) + np.geomspace(1e-6, 1e4, points)
    b = np.maximum(alone, np.maximum(d1 * k**2 / (d1 * a - 1), 1 / d2 + k**2 / a))
    return np.min(0.5 * np.log((a * b - k**2) * (1 - RHO**2)))


def symmetric(d):
    """The same for equal distortions, in closed form (Wagner, Tavildar, Viswanath)."""
    beta = 1 + np.sqrt(1 + 4 * RHO**2 * d**2 / (1 - RHO**2) ** 2)
    return 0.5 * np.log((1 - RHO**2) * beta / (2 * d**2))


def row(name, result, budgets, truth):
    worst = max(c.violation for c in result.constraints)
    print(
        f"{name:>14}{str(budgets):>15}{float(result.estimate.value):10.4f}{truth:9.4f}"
        f"   over budget by {worst:.1e}   {result.status}"
    )


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
print(f"{'encoders':>14}{'budgets':>15}{'rate':>10}{'truth':>9}   nats")
model = ig.structural_model(one_encoder)
distortion = ig.Expectation(lambda v: jnp.sum((v["x"] - v["xhat"]) ** 2))
for budget in (0.3, 1.0, 2.5):
    result = ig.minimize(
        model, ig.MI("x", "u"), subject_to=distortion <= budget, progress_bar=False
    )
    row("one", result, budget, reverse_water_filling(budget))
    left.plot(budget, result.estimate.value, "C1o")
line = np.linspace(0.1, 5, 200)
left.plot(line, [reverse_water_filling(d) for d in line], "k", label="closed form")
left.set(xlabel="total distortion", ylabel="rate, nats", title="three components")

model = ig.structural_model(two_encoders)
errors = [ig.Expectation(lambda v, i=i: v["error"][i] ** 2) for i in (0, 1)]
for pair in ((0.1, 0.1), (0.3, 0.3), (0.1, 0.4)):
    result = ig.minimize(
        model,
        ig.MI("z", ("u1", "u2")),
        subject_to=[e <= d for e, d in zip(errors, pair, strict=True)],
        progress_bar=False,
    )
    row("two", result, pair, berger_tung(*pair))
    if pair[0] == pair[1]:
        print(f"{'':29}closed form{symmetric(pair[0]):8.4f}")
        right.plot(pair[0], result.estimate.value, "C1o")
line = np.linspace(0.05, 0.6, 200)
right.plot(line, [symmetric(d) for d in line], "k", label="closed form")
right.set(xlabel="distortion of each source", title=f"two encoders, rho = {RHO}")
for axes in (left, right):
    axes.legend()
file = Path(__file__).resolve().parent / "output" / "rate_distortion.png"
file.parent.mkdir(exist_ok=True)
figure.savefig(file, dpi=120)
print(file)
