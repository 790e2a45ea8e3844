# SPDX-License-Identifier: Apache-2.0
"""Expected information gains of candidate designs, against sums over grids."""

import functools
import math

from links import normal_grid
import numpy as np
import pandas  # with xarray, a dependency of ArviZ
import pytest
from scipy import stats
from scipy.special import entr, expit

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

from helpers import assert_found, assert_within, refuses
import numpyro_infograd as ig
from numpyro_infograd.distributions import Clipped
from numpyro_infograd.errors import ArgumentError, DensityError, ParameterError

KEY = jax.random.key(1)


def from_table(joint):
    """I(A; B) of a table of probabilities p(a, b), in nats."""
    alone = entr(joint.sum(axis=0)).sum() + entr(joint.sum(axis=1)).sum()
    return float(alone - entr(joint).sum())


def agrees(found, truth, sharp, rounding=2e-6):
    assert_found(found, np.asarray(truth), sharp, rounding=rounding)


def recall(length):
    theta = numpyro.sample("theta", dist.Normal(7, 2))
    numpyro.sample("y", dist.Bernoulli(logits=theta - length))


def recall_truth(length):
    z, w = normal_grid(9)
    p = expit(7 + 2 * z - length)
    return from_table(np.stack([w * p, w * (1 - p)], axis=1))


@pytest.fixture(scope="module")
def memory():
    lengths = np.linspace(2, 12, 101)
    return lengths, ig.design(recall, lengths, "theta", "y", rng_key=KEY)


@pytest.mark.slow
def test_yes_or_no_answers_are_summed_over(memory):
    lengths, found = memory
    truth = np.array([recall_truth(x) for x in lengths])
    assert found.method == "sums"
    agrees(found, truth, 2e-4)
    order = found.ranking
    # The ranking is that of the truth, up to pairs that are equal by symmetry.
    assert np.all(np.diff(truth[order]) <= 2e-5)
    assert float(found.best) == 7.0 and round(found.value.max(), 4) == 0.2311
    with pytest.raises(AssertionError):
        agrees(found, truth[::-1] * 1.01, 2e-4)


@pytest.mark.slow
def test_errors_of_differences_are_paired(memory):
    lengths, found = memory
    truth = np.array([recall_truth(x) for x in lengths])
    near = np.abs(lengths - 7) < 1
    gap = found.difference - (truth - truth[found.ranking[0]])
    assert np.all(np.abs(gap[near]) <= 4 * found.difference_error[near] + 2e-7)
    apart = near & (found.difference < 0)
    assert np.all(found.difference_error[apart] < found.standard_error[apart])
    assert set(found.contenders) <= set(np.flatnonzero(np.abs(lengths - 7) < 0.15))


def test_bounds_enclose_the_information(memory):
    lengths, found = memory
    truth = np.array([recall_truth(x) for x in lengths])
    assert np.all(found.lower <= truth + 4 * found.lower_error + 1e-6)
    assert np.all(found.upper >= truth - 4 * found.upper_error - 1e-6)


def sharp(scale=1.0):
    x = numpyro.param("x", 1.0)
    theta = numpyro.sample("theta", dist.LogNormal(0, 1))
    numpyro.sample("y", dist.Normal(x * jnp.log(theta), scale))


def test_continuous_outcomes_are_sampled():
    designs = {"x": np.array([0.5, 1.0, 2.0])}
    found = ig.design(sharp, designs, "theta", "y", num_samples=2048)
    assert found.method == "nested" and not found.warnings
    agrees(found, 0.5 * np.log1p(designs["x"] ** 2), 0.01)
    assert found.best == {"x": 2.0}
    table = pandas.DataFrame(designs)
    again = ig.design(sharp, table, "theta", "y", num_samples=2048)
    np.testing.assert_array_equal(again.value, found.value)
    assert again.best == found.best
    with pytest.raises(AssertionError):
        agrees(found, 0.48 * np.log1p(designs["x"] ** 2), 0.01)


@pytest.mark.slow
def test_the_contrastive_bound_is_at_most_the_log_of_its_samples():
    settings = {"num_samples": 2048, "model_kwargs": {"scale": 0.02}}
    one = {"x": np.ones(1)}
    truth = 0.5 * np.log1p(50.0**2)
    low = ig.design(sharp, one, "theta", "y", num_components=16, **settings)
    high = ig.design(sharp, one, "theta", "y", num_components=1024, **settings)
    assert low.lower[0] <= math.log(17) < truth
    assert low.lower[0] < high.lower[0] < truth < high.upper[0]
    assert "effective sample size" in repr(low)


