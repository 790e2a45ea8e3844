# SPDX-License-Identifier: Apache-2.0
"""Models of receivers against dense grids: NumPyro's algorithms, information."""

import functools

from links import normal_grid, table_information
from models import channel, with_gain
import numpy as np
import pytest
from scipy import stats

import jax
import jax.numpy as jnp

import numpyro
from numpyro.contrib.control_flow import scan
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density

from helpers import assert_found, assert_within, information
import numpyro_infograd as ig
from numpyro_infograd import exogenous
from numpyro_infograd.distributions import (
    Clipped,
    ComplexNormal,
    MultivariateComplexNormal,
    Quantized,
)
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.exogenous import lookup

EDGES = np.array([-1.3, -0.4, 0.25, 0.7, 0.71, 2.0, 2.4])
A = np.array([[1.0, 0.0], [0.4 - 0.7j, 0.6]])

# --- in NumPyro's algorithms --------------------------------------------------------
BITS = np.array([0, 1, 1, 1, 0, 1, 1, 1])
RATINGS = np.array([0.0, 0.35, 1.0, 1.0, 0.8])


def receivers():
    """One mean, seen through a one-bit receiver and a saturating sensor."""
    m = numpyro.sample("m", dist.Normal(0.0, 2.0))
    with numpyro.plate("bits", len(BITS)):
        numpyro.sample("q", Quantized(dist.Normal(m, 1.0), [0.2]), obs=BITS)
    with numpyro.plate("ratings", len(RATINGS)):
        numpyro.sample("c", Clipped(dist.Logistic(m, 0.5), 0.0, 1.0), obs=RATINGS)
    h = numpyro.sample("h", ComplexNormal(0.0, 1.0))
    numpyro.sample("z", ComplexNormal(h, 0.5), obs=1.0 - 0.5j)
    numpyro.sample("w", MultivariateComplexNormal(np.zeros(2), np.eye(2)))


def posterior_of_m():
    """Mean and standard deviation of m given the records, by a grid."""
    m = np.linspace(-5, 5, 4001)
    p_one = stats.norm.sf(0.2, m, 1.0)
    log_p = stats.norm.logpdf(m, 0.0, 2.0)
    log_p += BITS.sum() * np.log(p_one) + (1 - BITS).sum() * np.log(1 - p_one)
    for r in RATINGS:
        atoms = {0.0: stats.logistic.logcdf, 1.0: stats.logistic.logsf}
        log_p += atoms.get(r, stats.logistic.logpdf)(r, m, 0.5)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean = p @ m
    return mean, np.sqrt(p @ (m - mean) ** 2)


@pytest.mark.slow
def test_nuts_samples_the_posterior() -> None:
    mcmc = MCMC(NUTS(receivers), num_warmup=300, num_samples=1500, progress_bar=False)
    mcmc.run(jax.random.key(0))
    draws = mcmc.get_samples()
    mean, deviation = posterior_of_m()
    # About a third of the draws is effective.
    error = deviation / np.sqrt(500)
    assert_within(draws["m"].mean(), error, mean, max_standard_error=0.03)
    assert_within(draws["m"].std(), error, deviation, max_standard_error=0.03)
    with pytest.raises(AssertionError):  # the records of the wrong sign
        assert_within(-draws["m"].mean(), error, mean, max_standard_error=0.03)
    # h | z is normal with mean z / (1 + 1/4) and variance 1 / (1 + 4).
    h = np.asarray(draws["h"])
    assert h.dtype == np.complex64
    h_error = np.sqrt(0.1 / 500)
    for part in (np.real, np.imag):
        truth = part((1.0 - 0.5j) * 0.8)
        assert_within(part(h).mean(), h_error, truth, max_standard_error=0.015)
        assert_within(part(h).std(), h_error, 0.1**0.5, max_standard_error=0.015)
    assert draws["w"].shape == (1500, 2)
    w = np.abs(np.asarray(draws["w"])) ** 2
    assert_within(w.mean(), np.sqrt(1 / 1000), 1.0, max_standard_error=0.04)


