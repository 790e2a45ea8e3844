# SPDX-License-Identifier: Apache-2.0
"""What holds for all: the algebra of objectives, random graphs, projections."""

from hypothesis import assume, given, settings, strategies as st
import numpy as np
import pytest

import jax
import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig
from numpyro_infograd._objectives import Objective
from numpyro_infograd._optimize.move import gradient_mapping

SITES = ("a", "b", "c", "d")
coefficients = st.integers(-4, 4).map(lambda k: k / 2)


@st.composite
def measures(draw) -> Objective:
    """An entropy or information of random sites."""
    order = draw(st.permutations(SITES))
    cuts = sorted(draw(st.lists(st.integers(1, 4), min_size=2, max_size=2)))
    parts = order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] :]
    first, second, third = map(tuple, parts)
    return ig.MI(first, second, third) if second else ig.Entropy(first, third)


objectives = st.lists(st.tuples(coefficients, measures()), min_size=1, max_size=4).map(
    lambda terms: sum(c * m for c, m in terms)
)


def close(a: Objective, b: Objective) -> bool:
    keys = set(a.entropies) | set(b.entropies)
    return all(
        a.entropies.get(k, 0.0) == pytest.approx(b.entropies.get(k, 0.0), abs=1e-9)
        for k in keys
    )


@given(objectives, objectives, objectives, coefficients)
def test_objectives_are_a_vector_space(a, b, c, k) -> None:
    assert close(a + b, b + a)
    assert close((a + b) + c, a + (b + c))
    assert close(k * (a + b), k * a + b * k)
    assert not (a - a).entropies
    assert close(-a, -1 * a) and close(a / 2, 0.5 * a)
    assert close(sum([a, b, c]), a + b + c)


@given(st.permutations(SITES))
def test_the_chain_rule(order) -> None:
    a, b, c, d = order
    assert close(ig.MI(a, (b, c), d), ig.MI(a, b, d) + ig.MI(a, c, (b, d)))
    assert close(ig.MI(a, b, c), ig.MI(b, a, c))
    assert close(ig.MI(a, b, c), ig.Entropy(a, c) - ig.Entropy(a, (b, c)))


@st.composite
def graphs(draw) -> tuple[np.ndarray, np.ndarray]:
    """Weights (lower triangular) and noise of a linear-Gaussian graph."""
    size = draw(st.integers(2, 5))
    weights = np.zeros((size, size))
    for i in range(size):
        for j in range(i):
            if draw(st.booleans()):
                weights[i, j] = draw(st.integers(-6, 6)) / 4
    scales = np.array([draw(st.integers(1, 6)) / 3 for _ in range(size)])
    return weights, scales


def covariance(weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(np.eye(len(weights)) - weights)
    return inverse @ np.diag(scales**2) @ inverse.T


def information(weights: np.ndarray, scales: np.ndarray) -> float:
    """Between the first and the last node."""
    law = covariance(weights, scales)[np.ix_([0, -1], [0, -1])]
    return -0.5 * np.log(1 - law[0, 1] ** 2 / (law[0, 0] * law[1, 1]))


@settings(max_examples=3, deadline=None)
@given(graphs())
def test_random_linear_gaussian_graphs(graph) -> None:
    """Parents, value and gradient, against the covariance of the whole graph."""
    weights, scales = graph
    size = len(scales)
    edges = [(i, j) for i in range(size) for j in range(i) if weights[i, j]]
    assume(edges)

    def model() -> None:
        values = []
        for i in range(size):
            terms = [
                numpyro.param(f"w{i}{j}", float(weights[i, j])) * values[j]
                for j in range(i)
                if weights[i, j]
            ]
            law = dist.Normal(sum(terms), float(scales[i]))
            values.append(numpyro.sample(f"n{i}", law))

    sm = ig.structural_model(model)
    for i in range(size):
        parents = {p for p in sm.parents[f"n{i}"] if p.startswith("n")}
        assert parents == {f"n{j}" for j in range(i) if weights[i, j]}
    objective = ig.MI("n0", f"n{size - 1}")
    truth = information(weights, scales)
    assert ig.estimate(sm, objective).value == pytest.approx(truth, abs=2e-4)
    found = ig.gradient(sm, objective).value
    for i, j in edges:
        moved = []
        for step in (1e-5, -1e-5):
            other = weights.copy()
            other[i, j] += step
            moved.append(information(other, scales))
        slope = (moved[0] - moved[1]) / 2e-5
        assert float(found[f"w{i}{j}"]) == pytest.approx(slope, abs=2e-3)


SETS = {
    "ball": lambda x: optax.projections.projection_l2_ball(x, 1.0),
    "simplex": optax.projections.projection_simplex,
    "orthant": optax.projections.projection_non_negative,
    "box": lambda x: jnp.clip(x, -0.5, 0.5),
}
points = st.lists(
    st.floats(-3, 3, width=32, allow_subnormal=False), min_size=4, max_size=4
).map(lambda x: np.array(x, np.float32))


@pytest.mark.parametrize("name", SETS)
@settings(deadline=None, max_examples=50)
@given(point=points, gradient=points)
def test_steps_along_a_convex_set(name, point, gradient) -> None:
    """The part of a gradient that a set lets through points uphill.

    <G, g> >= |G|^2 for the gradient mapping G of any convex set, and G = g inside.
    """
    assume(np.linalg.norm(gradient) > 0.01)
    project = SETS[name]
    start = project(jnp.asarray(point))
    np.testing.assert_allclose(project(start), start, atol=1e-5)
    mapping = np.asarray(gradient_mapping(project, start, jnp.asarray(gradient)), float)
    assert mapping @ gradient >= mapping @ mapping - 1e-2 * gradient @ gradient
    inside = jnp.zeros(4) if name != "simplex" else jnp.full(4, 0.25)
    if name in ("ball", "box"):
        free = gradient_mapping(project, inside, jnp.asarray(gradient))
        np.testing.assert_allclose(free, gradient, rtol=1e-3, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3))
def test_draws_are_functions_of_parameters_and_noise(means) -> None:
    """Moving a mean moves every draw by as much, whatever the noise."""

    def model() -> None:
        m = numpyro.param("m", jnp.zeros(3))
        z = numpyro.sample("z", dist.Normal(m, 1).to_event(1))
        numpyro.sample("y", dist.Laplace(z[0] + z[1] - z[2], 0.5))

    sm = ig.structural_model(model)
    noise = sm.sample_noise(jax.random.key(1), 8)
    moved = np.asarray(means, np.float32)
    before, after = sm.evaluate({}, noise), sm.evaluate({"m": moved}, noise)
    np.testing.assert_allclose(after["z"] - before["z"], [moved] * 8, atol=1e-5)
    shift = moved[0] + moved[1] - moved[2]
    np.testing.assert_allclose(after["y"] - before["y"], shift, atol=1e-4)
