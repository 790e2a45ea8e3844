# SPDX-License-Identifier: Apache-2.0
"""Checks of public functions before any estimate.

Each check finds one cause of a gradient that would be wrong without a sign: a site that
is not random, a sampler that drops a derivative, a jump between a parameter and a site,
a set of sites with too little noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

import jax

from numpyro_infograd._arguments import as_flag
from numpyro_infograd._density import Density, num_draws, simulate
from numpyro_infograd._edits import hold
from numpyro_infograd._jumps import check_jumps
from numpyro_infograd._linear import Linear
from numpyro_infograd._noise import noise_like, probe_noise
from numpyro_infograd._objectives import Objective, expectation_label
from numpyro_infograd._program import Program
from numpyro_infograd._sites import Site
from numpyro_infograd._slopes import check_slopes
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import at_each, has_atoms, resolve, trace_expectations
from numpyro_infograd._views import View, sites_read
from numpyro_infograd.errors import (
    VOUCH,
    ArgumentError,
    DegenerateError,
    DensityError,
    ModelError,
    ParameterError,
    ReparametrizationError,
    SiteError,
)

_ATOM = 8  # equal values among 256 draws from which a site has no density
_MOST_PROBES = 2**14  # draws on which arguments of distributions are checked, at most


def check_objective(objective: Objective, sm: StructuralModel) -> None:
    """Check that the objective is not empty, and its sites exist and are random."""
    if not objective.sites and not objective.expectations:
        raise ArgumentError(
            f"the objective {objective!r} is empty, because all its terms cancel. Use "
            "other sites or coefficients."
        )
    for name in objective.sites:
        if name in sm.params:
            raise SiteError(
                f"the objective names {name!r}, which is a parameter, but information "
                "is between random sites. Name one of these sites: "
                f"{', '.join(sm.sites) or 'none'}."
            )
        if name not in sm.site_info:
            raise SiteError(
                f"the objective names site {name!r}, but the model has no such site "
                f"(it has: {', '.join(sm.sites) or 'none'}). Name one of these, or "
                "make a value a site by numpyro.deterministic(name, value)."
            )
        if not sm.site_info[name].size:
            raise SiteError(
                f"site {name!r} of the objective is empty: its shape is "
                f"{sm.site_info[name].shape}. Leave it out."
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


def check_tunable(sm: StructuralModel) -> None:
    """Raise for a model without parameters, which has no gradient."""
    if not sm.params:
        raise ArgumentError(
            "the model has no parameters: mark what can be tuned with numpyro.param."
        )


def check_real_params(sm: StructuralModel) -> None:
    """Raise for a complex parameter."""
    for name in sorted(sm.pairs):
        raise ParameterError(
            f"parameter {name!r} is complex, but this function needs real parameters. "
            "Use two, the real and the imaginary part."
        )


def check_finite(objective: Objective, sm: StructuralModel, params: Any) -> None:
    """Check that draws of sites, log densities and expectations are finite."""
    means = trace_expectations(objective, sm)
    _check_values(sm, objective, sites_read(means.programs, sm.sites), params)
    if not means.programs:
        return
    noise = probe_noise(sm.spec, 5, 64)
    draws = np.asarray(at_each(means, simulate(sm.forward, params, noise)))
    for (_, fn), row in zip(objective.expectations, draws, strict=True):
        if not np.all(np.isfinite(row)):
            raise ModelError(
                f"{expectation_label(fn)} is not finite at {np.sum(~np.isfinite(row))} "
                "of 64 draws at these parameter values: a logarithm, a root or a "
                "division left its domain. Use other values, or a function that is "
                "finite for every draw."
            )


def _check_values(
    sm: StructuralModel, objective: Objective, averaged: Iterable[str], params: Any
) -> None:
    """Raise if a draw of the objective's sites, or its log density, is not finite.

    Also if an argument of a distribution breaks its constraint, at these sites, at
    those that expectations average (`averaged`), and at all that they depend on.
    """
    sites = objective.sites
    read = {*sites, *averaged}
    read |= sm.noise_of(read)
    if not read:
        return
    laws = tuple(
        s
        for s, site in sm.site_info.items()
        if s in read and site.kind == "sample" and site.has_law
    )

    def run(params: Any, noise: Any) -> tuple[Any, Any, Any]:
        played = sm.run(params, noise, {}, log_prob_sites=laws)
        own = {s: x for s, x in played.log_prob.items() if s in sites}
        for name in sorted({*laws} & {*sites} - own.keys()):
            raise ModelError(
                f"site {name!r}: {sm.site_info[name].distribution} has no log_prob, "
                "which the information needs. Add this method to the class, or use "
                "another distribution."
            )
        return played.values, own, played.broken

    program = Program.trace(run, sm.params, noise_like(sm.spec))
    size = num_draws(program, 64, _MOST_PROBES)
    values, log_prob, broken = simulate(program, params, probe_noise(sm.spec, 5, size))
    for name, arguments in broken.items():
        for argument, is_broken in arguments.items():
            if share := np.mean(np.asarray(is_broken)):
                raise ModelError(
                    f"site {name!r}: the {argument} is NaN or outside of its bounds at "
                    f"{share:.2%} of draws at these parameter values. Use a function "
                    "that stays inside (jnp.exp, jax.nn.softplus, jax.nn.sigmoid), "
                    "other values, or a constraint in numpyro.param."
                )
    # Rare draws may be rounded to where a density has no value.
    values, log_prob = jax.tree.map(lambda x: x[:64], (values, log_prob))
    finite = {s: np.isfinite(np.asarray(v)).all() for s, v in values.items()}
    # A draw that is rounded to a boundary may have an infinite log density, not NaN.
    valid = {s: not np.isnan(np.asarray(v)).any() for s, v in log_prob.items()}
    if all(finite[s] and valid.get(s, True) for s in sites):
        return
    for name, site in sm.site_info.items():
        if not finite[name] or not valid.get(name, True):
            raise ModelError(
                f"{'the log density at' if finite[name] else 'a draw of'} site "
                f"{name!r} ({site.distribution or site.kind}) is not finite at "
                "these parameter values: a scale is negative, probabilities are not in "
                "[0, 1] or do not add up to 1, edges do not increase, or a logarithm, "
                "a root or a division left its domain. Use other values, or a "
                "constraint in numpyro.param."
            )


def check_gradient(
    objective: Objective, sm: StructuralModel, params: Any, allow_jumps: bool
) -> None:
    """Check that the pathwise gradient of every site of the objective is right."""
    allow_jumps = as_flag("allow_jumps", allow_jumps)
    expectations: dict[str, Program] = {}
    programs = trace_expectations(objective, sm).programs
    for (_, fn), program in zip(objective.expectations, programs, strict=True):
        label = expectation_label(fn)
        while label in expectations:
            label += "'"
        expectations[label] = program
    view = View(hold(sm), objective.sites, expectations)
    for name in sorted(sm.noise_of(view.read) & set(sm.site_info)):
        site = sm.site_info[name]
        if not site.reason or site.state != "free" or not sm.params_of((name,)):
            continue
        why = site.reason
        if site.has_law and name in sm.density((name,), whole=True).moving_boundary:
            # The derivative of a probability misses a boundary that moves.
            why += ", and a parameter may move the end of its support"
        elif site.has_law:
            continue
        raise ReparametrizationError(
            f"site {name!r} depends on {_list(sm.params_of((name,)))}, but {why}. So "
            "neither its draws nor its log_prob have a right derivative. Use a "
            f"distribution that has one, make {name!r} independent of parameters, or "
            "register your own class (numpyro_infograd.exogenous.register)."
        )
    check_laws(objective, sm)
    if not allow_jumps:
        check_jumps(view, params)
        check_slopes(view, params)
    check_rank(objective, sm, params)


def check_laws(objective: Objective, sm: StructuralModel) -> None:
    """Check that draws of the objective's sites follow their `log_prob`."""
    for name in objective.sites:
        site = sm.site_info[name]
        if not site.has_law:
            raise DensityError(
                f"site {name!r} of the objective has no density that this package can "
                f"use, because {site.reason}. Draw it from a distribution whose "
                "log_prob is the log density of its draws."
            )


