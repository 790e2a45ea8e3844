# SPDX-License-Identifier: Apache-2.0
"""Values by de Bruijn's identity: an integral of Fisher information over noise.

Let w be the values in coordinates of mean 0 and covariance I, w_t = w + sqrt(t) z with
z standard normal, s_t the score of w_t, and -w_t / (1 + t) that of a normal
distribution of the same covariance. De Bruijn's identity (eqs. 54-55) then reads

    h(w) = -E log N(w; 0, I) - 1/2 int_0^inf E |s_t(w_t) + w_t / (1 + t)|^2 dt,

for any distribution of w. The Gaussian part is outside the integral. So the integrand
falls as t^-4 for large t, and is zero for a linear-Gaussian model.

s_t is the regression of the complete-data score at w_t on w_t. So the integral over
log t is one least squares problem, in which log t is one more coordinate of the
quasi-random points. Trained networks give its features; sums over fresh samples give
the value.
"""

from __future__ import annotations

from dataclasses import replace
import math
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import as_power_of_two, check_counts, check_widths
from numpyro_infograd._checks import check_atoms
from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._density import Density, flatten, simulate
from numpyro_infograd._doors import settings_class
from numpyro_infograd._edits import append_noise
from numpyro_infograd._noise import NoiseSource, draw_noise, subkeys
from numpyro_infograd._objectives import Objective
from numpyro_infograd._problem import REPLICATES
from numpyro_infograd._program import Program
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import (
    Term,
    has_atoms,
    has_density,
    resolve,
    trace_expectations,
)
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.exogenous import Noise
from numpyro_infograd.scores.base import complete_data_scores
from numpyro_infograd.scores.coordinates import HEAVY, tails_of
from numpyro_infograd.scores.network import Ensemble, adam, check_training, perceptron
from numpyro_infograd.values.base import Estimate, report
from numpyro_infograd.values.nested import average_each
from numpyro_infograd.values.regression import (
    Draws,
    Frame,
    Regression,
    explained,
    jackknife,
    least_squares,
    leave_one_out,
    orthogonal,
    solve,
)

_GROWING = 0.01  # share of a negentropy that the second half of the training may add
_POOLS = 4  # training samples, in units of the size of a replicate
_PLAIN = 2**15  # samples for the features' Gram matrix, and for what training adds
_FEW_BELOW = 8  # fewer than one in so many draws is below the lowest variance
# Estimate of what missing features would add, in units of what the second half of the
# features added. For models with a known value it was between one and two.
_MISSING = 1.5
_RESOLVED = 0.05  # share of an entropy that may be missing without a warning
_SYMBOLS = 64  # a discrete condition with more values is used as a number


