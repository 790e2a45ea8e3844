# SPDX-License-Identifier: Apache-2.0
"""Two gains of a link from its outputs alone, and what outputs can not show.

Section VIII of the paper. A relay of gain b forwards a x plus noise, beside a direct
path; only what arrives is recorded. One output shows one number, its variance, so a and
b can not both be found. With the relay's own output recorded beside it, both can.
"""

import numpy as np

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig


def link():
    a = numpyro.param("a", 1.0)
    b = numpyro.param("b", 0.3)
    x = numpyro.sample("x", dist.Normal(0, 1))
    relay = numpyro.sample("relay", dist.Normal(a * x, 1))
    numpyro.sample("y", dist.Normal(b * relay + x, 2**0.5))


a, b = 1.5, 0.8
rng = np.random.default_rng(0)
x = rng.normal(size=20_000)
relay = a * x + rng.normal(size=x.shape)
y = b * relay + x + 2**0.5 * rng.normal(size=x.shape)
print(f"the truth: a = {a}, b = {b}\n")

print("y alone:")
print(ig.calibrate(link, {"y": y}, divergence="kl", progress_bar=False), "\n")

print("relay and y:")
both = {"relay": relay, "y": y}
print(ig.calibrate(link, both, divergence="kl", progress_bar=False))
