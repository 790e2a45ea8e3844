# SPDX-License-Identifier: Apache-2.0
"""Scores of black boxes: what learns them, what keeps them fresh, whom to trust."""

from dataclasses import replace

import links
from methods import LEARN, rest_slow
from models import with_gain
import numpy as np
import pytest
from scipy import stats

from flax import nnx
import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

from helpers import ascend, assert_found
import numpyro_infograd as ig
from numpyro_infograd.errors import DensityError, ScoreError
from numpyro_infograd.scores import (
    MCMC,
    Analytic,
    Denoising,
    FlowMatching,
    Posterior,
    ScoreMethod,
    Scores,
    Sliced,
)
from numpyro_infograd.scores.learned import extrapolation
import truths

XY = ig.MI("x", "y")
SMALL = {"hidden": (32, 32), "num_steps": 150, "pool_size": 16384, "num_samples": 4096}
METHODS = {"denoising": LEARN, "sliced": Sliced(**SMALL), "flow": FlowMatching(**SMALL)}


def check(found, truth, max_standard_error, rel=0.05, **settings) -> None:
    """Within standard errors that are small, and within a share of the truth."""
    assert_found(found, jax.tree.map(np.float64, truth), max_standard_error, **settings)
    for name, true in truth.items():
        assert float(found.value[name]) == pytest.approx(float(true), rel=rel)


# -- the methods -------------------------------------------------------------------
def test_extrapolation_leaves_constants_and_removes_powers() -> None:
    levels = (0.002, 0.01, 0.05)
    weights = np.array(extrapolation(levels))
    powers = [float(weights @ np.array(levels) ** k) for k in range(4)]
    np.testing.assert_allclose(powers[:3], [1, 0, 0], atol=1e-12)
    assert powers[3] != 0
    assert extrapolation((0.0,)) == (1.0,)


@pytest.mark.slow
@rest_slow("name", METHODS)
def test_a_black_box_by_its_samples(name) -> None:
    found = ig.gradient(links.black_box, XY, scores=METHODS[name])
    check(found, {"eta": truths.tanh_derivative(1.0)}, 0.02)
    assert any("no chain can check the score of 'y'" in w for w in found.warnings)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sliced", "flow"])
def test_samples_learn_inputs_that_move(method) -> None:
    """The cause of both depends on e; the block of y alone would give 0.000."""
    found = ig.gradient(links.common_cause, XY, scores=METHODS[method])
    check(found, {"e": 0.5}, 0.02)


NOISE_LAWS = {
    "laplace": (lambda m: dist.Laplace(m, 0.5), stats.laplace(scale=0.5)),
    "student-t": (lambda m: dist.StudentT(6.0, m, 0.5), stats.t(6, scale=0.5)),
    "gumbel": (lambda m: dist.Gumbel(m, 0.5), stats.gumbel_r(scale=0.5)),
    # The logarithm of a gamma variable has the mean's logarithm as its place.
    "gamma": (
        lambda m: dist.Gamma(4.0, 4.0 * jnp.exp(-m)),
        stats.loggamma(4, loc=-np.log(4)),
    ),
}


@pytest.mark.slow
@rest_slow("inside", [False, True], ids=["output", "inside"])
@rest_slow("law", NOISE_LAWS)
def test_laws_of_noise(law, inside) -> None:
    """At the output, or only inside the graph so that the output has no density."""
    make, truth = NOISE_LAWS[law]

    def model() -> None:
        x = numpyro.sample("x", dist.Normal(0, 1))
        mean = numpyro.param("gain", 1.0) * x
        if inside and law == "gamma":
            numpyro.deterministic("y", mean + jnp.log(numpyro.sample("z", make(0.0))))
        elif inside:
            numpyro.deterministic("y", mean + numpyro.sample("z", make(0.0)))
        else:
            numpyro.sample("y", make(mean))

    y, x = np.linspace(-25.0, 25.0, 5001), np.linspace(-8.0, 8.0, 801)

    def entropy(gain: float) -> float:  # but for a constant
        return stats.entropy(stats.norm.pdf(x) @ truth.pdf(y - gain * x[:, None]))

    found = ig.gradient(model, XY, scores=LEARN)
    check(found, {"gain": links.slope(entropy, step=1e-3)}, 0.02, num_sigmas=3)
    # A certificate needs a density.
    assert any("no chain can check" in w for w in found.warnings) is inside
    assert inside or not found.warnings


