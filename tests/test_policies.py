# SPDX-License-Identifier: Apache-2.0
"""Adaptive policies and the contrastive bound, against integrals and sums."""

import functools
import math

from links import normal_grid, table_information
import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit

import jax
import jax.numpy as jnp

import numpyro
from numpyro.contrib.control_flow import scan
import numpyro.distributions as dist

from helpers import assert_found, quiet, refuses
import numpyro_infograd as ig
from numpyro_infograd.errors import ScoreError

BOUND = ig.scores.Contrastive(num_components=256, num_samples=4096)
MI = ig.MI("theta", "y")


def channel():
    theta = numpyro.sample("theta", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(numpyro.param("a", 3.0) * theta, 1))


def bound_slope(a, count, size=400_000):
    """d I_L / da of `channel` with L contrasts, and its standard error."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(size, count + 1))
    y = a * x[:, :1] + draw.normal(size=(size, 1))
    log_p = -0.5 * (y - a * x) ** 2
    w = np.exp(log_p - log_p.max(axis=1, keepdims=True))
    w /= w.sum(axis=1, keepdims=True)
    each = np.sum(w * (y - a * x) * (x[:, :1] - x), axis=1)
    return each.mean(), each.std() / math.sqrt(size)


def policy():
    """The second design is w times the first outcome."""
    w = numpyro.param("w", 0.8)
    theta = numpyro.sample("theta", dist.Normal(0, 1))

    def step(x, _):
        y = numpyro.sample("y", dist.Normal(x * theta, 1))
        return w * y, None

    scan(step, jnp.ones(()), None, length=2)


def truth(w):
    """I(theta; y_1, y_2) of `policy`, and its slope in w, in nats."""
    z, p = normal_grid(9, 20001)
    value = 0.5 * math.log(2) + p @ (0.5 * np.log1p((w * z) ** 2))
    return value, p @ (w * z**2 / (1 + (w * z) ** 2))


def test_contrastive_gradient_is_that_of_the_bound():
    """Three contrasts show little of 1.15 nats: their bound is almost flat."""
    few = ig.scores.Contrastive(num_components=2, num_samples=2**15)
    found = ig.gradient(channel, MI, scores=few)
    wanted, error = bound_slope(3.0, 2)
    assert abs(wanted - 0.3) > 0.1  # not that of the information
    got = float(found.value["a"]), float(found.standard_error["a"])
    # The error includes the difference to one contrast, which is no error here.
    assert abs(got[0] - wanted) < min(got[1], 0.01) + 3 * error
    assert any("gradient of the contrastive bound" in w for w in found.warnings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scores", [BOUND, "mixture", "mcmc"], ids=["contrastive", "mixture", "mcmc"]
)
def test_gradient_through_a_policy(scores):
    """The path from an outcome to the next design is a part of the gradient."""
    found = ig.gradient(policy, MI, scores=scores, num_samples=4096)
    _, slope = truth(0.8)
    assert_found(found, {"w": slope}, 0.02)


@pytest.mark.slow
def test_draws_without_weight_may_have_no_derivative():
    """A mean that ends at a root: draws beyond its end have a weight of zero."""

    def near(theta, y):
        return jnp.sqrt(jnp.maximum(0.04 - (theta - y) ** 2, 0.0))

    def twice():
        theta = numpyro.sample("theta", dist.Normal(0, 0.1))
        k = numpyro.param("k", 1.0)
        y = numpyro.sample("y", dist.Normal(k * theta, 0.01))
        numpyro.sample("z", dist.Normal(near(k * theta, y), 1))

    assert jnp.isnan(0.0 * jax.grad(near)(0.3, 0.0))
    method = ig.scores.Contrastive(num_components=1024, num_samples=2**12)
    found = ig.gradient(twice, ig.MI("theta", ("y", "z")), scores=method)
    assert_found(found, {"k": 100 / 101}, 0.03)  # z, almost N(0.2, 1), adds nothing


@pytest.mark.slow
def test_bounds_of_a_policy():
    """One call gives both bounds with their errors."""
    method = ig.values.Nested(num_components=256, max_components=256)
    found = ig.estimate(policy, MI, method=method, num_samples=4096)
    value, _ = truth(0.8)
    assert_found(found, value, 0.01)
    for name, sign in (("lower_bound", 1), ("upper_bound", -1)):
        mean, error = found.diagnostics[name]
        assert 0 < error < 0.01
        assert -3 * error < sign * (value - mean) < 0.03
    lower, error = found.diagnostics["lower_bound"]
    assert found.lower == pytest.approx(lower - 2 * error, abs=1e-5)


def test_contrasts_need_a_likelihood():
    def hidden():
        w = numpyro.param("w", 0.8)
        theta = numpyro.sample("theta", dist.Normal(0, 1))
        gain = numpyro.sample("gain", dist.Normal(1, 0.1))
        numpyro.sample("y", dist.Normal(w * jnp.tanh(gain * theta), 1))

    call = functools.partial(ig.gradient, hidden, MI, scores="contrastive")
    refuses(ScoreError, "both hide noise", "gain", call=call)


@pytest.mark.slow
def test_gradient_through_a_policy_with_hidden_noise():
    """Each outcome has a hidden gain, so no density given the input is known.

    The truth is a difference of values with common random numbers, by chains.
    """

    def hidden():
        w = numpyro.param("w", 0.8)
        theta = numpyro.sample("theta", dist.Normal(0, 1))

        def step(x, _):
            gain = numpyro.sample("gain", dist.Normal(1, 0.3))
            y = numpyro.sample("y", dist.Normal(x * gain * theta, 1))
            return w * y, None

        scan(step, jnp.ones(()), None, length=2)

    found = ig.gradient(hidden, MI, scores="mcmc")
    ends = [
        ig.estimate(hidden, MI, params={"w": w}, method=ig.values.Nested(2**12))
        for w in (0.6, 1.0)
    ]
    slope = (ends[1].value - ends[0].value) / 0.4
    error = math.hypot(ends[0].standard_error, ends[1].standard_error) / 0.4
    got, its = float(found.value["w"]), float(found.standard_error["w"])
    assert its < 0.02
    # The difference has an error of second order, about 0.01.
    assert abs(got - slope) < 3 * math.hypot(its, error) + 0.01
    assert got > 0.05


def yes_or_no(rounds):
    """A tree of thresholds: each answer chooses the next one."""
    x = numpyro.param("x", jnp.asarray(START[: 2**rounds - 1]))
    theta = numpyro.sample("theta", dist.Normal(0, 1))

    def ask(node, _):
        y = numpyro.sample("y", dist.Bernoulli(logits=4 * (theta - x[node])))
        return 2 * node + 1 + y, None

    scan(ask, jnp.zeros((), int), None, length=rounds)


START = np.random.default_rng(0).normal(0, 0.5, 31).astype(np.float32)


def tree_truth(x):
    """I(theta; answers) of a tree of thresholds, by a sum over all answers."""
    z, w = normal_grid(6, 801)
    paths = [(np.ones_like(z), 0)]
    for _ in range(int(math.log2(len(x) + 1))):
        yes = [expit(4 * (z - x[node])) for _, node in paths]
        paths = [
            (p * q, 2 * node + 1 + y)
            for (p, node), each in zip(paths, yes, strict=True)
            for y, q in enumerate((1 - each, each))
        ]
    p = np.array([p for p, _ in paths])
    return table_information(p.T, w)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rounds", "sharp"),
    [(3, 0.001), (5, 0.01)],  # 8 and 32 joint outcomes
)
def test_gradient_through_a_policy_with_discrete_outcomes(rounds, sharp):
    """Outcomes have no path, so their probabilities carry the gradient."""
    found = ig.gradient(yes_or_no, MI, model_args=(rounds,))
    x = START[: 2**rounds - 1].astype(float)
    h = 1e-4 * np.eye(len(x))
    slopes = np.array([tree_truth(x + e) - tree_truth(x - e) for e in h]) / 2e-4
    assert_found(found, {"x": slopes}, sharp, rounding=1e-5)
    assert np.abs(slopes).max() > 5 * sharp


@pytest.mark.slow
def test_a_policy_with_discrete_outcomes_is_trained():
    """The ascent finds the best tree, which beats the best three thresholds."""

    def best_of(order, start):
        return -optimize.minimize(lambda x: -tree_truth(x[order]), np.array(start)).fun

    best = best_of(np.arange(7), [0, -0.6, 0.6, -1, -0.3, 0.3, 1])
    assert best == pytest.approx(0.9338, abs=2e-4)
    static = best_of([0, 1, 1, 2, 2, 2, 2], [-0.6, 0.0, 0.6])
    assert static == pytest.approx(0.7402, abs=2e-4)
    trained = quiet.maximize_mi(yes_or_no, "theta", "y", model_args=(3,))
    reached = tree_truth(np.asarray(trained.params["x"], float))
    assert reached > best - 0.001
    assert_found(trained.estimate, reached, 0.005)
