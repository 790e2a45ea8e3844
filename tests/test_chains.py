# SPDX-License-Identifier: Apache-2.0
"""Chains over hidden noise: the law that they leave unchanged, scores, certificate."""

from collections.abc import Callable
import functools
import itertools
import re
from typing import Any

import channels
import links
from methods import rest_slow, slow
from models import channel, with_gain
import numpy as np
import pytest
from scipy import special, stats

import jax
import jax.numpy as jnp
from optax.projections import projection_l2_ball

import numpyro
import numpyro.distributions as dist

from helpers import ascend, assert_found, assert_within, information, quiet
import numpyro_infograd as ig
from numpyro_infograd import _sequences
from numpyro_infograd._certificate import certify
from numpyro_infograd._chains import Walk, average
from numpyro_infograd._edits import append_noise
from numpyro_infograd._hidden import Hidden, Position, walkable, why_not_walked
from numpyro_infograd._pilot import tune
from numpyro_infograd._problem import fit_anew, pose
from numpyro_infograd.distributions import Quantized
from numpyro_infograd.errors import DensityError
from numpyro_infograd.scores import MCMC, Analytic, Denoising
from numpyro_infograd.values.mcmc import _ends
import truths

KEY = jax.random.key(0)
XY = ig.MI("x", "y")