def test_an_unobserved_clipped_site_is_not_sampled_wrongly() -> None:
    def model():
        numpyro.sample("c", Clipped(dist.Normal(), 0.0, 1.0))

    mcmc = MCMC(NUTS(model), num_warmup=1, num_samples=1, progress_bar=False)
    with pytest.raises(NotImplementedError, match="Clipped site .* not observed"):
        mcmc.run(jax.random.key(0))


@pytest.mark.parametrize("kind", ["quantized", "clipped", "complex"])
def test_scans_have_the_density_of_their_steps(kind) -> None:
    gains = np.array([0.5, -1.0, 2.0])
    shifts = np.array([0.1, 0.3, -0.2])

    def law(gain, shift):
        base = dist.Normal(gain * jnp.array([1.0, 2.0]), 1.0)
        if kind == "quantized":
            return Quantized(base, jnp.array([-0.5, 0.5]) + shift)
        if kind == "clipped":
            return Clipped(base, shift, 1.0)
        return ComplexNormal(gain * jnp.array([1.0, 2.0j]), 1.0 + shift)

    laws = [law(*each) for each in zip(gains, shifts, strict=True)]
    record = jnp.stack([fn.sample(jax.random.key(3)) for fn in laws])

    def model():
        def step(carry, each):
            gain, shift, value = each
            with numpyro.plate("p", 2):
                numpyro.sample("y", law(gain, shift), obs=value)
            return carry, None

        scan(step, None, (gains, shifts, record))

    found, _ = log_density(model, (), {}, {})
    expected = sum(fn.log_prob(v).sum() for fn, v in zip(laws, record, strict=True))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# --- in this package ------------------------------------------------------------------
one_bit = with_gain(lambda mean: Quantized(dist.Normal(mean, 1), [-0.3]))


def clipped(scale=0.5, low=0.0, high=1.0):
    return channel(lambda x: Clipped(dist.Normal(x, scale), low, high))


def clipped_truth(scale=0.5, low=0.0, high=1.0):
    """I(x; y) of a saturating sensor, in nats."""
    x, p_x = normal_grid(8, 2001)
    step = (high - low) / 2000
    y = low + step * (np.arange(2000) + 0.5)
    inside = stats.norm.pdf(y, x[:, None], scale) * step
    low_atom, high_atom = stats.norm.cdf(low, x, scale), stats.norm.sf(high, x, scale)
    p = np.concatenate([low_atom[:, None], inside, high_atom[:, None]], axis=1)
    return table_information(p, p_x)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(0.5, 0.0, 1.0), (0.05, -0.01, 0.01)])
def test_information_of_a_saturating_sensor(settings) -> None:
    """The second one saturates nearly always: no Gaussian bound holds for it."""
    found = information(clipped(*settings))
    truth = clipped_truth(*settings)
    assert found.method == "nested" and not found.warnings
    assert_found(found, truth, 0.002)
    with pytest.raises(AssertionError):  # without its atoms
        whole = 0.5 * np.log(1 + settings[0] ** -2)
        assert_found(found, whole, 0.002)


@pytest.mark.slow
def test_information_of_several_sensors() -> None:
    model = channel(lambda x: Clipped(dist.Normal(x, 0.5), 0.0, 1.0), size=2)
    found = information(model, method=ig.values.Nested(1024, 4096))
    assert_found(found, 2 * clipped_truth(), 0.002)


@pytest.mark.slow
def test_a_site_behind_a_quantiser() -> None:
    """z sees only the level: I(x; z) by a grid."""

    def model():
        x = numpyro.sample("x", dist.Normal(0, 1))
        y = numpyro.sample("y", Quantized(dist.Normal(x, 0.5), [0.2], [-1.0, 1.0]))
        numpyro.sample("z", dist.Normal(y, 0.8))

    found = ig.mutual_information(model, "x", "z", method="nested")
    (x, p_x), z = normal_grid(8, 2001), np.linspace(-6, 6, 2001)
    one = stats.norm.sf(0.2, x, 0.5)[:, None]
    p = one * stats.norm.pdf(z, 1.0, 0.8) + (1 - one) * stats.norm.pdf(z, -1.0, 0.8)
    assert_found(found, table_information(p * (z[1] - z[0]), p_x), 0.002)


