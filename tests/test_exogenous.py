# SPDX-License-Identifier: Apache-2.0
"""Every row of the table against NumPyro's own density and sampler.

A row is right if its draws have the law of `fn.sample`, and if the pathwise
derivative of E[f(X)] agrees with one that uses `log_prob` alone. Both comparisons are
in standard errors, and the standard errors themselves are bounded.
"""

from methods import slow
import numpy as np
import pytest
from scipy.special import ndtri

import jax
import jax.numpy as jnp

import numpyro.distributions as dist
from numpyro.distributions import constraints, transforms as maps

from numpyro_infograd import exogenous
from numpyro_infograd.errors import ArgumentError, ModelError
from numpyro_infograd.exogenous import lookup

LIMIT = 4.5
DRAWS = 16_000


pytestmark = pytest.mark.usefixtures("x64")


def _at(loc):
    return jnp.array([loc, 0.0])


def _square(a, c):
    return jnp.array([[a, c], [c, 1.0]])


def _tril(a, c):
    return jnp.array([[a, 0.0], [c, 1.0]])


# Of classes of NumPyro: their scalars, of which every one is differentiated.
PLAIN = {
    "Normal": dict(loc=0.3, scale=0.8),
    "LogNormal": dict(loc=0.3, scale=0.8),
    "HalfNormal": dict(scale=0.8),
    "Laplace": dict(loc=0.3, scale=0.8),
    "AsymmetricLaplace": dict(loc=0.3, scale=0.8, asymmetry=1.4),
    "AsymmetricLaplaceQuantile": dict(loc=0.3, scale=0.4, quantile=0.3),
    "SoftLaplace": dict(loc=0.3, scale=0.8),
    "Logistic": dict(loc=0.3, scale=0.6),
    "Gumbel": dict(loc=0.3, scale=0.6),
    "Cauchy": dict(loc=0.3, scale=0.6),
    "HalfCauchy": dict(scale=0.6),
    "Exponential": dict(rate=1.3),
    "Pareto": dict(scale=0.6, alpha=2.5),
    "Uniform": dict(low=-0.3, high=1.5),
    "LogUniform": dict(low=0.3, high=1.5),
    "Gompertz": dict(concentration=0.7, rate=1.2),
    "Dagum": dict(concentration=1.5, sharpness=2.0, scale=0.9),
    "Levy": dict(loc=-0.3, scale=0.5),
    "LowerTruncatedPowerLaw": dict(alpha=-3.0, low=0.6),
    "DoublyTruncatedPowerLaw": dict(alpha=-1.7, low=0.4, high=2.0),
    "RelaxedBernoulli": dict(temperature=0.8, probs=0.4),
    "RelaxedBernoulliLogits": dict(temperature=1.4, logits=0.4),
    "Weibull": dict(scale=0.9, concentration=1.6),
    "Kumaraswamy": dict(concentration1=1.5, concentration0=0.8),
    "Gamma": dict(concentration=1.6, rate=1.2),
    "Chi2": dict(df=1.8),
    "InverseGamma": dict(concentration=2.2, rate=1.2),
    "Beta": dict(concentration1=1.6, concentration0=0.8),
    "BetaProportion": dict(mean=0.4, concentration=2.5),
    "StudentT": dict(df=1.5, loc=0.3, scale=0.8),
}
# Name: (scalars -> distribution, the scalars).
UNIVARIATE = {n: (getattr(dist, n), scalars) for n, scalars in PLAIN.items()} | {
    "FoldedNormal": (
        lambda loc, scale: dist.FoldedDistribution(dist.Normal(loc, scale)),
        dict(loc=0.3, scale=0.8)),
    "FoldedLogistic": (
        lambda loc, scale: dist.FoldedDistribution(dist.Logistic(loc, scale)),
        dict(loc=0.3, scale=0.5)),
    "LeftNormal": (dist.TruncatedNormal, dict(loc=0.3, scale=0.8, low=-0.2)),
    "LeftNormalAboveItsMedian": (
        dist.TruncatedNormal, dict(loc=-0.3, scale=0.8, low=0.2)),
    "RightNormal": (dist.TruncatedNormal, dict(loc=0.3, scale=0.8, high=0.9)),
    "TwoSidedNormal": (
        dist.TruncatedNormal, dict(loc=0.3, scale=0.8, low=-0.5, high=1.1)),
    "LeftLaplaceAtItsMedian": (
        lambda scale, low: dist.TruncatedDistribution(dist.Laplace(0.3, scale), low),
        dict(scale=0.8, low=0.3)),
    "RightCauchy": (dist.TruncatedCauchy, dict(loc=0.3, scale=0.8, high=0.6)),
    "TwoSidedCauchy": (
        dist.TruncatedCauchy, dict(loc=0.3, scale=0.8, low=0.5, high=1.8)),
    "TwoSidedLogistic": (
        lambda loc, scale, low, high: dist.TruncatedDistribution(
            dist.Logistic(loc, scale), low, high),
        dict(loc=0.3, scale=0.8, low=-1.5, high=0.2)),
    "LeftSoftLaplace": (
        lambda loc, scale, low: dist.TruncatedDistribution(
            dist.SoftLaplace(loc, scale), low),
        dict(loc=0.3, scale=0.6, low=-0.5)),
    "LeftGamma": (dist.TruncatedGamma, dict(concentration=1.6, rate=1.2, low=0.4)),
    "RightGamma": (dist.TruncatedGamma, dict(concentration=1.6, rate=1.2, high=1.4)),
    "TwoSidedGamma": (
        dist.TruncatedGamma, dict(concentration=1.6, rate=1.2, low=0.4, high=1.8)),
    "Transformed": (
        lambda loc, scale, rate: dist.TransformedDistribution(
            dist.Gumbel(0.0, scale),
            [maps.AffineTransform(loc, rate), maps.ExpTransform()]),
        dict(loc=-0.3, scale=0.7, rate=0.8)),
}  # fmt: skip

