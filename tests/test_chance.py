# SPDX-License-Identifier: Apache-2.0
"""Identity V: parameters that act through the probabilities of draws."""

from collections.abc import Callable
from dataclasses import replace
import functools
import itertools
from typing import Any

from links import converter_information, normal_grid, slope, table_information
from methods import rest_slow
from models import with_gain
import numpy as np
import pytest
from scipy import special, stats

import jax
import jax.numpy as jnp
from jax.scipy.special import expit
import optax

import numpyro
from numpyro.contrib.control_flow import scan
import numpyro.distributions as dist

from helpers import assert_found, quiet
import numpyro_infograd as ig
from numpyro_infograd import _estimation
from numpyro_infograd._checks import check_gradient
from numpyro_infograd._density import simulate
from numpyro_infograd._edits import shuffle_inputs
from numpyro_infograd._gradient import choose
from numpyro_infograd._noise import NoiseSource
from numpyro_infograd._problem import pose
from numpyro_infograd._tracing import trace_model
from numpyro_infograd.distributions import Clipped, Quantized
from numpyro_infograd.errors import DensityError, JumpError, ReparametrizationError
from numpyro_infograd.scores import Mixture
from numpyro_infograd.scores.base import Measure

X, PRIOR = normal_grid(8)
X_TO_Y = ig.MI("x", "y")
KEY = jax.random.key(0)


# --- few states: they are summed over -----------------------------------------------
# A receiver that sees the sign of a x + 0.3 + N(0, 1).
one_bit = with_gain(lambda mean: Quantized(dist.Normal(mean + 0.3, 1.0), [0.0]))


def bits(a: float) -> float:
    """The information of `one_bit`."""
    p = stats.norm.cdf(a * X + 0.3)
    return table_information(np.stack([1 - p, p], 1), PRIOR)


def test_output_of_many_codes():
    """One set of components gives the probabilities of all 64 codes."""
    edges = np.linspace(-1, 1, 65)[1:-1]

    law = lambda mean: Quantized(dist.Normal(mean, 0.1), edges)  # noqa: E731
    found = ig.gradient(with_gain(law, start=0.5), X_TO_Y)

    def at(gain: float) -> dict[str, float]:
        return {"a": slope(lambda g: converter_information(g, 0.1, edges), gain)}

    assert_found(found, at(0.5), 0.001)
    with pytest.raises(AssertionError):
        assert_found(found, at(0.51), 0.001)


def test_a_state_that_cannot_occur():
    """A Z channel: I = h(p (1 - e)) - p h(e)."""

    def z_channel():
        p, e = numpyro.param("p", 0.4), numpyro.param("e", 0.25)
        x = numpyro.sample("x", dist.Bernoulli(p))
        numpyro.sample("y", dist.Bernoulli(x * (1 - e)))

    def truth(p: float, e: float) -> float:
        return stats.bernoulli(p * (1 - e)).entropy() - p * stats.bernoulli(e).entropy()

    by_p = slope(lambda p: truth(p, 0.25), 0.4)
    by_e = slope(lambda e: truth(0.4, e), 0.25)
    for scale in (1, 50):  # NumPyro divides by the smallest number
        found = ig.gradient(z_channel, scale * X_TO_Y).value
        assert float(found["p"]) == pytest.approx(scale * by_p, rel=1e-4)
        assert float(found["e"]) == pytest.approx(scale * by_e, rel=1e-4)


@pytest.mark.slow
def test_output_of_one_bit_and_what_the_path_alone_misses():
    found = ig.gradient(one_bit, X_TO_Y)
    assert_found(found, {"a": slope(bits, 1.0)}, 2e-3 * 0.239)
    assert not found.warnings
    sm = trace_model(one_bit, (), {})
    posed, _ = choose(sm, X_TO_Y, sm.params, jax.random.key(0))
    posed = posed._replace(problem=replace(posed.problem, chance=None))
    key = jax.random.key(0)
    found = _estimation.estimate_gradient(posed, sm.params, None, key).gradient
    with pytest.raises(AssertionError, match="standard errors"):
        assert_found(found, {"a": slope(bits, 1.0)}, 1.0)


