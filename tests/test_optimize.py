# SPDX-License-Identifier: Apache-2.0
"""Ascents that must end where the closed forms have their maximum."""

import functools
import itertools
import math
import pickle
import re
import types

import links
from methods import slow
from models import affine, channel
import numpy as np
import pytest

import jax
import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from helpers import ascend, quiet
import numpyro_infograd as ig
from numpyro_infograd._optimize import Ending, Status, finish, move, run, step
from numpyro_infograd._optimize.annealing import cooled
from numpyro_infograd._optimize.remaining import Steepness, outlook
from numpyro_infograd.distributions import Quantized
from numpyro_infograd.scores import Denoising, Mixture
import truths

XY = ig.MI("x", "y")
SPHERE = optax.projections.projection_l2_sphere
LEARN = Denoising(
    hidden=(16,), num_steps=50, num_warm_steps=5, pool_size=8192, warm_pool_size=2048
)
AVERAGE = Mixture(num_components=128)
METHODS = {"auto": "auto", "mixture": slow(AVERAGE), "denoising": slow(LEARN)}


# -- the link of the README --------------------------------------------------------
@pytest.mark.parametrize("scores", METHODS.values(), ids=METHODS)
def test_link_on_the_sphere(scores) -> None:
    result = ascend(links.link, projection=SPHERE, scores=scores)
    assert float(result.params["a"]) == pytest.approx(0.80616, abs=0.005)
    assert float(result.params["b"]) == pytest.approx(0.59169, abs=0.005)
    assert result.estimate.value == pytest.approx(0.328312, abs=5e-4)
    assert "converged" in result.status
    assert "a = " in repr(result) and "objective: 0.328" in repr(result)


def projected_ascent(num_steps: int, step_size: float) -> list[float]:
    """Information along the closed-form ascent on the circle from (1, 0)."""
    eta, found = np.array([1.0, 0.0]), []
    for _ in range(num_steps):
        found.append(float(truths.multipath_information(*eta)))
        eta = eta + step_size * np.array(truths.multipath_gradient(*eta))
        eta /= np.linalg.norm(eta)
    return found


@pytest.mark.slow
def test_learned_ascent_follows_the_closed_form() -> None:
    """Fifty steps of 0.1 from (1, 0): the curve of the paper's Fig. 5."""
    settings = {"projection": SPHERE, "scores": LEARN, "num_steps": 51}
    result = ascend(links.link, optimizer=optax.sgd(0.1), **settings)
    path = result.history["params"]
    found = truths.multipath_information(path["a"], path["b"])
    assert found[0] == pytest.approx(0.202733, abs=1e-6)
    np.testing.assert_allclose(found, projected_ascent(51, 0.1), atol=2e-3)
    assert found[35] >= 0.3268
    assert found[50] >= 0.3280


@pytest.mark.parametrize(
    "optimizer",
    [slow(optax.adam(0.03)), numpyro.optim.Adam(0.03)],
    ids=["optax", "numpyro"],
)
def test_adam_on_the_sphere_ends_at_the_maximum(optimizer) -> None:
    """Adam scales components one by one: without the gradient mapping it would rest
    where the scaled gradient is normal to the sphere."""
    result = ascend(links.link, optimizer=optimizer, projection=SPHERE, num_steps=200)
    assert float(result.params["a"]) == pytest.approx(0.80616, abs=0.002)
    assert result.estimate.value == pytest.approx(0.328312, abs=1e-5)


def test_history_has_an_entry_for_each_step() -> None:
    result = ascend(links.link, projection=SPHERE, num_steps=25)
    history = result.history
    assert history["params"]["a"].shape == (25,)
    assert history["gradient_norm"].shape == history["objective"].shape == (25,)
    truth = truths.multipath_information(history["params"]["a"], history["params"]["b"])
    np.testing.assert_allclose(history["objective"], truth, atol=2e-6)
    assert result.status == "took all of num_steps=25 steps"


# -- constraints without a projection ---------------------------------------------
def cost(v):
    return v["cost"]


