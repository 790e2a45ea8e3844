# SPDX-License-Identifier: Apache-2.0
"""Every row of the table against NumPyro's own density and sampler.

A row is right if its draws have the law of `fn.sample`, and if the pathwise
derivative of E[f(X)] agrees with one that uses `log_prob` alone. Both comparisons are
in standard errors, and the standard errors themselves are bounded.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro.distributions as dist
from numpyro.distributions import constraints, transforms as maps

from numpyro_infograd import exogenous
from numpyro_infograd.errors import ArgumentError, ModelError

LIMIT = 4.5
DRAWS = 20_000


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def _square(a, c):
    return jnp.array([[a, c], [c, 1.0]])


def _tril(a, c):
    return jnp.array([[a, 0.0], [c, 1.0]])


def _corr(c):
    return jnp.array([[1.0, c], [c, 1.0]])


def _chain(r):
    adjacent = jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    return adjacent * r


# Name: (scalars -> distribution, the scalars). Every scalar is differentiated.
UNIVARIATE = {
    "Normal": (dist.Normal, dict(loc=0.3, scale=0.8)),
    "LogNormal": (dist.LogNormal, dict(loc=0.3, scale=0.8)),
    "HalfNormal": (dist.HalfNormal, dict(scale=0.8)),
    "Laplace": (dist.Laplace, dict(loc=0.3, scale=0.8)),
    "AsymmetricLaplace": (
        dist.AsymmetricLaplace,
        dict(loc=0.3, scale=0.8, asymmetry=1.4),
    ),
    "AsymmetricLaplaceQuantile": (
        dist.AsymmetricLaplaceQuantile,
        dict(loc=0.3, scale=0.4, quantile=0.3),
    ),
    "SoftLaplace": (dist.SoftLaplace, dict(loc=0.3, scale=0.8)),
    "Logistic": (dist.Logistic, dict(loc=0.3, scale=0.6)),
    "Gumbel": (dist.Gumbel, dict(loc=0.3, scale=0.6)),
    "Cauchy": (dist.Cauchy, dict(loc=0.3, scale=0.6)),
    "HalfCauchy": (dist.HalfCauchy, dict(scale=0.6)),
    "Exponential": (dist.Exponential, dict(rate=1.3)),
    "Pareto": (dist.Pareto, dict(scale=0.6, alpha=2.5)),
    "Uniform": (dist.Uniform, dict(low=-0.3, high=1.5)),
    "LogUniform": (dist.LogUniform, dict(low=0.3, high=1.5)),
    "Gompertz": (dist.Gompertz, dict(concentration=0.7, rate=1.2)),
    "Dagum": (dist.Dagum, dict(concentration=1.5, sharpness=2.0, scale=0.9)),
    "Levy": (dist.Levy, dict(loc=-0.3, scale=0.5)),
    "LowerTruncatedPowerLaw": (
        dist.LowerTruncatedPowerLaw,
        dict(alpha=-3.0, low=0.6),
    ),
    "DoublyTruncatedPowerLaw": (
        dist.DoublyTruncatedPowerLaw,
        dict(alpha=-1.7, low=0.4, high=2.0),
    ),
    "RelaxedBernoulli": (dist.RelaxedBernoulli, dict(temperature=0.8, probs=0.4)),
    "RelaxedBernoulliLogits": (
        dist.RelaxedBernoulliLogits,
        dict(temperature=1.4, logits=0.4),
    ),
    "Weibull": (dist.Weibull, dict(scale=0.9, concentration=1.6)),
    "Kumaraswamy": (dist.Kumaraswamy, dict(concentration1=1.5, concentration0=0.8)),
    "FoldedNormal": (
        lambda loc, scale: dist.FoldedDistribution(dist.Normal(loc, scale)),
        dict(loc=0.3, scale=0.8),
    ),
    "FoldedLogistic": (
        lambda loc, scale: dist.FoldedDistribution(dist.Logistic(loc, scale)),
        dict(loc=0.3, scale=0.5),
    ),
    "LeftNormal": (
        lambda loc, scale, low: dist.TruncatedNormal(loc, scale, low=low),
        dict(loc=0.3, scale=0.8, low=-0.2),
    ),
    "LeftNormalAboveItsMedian": (
        lambda loc, scale, low: dist.TruncatedNormal(loc, scale, low=low),
        dict(loc=-0.3, scale=0.8, low=0.2),
    ),
    "RightNormal": (
        lambda loc, scale, high: dist.TruncatedNormal(loc, scale, high=high),
        dict(loc=0.3, scale=0.8, high=0.9),
    ),
    "TwoSidedNormal": (
        lambda loc, scale, low, high: dist.TruncatedNormal(
            loc, scale, low=low, high=high
        ),
        dict(loc=0.3, scale=0.8, low=-0.5, high=1.1),
    ),
    "LeftLaplaceAtItsMedian": (
        lambda loc, scale, low: dist.TruncatedDistribution(
            dist.Laplace(loc, scale), low=low
        ),
        dict(loc=0.3, scale=0.8, low=0.3),
    ),
    "RightCauchy": (
        lambda loc, scale, high: dist.TruncatedCauchy(loc, scale, high=high),
        dict(loc=0.3, scale=0.8, high=0.6),
    ),
    "TwoSidedCauchy": (
        lambda loc, scale, low, high: dist.TruncatedCauchy(
            loc, scale, low=low, high=high
        ),
        dict(loc=0.3, scale=0.8, low=0.5, high=1.8),
    ),
    "TwoSidedLogistic": (
        lambda loc, scale, low, high: dist.TruncatedDistribution(
            dist.Logistic(loc, scale), low=low, high=high
        ),
        dict(loc=0.3, scale=0.8, low=-1.5, high=0.2),
    ),
    "LeftSoftLaplace": (
        lambda loc, scale, low: dist.TruncatedDistribution(
            dist.SoftLaplace(loc, scale), low=low
        ),
        dict(loc=0.3, scale=0.6, low=-0.5),
    ),
    "LeftGamma": (
        lambda concentration, rate, low: dist.TruncatedGamma(
            concentration, rate, low=low
        ),
        dict(concentration=1.6, rate=1.2, low=0.4),
    ),
    "RightGamma": (
        lambda concentration, rate, high: dist.TruncatedGamma(
            concentration, rate, high=high
        ),
        dict(concentration=1.6, rate=1.2, high=1.4),
    ),
    "TwoSidedGamma": (
        lambda concentration, rate, low, high: dist.TruncatedGamma(
            concentration, rate, low=low, high=high
        ),
        dict(concentration=1.6, rate=1.2, low=0.4, high=1.8),
    ),
    "Gamma": (dist.Gamma, dict(concentration=1.6, rate=1.2)),
    "Chi2": (dist.Chi2, dict(df=1.8)),
    "InverseGamma": (dist.InverseGamma, dict(concentration=2.2, rate=1.2)),
    "Beta": (dist.Beta, dict(concentration1=1.6, concentration0=0.8)),
    "BetaProportion": (dist.BetaProportion, dict(mean=0.4, concentration=2.5)),
    "StudentT": (dist.StudentT, dict(df=1.5, loc=0.3, scale=0.8)),
    "LeftCensored": (
        lambda loc, scale: dist.LeftCensoredDistribution(dist.Normal(loc, scale)),
        dict(loc=0.3, scale=0.8),
    ),
    "RightCensored": (
        lambda loc, scale: dist.RightCensoredDistribution(dist.Normal(loc, scale)),
        dict(loc=0.3, scale=0.8),
    ),
    "Transformed": (
        lambda loc, scale, df: dist.TransformedDistribution(
            dist.Gumbel(0.0, df),
            [maps.SigmoidTransform(), maps.AffineTransform(loc, scale)],
        ),
        dict(loc=0.3, scale=0.8, df=0.7),
    ),
}

MULTIVARIATE = {
    "MultivariateNormalTril": (
        lambda loc, a, c: dist.MultivariateNormal(
            jnp.array([loc, 0.0]), scale_tril=_tril(a, c)
        ),
        dict(loc=0.3, a=0.8, c=0.5),
    ),
    "MultivariateNormalCovariance": (
        lambda loc, a, c: dist.MultivariateNormal(
            jnp.array([loc, 0.0]), covariance_matrix=_square(a, c)
        ),
        dict(loc=0.3, a=0.8, c=0.5),
    ),
    "MultivariateNormalPrecision": (
        lambda loc, a, c: dist.MultivariateNormal(
            jnp.array([loc, 0.0]), precision_matrix=_square(a, c)
        ),
        dict(loc=0.3, a=1.5, c=0.5),
    ),
    "LowRankMultivariateNormal": (
        lambda loc, w, v: dist.LowRankMultivariateNormal(
            jnp.array([loc, 0.0, 0.1]),
            jnp.array([[w], [0.5], [-0.4]]),
            jnp.array([0.5, v, 0.7]),
        ),
        dict(loc=0.3, w=0.8, v=0.5),
    ),
    "MatrixNormal": (
        lambda loc, a, c: dist.MatrixNormal(
            jnp.array([[loc, 0.0], [0.1, 0.2]]), _tril(a, 0.3), _tril(0.8, c)
        ),
        dict(loc=0.3, a=0.8, c=0.5),
    ),
    "CAR": (
        lambda loc, correlation, precision, r: dist.CAR(
            jnp.full(3, loc), correlation, precision, _chain(r)
        ),
        dict(loc=0.3, correlation=0.5, precision=1.4, r=1.0),
    ),
    "GaussianRandomWalk": (
        lambda scale: dist.GaussianRandomWalk(scale, 3),
        dict(scale=0.7),
    ),
    "GaussianStateSpace": (
        lambda r, a, start: dist.GaussianStateSpace(
            2,
            jnp.array([[r, 0.2], [0.0, 0.5]]),
            scale_tril=_tril(a, 0.3),
            initial_value=jnp.array([start, 0.5]),
        ),
        dict(r=0.7, a=0.6, start=0.8),
    ),
    "CirculantNormal": (
        lambda loc, a, c: dist.CirculantNormal(
            jnp.array([loc, 0.0, 0.1]), covariance_row=jnp.array([a, c, c])
        ),
        dict(loc=0.3, a=0.8, c=0.3),
    ),
    "ZeroSumNormal": (
        lambda scale: dist.ZeroSumNormal(scale, (3,)),
        dict(scale=0.7),
    ),
    "ProjectedNormal": (
        lambda a: dist.ProjectedNormal(jnp.array([a, 0.4])),
        dict(a=0.9),
    ),
    "GaussianCopulaNormal": (
        lambda loc, scale, c: dist.GaussianCopula(
            dist.Normal(jnp.array([loc, 0.0]), scale), correlation_matrix=_corr(c)
        ),
        dict(loc=0.3, scale=0.7, c=0.5),
    ),
    "GaussianCopulaExponential": (
        lambda rate, c: dist.GaussianCopula(
            dist.Exponential(jnp.array([rate, 1.0])), correlation_matrix=_corr(c)
        ),
        dict(rate=1.2, c=0.5),
    ),
    "MultivariateStudentT": (
        lambda df, loc, c: dist.MultivariateStudentT(
            df, jnp.array([loc, 0.0]), _tril(0.7, c)
        ),
        dict(df=9.0, loc=0.3, c=0.5),
    ),
    "Dirichlet": (
        lambda a, b: dist.Dirichlet(jnp.array([a, b, 1.2])),
        dict(a=0.8, b=2.0),
    ),
    "LKJCholesky": (
        lambda concentration: dist.LKJCholesky(3, concentration),
        dict(concentration=1.3),
    ),
    "LKJCholeskyVine": (
        lambda concentration: dist.LKJCholesky(3, concentration, "cvine"),
        dict(concentration=1.3),
    ),
    "LKJ": (lambda concentration: dist.LKJ(3, concentration), dict(concentration=1.3)),
    "WishartCholesky": (
        lambda nu, a, c: dist.WishartCholesky(nu, scale_matrix=_square(a, c)),
        dict(nu=3.5, a=0.5, c=0.3),
    ),
    "Wishart": (
        lambda nu, a, c: dist.Wishart(nu, scale_tril=0.4 * _tril(a, c)),
        dict(nu=3.5, a=0.9, c=0.6),
    ),
    "WishartRate": (
        lambda nu, a, c: dist.Wishart(nu, rate_matrix=4 * _square(a, c)),
        dict(nu=3.5, a=1.5, c=0.5),
    ),
    "InverseWishartCholesky": (
        lambda nu, a, c: dist.InverseWishartCholesky(nu, scale_tril=_tril(a, c)),
        dict(nu=12.0, a=0.9, c=0.6),
    ),
    "InverseWishart": (
        lambda nu, a, c: dist.InverseWishart(nu, scale_matrix=3 * _square(a, c)),
        dict(nu=12.0, a=1.5, c=0.5),
    ),
    "EulerMaruyama": (
        lambda drift, loc, t: dist.EulerMaruyama(
            jnp.array([0.0, t, 1.0]),
            lambda x, _: (-drift * x, 0.7),
            dist.Normal(loc, 0.5),
        ),
        dict(drift=0.9, loc=0.6, t=0.4),
    ),
    "Independent": (
        lambda loc, rate: dist.TransformedDistribution(
            dist.Gumbel(jnp.zeros(2), rate).to_event(1),
            maps.LowerCholeskyAffine(jnp.array([loc, 0.0]), _tril(0.7, loc)),
        ),
        dict(loc=0.3, rate=0.7),
    ),
}


def draw_noise(noise, key):
    if noise.kind == "normal":
        return jax.random.normal(key, noise.shape)
    if noise.kind == "uniform":
        return jax.random.uniform(key, noise.shape, minval=1e-12)
    return key


def draw(fn, key, sample_shape=()):
    noise = draw_noise(exogenous.noise_of(fn, sample_shape), key)
    return exogenous.transform(fn, noise, sample_shape)


def functionals(x, event_dim):
    """Two bounded functions of each value: a step and a Gaussian bump."""
    x = jnp.asarray(x, float)
    flat = jnp.reshape(x, (*x.shape[: x.ndim - event_dim], -1))
    weights = 1.0 - 0.3 * jnp.arange(flat.shape[-1])
    mixed = flat @ weights
    away = jnp.sum((flat - 0.4 * weights) ** 2, axis=-1)
    return jnp.stack([jnp.tanh(mixed), jnp.exp(-0.5 * away)], axis=-1)


def mean_and_error(samples):
    return samples.mean(0), samples.std(0) / np.sqrt(samples.shape[0])


def pathwise(build, scalars, key, draws=DRAWS):
    """Derivatives of E[f(X)] through `transform`: (values, errors), scalar by f."""

    def through(p):
        fn = build(**p)
        return functionals(draw(fn, key, (draws,)), fn.event_dim)

    slopes = jax.jacfwd(through)(scalars)
    return mean_and_error(jnp.stack([slopes[name] for name in scalars], axis=1))


def by_score(build, scalars, key, draws=4 * DRAWS):
    """The same from NumPyro's sampler and `log_prob` alone."""
    fn = build(**scalars)
    x = fn.sample(key, (draws,))
    score = jax.jacfwd(lambda p: build(**p).log_prob(x))(scalars)
    f = functionals(x, fn.event_dim)
    scores = jnp.stack([score[name] for name in scalars], axis=1)
    return mean_and_error(scores[:, :, None] * (f - f.mean(0))[:, None, :])


