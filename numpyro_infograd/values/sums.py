# SPDX-License-Identifier: Apache-2.0
"""Values of objectives on discrete sites: exact sums over their states.

The entropy h(B | G) of sites B with few joint states needs no draws of B,

    h(B | G) = -E_G sum_b p(b | G) log p(b | G),   p(b | G) = E[p(b | G, hidden noise)].

Nothing is drawn if no noise is hidden and the conditions have few states too. With
q(b) the probability at the noise of a sample itself, and p the average over L
fresh draws, two sums bound the entropy in expectation:

    -E sum_b q log p >= h >= -E sum_b q log((q + L p) / (L + 1)).
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from numpyro_infograd._arguments import check_powers_of_two
from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._density import Density, Values, simulate
from numpyro_infograd._noise import NoiseSource, standard_error
from numpyro_infograd._objectives import Objective
from numpyro_infograd._problem import REPLICATES, check_num_samples
from numpyro_infograd._program import Program
from numpyro_infograd._sites import joint_states
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import Term, resolve
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.values.base import Estimate
from numpyro_infograd.values.nested import Average, as_floats

UNSEEN = 1e-3  # probability of outcomes outside all states without a warning
MOST_STATES = 512  # joint states of the sites of an entropy, at most
_AT_ONCE = 2**19  # densities evaluated at once


@dataclass(frozen=True)
class Sums:
    """Sums over all joint states of discrete sites, with no draws of these sites.

    Each entropy of the objective must be of sites with at most 512 joint states, such
    as the code of a converter. Their probabilities are averages over draws of the
    hidden noise; `lower` and `upper` are bounds in expectation.

    Args:
        num_components: Draws of the hidden noise in each of 16 replicates, a power of
            two.
        num_samples: Draws of conditions with many states, a power of two.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     bit = numpyro.sample("bit", dist.Bernoulli(0.5))
        ...     numpyro.sample("y", dist.Bernoulli(0.1 + 0.8 * bit))
        >>> ig.mutual_information(model, "bit", "y", unit="bits")  # 1 - h(0.1)
        0.531005 bits (sums)
    """

    num_components: int = 4096
    num_samples: int = 2**14

    def __post_init__(self) -> None:
        check_powers_of_two(self, 2, "num_components")
        check_num_samples(self.num_samples, None)

    def value(
        self, sm: StructuralModel, objective: Objective, params: Any, rng_key: jax.Array
    ) -> Estimate:
        """The value and its bounds."""
        entropies = summable(sm, objective, self.num_components)
        if not entropies:
            raise ArgumentError(
                "method='sums' needs an objective whose entropies are of discrete "
                f"sites with at most {MOST_STATES} joint states, and no Expectation, "
                f"got {objective!r}. Use method='nested'."
            )
        average, mass = sums_each(sm, entropies, params, {}, rng_key, self.num_samples)
        found = as_floats(average)
        value, lower, upper = found.value, found.lower, found.upper
        if not abs(float(mass) - 1.0) <= UNSEEN:
            warning = (
                f"the probabilities of all states add up to {float(mass):.3g} at these "
                "parameter values, so a distribution is not valid. Use other values."
            )
            ends = -math.inf, math.inf
            return Estimate(value, math.inf, *ends, "sums", warnings=(warning,))
        if not any(t.density.hidden or t.density.given for t in entropies):
            return Estimate(value, 0.0, value, value, "sums")
        rounding = 4 * float(jnp.finfo(average.value.dtype).eps) * max(abs(value), 1.0)
        return Estimate(value, found.error + rounding, lower, upper, "sums")


class Table(NamedTuple):
    """coefficient * h(sites | given) of sites with few joint states.

    Attributes:
        density: Of the sites, without omissions.
        coefficient: In the objective.
        states: The joint states, (num_states, *shape) for each site.
        source: Draws of the hidden noise for each replicate.
    """

    density: Density
    coefficient: jax.Array
    states: Values
    source: NoiseSource

    @property
    def num_states(self) -> int:
        """Number of joint states."""
        return len(next(iter(self.states.values())))

    def evaluations(self, num_samples: int) -> int:
        """Density evaluations of one design."""
        draws = num_samples
        if self.density.hidden and self.density.given:
            draws += num_samples * self.source.size
        elif self.density.hidden:
            draws += REPLICATES * self.source.size
        return draws * self.num_states


def summable(
    sm: StructuralModel, objective: Objective, num_components: int
) -> tuple[Table, ...]:
    """The tables of an objective; empty if it is not all of discrete sites."""
    terms = () if objective.expectations else resolve(objective, sm)
    if any(term.causal for term in terms):
        return ()
    return tables(sm, terms, num_components)


def affordable(sm: StructuralModel, objective: Objective, most: int) -> Sums | None:
    """Sums by at most so many evaluations of densities; None if there are none."""
    for count in (Sums.num_components, Sums.num_components // 8):
        found = summable(sm, objective, count)
        if found and sum(t.evaluations(Sums.num_samples) for t in found) <= most:
            return Sums(num_components=count)
    return None


def tables(
    sm: StructuralModel, terms: tuple[Term, ...], num_components: int
) -> tuple[Table, ...]:
    """The table of each entropy; empty if one has too many states."""
    found = []
    for term in terms:
        parts = [(term.coefficient, term.sites, term.given)]
        # Where nothing is hidden, h(A | B) = h(A, B) - h(B) needs no draws of B.
        both = sm.in_order(term.sites + term.given)
        if term.given and joint_states(sm.site_info, both, MOST_STATES):
            if not sm.density(both, whole=True).hidden:
                c = term.coefficient
                parts = [(c, both, ()), (-c, term.given, ())]
        for coefficient, sites, given in parts:
            states = joint_states(sm.site_info, sites, MOST_STATES)
            if not states:
                return ()
            density = sm.density(sites, given, whole=True)
            source = NoiseSource.of(density.hidden_spec, num_components)
            found.append(Table(density, jnp.asarray(coefficient), states, source))
    return tuple(found)


def sums_each(
    sm: StructuralModel,
    entropies: tuple[Table, ...],
    params: Any,
    designs: Any,
    rng_key: jax.Array,
    num_samples: int,
) -> tuple[Average, jax.Array]:
    """The sum of the entropies at each design, in nats, on the same random numbers.

    Empty `designs` are one, and the arrays then have no axis of designs. `num_samples`,
    a power of two, are draws of the conditions and of known densities.
    Returns averages, with an axis of designs, and the smallest total probability of all
    states for each design; below one if states are missing.
    """
    work = sum(t.evaluations(num_samples) for t in entropies)
    count = len(jax.tree.leaves(designs)[0]) if designs else 1
    batch = min(max(_AT_ONCE // work, 1), count)
    # Whole batches, so that nothing is compiled a second time for the rest.
    wanted = -(-count // batch) * batch
    index = jnp.minimum(jnp.arange(wanted), count - 1)
    padded = jax.tree.map(lambda x: jnp.asarray(x)[index], designs)
    found = _sums_each(
        sm.forward,
        entropies,
        params,
        padded,
        NoiseSource.of(sm.spec, num_samples // REPLICATES),
        rng_key,
        batch=batch,
    )
    return jax.tree.map(lambda x: x[:count], found) if designs else found


@quick_jit(static_argnames="batch")
def _sums_each(
    forward: Program,
    entropies: tuple[Table, ...],
    params: Any,
    designs: Any,
    source: NoiseSource,
    rng_key: jax.Array,
    *,
    batch: int,
) -> tuple[Average, jax.Array]:
    # The noise of all designs is the same, so it is drawn once.
    def draw(key: jax.Array) -> Any:
        noise_key, inner_key = jax.random.split(key)
        fresh = [
            table.source(jax.random.fold_in(inner_key, i))
            for i, table in enumerate(entropies)
        ]
        return source(noise_key), fresh

    draws = jax.lax.map(draw, jax.random.split(rng_key, REPLICATES))

    def one(design: Any) -> tuple[Average, jax.Array]:
        at = params | design

        def replicate(drawn: Any) -> Any:
            noise, fresh = drawn
            values = simulate(forward, at, noise)
            total, removed, mass = jnp.zeros(3), jnp.zeros(()), jnp.ones(())
            for table, inner in zip(entropies, fresh, strict=True):
                found, correction, mean = _entropy(table, at, noise, values, inner)
                c = table.coefficient
                best, low, high = found
                total += c * jnp.stack(
                    [best, jnp.where(c > 0, low, high), jnp.where(c > 0, high, low)]
                )
                removed += c * correction
                mass = jnp.minimum(mass, mean)
            return total, removed, mass

        totals, removed, mass = jax.lax.map(replicate, draws)
        value, low, high = jnp.mean(totals, axis=0)
        errors = standard_error(totals)
        correction = jnp.mean(removed)
        bias = 0.5 * jnp.abs(correction)
        average = Average(
            value,
            jnp.hypot(errors[0], bias),
            low - 2 * errors[1],
            high + 2 * errors[2],
            correction,
            jnp.asarray(jnp.inf),
            bias,
            totals,
        )
        return average, jnp.min(mass)

    return jax.lax.map(one, designs, batch_size=batch) if designs else one({})


def _entropy(
    table: Table, params: Any, noise: Values, values: Values, fresh: Values
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(Value, lower and upper bound) of an entropy; its correction; the total mass."""
    density = table.density

    def probabilities(hidden: Values, given: Values) -> jax.Array:
        """Of all states, (num_states,)."""
        over = jax.vmap(lambda s: density.log_prob(params, hidden, given | s))
        each = over(table.states)  # may be NaN outside the support
        return jnp.where(jnp.isnan(each), 0.0, jnp.exp(each))

    hidden = {n: noise[n] for n in density.hidden}
    given = {s: values[s] for s in density.given}
    if not density.hidden:
        each = jax.vmap(probabilities, (None, 0))
        own = each({}, given) if given else probabilities({}, {})[None]
        known = -jnp.mean(jnp.sum(xlogy(own, own), axis=-1))
        mass = jnp.mean(jnp.sum(own, axis=-1))
        return jnp.stack([known] * 3), jnp.zeros(()), mass
    own = jax.vmap(probabilities)(hidden, given)
    count = len(jax.tree.leaves(fresh)[0])

    def halves(given: Values) -> jax.Array:
        """Averages over both halves of the fresh draws, (2, num_states)."""
        each = jax.vmap(probabilities, (0, None))(fresh, given)
        return jnp.mean(each.reshape(2, count // 2, -1), axis=1)

    split = jax.lax.map(halves, given) if given else halves({})[None]
    p = jnp.mean(split, axis=1)
    whole = -jnp.mean(jnp.sum(xlogy(p, p), axis=-1))
    parts = -jnp.mean(jnp.sum(xlogy(split, split), axis=(-2, -1))) / 2
    joined = (own + count * p) / (count + 1)
    low = -jnp.mean(jnp.sum(xlogy(own, joined), axis=-1))
    high = -jnp.mean(jnp.sum(xlogy(own, p), axis=-1))
    correction = whole - parts
    mass = jnp.mean(jnp.sum(p, axis=-1))
    return jnp.stack([whole + correction, low, high]), correction, mass