@pytest.mark.slow
def test_positive_parameter() -> None:
    """log(1 + g^2) / 2 - 0.1 g^2 is highest at g = 2."""

    def law(x):
        g = numpyro.param("g", 0.5, constraint=constraints.positive)
        numpyro.deterministic("cost", g**2)
        return dist.Normal(g * x, 1)

    result = quiet.maximize(channel(law), XY - 0.1 * ig.Expectation(cost))
    assert float(result.params["g"]) == pytest.approx(2.0, abs=0.01)


@pytest.mark.slow
def test_interval_parameter() -> None:
    """Noise grows with the gain: g / (1 + g^2) is highest at 1."""

    def law(x):
        g = numpyro.param("g", 0.3, constraint=constraints.interval(0.2, 3.0))
        return dist.Normal(g * x, 1 + g**2)

    result = ascend(channel(law))
    assert float(result.params["g"]) == pytest.approx(1.0, abs=0.01)
    assert result.estimate.value == pytest.approx(0.5 * math.log(1.25), abs=1e-5)


def water(constraint=None, total: float = 1.0):
    """Two channels of noise variance 1 and 4 that share a power."""

    def model():
        p = numpyro.param("p", jnp.array([0.5, 0.5]) * total, constraint=constraint)
        x = numpyro.sample("x", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        noise = jnp.array([1.0, 2.0])
        numpyro.sample("y", dist.Normal(jnp.sqrt(5 * p) * x, noise).to_event(1))

    return model


@pytest.mark.slow
def test_simplex_parameter() -> None:
    result = ascend(water(constraints.simplex))
    assert result.estimate.value == pytest.approx(0.5 * math.log(6.25), abs=5e-4)
    np.testing.assert_allclose(result.params["p"], [0.8, 0.2], atol=0.03)


@pytest.mark.slow
def test_simplex_projection_fills_water() -> None:
    """Power 5 over noise 1 and 4: a level of 5, so 4 and 1."""
    result = ascend(water(), projection=optax.projections.projection_simplex)
    np.testing.assert_allclose(result.params["p"], [0.8, 0.2], atol=0.01)
    assert "converged" in result.status


@pytest.mark.slow
def test_updates_inside_jit_and_scan() -> None:
    """As one by one; the object holds no state that a trace would leave behind."""
    ascent = ig.InfoMax(links.amplifier, XY, optax.adam(0.1))
    start = state = ascent.init(jax.random.key(0))
    norms = []
    for _ in range(3):
        state, info = ascent.update(state)
        norms.append(float(info.gradient_norm))
    several = jax.jit(lambda s: jax.lax.scan(lambda s, _: ascent.update(s), s, None, 3))
    last, infos = several(start)
    np.testing.assert_allclose(infos.gradient_norm, norms, rtol=1e-5)
    eta = ascent.get_params(state)["eta"]
    np.testing.assert_allclose(ascent.get_params(last)["eta"], eta, rtol=1e-5)
    state, _ = ascent.update(last)  # and on, outside
    assert float(ascent.get_params(state)["eta"]) > float(eta)


# -- restarts ---------------------------------------------------------------------
def test_restarts_find_the_higher_of_two_hills() -> None:
    def law(x):
        a = numpyro.param("a", -1.0)
        height = 2 * jnp.exp(-((a - 1.5) ** 2)) + jnp.exp(-2 * (a + 1) ** 2)
        return dist.Normal(height * x, 1)

    model = channel(law)
    alone = ascend(model)
    assert float(alone.params["a"]) == pytest.approx(-1.0, abs=0.1)
    several = ascend(model, num_restarts=6)
    assert float(several.params["a"]) == pytest.approx(1.5, abs=0.05)
    values = several.diagnostics["restarts"]
    assert len(values) == 6
    assert several.estimate.value == max(values)
    data = several.to_inference_data()
    assert "posterior" not in list(data)  # steps are no draws
    assert data["ascent_stats"]["gain"].shape == data["ascent"]["a"].shape
    chains = data["ascent"]["a"]  # one for each restart
    assert chains.shape == (6, len(several.history["params"]["a"]))
    best = int(np.argmax(values))
    np.testing.assert_array_equal(chains[best], several.history["params"]["a"])
    starts = np.asarray(chains[:, 0])
    assert starts[0] == -1.0 and len(set(starts.tolist())) == 6


# -- when things go wrong -----------------------------------------------------------
def test_steps_that_are_not_finite_are_skipped_and_counted() -> None:
    """The parameter falls onto a point where the gradient of a root is not a number."""

    def law(x):
        p = numpyro.deterministic("cost", numpyro.param("p", 0.3))
        return dist.Normal(jnp.sqrt(p) * x, 1)

    objective = XY - 2 * ig.Expectation(cost)
    settings = {"optimizer": optax.sgd(1.0), "num_steps": 8}
    result = quiet.maximize(channel(law), objective, **settings)
    assert np.isfinite(result.params["p"])
    skipped = result.diagnostics["skipped_steps"]
    assert skipped == int(np.sum(~result.history["finite"])) > 0
    said = " ".join(result.warnings)
    assert f"{skipped} steps were not finite and were skipped" in said


@pytest.mark.parametrize("chunks", [0, 1])
def test_interruption_returns_what_there_is(chunks, monkeypatch) -> None:
    calls, real = itertools.count(), run.ascend_many

    def interrupted(*args):
        if next(calls) == chunks:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(run, "ascend_many", interrupted)
    result = ascend(links.link, projection=SPHERE, num_steps=100)
    assert "interrupted" in result.status
    if chunks:
        assert result.history["params"]["a"].shape == (run.CHUNK,)
        assert 0.2 < result.estimate.value < 0.3284
    else:
        assert result.params["a"] == 1.0
        assert result.history == {}


def test_an_interrupted_estimate_at_the_end_loses_no_ascent(monkeypatch) -> None:
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(finish, "value_of", interrupted)
    result = ascend(links.link, projection=SPHERE, num_steps=20)
    assert result.estimate is None and np.isfinite(result.params["a"])
    assert len(result.history["gain"]) == 20
    assert any("estimate was interrupted" in warning for warning in result.warnings)


def detuned() -> None:
    """A filter that its parameter, which is large, passes by small changes."""
    x = numpyro.sample("x", dist.Normal())
    off = numpyro.param("f", 100.0) - 100.7
    numpyro.sample("y", dist.Normal(x * jnp.exp(-(off**2)), 0.5))


def test_an_interruption_below_the_start_ends_the_ascent(monkeypatch) -> None:
    chunks = []

    def ascend_many(*args):
        chunks.append(args)
        if len(chunks) > 1:
            raise KeyboardInterrupt
        return step.ascend_many(*args)

    monkeypatch.setattr(run, "ascend_many", ascend_many)
    result = ascend(detuned)
    assert result.status.ending is Ending.INTERRUPTED and len(chunks) == 2
    assert result.estimate.value < 0.1 < 0.45  # at the start


def test_a_large_parameter_that_matters_by_small_changes() -> None:
    """The first rates jump over the peak, to where all is flat."""
    result = ascend(detuned)
    assert float(result.params["f"]) == pytest.approx(100.7, abs=1e-3)
    assert result.estimate.value == pytest.approx(0.5 * np.log(5), abs=1e-5)


def test_minimised_information_promises_no_more_than_it_has() -> None:
    result = quiet.minimize(affine, ig.MI("x", "y"), num_steps=20)
    (sentence,) = (w for w in result.warnings if "would gain" in w)
    gain = float(sentence.split("would gain ")[1].split()[0])
    assert 0 < gain <= 1.1 * result.estimate.value  # it is rounded


def test_a_problem_without_a_maximum_says_so() -> None:
    result = ascend(affine)
    assert "still promised a gain" in result.status
    assert "projection" in result.status


def test_an_end_of_unknown_value_has_not_converged(monkeypatch) -> None:
    value = ig.values.Estimate(0.5, 1e7, 0.0, 1e8, "nested")
    monkeypatch.setattr(finish, "value_of", lambda *args, **kwargs: value)
    result = ascend(links.link, projection=SPHERE)
    assert result.status.ending is Ending.UNFINISHED
    assert "not known, +- 1e+07 nats" in result.status
    assert str(result.status) in result.warnings


# -- guards ------------------------------------------------------------------------
def reflector(seed: int):
    """A link by 32 phases, its maximum in nats, and a random start."""
    rng = np.random.default_rng(7)
    direct, *legs = ((rng.normal(size=(n, 2)) / 2**0.5) @ [1, 1j] for n in (1, 32, 32))
    paths = legs[0] * legs[1]
    start = np.random.default_rng(seed).uniform(-np.pi, np.pi, 32)

    def model():
        theta = numpyro.param("theta", jnp.asarray(start))
        x = numpyro.sample("x", dist.Normal(0, 0.5**0.5).expand([2]).to_event(1))
        gain = direct[0] + jnp.sum(paths * jnp.exp(1j * theta))
        received = gain * (x[0] + 1j * x[1])
        mean = jnp.stack([received.real, received.imag])
        numpyro.sample("y", dist.Normal(mean, 3 * 0.5**0.5).to_event(1))

    return model, np.log1p((abs(direct[0]) + abs(paths).sum()) ** 2 / 9)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_convergence_means_that_nothing_is_left_to_gain(seed) -> None:
    model, most = reflector(seed)
    result = ascend(model)
    assert result.status.ending is Ending.CONVERGED and not result.warnings
    assert result.estimate.value == pytest.approx(most, rel=2e-4)


@pytest.mark.parametrize(
    ("scores", "num_steps"), [("exact", 16), slow("exact", 60), slow(AVERAGE, 60)]
)
def test_an_ascent_that_still_rises_says_by_how_much(scores, num_steps) -> None:
    """The estimate is from gradients alone."""
    model, most = reflector(3)
    result = ascend(model, num_steps=num_steps, scores=scores)
    (sentence,) = result.warnings
    assert "the ascent is not finished" in sentence
    gain = float(sentence.split("would gain ")[1].split()[0])
    missing = most - result.estimate.value
    assert missing > 2e-3 * most
    assert 0.3 < gain / missing < 4.0
    assert f"warning: {sentence}" in repr(result)
    assert "warning: the ascent is not finished" in result._repr_html_()


def test_the_outlook_is_exact_for_a_quadratic_objective() -> None:
    """-sum h (x - top)^2 / 2 with equal h: the line of the move leads to the top."""
    top, before, here = np.array([3.0, -1.0]), np.zeros(2), np.array([1.5, -0.5])
    rng = np.random.default_rng(0)
    seen = 2.0 * (top - here) + 0.1 * rng.normal(size=(40, 2))
    ahead = outlook(seen, 2.0 * (top - before), here - before, np.ones(2), 9.0)
    assert abs(ahead.gain - np.sum((top - here) ** 2)) < 4 * ahead.error < 0.5
    assert ahead.is_rising and ahead.is_clear
    near = outlook(seen, 2.0 * (top - before), here - before, np.ones(2), 0.1)
    assert near.gain == pytest.approx(2.0 * 2.5 * (0.1 - 0.005), rel=0.05)


def test_steepness_tells_gradients_from_noise() -> None:
    rng = np.random.default_rng(1)
    noise = rng.standard_t(2.0, size=(400, 20, 8))
    clear = np.mean([Steepness.of(each).is_clear for each in noise])
    assert clear < 0.1
    found = [Steepness.of(each + 2.0).square for each in rng.normal(size=(400, 20, 8))]
    error = np.std(found) / 20
    assert np.mean(found) == pytest.approx(32.0, abs=4 * error)
    assert Steepness.of(noise[0] + 5.0).is_clear


def clipped(p):
    return {n: jnp.clip(v, -1, 1) for n, v in p.items()}


@pytest.mark.parametrize("projection", [slow(None), clipped], ids=["free", "clipped"])
def test_a_saddle_is_called_a_saddle(projection) -> None:
    """No information at a gain of zero, and none to first order near it."""
    settings = {"init_params": {"a": 0.0}, "projection": projection}
    stays = ascend(affine, num_steps=1, **settings)
    assert stays.status.ending is Ending.SADDLE and stays.params["a"] == 0.0
    assert "is a saddle point" in stays.status and stays.warnings == (stays.status,)
    lowest = quiet.minimize(affine, XY, num_steps=1, **settings)
    assert lowest.status.ending is Ending.ALL_STEPS and not lowest.warnings
    if projection is not None:
        leaves = ascend(affine, **settings)
        assert abs(leaves.params["a"]) == 1.0
        assert "saddle" in leaves.status and "saddle" in leaves.warnings[0]


def test_a_gradient_that_is_lost_in_its_noise_is_reported() -> None:
    def model(scale):
        a = numpyro.param("a", 0.5)
        t = numpyro.sample("t", dist.StudentT(2.5))
        numpyro.deterministic("cost", scale * a * t)
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(a * x, 1))

    def warnings_at(scale):
        objective = XY + ig.Expectation(cost)
        args = {"num_steps": 40, "projection": clipped, "model_args": (scale,)}
        return " ".join(quiet.maximize(model, objective, **args).warnings)

    assert "at the start could not be told from its noise" in warnings_at(100.0)
    assert "noise" not in warnings_at(0.1)