LEVELS = np.array([-3.0, -1.0, 1.0, 3.0])


def shaping():
    """A constellation of four levels whose probabilities are tuned at fixed power."""
    q = jax.nn.softmax(-numpyro.param("nu", 0.1) * LEVELS**2)
    scale = jnp.sqrt(4.0 / jnp.sum(q * LEVELS**2))
    k = numpyro.sample("k", dist.Categorical(probs=q))
    numpyro.sample("y", dist.Normal(scale * jnp.asarray(LEVELS)[k], 1.0))


def shaped(nu: float) -> float:
    """The information of `shaping`: a parameter moves levels and probabilities."""
    q = special.softmax(-nu * LEVELS**2)
    levels = LEVELS * np.sqrt(4.0 / (q @ LEVELS**2))
    y = np.linspace(-14, 14, 8001)
    law = stats.norm.pdf(y, levels[:, None], 1.0) * (y[1] - y[0])
    return table_information(law, q)


@pytest.mark.slow
def test_steps_across_an_optimum_are_no_noise():
    """The optimum is one step from the start, so gradients of either sign follow."""
    settings = {"num_steps": 40, "init_params": {"nu": 0.0}}
    found = quiet.maximize_mi(shaping, "k", "y", **settings)
    assert not any("told from its noise" in w for w in found.warnings)


def test_entropy_and_expectation_of_a_discrete_site():
    def model():
        numpyro.sample("y", dist.Bernoulli(logits=numpyro.param("a", 0.7)))

    p = special.expit(0.7)
    objective = ig.Entropy("y") + 2 * ig.Expectation(lambda v: v["y"] * 1.0)
    assert_found(ig.gradient(model, objective), {"a": p * (1 - p) * (2 - 0.7)}, 1e-4)


def hidden_state():
    """A state that nobody sees switches the gain; a continuous path runs beside it."""
    a = numpyro.param("a", 0.8)
    x = numpyro.sample("x", dist.Normal(0, 1))
    s = numpyro.sample("s", dist.Bernoulli(jax.nn.sigmoid(a * x)))
    numpyro.sample("y", dist.Normal(jnp.where(s == 1, a, -0.5) * x, 0.7))


def switched(a: float) -> float:
    """The information of `hidden_state`."""
    y, (x, prior) = np.linspace(-9, 9, 1501), normal_grid(8, 501)
    p = special.expit(a * x[:, None])
    law = p * stats.norm.pdf(y, a * x[:, None], 0.7)
    law += (1 - p) * stats.norm.pdf(y, -0.5 * x[:, None], 0.7)
    return table_information(law * (y[1] - y[0]), prior)


@pytest.mark.slow
def test_ascent_finds_the_best_design():
    def memory():
        length = numpyro.param("l", 5.0)
        x = numpyro.sample("x", dist.Normal(7.0, 2.0))
        numpyro.sample("y", dist.Bernoulli(logits=x - length))

    found = quiet.maximize_mi(memory, "x", "y")
    assert abs(float(found.params["l"]) - 7.0) < 0.05
    assert_found(found.estimate, 0.231138, 1e-5)


@pytest.mark.slow
def test_constraint_on_a_discrete_site():
    """Send bits as strong as their mean energy allows."""

    def model():
        q = numpyro.param("q", 0.5, constraint=dist.constraints.unit_interval)
        numpyro.deterministic("mean", q)
        numpyro.sample("k", dist.Bernoulli(q))

    budget = ig.Expectation(lambda v: v["k"] * 1.0) <= 0.3
    mean = ig.Expectation(lambda v: v["mean"])
    found = quiet.maximize(model, mean, subject_to=[budget])
    assert abs(float(found.params["q"]) - 0.3) < 0.003


def faded():
    """A symbol and a user, seen as one bit through an unknown gain."""
    k = numpyro.sample("k", dist.Categorical(probs=jnp.full(4, 0.25)))
    user = numpyro.sample("user", dist.Bernoulli(0.5 * jnp.ones(2)).to_event(1))
    gain = jnp.exp(0.5 * numpyro.sample("gain", dist.Normal(0, 1)))
    mean = numpyro.param("a", 0.8) * gain * (k - 1.5) + 0.5 * (user[0] - user[1])
    numpyro.sample("y", dist.Bernoulli(logits=mean))