def grid_of(support, t):
    """Covers the support by a smooth map of the line: points and their weights."""
    low = getattr(support, "lower_bound", None)
    high = getattr(support, "upper_bound", None)

    def point(s):
        if low is None and high is None:
            return jnp.sinh(s)
        if high is None:
            return low + jnp.exp(s)
        if low is None:
            return high - jnp.exp(-s)
        return low + (high - low) * jax.nn.sigmoid(s)

    x, slope = jax.jvp(point, (t,), (jnp.ones_like(t),))
    return x, slope * (t[1] - t[0])


def masses(fn, t):
    x, weight = grid_of(fn.support, t)
    mass = jnp.exp(fn.log_prob(x)) * weight
    return x, jnp.where(jnp.isfinite(mass), mass, 0.0)


T = np.linspace(-60.0, 40.0, 20_001)


def by_quadrature(build, scalars, step=1e-3):
    """The same from differences of integrals of exp(log_prob)."""

    def expectation(p):
        x, mass = masses(build(**p), jnp.asarray(T))
        return mass @ functionals(x, 0)

    names = list(scalars)
    center = jnp.array([scalars[name] for name in names])
    moves = jnp.concatenate([step * jnp.eye(len(names)), -step * jnp.eye(len(names))])
    values = jax.vmap(lambda v: expectation(dict(zip(names, v, strict=True))))(
        center + moves
    )
    return (values[: len(names)] - values[len(names) :]) / (2 * step)


