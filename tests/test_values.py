# SPDX-License-Identifier: Apache-2.0
"""Values against closed forms and dense grids."""

import math

import links
import numpy as np
import pytest

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

from helpers import assert_within
import numpyro_infograd as ig
from numpyro_infograd import values
import truths

SMALL = {"method": values.Nested(2048, 2048, 2048)}
ROUGH = {"method": values.Nested(1024, 1024, 1024)}


def check(found, truth, sharp, **settings) -> None:
    assert_within(
        np.asarray(found.value),
        np.asarray(found.standard_error),
        np.asarray(truth),
        max_standard_error=sharp,
        **settings,
    )
    assert found.lower <= found.value <= found.upper
    assert found.lower <= truth <= found.upper or math.isclose(
        found.value, truth, abs_tol=1e-5
    )


# -- exact -----------------------------------------------------------------------


def test_multipath_is_exact() -> None:
    found = ig.mutual_information(links.link, "x", "y", params={"a": 1.0, "b": 1.0})
    assert found.method == "exact" and found.standard_error == 0
    check(found, 0.423649, 0.0, rounding=2e-6)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 3.0])
def test_eight_antennas_are_exact(alpha) -> None:
    found = ig.mutual_information(links.mimo, "x", "y", params={"alpha": alpha})
    check(found, truths.mimo_information(alpha, links.MATRIX), 0.0, rounding=5e-6)


def test_entropy_is_exact() -> None:
    found = ig.estimate(links.link, ig.Entropy("y"), params={"a": 2.0, "b": 1.0})
    check(found, 0.5 * math.log(2 * math.pi * math.e * 12), 0.0, rounding=2e-6)


def test_conditional_information_is_exact() -> None:
    """I(x; y | v1) in the link: given v1 only the direct path is left."""
    # x given v1 has variance 1 / (1 + a^2); y's own noise has variance 2.
    found = ig.mutual_information(
        links.link, "x", "y", given="v1", params={"a": 1.0, "b": 1.0}
    )
    check(found, 0.5 * math.log(1 + 0.5 / 2), 0.0, rounding=2e-6)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_condition_without_noise_is_held_at_its_value(fixed) -> None:
    """I(x; y | g) = log(1 + g^2) / 2 with a gain g that no noise moves."""

    def model():
        gain = numpyro.param("gain", 2.0)
        g = numpyro.deterministic("g", 2.0 * jnp.ones(()) if fixed else gain)
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(g * x + 0.0 * gain, 1))

    found = ig.mutual_information(model, "x", "y", given="g")
    check(found, 0.5 * math.log(5), 0.0, rounding=2e-6)
    if not fixed:
        slope = ig.gradient(model, ig.MI("x", "y", given="g")).value["gain"]
        assert float(slope) == pytest.approx(0.4, abs=1e-5)


def test_common_cause_is_exact() -> None:
    found = ig.mutual_information(links.common_cause, "x", "y", params={"e": 2.0})
    check(found, 0.5 * math.log(55 / 6), 0.0, rounding=2e-6)


def test_double_precision(x64) -> None:
    found = ig.mutual_information(links.link, "x", "y", params={"a": 1.0, "b": 1.0})
    check(found, truths.multipath_information(1.0, 1.0), 0.0, rounding=1e-12)


def test_bits() -> None:
    settings = {"params": {"a": 1.0, "b": 1.0}}
    nats = ig.mutual_information(links.link, "x", "y", **settings)
    bits = ig.mutual_information(links.link, "x", "y", unit="bits", **settings)
    assert bits.value == pytest.approx(nats.value / math.log(2))
    assert "bits" in repr(bits)


# -- nested ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eta", "truth"), [(0.5, 0.263050), (1, 0.463508), (2, 0.588576), (3, 0.620317)]
)
def test_saturated_amplifier(eta, truth) -> None:
    found = ig.mutual_information(
        links.amplifier, "x", "y", params={"eta": eta}, **SMALL
    )
    assert found.method == "nested"
    assert found.warnings == ()
    check(found, truth, 0.005)


