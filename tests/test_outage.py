# SPDX-License-Identifier: Apache-2.0
"""Outage and ergodic rates of two users with Rayleigh fading, against closed forms."""

import numpy as np
import pytest
from scipy.special import exp1

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from helpers import assert_within, refuses
import numpyro_infograd as ig
from numpyro_infograd.errors import JumpError

NEED = float(np.expm1(0.5))


def uplink():
    """Two users share a power of 10; the first is decoded under the second."""
    share = numpyro.param("share", 0.6, constraint=constraints.unit_interval)
    p1, p2 = 10 * share, 10 * (1 - share)
    fading = dist.Exponential(1.0)
    g = numpyro.sample("g", fading.expand([2]).to_event(1))
    numpyro.deterministic("snr", p1 * g[0] / (1 + p2 * g[1]))
    numpyro.deterministic("out1", fading.cdf(NEED * (1 + p2 * g[1]) / p1))
    numpyro.deterministic("out2", fading.cdf(NEED / p2))
    numpyro.deterministic("rate", jnp.log1p(p1 * g[0] + p2 * g[1]))


def outages(share):
    p1, p2 = 10 * share, 10 * (1 - share)
    first = jnp.exp(-NEED / p1) / (1 + NEED * p2 / p1)
    return 2 - first - jnp.exp(-NEED / p2)


def ergodic(share):
    """E log(1 + p1 g1 + p2 g2), by the exponential integral."""
    p1, p2 = 10 * share, 10 * (1 - share)

    def one(p):
        return p * np.exp(1 / p) * exp1(1 / p)

    return (one(p1) - one(p2)) / (p1 - p2)


@pytest.mark.slow
def test_outage_and_ergodic_rate() -> None:
    lost = ig.gradient(uplink, ig.Expectation(lambda v: v["out1"] + v["out2"]))
    truth = float(jax.grad(outages)(0.6))
    error = lost.standard_error["share"]
    assert_within(
        lost.value["share"], error, truth, max_standard_error=0.005 * abs(truth)
    )
    slope = ig.gradient(uplink, ig.Expectation(lambda v: v["rate"]))
    truth = (ergodic(0.6001) - ergodic(0.5999)) / 2e-4
    error = slope.standard_error["share"]
    assert_within(slope.value["share"], error, truth, max_standard_error=1e-3)


def test_an_event_is_refused_with_the_line_to_write() -> None:
    event = ig.Expectation(lambda v: jnp.log1p(v["snr"]) < 0.5)
    words = "cdf(threshold)", "numpyro.deterministic"
    refuses(JumpError, *words, call=lambda: ig.gradient(uplink, event))