def kolmogorov(x, grid, mass):
    order = jnp.argsort(grid)
    # The cdf is taken at the middle of each cell, which is exact to second order.
    cdf = jnp.cumsum(mass[order]) - 0.5 * mass[order]
    at = jnp.interp(jnp.sort(x), grid[order], cdf)
    n = x.shape[0]
    empirical = (jnp.arange(n) + 0.5) / n
    return jnp.sqrt(n) * jnp.max(jnp.abs(at - empirical))


def compare(value, error, truth, truth_error=0.0):
    """Largest deviation in standard errors; bounds the errors, so noise cannot pass."""
    total = np.sqrt(np.square(error) + np.square(truth_error))
    assert np.all(np.isfinite(value)) and np.all(np.isfinite(truth))
    assert np.all(total < 0.02), total
    # Each parameter moves one of the two expectations by far more than the noise.
    assert np.all(np.max(np.abs(truth) / (total + 1e-9), axis=1) > 6), truth / total
    return float(np.max(np.abs(value - truth) / (total + 1e-4)))


@pytest.mark.parametrize("name", UNIVARIATE)
def test_univariate_law_and_gradient(name):
    build, scalars = UNIVARIATE[name]
    assert exogenous.reason_not_reparametrized(build(**scalars)) == ""

    @jax.jit
    def everything(p, key):
        ours, theirs, slopes = jax.random.split(key, 3)
        fn = build(**p)
        grid, mass = masses(fn, jnp.asarray(T))
        draws = draw(fn, ours, (DRAWS,)), fn.sample(theirs, (DRAWS,))
        laws = [kolmogorov(x, grid, mass) for x in draws]
        return (
            laws,
            mass.sum(),
            pathwise(build, p, slopes),
            by_quadrature(build, p),
        )

    laws, total, (value, error), truth = everything(scalars, jax.random.key(1))
    assert abs(total - 1) < 1e-5
    assert max(laws) < 2.2  # passed by chance with probability 1 - 1e-4
    assert compare(value, error, truth) < LIMIT


@pytest.mark.parametrize("name", MULTIVARIATE)
def test_multivariate_law_and_gradient(name):
    build, scalars = MULTIVARIATE[name]
    assert exogenous.reason_not_reparametrized(build(**scalars)) == ""

    @jax.jit
    def everything(p, key):
        ours, theirs, slopes, scores = jax.random.split(key, 4)
        fn = build(**p)
        laws = []
        for x in (draw(fn, ours, (DRAWS,)), fn.sample(theirs, (DRAWS,))):
            flat = jnp.reshape(x, (DRAWS, -1))
            pairs = jnp.reshape(flat[:, :, None] * flat[:, None, :], (DRAWS, -1))
            laws.append(mean_and_error(jnp.concatenate([flat, pairs], axis=1)))
        return laws, pathwise(build, p, slopes), by_score(build, p, scores)

    laws, paths, truths = everything(scalars, jax.random.key(2))
    (ours, error), (theirs, their_error) = laws
    total = np.hypot(error, their_error)
    assert np.all(total < 0.05 * (1 + np.abs(theirs)))
    assert np.all(np.abs(ours - theirs) < LIMIT * total + 1e-9)
    assert compare(*paths, *truths) < LIMIT
