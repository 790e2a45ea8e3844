# SPDX-License-Identifier: Apache-2.0
"""Identity VI: a readout that loses nothing has the information of what it reads.

If sampled sites T can be computed back from deterministic sites D, which are functions
of T alone, then for any other sites R

    h(D, R) = h(T, R) + E log |det dD/dT|,

so every information with D is that with T. The determinant exists if D and T have the
same size. It cancels in an information. If D is larger, as stack([y, y]) is, or T is
already in the set, h(D, R) is infinite, but an information in which D cancels is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import operator
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._edits import add_site
from numpyro_infograd._noise import probe_noise
from numpyro_infograd._objectives import Expectation, Joint, Objective, plus
from numpyro_infograd._pairs import with_pairs, without_pairs
from numpyro_infograd._recovery import NotInverseError, Recovery
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd.errors import VOUCH, ArgumentError, DensityError

_NUM_DRAWS = 1024


class Swap(NamedTuple):
    """Readouts in a set, and the sampled sites that take their place in it."""

    readouts: Joint
    sources: Joint


def see_through(
    sm: StructuralModel, objective: Objective, params: Mapping[str, Any]
) -> tuple[StructuralModel, Objective]:
    """The same objective with sampled sites in place of readouts that lose nothing.

    A readout may lose nothing only at these parameters. An ascent looks again at its
    end. The model has a new site for each log determinant that does not cancel, and the
    objective its expectation.
    """
    named = [s for s in objective.sites if _is_readout(sm, s)]
    if not named:
        return sm, objective
    readouts = _Readouts(sm, named, params)
    blocked: set[str] = set()
    while True:
        free = [s for s in readouts.sources if s not in blocked]
        swaps = {
            s: readouts.swaps(s, s.intersection(free)) for s in objective.entropies
        }
        swapped = {
            d for each in swaps.values() for w in each if w.sources for d in w[0]
        }
        kept = {
            d
            for joint, each in swaps.items()
            for d in joint.intersection(free) - frozenset().union(*(w[0] for w in each))
        }
        if not swapped & kept:
            break
        blocked |= swapped & kept  # a set must not have y where another has f(y)
    return _rewritten(sm, objective, swaps)


def _is_readout(sm: StructuralModel, name: str) -> bool:
    site = sm.site_info[name]
    computed = site.kind == "deterministic" and name not in sm.appended
    free = site.state == "free" and not site.control_flow
    return computed and free and site.is_float


def check_readouts(
    sm: StructuralModel, objective: Objective, params: Mapping[str, Any]
) -> None:
    """Raise for readouts that may lose nothing, before their scores are learned.

    They have as many values as the sites that they are made from, and a Jacobian of
    full rank that mixes components. Then a network may miss most of their structure
    without a sign. A function of each component that is not monotone is allowed.
    """
    named = [s for s in objective.sites if _is_readout(sm, s)]
    if not named:
        return
    readouts = _Readouts(sm, named, params)
    for joint in objective.entropies:
        for swap in readouts.groups(joint, joint.intersection(readouts.sources)):
            new = _size(sm, swap.sources)
            if not new or new != _size(sm, swap.readouts):
                continue
            if _mixes(sm, swap, params):
                names = ", ".join(map(repr, sorted(swap.readouts)))
                raise DensityError(
                    f"{names} may lose nothing of "
                    f"{', '.join(map(repr, sorted(swap.sources)))}, but the package "
                    "cannot tell, and a learned score may be wrong without a warning. "
                    f"{VOUCH} Otherwise choose a method: method='fisher' for a value, "
                    "scores='denoising' for a gradient."
                )


def _mixes(sm: StructuralModel, swap: Swap, params: Mapping[str, Any]) -> bool:
    """Whether the Jacobian of readouts is regular, but not that of each component."""
    noise = probe_noise(sm.spec, 9, 4)
    values = jax.vmap(sm.forward, in_axes=(None, 0))(params, noise)
    over = jax.vmap(_jacobian(sm, swap), in_axes=(None, 0, 0))
    matrices = np.asarray(over(params, noise, values), np.float64)
    if not np.all(np.isfinite(matrices)):
        return False
    regular = np.all(np.linalg.matrix_rank(matrices, rtol=1e-5) == matrices.shape[-1])
    mixed = np.any(np.sum(matrices != 0, axis=-1) > 1)
    return bool(regular and mixed)


class _Readouts:
    """The readouts of a model: the sites that each is made from, and its recovery."""

    def __init__(
        self, sm: StructuralModel, named: Iterable[str], params: Mapping[str, Any]
    ) -> None:
        settable = _settable(sm)
        program = sm.forward_given(settable)
        noise = probe_noise(sm.spec, 8, _NUM_DRAWS)
        values = jax.vmap(sm.forward, in_axes=(None, 0))(params, noise)
        given = {name: values[name] for name in settable}
        self._index = {program.input_indices(2, n)[0]: n for n in settable}
        self._number = {name: index for index, name in self._index.items()}
        self._recovery = Recovery(
            program,
            {i: sm.site_info[n].support for i, n in self._index.items()},
            jax.tree.leaves((params, noise, given)),
            program.input_indices(0),
        )
        self.sources: dict[str, Joint] = {}
        self._rows: dict[str, Any] = {}
        reached = program.dependencies()
        others = {*program.input_indices(1)}
        for name in named:
            outputs = program.output_indices(name)
            reach = frozenset().union(*(reached[i] for i in outputs))
            sources = frozenset(self._index[i] for i in reach if i in self._index)
            if reach & others or not sources:
                continue  # made from noise that no site of the model shows
            try:
                self._rows[name] = self._recovery.read(outputs)
            except NotInverseError as error:
                raise ArgumentError(
                    f"site {name!r} is made by a function that is marked as injective, "
                    f"but the function or its inverse {error}. Correct the inverse, or "
                    "leave out ig.injective."
                ) from None
            self.sources[name] = sources

    def swaps(self, joint: Joint, free: Joint) -> list[Swap]:
        """How some readouts in a set of sites can be replaced or left out."""
        fixed = joint - free
        while free:
            recovered = self._recovered(fixed, free)
            fits = frozenset(s for s in free if self.sources[s] <= recovered)
            if fits == free:
                break
            free = fits
        return self.groups(joint, free)

    def groups(self, joint: Joint, free: Joint) -> list[Swap]:
        """Readouts in a set that share sources outside of it belong together."""
        groups: list[Swap] = []
        for name in sorted(free):
            new = Swap(frozenset({name}), self.sources[name] - joint)
            for old in [g for g in groups if g.sources & new.sources]:
                groups.remove(old)
                new = Swap(new.readouts | old.readouts, new.sources | old.sources)
            groups.append(new)
        return groups

    def _recovered(self, fixed: Joint, free: Joint) -> Joint:
        found = self._recovery.recovered(
            [self._number[s] for s in fixed if s in self._number],
            [self._rows[s] for s in free if self._rows[s] is not None],
        )
        return frozenset(self._index[i] for i in found) | fixed


def _rewritten(
    sm: StructuralModel, objective: Objective, swaps: Mapping[Joint, list[Swap]]
) -> tuple[StructuralModel, Objective]:
    """The objective after the swaps, if it is finite."""
    entropies: dict[Joint, float] = {}
    left: dict[Swap, float] = {}
    for joint, coefficient in objective.entropies.items():
        made = joint
        for swap in swaps[joint]:
            made = (made - swap.readouts) | swap.sources
            left[swap] = plus(left.get(swap, 0.0), coefficient)
        entropies[made] = plus(entropies.get(made, 0.0), coefficient)
    volumes, edited = Objective({}), sm
    for swap, coefficient in left.items():
        discrete = {sm.site_info[s].discrete for s in swap.sources}
        mixed = any(sm.site_info[s].support == "mixed" for s in swap.sources)
        if not coefficient or (discrete == {True}):
            continue  # a probability has no volume
        if mixed or len(discrete) > 1:
            return sm, objective
        if _size(sm, swap.readouts) != _size(sm, swap.sources):
            return sm, objective  # infinite
        name = f"log |d {','.join(sorted(swap.readouts))}|"
        edited = add_site(edited, name, _log_volume(sm, swap))
        volumes += coefficient * Expectation(operator.itemgetter(name))
    expectations = objective.expectations + volumes.expectations
    causal = objective.causal
    return edited, Objective(entropies, expectations, objective.terms, causal)


def _settable(sm: StructuralModel) -> tuple[str, ...]:
    """The sampled sites whose values can be given."""
    return tuple(
        name
        for name, site in sm.site_info.items()
        if site.kind == "sample" and site.state == "free"
        if not site.control_flow and name not in sm.appended
    )


def _size(sm: StructuralModel, sites: Joint) -> int:
    return sum(sm.site_info[s].size for s in sites)


def _log_volume(sm: StructuralModel, swap: Swap) -> Any:
    """log |det| of the Jacobian of readouts in their sources."""
    jacobian = _jacobian(sm, swap)
    return lambda *args: jnp.linalg.slogdet(jacobian(*args))[1]


def _jacobian(sm: StructuralModel, swap: Swap) -> Any:
    """The Jacobian of readouts in their sources, from parameters, noise and values."""
    readouts, sources = sorted(swap.readouts), tuple(sorted(swap.sources))
    settable = _settable(sm)
    program = sm.forward_given(settable)

    def jacobian(params: Any, noise: Any, values: Any) -> jax.Array:
        others = {s: values[s] for s in settable}
        pairs = frozenset(s for s in sources if jnp.iscomplexobj(values[s]))

        def made(given: Any) -> jax.Array:
            found = program(params, noise, others | without_pairs(pairs, given))
            return jnp.concatenate([found[s].ravel() for s in readouts])

        at = with_pairs(pairs, {s: values[s] for s in sources})
        columns = jax.jacfwd(made)(at)
        parts = [columns[s].reshape(len(columns[s]), -1) for s in sources]
        return jnp.concatenate(parts, axis=1)

    return jacobian
