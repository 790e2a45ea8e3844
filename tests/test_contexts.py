# SPDX-License-Identifier: Apache-2.0
"""Calls inside JAX transformations, NumPyro handlers and threads."""

from concurrent.futures import ThreadPoolExecutor
import warnings

from models import affine, channel, tanh_channel, with_gain
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import jax
import jax.numpy as jnp
import optax

import numpyro
from numpyro import handlers
import numpyro.distributions as dist
from numpyro.distributions import constraints

from helpers import quiet, refuses
import numpyro_infograd as ig
from numpyro_infograd import _guides
from numpyro_infograd.errors import (
    ModelError,
    ParameterError,
    TransformationError,
)
from numpyro_infograd.scores import Denoising, Mixture

XY = ig.MI("x", "y")
QUICK = Denoising(
    hidden=(8,), num_steps=5, batch_size=256, pool_size=1024, num_samples=256
)
SMALL = Mixture(num_components=256, num_samples=256)
OBSERVED = {"y": np.random.default_rng(0).normal(size=2000)}
KEY = jax.random.key(0)
ASCENT = ig.InfoMax(affine, XY)

# Every public function that returns numbers, of a start for the parameter.
DOORS = {
    "gradient": lambda a: ig.gradient(affine, XY, params={"a": a}),
    "estimate": lambda a: ig.estimate(affine, XY, params={"a": a}),
    "mutual_information": lambda a: ig.mutual_information(
        affine, "x", "y", params={"a": a}
    ),
    "design": lambda a: ig.design(affine, {"a": [a, 2.0]}, "x", "y"),
    "null_check": lambda a: ig.null_check(affine, "x", "y", params={"a": a}),
    "maximize": lambda a: quiet.maximize(affine, XY, init_params={"a": a}, num_steps=2),
    "maximize_mi": lambda a: quiet.maximize_mi(
        affine, "x", "y", init_params={"a": a}, num_steps=2
    ),
    "minimize": lambda a: quiet.minimize(affine, XY, init_params={"a": a}, num_steps=2),
    "calibrate": lambda a: quiet.calibrate(affine, OBSERVED, init_params={"a": a}),
    "rate_region": lambda a: quiet.rate_region(
        affine, {"r": XY}, num_weights=2, init_params={"a": a}
    ),
    "check_scores": lambda a: ig.diagnostics.check_scores(
        affine, XY, params={"a": a}, verbose=False
    ),
    "pretrain_scores": lambda a: ig.pretrain_scores(affine, XY, {"a": (0.0, a)}),
    "InfoMax": lambda a: ig.InfoMax(affine, XY),
    "InfoMax.init": lambda a: ASCENT.init(KEY, init_params={"a": a}),
    "InfoMax.run": lambda a: ASCENT.run(KEY, 2, init_params={"a": a}),
}


# Inside JAX.
TRANSFORMATIONS = {
    "jit": lambda f: jax.jit(f)(1.0),
    "vmap": lambda f: jax.vmap(f)(jnp.ones(2)),
    "grad": lambda f: jax.grad(f)(1.0),
    "scan": lambda f: jax.lax.scan(lambda a, _: (f(a), a), 1.0, length=2),
}


@pytest.mark.parametrize("name", DOORS)
def test_a_transformation_is_refused(name) -> None:
    """Also if nothing that is passed is traced: the model may capture it."""
    for transform in TRANSFORMATIONS.values():
        for traced in (True, False):
            words = f"{name} was called inside a JAX transformation.*Call it outside"
            with pytest.raises(TransformationError, match=words):
                transform(lambda a: DOORS[name](a if traced else 1.0) and a)  # noqa: B023


def test_captured_and_random_values_are_refused_too() -> None:
    def gain(a):
        return ig.gradient(with_gain(lambda m: dist.Normal(a * m, 1)), XY).value["a"]

    for function, argument in (
        (gain, 1.0),
        (lambda key: ig.gradient(affine, XY, rng_key=key).value["a"], KEY),
        (lambda weight: ig.gradient(affine, weight * XY).value["a"], 2.0),
    ):
        assert np.isfinite(float(function(argument)))
        refuses(TransformationError, call=lambda: jax.jit(function)(argument))  # noqa: B023