MULTIVARIATE = {
    "MultivariateNormalTril": (
        lambda loc, a, c: dist.MultivariateNormal(_at(loc), scale_tril=_tril(a, c)),
        dict(loc=0.3, a=0.8, c=0.5)),
    "MultivariateNormalCovariance": (
        lambda loc, a, c: dist.MultivariateNormal(_at(loc), _square(a, c)),
        dict(loc=0.3, a=0.8, c=0.5)),
    "MultivariateNormalPrecision": (
        lambda loc, a, c: dist.MultivariateNormal(
            _at(loc), precision_matrix=_square(a, c)),
        dict(loc=0.3, a=1.5, c=0.5)),
    "LowRankMultivariateNormal": (
        lambda loc, w, v: dist.LowRankMultivariateNormal(
            jnp.array([loc, 0.0, 0.1]),
            jnp.array([[w], [0.5], [-0.4]]),
            jnp.array([0.5, v, 0.7])),
        dict(loc=0.3, w=0.8, v=0.5)),
    "MatrixNormal": (
        lambda loc, a, c: dist.MatrixNormal(
            jnp.array([[loc, 0.0], [0.1, 0.2]]), _tril(a, 0.3), _tril(0.8, c)),
        dict(loc=0.3, a=0.8, c=0.5)),
    "CAR": (
        lambda loc, correlation, precision, r: dist.CAR(
            jnp.full(3, loc), correlation, precision,
            r * (np.eye(3, k=1) + np.eye(3, k=-1))),
        dict(loc=0.3, correlation=0.5, precision=1.4, r=1.0)),
    "GaussianRandomWalk": (
        lambda scale: dist.GaussianRandomWalk(scale, 3), dict(scale=0.7)),
    "GaussianStateSpace": (
        lambda r, a, start: dist.GaussianStateSpace(
            2, jnp.array([[r, 0.2], [0.0, 0.5]]), scale_tril=_tril(a, 0.3),
            initial_value=jnp.array([start, 0.5])),
        dict(r=0.7, a=0.6, start=0.8)),
    "CirculantNormal": (
        lambda loc, a, c: dist.CirculantNormal(
            jnp.array([loc, 0.0, 0.1]), covariance_row=jnp.array([a, c, c])),
        dict(loc=0.3, a=0.8, c=0.3)),
    "ZeroSumNormal": (lambda scale: dist.ZeroSumNormal(scale, (3,)), dict(scale=0.7)),
    "ProjectedNormal": (
        lambda a: dist.ProjectedNormal(jnp.array([a, 0.4])), dict(a=0.9)),
    "GaussianCopulaNormal": (
        lambda loc, scale, c: dist.GaussianCopula(
            dist.Normal(_at(loc), scale), correlation_matrix=_square(1.0, c)),
        dict(loc=0.3, scale=0.7, c=0.5)),
    "GaussianCopulaExponential": (
        lambda rate, c: dist.GaussianCopula(
            dist.Exponential(jnp.array([rate, 1.0])),
            correlation_matrix=_square(1.0, c)),
        dict(rate=1.2, c=0.5)),
    "MultivariateStudentT": (
        lambda df, loc, c: dist.MultivariateStudentT(df, _at(loc), _tril(0.7, c)),
        dict(df=9.0, loc=0.3, c=0.5)),
    "Dirichlet": (
        lambda a, b: dist.Dirichlet(jnp.array([a, b, 1.2])), dict(a=0.8, b=2.0)),
    "LKJCholeskyVine": (
        lambda concentration: dist.LKJCholesky(3, concentration, "cvine"),
        dict(concentration=1.3)),
    "LKJ": (lambda concentration: dist.LKJ(3, concentration), dict(concentration=1.3)),
    "WishartCholesky": (
        lambda nu, a, c: dist.WishartCholesky(nu, rate_matrix=4 * _square(a, c)),
        dict(nu=3.5, a=1.5, c=0.5)),
    "Wishart": (
        lambda nu, a, c: dist.Wishart(nu, scale_tril=0.4 * _tril(a, c)),
        dict(nu=3.5, a=0.9, c=0.6)),
    "InverseWishartCholesky": (
        lambda nu, a, c: dist.InverseWishartCholesky(nu, scale_tril=_tril(a, c)),
        dict(nu=12.0, a=0.9, c=0.6)),
    "InverseWishart": (
        lambda nu, a, c: dist.InverseWishart(nu, scale_matrix=3 * _square(a, c)),
        dict(nu=12.0, a=1.5, c=0.5)),
    "EulerMaruyama": (
        lambda drift, loc, t: dist.EulerMaruyama(
            jnp.array([0.0, t, 1.0]), lambda x, _: (-drift * x, 0.7),
            dist.Normal(loc, 0.5)),
        dict(drift=0.9, loc=0.6, t=0.4)),
    "Independent": (
        lambda loc, rate: dist.TransformedDistribution(
            dist.Gumbel(jnp.zeros(2), rate).to_event(1),
            maps.LowerCholeskyAffine(_at(loc), _tril(0.7, loc))),
        dict(loc=0.3, rate=0.7)),
}  # fmt: skip


