# SPDX-License-Identifier: Apache-2.0
"""Quantised and clipped distributions against SciPy."""

import functools

from methods import rest_slow, slow
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_ndtr, logsumexp

import jax
import jax.numpy as jnp

import numpyro.distributions as dist
from numpyro.distributions import constraints

from helpers import assert_within
from numpyro_infograd.distributions import Clipped, Quantized
from numpyro_infograd.errors import ArgumentError


class Mixture:
    """A mixture of two normal distributions, by SciPy."""

    logcdf = staticmethod(lambda x: _mixed("logcdf", x))
    logpdf = staticmethod(lambda x: _mixed("logpdf", x))
    logsf = staticmethod(lambda x: _mixed("logsf", x))
    cdf = staticmethod(lambda x: np.exp(_mixed("logcdf", x)))


def _mixed(kind, x):
    parts = [getattr(fn, kind)(x) for fn in (stats.norm(0.3, 1.0), stats.norm(2, 0.5))]
    return np.logaddexp(parts[0] + np.log(0.4), parts[1] + np.log(0.6))


# Name: (parameters -> distribution, the parameters, the same in SciPy).
BASES = {
    "Cauchy": (dist.Cauchy, dict(loc=0.3, scale=0.8), stats.cauchy(0.3, 0.8)),
    "Exponential": (dist.Exponential, dict(rate=1.3), stats.expon(0, 1 / 1.3)),
    "Gamma": (
        dist.Gamma, dict(concentration=2.5, rate=1.2), stats.gamma(2.5, 0, 1 / 1.2)),
    "HalfNormal": (dist.HalfNormal, dict(scale=0.8), stats.halfnorm(0, 0.8)),
    "Laplace": (dist.Laplace, dict(loc=0.3, scale=0.8), stats.laplace(0.3, 0.8)),
    "LogNormal": (
        dist.LogNormal, dict(loc=0.3, scale=0.8), stats.lognorm(0.8, 0, np.exp(0.3))),
    "Logistic": (dist.Logistic, dict(loc=0.3, scale=0.8), stats.logistic(0.3, 0.8)),
    "Mixture": (
        lambda loc, share: dist.MixtureSameFamily(
            dist.Categorical(jnp.stack([share, 1 - share])),
            dist.Normal(jnp.stack([loc, 2.0]), jnp.array([1.0, 0.5]))),
        dict(loc=0.3, share=0.4), Mixture),
    "Normal": (dist.Normal, dict(loc=0.3, scale=0.8), stats.norm(0.3, 0.8)),
    "SoftLaplace": (
        dist.SoftLaplace, dict(loc=0.3, scale=0.8), stats.hypsecant(0.3, 0.8)),
    "StudentT": (
        functools.partial(dist.StudentT, 3.0), dict(loc=0.3, scale=0.8),
        stats.t(3.0, 0.3, 0.8)),
    "Uniform": (dist.Uniform, dict(low=-1.0, high=2.5), stats.uniform(-1.0, 3.5)),
    "Weibull": (
        dist.Weibull, dict(scale=0.8, concentration=1.6),
        stats.weibull_min(1.6, 0, 0.8)),
    "Gumbel": (dist.Gumbel, dict(loc=0.3, scale=0.6), stats.gumbel_r(0.3, 0.6)),
}  # fmt: skip
SLOW = "Gamma Gumbel HalfNormal LogNormal SoftLaplace StudentT Weibull".split()
NAMES = [slow(n) if n in SLOW else n for n in BASES]
FAR = ("Cauchy", "Exponential", "Laplace", "LogNormal", "Logistic", "Normal")
EDGES = np.array([-1.3, -0.4, 0.25, 0.7, 0.71, 2.0, 2.4])
CELLS = np.arange(len(EDGES) + 1)


