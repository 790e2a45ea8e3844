# SPDX-License-Identifier: Apache-2.0
"""Hidden sequences against forward algorithms, sums over all states, and grids."""

from dataclasses import replace
import functools
import itertools

from links import slope
from methods import slow
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

import jax
import jax.numpy as jnp

import numpyro
from numpyro.contrib.control_flow import scan
import numpyro.distributions as dist

from helpers import assert_found, assert_within, refuses
import numpyro_infograd as ig
from numpyro_infograd import _sequences
from numpyro_infograd._density import sum_over
from numpyro_infograd._noise import noise_like
from numpyro_infograd._particles import Filter
from numpyro_infograd._sites import joint_states
from numpyro_infograd.distributions import ComplexNormal
from numpyro_infograd.errors import DensityError

# --- a channel with memory ----------------------------------------------------------

GILBERT_ELLIOTT = {"go": 0.1, "back": 0.3, "good": 0.5, "bad": 2.0}


def gilbert_elliott(n):
    """Bits through Gaussian noise whose scale has a Markov state."""
    go, back = numpyro.param("go", 0.1), numpyro.param("back", 0.3)
    good, bad = numpyro.param("good", 0.5), numpyro.param("bad", 2.0)
    p_bad = jnp.stack([go, 1 - back])

    def use(s, _):
        s = numpyro.sample("s", dist.Bernoulli(p_bad[s]))
        x = numpyro.sample("x", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(2.0 * x - 1.0, jnp.where(s, bad, good)))
        return s, None

    scan(use, 0, None, length=n)


def forward_algorithm(y, x=None, *, go, back, good, bad):
    """log p(y) or log p(y | x) of each row, in nats."""
    move, scale = np.array([[1 - go, go], [back, 1 - back]]), np.array([good, bad])
    alpha, total = np.array([1.0, 0.0]) + np.zeros((len(y), 2)), np.zeros(len(y))
    for t in range(y.shape[1]):
        ends = (-1.0, 1.0) if x is None else (2.0 * x[:, t, None] - 1.0,)
        p = [norm.pdf(y[:, t, None], end, scale) for end in ends]
        alpha = (alpha @ move) * np.mean(p, axis=0)
        total += np.log(alpha.sum(axis=1))
        alpha /= alpha.sum(axis=1, keepdims=True)
    return total


def rate_by_forward(n, count, **params):
    """I(x; y) / n and its standard error, in nats for each use."""
    rng = np.random.default_rng(0)
    x, u = rng.integers(0, 2, (count, n)), rng.random((n, count))
    z = rng.standard_normal((count, n))
    s, y = np.zeros(count, int), np.zeros((count, n))
    for t in range(n):
        s = (u[t] < np.where(s, 1 - params["back"], params["go"])).astype(int)
        y[:, t] = 2.0 * x[:, t] - 1.0
        y[:, t] += np.where(s, params["bad"], params["good"]) * z[:, t]
    each = forward_algorithm(y, x, **params) - forward_algorithm(y, **params)
    return each.mean() / n, each.std() / n / np.sqrt(count)


def log_prob_of(sm, sites, given, values, params):
    density = sm.density(sites, given, whole=True)
    assert not density.hidden
    return jax.jit(density.log_probs)(params, values)


def test_the_density_of_a_scan_is_that_of_the_forward_algorithm():
    sm = ig.structural_model(gilbert_elliott, 32)
    values = sm.sample(jax.random.key(0), 64)
    y, x = (np.asarray(values[s], float) for s in ("y", "x"))
    for given, put in (((), None), (("x",), x)):
        found = log_prob_of(sm, ("y",), given, values, sm.params)
        truth = forward_algorithm(y, put, **GILBERT_ELLIOTT)
        np.testing.assert_allclose(found, truth, atol=1e-3)
    # Negative control: a state that forgets.
    wrong = forward_algorithm(y, x, **(GILBERT_ELLIOTT | {"go": 0.25, "back": 0.75}))
    assert np.max(np.abs(found - wrong)) > 1.0


