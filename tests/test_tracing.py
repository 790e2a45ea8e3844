# SPDX-License-Identifier: Apache-2.0
"""A traced model is the model: same law, same graph, same density.

The reference is NumPyro itself: `Predictive` for the law of every site and of all of
them jointly, `log_density` for densities.
"""

import copy
import functools
import pickle
import re
from typing import Any

import graphviz
from methods import slow
from models import ZOO, channel, with_gain
import numpy as np
import pytest
from scipy import special, stats

import jax
import jax.numpy as jnp

import numpyro
from numpyro.contrib.control_flow import scan
import numpyro.distributions as dist
from numpyro.infer import Predictive
from numpyro.infer.util import log_density

from helpers import assert_within, refuses
import numpyro_infograd as ig
from numpyro_infograd import StructuralModel, structural_model
from numpyro_infograd._density import simulate
from numpyro_infograd._edits import append_noise
from numpyro_infograd.errors import ArgumentError, ModelError

DRAWS = 4096
# The laws of these are those of others, or are compared in test_numpyro_models.py.
ELSEWHERE = (
    "affine tanh_channel eight_schools mixture_prior ar2 gaussian_process".split()
)
DEAR = ("scan_model", "qam", "wrapped_distributions")


@functools.cache
def traced(name: str) -> StructuralModel:
    """The model of that name, traced once for all tests."""
    return structural_model(ZOO[name])


