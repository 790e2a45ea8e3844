# SPDX-License-Identifier: Apache-2.0
"""The table: one row for each distribution of NumPyro and of this package."""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.special import logit, ndtri

import numpyro.distributions as dist

from numpyro_infograd.distributions import (
    Clipped,
    ComplexNormal,
    MultivariateComplexNormal,
    Quantized,
)
from numpyro_infograd.exogenous import samplers
from numpyro_infograd.exogenous.lookup import ends_of, reason_not_reparametrized
from numpyro_infograd.exogenous.rows import (
    FIXED,
    Noise,
    Row,
    at,
    keyed,
    mixes_atoms,
    normal,
    uniform,
    unless_above_one,
)
from numpyro_infograd.exogenous.wrappers import (
    EXPANDED,
    TRANSFORMED,
    WRAPPED,
    computed,
    copula,
    copula_reason,
    euler_maruyama,
    parts_ends,
    refused,
    truncated,
    truncated_reason,
)


def _censored(instead: str) -> Row:
    return refused(
        "its draws are not censored, so they do not follow its log_prob (the law of "
        f"what a censored sensor shows is ig.distributions.{instead})",
        law=False,
    )


_GATE = refused("the gradient of the gate would be silently zero")
_ANGLE = refused("the gradient does not pass its rejection sampler")


def _discrete(d) -> str:
    return f"{type(d).__name__} is discrete"


def _mixture_reason(d) -> str:
    why = "the gradient of the mixing weights would be silently zero"
    if mixes_atoms(d):
        why = (
            "a component has atoms, as a Delta or a Clipped has, which have no density "
            "(draw the component as a site, compute the value from it, and add noise)"
        )
    return f"{type(d).__name__}: {why}"


def _few(formula) -> Row:
    """A discrete distribution of few values: no gradient, but quasi-random draws."""
    return uniform(formula, lambda d: None, _discrete)._replace(few=True)


def _clipped_ends(d):
    bounds = tuple(bound for bound in (d.low, d.high) if bound is not None)
    return (*bounds, *(ends_of(d.base_dist) or ()))


_MIXTURE = keyed(parts_ends, _mixture_reason)
_LOW, _HIGH, _LOW_HIGH = at("low"), at("high"), at("low", "high")