def faded_bit(a: float) -> float:
    """I(k, user; y) of `faded`, by quadrature over the gain."""
    k, u, v = np.meshgrid(np.arange(4) - 1.5, [0, 1], [0, 1], indexing="ij")
    mean = a * np.exp(0.5 * X) * k.ravel()[:, None] + 0.5 * (u - v).ravel()[:, None]
    p = special.expit(mean) @ PRIOR
    return table_information(np.stack([p, 1 - p], 1), np.full(16, 1 / 16))


def test_conditions_of_few_states_are_evaluated_once() -> None:
    model, objective = faded, ig.MI(("k", "user"), "y")
    truth = slope(faded_bit, 0.8)
    found = ig.gradient(model, objective)
    assert_found(found, {"a": truth}, 1e-4)
    posed = pose(ig.structural_model(model), objective, Mixture(), {"a": 0.8})
    chance = posed.problem.chance
    assert [len(c["k"]) for c in chance.conditions if c] == [16]
    alone = replace(chance, conditions=({},) * len(chance.conditions))
    params, noise = {"a": jnp.asarray(0.8)}, NoiseSource.of(posed.sm.spec, 64)(KEY)
    values = simulate(posed.sm.forward, params, noise)
    likelihood = chance.likelihood(params, noise, {})
    rest = params, noise, values, posed.problem.expectations, likelihood, KEY
    both = [each.cotangent(*rest)[0] for each in (chance, alone)]
    np.testing.assert_allclose(*both, atol=1e-6)


# --- many states: they are drawn ----------------------------------------------------
def counter():
    """A photon counter."""
    a, b = numpyro.param("a", 1.0), numpyro.param("b", 0.5)
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("y", dist.Poisson(jnp.exp(jnp.minimum(a + b * x, 3.0))))


def counted(a: float, b: float) -> float:
    """The information of `counter`."""
    rate = np.exp(np.minimum(a + b * X, 3.0))
    return table_information(stats.poisson.pmf(np.arange(80), rate[:, None]), PRIOR)


@pytest.mark.slow
def test_counts():
    truth = {
        "a": slope(lambda a: counted(a, 0.5), 1.0),
        "b": slope(lambda b: counted(1.0, b), 0.5),
    }
    assert_found(ig.gradient(counter, X_TO_Y), truth, 0.015)
    few = ig.gradient(counter, X_TO_Y, num_samples=1024)
    assert few.diagnostics["num_samples"] == 1024


def mixed(q: float) -> float:
    """The information of `mixture`: of two normals in noise."""
    y, s = np.linspace(-12, 12, 20001), np.sqrt(1.25)
    p = q * stats.norm.pdf(y, -2, s) + (1 - q) * stats.norm.pdf(y, 2, s)
    return float(special.entr(p).sum() * (y[1] - y[0])) - stats.norm.entropy()


def rated(a: float) -> float:
    """The information of a rating clipped to [0, 1]."""
    v = np.linspace(0, 1, 2001)[1:-1]
    atoms = [stats.norm.cdf(0, a * X, 0.5), stats.norm.sf(1, a * X, 0.5)]
    inside = stats.norm.pdf(v, a * X[:, None], 0.5) * (v[1] - v[0])
    return table_information(np.concatenate([np.stack(atoms, 1), inside], 1), PRIOR)


def gilbert_elliott(n: int = 4):
    """Bits through a channel with a good and a bad state."""
    a = numpyro.param("a", 0.2)
    x = numpyro.sample("x", dist.Bernoulli(0.5 * jnp.ones(n)).to_event(1))

    def step(state, x):
        bad = numpyro.sample("bad", dist.Bernoulli(jnp.where(state == 1, 0.9, a)))
        flip = jnp.where(bad == 1, 0.4, 0.05)
        y = numpyro.sample("y", dist.Bernoulli(jnp.where(x == 1, 1 - flip, flip)))
        return bad, y

    scan(step, jnp.zeros((), int), x)