@pytest.mark.slow
def test_a_noisy_ascent_says_what_noise_may_hide() -> None:
    """Gradients of 16 samples end up to 0.3 % below the maximum."""
    start = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)

    def model():
        a = numpyro.param("a", start)
        x = numpyro.sample("x", dist.Normal(0, 1).expand([3]).to_event(1))
        numpyro.sample("y", dist.Normal(a @ x, 0.5**0.5).to_event(1))

    ball = functools.partial(optax.projections.projection_l2_ball, scale=5.0)
    found = ascend(model, scores="mixture", num_samples=16, projection=ball)
    a = np.asarray(found.params["a"], float)
    reached = 0.5 * np.linalg.slogdet(np.eye(3) + 2 * a @ a.T)[1]
    short = 1.5 * math.log(1 + 50 / 3) - reached
    text, hidden = re.fullmatch(r"(.*), to within (\S+) nats", found.status).groups()
    assert text.startswith("converged") and found.status.ending is Ending.CONVERGED
    assert 0.001 * 4.3 < short < float(hidden) < 0.05


def test_a_status_is_a_text_and_an_ending() -> None:
    status = Status("converged after 200 steps", Ending.CONVERGED)
    assert status.startswith("converged") and f"{status}" == "converged after 200 steps"
    copy = pickle.loads(pickle.dumps(status))
    assert copy == status and copy.ending is Ending.CONVERGED


