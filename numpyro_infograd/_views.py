# SPDX-License-Identifier: Apache-2.0
"""The part of a model that an objective uses, and parameters at which to test it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
import functools
from typing import Any

import numpy as np

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp

from numpyro.distributions.transforms import IdentityTransform

from numpyro_infograd._density import Values
from numpyro_infograd._parameters import bijection
from numpyro_infograd._program import Program
from numpyro_infograd._structure import StructuralModel

NUM_PROBES = 64
FAR = 0.3  # relative step of parameters to a different region


@dataclass(frozen=True)
class View:
    """The part of a model that an objective uses: sites, expectations, probabilities.

    Where drawn sites are held at their values, a parameter acts by the probabilities of
    these values (identity V). The arguments of their distributions stand for them.
    """

    sm: StructuralModel  # the model
    sites: tuple[str, ...]  # the sites of the entropies
    expectations: Mapping[str, Program]  # functions of one sample's values, by label
    _programs: dict[tuple[str, ...], Program] = field(default_factory=dict, init=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The sites, and labels of expectations and probabilities."""
        return (*self.sites, *self.expectations, *self.probabilities)

    @functools.cached_property
    def probabilities(self) -> dict[str, str]:
        """The held sites whose probabilities a parameter may move, by label."""
        whole = self.sm.held_from
        if whole is None:
            return {}
        around = whole.noise_of(self.read)
        return {f"the probability of site {s!r}": s for s in whole.drawn if s in around}

    def laws(self, given: Collection[str]) -> dict[str, str]:
        """The given sites, drawn from keys, by labels of their distributions."""
        return {f"the distribution of site {s!r}": s for s in given}

    def movers(self, name: str) -> frozenset[str]:
        """The parameters that may move an output."""
        if name in self.probabilities:
            assert self.sm.held_from is not None
            return self.sm.held_from.params_of(self.probabilities[name])
        if name in (laws := self.laws(self.keyed)):
            return self.sm.params_of(laws[name])
        return self.sm.params_of(name if name in self.sites else self.read)

    @property
    def read(self) -> tuple[str, ...]:
        """The sites of the entropies, and the sites that an expectation reads."""
        found = {*self.sites, *sites_read(self.expectations.values(), self.sm.sites)}
        return self.sm.in_order(found)

    @property
    def keyed(self) -> tuple[str, ...]:
        """The continuous sites that are drawn from a PRNG key."""
        sites = self.sm.site_info.values()
        return tuple(site.name for site in sites if site.keyed and not site.discrete)

    def program(self, given: Collection[str] = ()) -> Program:
        """The map from (params, noise, values of `given`) to all outputs.

        These are the sites, the expectations, and the arguments of distributions: of
        sites whose probabilities a parameter may move, and of `given`.
        Later sites use the given value of a site. The output is the value that the
        model computes for it, so that a jump before the site is visible too.
        """
        key = tuple(given)
        if key not in self._programs:
            self._programs[key] = self._trace(key)
        return self._programs[key]

    def _trace(self, given: tuple[str, ...]) -> Program:
        sm, weighed = self.sm, self.probabilities | self.laws(given)
        wanted = tuple(weighed.values())

        def run(params: Any, noise: Values, put: Values) -> dict[str, Any]:
            laws: dict[str, Any] = {}
            if given or wanted:
                played = sm.run(params, noise, put, cut=True, log_prob_sites=wanted)
                made, laws = played.values, played.arguments
            else:  # the forward map is enough
                made = sm.forward(params, noise)
            passed = {**made, **put}
            means = {n: jnp.asarray(e(passed)) for n, e in self.expectations.items()}
            # A bool is averaged as a number, so it jumps.
            numbers = {n: m.astype(jnp.result_type(float)) for n, m in means.items()}
            flat = {k: ravel_pytree(laws.get(s, []))[0] for k, s in weighed.items()}
            return made | numbers | flat

        return Program.trace(run, *sm.example_inputs(given))

    def call(self, name: str) -> str:
        """Name of an output in messages."""
        return f"site {name!r}" if name in self.sm.site_info else name


# NumPy, because JAX would compile each operation below separately.


@np.errstate(invalid="ignore")  # a start on a boundary raises an error later
def perturb(sm: StructuralModel, params: Any, size: float) -> Any:
    """Parameters after a random step of this relative size, within constraints."""
    rng = np.random.default_rng(3)
    moved = {}
    for name, value in params.items():
        transform = bijection(sm.constraints[name])
        if transform is None:  # a constraint without a bijection, such as a sphere
            moved[name] = value
            continue

        def one(leaf: Any, transform: Any = transform) -> Any:
            free = np.asarray(transform.inv(leaf))
            step = size * (1.0 + np.abs(free)) * rng.normal(size=free.shape)
            return transform((free + step).astype(free.dtype))

        moved[name] = jax.tree.map(one, value)
    return moved


@np.errstate(invalid="ignore")
def lines_through(
    sm: StructuralModel,
    params: Any,
    count: int,
    times: Any,
    only: Collection[str] | None = None,
) -> tuple[Any, Any]:
    """Points on random lines through the parameters, and the tangents there.

    A line is straight in unconstrained coordinates, and its speed is the size of each
    number there. Both results have leading axes of lines and of times.
    """
    rng = np.random.default_rng(6)
    points, tangents = {}, {}
    for name, value in params.items():
        transform = bijection(sm.constraints[name]) or IdentityTransform()
        identity = isinstance(transform, IdentityTransform)
        leaves, tree = jax.tree.flatten(value)
        found = []
        for leaf in leaves:
            free = np.asarray(transform.inv(leaf))
            speed = rng.normal(size=(count, 1, *free.shape))
            speed *= only is None or name in only
            if identity:
                largest = np.max(np.abs(free), initial=0.0) or 1.0
                speed *= np.where(free == 0, largest, np.abs(free))
            clock = np.reshape(times, (1, -1, *[1] * free.ndim))
            way, speed = np.broadcast_arrays(free + clock * speed, speed)
            line = way.astype(free.dtype), speed.astype(free.dtype)
            if not identity:
                line = jax.jvp(transform, line[:1], line[1:])
            found.append(line)
        points[name] = jax.tree.unflatten(tree, [point for point, _ in found])
        tangents[name] = jax.tree.unflatten(tree, [tangent for _, tangent in found])
    return points, tangents


def sites_read(programs: Iterable[Program], sites: Iterable[str]) -> tuple[str, ...]:
    """The sites whose values some programs of one sample's values use."""
    found: set[str] = set()
    for program in programs:
        used = frozenset().union(*program.dependencies())
        found |= {s for s in sites if used & {*program.input_indices(0, s)}}
    return tuple(s for s in sites if s in found)
