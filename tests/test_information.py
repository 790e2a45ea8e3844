# SPDX-License-Identifier: Apache-2.0
"""Conditional, joint and weighted information, and entropies, against closed forms."""

from collections.abc import Callable
import functools
from typing import Any
import warnings

import links
from methods import AVERAGE, LEARN, exact_and_slow, sampled_and_slow, slow
from models import channel
import numpy as np
import pytest
from scipy.special import polygamma

import jax
import jax.extend
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

from helpers import assert_found
import numpyro_infograd as ig
from numpyro_infograd import MI, Entropy
from numpyro_infograd._linear import Linear, warn_of_parts
from numpyro_infograd.errors import BoundaryError, DegenerateError
from numpyro_infograd.scores import Analytic
from numpyro_infograd.scores.exact import GaussianEntropies
import truths


def check(objective, model, truth: dict[str, float], scores, params=None, **settings):
    """Within three standard errors, each at most 1 % of the largest component.

    Or 2 % for networks: errors include what the chains that check them left open.
    """
    found = ig.gradient(model, objective, params=params, scores=scores, **settings)
    sharp = (0.02 if scores is LEARN else 0.01) * max(map(abs, truth.values()))
    assert_found(found, truth, sharp, num_sigmas=3.0)


def slopes(covariance, sets, point) -> dict[str, float]:
    """Derivatives of a Gaussian I(A;B|C) by central differences."""
    a, b, c = sets

    def information(**params: float) -> float:
        whole = np.array(covariance(**params))
        half_log = [
            np.linalg.slogdet(whole[np.ix_(s, s)])[1] / 2 if s else 0.0
            for s in (a + c, b + c, a + b + c, c)
        ]
        return half_log[0] + half_log[1] - half_log[2] - half_log[3]

    def along(name: str) -> float:
        return links.slope(
            lambda value: information(**point | {name: value}), point[name], 1e-5
        )

    return {name: along(name) for name in point}


# -- weighted sums of conditional informations (Corollary 3) ---------------------------
def user_score(*sites: str) -> Callable[[Any, Any], Any]:
    """Score of y given the senders named, for `Analytic`."""

    def score(params: Any, v: Any) -> Any:
        gains = {"x1": params["a"], "x2": params["b"]}
        known = sum(gains[s] * v[s] for s in sites)
        hidden = sum(g**2 for s, g in gains.items() if s not in sites)
        return -(v["y"] - known) / (1 + hidden)

    return score


two_users = functools.partial(links.two_users, b=0.6)
USERS = Analytic(
    {"y": user_score(), ("x1", "y"): user_score("x1"), ("x2", "y"): user_score("x2")}
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scores",
    ["exact", AVERAGE, slow(LEARN), slow(USERS)],
    ids=["exact", "mixture", "denoising", "analytic"],
)
def test_weighted_rates_of_two_users(scores) -> None:
    objective = (
        0.7 * MI("x1", "y", given="x2")
        + 0.3 * MI("x2", "y", given="x1")
        + 0.5 * MI(("x1", "x2"), "y")
    )
    a, b = 1.0, 0.6
    both = 0.5 / (1 + a**2 + b**2)
    truth = {"a": 0.7 * a / (1 + a**2) + both * a, "b": 0.3 * b / (1 + b**2) + both * b}
    check(objective, two_users, truth, scores)


@pytest.mark.parametrize("scores", ["exact", slow(AVERAGE)], ids=["exact", "mixture"])
def test_interference_treated_as_noise(scores) -> None:
    """I(X1;Y) without the condition: the other user is noise."""
    a, b = 1.0, 0.6
    truth = {"a": a / (1 + a**2 + b**2), "b": b / (1 + a**2 + b**2) - b / (1 + b**2)}
    check(MI("x1", "y"), two_users, truth, scores)


# -- a parameter in the input, in the condition, on both ends --------------------------
def side_information() -> None:
    """The condition c = e u + noise tells of u, which disturbs the channel."""
    e = numpyro.param("e", 1.0)
    x = numpyro.sample("x", dist.Normal(0, 1))
    u = numpyro.sample("u", dist.Normal(0, 1))
    numpyro.sample("c", dist.Normal(e * u, 1))
    numpyro.sample("y", dist.Normal(x + u, 1))


