# SPDX-License-Identifier: Apache-2.0
"""Identity V: the gradient through the probabilities of draws.

A draw of a discrete site, or of a sampler without a right derivative, is held at its
value along every path. With L the sum of the log probabilities of these drawn sites,
and w the objective at one sample, sum -c log p(S) + sum c f,

    grad E[w] = E[pathwise derivative, draws held] + E[w grad L].

Few joint states are summed over in place of the draw, E[sum_d w(d) grad p(d)], which
has no noise from the draw. grad L includes the paths through the parents of a site.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_infograd._compiling import pytree
from numpyro_infograd._density import Density, Values, simulate
from numpyro_infograd._program import Program
from numpyro_infograd._sites import count_states, joint_states
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import Means, Term, at_each, has_density
from numpyro_infograd.errors import VOUCH, DensityError
from numpyro_infograd.scores.base import Evidence, Measure, about
from numpyro_infograd.scores.mixture import (
    FEW_UNEXPLAINED,
    LOWEST,
    SOUND_SAMPLE_SIZE,
    Mixture,
)

# At most `_MOST_STATES` joint states of drawn sites are summed over. If one mixture for
# each state, and each state of its conditions, gives all densities that hide noise,
# then at most `_MOST_CHEAP` of these, as long as states times numbers of noise in a
# sample are at most `_MOST_NUMBERS`.
_MOST_STATES, _MOST_CHEAP, _MOST_NUMBERS = 16, 512, 2**12
_MOST_COMPONENTS = 2**14  # of a mixture that is refined on its own


class Pointwise(NamedTuple):
    """The objective at each sample, up to terms that no parameter reaches."""

    value: jax.Array  # in nats, (num_samples,)
    deviation: jax.Array  # half of the bias that was removed, (num_samples,)
    evidence: dict[Measure, jax.Array]  # about the mixtures


@pytree(
    "path", "log_prob", "densities", "coefficients", "sources", "states", "conditions"
)
@dataclass(frozen=True)
class Chance:
    """The part of a gradient that drawn sites carry."""

    path: Program  # the model with given values of the drawn sites
    log_prob: Program  # their log probability, from parameters, noise and their values
    # Of all entropies that a parameter changes, without omissions.
    densities: tuple[Density, ...]
    coefficients: jax.Array  # of these entropies in the objective, (num_densities,)
    sources: tuple[Any, ...]  # noise for the components of each density
    # Joint states of the drawn sites if they are few, (num_states, *shape).
    states: Values
    # Of each density, joint states of its conditions if they are few; else empty.
    conditions: tuple[Values, ...]
    sites: tuple[str, ...]  # the drawn sites; static
    mixture: Mixture = field(default_factory=Mixture)  # estimates log densities; static

    @staticmethod
    def of(
        sm: StructuralModel,
        terms: tuple[Term, ...],
        read: Iterable[str],
        mixture: Mixture,
    ) -> Chance | None:
        """The part of the drawn sites that reach those in `read`; None without any."""
        sites = tuple(s for s in sm.drawn if s in sm.noise_of(read))
        if not sites:
            return None
        terms = tuple(t for t in terms if sm.noise_of(t.sites + t.given) & {*sites})
        for term in terms:
            without = [s for s in term.sites if not has_density(sm, s)]
            if without:
                raise DensityError(
                    f"site {without[0]!r} is deterministic, so it has no density. But "
                    f"a parameter reaches the draws of {sites[0]!r}, which have no "
                    "derivative. So the gradient needs log densities of all sets. "
                    "Observe the site through noise: numpyro.sample(name, "
                    f"Normal(value, scale)). {VOUCH}"
                )
        densities = tuple(sm.density(t.sites, t.given, whole=True) for t in terms)
        conditions = tuple(joint_states(sm.site_info, d.given) for d in densities)
        most = _MOST_STATES
        pairs = zip(densities, conditions, strict=True)
        if all(not d.hidden or _is_table(d, few, sites) for d, few in pairs):
            numbers = sum(math.prod(law.shape) for _, law in sm.spec)
            cheap = _MOST_CHEAP // max(map(count_states, conditions), default=1)
            most = max(most, min(cheap, _MOST_NUMBERS // numbers))

        def log_prob(params: Any, noise: Values, held: Values) -> jax.Array:
            found = sm.run(params, noise, held, log_prob_sites=sites).log_prob
            return sum((jnp.sum(found[s]) for s in sites), jnp.zeros(()))

        return Chance(
            sm.forward_given(sites),
            Program.trace(log_prob, *sm.example_inputs(sites)),
            densities,
            jnp.asarray([term.coefficient for term in terms]),
            _sources(mixture, densities),
            joint_states(sm.site_info, sites, most),
            conditions,
            sites,
            mixture,
        )

    @property
    def is_estimated(self) -> bool:
        """Whether mixtures estimate some of the log densities."""
        return any(density.hidden for density in self.densities)

    @property
    def num_states(self) -> int:
        """Number of states that are summed over; one if draws are held."""
        return count_states(self.states)

    def warnings_for(self, evidence: Evidence) -> list[str]:
        """Sentences that say why the log densities may be wrong."""
        found = []
        for density in self.densities:
            if not (own := about(evidence, _label(density))):
                continue
            if own["unexplained"] > FEW_UNEXPLAINED:
                found.append(
                    f"{own['unexplained']:.2%} of the samples of {density.label!r} lie "
                    "outside the support of half of a mixture's components, so their "
                    "log densities are poor."
                )
            if not own[LOWEST] >= SOUND_SAMPLE_SIZE:
                found.append(
                    f"{_label(density)}, which weighs the draws of "
                    f"{', '.join(map(repr, self.sites))}, comes from a mixture with an "
                    f"effective sample size of only {own[LOWEST]:.0f}: its bias may "
                    "exceed the standard error. Pass "
                    "scores=ig.scores.Mixture(num_components=...) with more components."
                )
        return found

    def finer(self, evidence: Evidence) -> Chance | None:
        """The same with four times the components; None if more are of no use.

        The effective number of components grows in proportion to their number.
        """
        count = self.mixture.num_components
        labels = map(_label, self.densities)
        sizes = [about(evidence, label).get(LOWEST, math.inf) for label in labels]
        most = min(sizes, default=math.inf) * _MOST_COMPONENTS / count
        if 4 * count > _MOST_COMPONENTS or not most >= SOUND_SAMPLE_SIZE:
            return None
        return self.with_mixture(replace(self.mixture, num_components=4 * count))

    def with_mixture(self, mixture: Mixture) -> Chance:
        """The same with another mixture for the log densities."""
        sources = _sources(mixture, self.densities)
        return replace(self, mixture=mixture, sources=sources)

    def held(self, forward: Program, params: Any, noise: Values) -> Values:
        values = simulate(forward, params, noise)
        return {name: values[name] for name in self.sites}

    def values(self, params: Any, noise: Values, held: Values) -> Values:
        """Values of all sites along the paths."""
        return jax.vmap(self.path, in_axes=(None, 0, 0))(params, noise, held)

    def likelihood(self, params: Any, noise: Values, held: Values) -> jax.Array:
        """Log probabilities of draws, (num_samples,), or probabilities of all states,
        (num_states, num_samples)."""
        over = jax.vmap(self.log_prob, in_axes=(None, 0, 0))
        if not self.states:
            return over(params, noise, held)
        each = jax.vmap(self.log_prob, in_axes=(None, 0, None))
        states = jax.vmap(each, in_axes=(None, None, 0))
        return jnp.exp(states(params, noise, self.states))

    def cotangent(
        self,
        params: Any,
        noise: Values,
        values: Values,
        means: Means,
        likelihood: jax.Array,
        rng_key: jax.Array,
    ) -> tuple[jax.Array, jax.Array, dict[Measure, jax.Array]]:
        """Cotangent of `likelihood`, its deviation, and evidence."""
        num_samples = next(iter(values.values())).shape[0]
        if not self.states:
            at = self._pointwise(params, values, means, rng_key)
            # Minus the mean of the other samples, which this sample does not change.
            centred = (at.value - jnp.mean(at.value)) / (num_samples - 1)
            return centred, at.deviation / num_samples, at.evidence

        def one(state: Values) -> Pointwise:
            held = {
                n: jnp.broadcast_to(x, (num_samples, *x.shape))
                for n, x in state.items()
            }
            put = self.values(params, noise, held)
            return self._pointwise(params, put, means, rng_key)

        at = jax.lax.map(one, self.states)
        # Minus the mean, to which states that cannot occur do not contribute.
        mean = jnp.sum(jnp.nan_to_num(likelihood) * at.value, axis=0)
        centred = (at.value - mean) / num_samples
        evidence = {  # of the worst state
            k: jnp.min(v) if k.is_size else jnp.max(v) for k, v in at.evidence.items()
        }
        return centred, at.deviation / num_samples, evidence

    def _pointwise(
        self, params: Any, values: Values, means: Means, rng_key: jax.Array
    ) -> Pointwise:
        num_samples = next(iter(values.values())).shape[0]
        found = jnp.zeros(num_samples) + means.coefficients @ at_each(means, values)
        deviation, evidence = jnp.zeros_like(found), dict[Measure, jax.Array]()
        for i, density in enumerate(self.densities):
            c = self.coefficients[i]
            if not density.hidden:
                log_p = density.log_probs(params, values)
                # A state whose probability stays zero adds nothing.
                found -= c * jnp.where(jnp.isfinite(log_p), log_p, 0.0)
                continue
            key = jax.random.fold_in(rng_key, i)
            rows, which = values, jnp.arange(num_samples)
            few = self.conditions[i]
            # All samples have the same state, so one row for each condition is enough.
            if self.states and _is_table(density, few, self.sites):
                count, which = count_states(few), _index(few, values)
                rows = {n: jnp.repeat(x[:1], count, 0) for n, x in values.items()} | few
            at = self.mixture.log_density(self.sources[i], density, params, rows, key)
            bias = jnp.where(at.is_explained, at.correction, 0.0)
            log_p = jnp.where(jnp.isfinite(at.value), at.value, 0.0) + bias
            found -= c * log_p[which]
            deviation -= 0.5 * c * bias[which]
            evidence |= at.evidence(_label(density))
        return Pointwise(found, deviation, evidence)


def _is_table(density: Density, conditions: Values, sites: tuple[str, ...]) -> bool:
    """Whether the density is of these sites alone, with few conditions or none."""
    return {*density.sites} <= {*sites} and bool(conditions or not density.given)


def _index(states: Values, values: Values) -> jax.Array:
    """The index of each sample's joint state, (num_samples,)."""
    num_samples = len(next(iter(values.values())))
    apart = jnp.zeros((num_samples, count_states(states)))
    for name, each in states.items():
        gap = jnp.abs(values[name][:, None].astype(float) - each)  # zero, or rounding
        apart += jnp.sum(gap.reshape(*apart.shape, -1), axis=2)
    return jnp.argmin(apart, axis=1)


def _label(density: Density) -> str:
    return f"log p({density.label})"


def _sources(mixture: Mixture, densities: tuple[Density, ...]) -> tuple[Any, ...]:
    """Noise for the components of each density that hides noise."""
    key = jax.random.key(0)
    return tuple(mixture.init(d, key) if d.hidden else None for d in densities)
