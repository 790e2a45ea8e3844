# SPDX-License-Identifier: Apache-2.0
"""A stochastic epidemic fitted to counts of reported cases.

In each of 3,000 households of five, one person falls ill. In every generation an ill
person infects each healthy one with probability `attack`. Only a share `reported` of
the cases is reported, and nobody knows how many people were infected. The recordings
are the numbers of reported cases in three generations. Counts have no score, and the
infections are draws whose probability depends on a parameter, so the twin is fitted by
its likelihood: a sum over simulated outbreaks.
"""

from pathlib import Path

import matplotlib
import numpy as np

import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

matplotlib.use("Agg")

GENERATIONS, HOUSEHOLDS, HEALTHY = 3, 3000, 4
share = dist.constraints.unit_interval


def outbreak():
    attack = numpyro.param("attack", 0.5, constraint=share)
    reported = numpyro.param("reported", 0.8, constraint=share)
    healthy, ill, cases = HEALTHY, 1, []
    for generation in range(GENERATIONS):
        risk = 1 - (1 - attack) ** ill
        ill = numpyro.sample(f"ill_{generation}", dist.Binomial(healthy, risk))
        healthy = healthy - ill
        cases.append(ill)
    reports = dist.Binomial(jnp.stack(cases), reported).to_event(1)
    numpyro.sample("reports", reports)


truth = {"attack": 0.25, "reported": 0.6}
rng = np.random.default_rng(0)
healthy, ill, columns = np.full(HOUSEHOLDS, HEALTHY), np.ones(HOUSEHOLDS, int), []
for _ in range(GENERATIONS):
    ill = rng.binomial(healthy, 1 - (1 - truth["attack"]) ** ill)
    healthy = healthy - ill
    columns.append(rng.binomial(ill, truth["reported"]))

reports = np.stack(columns, 1)
twin = ig.calibrate(outbreak, {"reports": reports}, num_steps=60, progress_bar=False)
print(twin)
for name, value in truth.items():
    off = (float(twin.params[name]) - value) / float(twin.standard_error[name])
    print(f"{name}: true {value}, off by {off:+.1f} standard errors")

file = Path(__file__).resolve().parent / "output" / "twin_of_epidemic.png"
file.parent.mkdir(exist_ok=True)
twin.plot()[0].figure.savefig(file, dpi=120)
print(file)
