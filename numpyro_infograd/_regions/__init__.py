# SPDX-License-Identifier: Apache-2.0
"""Rate regions: rates that are achievable together (Algorithm 2 of the paper).

At fixed parameters the rates r satisfy r >= 0 and sum_{i in S} r_i <= I_S for each set
S with a bound: a polytope. By time sharing, the region is the convex hull of the
polytopes of all parameters. Its boundary in the direction w maximises

    max_r w . r  =  min_y sum_S y_S I_S   over y >= 0 with sum_{S with i} y_S >= w_i.

The y_S are Lagrange multipliers of the bounds. They do not depend on the parameters if
the bounds form a polymatroid with a facet for every set, as for a multiple-access
channel: for w_1 >= w_2 the objective is (w_1 - w_2) I_1 + w_2 I_12. With bounds on
single rates only, y = w.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
import difflib
import functools
import itertools
from typing import Any

import numpy as np
from tqdm.auto import tqdm

import jax

from numpyro_infograd._arguments import as_args, as_count, as_key
from numpyro_infograd._doors import public, warn
from numpyro_infograd._objectives import MI, Objective, names
from numpyro_infograd._optimize import Ending, Result, Status, maximize
from numpyro_infograd._optimize.run import FEWEST
from numpyro_infograd._problem import enter
from numpyro_infograd._regions.geometry import (
    BoundValues,
    corners_of,
    multipliers_of,
    simplex_grid,
)
from numpyro_infograd._regions.region import RateRegion
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd.errors import (
    ArgumentError,
    ConstraintError,
    DegenerateError,
    DensityError,
    ModelError,
)
from numpyro_infograd.values import value_of

Bounds = dict[tuple[str, ...], Objective]
# A direction, the values of the bounds where it leads, and the last ascent.
End = tuple[np.ndarray, BoundValues, Result]
_ROUNDS = 3  # ascents in a direction with updated multipliers, at most


@public(settings_of=maximize, without=("checkpoint",))
def rate_region(
    model: Callable[..., Any] | StructuralModel,
    bounds: Mapping[Any, Objective],
    *,
    num_weights: int = 21,
    rng_key: jax.Array | None = None,
    progress_bar: bool = True,
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    **settings: Any,
) -> RateRegion:
    """The rates in nats that are achievable together (Algorithm 2).

    Args:
        model: A NumPyro model, or the result of `structural_model`.
        bounds: Maps a set of rates to the information that bounds their sum. You choose
            the names of the rates. Each rate needs its own entry. Entries of single
            rates alone give the paper's algorithm; the true region of a multiple-access
            channel needs an entry for each set.
        num_weights: Number of directions along each edge of the simplex of weights,
            including its corners. With two rates, the number of directions.
        rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
        progress_bar: Whether to show a bar over the directions.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.
        **settings: As for `maximize`: projection, num_steps, optimizer, scores,
            num_samples, num_restarts, init_params, subject_to.

    Returns:
        A `RateRegion`, in nats. The ascent of each direction begins at the same start,
        so it does not depend on the result of other directions.

    Raises:
        ArgumentError: If the bounds or the number of weights are not valid, or a rate
            is in a sum but has no bound alone; if no direction gave a point.
        InfogradError: Another subclass, as from `maximize`.

    Warns of each direction that is left out, and why.

    Example:
        >>> import numpyro, numpyro.distributions as dist, optax
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     a, b = numpyro.param("a", 1.0), numpyro.param("b", 1.0)
        ...     x1 = numpyro.sample("x1", dist.Normal(0, 1))
        ...     x2 = numpyro.sample("x2", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(a * x1 + b * x2, 1))
        >>> region = ig.rate_region(
        ...     model,
        ...     {
        ...         "r1": ig.MI("x1", "y", given="x2"),
        ...         "r2": ig.MI("x2", "y", given="x1"),
        ...         ("r1", "r2"): ig.MI(("x1", "x2"), "y"),
        ...     },
        ...     num_weights=3,
        ...     projection=lambda p: optax.projections.projection_l2_ball(p, 3.0),
        ...     progress_bar=False,
        ... )
        >>> region.points.sum(axis=1).round(3)  # log(10) / 2 in all
        array([1.151, 1.151, 1.151])
        >>> region.contains([0.5, 0.6]), region.contains([0.6, 0.6])
        (True, False)
    """
    named = _check_bounds(bounds)
    rates = tuple(dict.fromkeys(rate for subset in named for rate in subset))
    grid = simplex_grid(len(rates), as_count("num_weights", num_weights, 2))
    key = as_key(rng_key)
    args, kwargs = as_args(model_args, model_kwargs)
    settings |= {"model_args": args, "model_kwargs": kwargs, "progress_bar": False}
    ascend = functools.partial(maximize, model, **settings)
    values_at = functools.partial(_values, named, model, args, kwargs)
    start = values_at(settings.get("init_params"), key)
    ends = []
    for index, weight in enumerate(tqdm(grid, disable=not progress_bar)):
        own_key = jax.random.fold_in(key, index)
        try:
            values, result = _end_in(
                weight, rates, named, start, own_key, ascend, values_at
            )
        except (ConstraintError, DegenerateError, DensityError, ModelError) as error:
            trouble = f"the direction {weight.tolist()} is left out: {error}"
            warn(trouble)
            continue
        ends.append((weight, values, result))
        if result.status.ending is Ending.INTERRUPTED:
            break
    if not ends:
        raise ArgumentError(
            f"no direction gave a point; {trouble} If a scale fell to zero, make an "
            "amplitude the parameter instead. Else use other init_params."
        )
    return _region(rates, ends, _missing_sums(named) + _warnings_for(ends))


def _end_in(
    weight: np.ndarray,
    rates: tuple[str, ...],
    named: Bounds,
    start: BoundValues,
    rng_key: jax.Array,
    ascend: Callable[..., Result],
    values_at: Callable[..., BoundValues],
) -> tuple[BoundValues, Result]:
    """The values of the bounds where a direction leads, and the last ascent.

    The order of the values tells which bounds hold the corner of the region, so an
    ascent that changes the order is followed by another one.
    """
    multipliers = multipliers_of(weight, rates, start)
    for _ in range(_ROUNDS):
        terms = (p * named[s] for s, p in multipliers.items())
        result = ascend(sum(terms, Objective({})), rng_key=rng_key)
        for report in result.constraints:
            if not report.is_met:
                raise ConstraintError(f"a constraint is not met, {report!r}")
        values = values_at(result.params, rng_key)
        before, multipliers = multipliers, multipliers_of(weight, rates, values)
        if multipliers == before or result.status.ending is Ending.INTERRUPTED:
            return values, result
    unsettled = (
        "has not settled: the active bounds changed in each of "
        f"{_ROUNDS} ascents, so its point may not be the best; the last "
    )
    status = Status(unsettled + result.status, Ending.UNFINISHED)
    return values, replace(result, status=status)


def _check_bounds(bounds: Any) -> Bounds:
    """The bounds by tuples of rates, after a check."""
    if not isinstance(bounds, Mapping) or not bounds:
        raise ArgumentError(
            "bounds must be a dict from rates to objectives, such as {'r1': MI('x1', "
            f"'y')}}, got {bounds!r}."
        )
    named: Bounds = {}
    for subset, bound in bounds.items():
        rates = names(subset, "bounds", "name of a rate")
        if not rates:
            raise ArgumentError("bounds has an empty set of rates. Name one or more.")
        if any(set(rates) == set(other) for other in named):
            raise ArgumentError(f"bounds names the rates {rates} twice. Leave one out.")
        if not isinstance(bound, Objective) or not _is_information(bound):
            raise ArgumentError(
                f"the bound of {rates} must be built from MI, got {bound!r}. Use an "
                "information that can be positive; it must not depend on the unit of a "
                "site."
            )
        named[rates] = bound
    alone = {subset[0] for subset in named if len(subset) == 1}
    for subset in named:
        for rate in subset:
            if rate not in alone:
                near = difflib.get_close_matches(rate, sorted(alone), 1, 0.4)
                meant = f" Is it {near[0]!r}?" if near else ""
                raise ArgumentError(
                    f"bounds has the rate {rate!r} in the sum {subset}, but no bound "
                    f"of {rate!r} alone.{meant} Else add {{{rate!r}: objective}}."
                )
    return named


def _missing_sums(named: Bounds) -> tuple[str, ...]:
    """A warning for each group of rates to one receiver whose sums have no bounds.

    Informations that condition on the inputs of the other users have the same sites.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for subset, bound in named.items():
        if len(subset) == 1:
            groups.setdefault(bound.sites, []).append(subset[0])
    bounded = {frozenset(subset) for subset in named}
    found = []
    for sites, rates in groups.items():
        sums = [
            subset
            for size in range(2, len(rates) + 1)
            for subset in itertools.combinations(rates, size)
            if frozenset(subset) not in bounded
        ]
        if sums:
            found.append(
                f"the informations of {', '.join(rates)} have the same sites, "
                f"{', '.join(sites)}, and there is no bound of "
                f"{' or '.join(' + '.join(s) for s in sums)}. If one receiver decodes "
                f"all of them, the region is too large: add {{{sums[0]!r}: "
                f"{_of_sum([named[(rate,)] for rate in sums[0]])}}}."
            )
    return tuple(found)