def draw(fn, key, sample_shape):
    noise = exogenous.noise_of(fn, sample_shape)
    if noise.kind == "normal":
        key = jax.random.normal(key, noise.shape)
    elif noise.kind == "uniform":
        key = jax.random.uniform(key, noise.shape, minval=1e-12)
    return exogenous.transform(fn, key, sample_shape)


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
    assert np.all(np.isfinite(value)) and np.all(error < 0.03), error
    moved = np.max(np.abs(size) / np.maximum(noise, 1e-4), axis=1)
    assert np.all(moved > 6), moved
    return np.max(np.abs(value - truth) / (error + 1e-4))


# The ends of the unit interval in single precision.
SMALL = 2.0 ** -np.arange(24, 0, -1)
TAILS = np.concatenate([SMALL, (1 - SMALL)[-2::-1]])

# The only families that take a key.
KEYED = ("Gamma", "Chi2", "InverseGamma", "Beta", "BetaProportion", "StudentT")

# Compiling takes seconds each: one of each family is fast. Where a cdf is known, the
# fast test is that of quantile functions.
FAST = set(
    """Gamma StudentT FoldedNormal LeftLaplaceAtItsMedian
    LowRankMultivariateNormal CAR MatrixNormal GaussianRandomWalk
    ZeroSumNormal ProjectedNormal GaussianCopulaExponential EulerMaruyama""".split()
)
# By bisection; not monotone; NumPyro's cdf has no derivative at its kink; too many
# operations to compile.
WITHOUT_CDF = set(
    """LeftGamma RightGamma TwoSidedGamma FoldedNormal FoldedLogistic
    LeftLaplaceAtItsMedian TwoSidedNormal""".split()
)
DEAR = ("HalfNormal", "LeftNormal", "LeftNormalAboveItsMedian")
WITH_CDF = [n for n in UNIVARIATE if n not in WITHOUT_CDF.union(KEYED)]


def cases(names):
    return [n if n in FAST else slow(n) for n in names]


def cdf(fn, x):
    """That of NumPyro, or of what has none there."""
    if isinstance(fn, dist.Kumaraswamy):
        return 1 - (1 - x**fn.concentration1) ** fn.concentration0
    return fn.cdf(x)


@pytest.mark.parametrize("name", [slow(n) if n in DEAR else n for n in WITH_CDF])
def test_quantile_functions_invert_the_cdf(name):
    """At every parameter, so derivatives are right too, and far out in the tails."""
    build, scalars = UNIVARIATE[name]
    assert exogenous.reason_not_reparametrized(build(**scalars)) == ""
    is_uniform = exogenous.noise_of(build(**scalars)).kind == "uniform"

    def transform(fn, u):
        return exogenous.transform(fn, u if is_uniform else ndtri(u), u.shape)

    u = np.linspace(0.03, 0.97, 12)

    def back(p):
        fn = build(**p)
        return cdf(fn, transform(fn, u))

    np.testing.assert_allclose(back(scalars), u, rtol=1e-12)
    slopes = jax.jacfwd(back)(scalars)
    np.testing.assert_allclose(list(slopes.values()), 0.0, atol=1e-12)
    with jax.enable_x64(False):
        x = np.asarray(transform(build(**scalars), TAILS.astype(np.float32)))
    assert x.dtype == np.float32 and np.all(np.isfinite(x)) and np.all(np.diff(x) >= 0)