def test_nested_agrees_with_exact() -> None:
    point = {"a": 1.0, "b": 1.0}
    found = ig.mutual_information(links.link, "x", "y", params=point, **SMALL)
    check(found, 0.423649, 0.005)


def test_nested_standard_errors_cover() -> None:
    """Tails, where quasi-random points are few, are taken by control variates."""
    keys = range(12)
    found = [
        ig.estimate(
            links.amplifier, ig.MI("x", "y"), rng_key=jax.random.key(k), **SMALL
        )
        for k in keys
    ]
    off = [
        abs(e.value - truths.tanh_information(1.0)) / e.standard_error for e in found
    ]
    assert np.mean(np.array(off) < 2) >= 0.8
    assert max(off) < 4
    scatter = np.std([e.value for e in found], ddof=1)
    assert np.median([e.standard_error for e in found]) < 3 * scatter


def test_nested_in_bits_scales_its_standard_error() -> None:
    settings = {"params": {"eta": 1.0}, **SMALL}
    nats = ig.mutual_information(links.amplifier, "x", "y", **settings)
    bits = ig.mutual_information(links.amplifier, "x", "y", unit="bits", **settings)
    assert bits.value == pytest.approx(nats.value / math.log(2))
    assert bits.standard_error == pytest.approx(nats.standard_error / math.log(2))
    assert bits.in_bits() == bits


def test_four_levels() -> None:
    found = ig.mutual_information(links.pam, "symbol", "y", **SMALL)
    check(found, links.pam_information(1.0), 0.02)


def test_sixteen_points_are_twice_four_levels() -> None:
    found = ig.mutual_information(links.qam, "symbol", "y", **SMALL)
    check(found, 2 * links.pam_information(1.0), 0.03)


def test_a_discrete_condition() -> None:
    found = ig.mutual_information(
        links.switched, "x", "y", given="on", params={"a": 1.5}, **SMALL
    )
    check(found, 0.35 * math.log(1 + 1.5**2), 0.01)


def test_names_do_not_matter() -> None:
    """The output comes before the input in the alphabet."""

    def renamed():
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(z, 1))

    found = ig.mutual_information(renamed, "z", "y", **ROUGH)
    check(found, 0.5 * math.log(2), 0.01)


def test_information_too_high_for_nested_averages_warns() -> None:
    found = ig.mutual_information(links.mimo, "x", "y", params={"alpha": 5.0}, **SMALL)
    assert "effective sample size" in found.warnings[0]
    assert "max_components" in found.warnings[0]
    assert "warning:" in repr(found)


def test_value_of_an_expectation() -> None:
    """E[v1^2] = a^2 + 1, alone and as a price."""
    cost = ig.Expectation(lambda v: v["v1"] ** 2)
    point = {"a": 2.0, "b": 1.0}
    alone = ig.estimate(links.link, cost, params=point, num_samples=4096)
    check(alone, 5.0, 0.05)
    priced = ig.estimate(links.link, ig.MI("x", "y") - 0.1 * cost, params=point)
    check(priced, truths.multipath_information(2.0, 1.0) - 0.5, 0.01)


def test_negative_of_an_estimate_swaps_its_bounds() -> None:
    found = ig.mutual_information(links.amplifier, "x", "y", **SMALL)
    minus = -found
    assert minus.value == -found.value
    assert (minus.lower, minus.upper) == (-found.upper, -found.lower)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "nonsense"}, "method"),
        ({"unit": "bans"}, "unit"),
        ({"method": "exact"}, "linear-Gaussian"),
        ({"num_samples": 1000}, "num_samples"),
    ],
)
def test_settings_out_of_range(settings, words) -> None:
    with pytest.raises(ig.errors.ArgumentError, match=words):
        ig.mutual_information(links.amplifier, "x", "y", **settings)


def test_nested_has_no_value_for_a_bare_deterministic_site() -> None:
    with pytest.raises(ig.errors.DensityError, match="'y' is deterministic"):
        ig.mutual_information(links.unobserved, "x", "y", **SMALL)