@settings_class
class DeBruijn:
    """De Bruijn's identity (eqs. 54-55), with one score network for all variances.

    For deterministic outputs, and for information that is too high for nested averages.
    Entropies that hide no noise are averaged directly. The standard error includes
    sampling and fit (a jackknife over 16 replicates), the correction for features that
    the networks lack, what the second half of their training added, and the part below
    the lowest variance.

    Args:
        num_samples: Samples of the least squares problem, a power of two.
        hidden: Widths of the hidden layers.
        num_networks: Number of networks that give features, an even number.
        num_steps: Training steps.
        batch_size: Samples of a training step, divided among the networks.
        learning_rate: Peak of the cosine schedule.

    Example:
        >>> import numpyro_infograd as ig
        >>> method = ig.values.DeBruijn(num_steps=2000)  # `method=` of `estimate`
        >>> method.hidden
        (64, 64)
    """

    num_samples: int = 524288
    hidden: tuple[int, ...] = (64, 64)
    num_networks: int = 4
    num_steps: int = 1000
    batch_size: int = 2048
    learning_rate: float = 4e-3

    least_samples = 64 * REPLICATES

    def __post_init__(self) -> None:
        as_power_of_two("num_samples", self.num_samples, self.least_samples)
        check_counts(self, "num_networks")
        check_training(self, self.num_networks)
        if self.num_networks % 2:
            raise ArgumentError(f"num_networks must be even, got {self.num_networks}.")
        check_widths(self.hidden)

    def value(
        self, sm: StructuralModel, objective: Objective, params: Any, rng_key: jax.Array
    ) -> Estimate:
        """The value; each entropy that hides noise is one least squares problem."""
        why = why_not_fisher(objective, sm)
        if why:
            raise ArgumentError(
                f"method='fisher' needs scores, but {why}. Use method='nested'; if the "
                "site is computed, draw it from a discrete distribution instead."
            )
        terms = resolve(objective, _seen_through_noise(objective, sm))
        known: list[tuple[Term, Density]] = []
        learned: list[tuple[Term, Density]] = []
        for term in terms:
            density = sm.density(term.sites, term.given, whole=True)
            own = all(has_density(sm, s) for s in term.sites)
            (known if own and not density.hidden else learned).append((term, density))
        named = {s for term, _ in learned for s in term.sites}
        check_atoms(sm, sorted(s for s in named if not has_density(sm, s)), params)
        first_key, *keys = subkeys(rng_key, 1 + len(learned))
        averaged, means = tuple(t for t, _ in known), trace_expectations(objective, sm)
        rest = average_each(averaged, means, sm, params, {}, first_key, 2**16)
        value, variance = rest.value, rest.error**2
        diagnostics: dict[str, Any] = {}
        warnings = []
        for (term, density), key in zip(learned, keys, strict=True):
            found = self._entropy(sm, density, params, key)
            value += term.coefficient * found.value
            variance += (term.coefficient * found.error) ** 2
            diagnostics |= {
                f"{name}({density.label})": number
                for name, number in found._asdict().items()
                if name not in ("value", "error", "tails", "below")
            }
            doubt = max(_MISSING * abs(found.gained), found.below)
            if doubt > _RESOLVED * max(1.0, abs(found.value)):
                warnings.append(
                    f"the score of site {term.sites[0]!r} has structure that is too "
                    "fine for the network or for the lowest noise variance: about "
                    f"{doubt:.2g} nats or more may be missing. Use a larger fit, "
                    "values.DeBruijn(num_steps=..., hidden=...), or write the site's "
                    "own noise as a sample site."
                )
            if found.grown > _GROWING * max(1.0, abs(found.negentropy)):
                warnings.append(
                    f"the networks of {density.label!r} still learned at the end of "
                    f"their training: its second half added {found.grown:.2g} nats, "
                    "and much more may be missing. Raise values.DeBruijn(num_steps="
                    f"{self.num_steps}), or write the sites' own noise as sample "
                    "sites."
                )
            if found.tails > HEAVY:
                warnings.append(
                    f"site {term.sites[0]!r} has tails so heavy that its variance is "
                    f"{found.tails**2:.0f} times that of its middle, but "
                    "method='fisher' needs a variance that describes the site. Use "
                    "method='nested', or observe a bounded function of the site."
                )
        error = math.sqrt(variance)
        return report(value, error, "fisher", tuple(warnings), diagnostics)

    def _entropy(
        self, sm: StructuralModel, density: Density, params: Any, rng_key: jax.Array
    ) -> _Entropy:
        """h(sites | given) of one set of sites."""
        sizes = density.sizes[: len(density.sites)]
        dimensions = sum(sizes)
        spec = (
            *sm.spec,
            ("+variance", Noise("uniform", ())),
            ("+noise", Noise("normal", (dimensions,))),
        )
        size = self.num_samples // REPLICATES
        draw_key, init_key, train_key = subkeys(rng_key, 3)
        draws = _draw(
            sm.forward,
            replace(density, moved_sites=density.sites),
            params,
            NoiseSource.of(spec, size),
            draw_key,
        )
        draws = draws._replace(given=_one_hot(sm, density, draws.given))
        pool = jax.tree.map(
            lambda x: x[:_POOLS].reshape(_POOLS * size, *x.shape[2:]), draws
        )
        fresh = jax.tree.map(lambda x: x[_POOLS:], draws)
        frame = Frame.of(pool)
        networks, plain = _train(self, frame, pool, init_key, train_key)
        turns = [orthogonal(np.asarray(each)) for each in plain]
        turned = jnp.asarray(np.stack(turns), frame.mean.dtype)
        sums = _sums(self, frame, networks, fresh, turned)
        gram, cross, square, floor = (np.asarray(x, np.float64) for x in sums)
        # What the second half of the training adds, at the same draws.
        few = len(gram) - REPLICATES
        before, after = (
            explained(gram[part].mean(0), cross[part].mean(0))
            for part in (slice(few), slice(few, 2 * few))
        )
        gram, cross, square, floor = (x[few:] for x in (gram, cross, square, floor))
        width = gram.shape[1]
        constant = 0.5 * dimensions * math.log(2 * math.pi) + float(frame.log_volume)
        # The same problem with only the features of the first half of the networks.
        half = slice(width // 2 + 1)
        gaussian = leave_one_out(constant + 0.5 * square)
        whole = least_squares(gram, cross)
        part = least_squares(gram[:, half, half], cross[:, half])
        missing = _MISSING * (whole - part)
        value, error = jackknife(gaussian - whole - missing)
        grown = after - before
        gained, _ = jackknife(whole - part)
        solved, floor = solve(gram.mean(0), cross.mean(0)), floor.mean(0)
        below = float(np.sum(solved * (floor @ solved)))
        return _Entropy(
            value,
            math.sqrt(error**2 + (_MISSING * gained) ** 2 + below**2 + grown**2),
            jackknife(whole + missing)[0],
            gained,
            grown,
            math.exp(frame.lowest),
            tails_of(np.asarray(pool.values)),
            below,
        )


class _Entropy(NamedTuple):
    value: float
    error: float
    negentropy: float
    gained: float  # by the second half of the features
    grown: float  # by the second half of the training
    lowest_variance: float
    tails: float
    below: float  # estimate of the part below the lowest variance


def why_not_fisher(objective: Objective, sm: StructuralModel) -> str:
    """Why a site that needs a score has none; "" if all sites have one."""
    if objective.causal:
        return "the objective has a directed information"
    noisy = _seen_through_noise(objective, sm)
    for term in resolve(objective, noisy):
        hidden = noisy.density(term.sites, term.given, whole=True).hidden
        for site in term.sites:
            learned = hidden or not has_density(sm, site)
            info = sm.site_info[site]
            if learned and (has_atoms(sm, site) or not info.is_float):
                mixed = info.support == "mixed"
                return f"site {site!r} {'has atoms' if mixed else 'is discrete'}"
    return ""


def _seen_through_noise(objective: Objective, sm: StructuralModel) -> StructuralModel:
    """The model with noise appended to its deterministic sites.

    Then all sites have a density, and `resolve` depends on the graph only.
    """
    floating = [s for s in objective.sites if sm.site_info[s].is_float]
    without = [s for s in floating if not has_density(sm, s)]
    return append_noise(sm, dict.fromkeys(without, 1.0)) if without else sm


# -- samples -----------------------------------------------------------------------


@quick_jit
def _draw(
    forward: Program,
    density: Density,
    params: Any,
    source: NoiseSource,
    rng_key: jax.Array,
) -> Draws:
    """Pools for training, then replicates for the value: (pools + 16, size, ...)."""

    def one(key: jax.Array) -> Draws:
        noise = source(key)
        position, normal = noise.pop("+variance"), noise.pop("+noise")
        values = simulate(forward, params, noise)
        flat = flatten(values, density.sites)
        score = jnp.zeros_like(flat)
        # At a boundary the model's own score lacks terms: use only appended noise.
        if (
            density.unbounded
            and not density.moving_boundary
            and density.log_prob_sites == density.sites
        ):
            target = complete_data_scores(density, params, noise, values)
            score = flatten(target, density.sites)
        given = jnp.zeros((source.size, 0))
        if density.given:
            given = flatten(values, density.given)
        return Draws(flat, given, score, position, normal)

    return jax.lax.map(one, jax.random.split(rng_key, _POOLS + REPLICATES))


def _one_hot(sm: StructuralModel, density: Density, given: jax.Array) -> jax.Array:
    """One-hot columns for discrete sites that take few values."""
    parts, start = [], 0
    for info in (sm.site_info[name] for name in density.given):
        for column in range(start, start + info.size):
            each = given[..., column : column + 1]
            seen = np.unique(np.asarray(each))
            few = (info.discrete or not info.is_float) and 2 < len(seen) <= _SYMBOLS
            parts.append((each == seen).astype(given.dtype) if few else each)
        start += info.size
    return jnp.concatenate(parts, axis=-1) if parts else given


# -- fit ---------------------------------------------------------------------------


def _ensemble(method: DeBruijn, pool: Draws) -> Ensemble:
    dimensions, given = pool.values.shape[-1], pool.given.shape[-1]
    return Ensemble(perceptron(method.hidden), dimensions + given + 2, dimensions)


def _features(
    method: DeBruijn, frame: Frame, networks: Any, draws: Draws
) -> tuple[Regression, jax.Array]:
    """The regression at some draws, and its features: a constant and all networks'.

    An integral over log t is the span of log t times a mean. The features include the
    root of the span, of the number of draws and of the factor 1/2 of the identity.
    """
    at, ensemble = frame.regression(draws), _ensemble(method, draws)
    hidden = jax.vmap(ensemble.features, (0, None))(networks, at.seen)[..., :-1]
    ones = jnp.ones((hidden.shape[1], 1), hidden.dtype)
    scale = jnp.sqrt(0.5 * frame.span / len(ones))
    return at, scale * at.gain * jnp.concatenate([ones, *hidden], axis=1)


@quick_jit(static_argnames="method")
def _train(
    method: DeBruijn,
    frame: Frame,
    pool: Draws,
    init_key: jax.Array,
    train_key: jax.Array,
) -> tuple[Any, jax.Array]:
    """Networks trained on the pool, with fresh variances and noise at every step.

    Also the Gram matrix of their features on a part of the pool.
    """
    ensemble = _ensemble(method, pool)
    members, batch = method.num_networks, method.batch_size // method.num_networks
    spec = (
        ("pick", Noise("uniform", ())),
        ("level", Noise("uniform", ())),
        ("noise", Noise("normal", pool.noise.shape[1:])),
    )

    def loss(networks: Any, at: Regression) -> jax.Array:
        residual = at.gain * jax.vmap(ensemble)(networks, at.seen) - at.target
        return jnp.sum(jnp.mean(residual**2, axis=(1, 2)))

    def at(key: jax.Array) -> Regression:
        drawn = draw_noise(spec, key, members * batch)
        picked = (drawn["pick"] * len(pool.values)).astype(int)
        draws = jax.tree.map(lambda x: x[picked], pool)
        levels = (jnp.tile(jnp.arange(batch), members) + drawn["level"]) / batch
        at = frame.regression(draws._replace(position=levels, noise=drawn["noise"]))
        return jax.tree.map(lambda x: x.reshape(members, batch, *x.shape[1:]), at)

    start, step = adam(loss, at, method.learning_rate, method.num_steps)
    keys = jax.random.split(train_key, (2, -(-method.num_steps // 2)))
    some = jax.tree.map(lambda x: x[:_PLAIN], pool)

    def half(carry: Any, keys: jax.Array) -> Any:
        carry, _ = jax.lax.scan(step, carry, keys)
        features = _features(method, frame, carry[0], some)[1]
        return carry, (carry[0], features.T @ features)

    return jax.lax.scan(half, start(ensemble.init(init_key, members)), keys)[1]


@quick_jit(static_argnames="method")
def _sums(
    method: DeBruijn, frame: Frame, networks: Any, fresh: Draws, turns: jax.Array
) -> tuple[jax.Array, ...]:
    """For each replicate: normal equations of the last layer, E|w|^2, and the part of
    the Gram matrix below the lowest variance.

    Before these, the same of the networks in the middle of their training, at the first
    few replicates.
    """

    def one(which: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        half, replicate = which
        trained, turn = jax.tree.map(lambda x: x[half], (networks, turns))
        draws = jax.tree.map(lambda x: x[replicate], fresh)
        # Draws below the lowest variance come first.
        order = jnp.argsort(draws.position)
        at, raw = _features(
            method, frame, trained, jax.tree.map(lambda x: x[order], draws)
        )
        features, scale = raw @ turn, jnp.sqrt(0.5 * frame.span / len(raw))
        low = features[: max(len(raw) // _FEW_BELOW, 1)]
        return (
            features.T @ features,
            features.T @ (scale * at.target),
            jnp.mean(jnp.sum(at.w**2, axis=1)),
            (at.below[: len(low), None] * low).T @ low,
        )

    few = min(max(_PLAIN // fresh.values.shape[1], 1), REPLICATES)
    order = jnp.arange(few + REPLICATES)
    is_late = (order >= few).astype(int)
    return jax.lax.map(one, (is_late, order - few * is_late))
