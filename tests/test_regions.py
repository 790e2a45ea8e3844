# SPDX-License-Identifier: Apache-2.0
"""Rate regions of Gaussian channels, against closed forms."""

import itertools
from pathlib import Path
import runpy

from links import capacity, two_users
from models import affine
import numpy as np
import pytest

import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist

from helpers import assert_within, quiet
import numpyro_infograd as ig
from numpyro_infograd import MI, _regions
from numpyro_infograd.errors import ArgumentError, DegenerateError
from numpyro_infograd.values.base import report

POWER = 10.0
SINGLE = {"r1": MI("x1", "y", given="x2"), "r2": MI("x2", "y", given="x1")}
TRUE = SINGLE | {("r1", "r2"): MI(("x1", "x2"), "y")}


def sum_power(params):
    return optax.projections.projection_l2_ball(params, jnp.sqrt(POWER))


def own_power(params):
    return {n: jnp.clip(p, -jnp.sqrt(5.0), jnp.sqrt(5.0)) for n, p in params.items()}


@pytest.mark.slow
def test_sum_power() -> None:
    """The triangle r1 + r2 <= log(1 + P) / 2."""
    region = quiet.rate_region(two_users, TRUE, num_weights=5, projection=sum_power)
    assert region.points.shape == (5, 2)
    np.testing.assert_allclose(region.points.sum(axis=1), capacity(POWER), rtol=1e-3)
    half = 0.5 * capacity(POWER)
    inside = region.contains([[0.99 * half] * 2, [1.01 * half] * 2])
    np.testing.assert_array_equal(inside, [True, False])
    assert not region.contains([-0.1, 0.5])
    assert region.points.max() <= capacity(POWER) * 1.001
    np.testing.assert_allclose(region.points[0], [capacity(POWER), 0], atol=1e-3)


def test_facets_that_keep_changing_are_told(monkeypatch) -> None:
    multipliers = itertools.cycle([{("r1",): 1.0}, {("r2",): 1.0}])
    monkeypatch.setattr(_regions, "multipliers_of", lambda *_: next(multipliers))
    region = quiet.rate_region(
        two_users, SINGLE, projection=sum_power, num_weights=2, num_steps=2
    )
    assert all("has not settled" in status for status in region.statuses)
    assert any("has not settled" in warning for warning in region.warnings)


@pytest.mark.slow
def test_individual_powers() -> None:
    """The pentagon."""
    region = quiet.rate_region(two_users, TRUE, num_weights=3, projection=own_power)
    one, both = capacity(5.0), capacity(10.0)
    wanted = {(0, 0), (one, 0), (one, both - one), (both - one, one), (0, one)}
    found = region.vertices
    for corner in wanted:
        assert np.abs(found - corner).sum(axis=1).min() < 2e-3
    assert all(min(np.hypot(*(v - np.array(w))) for w in wanted) < 2e-3 for v in found)


@pytest.mark.slow
def test_facets_of_single_rates_alone() -> None:
    """Eqs. 73-74: w1 / (1 + p1) = w2 / (1 + p2), clipped. No region of this channel."""
    region = quiet.rate_region(two_users, SINGLE, num_weights=5, projection=sum_power)
    for weight, point in zip(region.weights, region.points, strict=True):
        p1 = np.clip(weight[0] * (POWER + 2) - 1, 0, POWER)
        np.testing.assert_allclose(
            point, capacity(np.array([p1, POWER - p1])), atol=0.01
        )
    assert region.points[2].sum() == pytest.approx(1.7918, abs=0.002)
    assert "no bound of r1 + r2" in region.warnings[0]
    assert "add {('r1', 'r2'): ig.MI(('x1', 'x2'), 'y')}" in region.warnings[0]


def test_too_few_steps_are_told() -> None:
    region = quiet.rate_region(
        two_users, TRUE, projection=own_power, num_weights=2, num_steps=10
    )
    assert sum("ended after 10 steps, too few" in w for w in region.warnings) == 2


def test_sums_without_a_bound_are_told() -> None:
    """Of users whose informations condition on one another, and only of these."""
    others = {"x0": ("x1", "x2"), "x1": ("x0", "x2"), "x2": ("x0", "x1")}
    three = {("r" + x[1],): MI(x, "y", given=("h", *z)) for x, z in others.items()}
    pairs = {("r0", "r1"): three["r0",], ("r2", "r0"): three["r0",]}
    (warning,) = _regions._missing_sums(three | pairs)
    assert "no bound of r1 + r2 or r0 + r1 + r2." in warning
    assert "add {('r1', 'r2'): ig.MI(('x1', 'x2'), 'y', given=('h', 'x0'))}" in warning
    directed = {
        ("r1",): ig.DirectedInformation("x1", "y", given="x2"),
        ("r2",): ig.DirectedInformation("x2", "y", given="x1"),
    }
    assert "the information of all their inputs" in _regions._missing_sums(directed)[0]
    for right in (
        {("r1",): MI("v", "y1", given="u"), ("r2",): MI("u", "y2")},  # superposition
        {("r1",): MI("x1", "y"), ("r2",): MI("x2", "y", given="x1")},  # a corner
        {("r1",): MI("x1", "y1"), ("r2",): MI("x2", "y2")},  # interference
    ):
        assert not _regions._missing_sums(right)


