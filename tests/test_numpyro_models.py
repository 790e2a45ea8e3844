# SPDX-License-Identifier: Apache-2.0
"""Models of NumPyro's examples and tutorials: what holds for each family.

Each family is written anew, small and with nothing observed, and marks one quantity
with `numpyro.param`. Three things are checked: draws have the law of `Predictive`, all
sites together; the pathwise derivative is that of a central difference with the same
noise; and what cannot be differentiated is refused by name. `docs/models.md` says the
same in a table.
"""

from collections.abc import Callable, Iterable
import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import families as more
from methods import slow
from models import (
    ar2,
    bayesian_network_layer,
    gaussian_process,
    horseshoe,
    stochastic_volatility,
)
import numpy as np
import pytest

from flax import nnx
import jax
from jax.experimental.ode import odeint
import jax.numpy as jnp

import numpyro
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.contrib.hsgp.approximation import hsgp_squared_exponential
from numpyro.contrib.module import nnx_module
import numpyro.distributions as dist
from numpyro.distributions import constraints, transforms
from numpyro.infer import Predictive
from numpyro.infer.reparam import CircularReparam, LocScaleReparam, TransformReparam

from helpers import assert_found, assert_within, refuses
import numpyro_infograd as ig
from numpyro_infograd import _checks
from numpyro_infograd.errors import JumpError, ModelError, ReparametrizationError

DRAWS = 4000

sample, param, plate = numpyro.sample, numpyro.param, numpyro.plate

# Arrays that a model makes itself are computed once more when it is traced.
X = more.X
MEANS = jnp.array([-1.0, 1.5])
ARM = jnp.array([1.0, 0.0, 0.5])
TOPICS = jnp.array([[1.0, 0.0, -1.0], [-0.5, 0.5, 0.0]])
DECODER = [X[:2, :], jnp.asarray(np.linspace(-1.0, 1.0, 9, dtype="f").reshape(3, 3))]


# --- time series ------------------------------------------------------------------
def holt_winters(seasons=3, steps=5):
    alpha = sample("alpha", dist.Uniform(0, 1))
    gamma = sample("gamma", dist.Uniform(0, 1))
    sigma = sample("sigma", dist.HalfNormal(0.5))
    level = sample("level", dist.Normal(param("start", 1.0), 1))
    trend = sample("trend", dist.Normal(0, 0.3))
    season = sample("season", dist.ZeroSumNormal(0.8, (seasons,)))

    def step(carry, _):
        level, trend, season = carry
        mean = level + trend + season[0]
        y = sample("y", dist.Normal(mean, sigma))
        new = alpha * (y - season[0]) + (1 - alpha) * (level + trend)
        first = gamma * (y - new) + (1 - gamma) * season[0]
        return (new, trend, jnp.append(season[1:], first)), mean

    _, means = scan(step, (level, trend, season), jnp.arange(steps))
    numpyro.deterministic("means", means)


def sgt(seasonality=2, steps=4):
    """The trend is a power of the level, the scale another one of the forecast."""
    nu = sample("nu", dist.Uniform(2, 20))
    powx = sample("powx", dist.Uniform(0, 1))
    sigma = sample("sigma", dist.HalfCauchy(0.3))
    offset = sample("offset", dist.TruncatedCauchy(low=0.1, loc=0.1, scale=0.2))
    slope = sample("slope", dist.Cauchy(0, 0.2))
    smooth = sample("smooth", dist.Uniform(0, 1))
    with plate("seasons", seasonality):
        start = sample("start", dist.Cauchy(0, 0.2))
    first = param("first", 1.5)

    def step(carry, _):
        level, season = carry
        forecast = level + slope * level**powx
        mean = jnp.clip(forecast * jnp.exp(season[0]), 1e-2, 1e3)
        y = sample("y", dist.StudentT(nu, mean, sigma * mean**powx + offset))
        level = smooth * jnp.clip(y, 1e-2, 1e3) + (1 - smooth) * level
        return (level, jnp.roll(season, -1)), None

    scan(step, (first, jnp.clip(start, -1, 1)), None, length=steps)


def random_walk_regression(x=(0.5, -1.0, 2.0, 1.0)):
    x = jnp.asarray(x)
    drift = sample("drift", dist.HalfNormal(0.5))
    walk = sample("walk", dist.GaussianRandomWalk(drift, num_steps=len(x)))
    sample("y", dist.Normal(param("gain", 1.0) * x * walk, 0.3).to_event(1))


def local_level():
    q = sample("q", dist.LogNormal(-1, 0.3))
    moves = jnp.array([[1.0, 1.0], [0.0, param("damping", 0.8)]])
    law = dist.GaussianStateSpace(4, moves, scale_tril=q * jnp.eye(2))
    z = sample("z", law)
    sample("y", dist.Normal(z[..., 0], 0.5).to_event(1))


