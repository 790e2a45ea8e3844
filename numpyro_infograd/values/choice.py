# SPDX-License-Identifier: Apache-2.0
"""The choice of an estimator by `method="auto"`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
import math
from typing import Any

from numpyro_infograd._density import Density
from numpyro_infograd._linear import information, warn_of_parts
from numpyro_infograd._objectives import Objective
from numpyro_infograd._readouts import check_readouts
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import resolve
from numpyro_infograd._text import first_sentence
from numpyro_infograd.errors import DensityError
from numpyro_infograd.values.base import Estimate, Estimator
from numpyro_infograd.values.exact import Exact, why_not_closed
from numpyro_infograd.values.fisher import DeBruijn, why_not_fisher
from numpyro_infograd.values.mcmc import MCMC
from numpyro_infograd.values.nested import Nested, enough_components
from numpyro_infograd.values.particles import Particles, with_filters
from numpyro_infograd.values.sums import affordable

# "auto" uses at most this many inner draws; beyond that it uses chains.
_AFFORDED = 16384
_SUMMED = 2**25  # density evaluations of sums over discrete sites, at most
_FEW = 2**12  # samples of nested averages that only give bounds
# "auto" does not try nested averages above this information, in nats. It counts only
# sets that hide more than two dimensions.
_HOPELESS = 5.0
_CHAINS = MCMC()
_FILTERS = Particles()
_LEARNED = DeBruijn()


def choose(
    sm: StructuralModel,
    objective: Objective,
    params: Any,
    by: Callable[[Estimator], Estimate],
    num_samples: int | None,
) -> Estimate:
    """Exact or sums if the model allows it; else nested, particles or mcmc; else
    fisher.
    """
    why = why_not_closed(objective, sm)
    if not why:
        found = by(Exact())
        exact = found.standard_error == 0 and objective.sites
        given = "" if exact else " given its conditions"
        return replace(found, reason=f"linear-Gaussian{given}")
    if sums := affordable(sm, objective, num_samples, _SUMMED):
        found = by(sums)
        if _is_fine(found) and math.isfinite(found.upper - found.lower):
            return replace(found, reason=f"{why}; all outcomes are summed over")
    warn_of_parts(sm, objective.sites, params)
    try:
        return _by_densities(sm, objective, params, by, why)
    except DensityError as error:
        if why_not_fisher(objective, sm):
            raise
        check_readouts(sm, objective, params)
        return replace(by(_LEARNED), reason=f"{why}; {first_sentence(error)}")


def _by_densities(
    sm: StructuralModel,
    objective: Objective,
    params: Any,
    by: Callable[[Estimator], Estimate],
    why: str,
) -> Estimate:
    """Nested averages, or particles or chains if their error is smaller."""
    densities = [
        sm.density(t.sites, t.given, whole=True) for t in resolve(objective, sm)
    ]
    far = information(sm, densities, params)
    nested: Estimate | None = None
    filtered: Estimate | None = None
    if far > _HOPELESS:
        reason = f"about {far:.0f} nats are too many for nested averages"
    else:
        nested = _by_nested(by)
        effective = nested.diagnostics["effective_sample_size_low"]
        reason = f"inner effective sample size {effective:.0f}"
        if math.isinf(effective):
            reason = "all hidden states are summed over"
        if not nested.warnings and _is_fine(nested):
            return replace(nested, reason=f"{why}; {reason}")
    reason = f"{why}; {reason}"
    try:
        filtered = _by_filters(sm, densities, by)
        if filtered is not None and _is_fine(filtered):
            return replace(filtered, reason=f"{reason}; the hidden noise is in a scan")
        chains = by(_CHAINS)
    except DensityError as error:
        if nested and nested.warnings and not filtered:
            nested = by(Nested(max_components=_AFFORDED))
        other = filtered or nested
        if other is None:
            raise
        return replace(other, reason=f"{why}; {first_sentence(error)}")
    failed = not math.isfinite(chains.value)
    if filtered and (failed or filtered.standard_error < chains.standard_error):
        return replace(filtered, reason=f"{reason}; the hidden noise is in a scan")
    if nested is None:
        return replace(chains, reason=reason)
    if failed:
        return replace(nested, reason=f"{reason}; chains gave no finite value")
    return replace(_sharper(nested, chains), reason=reason)


def _sharper(nested: Estimate, chains: Estimate) -> Estimate:
    """The value with the smaller error, with the bounds of both."""
    lower, upper = max(chains.lower, nested.lower), min(chains.upper, nested.upper)
    sound = not nested.warnings and nested.standard_error <= chains.standard_error
    best = nested if sound else chains
    warnings = best.warnings
    slack = 2 * best.standard_error
    if not lower - slack <= best.value <= upper + slack:
        warnings += (
            f"the value {best.value:.4g} is outside the bounds by nested averages and "
            f"chains, {lower:.4g} to {upper:.4g}: the standard error is too small.",
        )
    lower, upper = min(lower, best.value), max(upper, best.value)
    return replace(best, lower=lower, upper=upper, warnings=warnings)


def _by_nested(by: Callable[[Estimator], Estimate]) -> Estimate:
    """The value by nested averages; only bounds if the draws afforded are too few."""
    found = by(Nested(max_components=Nested.num_components))
    size = found.diagnostics["effective_sample_size_low"]
    needed = enough_components(Nested.num_components, size)
    if found.warnings and needed > _AFFORDED:
        most = Nested(num_components=_AFFORDED, max_components=_AFFORDED)
        found = by(replace(most, num_samples=_FEW))
        if not found.warnings:  # they are enough, so more samples are worth their time
            return by(most)
    elif found.warnings:
        return by(Nested(num_components=needed, max_components=_AFFORDED))
    return found


def _by_filters(
    sm: StructuralModel,
    densities: Sequence[Density],
    by: Callable[[Estimator], Estimate],
) -> Estimate | None:
    """The value by particle filters; None if they do not apply or have too few."""
    try:
        with_filters(sm, densities, _FILTERS.num_particles)
    except DensityError:
        return None
    found = by(_FILTERS)
    return None if found.warnings else found


def _is_fine(found: Estimate) -> bool:
    """Whether the error is small enough not to try another method."""
    return found.standard_error <= max(0.005 * abs(found.value), 0.005)
