# SPDX-License-Identifier: Apache-2.0
"""Particle filters: log densities of sites in a scan whose hidden state is continuous.

A bootstrap filter carries copies of the scan's carry from step to step. At each step it
draws the hidden continuous sites of each copy, lists the states of the hidden discrete
ones, and weighs each by the densities of the sites whose values are given. Systematic
resampling keeps as many copies. The product of the mean weights is an unbiased estimate
of the density (Del Moral, 2004).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import math
from typing import Any, NamedTuple

import lazy_loader

import jax
import jax.numpy as jnp

from numpyro import handlers
from numpyro.primitives import Messenger

from numpyro_infograd._compiling import pytree
from numpyro_infograd._density import Density, Values
from numpyro_infograd._messenger import scan_watcher
from numpyro_infograd._noise import NoiseSpec, draw_noise, noise_like
from numpyro_infograd._program import Program, dependencies_by_name
from numpyro_infograd._sites import joint_states
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd.exogenous import lookup

blackjax = lazy_loader.load("blackjax")  # only filters and chains need it


class _Step(Messenger):
    """One step of a scan: given values where known, else draws; log densities."""

    def __init__(self, known: Values, scored: frozenset[str], rng_key: Any) -> None:
        self.known, self.scored, self.rng_key = known, scored, rng_key
        self.names: list[str] = []
        self.log_prob = jnp.zeros(())
        super().__init__()

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "deterministic":
            self.names.append(msg["name"])
            msg["value"] = self.known.get(msg["name"], msg["value"])
        if msg["type"] != "sample":
            return
        name, fn = msg["name"], msg["fn"]
        self.names.append(name)
        if name in self.known:
            msg["value"] = self.known[name]
        elif msg["value"] is None:
            self.rng_key, own = jax.random.split(self.rng_key)
            msg["value"] = fn.sample(own, msg["kwargs"]["sample_shape"])
        msg["intermediates"] = []
        if name in self.scored:
            law = lookup.density(fn)
            self.log_prob += jnp.sum(lookup.log_probs(law, msg["value"]))


def _advance(
    f: Any, carry: Any, x: Any, known: Values, scored: frozenset[str], rng_key: Any
) -> tuple[Any, jax.Array, list[str]]:
    """The next carry, the log density of the scored sites, the names of all sites."""
    step = _Step(known, scored, rng_key)
    with handlers.block(), step:
        carry, _ = f(carry, x)
    return carry, step.log_prob, step.names


def _strong(number: Any) -> jax.Array:
    """An array without the weak type of a Python number."""
    array = jnp.asarray(number)
    return jax.lax.convert_element_type(array, array.dtype)


def _watched(
    watch: Callable[..., None],
    sm: StructuralModel,
    inputs: tuple[Any, Values, Values],
    wanted: tuple[str, ...] = (),
) -> Values:
    """Run a model while its scans are watched; the log densities of some sites."""
    token = scan_watcher.set(watch)
    try:
        return sm.run(*inputs, log_prob_sites=wanted).log_prob
    finally:
        scan_watcher.reset(token)


@pytree("first", "steps")
@dataclass(frozen=True)
class Filter:
    """The particle filter of a set of sites."""

    first: Program  # the carry before the first step, from parameters, noise and values
    # The log density and the smallest effective sample size, from parameters, noise,
    # values, copies of the first carry, and a key.
    steps: Program
    # The sites of the set, with those that it is conditioned on; static.
    sites: tuple[str, ...]
    before: NoiseSpec  # distributions of the noise in the first carry; static
    spec: NoiseSpec  # distributions of all noise of the model; static
    num_particles: int  # number of copies; static

    @staticmethod
    def of(sm: StructuralModel, density: Density, num_particles: int) -> Filter | None:
        """The filter for a density; None unless all hidden noise is in one scan.

        Noise before the scan may act through the first carry alone.
        """
        if density.without_density or density.hidden_deterministic:
            return None
        inputs = sm.example_inputs(density.all_sites)
        scans: list[Any] = []

        def first(*inputs: Any) -> dict[str, Any]:
            scans.clear()
            _watched(lambda _, *operands: scans.append(operands), sm, inputs)
            # Without the weak types of Python numbers.
            return {"carry": jax.tree.map(_strong, scans[0][1])} if scans else {}

        start = Program.trace(first, *inputs)
        if len(scans) != 1:
            return None
        scans.clear()  # traced values must not outlive their trace
        reach = dependencies_by_name(start)
        before = reach["carry"][1] if reach else frozenset()
        outside = tuple(
            s for s in density.log_prob_sites if not sm.site_info[s].control_flow
        )

        def steps(
            params: Any, noise: Values, values: Values, copies: Any, random: Any
        ) -> dict[str, jax.Array]:
            found: list[Any] = []

            def watch(given: Values, *operands: Any) -> None:
                scan = _Scan.of(sm, density, given, operands)
                found.append(scan.filtered(copies["carry"], random["key"]))

            rest = _watched(watch, sm, (params, noise, values), outside)
            log_prob, size = found[0]
            return {
                "log_prob": log_prob + sum(map(jnp.sum, rest.values())),
                "size": size,
            }

        copies = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((num_particles, *x.shape), x.dtype),
            jax.eval_shape(start, *inputs),
        )
        every = *inputs, copies, {"key": jax.random.key(0)}
        program = Program.trace(steps, *every)
        if dependencies_by_name(program)["log_prob"][1]:
            return None
        drawn = tuple(item for item in sm.spec if item[0] in before)
        return Filter(start, program, density.all_sites, drawn, sm.spec, num_particles)

    def log_density(
        self, params: Any, values: Values, rng_key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The log density of one sample, and the smallest effective sample size."""
        noise_key, key = jax.random.split(rng_key)
        inside = {name: values[name] for name in self.sites}
        noise, rest = {}, noise_like(self.spec)
        if self.before:
            noise = draw_noise(self.before, noise_key, self.num_particles)
        copies = jax.vmap(
            lambda noise: self.first(params, rest | noise, inside),
            axis_size=self.num_particles,
        )(noise)
        found = self.steps(params, rest, inside, copies, {"key": key})
        return found["log_prob"], found["size"]