def sde():
    theta, mean = sample("theta", dist.LogNormal(0, 0.3)), param("mean", 1.0)

    def drift_and_diffusion(x, t):
        return theta * (mean - x), 0.5

    start = dist.Normal(0.0, 1.0)
    times = jnp.linspace(0.0, 1.0, 6)
    x = sample("x", dist.EulerMaruyama(times, drift_and_diffusion, start))
    sample("y", dist.Normal(x[::2], 0.2).to_event(1))


def midpoints(rates, start, times, theta, substeps=8):
    """Fixed steps of second order between the times, by scan."""

    def advance(z, ends):
        h = (ends[1] - ends[0]) / substeps

        def step(z, _):
            half = z + 0.5 * h * rates(z, 0.0, theta)
            return z + h * rates(half, 0.0, theta), None

        z, _ = jax.lax.scan(step, z, None, length=substeps)
        return z, z

    _, z = jax.lax.scan(advance, start, jnp.stack([times[:-1], times[1:]], axis=1))
    return jnp.concatenate([start[None], z])


def lotka_volterra(solve=midpoints):
    start = sample("start", dist.LogNormal(jnp.log(2.0), 0.3).expand([2]))
    means = jnp.array([1.0, 0.5, 1.0, 0.5])
    theta = sample("theta", dist.TruncatedNormal(means, 0.2 * means, low=0.0))
    sigma = sample("sigma", dist.LogNormal(-1, 1).expand([2]))

    def rates(z, _, theta):
        u, v = z
        a, b, c, d = theta
        return jnp.stack([(a - b * v) * u, (d * u - c) * v])

    theta = theta.at[0].multiply(param("growth", 1.0))
    z = solve(rates, start, jnp.linspace(0.0, 1.5, 3), theta)
    sample("y", dist.LogNormal(jnp.log(z), sigma).to_event(2))


def lotka_volterra_adaptive():
    lotka_volterra(functools.partial(odeint, rtol=1e-4, atol=1e-4, mxstep=100))


def hmm(steps=4):
    with plate("states", 2):
        stay = sample("stay", dist.Uniform(0.3, 1.0))
        spread = sample("spread", dist.HalfNormal(1))
    moves = jnp.stack([stay, 1 - stay], axis=-1)  # the other state is 1 - state
    means = param("means", MEANS)

    def step(state, _):
        leave = sample("leave", dist.Categorical(moves[state]))
        state = numpyro.deterministic("state", state ^ leave)
        sample("y", dist.Normal(means[state], spread[state]))
        return state, None

    scan(step, 0, None, length=steps)


# --- regression -------------------------------------------------------------------
def sparse_regression():
    """Pairwise interactions through a kernel, half-Cauchy scales."""
    width = param("width", 0.5)
    xi = sample("xi", dist.LogNormal(0.0, 0.5))
    msq = sample("msq", dist.HalfCauchy(jnp.ones(3)))
    lam = sample("lam", dist.HalfCauchy(width).expand([3]))
    kappa = numpyro.deterministic("kappa", jnp.sqrt(msq) * lam / jnp.hypot(msq, lam))
    kx = kappa * X
    inner = kx @ kx.T
    kernel = 0.5 * xi * (1 + inner) ** 2 + inner + 0.5 * jnp.eye(len(X))
    sample("y", dist.MultivariateNormal(covariance_matrix=kernel))


def hierarchical_linear_regression(patients=3, visits=6):
    """Intercept and slope of each patient, looked up by code."""
    code, week = jnp.arange(visits) % patients, jnp.linspace(0.0, 2.0, visits)
    a = sample("a", dist.Normal(0.0, 5.0))
    b = sample("b", dist.Normal(param("progress", -1.0), 1.0))
    sigma_a = sample("sigma_a", dist.HalfNormal(2.0))
    sigma_b = sample("sigma_b", dist.HalfNormal(2.0))
    with plate("patients", patients):
        alpha = sample("alpha", dist.Normal(a, sigma_a))
        beta = sample("beta", dist.Normal(b, sigma_b))
    sigma = sample("sigma", dist.HalfNormal(1.0))
    with plate("data", visits):
        sample("y", dist.Normal(alpha[code] + beta[code] * week, sigma))


def varying_effects(cafes=3):
    """Correlated intercepts and slopes: LKJ prior, one matrix for all groups."""
    centre = sample("centre", dist.Normal(jnp.array([3.5, -1.0]), 1.0).to_event(1))
    spread = sample("spread", dist.Exponential(jnp.ones(2)).to_event(1))
    corr = sample("corr", dist.LKJCholesky(2, 2.0))
    scale = jnp.expand_dims(spread, -1) * corr
    with plate("cafes", cafes):
        both = sample("both", dist.MultivariateNormal(centre, scale_tril=scale))
    afternoon = param("afternoon", 0.7)
    with plate("visits", 2), plate("each", cafes):
        mean = jnp.broadcast_to(both[:, :1] + afternoon * both[:, 1:], (cafes, 2))
        sample("wait", dist.Normal(mean, 0.5))