@pytest.mark.slow
@rest_slow("method", METHODS)
def test_low_noise(method) -> None:
    """Four amplifiers in noise of variance 1e-3: a score that bends within 0.03."""
    model = with_gain(lambda m: dist.Normal(jnp.tanh(m), 1e-3**0.5), "eta", 0.5, 4)
    found = ig.gradient(model, XY, scores=method)
    truth = 4 * truths.tanh_derivative(0.5, 1e-3)
    check(found, {"eta": truth}, 0.03 * truth, rel=0.03)


# -- networks of the user's -----------------------------------------------------------
class Body(nnx.Module):
    """A network as a user would write one."""

    def __init__(self, inputs: int, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(inputs, 32, rngs=rngs)

    def __call__(self, x):
        return nnx.tanh(self.layer(x))


SINES = (
    lambda rng_key, inputs: jax.random.normal(rng_key, (inputs, 32)),
    lambda weights, x: jnp.sin(x @ weights),
)


@pytest.mark.slow
@pytest.mark.parametrize("network", [Body, SINES], ids=["module", "function"])
def test_a_network_of_the_users(network) -> None:
    method = replace(LEARN, hidden=None, network=network)
    found = ig.gradient(links.amplifier, XY, scores=method)
    check(found, {"eta": truths.tanh_derivative(1.0)}, 0.01)


class NormalLaw(ScoreMethod):
    """A method as a user would write one, right for a site of one normal number."""

    def score(self, state, density, params, noise, values, rng_key):
        found = {s: (jnp.mean(v) - v) / jnp.var(v) for s, v in values.items()}
        return Scores({s: found[s] for s in density.moved_sites}, None, {})


@pytest.mark.slow
def test_a_method_of_the_users() -> None:
    """h(y) = log(2 + b^2 + (1 + a b)^2) / 2 + const."""
    point = {"a": 2.0, "b": 1.0}
    found = ig.gradient(links.link, ig.Entropy("y"), params=point, scores=NormalLaw())
    check(found, {"a": 3 / 12, "b": 7 / 12}, 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 16])
def test_the_noise_of_deviations_is_in_the_standard_error(count) -> None:
    """Deviations of pure noise, 100 times the score: nothing shows that it is zero."""
    scale, size = 100.0, 4096

    class Noisy(NormalLaw):
        num_deviations = count
        needs_certificate = False

        def score(self, state, density, params, noise, values, rng_key):
            mean = super().score(state, density, params, noise, values, rng_key).mean
            off = {
                s: scale * jax.random.normal(rng_key, (count, *y.shape))
                for s, y in mean.items()
            }
            return Scores(mean, off, {})

    model = with_gain(lambda m: dist.Normal(m, 1))
    settings, squares = {"scores": Noisy(), "num_samples": size}, []
    for key in map(jax.random.key, range(64)):
        g = ig.gradient(model, ig.Entropy("y"), rng_key=key, **settings)
        squares.append(float(g.standard_error["a"]) ** 2)
        assert np.isfinite(g.diagnostics["fit_error_ratio"])
    # Each deviation is a mean over size / count samples of scale * x * noise, less its
    # part along y (Stein's identity), which is half of the variance of x. Squares of
    # `count` such numbers and 64 keys scatter by an eighth for two.
    assert np.mean(squares) == pytest.approx(0.5 * (count * scale) ** 2 / size, rel=0.3)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (lambda y: y, "must return"),
        (lambda y: Scores({"y": y[:, None] - y}, None, {}), r"shape \(256, 256\)"),
        (lambda y: Scores({}, None, {}), "a mean of shape nothing for site 'y'"),
        (lambda y: Scores({"y": -y}, {"y": -y[None, :9]}, {}), "a deviations"),
    ],
)
def test_methods_that_return_no_scores(found, words) -> None:
    class Odd(ScoreMethod):
        num_samples = 4096

        def score(self, state, density, params, noise, values, rng_key):
            return found(values["y"])

    with pytest.raises(ScoreError, match=words):
        ig.gradient(links.link, ig.Entropy("y"), scores=Odd())


@pytest.mark.parametrize("part", [lambda y: jnp.clip(y, -1, 1), jax.nn.relu])
def test_a_clipped_output_has_no_density(part) -> None:
    def fixed(gain=1.0) -> None:
        x = numpyro.sample("x", dist.Normal(0, 1))
        n = numpyro.sample("n", dist.Normal(0, 1))
        numpyro.deterministic("y", part(gain * x + 0.5 * n))

    def model() -> None:
        fixed(numpyro.param("a", 1.0))

    for call in (
        lambda: ig.gradient(model, XY, scores="sliced"),
        lambda: ig.estimate(model, XY),
        lambda: ig.estimate(fixed, XY),
    ):
        with pytest.raises(DensityError, match="'y' is computed and takes the same"):
            call()


