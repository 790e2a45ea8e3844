# SPDX-License-Identifier: Apache-2.0
"""Rate regions: what several senders can achieve at once (Algorithm 2 of the paper).

At fixed parameters the rates r obey sum_{i in S} r_i <= I_S for each set S that has a
bound, and r >= 0. The region is the convex hull, by time sharing, of these polytopes
over all parameters. Its boundary in the direction w is found by maximising

    max_r w . r  =  min_y sum_S y_S I_S   over y >= 0 with sum_{S with i} y_S >= w_i,

where the best y does not depend on the parameters if the bounds form a polymatroid
with a facet for every set, as those of a multiple-access channel do: for w_1 >= w_2 it
gives (w_1 - w_2) I_1 + w_2 I_12. With a facet for each single rate alone, y = w.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
import warnings

import numpy as np
from tqdm.auto import tqdm

import jax

from numpyro_infograd.arguments import as_args, as_count, as_key
from numpyro_infograd.errors import (
    ArgumentError,
    ConstraintError,
    DegenerateError,
    DensityError,
    ModelError,
)
from numpyro_infograd.objectives import Objective, names
from numpyro_infograd.optimize import Result, maximize
from numpyro_infograd.problem import admit
from numpyro_infograd.regions.geometry import corners_of, multipliers_of, simplex_grid
from numpyro_infograd.regions.region import RateRegion
from numpyro_infograd.structure import StructuralModel
from numpyro_infograd.values import Estimate, value_of

Bounds = dict[tuple[str, ...], Objective]
_ROUNDS = 3  # how often the weights of facets are chosen anew, where they may change


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
    """The rates that parameters can achieve at once (Algorithm 2).

    Args:
        model: A NumPyro model, or the result of `structural_model`.
        bounds: Maps a set of rates to the information that bounds their sum. Names of
            rates are free. With one entry for each rate this is the paper's algorithm;
            the true region of a multiple-access channel has an entry for each set.
        num_weights: Directions along each edge of the simplex of weights, its corners
            included; with two rates, the number of directions.
        rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
        progress_bar: Show a bar over the directions.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.
        **settings: As for `maximize`: projection, num_steps, optimizer, scores,
            num_samples, num_restarts, init_params, subject_to.

    Returns:
        A `RateRegion`, in nats. Each direction is an ascent of its own from the same
        start, so a user that one direction silences is not lost to the next.

    Raises:
        ArgumentError: if the bounds or the number of weights make no region.

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
    if settings.get("checkpoint") is not None:
        raise ArgumentError(
            "checkpoint is for one ascent, and each direction of a region is one of "
            "its own. Leave it out."
        )
    key = as_key(rng_key)
    args, kwargs = as_args(model_args, model_kwargs)
    arguments: Any = {"model_args": args, "model_kwargs": kwargs}
    start = _values(named, model, settings.get("init_params"), key, args, kwargs)
    ends = []
    for index, weight in enumerate(tqdm(grid, disable=not progress_bar)):
        own_key = jax.random.fold_in(key, index)
        multipliers = multipliers_of(weight, rates, start)
        try:
            for _ in range(_ROUNDS):
                result = maximize(
                    model,
                    sum((p * named[s] for s, p in multipliers.items()), Objective({})),
                    rng_key=own_key,
                    progress_bar=False,
                    **arguments,
                    **settings,
                )
                _check_end(result)
                values = _values(named, model, result.params, own_key, args, kwargs)
                before, multipliers = multipliers, multipliers_of(weight, rates, values)
                if multipliers == before or result.status.startswith("interrupted"):
                    break
            else:
                unsettled = (
                    f"has not settled: the facets that bind changed with each of "
                    f"{_ROUNDS} ascents, so its point may not be the best; the last "
                )
                result = replace(result, status=unsettled + result.status)
        except (ConstraintError, DegenerateError, DensityError, ModelError) as error:
            trouble = f"the direction {weight.tolist()} is left out: {error}"
            warnings.warn(trouble, stacklevel=2)
            continue
        ends.append((weight, values, result))
        if result.status.startswith("interrupted"):
            break
    if not ends:
        raise ArgumentError(
            f"no direction has an end; of the last, {trouble}. Use amplitudes, not "
            "scales, for what may fall to zero, or other init_params."
        )
    weights, facets, results = zip(*ends, strict=True)
    return _region(rates, np.array(weights), list(facets), list(results))


