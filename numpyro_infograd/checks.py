# SPDX-License-Identifier: Apache-2.0
"""What is refused at the public door, before any number is computed.

Each check answers one way in which the gradient could come out wrong without a sign:
a site that is not what it seems, a sampler that drops a derivative, a jump on the
path of a parameter, a set of sites without noise of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro.distributions import biject_to

from numpyro_infograd.errors import (
    ArgumentError,
    DegenerateError,
    DensityError,
    JumpError,
    ReparametrizationError,
    SiteError,
)
from numpyro_infograd.noise import draw_noise
from numpyro_infograd.objectives import Objective, resolve
from numpyro_infograd.program import Program
from numpyro_infograd.structure import Density, StructuralModel, Values, simulate

# A site whose value moves by more than this share of its scale while the noise moves
# by one float has jumped.
_JUMP = 1e-3
_NUM_PROBES = 64


def check_objective(objective: Any, sm: StructuralModel) -> None:
    """Sites exist and are free; the objective is one and says something.

    Raises:
        ArgumentError: if it is no objective, or an empty one.
        SiteError: for a missing, observed, substituted or intervened site.
    """
    if not isinstance(objective, Objective):
        raise ArgumentError(
            f"objective must be built from MI, Entropy and Expectation, got "
            f"{objective!r}."
        )
    if not objective.entropies and not objective.expectations:
        raise ArgumentError(
            f"the objective {objective!r} is empty: all its terms cancel."
        )
    for name in objective.sites:
        if name not in sm.site_info:
            raise SiteError(
                f"the objective names site {name!r}, but the model has no such site "
                f"(it has: {', '.join(sm.sites) or 'none'})."
            )
        if jnp.issubdtype(sm.site_info[name].dtype, jnp.complexfloating):
            raise SiteError(
                f"site {name!r} of the objective is complex. Name real sites: "
                "stack its real and imaginary parts in a deterministic site."
            )
        state = sm.site_info[name].state
        if state != "free":
            why = {
                "observed": "is observed (obs=..., handlers.condition)",
                "substituted": "has a substituted value (handlers.substitute)",
                "intervened": "is intervened on (handlers.do)",
            }[state]
            raise SiteError(
                f"site {name!r} of the objective {why}, so it carries no randomness. "
                "Pass the model without that value."
            )


def check_gradient(
    objective: Objective, sm: StructuralModel, params: Any, allow_jumps: bool
) -> None:
    """The pathwise gradient of every site of the objective is right.

    Raises:
        ReparametrizationError: a parameter flows into a site that drops its gradient.
        JumpError: a parameter reaches the objective through a jump.
        DegenerateError: a set of sites has fewer noise dimensions than values.
        ParameterError, DensityError: see the message.
    """
    sites = objective.sites
    if objective.expectations:
        sites = sm.sites
    for name in _upstream(sm, sites):
        site = sm.site_info[name]
        reached = sm.params_of((name,))
        if site.reason and reached and site.state == "free":
            raise ReparametrizationError(
                f"site {name!r} depends on {_list(reached)}, but {site.reason}. Make "
                f"{name!r} independent of parameters, use a distribution with a "
                "pathwise gradient (a relaxation, a reparametrisation), or vouch for "
                "your own class with numpyro_infograd.exogenous.vouch."
            )
    if not allow_jumps:
        _check_jumps(sm, sites, params)
    check_rank(objective, sm, params)


def check_densities(sm: StructuralModel, densities: Iterable[Density]) -> None:
    """Every site that needs an own density has one, in as many dimensions as values.

    Raises:
        DensityError: for a deterministic site, or one on a thin support.
    """
    for density in densities:
        for name in density.sites:
            site = sm.site_info[name]
            if name not in density.blocks or name in sm.appended:
                continue
            if site.kind == "deterministic":
                raise DensityError(
                    f"site {name!r} is deterministic, so it has no density given the "
                    "other noise. Use scores='denoising', which appends noise to it, "
                    "or observe it through a sample site."
                )
            if site.support == "thin":
                raise DensityError(
                    f"the support of site {name!r} ({site.distribution}) has fewer "
                    "dimensions than its values. Name a deterministic site of free "
                    "coordinates instead."
                )


def check_rank(objective: Objective, sm: StructuralModel, params: Any) -> None:
    """Each entropy's sites carry as many noise dimensions, given the rest, as values.

    Raises:
        DegenerateError: where the Jacobian in all noise is short of rank.
    """

    def continuous(sites: Iterable[str]) -> tuple[str, ...]:
        floating = (
            s for s in sites if jnp.issubdtype(sm.site_info[s].dtype, jnp.floating)
        )
        return tuple(s for s in floating if not sm.site_info[s].discrete)

    for term in resolve(objective, sm):
        sites, given = continuous(term.sites), continuous(term.given)
        size = sum(sm.site_info[s].size for s in sites)
        rank = _rank(sm, sites + given, params) if sites else 0
        if sites and given:
            rank -= _rank(sm, given, params)
        if rank < size:
            names = _list(sites + given)
            raise DegenerateError(
                f"{names} together have {size} dimensions but only {rank} of noise at "
                "these parameter values: a part is a function of the rest, and "
                "information between them is infinite. Add the noise that is missing "
                "(a sample site), or leave out what is redundant."
            )


def _upstream(sm: StructuralModel, sites: Iterable[str]) -> tuple[str, ...]:
    """The sites themselves and all whose noise reaches them."""
    sources = sm.noise_of(sites)
    return tuple(s for s in sm.sites if s in sources or s in set(sites))


def _list(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))


# -- rank --------------------------------------------------------------------------


def _rank(sm: StructuralModel, sites: tuple[str, ...], params: Any) -> int:
    """Rank of the sites' Jacobian in the noise.

    A site made from a PRNG key has no noise to differentiate in; its value takes the
    noise's place.
    """
    opaque = tuple(
        name
        for name, site in sm.site_info.items()
        if site.noise is not None
        and site.noise.kind == "key"
        and not site.discrete
        and not site.control_flow
    )
    names = sm.noise_of(sites)
    columns = tuple(
        n for n, law in sm.noise.items() if law.kind != "key" and n in names
    )
    forward = sm.forward_given(opaque) if opaque else None
    keyed_scan = any(
        s.control_flow and s.noise is not None and s.noise.kind == "key"
        for s in sm.site_info.values()
    )
    if not columns and not opaque:
        return 0  # made from discrete sites alone
    jacobians = _jacobians(
        sm.forward, forward, params, jax.random.key(1), sm.spec, sites, columns, opaque
    )
    if keyed_scan:  # noise that no Jacobian shows
        return sum(sm.site_info[s].size for s in sites)
    ranks = []
    for jacobian in np.asarray(jacobians, np.float64):
        if not np.all(np.isfinite(jacobian)):
            raise DegenerateError(
                f"the derivative of {_list(sites)} in the noise is not finite at these "
                "parameter values. Use the double-where trick around the square root, "
                "division or logarithm."
            )
        scale = np.linalg.norm(jacobian, axis=1, keepdims=True)
        scaled = jacobian / np.where(scale > 0, scale, 1.0)
        ranks.append(int(np.linalg.matrix_rank(scaled, tol=3e-6 * max(scaled.shape))))
    return max(ranks)


@jax.jit(static_argnames=("spec", "sites", "columns", "opaque"))
def _jacobians(
    whole: Program,
    forward: Program | None,
    params: Any,
    rng_key: jax.Array,
    spec: Any,
    sites: tuple[str, ...],
    columns: tuple[str, ...],
    opaque: tuple[str, ...],
) -> jax.Array:
    """Jacobians at three draws, (3, dimensions, noise)."""
    noise = draw_noise(spec, rng_key, 3)
    values = simulate(whole, params, noise)
    given = {name: values[name] for name in opaque}

    def one(noise: Values, given: Values) -> jax.Array:
        def flat(moving: Values, put: Values) -> jax.Array:
            full = {**noise, **moving}
            made = forward(params, full, put) if forward else whole(params, full)
            return jnp.concatenate([made[s].ravel() for s in sites])

        moving = {name: noise[name] for name in columns}
        jacobian = jax.jacfwd(flat, argnums=(0, 1))(moving, given)
        leaves = [j.reshape(j.shape[0], -1) for j in jax.tree.leaves(jacobian)]
        if not leaves:
            return jnp.zeros((flat(moving, given).shape[0], 1))
        return jnp.concatenate(leaves, axis=1)

    return jax.vmap(one)(noise, given)


# -- jumps -------------------------------------------------------------------------


def _check_jumps(sm: StructuralModel, sites: tuple[str, ...], params: Any) -> None:
    """Refuse hard jumps; probe switches, which may be continuous."""
    wrt = sm.forward.input_indices(0)
    where = {i: s for s in sites for i in sm.forward.output_indices(s)}
    remedy = (
        "The pathwise gradient does not see a jump. Soften it, put noise before it, "
        "or pass allow_jumps=True if you know that it does not matter."
    )
    switched: set[str] = set()
    for jump in sm.forward.jumps(wrt):
        hit = sorted({where[i] for i in jump.outputs if i in where})
        if hit and not jump.switch:
            raise JumpError(
                f"a parameter reaches site {hit[0]!r} through {jump.primitive!r}, "
                f"which jumps. {remedy}"
            )
        switched.update(hit)
    if not switched:
        return
    names = tuple(sorted(switched))
    found = _probe(sm, names, params)
    if found:
        raise JumpError(f"{found[0]} {remedy}")


def _probe(sm: StructuralModel, sites: tuple[str, ...], params: Any) -> list[str]:
    """What a switch does where it flips: a message for a site that jumps there."""
    wrt = sm.forward.input_indices(0)
    predicates = sm.forward.predicates(wrt)
    if predicates is None:
        return [
            f"site {sites[0]!r} depends on a parameter through a branch inside "
            "another branch or a while loop, where no probe can follow."
        ]
    wiggled = _perturb(sm, params)
    for point in (params, wiggled):
        noise = draw_noise(sm.spec, jax.random.key(2), 2 * _NUM_PROBES)
        low, high, scale = _flips(sm.forward, predicates, point, noise)
        for name in sites:
            spread = np.maximum(np.asarray(scale[name]), 1e-6)
            wide, narrow = np.asarray(low[name]), np.asarray(high[name])
            if np.any((narrow > 0.5 * wide) & (narrow > _JUMP * spread)):
                return [
                    f"site {name!r} jumps where a condition that depends on a "
                    "parameter changes (where, select or cond)."
                ]
    return []


def _perturb(sm: StructuralModel, params: Any) -> Any:
    """Parameters a random step away, within their constraints."""
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
            step = 0.3 * (1.0 + jnp.abs(free)) * jax.random.normal(key, free.shape)
            new.append(transform(free + step))
        moved[name] = jax.tree.unflatten(tree, new)
    return moved


@jax.jit
def _flips(
    forward: Program, predicates: Program, params: Any, noise: Values
) -> tuple[Values, Values, Values]:
    """Sites on both sides of each switch's flip, between pairs of noise draws.

    Returns two dicts of arrays (switches, pairs, *shape), values just before and just
    after, equal where a switch does not flip between a pair; and each site's scale.
    """
    first = jax.tree.map(lambda x: x[:_NUM_PROBES], noise)
    second = jax.tree.map(lambda x: x[_NUM_PROBES:], noise)
    values = simulate(forward, params, noise)
    scale = {
        name: jnp.std(v.astype(jnp.zeros(()).dtype), axis=0)
        for name, v in values.items()
    }

    def between(a: Values, b: Values, t: jax.Array) -> Values:
        def mix(x: jax.Array, y: jax.Array) -> jax.Array:
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                return x
            return (1 - t) * x + t * y

        return jax.tree.map(mix, a, b)

    def pair(a: Values, b: Values) -> tuple[Values, Values]:
        def states(t: jax.Array) -> list[jax.Array]:
            return [p.ravel() for p in predicates(params, between(a, b, t))]

        def bisect(index: int) -> tuple[Values, Values]:
            start, end = states(jnp.zeros(()))[index], states(jnp.ones(()))[index]
            element = jnp.argmax(start != end)
            flips = start[element] != end[element]

            def halve(_: int, bracket: Any) -> Any:
                low, high = bracket
                middle = 0.5 * (low + high)
                same = states(middle)[index][element] == start[element]
                return jnp.where(same, middle, low), jnp.where(same, high, middle)

            bracket = (jnp.zeros(()), jnp.ones(()))
            gaps = []
            for halvings in (12, 10):  # what is continuous shrinks with the bracket
                bracket = jax.lax.fori_loop(0, halvings, halve, bracket)
                low, high = bracket[0], jnp.where(flips, bracket[1], bracket[0])
                sides = [forward(params, between(a, b, t)) for t in (low, high)]
                gaps.append(jax.tree.map(lambda x, y: jnp.abs(x - y), *sides))
            return gaps[0], gaps[1]

        count = len(states(jnp.zeros(())))
        return jax.tree.map(lambda *x: jnp.stack(x), *map(bisect, range(count)))

    low, high = jax.vmap(pair, out_axes=1)(first, second)
    return low, high, scale