@pytest.fixture(autouse=True)
def without_long_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains, also where the forward algorithm is exact."""
    monkeypatch.setattr(_sequences, "_MOST_TABLE", 0)


# -- positions ------------------------------------------------------------------------
def menagerie() -> None:
    """Noise of every kind hides behind y."""
    gain = numpyro.param("gain", 1.0)
    g = numpyro.sample("g", dist.Gamma(2.0, 1.0))
    w = numpyro.sample("w", dist.Dirichlet(jnp.array([2.0, 3.0, 1.5])))
    e = numpyro.sample("e", dist.Laplace(0.0, 1.0))
    k = numpyro.sample("k", dist.Categorical(probs=jnp.array([0.2, 0.5, 0.3])))
    count = numpyro.sample("count", dist.Poisson(2.0 + k))
    x = numpyro.sample("x", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    mean = gain * jnp.stack([x[0] * g + k, w[0] + e + 0.3 * count])
    numpyro.sample("y", dist.Normal(mean, 0.7).to_event(1))


def symbols() -> None:
    """Four symbols of four, each seen with a part of its neighbour: 256 states."""
    gain = numpyro.param("gain", 1.0)
    law = dist.Categorical(probs=jnp.array([0.1, 0.2, 0.3, 0.4]))
    x = numpyro.sample("x", law.expand([4]).to_event(1))
    mean = gain * (x + 0.5 * jnp.roll(x, 1))
    numpyro.sample("y", dist.Normal(mean, 0.8).to_event(1))


class Case:
    """A density with its chains, tuned."""

    def __init__(self, model: Callable[[], None], size: int = 1024) -> None:
        self.sm = ig.structural_model(model)
        density = walkable(self.sm, self.sm.density(("y",)))
        assert density.walk is not None, density.why_no_walk
        self.density, self.hidden = density, density.walk
        self.noise = self.sm.sample_noise(jax.random.key(1), size)
        self.values = self.sm.evaluate({}, self.noise)
        self.tuning = jax.jit(tune, static_argnums=5)(
            self.hidden, self.sm.params, self.noise, self.values, KEY, 64
        )

    def walk(self, values: Any) -> Walk:
        return Walk.of(self.hidden, self.sm.params, values, self.tuning)


@functools.cache
def case(model: Callable[[], None]) -> Case:
    """The same for all tests."""
    return Case(model)


@pytest.mark.slow
def test_a_position_is_what_made_the_sample(x64) -> None:
    """Its log density is that of the laws, with the Jacobians of the coordinates."""
    sm = ig.structural_model(menagerie)
    hidden = Hidden.of(sm, sm.density(("y",)))
    noise = sm.sample_noise(KEY, 1)
    values = {name: v[0] for name, v in sm.evaluate({}, noise).items()}
    at = hidden.start({name: z[0] for name, z in noise.items()}, values)
    found = hidden.log_prob(sm.params, at, values)

    v = {name: np.asarray(x, float) for name, x in values.items()}
    log = np.log(v["w"])
    sticks = dist.biject_to(dist.constraints.simplex)
    free = sticks.inv(values["w"])
    jacobian = float(sticks.log_abs_det_jacobian(free, values["w"]))
    normal = [stats.norm.logpdf(x) for x in v["x"]]
    e_free = stats.norm.ppf(stats.laplace.cdf(v["e"]))
    whole = (
        stats.gamma.logpdf(v["g"], 2.0) + np.log(v["g"])
        + stats.dirichlet.logpdf(v["w"] / v["w"].sum(), [2.0, 3.0, 1.5]) + jacobian
        + stats.norm.logpdf(e_free) + sum(normal)
    )  # fmt: skip
    k, count = int(v["k"]), v["count"]
    means = v["x"][0] * v["g"] + k, v["w"][0] + v["e"] + 0.3 * count
    state = np.log([0.2, 0.5, 0.3][k]) + stats.poisson.logpmf(count, 2.0 + k)
    state += stats.norm.logpdf(v["y"], means, 0.7).sum()
    # k and count have endlessly many joint states: both are walked, none is summed.
    assert [site.name for site in hidden.walked] == ["k", "count"]
    assert np.isfinite(log).all()
    assert float(found) == pytest.approx(float(whole + state), rel=1e-9)


@pytest.mark.slow
def test_few_states_are_summed_over(x64) -> None:
    def model() -> None:
        k = numpyro.sample("k", dist.Bernoulli(0.3))
        g = numpyro.sample("g", dist.Gamma(2.0 + k, 1.0))
        numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * g + k, 0.5))

    sm = ig.structural_model(model)
    hidden = Hidden.of(sm, sm.density(("y",)))
    assert not hidden.walked
    assert hidden.joint.hidden == ()
    values = {"k": jnp.asarray(1), "g": jnp.asarray(1.7), "y": jnp.asarray(2.2)}
    noise = {name: z[0] for name, z in sm.sample_noise(KEY, 1).items()}
    at = hidden.start(noise, values)
    k, p = np.arange(2), np.array([0.7, 0.3])
    parts = stats.gamma.pdf(1.7, 2.0 + k) * stats.norm.pdf(2.2, 1.7 + k, 0.5)
    truth = np.log(p @ parts) + np.log(1.7)
    assert float(hidden.log_prob(sm.params, at, values)) == pytest.approx(truth)


# -- the law that chains leave unchanged ----------------------------------------------
def statistics_of(at: Position, values: Any) -> np.ndarray:
    """Functions of a position and its sample, whose means do not change."""
    parts = (at.free, at.states, values["y"])
    flat = [np.asarray(x, float).reshape(len(x), -1) for x in parts]
    columns = np.concatenate(flat, axis=1)
    products = columns[:, :, None] * columns[:, None, :]
    return np.concatenate([columns, np.tanh(products.reshape(len(columns), -1))], 1)


@rest_slow("model", [symbols, menagerie])
def test_chains_leave_their_law_unchanged(model) -> None:
    """Sixteen steps: trajectories, flips of discrete values, draws of the reference."""
    one = case(model)
    noise = one.sm.sample_noise(jax.random.key(2), 4096)
    values = one.sm.evaluate({}, noise)

    @jax.jit
    def moved(noise, values, keys):
        def run(noise, values, key):
            walk = one.walk(values)

            def step(index, at):
                own = jax.random.fold_in(key, index)
                return walk.step(own, index, walk.chain(at))[0]

            first = one.hidden.start(noise, values)
            return first, jax.lax.fori_loop(0, 16, step, first)

        return jax.vmap(run)(noise, values, keys)

    keys = jax.random.split(jax.random.key(3), 4096)
    first, last = moved(noise, values, keys)
    before = statistics_of(first, values)
    change = statistics_of(last, values) - before
    z = change.mean(0) / (change.std(0) / 64 + 1e-9)
    assert np.abs(z).max() < 4.5
    if one.hidden.size:
        assert all(one.hidden.smooth)  # so it takes a control variate
        assert np.mean(np.any(np.asarray(last.free != first.free), axis=1)) > 0.95
    assert np.mean(np.asarray(last.states != first.states)) > 0.05


@pytest.mark.slow
def test_a_kernel_that_takes_every_proposal_changes_the_law() -> None:
    """The negative control of the test above."""
    one = case(symbols)
    noise = one.sm.sample_noise(jax.random.key(2), 2048)
    values = one.sm.evaluate({}, noise)

    def run(noise, values, key):
        start = one.hidden.start(noise, values)
        states = one.walk(values)._proposed(key, start.states)
        return start, start._replace(states=states)

    first, last = jax.vmap(run)(noise, values, jax.random.split(KEY, 2048))
    change = statistics_of(last, values) - statistics_of(first, values)
    z = change.mean(0) / (change.std(0) / 2048**0.5 + 1e-9)
    assert np.abs(z).max() > 4.5


# -- scores ---------------------------------------------------------------------------
@pytest.mark.slow
def test_a_linear_gaussian_score_is_exact_wherever_the_chain_is(x64) -> None:
    """The control variate leaves the score itself, at the start and after one step."""
    one = Case(links.mimo, 512)
    walk_of, hidden = one.walk, one.hidden

    def run(noise, values, key):
        walk = walk_of(values)
        first = walk.chain(hidden.start(noise, values))
        moved = walk.step(key, jnp.asarray(1), first)[0]
        return walk.score(first), walk.score(walk.chain(moved))

    noise = one.sm.sample_noise(jax.random.key(4), 64)
    values = one.sm.evaluate({}, noise)
    found = jax.vmap(run)(noise, values, jax.random.split(KEY, 64))
    precision = np.linalg.inv(links.MATRIX @ links.MATRIX.T + np.eye(8))
    truth = -np.asarray(values["y"]) @ precision
    for scores in found:
        np.testing.assert_allclose(scores, truth, atol=1e-9)


STATES = np.array(list(itertools.product(range(4), repeat=4)))
STATE_MEANS = STATES + 0.5 * np.roll(STATES, 1, axis=1)
STATE_PROBS = np.array([0.1, 0.2, 0.3, 0.4])[STATES].prod(1)


def symbols_score(y: np.ndarray) -> np.ndarray:
    """By a sum over all 256 states."""
    left = y[:, None, :] - STATE_MEANS
    weight = np.log(STATE_PROBS) - 0.5 * np.sum(left**2, axis=2) / 0.64
    weight = special.softmax(weight, axis=1)
    return -np.einsum("nk,nkd->nd", weight, left) / 0.64


@pytest.mark.slow
def test_scores_over_discrete_states_are_those_of_a_sum() -> None:
    one = case(symbols)
    noise = one.sm.sample_noise(jax.random.key(5), 1024)
    values = one.sm.evaluate({}, noise)
    lengths = jnp.asarray([64, 64])

    @jax.jit
    def means(noise, values, keys):
        def run(noise, values, key):
            start = one.hidden.start(noise, values)
            led = jnp.asarray(False)
            return average(one.walk(values), start, led, key, lengths)[0][1]

        return jax.vmap(run)(noise, values, keys)

    found = means(noise, values, jax.random.split(KEY, 1024))
    truth = symbols_score(np.asarray(values["y"], float))
    own = np.asarray(values["x"] + 0.5 * jnp.roll(values["x"], 1, axis=1)) - truth
    off = np.asarray(found) - truth
    assert np.mean(off**2) < 0.1 * np.mean(truth**2)
    # What is off is the chain's scatter, not a memory of the sample's own noise.
    own = -(np.asarray(values["y"]) - own - truth) / 0.64 - truth
    memory = np.sum(off * own, axis=1)
    assert abs(memory.mean()) < 4 * memory.std() / 32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scores", "sharp"),
    [(MCMC(max_steps=64, pilot_size=256, num_samples=2048), 0.03), ("mcmc", 0.004)],
    ids=["small", "default"],
)
def test_the_gradient_of_an_amplifier(scores, sharp) -> None:
    found = ig.gradient(links.amplifier, XY, scores=scores)
    assert_found(found, {"eta": truths.tanh_derivative(1.0)}, sharp)
    assert found.diagnostics["num_steps(y)"] <= 256
    assert scores != "mcmc" or not found.warnings


def rotated(size: int, noise: float) -> Callable[[], None]:
    """Amplifiers whose outputs are mixed, so that each looks normal by itself."""
    normal = np.random.default_rng(size).normal(size=(size, size))
    matrix = np.linalg.qr(normal)[0]

    def law(m):
        return dist.Normal(jnp.asarray(matrix, m.dtype) @ jnp.tanh(m), noise)

    return with_gain(law, "eta", 1.5, size)


@pytest.mark.slow
def test_structure_that_a_rotation_hides() -> None:
    """Networks put 9.4 where 7.13 is right, and see nothing wrong with it."""
    found = ig.gradient(rotated(16, 0.5), XY)
    assert found.diagnostics["method"] == "mcmc"
    truth = 16 * truths.tanh_derivative(1.5, 0.25)
    assert_found(found, {"eta": truth}, 0.02)


@pytest.mark.slow
def test_too_short_chains_say_that_they_remember() -> None:
    """Sixteen steps forget little of a sharp posterior; the error shows it."""
    model = rotated(16, 0.1)
    found = ig.gradient(model, XY, scores=MCMC(max_steps=16, num_samples=4096))
    truth = 16 * truths.tanh_derivative(1.5, 0.01)
    off = abs(float(found.value["eta"]) - truth)
    assert off < 3 * float(found.standard_error["eta"])
    assert 0.05 < float(found.standard_error["eta"]) / abs(truth) < 1
    assert any("still depend on" in warning for warning in found.warnings)


@pytest.mark.slow
def test_what_jumps_takes_no_control_variate() -> None:
    """Stein's identity for x does not allow it: the result would be 2.08 +- 0.005."""

    def law(x):
        gain = numpyro.param("gain", 1.0)
        return dist.Normal(gain * jnp.where(x > 0.3, 1.0, -1.0), 0.7)

    comparator = channel(law, size=4)
    sm = ig.structural_model(comparator)
    assert Hidden.of(sm, sm.density(("y",))).smooth == (False,) * 4
    levels = np.array([-1.0, 1.0]), np.array([stats.norm.cdf(0.3), stats.norm.sf(0.3)])
    scalar = channels.additive(None, levels, channels._linear, 0.7, 8)
    truth = {"gain": 4 * channels.derivative(scalar, 1.0)}
    assert_found(ig.gradient(comparator, XY, scores="mcmc"), truth, 0.02)


