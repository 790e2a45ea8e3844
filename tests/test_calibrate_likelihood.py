# SPDX-License-Identifier: Apache-2.0
"""Twins fitted by likelihood, against maximum likelihood by sums and quadrature."""

import functools

from methods import rest_slow
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.signal import lfilter
from scipy.special import gammaln, logsumexp
from scipy.stats import exponnorm, norm, poisson

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from helpers import quiet
import numpyro_infograd as ig
from numpyro_infograd._calibrate.inference import find_directions
from numpyro_infograd._calibrate.likelihood import Likelihood, draw_sets, spread
from numpyro_infograd._noise import NoiseSource
from numpyro_infograd.distributions import Clipped, Quantized
from numpyro_infograd.exogenous import Noise

EDGES = np.linspace(-1.5, 1.5, 7)  # a converter of three bits
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
LOG_WEIGHTS = np.log(WEIGHTS / WEIGHTS.sum())


def positive(name, start):
    return numpyro.param(name, start, constraint=constraints.positive)


def counts() -> None:
    """Counts whose rate varies from recording to recording."""
    z = numpyro.sample("z", dist.Normal(0, 1))
    rate = jnp.exp(numpyro.param("m", 0.0) + positive("s", 1.0) * z)
    numpyro.sample("y", dist.Poisson(rate))


def counts_log_prob(theta, y):
    values, number = np.unique(y, return_counts=True)
    log_rate = theta[0] + np.exp(theta[1]) * NODES
    terms = values[:, None] * log_rate - np.exp(log_rate) - gammaln(values + 1)[:, None]
    return number @ logsumexp(terms + LOG_WEIGHTS, axis=1)


def converter() -> None:
    numpyro.sample("y", Quantized(dist.Normal(0, positive("s", 1.0)), EDGES))


def converter_log_prob(theta, y):
    cdf = np.concatenate([[0.0], norm.cdf(EDGES / np.exp(theta[0])), [1.0]])
    return np.bincount(y.astype(int), minlength=8) @ np.log(np.diff(cdf))


def clipped() -> None:
    base = dist.Normal(numpyro.param("m", 0.0), positive("s", 1.0))
    numpyro.sample("y", Clipped(base, low=0.0, high=2.0))


def clipped_log_prob(theta, y):
    m, s = theta[0], np.exp(theta[1])
    inside = np.where((y > 0) & (y < 2), norm.logpdf(y, m, s), 0.0)
    low, high = norm.logcdf(0, m, s), norm.logsf(2, m, s)
    return np.sum(inside + np.where(y <= 0, low, 0) + np.where(y >= 2, high, 0))


def best(log_prob, y, theta):
    """Maximum likelihood and its standard errors from the observed information."""
    options = {"xatol": 1e-6, "fatol": 1e-8, "maxiter": 4000}

    def lost(theta):
        return -log_prob(theta, y)

    end = minimize(lost, theta, method="Nelder-Mead", options=options).x
    steps = 1e-3 * np.eye(len(theta))
    bends = [
        [lost(end + i + j) - lost(end + i - j) - lost(end - i + j) + lost(end - i - j)
         for i in steps]
        for j in steps
    ]  # fmt: skip
    return end, 2e-3 * np.sqrt(np.diag(np.linalg.inv(bends)))


SCALES = ("s", "rate")


def free(twin, names):
    """Parameters and errors in the coordinates of `best`: logarithms of scales."""
    values = {n: float(twin.params[n]) for n in names}
    errors = {n: float(twin.standard_error[n]) for n in names}
    x = [np.log(values[n]) if n in SCALES else values[n] for n in names]
    e = [errors[n] / values[n] if n in SCALES else errors[n] for n in names]
    return np.array(x), np.array(e)


def check(twin, log_prob, names, tolerance=0.05):
    """Near the maximum, in standard errors, which are those of the information."""
    assert "converged" in twin.status and not twin.warnings, twin
    found, error = free(twin, names)
    truth, wanted = best(log_prob, np.asarray(twin.recorded["y"], float), found + 0.1)
    off = np.abs(found - truth) / wanted
    assert np.all(off < tolerance), (found, truth, wanted)
    assert np.all(np.abs(error / wanted - 1) < 0.35), (error, wanted)