@pytest.mark.slow
def test_a_state_without_memory_at_the_first_parameters_gets_one_later():
    # At go + back = 1 no factor depends on the last state.
    def model():
        go, back = numpyro.param("go", 0.5), numpyro.param("back", 0.5)
        p_bad = jnp.stack([go, 1 - back])

        def use(s, _):
            s = numpyro.sample("s", dist.Bernoulli(p_bad[s]))
            numpyro.sample("y", dist.Normal(0.0, jnp.where(s, 2.0, 0.5)))
            return s, None

        scan(use, 0, None, length=12)

    sm = ig.structural_model(model)
    values = sm.sample(jax.random.key(0), 16)
    at = {"go": jnp.asarray(0.1), "back": jnp.asarray(0.3)}
    found = log_prob_of(sm, ("y",), (), values, at)
    truth = forward_algorithm(
        np.asarray(values["y"], float), np.full((16, 12), 0.5), **GILBERT_ELLIOTT
    )
    np.testing.assert_allclose(found, truth, atol=1e-3)


# --- a gradient against a sum over all outputs --------------------------------------

USES = 8


def flips():
    """Bits that flip with a probability that has a Markov state."""
    go, flip = numpyro.param("go", 0.1), numpyro.param("flip", 0.4)

    def use(s, _):
        s = numpyro.sample("s", dist.Bernoulli(jnp.stack([go, 0.7])[s]))
        x = numpyro.sample("x", dist.Bernoulli(0.5))
        p = jnp.where(s, flip, 0.02)
        numpyro.sample("y", dist.Bernoulli(jnp.where(x, 1 - p, p)))
        return s, None

    scan(use, 0, None, length=USES)


def flips_truth(go, flip):
    """I(x; y) in nats: y is uniform, and its noise has 2^USES values."""
    move, p = np.array([[1 - go, go], [0.3, 0.7]]), np.array([0.02, flip])
    alpha = np.zeros((1, 2))
    alpha[0, 0] = 1.0
    for _ in range(USES):  # each sequence of flips so far, with no flip and a flip
        alpha = alpha @ move
        alpha = np.concatenate([alpha * (1 - p), alpha * p])
    law = alpha.sum(axis=1)
    return USES * np.log(2.0) + np.sum(law * np.log(law))


def test_gradients_in_a_transition_and_in_a_noise_level():
    at = {"go": 0.1, "flip": 0.4}
    found = ig.gradient(flips, ig.MI("x", "y"))
    for name, value in at.items():
        along = functools.partial(lambda n, v: flips_truth(**at | {n: v}), name)
        truth = slope(along, value, 1e-5)
        error = found.standard_error[name]
        sharp = 0.025 * abs(truth)
        assert_within(found.value[name], error, truth, max_standard_error=sharp)
    assert not found.warnings


# --- classes ------------------------------------------------------------------------

MEMBERS = 40
MEANS, WEIGHTS = np.array([-2.0, 0.0, 3.0]), np.array([0.5, 0.3, 0.2])


def classes():
    """Each member has a hidden class, which both of its outputs show."""
    with numpyro.plate("members", MEMBERS):
        c = numpyro.sample("c", dist.Categorical(WEIGHTS))
        mean = jnp.asarray(MEANS)[c]
        numpyro.sample("y", dist.Normal(mean, 1.0))
        numpyro.sample("z", dist.Normal(0.5 * mean, 1.0))