@pytest.mark.slow
def test_a_jump_of_a_hidden_distribution_takes_no_control_variate() -> None:
    """With one the result is 0.5205 +- 0.0048."""

    def law(x):
        g = numpyro.sample("g", dist.Gamma(jnp.where(x > 0, 30.0, 2.0), 1.0))
        return dist.Normal(numpyro.param("gain", 1.0) * jnp.log(g) + x, 0.5)

    sm = ig.structural_model(channel(law))
    assert Hidden.of(sm, sm.density(("y",))).smooth == (False, True)
    few = MCMC(max_steps=64, pilot_size=512, num_samples=4096)
    found = ig.gradient(sm, ig.Entropy("y"), scores=few, allow_jumps=True)
    assert_found(found, {"gain": 0.3052}, 0.03)


@pytest.mark.slow
def test_an_ascent_moves_over_unlimited_choices() -> None:
    def tally() -> None:
        k = numpyro.sample("k", dist.Poisson(3.0))
        numpyro.sample("y", dist.Normal(numpyro.param("gain", 1.0) * k, 1.0))

    scores = MCMC(max_steps=16, pilot_size=256, num_samples=256)
    found = quiet.maximize_mi(tally, "k", "y", num_steps=3, scores=scores)
    assert found.history["finite"].all()
    assert float(found.params["gain"]) > 1.05