@exact_and_slow
def test_condition_that_depends_on_a_parameter(scores) -> None:
    e = 1.5
    left = 1 / (1 + e**2)  # variance of u given c
    truth = -e * left**2 * (1 / (2 + left) - 1 / (1 + left))
    check(MI("x", "y", given="c"), side_information, {"e": truth}, scores, {"e": e})


def common_condition() -> None:
    """Input, output and condition share a cause, each by a parameter of its own."""
    a, b, e = (numpyro.param(n, v) for n, v in zip("abe", (0.8, 1.2, 0.5), strict=True))
    u = numpyro.sample("u", dist.Normal(0, 1))
    x = numpyro.sample("x", dist.Normal(a * u, 1))
    numpyro.sample("c", dist.Normal(e * u, 1))
    numpyro.sample("y", dist.Normal(x + b * u, 1))


@exact_and_slow
def test_input_output_and_condition_of_one_cause(scores) -> None:
    def covariance(a, b, e):  # of x, y, c
        cause = np.array([a, a + b, e])
        own = np.array([[1, 1, 0], [1, 2, 0], [0, 0, 1]])
        return np.outer(cause, cause) + own

    truth = slopes(covariance, ([0], [1], [2]), {"a": 0.8, "b": 1.2, "e": 0.5})
    check(MI("x", "y", given="c"), common_condition, truth, scores)


def chain(bend: bool = False) -> None:
    a, b = numpyro.param("a", 0.7), numpyro.param("b", 1.2)
    x = numpyro.sample("x", dist.Normal(0, 1))
    v = numpyro.sample("v", dist.Normal(a * x, 1))
    w = numpyro.sample("w", dist.Normal(jnp.tanh(b * v) if bend else b * v, 0.5))
    numpyro.sample("y", dist.Normal(w, 1))


@exact_and_slow
def test_information_between_two_sites_in_the_middle(scores) -> None:
    a, b = 0.7, 1.2
    power = 1 + a**2
    snr = 1 + 4 * b**2 * power
    truth = {"a": 4 * b**2 * a / snr, "b": 4 * b * power / snr}
    check(MI("v", "w"), chain, truth, scores)


@pytest.mark.slow
@sampled_and_slow
def test_the_same_through_a_saturating_stage(scores) -> None:
    """v is Gaussian of variance 1 + a^2: the tanh channel at eta = b sqrt(1 + a^2)."""
    a, b = 0.7, 1.2
    root = np.sqrt(1 + a**2)
    slope = truths.tanh_derivative(b * root)
    truth = {"a": slope * b * a / root, "b": slope * root}
    settings = {"num_samples": 1 << 16, "model_kwargs": {"bend": True}}
    check(MI("v", "w"), chain, truth, scores, **settings)


# -- entropies of one set alone --------------------------------------------------------
log_normal = channel(
    lambda x: dist.LogNormal(numpyro.param("a", 0.8) * x + numpyro.param("m", 0.2), 0.6)
)


@pytest.mark.slow
@sampled_and_slow
def test_entropy_of_a_positive_site(scores) -> None:
    """h = m + log(2 pi e (a^2 + s^2)) / 2."""
    variance = 0.8**2 + 0.6**2
    check(Entropy("y"), log_normal, {"a": 0.8 / variance, "m": 1.0}, scores)


@pytest.mark.slow
def test_value_of_the_entropy_of_a_positive_site() -> None:
    found = ig.estimate(log_normal, Entropy("y"))
    truth = 0.2 + 0.5 * np.log(2 * np.pi * np.e)
    assert_found(found, truth, 0.005)


def root(law: Callable[[Any], Any], start: float) -> links.Model:
    def model() -> None:
        numpyro.sample("y", law(numpyro.param("k", start)))

    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "start", "truth"),
    [
        (lambda k: dist.Gamma(k, 1.0), 3.0, 1 - 2 * polygamma(1, 3.0)),
        (dist.Exponential, 2.0, -0.5),
        slow(lambda k: dist.Beta(k, 2.0), 3.0,
             -2 * polygamma(1, 3.0) + 3 * polygamma(1, 5.0)),
    ],
    ids=["Gamma", "Exponential", "Beta"],
)  # fmt: skip
def test_entropy_of_a_law_on_a_fixed_support(law, start, truth) -> None:
    wanted = {"k": float(truth)}
    check(Entropy("y"), root(law, start), wanted, "auto", num_samples=1 << 18)


