# SPDX-License-Identifier: Apache-2.0
"""Estimators of values, each against closed forms, dense grids and the others."""

import dataclasses
import functools
import math

import links
from methods import slow
from models import channel
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, xlogy

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

from helpers import assert_found, information
import numpyro_infograd as ig
from numpyro_infograd import MI, values
from numpyro_infograd._edits import shuffle_inputs
from numpyro_infograd._terms import without_density
from numpyro_infograd.distributions import Quantized
from numpyro_infograd.errors import ArgumentError, DensityError, ModelError
from numpyro_infograd.values.bounds import warnings_for
import truths

XY = MI("x", "y")
# Small enough for a test, and with errors of its own to match.
FISHER = values.DeBruijn(num_samples=2**16, num_steps=200, hidden=(32, 32))
NESTED = values.Nested(1024, 1024, 2**14)


def check(found, truth, sharp, share=None) -> None:
    assert_found(found, truth, sharp)
    if share is not None:
        assert found.value == pytest.approx(truth, rel=share)


by_fisher = functools.partial(information, method=FISHER)


# -- sums --------------------------------------------------------------------------
def converter(noise: float = 0.1):
    """A converter of four bits behind a gain of 1/2 and Gaussian noise."""
    return channel(lambda x: Quantized(dist.Normal(0.5 * x, noise), links.CODES))


def test_sums_draw_nothing_where_all_sites_have_few_states() -> None:
    """A Z channel: I = h(0.7 p) - p h(0.7) for p = 0.4."""

    def z_channel():
        x = numpyro.sample("x", dist.Bernoulli(numpyro.param("p", 0.4)))
        numpyro.sample("y", dist.Bernoulli(0.7 * x))

    found = information(z_channel)
    truth = stats.bernoulli(0.28).entropy() - 0.4 * stats.bernoulli(0.7).entropy()
    assert found.method == "sums" and found.standard_error == 0
    assert found.value == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("noise", [0.1, slow(0.01)])
def test_sums_over_the_codes_of_a_converter(noise) -> None:
    truth = links.converter_information(0.5, noise)
    found = information(converter(noise))
    assert found.method == "sums" and not found.warnings
    check(found, truth, 1e-4)
    assert found.lower <= found.value <= found.upper
    with pytest.raises(AssertionError):
        check(found, links.converter_information(0.5, 1.01 * noise), 1e-4)


def test_sums_at_each_state_of_a_channel() -> None:
    """A bit whose flips depend on a normal state that the receiver knows."""

    def faded():
        h = numpyro.sample("h", dist.Normal(0, 1))
        u = numpyro.sample("u", dist.Normal(0, 0.5))
        x = numpyro.sample("x", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Bernoulli(logits=3.0 * h * (2 * x - 1) + u))

    (h, p_h), (u, p_u) = links.normal_grid(8, 401), links.normal_grid(8, 201)

    def truth(spread: float) -> float:
        one = expit(3 * h[:, None, None] * [[-1], [1]] + spread * u) @ p_u
        laws = np.stack([one, 1 - one], axis=2)
        return p_h @ [links.table_information(law, np.full(2, 0.5)) for law in laws]

    found = information(faded, given="h", method=values.Sums(256, 2048))
    check(found, truth(0.5), 1e-3)
    with pytest.raises(AssertionError):
        check(found, truth(0.6), 1e-3)


def test_sums_of_a_law_that_is_not_valid_have_no_value() -> None:
    def model():
        edges = numpyro.param("edges", jnp.array([-1.0, 1.0]))
        x = numpyro.sample("x", dist.Normal(0, 1))
        code = numpyro.sample("code", Quantized(dist.Normal(x, 1.0), edges))
        numpyro.sample("y", dist.Bernoulli(0.2 + 0.3 * code))

    found = information(model)
    assert found.method == "sums" and not found.warnings
    with pytest.raises(ModelError, match="of all states of x, y add up to one plus"):
        information(model, params={"edges": jnp.array([1.0, -1.0])})