# fmt: off
ROWS: dict[type, Row] = {
    # one standard normal for each coordinate
    dist.Normal: normal(lambda d, z: d.loc + d.scale * z),
    dist.MultivariateNormal: normal(
        lambda d, z: d.loc + samplers.times(d.scale_tril, z)
    ),
    dist.LowRankMultivariateNormal: normal(
        samplers.low_rank, event=lambda d: (d.event_shape[0] + d.cov_factor.shape[-1],)
    ),
    dist.MatrixNormal: normal(
        lambda d, z: d.loc + d.scale_tril_row @ z @ d.scale_tril_column.mT
    ),
    dist.CAR: normal(samplers.car),
    dist.GaussianRandomWalk: normal(
        lambda d, z: jnp.expand_dims(d.scale, -1) * jnp.cumsum(z, axis=-1)
    ),
    dist.ProjectedNormal: normal(samplers.projected_normal),
    **dict.fromkeys(
        (ComplexNormal, MultivariateComplexNormal),
        normal(lambda d, z: d.from_normal(z), event=lambda d: (*d.event_shape, 2)),
    ),
    dist.GaussianCopula: normal(
        copula, lambda d: ends_of(d.marginal_dist), copula_reason
    ),
    # one uniform, by the quantile function
    dist.AsymmetricLaplace: uniform(lambda d, u: d.icdf(u)),
    dist.AsymmetricLaplaceQuantile: uniform(lambda d, u: d.icdf(u)),
    dist.Cauchy: uniform(lambda d, u: d.loc + d.scale * samplers.cauchy(u)),
    dist.Dagum: uniform(
        samplers.dagum, unless_above_one(lambda d: d.concentration * d.sharpness)
    ),
    dist.DoublyTruncatedPowerLaw: uniform(lambda d, u: d.icdf(u), _LOW_HIGH),
    dist.Exponential: uniform(lambda d, u: -jnp.log1p(-u) / d.rate, FIXED),
    dist.Gompertz: uniform(lambda d, u: d.icdf(u), FIXED),
    dist.Gumbel: uniform(lambda d, u: d.loc - d.scale * jnp.log(-jnp.log(u))),
    dist.HalfCauchy: uniform(lambda d, u: d.scale * samplers.half_cauchy(u), FIXED),
    dist.HalfNormal: uniform(lambda d, u: d.scale * samplers.half_normal(u), FIXED),
    dist.Kumaraswamy: uniform(samplers.kumaraswamy, FIXED),
    dist.Laplace: uniform(lambda d, u: d.loc + d.scale * samplers.laplace(u)),
    dist.LeftTruncatedDistribution: uniform(truncated, _LOW, truncated_reason),
    dist.LeftTruncatedGamma: uniform(lambda d, u: d.icdf(u), _LOW),
    dist.Levy: uniform(lambda d, u: d.loc + d.scale / ndtri(u / 2) ** 2),
    dist.Logistic: uniform(lambda d, u: d.loc + d.scale * logit(u)),
    dist.LowerTruncatedPowerLaw: uniform(
        lambda d, u: d.low * jnp.exp(jnp.log1p(-u) / (1 + d.alpha)), _LOW
    ),
    dist.RightTruncatedDistribution: uniform(truncated, _HIGH, truncated_reason),
    dist.RightTruncatedGamma: uniform(lambda d, u: d.icdf(u), _HIGH),
    dist.SoftLaplace: uniform(lambda d, u: d.loc + d.scale * samplers.soft_laplace(u)),
    dist.TwoSidedTruncatedDistribution: uniform(
        truncated, _LOW_HIGH, truncated_reason
    ),
    dist.TwoSidedTruncatedGamma: uniform(lambda d, u: d.icdf(u), _LOW_HIGH),
    dist.Uniform: uniform(lambda d, u: d.low + u * (d.high - d.low), _LOW_HIGH),
    dist.Weibull: uniform(
        lambda d, u: d.scale * (-jnp.log1p(-u)) ** (1 / d.concentration),
        unless_above_one(lambda d: d.concentration),
    ),
    # the noise of another distribution
    **dict.fromkeys((
        dist.CirculantNormal, dist.GaussianStateSpace, dist.InverseWishart, dist.LKJ,
        dist.LogNormal, dist.LogUniform, dist.Pareto, dist.RelaxedBernoulliLogits,
        dist.Wishart, dist.ZeroSumNormal,
    ), TRANSFORMED),
    dist.InverseGamma: TRANSFORMED._replace(ends=lambda d: None),
    # discrete, one uniform
    dist.BernoulliLogits: _few(samplers.bernoulli),
    dist.BernoulliProbs: _few(samplers.bernoulli),
    dist.CategoricalLogits: _few(samplers.categorical),
    dist.CategoricalProbs: _few(samplers.categorical),
    dist.DiscreteUniform: _few(samplers.discrete_uniform)._replace(ends=_LOW_HIGH),
    # one key, by NumPyro's sampler
    **dict.fromkeys((
        dist.Beta, dist.BetaProportion, dist.Dirichlet, dist.InverseWishartCholesky,
        dist.LKJCholesky, dist.WishartCholesky,
    ), keyed(FIXED)),
    dist.Chi2: keyed(unless_above_one(lambda d: d.concentration)),
    dist.EulerMaruyama: keyed(
        lambda d: ends_of(d.init_dist), lambda d: reason_not_reparametrized(d.init_dist)
    )._replace(transform=euler_maruyama),
    dist.Gamma: keyed(unless_above_one(lambda d: d.concentration)),
    dist.MultivariateStudentT: keyed(),
    dist.StudentT: keyed(),
    # wrappers of another distribution
    dist.ExpandedDistribution: EXPANDED,
    dist.FoldedDistribution: TRANSFORMED,
    dist.Independent: WRAPPED,
    dist.MaskedDistribution: WRAPPED,
    dist.TransformedDistribution: TRANSFORMED,
    # a function of a draw of another distribution, without a correct gradient
    Clipped: computed(
        lambda d, x: d.clip(x),
        _clipped_ends,
        lambda d: "Clipped has atoms at its bounds, and draws do not carry their "
        "gradient",
    )._replace(atoms=True),
    Quantized: computed(
        lambda d, x: d.encode(x),
        lambda d: None if d.levels is None else (d.levels,),
        _discrete,
    ),
    # no noise
    dist.Delta: Row(
        lambda d, s: Noise("none", ()),
        lambda d, _, s: jnp.broadcast_to(d.v, d.shape(s)),
    ),
    # without a correct gradient
    dist.GaussianCopulaBeta: refused("no quantile function of Beta is known"),
    dist.HurdleGamma: _GATE._replace(atoms=True),
    dist.HurdleLogits: _GATE,
    dist.HurdleLogNormal: _GATE._replace(atoms=True),
    dist.HurdleProbs: _GATE,
    dist.ImproperUniform: refused("it cannot be sampled", law=False),
    dist.IntervalCensoredDistribution: _censored("Quantized(base, edges)"),
    dist.LeftCensoredDistribution: _censored("Clipped(base, low=limit)"),
    dist.MixtureGeneral: _MIXTURE,
    dist.MixtureSameFamily: _MIXTURE,
    dist.RightCensoredDistribution: _censored("Clipped(base, high=limit)"),
    dist.SineBivariateVonMises: _ANGLE,
    dist.SineSkewed: refused("the gradient does not pass its reflection of draws"),
    dist.TruncatedPolyaGamma: refused(
        "its draws do not quite follow its log_prob", law=False
    ),
    dist.Unit: refused("it is a factor statement, not a random variable", law=False),
    dist.VonMises: _ANGLE,
}
# fmt: on