@pytest.mark.slow
def test_modes_are_crossed_between() -> None:
    """About five places of an input explain its output.

    By whole trajectories alone the result is 0.83 +- 0.08.
    """
    folded = with_gain(lambda m: dist.Normal(jnp.sin(m), 0.1), "gain", 3.0, size=4)
    sine = channels.additive(
        None, channels.NORMAL, lambda xp, gain, x: xp.sin(gain * x), 0.1, 2
    )
    truth = {"gain": 4 * channels.derivative(sine, 3.0)}
    assert_found(ig.gradient(folded, XY, scores="mcmc"), truth, 0.15)


# -- what no chain can walk over ------------------------------------------------------
def noisy_gamma() -> None:
    x = numpyro.sample("x", dist.Gamma(2.0 * numpyro.param("a", 1.0), 1.0))
    numpyro.sample("y", dist.Normal(x, 0.5))


def counted() -> None:
    n = numpyro.sample("n", dist.Multinomial(60, jnp.ones(3) / 3))
    numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * n, 0.5).to_event(1))


def spiked() -> None:
    half = dist.Categorical(probs=jnp.array([0.5, 0.5]))
    parts = [dist.Delta(0.0), dist.Normal(0.0, 1.0)]
    law = dist.MixtureGeneral(half, parts, support=dist.constraints.real)
    z = numpyro.sample("z", law)
    numpyro.sample("y", dist.Normal(numpyro.param("a", 2.0) * z, 0.3))