def test_linear_gaussian_experiments_are_exact():
    def line(x):
        slope = numpyro.sample("slope", dist.Normal(0, 2))
        numpyro.sample("y", dist.Normal(slope * x, 1))

    x = np.linspace(-3, 3, 7)
    found = ig.design(line, x, "slope", "y")
    assert found.method == "exact"
    agrees(found, 0.5 * np.log1p(4 * x**2), 0.0)
    assert found.difference_error.max() < 1e-6  # rounding


@pytest.mark.slow
def test_nuisance_is_averaged_out():
    def answer(dose):
        ed50 = numpyro.sample("ed50", dist.Normal(0, 1))
        slope = numpyro.sample("slope", dist.LogNormal(0, 0.5))
        numpyro.sample("y", dist.Bernoulli(logits=slope * (dose - ed50)))

    doses = np.array([0.0, 1.5])
    z, w = normal_grid(6, 301)
    truth = []
    for dose in doses:
        p = expit(np.exp(0.5 * z) * (dose - z)[:, None])
        answers = np.stack([p @ w, 1 - p @ w], axis=1)
        truth.append(from_table(w[:, None] * answers))
    few = {"num_samples": 1024, "num_components": 256}
    found = ig.design(answer, {"dose": doses}, "ed50", "y", **few)
    agrees(found, truth, 0.005)
    both = ig.design(answer, {"dose": doses}, ("ed50", "slope"), "y", **few)
    with pytest.raises(AssertionError):  # the nuisance is a part of the information
        agrees(both, truth, 0.005)


def test_counts_without_an_end_are_summed_over():
    def counter(time):
        rate = numpyro.sample("rate", dist.LogNormal(0, 0.5))
        numpyro.sample("y", dist.Poisson(rate * time))

    times = np.array([0.5, 2.0, 4.0])
    z, w = normal_grid(7)
    rates = times[:, None] * np.exp(z / 2)
    laws = stats.poisson.pmf(np.arange(200), rates[..., None])
    truth = [from_table(w[:, None] * law) for law in laws]
    found = ig.design(counter, times, "rate", "y")
    assert found.method == "sums" and not found.warnings
    agrees(found, truth, 2e-3)  # errors at six keys are 0.0003 to 0.0014


def ballot(x, noise=0.0):
    opinion = numpyro.sample("opinion", dist.Normal(0, 1).expand([2]).to_event(1))
    total = numpyro.deterministic("total", jnp.sum(opinion))
    numpyro.deterministic("wins", total > 0.5)
    poll = opinion @ x
    if noise:
        numpyro.sample("y", dist.Normal(poll, noise))
    else:
        numpyro.sample("y", dist.Bernoulli(logits=3 * poll))


PLACES = np.array([[0.7, 0.7], [1.0, 0.0], [0.3, -0.1]])


def ballot_truth(x, cells):
    """I(cell of the total; y) from a grid of both opinions."""
    z, w = normal_grid(6, 401)
    p = expit(3 * (x[0] * z[:, None] + x[1] * z))
    joint = w[:, None] * w
    cell = np.searchsorted(cells, z[:, None] + z)
    sums = [np.bincount(cell.ravel(), (joint * q).ravel()) for q in (p, 1 - p)]
    return from_table(np.stack(sums, axis=1))


def test_computed_targets_with_few_values():
    found = ig.design(ballot, PLACES, "wins", "y", rng_key=KEY)
    truth = [ballot_truth(x, [0.5 - 1e-9]) for x in PLACES]
    agrees(found, truth, 0.002, rounding=1e-3)  # the grid has steps
    assert list(found.ranking) == [0, 1, 2] and not found.warnings


@pytest.mark.slow
def test_a_computed_number_is_grouped_into_cells():
    found = ig.design(ballot, PLACES, "total", "y", rng_key=KEY)
    truth = [ballot_truth(x, np.linspace(-8, 8, 200)) for x in PLACES]
    agrees(found, truth, 0.005, rounding=1e-3)
    assert "32 cells" in repr(found)