@functools.cache
def drawn(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Noise and values of the model of that name, DRAWS of each."""
    noise = traced(name).sample_noise(jax.random.key(7), DRAWS)
    return noise, traced(name).evaluate({}, noise)


def flat(values: dict[str, Any], sites: tuple[str, ...]) -> np.ndarray:
    """All scalars of the sites side by side, (num_samples, dimensions)."""
    columns = [np.asarray(values[s], np.float64) for s in sites]
    return np.concatenate([c.reshape(len(c), -1) for c in columns], axis=1)


def moments(x: np.ndarray) -> np.ndarray:
    """First, second and a nonlinear moment of each scalar, and one of all jointly."""
    weights = 1.0 + np.cos(3.0 * np.arange(x.shape[1]))
    spread = np.maximum(x.std(0), 1e-9)
    joint = np.sin((x - 0.3 * spread) / spread @ weights / np.sqrt(x.shape[1]))
    return np.concatenate([x, x**2, np.tanh(x - 0.5), joint[:, None]], axis=1)


def assert_same_law(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Moments agree in standard errors; each scalar passes a Kolmogorov test."""
    a, b = moments(ours), moments(theirs)
    scale = np.hypot(a.std(0), b.std(0))
    constant = scale < 1e-6
    np.testing.assert_allclose(a[0, constant], b[0, constant], rtol=1e-5, atol=1e-6)
    scale = np.where(constant, 1.0, scale)
    difference = np.where(constant, 0.0, (a.mean(0) - b.mean(0)) / scale)
    error = np.where(constant, 0.0, 1.0 / np.sqrt(len(a)))
    assert_within(difference, error, np.zeros_like(difference), max_standard_error=0.02)
    for column in range(ours.shape[1]):
        if not constant[column]:
            found = stats.ks_2samp(ours[:, column], theirs[:, column], method="asymp")
            assert found.pvalue > 1e-4, (column, found)


# The law.
@pytest.mark.parametrize(
    "name",
    [slow(name) if name in DEAR else name for name in ZOO if name not in ELSEWHERE],
)
def test_same_law_as_predictive(name):
    sm = traced(name)
    settings = {"params": sm.params, "num_samples": DRAWS, "parallel": True}
    theirs = Predictive(ZOO[name], **settings)(jax.random.key(11))
    noise, ours = drawn(name)
    assert set(ours) == set(sm.sites) == set(theirs)
    for site, values in ours.items():
        assert values.shape == theirs[site].shape == (DRAWS, *sm.site_info[site].shape)
        assert values.dtype == theirs[site].dtype == sm.site_info[site].dtype
    for site, law in sm.noise.items():
        assert noise[site].shape == (DRAWS, *law.shape)
        is_key = jnp.issubdtype(noise[site].dtype, jax.dtypes.prng_key)
        assert is_key == (law.kind == "key")
    assert_same_law(flat(ours, sm.sites), flat(theirs, sm.sites))


def test_another_law_is_told():
    sm = traced("multipath")
    ours = flat(drawn("multipath")[1], sm.sites)
    other = flat(sm.sample(jax.random.key(1), DRAWS, {"a": 1.05}), sm.sites)
    assert_same_law(ours, flat(sm.sample(jax.random.key(1), DRAWS), sm.sites))
    with pytest.raises(AssertionError, match="standard errors"):
        assert_same_law(ours, other + 0.1)
    shuffled = ours.copy()  # every site by itself has the right law
    shuffled[:, 0] = np.roll(shuffled[:, 0], 1)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_same_law(ours, shuffled)


def test_arguments_reach_the_model():
    def model(x, *, scale=1.0):
        numpyro.sample("y", dist.Normal(numpyro.param("a", 2.0) * x, scale))

    sm = structural_model(model, jnp.arange(3.0), scale=jnp.array(1e-6))
    values = sm.sample(jax.random.key(0), 5, params={"a": -1})
    wanted = np.broadcast_to(-np.arange(3.0), (5, 3))
    np.testing.assert_allclose(values["y"], wanted, atol=1e-5)


def test_params_and_constraints():
    sm = traced("constrained_params")
    np.testing.assert_allclose(sm.params["share"], np.ones(3) / 3)
    assert list(sm.constraints) == list(sm.params) == ["share", "gain", "rate"]
    assert sm.constraints["gain"].upper_bound == 2.0
    assert structural_model(sm) is sm
    for leaf in jax.tree.leaves(sm.params):
        assert not leaf.weak_type


def test_what_is_held_is_constant_and_said_so():
    states = {name: traced("conditioned").site_info[name].state for name in "xuvy"}
    assert states == {"x": "free", "u": "observed", "v": "free", "y": "free"}
    assert traced("substituted").site_info["x"].state == "substituted"
    assert traced("observed_in_part").site_info["y_observed"].state == "observed"
    values = drawn("conditioned")[1]
    np.testing.assert_allclose(values["u"], 0.7)
    assert "u" not in traced("conditioned").noise


# Noise.
def test_evaluate_is_deterministic_and_the_path_of_sample():
    sm = traced("scan_model")  # with key noise and noise of a scan
    noise, first = drawn("scan_model")
    second = sm.evaluate(sm.params, noise)
    sampled = sm.sample(jax.random.key(7), DRAWS)
    for site in sm.sites:
        np.testing.assert_array_equal(first[site], second[site])
        np.testing.assert_array_equal(first[site], sampled[site])
        assert not np.array_equal(first[site][0], first[site][1])
    assert sm.noise["gain"] == ("key", (3,))
    assert sm.noise["state"] == ("uniform", (3,))
    steps = first["gain"][:64]  # no key is used twice
    assert len(np.unique(steps)) == steps.size


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_equals_a_loop(reverse):
    noise, values = drawn("scan_reversed" if reverse else "scan_model")
    values = {k: np.asarray(v) for k, v in values.items()}
    drives, state = np.linspace(-1.0, 1.5, 3), values["start"]
    u, z = np.asarray(noise["state"], np.float64), np.asarray(noise["reading"])
    laplace = -np.sign(u - 0.5) * np.log1p(-2 * np.abs(u - 0.5))
    for step in range(3):
        # Outputs stand at their own time; noise is used up in the order of the steps.
        place = 2 - step if reverse else step
        state = np.tanh(0.7 * state) + drives[place] + 0.5 * laplace[:, step]
        np.testing.assert_allclose(values["state"][:, place], state, atol=1e-5)
        power = values["gain"][:, place] * state
        np.testing.assert_allclose(values["power"][:, place], power, atol=1e-5)
        reading = power + 0.4 * z[:, step]
        np.testing.assert_allclose(values["reading"][:, place], reading, atol=1e-5)
        state = values["state"][:, place]
    last = state + 0.2 * np.asarray(noise["y"])
    np.testing.assert_allclose(values["y"], last, atol=1e-5)


def test_quasi_random_noise_is_much_sharper():
    sm = traced("affine")
    truth = np.exp(-0.5 * (1 + 1.0))  # E cos(Y), Y ~ N(0, 2)

    def error(qmc: bool) -> float:
        found = []
        for seed in range(8):
            noise = sm.sample_noise(jax.random.key(seed), 4096, qmc=qmc)
            y = np.asarray(sm.evaluate({}, noise)["y"], np.float64)
            found.append(np.mean(np.cos(y)) - truth)
        return float(np.sqrt(np.mean(np.square(found))))

    assert error(qmc=True) < 0.1 * error(qmc=False)
    assert 0.3 < error(qmc=False) / np.sqrt((0.5 + 0.5 * np.exp(-4) - truth**2) / 4096)


@pytest.mark.slow
def test_quasi_random_noise_has_the_law():
    for name in ("nested_plates", "scan_model"):  # uniform, normal and key noise
        sm = traced(name)
        noise = sm.sample_noise(jax.random.key(2), DRAWS, qmc=True)
        ours = flat(sm.evaluate({}, noise), sm.sites)
        assert_same_law(ours, flat(drawn(name)[1], sm.sites))
        two = [sm.sample_noise(jax.random.key(k), 4, qmc=True)["y"] for k in (0, 1)]
        assert not np.array_equal(*two)


def test_antithetic_noise():
    sm = traced("multipath")  # odd in its noise
    noise = sm.sample_noise(jax.random.key(0), 64)
    mirrored = sm.evaluate({}, jax.tree.map(jnp.negative, noise))
    for site, values in sm.evaluate({}, noise).items():
        np.testing.assert_allclose(mirrored[site], -values, rtol=1e-6)


# The graph.
PARENTS = {
    # Not x, not a, as parents of v: they come through u.
    "multipath": {"x": (), "u": ("x", "a"), "v": ("u", "b"), "y": ("x", "v")},
    "conditioned": {"x": (), "u": (), "v": ("u", "b"), "y": ("x", "v")},
    "nested_plates": {
        "top": (), "group": ("top", "scale"), "item": ("group",), "total": ("item",),
        "y": ("total",)},
    "constrained_params": {"x": (), "w": ("rate",), "y": ("x", "w", "share", "gain")},
    "reparametrized": {
        "mu": (), "theta_decentered": (), "theta": ("mu", "theta_decentered", "tau"),
        "y": ("theta",)},
    "nnx_network": {"u": (), "x": ("u", "net$params"), "y": ("x",)},
    "qam": {"symbol": (), "x": ("symbol", "points"), "y": ("x",)},
    "observed_in_part": {
        "x": (), "y_observed": (), "y_unobserved": ("x", "a"),
        "y": ("y_observed", "y_unobserved")},
    "gaussian_process": {
        "length": (), "variance": (), "f": ("length", "variance", "places"),
        "y": ("f",)},
    "ar2": {"sigma": (), "x": ("sigma", "first", "second")},
}  # fmt: skip


@pytest.mark.parametrize("name", PARENTS)
def test_parents(name):
    assert traced(name).parents == PARENTS[name]


def test_parents_in_a_scan():
    # Of what a scan does, only the noise is cut: a site of it has the parents that
    # reach it at any step, and so has what is read off its end.
    parents = traced("scan_model").parents
    assert parents["start"] == parents["gain"] == ()
    assert parents["state"] == ("start", "a")
    assert parents["power"] == ("start", "gain", "state", "a")
    assert set(parents["y"]) == {"start", "state", "a"}


def test_a_parent_that_cancels_within_a_site():
    def model():
        x = numpyro.sample("x", dist.Normal())
        a = numpyro.param("a", jnp.ones(2))
        numpyro.param("idle", 1.0)
        numpyro.sample("y", dist.Normal(a[0] * x, 1.0))
        numpyro.sample("z", dist.Normal(jax.lax.stop_gradient(a[1]) + 0.0, 1.0))

    sm = structural_model(model)
    assert sm.parents == {"x": (), "y": ("x", "a"), "z": ("a",)}
    assert sm.params_of(("x",)) == frozenset()
    assert sm.noise_of(("y",)) == {"x", "y"}


def edges(graph: Any) -> set[tuple[str, str]]:
    pattern = r'^\s*"?([^"\s]+)"? -> "?([^"\s]+)"?$'
    return {m.groups() for m in re.finditer(pattern, graph.source, re.MULTILINE)}


def test_render():
    graph = traced("multipath").render()
    assert isinstance(graph, graphviz.Digraph)
    wanted = {("x", "u"), ("a", "u"), ("u", "v"), ("b", "v"), ("x", "y"), ("v", "y")}
    assert edges(graph) == wanted
    assert "v [label=v shape=box]" in graph.source
    assert re.search(r"^\s*a \[.*fontcolor", graph.source, re.MULTILINE)
    assert "Normal" in graph.source
    assert ("net$params", "x") in edges(traced("nnx_network").render())
    assert "filled" in traced("conditioned").render().source
    assert "u: Normal () <- x, a" in repr(traced("multipath"))


# Retracing.
def make(gains):
    """A fresh closure of one model, with a captured array."""

    def model():
        x = numpyro.sample("x", dist.Normal(jnp.zeros(3), 1.0).to_event(1))

        def step(state, gain):
            state = numpyro.sample("s", dist.Normal(state + gain, 1.0))
            return state, None

        last, _ = scan(step, x.sum(), jnp.asarray(gains))
        numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * last, 1.0))

    return model