def test_bounds_of_sums_over_states_that_no_draw_explains() -> None:
    edges = np.linspace(-4.5, 4.5, 64)
    model = channel(lambda x: Quantized(dist.Normal(x, 1e-3), edges))
    found = information(model, method="sums")
    assert found.lower < found.value and found.upper == math.inf


def test_sums_at_each_value_of_a_discrete_condition() -> None:
    """Bits through a hidden interferer, whose size the receiver knows."""

    def model():
        size = numpyro.sample("size", dist.Bernoulli(0.3))
        u = numpyro.sample("u", dist.Normal(0, 1))
        x = numpyro.sample("x", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Bernoulli(logits=4.0 * x - 2 + (1 + 3 * size) * u))

    u, p_u = links.normal_grid(8, 2001)
    truth = 0.0
    for size, share in ((1, 0.7), (4, 0.3)):
        one = [p_u @ expit(mean + size * u) for mean in (-2, 2)]
        law = np.stack([one, 1 - np.array(one)], axis=1)
        truth += share * links.table_information(law, np.full(2, 0.5))
    check(information(model, given="size"), truth, 1e-4)
    with pytest.raises(AssertionError):
        check(information(model), truth, 1e-4)


def test_shuffled_pairs_of_sums_may_need_another_method() -> None:
    """Without their pairs, the sites are paired off by name."""

    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("a", dist.Bernoulli(logits=2 * z))

    assert ig.mutual_information(model, "z", "a").method == "sums"
    assert abs(ig.null_check(model, "z", "a").value) < 1e-4


def test_sums_need_few_states() -> None:
    for objective in (XY, MI("x", "y") + ig.Expectation(lambda v: v["y"])):
        with pytest.raises(DensityError, match="at most 512 joint states.*'auto'"):
            ig.estimate(links.link, objective, method="sums")


def rotated_tanh(variance: float):
    """y = tanh(Q x) + N(0, variance I) in four dimensions."""
    matrix = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    scale = jnp.asarray(math.sqrt(variance))

    def law(x):
        return dist.Normal(jnp.tanh(jnp.asarray(matrix, x.dtype) @ x), scale)

    return channel(law, size=4)


SINGULAR = np.geomspace(3.0, 0.3, 8)
ROTATIONS = [
    np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))[0] for seed in (1, 2)
]
MATRIX = (ROTATIONS[0] * SINGULAR) @ ROTATIONS[1]
EIGHT = 0.5 * float(np.sum(np.log1p(SINGULAR**2 / 0.5)))


def eight():
    x = numpyro.sample("x", dist.Normal(jnp.zeros(8), 1.0).to_event(1))
    matrix = numpyro.param("A", jnp.asarray(MATRIX))
    numpyro.sample("y", dist.Normal(matrix @ x, math.sqrt(0.5)).to_event(1))


def cascade():
    gain = numpyro.param("gain", 2.0)
    x = numpyro.sample("x", dist.Normal(0, 1))
    v1 = numpyro.sample("v1", dist.Normal(jnp.tanh(gain * x), 0.3))
    v2 = numpyro.sample("v2", dist.Normal(jnp.tanh(gain * v1), 0.3))
    numpyro.sample("y", dist.Normal(jnp.tanh(gain * v2), 0.3))


def rayleigh(power: float):
    """A 2 x 2 link in complex numbers, written with real and imaginary parts."""

    def model():
        half = math.sqrt(0.5)
        h = numpyro.sample("h", dist.Normal(jnp.zeros((2, 2, 2)), half).to_event(3))
        x = numpyro.sample("x", dist.Normal(jnp.zeros((2, 2)), half).to_event(2))
        v = gain * (h[0] + 1j * h[1]) @ (x[0] + 1j * x[1])
        mean = jnp.stack([v.real, v.imag])
        numpyro.sample("y", dist.Normal(mean, half).to_event(2))

    gain = jnp.asarray(math.sqrt(power / 2))
    return model


