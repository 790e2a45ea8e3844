# SPDX-License-Identifier: Apache-2.0
"""Digital twins: fit a model to recordings of its outputs without their inputs.

Section VIII of the paper, with scores that are functions of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

import jax
from jax.flatten_util import ravel_pytree

from numpyro_infograd import _checks
from numpyro_infograd._arguments import (
    as_args,
    as_count,
    as_flag,
    as_key,
    as_number_tuple,
    as_power_of_two,
    nearest,
    use_mesh,
)
from numpyro_infograd._calibrate.fit import LEVELS, NUM_STEPS, Settings
from numpyro_infograd._calibrate.likely import LikelihoodFit, check_likelihood
from numpyro_infograd._calibrate.matched import MatchedFit
from numpyro_infograd._calibrate.recordings import as_recordings, as_tables
from numpyro_infograd._calibrate.report import (
    as_given,
    best_of,
    has_fallen,
    make_report,
    rank,
)
from numpyro_infograd._calibrate.result import Calibration, TwoSample
from numpyro_infograd._density import Density
from numpyro_infograd._doors import public
from numpyro_infograd._edits import as_pairs
from numpyro_infograd._objectives import Entropy
from numpyro_infograd._optimize.move import (
    RATE,
    SLOWDOWNS,
    Projection,
    as_start,
    check_projection,
    constrained,
    is_mapped,
    project,
    projection_of,
    scales,
    unconstrained,
)
from numpyro_infograd._problem import enter
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import has_atoms
from numpyro_infograd._tracing import trace_model
from numpyro_infograd.errors import ArgumentError, DensityError
from numpyro_infograd.scores.network import Network, check_network, perceptron

__all__ = ["Calibration", "TwoSample", "calibrate"]


@public
def calibrate(
    model: Callable[..., Any] | StructuralModel,
    observed: Mapping[str, Any],
    *,
    divergence: str | None = None,
    noise_levels: tuple[float, ...] | None = None,
    num_steps: int | None = None,
    optimizer: Any = None,
    projection: Projection | None = None,
    hidden: tuple[int, ...] | None = None,
    network: Network | None = None,
    num_samples: int = 4096,
    num_draws: int = 200,
    num_restarts: int = 1,
    robust: bool = False,
    init_params: Mapping[str, Any] | None = None,
    rng_key: jax.Array | None = None,
    progress_bar: bool = True,
    allow_jumps: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
) -> Calibration:
    """Find parameters for which a model's outputs have the recorded distribution.

    Recordings are of outputs only, without the inputs that made them. Let q be the
    distribution of the model (the twin), and p that of the recordings. The descent
    minimises the Fisher divergence E_p |s_p - s_q|^2 / 2, or KL(q || p), in nats, with
    the scores s_p and s_q of both (eqs. 88, 89 of the paper). The scores are linear in
    features that are learned from both distributions, so the twin's score is a function
    of its parameters.

    Args:
        model: A NumPyro model, or the result of `structural_model`.
        observed: Recordings of each output site, (num_recordings, *shape of the site),
            at least 256: nested lists, or arrays of NumPy, JAX, pandas or xarray. A
            list of such arrays, one for each file, is joined. A table with a column for
            each site is also fine. Rows of several sites belong together; a row with a
            gap (NaN) at any site is left out, with a warning. A fifth is held out.
            Standard errors treat the rest as about 100 blocks of consecutive
            recordings, so they allow short correlations. The last few rows, which do
            not fill a block, are not used.
        divergence: "fisher"; "kl" for the reverse Kullback-Leibler divergence, which is
            faster and better for many parameters; or "likelihood" for maximum
            likelihood, KL(p || q), by a sum over draws of the hidden noise. None is
            "likelihood" if a recorded site is discrete, rounded or clipped, or depends
            on draws without a derivative; also, without `noise_levels` and `robust`, if
            the density of the recorded sites is known, because they hide no noise; else
            "fisher". If the model is misspecified, "kl" fits the part that it can fit
            well, and the others fit the average.
        noise_levels: Variances of noise appended to both distributions, relative to the
            covariance of the recordings (in log or logit coordinates for positive or
            unit-interval sites). Several levels are averaged; for "fisher" by the
            trapezoid rule, which gives the part of KL(p || q) that noise of the last
            level removes. None is (0, 0.05, 0.2, 0.6) for "fisher", because one level
            says little about the weights of separated modes, and (0,) for "kl". Level 0
            is left out if a density ends in a jump or a value repeats, as after a clip.
        num_steps: Steps of the optimizer, in two cycles; None is 150. If the parameters
            have at most 64 numbers, Newton steps follow, along the directions that the
            recordings determine; with more numbers there are no standard errors.
        optimizer: As in `maximize`.
        projection: As in `maximize`.
        hidden: Hidden widths of the two networks that make features.
        network: Your network in place of these; see `scores.Denoising`.
        num_samples: Draws of the twin in a step, a power of two. For the likelihood,
            the Newton steps take more draws in proportion if it is above 4096.
        num_draws: Bootstrap draws of the parameters, at least 20.
        num_restarts: Number of calibrations. The first starts from `init_params`, the
            others from random values around them. The result is the one with the
            smallest divergence from held-out recordings, among those that the
            two-sample test does not reject, if there are any, and that can make all
            recordings.
        robust: Whether to give outliers no weight, as always if recordings have heavy
            tails. The weights of recordings, and of draws of the twin, fall from one,
            at the radius that holds 99.5 % of a normal distribution, to zero at 1.5
            times that radius. For "fisher" and "kl".
        init_params: Starting values, each in its parameter's shape; a missing one takes
            the model's value.
        rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
        progress_bar: Whether to show a bar with the current divergence.
        allow_jumps: As in `gradient`.
        mesh: Devices to split draws of the twin over; their number is a power of two.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.

    Returns:
        A `Calibration`: parameters with standard errors and bootstrap draws, the
        divergence from held-out recordings (nats) and a two-sample test before and
        after, and the directions that the recordings do not determine.

    Raises:
        InfogradError: A subclass that names the site or argument at fault.

    Example:
        >>> import numpy as np, numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1))
        >>> rng = np.random.default_rng(0)
        >>> recorded = 2 * rng.normal(size=4000) + rng.normal(size=4000)
        >>> twin = ig.calibrate(
        ...     model, {"y": recorded}, divergence="kl", progress_bar=False
        ... )
        >>> bool(abs(twin.params["a"] - 2) < 3 * twin.standard_error["a"])
        True
    """
    key = as_key(rng_key)
    args, kwargs = as_args(model_args, model_kwargs)
    known = ("fisher", "kl", "likelihood")
    if divergence not in (None, *known):
        raise ArgumentError(
            "divergence must be 'fisher', 'kl', 'likelihood' or None, got "
            f"{divergence!r}.{nearest(divergence, known)}"
        )
    check_network(network, hidden)
    check_projection(projection)
    as_power_of_two("num_samples", num_samples, 256)
    num_steps = as_count("num_steps", NUM_STEPS if num_steps is None else num_steps)
    num_draws = as_count("num_draws", num_draws, 20)
    num_restarts = as_count("num_restarts", num_restarts)
    robust = as_flag("robust", robust)
    tables = as_tables(observed)
    sm = trace_model(model, args, kwargs)
    sm = as_pairs(sm, [name for name in tables if name in sm.sites])
    if divergence is None:
        prefers = noise_levels is None and not robust  # what a likelihood does not take
        divergence = _choose(sm, tables, prefers)
    recorded, warnings = as_recordings(tables, sm, divergence == "likelihood")
    sites = Entropy(tuple(recorded))
    sm, _, params = enter(sm, sites, (), {}, init_params, keeps_readouts=True)
    if not sm.params_of(tuple(recorded)):
        raise ArgumentError(
            f"no parameter reaches {', '.join(map(repr, recorded))}: mark what is to "
            "be fitted with numpyro.param."
        )
    projection = projection_of(projection, sm.pairs)
    params = as_start(projection, params, sm.constraints)
    _checks.check_finite(sites, sm, params)
    _checks.check_gradient(sites, sm, params, allow_jumps)
    recorded = {name: recorded[name] for name in sm.sites if name in recorded}
    density = sm.density(tuple(recorded), whole=divergence == "likelihood")
    levels = _check_levels(noise_levels)
    used: tuple[float, ...] = ()
    seen: tuple[float, ...] = ()
    if divergence == "likelihood":
        check_likelihood(density, levels, robust)
    else:
        _checks.check_paths(sm, recorded)
        used, seen, more = _choose_levels(sm, density, params, divergence, levels)
        warnings += more
    width = min(max(8 * sum(density.sizes), 32), 128)
    settings = Settings(
        divergence,
        used,
        seen,
        optimizer,
        projection,
        network or perceptron(hidden or (width, width)),
        num_steps,
        num_samples,
        num_draws,
        robust,
    )
    kind = LikelihoodFit if divergence == "likelihood" else MatchedFit
    ends, start = [], params
    with use_mesh(mesh):
        for index in range(num_restarts):
            if index:
                key = jax.random.fold_in(key, index)
                params = _random_start(key, start, sm.constraints, projection)
            tried = []
            for slowdown in SLOWDOWNS:
                own = replace(settings, slowdown=slowdown)
                fit = kind(sm, density, params, recorded, own, key, warnings)
                tried.append(make_report(fit, *fit.run(progress_bar)))
                if optimizer is not None or not has_fallen(tried[-1]):
                    break
            ends.append(min(tried, key=rank))
    found = best_of(ends)
    if used[:1] == (0.0,) and (why := _why_rough(sm, density, found.params)):
        doubt = f"at the end {why}: pass positive noise_levels."
        found = replace(found, warnings=(*found.warnings, doubt))
    return as_given(found, sm.pairs)


def _choose(sm: StructuralModel, names: Iterable[str], prefers: bool) -> str:
    """ "likelihood" if a recorded site has no score, else "fisher".

    If `prefers`, also if the density is known: nothing is to be learned then.
    """
    known = [name for name in names if name in sm.site_info]
    if sm.noise_of(known) & {*sm.drawn} or any(has_atoms(sm, s) for s in known):
        return "likelihood"
    if not prefers:
        return "fisher"
    whole = sm.density(known, whole=True)
    has_log_prob = whole.log_prob_sites == whole.sites and not whole.moving_boundary
    return "fisher" if whole.hidden or not has_log_prob else "likelihood"


def _choose_levels(
    sm: StructuralModel,
    density: Density,
    params: Any,
    divergence: str,
    levels: tuple[float, ...] | None,
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Noise levels of the divergence that is minimised and of the one reported.

    Also a warning if level 0 is left out.
    """
    why = _why_rough(sm, density, params)
    seen = LEVELS[1:] if why else LEVELS
    used = levels or (seen if divergence == "fisher" else seen[:1])
    if why and used[0] == 0.0:
        raise ArgumentError(
            f"noise_levels starts at 0, but {why}, where a score without noise is "
            "wrong. Pass positive levels."
        )
    noted = why and levels is None
    said = f"{why}, so noise is appended at every level."
    return used, seen, (said,) if noted else ()


