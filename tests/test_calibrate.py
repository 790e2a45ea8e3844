# SPDX-License-Identifier: Apache-2.0
"""Twins fitted to recorded samples, against maximum likelihood and known truths."""

import functools

import links
from methods import rest_slow
from models import channel
import numpy as np
import pytest

import jax
import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from helpers import quiet
import numpyro_infograd as ig
from numpyro_infograd._calibrate.features import make_features
from numpyro_infograd._calibrate.fit import Settings, drifts
from numpyro_infograd._calibrate.inference import two_sample
from numpyro_infograd._calibrate.matched import MatchedFit as Fit, apart
from numpyro_infograd._calibrate.matching import fisher_gradient
from numpyro_infograd._noise import NoiseSource
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.scores.network import perceptron

NUMBER = 20_000
FITTED = 16_000  # the rest is held out


def amplified(eta: float, number: int = NUMBER, seed: int = 0) -> np.ndarray:
    """Recordings of `links.amplifier`."""
    rng = np.random.default_rng(seed)
    return np.tanh(eta * rng.normal(size=number)) + 0.5 * rng.normal(size=number)


def amplifier_bound(eta: float, number: int) -> float:
    """The Cramer-Rao bound of eta's standard error from the output alone, by grids."""
    x = np.linspace(-7, 7, 2001)
    prior = np.exp(-(x**2) / 2)
    y, step = np.linspace(-4, 4, 801), 1e-3

    def log_density(eta: float) -> np.ndarray:
        terms = prior * np.exp(-((y[:, None] - np.tanh(eta * x)) ** 2) / 0.5)
        return np.log(terms.sum(axis=1))

    weights = np.exp(log_density(eta))
    score = (log_density(eta + step) - log_density(eta - step)) / (2 * step)
    return 1 / np.sqrt(number * np.sum(weights / weights.sum() * score**2))


def quick(model, y, divergence="kl", **settings):
    """Fitted to recordings of y, without a bar."""
    observed = y if isinstance(y, dict) else {"y": y}
    return quiet.calibrate(model, observed, divergence=divergence, **settings)


def near(twin, name, truth, sigmas=3.0) -> float:
    """The standard error of a parameter, which is near the truth."""
    error = float(twin.standard_error[name])
    assert abs(float(twin.params[name]) - truth) < sigmas * error
    return error


def fit_of(model, y, settings, params=None) -> Fit:
    """The inside of a calibration."""
    sm = ig.structural_model(model)
    density, at = sm.density(("y",)), params or sm.params
    return Fit(sm, density, at, {"y": y}, settings, jax.random.key(0))


def normal(**starts):
    """Of mean m and deviation s, as far as these are parameters."""

    def model() -> None:
        m = numpyro.param("m", starts["m"]) if "m" in starts else 0
        s = 1
        if "s" in starts:
            s = numpyro.param("s", starts["s"], constraint=constraints.positive)
        numpyro.sample("y", dist.Normal(m, s))

    return model


def modes() -> None:
    """Two modes at -2 and 2; w is the weight of the upper one."""
    u = numpyro.sample("u", dist.Uniform(0, 1))
    w = numpyro.param("w", 0.4)
    numpyro.sample("y", dist.Normal(2 * jnp.tanh((w - u) / 0.04), 0.5))


def two_modes(weight: float) -> np.ndarray:
    rng = np.random.default_rng(2)
    y = 2 * np.tanh((weight - rng.uniform(size=NUMBER)) / 0.04)
    return y + 0.5 * rng.normal(size=NUMBER)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["kl", "fisher"])