def test_structural_models_work_inside() -> None:
    """With the derivative of the samples in an argument of the model."""

    def model(scale):
        channel(lambda x: dist.Normal(scale * jnp.tanh(x), 1.0))()

    def mean(scale):
        return ig.structural_model(model, scale).sample(KEY, 8)["y"].mean()

    slope = (mean(2.1) - mean(1.9)) / 0.2
    for derivative in (jax.grad(mean), jax.jit(jax.grad(mean))):
        assert float(derivative(2.0)) == pytest.approx(float(slope), rel=1e-3)
    both = jax.vmap(mean)(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(both, [mean(1.0), mean(2.0)], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scores", [SMALL, QUICK], ids=["mixture", "nets"])
def test_steps_work_inside(scores) -> None:
    ascent = ig.InfoMax(
        tanh_channel, XY, optax.sgd(0.1), scores=scores, num_samples=256
    )
    state = ascent.init(KEY)
    right = ascent.update(state)[1].gradient["a"]
    pair = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    steps = jax.lax.scan(lambda s, _: ascent.update(s), state, length=2)[1]
    found = jax.jit(ascent.update)(state)[1], steps, jax.vmap(ascent.update)(pair)[1]
    for info, index in zip(found, ((), 0, 1), strict=True):
        np.testing.assert_allclose(info.gradient["a"][index], right, rtol=1e-4)
    traced = jax.jit(lambda s: ascent.update(s, 1.0))
    words = "with arguments of the model"
    refuses(TransformationError, words, call=lambda: traced(state))


def test_a_step_has_no_derivative_but_makes_a_term_of_a_loss() -> None:
    """The derivative of log(1 + a^2) / 2 is a / (1 + a^2)."""
    ascent = ig.InfoMax(affine, XY, optax.sgd(0.1))
    state = ascent.init(KEY)

    def step(params):
        return ascent.update(state._replace(unconstrained_params=params))[1]

    def term(params):
        gradient = step(jax.lax.stop_gradient(params)).gradient
        return gradient["a"] * params["a"] + params["a"] ** 2

    params = {"a": jnp.asarray(2.0)}
    for way in (jax.grad, lambda f: jax.jit(jax.grad(f))):
        with pytest.raises(TransformationError, match="stop_gradient"):
            way(lambda p: step(p).objective)(params)
        assert float(way(term)(params)["a"]) == pytest.approx(0.4 + 4.0, rel=1e-5)


def test_rules_for_debugging_do_not_reach_this_package() -> None:
    """NaN stands for an unknown value, and arrays of unlike ranks are combined."""

    def answers() -> tuple[float, float]:
        found = ig.gradient(tanh_channel, XY, scores=SMALL).value["a"]
        search = ig.InfoMax(tanh_channel, XY, scores=SMALL)
        state, info = search.update(search.init(KEY))
        assert np.isnan(info.objective)
        return float(found), float(state.unconstrained_params["a"])

    plain = answers()
    with (
        jax.debug_nans(True),
        jax.debug_key_reuse(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        assert answers() == plain
        assert jax.config.jax_debug_nans


def test_no_traced_value_outlives_its_trace() -> None:
    def computed():
        a = numpyro.param("a", lambda key: 1.0 + 0.0 * jax.random.normal(key))
        high = jnp.exp(jnp.ones(()))
        b = numpyro.param(
            "b", jnp.ones(2).mean(), constraint=constraints.interval(0.0, high)
        )
        x = numpyro.sample("x", dist.Normal())
        numpyro.sample("y", dist.Normal(a * b * x, 1.0))

    with jax.checking_leaks():
        found = ig.gradient(computed, XY).value["b"]
        ig.estimate(affine, XY)
    assert float(found) == pytest.approx(0.5, rel=1e-5)
    # The bound is known, although it is computed in the model.
    with pytest.raises(ParameterError, match="'b' is outside its constraint"):
        ig.gradient(computed, XY, params={"b": 3.0})


@pytest.mark.slow
def test_no_traced_value_outlives_the_other_functions() -> None:
    settings = {"num_steps": 2, "num_samples": 256}
    with jax.checking_leaks():
        for scores in (SMALL, QUICK):
            ig.gradient(tanh_channel, XY, scores=scores, num_samples=256)
        ig.estimate(tanh_channel, XY, method=ig.values.Nested(256, 256, 256))
        quiet.maximize(affine, XY, num_steps=2)
        quiet.calibrate(affine, OBSERVED, divergence="kl", num_draws=20, **settings)


# Calls of Python from a model.
def host(x):
    return np.tanh(x)


def on_the_host(**settings):
    return lambda x: jax.pure_callback(host, jax.typeof(x), x, **settings)


@jax.custom_jvp
def with_derivative(x):
    return on_the_host(vmap_method="expand_dims")(x)


@with_derivative.defjvp
def _(primals, tangents):
    y = with_derivative(*primals)
    return y, (1 - y**2) * tangents[0]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (on_the_host(), "calls host by jax.pure_callback, which does not run"),
        (on_the_host(vmap_method="sequential"), "calls Python by jax.pure_callback"),
    ],
)
def test_a_callback_without_derivative_is_refused(function, words) -> None:
    model = with_gain(lambda m: dist.Normal(function(m), 0.5))
    energy = ig.Expectation(lambda v: function(v["y"]))
    for call in (
        lambda: ig.gradient(model, XY),
        lambda: ig.estimate(model, XY),
        lambda: quiet.maximize(model, XY, num_steps=1),
        lambda: ig.gradient(affine, energy),
    ):
        refuses(ModelError, words, "jax.custom_jvp", call=call)


@pytest.mark.slow
def test_a_new_callback_in_each_run_is_no_other_model() -> None:
    """The runs differ in code, not in values, which a trace around them hides."""

    class Host:
        def __call__(self, value):
            return np.sin(value)

    def model():
        x = numpyro.sample("x", dist.Normal(0, 1))
        shape = jax.typeof(x)
        seen = jax.pure_callback(Host(), shape, x, vmap_method="expand_dims")
        numpyro.sample("y", dist.Normal(seen, 1))

    assert ig.structural_model(model).sites == ("x", "y")
    assert jax.jit(lambda a: (ig.structural_model(model), a)[1])(1.0) == 1.0


def test_a_callback_with_a_derivative_works() -> None:
    model = with_gain(lambda m: dist.Normal(with_derivative(m), 0.5))
    found, right = (
        ig.gradient(m, XY, scores=SMALL).value["a"] for m in (model, tanh_channel)
    )
    assert float(found) == pytest.approx(float(right), rel=1e-4)


# Inside NumPyro.
@pytest.mark.parametrize(
    ("handler", "name"),
    [
        (handlers.trace, ""),
        (lambda: handlers.seed(rng_seed=0), ""),
        (handlers.block, ""),
        (lambda: handlers.substitute(data={"a": 2.0}), "substitute"),
        (lambda: handlers.condition(data={"x": 0.0}), "condition"),
        (lambda: handlers.do(data={"x": 0.0}), "do"),
        (lambda: handlers.mask(mask=False), "mask"),
        (lambda: handlers.scale(scale=2.0), "scale"),
        (lambda: numpyro.plate("n", 3), "plate"),
    ],
)
def test_handlers_around_a_call_do_not_reach_the_model(handler, name) -> None:
    calls = (
        lambda: ig.gradient(affine, XY).value["a"],
        lambda: ig.structural_model(affine).sample(KEY, 4)["y"],
    )
    for call in calls:
        right = call()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            with handler() as outer:
                found = call()
        np.testing.assert_array_equal(found, right)
        assert handler is not handlers.trace or not outer
        assert [name in str(w.message) for w in seen] == [True] * bool(name)
        assert all(w.filename == __file__ for w in seen)


def test_a_posterior_model_runs_without_handlers_around_the_call() -> None:
    def guide(y):
        numpyro.sample("x", dist.Normal(numpyro.param("gain", 0.5) * y, 1.0))

    sm = ig.structural_model(affine)
    draws = sm.sample(KEY, 8)
    own, given = {"x": draws["x"]}, {"y": draws["y"]}
    with handlers.trace() as outer, handlers.substitute(data={"gain": 9.0}):
        _guides.check(guide, own, given, frozenset())
        start = _guides.initial_params(guide, {"y": draws["y"][0]}, KEY)
        found = _guides.log_density(guide, start, {"x": 1.0}, {"y": 1.0})
    assert not outer
    assert float(found) == pytest.approx(float(dist.Normal(0.5, 1.0).log_prob(1.0)))


# Threads.
def test_threads_take_turns() -> None:
    """Six threads, each with a model of another gain: a / (1 + a^2) from each."""

    def one(gain):
        captured = jnp.asarray(gain)
        model = with_gain(lambda m: dist.Normal(captured * m, 1.0))
        return float(ig.gradient(model, XY).value["a"])

    gains = [0.5 + 0.25 * k for k in range(6)]
    one(1.0)  # compile once
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(one, gains))
    np.testing.assert_allclose(found, [g**2 / (1 + g**2) for g in gains], rtol=1e-5)


def test_blas_has_one_thread_during_a_call_and_its_own_number_afterwards() -> None:
    seen = []

    def count() -> set[int]:
        blas = [each for each in threadpool_info() if each["user_api"] == "blas"]
        return {each["num_threads"] for each in blas}

    def model() -> None:
        seen.append(count())
        affine()

    with threadpool_limits(3, user_api="blas"):
        ig.mutual_information(model, "x", "y")
        with pytest.raises(ParameterError):
            ig.mutual_information(model, "x", "y", params={"b": 1.0})
        assert count() <= {3}  # empty with a BLAS that has no such setting
    assert seen and all(each <= {1} for each in seen)