def saturated() -> None:
    """Far from its maximum the likelihood is concave along one direction."""
    x = numpyro.sample("x", dist.Normal(0, 1))
    mean = numpyro.param("a", 1.0) * jnp.tanh(numpyro.param("g", 1.0) * x)
    numpyro.sample("y", dist.Normal(mean, positive("s", 1.0)))


def saturated_log_prob(theta, y):
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    mean, scale = theta[0] * np.tanh(theta[1] * nodes), np.exp(theta[2])
    prob = norm.pdf(y[:, None], mean, scale) @ (weights / weights.sum())
    return np.sum(np.log(prob))


def test_the_way_down_where_the_curvature_says_nothing() -> None:
    """One direction is known, one is concave, and one is flat."""
    curvature, allowed = np.diag([1.0, -0.01, 0.0])[None], np.eye(3)
    information = np.diag([1e-4, 1e-6, 0.0])
    found = find_directions(curvature, np.ones(3), allowed, information)
    assert found.known.shape == (3, 1) and found.unknown.shape == (3, 2)
    gradient = np.array([0.2, 0.005, 1e-8])  # five errors; rounding
    way, steepness = found.slope(gradient, information)
    assert way == pytest.approx([0.0, -0.3, 0.0]) and steepness == pytest.approx(5.0)
    way, steepness = found.slope(gradient, 100 * information)
    assert not way.any() and steepness == 0.0


def test_draws_from_farther_out_have_weights_that_correct_for_it() -> None:
    """Averages with weights are those of the distribution, also far in its tails."""
    spec = (("u", Noise("uniform", ())), ("z", Noise("normal", (2,))))
    source = NoiseSource.of(spec, 4096)
    noise = jax.tree.map(lambda x: x[None], source(jax.random.key(0)))
    draws, log_ratio = spread(noise, spec)
    weight = np.exp(-np.asarray(log_ratio[0], float))
    assert np.all(weight <= 2 + 1e-5)
    u, z = np.asarray(draws["u"][0], float), np.asarray(draws["z"][0], float)
    assert np.all((u > 0) & (u < 1))
    for found, truth, error in (
        (np.ones(4096), 1.0, 0.01),
        (u, 0.5, 0.01),
        (z[:, 1] ** 2, 1.0, 0.05),
        (z[:, 0] * u, 0.0, 0.02),
        (u > 1 - 1e-4, 1e-4, 3e-5),
        (z[:, 1] > 3.5, norm.sf(3.5), 3e-5),
    ):
        assert np.mean(weight * found) == pytest.approx(truth, abs=error)
    assert np.sum(u > 1 - 1e-4) > 10 and np.sum(z[:, 1] > 3.5) > 10
    plain = np.asarray(noise["u"][0]) > 1 - 1e-4
    assert np.sum(plain) < 3  # a control: few others come there


def exponential() -> None:
    x = numpyro.sample("x", dist.Exponential(1.0))
    mean = numpyro.param("m", 0.0) + positive("s", 1.0) * x
    numpyro.sample("y", dist.Normal(mean, 0.4))


def exponential_log_prob(theta, y):
    scale = np.exp(theta[1])
    return np.sum(exponnorm.logpdf(y, scale / 0.4, loc=theta[0], scale=0.4))


def test_rounding_is_no_information() -> None:
    """The mean is one number, so it does not determine two parameters."""

    def model() -> None:
        mean = 0.37 * numpyro.param("a", 0.5) + 0.81 * numpyro.param("b", 0.4)
        numpyro.sample("y", dist.Normal(mean, 1.0))

    y = 0.3 + np.random.default_rng(1).normal(size=1000)
    twin = quiet.calibrate(model, {"y": y}, divergence="likelihood", num_steps=40)
    assert twin.status.startswith("converged") and len(twin.undetermined) == 1
    assert np.isinf(twin.standard_error["a"]) and np.isinf(twin.standard_error["b"])


