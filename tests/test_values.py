# SPDX-License-Identifier: Apache-2.0
"""Values against closed forms and dense grids."""

import math

import links
from methods import slow
import numpy as np
import pytest

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

from helpers import assert_found, information
import numpyro_infograd as ig
from numpyro_infograd import values
import truths

SMALL = {"method": values.Nested(2048, 2048, 2048)}


def check(found, truth, sharp, **settings) -> None:
    """At the truth, which lies within the bounds."""
    assert_found(found, truth, sharp, **settings)
    assert found.lower <= found.value <= found.upper
    at_it = math.isclose(found.value, truth, abs_tol=1e-5)
    assert found.lower <= truth <= found.upper or at_it


# -- exact -----------------------------------------------------------------------
AT_ONE = {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize(
    ("model", "objective", "params", "truth"),
    [
        (links.link, ig.MI("x", "y"), AT_ONE, 0.423649),
        (links.link, ig.Entropy("y"), {"a": 2.0, "b": 1.0},
         0.5 * math.log(2 * math.pi * math.e * 12)),
        # x given v1 has variance 1 / (1 + a^2); y's own noise has variance 2.
        (links.link, ig.MI("x", "y", given="v1"), AT_ONE, 0.5 * math.log(1 + 0.5 / 2)),
        (links.common_cause, ig.MI("x", "y"), {"e": 2.0}, 0.5 * math.log(55 / 6)),
    ],
    ids=["multipath", "entropy", "conditional", "common cause"],
)  # fmt: skip
def test_linear_models_are_exact(model, objective, params, truth) -> None:
    found = ig.estimate(model, objective, params=params)
    assert found.method == "exact" and found.standard_error == 0
    check(found, truth, 0.0, rounding=2e-6)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 3.0])
def test_eight_antennas_are_exact(alpha) -> None:
    found = information(links.mimo, params={"alpha": alpha})
    check(found, truths.mimo_information(alpha, links.MATRIX), 0.0, rounding=5e-6)


@pytest.mark.parametrize("unit", [1e-8, 1e-3, 1e6])
def test_units_do_not_matter(unit: float) -> None:
    """Two outputs, one of them in another unit, with the same hidden noise."""

    def model() -> None:
        x, h = (numpyro.sample(name, dist.Normal()) for name in "xh")
        mean = jnp.stack([numpyro.param("a", 1.0) * x + h, unit * (x - 0.5 * h)])
        scale = 0.5 * jnp.array([1.0, unit])
        numpyro.sample("y", dist.Normal(mean, scale).to_event(1))

    def truth(a: float) -> float:
        noise = np.outer([1, -0.5], [1, -0.5]) + 0.25 * np.eye(2)
        both = noise + np.outer([a, 1], [a, 1])
        return 0.5 * np.log(np.linalg.det(both) / np.linalg.det(noise))

    found = ig.mutual_information(model, "x", "y")
    assert found.method == "exact"
    assert found.value == pytest.approx(truth(1.0), abs=5e-6)
    gradient = ig.gradient(model, ig.MI("x", "y")).value["a"]
    slope = (truth(1.001) - truth(0.999)) / 0.002
    assert float(gradient) == pytest.approx(slope, abs=5e-6)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_condition_without_noise_is_held_at_its_value(fixed) -> None:
    """I(x; y | g) = log(1 + g^2) / 2 with a gain g that no noise moves."""

    def model():
        gain = numpyro.param("gain", 2.0)
        g = numpyro.deterministic("g", 2.0 * jnp.ones(()) if fixed else gain)
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(g * x + 0.0 * gain, 1))

    check(information(model, given="g"), 0.5 * math.log(5), 0.0, rounding=2e-6)
    if not fixed:
        slope = ig.gradient(model, ig.MI("x", "y", given="g")).value["gain"]
        assert float(slope) == pytest.approx(0.4, abs=1e-5)


def test_double_precision(x64) -> None:
    found = information(links.link, params={"a": 1.0, "b": 1.0})
    check(found, truths.multipath_information(1.0, 1.0), 0.0, rounding=1e-12)


