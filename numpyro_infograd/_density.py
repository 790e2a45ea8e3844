# SPDX-License-Identifier: Apache-2.0
"""The log density of a set of sites, given the noise of all other sites.

It is a function of the sites' values, at fixed noise of all other sites; a score is its
gradient. `simulate` makes values of given noise, `draw_values` of fresh noise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._compiling import pytree, quick_jit
from numpyro_infograd._noise import (
    NoiseSource,
    NoiseSpec,
    gather_samples,
    noise_like,
)
from numpyro_infograd._program import Program, dependencies_by_name

Values = dict[str, jax.Array]
_AT_ONCE = 2**20  # numbers in one array of a check, unless its draws are fewest


@pytree("program", "walk")
@dataclass(frozen=True)
class Density:
    """The density of a set of sites given the noise of all other sites."""

    program: Program  # the log density of each site, from parameters, noise and values
    sites: tuple[str, ...]  # the set of sites
    log_prob_sites: tuple[str, ...]  # the sites whose log densities are summed
    given: tuple[str, ...]  # the sites whose values the density is conditioned on
    # The sites whose values depend on a parameter; only they need a score.
    moved_sites: tuple[str, ...]
    # The noise that is integrated over; with none, the density is known exactly.
    hidden: tuple[str, ...]
    # The sites whose density jumps at a place that is not fixed.
    moving_boundary: tuple[str, ...]
    # The sites with a boundary that no log or logit removes.
    hard_boundaries: tuple[str, ...]
    # The deterministic sites computed from hidden noise.
    hidden_deterministic: tuple[str, ...]
    sizes: tuple[int, ...]  # number of scalars in each of `all_sites`
    supports: tuple[str, ...]  # support of each of `all_sites`, as in `Site`
    spec: NoiseSpec  # the distributions of all noise of the model
    # What a Markov chain over the hidden noise needs (`_hidden.Hidden`), or None.
    walk: Any = None
    why_no_walk: str = ""  # why chains cannot sample the hidden noise; "" if they can
    # Whether it is p(sites || given), where given sites may depend on sites.
    causal: bool = False

    @property
    def all_sites(self) -> tuple[str, ...]:
        """The sites on whose values the density depends."""
        return self.sites + self.given

    @property
    def unbounded(self) -> bool:
        """Whether no site of the set has a boundary."""
        supports = dict(zip(self.all_sites, self.supports, strict=True))
        return not self.hard_boundaries and all(
            supports[s] == "real" for s in self.log_prob_sites
        )

    @property
    def label(self) -> str:
        """Name of the set in results, such as "y" or "y|x"."""
        return ",".join(self.sites) + ("|" + ",".join(self.given)).rstrip("|")

    @property
    def without_density(self) -> tuple[str, ...]:
        """Sites of the set that depend on a parameter and have no density."""
        moved = set(self.moved_sites) - set(self.log_prob_sites)
        return tuple(s for s in self.sites if s in moved)

    @property
    def is_known(self) -> bool:
        """Whether the score of the density can be computed directly."""
        return not self.hidden and not self.without_density

    @property
    def hidden_spec(self) -> NoiseSpec:
        return tuple(item for item in self.spec if item[0] in self.hidden)

    def log_prob(self, params: Any, noise: Values, values: Values) -> jax.Array:
        """log p(sites | given, hidden noise) for one sample, a scalar in nats."""
        full = noise_like(self.spec) | {name: noise[name] for name in self.hidden}
        out = self.program(params, full, self.pick(values))["log_prob"]
        return sum((jnp.sum(out[s]) for s in self.log_prob_sites), jnp.zeros(()))

    def log_probs(self, params: Any, values: Values) -> jax.Array:
        """log p(sites | given) of a batch, (num_samples,), if no noise is hidden."""
        over = jax.vmap(self.log_prob, (None, None, 0))
        return over(params, {}, self.pick(values))

    def pick(self, values: Values) -> Values:
        """The values of `all_sites`."""
        return {name: values[name] for name in self.all_sites}


def sum_over(
    density: Density, run: Callable[..., Any], inputs: tuple[Any, ...], states: Values
) -> Density:
    """A density as a sum over the states of discrete sites whose noise it hides.

    `run` is that of the `StructuralModel`, `inputs` are examples of parameters, noise,
    and values of the set, and `states` all joint states, (num_states, *shape) by site.
    """
    wanted = (*density.log_prob_sites, *states)

    def log_sum(params: Any, noise: Values, values: Values) -> jax.Array:
        def joint(state: Values) -> jax.Array:
            out = run(params, noise, values | state, log_prob_sites=wanted)
            return sum(map(jnp.sum, out.log_prob.values()), jnp.zeros(()))

        return jax.nn.logsumexp(jax.vmap(joint)(states))

    return summed(density, log_sum, inputs, states.keys())


def summed(
    density: Density,
    log_sum: Callable[..., jax.Array],
    inputs: tuple[Any, ...],
    sites: Collection[str],
) -> Density:
    """The density whose log is that of a sum over hidden discrete sites."""
    first, *others = density.log_prob_sites

    def total(params: Any, noise: Values, values: Values) -> dict[str, Any]:
        found = log_sum(params, noise, values)
        return {"log_prob": dict.fromkeys(others, jnp.zeros(())) | {first: found}}

    program = Program.trace(total, *inputs)
    reach = dependencies_by_name(program, key=lambda path: path[1].key)
    left = reach[first][1]
    if left & {*sites}:  # a copy of the model still draws these sites
        return density
    hidden = tuple(name for name in density.hidden if name in left)
    return replace(density, program=program, hidden=hidden)


@jax.jit
def simulate(forward: Program, params: Any, noise: Values) -> Values:
    """Values of all sites for a batch of noise."""
    return jax.vmap(forward, in_axes=(None, 0))(params, noise)


@quick_jit
def draw_values(
    forward: Program, params: Any, source: NoiseSource, rng_key: jax.Array
) -> Values:
    """Values of all sites for a batch of fresh noise, by one compiled program."""
    values = simulate(forward, params, source(rng_key))
    return jax.tree.map(gather_samples, values)


def num_draws(program: Program, least: int, most: int) -> int:
    """Number of draws for a check: fewer if the program computes large arrays."""
    return max(least, min(most, _AT_ONCE // program.largest()))


def quantiles(samples: Any, *shares: float) -> tuple[Any, ...]:
    """JAX or NumPy samples at the quantiles of the first axis, without interpolation.

    `jnp.quantile` takes five times as long to compile.
    """
    xp = samples.__array_namespace__()
    ordered, last = xp.sort(samples, axis=0), len(samples) - 1
    return tuple(ordered[round(share * last)] for share in shares)


def flatten(values: Values, sites: tuple[str, ...]) -> jax.Array:
    """Site values side by side as (num_samples, dimensions)."""
    dtype = jnp.zeros(()).dtype
    columns = [values[s].reshape(values[s].shape[0], -1).astype(dtype) for s in sites]
    return jnp.concatenate(columns, axis=1)


def unflatten(columns: jax.Array, like: Values, sites: tuple[str, ...]) -> Values:
    """Inverse of `flatten` for the last axis, with the shapes of `like`."""
    ends = np.cumsum([like[site][0].size for site in sites], dtype=int)
    blocks = zip(sites, jnp.split(columns, ends, axis=-1)[:-1], strict=True)
    return {
        site: block.reshape(*columns.shape[:-1], *like[site].shape[1:])
        for site, block in blocks
    }