def test_progress_bar(capsys) -> None:
    settings = {"projection": SPHERE, "num_steps": 20}
    ascend(links.link, **settings)
    assert capsys.readouterr() == ("", "")
    ig.maximize_mi(links.link, "x", "y", **settings)
    assert "gradient norm" in capsys.readouterr().err


# -- signs, keys, and the object -----------------------------------------------------
def test_minimize_reports_the_objective_itself() -> None:
    model = channel(lambda x: dist.Normal((numpyro.param("a", 2.0) - 0.7) * x, 1))
    result = quiet.minimize(model, ig.Entropy("y"))
    floor = 0.5 * math.log(2 * math.pi * math.e)
    assert float(result.params["a"]) == pytest.approx(0.7, abs=0.05)
    assert result.estimate.value == pytest.approx(floor, abs=2e-3)
    objective = result.history["objective"]
    assert objective[0] > objective[-1] > floor - 1e-5
    assert np.sum(result.history["gain"]) < 0


@pytest.mark.slow
def test_same_key_same_result_other_key_another() -> None:
    settings = {"projection": SPHERE, "scores": AVERAGE, "num_steps": 20}

    def final(seed):
        result = ascend(links.link, rng_key=jax.random.key(seed), **settings)
        return float(result.params["b"])

    assert final(1) == final(1) != final(2)