def symbols(levels: np.ndarray, deviation: float):
    """One of `levels`, (count, dimensions), seen through Gaussian noise."""

    def model():
        count = len(levels)
        k = numpyro.sample("x", dist.Categorical(probs=jnp.ones(count) / count))
        mean = jnp.asarray(levels)[k]
        numpyro.sample("y", dist.Normal(mean, scale).to_event(1))

    scale = jnp.asarray(deviation)  # an array: all levels of noise compile once
    return model


PAM = np.array([-3.0, -1.0, 1.0, 3.0])[:, None] / math.sqrt(5.0)


# -- exact, given what is conditioned on ----------------------------------------------
@pytest.mark.parametrize("power", [1.0, 10.0, 100.0])
def test_a_channel_known_at_the_receiver(power) -> None:
    found = information(rayleigh(power), given="h", num_samples=2**14)
    assert found.method == "exact" and found.sampled == "averaged over h"
    check(found, truths.fading_information(power), 0.01, 0.005)


# -- nested ----------------------------------------------------------------------
@pytest.mark.parametrize("decibels", [slow(0.0), 20.0])
def test_four_levels_over_noise(decibels) -> None:
    found = information(symbols(PAM, 10 ** (-decibels / 20)), method=values.Nested(256))
    check(found, truths.pam_information(decibels), 1e-3, 0.003)


@pytest.mark.slow
def test_nested_bounds_enclose_the_truth_however_few_the_draws() -> None:
    """At 4 nats 64 draws give a value that is off, and bounds that are not."""
    gaps = []
    for count in (64, 1024):
        method = values.Nested(count, count, 2**12)
        found = information(rotated_tanh(0.05), method=method)
        assert found.lower < 4.05621 < found.upper
        gaps.append(found.upper - found.lower)
        assert "effective sample size" in found.warnings[0]
    assert gaps[1] < 0.5 * gaps[0]


@pytest.mark.slow
def test_bounds_of_an_entropy_that_hides_noise_with_a_minus_sign() -> None:
    """h(y|x) of the cascade is an average as well: its bounds change sides."""
    found = information(cascade, method=values.Nested(64, 64, 2**12))
    assert found.lower < truths.cascade_information() < found.upper


def test_components_grow_within_their_budget() -> None:
    few = values.Nested(64, 4096, 2**12)
    found = information(rotated_tanh(0.5), method=few)
    assert 64 < found.diagnostics["num_components"] <= 4096
    assert not found.warnings
    capped = dataclasses.replace(few, max_components=64)
    found = information(rotated_tanh(0.5), method=capped)
    assert found.diagnostics["num_components"] == 64
    assert "max_components" in found.warnings[0]


# Little noise on rounded numbers: some levels are too rare for inner draws.
levels = channel(lambda x: dist.Normal(jnp.round(2 * x), 0.002))


EDGES = np.array([-math.inf, *((np.arange(-12, 12) + 0.5) / 2), math.inf])
SHARES = np.diff([0.5 * (1 + math.erf(e / math.sqrt(2))) for e in EDGES])
LEVELS = float(-np.sum(SHARES * np.log(np.maximum(SHARES, 1e-300))))


@pytest.mark.slow
def test_levels_too_rare_for_the_inner_draws() -> None:
    """Draws that nothing else explains count with their own: no outlier runs away."""
    found = information(levels, method=NESTED)
    check(found, LEVELS, 0.02)
    assert found.lower < LEVELS < found.upper


def test_no_component_fits() -> None:
    """A narrow uniform law: no upper bound at all, and a warning."""
    model = channel(lambda x: dist.Uniform(x - 1e-3, x + 1e-3))
    found = information(model, method=values.Nested(64, 64, 2**12))
    truth = 0.5 * math.log(2 * math.pi * math.e) - math.log(2e-3)
    assert math.isfinite(found.value) and found.lower < truth
    assert found.upper == math.inf
    assert "max_components" in found.warnings[0]


# -- fisher ----------------------------------------------------------------------
@pytest.mark.slow
def test_output_without_a_density(monkeypatch) -> None:
    """y = asinh(x + n) carries what x + n does; both its entropies are learned."""
    found = by_fisher(links.unobserved)
    check(found, 0.5 * math.log(2), 0.01)
    assert found.diagnostics["negentropy(y)"] > 0.003
    monkeypatch.setattr(values.choice, "_LEARNED", FISHER)
    auto = information(links.unobserved)
    assert auto.method == "fisher" and "deterministic" in auto.reason
    check(auto, 0.5 * math.log(2), 0.01)


