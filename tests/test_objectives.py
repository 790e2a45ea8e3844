# SPDX-License-Identifier: Apache-2.0
"""The algebra of objectives, and which entropies a model makes of one."""

import links
import numpy as np
import pytest

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

from helpers import assert_found
import numpyro_infograd as ig
from numpyro_infograd._terms import resolve

XY = ig.MI("x", "y")


def power(v):
    return v["x"] ** 2


# -- algebra -------------------------------------------------------------------
def entropies(**coefficients: float) -> dict[frozenset[str], float]:
    """Of sets of sites, each named by their letters."""
    return {frozenset(sites): number for sites, number in coefficients.items()}


ALGEBRA = {
    "information": (XY, entropies(x=1.0, y=1.0, xy=-1.0)),
    "conditional information": (
        ig.MI("x", "y", given=("s", "t")),
        entropies(xst=1.0, yst=1.0, xyst=-1.0, st=-1.0)),
    "conditional entropy": (ig.Entropy("y", given="x"), entropies(xy=1.0, x=-1.0)),
    "negation": (-XY, entropies(x=-1.0, y=-1.0, xy=1.0)),
    "JAX's number": (XY * jnp.asarray(2.0), (2 * XY).entropies),
    "nothing": (0 * (XY + ig.Expectation(power)), {}),
}  # fmt: skip


@pytest.mark.parametrize(("objective", "expected"), ALGEBRA.values(), ids=ALGEBRA)
def test_entropies(objective, expected) -> None:
    assert objective.entropies == expected


@pytest.mark.parametrize(
    "two",
    [2, 2.0, np.float32(2), np.float64(2), np.int64(2), np.asarray(2.0)],
    ids=lambda n: type(n).__name__,
)
def test_scalars_multiply_from_both_sides(two) -> None:
    expected = {s: 2 * c for s, c in XY.entropies.items()}
    for product in (two * XY, XY * two):
        assert isinstance(product, type(XY))
        assert product.entropies == expected


def test_sum_of_a_list_and_of_nothing() -> None:
    total = sum([XY, ig.MI("z", "y"), ig.Expectation(power)])
    assert total.entropies[frozenset("y")] == 2.0
    assert len(total.expectations) == 1


def test_weights_that_cancel_but_for_rounding_cancel() -> None:
    """0.1 + 0.2 - 0.3 is not zero in binary; a codeword has no density to fit."""
    weighted = 0.1 * ig.MI("x", "y") + 0.2 * ig.MI("x", "z") - 0.3 * ig.Entropy("x")
    assert frozenset("x") not in weighted.entropies


def test_expectations_keep_their_weight_unless_it_is_zero() -> None:
    objective = XY - 0.25 * ig.Expectation(power)
    assert objective.expectations == ((-0.25, power),)
    assert (0 * objective).expectations == ()


def test_sites_are_sorted_and_unique() -> None:
    assert ig.MI(("z", "x"), "y", given="a").sites == ("a", "x", "y", "z")


def test_repr_reads_like_the_code() -> None:
    assert repr(XY) == "MI('x', 'y')"
    assert repr(-XY) == "-MI('x', 'y')"
    shown = repr(2 * XY - 0.5 * ig.Expectation(power))
    assert shown == "2 * MI('x', 'y') - 0.5 * Expectation(power)"
    assert repr(ig.MI(("x", "z"), "y")) == "MI(('x', 'z'), 'y')"


@pytest.mark.parametrize(
    "objective", [ig.MI("x", "y", given="s"), ig.Entropy("y", given=("s", "t"))]
)
def test_repr_of_a_condition_can_be_evaluated(objective) -> None:
    again = eval(repr(objective), {"MI": ig.MI, "Entropy": ig.Entropy})
    assert again.entropies == objective.entropies


# -- resolve -------------------------------------------------------------------
def chain():
    u = numpyro.sample("u", dist.Normal(0, 1))
    x = numpyro.sample("x", dist.Normal(numpyro.param("e", 1.0) * u, 1))
    numpyro.sample("y", dist.Normal(jnp.tanh(x), 1))