def check_paths(sm: StructuralModel, sites: Iterable[str]) -> None:
    """Check that parameters reach the sites along paths alone."""
    drawn = [name for name in sm.drawn if name in sm.noise_of(sites)]
    if drawn:
        raise ReparametrizationError(
            f"site {drawn[0]!r} depends on {_list(sm.params_of(drawn[:1]))}, but "
            f"{sm.site_info[drawn[0]].reason}, and a twin's score needs the "
            "derivative of draws. Pass divergence='likelihood', or leave divergence "
            "out: calibrate then uses the probability of draws."
        )


def _thin_error(site: Site) -> DensityError:
    return DensityError(
        f"the support of site {site.name!r} ({site.distribution}) has fewer dimensions "
        "than its values, so it has no density. Name a deterministic site with "
        "independent coordinates instead, such as all entries of a simplex but the "
        "last, or an angle."
    )


def check_supports(sm: StructuralModel, densities: Iterable[Density]) -> None:
    """Check that the sites' supports have as many dimensions as their values."""
    for density in densities:
        for name in density.sites:
            site = sm.site_info[name]
            seen_through_noise = name not in density.moved_sites or name in sm.appended
            if site.support == "thin" and not seen_through_noise:
                raise _thin_error(site)


def check_rank(objective: Objective, sm: StructuralModel, params: Any) -> None:
    """Check that each entropy's sites have enough noise, given their conditions."""

    def continuous(sites: Iterable[str]) -> tuple[str, ...]:
        floating = (s for s in sites if sm.site_info[s].is_float)
        return tuple(s for s in floating if not has_atoms(sm, s))

    terms = resolve(objective, sm)
    named = [s for t in terms for s in continuous(t.sites + t.given)]
    linear = Linear.of(sm, tuple(dict.fromkeys(named)), params)
    for term in terms:
        if term.causal:  # the outputs' own densities
            continue
        sites, given = continuous(term.sites), continuous(term.given)
        size = sum(sm.site_info[s].size for s in sites)
        rank = linear.rank(sites, given) if sites else 0
        if rank < size:
            names = _list(sites + given)
            stepped = _stepped(sm, sites, params)
            if stepped:
                raise DensityError(
                    f"site {stepped!r} is computed and takes only a few values, so "
                    "it has no differential entropy. Draw it from a discrete "
                    "distribution, name the discrete site that it is computed from, or "
                    "add noise to it (a sample site)."
                )
            for name in sites:
                if sm.site_info[name].support == "thin":
                    raise _thin_error(sm.site_info[name])
            check_atoms(sm, _computed(sm, sites), params)
            for name in _computed(sm, sites):
                _check_size(sm, name, linear)
            raise DegenerateError(
                f"{names} together have {size} dimensions but only {rank} of noise at "
                "these parameter values: some values are a function of the others, and "
                "information between them is infinite. Add the missing noise (a sample "
                "site), or leave out redundant sites. (Noise of less than a millionth "
                "of a value needs double precision: numpyro.enable_x64().)"
            )


