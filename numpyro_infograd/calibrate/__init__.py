# SPDX-License-Identifier: Apache-2.0
"""Digital twins: a simulator whose outputs look like recorded ones, unpaired.

Section VIII of the paper, with scores that are functions of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import jax

from numpyro_infograd import checks
from numpyro_infograd.arguments import (
    as_args,
    as_count,
    as_floats,
    as_key,
    as_power_of_two,
    use_mesh,
)
from numpyro_infograd.calibrate.fit import Fit
from numpyro_infograd.calibrate.recordings import as_recordings, check_observed
from numpyro_infograd.calibrate.result import Calibration, TwoSample
from numpyro_infograd.calibrate.settings import LEVELS, NUM_STEPS, Settings
from numpyro_infograd.density import Density
from numpyro_infograd.errors import ArgumentError, DensityError
from numpyro_infograd.objectives import Entropy
from numpyro_infograd.optimize.step import (
    Projection,
    check_interior,
    check_projection,
    project,
)
from numpyro_infograd.problem import admit
from numpyro_infograd.scores.network import Network, check_network, perceptron
from numpyro_infograd.structure import StructuralModel
from numpyro_infograd.tracing import trace_model

__all__ = ["Calibration", "TwoSample", "calibrate"]


def calibrate(
    model: Callable[..., Any] | StructuralModel,
    observed: Mapping[str, Any],
    *,
    divergence: str = "fisher",
    noise_levels: tuple[float, ...] | None = None,
    num_steps: int | None = None,
    optimizer: Any = None,
    projection: Projection | None = None,
    hidden: tuple[int, ...] | None = None,
    network: Network | None = None,
    num_samples: int = 4096,
    num_draws: int = 200,
    init_params: Mapping[str, Any] | None = None,
    rng_key: jax.Array | None = None,
    progress_bar: bool = True,
    allow_jumps: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
) -> Calibration:
    """Find the parameters for which a model's outputs have the law of recorded ones.

    Recordings are of outputs only, in any order, without the inputs that made them.
    The gradient is that of a divergence between the twin's law q and the recordings'
    law p, from the scores of both (eqs. 88, 89 of the paper): the Fisher divergence
    E_p |s_p - s_q|^2 / 2, or KL(q || p). The scores are linear in features that are
    learned from both laws, so that of the twin follows its parameters.

    Args:
        model: A NumPyro model, or the result of `structural_model`.
        observed: Recordings of each output site, (num_recordings, *shape of the site):
            NumPy, JAX or xarray, continuous values. Rows of several sites belong
            together. A fifth is held out; standard errors treat the rest as 100 blocks
            of consecutive recordings, so that a short memory does no harm (the last
            few rows that fill no block are left out).
        divergence: "fisher", or "kl" for the reverse Kullback-Leibler divergence,
            which is faster, and the choice for many parameters. A twin of the wrong
            form settles on the average under "fisher" and on what it can do well under
            "kl".
        noise_levels: Variances of noise that both laws are seen through, each relative
            to the recordings: noise with this multiple of their covariance (in log or
            logit coordinates for positive or unit-interval sites). Several are
            averaged; for "fisher" by the trapezoid rule, into the part of KL(p || q)
            that noise of the last level takes away. None is (0, 0.05, 0.2, 0.6) for
            "fisher", since the divergence at one level says little of the weight of
            separated modes, and (0,) for "kl"; level 0 gives way to the next where a
            density ends in a jump or a value repeats, as behind a clip.
        num_steps: Steps of the optimizer, in two cycles; None is 150. Up to 64 numbers
            in the parameters, Newton steps along what the recordings determine follow;
            with more there are no standard errors.
        optimizer: As in `maximize`.
        projection: As in `maximize`.
        hidden: Widths of the two networks that make features.
        network: Your own in place of them; see `scores.Denoising`.
        num_samples: Draws of the twin in a step, a power of two.
        num_draws: Bootstrap draws of the parameters, at least 20.
        init_params: Starting values, each in its parameter's shape; what is missing
            takes the model's.
        rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
        progress_bar: Show a bar with the current divergence.
        allow_jumps: As in `gradient`.
        mesh: Devices to spread draws of the twin over, a power of two of them.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.

    Returns:
        A `Calibration`: parameters with standard errors and bootstrap draws, the
        divergence from held-out recordings (nats) and a two-sample test before and
        after, and the directions that the recordings leave free.

    Raises:
        InfogradError: a subclass that names the site or argument at fault.

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
    if divergence not in ("fisher", "kl"):
        raise ArgumentError(f"divergence must be 'fisher' or 'kl', got {divergence!r}.")
    check_network(network, hidden)
    check_projection(projection)
    as_power_of_two("num_samples", num_samples, 256)
    if num_steps is not None:
        num_steps = as_count("num_steps", num_steps)
    num_draws = as_count("num_draws", num_draws, 20)
    check_observed(observed)
    sm = trace_model(model, args, kwargs)
    recorded = as_recordings(observed, sm)
    sites = Entropy(tuple(recorded))
    sm, params = admit(sm, sites, (), {}, init_params)
    if not sm.params_of(tuple(recorded)):
        raise ArgumentError(
            f"no parameter reaches {', '.join(map(repr, recorded))}: mark what can "
            "be tuned with numpyro.param."
        )
    if projection is not None:
        params = project(projection, params)
    else:
        sm.check_constraints(params)
        check_interior(params, sm.constraints)
    checks.check_finite(sites, sm, params)
    checks.check_gradient(sites, sm, params, allow_jumps)
    density = sm.density(tuple(name for name in sm.sites if name in recorded))
    levels = _check_levels(noise_levels)
    warnings: tuple[str, ...] = ()
    smooth, why = _is_smooth(sm, density, params)
    seen = LEVELS if smooth else LEVELS[1:]
    used = levels or (seen if divergence == "fisher" else seen[:1])
    if not smooth and used[0] == 0.0:
        raise ArgumentError(
            f"noise_levels starts at 0, but {why}: a score misses what happens "
            "there. Give positive levels."
        )
    if not smooth and levels is None:
        warnings = (f"{why}: its law is seen through noise at every level.",)
    width = min(max(8 * sum(density.sizes), 32), 128)
    settings = Settings(
        divergence,
        used,
        seen,
        optimizer,
        projection,
        network or perceptron(hidden or (width, width)),
        num_steps or NUM_STEPS,
        num_samples,
        num_draws,
    )
    recorded = {name: recorded[name] for name in density.sites}
    with use_mesh(mesh):
        fit = Fit(sm, density, params, recorded, settings, key, warnings)
        found = fit.run(progress_bar)
    if used[0] == 0.0:
        still, why = _is_smooth(sm, density, found.params)
        if not still:
            doubt = f"at the end {why}: give positive noise_levels."
            found = replace(found, warnings=(*found.warnings, doubt))
    return found


def _check_levels(levels: Any) -> tuple[float, ...] | None:
    """Variances of noise, rising.

    Raises:
        ArgumentError: for anything else.
    """
    if levels is None:
        return None
    found = tuple(float(level) for level in as_floats("noise_levels", levels))
    rising = all(a < b for a, b in zip(found[:-1], found[1:], strict=True))
    if not found or found[0] < 0 or not rising or not np.isfinite(found[-1]):
        raise ArgumentError(
            f"noise_levels must be rising variances of at least 0, got {levels!r}."
        )
    return found


def _is_smooth(sm: StructuralModel, density: Density, params: Any) -> tuple[bool, str]:
    """Whether the sites have a density without jumps, or why they do not."""
    rough = (*density.moving_boundary, *density.hard_boundaries)
    if rough:
        return False, f"the density of site {rough[0]!r} ends in a jump"
    try:
        checks.check_atoms(sm, density.without_density, params)
    except DensityError:
        return False, "a site takes one value again and again, as behind a clip"
    return True, ""