def moving_support() -> None:
    top = numpyro.sample("top", dist.Gamma(2.0, 1.0))
    stretch = dist.transforms.AffineTransform(0.0, 1.0 + top)
    law = dist.TransformedDistribution(dist.Beta(2.0, 2.0), stretch)
    inside = numpyro.sample("inside", law)
    numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * inside, 0.5))


@pytest.mark.parametrize(
    ("sm", "words"),
    [
        (ig.structural_model(spiked), "'z' do not follow its log_prob"),
        (append_noise(ig.structural_model(noisy_gamma), {"x": 0.1}), "appended noise"),
        (ig.structural_model(counted), "'n'.*depend on each other"),
        (ig.structural_model(moving_support), "support of site 'inside'"),
    ],
)
def test_noise_that_is_no_position_is_refused_by_name(sm, words) -> None:
    assert re.search(words, why_not_walked(sm, sm.density(("y",))))


def test_a_computed_output_is_refused() -> None:
    with pytest.raises(DensityError, match="'y' has no density.*denoising"):
        ig.gradient(links.black_box, XY, scores="mcmc")
    with pytest.raises(DensityError, match="'y' is deterministic.*fisher"):
        information(links.black_box, method="mcmc")


# -- the certificate ------------------------------------------------------------------
def certificate_of(model: Callable[[], None], method: Any, **params: Any) -> Any:
    sm = ig.structural_model(model)
    complete = sm.complete_params(params)
    posed = pose(sm, XY, method, complete)
    states = fit_anew(posed.problem, complete, KEY)
    return certify(posed, states, complete, jax.random.key(1))


@rest_slow("right", [True, False])
def test_the_certificate_is_the_error_of_the_score(right) -> None:
    """That of the best linear score is what a normal law misses of the information."""
    y, density, _ = truths.tanh_density(1.0)
    score = truths.tanh_score(y, 1.0)
    power = np.trapezoid(density * score**2, y)
    variance = np.trapezoid(density * y**2, y)
    grid, true = jnp.asarray(y), jnp.asarray(score)

    def given(params: Any, v: Any) -> Any:
        return jnp.interp(v["y"], grid, true) if right else -v["y"]

    found = certificate_of(links.amplifier, Analytic({"y": given}))
    expected = 0.0 if right else 1.0 - 1.0 / (variance * power)
    error = found.error["y"], found.standard_error["y"]
    assert_within(*error, np.float64(expected), max_standard_error=0.01)
    shift, error = found.shift["eta"], found.shift_error["eta"]
    assert (abs(float(shift)) < 4 * float(error)) == right


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "flagged"),
    [(rotated(16, 0.5), True), (links.mimo, False)],
    ids=["rotated", "linear"],
)
def test_the_certificate_tells_wrong_networks_from_right_ones(model, flagged) -> None:
    learn = Denoising(hidden=(32, 32), num_steps=100, pool_size=16384, num_samples=4096)
    found = ig.gradient(model, XY, scores=learn)
    wrong = [w for w in found.warnings if "'y' is wrong" in w]
    assert bool(wrong) == flagged
    if flagged:  # and the standard error holds what that does to the gradient
        truth = 16 * truths.tanh_derivative(1.5, 0.25)
        off = abs(float(found.value["eta"]) - truth)
        error = float(found.standard_error["eta"])
        assert off > 0.1 * truth
        assert 0.5 * error < off < 2 * error


