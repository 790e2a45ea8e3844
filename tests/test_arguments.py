# SPDX-License-Identifier: Apache-2.0
"""What a caller may get wrong, and the error that says so by name."""

import functools
import math
import re

from methods import rest_slow
from models import affine, channel, with_gain
import numpy as np
import pytest
from scipy import stats

import jax
import jax.numpy as jnp
import optax

import numpyro
from numpyro import handlers
import numpyro.distributions as dist
from numpyro.distributions import constraints

from helpers import assert_found, quiet, refuses, refuses_gradient
import numpyro_infograd as ig
from numpyro_infograd import MI, Expectation
from numpyro_infograd._edits import append_noise
from numpyro_infograd.errors import ModelError, ParameterError

XY = MI("x", "y")


def power(values):
    return values["y"] ** 2


# Keys.
@pytest.mark.slow
def test_old_keys_and_none_are_keys():
    sm = ig.structural_model(affine)
    old, new = jax.random.PRNGKey(3), jax.random.key(3)
    for qmc in (False, True):
        draws = [sm.sample_noise(key, 4, qmc=qmc)["x"] for key in (old, new)]
        np.testing.assert_array_equal(*draws)
    settings = {"method": ig.values.Nested(256, 256, 256)}

    def value(key):
        return ig.estimate(sm, XY, rng_key=key, **settings).value

    assert value(old) == value(new) != value(None) == value(jax.random.key(0))
    ascent = ig.InfoMax(sm, XY, scores=ig.scores.Mixture(256), num_samples=256)
    for key in (old, None):
        state, info = ascent.update(ascent.init(key))
        assert bool(info.finite)


# Parameters.
BOUNDARY = {
    "nonnegative": (constraints.nonnegative, 0.0),
    "unit interval": (constraints.unit_interval, 1.0),
    "one of two": (constraints.independent(constraints.unit_interval, 1), [0.5, 0.0]),
}


def bounded(constraint, start):
    def law(x):
        s = numpyro.param("s", jnp.asarray(start), constraint=constraint)
        return dist.Normal(x, 1.0 + jnp.sum(s))

    return channel(law)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDARY)
def test_start_on_the_boundary(name):
    constraint, start = BOUNDARY[name]
    model = bounded(constraint, start)
    ascend = functools.partial(quiet.maximize, model, XY, num_steps=2)
    refuses(ParameterError, "'s'", "boundary", "projection", call=ascend)
    ascend(init_params={"s": jnp.full(np.shape(start), 1e-6)})
    clip = functools.partial(jax.tree.map, lambda s: jnp.clip(s, 0.0, 1.0))
    assert np.all(ascend(projection=clip).params["s"] >= 0)
    ig.gradient(model, XY)


# Functions.
def branching(x):
    return x if x > 0 else 0.1 * x


@pytest.mark.parametrize(
    "fn",
    [
        branching,
        np.tanh,
        math.tanh,
        lambda x: sum(range(x.astype(int))),
        lambda x: jnp.atleast_1d(x)[jnp.atleast_1d(x) > 0].sum(),
        lambda x: numpyro.param("b", 1.0) if branching(numpyro.param("b", 1.0)) else x,
    ],
)
def test_model_that_asks_for_a_traced_number(fn):
    model = with_gain(lambda m: dist.Normal(fn(m), 1.0))
    caught = refuses(
        ModelError, "jnp.where", "jnp.tanh", call=lambda: ig.gradient(model, XY)
    )
    assert isinstance(caught.value.__cause__, (TypeError, IndexError))


# Models and their arguments.
def test_the_first_site_is_named_and_others_do_not_matter():
    def model(spoil):
        x = numpyro.sample("x", dist.Normal())
        numpyro.deterministic("log", jnp.log(-jnp.ones(())))
        v = numpyro.sample("v", dist.Normal(jnp.sqrt(x) if spoil else x, 1.0))
        numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * v, 1.0))

    refuses_gradient(ModelError, "'v'", model=model, model_args=(True,))
    assert float(ig.gradient(model, XY, model_args=(False,)).value["a"]) > 0


# What is accepted with a warning.
def test_a_mask_is_warned_about():
    def model(mask):
        x = numpyro.sample("x", dist.Normal())
        with numpyro.plate("sensors", 3), handlers.mask(mask=mask):
            numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1.0))

    for mask in (False, np.array([True, True, False])):
        with pytest.warns(UserWarning, match="site 'y' carries a mask"):
            found = ig.gradient(model, XY, model_args=(mask,)).value["a"]
        assert float(found) == pytest.approx(0.75, rel=1e-5)  # all three are heard
    for mask in (True, np.ones(3, bool)):
        ig.structural_model(model, mask)


def test_an_expectation_may_guard_a_value_that_is_not_finite():
    def model():
        x = numpyro.sample("x", dist.Normal())
        numpyro.deterministic("log", jnp.log(x))
        numpyro.sample("y", dist.Normal(x, 1.0))

    guarded = Expectation(lambda v: jnp.where(v["x"] > 1, v["log"], 0.0))
    x = np.linspace(1.0, 9.0, 4001)
    truth = np.trapezoid(np.log(x) * stats.norm.pdf(x), x)
    for objective, rest in ((guarded, 0.0), (XY + guarded, np.log(2) / 2)):
        assert_found(ig.estimate(model, objective), truth + rest, 1e-3)


