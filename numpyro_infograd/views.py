# SPDX-License-Identifier: Apache-2.0
"""A model as an objective sees it, and where to look at it from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
import functools
from typing import Any

import jax
import jax.numpy as jnp

from numpyro.distributions import biject_to
from numpyro.distributions.transforms import IdentityTransform

from numpyro_infograd.noise import noise_like
from numpyro_infograd.program import Program
from numpyro_infograd.structure import StructuralModel, Values

NUM_PROBES = 64
FAR = 0.3  # a relative step of parameters to where other things happen


@dataclass(frozen=True)
class View:
    """A model as an objective sees it: some of its sites, and expectations.

    Attributes:
        sm: The model.
        sites: The sites whose entropies are asked for.
        expectations: Functions of one sample's values, by what they are called.
    """

    sm: StructuralModel
    sites: tuple[str, ...]
    expectations: Mapping[str, Program]

    @functools.cached_property
    def whole(self) -> Program:
        """`program` with nothing given."""
        return self.program(())

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs of `program` that matter."""
        return (*self.sites, *self.expectations)

    @property
    def read(self) -> tuple[str, ...]:
        """The sites that matter: the named ones and those an expectation reads."""
        found = set(self.sites)
        for program in self.expectations.values():
            used = frozenset().union(*program.dependencies())
            found |= {s for s in self.sm.sites if used & {*program.input_indices(0, s)}}
        return tuple(s for s in self.sm.sites if s in found)

    @property
    def drawn(self) -> tuple[str, ...]:
        """The sites of floats that are drawn from a PRNG key."""
        return tuple(
            name
            for name, site in self.sm.site_info.items()
            if site.noise is not None and site.noise.kind == "key" and not site.discrete
        )

    def program(self, given: Collection[str]) -> Program:
        """The map from (params, noise, values of `given`) to sites and expectations.

        A given site is passed on as given and returned as made, so that a jump shows
        on either side of it.
        """
        sm = self.sm

        def run(params: Any, noise: Values, put: Values) -> dict[str, Any]:
            made = sm.run(params, noise, put, cut=True)[0]
            passed = {**made, **put}
            means = {n: jnp.asarray(e(passed)) for n, e in self.expectations.items()}
            # A truth is averaged as a number: then it jumps.
            numbers = {n: m.astype(jnp.result_type(float)) for n, m in means.items()}
            return made | numbers

        example = {name: sm.example(name) for name in given}
        return Program.trace(run, sm.params, noise_like(sm.spec), example)

    def call(self, name: str) -> str:
        """What an output is called in a message."""
        return name if name in self.expectations else f"site {name!r}"


def perturb(sm: StructuralModel, params: Any, size: float) -> Any:
    """Parameters a random step of some relative size away, within their constraints."""
    moved = {}
    for index, (name, value) in enumerate(params.items()):
        leaves, tree = jax.tree.flatten(value)
        try:
            transform = biject_to(sm.constraints[name])
        except NotImplementedError:  # no bijection, as for a sphere
            moved[name] = value
            continue
        keys = jax.random.split(
            jax.random.fold_in(jax.random.key(3), index), len(leaves)
        )
        new = []
        for leaf, key in zip(leaves, keys, strict=True):
            free = transform.inv(leaf)
            step = size * (1.0 + jnp.abs(free)) * jax.random.normal(key, free.shape)
            new.append(transform(free + step))
        moved[name] = jax.tree.unflatten(tree, new)
    return moved


def lines_through(
    sm: StructuralModel,
    params: Any,
    count: int,
    times: Any,
    only: Collection[str] | None = None,
) -> tuple[Any, Any]:
    """Some lines through the parameters, in random directions, and their tangents.

    A line is straight in coordinates without constraints, and its speed is the size of
    each number there. Both results have axes of lines and of times in front.
    """
    points, tangents = {}, {}
    for index, (name, value) in enumerate(params.items()):
        try:
            transform = biject_to(sm.constraints[name])
        except NotImplementedError:
            transform = IdentityTransform()
        leaves, tree = jax.tree.flatten(value)
        chosen = only is None or name in only
        found = []
        for number, leaf in enumerate(leaves):
            free = jnp.asarray(transform.inv(leaf))
            key = jax.random.fold_in(
                jax.random.fold_in(jax.random.key(6), index), number
            )
            speed = jax.random.normal(key, (count, 1, *free.shape)) * chosen
            if isinstance(transform, IdentityTransform):
                largest = jnp.max(jnp.abs(free), initial=0.0)
                fallback = jnp.where(largest > 0, largest, 1.0)
                speed *= jnp.where(free == 0, fallback, jnp.abs(free))
            clock = jnp.asarray(times, free.dtype).reshape(1, -1, *[1] * free.ndim)
            way, speed = jnp.broadcast_arrays(free + clock * speed, speed)
            found.append(jax.jvp(transform, (way,), (speed,)))
        points[name] = jax.tree.unflatten(tree, [point for point, _ in found])
        tangents[name] = jax.tree.unflatten(tree, [tangent for _, tangent in found])
    return points, tangents