def flipped(a: float, n: int = 4) -> float:
    """The information of `gilbert_elliott`: n log 2 less the entropy of the flips."""
    step = np.array([[1 - a, a], [0.1, 0.9]])
    flip, h = np.array([0.05, 0.4]), 0.0
    for errors in itertools.product((0, 1), repeat=n):
        p = np.array([1.0, 0.0])
        for e in errors:
            p = (p @ step) * (flip if e else 1 - flip)
        h -= p.sum() * np.log(p.sum())
    return n * np.log(2) - h


def mixture():
    q = numpyro.param("q", 0.3)
    parts = dist.Categorical(jnp.stack([q, 1 - q]))
    law = dist.MixtureSameFamily(parts, dist.Normal(jnp.array([-2.0, 2.0]), 0.5))
    numpyro.sample("y", dist.Normal(numpyro.sample("x", law), 1.0))


rating = with_gain(lambda mean: Clipped(dist.Normal(mean, 0.5), 0.0, 1.0))


@rest_slow(
    ("model", "inputs", "name", "truth", "at", "sharp"),
    [
        (mixture, "x", "q", mixed, 0.3, 0.02 * 0.75),
        (rating, "x", "a", rated, 1.0, 0.02 * 0.35),
        (shaping, "k", "nu", shaped, 0.1, 0.01),
        (hidden_state, "x", "a", switched, 0.8, 0.01),
        (gilbert_elliott, "x", "a", flipped, 0.2, 0.02 * 3.2),
    ],
)
def test_gradients_against_sums(model, inputs, name, truth, at, sharp):
    found = ig.gradient(model, ig.MI(inputs, "y"))
    assert_found(found, {name: slope(truth, at)}, sharp)


# --- every distribution without a derivative of its draws ---------------------------
def _laws(a: Any) -> dict[str, Any]:
    """Discrete laws with the parameter a, about 0.4."""
    p = jnp.stack([a, 0.5 * (1 - a), 0.5 * (1 - a)])
    return {
        "Bernoulli": dist.Bernoulli(a),
        "BernoulliLogits": dist.Bernoulli(logits=a),
        "BetaBinomial": dist.BetaBinomial(1 + a, 2.0, total_count=6),
        "Binomial": dist.Binomial(7, a),
        "BinomialLogits": dist.Binomial(7, logits=a),
        "Categorical": dist.Categorical(p),
        "CategoricalLogits": dist.Categorical(logits=jnp.stack([a, 0.0, -a])),
        "DiscreteUniformShift": dist.Categorical(
            logits=jnp.zeros(3) + a * jnp.arange(3.0)
        ),
        "GammaPoisson": dist.GammaPoisson(2 + a, 1.0),
        "Geometric": dist.Geometric(a),
        "GeometricLogits": dist.Geometric(logits=a),
        "Mixture": dist.MixtureSameFamily(
            dist.Categorical(p), dist.Poisson(jnp.array([1.0, 3.0, 6.0]))
        ),
        "MixtureGeneral": dist.MixtureGeneral(
            dist.Categorical(p),
            [dist.Poisson(1 + a), dist.Poisson(3.0), dist.Geometric(a)],
        ),
        "NegativeBinomial": dist.NegativeBinomialProbs(3.0, a),
        "NegativeBinomial2": dist.NegativeBinomial2(1 + a, 2.0),
        "NegativeBinomialLogits": dist.NegativeBinomialLogits(3.0, a),
        "OrderedLogistic": dist.OrderedLogistic(a, jnp.array([-1.0, 0.5])),
        "Poisson": dist.Poisson(3 * a),
        "Quantized": Quantized(dist.Logistic(a, 0.5), [0.0, 0.4, 1.0]),
        "ZeroInflated": dist.ZeroInflatedDistribution(dist.Poisson(2.0), gate=a),
        "ZeroInflatedNegativeBinomial2": dist.ZeroInflatedNegativeBinomial2(
            2.0, 3.0, gate=a
        ),
        "ZeroInflatedPoisson": dist.ZeroInflatedPoisson(a, 2 * a),
    }