def robust_regression():
    slope = sample("slope", dist.Laplace(jnp.zeros(3), 1.0).to_event(1))
    nu = sample("nu_minus_one", dist.Exponential(1 / 29))
    sample("y", dist.StudentT(1 + nu, X @ slope, param("scale", 0.5)).to_event(1))


def linear_bandit():
    """Thompson sampling: a posterior in natural parameters, and its next reward."""
    x = np.asarray(X)
    precision = np.eye(3) + x.T @ x
    mean = np.linalg.solve(precision, x.T @ [1.0, 0.3, -0.2, 0.5])
    law = dist.MultivariateNormal(mean, precision_matrix=precision)
    weights = sample("weights", law)
    arm = param("arm", ARM)
    sample("reward", dist.Normal(arm @ weights, 0.3))


def eight_schools():
    errors = jnp.array([15.0, 10.0, 16.0, 11.0])
    mu = sample("mu", dist.Normal(0, 5))
    tau = sample("tau", dist.HalfCauchy(param("width", 5.0)))
    with plate("schools", 4):
        unit = TransformReparam()
        with handlers.reparam(config={"theta": unit}):
            move = transforms.AffineTransform(mu, tau)
            law = dist.TransformedDistribution(dist.Normal(0.0, 1.0), move)
            theta = sample("theta", law)
        sample("y", dist.Normal(theta, errors))


def funnel():
    y = sample("y", dist.Normal(0, param("width", 3.0)))
    sample("x", dist.Normal(jnp.zeros(3), jnp.exp(y / 2)))


def funnel_decentred():
    handlers.reparam(funnel, config={"x": LocScaleReparam(0.0)})()


def survival():
    """Weibull times, the covariates in the scale; nothing is censored."""
    shape = sample("shape", dist.LogNormal(0.5, 0.3))
    beta = sample("beta", dist.Normal(jnp.zeros(3), 0.5).to_event(1))
    base = param("base", 0.3)
    with plate("units", len(X)):
        sample("time", dist.Weibull(jnp.exp(base + X @ beta), shape))


# --- fields -----------------------------------------------------------------------
def hsgp():
    x = jnp.linspace(-1.0, 1.0, 5)
    alpha = sample("alpha", dist.LogNormal(0.0, 0.3))
    length = param("length", 0.6)
    f = hsgp_squared_exponential(x, alpha=alpha, length=length, ell=1.5, m=4)
    sample("y", dist.Normal(f, 0.2).to_event(1))


def mortality():
    """Areas of a ring share what their neighbours have."""
    ring = jnp.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]], float)
    rho = sample("rho", dist.Uniform(0.05, 0.95))
    sigma = sample("sigma", dist.HalfNormal(1.0))
    precision = 1 / (0.1 + sigma) ** 2
    field = sample("field", dist.CAR(0.0, rho, precision, ring, is_sparse=False))
    sample("rate", dist.LogNormal(param("level", -1.0) + field, 0.1).to_event(1))


# --- latent variables -------------------------------------------------------------
def gaussian_mixture(components=2, points=4):
    weights = sample("weights", dist.Dirichlet(jnp.ones(components)))
    with plate("components", components):
        locs = sample("locs", dist.Normal(0.0, param("width", 3.0)))
    with plate("data", points):
        which = sample("which", dist.Categorical(weights))
        sample("y", dist.Normal(locs[which], 0.5))


def factor_analysis():
    loadings = param("loadings", X)
    scale = sample("scale", dist.HalfNormal(0.5))
    with plate("data", 2):
        z = sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
        law = dist.MultivariateNormal(z @ loadings.T, scale_tril=scale * jnp.eye(4))
        sample("y", law)


def decoder(likelihood):
    """A network from a code to pixels, as (init, apply) of jax's stax."""

    def init(rng_key, input_shape):
        return (*input_shape[:-1], 3), DECODER

    def apply(params, z, **kwargs):
        first, last = params
        return jnp.tanh(z @ first) @ last

    net = numpyro.module("decoder", (init, apply), (2, 2))
    with plate("batch", 2):
        z = sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        sample("image", likelihood(net(z)).to_event(1))


def vae():
    decoder(lambda out: dist.Normal(out, 0.3))


def cvae():
    """What is missing of an image, given its rest, through a code."""
    seen = sample("seen", dist.Normal(0, 1).expand([2]).to_event(1))
    z = sample("z", dist.Normal(jnp.tanh(seen), 0.5).to_event(1))
    gain = param("gain", 0.8)
    mean = jnp.concatenate([seen, jnp.tanh(gain * z)])
    sample("image", dist.Normal(mean, 0.1).to_event(1))