def three_inputs():
    """The output is computed: the noise is added before it, at v."""
    x = numpyro.sample("x", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    v = numpyro.sample("v", dist.Normal(x @ jnp.array([1.0, -2.0, 0.5]), 1.0))
    numpyro.deterministic("y", v / 3)


four_outputs = channel(lambda x: dist.Normal(x, math.sqrt(1 / 200)), size=4)


def noiseless_link():
    """Two paths; the condition is one of them, and y is computed."""
    x = numpyro.sample("x", dist.Normal(0, 1))
    v = numpyro.sample("v", dist.Normal(x, 1))
    n = numpyro.sample("n", dist.Normal(0, 1))
    numpyro.deterministic("y", v + x + n)


ORDER = np.random.default_rng(0).permutation(16) - 7.5


def with_symbols():
    """Sixteen symbols whose order means nothing enter the network one by one."""
    k = numpyro.sample("k", dist.Categorical(probs=jnp.ones(16) / 16))
    x = numpyro.sample("x", dist.Normal(0, 1))
    n = numpyro.sample("n", dist.Normal(0, 1))
    numpyro.deterministic("y", jnp.asarray(ORDER)[k] + x + n)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "given", "size", "truth", "sharp", "share"),
    [
        (three_inputs, (), 2**18, 0.5 * math.log(1 + 5.25), 0.002, None),
        (four_outputs, (), 2**17, 10.60661, 0.02, 0.003),
        (noiseless_link, "v", 2**17, 0.5 * math.log(1.5), 0.01, None),
        (with_symbols, "k", 2**16, 0.5 * math.log(2), 0.02, None),
    ],
)
def test_fisher_in_closed_form(model, given, size, truth, sharp, share) -> None:
    found = by_fisher(model, given=given, num_samples=size)
    check(found, truth, sharp, share)


@pytest.mark.slow
def test_what_the_network_explains_is_needed() -> None:
    """Without the negentropy the saturated channel is far off: a negative control."""
    found = by_fisher(links.amplifier, params={"eta": 3.0})
    check(found, truths.tanh_information(3.0), 0.003, 0.005)
    negentropy = found.diagnostics["negentropy(y)"]
    assert negentropy > 10 * found.standard_error


@pytest.mark.slow
def test_a_poor_network_says_so() -> None:
    """Two hidden units do not do, and the error bar tells."""
    poor = values.DeBruijn(num_samples=2**15, hidden=(2,), num_steps=20)
    settings = {"params": {"eta": 3.0}}
    found = information(links.amplifier, method=poor, **settings)
    good = by_fisher(links.amplifier, **settings)
    assert found.standard_error > 3 * good.standard_error
    check(found, truths.tanh_information(3.0), 0.1)


@pytest.mark.slow
def test_fisher_in_double_precision(x64) -> None:
    check(by_fisher(links.lagged), 0.5 * math.log(2), 0.01)


@pytest.mark.slow
def test_a_network_that_misses_modes_is_contradicted() -> None:
    """Levels finer than a network resolves: its own error bar does not know."""
    found = by_fisher(levels)
    assert found.value > LEVELS + 1
    assert any("nested averages put it" in text for text in found.warnings)


@pytest.mark.slow
def test_modes_that_a_network_does_resolve() -> None:
    """Collinear features hide what tells modes apart, unless made orthogonal."""
    found = by_fisher(symbols(PAM, 10**-0.5))
    check(found, truths.pam_information(10.0), 0.01, 0.005)
    assert not found.warnings


@pytest.mark.slow
def test_fisher_warns_of_heavy_tails() -> None:
    rough = values.DeBruijn(num_samples=2**14, hidden=(16,), num_steps=20)
    found = information(links.cauchy_channel, method=rough)
    assert any("tails so heavy" in warning for warning in found.warnings)


