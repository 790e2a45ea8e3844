# SPDX-License-Identifier: Apache-2.0
"""Bounds on an information that hold for every estimator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import jax

from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._density import Density, Values, draw_values, flatten
from numpyro_infograd._noise import NoiseSource
from numpyro_infograd._objectives import MI, Objective
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import has_atoms, has_density, resolve, trace_expectations
from numpyro_infograd.scores.exact import GaussianEntropies, why_not_exact
from numpyro_infograd.values.base import Estimate
from numpyro_infograd.values.exact import evaluate
from numpyro_infograd.values.nested import average_each

_SAMPLES = 16384
_VALUES = 512  # a site with more different values counts as continuous
_SEEN = 8  # so does a site with a value that occurs less often
_COMPONENTS = 1024  # inner draws of the contrastive bound


def warnings_for(
    found: Estimate, objective: Objective, sm: StructuralModel, params: Any
) -> tuple[str, ...]:
    """A sentence for each bound that an estimate of an information violates."""
    if not math.isfinite(found.value + found.standard_error):
        return (
            f"the value is {found.value} +- {found.standard_error}, not a finite "
            "number. Use another method, or enable x64.",
        )
    if information_of(-objective):  # what is minimised
        return warnings_for(-found, -objective, sm, params)
    information = information_of(objective)
    if information is None:
        return ()
    slack = 2 * found.standard_error + 1e-5
    broken = []
    if found.value < -1.5 * slack - 1e-4:
        broken.append(
            f"the information is {found.value:.4g}, but information is never negative: "
            "the standard error is too small. Use another method or more samples."
        )
    source = NoiseSource.of(sm.spec, _SAMPLES)
    values = draw_values(sm.forward, params, source, jax.random.key(7))
    for name, bound in (
        ("the Gaussian upper bound", _gaussian(objective, sm, params, values)),
        ("the entropy of the discrete sites", _discrete(information, values)),
        ("the data-processing bound", _processing(information, sm, params)),
    ):
        if found.value > bound + slack + 0.01 * abs(bound):
            broken.append(
                f"the information exceeds {name}, {bound:.6g} nats: the standard error "
                "is too small. Use another method or more samples."
            )
    if found.method in ("fisher", "path"):
        broken += _contrastive(found, objective, sm, params)
    return tuple(broken)


def _contrastive(
    found: Estimate, objective: Objective, sm: StructuralModel, params: Any
) -> list[str]:
    """A warning if a value from learned scores violates the bounds of nested averages.

    If no noise is hidden given the inputs, the contrastive bound with L components is
    below an information I by at most about log(1 + exp(I) / L). A value far above it is
    wrong, for instance because a network missed some modes.
    """
    terms = resolve(objective, sm)
    if not all(has_density(sm, s) for term in terms for s in term.sites):
        return []
    means, key = trace_expectations(objective, sm), jax.random.key(9)
    bound = average_each(terms, means, sm, params, {}, key, 2**16, _COMPONENTS)
    slack = 2 * found.standard_error + 0.25 + 0.05 * abs(found.value)
    low, high = bound.lower - slack, bound.upper + slack
    closed = all(
        term.coefficient > 0
        or not sm.density(term.sites, term.given, whole=True).hidden
        for term in terms
    )
    if closed:
        short = float(np.logaddexp(0.0, found.value - math.log(_COMPONENTS)))
        high = min(high, bound.lower + short + slack)
    if low <= found.value <= high:
        return []
    return [
        f"the information is {found.value:.6g}, but nested averages put it between "
        f"{max(low, bound.lower):.6g} and {high:.6g} nats: the network may have missed "
        "modes or sharp structure. Use method='nested', or train longer: "
        "values.DeBruijn(num_steps=...)."
    ]


# Inputs, outputs and given sites of a mutual information.
_Information = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def information_of(objective: Objective) -> _Information | None:
    """The sets, if the objective is exactly one mutual information; else None."""
    plus = [s for s, c in objective.entropies.items() if c == 1.0]
    if len(plus) != 2 or objective.expectations or objective.causal:
        return None
    given = plus[0] & plus[1]
    a, b, c = (tuple(sorted(s)) for s in (plus[0] - given, plus[1] - given, given))
    if not a or not b or MI(a, b, c).entropies != objective.entropies:
        return None
    return a, b, c


def _gaussian(
    objective: Objective, sm: StructuralModel, params: Any, values: Values
) -> float:
    """Upper bound: normal entropies of the same covariance, minus known entropies.

    Outcomes of discrete sites may be so rare that few draws or none show them: then
    their probability is, as a rule, below three over the number of draws.
    """
    total, rare = 0.0, 3 / _SAMPLES
    for term in resolve(objective, sm):
        density = sm.density(term.sites, term.given, whole=True)
        own = all(has_density(sm, s) for s in term.sites)
        if own and not density.hidden:
            each = _log_probs(density, params, density.pick(values))
            total -= term.coefficient * float(np.asarray(each).mean())
            if any(sm.site_info[s].discrete for s in (*term.sites, *term.given)):
                error = 3 * float(np.asarray(each).std()) / math.sqrt(_SAMPLES)
                total += abs(term.coefficient) * (error + rare * (1 - math.log(rare)))
        elif term.coefficient < 0 or any(
            has_atoms(sm, s) or sm.site_info[s].support == "thin" for s in term.sites
        ):
            return math.inf
        else:
            columns = np.asarray(flatten(values, term.sites), np.float64)
            columns = columns - columns.mean(0)
            if term.given:
                given = np.asarray(flatten(values, term.given), np.float64)
                given = given - given.mean(0)
                columns = columns - given @ np.linalg.lstsq(given, columns)[0]
            covariance = columns.T @ columns / len(columns)
            log_det = np.linalg.slogdet(2 * math.pi * math.e * covariance)[1]
            # Plus the sampling error of a covariance of so many samples.
            size = columns.shape[1]
            error = size**2 / (2 * _SAMPLES) + 3 * math.sqrt(size / (2 * _SAMPLES))
            total += term.coefficient * (0.5 * log_det + error)
    return total if math.isfinite(total) else math.inf


@quick_jit
def _log_probs(density: Density, params: Any, values: Values) -> jax.Array:
    return density.log_probs(params, values)


def _discrete(information: _Information, values: Values) -> float:
    """Upper bound: the smaller entropy of inputs and outputs, if they are discrete."""
    smallest = math.inf
    for sites in information[:2]:
        columns = np.concatenate(
            [np.asarray(values[s]).reshape(_SAMPLES, -1) for s in sites], axis=1
        )
        counts = np.unique(columns, axis=0, return_counts=True)[1]
        if len(counts) <= _VALUES and counts.min() >= _SEEN:
            share = counts / _SAMPLES
            entropy = -float(np.sum(share * np.log(share)))
            spread = float(np.sum(share * np.log(share) ** 2)) - entropy**2
            error = len(counts) / _SAMPLES + 3 * math.sqrt(max(spread, 0) / _SAMPLES)
            smallest = min(smallest, entropy + error)
    return smallest


def _processing(information: _Information, sm: StructuralModel, params: Any) -> float:
    """Upper bound: the least closed-form I(A; v), I(v; B) over v with A -> v -> B."""
    a, b, given = information
    smallest = math.inf
    if given:
        return smallest
    for site in sm.sites:
        if site in a + b:
            continue
        parts = [MI(a, site), MI(site, b)]
        parts = [part for part in parts if not why_not_exact(sm, part.sites)]
        if parts and _separates(sm, a, site, b):
            for part in parts:
                bound = float(evaluate(GaussianEntropies.of(part, sm), params))
                smallest = min(smallest, bound if math.isfinite(bound) else math.inf)
    return smallest


def _separates(
    sm: StructuralModel, a: tuple[str, ...], site: str, b: tuple[str, ...]
) -> bool:
    """Whether, given the site, b depends on no noise of a or of the site."""
    if sm.site_info[site].control_flow:
        return False
    left = sm.noise_given((site,), b)
    return not left & (sm.noise_of(a) | sm.noise_of((site,)))
