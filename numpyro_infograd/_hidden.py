# SPDX-License-Identifier: Apache-2.0
"""The hidden noise of a set of sites, as the position of a Markov chain.

Explicit noise is already a vector, in coordinates where it is standard normal. For a
site that is drawn from a key, the position has its value, in unconstrained coordinates;
for a discrete site, its value. (`StructuralModel.density` sums over discrete sites with
few joint states, so these are not hidden.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from numpyro_infograd._compiling import pytree
from numpyro_infograd._density import Density, Values
from numpyro_infograd._noise import NoiseSpec, noise_like
from numpyro_infograd._program import Program
from numpyro_infograd._sites import Site, choice_counts, choice_numbers, choice_values
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd.exogenous import Noise

_EDGE = 2.0**-24  # smallest distance of a uniform from 0 and 1


class Position(NamedTuple):
    """The position of a chain."""

    # Continuous hidden noise in unbounded coordinates, (num_dimensions,).
    free: jax.Array
    # For discrete sites of the position, the indices of their choices, or their values
    # if the choices are unlimited; (num_discrete,).
    states: jax.Array


@pytree("joint", "unpacked", "packed")
@dataclass(frozen=True)
class Hidden:
    """The hidden noise of a `Density` as the position of a chain."""

    joint: Density  # the density of the set together with the hidden sites in `valued`
    unpacked: Program  # from the vector `free` to (noise, values, log prior density)
    packed: Program  # from (noise, values) to the vector `free`
    sites: tuple[str, ...]  # the sites of the set, with those that it is conditioned on
    valued: tuple[str, ...]  # the hidden sites whose values are in the position
    walked: tuple[Site, ...]  # the discrete sites of the position
    # For each coordinate of `free`, whether the set has a right derivative in it.
    smooth: tuple[bool, ...]

    @staticmethod
    def of(sm: StructuralModel, density: Density) -> Hidden:
        valued = tuple(n for n, law in density.hidden_spec if _is_valued(sm, n, law))
        discrete = tuple(n for n in valued if sm.site_info[n].discrete)
        joint = density
        if valued:
            joint = sm.density(density.sites + valued, density.given, whole=True)
            joint = replace(joint, moved_sites=density.moved_sites)
        parts = tuple((n, law) for n, law in density.hidden_spec if n not in discrete)
        sites = {n: sm.site_info[n] for n in valued}

        unpacked, packed = (
            functools.partial(of, parts, sites) for of in (_unpack, _pack)
        )
        noise = noise_like(density.spec)
        example = sm.examples(valued)
        flat = jax.eval_shape(packed, noise, example)
        return Hidden(
            joint,
            Program.trace(unpacked, flat),
            Program.trace(packed, noise, example),
            density.all_sites,
            valued,
            tuple(sites[n] for n in discrete),
            _smooth(sm, density, parts, sites),
        )

    @property
    def size(self) -> int:
        """Number of coordinates of `free`."""
        return len(self.smooth)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of choices of each discrete value of the position; 0 if unlimited."""
        return choice_counts(self.walked)

    def start(self, noise: Values, values: Values) -> Position:
        """The position of one sample, from its noise and the values of all sites."""
        own = {name: values[name] for name in self.valued}
        return Position(self.packed(noise, own), choice_numbers(self.walked, values))

    def stretch(self, values: Values) -> jax.Array:
        """Derivative of each moved value in its log or logit, or 1, (num_scores,)."""
        slopes = {"positive": lambda x: x, "unit": lambda x: x * (1.0 - x)}
        kinds = dict(zip(self.joint.all_sites, self.joint.supports, strict=True))
        found = [
            slopes.get(kinds[name], jnp.ones_like)(values[name].ravel())
            for name in self.joint.moved_sites
        ]
        return jnp.concatenate([jnp.zeros(0), *found])

    def log_prob(self, params: Any, at: Position, values: Values) -> jax.Array:
        """log density of a position and the values of the set, a scalar in nats."""
        noise, own, log_prior = self.unpacked(at.free)
        full = noise_like(self.joint.spec) | noise
        states = choice_values(self.walked, at.states)
        inside = self.joint.pick(values | own | states)
        out = self.joint.program(params, full, inside)["log_prob"]
        return sum((jnp.sum(out[s]) for s in self.joint.log_prob_sites), log_prior)