def rooted() -> None:
    """Gain and offset are nearly exchangeable, so few draws say little about them."""
    x = numpyro.sample("x", dist.Gamma(2.0, 1.0))
    mean = numpyro.param("o", 0.0) + numpyro.param("g", 1.0) * jnp.sqrt(x)
    numpyro.sample("y", dist.Normal(mean, positive("s", 0.5)))


def rooted_log_prob(theta, y):
    nodes, weights = np.polynomial.legendre.leggauss(800)
    root = 2.5 * (nodes + 1)
    prior = 2 * root**3 * np.exp(-(root**2)) * 2.5 * weights
    mean, scale = theta[0] + theta[1] * root, np.exp(theta[2])
    return np.sum(np.log(norm.pdf(y[:, None], mean, scale) @ prior))


def noisy_tanh(rng):
    x, noise = rng.normal(size=(2, 3000))
    return 1.7 * np.tanh(0.8 * x) + 0.3 * noise


@rest_slow(
    ("model", "log_prob", "names", "seed", "draw", "settings", "tolerance"),
    [
        (converter, converter_log_prob, ("s",), 1,
         lambda rng: np.digitize(0.6 * rng.normal(size=2000), EDGES),
         {"num_steps": 40}, 0.05),
        (clipped, clipped_log_prob, ("m", "s"), 2,
         lambda rng: np.clip(0.4 + 1.3 * rng.normal(size=2000), 0, 2),
         {"num_steps": 40}, 0.05),
        (counts, counts_log_prob, ("m", "s"), 0,
         lambda rng: rng.poisson(np.exp(0.8 + 0.5 * rng.normal(size=3000))), {}, 0.2),
        # A direction without positive curvature may be one that recordings determine.
        (saturated, saturated_log_prob, ("a", "g", "s"), 2009, noisy_tanh,
         {"divergence": "likelihood"}, 0.05),
        # With draws of the distribution itself this ended up to seven errors away.
        (exponential, exponential_log_prob, ("m", "s"), 213,
         lambda rng: 0.7 + 1.6 * rng.exponential(size=6000)
         + 0.4 * rng.normal(size=6000), {"divergence": "likelihood"}, 0.1),
        # By default there are too few draws, and errors are infinite.
        (rooted, rooted_log_prob, ("o", "g", "s"), 1,
         lambda rng: 0.4 + 1.5 * np.sqrt(rng.gamma(2.0, 1.0, 2000))
         + 0.25 * rng.normal(size=2000),
         {"divergence": "likelihood", "num_samples": 2**15}, 0.5),
    ],
    ids=["converter", "clipped", "counts", "concave", "rare recordings", "more draws"],
)  # fmt: skip
def test_maximum_likelihood(model, log_prob, names, seed, draw, settings, tolerance):
    y = draw(np.random.default_rng(seed))
    twin = quiet.calibrate(model, {"y": y}, **settings)
    check(twin, log_prob, names, tolerance)
    assert twin.after.method == "likelihood" and twin.after.value < twin.before.value
    assert "log likelihood" in repr(twin)


def hidden_counts() -> None:
    """A hidden count, whose rate is a parameter, behind two recorded sites."""
    z = numpyro.sample("z", dist.Poisson(positive("rate", 1.5)))
    numpyro.sample("y", dist.Normal(z, positive("s", 1.0)))
    numpyro.sample("c", dist.Bernoulli(logits=z - 2.0))


def hidden_counts_log_prob(theta, y, c):
    z = np.arange(60)
    prior = poisson.logpmf(z, np.exp(theta[0]))
    flip = -np.logaddexp(0, np.where(c[:, None] == 1, 2.0 - z, z - 2.0))
    inside = norm.logpdf(y[:, None], z, np.exp(theta[1]))
    return np.sum(logsumexp(prior + flip + inside, axis=1))