@pytest.mark.slow
def test_members_with_hidden_classes():
    grid = np.linspace(-9, 10, 400)
    p_y = norm.pdf(grid, MEANS[:, None], 1.0)
    p_z = norm.pdf(grid, 0.5 * MEANS[:, None], 1.0)
    joint = np.einsum("c,ci,cj->ij", WEIGHTS, p_y, p_z)
    entropy = -np.sum(joint * np.log(joint)) * (grid[1] - grid[0]) ** 2
    truth = MEMBERS * (entropy - np.log(2 * np.pi * np.e))
    found = ig.estimate(classes, ig.MI("c", ("y", "z")))
    assert_found(found, truth, 0.003 * truth)
    one = np.einsum("c,ci->i", WEIGHTS, p_y)  # negative control: one output alone
    alone = -np.sum(one * np.log(one)) * (grid[1] - grid[0])
    alone = MEMBERS * (alone - 0.5 * np.log(2 * np.pi * np.e))
    assert abs(found.value - alone) > 100 * found.standard_error


# --- the order of hidden values -----------------------------------------------------
def two_ago():
    """An output that reads three inputs, from a scan that runs backwards."""

    def use(last, gain):
        x = numpyro.sample("x", dist.Bernoulli(0.3))
        total = x + 0.5 * last[0] + 0.25 * last[1]
        numpyro.sample("y", dist.Normal(gain * total, 0.5))
        return (x, last[0]), None

    scan(use, (0, 0), jnp.linspace(0.5, 2.0, 5), reverse=True)


def from_outside():
    """A first state and outputs that are outside of the scan."""
    start = numpyro.sample("start", dist.Bernoulli(0.3))

    def use(s, _):
        s = numpyro.sample(
            "s", dist.Categorical(jnp.array([[0.8, 0.2], [0.4, 0.6]])[s])
        )
        return s, s

    _, states = scan(use, start, None, length=4)
    numpyro.sample("y", dist.Normal(states, 0.5).to_event(1))


def loop():
    """A chain of sites with different names and numbers of choices."""
    s = 0
    for t in range(3):
        s = numpyro.sample(f"s{t}", dist.Binomial(1 + t, 0.2 + 0.1 * s))
        numpyro.sample(f"y{t}", dist.Normal(s, 1.0))


@pytest.mark.parametrize("model", [two_ago, slow(from_outside), slow(loop)])
def test_sums_along_a_sequence_are_sums_over_all_states(model):
    sm = ig.structural_model(model)
    outputs = tuple(s for s in sm.sites if s.startswith("y"))
    hidden = [sm.site_info[s] for s in sm.sites if s not in outputs]
    members = sm.density(outputs, whole=True)
    inputs = sm.params, noise_like(sm.spec), sm.examples(outputs)
    unsummed = replace(members, hidden=tuple(s.name for s in hidden))
    found = _sequences._sum_along(unsummed, sm, inputs, hidden)
    assert found.hidden == ()
    states = joint_states(sm.site_info, [s.name for s in hidden])
    truth = sum_over(unsummed, sm.run, inputs, states)
    values = sm.sample(jax.random.key(1), 8)
    a, b = (jax.jit(d.log_probs)({}, values) for d in (found, truth))
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("size", [12, 1100], ids=["few", "beyond the range of floats"])
def test_outputs_that_read_all_hidden_values_are_not_summed(size):
    def model():
        with numpyro.plate("members", size):
            c = numpyro.sample("c", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(jnp.mean(c), 0.1))

    assert ig.structural_model(model).density(("y",), whole=True).hidden == ("c",)


def series():
    """All sixteen parts work in 44 % of cases, but at few uniform states."""
    with numpyro.plate("parts", 16):
        d = numpyro.sample("d", dist.Bernoulli(0.95))
    numpyro.sample("y", dist.Normal(numpyro.param("a", 5.0) * jnp.prod(d), 1.0))


def far_rectifier():
    """The output reads the hidden values only at parameters above ten."""
    with numpyro.plate("parts", 12):
        d = numpyro.sample("d", dist.Bernoulli(0.5))
        mean = jax.nn.relu(numpyro.param("a", 60.0) * d - 50.0)
        numpyro.sample("y", dist.Normal(mean, 1.0))