def _check_levels(levels: Any) -> tuple[float, ...] | None:
    """The levels after a check, or None."""
    if levels is None:
        return None
    found = tuple(float(level) for level in as_number_tuple("noise_levels", levels))
    rising = all(a < b for a, b in pairwise(found))
    if not found or found[0] < 0 or not rising or not np.isfinite(found[-1]):
        raise ArgumentError(
            f"noise_levels must be rising variances of at least 0, got {levels!r}."
        )
    return found


def _why_rough(sm: StructuralModel, density: Density, params: Any) -> str:
    """Why the sites have no density without jumps; "" if they have one."""
    rough = (*density.moving_boundary, *density.hard_boundaries)
    if rough:
        return f"the density of site {rough[0]!r} ends in a jump"
    try:
        _checks.check_atoms(sm, density.without_density, params)
    except DensityError:
        return "a site takes one value repeatedly, as after a clip"
    return ""


def _random_start(
    key: jax.Array,
    params: Any,
    constraints: dict[str, Any],
    projection: Projection | None,
) -> Any:
    """Parameters moved at random: a scale by a factor e, others by twice their size."""
    laws = constraints if projection is None else None
    given = unconstrained(params, laws)
    flat, unravel = ravel_pytree(given)
    noise = unravel(jax.random.normal(key, flat.shape, flat.dtype))
    rates = scales(given, laws)
    moved = {}
    for name, start in given.items():
        far = (1.0 if is_mapped(name, laws) else 2.0) / RATE
        moved[name] = jax.tree.map(
            lambda x, rate, z, far=far: x + far * rate * z,
            start,
            rates[name],
            noise[name],
        )
    return project(projection, moved) if projection else constrained(moved, laws)