def _mean(a: Any, name: str) -> Any:
    """E cos(draw) by a sum."""
    law, k = _laws(a)[name], jnp.arange(120)
    if law.has_enumerate_support:
        k = law.enumerate_support()
    return jnp.sum(jnp.exp(law.log_prob(k)) * jnp.cos(k))


def _continuous(a: Any) -> dict[str, Any]:
    """Laws on the circle, the torus, and with an atom, with the parameter a."""
    torus = functools.partial(dist.SineBivariateVonMises, 0.0, 0.0, 1.0, 2.0)
    return {
        "VonMises": dist.VonMises(0.5 + a, 2 + a),
        "SineBivariateVonMises": torus(a),
        "SineSkewed": dist.SineSkewed(torus(0.1), jnp.stack([a, -0.5 * a])),
        "HurdleGamma": dist.HurdleGamma(a, 3.0, 2.0 + a),
        "Clipped": Clipped(dist.Normal(a, 1.0), -0.5, 1.0),
    }


def _integral(a: Any, name: str) -> Any:
    """E of the sum of cos(draw + 0.3) by quadrature."""
    law = _continuous(a)[name]
    low, high = {"HurdleGamma": (0.0, 12.0), "Clipped": (-0.5, 1.0)}.get(
        name, (-np.pi, np.pi)
    )
    cells = 400 if law.event_shape else 20000
    t = low + (jnp.arange(cells) + 0.5) * (high - low) / cells
    f, weight = jnp.cos(t + 0.3), (high - low) / cells
    if law.event_shape:
        t = jnp.stack(jnp.meshgrid(t, t), -1)
        f, weight = jnp.cos(t + 0.3).sum(-1), weight**2
    atoms = {"HurdleGamma": [0.0], "Clipped": [-0.5, 1.0]}.get(name, [])
    return weight * jnp.sum(jnp.exp(law.log_prob(t)) * f) + sum(
        jnp.exp(law.log_prob(v)) * np.cos(v + 0.3) for v in atoms
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "laws", "mean", "start", "phase"),
    [
        *(
            (names, _laws, _mean, 0.4, 0.0)
            for names in np.array_split([*_laws(0.4)], 4)
        ),
        ([*_continuous(0.3)], _continuous, _integral, 0.3, 0.3),
    ],
    ids=["discrete 1", "discrete 2", "discrete 3", "discrete 4", "continuous"],
)
def test_every_law(names, laws, mean, start, phase):
    def model():
        for name in names:
            numpyro.sample(name, laws(numpyro.param(f"a_{name}", start))[name])

    def total(v):
        return sum(jnp.sum(jnp.cos(v[name] + phase)) for name in names)

    truth = {f"a_{n}": float(jax.grad(mean)(start, n)) for n in names}
    found = ig.gradient(model, ig.Expectation(total), num_samples=2**14)
    assert_found(found, truth, 0.05)


# --- refusals -----------------------------------------------------------------------
def test_law_that_draws_do_not_follow():
    def model():
        a = numpyro.param("a", 0.2)
        law = dist.LeftCensoredDistribution(dist.Normal(a, 1.0), 0.3)
        numpyro.sample("y", dist.Normal(numpyro.sample("z", law), 1.0))

    with pytest.raises(ReparametrizationError, match="'z' depends on 'a'.*censored"):
        ig.gradient(model, ig.Expectation(lambda v: v["y"]))


@pytest.mark.parametrize(
    "law",
    [
        lambda a: Quantized(dist.Normal(0.0, 1.0), [0.0], jnp.stack([-a, a])),
        lambda a: dist.TransformedDistribution(
            dist.Bernoulli(0.5), dist.transforms.AffineTransform(0.0, a)
        ),
    ],
    ids=["levels", "transformed"],
)
def test_values_that_move_are_refused(law):
    def model():
        z = numpyro.sample("z", law(numpyro.param("a", 1.0)))
        numpyro.sample("y", dist.Normal(z, 1.0))

    with pytest.raises(ReparametrizationError, match="'z' depends on 'a'.*may move"):
        ig.gradient(model, ig.MI("z", "y"))