def test_entropy_on_a_support_that_moves_is_refused() -> None:
    """h = log k of a uniform law on (0, k): its score is zero inside."""
    with pytest.raises(BoundaryError, match="'y'"):
        ig.gradient(root(lambda k: dist.Uniform(0.0, k), 2.0), Entropy("y"))


def plate(size: int, shared: float = 0.0, closed: tuple[int, ...] = ()):
    """A plate of amplifiers. Those in `closed` add no noise."""

    def model() -> None:
        scale = jnp.ones(size).at[jnp.array(closed, int)].set(0.0)
        common = numpyro.sample("common", dist.Normal(0, 1)) if shared else 0.0
        with numpyro.plate("members", size):
            x = numpyro.sample("x", dist.Normal(0, 1))
            noise = numpyro.sample("noise", dist.Normal(0, 1))
        mean = jnp.tanh(numpyro.param("a", 1.0) * x) + shared * common
        numpyro.deterministic("y", mean + scale * noise)

    return model


def test_a_wide_plate_has_a_warning_unless_its_members_share_noise() -> None:
    for size, shared, parts in ((128, 0.0, 128), (128, 1.0, 1), (8, 0.0, 8)):
        sm = ig.structural_model(plate(size, shared))
        assert Linear.of(sm, ("x", "y"), sm.params).count_parts() == parts
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            warn_of_parts(sm, ("x", "y"), sm.params)
        said = [str(w.message) for w in seen]
        assert len(said) == (parts == 128)
        assert all("128 parts" in s and "is 128 times" in s for s in said)


@pytest.mark.parametrize("cause", ["bit", "count", "sign"])
def test_parts_are_unknown_where_noise_has_no_derivative(cause: str) -> None:
    laws = {"bit": dist.Bernoulli(0.5), "count": dist.Poisson(2.0)}

    def model() -> None:
        common = numpyro.sample("common", laws.get(cause, dist.Normal(0, 1)))
        common = jnp.sign(common) if cause == "sign" else common
        with numpyro.plate("looks", 128):
            numpyro.sample("y", dist.Normal(jnp.tanh(1.0 * common), 1))

    sm = ig.structural_model(model)
    assert Linear.of(sm, ("y",), sm.params).count_parts() == 1


@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_ranks_of_parts_add_up(shared: float) -> None:
    sm = ig.structural_model(plate(6, shared, closed=(1, 4)))
    linear = Linear.of(sm, ("x", "y"), sm.params)
    lost = 1 if shared else 2  # two members show the common noise and each other
    assert linear.rank(("x", "y")) == 12 - lost
    assert linear.rank(("y",), ("x",)) == 6 - lost
    assert linear.rank(("y",)) == 6
    with pytest.raises(DegenerateError, match=f"only {12 - lost} of noise"):
        ig.gradient(plate(6, shared, closed=(1, 4)), ig.MI("x", "y"))


@pytest.mark.parametrize("tuned", [True, False])
def test_decompositions_run_one_after_the_other(tuned: bool) -> None:
    """XLA runs independent ones in parallel, and batched ones then wait for each other
    for ever if threads are few.
    """

    def model() -> None:
        x = numpyro.sample("x", dist.Normal(jnp.zeros(3), 1).to_event(1))
        gains = jnp.eye(3) + 0.1
        gains = numpyro.param("gains", gains) if tuned else gains
        numpyro.sample("y", dist.Normal(gains @ x, 1).to_event(1))

    sm = ig.structural_model(model)
    entropies = GaussianEntropies.of(MI("x", "y"), sm)
    jaxpr = jax.make_jaxpr(entropies)(sm.params).jaxpr
    reached: set[jax.extend.core.Var] = set()
    number = 0
    for eqn in jaxpr.eqns:
        inputs = {x for x in eqn.invars if isinstance(x, jax.extend.core.Var)}
        is_svd = "svd" in str(eqn.primitive) + str(eqn.params.get("name"))
        assert not (is_svd and number) or inputs & reached
        if is_svd or inputs & reached:
            reached |= {*eqn.outvars}
        number += is_svd
    assert number == 2
