# SPDX-License-Identifier: Apache-2.0
"""The one table: NumPyro distribution -> base noise and transform.

A site drawn from `fn` is written as `value = transform(fn, noise)`, where the law of
`noise` does not depend on any parameter. The noise is explicit (independent standard
normals, or uniforms on the open unit interval) wherever there is a well-conditioned
closed form, so that quasi-random points can take its place; else it is one PRNG key.
Classes are looked up exactly, because a subclass may override its sampler: what is
not in the table, or is in it with a reason, never pretends to have a gradient.

Example:
    >>> import jax, numpyro.distributions as dist
    >>> from numpyro_infograd import exogenous
    >>> fn = dist.Exponential(2.0).expand((3,)).to_event(1)
    >>> exogenous.noise_of(fn, (5,))
    Noise(kind='uniform', shape=(5, 3))
    >>> float(jax.grad(lambda s: exogenous.transform(dist.Normal(0.0, s), 1.5))(2.0))
    1.5
    >>> exogenous.reason_not_reparametrized(dist.Poisson(3.0))
    'Poisson is discrete'
"""

from __future__ import annotations

from collections.abc import Callable
import copy
import functools
from typing import Any, NamedTuple
import weakref

import numpy as np

import jax
from jax import Array
import jax.numpy as jnp
from jax.scipy.special import logit, ndtr, ndtri

import numpyro.distributions as dist
from numpyro.distributions import Distribution, constraints, transforms as maps

from numpyro_infograd import samplers
from numpyro_infograd.errors import ArgumentError, ModelError
from numpyro_infograd.jaxpr_facts import EXOGENOUS


class Noise(NamedTuple):
    """The law of a site's exogenous noise; static and hashable.

    Attributes:
        kind: "normal" (independent N(0, 1)), "uniform" (independent on the open unit
            interval), "key" (one PRNG key) or "none" (`Delta`).
        shape: Shape of the noise array; () for "key" and "none".

    Example:
        >>> import numpyro.distributions as dist
        >>> noise_of(dist.Gamma(3.0)) == Noise("key", ())
        True
    """

    kind: str
    shape: tuple[int, ...]


class _Row(NamedTuple):
    """One row of the table.

    `ends` gives the arrays that locate the jumps of the density: () if it jumps where
    no parameter can move it, None if it is continuous. The difference matters when a
    transform moves the value.
    """

    noise: Callable[[Any, tuple[int, ...]], Noise]
    transform: Callable[[Any, Any, tuple[int, ...]], Any]
    ends: Callable[[Any], tuple[Any, ...] | None] = lambda d: None
    reason: Callable[[Any], str] = lambda d: ""


