# SPDX-License-Identifier: Apache-2.0
"""A queue with one server, fitted to the times that customers stay.

Customers arrive at random. Each waits until those before it have left, and is then
served. With gaps A between arrivals, services S and times T from arrival to departure,

    T[k] = max(T[k - 1] - A[k], 0) + S[k]

(Lindley, "The theory of queues with a single server", 1952). Only T is recorded, of the
first five customers on many days: no arrivals, no services, and not who had to wait.
"""

import numpy as np

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

positive = dist.constraints.positive
CUSTOMERS, DAYS = 5, 2000


def stays(gaps, services):
    """The time of each customer, along the first axis; the first one has no queue."""

    def customer(last, own):
        gap, service = own
        stay = jnp.maximum(last - gap, 0.0) + service
        return stay, stay

    return jax.lax.scan(customer, jnp.zeros(gaps.shape[1:]), (gaps, services))[1]


def queue():
    arrivals = numpyro.param("arrivals", 1.0, constraint=positive)  # in a minute
    service = numpyro.param("service", 1.0, constraint=positive)  # minutes, the median
    spread = numpyro.param("spread", 0.5, constraint=positive)  # of log minutes
    each = numpyro.sample("gap", dist.Exponential(1.0).expand([CUSTOMERS]).to_event(1))
    work = numpyro.sample("work", dist.Normal(0, 1).expand([CUSTOMERS]).to_event(1))
    services = service * jnp.exp(spread * work)
    numpyro.deterministic("stay", stays(each / arrivals, services))


truth = {"arrivals": 0.7, "service": 1.2, "spread": 0.4}
rng = np.random.default_rng(0)
gaps = rng.exponential(1 / truth["arrivals"], (CUSTOMERS, DAYS))
services = truth["service"] * np.exp(truth["spread"] * rng.normal(size=gaps.shape))
recorded = np.asarray(stays(jnp.asarray(gaps), jnp.asarray(services))).T

twin = ig.calibrate(queue, {"stay": recorded}, divergence="kl", progress_bar=False)
print(twin)
for name, value in truth.items():
    off = (float(twin.params[name]) - value) / float(twin.standard_error[name])
    print(f"{name}: true {value}, off by {off:+.1f} standard errors")