def test_retracing_compiles_nothing_and_sees_a_changed_array():
    gains = np.array([0.5, -1.0, 2.0], np.float32)
    one, two = structural_model(make(gains)), structural_model(make(gains.copy()))
    other = structural_model(make(gains + 1.0))
    assert one.forward.code == two.forward.code == other.forward.code
    noise = one.sample_noise(jax.random.key(0), 8)
    first = one.evaluate({}, noise)
    compiled = simulate._cache_size()
    np.testing.assert_array_equal(first["y"], two.evaluate({}, noise)["y"])
    moved = other.evaluate({}, noise)
    np.testing.assert_allclose(moved["y"] - first["y"], 3.0, rtol=1e-5)
    one.evaluate({"a": 2.0}, noise)
    assert simulate._cache_size() == compiled
    density, fresh = one.density(("y",), ("x",)), two.density(("y",), ("x",))
    assert density.program.code == fresh.program.code
    assert jax.tree.structure(density) == jax.tree.structure(fresh)


# Appended noise.
def test_appended_noise_adds_its_variance_and_stays_off_downstream_sites():
    sm = traced("multipath")
    edited = append_noise(sm, {"u": 0.3, "v": 0.05})
    assert set(edited.noise) == {*sm.noise, "u+noise", "v+noise"}
    assert edited.appended == {"u": 0.3, "v": 0.05}
    assert not sm.appended
    noise = edited.sample_noise(jax.random.key(1), 4096, qmc=True)
    noisy = edited.evaluate({}, noise)
    clean = sm.evaluate({}, {name: noise[name] for name in sm.noise})
    for site in ("x", "y"):
        np.testing.assert_array_equal(noisy[site], clean[site])
    for site, variance in (("u", 0.3), ("v", 0.05)):
        added = np.asarray(noisy[site] - clean[site], np.float64)
        np.testing.assert_allclose(added.var(), variance, rtol=2e-3)
        np.testing.assert_allclose(added.mean(), 0.0, atol=2e-3 * variance**0.5)
        overlap = np.corrcoef(added, np.asarray(clean[site], np.float64))[0, 1]
        assert abs(overlap) < 0.01
    assert edited.noise_of(("y",)) == sm.noise_of(("y",))