def renamed():
    z = numpyro.sample("z", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * z, 1))


def resolved(objective, model) -> set[tuple[float, tuple, tuple]]:
    terms = resolve(objective, ig.structural_model(model))
    return {(t.coefficient, t.sites, t.given) for t in terms}


PAIR = {(1.0, ("y",), ()), (-1.0, ("y",), ("x",))}
RESOLVED = {
    "root input": (links.link, XY, PAIR),
    "codeword": (links.codeword, XY, PAIR),
    "input with a common cause": (
        links.common_cause, XY,
        {(1.0, ("x",), ()), (1.0, ("y",), ()), (-1.0, ("x", "y"), ())}),
    # Whatever the names: p(z|y) is not p(z), for all that z is drawn without y.
    "output before its input": (
        renamed, ig.MI("z", "y"), {(1.0, ("y",), ()), (-1.0, ("y",), ("z",))}),
}  # fmt: skip


@pytest.mark.parametrize("case", RESOLVED)
def test_resolution(case) -> None:
    model, objective, expected = RESOLVED[case]
    assert resolved(objective, model) == expected


def test_which_sites_are_conditions() -> None:
    """A moved input that separates, a discrete one, and never an output."""
    assert (-1.0, ("y",), ("x",)) in resolved(XY, chain)
    terms = resolved(ig.MI("x", "y", given="on"), links.switched)
    assert (1.0, ("y",), ("on",)) in terms
    assert all(sites == ("y",) for _, sites, _ in terms)
    assert not any(given == ("y",) for _, _, given in resolved(XY, links.lagged))


def test_resolution_keeps_the_entropies() -> None:
    objective = 2 * ig.MI("x", "y") - 0.5 * ig.MI("x", "v1") + ig.Entropy("v2")
    left = dict(objective.entropies)
    for term in resolve(objective, ig.structural_model(links.link)):
        whole = frozenset(term.sites + term.given)
        left[whole] = left.get(whole, 0.0) - term.coefficient
        if term.given:
            inner = frozenset(term.given)
            left[inner] = left.get(inner, 0.0) + term.coefficient
    assert all(abs(c) < 1e-12 for c in left.values())


@pytest.mark.slow
def test_codeword_wider_than_its_source_is_exact() -> None:
    """Four dimensions made of two have no density; h(x) must never be asked for."""
    start = jnp.asarray([[1.0, 0.5], [0.2, 1.0], [0.3, 0.4], [0, 1]])

    def model():
        w = numpyro.param("w", start)
        u = numpyro.sample("u", dist.Normal(0, 1).expand([2]).to_event(1))
        x = numpyro.deterministic("x", w @ u)
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1))

    gram = jnp.eye(2) + 4 * start.T @ start
    truth = 0.5 * jnp.linalg.slogdet(gram)[1]
    for inputs in ("x", "u"):
        assert ig.estimate(model, ig.MI(inputs, "y")).value == pytest.approx(truth)
    slope = 4 * start @ jnp.linalg.inv(gram)
    found = ig.gradient(model, XY, scores="exact")
    np.testing.assert_allclose(found.value["w"], slope, atol=1e-5)


@pytest.mark.slow
def test_codeword_has_the_gradient_of_its_source() -> None:
    """I(x;y) = I(u;y) for an invertible x = F u: log det(I + F F^T) / 2."""

    def information(f):
        return 0.5 * jnp.linalg.slogdet(jnp.eye(2) + f @ f.T)[1]

    truth = jax.grad(information)(jnp.asarray(links.PRECODER, jnp.float32))
    method = ig.scores.Mixture(num_components=1024, num_samples=8192)
    for inputs in ("x", "u"):
        g = ig.gradient(links.codeword, ig.MI(inputs, "y"), scores=method)
        assert_found(g, {"f": truth}, 0.01)