def test_no_control_variate_along_a_stopped_derivative() -> None:
    """A value that is clipped only on the way forward; the truth is by quadrature."""

    def law(x):
        v = x + jax.lax.stop_gradient(jnp.clip(x, -0.8, 0.8) - x)
        return dist.Normal(numpyro.param("a", 1.3) * v, 0.5)

    clipped = channel(law)
    sm = ig.structural_model(clipped)
    assert Hidden.of(sm, sm.density(("y",))).smooth == (False,)
    few = MCMC(max_steps=64, pilot_size=256, num_samples=2048)
    assert_found(ig.gradient(clipped, XY, scores=few), {"a": 0.4770}, 0.03)


def ranks(levels: Any) -> Callable[[], None]:
    """Four levels of a hidden value, in an order that is not theirs."""

    def model() -> None:
        law = Quantized(dist.Normal(0, 1), [-1.0, 0.0, 1.0], levels=levels)
        s = numpyro.sample("s", law.expand([4]).to_event(1))
        numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * s, 0.5).to_event(1))

    return model


@pytest.mark.slow
def test_chains_start_at_levels_in_any_order() -> None:
    sm = ig.structural_model(ranks([3.0, -1.0, 1.0, -3.0]))
    hidden = Hidden.of(sm, sm.density(("y",)))
    values = sm.evaluate({}, sm.sample_noise(KEY, 1))
    (site,), own = hidden.walked, values["s"][0]
    np.testing.assert_array_equal(site.values(site.numbers(own)), own)


def test_levels_that_are_not_known_before_the_model_runs_are_named() -> None:
    def model() -> None:  # in a trace, jnp.array is not a constant
        ranks(jnp.array([3.0, -1.0, 1.0, -3.0]))()

    with pytest.raises(DensityError, match=r"values of site 's' .* before the model"):
        ig.gradient(model, ig.Entropy("y"), scores="mcmc")


# -- values by annealing --------------------------------------------------------------
def gamma_input() -> None:
    x = numpyro.sample("x", dist.Gamma(2.0, 1.0))
    numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 0.5))


def gamma_density(y: np.ndarray) -> np.ndarray:
    x = np.linspace(1e-4, 30, 6001)
    weight = stats.gamma.pdf(x, 2.0) * (x[1] - x[0])
    return np.concatenate(
        [stats.norm.pdf(part[:, None], x, 0.5) @ weight for part in np.split(y, 16)]
    )


def symbols_density(y: np.ndarray) -> np.ndarray:
    return stats.norm.pdf(y[:, None, :], STATE_MEANS, 0.8).prod(2) @ STATE_PROBS


# The reference reaches beyond the inputs that can make an output.
interval = channel(lambda x: dist.Uniform(x - 1, x + 1, validate_args=False))


def interval_density(y: np.ndarray) -> np.ndarray:
    return 0.5 * (stats.norm.cdf(y + 1) - stats.norm.cdf(y - 1))