def test_appended_noise_gives_a_deterministic_site_a_density():
    sm = append_noise(traced("multipath"), {"v": 0.25})
    density = sm.density(("v",))
    assert density.hidden == ("x", "u")
    noise = {"x": jnp.array(0.3), "u": jnp.array(-1.1)}
    clean = np.tanh(-0.6 * (0.9 * 0.3 - 1.1))
    found = density.log_prob(sm.params, noise, {"v": jnp.array(0.2)})
    wanted = stats.norm(clean, 0.5).logpdf(0.2)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    # What is downstream of v takes the clean value, whatever v was read off as.
    joint = sm.density(("v", "y"))
    both = {"v": jnp.array(0.2), "y": jnp.array(0.4)}
    wanted += stats.norm(clean + 0.3, 1.4).logpdf(0.4)
    found = joint.log_prob(sm.params, noise, both)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_appending_twice_adds_variances():
    twice = append_noise(append_noise(traced("affine"), {"y": 0.3}), {"y": 0.2})
    values = twice.sample(jax.random.key(0), 16384)["y"]
    variance = np.var(np.asarray(values, np.float64))
    error = variance * np.sqrt(2 / 16384)
    assert_within(variance, error, 2.5, max_standard_error=0.05)


# Densities with values put in by hand.
DENSITIES = """multipath nested_plates constrained_params reparametrized mixture_prior
qam scan_model scan_reversed ar2""".split()


