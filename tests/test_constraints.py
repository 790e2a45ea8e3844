# SPDX-License-Identifier: Apache-2.0
"""Constraints on expectations, against closed forms."""

from typing import Any

import links
from links import fill_water, normal_grid
from methods import rest_slow
from models import with_gain
import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq, minimize_scalar

import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from helpers import assert_within, quiet
import numpyro_infograd as ig
from numpyro_infograd import MI, Expectation
from numpyro_infograd._optimize import finish
from numpyro_infograd._optimize.budgets import multipliers_from
from numpyro_infograd.errors import ConstraintError, ModelError
from numpyro_infograd.scores import Mixture
import truths

XY = MI("x", "y")


def power(v):
    return v["s"] ** 2


def distortion(v):
    return jnp.sum((v["x"] - v["y"]) ** 2)


def sending(bend=lambda v: v, noise=1.0, start=0.5, size=None):
    """A signal s = bend(a x) in noise, of a power that is to be kept."""

    def law(m):
        return dist.Normal(numpyro.deterministic("s", bend(m)), noise)

    return with_gain(law, "a", start, size)


sender = sending()


def ascend(bound, **settings):
    """The most information of the sender for a power."""
    budget = [Expectation(power) <= bound]
    return quiet.maximize(sender, XY, subject_to=budget, **settings)


def forward_channel(variances):
    """The forward channel of rate-distortion theory, with free gains and noises."""

    def model():
        size = len(variances)
        a = numpyro.param("a", 0.5 * jnp.ones(size))
        b = numpyro.param("b", 0.7 * jnp.ones(size), constraint=constraints.positive)
        x = numpyro.sample("x", dist.Normal(0, jnp.sqrt(variances)).to_event(1))
        numpyro.sample("y", dist.Normal(a * x, b).to_event(1))

    return model


def assert_on_the_bounds(result, truth):
    """No constraint is exceeded by two errors, and the value is the best there is."""
    last_digits = 4 * float(jnp.finfo(jnp.float32).eps)
    for report in result.constraints:
        rounding = last_digits * abs(report.bound)
        assert report.violation < 2 * report.standard_error + rounding
        assert report.is_met
    assert result.estimate.value == pytest.approx(truth, rel=2e-3)


@pytest.mark.slow
def test_an_equality_is_met_after_few_steps() -> None:
    """Two opposite bounds have no room for the margins of both."""
    both = [Expectation(power) <= 3, Expectation(power) >= 3]
    result = quiet.maximize(sender, XY, subject_to=both, num_steps=100)
    assert_on_the_bounds(result, 0.5 * np.log(4))
    assert float(result.params["a"]) == pytest.approx(3**0.5, rel=1e-4)
    assert "nats" not in " ".join(result.warnings)  # of the Lagrangian


def check_multiplier(report: Any, truth: float, sharp: float) -> None:
    found = report.multiplier, report.multiplier_error
    assert_within(*found, truth, max_standard_error=sharp)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_within(*found, truth + 5 * sharp, max_standard_error=sharp)


def test_multipliers_make_the_gradient_a_sum_of_normals() -> None:
    normals = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    exact = np.array([0.5, 0.25]) @ normals
    off = np.array([2.0, 0.0, -1.0])  # along both bounds
    found, error = multipliers_from(normals, np.stack([exact + off, exact - off]))
    np.testing.assert_allclose(found, [0.5, 0.25])
    np.testing.assert_allclose(error, 0.0, atol=1e-12)
    noisy = exact + np.random.default_rng(2).normal(size=(400, 3))
    found, error = multipliers_from(normals, noisy)
    ratio = error / [0.05 / 5**0.5, 0.05]
    assert np.all((ratio > 0.9) & (ratio < 1.1))
    assert_within(found, error, np.array([0.5, 0.25]), max_standard_error=0.06)
    found, error = multipliers_from(normals, np.stack([exact + off / 5] * 2))
    np.testing.assert_allclose(error, np.linalg.norm(off / 5) / np.array([5**0.5, 1]))
    _, error = multipliers_from(normals, exact[None])
    assert np.all(np.isinf(error))
    assert np.all(np.isnan(multipliers_from(normals, np.full((2, 3), np.nan))))


def photons() -> None:
    """On-off keying of a rate, over a dark rate of 0.1."""
    on = numpyro.param("on", 0.3, constraint=constraints.unit_interval)
    peak = numpyro.param("peak", 5.0, constraint=constraints.positive)
    b = numpyro.sample("b", dist.Bernoulli(on))
    numpyro.sample("n", dist.Poisson(0.1 + peak * b))


def photon_capacity(mean: float) -> float:
    """The most information of `photons` for a mean number."""
    n = np.arange(100)

    def loss(on: float) -> float:
        law = stats.poisson.pmf(n, [[0.1], [0.1 + (mean - 0.1) / on]])
        return -links.table_information(law, np.array([1 - on, on]))

    return -minimize_scalar(loss, bounds=(0.02, 0.9), method="bounded").fun