def _of_sum(bounds: list[Objective]) -> str:
    """The information of the inputs of several users, who know each other's, as text.

    The condition of I(x1; y | x2) is the set with a negative entropy that is not the
    set of all sites.
    """
    known = [
        frozenset[str]().union(
            *(s for s, c in bound.entropies.items() if c < 0 and len(s) < len(sites))
        )
        for bound in bounds
        if (sites := bound.sites)
    ]
    given = frozenset.intersection(*known)
    inputs = frozenset.union(*known) - given
    outputs = frozenset(bounds[0].sites) - given - inputs
    if not inputs or not outputs or bounds[0].causal:
        return "the information of all their inputs"
    return f"ig.{MI(sorted(inputs), sorted(outputs), sorted(given))!r}"


def _is_information(bound: Objective) -> bool:
    """Whether an objective is a sum of informations, not all with a minus sign.

    A change of the unit of a site adds a constant to entropies. In an information these
    constants cancel.
    """
    shifts = (
        sum(c for joint, c in bound.entropies.items() if site in joint)
        + sum(c for sets, c in bound.causal.items() if site in sets.outputs)
        for site in bound.sites
    )
    positive = any(coefficient > 0 for coefficient, _ in bound.terms)
    pure = bool(bound.sites) and positive and not bound.expectations
    return pure and all(abs(c) < 1e-9 for c in shifts)