@pytest.mark.slow
def test_samples_learned_by_heart_are_not_trusted() -> None:
    model = with_gain(lambda m: dist.Normal(m, 1.0), size=6)
    method = Denoising(hidden=(32, 32), pool_size=256, batch_size=256, num_samples=1024)
    warnings = ig.gradient(model, XY, scores=method).warnings
    assert any("beyond a normal distribution" in warning for warning in warnings)


# -- posterior -----------------------------------------------------------------------
def regression(y) -> None:
    """The true posterior of `links.link` is of this form."""
    scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    numpyro.sample("x", dist.Normal(numpyro.param("slope", 0.5) * y, scale))


@pytest.mark.slow
def test_a_posterior_of_the_users() -> None:
    method = Posterior(model=regression, num_steps=1000, num_samples=4096)
    found = ig.gradient(links.link, XY, params={"a": 2.0, "b": 1.0}, scores=method)
    check(found, {"a": 0.25, "b": 0.25}, 0.01)


@pytest.mark.slow
def test_discrete_inputs_by_a_classifier_and_others_by_a_mixture() -> None:
    method = Posterior(hidden=(32,), num_steps=1000, num_samples=4096)
    found = ig.gradient(links.pam, ig.MI("symbol", "y"), scores=method)
    check(found, {"a": links.pam_derivative(1.0)}, 0.03)
    found = ig.gradient(links.black_box, XY, scores=method)
    check(found, {"eta": truths.tanh_derivative(1.0)}, 0.02)
    (unchecked,) = found.warnings
    assert "no chain can check the score of 'x|y'" in unchecked


@pytest.mark.slow
def test_coarse_posteriors_are_not_trusted() -> None:
    """Five inputs, and so few samples that training makes the start worse."""
    model = with_gain(lambda m: dist.Normal(jnp.tanh(m), 0.5), "eta", size=5)
    method = Posterior(hidden=(32,), num_steps=300, num_samples=1024, pool_size=256)
    wrong, few, many = ig.gradient(model, XY, scores=method).warnings
    assert "the score of 'x|y' is wrong" in wrong
    assert "worse on held-out samples" in few
    assert "of 5 numbers" in many


def noisy_sum() -> None:
    """A bit, a symbol of three hundred and a normal number in unit noise."""
    bit = numpyro.sample("bit", dist.Bernoulli(0.5))
    many = numpyro.sample("many", dist.Categorical(jnp.ones(300) / 300))
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * (bit + many + x), 1))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (("bit", "x"), r"one set of discrete inputs, got \['bit', 'x'\]"),
        ("many", "more than 256 values"),
    ],
)
def test_inputs_that_no_classifier_takes(inputs, words) -> None:
    with pytest.raises(ScoreError, match=words):
        ig.gradient(noisy_sum, ig.MI(inputs, "y"), scores="posterior")


# -- one training for a range of parameters -------------------------------------------
@pytest.fixture(scope="module")
def trained():
    method = replace(LEARN, num_steps=60)
    return ig.pretrain_scores(
        links.amplifier, XY, {"eta": (0.5, 3.0)}, scores=method, num_points=64
    )


@pytest.mark.slow
def test_a_sweep_trains_nothing(trained) -> None:
    for eta in (0.5, 1.0, 2.0):
        found = ig.gradient(links.amplifier, XY, params={"eta": eta}, scores=trained)
        check(found, {"eta": truths.tanh_derivative(eta)}, 0.01)


@pytest.mark.slow
def test_an_ascent_stops_where_the_training_ended(trained) -> None:
    result = ascend(links.amplifier, scores=trained, num_steps=200)
    assert "left the range" in result.status
    assert 2.5 < float(result.params["eta"]) < 5.0


@pytest.mark.slow
def test_a_law_of_parameters() -> None:
    """Networks see the range that the law's draws span."""
    over = {"eta": dist.Uniform(0.5, 2.0)}
    small = replace(LEARN, num_steps=40, pool_size=4096)
    trained = ig.pretrain_scores(links.amplifier, XY, over, scores=small, num_points=32)
    found = ig.gradient(links.amplifier, XY, params={"eta": 1.5}, scores=trained)
    check(found, {"eta": truths.tanh_derivative(1.5)}, 0.02)