@pytest.mark.slow
def test_errors_include_the_loss_by_cells():
    def model(gain):
        opinion = numpyro.sample("opinion", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.deterministic("total", jnp.sum(opinion))
        numpyro.sample("y", dist.Laplace(gain * (opinion @ jnp.ones(2)), 0.2))

    gains, truth = np.array([0.3, 0.7]), []
    y = np.linspace(-12, 12, 4001)
    for gain in gains:
        z, w = normal_grid(7, 4001)
        p = w @ stats.laplace.pdf(y, gain * math.sqrt(2) * z[:, None], 0.2)
        entropy = -np.sum(p * np.log(p)) * (y[1] - y[0])
        truth.append(entropy - 1 - math.log(0.4))
    found = ig.design(model, gains, "total", "y", num_samples=2048)
    agrees(found, truth, 0.1)
    assert "32 cells" in found.warnings[-1]
    assert np.all(found.upper + 2 * found.upper_error > np.array(truth))
    # The sampling error alone does not explain the loss.
    apart = np.abs(found.value - np.array(truth))
    assert np.any(apart > 3 * found.lower_error)


@pytest.mark.slow
def test_outcomes_that_resolve_a_cell_have_no_upper_bound():
    """log 32 nats at most fit into the cells."""

    def model(gain):
        a = numpyro.sample("a", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.deterministic("total", jnp.sum(a))
        numpyro.sample("y", dist.Logistic(gain * jnp.sum(a), 1.0))

    found = ig.design(model, np.array([1.0, 1000.0]), "total", "y", num_samples=512)
    assert np.isfinite(found.upper[0]) and np.isinf(found.upper[1])
    assert "far higher" in found.warnings[-1]


def test_equal_designs_are_all_contenders():
    """Turned axes have the same information, up to rounding."""

    def model(x):
        b = numpyro.sample("b", dist.Normal(jnp.zeros(3), 1).to_event(1))
        numpyro.sample("y", dist.Normal(x @ b, 0.3).to_event(1))

    rng = np.random.default_rng(0)
    turned = [np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(20)]
    found = ig.design(model, np.stack(turned), "b", "y")
    assert found.method == "exact" and len(found.contenders) == 20


@pytest.mark.slow
def test_computed_targets_of_continuous_outcomes():
    found = ig.design(
        ballot, PLACES[:2], "wins", "y", num_samples=2048, model_kwargs={"noise": 0.5}
    )
    truth = []
    for x in PLACES[:2]:
        # The total and the outcome are jointly normal.
        slope, spread = np.sum(x) / 2, np.sum(x**2) + 0.25
        z, w = normal_grid(7, 2001)
        total = math.sqrt(2) * z
        y = np.linspace(-7, 7, 1401)
        rest = math.sqrt(spread - 2 * slope**2)
        p = stats.norm.pdf(y, slope * total[:, None], rest) * (y[1] - y[0])
        wins = total > 0.5
        truth.append(from_table(np.stack([w[wins] @ p[wins], w[~wins] @ p[~wins]])))
    agrees(found, truth, 0.02)


@pytest.mark.slow
def test_models_are_told_apart():
    def rivals(x):
        model = numpyro.sample("model", dist.Bernoulli(0.5))
        a = numpyro.sample("a", dist.Normal(1, 0.3))
        mean = jnp.where(model == 1, a * x**2, a * x)
        numpyro.sample("y", dist.Normal(mean, 0.3))

    x = np.array([1.0, 2.0])
    y = np.linspace(-4, 12, 4001)
    truth = []
    for at in x:
        p = [
            stats.norm.pdf(y, s, math.hypot(0.3 * s, 0.3)) * (y[1] - y[0]) / 2
            for s in (at, at**2)
        ]
        truth.append(from_table(np.stack(p)))
    found = ig.design(rivals, x, "model", "y", num_samples=4096)
    agrees(found, truth, 0.01)


@pytest.mark.slow
def test_censored_outcomes():
    def lifetime(end):
        rate = numpyro.sample("rate", dist.Normal(1, 0.5))
        numpyro.sample("y", Clipped(dist.Normal(rate, 0.5), high=end))

    ends = np.array([0.5, 1.5, 9.0])
    found = ig.design(lifetime, ends, "rate", "y", num_samples=4096)
    assert list(found.ranking) == [2, 1, 0]
    last, truth = (found.value[2], found.standard_error[2]), 0.5 * np.log(2)
    assert_within(*last, truth, max_standard_error=0.01)


def test_designs_are_arguments_or_parameters():
    def by_param():
        recall(numpyro.param("length", 1.0))

    lengths = np.array([5, 7])
    first = ig.design(recall, lengths, "theta", "y")
    second = ig.design(recall, {"length": lengths}, "theta", "y")
    third = ig.design(by_param, {"length": lengths}, "theta", "y")
    fourth = ig.design(ig.structural_model(by_param), {"length": lengths}, "theta", "y")
    for other in (second, third, fourth):
        np.testing.assert_allclose(other.value, first.value, atol=1e-6)
    assert first.best == 7 and second.best == third.best == {"length": 7}


def test_whole_numbers_stay_whole():
    def choose(k):
        assert jnp.issubdtype(jnp.asarray(k).dtype, jnp.integer)
        z = numpyro.sample("z", dist.Normal(0, jnp.array([1.0, 2.0])).to_event(1))
        numpyro.sample("y", dist.Normal(z[k], 1))

    assert ig.design(choose, np.arange(2), "z", "y").best == 1


@pytest.mark.slow
def test_draws_of_a_posterior_are_a_prior():
    draws = jnp.asarray(np.random.default_rng(0).normal(7, 2, 512))

    def again(length, prior):
        row = numpyro.sample("row", dist.Categorical(logits=jnp.zeros(len(prior))))
        theta = numpyro.deterministic("theta", prior[row])
        numpyro.sample("y", dist.Bernoulli(logits=theta - length))

    lengths = np.array([5.0, 7.0])
    p = expit(np.asarray(draws) - lengths[:, None])
    truth = [from_table(np.stack([q, 1 - q], axis=1) / 512) for q in p]
    found = ig.design(again, lengths, "theta", "y", model_args=(draws,))
    agrees(found, truth, 1e-4)


def test_refusals():
    lengths = np.array([5.0, 7.0])

    def idle(x):
        recall(5.0)

    def vector(x):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
        numpyro.deterministic("theta", z[:2] + z[2])
        numpyro.sample("y", dist.Bernoulli(logits=x * z[0]))

    twice = {"model_kwargs": {"scale": 1.0}, "num_samples": 256}
    for words, model, designs, settings in (
        ("designs", recall, np.array([1.0, np.nan]), {}),
        ("designs", recall, 7.0, {}),
        ("designs", recall, [], {}),
        ("empty", recall, {}, {}),
        ("its argument 'length' has no value", recall, {"len": lengths}, {}),
        ("'dose'", sharp, {"dose": lengths}, {}),
        ("same length", sharp, {"x": lengths, "scale": np.ones(3)}, {}),
        ("model_kwargs", sharp, {"scale": lengths}, twice),
        ("num_samples", recall, lengths, {"num_samples": 100}),
        ("StructuralModel", ig.structural_model(sharp), lengths, {}),
        ("reaches none", idle, lengths, {}),
        ("design(model, designs, inputs, outputs)", recall, "theta", {}),
        ("too many positional", recall, lengths, {"model_args": (1.0,)}),
    ):
        call = functools.partial(ig.design, model, designs, "theta", "y", **settings)
        refuses(ArgumentError, words, call=call)
    call = functools.partial(ig.design, sharp, {"x": np.ones((2, 3))}, "theta", "y")
    refuses(ParameterError, "'x'", call=call)
    call = functools.partial(ig.design, vector, lengths, "theta", "y")
    refuses(DensityError, "'theta'", call=call)


def test_results_read_well(memory):
    _, found = memory
    assert "101 designs, information in nats (sums)" in repr(found)
    assert "length=7 " in repr(found) and len(found) == 101
    assert repr(found).splitlines()[-1].strip() == "..."
    assert "<table>" in found._repr_html_()
    assert float(found[0]) == 2.0


def test_a_design_whose_counts_were_not_drawn_has_no_value() -> None:
    """The list of values comes from draws at some of the designs."""

    def model(rate):
        u = numpyro.sample("u", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Poisson(rate * (1 + u)))

    rates = np.full(200, 0.5)
    rates[1] = 30.0
    found = ig.design(model, jnp.asarray(rates), "u", "y", num_samples=256)
    assert "miss one by up to 1:" in found.warnings[0]
    assert np.isinf(found.standard_error[1]) and found.upper[1] == np.inf
    assert np.all(np.isfinite(np.delete(found.standard_error, 1)))
    assert 1 in found.contenders  # nothing is known about it
    alone = ig.design(model, jnp.asarray(rates[:2]), "u", "y", num_samples=256)
    assert not alone.warnings and alone.value[1] > 0.6


def test_the_end_of_a_count_may_move_with_the_design() -> None:
    """The list of values covers all designs, also if the first has the fewest."""

    def trials(n: jax.Array) -> None:
        theta = numpyro.sample("theta", dist.Normal(0, 1))
        numpyro.sample("y", dist.Binomial(n, logits=theta))

    z, w = normal_grid(9)
    law = {n: stats.binom.pmf(np.arange(n + 1), n, expit(z)[:, None]) for n in (3, 12)}
    truth = [from_table(w[:, None] * each) for each in law.values()]
    agrees(ig.design(trials, jnp.array([3, 12]), "theta", "y"), truth, 0.001)
