# SPDX-License-Identifier: Apache-2.0
"""Are the standard errors of a twin right? Ranks over 100 simulated recordings.

A link with a gain and an offset sends bits to a converter of three bits, and only its
codes are recorded. After the calibration, one call draws parameters around the twin,
simulates recordings from each and calibrates to them. Each fit has bootstrap draws. If
the standard errors are right, the rank of the true parameter among them is uniform.
"""

from pathlib import Path

import matplotlib
import numpy as np

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig
from numpyro_infograd.distributions import Quantized

matplotlib.use("Agg")

EDGES = np.linspace(-1.5, 1.5, 7)
positive = dist.constraints.positive


def receiver():
    gain = numpyro.param("gain", 1.0, constraint=positive)
    offset = numpyro.param("offset", 0.0)
    noise = numpyro.param("noise", 0.5, constraint=positive)
    bit = numpyro.sample("bit", dist.Bernoulli(0.5))
    level = offset + gain * (2.0 * bit - 1.0)
    numpyro.sample("code", Quantized(dist.Normal(level, noise), EDGES))


truth = {"gain": 0.9, "offset": 0.1, "noise": 0.4}
rng = np.random.default_rng(0)
sent = truth["offset"] + truth["gain"] * rng.choice([-1.0, 1.0], 2000)
codes = np.digitize(sent + truth["noise"] * rng.normal(size=sent.shape), EDGES)
twin = ig.calibrate(receiver, {"code": codes}, num_steps=60, progress_bar=False)
print(twin)
for name, value in truth.items():
    off = (float(twin.params[name]) - value) / float(twin.standard_error[name])
    print(f"{name}: true {value}, off by {off:+.1f} standard errors")

# Each fit starts at the twin, so a few steps are enough.
check = ig.diagnostics.simulation_based_calibration(
    receiver, twin, num_steps=5, progress_bar=False
)
print(check)
file = Path(__file__).resolve().parent / "output" / "twin_ranks.png"
file.parent.mkdir(exist_ok=True)
check.plot()[0].figure.savefig(file, dpi=120)
print(file)