@pytest.mark.slow
def test_draws_that_a_parameter_makes_more_likely() -> None:
    """Discrete and continuous sites together, after draws without a derivative."""
    rng = np.random.default_rng(3)
    z = rng.poisson(2.5, size=1000)
    y = z + 0.6 * rng.normal(size=1000)
    c = rng.uniform(size=1000) < 1 / (1 + np.exp(2.0 - z))
    twin = quiet.calibrate(hidden_counts, {"y": y, "c": c}, num_steps=60)
    log_prob = functools.partial(
        hidden_counts_log_prob, c=np.asarray(twin.recorded["c"], int)
    )
    check(twin, log_prob, ("rate", "s"), tolerance=0.35)


@pytest.mark.slow
@pytest.mark.parametrize("jump", [False, True])
def test_a_jump_in_a_likelihood_is_seen(jump: bool) -> None:
    """A jump of a probability has no derivative; the end says that something is off."""

    def model() -> None:
        a = numpyro.param("a", 0.3)
        u = numpyro.sample("u", dist.Uniform(-1, 1))
        high = jnp.where(u < a, 1.0, -1.0) if jump else jnp.tanh((a - u) / 0.2)
        numpyro.sample("y", dist.Bernoulli(logits=high + a))

    y = np.random.default_rng(4).uniform(size=1000) < 0.6
    if jump:
        with pytest.raises(ig.errors.JumpError):
            quiet.calibrate(model, {"y": y}, num_steps=20)
    twin = quiet.calibrate(model, {"y": y}, num_steps=20, allow_jumps=jump)
    assert any("as its derivatives say" in w for w in twin.warnings) is jump


@pytest.mark.slow
def test_an_outcome_that_the_twin_cannot_make_is_counted() -> None:
    def model() -> None:
        n = numpyro.sample("n", dist.Binomial(3, 0.5))
        rate = numpyro.param("p", 0.3, constraint=constraints.unit_interval)
        numpyro.sample("y", dist.Binomial(n, rate))

    rng = np.random.default_rng(5)
    y = rng.binomial(rng.binomial(3, 0.5, size=500), 0.4)
    y[::100] = y[16::100] = 5  # rows 16 to 19 of every 20 are held out
    twin = quiet.calibrate(model, {"y": y}, num_steps=20)
    for which in ("of the recordings", "of the held-out recordings"):
        found = f"{which} have probability zero"
        assert any(found in warning for warning in twin.warnings), twin
    assert 0 < twin.after.diagnostics["missed"] < 0.1
    kept = np.asarray(twin.recorded["y"])
    kept = kept[kept < 4]
    assert float(twin.params["p"]) == pytest.approx(kept.mean() / 1.5, abs=0.02)


def test_a_known_density_that_ends_in_a_jump_is_fitted_by_likelihood() -> None:
    """Scores miss what lies behind the jump."""

    def model():
        numpyro.sample("y", dist.Pareto(1.0, positive("a", 4.0)))

    recorded = {"y": 1 + np.random.default_rng(0).pareto(3.0, 2000)}
    found = quiet.calibrate(model, recorded, num_steps=50)
    fitted = found.recorded["y"].astype(float)
    best = 1 / np.mean(np.log(fitted))
    assert found.params["a"] == pytest.approx(best, rel=1e-3)
    assert found.standard_error["a"] == pytest.approx(
        best / len(fitted) ** 0.5, rel=0.2
    )


@pytest.mark.parametrize("memory", [0.0, 0.995])
def test_recordings_with_a_long_memory_are_warned_about(memory: float) -> None:
    """A normal distribution from an autoregression of 2000 steps; a block has 16."""

    def model():
        numpyro.sample("y", dist.Normal(numpyro.param("m", 0.3), positive("s", 1.5)))

    said = []
    for seed in range(4):
        noise = np.random.default_rng(seed).normal(size=2000)
        y = lfilter([(1 - memory**2) ** 0.5], [1, -memory], noise)
        found = quiet.calibrate(model, {"y": y}, divergence="likelihood", num_steps=50)
        said += [w for w in found.warnings if "correlated" in w]
    assert len(said) == (4 if memory else 0)