@pytest.mark.slow
def test_the_multiplier_of_a_noisy_budget() -> None:
    """The excess of a step and its gradient come from the same few counts."""
    mean = Expectation(lambda v: 1.0 * v["n"])
    (report,) = quiet.maximize(photons, MI("b", "n"), subject_to=mean <= 1).constraints
    check_multiplier(report, links.slope(photon_capacity, 1.0, 0.02), 0.12)


@rest_slow("scores", ["exact", Mixture(num_components=128)], ids=["exact", "mixture"])
def test_average_power(scores) -> None:
    """log(1 + P) / 2, and its derivative as the multiplier."""
    result = ascend(4.0, scores=scores)
    (report,) = result.constraints
    assert_on_the_bounds(result, 0.5 * np.log(5))
    check_multiplier(report, 0.1, 0.005)
    assert "Expectation(power) <= 4" in repr(result)
    assert result.history["excess"].shape == (len(result.history["gain"]), 1)
    if scores == "exact":  # known at every step, whatever the budget's means are
        power_then = np.exp(2 * result.history["objective"]) - 1
        gain = result.history["params"]["a"]
        np.testing.assert_allclose(power_then, gain**2, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.1, 0.7])
def test_rate_distortion(budget) -> None:
    model = forward_channel(np.ones(1))
    result = quiet.minimize(model, XY, subject_to=Expectation(distortion) <= budget)
    reached = result.constraints[0].value
    assert reached == pytest.approx(budget, rel=0.01)
    truth = 0.5 * np.log(1 / reached)
    assert result.estimate.value == pytest.approx(truth, rel=0.02)


@pytest.mark.slow
def test_reverse_water_filling_drops_a_component() -> None:
    variances = np.array([3.0, 1.0, 0.2])
    budget = Expectation(distortion) <= 1.5
    result = quiet.minimize(forward_channel(variances), XY, subject_to=budget)
    reached = result.constraints[0].value
    assert reached == pytest.approx(1.5, rel=0.01)
    level = brentq(lambda v: np.minimum(v, variances).sum() - reached, 0.0, 3.0)
    truth = 0.5 * np.log(np.maximum(variances / level, 1.0)).sum()
    assert result.estimate.value == pytest.approx(truth, rel=0.02)
    assert abs(result.params["a"][2]) < 0.05


def test_a_lower_bound_and_one_that_does_not_bind() -> None:
    """Least power for E[s^2] >= 2; an upper bound of 9 costs nothing."""
    result = quiet.minimize(
        sender, XY, subject_to=[Expectation(power) >= 2.0, 9.0 >= Expectation(power)]
    )
    low, high = result.constraints
    assert low.value == pytest.approx(2.0, rel=0.01)
    assert high.is_met
    assert high.multiplier == 0.0
    assert result.estimate.value == pytest.approx(0.5 * np.log(3), rel=0.01)


def test_a_constraint_out_of_reach_is_named_and_nothing_is_lost() -> None:
    with pytest.raises(ConstraintError, match=r"power\) <= -1") as caught:
        ascend(-1.0)
    assert set(caught.value.result.params) == {"a"}
    short = ascend(-1.0, num_steps=20)
    assert "not met" in " ".join(short.warnings)


def test_what_a_minimum_out_of_reach_keeps_has_its_own_sign() -> None:
    one = Expectation(lambda v: 1.0 + 0.0 * v["s"])
    settings = {"projection": lambda p: {"a": jnp.clip(p["a"], 1.0, 2.0)}}
    with pytest.raises(ConstraintError) as caught:
        quiet.minimize(sender, XY, subject_to=[one >= 2.0], **settings)
    result = caught.value.result
    assert result.estimate.value == pytest.approx(0.5 * np.log(2), abs=1e-4)


@pytest.mark.parametrize(("bound", "start"), [(1.0, 5.0), (4.0, 0.01)])
def test_a_start_far_from_the_edge_ends_on_it(bound, start) -> None:
    result = ascend(bound, init_params={"a": start})
    assert result.constraints[0].is_met
    assert result.estimate.value == pytest.approx(0.5 * np.log1p(bound), rel=0.01)
    assert "converged" in result.status


@pytest.mark.slow
def test_a_constant_on_both_sides_changes_nothing() -> None:
    """No bound is tighter or looser for a thousand that is added to both."""
    shifted = Expectation(lambda v: v["s"] ** 2 + 1000.0)
    result = quiet.maximize(sender, XY, subject_to=[shifted <= 1004.0])
    assert abs(result.params["a"]) == pytest.approx(2.0, abs=0.02)
    assert result.constraints[0].tolerance < 0.1