# --- discrete at the end ----------------------------------------------------------
def vae_binary():
    decoder(lambda out: dist.Bernoulli(logits=out))


def baseball():
    """Chances at bat, partially pooled by their logits."""
    mean = sample("mean", dist.Normal(param("centre", -1.0), 1.0))
    spread = sample("spread", dist.HalfCauchy(1.0))
    with plate("players", 3):
        alpha = sample("alpha", dist.Normal(mean, spread))
        sample("hits", dist.Binomial(45, logits=alpha))


def ucbadmit():
    """Departments with correlated intercepts and slopes; each applicant a coin."""
    dept, male = jnp.array([0, 0, 1, 1]), jnp.array([1.0, 0.0, 1.0, 0.0])
    mean = sample("mean", dist.Normal(jnp.zeros(2), 1.0))
    spread = sample("spread", dist.HalfNormal(jnp.ones(2)))
    corr = sample("corr", dist.LKJCholesky(2, concentration=2))
    scale = spread[..., None] * corr
    with plate("departments", 2):
        v = sample("v", dist.MultivariateNormal(mean, scale_tril=scale))
    logits = v[dept, 0] + (v[dept, 1] + param("bias", 0.7)) * male
    sample("admit", dist.Bernoulli(logits=logits))


def covtype():
    coefs = sample("coefs", dist.Normal(jnp.zeros(3), param("width", 1.0)))
    with plate("data", len(X)):
        sample("cover", dist.Bernoulli(logits=X @ coefs))


def irt(people=3, items=2):
    with plate("people", people):
        ability = sample("ability", dist.Normal(param("level", 0.2), 1.0))
    with plate("items", items):
        difficulty = sample("difficulty", dist.Normal(0.0, 1.0))
        slope = sample("slope", dist.LogNormal(0.0, 0.3))
    logits = slope * (ability[:, None] - difficulty)
    with plate("by_item", items), plate("by_person", people):
        sample("answer", dist.Bernoulli(logits=logits))


def ordinal():
    """Cut points whose classes are Dirichlet."""
    shape = transforms.SimplexToOrderedTransform(0.0)
    law = dist.TransformedDistribution(dist.Dirichlet(jnp.ones(3)), shape)
    cuts = sample("cuts", law)
    eta = sample("eta", dist.Normal(param("effect", 0.5), 1.0))
    with plate("people", 3):
        sample("grade", dist.OrderedLogistic(eta * X[:3, 0], cuts))


def capture_recapture(animals=3):
    survives = sample("survives", dist.Uniform(0, 1))
    once = sample("once", dist.Uniform(0, 1))
    caught = numpyro.deterministic("caught", 1 - (1 - once) ** param("effort", 2.0))

    def step(alive, first):
        with plate("animals", animals), handlers.mask(mask=first):
            alive = sample("alive", dist.Bernoulli(survives * alive))
            sample("seen", dist.Bernoulli(caught * alive))
        return alive, None

    seen_before = jnp.array([[True, False, False], [True, True, False]])
    scan(step, jnp.ones(animals, int), seen_before)


def annotation():
    """Annotators with confusion matrices of their own, on a common prior."""
    share = sample("share", dist.Uniform(0, 1))
    prevalence = jnp.stack([share, 1 - share])
    prior = param("diligence", 2.0) * jnp.eye(2)
    with plate("annotators", 2):
        beta = sample("beta", dist.Normal(prior, 1.0).to_event(2))
    with plate("items", 3):
        c = sample("c", dist.Categorical(prevalence), infer={"enumerate": "parallel"})
        with plate("position", 2):
            logits = beta[jnp.arange(2)[:, None], c]
            sample("label", dist.Categorical(logits=logits))


def prodlda(topics=2, words=3):
    topic = param("topic", TOPICS)
    with plate("documents", 2):
        logits = sample("logits", dist.Normal(jnp.zeros(topics), 1.0).to_event(1))
        mix = numpyro.deterministic("mix", jax.nn.softmax(logits))
        probs = jax.nn.softmax(mix @ topic)
        sample("counts", dist.Multinomial(total_count=10, probs=probs))


def poisson_regression():
    beta = sample("beta", dist.Normal(0.0, 0.5).expand([3]).to_event(1))
    rate = numpyro.deterministic("rate", jnp.exp(param("base", 0.5) + X @ beta))
    with plate("data", len(X)):
        sample("count", dist.Poisson(rate))


def negative_binomial_regression():
    beta = sample("beta", dist.Normal(param("effect", 0.2), 0.4).expand([3]))
    spread = sample("spread", dist.Gamma(4.0, 2.0))
    sample("count", dist.NegativeBinomial2(jnp.exp(X @ beta), spread))


def proportion_test():
    """Two groups, covariates, and the lift of being treated."""
    base = sample("base", dist.Normal(0, 0.5))
    effect = sample("effect", dist.Normal(param("prior", 0.3), 0.25).expand([3]))
    logits = base + X @ effect
    lift = jax.nn.sigmoid(base + effect[0]) - jax.nn.sigmoid(base)
    numpyro.deterministic("lift", lift)
    sample("bought", dist.Bernoulli(logits=logits))


