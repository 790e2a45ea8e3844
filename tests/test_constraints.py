# SPDX-License-Identifier: Apache-2.0
"""Constraints on expectations, against closed forms."""

import numpy as np
import pytest

import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from helpers import quiet
import numpyro_infograd as ig
from numpyro_infograd import MI, Expectation
from numpyro_infograd.errors import ConstraintError, ModelError
from numpyro_infograd.scores import Mixture

XY = MI("x", "y")


def power(v):
    return v["s"] ** 2


def always_one(v):
    return 1.0 + 0.0 * v["s"]


def distortion(v):
    return jnp.sum((v["x"] - v["y"]) ** 2)


def sender():
    a = numpyro.param("a", 0.5)
    x = numpyro.sample("x", dist.Normal(0, 1))
    s = numpyro.deterministic("s", a * x)
    numpyro.sample("y", dist.Normal(s, 1))


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


def reverse_water_filling(variances, distortion):
    low, high = 0.0, max(variances)
    for _ in range(60):
        level = 0.5 * (low + high)
        if np.minimum(level, variances).sum() < distortion:
            low = level
        else:
            high = level
    return 0.5 * np.log(np.maximum(variances / level, 1.0)).sum()


@pytest.mark.parametrize(
    "scores", ["exact", Mixture(num_components=128)], ids=["exact", "mixture"]
)
def test_average_power(scores) -> None:
    """log(1 + P) / 2, and its derivative as the multiplier."""
    result = ascend(4.0, scores=scores)
    (report,) = result.constraints
    assert report.value == pytest.approx(4.0, rel=0.01)
    assert report.is_met
    assert result.estimate.value == pytest.approx(0.5 * np.log(5), rel=0.005)
    assert report.multiplier == pytest.approx(0.1, rel=0.05)
    assert "Expectation(power) <= 4" in repr(result)
    assert result.history["excess"].shape == (len(result.history["gain"]), 1)
    if scores == "exact":  # known at every step, whatever the budget's means are
        power_then = np.exp(2 * result.history["objective"]) - 1
        np.testing.assert_allclose(
            power_then, result.history["params"]["a"] ** 2, rtol=1e-4
        )


@pytest.mark.parametrize("budget", [0.1, 0.7])
def test_rate_distortion(budget) -> None:
    model = forward_channel(np.ones(1))
    result = quiet.minimize(model, XY, subject_to=Expectation(distortion) <= budget)
    reached = result.constraints[0].value
    assert reached == pytest.approx(budget, rel=0.01)
    truth = 0.5 * np.log(1 / reached)
    assert result.estimate.value == pytest.approx(truth, rel=0.02)


def test_reverse_water_filling_drops_a_component() -> None:
    variances = np.array([3.0, 1.0, 0.2])
    result = quiet.minimize(
        forward_channel(variances), XY, subject_to=[Expectation(distortion) <= 1.5]
    )
    reached = result.constraints[0].value
    assert reached == pytest.approx(1.5, rel=0.01)
    truth = reverse_water_filling(variances, reached)
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
    with pytest.raises(ConstraintError) as caught:
        quiet.minimize(
            sender,
            XY,
            subject_to=[Expectation(always_one) >= 2.0],
            projection=lambda p: {"a": jnp.clip(p["a"], 1.0, 2.0)},
        )
    result = caught.value.result
    assert result.estimate.value == pytest.approx(0.5 * np.log(2), abs=1e-4)


@pytest.mark.parametrize(("bound", "start"), [(1.0, 5.0), (0.1, 0.5), (4.0, 0.01)])
def test_a_start_far_from_the_edge_ends_on_it(bound, start) -> None:
    result = ascend(bound, init_params={"a": start})
    assert result.constraints[0].is_met
    assert result.estimate.value == pytest.approx(0.5 * np.log1p(bound), rel=0.01)
    assert "converged" in result.status


def test_a_constant_on_both_sides_changes_nothing() -> None:
    """No bound is tighter or looser for a thousand that is added to both."""

    def shifted(v):
        return v["s"] ** 2 + 1000.0

    result = quiet.maximize(sender, XY, subject_to=[Expectation(shifted) <= 1004.0])
    assert abs(result.params["a"]) == pytest.approx(2.0, abs=0.02)
    assert result.constraints[0].tolerance < 0.1


def test_a_return_into_the_constraint_is_no_divergence() -> None:
    """From a power of 9 the information must fall, whoever's optimizer it is."""
    result = ascend(
        1.0,
        init_params={"a": 3.0},
        optimizer=optax.adam(optax.cosine_decay_schedule(0.05, 800)),
        num_steps=800,
    )
    assert result.constraints[0].is_met
    # An Adam that is not started anew remembers the steep way back for a while.
    share = result.estimate.value / (0.5 * np.log(2))
    assert 0.9 < share < 1.01
    assert "diverged" not in result.status


def test_an_expectation_that_is_no_number_is_refused() -> None:
    def gain(v):
        return jnp.log(v["s"])  # of both signs

    for call in (
        lambda: ig.estimate(sender, Expectation(gain)),
        lambda: ig.gradient(sender, Expectation(gain)),
        lambda: ig.maximize(sender, XY, subject_to=[Expectation(gain) <= 1.0]),
    ):
        with pytest.raises(ModelError, match=r"Expectation\(gain\) is not finite"):
            call()