@pytest.mark.slow
def test_a_return_into_the_constraint_is_no_divergence() -> None:
    """From a power of 9 the information must fall, whoever's optimizer it is."""
    adam = optax.adam(optax.cosine_decay_schedule(0.05, 800))
    result = ascend(1.0, init_params={"a": 3.0}, optimizer=adam, num_steps=800)
    assert result.constraints[0].is_met
    # An Adam that is not started anew remembers the steep way back for a while.
    share = result.estimate.value / (0.5 * np.log(2))
    assert 0.9 < share < 1.01
    assert "diverged" not in result.status


NOISES = np.array([1.0, 1.5, 2.5])


# Three channels of different noise.
carriers = sending(noise=jnp.sqrt(NOISES), start=0.5 * jnp.ones(3), size=3)
limiter = sending(jnp.tanh, 0.5, 0.3)


def limited(power):
    """Nats of the limiter for an output power, by its gain on a dense grid."""
    x, weights = normal_grid(9, 6001)
    gain = brentq(lambda v: weights @ np.tanh(v * x) ** 2 - power, 0.0, 50.0)
    return truths.tanh_information(gain, 0.25)


def two_users():
    users = []
    for name, gain in (("1", 0.5), ("2", 1.0)):
        x = numpyro.sample("x" + name, dist.Normal(0, 1))
        gain = numpyro.param("a" + name, gain)
        users.append(numpyro.deterministic("s" + name, gain * x))
    numpyro.sample("y", dist.Normal(users[0] + users[1], 1))


SUM = MI(("x1", "x2"), "y")
S2, TOTAL = Expectation(power), Expectation(lambda v: jnp.sum(v["s"] ** 2))
THIRD = Expectation(lambda v: v["s"][2] ** 2)
ONE, TWO, BOTH = (
    Expectation(lambda v, users=users: sum(v[user] ** 2 for user in users))
    for users in (["s1"], ["s2"], ["s1", "s2"])
)
FILLED = fill_water(1 / NOISES, 6)
PRICED = XY - 0.1 * S2
PROBLEMS = {  # maximised or minimised, model, objective, constraints, optimum
    "scalar": (1, sender, XY, [S2 <= 10], 0.5 * np.log(11)),
    "magnitude": (
        1, sender, XY, [Expectation(lambda v: jnp.abs(v["s"])) <= 1],
        0.5 * np.log1p(np.pi / 2)),
    "water": (1, carriers, XY, [TOTAL <= 6], FILLED),
    "water and a slack bound": (1, carriers, XY, [TOTAL <= 6, THIRD <= 5], FILLED),
    "limiter": (1, limiter, XY, [S2 <= 0.5], limited(0.5)),
    "sum power": (1, two_users, SUM, [BOTH <= 10], 0.5 * np.log(11)),
    "two bounds": (1, two_users, SUM, [ONE <= 3, TWO <= 5], 0.5 * np.log(9)),
    "least": (-1, sender, XY, [S2 >= 2], 0.5 * np.log(3)),
    "range": (1, sender, XY - 0.5 * S2, [S2 >= 1, S2 <= 4], 0.5 * np.log(2) - 0.5),
    "equality": (1, sender, XY, [S2 <= 3, S2 >= 3], 0.5 * np.log(4)),
    "equality of two": (1, carriers, XY, [TOTAL <= 6, TOTAL >= 6], FILLED),
    "no room": (1, sender, XY, [S2 <= 3, S2 >= 2.99999], 0.5 * np.log(4)),
    "no bound holds": (1, sender, PRICED, [S2 <= 20], 0.5 * np.log(5) - 0.4),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_an_ascent_ends_inside_its_bounds(name) -> None:
    sign, model, objective, bounds, truth = PROBLEMS[name]
    go = quiet.maximize if sign > 0 else quiet.minimize
    assert_on_the_bounds(go(model, objective, subject_to=bounds), truth)


@pytest.mark.slow
def test_a_projection_and_a_bound() -> None:
    """One user is held at a power of 1, so the other gets the rest."""
    weak = lambda p: p | {"a1": jnp.clip(p["a1"], -1, 1)}  # noqa: E731
    settings = {"subject_to": [BOTH <= 10], "projection": weak}
    result = quiet.maximize(two_users, SUM, **settings)
    assert_on_the_bounds(result, 0.5 * np.log(11))
    assert abs(result.params["a1"]) <= 1.0


def test_without_the_correction_an_end_is_beside_its_bound(monkeypatch) -> None:
    monkeypatch.setattr(finish, "land", lambda ascent, params, *rest: params)
    with pytest.raises(AssertionError):
        assert_on_the_bounds(
            quiet.minimize(sender, XY, subject_to=[S2 >= 2, S2 <= 9], num_steps=200),
            0.5 * np.log(3),
        )


def test_a_constraint_on_what_is_no_number_is_refused() -> None:
    def gain(v):
        return jnp.log(v["s"])  # of both signs

    with pytest.raises(ModelError, match=r"Expectation\(gain\) is not finite"):
        ig.maximize(sender, XY, subject_to=[Expectation(gain) <= 1.0])