def on_off_keying():
    """A gain is read only while the sender is on, in 3 % of the uses."""
    gains = numpyro.param("g", jnp.array([1.0, 6.0]))
    with numpyro.plate("uses", 40):
        x = numpyro.sample("x", dist.Bernoulli(0.03))
        s = numpyro.sample("s", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(x * gains[s.astype(int)], 1.0))


def halves(means, y):
    """log density of an equal mixture of two normal distributions."""
    logs = (dist.Normal(mean, 1.0).log_prob(y) for mean in means)
    return jnp.logaddexp(*logs) - jnp.log(2.0)


@pytest.mark.parametrize(
    ("model", "given"), [(series, ()), slow(far_rectifier, ()), (on_off_keying, ("x",))]
)
def test_rare_reads_are_summed_rightly_or_not_at_all(model, given):
    sm = ig.structural_model(model)
    density = sm.density(("y",), given, whole=True)
    if model is series:
        assert density.hidden == ("d",)
        return
    drawn = sm.sample(jax.random.key(0), 64)
    assert density.hidden == ()
    found = jax.jit(density.log_probs)(sm.params, drawn)
    if model is far_rectifier:
        truth = halves((10.0, 0.0), drawn["y"])
    else:
        truth = halves([drawn["x"] * gain for gain in (1.0, 6.0)], drawn["y"])
    np.testing.assert_allclose(found, truth.sum(-1), rtol=1e-4)


@pytest.mark.slow
def test_a_value_outside_of_a_support_beside_a_sum_has_density_zero():
    def model():
        with numpyro.plate("members", 12):
            c = numpyro.sample("c", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(c, 1.0))
        numpyro.sample("z", dist.Exponential(1.0))

    density = ig.structural_model(model).density(("y", "z"), whole=True)
    inside = {"y": jnp.zeros(12), "z": jnp.asarray(-1.0)}
    assert density.log_prob({}, {}, inside) == -jnp.inf


def computed_input():
    """Feedback to a computed input, and hidden noise with memory."""

    def use(carry, _):
        y, z = carry
        m = numpyro.sample("m", dist.Normal())
        x = numpyro.deterministic("x", m - 0.6 * y)
        z = numpyro.sample("z", dist.Normal(0.7 * z, 0.8))
        return (numpyro.sample("y", dist.Normal(x + z, 0.3)), z), None

    scan(use, (0.0, 0.0), None, length=4)


def test_filters_hold_computed_sites_at_their_given_values():
    objective = ig.DirectedInformation("x", "y")
    exact = ig.estimate(computed_input, objective)
    assert exact.method == "exact"
    method = ig.values.Particles(num_particles=256, max_particles=256, num_samples=256)
    found = ig.estimate(computed_input, objective, method=method)
    assert_found(found, exact.value, 0.15)


@pytest.mark.slow
def test_a_read_that_no_probe_shows_is_noticed(monkeypatch):
    """No wrong sum: chains then flip the hidden values."""
    seen = _sequences._reads

    blind = lambda *args: seen(*args) & (np.arange(24) != 7)  # noqa: E731
    monkeypatch.setattr(_sequences, "_reads", blind)
    sm = ig.structural_model(gilbert_elliott, 12)
    assert sm.density(("y",), whole=True).hidden == ("s", "x")


def test_orders_of_random_graphs_give_the_sum_over_all_states():
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 4, 7)
    tables = [(pair, rng.normal(size=counts[list(pair)])) for pair in
              [(0, 4), (4, 2), (2, 6), (6, 1), (3,), (1, 5)]]  # fmt: skip
    reads = np.zeros((len(tables) + 1, len(counts)), bool)
    for row, (pair, _) in zip(reads, tables, strict=False):
        row[list(pair)] = True

    def factors(numbers):
        found = [
            jnp.asarray(table)[
                tuple(jnp.minimum(numbers[i], counts[i] - 1) for i in pair)
            ]
            for pair, table in tables
        ]
        return jnp.stack([*found, 0.7])

    order = _sequences.Order.of(reads, counts, np.arange(7))
    found = jax.jit(lambda: order.log_sum(factors))()
    every = itertools.product(*map(range, counts))
    total = [sum(t[tuple(np.take(s, pair))] for pair, t in tables) for s in every]
    np.testing.assert_allclose(found, logsumexp(total) + 0.7, rtol=1e-5)