@pytest.mark.parametrize(
    ("model", "density", "levels", "bend"),
    [
        (gamma_input, gamma_density, 6, 1.0),
        slow(interval, interval_density, 128, 4.0),
        slow(symbols, symbols_density, 6, 1.0),
    ],
)
def test_annealing_is_unbiased_from_both_ends(model, density, levels, bend) -> None:
    """E exp(w) = p(S) on the way up, and E exp(-w) = 1 / p(S) on the way down.

    Few levels leave the chains far from their laws. With many, the first ones have
    hardly any weight, which must not hide that a density is zero at a start.
    """
    one = case(model)
    noise = one.sm.sample_noise(jax.random.key(6), 8192)
    values = one.sm.evaluate({}, noise)

    def ends(noise, values, key):
        start = one.hidden.start(noise, values)
        way = jnp.asarray(levels), jnp.asarray(bend)
        return _ends(one.walk(values), start, key, *way)

    found = jax.jit(jax.vmap(ends))(noise, values, jax.random.split(KEY, 8192))
    up, down = (np.asarray(w, float) for w in found)
    truth = np.log(density(np.asarray(values["y"], float)))
    for ratio in (np.exp(up - truth), np.exp(truth - down)):
        z = (ratio.mean() - 1) / (ratio.std() / 8192**0.5)
        assert abs(z) < 4
        assert ratio.std() < 5
    assert np.mean(up) < np.mean(truth) < np.mean(down)


def counted() -> None:
    numpyro.sample("y", dist.Normal(numpyro.sample("k", dist.Poisson(1.0)), 0.7))


@pytest.mark.slow
def test_values_that_rarely_flip_are_not_stuck() -> None:
    """Most outputs are far from the next count, so most flips are rightly rejected."""

    def model() -> None:
        k = numpyro.sample("k", dist.Poisson(1.0))
        numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * k, 0.2))

    found = ig.gradient(model, ig.Entropy("y"), scores="mcmc")
    k, y = np.arange(20), np.linspace(-2, 20, 44001)

    def entropy(a: float) -> float:
        p = stats.norm.pdf(y[:, None], a * k, 0.2) @ stats.poisson.pmf(k, 1.0)
        return float(special.entr(p).sum() * (y[1] - y[0]))

    truth = links.slope(entropy, step=0.01)
    error = float(found.standard_error["a"])
    assert abs(float(found.value["a"]) - truth) < 3 * error < 0.1, (found, truth)
    assert not any("hardly ever moved" in warning for warning in found.warnings)


@pytest.mark.slow
def test_values_whose_reference_reaches_outside() -> None:
    """Both truths are by quadrature; the reference of a count is a normal one."""
    found = information(interval, method="mcmc")
    assert_found(found, 0.86950, 0.01)
    assert found.lower < 0.86950 < found.upper
    found = ig.estimate(counted, ig.Entropy("y"), method="mcmc")
    assert_found(found, 1.59291, 0.02)
    assert found.lower < 1.59291 < found.upper


def test_a_value_between_its_two_ends() -> None:
    method = ig.values.MCMC(num_samples=2048, max_levels=32)
    found = information(rotated(2, 0.5), method=method)
    truth = 2 * truths.tanh_information(1.5, 0.25)
    assert_found(found, truth, 0.05)
    assert found.lower < truth < found.upper


def far_together(size: float):
    """Two receivers with one large error, of which only the difference is known."""

    def model() -> None:
        shift = numpyro.param("a", 1.0) * numpyro.sample("x", dist.Bernoulli(0.5))
        common = numpyro.sample("common", dist.Normal(0, size))
        mean = common + jnp.stack([shift, jnp.zeros(())])
        numpyro.sample("y", dist.Normal(mean, 0.3).to_event(1))

    return model


def test_hidden_noise_that_is_known_to_four_digits() -> None:
    """Single precision loses the squares of these digits, as in a mass matrix."""
    method = ig.values.MCMC(num_samples=2048, max_levels=64)
    found = ig.estimate(far_together(1e3), ig.Entropy("y", given="x"), method=method)
    covariance = 1e6 * np.ones((2, 2)) + 0.09 * np.eye(2)
    truth = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1]
    assert_found(found, truth, 0.1)