@pytest.mark.slow
def test_three_rates() -> None:
    def model():
        gains = numpyro.param("gains", jnp.ones(3))
        x = [numpyro.sample(f"x{i}", dist.Normal(0, 1)) for i in range(3)]
        mean = sum(g * v for g, v in zip(gains, x, strict=True))
        numpyro.sample("y", dist.Normal(mean, 1))

    bounds = {}
    for size in (1, 2, 3):
        for chosen in itertools.combinations(range(3), size):
            rest = tuple(f"x{i}" for i in range(3) if i not in chosen)
            bound = MI(tuple(f"x{i}" for i in chosen), "y", given=rest)
            bounds[tuple(f"r{i}" for i in chosen)] = bound
    region = quiet.rate_region(model, bounds, num_weights=2, projection=sum_power)
    assert region.points.shape == (3, 3)
    third = capacity(POWER) / 3
    assert region.contains([0.99 * third] * 3)
    assert not region.contains([1.01 * third] * 3)


BOX = {("a",): report(1.0, 0.1, "nested"), ("b",): report(2.0, 0.2, "nested")}


def test_corners_of_a_box_and_of_a_missing_facet() -> None:
    corners, errors = _regions.corners_of(("a", "b"), BOX)
    assert corners.tolist() == [[0, 0], [0, 2], [1, 0], [1, 2]]
    np.testing.assert_allclose(errors, [0, 0.2, 0.1, 0.2])


def test_a_rate_that_is_a_difference_has_both_errors() -> None:
    """At the corner (1, 1.5): 2.5 +- 0.3 less 1 +- 0.1."""
    pentagon = BOX | {("a", "b"): report(2.5, 0.3, "nested")}
    corners, errors = _regions.corners_of(("a", "b"), pentagon)
    at = corners.tolist().index([1.0, 1.5])
    assert errors[at] == pytest.approx(0.4)


def test_a_direction_without_an_end_is_left_out(monkeypatch) -> None:
    """A bound that has no value where one ascent ended must not cost the others."""
    real, calls = _regions._values, []

    def values(*args):
        calls.append(args)
        if len(calls) == 3:  # the start, the first direction, the second
            raise DegenerateError("no noise is left.")
        return real(*args)

    monkeypatch.setattr(_regions, "_values", values)
    with pytest.warns(UserWarning, match=r"direction \[0.5, 0.5\] is left out.*noise"):
        region = quiet.rate_region(
            two_users, TRUE, num_weights=3, num_steps=20, projection=sum_power
        )
    np.testing.assert_array_equal(region.weights, [[1, 0], [0, 1]])
    assert len(region.params) == len(region.points) == 2


def test_facets_that_are_no_polymatroid_are_priced_by_their_minimum() -> None:
    """I1 = 2, I2 = 1, I12 = 1.5: the sum alone prices (0.6, 0.4) at 0.9, not at 1."""
    rates, weights = ("a", "b"), np.array([0.6, 0.4])
    single = {("a",): report(2.0, 0.0, "exact"), ("b",): report(1.0, 0.0, "exact")}
    for both, wanted in (
        (1.5, {("a", "b"): 0.6}),
        (2.5, {("a",): 0.2, ("a", "b"): 0.4}),
    ):
        values = single | {rates: report(both, 0.0, "exact")}
        multipliers = _regions.multipliers_of(weights, rates, values)
        assert multipliers == pytest.approx(wanted)


@pytest.mark.slow
def test_fading_and_amplifiers_against_quadrature(tmp_path) -> None:
    """The regions of examples/rate_regions.py: values at the ends, and the ends."""
    script = Path(__file__).parents[1] / "examples" / "rate_regions.py"
    copy = tmp_path / script.name  # the figure is saved beside the script
    copy.write_text(script.read_text())
    for rows in runpy.run_path(str(copy))["found"]:
        for value, error, there, best in rows:
            assert_within(value, error, there, max_standard_error=0.01, num_sigmas=3.0)
            assert there > best - 0.003
            assert value < best + 3 * error + 1e-5


@pytest.mark.slow
def test_an_end_outside_a_constraint_is_no_point() -> None:
    """The noise alone has a power of 1, so no gain meets a bound of 0.5."""
    budget = ig.Expectation(lambda v: v["y"] ** 2) <= 0.5
    settings = {"num_weights": 2, "num_steps": 10, "init_params": {"a": 3.0}}
    with (
        pytest.warns(UserWarning, match="a constraint is not met"),
        pytest.raises(ArgumentError, match="no direction gave a point"),
    ):
        rates = {"r": MI("x1", "y")}
        quiet.rate_region(two_users, rates, subject_to=budget, **settings)


def test_a_region_without_a_limit_says_so() -> None:
    region = quiet.rate_region(affine, {"r": MI("x", "y")}, num_weights=2)
    assert "is a constraint or a projection missing" in repr(region)
    assert region.statuses[0].startswith("stopped")
    assert region.vertices.shape == (2, 1)
    assert region.contains({"r": 0.1})
    with pytest.raises(ArgumentError, match="must name each of r,"):
        region.contains({"r": 0.1, "s": 9.0})