def test_saturated_amplifier(divergence: str) -> None:
    """Within 3 standard errors, and these near the Cramer-Rao bound."""
    twin = quick(links.amplifier, amplified(2.0), divergence=divergence)
    bound = amplifier_bound(2.0, FITTED)
    assert 0.75 * bound < near(twin, "eta", 2.0) < 1.5 * bound
    assert "converged" in twin.status
    assert twin.before.lower > 0.01
    assert abs(twin.after.value) < 4 * twin.after.standard_error < 0.01
    assert twin.test_before.pvalue < 0.05
    assert twin.test_after.pvalue > 0.01
    assert not twin.undetermined and not twin.warnings
    assert twin.draws["eta"].shape == (200,)
    assert "eta = 2.0" in repr(twin)
    if divergence == "fisher":
        return
    # Draws, history, recordings and draws of the twin, each in its group.
    data = twin.to_inference_data()
    draws = np.asarray(data["posterior"]["eta"])
    np.testing.assert_array_equal(draws[0], twin.draws["eta"])
    assert data["descent"]["eta"].shape == (1, 150)
    assert data["descent_stats"]["divergence"].shape == (1, 150)
    np.testing.assert_array_equal(data["observed_data"]["y"], twin.recorded["y"])
    made = np.asarray(data["posterior_predictive"]["y"])
    assert made.shape == (1, 20, FITTED)
    np.testing.assert_array_equal(made[0], twin.simulated["y"])
    assert len(np.unique(np.std(made[0], axis=1))) == 20


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["kl", "fisher"])
def test_weight_of_separated_modes(divergence: str) -> None:
    twin = quick(modes, two_modes(0.7), divergence=divergence)
    assert abs(float(twin.params["w"]) - 0.7) < 0.03
    assert twin.test_after.pvalue > 0.01
    if divergence == "kl":
        assert abs(float(twin.params["w"]) - 0.7) < 3 * twin.standard_error["w"] < 0.04


@pytest.mark.slow
def test_what_recordings_leave_free() -> None:
    """The output of `links.link` shows its variance alone: one number, not two."""
    rng = np.random.default_rng(3)
    a, b = 1.5, 0.8
    x, n1, n2, n3 = rng.normal(size=(4, NUMBER))
    recorded = b * (a * x + n1) + x + n2 + n3
    twin = quick(links.link, recorded, init_params={"a": 1.0, "b": 0.3})
    a, b = float(twin.params["a"]), float(twin.params["b"])
    variance = (1 + a * b) ** 2 + b**2 + 2
    error = np.sqrt(2 / NUMBER) * np.var(recorded)
    assert abs(variance - np.var(recorded)) < 4 * error
    assert len(twin.undetermined) == 1
    assert np.isinf(twin.standard_error["a"]) and np.isinf(twin.standard_error["b"])
    assert any("do not determine" in warning for warning in twin.warnings)
    along = twin.undetermined[0]
    change = 2 * (1 + a * b) * (b * along["a"] + a * along["b"]) + 2 * b * along["b"]
    length = np.hypot(along["a"], along["b"])
    assert abs(change) < 0.05 * variance * length


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_a_parameter_that_is_zero_is_known(start: float) -> None:
    """Its size is that of its start, not that of its value."""
    recorded = np.random.default_rng(15).normal(size=4000)
    twin = quick(normal(m=start), recorded, num_steps=60)
    assert 0.85 / 3200**0.5 < near(twin, "m", 0.0) < 1.4 / 3200**0.5
    assert "converged" in twin.status and not twin.undetermined


@pytest.mark.slow
def test_what_is_free_in_unequal_units() -> None:
    """Two factors of a product: neither is known, however unlike they are."""

    def law(x):
        gain = numpyro.param("large", 80.0) * numpyro.param("small", 1.0) / 100
        return dist.Normal(jnp.tanh(gain * x), 0.5)

    twin = quick(channel(law), amplified(2.0))
    assert np.isinf(twin.standard_error["large"])
    assert np.isinf(twin.standard_error["small"])
    product = float(twin.params["large"] * twin.params["small"]) / 100
    assert product == pytest.approx(2.0, abs=0.12)