def test_object_in_the_shape_of_svi() -> None:
    ascent = ig.InfoMax(links.link, XY, optax.sgd(0.1), projection=SPHERE)
    state = ascent.init(jax.random.key(0), init_params={"a": 0.0, "b": 3.0})
    assert float(ascent.get_params(state)["b"]) == pytest.approx(1.0)  # projected
    values = []
    for _ in range(10):
        state, info = ascent.update(state)
        values.append(float(info.objective))
        assert bool(info.finite)
    assert np.all(np.diff(values) > 0)
    assert int(state.step) == 10
    result = ascent.run(jax.random.key(0), 10, progress_bar=False)
    assert result.history["params"]["a"].shape == (10,)


def test_update_takes_new_arguments_of_the_model() -> None:
    def model(noise):
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, noise))

    ascent = ig.InfoMax(model, XY, optax.sgd(0.1))
    state = ascent.init(jax.random.key(0), 1.0)
    _, info = ascent.update(state)
    assert float(info.gradient_norm) == pytest.approx(0.5, abs=1e-5)
    _, info = ascent.update(state, 2.0)
    assert float(info.gradient_norm) == pytest.approx(0.2, abs=1e-5)


@pytest.mark.slow
def test_update_with_the_same_arguments_is_the_same_ascent() -> None:
    def model(noise):
        x = numpyro.sample("x", dist.Normal(0, 1))
        z = numpyro.deterministic("z", numpyro.param("a", 3.0) * x)
        numpyro.sample("y", dist.Normal(z, noise))

    def way(*arguments):
        power = ig.Expectation(lambda v: v["z"] ** 2)
        ascent = ig.InfoMax(model, XY, subject_to=power <= 20.0)
        state = ascent.init(jax.random.key(0), 1.0)
        for _ in range(20):
            state, info = ascent.update(state, *arguments)
        return float(ascent.get_params(state)["a"]), float(info.excess[0])

    assert way() == way(1.0)
    assert way(0.5) != way()


