# SPDX-License-Identifier: Apache-2.0
"""Complex normal distributions against real ones, by SciPy."""

import numpy as np
import pytest
from scipy import stats

import jax
import jax.numpy as jnp

from helpers import assert_within
from numpyro_infograd.distributions import ComplexNormal, MultivariateComplexNormal
from numpyro_infograd.errors import ArgumentError


def assert_slopes(fn, point):
    """Both kinds of derivatives against differences, in double precision."""
    run = jax.jit(fn)
    forward, reverse = jax.jit(lambda p: (jax.jacfwd(fn)(p), jax.jacrev(fn)(p)))(point)
    for name, value in point.items():
        up, down = (run(point | {name: value + s}) for s in (1e-5, -1e-5))
        truth = (up - down) / 2e-5
        for found in (forward[name], reverse[name]):
            np.testing.assert_allclose(found, truth, rtol=2e-6, atol=1e-7)
            with pytest.raises(AssertionError):  # a wrong sign fails
                np.testing.assert_allclose(-found, truth, rtol=2e-6, atol=1e-7)


def test_complex_normal_is_two_real_ones(x64) -> None:
    loc, scale = np.array([[1 + 2j], [0.5j]]), np.array([0.5, 1.0, 3.0])
    fn = ComplexNormal(loc, scale)
    assert fn.batch_shape == (2, 3)
    z = fn.sample(jax.random.key(0), (20_000,))
    assert z.shape == (20_000, 2, 3) and z.dtype == np.complex128
    parts = [
        stats.norm.logpdf(part(z), part(loc), scale / np.sqrt(2))
        for part in (np.real, np.imag)
    ]
    log_p = fn.log_prob(z)
    assert log_p.dtype == np.float64
    np.testing.assert_allclose(log_p, sum(parts), rtol=1e-10)
    np.testing.assert_allclose(fn.entropy(), -log_p.mean(0), atol=0.05)
    np.testing.assert_allclose(
        fn.entropy(), np.broadcast_to(np.log(np.pi * np.e * scale**2), (2, 3))
    )
    away = np.asarray(z - fn.mean)
    second = np.broadcast_to(scale**2, (2, 3))
    np.testing.assert_allclose(fn.variance, second)
    power = np.abs(away) ** 2
    error = power.std(0) / np.sqrt(20_000)
    assert_within(power.mean(0), error, second, max_standard_error=0.07)
    # Circular: E (z - loc)^2 = 0.
    for part in (np.real(away**2), np.imag(away**2)):
        error = part.std(0) / np.sqrt(20_000)
        assert_within(part.mean(0), error, 0 * second, max_standard_error=0.07)
    assert fn.support(z).all() and not fn.support(jnp.array(np.inf))
    assert ComplexNormal().sample(jax.random.key(0)).shape == ()


@pytest.mark.slow
def test_complex_normal_derivatives(x64) -> None:
    def moments(p):
        fn = ComplexNormal(p["re"] + 1j * p["im"], p["scale"])
        assert fn.has_rsample
        z = fn.rsample(jax.random.key(0), (7,))
        return jnp.stack([z.real, z.imag, jnp.abs(z) ** 2])

    point = {"re": 0.3, "im": -0.4, "scale": 0.8}
    assert_slopes(moments, point)

    def log_prob(p):
        fn = ComplexNormal(p["re"] + 1j * p["im"], p["scale"])
        return fn.log_prob(np.array([0.3 - 0.4j, 1.0 + 1.0j]))

    assert_slopes(log_prob, point)
    assert np.all(np.isfinite(jax.jacrev(log_prob)(point)["re"]))  # also at the mean


A = np.array([[1.0, 0.0], [0.4 - 0.7j, 0.6]])
COVARIANCE = A @ A.conj().T


def as_real(matrix):
    """The covariance of real and imaginary parts."""
    real, imag = matrix.real, matrix.imag
    return 0.5 * np.block([[real, -imag], [imag, real]])


