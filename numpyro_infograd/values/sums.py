# SPDX-License-Identifier: Apache-2.0
"""Values of objectives on discrete sites: sums over their states.

The entropy h(B | G) of sites B with few joint states needs no draws of B,

    h(B | G) = -E_G sum_b p(b | G) log p(b | G),   p(b | G) = E[p(b | G, hidden noise)],

and none of G, if G has few joint states of known probabilities. With q(b) the
probability at the noise of a sample itself, and p the average over L fresh draws, two
sums bound the entropy in expectation:

    -E sum_b q log p >= h >= -E sum_b q log((q + L p) / (L + 1)).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from numpyro_infograd._arguments import check_powers_of_two
from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._density import Density, Values, simulate
from numpyro_infograd._doors import settings_class
from numpyro_infograd._noise import NoiseSource, standard_error
from numpyro_infograd._objectives import Objective
from numpyro_infograd._problem import REPLICATES, check_num_samples
from numpyro_infograd._program import Program
from numpyro_infograd._sites import count_states, joint_states
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import Term, resolve
from numpyro_infograd.errors import DensityError, ModelError
from numpyro_infograd.values.base import Estimate
from numpyro_infograd.values.nested import Average, as_floats

# How far from one the total probability of all states may be, and what is rounding.
UNSEEN, _ROUNDING = 1e-3, 1e-5
MOST_STATES = 512  # joint states of the sites of an entropy, at most
_AT_ONCE = 2**19  # densities evaluated at once


@settings_class
class Sums:
    """Sums over all joint states of discrete sites, with no draws of these sites.

    Each entropy of the objective must be of sites with at most 512 joint states, such
    as the code of a converter. Their probabilities are averages over draws of the
    hidden noise; `lower` and `upper` are bounds in expectation.

    Args:
        num_components: Draws of the hidden noise in each of 16 replicates, a power of
            two. More of them sharpen the value.
        num_samples: Draws of conditions with many states, and of the noise for the
            bounds; a power of two.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     bit = numpyro.sample("bit", dist.Bernoulli(0.5))
        ...     numpyro.sample("y", dist.Bernoulli(0.1 + 0.8 * bit))
        >>> found = ig.mutual_information(model, "bit", "y", unit="bits")
        >>> found.method, round(found.value, 4)  # 1 - h(0.1)
        ('sums', 0.531)
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
            raise DensityError(
                "method='sums' needs an objective of discrete sites with at most "
                f"{MOST_STATES} joint states in each entropy, without Expectation and "
                f"DirectedInformation, got {objective!r}. Use method='auto'."
            )
        average, off = sums_each(sm, entropies, params, {}, rng_key, self.num_samples)
        if not float(off) <= UNSEEN:
            raise ModelError(
                f"the probabilities of all states of {', '.join(objective.sites)} add "
                f"up to one plus or minus {float(off):.3g} at these parameter values: "
                "a distribution is not normalised, or its parameters are not valid. "
                "Use other values, or normalise the probabilities in the model."
            )
        found = as_floats(average)
        value, lower, upper = found.value, found.lower, found.upper
        if not any(t.is_averaged for t in entropies):
            return Estimate(value, 0.0, value, value, "sums")
        rounding = 4 * float(jnp.finfo(average.value.dtype).eps) * max(abs(value), 1.0)
        error = found.error + rounding
        said = {"num_components": self.num_components, **found.bounds}
        return Estimate(value, error, lower, upper, "sums", diagnostics=said)


class Table(NamedTuple):
    """coefficient * h(sites | given) of sites with few joint states."""

    density: Density  # of the sites, without omissions
    coefficient: jax.Array  # in the objective
    states: Values  # the joint states, (num_states, *shape) for each site
    source: NoiseSource  # draws of the hidden noise for each replicate
    conditions: Values  # the joint states of `given`; empty if they are drawn
    weight: Density | None  # of `given`, which hides no noise; None if they are drawn

    @property
    def is_drawn(self) -> bool:
        """Whether the conditions are drawn."""
        return bool(self.density.given) and self.weight is None

    @property
    def is_averaged(self) -> bool:
        """Whether the entropy is an average over draws."""
        return self.is_drawn or bool(self.density.hidden)

    def evaluations(self, num_samples: int) -> int:
        """Density evaluations of one design."""
        rows = (
            num_samples if self.is_drawn else REPLICATES * count_states(self.conditions)
        )
        inner = self.source.size if self.density.hidden else 1
        return (rows * inner + num_samples) * count_states(self.states)


def summable(
    sm: StructuralModel, objective: Objective, num_components: int
) -> tuple[Table, ...]:
    """The tables of an objective; empty if it is not all of discrete sites."""
    terms = () if objective.expectations else resolve(objective, sm)
    if any(term.causal for term in terms):
        return ()
    return tables(sm, terms, num_components)