@pytest.mark.slow
def test_an_annealed_method_appends_its_own_noise_once() -> None:
    scores = Denoising(noise_variance=0.1, num_steps=5)
    ascent = ig.InfoMax(links.amplifier, XY, scores=scores)
    ascent.init(jax.random.key(0))
    posed, _ = ascent._made
    noisy = cooled(posed, {"y": 0.3}, 0.0, posed.sm.params)
    assert float(noisy.sm.appended["y"]) == pytest.approx(0.4)


@pytest.mark.slow
def test_module_encoder_gains_information() -> None:
    """A network before a saturating amplifier, its weights on a ball."""
    inside = functools.partial(optax.projections.projection_l2_ball, scale=3.0)
    small = {"method": ig.values.Nested(1024, 1024, 1024)}
    sm = ig.structural_model(links.saturated_network)
    start = ig.mutual_information(sm, "u", "y", params=inside(sm.params), **small)
    result = quiet.maximize_mi(
        sm, "u", "y", scores=LEARN, projection=inside, num_steps=40, num_samples=1024
    )
    end = ig.mutual_information(sm, "u", "y", params=result.params, **small)
    assert end.lower > start.upper + 0.1
    assert float(optax.tree.norm(result.params)) <= 3.0 + 1e-4


def test_update_checks_arguments_that_change_the_computation() -> None:
    def model(shape="linear", y=None):
        a = numpyro.param("a", 1.0)
        x = numpyro.sample("x", dist.Normal(0, 1))
        mean = a * x
        if shape == "tanh":
            mean = jnp.tanh(mean)
        if shape == "jump":
            mean = jnp.where(mean > 0.3, 1.0, -1.0)
        numpyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    ascent = ig.InfoMax(model, XY, optax.adam(0.1))
    state = ascent.init(jax.random.key(0))
    for arguments, error in (
        (("tanh",), ig.errors.ScoreError),
        (("jump",), ig.errors.JumpError),
        (("linear", 0.3), ig.errors.SiteError),
    ):
        with pytest.raises(error):
            ascent.update(state, *arguments)
    _, info = ascent.update(state)
    norm = 4 / (1 + 4)  # 4 a / (1 + 4 a^2)
    assert float(info.gradient_norm) == pytest.approx(norm, rel=1e-4)


