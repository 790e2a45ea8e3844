# SPDX-License-Identifier: Apache-2.0
"""The information gradient against closed forms and dense grids."""

import functools
import re

import links
from methods import (
    AVERAGE,
    LEARN,
    exact_and_slow,
    named_and_slow,
    sampled_and_slow,
    slow,
)
from models import channel
import numpy as np
import pytest

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

from helpers import assert_found as check
import numpyro_infograd as ig
from numpyro_infograd import _pullback
from numpyro_infograd.scores import Analytic, Denoising, Mixture
import truths

XY = ig.MI("x", "y")


# -- linear links ----------------------------------------------------------------
@exact_and_slow
@pytest.mark.parametrize("point", [slow((1.0, 1.0)), (2.0, 1.0)], ids=str)
def test_multipath(scores, point) -> None:
    a, b = point
    truth = dict(zip("ab", truths.multipath_gradient(a, b), strict=True))
    found = ig.gradient(links.link, XY, params={"a": a, "b": b}, scores=scores)
    check(found, truth, 0.01)
    if scores == "exact":
        assert not any(jax.tree.leaves(found.standard_error))


def test_truths_of_the_paper() -> None:
    np.testing.assert_allclose(
        truths.multipath_gradient(1, 1), (0.285714, 0.095238), atol=1e-6
    )
    np.testing.assert_allclose(truths.multipath_gradient(2, 1), (0.25, 0.25))
    for e, truth in ((0.3, 0.48399), (1.0, 0.5), (2.0, 0.33939)):
        assert links.common_cause_gradient(e) == pytest.approx(truth, abs=1e-5)


@pytest.mark.slow
def test_scaled_analytic_scores_are_put_right() -> None:
    """A factor of 1.3 is just what Stein's identity finds, and reports."""
    method = Analytic(links.link_scores(2.0, 1.0, factor=1.3), num_samples=4096)
    found = ig.gradient(links.link, XY, params={"a": 2.0, "b": 1.0}, scores=method)
    check(found, {"a": 0.25, "b": 0.25}, 0.01)
    assert found.diagnostics["stein_residual(y)"] == pytest.approx(-0.3, abs=0.05)
    assert any("missed Stein's identity by -" in text for text in found.warnings)


@named_and_slow
@pytest.mark.parametrize("e", [slow(0.3), 1.0, slow(2.0)])
def test_parameter_dependent_input(scores, e) -> None:
    found = ig.gradient(links.common_cause, XY, params={"e": e}, scores=scores)
    check(found, {"e": links.common_cause_gradient(e)}, 0.01)


@pytest.mark.parametrize(("e", "wrong"), [(0.3, -0.126), (1.0, 0.0), (2.0, 0.107)])
def test_without_the_input_block_it_would_be_wrong(e, wrong) -> None:
    """Negative control: the Y block alone, with everything else as it is."""
    xx, xy, yy = e**2 + 1, e * (e + 1) + 1, (e + 1) ** 2 + 2
    inverse = np.linalg.inv([[xx, xy], [xy, yy]])
    xs = float(inverse[0, 0])
    both, y_part = float(inverse[0, 1]), float(inverse[1, 1])

    sm = ig.structural_model(links.common_cause)
    params = {"e": jnp.asarray(e)}
    noise = sm.sample_noise(jax.random.key(0), 1 << 15, qmc=True)

    def gradient(drop_x):
        v, pullback = jax.vjp(lambda p: sm.evaluate(p, noise), params)
        cotangent = jax.tree.map(jnp.zeros_like, v)
        cotangent["y"] = v["y"] / yy - (both * v["x"] + y_part * v["y"])
        if not drop_x:
            cotangent["x"] = v["x"] / xx - (xs * v["x"] + both * v["y"])
        (g,) = pullback(cotangent)
        return float(g["e"]) / len(v["x"])

    assert gradient(True) == pytest.approx(wrong, abs=0.01)
    assert gradient(False) == pytest.approx(links.common_cause_gradient(e), abs=0.01)
    found = ig.gradient(links.common_cause, XY, params=params, scores="exact")
    assert abs(float(found.value["e"]) - wrong) > 0.2


# -- nonlinear, discrete, conditional ----------------------------------------------
@pytest.mark.parametrize(
    ("scores", "eta"),
    [(AVERAGE, 2.0), (LEARN, 1.0), slow(AVERAGE, 0.5), slow(LEARN, 0.5)],
    ids=str,
)
def test_saturated_amplifier(scores, eta) -> None:
    truth = {"eta": truths.tanh_derivative(eta)}
    found = ig.gradient(links.amplifier, XY, params={"eta": eta}, scores=scores)
    # A regression that is fitted once keeps an error of its own: see `rounding`.
    check(found, truth, 0.02, rounding=0.003)