# --- continuous states, by particle filters -----------------------------------------
def tracked(steps=6):
    """A linear-Gaussian state with a random start, and outputs with much noise."""
    h = numpyro.sample("h", dist.Normal(1.0, 0.5))

    def use(h, _):
        h = numpyro.sample("state", dist.Normal(0.8 * h, 0.6))
        sign = numpyro.sample("sign", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(h * (2.0 * sign - 1.0), 1.0))
        return h, None

    scan(use, h, None, length=steps)


def tracked_log_prob(y):
    """log p(y) of each row by a sum over all signs of the normal density."""
    steps = y.shape[1]
    gain = np.tril(0.8 ** np.subtract.outer(np.arange(steps), np.arange(steps)))
    start = 0.8 ** np.arange(1, steps + 1)
    cov = 0.25 * np.outer(start, start) + 0.36 * gain @ gain.T + np.eye(steps)
    signs = np.array(list(itertools.product([-1, 1], repeat=steps)))
    law = multivariate_normal(start, cov)
    return logsumexp([law.logpdf(y * s) for s in signs], axis=0) - steps * np.log(2.0)


def test_a_filter_is_unbiased():
    sm = ig.structural_model(tracked)
    y = np.asarray(sm.sample(jax.random.key(0), 16)["y"], float)
    found = Filter.of(sm, sm.density(("y",), whole=True), 32)
    assert [name for name, _ in found.before] == ["h"]
    keys = jax.random.split(jax.random.key(1), (16, 1024))
    each = jax.vmap(found.log_density, (None, None, 0))
    log_p, _ = jax.jit(jax.vmap(each, (None, 0, 0)))({}, {"y": jnp.asarray(y)}, keys)
    ratio = np.exp(np.asarray(log_p, float) - tracked_log_prob(y)[:, None])
    error = ratio.mean(axis=0).std() / 32
    assert_within(ratio.mean(), error, 1.0, max_standard_error=0.005)
    assert np.mean(np.log(ratio)) < -5 * error  # negative control: the log is not


@pytest.mark.slow
def test_an_entropy_by_filters():
    method = ig.values.Particles(num_particles=32, num_samples=512)
    found = ig.estimate(tracked, ig.Entropy("y"), method=method)
    y = np.asarray(ig.structural_model(tracked).sample(jax.random.key(5), 4096)["y"])
    each = -tracked_log_prob(y.astype(float))
    error = np.hypot(found.standard_error, each.std() / 64)
    assert_within(found.value, error, each.mean(), max_standard_error=0.15)
    assert found.diagnostics["correction"] > 0.002
    assert not found.warnings


def test_filters_refuse_noise_that_is_not_in_the_carry():
    def model():
        h = numpyro.sample("h", dist.Normal(0.0, 1.0))

        def use(s, _):
            s = numpyro.sample("s", dist.Normal(s, 1.0))
            numpyro.sample("y", dist.Normal(s + h, 1.0))  # reads h, not the carry
            return s, None

        scan(use, 0.0, None, length=4)

    call = functools.partial(ig.estimate, model, ig.Entropy("y"), method="particles")
    refuses(DensityError, "'y'", "first carry", call=call)