def test_noise_that_the_method_appends_stays_on_the_readout() -> None:
    """Of an ascent, also after the model's arguments change."""

    def model(scale=1.0):
        x = numpyro.sample("x", dist.Normal(0, 1))
        y = numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, scale))
        numpyro.deterministic("d", 2 * y)

    objective = ig.MI("x", "d")
    scores = Denoising(hidden=(8,), num_steps=2, pool_size=1024, noise_variance=0.1)
    ascent = ig.InfoMax(model, objective, scores=scores, num_samples=256)
    state = ascent.init(jax.random.key(0))
    assert ascent._made is not None and [*ascent._made[0].sm.appended] == ["d"]
    state, info = ascent.update(state, 1.1)
    assert info.finite


def test_an_ascent_goes_back_from_a_probability_above_one() -> None:
    """I(x; y) rises with p up to its end."""

    def model():
        p = numpyro.param("p", 0.9)
        x = numpyro.sample("x", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Bernoulli(jnp.where(x == 1, p, 0.3)))

    result = quiet.maximize_mi(model, "x", "y", num_steps=40)
    assert 0.99 < result.params["p"] < 1.01
    assert result.estimate is not None and "worse" not in result.status


@pytest.mark.slow
def test_an_ascent_goes_back_from_edges_out_of_order() -> None:
    """The least informative thresholds are two that are equal."""

    def law(x):
        edges = numpyro.param("edges", jnp.array([-0.5, 0.1, 0.6]))
        return Quantized(dist.Normal(x, 0.3), edges)

    result = quiet.minimize(channel(law), XY, num_steps=60)
    assert result.estimate is not None and np.all(np.diff(result.params["edges"]) > 0)
    assert result.params["edges"][2] - result.params["edges"][1] < 0.05


def test_rest_is_explained() -> None:
    def law(x):
        numpyro.param("a", 1.0)
        return dist.Normal(x, 1)

    result = quiet.maximize(channel(law), XY, num_steps=1)
    assert "no parameter reaches 'x', 'y'" in result.status
    start = {"a": 1.0, "b": 1.0}
    held = ascend(links.link, num_steps=1, projection=clipped, init_params=start)
    assert "projection" in held.status


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_right_projections_are_accepted_in_any_unit(size) -> None:
    def onto_psd(params):
        values, vectors = jnp.linalg.eigh((params["c"] + params["c"].T) / 2)
        return {"c": (vectors * jnp.maximum(values, 0.0)) @ vectors.T}

    start = {"c": size * jnp.eye(4)}
    move.check_enforces(onto_psd, start, {"c": constraints.positive_definite})
    with pytest.raises(ig.errors.ArgumentError, match="outside its constraint"):
        move.check_enforces(lambda p: p, start, {"c": constraints.positive_definite})


@pytest.mark.parametrize("norm", [0.0, 0.5])
def test_noise_is_no_rise_but_a_gradient_is(norm):
    """The nudge at the end of a cycle: zero for noise, else at most the true gain."""
    rng, found = np.random.default_rng(0), []
    slope = norm * np.eye(100)[0]
    ended = types.SimpleNamespace(_each_unconstrained=lambda: [{"a": np.ones(100)}])
    for _ in range(100):
        each = slope + 0.1 * rng.normal(size=(2, 1, 20, 100))
        ended.chunks = [types.SimpleNamespace(gradient={"a": g}) for g in each]
        found.append(run.Run._gain_of_small_move(ended, 0))
    whole = 0.01 * 10.0 * norm  # one percent of the size, along the gradient
    if norm:
        assert 0.7 * whole < min(found) and np.mean(found) < whole
    else:
        assert np.mean(np.array(found) > 0) < 0.1