@pytest.mark.slow
def test_fisher_warns_of_networks_that_still_learn() -> None:
    """Four saturating sensors in a smooth field of 21 points: 4.255 nats by chains."""
    points = jnp.concatenate([jnp.linspace(0, 10, 21), jnp.array([1.0, 3.0, 6.0, 8.0])])
    apart = points[:, None] - points
    root = jnp.linalg.cholesky(jnp.exp(-((apart / 1.5) ** 2) / 2) + 1e-4 * jnp.eye(25))

    def model():
        z = numpyro.sample("z", dist.Normal(jnp.zeros(25), 1).to_event(1))
        field = numpyro.deterministic("field", root @ z)
        numpyro.deterministic("target", field[:21])
        numpyro.sample("y", dist.Normal(jnp.tanh(field[21:]), 0.2).to_event(1))

    method = values.DeBruijn(num_steps=500)
    found = ig.mutual_information(model, "target", "y", method=method)
    assert "'target,y' still learned" in found.warnings[0]
    assert found.standard_error > found.diagnostics["grown(target,y)"] > 0.01


def test_computed_sites_of_few_values_are_discrete() -> None:
    """A sign before and behind a noisy link."""

    def model():
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.deterministic("sent", x > 0)
        y = numpyro.sample("y", dist.Normal(x, 1))
        numpyro.deterministic("seen", jnp.where(y > 0, 0.5, -0.5))

    x = np.linspace(-9, 9, 4001)
    p, q = stats.norm.cdf(x), stats.norm.cdf(x / 2**0.5)
    half = np.log(2) + np.trapezoid(2 * stats.norm.pdf(x) * xlogy(p, p), x)
    law = 2 * stats.norm.pdf(x, scale=2**0.5) * q  # of y, for x > 0
    whole = np.trapezoid(law * np.log(2 * q), x)
    quarter = np.array([3 / 8, 1 / 8])  # of (sent, seen)
    both = 2 * np.sum(xlogy(quarter, quarter)) + 2 * np.log(2)
    for inputs, outputs, truth in (
        ("x", "seen", half),
        ("sent", "y", whole),
        ("sent", "seen", both),
        ("sent", "x", np.log(2)),
    ):
        found = ig.mutual_information(model, inputs, outputs)
        assert found.standard_error < 2e-3, (inputs, outputs, found)
        check(found, truth, 3e-3)
    with pytest.raises(ArgumentError, match="'seen' is discrete"):
        ig.mutual_information(model, "x", "seen", method="fisher")


def test_a_computed_condition_that_an_output_needs_alone_has_no_law() -> None:
    """The density of the output given it is known, and its own cancels."""

    def model():
        x = numpyro.sample("x", dist.Normal(0, 1))
        sent = numpyro.deterministic("sent", jnp.clip(jnp.round(x), -2, 2))
        numpyro.sample("heard", dist.Normal(sent, 1))
        numpyro.sample("both", dist.Normal(sent + x, 1))

    sm = ig.structural_model(model)
    assert without_density(ig.MI("sent", "heard"), sm) == set()
    assert without_density(ig.MI("sent", "both"), sm) == {"sent"}


def test_nested_averages_stay_where_chains_fail() -> None:
    """As for a gamma input whose draws are rounded to zero, where chains have NaN."""
    size = {"effective_sample_size_low": 300.0}
    nested = values.Estimate(0.4, 0.1, 0.3, 0.5, "nested", diagnostics=size)
    failed = values.Estimate(np.nan, np.nan, np.nan, np.nan, "mcmc")

    def by(method):
        return failed if isinstance(method, values.MCMC) else nested

    sm = ig.structural_model(channel(lambda x: dist.Normal(jnp.tanh(x), 1)))
    found = values.choice._by_densities(sm, MI("x", "y"), {}, by, "why")
    assert found.value == 0.4 and "chains gave no finite value" in found.reason


# -- path ------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_path_of_the_saturated_channel(eta) -> None:
    method = values.Path(num_samples=4096)
    found = information(links.amplifier, params={"eta": eta}, method=method)
    assert found.method == "path"
    check(found, truths.tanh_information(eta), 0.005, 0.01)