# --- at full length -----------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("n", [32, 256])
def test_a_channel_with_memory_at_length(n):
    truth, truth_error = rate_by_forward(n, 2_000_000 // n, **GILBERT_ELLIOTT)
    objective = ig.MI("x", "y") / n
    found = ig.estimate(gilbert_elliott, objective, model_args=(n,))
    error = np.hypot(found.standard_error, truth_error)
    sharp = 0.003 if n == 32 else 0.01
    assert_within(found.value, error, truth, max_standard_error=sharp * truth)
    assert abs(found.value - truth) < 0.01 * truth
    assert not found.warnings
    forgets = GILBERT_ELLIOTT | {"go": 0.25, "back": 0.75}
    memoryless, _ = rate_by_forward(n, 640_000 // n, **forgets)
    assert abs(found.value - memoryless) > 10 * error
    gradient = ig.gradient(gilbert_elliott, objective, model_args=(n,))
    for name in ("go", "good"):
        far, near = (
            rate_by_forward(n, 2_000_000 // n, **GILBERT_ELLIOTT | {name: at})[0]
            for at in (1.03 * GILBERT_ELLIOTT[name], 0.97 * GILBERT_ELLIOTT[name])
        )
        expected = (far - near) / (0.06 * GILBERT_ELLIOTT[name])
        own = float(gradient.standard_error[name])
        assert own < 0.02 * abs(expected)
        # The truth is a difference of two averages on the same random numbers.
        error = np.hypot(own, 0.01 * abs(expected))
        assert abs(float(gradient.value[name]) - expected) < 3 * error


POINTS = np.exp(1j * np.pi * (np.arange(4) / 2 + 0.25))


def oscillator(n):
    """Points on a circle, through a phase that takes a random walk."""
    step, variance = numpyro.param("step", 0.1), numpyro.param("variance", 0.3)

    def use(phase, _):
        phase = numpyro.sample("phase", dist.Normal(phase, step))
        x = numpyro.sample("x", dist.Categorical(jnp.ones(4) / 4))
        mean = jnp.asarray(POINTS)[x] * jnp.exp(1j * phase)
        numpyro.sample("y", ComplexNormal(mean, jnp.sqrt(variance)))
        return phase, None

    scan(use, 0.0, None, length=n)


def rate_on_a_circle(n, count, step, variance, places=256):
    """I(x; y) / n and its standard error, by a filter on a grid of phases."""
    rng = np.random.default_rng(0)
    grid = 2 * np.pi * np.arange(places) / places
    wrapped = [norm.pdf(grid + 2 * np.pi * turn, 0.0, step) for turn in (-2, -1, 0, 1)]
    move = np.fft.rfft(np.sum(wrapped, axis=0) * 2 * np.pi / places)
    phase = np.cumsum(step * rng.standard_normal((count, n)), axis=1)
    x = rng.integers(0, 4, (count, n))
    z = rng.standard_normal((2, count, n))
    y = POINTS[x] * np.exp(1j * phase) + np.sqrt(variance / 2) * (z[0] + 1j * z[1])
    total = 0.0
    for sign, points in ((1, None), (-1, POINTS)):
        alpha = np.zeros((count, places))
        alpha[:, 0] = 1.0
        for t in range(n):
            alpha = np.fft.irfft(np.fft.rfft(alpha) * move, places).clip(0.0)
            ends = POINTS[x[:, t]][:, None] if points is None else points[None]
            far = [
                np.abs(y[:, t, None] - e[:, None] * np.exp(1j * grid)) for e in ends.T
            ]
            p = [np.exp(-(each**2) / variance) for each in far]
            alpha *= np.mean(p, axis=0)
            weight = alpha.sum(axis=1, keepdims=True)
            total = total + sign * np.log(weight[:, 0])
            alpha /= weight
    return total.mean() / n, total.std() / n / np.sqrt(count)


@pytest.mark.slow
def test_phase_noise_at_length():
    n = 64
    truth, truth_error = rate_on_a_circle(n, 4000, 0.1, 0.3)
    found = ig.estimate(oscillator, ig.MI("x", "y") / n, model_args=(n,))
    assert found.method == "particles"
    error = np.hypot(found.standard_error, truth_error)
    assert_within(found.value, error, truth, max_standard_error=0.01 * truth)
    assert abs(found.value - truth) < 0.01 * truth
    other, _ = rate_on_a_circle(n, 1000, 0.15, 0.3)  # negative control: a faster phase
    assert abs(found.value - other) > 5 * error