@pytest.mark.slow
def test_parameters_of_unlike_units() -> None:
    def model() -> None:
        x = numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(numpyro.param("gain", 1.0) * x[0], 1))
        numpyro.deterministic("z", numpyro.param("offset", 900.0) + 100 * x[1])

    x = np.random.default_rng(14).normal(size=(NUMBER, 3))
    observed = {"y": 2 * x[:, 0] + x[:, 2], "z": 1000 + 100 * x[:, 1]}
    twin = quick(model, observed)
    for name, truth, most in (("gain", 2.0, 0.04), ("offset", 1000.0, 1.5)):
        assert near(twin, name, truth) < most


@pytest.mark.slow
def test_a_projection_with_an_edge() -> None:
    """A gain of 2 that may not exceed 1.5: no error, and it says so."""
    clip = functools.partial(jax.tree.map, lambda value: jnp.clip(value, 0.0, 1.5))
    twin = quick(links.amplifier, amplified(2.0), projection=clip)
    assert float(twin.params["eta"]) == 1.5
    assert np.isnan(twin.standard_error["eta"])
    assert "lets no parameter move" in twin.status
    assert any("at an edge" in warning for warning in twin.warnings)


@pytest.mark.slow
def test_more_numbers_than_have_errors() -> None:
    def law(x):
        weights = numpyro.param("weights", 0.1 * jnp.ones(70))
        return dist.Normal(jnp.tanh(jnp.sum(weights) / 7 * x), 0.5)

    twin = quick(channel(law), amplified(2.0), num_steps=60)
    assert float(jnp.sum(twin.params["weights"])) / 7 == pytest.approx(2.0, abs=0.15)
    assert np.all(np.isnan(twin.standard_error["weights"])) and not twin.draws
    assert any("more than 64" in warning for warning in twin.warnings)
    assert "took 60 steps" in twin.status
    assert "posterior" not in list(twin.to_inference_data())


@pytest.mark.slow
def test_an_interrupted_calibration_says_so(monkeypatch) -> None:
    def interrupt(self) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(Fit, "correct", interrupt)
    twin = quick(links.amplifier, amplified(2.0), num_steps=30)
    assert twin.status.startswith("interrupted")
    assert np.isnan(twin.standard_error["eta"]) and len(twin.history["finite"]) == 30


@pytest.mark.slow
def test_several_sites_and_a_projection() -> None:
    """A path of unit norm into two outputs of different sizes."""

    def model() -> None:
        h = numpyro.param("h", jnp.array([0.9, 0.3]))  # its signs say nothing
        x = numpyro.sample("x", dist.Normal(0, 3).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(h @ x, 1))
        numpyro.sample("z", dist.Normal(100 * x[0], 20))

    rng = np.random.default_rng(4)
    x = 3 * rng.normal(size=(NUMBER, 2))
    observed = {
        "z": jnp.asarray(100 * x[:, 0] + 20 * rng.normal(size=NUMBER)),
        "y": x @ np.array([0.6, 0.8]) + rng.normal(size=NUMBER),
    }
    twin = quick(model, observed, projection=optax.projections.projection_l2_sphere)
    h, error = np.asarray(twin.params["h"]), np.asarray(twin.standard_error["h"])
    assert np.linalg.norm(h) == pytest.approx(1.0, abs=1e-5)
    assert np.all(np.abs(h - [0.6, 0.8]) < 3 * error) and np.all(error < 0.02)
    spread = np.linalg.norm(np.asarray(twin.draws["h"]), axis=1)
    np.testing.assert_allclose(spread, 1.0, atol=1e-5)


@pytest.mark.slow
def test_a_positive_site_and_a_constraint() -> None:
    """Scores are taken in coordinates without bounds."""

    def model() -> None:
        scale = numpyro.param("s", 0.3, constraint=constraints.positive)
        numpyro.sample("y", dist.LogNormal(0.5, scale))

    recorded = np.exp(0.5 + 0.8 * np.random.default_rng(5).normal(size=NUMBER))
    twin = quick(model, recorded)
    bound = 0.8 / np.sqrt(2 * FITTED)
    assert 0.75 * bound < near(twin, "s", 0.8) < 1.5 * bound