def test_path_from_a_reference_and_along_a_curve() -> None:
    """From (1, 1), where the value is known, to (2, 1); the way there is no matter."""
    start = truths.multipath_information(1.0, 1.0)
    truth = truths.multipath_information(2.0, 1.0)

    for method in (
        values.Path(reference={"a": 1.0}, reference_value=start),
        values.Path(way=lambda s: {"a": 1 + s, "b": 1 + 2 * s * (1 - s)}),
    ):
        point = {"a": 2.0, "b": 1.0}
        check(information(links.link, method=method, params=point), truth, 1e-3)


@pytest.mark.slow
def test_path_tells_what_its_quadrature_misses() -> None:
    few, many = (information(eight, method=values.Path(num_nodes=n)) for n in (4, 12))
    assert few.standard_error > 20 * many.standard_error
    check(many, EIGHT, 0.01, 0.005)


# -- what a value can not be -----------------------------------------------------------
def estimate(value: float) -> values.Estimate:
    return values.Estimate(value, 0.0, value, value, "nested")


def said(value: float, model, objective=XY) -> str:
    sm = ig.structural_model(model)
    return " ".join(warnings_for(estimate(value), objective, sm, sm.params))


# What a normal law would carry that has the variance of tanh(x) + n.
_X = np.linspace(-9, 9, 20001)
_VARIANCE = np.average(np.tanh(_X) ** 2, weights=np.exp(-(_X**2) / 2))
NORMAL = 0.5 * math.log(1 + _VARIANCE / 0.25)


def clipped(beside=False):
    """v is no bottleneck if y reads x beside it."""
    x = numpyro.sample("x", dist.Normal(0, 1))
    v = numpyro.sample("v", dist.Normal(x, 1))
    mean = jnp.clip(v, -1, 1)
    numpyro.sample("y", dist.Normal(mean + x if beside else mean, 0.01))


def doubled():
    """I(x; 2x) is infinite: no bound, and no number made of rounding."""
    x = numpyro.sample("x", dist.Normal(0, 1))
    v = numpyro.deterministic("v", 2 * x)
    numpyro.sample("y", dist.Normal(jnp.tanh(v), 0.5))


# Small signals: half the sum of their variances. Bounds are from samples.
sines = channel(lambda x: dist.Normal(0.02 * jnp.sin(x), 1.0), size=64)


@pytest.mark.parametrize(
    ("model", "value", "words"),
    [
        (links.amplifier, truths.tanh_information(1.0), ""),
        (links.amplifier, NORMAL - 0.01, ""),
        (links.amplifier, 1.06 * NORMAL, "Gaussian upper bound"),
        (links.amplifier, -0.1, "never negative"),
        (links.amplifier, math.nan, "not a finite number"),
        (symbols(PAM, 0.01), math.log(4) - 1e-3, ""),
        (symbols(PAM, 0.01), 1.03 * math.log(4), "discrete"),
        (clipped, 0.5 * math.log(2) - 0.01, ""),
        (clipped, 1.04 * 0.5 * math.log(2), "data-processing"),
        (doubled, truths.tanh_information(2.0), ""),
        (sines, 64 * 0.5 * 0.02**2 * 0.5 * (1 - math.exp(-2)), ""),
    ],
)
def test_bounds_of_a_value(model, value, words) -> None:
    found = said(value, model)
    assert words in found and bool(words) == bool(found)
    assert NORMAL > truths.tanh_information(1.0)


def test_a_site_that_is_read_beside_is_no_bottleneck() -> None:
    value, model = 1.04 * 0.5 * math.log(2), functools.partial(clipped, True)
    assert "data-processing" not in said(value, model)


def test_what_is_minimised_has_the_bounds_of_an_information() -> None:
    assert "the information is -0.1" in said(0.1, links.amplifier, -XY)
    assert said(-0.1, links.amplifier, -XY) == ""


