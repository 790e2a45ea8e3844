# SPDX-License-Identifier: Apache-2.0
"""Every row of the table against NumPyro's own density and sampler.

A row is right if its draws have the law of `fn.sample`, and if the pathwise
derivative of E[f(X)] agrees with one that uses `log_prob` alone. Both comparisons are
in standard errors, and the standard errors themselves are bounded.
"""

import numpy as np
import pytest

import jax
import jax.numpy as jnp

import numpyro.distributions as dist
from numpyro.distributions import transforms as maps

from numpyro_infograd import exogenous

LIMIT = 4.5
DRAWS = 16_000


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
    "LKJCholeskyVine": (
        lambda concentration: dist.LKJCholesky(3, concentration, "cvine"),
        dict(concentration=1.3),
    ),
    "LKJ": (lambda concentration: dist.LKJ(3, concentration), dict(concentration=1.3)),
    "WishartCholesky": (
        lambda nu, a, c: dist.WishartCholesky(nu, rate_matrix=4 * _square(a, c)),
        dict(nu=3.5, a=1.5, c=0.5),
    ),
    "Wishart": (
        lambda nu, a, c: dist.Wishart(nu, scale_tril=0.4 * _tril(a, c)),
        dict(nu=3.5, a=0.9, c=0.6),
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


def compiled(fn):
    # Most of the time goes into compiling, so let the compiler try less.
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def pathwise(build, scalars, key, draws=DRAWS):
    """Draws, and the slopes of f(X) through `transform`: draws by scalar by f."""

    def through(p):
        fn = build(**p)
        x = draw(fn, key, (draws,))
        return functionals(x, fn.event_dim), x

    slopes, x = jax.jacfwd(through, has_aux=True)(scalars)
    return x, jnp.stack([slopes[name] for name in scalars], axis=1)


def by_score(build, scalars, x):
    """The same expectations from `log_prob` alone: draws by scalar by f."""
    score = jax.jacfwd(lambda p: build(**p).log_prob(x))(scalars)
    f = functionals(x, build(**scalars).event_dim)
    scores = jnp.stack([score[name] for name in scalars], axis=1)
    return scores[:, :, None] * (f - f.mean(0))[:, None, :]


T = np.linspace(-60.0, 40.0, 10_001)


def masses(fn):
    """Covers the support by a smooth map of the line: points and probabilities."""
    low = getattr(fn.support, "lower_bound", None)
    high = getattr(fn.support, "upper_bound", None)

    def point(t):
        if low is None and high is None:
            return jnp.sinh(t)
        if high is None:
            return low + jnp.exp(t)
        if low is None:
            return high - jnp.exp(-t)
        return low + (high - low) * jax.nn.sigmoid(t)

    t = jnp.asarray(T)
    x, slope = jax.jvp(point, (t,), (jnp.ones_like(t),))
    mass = jnp.exp(fn.log_prob(x)) * slope * (T[1] - T[0])
    return x, jnp.where(jnp.isfinite(mass), mass, 0.0)


def by_quadrature(build, scalars, step=1e-3):
    """The derivatives from differences of integrals of exp(log_prob)."""

    def expectation(p):
        x, mass = masses(build(**p))
        return mass @ functionals(x, 0)

    names = list(scalars)
    center = jnp.array([scalars[name] for name in names])
    moves = jnp.concatenate([step * jnp.eye(len(names)), -step * jnp.eye(len(names))])
    values = jax.vmap(lambda v: expectation(dict(zip(names, v, strict=True))))(
        center + moves
    )
    return (values[: len(names)] - values[len(names) :]) / (2 * step)


def kolmogorov(x, points, mass):
    """Kolmogorov's statistic; above 2.2 with probability 1e-4."""
    order = np.argsort(points)
    # Half of a cell's mass lies below its point, to second order.
    cdf = np.cumsum(mass[order]) - 0.5 * mass[order]
    at = np.interp(np.sort(x), points[order], cdf)
    empirical = (np.arange(len(x)) + 0.5) / len(x)
    return np.sqrt(len(x)) * np.max(np.abs(at - empirical))


def deviation(samples, truth, against=None):
    """Largest deviation of the mean from the truth, in standard errors.

    The errors are bounded, and each parameter must move one of the two expectations
    by far more than the noise: otherwise noise would pass.
    """
    value, error = mean_and_error(np.asarray(samples))
    size, noise = (truth, error) if against is None else against
    assert np.all(np.isfinite(value)) and np.all(error < 0.02), error
    moved = np.max(np.abs(size) / np.maximum(noise, 1e-4), axis=1)
    assert np.all(moved > 6), moved
    return np.max(np.abs(value - truth) / (error + 1e-4))


@pytest.mark.parametrize("name", UNIVARIATE)
def test_univariate_law_and_gradient(name):
    build, scalars = UNIVARIATE[name]
    assert exogenous.reason_not_reparametrized(build(**scalars)) == ""
    draws = (
        DRAWS // 4 if name in ("LeftGamma", "RightGamma", "TwoSidedGamma") else DRAWS
    )

    @compiled
    def run(p, key):
        paths = pathwise(build, p, key, draws)
        return paths, masses(build(**p)), by_quadrature(build, p)

    (x, slopes), (points, mass), truth = jax.device_get(run(scalars, jax.random.key(1)))
    assert abs(mass.sum() - 1) < 1e-4
    assert kolmogorov(x, points, mass) < 2.2
    assert deviation(slopes, truth) < LIMIT


@pytest.mark.parametrize("name", MULTIVARIATE)
def test_multivariate_law_and_gradient(name):
    build, scalars = MULTIVARIATE[name]
    fn = build(**scalars)
    assert exogenous.reason_not_reparametrized(fn) == ""
    same = exogenous.noise_of(fn).kind == "key" and name != "EulerMaruyama"

    @compiled
    def run(p, key):
        paths, samples = jax.random.split(key)
        x, slopes = pathwise(build, p, paths, 2 * DRAWS)
        # A row that draws by fn.sample has its law.
        theirs = x if same else build(**p).sample(samples, (2 * DRAWS,))
        return x, theirs, slopes, by_score(build, p, x)

    x, theirs, slopes, scored = jax.device_get(run(scalars, jax.random.key(2)))

    def moments(draws):
        flat = np.reshape(draws, (len(draws), -1))
        pairs = np.reshape(flat[:, :, None] * flat[:, None, :], (len(draws), -1))
        return mean_and_error(np.concatenate([flat, pairs], axis=1))

    (ours, error), (numpyros, their_error) = moments(x), moments(theirs)
    total = np.hypot(error, their_error)
    assert np.all(total < 0.05 * (1 + np.abs(ours)))
    assert np.all(np.abs(ours - numpyros) < LIMIT * total + 1e-9)
    # Both estimate the same slope from the same draws: their difference has mean 0.
    assert deviation(slopes - scored, 0.0, against=mean_and_error(slopes)) < LIMIT