def amplifier_scores(eta: float, sign: float):
    """Grid score of y as an interpolated table, and that of y given x, by sign."""
    y = np.linspace(-5.0, 5.0, 2001)
    table = links.grid_score(lambda x, y: np.exp(-2 * (y - np.tanh(eta * x)) ** 2), y)

    grid, table = jnp.asarray(y), sign * jnp.asarray(table)
    score = {"y": lambda params, v: jnp.interp(v["y"], grid, table)}
    return Analytic(score, num_samples=8192)


@pytest.mark.parametrize("sign", [slow(1.0), -1.0])
def test_analytic_scores_of_the_amplifier(sign) -> None:
    """What calibration cannot repair, a wrong sign, must fail the comparison."""
    truth, scores = {"eta": truths.tanh_derivative(2.0)}, amplifier_scores(2.0, sign)
    found = ig.gradient(links.amplifier, XY, params={"eta": 2.0}, scores=scores)
    if sign > 0:
        check(found, truth, 0.01)
        return
    assert abs(found.diagnostics["stein_residual(y)"]) > 0.5
    assert abs(float(found.value["eta"]) - truth["eta"]) > 0.03
    assert found.warnings


@pytest.mark.slow
@sampled_and_slow
@pytest.mark.parametrize(
    ("model", "objective", "a", "truth", "sharp"),
    [  # of the first I(x;y|on) = 0.7 log(1 + a^2) / 2
        (links.switched, ig.MI("x", "y", given="on"), 1.5, 1.05 / (1 + 1.5**2), 0.01),
        (links.pam, ig.MI("symbol", "y"), 1.0, links.pam_derivative(1.0), 0.02),
    ],
    ids=["condition", "input"],
)
def test_discrete_sites(model, objective, a, truth, sharp, scores) -> None:
    settings = {"params": {"a": a}, "scores": scores}
    if model is links.pam:
        settings["num_samples"] = 16384
    check(ig.gradient(model, objective, **settings), {"a": truth}, sharp)


# -- expectations --------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("scores", ["exact", AVERAGE], ids=["exact", "mixture"])
def test_expectations(scores) -> None:
    """E[v1^2] = a^2 + 1, alone and as the price of an information."""
    price = ig.Expectation(lambda v: v["v1"] ** 2)
    found = ig.gradient(links.link, price, params={"a": 1.5}, scores=scores)
    check(found, {"a": 3.0, "b": 0.0}, 0.02, rounding=1e-4)
    settings = {"params": {"a": 2.0, "b": 1.0}, "scores": scores}
    found = ig.gradient(links.link, XY - 0.1 * price, **settings)
    check(found, {"a": 0.25 - 0.1 * 4.0, "b": 0.25}, 0.01)


def test_scalar_multiples_multiply_the_gradient() -> None:
    point = {"a": 2.0, "b": 1.0}
    once = ig.gradient(links.link, XY, params=point, scores=AVERAGE)
    minus = ig.gradient(links.link, -2 * XY, params=point, scores=AVERAGE)
    np.testing.assert_allclose(minus.value["a"], -2 * once.value["a"], rtol=1e-4)


# -- shapes of parameters ------------------------------------------------------------
@exact_and_slow
def test_vector_parameter(scores) -> None:
    w = np.array([0.5, -1.0, 0.8])
    found = ig.gradient(links.combiner, XY, scores=scores)
    assert found.value["w"].shape == found.standard_error["w"].shape == (3,)
    check(found, {"w": w / (1 + w @ w)}, 0.02)


@pytest.mark.slow
def test_module_parameters() -> None:
    """A linear nnx layer K: I(u;y) = log det(I + K^T K) / 2, none in its bias."""
    sm = ig.structural_model(links.linear_network)
    (name,) = sm.params
    found = ig.gradient(sm, ig.MI("u", "y"), scores=AVERAGE)
    kernel = np.asarray(sm.params[name]["kernel"], float)
    inverse = np.linalg.inv(np.eye(2) + kernel.T @ kernel)
    tree = jax.tree.structure(sm.params[name])
    assert jax.tree.structure(found.value[name]) == tree
    truth = {"kernel": kernel @ inverse, "bias": np.zeros(2)}
    check(found, {name: jax.tree.unflatten(tree, jax.tree.leaves(truth))}, 0.02)


