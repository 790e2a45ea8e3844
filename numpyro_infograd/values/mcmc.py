# SPDX-License-Identifier: Apache-2.0
"""Values by annealing between a reference and the posterior, in both directions.

Let S be a sample made by the noise u_0. A chain u starts at a draw of a reference
distribution q(u) and moves to the posterior p(u | S) through the densities
q^(1 - b) p(u, S)^b, with b from 0 to 1. With

    w = sum_j (b_{j+1} - b_j) [log p(u_j, S) - log q(u_j)]

the mean of exp(w) is p(S), so E w <= log p(S). A second chain moves in the reverse
direction. It starts at u_0, an exact draw of the posterior, and has E w >= log p(S)
(bidirectional Monte Carlo: Grosse, Ghahramani and Adams, 2015). Both bounds hold even
if the chains mix badly. Their gap falls as one over the number of levels. Bennett's
acceptance ratio with one draw from each end is the mean of both.

The density p(u, S) may be zero for a part 1 - m of the reference. Then the first chain
starts at one of the I draws, of M, where it is not. Their share I / M, an unbiased
estimate of m, is a factor of exp(w). The second chain never comes to where the density
is zero, so its mean of exp(-w) is m / p(S). The factor (M + 1) / (I + 1) has at most
the mean 1 / m, so the bound holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
import itertools
import math
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp
import optax

from numpyro_infograd._arguments import as_number, as_power_of_two
from numpyro_infograd._chains import Chain, Tuning, Walk
from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._density import Density, Values, simulate
from numpyro_infograd._doors import settings_class
from numpyro_infograd._hidden import Position, walkable
from numpyro_infograd._noise import NoiseSource, squares, standard_error, subkeys
from numpyro_infograd._objectives import Objective
from numpyro_infograd._pilot import FEWEST_STEPS
from numpyro_infograd._problem import REPLICATES
from numpyro_infograd._program import Program
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import Term, resolve, trace_expectations
from numpyro_infograd.errors import DensityError
from numpyro_infograd.scores import MCMC as Chains
from numpyro_infograd.scores.base import fit_score
from numpyro_infograd.values.base import Estimate, Sum
from numpyro_infograd.values.nested import refuse_without_density

_BATCH = 2048  # samples of one call
_FIRST = 32  # initial number of levels
_BENDS = (1.0, 2.0, 4.0)  # exponents that space the levels
_WIDEST = 20.0  # largest gap of the two ends of one sample, in nats
# Nats at which a larger gap is clipped; minus the weight of a chain without a start.
_CLIPPED = 1e3
_STARTS = 64  # draws of the reference, to start at one where the density is not zero
_GROWTH = 3  # doublings of the levels at once, at most
# Possible error of the middle, as a share of a small gap and of a large one.
_SHARE, _MOST_SHARE = 0.1, 0.25
_WIDE = 5.0  # gap of one sample, in nats, that is more than noise
_FINE = 0.002  # goal of the error in nats, if that is larger


@settings_class
class MCMC:
    """Annealing from a reference to the posterior, and back from an exact draw.

    For information of any size, if no site is deterministic and chains can sample the
    hidden noise. `lower` and `upper` are bounds in expectation. The value is the middle
    between them (Bennett's acceptance ratio). Its standard error includes sampling and
    a share of the gap between the bounds. Levels are added until the gap is small. Then
    samples are added.

    Args:
        num_samples: Maximum number of samples, a power of two.
        max_levels: Maximum number of levels, a power of two.
        budget: Maximum of samples times levels, a power of two.
        pilot_size: Samples for the tuning of the chains, a power of two.
        tolerance: Relative error at which to stop, between 0 and 1; an error of 0.002
            nats is always small enough.

    Example:
        >>> import numpyro_infograd as ig
        >>> method = ig.values.MCMC(max_levels=4096)  # `method=` of `estimate`
        >>> method.num_samples
        65536
    """

    num_samples: int = 65536
    max_levels: int = 1024
    budget: int = 2**21
    pilot_size: int = 1024
    tolerance: float = 0.0025

    least_samples = _BATCH

    def __post_init__(self) -> None:
        as_number("tolerance", self.tolerance, 0, 1)
        as_power_of_two("num_samples", self.num_samples, self.least_samples)
        as_power_of_two("max_levels", self.max_levels, _FIRST)
        as_power_of_two("budget", self.budget, _BATCH * _FIRST)
        as_power_of_two("pilot_size", self.pilot_size, 256)

    def value(
        self, sm: StructuralModel, objective: Objective, params: Any, rng_key: jax.Array
    ) -> Estimate:
        """The value; all entropies that hide noise are annealed at the same samples."""
        terms = resolve(objective, sm)
        refuse_without_density(sm, terms)
        densities = tuple(_walked(sm, term) for term in terms)
        for density in densities:
            if not density.is_known and density.walk is None:
                raise DensityError(
                    "no Markov chain can sample the noise that the set "
                    f"{density.label!r} hides, because {density.why_no_walk}. Use "
                    "method='fisher'."
                )
        tune_key, rng_key = subkeys(rng_key, 2)
        tunings = tuple(
            self._tuned(density, sm.forward, params, jax.random.fold_in(tune_key, i))
            for i, density in enumerate(densities)
        )
        total = Sum.of(sm, terms, trace_expectations(objective, sm), densities)
        source = NoiseSource.of(sm.spec, _BATCH // REPLICATES)

        def run(index: int, levels: int, bend: float) -> Ends:
            key = jax.random.fold_in(rng_key, index)
            ends = jnp.asarray(levels), jnp.asarray(bend)
            found = _anneal(total, tunings, params, source, key, *ends)
            return Ends(*(np.asarray(x, np.float64) for x in found))

        return self._grown(run)

    def _tuned(
        self, density: Density, forward: Program, params: Any, rng_key: jax.Array
    ) -> Tuning | None:
        """The tuning of the chains; None for a known density."""
        if density.walk is None:
            return None
        chains = Chains(max_steps=FEWEST_STEPS, pilot_size=self.pilot_size)
        start = chains.init(density, rng_key)
        return fit_score(chains, start, density, forward, params, rng_key).fitted

    def _grown(self, run: Callable[[int, int, float], Ends]) -> Estimate:
        """Add levels until the gap is small, then samples until the scatter is."""
        levels = _FIRST
        pilots = {bend: run(i, levels, bend) for i, bend in enumerate(_BENDS)}
        bend = min(_BENDS, key=lambda b: abs(pilots[b].gap))
        kept = [run(len(_BENDS), levels, bend)]
        for index in itertools.count(len(_BENDS) + 1):
            ends = Ends.joined(kept)
            found = ends.estimate(levels, _BATCH * len(kept))
            goal = max(self.tolerance * abs(found.value), _FINE)
            most = min(self.max_levels, self.budget // _BATCH)
            if found.standard_error <= goal:
                break
            if ends.bias > 0.7 * goal and levels < most:
                levels, kept = ends.enough(levels, 0.7 * goal, most), []
            samples = _BATCH * (len(kept) + 1)
            spent = samples > self.num_samples or samples * levels > self.budget
            if kept and (spent or ends.bias > 0.9 * found.standard_error):
                break
            kept.append(run(index, levels, bend))
        return found


def _bias(gap: float) -> float:
    """Possible error of the middle of two ends."""
    return gap * min(_SHARE + 0.5 * _SHARE * gap, _MOST_SHARE)


def _walked(sm: StructuralModel, term: Term) -> Density:
    """The density of a term, without the parts that only a score needs."""
    density = walkable(sm, sm.density(term.sites, term.given, whole=True))
    if density.walk is None:
        return density
    joint = replace(density.walk.joint, moved_sites=())
    return replace(density, walk=replace(density.walk, joint=joint))


class Ends(NamedTuple):
    """Results of replicates: means over samples, and control variates."""

    totals: np.ndarray  # the middle, the lower and the upper end, (num_replicates, 3)
    known: np.ndarray  # control variates, whose mean is zero, (num_replicates, columns)
    # Their products with each other, (num_replicates, columns, columns).
    gram: np.ndarray
    cross: np.ndarray  # their products with `totals`, (num_replicates, columns, 3)
    # Change of the middle by clipping the ends of single samples, nats.
    lost: np.ndarray
    # Mean over samples of their gap, counted only where it is above `_WIDE`, nats.
    wide: np.ndarray

    @staticmethod
    def joined(parts: list[Ends]) -> Ends:
        """All replicates of several calls."""
        return Ends(*(np.concatenate(each) for each in zip(*parts, strict=True)))

    @property
    def gap(self) -> float:
        """Difference of the mean upper and lower end, in nats."""
        return float(np.mean(self.totals[:, 2] - self.totals[:, 1]))

    @property
    def bias(self) -> float:
        """Possible error of the middle: a share of the gap that grows with the gap.

        The wide gaps of a few samples count by themselves, beside a small mean.
        """
        rare = _MOST_SHARE * float(np.mean(self.wide))
        return max(_bias(abs(self.gap)), rare) + float(np.mean(self.lost))

    def enough(self, levels: int, goal: float, most: int) -> int:
        """Levels for which the bias should meet a goal: the gap falls as 1 / levels."""
        gap = abs(self.gap)
        for _ in range(_GROWTH):
            levels, gap = 2 * levels, gap / 2
            if _bias(gap) <= goal or levels >= most:
                break
        return levels

    def estimate(self, levels: int, num_samples: int) -> Estimate:
        """The middle with its bounds, after subtracting control variates."""
        gram, cross = self.gram.sum(0), self.cross.sum(0)
        slope = np.linalg.lstsq(gram, cross)[0]
        totals = self.totals - self.known @ slope
        value, lower, upper = totals.mean(0)
        errors = standard_error(totals)
        warnings: tuple[str, ...] = ()
        if self.bias > max(errors[0], _FINE, 0.01 * abs(value)):
            warnings = (
                f"the bounds by annealing are {self.gap:.3g} nats apart after {levels} "
                "levels, and the value is the middle between them. Raise max_levels "
                "and budget of values.MCMC.",
            )
        return Estimate(
            float(value),
            math.hypot(float(errors[0]), self.bias),
            float(lower - 2 * errors[1]),
            float(upper + 2 * errors[2]),
            "mcmc",
            warnings=warnings,
            diagnostics={"levels": levels, "gap": self.gap, "num_samples": num_samples},
        )


@quick_jit
def _anneal(
    total: Sum,
    tunings: tuple[Tuning | None, ...],
    params: Any,
    source: NoiseSource,
    rng_key: jax.Array,
    levels: jax.Array,
    bend: jax.Array,
) -> tuple[jax.Array, ...]:
    """The fields of `Ends`, from replicates."""
    num_samples = source.size

    def log_density(
        density: Density, tuning: Tuning | None, noise: Values, values: Values, key: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Lower and upper end of log p(sites | given) for each sample."""
        if tuning is None:
            found = density.log_probs(params, values)
            return found, found

        def one(key: jax.Array, noise: Values, values: Values) -> Any:
            walk = Walk.of(density.walk, params, values, tuning)
            return _ends(walk, density.walk.start(noise, values), key, levels, bend)

        return jax.vmap(one)(jax.random.split(key, num_samples), noise, values)

    def replicate(key: jax.Array) -> tuple[jax.Array, ...]:
        noise_key, key = jax.random.split(key)
        noise = source(noise_key)
        values = simulate(total.forward, params, noise)
        each, lost, wide = jnp.zeros((num_samples, 3)), jnp.zeros(()), jnp.zeros(())
        for i, (density, tuning) in enumerate(
            zip(total.densities, tunings, strict=True)
        ):
            own = jax.random.fold_in(key, i)
            low, high = log_density(density, tuning, noise, values, own)
            c = total.coefficients[i]
            near = jnp.maximum(low, high - _WIDEST)
            far = jnp.maximum(low, high - _CLIPPED)
            lost += 0.5 * jnp.abs(c) * jnp.mean(near - far)
            gap = high - near
            wide += jnp.abs(c) * jnp.mean(jnp.where(gap > _WIDE, gap, 0.0))
            ends = jnp.where(c > 0, high, low), jnp.where(c > 0, low, high)
            each -= c * jnp.stack([0.5 * (near + high), *ends], axis=1)
        each += total.expectations_at(values)[:, None]
        limit = min(REPLICATES * num_samples // 64, 256)
        known = squares(source.spec, noise, limit)
        left = each - jnp.mean(each, axis=0)
        sums = jnp.mean(each, axis=0), jnp.mean(known, axis=0)
        return (*sums, known.T @ known, known.T @ left, lost, wide)

    return jax.vmap(replicate)(jax.random.split(rng_key, REPLICATES))


def _ends(
    walk: Walk, exact: Position, rng_key: jax.Array, levels: jax.Array, bend: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Lower end of log p(S) from the reference, upper end from an exact draw."""

    def power(index: jax.Array) -> jax.Array:
        return (index / levels) ** bend

    def weight(chain: Chain) -> jax.Array:
        return chain.log_prob - walk.log_reference(chain.at)

    draw_key, rng_key = jax.random.split(rng_key)

    def draw(index: jax.Array, carry: Any) -> Any:
        """Count draws inside, and keep one of them, each with the same chance."""
        at, inside = carry
        key, keep_key = jax.random.split(jax.random.fold_in(draw_key, index))
        drawn = walk.begin(key)
        is_inside = jnp.isfinite(walk.log_prob(drawn))
        inside += is_inside
        kept = is_inside & (jax.random.uniform(keep_key) * inside < 1.0)
        return optax.tree.where(kept, drawn, at), inside

    begin, inside = jax.lax.fori_loop(0, _STARTS, draw, (exact, jnp.zeros((), int)))
    share = jnp.log(jnp.maximum(inside, 1) / _STARTS)
    shares = jnp.where(inside, share, -_CLIPPED), jnp.log((inside + 1) / (_STARTS + 1))
    starts = jax.tree.map(lambda *x: jnp.stack(x), begin, exact)

    def level(index: jax.Array, carry: Any) -> Any:
        """Both chains add the weight of a level, then move at its other end."""
        at, totals = carry
        low = jnp.stack([index, levels - 1 - index])  # up, down
        ends = jnp.stack([power(low), power(low + 1)])
        keys = jax.random.split(jax.random.fold_in(rng_key, index), 2)

        def both(key: jax.Array, at: Position, end: jax.Array) -> Any:
            chain = walk.chain(at)
            return walk.step(key, index, chain, end)[0], weight(chain)

        at, weights = jax.vmap(both)(keys, at, jnp.stack([ends[1, 0], ends[0, 1]]))
        return at, totals + (ends[1] - ends[0]) * weights

    begun = starts, jnp.stack(shares)
    _, totals = jax.lax.fori_loop(0, levels, level, begun)
    return totals[0], totals[1]