# -- drift ---------------------------------------------------------------------------
@pytest.mark.slow
def test_scores_are_trained_again_when_they_are_stale_and_not_before() -> None:
    def trained_steps(refit):
        scores = replace(LEARN, refit=refit, num_samples=1024)
        result = ascend(links.amplifier, scores=scores, num_steps=20)
        return result.history["trained(y)"], float(result.params["eta"])

    (often, a), (third, b), (seldom, c) = map(trained_steps, (1, 3, "auto"))
    assert np.all(often == 1)
    np.testing.assert_array_equal(third, np.arange(1, 21) % 3 == 0)
    assert 1 <= seldom.sum() <= 10
    assert a == pytest.approx(c, rel=0.05)
    assert b == pytest.approx(c, rel=0.05)


# -- annealing -------------------------------------------------------------------------
def vernier() -> None:
    """A coarse reading, unimodal in the place, and a fine one with many optima."""
    place = numpyro.param("place", 0.0)
    x = numpyro.sample("x", dist.Normal(0, 1))
    coarse = 3 * jnp.exp(-(place**2) / 18)
    fine = 0.3 * jnp.cos(2 * place) * jnp.exp(-(place**2) / 50)
    gains, noise = jnp.stack([coarse, fine]), jnp.array([1.0, 0.03])
    numpyro.sample("y", dist.Normal(gains * x, noise).to_event(1))


def places(**settings):
    """Where ascents from twenty random places end."""
    starts = np.random.default_rng(0).uniform(-6, 6, 20).tolist()
    ends = []
    for index, place in enumerate(starts):
        start = {"init_params": {"place": place}, "rng_key": jax.random.key(index)}
        ends.append(float(ascend(vernier, **start, **settings).params["place"]))
    return np.array(ends)


@pytest.mark.slow
def test_annealing_leads_past_poor_optima() -> None:
    assert np.sum(np.abs(places()) > 1) >= 10  # the control
    assert np.all(np.abs(places(annealing=1.0)) < 0.05)


@pytest.mark.slow
def test_short_annealing_ends_without_noise() -> None:
    result = ascend(vernier, annealing=1.0, num_steps=20)
    assert not result.estimate.warnings
    assert len(result.history["gain"]) == 20


@pytest.mark.slow
def test_restarts_find_the_best_of_many_optima() -> None:
    assert np.all(np.abs(places(num_restarts=32)) < 0.05)


@pytest.mark.slow
def test_annealing_of_learned_scores_ends_without_noise() -> None:
    scores = replace(LEARN, num_steps=20, pool_size=2048, num_samples=1024)
    settings = {"num_steps": 40, "annealing": {"y": 0.5}}
    result = ascend(links.black_box, scores=scores, **settings)
    assert not any("appended" in warning for warning in result.estimate.warnings)
    assert float(result.params["eta"]) > 1.3


# -- checks ----------------------------------------------------------------------------
def checked(model, **settings):
    return ig.diagnostics.check_scores(model, XY, verbose=False, **settings)


@pytest.mark.slow
def test_sound_scores_are_trusted(capsys) -> None:
    found = ig.diagnostics.check_scores(links.amplifier, XY, scores=LEARN)
    assert found.trusted, found
    assert "No check found a problem" in capsys.readouterr().out
    (each,) = found.sets
    assert each.label == "y"
    assert each.certificate < 0.05
    assert found.plot().get_xlabel() == "cotangent by denoising"


@pytest.mark.slow
def test_chains_are_checked_as_a_gradient_runs_them() -> None:
    """Long chains give the score of a square; short ones do not, at any key."""
    square = with_gain(lambda m: dist.Normal(m**2, 0.05), size=4)
    found = checked(square, scores=MCMC(max_steps=16))
    assert any("missed Stein's identity" in warning for warning in found.warnings)
    assert not found.trusted
    assert checked(square, scores=MCMC()).trusted


@pytest.mark.slow
def test_scores_through_appended_noise_are_checked_through_it() -> None:
    through = replace(LEARN, noise_variance=1.0)
    assert not checked(links.link, params={"a": 2.0, "b": 1.0}, scores=through).warnings


@pytest.mark.slow
def test_wrong_scores_are_not() -> None:
    wrong = Analytic(links.link_scores(2.0, 1.0, 1.3))
    found = checked(links.link, params={"a": 2.0, "b": 1.0}, scores=wrong)
    assert not found.trusted
    assert any("Stein" in warning for warning in found.warnings)
    assert "Do not trust" in repr(found)
    wrong = Analytic({"y": lambda params, v: jnp.nan * v["y"]})
    assert not checked(links.amplifier, scores=wrong).trusted


def test_closed_forms_need_no_check() -> None:
    assert checked(links.link).trusted