def test_constrained_parameter_keeps_its_own_space() -> None:
    """The gradient is in the scale itself, not in its logarithm."""

    def model():
        scale = numpyro.param("scale", 2.0, constraint=dist.constraints.positive)
        x = numpyro.sample("x", dist.Normal(0, scale))
        numpyro.sample("y", dist.Normal(x, 1.0))

    check(ig.gradient(model, XY, scores="exact"), {"scale": 0.4}, 0.0)


# -- appended noise ------------------------------------------------------------------
@pytest.mark.slow
def test_noise_asked_for_is_that_of_the_noisier_model() -> None:
    """Denoising(noise_variance=0.05) is exact for y seen through that noise."""
    noisier = functools.partial(links.link, noise=jnp.sqrt(1.05))
    point = {"a": 2.0, "b": 1.0}
    truth = ig.gradient(noisier, XY, params=point, scores="exact").value
    assert abs(float(truth["a"]) - 0.25) > 5e-4
    few = {"hidden": (8,), "num_steps": 20, "num_samples": 16384}
    method = Denoising(noise_variance=0.05, **few)
    found = ig.gradient(links.link, XY, params=point, scores=method)
    check(found, truth, 0.01)
    assert "'y' (variance 0.05)" in found.warnings[0]
    assert "'y' (variance 0.05)" in repr(found)


@pytest.mark.slow
def test_the_noise_of_a_deterministic_output_is_extrapolated_away() -> None:
    found = ig.gradient(links.lagged, XY, params={"a": 1.0}, scores=LEARN)
    check(found, {"a": 1 / 2}, 0.02)
    assert all("learned nothing" in w or "no chain" in w for w in found.warnings)