@pytest.mark.parametrize("name", cases(UNIVARIATE))
def test_univariate_law_and_gradient(name):
    build, scalars = UNIVARIATE[name]
    assert exogenous.reason_not_reparametrized(build(**scalars)) == ""
    dear = name in ("LeftGamma", "RightGamma", "TwoSidedGamma")
    draws = DRAWS // 4 if dear else DRAWS
    kind = exogenous.noise_of(build(**scalars)).kind
    noise = TAILS if kind == "uniform" else ndtri(TAILS)

    def value(p, noise):
        return exogenous.transform(build(**p), noise, noise.shape)

    @jax.jit
    def run(p, key):
        paths = pathwise(build, p, key, draws)
        exact = None if kind == "key" else value(p, jnp.asarray(noise))
        return paths, masses(build(**p)), by_quadrature(build, p), exact

    @jax.jit
    def single(p, noise):
        return (
            value(p, noise),
            jax.jacfwd(value)(p, noise),
            jax.jvp(lambda z: value(p, z), (noise,), (jnp.ones_like(noise),))[1],
        )

    (x, slopes), (points, mass), truth, exact = jax.device_get(
        run(scalars, jax.random.key(1))
    )
    assert abs(mass.sum() - 1) < 1e-4
    assert kolmogorov(x, points, mass) < 2.2
    assert deviation(slopes, truth) < LIMIT
    if exact is None:
        assert name in KEYED
        return

    with jax.enable_x64(False):
        x, *slopes = jax.device_get(single(scalars, noise.astype(np.float32)))
    assert x.dtype == np.float32
    assert np.all(np.isfinite(x))
    assert all(np.all(np.isfinite(slope)) for slope in jax.tree.leaves(slopes))
    assert name.startswith("Folded") or np.all(np.diff(x) >= 0)
    if "Gamma" not in name:  # NumPyro finds its quantiles by bisection
        size = np.abs(exact).max()
        np.testing.assert_allclose(x, exact, rtol=2e-3, atol=1e-6 * size)


@pytest.mark.parametrize("name", cases(MULTIVARIATE))
def test_multivariate_law_and_gradient(name):
    build, scalars = MULTIVARIATE[name]
    fn = build(**scalars)
    assert exogenous.reason_not_reparametrized(fn) == ""
    same = exogenous.noise_of(fn).kind == "key" and name != "EulerMaruyama"

    # Two programs: a single one can wait for itself forever in XLA's thread pool,
    # where batched triangular solves that do not depend on each other meet.
    ours, theirs = jax.random.split(jax.random.key(2))
    x, slopes = jax.device_get(
        jax.jit(lambda p, key: pathwise(build, p, key, 2 * DRAWS))(scalars, ours)
    )
    scored = jax.device_get(jax.jit(lambda p, x: by_score(build, p, x))(scalars, x))
    # A row that draws by fn.sample has its law.
    theirs = x if same else jax.jit(lambda k: fn.sample(k, (2 * DRAWS,)))(theirs)

    def moments(draws):
        flat = np.reshape(draws, (len(draws), -1))
        pairs = np.reshape(flat[:, :, None] * flat[:, None, :], (len(draws), -1))
        return mean_and_error(np.concatenate([flat, pairs], axis=1))

    (ours, error), (numpyros, their_error) = moments(x), moments(np.asarray(theirs))
    total = np.hypot(error, their_error)
    assert np.all(total < 0.05 * (1 + np.abs(ours)))
    assert np.all(np.abs(ours - numpyros) < LIMIT * total + 1e-9)
    # Both estimate the same slope from the same draws: their difference has mean 0.
    assert deviation(slopes - scored, 0.0, against=mean_and_error(slopes)) < LIMIT


# --- what is refused would have been wrong: more in test_refusals.py ----------------
MIXED = {
    "MixtureGeneral": (
        lambda p: dist.MixtureGeneral(
            dist.Categorical(jnp.array([p, 1 - p])),
            [dist.Normal(-1.0, 0.5), dist.Normal(1.0, 0.5)]),
        dict(p=0.4), "p"),
    "MixtureSameFamily": (
        lambda p: dist.MixtureSameFamily(
            dist.Categorical(jnp.array([p, 1 - p])),
            dist.Normal(jnp.array([-1.0, 1.0]), 0.5)),
        dict(p=0.4), "p"),
    "Bernoulli": (dist.Bernoulli, dict(probs=0.4), "probs"),
    "Poisson": (dist.Poisson, dict(rate=1.5), "rate"),
    "VonMises": (dist.VonMises, dict(loc=0.0, concentration=1.5), "concentration"),
    "HurdleLogNormal": (
        lambda gate: dist.HurdleLogNormal(gate, 0.3, 0.5), dict(gate=0.4), "gate"),
    "Categorical": (
        lambda p: dist.Categorical(jnp.array([p, 0.5 - p, 0.5])), dict(p=0.3), "p"),
    # What no one should register.
    "Detached": (lambda loc: Detached(loc, 0.5), dict(loc=0.3), "loc"),
}  # fmt: skip


class Detached(dist.Normal):
    def sample(self, key, sample_shape=()):
        return jax.lax.stop_gradient(super().sample(key, sample_shape))


@pytest.mark.parametrize("name", MIXED)
def test_what_is_refused_would_have_been_wrong(name):
    build, scalars, wrong = MIXED[name]
    assert exogenous.reason_not_reparametrized(build(**scalars))

    @jax.jit
    def run(p, key):
        x, slopes = pathwise(build, p, key, DRAWS)
        return slopes, by_score(build, p, x)

    slopes, scored = jax.device_get(run(scalars, jax.random.key(3)))
    which = list(scalars).index(wrong)
    value, error = mean_and_error((slopes - scored)[:, which])
    assert np.max(np.abs(value) / error) > LIMIT