def _values(
    named: Bounds, model: Any, args: Any, kwargs: Any, params: Any, rng_key: jax.Array
) -> BoundValues:
    """The value of every bound at `params`, clipped at zero (eqs. 71-72).

    With a projection the parameters may be on the boundary of a NumPyro constraint, so
    constraints are not checked.
    """
    found = {}
    for subset, bound in named.items():
        entered = enter(model, bound, args, kwargs, params, keeps_readouts=False)
        estimate = value_of(*entered, rng_key)
        found[subset] = replace(estimate, value=max(estimate.value, 0.0))
    return found


def _region(
    rates: tuple[str, ...], ends: list[End], warnings: tuple[str, ...]
) -> RateRegion:
    points, corners, errors = [], [], []
    for weight, values, _ in ends:
        own, spreads = corners_of(rates, values)
        # The mean of several best corners treats all rates alike.
        gains = own @ weight
        best = gains >= gains.max() - 1e-9
        points.append(own[best].mean(axis=0))
        errors.append(spreads[best].max())
        corners.append(own)
    weights, facets, results = zip(*ends, strict=True)
    return RateRegion(
        rates,
        np.array(weights),
        np.array(points),
        np.array(errors),
        [result.params for result in results],
        [result.status for result in results],
        {s: np.array([v[s].value for v in facets]) for s in facets[0]},
        np.unique(np.concatenate(corners), axis=0),
        warnings,
    )


def _warnings_for(ends: list[End]) -> tuple[str, ...]:
    """Statuses of ascents that did not converge, and warnings of ascents and bounds."""
    found = []
    for weight, _, result in ends:
        own = f"the direction {weight.tolist()}"
        if result.status.ending not in (Ending.CONVERGED, Ending.ALL_STEPS):
            found.append(f"{own} {result.status}")
        elif (steps := len(result.history["gain"])) < FEWEST:
            found.append(
                f"{own} ended after {steps} steps, too few to tell whether more would "
                "gain: leave num_steps out, or raise it."
            )
        known = result.estimate.warnings if result.estimate else ()
        said = (w for w in result.warnings if w not in (*known, str(result.status)))
        found.extend(f"{own}: {warning}" for warning in said)
    values = (w for _, bounds, _ in ends for e in bounds.values() for w in e.warnings)
    return tuple(dict.fromkeys([*found, *values]))