# -- nested ----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("eta", "truth"), [slow(0.5, 0.263050), (1, 0.463508), (2, 0.588576), (3, 0.620317)]
)
def test_saturated_amplifier(eta, truth) -> None:
    found = information(links.amplifier, params={"eta": eta}, **SMALL)
    assert found.method == "nested"
    assert found.warnings == ()
    check(found, truth, 0.005)


def test_nested_standard_errors_cover() -> None:
    """Tails, where quasi-random points are few, are taken by control variates."""
    keys = map(jax.random.key, range(12))
    xy, truth = ig.MI("x", "y"), truths.tanh_information(1.0)
    found = [ig.estimate(links.amplifier, xy, rng_key=k, **SMALL) for k in keys]
    off = [abs(e.value - truth) / e.standard_error for e in found]
    assert np.mean(np.array(off) < 2) >= 0.8
    assert max(off) < 4
    scatter = np.std([e.value for e in found], ddof=1)
    assert np.median([e.standard_error for e in found]) < 3 * scatter


def test_bits_scale_the_value_and_its_standard_error() -> None:
    settings = {"params": {"eta": 1.0}, **SMALL}
    nats = information(links.amplifier, **settings)
    bits = information(links.amplifier, unit="bits", **settings)
    assert bits.value == pytest.approx(nats.value / math.log(2))
    assert bits.standard_error == pytest.approx(nats.standard_error / math.log(2))
    assert bits.in_bits() == bits and "bits" in repr(bits)
    cost = ig.estimate(links.link, ig.Expectation(lambda v: v["v1"]), num_samples=256)
    assert cost.unit == "" and "nats" not in repr(cost)


def test_a_discrete_condition() -> None:
    objective, truth = ig.MI("x", "y", given="on"), 0.35 * math.log(1 + 1.5**2)
    found = ig.estimate(links.switched, objective, params={"a": 1.5}, **SMALL)
    check(found, truth, 0.01)


@pytest.mark.slow
def test_value_of_an_expectation() -> None:
    """E[v1^2] = a^2 + 1, alone and as a price."""
    cost = ig.Expectation(lambda v: v["v1"] ** 2)
    point = {"a": 2.0, "b": 1.0}
    alone = ig.estimate(links.link, cost, params=point, num_samples=4096)
    check(alone, 5.0, 0.05)
    priced = ig.estimate(links.link, ig.MI("x", "y") - 0.1 * cost, params=point)
    check(priced, truths.multipath_information(2.0, 1.0) - 0.5, 0.01)


@pytest.mark.parametrize("share", [0.01, 0.001, 0.0005])
def test_errors_of_rare_values_are_not_zero(share: float) -> None:
    """All quasi-random sets may have equally many draws of a rare value."""

    def model() -> None:
        x = numpyro.sample("x", dist.Bernoulli(numpyro.param("p", share)))
        numpyro.sample("y", dist.Normal(3.0 * x, 1.0))

    mean = ig.Expectation(lambda v: 1.0 * v["x"])
    zscores = []
    for key in jax.random.split(jax.random.key(0), 8):
        found = ig.estimate(model, mean, rng_key=key)
        assert found.standard_error < 0.1 * share
        zscores.append((found.value - share) / found.standard_error)
    assert np.abs(zscores).max() < 3.5
    assert np.abs(zscores).max() > 0.2  # and they are not far too large


def test_a_rare_symbol_does_not_exceed_a_bound() -> None:
    def model() -> None:
        x = numpyro.sample("x", dist.Bernoulli(numpyro.param("p", 0.001)))
        numpyro.sample("y", dist.Bernoulli(jnp.where(x == 1, 0.999, 0.001)))

    law = np.array([0.999, 0.001])
    joint = law[:, None] * np.array([law, law[::-1]])
    apart = joint.sum(0) * joint.sum(1)[:, None]
    found = ig.mutual_information(model, "x", "y")
    check(found, np.sum(joint * np.log(joint / apart)), 1e-6)
    assert not found.warnings


def test_negative_of_an_estimate_swaps_its_bounds() -> None:
    found = information(links.amplifier, **SMALL)
    minus = -found
    assert minus.value == -found.value
    assert (minus.lower, minus.upper) == (-found.upper, -found.lower)
