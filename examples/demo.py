# SPDX-License-Identifier: Apache-2.0
"""Tune a link with a relayed and a direct path for the information it carries.

Run it with `make demo`. The gains a and b share a power budget, a^2 + b^2 = 1.
"""

from pathlib import Path
import time

import matplotlib
import numpy as np

import optax

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def link():
    a = numpyro.param("a", 1.0)
    b = numpyro.param("b", 0.0)
    x = numpyro.sample("x", dist.Normal(0, 1))
    v1 = numpyro.sample("v1", dist.Normal(a * x, 1))
    v2 = numpyro.sample("v2", dist.Normal(x, 1))
    numpyro.sample("y", dist.Normal(b * v1 + v2, 1))


def information(a, b):
    """I(x;y) in closed form, to check against."""
    return 0.5 * np.log1p((1 + a * b) ** 2 / (b**2 + 2))


angles = np.linspace(0, np.pi / 2, 2_000_001)
on_circle = information(np.cos(angles), np.sin(angles))
best = angles[np.argmax(on_circle)]
start = ig.mutual_information(link, "x", "y").value
rows = [
    ("start", 1.0, 0.0, start, ""),
    ("closed form", np.cos(best), np.sin(best), on_circle.max(), ""),
]

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
right.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.8"))
# The link is linear and Gaussian, so "auto" finds that nothing needs to be learned.
# "denoising" learns the scores from samples, as it would for any other link.
for scores, num_steps, style in (("auto", None, "-"), ("denoising", 100, "--")):
    begin = time.perf_counter()
    result = ig.maximize_mi(
        link,
        "x",
        "y",
        scores=scores,
        num_steps=num_steps,
        projection=optax.projections.projection_l2_sphere,
    )
    spent = f"{time.perf_counter() - begin:.1f} s, {result.status}"
    a, b = result.params["a"], result.params["b"]
    rows.append((f"scores={scores!r}", a, b, result.estimate.value, spent))
    path = result.history["params"]
    left.plot(information(path["a"], path["b"]), style, label=rows[-1][0])
    right.plot(path["a"], path["b"], style, label=rows[-1][0])

print(f"\n{'':<20}{'a':>9}{'b':>9}{'I(x;y), nats':>15}")
for name, a, b, value, note in rows:
    print(f"{name:<20}{a:9.5f}{b:9.5f}{value:15.6f}   {note}")

left.axhline(on_circle.max(), color="0.6", lw=0.8, label="maximum")
left.set(xlabel="step", ylabel="I(x;y) in nats")
right.plot(np.cos(best), np.sin(best), "k*", ms=12, label="optimum")
right.set(xlabel="a", ylabel="b", xlim=(0, 1.05), ylim=(-0.05, 1), aspect="equal")
for axes in (left, right):
    axes.legend()
file = Path(__file__).resolve().parent / "output" / "demo.png"
file.parent.mkdir(exist_ok=True)
figure.savefig(file, dpi=120)
print(f"\nThe ascent and its path on the circle: {file}")