def test_no_recording_is_lost_because_sets_of_draws_differ_much() -> None:
    """Each set explains a recording, some a hundred nats worse than others."""

    def sharp() -> None:
        h = numpyro.sample("h", dist.Normal().expand([3]).to_event(1))
        scale = numpyro.param("s", 0.01)
        numpyro.sample("y", dist.Normal(jnp.tanh(h) + 0.1 * h**2, scale).to_event(1))

    sm = ig.structural_model(sharp)
    twin = Likelihood.of(sm, sm.density(("y",), whole=True), None)
    keys = jax.random.split(jax.random.key(0), 4)
    draws = draw_sets(twin, sm.params, keys, NoiseSource.of(twin.spec, 512))
    rows = sm.sample(jax.random.key(1), 100)["y"]
    each = jax.jit(jax.vmap(lambda row: twin(sm.params, draws, {"y": row})[0]))(rows)
    assert np.ptp(each, axis=1).max() > 100 and np.isfinite(each).all()


@pytest.mark.parametrize("held", [False, True])
def test_a_complex_parameter(held: bool) -> None:
    def model() -> None:
        c, s = numpyro.param("c", jnp.array(1 + 0j)), positive("s", 0.5)
        x = numpyro.sample("x", ig.distributions.ComplexNormal(0.0, 1.0))
        numpyro.sample("y", ig.distributions.ComplexNormal(c * x, s))

    rng, number = np.random.default_rng(0), 4000
    x, noise = rng.normal(size=(2, number, 2)).view(complex)[..., 0] / np.sqrt(2)
    y = (0.8 - 0.5j) * x + 0.2 * noise
    observed, settings = {"x": x, "y": y}, {"num_steps": 60}
    if held:  # the gain is real
        real = lambda p: {"c": p["c"].real + 0j, "s": jnp.maximum(p["s"], 0.01)}  # noqa: E731
        settings["projection"] = real
    twin = quiet.calibrate(model, observed, divergence="likelihood", **settings)
    found, error = np.asarray(twin.params["c"]), np.asarray(twin.standard_error["c"])
    x, y = (twin.recorded[name] @ [1, 1j] for name in "xy")  # recorded as pairs
    fitted = (np.vdot(x, y) / np.vdot(x, x)).item()
    residual = y - (fitted.real if held else fitted) * x
    noisy = np.std((x.conj() * residual).real)
    bound = noisy / np.sqrt(len(x)) / np.mean(np.abs(x) ** 2)
    assert error.real == pytest.approx(bound, rel=0.2)
    assert abs(found.real - fitted.real) < 0.2 * bound
    if held:
        assert found.imag == 0
        assert np.isnan(error.imag)
    else:
        assert error.imag == pytest.approx(bound, rel=0.2)
        assert abs(found.imag - fitted.imag) < 0.2 * bound  # the conjugate is far off
        assert twin.draws["c"].shape == (200,)
        assert twin.to_inference_data().posterior["c"].shape == (1, 200, 2)
    assert twin.history["params"]["c"].dtype.kind == "c"


def test_a_known_density_is_fitted_by_its_likelihood() -> None:
    """Powers up to the seventh: the curvature is indefinite far from the end."""

    def powers(x):
        return jnp.stack([x, x**3, x**5, x**7], axis=-1)

    def model() -> None:
        x = numpyro.sample("x", dist.Normal())
        c = numpyro.param("c", jnp.array([1.0, 0.0, 0.0, 0.0]))
        numpyro.sample("y", dist.Normal(powers(x) @ c, positive("s", 0.5)))

    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 3000))
    y = x * 1.1 - 0.08 * x**3 + 0.002 * x**5 + 0.03 * noise
    twin = quiet.calibrate(model, {"x": x, "y": y}, num_steps=60)
    assert twin.diagnostics["divergence"] == "likelihood"
    assert twin.status.ending is ig.Ending.CONVERGED
    assert not twin.warnings
    seen = np.asarray(powers(twin.recorded["x"]), float)
    fitted, (square,), *_ = np.linalg.lstsq(seen, twin.recorded["y"])
    error = np.asarray(twin.standard_error["c"])
    assert np.abs((twin.params["c"] - fitted) / error).max() < 0.05
    covariance = square / len(seen) * np.linalg.inv(seen.T @ seen)
    np.testing.assert_allclose(error, np.sqrt(np.diag(covariance)), rtol=0.35)