def test_a_constant_is_warned_about_unless_it_is_a_condition():
    def model():
        x = numpyro.sample("x", dist.Normal())
        c = numpyro.deterministic("c", jax.random.normal(jax.random.key(0)))
        numpyro.sample("y", dist.Normal(x + c, 1.0))

    with pytest.warns(UserWarning, match="site 'c' has no noise: it is a constant"):
        found = ig.mutual_information(model, "c", "y")
    assert found.value == pytest.approx(0.0, abs=1e-6)
    found = ig.mutual_information(model, "x", "y", given="c")  # without a warning
    assert found.value == pytest.approx(np.log(2) / 2, abs=1e-6)


def test_an_observed_site_does_not_condition():
    def model(at_x):
        w = numpyro.sample("w", dist.Normal(), obs=0.7)  # a root: held is conditioned
        x = numpyro.sample("x", dist.Normal(w, 1.0))
        numpyro.sample("z", dist.Normal(x if at_x else w, 1.0), obs=0.3)
        numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1.0))

    ascend = functools.partial(quiet.maximize, num_steps=1)
    for function in (ig.gradient, ig.estimate, ascend):
        with pytest.warns(UserWarning, match="'z' is observed.*not condition") as seen:
            function(model, XY, model_args=(True,))
        assert len(seen) == 1
        function(model, XY, model_args=(False,))


# What is shown.
def test_small_gradients_are_shown_with_their_errors():
    def model():
        x = numpyro.sample("x", dist.Normal())
        mean = numpyro.param("a", jnp.array([1.0, 2.0])) * x
        wide = jnp.sum(numpyro.param("w", jnp.zeros((3, 3))))
        numpyro.sample("y", dist.Normal(mean + wide, 1.0).to_event(1))

    text = repr(ig.gradient(model, XY))
    assert "exact scores (the model is linear-Gaussian):" in text
    assert re.search(r"a: \[0\.16666\d 0\.33333\d\] \+- \[0 0\]", text)
    assert "w: 9 numbers, norm" in text


def test_expectations_alone_are_sampled():
    objective = -1.0 * Expectation(power)
    for method in ("auto", "exact", "nested"):
        assert ig.estimate(affine, objective, method=method).method == "sampled"
    found = ig.estimate(affine, XY + objective)
    assert found.method == "exact" and found.sampled == "expectations sampled"
    assert found.standard_error > 0


def test_parents_outlive_appended_noise():
    def model():
        x = numpyro.sample("x", dist.Normal())
        v = numpyro.sample("v", dist.Normal(numpyro.param("a", 1.0) * x, 1.0))
        numpyro.sample("y", dist.Normal(numpyro.param("b", 1.0) * v, 1.0))

    sm = ig.structural_model(model)
    assert sm.parents == {"x": (), "v": ("x", "a"), "y": ("v", "b")}
    for variances in ({"v": 0.1}, {"y": 0.1}, {"v": 0.1, "y": 0.1}):
        assert append_noise(sm, variances).parents == sm.parents
    assert append_noise(append_noise(sm, {"v": 1.0}), {"y": 1.0}).parents == sm.parents


# Where an ascent ends.
@rest_slow("rate", [1e6, 1e3, 30.0])
def test_an_ascent_that_diverges_says_so(rate):
    objective = XY - 0.05 * Expectation(power)
    result = quiet.maximize(affine, objective, optimizer=optax.sgd(rate), num_steps=60)
    assert result.status.startswith("diverged: after 60 steps")
    assert "Lower the learning rate" in result.status
    sound = quiet.maximize(affine, objective, optimizer=optax.sgd(0.3), num_steps=60)
    assert "diverged" not in sound.status


@pytest.mark.slow
def test_an_ascent_goes_on_while_its_rate_holds_it_back():
    """The optimum is far from a start at zero, in a valley that is almost flat."""

    def model():
        a, b = numpyro.param("a", 1.0), numpyro.param("b", 0.0)
        x = numpyro.sample("x", dist.Normal())
        v1 = numpyro.sample("v1", dist.Normal(a * x, 1.0))
        v2 = numpyro.sample("v2", dist.Normal(x, 1.0))
        numpyro.deterministic("power", a**2)
        numpyro.sample("y", dist.Normal(b * v1 + v2, 1.0))

    # log(1 + (ab + 1)^2 / (b^2 + 2)) / 2 - a^2 / 20 has its maximum at b = 2a, where
    # it is log(a^2 + 3/2) / 2 - a^2 / 20: so a^2 = 17/2.
    result = quiet.maximize(model, XY - 0.05 * Expectation(lambda v: v["power"]))
    assert "converged" in result.status
    a, b = (float(result.params[name]) for name in "ab")
    assert a == pytest.approx(math.sqrt(8.5), rel=5e-3)
    assert b == pytest.approx(2 * math.sqrt(8.5), rel=2e-2)
    assert result.history["finite"].size < 1000