def affordable(
    sm: StructuralModel, objective: Objective, num_samples: int | None, most: int
) -> Sums | None:
    """Sums with as many draws as cost at most `most` evaluations of densities.

    None if the objective has no sums, or if they cost more.
    """
    outer = num_samples or Sums.num_samples
    for count in (Sums.num_components, Sums.num_components // 8):
        found = summable(sm, objective, count)
        if found and sum(t.evaluations(outer) for t in found) <= most:
            return Sums(num_components=count)
    return None


def tables(
    sm: StructuralModel, terms: tuple[Term, ...], num_components: int
) -> tuple[Table, ...]:
    """The table of each entropy; empty if one has too many states."""
    found = []
    for term in terms:
        states = joint_states(sm.site_info, term.sites, MOST_STATES)
        if not states:
            return ()
        density = sm.density(term.sites, term.given, whole=True)
        source = NoiseSource.of(density.hidden_spec, num_components)
        conditions = joint_states(sm.site_info, term.given, MOST_STATES)
        weight = sm.density(term.given, whole=True) if conditions else None
        if weight is not None and weight.hidden:
            conditions, weight = {}, None
        coefficient = jnp.asarray(term.coefficient)
        found.append(Table(density, coefficient, states, source, conditions, weight))
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
    a power of two, are draws of conditions, and of the noise for the bounds. Returns
    averages, and how far the total probability of all states is from one.
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
            total, removed, off = jnp.zeros(3), jnp.zeros(()), jnp.zeros(())
            for table, inner in zip(entropies, fresh, strict=True):
                found, correction, own = _entropy(table, at, noise, values, inner)
                c = table.coefficient
                best, low, high = found
                total += c * jnp.stack(
                    [best, jnp.where(c > 0, low, high), jnp.where(c > 0, high, low)]
                )
                removed += c * correction
                off = jnp.maximum(off, own)
            return total, removed, off

        totals, removed, off = jax.lax.map(replicate, draws)
        value, low, high = jnp.mean(totals, axis=0)
        errors = standard_error(totals)
        correction = jnp.mean(removed)
        off = jnp.max(off)
        # The entropy of states that are missing.
        missed = jnp.where(off > _ROUNDING, -xlogy(off, off), 0.0)
        bias = 0.5 * jnp.abs(correction) + missed
        low, high = low - 2 * errors[1] - missed, high + 2 * errors[2] + missed
        average = Average(
            value,
            jnp.hypot(errors[0], bias),
            jnp.where(jnp.isfinite(low), low, -jnp.inf),
            jnp.where(jnp.isfinite(high), high, jnp.inf),
            correction,
            jnp.asarray(jnp.inf),
            bias,
            totals,
        )
        return average, off

    return jax.lax.map(one, designs, batch_size=batch) if designs else one({})


def _entropy(
    table: Table, params: Any, noise: Values, values: Values, fresh: Values
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(Value, lower and upper bound) of an entropy, the correction of its bias, and how
    far the total probability is from one.
    """
    density, weight = table.density, table.weight
    hidden = {n: noise[n] for n in density.hidden}
    given = {s: values[s] for s in density.given}
    if not table.is_drawn:
        given = table.conditions
    rows = jnp.arange(count_states(given))
    num_fresh = len(next(iter(jax.tree.leaves(fresh)), [0]))

    def probabilities(hidden: Values, row: jax.Array) -> jax.Array:
        """Of all states, given the condition of a row; (num_states,)."""
        held = {s: x[row] for s, x in given.items()}
        over = jax.vmap(lambda s: density.log_prob(params, hidden, held | s))
        each = over(table.states)  # may be NaN outside the support
        return jnp.where(jnp.isnan(each), 0.0, jnp.exp(each))

    def share(row: jax.Array) -> jax.Array:
        """The weight of a row."""
        if weight is None:
            return jnp.asarray(1.0 / len(rows))
        held = {s: x[row] for s, x in given.items()}
        found = weight.log_prob(params, {}, held)  # may be NaN outside the support
        return jnp.where(jnp.isnan(found), 0.0, jnp.exp(found))

    def one(row: jax.Array) -> jax.Array:
        """(Value, low, high, correction, total probability) at a row."""
        if not density.hidden:
            p = probabilities({}, row)
            known = -jnp.sum(xlogy(p, p))
            return jnp.stack([known, known, known, jnp.zeros(()), jnp.sum(p)])
        over = jax.vmap(probabilities, (0, None))
        split = over(fresh, row).reshape(2, num_fresh // 2, -1).mean(axis=1)
        # The noise of all samples; or of one sample, with the condition that it drew.
        mine = {n: x[row][None] if table.is_drawn else x for n, x in hidden.items()}
        own, p = over(mine, row), jnp.mean(split, axis=0)
        joined = (own + num_fresh * p) / (num_fresh + 1)
        whole, parts = -jnp.sum(xlogy(p, p)), -jnp.sum(xlogy(split, split)) / 2
        low, high = (-jnp.sum(xlogy(own, q)) / len(own) for q in (joined, p))
        correction = whole - parts
        return jnp.stack([whole + correction, low, high, correction, jnp.sum(p)])

    shares = jax.vmap(share)(rows)
    each = jax.lax.map(one, rows) if density.hidden else jax.vmap(one)(rows)
    # A matrix product would add up with more rounding.
    value, low, high, correction, _ = jnp.sum(shares[:, None] * each, axis=0)
    off = jnp.sum(shares * jnp.abs(each[:, 4] - 1.0))
    off = jnp.maximum(off, jnp.abs(jnp.sum(shares) - 1.0))
    return jnp.stack([value, low, high]), correction, off