# --- the table --------------------------------------------------------------------
class Family(NamedTuple):
    """A model and what is looked at."""

    model: Callable[..., None]
    target: str  # a continuous site that the parameter moves, or ""
    pair: tuple[str, str]  # two sites that depend on each other
    drawn: str = ""  # a site on which the parameter acts by a probability
    moved: float = 2.0  # times the parameter, gives another law


_FAMILIES = [
    Family(eight_schools, "y", ("mu", "y")),
    Family(vae, "image", ("z", "image")),
    Family(capture_recapture, "caught", ("survives", "alive"), "seen"),
]
_SLOW = [  # to compile, or of a kind that the others or test_tracing.py have
    Family(hmm, "y", ("state", "y")),
    Family(gaussian_mixture, "y", ("locs", "y")),
    Family(lotka_volterra, "y", ("start", "y"), moved=1.3),
    Family(holt_winters, "means", ("level", "y")),
    Family(proportion_test, "lift", ("effect", "bought"), "bought"),
    Family(prodlda, "", ("mix", "counts"), "counts"),
    Family(ar2, "x", ("sigma", "x")),
    Family(random_walk_regression, "y", ("walk", "y")),
    Family(sde, "y", ("theta", "x")),
    Family(hierarchical_linear_regression, "y", ("alpha", "y")),
    Family(funnel, "x", ("y", "x")),
    Family(funnel_decentred, "x", ("y", "x")),
    Family(survival, "time", ("beta", "time")),
    Family(hsgp, "y", ("alpha", "y")),
    Family(mortality, "rate", ("field", "rate")),
    Family(cvae, "image", ("z", "image")),
    Family(covtype, "coefs", ("coefs", "cover"), "cover"),
    Family(irt, "ability", ("ability", "answer"), "answer"),
    Family(annotation, "beta", ("c", "label"), "label"),
    Family(stochastic_volatility, "volatility", ("volatility", "returns")),
    Family(bayesian_network_layer, "y", ("w2", "y")),
    Family(horseshoe, "y", ("beta", "y")),
    Family(gaussian_process, "y", ("f", "y")),
    Family(linear_bandit, "reward", ("weights", "reward")),
    Family(vae_binary, "", ("z", "image"), "image"),
    Family(ordinal, "eta", ("cuts", "grade"), "grade"),
    Family(poisson_regression, "rate", ("rate", "count"), "count"),
    Family(local_level, "y", ("z", "y"), moved=0.5),
    Family(sparse_regression, "y", ("kappa", "y")),
    Family(varying_effects, "wait", ("both", "wait")),
    Family(baseball, "alpha", ("alpha", "hits"), "hits"),
    Family(robust_regression, "y", ("slope", "y")),
    Family(lotka_volterra_adaptive, "y", ("start", "y"), moved=1.3),
    Family(sgt, "y", ("sigma", "y")),
    Family(factor_analysis, "y", ("z", "y")),
    Family(ucbadmit, "", ("v", "admit"), "admit"),
    Family(negative_binomial_regression, "beta", ("beta", "count"), "count"),
    Family(more.deep_markov, "z", ("z", "pixels"), "pixels"),
    Family(more.zero_inflated_poisson, "rate", ("rate", "count"), "count"),
    Family(more.zero_inflated_negative_binomial, "rate", ("rate", "count"), "count"),
    Family(more.gaussian_copula, "seen", ("y", "seen")),
    Family(more.circulant_gp, "y", ("f", "y")),
    Family(more.truncated, "y", ("x", "y")),
    Family(more.imputation, "logits", ("logits", "survived"), "survived"),
    Family(more.ideal_points, "rate", ("rate", "counts"), "counts"),
    Family(more.hierarchical_forecast, "y", ("motion", "y")),
    Family(more.deep_kernel, "y", ("f", "y"), moved=0.1),
    Family(more.learned_kernel, "y", ("f", "y")),
    Family(more.hsgp_matern_process, "y", ("f", "y")),
    Family(more.random_network, "y", ("net/last.kernel", "y")),
    Family(more.stick_breaking, "broken", ("weights", "k"), "k"),
    Family(more.matrices, "y", ("m", "y")),
    Family(more.disease_map, "rate", ("rate", "cases"), "cases"),
    Family(more.hurdle, "wet", ("wet", "rain"), "rain"),
]
FAMILIES = {family.model: family for family in _FAMILIES + _SLOW}


def models(chosen: Iterable[Callable[..., None]]) -> Any:
    """A test's parameters; families that are dear to compile are slow tests."""
    dear = [family.model for family in _SLOW]
    each = [slow(m) if m in dear else m for m in chosen]
    return pytest.mark.parametrize("model", each, ids=lambda m: m.__name__)