@pytest.mark.slow
def test_a_twin_of_another_form_says_so() -> None:
    """A normal law cannot have two modes: what remains is reported."""
    twin = quick(normal(s=1.0), two_modes(0.5))
    assert twin.status.startswith("converged")
    assert any("differs from that of the rec" in warning for warning in twin.warnings)
    assert twin.after.lower > 0.05


@pytest.mark.slow
def test_rectified_outputs_are_seen_through_noise() -> None:
    def model() -> None:
        x = numpyro.sample("x", dist.Normal(numpyro.param("m", 0.0), 1))
        numpyro.deterministic("y", jnp.maximum(x, 0.0))

    recorded = np.maximum(0.5 + np.random.default_rng(6).normal(size=NUMBER), 0.0)
    jittered = recorded + 1e-6 * np.random.default_rng(7).normal(size=NUMBER)
    with pytest.raises(ArgumentError, match="repeat another one"):
        quick(model, recorded)
    twin = quick(model, jittered)
    assert 4 * near(twin, "m", 0.5, sigmas=4.0) < 0.1
    assert any("noise is appended" in warning for warning in twin.warnings)
    with pytest.raises(ArgumentError, match="noise_levels starts at 0"):
        quick(model, jittered, noise_levels=(0.0,))


@pytest.mark.slow
def test_order_of_recordings_does_not_matter() -> None:
    """Neither sorted rows nor a quiet start changes the coordinates."""
    sm = ig.structural_model(links.amplifier)
    density = sm.density(("y",))
    y = np.random.default_rng(12).normal(size=16000)
    drawn = {"y": jnp.asarray(y)}
    quiet = np.where(np.arange(len(y)) < 600, y / 20, y)
    for rows in (np.sort(y), quiet):
        recorded = {"y": jnp.asarray(rows)}
        features = make_features(
            density, recorded, drawn, (0.0,), perceptron((8,)), jax.random.key(0)
        )
        assert float(features.whiten[0, 0]) == pytest.approx(1 / rows.std(), rel=0.05)


@pytest.mark.usefixtures("x64")
def test_gradient_of_the_fisher_divergence_is_its_derivative() -> None:
    """The weights are an implicit function; here they are differentiated directly."""
    y = amplified(1.5, 2000)
    settings = Settings("fisher", (0.0, 0.2), (0.0,), network=perceptron((8,)))
    fit = fit_of(links.amplifier, y, settings, {"eta": jnp.asarray(1.0)})
    fit.look()
    source, key = NoiseSource.of(fit.spec, 1024), jax.random.key(1)
    match, start = fit.match, fit.unconstrained_params

    @jax.jit
    def divergence(params):
        first, second = (
            match.features.weights(match.moments(params, each, source)) - match.target
            for each in jax.random.split(key)
        )
        gram = match.law.gram
        return jnp.einsum("l,lwd,lwv,lvd->", match.shares, first, gram, second) / 2

    value, gradient = jax.jit(fisher_gradient)(match, start, key, source)
    assert float(value) == pytest.approx(float(divergence(start)), rel=1e-9)
    slope = jax.grad(divergence)(start)["eta"]
    assert float(gradient["eta"]) == pytest.approx(float(slope), rel=1e-9)
    assert abs(slope) > 0.01


@pytest.mark.slow
def test_held_out_divergence_is_that_of_the_features() -> None:
    """Against 1/2 E_p (s_p - s_q)^2 of two normal laws, and zero for equal ones."""

    def model() -> None:
        numpyro.sample("y", dist.Normal(0, numpyro.param("s", 1.0)))

    y = np.random.default_rng(8).normal(size=NUMBER).astype(np.float32)
    settings = Settings("fisher", (0.0,), (0.0,), network=perceptron((16,)))
    fit = fit_of(model, y, settings)
    for scale, truth in ((1.0, 0.0), (0.8, 0.5 * (1 / 0.64 - 1) ** 2)):
        fit.unconstrained_params = {"s": jnp.asarray(scale)}
        fit.look()
        found = fit.measure(50)
        assert abs(found.value - truth) < 4 * found.standard_error + 0.05 * truth
        assert found.standard_error < 0.02
        # What is fitted to differs from it by what these recordings happen to be.
        value, error = apart(fit.draw_weights(), fit.match)
        assert abs(value - found.value) < 4 * np.hypot(error, found.standard_error)
        assert error < 0.002