@pytest.mark.slow
def test_a_gradient_beside_a_large_common_error() -> None:
    def information(a: float) -> float:
        y = np.linspace(-6, 8, 20001)
        p = [stats.norm.pdf(y, mean, 0.3 * 2**0.5) for mean in (0.0, a)]
        mixed, own = (special.entr(q).sum() * (y[1] - y[0]) for q in (sum(p) / 2, p[0]))
        return float(mixed - own)

    found = ig.gradient(far_together(1e3), XY, scores="mcmc")
    assert_found(found, {"a": links.slope(information, step=0.01)}, 0.01)


@pytest.mark.slow
def test_the_value_of_what_a_rotation_hides() -> None:
    found = information(rotated(16, 0.5))
    assert found.method == "mcmc"
    truth = 16 * truths.tanh_information(1.5, 0.25)
    assert_found(found, truth, 0.01 * truth)
    assert found.lower < truth < found.upper
    assert found.upper - found.lower < 0.05 * truth


@pytest.mark.slow
def test_a_linear_gaussian_value_has_hardly_a_gap() -> None:
    """The reference is the posterior itself, so its two ends meet at once."""
    found = information(links.mimo, method="mcmc")
    gram = np.eye(8) + links.MATRIX @ links.MATRIX.T
    truth = 0.5 * np.linalg.slogdet(gram)[1]
    assert_found(found, truth, 0.02)
    assert abs(found.diagnostics["gap"]) < 0.02


@pytest.mark.slow
def test_a_loose_tolerance_stops_sooner() -> None:
    found = [
        information(rotated(4, 0.5), method=ig.values.MCMC(tolerance=goal))
        for goal in (0.05, 0.002)
    ]
    loose, sharp = (each.diagnostics for each in found)
    work = [d["levels"] * d["num_samples"] for d in (loose, sharp)]
    assert 2 * work[0] <= work[1]
    for each in found:
        truth = 4 * truths.tanh_information(1.5, 0.25)
        assert_found(each, truth, 0.1)


@pytest.mark.slow
def test_auto_raises_a_number_of_samples_that_chains_cannot_take() -> None:
    found = information(rotated(16, 0.1), num_samples=1024)
    assert found.method == "mcmc"
    truth = 16 * truths.tanh_information(1.5, 0.01)
    assert_found(found, truth, 1.0)


@pytest.mark.slow
def test_few_levels_leave_a_gap_and_a_warning() -> None:
    method = ig.values.MCMC(max_levels=32, num_samples=2048)
    found = information(rotated(16, 0.1), method=method)
    truth = 16 * truths.tanh_information(1.5, 0.01)
    assert found.diagnostics["gap"] > 2
    assert found.lower < truth < found.upper
    assert abs(found.value - truth) < 3 * found.standard_error < 3 * truth
    assert any("apart" in warning for warning in found.warnings)


# -- ascents --------------------------------------------------------------------------
@pytest.mark.slow
def test_an_ascent_by_chains_reaches_the_maximum() -> None:
    """Twelve amplifiers: 4.249638 nats, at orthogonal rows of equal norm."""

    def model() -> None:
        start = 0.3 * jax.random.normal(jax.random.key(5), (12, 12))
        matrix = numpyro.param("A", start)
        x = numpyro.sample("x", dist.Normal(0, 1).expand([12]).to_event(1))
        numpyro.sample("y", dist.Normal(jnp.tanh(matrix @ x), 0.5**0.5).to_event(1))

    result = ascend(
        model, scores="mcmc", num_steps=200,
        projection=lambda p: projection_l2_ball(p, 5.0),
    )  # fmt: skip
    rows = np.asarray(result.params["A"])
    gram = rows @ rows.T / (25 / 12)
    assert np.abs(gram - np.eye(12)).max() < 0.1
    assert_found(result.estimate, 4.249638, 0.02)
    assert "worse than its start" not in result.status


@pytest.mark.slow
def test_an_ascent_says_that_it_ended_below_its_start() -> None:
    """Wrong scores lead down; the start and the end are compared on one noise."""
    down = Analytic({"y": lambda params, v: -20.0 * v["y"] ** 3})
    result = ascend(links.amplifier, scores=down, num_steps=40)
    assert "ended worse than its start" in result.status
    sound = ascend(links.amplifier, scores="mixture", num_steps=20)
    assert "worse than its start" not in sound.status