def _trusted(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same formula under the scope where no jump is looked for."""

    @functools.wraps(fn)
    def scoped(*args):
        with jax.named_scope(EXOGENOUS):
            return fn(*args)

    return scoped


def _normal(formula, *tags, event=lambda d: d.event_shape) -> _Row:
    def noise(d, s):
        return Noise("normal", s + d.batch_shape + tuple(event(d)))

    return _Row(noise, _trusted(lambda d, z, s: formula(d, z)), *tags)


def _uniform(formula, *tags) -> _Row:
    # Every formula must increase in u: truncation and copulas use it as a quantile.
    def noise(d, s):
        return Noise("uniform", s + d.batch_shape)

    return _Row(noise, _trusted(lambda d, u, s: formula(d, u)), *tags)


def _sample(d, key, s):
    # NumPyro's rsample is sample behind a flag that some right samplers do not set.
    return d.rsample(key, s) if d.has_rsample else d.sample(key, s)


def _key(*tags) -> _Row:
    return _Row(lambda d, s: Noise("key", ()), _trusted(_sample), *tags)


def _refused(clause: str) -> _Row:
    return _key(_parts_ends, lambda d: f"{type(d).__name__}: {clause}")


# --- where densities jump --------------------------------------------------------


def _at(*names: str) -> Callable[[Any], tuple[Any, ...]]:
    return lambda d: tuple(getattr(d, name) for name in names)


_fixed = _at()


def _unless_above_one(power: Callable[[Any], Any]) -> Callable[[Any], Any]:
    # x**(power - 1) vanishes at the end of the support only for power > 1; a power
    # that is being traced is not known, hence may jump.
    def ends(d):
        p = power(d)
        traced = isinstance(p, jax.core.Tracer)
        return () if traced or np.any(np.asarray(p) <= 1) else None

    return ends


def _parts_ends(d):
    is_fn = lambda x: isinstance(x, Distribution)  # noqa: E731
    parts = filter(is_fn, jax.tree.leaves(list(vars(d).values()), is_leaf=is_fn))
    known = [ends for ends in map(_ends, parts) if ends is not None]
    return sum(known, ()) if known else None


def _transformed_ends(d):
    # A map onto a part of the line makes ends. Gaussian tails vanish there faster than
    # any power, other tails may not; folding leaves a jump whatever the tail.
    onto_part = any(not _on_the_line(t.codomain) for t in d.transforms)
    folds = any(isinstance(t, maps.AbsTransform) for t in d.transforms)
    ends, kind = _ends(d.base_dist), _row(d.base_dist).noise(d.base_dist, ()).kind
    if ends is None and not folds and (kind == "normal" or not onto_part):
        return None
    return (*(ends or ()), *jax.tree.leaves(d.transforms))


def _on_the_line(support) -> bool:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is constraints.real


# --- formulas longer than a line -------------------------------------------------


def _quantile(d, p):
    row = _TABLE[type(d)]
    return row.transform(d, ndtri(p) if row.noise(d, ()).kind == "normal" else p, ())


def _truncated(d, u):
    # The base is symmetric about loc. Interpolating both tail probabilities and
    # inverting the smaller one stays accurate far out on either side.
    base = d.base_dist
    low, high = getattr(d, "low", None), getattr(d, "high", None)

    def interpolate(sign):
        def at(x):
            return samplers.cdf(base, base.loc + sign * (x - base.loc))

        first = 0.5 - 0.5 * sign if low is None else at(low)
        last = 0.5 + 0.5 * sign if high is None else at(high)
        return (1 - u) * first + u * last

    below, above = interpolate(1), interpolate(-1)
    tail = jnp.maximum(jnp.minimum(below, above), jnp.finfo(u.dtype).tiny)
    x = _quantile(base, tail)
    return jnp.clip(jnp.where(below < above, x, 2 * base.loc - x), low, high)


_SYMMETRIC = (dist.Cauchy, dist.Laplace, dist.Logistic, dist.Normal, dist.SoftLaplace)


def _truncated_reason(d) -> str:
    known = type(d.base_dist) in _SYMMETRIC
    return "" if known else _no_quantile(d, d.base_dist)


def _no_quantile(d, base) -> str:
    name = type(base).__name__
    return f"{type(d).__name__}: no quantile function of {name} is known"


def _copula(d, z):
    g = samplers.times(d.base_dist.scale_tril, z)
    row = _TABLE[type(d.marginal_dist)]
    if row.noise(d.marginal_dist, ()).kind == "uniform":
        eps = jnp.finfo(g.dtype).epsneg
        g = jnp.clip(ndtr(g), eps, 1 - eps)
    return row.transform(d.marginal_dist, g, ())


def _copula_reason(d) -> str:
    m = d.marginal_dist
    single = type(m) in _BUILT_IN and type(m) not in _WRAPPERS and not m.event_shape
    known = single and _row(m).noise(m, ()).kind in ("normal", "uniform")
    return _reason(m) if known else _no_quantile(d, m)


def _euler_maruyama(d, key, s):
    # The initial value goes through this table, NumPyro does the steps. They call the
    # user's drift, so this stands outside the trusted scope.
    key_init, key_steps = jax.random.split(key)
    init = d.init_dist.expand(s + d.batch_shape)
    noise: Any = key_init
    kind, shape = noise_of(init)
    if kind in ("normal", "uniform"):
        noise = getattr(jax.random, kind)(key_init, shape)
    start = dist.Delta(transform(init, noise), event_dim=len(init.event_shape))
    return dist.EulerMaruyama(d.t, d.sde_fn, start).sample(key_steps)


# --- wrappers --------------------------------------------------------------------


def _expanded_noise(d, s) -> Noise:
    kind, shape = _row(d.base_dist).noise(d.base_dist, ())
    if kind in ("key", "none"):
        return Noise(kind, ())
    return Noise(kind, s + d.batch_shape + shape[len(d.base_dist.batch_shape) :])


def _expanded(d, noise, s):
    # Samples the base more often, so that every cell has noise of its own. Batch
    # dimension i is more[i] * own[i], one of the two being 1.
    base, n, cut = d.base_dist, len(d.batch_shape), len(s)
    own = (1,) * (n - len(base.batch_shape)) + tuple(base.batch_shape)
    more = tuple(b if a == 1 else 1 for a, b in zip(own, d.batch_shape, strict=True))
    if _row(base).noise(base, ()).kind in ("normal", "uniform"):
        rest = jnp.shape(noise)[cut + n :]
        pairs = tuple(size for pair in zip(more, own, strict=True) for size in pair)
        noise = jnp.reshape(noise, s + pairs + rest)
        noise = jnp.moveaxis(noise, range(cut, cut + 2 * n, 2), range(cut, cut + n))
        noise = jnp.reshape(noise, s + more + tuple(base.batch_shape) + rest)
    value = _row(base).transform(base, noise, s + more)
    value = jnp.reshape(value, s + more + own + d.event_shape)
    value = jnp.moveaxis(value, range(cut, cut + n), range(cut, cut + 2 * n, 2))
    return jnp.reshape(value, d.shape(s))


def _transformed(d, noise, s):
    value = _row(d.base_dist).transform(d.base_dist, noise, s)
    for step in d.transforms:
        value = (_trusted(step) if _is_numpyros(step) else step)(value)
    return value


def _is_numpyros(code) -> bool:
    """Whether no code of a user runs in it, at any depth of its attributes."""
    parts = jax.tree.leaves(list(vars(code).values()), is_leaf=callable)
    inside = (p for p in parts if callable(p) and not isinstance(p, weakref.ref))
    ours = type(code).__module__.startswith("numpyro.")
    return ours and all(isinstance(p, _CODE) and _is_numpyros(p) for p in inside)


_CODE = (maps.Transform, constraints.Constraint)


_WRAPPED = _Row(
    lambda d, s: _row(d.base_dist).noise(d.base_dist, s),
    lambda d, noise, s: _row(d.base_dist).transform(d.base_dist, noise, s),
    lambda d: _ends(d.base_dist),
    lambda d: _reason(d.base_dist),
)
_TRANSFORMED = _WRAPPED._replace(transform=_transformed, ends=_transformed_ends)

_WRAPPERS: dict[type, _Row] = {
    dist.ExpandedDistribution: _WRAPPED._replace(
        noise=_expanded_noise, transform=_expanded
    ),
    dist.FoldedDistribution: _TRANSFORMED,
    dist.Independent: _WRAPPED,
    dist.MaskedDistribution: _WRAPPED,
    dist.TransformedDistribution: _TRANSFORMED,
}

# --- the table -------------------------------------------------------------------

_CENSORED = _refused("its draws, not being censored, do not follow its log_prob")
_GATE = _refused("the gradient of the gate would be silently zero")
_MIXTURE = _refused("the gradient of the mixing weights would be silently zero")
_ANGLE = _refused("the gradient does not pass its rejection sampler")


def _few(formula) -> _Row:
    """A law of a few values: no gradient passes, but its draws may be quasi-random."""
    return _uniform(
        formula, lambda d: None, lambda d: f"{type(d).__name__} is discrete"
    )


_DISCRETE: dict[type, _Row] = {
    dist.BernoulliLogits: _few(samplers.bernoulli),
    dist.BernoulliProbs: _few(samplers.bernoulli),
    dist.CategoricalLogits: _few(samplers.categorical),
    dist.CategoricalProbs: _few(samplers.categorical),
    dist.DiscreteUniform: _few(samplers.discrete_uniform),
}

_LOW, _HIGH, _LOW_HIGH = _at("low"), _at("high"), _at("low", "high")

# fmt: off
_TABLE: dict[type, _Row] = _WRAPPERS | {
    # one normal for each coordinate
    dist.Normal: _normal(lambda d, z: d.loc + d.scale * z),
    dist.MultivariateNormal: _normal(
        lambda d, z: d.loc + samplers.times(d.scale_tril, z)
    ),
    dist.LowRankMultivariateNormal: _normal(
        samplers.low_rank, event=lambda d: (d.event_shape[0] + d.cov_factor.shape[-1],)
    ),
    dist.MatrixNormal: _normal(
        lambda d, z: d.loc + d.scale_tril_row @ z @ d.scale_tril_column.mT
    ),
    dist.CAR: _normal(samplers.car),
    dist.GaussianRandomWalk: _normal(
        lambda d, z: jnp.expand_dims(d.scale, -1) * jnp.cumsum(z, axis=-1)
    ),
    dist.ProjectedNormal: _normal(samplers.projected_normal),
    dist.GaussianCopula: _normal(
        _copula, lambda d: _ends(d.marginal_dist), _copula_reason
    ),
    # one uniform, through the quantile function
    dist.AsymmetricLaplace: _uniform(lambda d, u: d.icdf(u)),
    dist.AsymmetricLaplaceQuantile: _uniform(lambda d, u: d.icdf(u)),
    dist.Cauchy: _uniform(lambda d, u: d.loc + d.scale * samplers.cauchy(u)),
    dist.Dagum: _uniform(
        samplers.dagum, _unless_above_one(lambda d: d.concentration * d.sharpness)
    ),
    dist.DoublyTruncatedPowerLaw: _uniform(lambda d, u: d.icdf(u), _LOW_HIGH),
    dist.Exponential: _uniform(lambda d, u: -jnp.log1p(-u) / d.rate, _fixed),
    dist.Gompertz: _uniform(lambda d, u: d.icdf(u), _fixed),
    dist.Gumbel: _uniform(lambda d, u: d.loc - d.scale * jnp.log(-jnp.log(u))),
    dist.HalfCauchy: _uniform(lambda d, u: d.scale * samplers.half_cauchy(u), _fixed),
    dist.HalfNormal: _uniform(lambda d, u: d.scale * samplers.half_normal(u), _fixed),
    dist.Kumaraswamy: _uniform(samplers.kumaraswamy, _fixed),
    dist.Laplace: _uniform(lambda d, u: d.loc + d.scale * samplers.laplace(u)),
    dist.LeftTruncatedDistribution: _uniform(_truncated, _LOW, _truncated_reason),
    dist.LeftTruncatedGamma: _uniform(lambda d, u: d.icdf(u), _LOW),
    dist.Levy: _uniform(lambda d, u: d.loc + d.scale / ndtri(u / 2) ** 2),
    dist.Logistic: _uniform(lambda d, u: d.loc + d.scale * logit(u)),
    dist.LowerTruncatedPowerLaw: _uniform(
        lambda d, u: d.low * jnp.exp(jnp.log1p(-u) / (1 + d.alpha)), _LOW
    ),
    dist.RightTruncatedDistribution: _uniform(_truncated, _HIGH, _truncated_reason),
    dist.RightTruncatedGamma: _uniform(lambda d, u: d.icdf(u), _HIGH),
    dist.SoftLaplace: _uniform(lambda d, u: d.loc + d.scale * samplers.soft_laplace(u)),
    dist.TwoSidedTruncatedDistribution: _uniform(
        _truncated, _LOW_HIGH, _truncated_reason
    ),
    dist.TwoSidedTruncatedGamma: _uniform(lambda d, u: d.icdf(u), _LOW_HIGH),
    dist.Uniform: _uniform(lambda d, u: d.low + u * (d.high - d.low), _LOW_HIGH),
    dist.Weibull: _uniform(
        lambda d, u: d.scale * (-jnp.log1p(-u)) ** (1 / d.concentration),
        _unless_above_one(lambda d: d.concentration),
    ),
    # the noise of another distribution
    **dict.fromkeys((
        dist.CirculantNormal, dist.GaussianStateSpace, dist.InverseWishart, dist.LKJ,
        dist.LogNormal, dist.LogUniform, dist.Pareto, dist.RelaxedBernoulliLogits,
        dist.Wishart, dist.ZeroSumNormal,
    ), _TRANSFORMED),
    dist.InverseGamma: _TRANSFORMED._replace(ends=lambda d: None),
    # discrete, one uniform
    **_DISCRETE,
    # one key, through NumPyro's sampler
    **dict.fromkeys((
        dist.Beta, dist.BetaProportion, dist.Dirichlet, dist.InverseWishartCholesky,
        dist.LKJCholesky, dist.WishartCholesky,
    ), _key(_fixed)),
    dist.Chi2: _key(_unless_above_one(lambda d: d.concentration)),
    dist.EulerMaruyama: _key(
        lambda d: _ends(d.init_dist), lambda d: _reason(d.init_dist)
    )._replace(transform=_euler_maruyama),
    dist.Gamma: _key(_unless_above_one(lambda d: d.concentration)),
    dist.MultivariateStudentT: _key(),
    dist.StudentT: _key(),
    # no noise
    dist.Delta: _Row(
        lambda d, s: Noise("none", ()),
        lambda d, _, s: jnp.broadcast_to(d.v, d.shape(s)),
    ),
    # no right gradient
    dist.GaussianCopulaBeta: _refused("no quantile function of Beta is known"),
    dist.HurdleGamma: _GATE,
    dist.HurdleLogits: _GATE,
    dist.HurdleLogNormal: _GATE,
    dist.HurdleProbs: _GATE,
    dist.ImproperUniform: _refused("it cannot be sampled"),
    dist.IntervalCensoredDistribution: _CENSORED,
    dist.LeftCensoredDistribution: _CENSORED,
    dist.MixtureGeneral: _MIXTURE,
    dist.MixtureSameFamily: _MIXTURE,
    dist.RightCensoredDistribution: _CENSORED,
    dist.SineBivariateVonMises: _ANGLE,
    dist.SineSkewed: _refused("the gradient does not pass its reflection of draws"),
    dist.TruncatedPolyaGamma: _refused("its draws do not quite follow its log_prob"),
    dist.Unit: _refused("it is a factor statement, not a random variable"),
    dist.VonMises: _ANGLE,
}
# fmt: on

_BUILT_IN = frozenset(_TABLE)
_DRAWN = _key()  # what has a reason is drawn whole, unless it is in _DISCRETE


# --- looking up ------------------------------------------------------------------


def _reason(fn) -> str:
    row, name = _TABLE.get(type(fn)), type(fn).__name__
    if row is not None and row.reason(fn):
        return row.reason(fn)
    # The support says what is discrete; the dtype does not (Geometric draws floats).
    if row is None or type(fn) not in _BUILT_IN:
        if fn.support.is_discrete:
            return f"{name} is discrete"
    return "" if row else f"{name} is not a distribution this package knows"


def _row(fn) -> _Row:
    leaf = fn
    while type(leaf) in (
        dist.ExpandedDistribution,
        dist.Independent,
        dist.MaskedDistribution,
    ):
        leaf = leaf.base_dist
    keyed = _reason(fn) and type(leaf) not in _DISCRETE
    return _DRAWN if keyed else _TABLE[type(fn)]


def _ends(fn) -> tuple[Any, ...] | None:
    row = _TABLE.get(type(fn))
    if row is not None:
        return row.ends(fn)
    return None if fn.support.is_discrete else tuple(jax.tree.leaves(fn))


# --- the public functions --------------------------------------------------------


def noise_of(fn: Distribution, sample_shape: tuple[int, ...] = ()) -> Noise:
    """Returns the law of the noise that `transform` takes.

    Args:
        fn: Any distribution that can be sampled. Its expanded cells are independent.
        sample_shape: Leading shape of independent draws.

    Returns:
        Explicit noise of shape `sample_shape + batch_shape + base event shape`, or a
        key, or none. A distribution with a `reason_not_reparametrized` takes a key, but
        for laws of a few values.

    Raises:
        ModelError: `fn` is improper, or a factor statement.
        ArgumentError: `fn` is no distribution.

    Example:
        >>> import numpyro.distributions as dist
        >>> noise_of(dist.Normal(0.0, 1.0).expand((3,)), (100,))
        Noise(kind='normal', shape=(100, 3))
    """
    if not isinstance(fn, Distribution):
        raise ArgumentError(
            f"fn must be a NumPyro distribution, got {fn!r:.80}. Call its class: "
            "dist.Normal(0.0, 1.0)."
        )
    leaf: Any = fn
    while type(leaf) in _WRAPPERS:
        leaf = leaf.base_dist
    if isinstance(leaf, (dist.ImproperUniform, dist.Unit)):
        raise ModelError(
            f"{type(leaf).__name__} has no draws, but every site of a generative model "
            f"needs one. Use a distribution with a proper density instead."
        )
    return _row(fn).noise(fn, tuple(sample_shape))


def transform(fn: Distribution, noise: Any, sample_shape: tuple[int, ...] = ()) -> Any:
    """Returns the value of a site as a function of its parameters and its noise.

    The derivative with respect to the parameters of `fn` is the right pathwise one
    whenever `reason_not_reparametrized(fn)` is empty; otherwise this is a plain draw.

    Args:
        fn: The distribution; its parameters may be traced.
        noise: What `noise_of(fn, sample_shape)` describes, an array of its shape or a
            key; ignored for kind "none".
        sample_shape: Leading shape of independent draws.

    Returns:
        Array of shape `sample_shape + fn.batch_shape + fn.event_shape`.

    Raises:
        ModelError: `fn` is improper, or a factor statement.
        ArgumentError: `noise` has another shape than `noise_of` says; `fn` is no
            distribution.

    Example:
        >>> import numpyro.distributions as dist
        >>> float(transform(dist.Normal(1.0, 2.0), 0.5))
        2.0
    """
    kind, shape = noise_of(fn, sample_shape)
    if kind in ("normal", "uniform") and jnp.shape(noise) != shape:
        raise ArgumentError(
            f"noise for {type(fn).__name__} has shape {jnp.shape(noise)}, expected "
            f"{shape}: draw it as noise_of(fn, sample_shape) says."
        )
    return _row(fn).transform(fn, noise, tuple(sample_shape))


def reason_not_reparametrized(fn: Distribution) -> str:
    """Returns why the pathwise gradient of `fn` would be wrong, in one clause.

    Args:
        fn: Any distribution.

    Returns:
        "" if the gradient with respect to every parameter of `fn` is right.

    Example:
        >>> import numpyro.distributions as dist
        >>> reason_not_reparametrized(dist.VonMises(0.0, 1.0))
        'VonMises: the gradient does not pass its rejection sampler'
        >>> reason_not_reparametrized(dist.Gamma(3.0))
        ''
    """
    return _reason(fn)


def density(fn: Distribution) -> Distribution:
    """Returns the distribution whose `log_prob` is the density of the site.

    A mask changes what is summed into a likelihood, not how the site is drawn: it is
    taken off wherever it is nested. Everything else stays.

    Args:
        fn: Any distribution.

    Example:
        >>> import numpyro.distributions as dist
        >>> fn = dist.Normal(0.0, 1.0).mask(False)
        >>> float(fn.log_prob(0.0)), round(float(density(fn).log_prob(0.0)), 4)
        (0.0, -0.9189)
    """
    if type(fn) is dist.MaskedDistribution:
        return density(fn.base_dist)
    if type(fn) not in _WRAPPERS or density(fn.base_dist) is fn.base_dist:
        return fn
    bare = copy.copy(fn)
    bare.base_dist = density(fn.base_dist)
    return bare


def boundary(fn: Distribution) -> tuple[Array, ...]:
    """Returns the arrays that locate the jumps of the density of `fn`.

    A score misses what a moving jump contributes, so what these arrays depend on
    matters.

    Args:
        fn: Any distribution.

    Returns:
        () if the density is continuous, or jumps only where no parameter can move it.
        For a class that is not known, every array of `fn`.

    Example:
        >>> import numpyro.distributions as dist
        >>> [float(end) for end in boundary(dist.Uniform(-1.0, 3.0))]
        [-1.0, 3.0]
        >>> boundary(dist.Exponential(2.0))  # jumps at 0, always
        ()
    """
    return tuple(jnp.asarray(end) for end in _ends(fn) or ())


def vouch(
    cls: Any = None,
    *,
    base_noise: Callable[[Any, tuple[int, ...]], Noise] | None = None,
    transform: Callable[[Any, Any, tuple[int, ...]], Any] | None = None,
    boundary: tuple[str, ...] = (),
) -> Any:
    """Vouches that a class this package does not know has a right pathwise gradient.

    Without functions the noise is one key, and `fn.rsample` (`fn.sample` where
    `has_rsample` is false) has the right gradient for every parameter of `fn`.

    Args:
        cls: The class; its subclasses must be vouched for on their own.
        base_noise: `base_noise(fn, sample_shape)` gives the `Noise`, of shape
            `sample_shape + fn.batch_shape + ...`.
        transform: `transform(fn, noise, sample_shape)` gives the value.
        boundary: Names of attributes of `fn` that locate jumps of its density.

    Returns:
        `cls`; without `cls`, a decorator.

    Raises:
        ArgumentError: `cls` is not a distribution class, is one that this package
            already knows, or only one of the two functions is given; `boundary` holds
            something else than names.

    Example:
        >>> import numpyro.distributions as dist
        >>> @vouch
        ... class Ours(dist.Normal):
        ...     pass
        >>> reason_not_reparametrized(Ours(0.0, 1.0))
        ''
    """
    if cls is None:
        return functools.partial(
            vouch, base_noise=base_noise, transform=transform, boundary=boundary
        )
    if not (isinstance(cls, type) and issubclass(cls, Distribution)):
        raise ArgumentError(f"vouch takes a Distribution class, got {cls!r}.")
    if cls in _BUILT_IN:
        raise ArgumentError(
            f"{cls.__name__} is already known to this package. To sample it another "
            f"way, derive a class from it and vouch for that one."
        )
    if (base_noise is None) != (transform is None):
        raise ArgumentError(
            f"vouching for {cls.__name__} with explicit noise takes both base_noise "
            f"and transform, got only one."
        )

    if not all(map(callable, filter(None, (base_noise, transform)))):
        raise ArgumentError(
            f"vouching for {cls.__name__} takes functions as base_noise and transform, "
            f"got {base_noise!r:.80} and {transform!r:.80}."
        )
    if isinstance(boundary, str) or not all(isinstance(n, str) for n in boundary):
        raise ArgumentError(
            f"boundary must be a tuple of names of attributes, got {boundary!r:.80}."
        )

    def ends(d):
        return None if not boundary and _on_the_line(d.support) else _at(*boundary)(d)

    row = _key(ends)
    if base_noise is not None and transform is not None:
        row = row._replace(noise=base_noise, transform=_trusted(transform))
    _TABLE[cls] = row
    return cls