def test_multivariate_complex_normal_is_a_real_one(x64) -> None:
    loc = np.array([1 + 1j, -0.5])
    fn = MultivariateComplexNormal(loc, COVARIANCE)
    same = MultivariateComplexNormal(loc, scale_tril=A)
    np.testing.assert_allclose(fn.scale_tril, A)
    np.testing.assert_allclose(same.covariance_matrix, COVARIANCE)
    z = np.asarray(fn.sample(jax.random.key(0), (20_000,)))
    assert z.shape == (20_000, 2) and fn.event_shape == (2,)
    columns = np.concatenate([z.real, z.imag], axis=1)
    real = stats.multivariate_normal([1.0, -0.5, 1.0, 0.0], as_real(COVARIANCE))
    for each in (fn, same):
        np.testing.assert_allclose(each.log_prob(z), real.logpdf(columns), rtol=1e-9)
    wrong = stats.multivariate_normal([1.0, -0.5, 1.0, 0.0], as_real(COVARIANCE.T))
    assert not np.allclose(fn.log_prob(z), wrong.logpdf(columns), rtol=1e-3)
    np.testing.assert_allclose(fn.entropy(), real.entropy())
    np.testing.assert_allclose(fn.variance, np.diag(COVARIANCE).real)
    away = z - loc
    for i in range(2):
        for j in range(2):
            found = away[:, i] * away[:, j].conj()
            for part in (np.real, np.imag):
                error = part(found).std() / np.sqrt(20_000) + 1e-12
                truth = part(COVARIANCE[i, j])
                assert_within(part(found).mean(), error, truth, max_standard_error=0.02)


def test_multivariate_complex_normal_shapes_and_derivatives(x64) -> None:
    covariance = np.stack([COVARIANCE, 2 * COVARIANCE, np.eye(2)])
    fn = MultivariateComplexNormal(np.zeros((4, 1, 2)), covariance)
    assert fn.batch_shape == (4, 3) and fn.event_shape == (2,)
    z = fn.sample(jax.random.key(0), (5,))
    assert z.shape == (5, 4, 3, 2) and fn.log_prob(z).shape == (5, 4, 3)
    alone = MultivariateComplexNormal(0.0, covariance[1])
    np.testing.assert_allclose(fn.log_prob(z)[..., 1], alone.log_prob(z[..., 1, :]))
    assert fn.mean.shape == fn.variance.shape == (4, 3, 2)
    assert fn.covariance_matrix.shape == (4, 3, 2, 2) and fn.entropy().shape == (4, 3)
    copy = jax.tree.unflatten(*reversed(jax.tree.flatten(fn)))
    np.testing.assert_array_equal(copy.log_prob(z), fn.log_prob(z))

    def build(p):
        corner = p["c"] + 0.3j
        matrix = jnp.array([[p["a"], corner], [jnp.conj(corner), 1.0]])
        return MultivariateComplexNormal(jnp.array([p["loc"] + 0j, 0.5]), matrix)

    point = {"a": 1.4, "c": 0.5, "loc": 0.2}

    def log_prob(p):
        return build(p).log_prob(np.array([[1j, 0.5], [0.3, -1.0 + 1j]]))

    def draws(p):
        z = build(p).rsample(jax.random.key(0), (6,))
        return jnp.stack([z.real, z.imag])

    assert_slopes(log_prob, point)
    assert_slopes(draws, point)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: ComplexNormal("a"), "loc must be finite numbers"),
        (lambda: ComplexNormal(np.nan), "loc must be finite numbers"),
        (lambda: ComplexNormal(0.0, 1j), "scale must be finite real"),
        (lambda: ComplexNormal(0.0, 0.0), "scale must be positive"),
        (lambda: ComplexNormal(np.zeros(2), np.ones(3)), "do not broadcast"),
        (lambda: MultivariateComplexNormal(0.0), "got neither"),
        (lambda: MultivariateComplexNormal(0.0, COVARIANCE, A), "got both"),
        (lambda: MultivariateComplexNormal(0.0, np.ones(2)), "must be a square"),
        (lambda: MultivariateComplexNormal(0.0, A), "must be Hermitian"),
        (lambda: MultivariateComplexNormal(0.0, -np.eye(2)), "positive definite"),
        (
            lambda: MultivariateComplexNormal(0.0, scale_tril=COVARIANCE),
            "lower triangular",
        ),
        (
            lambda: MultivariateComplexNormal(0.0, scale_tril=1j * np.eye(2)),
            "positive diagonal",
        ),
        (
            lambda: MultivariateComplexNormal(np.zeros(3), COVARIANCE),
            "must have size 2",
        ),
    ],
)
def test_wrong_arguments(build, message) -> None:
    with pytest.raises(ArgumentError, match=message):
        build()