def test_values_that_are_seen_once_are_not_discrete() -> None:
    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        a = numpyro.deterministic("a", jnp.maximum(z - 2.3, 0.0))
        numpyro.sample("y", dist.Normal(a, 1e-6))

    assert "discrete" not in said(0.19, model, MI("a", "y"))


# -- null check ------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("method", [NESTED, FISHER])
def test_shuffled_pairs_carry_nothing(method) -> None:
    settings = {"params": {"eta": 3.0}, "method": method}
    found = ig.null_check(links.amplifier, "x", "y", **settings)
    check(found, 0.0, 0.005)
    assert not any("shuffled" in text for text in found.warnings)


def test_shuffling_keeps_the_laws() -> None:
    sm = ig.structural_model(links.common_cause)
    params = {"e": 2.0}
    key = jax.random.key(0)
    paired = sm.sample(key, 2**14, params)
    shuffled = shuffle_inputs(sm, ("x",)).sample(key, 2**14, params)
    for name in ("x", "y"):
        deviations = float(np.std(shuffled[name])), float(np.std(paired[name]))
        assert deviations[0] == pytest.approx(deviations[1], rel=0.05)
    assert abs(np.corrcoef(shuffled["x"], shuffled["y"])[0, 1]) < 0.03
    assert np.corrcoef(paired["x"], paired["y"])[0, 1] > 0.8


def test_shuffling_in_closed_form() -> None:
    found = ig.null_check(links.link, "x", "y", params={"a": 2.0, "b": 1.0})
    assert found.method == "exact" and found.value == pytest.approx(0, abs=1e-5)


def test_a_null_check_that_fails_says_so(monkeypatch) -> None:
    monkeypatch.setattr(values, "estimate", lambda *_, **__: estimate(0.1))
    found = ig.null_check(links.link, "x", "y")
    assert "shuffled pairs carry no information" in found.warnings[0]


# -- all methods together --------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "params", "truth"),
    [
        (links.link, {"a": 2.0, "b": 1.0}, truths.multipath_information(2.0, 1.0)),
        (links.amplifier, {"eta": 2.0}, truths.tanh_information(2.0)),
        (cascade, {"gain": 2.0}, truths.cascade_information()),
    ],
)
def test_all_methods_agree(model, params, truth) -> None:
    # Fisher's error holds what its last features added, the path's its quadrature.
    for method, sharp in (("nested", 0.005), ("fisher", 0.01), ("path", 0.025)):
        found = information(model, params=params, method=method)
        check(found, truth, sharp, 0.01)


@pytest.mark.parametrize(
    ("variance", "truth"),
    [(0.005, 7.96075), (0.05, 4.05621), (0.5, 1.15463), (5.0, 0.151803)],
)
@pytest.mark.slow
def test_saturation_at_all_noise_levels(variance, truth) -> None:
    model = rotated_tanh(variance)
    check(information(model), truth, max(0.03, 0.01 * truth), 0.005)
    nested = information(model, method="nested")
    assert nested.lower < truth < nested.upper


@pytest.mark.parametrize(
    "method", ["fisher", values.Path(scores="denoising")], ids=["fisher", "path"]
)
@pytest.mark.slow
def test_eight_by_eight_by_learning(method) -> None:
    check(information(eight, method=method), EIGHT, 0.02, 0.005)


@pytest.mark.parametrize(
    "method",
    [values.Nested(1024, 1024, 2**13), values.DeBruijn(num_steps=300)],
    ids=["nested", "fisher"],
)
@pytest.mark.slow
def test_stated_intervals_cover(method) -> None:
    """Two standard errors hold the truth for 90 of 100 keys or more."""
    sm = ig.structural_model(links.amplifier)
    truth = truths.tanh_information(2.0)
    held, errors, found_values = 0, [], []
    for seed in range(100):
        found = ig.estimate(
            sm, XY, params={"eta": 2.0}, method=method, rng_key=jax.random.key(seed)
        )
        held += abs(found.value - truth) < 2 * found.standard_error
        errors.append(found.standard_error)
        found_values.append(found.value)
    assert held >= 90
    assert np.median(errors) < 2 * np.std(found_values, ddof=1)  # and are not too wide