def test_density_of_shuffled_inputs_keeps_its_hidden_states(x64):
    def model():
        d = numpyro.sample("d", dist.Bernoulli(0.3))
        x = numpyro.sample("x", dist.Normal(3.0 * d, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0))

    sm = trace_model(model, (), {})
    known = sm.density(("x",), whole=True)
    assert not known.hidden
    truth = np.log(0.7 * stats.norm.pdf(3.0) + 0.3 * stats.norm.pdf(0.0))
    assert float(known.log_prob({}, {}, {"x": jnp.asarray(3.0)})) == pytest.approx(
        truth
    )
    assert shuffle_inputs(sm, ("x",)).density(("x",), whole=True).hidden


def adder(q: float = 0.3) -> None:
    """Two bits, their sum, and what a dim detector sees of the first."""
    p = numpyro.param("p", 0.4, constraint=dist.constraints.unit_interval)
    a = numpyro.sample("a", dist.Bernoulli(p))
    b = numpyro.sample("b", dist.Bernoulli(q))
    z = numpyro.sample("z", dist.Normal(0, 1))
    numpyro.deterministic("sum", a + b)
    numpyro.deterministic("seen", a * (z < 1))
    numpyro.deterministic("moved", p * a + b)


def adder_information(p: float, q: float = 0.3) -> float:
    """I(a; sum)."""
    return table_information(np.array([[1 - q, q, 0], [0, 1 - q, q]]), [1 - p, p])


def dim(p: float) -> float:
    """I(a; seen)."""
    miss = stats.norm.sf(1)
    return table_information(np.array([[1, 0], [miss, 1 - miss]]), [1 - p, p])


def test_computed_sites_of_few_values_are_discrete():
    """A parameter reaches them through a draw alone, so their values stay."""
    for objective, truth in (
        (ig.MI(("a", "b"), "sum"), slope(adder_information, 0.4)),
        (ig.MI("a", "seen"), slope(dim, 0.4)),
    ):
        assert_found(ig.gradient(adder, objective), {"p": truth}, 0.001)
    with pytest.raises(AssertionError):
        assert_found(ig.gradient(adder, objective), {"p": truth + 0.01}, 0.001)
    with pytest.raises(DensityError, match="'moved' is computed"):
        ig.gradient(adder, ig.MI("a", "moved"))