class _Scan(NamedTuple):
    """A scan with given values of some sites, for a filter."""

    f: Any  # the body
    xs: Any  # what it scans over
    known: Values  # given values of sites in the body, with a leading axis of steps
    # Joint states of its hidden discrete sites in one step, if they are few.
    states: Values
    scored: frozenset[str]  # the sites whose log densities weigh a copy
    length: int  # number of steps
    reverse: bool  # whether the scan starts at the end

    @staticmethod
    def of(sm: StructuralModel, density: Density, given: Values, scan: Any) -> _Scan:
        f, init, xs, length, reverse = scan
        names: list[str] = []

        def once() -> None:
            x = jax.tree.map(lambda x: x[0], xs)
            names.extend(_advance(f, init, x, {}, frozenset(), jax.random.key(0))[2])

        jax.eval_shape(once)
        known = {name: given[name] for name in names if name in given}
        each = {
            name: site._replace(shape=site.shape[1:])
            for name, site in sm.site_info.items()
            if name in names and name not in known
            if site.discrete and site.state == "free"
        }
        states = joint_states(each, each)
        scored = {*density.log_prob_sites, *states} & {*names}
        length = len(jax.tree.leaves(xs)[0]) if length is None else length
        return _Scan(f, xs, known, states, frozenset(scored), length, bool(reverse))

    def filtered(self, copies: Any, rng_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The log of the product of mean weights, and the smallest sample size, from
        copies of the first carry.
        """
        count = len(jax.tree.leaves(copies)[0])
        states = self.states or {"": jnp.zeros(1)}

        def candidate(
            carry: Any, x: Any, known: Values, key: Any, state: Values
        ) -> Any:
            carry, log_prob, _ = _advance(
                self.f, carry, x, known | state, self.scored, key
            )
            return carry, log_prob

        each = jax.vmap(candidate, (None, None, None, None, 0))
        each = jax.vmap(each, (0, None, None, 0, None))

        def step(copies: Any, at: Any) -> tuple[Any, Any]:
            x, known, key = at
            key, *own = jax.random.split(key, count + 1)
            moved, log_weights = each(copies, x, known, jnp.stack(own), states)
            flat = log_weights.ravel()
            flat = jnp.where(jnp.isnan(flat), -jnp.inf, flat)  # outside of a support
            total = jax.nn.logsumexp(flat)
            weights = jnp.where(
                jnp.isfinite(total), jnp.exp(flat - total), 1 / len(flat)
            )
            pick = blackjax.smc.resampling.systematic(key, weights, count)
            new = jax.tree.map(
                lambda x, like: x.reshape(-1, *x.shape[2:])[pick].astype(like.dtype),
                moved,
                copies,
            )
            size = 1 / jnp.sum(jnp.sum(weights.reshape(count, -1), axis=1) ** 2)
            return new, (total - math.log(count), size)

        at = self.xs, self.known, jax.random.split(rng_key, self.length)
        _, (log_means, sizes) = jax.lax.scan(
            step, copies, at, length=self.length, reverse=self.reverse
        )
        return jnp.sum(log_means), jnp.min(sizes)