@rest_slow("divergence", ["kl", "fisher"])
def test_a_correction_that_led_away_is_taken_back_by_half(divergence) -> None:
    y = np.random.default_rng(8).normal(size=1000).astype(np.float32)
    settings = Settings(divergence, (0.0,), (0.0,), network=perceptron((16,)))
    params = {"m": jnp.asarray(0.3), "s": jnp.asarray(1e-3)}
    fit = fit_of(normal(m=0.0, s=1.0), y, settings, params)
    np.testing.assert_allclose(fit.sizes(), [0.3, 1.0], rtol=1e-6)  # s by its logarithm
    start = {"m": jnp.asarray(0.3), "s": jnp.asarray(0.0)}
    fit.unconstrained_params = start
    fit.look()
    assert np.isfinite(fit.correct())
    near = fit.unconstrained_params
    assert 0.1 < near["m"] < 0.25  # nearer, by a part of its size
    for name, wrong in (("m", 2.3), ("s", 4.0), ("s", np.nan)):
        fit.unconstrained_params = start | {name: jnp.asarray(wrong)}
        assert fit.correct() is None
        if np.isfinite(wrong):
            half = (float(start[name]) + wrong) / 2
            assert float(fit.unconstrained_params[name]) == pytest.approx(half)
    fit.unconstrained_params = near  # a right one stays
    assert np.isfinite(fit.correct())


def test_steps_that_lead_away_together_are_no_end() -> None:
    back, forth = np.array([0.4, 0.1]), np.array([-0.5, 0.1])
    assert drifts(back, 1.1 * back) and drifts(back, 2 * back)
    assert drifts(np.array([0.9]), np.array([0.3]))  # together more than one
    assert not drifts(back, forth) and not drifts(back, 0.5 * back)
    assert not drifts(np.zeros(0), np.zeros(0))


@pytest.mark.slow
def test_a_first_newton_step_that_is_short_by_chance_is_no_end() -> None:
    """Gain and offset are nearly exchangeable: the descent stops far from the end."""

    def model() -> None:
        gain = numpyro.param("gain", 1.0, constraint=constraints.positive)
        noise = numpyro.param("noise", 0.5, constraint=constraints.positive)
        x = numpyro.sample("x", dist.Gamma(2.0, 1.0))
        mean = numpyro.param("offset", 0.0) + gain * jnp.sqrt(x)
        numpyro.sample("y", dist.Normal(mean, noise))

    for seed in (3, 4, 5):
        rng = np.random.default_rng(seed)
        y = 0.3 + 1.7 * np.sqrt(rng.gamma(2, 1, 8000)) + 0.3 * rng.normal(size=8000)
        twin = quick(model, y)
        for name, truth in (("gain", 1.7), ("offset", 0.3), ("noise", 0.3)):
            assert near(twin, name, truth) < 0.1


@pytest.mark.slow
def test_corrections_of_a_twin_of_another_form_converge() -> None:
    """A normal law to two modes: as one divergence falls, another one rises."""
    rng, levels = np.random.default_rng(9), (0.0, 0.05, 0.2)
    modes = np.where(rng.uniform(size=NUMBER) < 0.7, -1.5, 1.5)
    y = modes + 0.5 * rng.normal(size=NUMBER)
    settings = Settings("kl", levels, levels, network=perceptron((16,)))
    fit = fit_of(normal(m=-1.4, s=0.6), y, settings)
    fit.look()
    lengths = [fit.correct() for _ in range(5)]
    assert None not in lengths
    assert lengths[-1] < 1.0
    assert float(fit.unconstrained_params["m"]) == pytest.approx(-1.5, abs=0.1)