def walkable(sm: StructuralModel, density: Density) -> Density:
    """The density with `walk`, what chains need, or `why_no_walk`."""
    if density.is_known:
        return density
    if why := why_not_walked(sm, density):
        return replace(density, why_no_walk=why)
    return replace(density, walk=Hidden.of(sm, density))


def why_not_walked(sm: StructuralModel, density: Density) -> str:
    """Why chains cannot sample the noise that a density hides; "" if they can."""
    if density.without_density:
        return f"site {density.without_density[0]!r} has no density"
    if density.hidden_deterministic:
        name = density.hidden_deterministic[0]
        return f"site {name!r} is computed from noise that the set hides"
    for name, law in density.hidden_spec:
        if name in sm.copies:
            site = sm.site_info[name.removesuffix("+copy")]
            if law.kind == "key" or site.discrete:
                return f"the noise {name!r} is a copy without a site"
        if not _is_valued(sm, name, law):
            continue
        site = sm.site_info[name]
        if not site.has_law:
            return f"draws of site {name!r} do not follow its log_prob"
        if name in sm.appended or name in density.all_sites:
            return f"site {name!r} has appended noise"
        if site.choices is None:
            return (
                f"entries of site {name!r} ({site.distribution}) depend on each other"
            )
        if not site.choices and site.discrete and site.is_float:
            return (
                f"the values of site {name!r} ({site.distribution}) are not whole "
                "numbers, and are not known before the model runs (write them as a "
                "list or a NumPy array)"
            )
        if not site.discrete and site.unconstrain is None:
            return f"the support of site {name!r} ({site.distribution}) is not known"
    return ""


def _smooth(
    sm: StructuralModel, density: Density, parts: NoiseSpec, sites: dict[str, Site]
) -> tuple[bool, ...]:
    """For each coordinate, whether all sites of a set have a right derivative in it.

    The distributions of the other hidden sites too. A jump has none, and a derivative
    that is stopped, or of a custom rule, may be wrong.
    """
    valued = tuple(name for name, _ in parts if name in sites)
    program = Program.trace(
        lambda params, noise, put: sm.run(params, noise, put, cut=True).values,
        *sm.example_inputs(valued),
    )
    watched = density.all_sites + tuple(sites)
    seen = {i for s in watched for i in program.output_indices(s)}
    found: list[bool] = []
    for name, law in parts:
        inputs = program.input_indices(*((2,) if name in sites else (1,)), name)
        jumps = any(jump.outputs & seen for jump in program.jumps(inputs))
        is_smooth = not jumps and not program.stops(inputs) & seen
        found += [is_smooth] * math.prod(_shape(name, law, sites))
    return tuple(found)


def _is_valued(sm: StructuralModel, name: str, law: Noise) -> bool:
    """Whether the position has the value of the site, not its noise."""
    if name not in sm.site_info:
        return False
    return law.kind == "key" or sm.site_info[name].discrete


def _shape(name: str, law: Noise, sites: dict[str, Site]) -> tuple[int, ...]:
    """Shape of the coordinates of a site: of its value, or of its noise."""
    if name not in sites:
        return law.shape
    return sites[name].unconstrain.inverse_shape(sites[name].shape)


def _unpack(
    parts: NoiseSpec, sites: dict[str, Site], free: jax.Array
) -> tuple[Values, Values, jax.Array]:
    noise, values, log_prior = {}, {}, jnp.zeros(())
    start = 0
    for name, law in parts:
        shape = _shape(name, law, sites)
        flat = free[start : start + math.prod(shape)].reshape(shape)
        if name in sites:
            transform = sites[name].unconstrain
            values[name] = transform(flat)
            jacobian = transform.log_abs_det_jacobian(flat, values[name])
            log_prior += jnp.sum(jacobian)
        else:
            noise[name] = flat
            if law.kind == "uniform":
                noise[name] = jnp.clip(ndtr(flat), _EDGE, 1.0 - _EDGE)
            log_prior -= jnp.sum(0.5 * flat**2 + 0.5 * math.log(2 * math.pi))
        start += math.prod(shape)
    return noise, values, log_prior


def _pack(
    parts: NoiseSpec, sites: dict[str, Site], noise: Values, values: Values
) -> jax.Array:
    flat = [jnp.zeros(0)]
    for name, law in parts:
        if name in sites:
            flat.append(sites[name].unconstrain.inv(values[name]).ravel())
        elif law.kind == "uniform":
            flat.append(ndtri(noise[name]).ravel())
        else:
            flat.append(noise[name].ravel())
    return jnp.concatenate(flat)