@pytest.mark.parametrize(
    ("fn", "values", "probs"),
    [
        (dist.Bernoulli(0.3), [0, 1], [0.7, 0.3]),
        (dist.Bernoulli(logits=jnp.log(3.0)), [0, 1], [0.25, 0.75]),
        (dist.Bernoulli(jnp.array([0.0, 1.0])), [0, 1], [[1, 0], [0, 1]]),
        (dist.Categorical(jnp.array([0.5, 0.2, 0.3])), [0, 1, 2], [0.5, 0.2, 0.3]),
        (dist.Categorical(jnp.array([0.0, 0.6, 0.4, 0.0])), range(4), [0, 0.6, 0.4, 0]),
        (dist.Categorical(logits=jnp.log(jnp.array([[1.0, 3.0], [9.0, 1.0]]))),
         [0, 1], [[0.25, 0.75], [0.9, 0.1]]),
        (dist.DiscreteUniform(-1, 3), range(-1, 4), [0.2] * 5),
    ],
)  # fmt: skip
def test_a_law_of_a_few_values_has_a_quantile_function(fn, values, probs):
    """On evenly spaced uniforms each value has its share, whatever the wrapper."""
    count = 1000
    u = np.broadcast_to((np.arange(count) + 0.5) / count, (*fn.batch_shape, count)).T
    for wrapped in (fn, fn.mask(True), fn.to_event(len(fn.batch_shape))):
        assert exogenous.noise_of(wrapped, (count,)) == ("uniform", u.shape)
        x = np.asarray(exogenous.transform(wrapped, jnp.asarray(u), (count,)))
        assert x.dtype == fn.sample(jax.random.key(0)).dtype
        assert np.all(np.diff(x, axis=0) >= 0)
        found = np.stack([np.mean(x == v, axis=0) for v in values], axis=-1)
        np.testing.assert_allclose(found, probs, atol=1.5 / count)


def test_reasons_say_what_is_wrong():
    reason = exogenous.reason_not_reparametrized
    coin, normal = dist.Bernoulli(0.3), dist.Normal(jnp.zeros(2), 1.0)
    mixture = dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), normal)
    categorical = dist.CategoricalProbs(jnp.ones(2) / 2)
    assert reason(categorical) == "CategoricalProbs is discrete"
    assert reason(dist.GeometricProbs(0.3)) == "GeometricProbs is discrete"
    assert "mixing weights would be silently zero" in reason(mixture)
    with pytest.raises(ArgumentError, match="only one"):
        exogenous.register(Detached, transform=lambda d, z, s: z)
    unknown = "Detached is not a distribution this package knows"
    assert reason(Detached(0.0, 1.0)) == unknown
    for wrapped in (
        coin.expand((3,)),
        coin.expand((3,)).to_event(1),
        coin.mask(False),
        dist.TransformedDistribution(mixture, maps.ExpTransform()),
        mixture.expand((3,)),
    ):
        assert reason(wrapped) == reason(coin) or "weights" in reason(wrapped)
    heavy = dist.StudentT(3.0, 0.0, 1.0)
    assert "StudentT" in reason(dist.TruncatedDistribution(heavy, low=0.0))
    assert "Gamma" in reason(dist.GaussianCopula(dist.Gamma(2.0), jnp.eye(2)))
    coins = dist.Bernoulli(jnp.full(2, 0.4))
    assert "discrete" in reason(dist.GaussianCopula(coins, jnp.eye(2)))
    censored = dist.LeftCensoredDistribution(dist.Normal(), False)
    assert "do not follow" in reason(censored)
    start = coin.expand((2,)).to_event(1)
    walk = dist.EulerMaruyama(jnp.arange(3.0), lambda x, t: (x, 1.0), start)
    assert reason(walk) == "BernoulliProbs is discrete"


@pytest.mark.parametrize(
    "fn",
    [
        dist.ImproperUniform(constraints.real, (), ()),
        dist.ImproperUniform(constraints.real, (), ()).expand((3,)).to_event(1),
        dist.Unit(0.0),
    ],
)
def test_what_has_no_draws_is_a_model_error(fn):
    with pytest.raises(ModelError, match="has no draws"):
        exogenous.noise_of(fn)
    with pytest.raises(ModelError, match="has no draws"):
        exogenous.transform(fn, jax.random.key(0))


