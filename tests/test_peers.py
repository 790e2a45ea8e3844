# SPDX-License-Identifier: Apache-2.0
"""The peers of the benchmark: their tasks, and the gradients that peers follow."""

from methods import rest_slow
import numpy as np
from peers import at, at_budgets
from peers_rivals import PEERS, Settings, can, draw, train
from peers_tasks import TASKS
import pytest

import jax
import jax.numpy as jnp

import numpyro_infograd as ig


def slope(task, name: str, index: int) -> float:
    """Central difference of the value that the tables print."""
    ends = []
    for sign in (1, -1):
        moved = np.asarray(task.params[name], float)
        moved[index] += sign * 1e-3
        ends.append(task.value({name: moved})[0])
    return (ends[0] - ends[1]) / 2e-3


@rest_slow("name", ["shaping", "memory"])
def test_discrete_draws_have_the_right_gradient(name) -> None:
    """Of the contrastive peer, whose objective is nearly the information."""
    task = TASKS[name]()
    ((param, start),) = task.params.items()
    loss = PEERS["contrastive"].objective(task, Settings(0.0, 512, 1024))
    keys = jax.random.split(jax.random.key(0), 25)
    grads = jax.jit(lambda p: jax.lax.map(lambda k: jax.grad(loss)(p, (), k), keys))
    each = np.asarray(grads(task.params)[param], float)
    mean, error = each.mean(axis=0), each.std(axis=0, ddof=1) / 5
    truth = np.array([slope(task, param, i) for i in range(len(start))])
    # The bound is below the information by the order of one over the contrasts.
    assert np.all(np.abs(mean - truth) < 4 * error + 2e-3 * np.abs(truth).max())
    assert np.all(4 * error < 0.5 * np.abs(truth).max())
    assert np.any(np.abs(-mean - truth) > 8 * error)


@pytest.mark.slow
def test_a_peer_takes_steps_within_its_constraint() -> None:
    task = TASKS["relay"]()
    settings = PEERS["contrastive"].grid[0]
    found = list(train(task, PEERS["contrastive"], settings, 1e-9))
    seen = at_budgets(iter(found), [1e-9, 1e9])
    assert seen[1e-9][1][0] is task.params
    spent, (params, _) = seen[1e9]
    assert spent > 0
    assert float(jnp.hypot(params["a"], params["b"])) == pytest.approx(1, abs=1e-5)
    assert at(task, task.params)[0] < at(task, params)[0] <= task.truth + 1e-6


def columns(values: jax.Array, size: int) -> np.ndarray:
    """A row of real numbers for each sample."""
    flat = np.asarray(values).reshape(size, -1)
    if np.iscomplexobj(flat):
        return np.concatenate([flat.real, flat.imag], axis=1)
    return flat.astype(float)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_peers_and_the_package_have_the_same_system(name) -> None:
    task, size = TASKS[name](), 20_000
    sm = ig.structural_model(task.model)
    values = sm.sample(jax.random.key(1), size, dict(task.params))
    one, two = (columns(values[site], size) for site in ("x", "y"))
    if name == "shaping":
        one = np.eye(8)[one[:, 0].astype(int)]
    x, y, _ = draw(task, task.params, jax.random.key(2), size)
    for power in (1, 2):
        pairs = []
        for each in ((one, two), (x, y)):
            v = np.concatenate(each, axis=1).astype(float)
            pairs.append((v[:, :, None] * v[:, None, :]).reshape(size, -1) ** power)
        gap = pairs[0].mean(axis=0) - pairs[1].mean(axis=0)
        error = np.sqrt(sum(p.var(axis=0) for p in pairs) / size + 1e-12)
        assert np.max(np.abs(gap) / error) < 5.5


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_tasks_start_below_their_maximum(name) -> None:
    task = TASKS[name]()
    x = task.source(task.params, jax.random.key(0), 3)
    assert task.mean(task.params, x).shape[0] == 3
    if task.value is not None:
        assert at(task, task.params)[0] < task.truth
    assert can("ours", task) and can("MINE", task)
    assert can("KSG", task) == (task.value is None)