def test_bits_of_a_label() -> None:
    """No draw depends on a parameter, but the points move: the noise has few states."""
    start, label = np.array([-3.0, -1.0, 1.2, 3.0]), np.array([0, 1, 3, 2])

    def model() -> None:
        points = numpyro.param("points", start)
        k = numpyro.sample("k", dist.Categorical(probs=jnp.ones(4) / 4))
        numpyro.deterministic("bit", jnp.asarray(label)[k] // 2)
        numpyro.sample("y", dist.Normal(points[k], 1))

    y = np.linspace(-10, 10, 4001)

    def truth(points: Any) -> float:
        law = stats.norm.pdf(y, np.asarray(points)[:, None]) * (y[1] - y[0])
        halves = np.stack([law[:2].mean(axis=0), law[2:].mean(axis=0)])
        return table_information(halves, np.array([0.5, 0.5]))

    found = ig.gradient(model, ig.MI("bit", "y"))
    steps = 1e-4 * np.eye(4)
    slopes = [(truth(start + e) - truth(start - e)) / 2e-4 for e in steps]
    assert_found(found, {"points": np.array(slopes)}, 0.001)
    assert not found.warnings


def test_their_arguments_may_change_in_an_ascent():
    search = ig.InfoMax(adder, ig.MI("a", "sum"), optax.sgd(0.0))
    state = search.init(jax.random.key(0), 0.3)
    for q in (0.3, 0.5):
        state, info = search.update(state, q)
        truth = slope(lambda p, q=q: adder_information(p, q), 0.4)
        assert float(info.gradient["p"]) == pytest.approx(truth * 0.24, abs=0.005)


def test_set_without_a_density_is_refused_by_name():
    def model():
        a = numpyro.param("a", 0.3)
        z = numpyro.sample("z", dist.Bernoulli(a))
        x = numpyro.sample("x", dist.Normal(z, 1))
        numpyro.deterministic("y", jnp.abs(x))

    with pytest.raises(DensityError, match="site 'y' is deterministic.*'z'"):
        ig.gradient(model, ig.MI("z", "y"))


def test_scores_of_a_twin_refuse_draws():
    def model():
        z = numpyro.sample("z", dist.Bernoulli(numpyro.param("a", 0.3)))
        numpyro.sample("y", dist.Normal(z, 1))

    with pytest.raises(ReparametrizationError, match="'z' depends on 'a'.*calibrate"):
        record = {"y": np.random.default_rng(0).normal(size=600)}
        ig.calibrate(model, record, divergence="kl")


def seen(probability: Callable[[Any, Any], Any]) -> Callable[[], None]:
    """A yes or no with this probability of a and of a noisy v around a x."""

    def model() -> None:
        a = numpyro.param("a", 1.2)
        x = numpyro.sample("x", dist.Normal())
        v = numpyro.sample("v", dist.Normal(a * x, 0.7))
        numpyro.sample("k", dist.Bernoulli(probs=probability(a, v)))

    return model


@pytest.mark.parametrize(
    ("probability", "error"),
    [
        (lambda a, v: jnp.where(v > 0.3, 0.9, 0.1), JumpError),
        (lambda a, v: expit(jnp.round(2 * v) / 2), JumpError),
        (lambda a, v: expit(jax.lax.stop_gradient(v)), ReparametrizationError),
    ],
)
def test_probabilities_without_a_right_derivative_are_refused(probability, error):
    """With the draws held, nothing else of the objective depends on the parameter."""
    with pytest.raises(error, match="the probability of site 'k'"):
        ig.gradient(seen(probability), ig.MI("x", "k"))


def test_a_probability_with_a_kink_has_a_derivative():
    model = seen(lambda a, v: jnp.clip(expit(3 * v), 0.2, 0.7))
    check_gradient(ig.MI("x", "k"), ig.structural_model(model), {"a": 1.2}, False)


def test_the_weights_of_a_mixture_must_not_jump():
    def mixed(v):
        even, odd = jnp.array([0.9, 0.1]), jnp.array([0.2, 0.8])
        weights = dist.Categorical(probs=jnp.where(v > 0.3, even, odd))
        return dist.MixtureSameFamily(weights, dist.Normal(jnp.array([-2.0, 2.0]), 1))

    with pytest.raises(JumpError, match="the probability of site 'y'"):
        ig.gradient(with_gain(mixed), X_TO_Y)


@pytest.mark.slow
def test_samples_that_half_of_the_components_explain_are_counted():
    """Their bias, the difference of both halves, is infinite."""

    def model():
        a = numpyro.param("a", 1.0)
        x = numpyro.sample("x", dist.Normal(0, 1))
        s = numpyro.sample("s", dist.Poisson(jnp.exp(a)))
        low, high = x + s - 0.5, x + s + 0.5
        numpyro.sample("y", dist.Uniform(low, high, validate_args=False))

    coarse = ig.scores.Mixture(num_components=256)
    found = ig.gradient(model, X_TO_Y, scores=coarse, num_samples=4096)
    assert np.isfinite(found.value["a"]) and np.isfinite(found.standard_error["a"])
    assert found.diagnostics["unexplained(log p(y))"] > 0.005
    assert any("outside the support of half" in warning for warning in found.warnings)


@pytest.mark.slow
def test_coarse_mixture_is_warned_about():
    def model():
        a = numpyro.param("a", 1.0)
        x = numpyro.sample("x", dist.Normal(0, 1).expand([6]).to_event(1))
        s = numpyro.sample("s", dist.Poisson(jnp.exp(a)))
        numpyro.sample("y", dist.Normal(x * s, 0.02).to_event(1))

    found = ig.gradient(model, X_TO_Y, scores=ig.scores.Mixture(512), num_samples=512)
    assert any("which weighs the draws of 's'" in w for w in found.warnings)


def counts():
    a = numpyro.param("a", 1.0)
    u = numpyro.sample("u", dist.Normal(0, 1).expand([2]).to_event(1))
    numpyro.sample("n", dist.Poisson(jnp.exp(4 + 0.7 * a * u)).to_event(1))


@rest_slow("scores", ["auto", "mixture"])
def test_steps_have_the_components_that_a_gradient_needs(scores):
    """The trial of "auto" finds out; a method by name has what it says."""
    ascent = ig.InfoMax(counts, ig.MI("u", "n"), scores=scores)
    _, info = ascent.update(ascent.init(jax.random.key(0)))
    size = info.evidence["effective_sample_size_low(log p(n))"]
    assert (size > 200) == (scores == "auto")


@pytest.mark.slow
def test_components_are_refined_beside_scores_of_another_kind():
    """They are too few for log p(n), whatever the number of samples of the chains."""
    found = ig.gradient(counts, ig.MI("u", "n"), scores="mcmc", num_samples=512)
    assert found.diagnostics["effective_sample_size_low(log p(n))"] > 200


def test_components_are_not_refined_in_vain():
    """The effective number grows as the number, of which there are 1024 to 16384."""
    sm = ig.structural_model(counts)
    chance = pose(sm, ig.MI("u", "n"), ig.scores.Mixture(), sm.params).problem.chance
    names = ["effective_sample_size_low", "unexplained"]
    for size, enough in ((1.0, False), (12.0, False), (13.0, True), (100.0, True)):
        numbers = zip(names, (size, 0.0), strict=True)
        evidence = {Measure(name, "log p(n)"): number for name, number in numbers}
        assert chance.warnings_for(evidence)
        finer = chance.finer(evidence)
        assert bool(finer) == enough
        assert not finer or finer.mixture.num_components == 4096


@pytest.mark.slow
def test_an_ascent_with_a_coarse_mixture_says_so():
    for scores in ("auto", "mixture"):
        end = quiet.maximize_mi(counts, "u", "n", scores=scores, num_steps=5)
        is_coarse = "which weighs the draws of 'n'" in str(end.warnings)
        assert is_coarse == (scores == "mixture")


@pytest.mark.parametrize("call", [ig.gradient, ig.estimate])
def test_a_cause_of_the_condition_is_not_summed_out_with_its_prior(call) -> None:
    """b moves n, and both move y: p(y | n) needs the posterior of b given n."""

    def model() -> None:
        a = numpyro.param("a", 0.4)
        b = numpyro.sample("b", dist.Bernoulli(logits=a))
        n = numpyro.sample("n", dist.Bernoulli(logits=3.0 * b - 1.0))
        numpyro.sample("y", dist.Normal(2.0 * a * b + n, 1.0))
        numpyro.deterministic("e", b > 0)

    grid = np.linspace(-8.0, 11.0, 8001)

    def information(a: float) -> float:
        b = stats.bernoulli.pmf(np.arange(2), special.expit(a))
        n = stats.bernoulli.pmf(np.arange(2), special.expit([[-1], [2]]))
        means = 2 * a * np.arange(2)[:, None] + np.arange(2)
        each = stats.norm.pdf(grid, means[..., None])
        joint = np.einsum("b,bn,bny->ny", b, n, each) * (grid[1] - grid[0])
        shares = joint.sum(1)
        return table_information(joint / shares[:, None], shares)

    def computed(a: float) -> float:
        p = stats.bernoulli.pmf(np.arange(2), special.expit([[-1], [2]]))
        return table_information(p, stats.bernoulli.pmf(np.arange(2), special.expit(a)))

    found = call(model, ig.MI("n", "y"), params={"a": 0.4})
    other = call(model, ig.MI("e", "n"))
    if call is ig.gradient:
        assert_found(found, {"a": slope(information, 0.4, 1e-3)}, 0.01)
        assert_found(other, {"a": slope(computed, 0.4)}, 0.001)
    else:
        assert_found(found, information(0.4), 0.005)
        assert_found(other, computed(0.4), 1e-5)