def families(which: Callable[[Family], Any]) -> Any:
    return models(f.model for f in FAMILIES.values() if which(f))


def functional(value: jax.Array) -> jax.Array:
    """What is averaged: bounded, so that it has a mean under every law."""
    return jnp.arctan(jnp.mean(value) - 0.5)


@functools.cache
def look(model: Callable[..., None]) -> SimpleNamespace:
    """A family as it is traced, its draws and NumPyro's, all of them once.

    `run` maps parameters and noise to ((mean, values), slope of the mean).
    """
    target, sm = FAMILIES[model].target, ig.structural_model(model)
    noise = sm.sample_noise(jax.random.key(7), DRAWS)

    def mean(params, noise):
        values = sm.evaluate(params, noise)
        if not target:
            return jnp.zeros(()), values
        return jnp.mean(jax.vmap(functional)(values[target])), values

    run = jax.jit(jax.value_and_grad(mean, has_aux=True))
    (_, ours), slope = run(sm.params, noise)
    predictive = Predictive(model, params=sm.params, num_samples=DRAWS, parallel=True)
    theirs = jax.jit(predictive)(jax.random.key(11))
    return SimpleNamespace(
        sm=sm, noise=noise, run=run, ours=ours, slope=slope, theirs=theirs
    )


def scaled(params: Any, by: float) -> Any:
    """Parameters with all their numbers multiplied."""
    return jax.tree.map(lambda x: x * by, params)


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """Compiling is nearly all of the time here, with the slow tests as well."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


# --- the law ----------------------------------------------------------------------
def scalars(values: dict[str, Any], sites: tuple[str, ...]) -> np.ndarray:
    """First, middle and last scalar of each site, (DRAWS, columns)."""
    flat = [np.asarray(values[site], np.float64).reshape(DRAWS, -1) for site in sites]
    columns = [f[:, sorted({0, f.shape[1] // 2, f.shape[1] - 1})] for f in flat]
    return np.concatenate(columns, axis=1)


def moments(x: np.ndarray) -> np.ndarray:
    """Columns and their squares, and the products of each with every other column."""
    i, j = (index.ravel() for index in np.indices(2 * x.shape[1:]))
    own, other = x[:, i[i != j]], x[:, j[i != j]]
    pairs = own * other, own**2 * other, (own * other) ** 2
    return np.concatenate([x, x**2, *pairs], axis=1)


def assert_same_law(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Moments agree within standard errors, those of pairs of sites among them.

    They are those of arctan of standardised values, since not every law has variances.
    """
    sites = tuple(theirs)
    a, b = scalars(ours, sites), scalars(theirs, sites)
    low, middle, high = np.quantile(b, [0.25, 0.5, 0.75], axis=0)
    width = np.where(high > low, high - low, 1.0)
    a, b = np.arctan((a - middle) / width), np.arctan((b - middle) / width)
    constant = b.std(0) < 1e-6
    np.testing.assert_allclose(a[:, constant], b[:, constant], atol=1e-5)
    a, b = a[:, ~constant], b[:, ~constant]
    centre, spread = b.mean(0), b.std(0)
    a, b = moments((a - centre) / spread), moments((b - centre) / spread)
    error = np.sqrt((a.var(0) + b.var(0)) / DRAWS)
    difference, truth = a.mean(0) - b.mean(0), np.zeros_like(error)
    # Products of the squares of two skewed columns are the least sharp of them.
    assert_within(difference, error, truth, max_standard_error=0.15, num_sigmas=5.0)


@families(lambda family: True)
def test_draws_have_the_law_of_predictive(model):
    seen = look(model)
    assert set(seen.ours) == set(seen.theirs) == set(seen.sm.sites)
    for site, values in seen.ours.items():
        assert values.shape == seen.theirs[site].shape
        assert values.dtype == seen.theirs[site].dtype
    assert_same_law(seen.ours, seen.theirs)


@families(lambda family: True)
def test_another_law_is_told(model):
    family, seen = FAMILIES[model], look(model)
    (_, moved), _ = seen.run(scaled(seen.sm.params, family.moved), seen.noise)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_same_law(moved, seen.theirs)
    # Each site has the right law, but not the two together.
    one, other = family.pair
    both = {site: seen.ours[site] for site in family.pair}
    wanted = {site: seen.theirs[site] for site in family.pair}
    assert_same_law(both, wanted)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_same_law(both | {one: np.roll(both[one], 1, axis=0)}, wanted)