@pytest.mark.slow
def test_appended_noise_keeps_the_scales_of_components() -> None:
    """A component a hundred times larger must not drown the others in its noise."""

    def model():
        a = numpyro.param("a", 1.0)
        x = numpyro.sample("x", dist.Normal(0, 1))
        n = numpyro.sample("n", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.deterministic("y", jnp.stack([a * x + n[0], 100 * n[1]]))

    found = ig.gradient(model, XY, scores=LEARN)
    # noise in proportion to the second component would leave 0.01
    check(found, {"a": 1 / 2}, 0.01)


# -- what is chosen, and what is said -----------------------------------------------
def test_auto_is_exact_for_a_linear_model() -> None:
    found = ig.gradient(links.link, XY, params={"a": 2.0, "b": 1.0})
    assert found.diagnostics["method"] == "exact"
    assert "linear-Gaussian" in found.diagnostics["reason"]
    check(found, {"a": 0.25, "b": 0.25}, 0.0)
    assert "exact" in repr(found) and "a: 0.25 +- 0" in repr(found)
    assert "w: [0.17301" in repr(ig.gradient(links.combiner, XY))


@pytest.mark.parametrize(
    ("model", "inputs", "settings", "method", "reason", "truth"),
    [
        slow(links.amplifier, "x", {"params": {"eta": 1.0}}, "mixture",
             "not an affine function.*effective sample size",
             {"eta": truths.tanh_derivative(1.0)}),
        slow(links.qam, "symbol", {"params": {"a": 2.0}}, "mixture",
             "all densities are known", {"a": 2 * links.pam_derivative(2.0)}),
        (links.quiet_amplifier, "x", {"num_samples": 512}, "mcmc",
         "effective sample size is only", None),
        slow(links.unobserved, "x", {"num_samples": 4096}, "denoising",
             "'y' is deterministic", None),
    ],
    ids=["moderate information", "few values", "a mixture gives out", "computed"],
)  # fmt: skip
def test_auto(model, inputs, settings, method, reason, truth) -> None:
    found = ig.gradient(model, ig.MI(inputs, "y"), **settings)
    assert found.diagnostics["method"] == method
    assert re.search(reason, found.diagnostics["reason"])
    if truth:
        check(found, truth, 0.005)


@pytest.mark.slow
def test_more_samples_shrink_the_standard_error() -> None:
    def error(num_samples):
        settings = {"scores": AVERAGE, "num_samples": num_samples}
        keys = map(jax.random.key, range(3))
        found = [ig.gradient(links.amplifier, XY, rng_key=k, **settings) for k in keys]
        return float(np.mean([g.standard_error["eta"] for g in found]))

    assert error(8192) < 0.6 * error(512)


def test_same_key_same_gradient_other_key_another() -> None:
    def value(**settings):
        found = ig.gradient(links.amplifier, XY, scores=AVERAGE, **settings)
        return float(found.value["eta"])

    three = {"rng_key": jax.random.key(3)}
    assert value(**three) == value(**three) != value()
    assert value() == value(rng_key=jax.random.key(0))


@pytest.mark.slow
def test_double_precision(x64) -> None:
    point = {"a": 2.0, "b": 1.0}
    found = ig.gradient(links.link, XY, params=point)
    assert found.value["a"].dtype == jnp.float64
    check(found, {"a": 0.25, "b": 0.25}, 0.0, rounding=1e-12)
    average = ig.gradient(links.link, XY, params=point, scores=AVERAGE)
    assert average.value["a"].dtype == jnp.float64
    check(average, {"a": 0.25, "b": 0.25}, 0.01)


@pytest.mark.slow
def test_single_precision_numbers_in_double_precision(x64) -> None:
    """Noise is drawn in double precision, and every program expects it so."""
    one = jnp.float32(1)

    def model() -> None:
        x = numpyro.sample("x", dist.Normal(jnp.float32(0), one))
        mean = jnp.tanh(numpyro.param("eta", one) * x)
        numpyro.sample("y", dist.Normal(mean, jnp.float32(0.5)))

    found = ig.gradient(model, XY, scores="mixture")
    check(found, {"eta": truths.tanh_derivative(1.0)}, 0.01)


# -- entropies of known densities ----------------------------------------------------
def scaled(x):
    return dist.Normal(jnp.tanh(numpyro.param("a", 1.5) * x), numpyro.param("s", 0.3))


def test_entropy_of_a_known_density_is_exact() -> None:
    """h(x, y) = h(noise) + log s: by the log density, without any variance."""
    found = ig.gradient(channel(scaled), ig.Entropy(("x", "y")))
    check(found, {"a": 0.0, "s": 1 / 0.3}, 1e-6, rounding=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_score_and_log_density_agree(share, monkeypatch) -> None:
    """Whichever share of a known density's entropy goes by which."""
    monkeypatch.setattr(_pullback, "score_weights", lambda *args: jnp.full(1, share))
    jax.clear_caches()
    found = ig.gradient(channel(scaled), ig.Entropy(("x", "y")))
    jax.clear_caches()
    check(found, {"a": 0.0, "s": 1 / 0.3}, 0.2, rounding=1e-5)


@pytest.mark.slow
def test_heavy_tailed_noise_has_the_right_gradient() -> None:
    """y = a x + Cauchy on a double grid."""
    t = np.linspace(-np.pi / 2, np.pi / 2, 20003)[1:-1]
    y, (x, weight) = np.tan(t), links.normal_grid(6.0, 241)

    def entropy(a):
        p = (1 / (np.pi * (1 + (y[:, None] - a * x) ** 2))) @ weight
        return -np.sum(p * np.log(p) / np.cos(t) ** 2) * (t[1] - t[0])

    truth = {"a": links.slope(entropy, step=0.01)}
    found = ig.gradient(links.cauchy_channel, XY, params={"a": 1.0}, scores=AVERAGE)
    check(found, truth, 0.01)


# -- do the standard errors say the truth? -------------------------------------------
CHEAP = {
    "mixture": Mixture(num_components=512, num_samples=1024),
    "denoising": Denoising(
        hidden=(16,), num_steps=60, batch_size=512, pool_size=2048, num_samples=1024
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scores", "num_keys", "least"),
    [*((s, 16, 0.75) for s in CHEAP.values()), *((s, 200, 0.88) for s in CHEAP)],
    ids=["mixture", "denoising", "mixture by default", "denoising by default"],
)
def test_standard_errors_cover(scores, num_keys, least) -> None:
    """Two of them hold the truth mostly, and they are not far above the scatter."""
    truth = np.array([0.25, 0.25])
    settings = {"params": {"a": 2.0, "b": 1.0}, "scores": scores}
    values, errors = [], []
    for seed in range(num_keys):
        key = jax.random.key(100 + seed)
        found = ig.gradient(links.link, XY, rng_key=key, **settings)
        values.append([float(found.value[n]) for n in "ab"])
        errors.append([float(found.standard_error[n]) for n in "ab"])
    off = np.array(values) - truth
    assert np.mean(np.abs(off) <= 2 * np.array(errors)) >= least
    scatter = np.sqrt(np.mean(off**2, axis=0))
    ratio = np.median(errors, axis=0) / scatter
    assert 0.6 <= np.min(ratio) <= np.max(ratio) <= 3