@pytest.mark.parametrize("name", DENSITIES)
def test_density_of_everything_is_log_density(name):
    sm = traced(name)
    sites = tuple(s for s in sm.sites if sm.site_info[s].kind == "sample")
    density = sm.density(sites, whole=True)
    assert density.hidden == ()
    values = {site: drawn(name)[1][site][:8] for site in sites}
    # NumPyro hands values to a scan in the order of its steps, which with
    # reverse=True is not the order that they come out in.
    flipped = ("gain", "state", "reading") if name == "scan_reversed" else ()

    @jax.jit
    @jax.vmap
    def both(values):
        ours = density.log_prob(sm.params, {}, values)
        handed = {s: v[::-1] if s in flipped else v for s, v in values.items()}
        return ours, log_density(ZOO[name], (), {}, {**sm.params, **handed})[0]

    ours, theirs = both(values)
    assert np.ptp(ours) > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-4)


def test_density_given_sites_and_noise():
    sm = traced("multipath")
    a, b = 0.9, -0.6
    # Nothing given: the noise of x and u stays hidden.
    alone = sm.density(("y",))
    assert alone.hidden == ("x", "u")
    assert alone.moved_sites == alone.log_prob_sites == ("y",)
    noise = {"x": jnp.array(0.5), "u": jnp.array(-0.2)}
    mean = 0.5 + np.tanh(b * (a * 0.5 - 0.2))
    found = alone.log_prob(sm.params, noise, {"y": jnp.array(1.0)})
    np.testing.assert_allclose(found, stats.norm(mean, 1.4).logpdf(1.0), rtol=1e-5)
    # Given u: v follows the value put in, x its noise.
    given = sm.density(("y",), ("u",))
    assert given.hidden == ("x",)
    values = {"y": jnp.array(1.0), "u": jnp.array(2.0)}
    found = given.log_prob(sm.params, {"x": jnp.array(0.5)}, values)
    mean = 0.5 + np.tanh(b * 2.0)
    np.testing.assert_allclose(found, stats.norm(mean, 1.4).logpdf(1.0), rtol=1e-5)
    # Given the deterministic v as well, put in by hand: x is known, nothing hidden.
    whole = sm.density(("y",), ("x", "v"))
    assert whole.hidden == ()
    values = {"y": jnp.array(1.0), "x": jnp.array(-0.5), "v": jnp.array(0.1)}
    found = whole.log_prob(sm.params, {}, values)
    np.testing.assert_allclose(found, stats.norm(-0.4, 1.4).logpdf(1.0), rtol=1e-5)


