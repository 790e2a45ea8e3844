# SPDX-License-Identifier: Apache-2.0
"""More model families of NumPyro's examples and tutorials, small, nothing observed.

`test_numpyro_models.py` looks at them.
"""

import numpy as np

from flax import linen, nnx
import jax
import jax.numpy as jnp

import numpyro
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.contrib.hsgp.approximation import hsgp_matern
from numpyro.contrib.module import flax_module, nnx_module, random_nnx_module
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.infer.reparam import LocScaleReparam
from numpyro.ops.indexing import Vindex

sample, param, plate = numpyro.sample, numpyro.param, numpyro.plate

X = jnp.array([[0.5, -1.0, 0.2], [1.5, 0.3, -0.7], [-0.4, 0.8, 1.1], [0.1, 0.1, -2.0]])
DISTANCE = np.square(np.linspace(-1.0, 1.5, 4)[:, None] - np.linspace(-1.0, 1.5, 4))


class Net(nnx.Module):
    """A layer with a bend."""

    def __init__(self, rngs, size=3):
        self.last = nnx.Linear(size, 2, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.last(x))


def deep_markov(steps=3):
    """A network moves the state; pixels are binary (stein_dmm.py)."""
    move = nnx_module("move", Net(nnx.Rngs(0), 2))
    start = sample("z0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    def step(z, _):
        z = sample("z", dist.Normal(z + move(z), 0.5).to_event(1))
        sample("pixels", dist.Bernoulli(logits=X[:, :2] @ z).to_event(1))
        return z, None

    scan(step, start, None, length=steps)


def zero_inflated_poisson():
    effect = sample("effect", dist.Normal(param("prior", 0.4), 0.3).expand([3]))
    gate = sample("gate", dist.Beta(2.0, 8.0))
    rate = numpyro.deterministic("rate", jnp.exp(1.5 + X @ effect))
    sample("count", dist.ZeroInflatedPoisson(gate, rate=rate))


def zero_inflated_negative_binomial():
    effect = sample("effect", dist.Normal(param("prior", 0.4), 0.3).expand([3]))
    rate = numpyro.deterministic("rate", jnp.exp(1.5 + X @ effect))
    law = dist.ZeroInflatedNegativeBinomial2(rate, 3.0, gate_logits=-2 + effect[0])
    sample("count", law)


def gaussian_copula():
    """Dependent claims with two different marginals."""
    corr = sample("corr", dist.LKJCholesky(2, concentration=2.0))
    claims = dist.LogNormal(param("first", 0.4) * jnp.array([1.0, -1.0]), 0.5)
    y = sample("y", dist.GaussianCopula(claims, correlation_cholesky=corr))
    sample("seen", dist.Normal(y, 0.1).to_event(1))


def circulant_gp(points=4):
    """A periodic Gaussian process by its spectrum."""
    length = sample("length", dist.LogNormal(param("place", 0.2), 0.3))
    lag = jnp.arange(points)
    row = jnp.exp(-2 * jnp.sin(jnp.pi * lag / points) ** 2 / length**2)
    row += 0.05 * (lag == 0)
    f = sample("f", dist.CirculantNormal(jnp.zeros(points), row))
    sample("y", dist.Normal(f, 0.3).to_event(1))


def truncated():
    """Truncated and folded (tutorial: truncated_distributions)."""
    loc = sample("loc", dist.Normal(param("place", 0.6), 0.5))
    high = sample("high", dist.HalfNormal(1.0))
    x = sample("x", dist.TruncatedNormal(loc, 1.0, low=-1.0, high=2.0 + high))
    w = sample("w", dist.TruncatedCauchy(loc=loc, scale=0.5, low=0.0))
    v = sample("v", dist.FoldedDistribution(dist.Normal(loc, 1.0)))
    sample("y", dist.Normal(x + jnp.arctan(w) + v, 0.4))


def imputation():
    """Missing ages, and survival (tutorial: bayesian_imputation)."""
    mean = sample("mean", dist.Normal(param("prior", 0.3), 0.3))
    age = sample("age", dist.Normal(mean, 1.0).expand([4]).to_event(1))
    full = jnp.array([0.2, -0.5, 1.0, 0.0]).at[jnp.array([1, 3])].set(age[:2])
    effect = sample("effect", dist.Normal(0.5, 0.3))
    logits = numpyro.deterministic("logits", effect * full)
    sample("survived", dist.Bernoulli(logits=logits).to_event(1))


def ideal_points(authors=3, words=4, topics=2):
    """Texts and the positions of their authors (tutorial: tbip)."""
    with plate("topics", topics, dim=-2), plate("words", words):
        beta = sample("beta", dist.Gamma(2.0, 3.0))
        eta = sample("eta", dist.Normal(0.0, 0.5))
    with plate("authors", authors, dim=-1):
        x = sample("x", dist.Normal(param("centre", 0.5), 1.0))
    with plate("documents", authors, dim=-2):
        with plate("kinds", topics, dim=-1):
            theta = sample("theta", dist.Gamma(2.0, 2.0))
    rate = jnp.sum(theta[:, :, None] * beta * jnp.exp(x[:, None, None] * eta), 1)
    numpyro.deterministic("rate", rate)
    sample("counts", dist.Poisson(rate).to_event(2))


def hierarchical_forecast(stations=2, days=4):
    """Pairs of stations, drifts and a seasonal part (tutorial: hierarchical)."""
    scale = sample("scale", dist.LogNormal(-1.0, 0.3))
    with plate("series", stations):
        with handlers.reparam(config={"drift": LocScaleReparam(0.0)}):
            law = dist.Normal(param("growth", 0.4), scale)
            drift = sample("drift", law.expand([days]).to_event(1))
        season = sample("season", dist.Normal(0.0, 0.5).expand([2]).to_event(1))
    repeated = jnp.tile(season, (1, days // 2))
    motion = numpyro.deterministic("motion", jnp.cumsum(drift, -1) + repeated)
    noise = sample("noise", dist.Weibull(2.0, 1.5))
    law = dist.StudentT(5.0, motion, noise).to_event(2)
    sample("y", law)


def deep_kernel():
    """A Gaussian process whose kernel sees features of a network."""
    seen = nnx_module("features", Net(nnx.Rngs(1)))(X)
    gap = jnp.sum((seen[:, None] - seen) ** 2, -1)
    size = sample("size", dist.HalfNormal(1.0))
    kernel = size * jnp.exp(-0.5 * gap) + 0.05 * jnp.eye(4)
    f = sample("f", dist.MultivariateNormal(jnp.zeros(4), kernel))
    sample("y", dist.Normal(f, 0.3).to_event(1))


def learned_kernel():
    """Kernel parameters that are tuned; a linear and a periodic part."""
    length = param("length", 0.8, constraint=constraints.positive)
    period = param("period", 1.3, constraint=constraints.positive)
    far = jnp.sqrt(DISTANCE)
    kernel = jnp.exp(-0.5 * DISTANCE / length**2)
    kernel += 0.5 * jnp.exp(-2 * jnp.sin(jnp.pi * far / period) ** 2)
    size = sample("size", dist.HalfNormal(1.0))
    f = sample(
        "f", dist.MultivariateNormal(jnp.zeros(4), size * kernel + 0.05 * jnp.eye(4))
    )
    sample("y", dist.Normal(f[0] * f[1] + f[3] ** 2, 0.3))


def hsgp_matern_process():
    """A rough process in a Hilbert space."""
    x = jnp.linspace(-1.0, 1.0, 4)
    length = sample("length", dist.InverseGamma(5.0, param("rate", 3.0)))
    f = hsgp_matern(x, 1.5, 0.7, length, ell=1.5, m=4)
    f = numpyro.deterministic("f", f)
    sample("y", dist.Normal(f**2, 0.3).to_event(1))


def random_network():
    """A module with a prior on its weights."""
    scale = param("scale", 0.7)
    net = random_nnx_module("net", Net(nnx.Rngs(0)), prior=dist.Normal(0.2, scale))
    sample("y", dist.Normal(net(X).sum(), 0.3))


def stick_breaking(sticks=3):
    """A Dirichlet process, truncated. A Beta(1, alpha) is this Kumaraswamy."""
    alpha = param("alpha", 1.5, constraint=constraints.positive)
    broken = sample("broken", dist.Kumaraswamy(1.0, alpha).expand([sticks]).to_event(1))
    rest = jnp.cumprod(1 - broken)
    weights = jnp.append(broken, 1.0) * jnp.append(1.0, rest)
    weights = numpyro.deterministic("weights", weights)
    locs = sample("locs", dist.Normal(0, 2.0).expand([sticks + 1]).to_event(1))
    k = sample("k", dist.Categorical(probs=weights), infer={"enumerate": "parallel"})
    sample("y", dist.Normal(Vindex(locs)[k], 0.5))


def matrices():
    """Covariances, and rows and columns that depend on each other."""
    cov = sample("cov", dist.WishartCholesky(5.0, scale_tril=0.5 * jnp.eye(2)))
    rows = jnp.linalg.cholesky(jnp.eye(2) + 0.3)
    loc = param("place", 0.4) * jnp.ones((2, 2))
    m = sample("m", dist.MatrixNormal(loc, rows, jnp.eye(2)))
    law = dist.MultivariateStudentT(6.0, m[0], cov + 0.1 * jnp.eye(2))
    sample("y", law)


def disease_map():
    """Counts of areas with neighbours."""
    adjacent = jnp.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
    tau = sample("tau", dist.Gamma(3.0, 2.0))
    field = sample("field", dist.CAR(jnp.zeros(4), 0.6, tau, adjacent))
    rate = numpyro.deterministic("rate", jnp.exp(param("level", 0.4) + 0.5 * field))
    sample("cases", dist.Poisson(rate).to_event(1))


def hurdle():
    """Whether it rains, and how much."""
    wet = sample("wet", dist.Normal(param("level", 0.5), 0.5))
    gate = jax.nn.sigmoid(-wet)
    sample("rain", dist.HurdleGamma(gate, 2.0, 1.5))


# --- not traced -------------------------------------------------------------------
class Norm(linen.Module):
    """Batch normalisation in linen."""

    @linen.compact
    def __call__(self, x):
        return linen.BatchNorm(use_running_average=False)(linen.Dense(2)(x))


class Drop(linen.Module):
    """Dropout in linen."""

    @linen.compact
    def __call__(self, x):
        return linen.Dropout(0.5, deterministic=False)(linen.Dense(2)(x))


def proportions():
    """A copula whose marginals have no icdf without another package."""
    corr = sample("corr", dist.LKJCholesky(2, concentration=2.0))
    first = param("first", 2.0, constraint=constraints.positive)
    sample("y", dist.GaussianCopulaBeta(first, 3.0, correlation_cholesky=corr))


def linen_batch_norm():
    net = flax_module(
        "net", Norm(), input_shape=(4, 3), apply_rng=None, mutable=["batch_stats"]
    )
    sample("y", dist.Normal(net(X), param("scale", 1.0)).to_event(2))


def linen_dropout():
    net = flax_module("net", Drop(), input_shape=(4, 3), apply_rng=["dropout"])
    out = net(X, rngs={"dropout": numpyro.prng_key()})
    sample("y", dist.Normal(out, param("scale", 1.0)).to_event(2))


class NnxDrop(nnx.Module):
    """Dropout in nnx, with a stream of keys."""

    def __init__(self, rngs):
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(x)


def nnx_dropout():
    net = nnx_module("net", NnxDrop(nnx.Rngs(0)))
    sample("y", dist.Normal(net(X), param("scale", 1.0)).to_event(2))