def _check_end(result: Result) -> None:
    """Raise where an ascent ended outside the region.

    Raises:
        ConstraintError: if a constraint is not met.
    """
    missed = [report for report in result.constraints if not report.is_met]
    if missed:
        raise ConstraintError(f"a constraint is not met, {missed[0]!r}")


def _check_bounds(bounds: Any) -> Bounds:
    """The bounds by sorted-out tuples of rates.

    Raises:
        ArgumentError: naming what is no set of rates, or no information.
    """
    if not isinstance(bounds, Mapping) or not bounds:
        raise ArgumentError(
            "bounds must be a dict from rates to objectives, such as {'r1': MI('x1', "
            f"'y')}}, got {bounds!r}."
        )
    named: Bounds = {}
    for subset, bound in bounds.items():
        rates = names(subset, "bounds", "name of a rate")
        if not rates:
            raise ArgumentError("bounds has an empty set of rates: name one or more.")
        if any(set(rates) == set(other) for other in named):
            raise ArgumentError(f"bounds names the rates {rates} twice. Leave one out.")
        if not isinstance(bound, Objective) or not _is_information(bound):
            raise ArgumentError(
                f"the bound of {rates} must be built from MI, got {bound!r}. Give an "
                "information, which no unit of a site changes and which can be "
                "positive."
            )
        named[rates] = bound
    return named


def _is_information(bound: Objective) -> bool:
    """Whether an objective is made of informations, not all with a minus sign.

    In other units of a site, entropies shift by the same constant: in an information
    these cancel.
    """
    shifts = (
        sum(c for joint, c in bound.entropies.items() if site in joint)
        for site in bound.sites
    )
    positive = any(coefficient > 0 for coefficient, _ in bound.terms)
    return bool(bound.sites) and positive and all(abs(c) < 1e-9 for c in shifts)


def _values(
    named: Bounds, model: Any, params: Any, rng_key: jax.Array, args: Any, kwargs: Any
) -> dict[tuple[str, ...], Estimate]:
    """Every bound at some parameters; none is below zero (eqs. 71-72 are clipped).

    With a projection the parameters may be on the boundary of a NumPyro constraint.
    """
    found = {}
    for subset, bound in named.items():
        sm, complete = admit(model, bound, args, kwargs, params)
        found[subset] = value_of(sm, bound, complete, rng_key)
    return {subset: replace(e, value=max(e.value, 0.0)) for subset, e in found.items()}


def _region(
    rates: tuple[str, ...],
    weights: np.ndarray,
    facets: list[dict[tuple[str, ...], Estimate]],
    results: list[Result],
) -> RateRegion:
    points, corners = [], []
    for weight, values in zip(weights, facets, strict=True):
        own = corners_of(rates, {subset: e.value for subset, e in values.items()})
        # Of several best corners, the one in the middle: it serves all rates.
        gains = own @ weight
        points.append(own[gains >= gains.max() - 1e-9].mean(axis=0))
        corners.append(own)
    return RateRegion(
        rates,
        weights,
        np.array(points),
        np.array([max(e.standard_error for e in v.values()) for v in facets]),
        [result.params for result in results],
        [result.status for result in results],
        {s: np.array([v[s].value for v in facets]) for s in facets[0]},
        np.unique(np.concatenate(corners), axis=0),
        _warnings_for(weights, facets, results),
    )


def _warnings_for(
    weights: np.ndarray,
    facets: list[dict[tuple[str, ...], Estimate]],
    results: list[Result],
) -> tuple[str, ...]:
    """What the ascents and the values of the bounds have to say."""
    ends = [
        f"the direction {weight.tolist()} {result.status}"
        for weight, result in zip(weights, results, strict=True)
        if not result.status.startswith(("converged", "took all"))
    ]
    values = (w for bounds in facets for e in bounds.values() for w in e.warnings)
    return tuple(dict.fromkeys([*ends, *values]))