def test_draws_from_noise_follow_the_density(x64) -> None:
    """The noise is that of the base, through every wrapper."""
    u = (np.arange(4000) + 0.5) / 4000
    q = Quantized(dist.Logistic(0.3, 0.8), EDGES)
    x = np.asarray(exogenous.transform(q, u, (4000,)))
    assert exogenous.noise_of(q, (4000,)) == ("uniform", (4000,))
    assert np.all(np.diff(x) >= 0) and x.dtype == q.sample(jax.random.key(0)).dtype
    share = np.mean(x[:, None] == np.arange(8), axis=0)
    np.testing.assert_allclose(share, q.probs, atol=3e-4)
    c = Clipped(dist.Logistic(0.3, 0.8), 0.0, 1.0)
    y = np.asarray(exogenous.transform(c, u, (4000,)))
    atoms = np.exp(c.log_prob(np.array([0.0, 1.0])))
    np.testing.assert_allclose([np.mean(y == 0), np.mean(y == 1)], atoms, atol=3e-4)
    wide = c.expand((3, 2)).mask(True).to_event(1)
    assert exogenous.noise_of(wide, (5,)) == ("uniform", (5, 3, 2))
    assert lookup.has_atoms(wide) and not lookup.has_atoms(q)
    assert [float(end) for end in lookup.boundary(c)] == [0.0, 1.0]
    z = ComplexNormal(np.array([[1j], [2.0]]), 0.5).expand((2, 3)).to_event(1)
    noise = exogenous.noise_of(z, (7,))
    assert noise == ("normal", (7, 2, 3, 2))
    assert exogenous.reason_not_reparametrized(z) == ""
    pairs = jax.random.normal(jax.random.key(0), noise.shape)
    found = exogenous.transform(z, pairs, (7,))
    expected = np.array([[1j], [2.0]]) + 0.5 * (pairs @ np.array([1, 1j])) / 2**0.5
    np.testing.assert_allclose(found, expected)
    v = MultivariateComplexNormal(np.zeros(2), A @ A.conj().T).expand((3,))
    noise = exogenous.noise_of(v, (7,))
    assert noise == ("normal", (7, 3, 2, 2))
    pairs = jax.random.normal(jax.random.key(0), noise.shape)
    expected = (pairs @ np.array([1, 1j]) / 2**0.5) @ A.T
    np.testing.assert_allclose(exogenous.transform(v, pairs, (7,)), expected)


@pytest.mark.slow
def test_complex_fading_is_two_real_gains(x64) -> None:
    """The same noise gives the same information and the same gradient."""

    def by_complex():
        a = numpyro.param("a", 1.0)
        x = numpyro.sample("x", dist.Normal(0, 1))
        h = numpyro.sample("h", ComplexNormal(0.5 + 0.5j, 0.8))
        y = a * h * x
        numpyro.sample("y", dist.Normal(jnp.stack([y.real, y.imag]), 0.5).to_event(1))

    def by_real():
        a = numpyro.param("a", 1.0)
        x = numpyro.sample("x", dist.Normal(0, 1))
        h = numpyro.sample("h", dist.Normal(0.5, 0.8 / 2**0.5).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(a * h * x, 0.5).to_event(1))

    method = ig.values.Nested(1024, 1024, 2**12)
    scores = ig.scores.Mixture(1024)
    for found in (
        functools.partial(ig.estimate, method=method),
        functools.partial(ig.gradient, scores=scores),
    ):
        one, other = (found(m, ig.MI("x", "y")).value for m in (by_complex, by_real))
        np.testing.assert_allclose(*map(jax.tree.leaves, (one, other)), rtol=1e-9)


def test_what_has_atoms_is_refused_where_a_score_is_needed() -> None:
    model = with_gain(lambda mean: Clipped(dist.Normal(mean, 0.5), 0.0, 1.0))
    with pytest.raises(ArgumentError, match="'y' has atoms"):
        information(model, method="fisher")
    with pytest.raises(ArgumentError, match="'y' is discrete"):
        information(one_bit, method="fisher")
    record = {"y": np.clip(np.linspace(-1, 1, 300), 0, 1)}
    with pytest.raises(ArgumentError, match=r"'y' \(Clipped\) has atoms"):
        ig.calibrate(model, record, divergence="kl", progress_bar=False)