def _check_size(sm: StructuralModel, name: str, linear: Linear) -> None:
    """Raise for a computed site that has more values than dimensions of noise."""
    size, rank = sm.site_info[name].size, linear.rank((name,))
    if not rank:
        raise DegenerateError(
            f"site {name!r} has no noise: it is a constant, whose entropy is minus "
            "infinity. Leave it out of the objective."
        )
    if rank < size:
        raise DegenerateError(
            f"site {name!r} is computed and has {size} values, but only {rank} "
            f"dimensions of noise. {VOUCH} Otherwise leave out the values that are "
            "functions of the others, or add the missing noise (a sample site)."
        )


def check_atoms(sm: StructuralModel, names: Iterable[str], params: Any) -> None:
    """Raise for computed sites that repeat a value, as after a clip."""
    for name, counts in _repeats(sm, names, params):
        if counts.max() >= _ATOM and len(counts) > 1:  # a constant is allowed
            raise DensityError(
                f"site {name!r} is computed and takes the same value in {counts.max()} "
                "of 256 draws, as after a clip or a rectifier. So it has no density, "
                "and its score would miss the probability of that value. Add the noise "
                "that follows it in the system (a sample site), or use "
                "scores.Denoising(noise_variance=...)."
            )


def _stepped(sm: StructuralModel, sites: Iterable[str], params: Any) -> str:
    """The first computed site with few different values in 256 draws, or "".

    A rectifier has one value that repeats, and many that occur once.
    """
    for name, counts in _repeats(sm, _computed(sm, sites), params):
        if 1 < len(counts) < 128 and np.mean(counts == 1) < 0.5:
            return name
    return ""


def _computed(sm: StructuralModel, sites: Iterable[str]) -> tuple[str, ...]:
    return tuple(s for s in sites if sm.site_info[s].kind == "deterministic")


def _repeats(
    sm: StructuralModel, sites: Iterable[str], params: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """For each component of each site, the counts of its values in 256 draws."""
    if not (chosen := tuple(sites)):
        return
    values = simulate(sm.forward, params, probe_noise(sm.spec, 1, 256))
    for name in chosen:
        for column in np.asarray(values[name]).reshape(256, -1).T:
            yield name, np.unique(column, return_counts=True)[1]


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names)))