def test_density_in_a_scan_given_its_states():
    sm = traced("scan_model")
    density = sm.density(("reading",), ("state",))
    assert density.hidden == ("gain",)
    assert set(density.moved_sites) == {"reading", "state"}
    noise, values = jax.tree.map(lambda x: x[:4], drawn("scan_model"))
    state, reading = values["state"][::-1] + 0.3, values["reading"]  # by hand

    @jax.vmap
    def log_prob(gain, reading, state):
        by_hand = {"reading": reading, "state": state}
        return density.log_prob(sm.params, {"gain": gain}, by_hand)

    found = log_prob(noise["gain"], reading, state)
    law = stats.norm(np.asarray(values["gain"] * state), 0.4)
    np.testing.assert_allclose(found, law.logpdf(reading).sum(1), rtol=1e-4)


def test_density_leaves_out_what_no_score_needs():
    sm = traced("affine")
    joint = sm.density(("x", "y"))
    assert joint.log_prob_sites == ("y",)  # x is a root input
    assert joint.hidden == ()
    assert sm.density(("x", "y"), whole=True).log_prob_sites == ("x", "y")
    sm = traced("qam")
    assert sm.density(("symbol", "y")).log_prob_sites == ("y",)


def test_noise_on_a_discrete_site_makes_it_real() -> None:
    """b + N(0, 1/16): two components around 0 and 1."""
    model = with_gain(
        lambda m: dist.Normal(m + numpyro.sample("b", dist.Bernoulli(0.5)), 1)
    )
    noisy = append_noise(ig.structural_model(model), {"b": 1 / 16})
    assert not noisy.site_info["b"].discrete
    value = ig.estimate(noisy, ig.Entropy("b"))
    grid = np.linspace(-2, 3, 4001)
    p = 0.5 * (stats.norm.pdf(grid, 0, 0.25) + stats.norm.pdf(grid, 1, 0.25))
    truth = special.entr(p).sum() * (grid[1] - grid[0])
    assert abs(value.value - truth) < 4 * value.standard_error + 1e-4
    with pytest.raises(ig.errors.ArgumentError, match="positive"):
        append_noise(ig.structural_model(model), {"b": 0.0})


def test_a_substituted_parameter_is_held() -> None:
    model = with_gain(lambda m: dist.Normal(numpyro.param("b", 1.0) * m, 1))
    held = numpyro.handlers.substitute(model, data={"a": 2.0})
    assert list(structural_model(held).params) == ["b"]
    found = ig.gradient(held, ig.MI("x", "y")).value
    assert float(found["b"]) == pytest.approx(4 / 5)  # 4 b / (1 + 4 b^2)


def test_an_error_of_the_model_itself_says_how_far_the_trace_got() -> None:
    model = channel(lambda x: dist.Normal(jnp.ones((2, 4)) @ x, 1), size=3)
    with pytest.raises(TypeError, match="contracting") as caught:
        ig.structural_model(model)
    assert any("after site 'x'" in note for note in caught.value.__notes__)
    with pytest.raises(KeyError, match="mean"):
        ig.structural_model(with_gain(lambda m: dist.Normal({}["mean"], 1.0)))


# -- pickle ------------------------------------------------------------------------
def gained(gain):
    with_gain(lambda m: dist.Normal(gain * jnp.tanh(m), 1.0))()


@ig.channel(inputs="x", outputs="y")
def decorated(gain):
    gained(gain)