def log_masses(truth, edges):
    """log P of every cell, by quadrature of the log density and by SciPy's tails."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    found = [truth.logcdf(edges[0])]
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        ends = np.linspace(a, b, 2001)
        half, middle = np.diff(ends)[:, None] / 2, (ends[1:] + ends[:-1])[:, None] / 2
        log_p = truth.logpdf(middle + half * nodes)
        found.append(logsumexp(log_p + np.log(weights * half)))
    return np.array([*found, truth.logsf(edges[-1])])


def evaluate(name, p):
    """log P of all cells; log densities of a clipped variable, the bounds first."""
    build, names = BASES[name][0], BASES[name][1]
    base = build(**{k: p[k] for k in names})
    clipped = Clipped(base, p["least"], p["most"])
    at = jnp.stack([p["least"], p["most"], 0.4, 0.9])
    cells = Quantized(base, EDGES + p["shift"]).log_prob(CELLS)
    return jnp.concatenate([cells, clipped.log_prob(at)])


@functools.cache
def values_and_slopes(name):
    """Values, derivatives and central differences, in double precision."""
    point = BASES[name][1] | {"shift": 0.0, "least": 0.2, "most": 1.1}
    center = np.array([*point.values()])

    def fn(v):
        return evaluate(name, dict(zip(point, v, strict=True)))

    steps = 1e-5 * np.concatenate([np.eye(len(center)), -np.eye(len(center))])
    moved = jax.jit(jax.vmap(fn))(np.concatenate([[center], center + steps]))
    up, down = np.split(np.asarray(moved[1:]), 2)
    with np.errstate(invalid="ignore"):  # -inf minus -inf
        truth = (up - down) / 2e-5
    mode = jax.jacfwd if name == "Laplace" else jax.jacrev
    slopes = np.asarray(jax.jit(mode(fn))(center))
    return np.asarray(moved[0]), slopes.T, truth


# --- Quantized and Clipped ------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_probabilities(name, x64) -> None:
    """Of cells, and of the bounds of a clipped variable."""
    cells, clipped = np.split(values_and_slopes(name)[0], [8])
    truth = BASES[name][2]
    np.testing.assert_allclose(np.exp(cells).sum(), 1.0, rtol=1e-12)
    inside = truth.logpdf(np.array([0.4, 0.9]))
    expected = [truth.logcdf(0.2), truth.logsf(1.1), *inside]
    np.testing.assert_allclose(clipped, expected, rtol=1e-9)
    if truth.cdf(EDGES[0]) > 0:
        np.testing.assert_allclose(cells, log_masses(truth, EDGES), rtol=1e-9)
    else:  # the distribution starts inside a cell
        cdf = np.concatenate([[0.0], truth.cdf(EDGES), [1.0]])
        np.testing.assert_allclose(np.exp(cells), np.diff(cdf), atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives(name, x64) -> None:
    """In every parameter, in the edges and in the bounds, against differences."""
    values, found, truth = values_and_slopes(name)
    assert np.all(np.isfinite(found))
    keep = values > -30
    for slope, difference in zip(found[:, keep], truth[:, keep], strict=True):
        bound = dict(rtol=2e-6, atol=2e-7)
        np.testing.assert_allclose(slope, difference, **bound)
        with pytest.raises(AssertionError):  # a wrong sign fails
            np.testing.assert_allclose(-slope, difference, **bound)


@pytest.mark.parametrize("name", FAR)
@rest_slow("dtype", [np.float32, np.float64])
def test_far_cells_keep_their_digits(name, dtype) -> None:
    build, point, truth = BASES[name]
    edges = np.array([-40.0, -39.0, -12.0, -11.9, 0.3, 12.0, 12.1, 37.0, 39.0, 60.0])
    if name in ("Exponential", "LogNormal"):
        edges = np.array([1e-3, 1e-2, 0.5, 1.0, 2.0, 90.0, 100.0])
    edges = edges.astype(dtype)
    with jax.enable_x64(dtype is np.float64):
        run = jax.jit(
            lambda p, e: Quantized(build(**p), e).log_prob(np.arange(len(e) + 1))
        )
        found = np.asarray(run(point, edges))
        assert found.dtype == dtype
    rtol = 3e-6 if dtype is np.float32 else 1e-11
    expected = log_masses(truth, edges.astype(float))
    keep = np.isfinite(expected)
    np.testing.assert_allclose(found[keep], expected[keep], rtol=rtol, atol=rtol)


@rest_slow("dtype", [np.float32, np.float64])
def test_far_half_lines_have_no_gap(dtype) -> None:
    """Also where erfc is a subnormal number: at 13 and at 37.6 deviations."""
    with jax.enable_x64(dtype is np.float64):
        at = jnp.linspace(5, 60, 4001, dtype=dtype)
        above = jax.vmap(lambda e: Quantized(dist.Normal(0, 1), e[None]).log_prob(1))
        found = np.asarray(above(at))
        slope = jax.vmap(jax.grad(lambda e: above(e[None])[0]))(at)
    truth = log_ndtr(-np.asarray(at, float))
    rtol = 1e-6 if dtype is np.float32 else 1e-14
    np.testing.assert_allclose(found, truth, rtol=rtol)
    ratio = np.exp(stats.norm.logpdf(np.asarray(at, float)) - truth)
    np.testing.assert_allclose(slope, -ratio, rtol=max(rtol, 1e-11))


def test_plain_differences_fail_the_same_comparison() -> None:
    """The negative control: beyond eight deviations a cdf in single precision is 1."""
    fn, edges = dist.Normal(0.3, 0.8), jnp.array([12.0, 12.1])
    plain = jnp.log(fn.cdf(edges[1]) - fn.cdf(edges[0]))
    truth = log_masses(stats.norm(0.3, 0.8), np.array([12.0, 12.1]))[1]
    assert not np.isclose(plain, truth, rtol=0.1)
    assert np.isclose(Quantized(fn, edges).log_prob(1), truth, rtol=3e-6)


@rest_slow("name", ["Normal", *(n for n in BASES if n != "Normal")])
def test_derivatives_are_finite_everywhere(name) -> None:
    """At saturation, in single precision, in every parameter and edge."""
    build, point, _ = BASES[name]

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def both(p, edges, k):
        quantized = jax.grad(lambda p, e: Quantized(build(**p), e).log_prob(k), (0, 1))
        ends = edges[0], edges[0] + 1.0
        clipped = jax.grad(
            lambda p, lo, hi: Clipped(build(**p), lo, hi).log_prob(
                jax.lax.stop_gradient(jnp.where(k == 0, lo, hi))
            ),
            (0, 1, 2),
        )
        return quantized(p, edges), clipped(p, *ends)

    at = np.array([-1e6, -1e3, -60.0, -9.0, -1.0, 0.0, 0.3, 1.0, 9.0, 60.0, 1e3, 1e6])
    pairs = [(a, b) for a in at for b in at if a < b]
    edges = np.repeat(np.array(pairs, np.float32), 3, axis=0)
    found = both(point, edges, np.tile(np.arange(3), len(pairs)))
    for leaf in jax.tree.leaves(found):
        assert np.all(np.isfinite(leaf))


@pytest.mark.slow
def test_a_cell_without_probability_has_log_minus_infinity() -> None:
    fn = Quantized(dist.Uniform(0.0, 1.0), [-1.0, 0.5, 2.0, 3.0])
    np.testing.assert_allclose(fn.probs, [0.0, 0.5, 0.5, 0.0, 0.0])
    assert np.isneginf(fn.log_prob(np.array([0, 3, 4]))).all()
    np.testing.assert_allclose(fn.entropy(), np.log(2), rtol=1e-6)
    silent = Quantized(dist.Normal(), [0.0], validate_args=False)
    assert np.isneginf(silent.log_prob(np.array([-1, 2]))).all()
    assert np.isneginf(silent.log_prob(np.array([0.5])))
    with pytest.warns(UserWarning, match="Out-of-support"):
        assert np.isneginf(Quantized(dist.Normal(), [0.0]).log_prob(2))


def test_levels_are_the_values(x64) -> None:
    levels = np.array([1.5, -1.5, 0.25])  # in any order
    fn = Quantized(dist.Normal(0.2, 1.0), [-0.5, 0.7], levels)
    plain = Quantized(dist.Normal(0.2, 1.0), [-0.5, 0.7])
    np.testing.assert_array_equal(fn.log_prob(levels), plain.log_prob(np.arange(3)))
    draws = np.asarray(fn.sample(jax.random.key(0), (4000,)))
    assert set(draws) == set(levels)
    p = np.asarray(fn.probs)
    for level, share in zip(levels, p, strict=True):
        error = np.sqrt(share * (1 - share) / 4000)
        assert abs(np.mean(draws == level) - share) < 4 * error
    np.testing.assert_allclose(fn.mean, p @ levels)
    np.testing.assert_allclose(fn.variance, p @ levels**2 - (p @ levels) ** 2)
    np.testing.assert_allclose(fn.cdf(0.3), p[1] + p[2])
    np.testing.assert_allclose(plain.cdf(np.array([-1, 0, 0.5, 2])), [0, p[0], p[0], 1])
    np.testing.assert_allclose(fn.entropy(), stats.entropy(p))
    assert fn.mode == levels[np.argmax(p)] and plain.mode == np.argmax(p)
    np.testing.assert_array_equal(fn.enumerate_support(), levels)
    assert fn.support(levels).all() and not fn.support(0.0)
    assert fn.support == fn.support and fn.support != plain.support
    assert fn.support.feasible_like(np.zeros(2)).shape == (2,)
    assert plain.support == constraints.integer_interval(0, 2)
    silent = Quantized(dist.Normal(), [0.0], [-1.0, 1.0], validate_args=False)
    assert np.isneginf(silent.log_prob(0.5))


def shapes(fn, value):
    """Shapes of what a distribution gives, without computing it."""

    def run(d, value):
        wide = d.expand((4, *d.batch_shape)).to_event(1)
        found = [d.log_prob(value), d.mean, d.variance, d.cdf(value)]
        return [d.sample(jax.random.key(0), (50,)), *found, wide.log_prob(value[:4])]

    return [x.shape for x in jax.eval_shape(run, fn, value)]


def test_quantized_shapes() -> None:
    base = dist.Normal(np.array([[0.0], [1.0]]), np.array([0.5, 1.0, 2.0]))
    edges = np.stack([EDGES, EDGES + 1, EDGES + 2])  # for each of the last axis

    @jax.jit
    def run(fn):
        draws = fn.sample(jax.random.key(0), (50,))
        both = fn.log_prob(draws).sum(-1), fn.to_event(1).log_prob(draws)
        return draws, fn.probs, *both, fn.cdf(7)

    for each in (EDGES, edges):
        fn = Quantized(base, each)
        assert fn.batch_shape == (2, 3) and fn.event_shape == ()
        whole, batch = (50, 2, 3), (2, 3)
        assert shapes(fn, np.zeros(whole, int)) == [
            *(whole, whole, batch, batch, whole, (4, 2))
        ]
        assert fn.enumerate_support().shape == (8, 2, 3)
        assert fn.enumerate_support(expand=False).shape == (8, 1, 1)
        draws, probs, one, other, last = jax.device_get(run(fn))
        assert draws.dtype == jnp.result_type(int) and draws.max() <= 7
        np.testing.assert_allclose(one, other, rtol=1e-6)
        np.testing.assert_allclose(last, np.ones((2, 3)), rtol=1e-6)
    # Each of the last axis has its own edges.
    alone = Quantized(dist.Normal(np.array([0.0, 1.0]), 2.0), edges[2])
    np.testing.assert_allclose(
        probs[:, 2], jax.jit(lambda d: d.probs)(alone), rtol=1e-5
    )
    levels = np.array([[0.0, 1.0], [5.0, 6.0]])
    fn = Quantized(dist.Normal(), [0.0], levels)
    assert fn.batch_shape == (2,) and fn.enumerate_support(False).shape == (2, 2)
    np.testing.assert_allclose(fn.mean, [0.5, 5.5])
    np.testing.assert_allclose(fn.log_prob(levels[:, 0]), np.log([0.5, 0.5]))
    # An expanded base is drawn independently.
    fn = Quantized(dist.Normal().expand((5000,)), [0.0])
    assert abs(float(fn.sample(jax.random.key(1)).mean()) - 0.5) < 0.03


@pytest.mark.slow
def test_quantized_under_transformations(x64) -> None:
    locs = np.linspace(-1.0, 1.0, 4)

    def log_prob(loc, edges):
        return Quantized(dist.Normal(loc, 1.0), edges).log_prob(1)

    truth = stats.norm.cdf(EDGES[1] - locs) - stats.norm.cdf(EDGES[0] - locs)
    found = jax.vmap(log_prob, (0, None))(locs, EDGES)
    np.testing.assert_allclose(found, np.log(truth), rtol=1e-12)
    found = jax.jit(log_prob)(locs, EDGES)
    np.testing.assert_allclose(found, np.log(truth), rtol=1e-12)
    moved = jax.vmap(log_prob)(locs, EDGES + locs[:, None])
    same = stats.norm.cdf(EDGES[1]) - stats.norm.cdf(EDGES[0])
    np.testing.assert_allclose(moved, np.full(4, np.log(same)), rtol=1e-12)
    # Distributions pass through transformations as pytrees.
    many = jax.vmap(lambda loc: Quantized(dist.Normal(loc, 1.0), EDGES))(locs)
    found = jax.jit(jax.vmap(lambda d: d.log_prob(1)))(many)
    np.testing.assert_allclose(found, np.log(truth), rtol=1e-12)


# --- Clipped --------------------------------------------------------------------------
@pytest.mark.parametrize("bounds", [(0.2, None), (None, 1.1), (0.2, 1.1)])
def test_a_clipped_variable_has_probability_one(bounds) -> None:
    low, high = bounds
    fn = Clipped(dist.Logistic(0.3, 0.8), low, high)
    left, right = -30.0 if low is None else low, 30.0 if high is None else high
    edges = np.linspace(left, right, 20_001)
    v = 0.5 * (edges[1:] + edges[:-1])
    atoms = [float(fn.log_prob(b)) for b in bounds if b is not None]
    inside = np.asarray(fn.log_prob(v), float)
    assert abs(np.exp(inside).sum() * (v[1] - v[0]) + np.exp(atoms).sum() - 1) < 1e-5
    truth = stats.logistic(0.3, 0.8)
    np.testing.assert_allclose(fn.cdf(v), truth.cdf(v), rtol=1e-5)
    assert fn.cdf(right + 40.0) == 1.0
    assert low is None or fn.cdf(low - 1e-6) == 0.0


def test_clipped_far_atoms() -> None:
    for loc in (-50.0, 50.0):
        fn = Clipped(dist.Normal(loc, 0.1), -3.0, 3.0)
        expected = [stats.norm.logcdf(-3.0, loc, 0.1), stats.norm.logsf(3.0, loc, 0.1)]
        found = fn.log_prob(np.array([-3.0, 3.0]))
        np.testing.assert_allclose(found, expected, rtol=3e-6, atol=1e-30)


def test_values_outside_of_the_bounds_have_no_density() -> None:
    fn = Clipped(dist.Normal(), -1.0, 1.0, validate_args=False)
    assert np.isneginf(fn.log_prob(np.array([-1.1, 1.1]))).all()
    slope = jax.grad(lambda m: Clipped(dist.Normal(m), 0.0, 1.0).log_prob(-1.0).sum())
    with pytest.warns(UserWarning, match="Out-of-support"):
        assert slope(0.0) == 0.0
    with pytest.warns(UserWarning, match="Out-of-support"):
        assert np.isneginf(Clipped(dist.Normal(), -1.0, 1.0).log_prob(2.0))


def test_clipped_moments_and_draws(x64) -> None:
    loc = np.array([-2.0, 0.4, 3.0])
    for bounds in ((0.0, 1.0), (0.0, None), (None, 1.0)):
        fn = Clipped(dist.Normal(loc, 0.7), *bounds)
        x = loc + 0.7 * np.linspace(-10, 10, 200_001)[:, None]
        w = stats.norm.pdf(x, loc, 0.7) * (x[1] - x[0])
        y = np.clip(x, *bounds)
        mean = (w * y).sum(0)
        np.testing.assert_allclose(fn.mean, mean, atol=1e-7)
        np.testing.assert_allclose(fn.variance, (w * (y - mean) ** 2).sum(0), atol=1e-7)
        draws = fn.sample(jax.random.key(0), (20_000,))
        assert draws.shape == (20_000, 3)
        assert_within(
            draws.mean(0), draws.std(0) / 141.0, mean, max_standard_error=0.01
        )
        for bound, q in zip(bounds, (0.001, 0.999), strict=True):
            if bound is not None:
                assert fn.icdf(q)[1] == bound
    with pytest.raises(NotImplementedError, match="clipped Laplace"):
        print(Clipped(dist.Laplace(), 0.0).mean)


def test_clipped_shapes() -> None:
    fn = Clipped(dist.Normal(np.zeros((2, 1))), np.array([-1.0, 0.0, 0.5]), 1.0)
    assert fn.batch_shape == (2, 3) and fn.event_shape == ()
    assert shapes(fn, np.zeros((50, 2, 3))) == [
        *((50, 2, 3), (50, 2, 3), (2, 3), (2, 3), (50, 2, 3), (4, 2))
    ]
    many = jax.vmap(lambda b: Clipped(dist.Normal(), b))(np.array([-1.0, 0.0]))
    found = jax.jit(jax.vmap(lambda d: d.log_prob(d.low)))(many)
    np.testing.assert_allclose(found, stats.norm.logcdf([-1.0, 0.0]), rtol=1e-5)
    assert fn.support == fn.support and fn.support != Clipped(dist.Normal(), 0).support
    assert fn.support(fn.support.feasible_like(np.zeros((2, 3)))).all()
    one_sided = Clipped(dist.Normal(), high=1.0).support
    assert one_sided.feasible_like(np.zeros(2)).tolist() == [1.0, 1.0]


# --- arguments ------------------------------------------------------------------------

N = dist.Normal(0.0, 1.0)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Quantized(3.0, [0.0]), "base of Quantized must be a NumPyro distrib"),
        (lambda: Quantized(dist.Poisson(3.0), [0.0]), "continuous, got Poisson"),
        (lambda: Quantized(dist.Levy(0.0, 1.0).to_event(0), []), "at least one number"),
        (lambda: Clipped(N.expand((3,)).to_event(1), 0.0), "univariate, got Indep"),
        (lambda: Clipped(dist.VonMises(0.0, 1.0), 0.0), "VonMises has none"),
        (lambda: Quantized(N, [1.0, 0.0]), "strictly increasing"),
        (lambda: Quantized(N, [0.0, 0.0]), "strictly increasing"),
        (lambda: Quantized(N, 0.0), "at least one number"),
        (lambda: Quantized(N, [0.0, np.inf]), "edges must be finite real numbers"),
        (lambda: Quantized(N, "abc"), "edges must be finite real numbers"),
        (lambda: Quantized(N, [[0.0], [1.0, 2.0]]), "edges must be finite real"),
        (lambda: Quantized(N, [1j]), "edges must be finite real numbers"),
        (lambda: Quantized(N, [0.0], [1.0]), "the last axis must have size 2"),
        (lambda: Quantized(N, [0.0], [1.0, 1.0]), "levels must differ"),
        (
            lambda: Quantized(dist.Normal(np.zeros(3)), np.array([[0.0], [1.0]])),
            "base, edges and levels, .* do not broadcast",
        ),
        (lambda: Clipped(N), "Clipped needs low or high, got neither"),
        (lambda: Clipped(N, 1.0, 1.0), "low must be below high"),
        (lambda: Clipped(N, np.inf), "low must be finite real numbers"),
        (lambda: Clipped(N, high=np.nan), "high must be finite real numbers"),
        (lambda: Clipped(N, np.zeros(2), np.ones(3)), "do not broadcast"),
    ],
)
def test_wrong_arguments(build, message) -> None:
    with pytest.raises(ArgumentError, match=message):
        build()


@pytest.mark.slow
def test_traced_arguments_are_not_checked() -> None:
    def log_prob(edges, low):
        a = Quantized(dist.Normal(), edges).log_prob(0)
        return a + Clipped(dist.Normal(), low, 1.0).log_prob(low)

    assert np.isfinite(jax.jit(log_prob)(np.array([0.0, 1.0]), 0.0))