# --- the derivative ---------------------------------------------------------------
@families(lambda family: family.target)
def test_the_derivative_is_that_of_a_central_difference(model):
    seen, step = look(model), 0.005
    (above, _), _ = seen.run(scaled(seen.sm.params, 1 + step), seen.noise)
    (below, _), _ = seen.run(scaled(seen.sm.params, 1 - step), seen.noise)
    difference = (float(above) - float(below)) / (2 * step)
    products = jax.tree.map(jnp.vdot, seen.slope, seen.sm.params)
    derivative = float(sum(jax.tree.leaves(products)))
    assert abs(difference) > 5e-3
    assert derivative == pytest.approx(difference, rel=3e-3)


@models([capture_recapture, ar2])
def test_gradient_takes_the_model_as_it_is(model):
    family, seen = FAMILIES[model], look(model)
    price = ig.Expectation(lambda values: functional(values[family.target]))
    found = ig.gradient(seen.sm, price, num_samples=4096)
    keys = jax.random.split(jax.random.key(3), 8)
    noises = [seen.sm.sample_noise(key, DRAWS) for key in keys]
    slopes = [seen.run(seen.sm.params, noise)[1] for noise in noises]
    for label, value in found.value.items():
        own = np.array([slope[label] for slope in slopes], np.float64)
        error = np.hypot(own.std(ddof=1) / np.sqrt(8), found.standard_error[label])
        truth = own.mean()
        assert abs(truth) > 5 * error
        assert_within(value, error, truth, max_standard_error=0.01, num_sigmas=5.0)


# --- sites without a pathwise derivative -------------------------------------------
@families(lambda family: family.drawn)
def test_gradient_through_the_probability_of_a_discrete_site(model):
    family, sm = FAMILIES[model], look(model).sm
    assert family.drawn in sm.drawn

    def tilted(value):  # the mean of multinomial counts is constant
        tilt = jnp.linspace(0.5, 1.5, value.size).reshape(value.shape)
        return functional(value * tilt)

    price = ig.Expectation(lambda values: tilted(values[family.drawn]))
    found = ig.gradient(sm, price, num_samples=8192)
    assert any(np.any(e > 0) for e in jax.tree.leaves(found.standard_error))
    step, means = 0.1, []
    for by in (1 + step, 1 - step):
        # Common noise does not help a count, so each side has its own error.
        draws = sm.sample(jax.random.key(5), 2**16, scaled(sm.params, by))
        means.append(np.asarray(jax.vmap(tilted)(draws[family.drawn])))
    truth = (means[0].mean() - means[1].mean()) / (2 * step)
    error = np.hypot(means[0].std(), means[1].std()) / 2**8 / (2 * step)
    along = jax.tree.map(jnp.vdot, found.value, sm.params)
    wide = jax.tree.map(jnp.multiply, found.standard_error, sm.params)
    wide = jax.tree.map(jnp.linalg.norm, wide)
    value, own = (float(sum(jax.tree.leaves(tree))) for tree in (along, wide))
    assert_within(value, np.hypot(own, error), truth, max_standard_error=0.1)


def toy_mixture():
    weights = dist.Categorical(probs=jnp.array([0.4, 0.6]))
    locs = param("locs", MEANS)
    sample("y", dist.MixtureSameFamily(weights, dist.Normal(locs, 0.5)))


def von_mises():
    sample("y", dist.VonMises(0.0, param("concentration", 2.0)))


@pytest.mark.slow
@models([toy_mixture, von_mises])
def test_entropy_of_a_law_without_a_pathwise_derivative(model):
    sm, cells = ig.structural_model(model), jnp.linspace(-np.pi, np.pi, 20001)[1:]
    cells = 4 * cells if model is toy_mixture else cells

    def entropy(params):
        with handlers.seed(rng_seed=0), handlers.substitute(data=params):
            law = handlers.trace(model).get_trace()["y"]["fn"]
        log_p = law.log_prob(cells)
        return -jnp.sum(jnp.exp(log_p) * log_p) * (cells[1] - cells[0])

    assert_found(ig.gradient(sm, ig.Entropy("y")), jax.grad(entropy)(sm.params), 0.02)


# --- what is refused --------------------------------------------------------------
def stacking():
    """Weights of three predictions, which a factor scores."""
    logits = sample("logits", dist.Normal(param("centre", 0.0), 1.0).expand([3]))
    weights = jax.nn.log_softmax(logits)
    numpyro.factor("log_score", jax.nn.logsumexp(X + weights, axis=1).sum())


def forward_hmm():
    """The states are summed out by the forward algorithm."""
    moves = sample("moves", dist.Dirichlet(jnp.ones((2, 2))).to_event(1))

    def step(log_prob, y):
        emission = dist.Normal(param("mean", 1.0) * jnp.arange(2), 1.0).log_prob(y)
        return jax.nn.logsumexp(log_prob + jnp.log(moves.T), axis=1) + emission, None

    log_prob, _ = jax.lax.scan(step, jnp.zeros(2), X[:, 0])
    numpyro.factor("forward_log_prob", jax.nn.logsumexp(log_prob))


