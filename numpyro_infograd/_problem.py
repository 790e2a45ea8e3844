# SPDX-License-Identifier: Apache-2.0
"""An objective on a model: which entropies need scores, by which method; their fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd import _checks
from numpyro_infograd._arguments import as_power_of_two
from numpyro_infograd._causality import check_time_order
from numpyro_infograd._chance import Chance
from numpyro_infograd._compiling import pytree
from numpyro_infograd._density import Density
from numpyro_infograd._doors import warn
from numpyro_infograd._edits import (
    append_noise,
    as_pairs,
    with_few_values,
    with_real_params,
)
from numpyro_infograd._hidden import walkable
from numpyro_infograd._noise import NoiseSpec
from numpyro_infograd._objectives import Objective
from numpyro_infograd._program import Program
from numpyro_infograd._readouts import see_through
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import (
    Means,
    Term,
    resolve,
    resolve_reversed,
    trace_expectations,
    without_density,
    without_moving_conditions,
)
from numpyro_infograd._tracing import trace_model
from numpyro_infograd._views import sites_read
from numpyro_infograd.errors import ScoreError
from numpyro_infograd.scores import Exact, Mixture
from numpyro_infograd.scores.base import ScoreMethod, fit_score, sequence_after
from numpyro_infograd.scores.exact import GaussianEntropies, why_not_exact

REPLICATES = 16


@pytree("forward", "densities", "coefficients", "expectations", "exact", "chance")
@dataclass(frozen=True)
class Problem:
    """An objective on a traced model, as compiled functions take it: a pytree."""

    # The map from the parameters and noise of one sample to its values.
    forward: Program
    densities: tuple[Density, ...]  # of every set of sites whose entropy needs a score
    coefficients: jax.Array  # of these entropies in the objective, (num_densities,)
    expectations: Means  # of the objective
    # The entropies in closed form; then `method` is None.
    exact: GaussianEntropies | None
    chance: Chance | None  # the part of drawn sites, or None
    method: ScoreMethod | None  # estimates the scores; static
    spec: NoiseSpec  # distributions of the noise; static

    @property
    def closed_form(self) -> GaussianEntropies | None:
        """The whole objective as a function of parameters, if it needs no sample."""
        return None if self.is_sampled else self.exact

    @property
    def is_sampled(self) -> bool:
        """Whether a gradient needs samples."""
        return self.method is not None or bool(self.expectations.programs)

    def without_entropies(self) -> Problem:
        """The expectations alone."""
        none, chance = jnp.zeros(0), self.chance
        if chance:
            chance = replace(chance, densities=(), coefficients=none, sources=())
        return replace(self, densities=(), coefficients=none, exact=None, chance=chance)


class Posed(NamedTuple):
    """A problem, what it was made from, and why it uses its method."""

    sm: StructuralModel
    objective: Objective
    terms: tuple[Term, ...]
    reason: str
    problem: Problem

    @property
    def method(self) -> ScoreMethod | Exact:
        """The score method."""
        return self.problem.method or Exact()

    @property
    def method_name(self) -> str:
        """Name of the method in results."""
        if not self.objective.sites:
            return "sampled"
        return type(self.method).__name__.lower()


def enter(
    model: Callable[..., Any] | StructuralModel,
    objective: Objective,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    params: Mapping[str, Any] | None,
    *,
    keeps_readouts: bool,
) -> tuple[StructuralModel, Objective, dict[str, Any]]:
    """Trace the model, complete the parameters, see through readouts (identity VI).

    If a site of the objective is complex, all complex sites of the model become pairs;
    complex parameters always do. Returns the model, the objective without readouts that
    lose nothing, and all parameters.

    Warns of a mask or a scale, which has no effect on information, of a constant, and
    of an observed site that depends on other sites, because fixing its value does not
    condition them.
    """
    sm = with_real_params(trace_model(model, args, kwargs))
    complete = sm.complete_params(params)
    _checks.check_objective(objective, sm)
    sm = as_pairs(sm, objective.sites)
    check_time_order(sm, objective, complete)
    for name in objective.sites:
        if sm.site_info[name].masked:
            warn(
                f"site {name!r} carries a mask (handlers.mask), which has no effect on "
                "information. Leave masked entries out of the site."
            )
        if sm.site_info[name].scaled:
            warn(
                f"site {name!r} carries a scale (handlers.scale), which has no effect "
                "on information. Remove the scale."
            )
        ends = any(name not in joint for joint in objective.entropies)
        if ends and not sm.noise_of((name,)):
            warn(
                f"site {name!r} has no noise: it is a constant, which carries no "
                "information. Draw it by numpyro.sample."
            )
    for name, site in sm.site_info.items():
        if site.state != "observed":
            continue
        if site.control_flow or sm.density((name,), whole=True).hidden:
            warn(
                f"site {name!r} is observed. This fixes its value, but does not "
                "condition the sites that it depends on. If the site is a part of the "
                "system, leave out obs= (or handlers.condition)."
            )
    if not keeps_readouts:
        sm, objective = see_through(sm, objective, complete)
    return sm, objective, complete


def appends_noise(method: Any) -> bool:
    """Whether a score method appends noise to readouts, so that they must stay."""
    return getattr(method, "noise_variance", None) is not None


def enter_tunable(
    model: Callable[..., Any] | StructuralModel,
    objective: Objective,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    params: Mapping[str, Any] | None,
    method: Any,
    allow_jumps: bool,
) -> tuple[StructuralModel, Objective, dict[str, Any]]:
    """`enter`, with all checks that a gradient at these parameters needs."""
    sm, objective, complete = enter(
        model, objective, args, kwargs, params, keeps_readouts=appends_noise(method)
    )
    sm.check_constraints(complete)
    _checks.check_tunable(sm)
    _checks.check_finite(objective, sm, complete)
    _checks.check_gradient(objective, sm, complete, allow_jumps)
    return sm, objective, complete


def pose(
    sm: StructuralModel,
    objective: Objective,
    method: ScoreMethod | Exact,
    params: Any,
    reason: str = "",
) -> Posed:
    """Resolve an objective for a score method, and append the noise of the method."""
    if isinstance(method, Exact):
        why = why_not_exact(sm, objective.sites)
        if why:
            raise ScoreError(
                f"scores='exact' needs a linear-Gaussian model, but {why}. Use "
                "scores='auto'."
            )
        return _assemble(sm, objective, resolve(objective, sm), (), None, reason)
    if method.noise_variance is not None:
        wanted = {s for t in moving_terms(objective, sm) for s in t.sites}
        noisy = sorted(s for s in wanted if sm.moves(s))
        sm = append_noise(sm, dict.fromkeys(noisy, float(method.noise_variance)))
    sm = _with_discrete(sm, objective, params)
    terms = moving_terms(objective, sm)
    if method.samples_only:
        terms = without_moving_conditions(terms, sm)
    if method.scores_inputs_given_outputs:
        terms = resolve_reversed(objective, sm)
    densities = _densities(sm, terms)
    method = method.prepare(sm, params, densities)
    _checks.check_supports(sm, densities)
    without = {s for density in densities for s in density.without_density}
    _checks.check_atoms(sm, sorted(without), params)
    for density in densities:
        method.check(density)
    return _assemble(sm, objective, terms, densities, method, reason)


def pose_again(posed: Posed, sm: StructuralModel, params: Any) -> Posed:
    """The same problem on the same model with other values of its arguments."""
    if posed.sm.appended:
        sm = append_noise(sm, posed.sm.appended)
    sm = _with_discrete(sm, posed.objective, params)
    method, terms = posed.problem.method, posed.terms
    densities = () if method is None else _densities(sm, terms)
    new = _assemble(sm, posed.objective, terms, densities, method, posed.reason)
    return as_fine(new, posed)


def _with_discrete(
    sm: StructuralModel, objective: Objective, params: Any
) -> StructuralModel:
    """The model in which computed sites with few values that stay are discrete."""
    still = (s for s in without_density(objective, sm) if not sm.moves(s))
    return with_few_values(sm, still, params)


def as_fine(new: Posed, old: Posed) -> Posed:
    """A problem with as many components for drawn sites as another one needed."""
    if not (new.problem.chance and old.problem.chance):
        return new
    chance = new.problem.chance.with_mixture(old.problem.chance.mixture)
    return new._replace(problem=replace(new.problem, chance=chance))


def _assemble(
    sm: StructuralModel,
    objective: Objective,
    terms: tuple[Term, ...],
    densities: tuple[Density, ...],
    method: ScoreMethod | None,
    reason: str,
) -> Posed:
    scored = terms if densities else ()
    problem = Problem(
        sm.forward,
        densities,
        jnp.asarray([term.coefficient for term in scored]),
        trace_expectations(objective, sm),
        GaussianEntropies.of(objective, sm) if method is None else None,
        None,
        method,
        sm.spec,
    )
    posed = Posed(sm, objective, terms, reason, problem)
    return posed._replace(problem=with_expectations(posed, problem.expectations))


def with_expectations(posed: Posed, means: Means) -> Problem:
    """The problem with other expectations, and the part of drawn sites for these."""
    sm, method = posed.sm, posed.problem.method
    mixture = method if isinstance(method, Mixture) else Mixture()
    if old := posed.problem.chance:
        mixture = old.mixture  # it may have been refined
    terms = resolve(posed.objective, sm)  # what no parameter changes has no gradient
    terms = tuple(t for t in terms if sm.params_of(t.sites + t.given))
    read = {s for t in terms for s in t.sites + t.given}
    read |= {*sites_read(means.programs, sm.sites)}
    chance = Chance.of(sm, terms, read, mixture)
    return replace(posed.problem, expectations=means, chance=chance)


def _densities(sm: StructuralModel, terms: tuple[Term, ...]) -> tuple[Density, ...]:
    """The density of each term, with what chains need to sample its hidden noise."""
    return tuple(
        replace(walkable(sm, sm.density(t.sites, t.given)), causal=t.causal)
        for t in terms
    )


def is_learned(method: ScoreMethod, density: Density) -> bool:
    """Whether the method must estimate the score of a density."""
    return not density.is_known or method.scores_inputs_given_outputs


def moving_terms(objective: Objective, sm: StructuralModel) -> tuple[Term, ...]:
    """The entropies whose values a parameter moves; the others need no score."""
    terms = resolve(objective, sm)
    return tuple(t for t in terms if any(map(sm.moves, t.sites + t.given)))


def noise_warnings(sm: StructuralModel) -> tuple[str, ...]:
    """A warning that noise was appended to the model, if it was."""
    if not sm.appended:
        return ()
    shown = ", ".join(
        f"{site!r} (variance {' to '.join(f'{v:.3g}' for v in np.unique(ends))})"
        for site, variance in sm.appended.items()
        for ends in [(np.min(variance), np.max(variance))]
    )
    return (
        f"Gaussian noise was appended to {shown}. The result is for the sites observed "
        "through this noise, and may differ much from that of the sites themselves. If "
        "you know the system's own noise, add it as a sample site.",
    )


def check_num_samples(num_samples: int | None, method: Any) -> int:
    """The number of samples after a check, or the method's default for None."""
    if num_samples is None:
        num_samples = getattr(method, "num_samples", 16384)
    return as_power_of_two("num_samples", num_samples, 16 * REPLICATES)


def fit_anew(problem: Problem, params: Any, rng_key: jax.Array) -> tuple[Any, ...]:
    """A fitted score state for every density with hidden noise, None for the others."""
    method = problem.method
    states = tuple(
        method.init(density, rng_key)
        if method is not None and is_learned(method, density)
        else None
        for density in problem.densities
    )
    return fit(problem, states, params, rng_key)


def fit(
    problem: Problem,
    states: tuple[Any, ...],
    params: Any,
    rng_key: jax.Array,
    warm: bool = False,
) -> tuple[Any, ...]:
    """Fit the score of every density that hides noise, in sequence."""
    method, fitted = problem.method, list(states)
    for i, density in enumerate(problem.densities):
        if method is not None and is_learned(method, density):
            key = jax.random.fold_in(rng_key, i)
            state = fitted[i], density, problem.forward, params, key
            fitted[i] = fit_score(method, *state, warm=warm)
            params = sequence_after(params, fitted[i])
    return tuple(fitted)