@pytest.mark.parametrize("model", [gained, decorated])
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))]
)
def test_a_structural_model_can_be_pickled(model, copied) -> None:
    sm = ig.structural_model(model, np.float32(2.0))
    found, noise = copied(sm), sm.sample_noise(jax.random.key(0), 8)
    assert found is not sm and found.forward.code == sm.forward.code
    for params in ({}, {"a": 3.0}):
        here, there = sm.evaluate(params, noise), found.evaluate(params, noise)
        np.testing.assert_array_equal(here["y"], there["y"])
    assert not np.array_equal(here["y"], sm.evaluate({}, noise)["y"])


def test_what_cannot_be_pickled_says_so() -> None:
    def local():
        gained(1.0)

    with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
        pickle.dumps(ig.structural_model(local))
    noisy = append_noise(ig.structural_model(gained, 1.0), {"y": 0.1})
    refuses(ArgumentError, "Use pickle on the result", call=lambda: pickle.dumps(noisy))


# -- matrices ------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["covariance_matrix", "precision_matrix"])
def test_a_matrix_that_is_not_quite_symmetric(kind) -> None:
    """Rounding makes no difference; more is refused with the line of the site."""

    def model(matrix):
        x = numpyro.sample("x", dist.Normal())
        mean = numpyro.param("a", 1.0) * x * jnp.ones(2)
        numpyro.sample("heard", dist.MultivariateNormal(mean, **{kind: matrix}))

    def gradient(excess):
        matrix = jnp.array([[2.0, 0.5 * (1 + excess)], [0.5, 1.0]])
        found = ig.gradient(model, ig.MI("x", "heard"), model_args=(matrix,))
        return float(found.value["a"])

    assert gradient(1e-6) == pytest.approx(gradient(0.0), rel=1e-5)
    words = f"invalid {kind}", 'numpyro.sample("heard"', "(c + c.T) / 2"
    refuses(ModelError, *words, call=lambda: gradient(1e-2))


def test_a_mean_that_has_no_value_at_zero_is_traced() -> None:
    """A limiter of complex values divides by their magnitude."""

    def limited(x):
        sent = numpyro.param("weights", jnp.eye(2) + 0j) @ x  # a computed initial value
        mean = jnp.tanh(abs(sent)) * sent / abs(sent)
        return ig.distributions.ComplexNormal(mean, 1.0)

    sm = structural_model(channel(limited, size=2))
    assert sm.parents["y"] == ("x", "weights")
    values = sm.evaluate(sm.params, sm.sample_noise(jax.random.key(0), 16))
    assert np.all(np.isfinite(np.asarray(values["y"])))


def test_what_a_traced_model_reads_must_not_change() -> None:
    """Its densities would follow the new value, and its draws the old one."""
    noise = {"scale": 0.5}

    def model() -> None:
        x = numpyro.sample("x", dist.Normal(0, 1))
        y = jnp.tanh(numpyro.param("a", 1.0) * x)
        numpyro.sample("y", dist.Normal(y, noise["scale"]))

    sm = ig.structural_model(model)
    ig.estimate(sm, ig.Entropy("y", given="x"))
    noise["scale"] = 0.1
    with pytest.raises(ModelError, match=r"site 'y' .* Call structural_model again"):
        ig.estimate(sm, ig.Entropy("y", given="x"))
    assert ig.estimate(model, ig.Entropy("y", given="x")).value < 0


def test_counts_without_a_fixed_end_have_no_list_of_values() -> None:
    """Also if the start of a parameter is computed, and the model runs untraced."""

    def thinned() -> None:
        rate = numpyro.param("rate", jnp.exp(jnp.ones(())))
        n = numpyro.sample("n", dist.Poisson(rate))
        numpyro.sample("y", dist.Binomial(n, 0.6))
        numpyro.sample("z", dist.Binomial(5, 0.6))

    sites = ig.structural_model(thinned).site_info
    assert sites["y"].choices == ()
    assert len(sites["z"].choices) == 6