def gaussian_shells():
    x = sample("x", dist.Uniform(-6, param("edge", 6.0)).expand([2]).to_event(1))
    radius = jnp.linalg.norm(x)
    numpyro.factor("shell", dist.Normal(2.0, 0.1).log_prob(radius))


def minibatches():
    """Logistic regression for stochastic variational inference."""
    w = sample("w", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    with plate("rows", len(X), subsample_size=2) as rows:
        mean = param("gain", 1.0) * X[rows] @ w
        sample("y", dist.Bernoulli(logits=mean))


def ordinal_flat():
    cuts = sample("cuts", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    sample("grade", dist.OrderedLogistic(param("effect", 0.5) * X[:, 0], cuts))


def circular_reparametrized():
    """NumPyro's reparametrisation of angles keeps the law in a factor."""
    with handlers.reparam(config={"phi": CircularReparam()}):
        sample("phi", dist.VonMises(0.0, param("concentration", 2.0)))


def as_many_steps_as_drawn():
    steps = sample("steps", dist.Poisson(3.0))
    x = param("start", 1.0)
    for step in range(int(steps)):
        x = sample(f"x_{step}", dist.Normal(x, 1.0))


def branch_in_python():
    switch = sample("switch", dist.Bernoulli(0.3))
    scale = 1.0 if switch == 1 else 3.0
    sample("y", dist.Normal(param("mean", 1.0), scale))


def batch_norm():
    """A Bayesian network with mutable state."""
    norm = nnx_module("norm", nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    sample("y", dist.Normal(norm(X), param("scale", 1.0)).to_event(2))


def dropout():
    kept = jax.random.bernoulli(numpyro.prng_key(), 0.5, X.shape)
    w = sample("w", dist.Normal(0, 1).expand([3]).to_event(1))
    sample("y", dist.Normal((kept * X) @ w, param("scale", 1.0)).to_event(1))


NOT_TRACED = {
    stacking: ("'log_score'", "factor"),
    forward_hmm: ("'forward_log_prob'", "factor"),
    gaussian_shells: ("'shell'", "factor"),
    minibatches: ("'rows'", "2 of 4"),
    ordinal_flat: ("'cuts'", "ImproperUniform"),
    circular_reparametrized: ("'phi_unwrapped'", "ImproperUniform"),
    as_many_steps_as_drawn: ("float()", "jnp.where"),
    branch_in_python: ("an if", "jnp.where"),
    batch_norm: ("'norm$state'", "mutable"),
    dropout: ("numpyro.prng_key()", "numpyro.sample"),
    more.linen_batch_norm: ("'net$state'", "mutable"),
    more.linen_dropout: ("numpyro.prng_key()", "numpyro.sample"),
    more.nnx_dropout: ("'net$state'", "mutable"),
    more.proportions: ("'y'", "betaincinv"),
}


@models(NOT_TRACED)
def test_what_is_no_generative_system_is_not_traced(model):
    refuses(ModelError, *NOT_TRACED[model], call=lambda: ig.structural_model(model))


def censored_survival():
    late = jnp.array([0, 1])
    law = dist.Weibull(jnp.array([1.0, 2.0]), param("shape", 1.5))
    sample("time", dist.RightCensoredDistribution(law, late))


def changepoint():
    when = sample("when", dist.Normal(param("place", 1.5), 0.5))
    means = jnp.where(jnp.arange(4) < when, -1.0, 1.0)
    sample("y", dist.Normal(means, 0.3).to_event(1))


@pytest.mark.parametrize(
    ("model", "site", "error", "words"),
    [
        (censored_survival, "time", ReparametrizationError, ("'shape'", "censored")),
        (changepoint, "y", JumpError, ("condition", "allow_jumps=True")),
    ],
)
def test_what_has_no_pathwise_gradient_is_refused(model, site, error, words):
    sm = ig.structural_model(model)  # it has draws all the same
    objective = ig.Entropy(site)
    refuses(error, f"'{site}'", *words, call=lambda: ig.gradient(sm, objective))


def test_how_much_changes_at_a_changepoint_is_differentiated():
    def model():
        when = sample("when", dist.Normal(1.5, 0.5))
        means = jnp.where(jnp.arange(4) < when, -1.0, param("level", 1.0))
        sample("y", dist.Normal(means, 0.3).to_event(1))

    sm = ig.structural_model(model)
    _checks.check_gradient(ig.Entropy("y"), sm, sm.params, allow_jumps=False)


def test_an_adaptive_solver_is_refused_unless_jumps_are_allowed():
    sm = ig.structural_model(lotka_volterra_adaptive)
    price = ig.Expectation(lambda values: functional(values["y"]))
    check = functools.partial(_checks.check_gradient, ig.Entropy("y"), sm, sm.params)
    words = "'y'", "while", "allow_jumps=True"
    refuses(JumpError, *words, call=lambda: check(False))
    _checks.check_gradient(price, sm, sm.params, allow_jumps=True)