# --- wrappers and shapes -----------------------------------------------------------
ROWS = np.array([[0.0], [10.0], [20.0]])
WRAPPED = {
    "normal": lambda: dist.Normal(ROWS, 0.5).expand((2, 3, 4)),
    "uniform": lambda: dist.Uniform(ROWS, ROWS + 1).expand((3, 4)).expand((2, 3, 4)),
    "key": lambda: dist.Gamma(1 + ROWS).expand((2, 3, 4)),
    "inner": lambda: dist.Normal(np.zeros((1, 3)), 1.0).to_event(1).expand((4,)),
    "event": lambda: dist.MultivariateNormal(
        np.zeros((3, 1, 2)), scale_tril=_tril(0.5, 0.2)).expand((2, 3, 4)),
    "key event": lambda: dist.Dirichlet(
        np.array([[[0.5, 1.0]], [[2.0, 5.0]]])).expand((2, 3)),
    "transformed": lambda: dist.TransformedDistribution(
        dist.Gumbel(), maps.AffineTransform(ROWS, 0.5)).expand((3, 4))
        .mask(jnp.ones((3, 4), bool)).to_event(1).expand((2, 3)),
    "truncated": lambda: dist.TruncatedNormal(ROWS, 1.0, low=ROWS).expand((3, 4)),
    "discrete": lambda: dist.Bernoulli(
        np.full((3, 1), 0.5)).expand((2, 3, 4)).to_event(2),
    "folded": lambda: dist.FoldedDistribution(dist.Laplace(ROWS, 1.0)).expand((3, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_expanded_cells_are_independent_and_keep_their_place(name):
    fn = WRAPPED[name]()
    noise = exogenous.noise_of(fn, (1500,))
    plain = fn.base_dist if name in ("normal", "uniform", "truncated") else None
    if plain is not None:
        assert noise.shape == (1500, *fn.batch_shape)

    @jax.jit
    def run(key):
        ours, theirs = jax.random.split(key)
        return draw(fn, ours, (1500,)), fn.sample(theirs, (1500,))

    x, y = jax.device_get(run(jax.random.key(4)))
    assert x.shape == fn.shape((1500,)) == y.shape and x.dtype == y.dtype
    (ours, error), (theirs, other) = mean_and_error(x), mean_and_error(y)
    assert np.all(np.abs(ours - theirs) < LIMIT * np.hypot(error, other))
    ndim = len(fn.batch_shape)
    cells = np.moveaxis(x.reshape(1500, *fn.batch_shape, -1), -1, 1)[:, 0]
    cells = cells.reshape(1500, -1) if ndim else x.reshape(1500, -1)
    correlation = np.corrcoef(cells.T) - np.eye(cells.shape[1])
    assert np.max(np.abs(correlation)) < LIMIT / np.sqrt(1500)


def test_delta_has_no_noise():
    fn = dist.Delta(jnp.array([1.0, 2.0]), event_dim=1).expand((3,))
    assert exogenous.noise_of(fn, (4,)) == exogenous.Noise("none", ())
    value = exogenous.transform(fn, jnp.zeros(()), (4,))
    np.testing.assert_array_equal(value, np.broadcast_to([1.0, 2.0], (4, 3, 2)))
    assert exogenous.reason_not_reparametrized(fn) == ""
    assert lookup.boundary(fn) == ()


def test_noise_is_static_and_checked():
    fn = dist.Normal(jnp.zeros(3), 1.0)
    assert len({exogenous.noise_of(fn), exogenous.noise_of(fn)}) == 1
    jax.jit(lambda d, z: exogenous.transform(d, z))(fn, jnp.zeros(3))
    with pytest.raises(ArgumentError, match=r"shape \(2,\), expected \(3,\)"):
        exogenous.transform(fn, jnp.zeros(2))


def test_truncation_far_out_stays_inside():
    with jax.enable_x64(False):
        u = jnp.asarray([2.0**-24, 0.3, 1 - 2.0**-24])
        for sign in (1, -1):
            fn = dist.TwoSidedTruncatedDistribution(
                dist.Normal(0.0, 1.0), sign * 9.0 - 1, sign * 9.0 + 1
            )
            x = exogenous.transform(fn, u, (3,))
            assert np.all((x >= fn.low) & (x <= fn.high)) and len(set(x.tolist())) == 3
        x = exogenous.transform(dist.TruncatedNormal(0.0, 1.0, low=30.0), u, (3,))
        assert np.all(np.isfinite(x)) and np.all(x >= 30.0)


# --- density and boundary ----------------------------------------------------------
def test_density_takes_masks_off_and_keeps_the_rest():
    base = dist.Normal(jnp.zeros((3, 2)), 1.0)
    plain = base.to_event(1)
    assert type(lookup.density(plain)) is type(plain)
    masked = base.mask(False).to_event(1).mask(jnp.zeros(3, bool)).expand((4, 3))
    x = jax.random.normal(jax.random.key(0), (4, 3, 2))
    bare = lookup.density(masked)
    assert type(bare) is dist.ExpandedDistribution
    assert (bare.batch_shape, bare.event_shape) == ((4, 3), (2,))
    np.testing.assert_allclose(bare.log_prob(x), plain.log_prob(x))
    assert np.all(masked.log_prob(x) == 0)  # the argument is left alone
    moved = dist.TransformedDistribution(base.mask(False), maps.ExpTransform())
    wanted = dist.LogNormal(jnp.zeros((3, 2)), 1.0).log_prob(jnp.exp(x))
    np.testing.assert_allclose(lookup.density(moved).log_prob(jnp.exp(x)), wanted)


def test_density_ends_with_the_support_whatever_is_validated():
    off = dict(validate_args=False)
    half = dist.HalfNormal(1.0, **off)
    for fn in (
        dist.Uniform(0.0, 1.0, **off).expand((2,)).to_event(1),
        dist.TransformedDistribution(half, maps.AffineTransform(0.0, 2.0), **off),
        dist.MixtureGeneral(dist.Categorical(jnp.ones(2) / 2), [half, half], **off),
    ):
        outside = -jnp.ones(fn.shape())
        log_prob = jax.jit(lookup.density(fn).log_prob)
        assert np.isfinite(fn.log_prob(outside))
        assert log_prob(outside) == -jnp.inf and np.isfinite(log_prob(-outside / 2))


def _moves(fn_of, *values):
    """Which of the values the boundary depends on."""

    def ends(p):
        return [jnp.asarray(end, float) for end in lookup.boundary(fn_of(*p))]

    jacobians = jax.jacfwd(ends)(values)
    return tuple(any(np.any(j[i] != 0) for j in jacobians) for i in range(len(values)))


def _pushed(base, *steps):
    return dist.TransformedDistribution(base, list(steps))


_affine, _squeeze = maps.AffineTransform, maps.SigmoidTransform()
# Name: (law of some numbers, the numbers, which of them move a jump of its density).
MOVES = {
    "uniform": (dist.Uniform, (0.0, 1.0), (True, True)),
    "log-uniform": (dist.LogUniform, (0.5, 1.0), (True, True)),
    "Pareto": (dist.Pareto, (0.5, 2.0), (True, False)),
    "truncated normal": (
        lambda a, b: dist.TruncatedNormal(a, 1.0, low=b), (0.0, 1.0), (False, True)),
    "truncated gamma": (
        lambda a: dist.TruncatedGamma(a, 1.0, high=2.0), (1.5,), (False,)),
    "rate of an exponential": (
        lambda a: _pushed(dist.Exponential(a), _affine(0.0, 1.0)), (1.0,), (False,)),
    "place of an exponential": (
        lambda a: _pushed(dist.Exponential(1.0), _affine(a, 1.0)), (0.0,), (True,)),
    "place of a normal": (
        lambda a: _pushed(dist.Normal(), _affine(a, 1.0)), (0.0,), (False,)),
    "copula": (
        lambda a: dist.GaussianCopula(dist.Uniform(a, 2.0), jnp.eye(2)), (0.0,),
        (True,)),
    "wrapped": (
        lambda a: dist.Uniform(a, 1.0).expand((3,)).mask(True).to_event(1), (0.0,),
        (True,)),
    "start of a walk": (
        lambda a: dist.EulerMaruyama(
            jnp.arange(3.0), lambda x, t: (x, 1.0), dist.Uniform(a, 1.0)),
        (0.0,), (True,)),
    # A gamma density leaves zero continuously if its concentration exceeds one.
    "gamma of three": (
        lambda a: _pushed(dist.Gamma(3.0), _affine(a, 1.0)), (0.0,), (False,)),
    "gamma of one": (
        lambda a: _pushed(dist.Gamma(1.0), _affine(a, 1.0)), (0.0,), (True,)),
    # A heavy tail squeezed into an interval may pile up at its ends, a normal may not.
    "squeezed normal": (
        lambda a: _pushed(dist.Normal(), _squeeze, _affine(a, 1.0)), (0.0,), (False,)),
    "squeezed logistic": (
        lambda a: _pushed(dist.Logistic(), _squeeze, _affine(a, 1.0)), (0.0,), (True,)),
    # Of a class that is not known, anything may move a jump.
    "unknown": (Detached, (0.0, 1.0), (True, True)),
}  # fmt: skip


@pytest.mark.parametrize(("law", "values", "moves"), MOVES.values(), ids=MOVES)
def test_boundary_finds_what_moves_a_jump(law, values, moves):
    assert _moves(law, *values) == moves


def test_most_laws_have_no_boundary():
    laws = (
        dist.Normal(), dist.Exponential(1.0), dist.HalfNormal(1.0), dist.Beta(1.0, 1.0),
        dist.Laplace(0.0, 1.0), dist.LogNormal(0.0, 1.0), dist.Levy(0.0, 1.0),
        dist.FoldedDistribution(dist.Normal()), dist.Poisson(1.0),
        dist.VonMises(0.0, 1.0),
    )  # fmt: skip
    assert [lookup.boundary(fn) for fn in laws] == [()] * len(laws)


# --- registering ----------------------------------------------------------------------
def test_registering_a_class_with_a_key():
    @exogenous.register(boundary=("low",))
    class Shifted(dist.Distribution):
        arg_constraints = {"low": constraints.real}
        reparametrized_params = ["low"]

        def __init__(self, low):
            self.low = low
            super().__init__(jnp.shape(low), ())

        @constraints.dependent_property(is_discrete=False, event_dim=0)
        def support(self):
            return constraints.greater_than(self.low)

        def sample(self, key, sample_shape=()):
            return self.low + jax.random.exponential(key, self.shape(sample_shape))

    fn = Shifted(jnp.array([[1.0], [5.0]])).expand((2, 3)).to_event(1)
    assert exogenous.reason_not_reparametrized(fn) == ""
    assert exogenous.noise_of(fn, (4,)) == exogenous.Noise("key", ())
    x = exogenous.transform(fn, jax.random.key(0), (4,))
    assert x.shape == (4, 2, 3) and np.all(x[:, 1] > 5) and np.unique(x).size == 24
    assert _moves(lambda a: Shifted(a).expand((3,)), 1.0) == (True,)

    class Derived(Shifted):
        pass

    assert "not a distribution" in exogenous.reason_not_reparametrized(Derived(0.0))


def test_registering_a_class_with_explicit_noise():
    class Cubed(dist.Distribution):
        arg_constraints = {"scale": constraints.positive}
        support = constraints.real

        def __init__(self, scale):
            self.scale = scale
            super().__init__(jnp.shape(scale), ())

    assert exogenous.register(
        Cubed,
        base_noise=lambda d, s: exogenous.Noise("normal", s + d.batch_shape),
        transform=lambda d, z, s: d.scale * z**3,
    )
    fn = Cubed(jnp.array([1.0, 2.0])).expand((3, 2)).to_event(1)
    assert exogenous.noise_of(fn, (4,)) == exogenous.Noise("normal", (4, 3, 2))
    z = jax.random.normal(jax.random.key(0), (4, 3, 2))
    x = exogenous.transform(fn, z, (4,))
    np.testing.assert_allclose(x, jnp.array([1.0, 2.0]) * z**3)
    assert lookup.boundary(fn) == ()


# --- completeness ------------------------------------------------------------------
NOT_A_LAW = {"Distribution", "ImproperUniform", "Unit"}
WRAPPERS = set(
    """Delta ExpandedDistribution Independent MaskedDistribution
    TransformedDistribution""".split()
)
REFUSED = set(
    """GaussianCopulaBeta HurdleGamma HurdleLogNormal HurdleLogits HurdleProbs
    IntervalCensoredDistribution LeftCensoredDistribution MixtureGeneral
    MixtureSameFamily RightCensoredDistribution
    SineBivariateVonMises SineSkewed TruncatedPolyaGamma VonMises""".split()
)
DISCRETE = set(
    """BernoulliLogits BernoulliProbs BetaBinomial BetaNegativeBinomial BinomialLogits
    BinomialProbs CategoricalLogits CategoricalProbs DirichletMultinomial
    DiscreteUniform GammaPoisson GeometricLogits GeometricProbs HurdlePoisson
    MultinomialLogits MultinomialProbs NegativeBinomial2 NegativeBinomialLogits
    NegativeBinomialProbs OrderedLogistic Poisson ZeroInflatedLogits
    ZeroInflatedPoisson ZeroInflatedProbs""".split()
)


def test_every_class_numpyro_exports_has_a_place():
    classes = {name: cls for name, cls in vars(dist).items() if isinstance(cls, type)}
    exported = {n for n, cls in classes.items() if issubclass(cls, dist.Distribution)}
    rows = (UNIVARIATE | MULTIVARIATE).values()
    tested = {type(build(**scalars)).__name__ for build, scalars in rows}
    tested.add("LKJCholesky")
    groups = [tested - WRAPPERS, WRAPPERS, NOT_A_LAW, REFUSED, DISCRETE]
    assert set().union(*groups) == exported
    assert sum(map(len, groups)) == len(exported)


def test_sizes_may_be_numpy_arrays() -> None:
    noise = exogenous.noise_of(dist.Normal(0, 1).expand([np.array(3)]))
    assert noise == exogenous.Noise("normal", (3,))
    assert type(noise.shape[0]) is int
    with pytest.raises(ModelError, match=r"Normal has the sizes \(2.7,\): use whole"):
        exogenous.noise_of(dist.Normal(0, 1), (2.7,))


def test_a_mixture_with_an_atom_has_no_density() -> None:
    """NumPyro adds the probability of the Delta to the densities of the others."""
    half = dist.Categorical(probs=jnp.array([0.5, 0.5]))

    def law(*components):
        return dist.MixtureGeneral(half, list(components), support=constraints.real)

    spike, slab = dist.Delta(0.0), dist.Normal(0.0, 1.0)
    assert not lookup.has_law(law(spike, slab).expand((3,)).to_event(1))
    assert "Delta" in exogenous.reason_not_reparametrized(law(spike, slab))
    assert lookup.has_law(law(slab, slab))
    assert "weights" in exogenous.reason_not_reparametrized(law(slab, slab))
    same = dist.MixtureSameFamily(half, dist.Delta(jnp.arange(2.0)))
    assert not lookup.has_law(same.expand((3,)))