def test_energy_test_knows_equal_laws() -> None:
    a, b = np.random.default_rng(13).normal(size=(2, 400, 2))
    assert two_sample(a, b).pvalue > 0.01
    assert two_sample(a, b + 0.4).pvalue < 0.01


@pytest.mark.slow
def test_parameters_on_a_simplex() -> None:
    """Their free numbers are fewer than they."""

    def model() -> None:
        p = numpyro.param("p", jnp.ones(3) / 3, constraint=constraints.simplex)
        numpyro.sample("y", dist.Normal(3 * p, 1).to_event(1))

    truth = np.array([0.2, 0.3, 0.5])
    recorded = 3 * truth + np.random.default_rng(10).normal(size=(NUMBER, 3))
    twin = quick(model, recorded)
    error = np.asarray(twin.standard_error["p"])
    assert error.shape == (3,) and np.all(error < 0.005)
    assert np.all(np.abs(np.asarray(twin.params["p"]) - truth) < 3.5 * error)


@pytest.mark.slow
def test_skipped_steps_are_a_warning() -> None:
    broken = optax.stateless(lambda g, p: jax.tree.map(lambda x: x * jnp.nan, g))
    y = np.random.default_rng(0).normal(0, 1, 400)
    twin = quick(normal(m=1.0), y, divergence=None, optimizer=broken, num_steps=4)
    assert any("4 of 4 steps were not finite" in said for said in twin.warnings)


def test_a_start_far_from_all_recordings_says_so(monkeypatch) -> None:
    monkeypatch.setattr(Fit, "corrections", 1)
    rows = 1000 + np.random.default_rng(11).normal(size=500)
    twin = quick(normal(m=0.0), rows, num_steps=10)
    assert not twin.status.startswith("converged")
    assert any("overlap the recordings" in warning for warning in twin.warnings)


@pytest.mark.slow
def test_a_network_in_front() -> None:
    """Thirty numbers, eight outputs: what can be reduced is, and rotations are free."""
    mix = np.random.default_rng(5).normal(size=(8, 5))

    def model() -> None:
        start = 0.5 * jnp.eye(5) + 0.1 * jax.random.normal(jax.random.key(1), (5, 5))
        weights = numpyro.param("weights", start)
        offsets = numpyro.param("offsets", jnp.zeros(5))
        x = numpyro.sample("x", dist.Normal(0, 1).expand([5]).to_event(1))
        hidden = jnp.tanh(x @ weights + offsets)
        numpyro.sample("y", dist.Normal(mix @ hidden, 0.3).to_event(1))

    rng = np.random.default_rng(9)
    weights, offsets = 0.7 * rng.normal(size=(5, 5)), 0.5 * rng.normal(size=5)
    hidden = np.tanh(rng.normal(size=(NUMBER, 5)) @ weights + offsets)
    recorded = hidden @ mix.T + 0.3 * rng.normal(size=(NUMBER, 8))
    twin = quick(model, recorded)
    assert twin.after.value < 0.02 * twin.before.value
    assert twin.test_after.pvalue > 0.05
    assert 8 <= len(twin.undetermined) <= 12


@pytest.mark.slow
def test_intervals_cover() -> None:
    """Two standard errors hold the truth in 90 % of 40 data sets or more.

    And are near the least that is possible, so none is held by width alone.
    """
    records = (amplified(1.0, 5000, seed=100 + seed) for seed in range(40))
    twins = [quick(links.amplifier, recorded) for recorded in records]
    off = np.array([float(twin.params["eta"]) - 1.0 for twin in twins])
    errors = np.array([float(twin.standard_error["eta"]) for twin in twins])
    assert np.sum(np.abs(off) < 2 * errors) >= 36
    bound = amplifier_bound(1.0, 4000)
    assert 0.9 * bound < np.mean(errors) < 1.2 * bound
