# SPDX-License-Identifier: Apache-2.0
"""`gradient`, and the choice of a score method by `scores="auto"`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
import math
from typing import Any

import numpy as np

import jax

from numpyro_infograd._arguments import as_args, as_key
from numpyro_infograd._doors import public
from numpyro_infograd._estimation import (
    Gradient,
    estimate_gradient,
    judge_components,
    norm,
)
from numpyro_infograd._linear import information, warn_of_parts
from numpyro_infograd._objectives import Objective, check_is_objective
from numpyro_infograd._pairs import without_pairs
from numpyro_infograd._problem import (
    Posed,
    as_fine,
    check_num_samples,
    enter_tunable,
    pose,
)
from numpyro_infograd._readouts import check_readouts
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._text import first_sentence
from numpyro_infograd.errors import DensityError
from numpyro_infograd.scores import MCMC, Denoising, Exact, Mixture, resolve_method
from numpyro_infograd.scores.base import Evidence, measured
from numpyro_infograd.scores.exact import why_not_exact
from numpyro_infograd.scores.mixture import FEW_UNEXPLAINED, SOUND_SAMPLE_SIZE

# "auto" tries no mixture above this information, in nats. It counts only sets that hide
# more than two dimensions.
_HOPELESS = 4.0


def why_not_mixture(evidence: Evidence) -> str:
    """Why a mixture's scores are poor, by its evidence; "" if they are good."""
    missed = measured(evidence, "unexplained")
    if any(np.mean(share) > FEW_UNEXPLAINED for share in missed):
        return "some samples lie outside the support of half of a mixture's components"
    low = lowest_size(evidence)
    if low >= SOUND_SAMPLE_SIZE:
        return ""
    return f"a mixture's effective sample size is only {low:.0f}"


def lowest_size(evidence: Evidence) -> float:
    """A mixture's smallest effective sample size, 10 % quantile over samples."""
    sizes = measured(evidence, "effective_sample_size_low")
    return float(np.min(list(map(np.min, sizes)))) if sizes else math.inf


def choose(
    sm: StructuralModel,
    objective: Objective,
    params: Any,
    rng_key: jax.Array,
    num_samples: int | None = None,
    is_trial: bool = False,
) -> tuple[Posed, Gradient | None]:
    """`scores="auto"`: the first possible of exact, sound mixture, chains, learned.

    Returns the posed problem, and the gradient if the choice computed it. A trial only
    judges the components of mixtures, and computes no gradient.
    """
    why = why_not_exact(sm, objective.sites)
    if not why:
        reason = "the model is linear-Gaussian" if objective.sites else ""
        return pose(sm, objective, Exact(), params, reason), None
    warn_of_parts(sm, objective.sites, params)
    try:
        posed = pose(sm, objective, Mixture(), params)
    except DensityError as error:
        check_readouts(sm, objective, params)
        return pose(sm, objective, Denoising(), params, first_sentence(error)), None
    far = information(posed.sm, posed.problem.densities, params)
    if not far > _HOPELESS:
        found = None
        if is_trial:
            posed, evidence = judge_components(posed, params, rng_key)
        else:
            found, posed, evidence = estimate_gradient(
                posed, params, num_samples, rng_key
            )
        unsound = why_not_mixture(evidence)
        if not unsound:
            reason = f"{why}; {_why_mixture(evidence)}"
            if found is not None:
                named = found.diagnostics | {"reason": reason}
                found = replace(found, diagnostics=named)
            return posed._replace(reason=reason), found
    else:
        unsound = f"about {far:.0f} nats are too many for a mixture"
    beyond = pose_beyond_mixtures(sm, objective, params, f"{why}; {unsound}")
    return as_fine(beyond, posed), None


def pose_by(
    sm: StructuralModel,
    objective: Objective,
    method: Any,
    params: Any,
    rng_key: jax.Array,
) -> Posed:
    """The problem for a method, or for the one that "auto" chooses."""
    if isinstance(method, str):
        return choose(sm, objective, params, rng_key, is_trial=True)[0]
    return pose(sm, objective, method, params, "requested")


def _finer(
    posed: Posed,
    found: Gradient,
    params: Any,
    num_samples: int | None,
    rng_key: jax.Array,
) -> Gradient:
    """A sound mixture's gradient, or that of chains if the mixture's error is large and
    the chains' is smaller.

    An error is large if it exceeds 5 % of the gradient, and 0.002 nats for a change of
    the parameters by their own size. Chains do not reduce the noise of drawn sites.
    """
    if posed.problem.chance:
        return found
    error = norm(found.standard_error)
    moved = jax.tree.map(np.multiply, found.standard_error, params)
    if error <= 0.05 * norm(found.value) or norm(moved) <= 0.002:
        return found
    reason = f"{posed.reason}; but its error is larger than that of chains"
    other = pose_beyond_mixtures(posed.sm, posed.objective, params, reason)
    if not isinstance(other.problem.method, MCMC):
        return found
    tried = estimate_gradient(other, params, num_samples, rng_key).gradient
    better = norm(tried.standard_error) < error
    return tried if better and not tried.warnings else found


def pose_beyond_mixtures(
    sm: StructuralModel, objective: Objective, params: Any, reason: str
) -> Posed:
    """The problem for chains, or for networks if chains cannot sample the noise."""
    try:
        return pose(sm, objective, MCMC(), params, reason)
    except DensityError as error:
        check_readouts(sm, objective, params)
        why = f"{reason}; {first_sentence(error)}"
        return pose(sm, objective, Denoising(), params, why)


def _why_mixture(evidence: Evidence) -> str:
    """Why a mixture is sound."""
    low = lowest_size(evidence)
    if not measured(evidence, "effective_sample_size_low"):
        return "all densities are known"
    if not math.isfinite(low):
        return "the hidden noise has few states, so the mixture enumerates all of them"
    size = f"{low:.0f}" if low < 10000 else "over 10000"
    return f"the mixture has an effective sample size of {size}, which is enough"


# -- the public function -------------------------------------------------------


@public
def gradient(
    model: Callable[..., Any] | StructuralModel,
    objective: Objective,
    *,
    params: Mapping[str, Any] | None = None,
    scores: Any = "auto",
    num_samples: int | None = None,
    rng_key: jax.Array | None = None,
    allow_jumps: bool = False,
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
) -> Gradient:
    """Gradient of an objective with respect to every parameter, with standard errors.

    grad I = E[(D_params values)^T cotangent], where the cotangent of a site is the sum
    of -coefficient * score over the objective's entropies (eqs. 18, 39 and 63).

    Args:
        model: A NumPyro model, or the result of `structural_model`.
        objective: Built from `MI`, `Entropy`, `Expectation`.
        params: Parameter values, each in its shape; a missing one takes its initial
            value.
        scores: "auto", "exact", "mixture", "mcmc", "contrastive", "denoising",
            "sliced", "flow", "posterior", a method of `numpyro_infograd.scores`, or
            what `pretrain_scores` returned.
        num_samples: A power of two of at least 256; None for the method's default.
        rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
        allow_jumps: Whether to allow parameters that reach a site through a jump.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.

    Returns:
        A `Gradient`. Its `.value` and `.standard_error` are dicts of arrays in the
        shapes of the parameters, in nats per unit of the parameter. For a complex
        parameter it is the direction of steepest ascent, the conjugate of what
        `jax.grad` returns, with a standard error for both parts. For a parameter on a
        simplex only differences of its entries have a meaning. The value is unbiased
        except for what `.diagnostics` and `.warnings` report.

    Raises:
        InfogradError: A subclass that names the site or argument at fault.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1))
        >>> g = ig.gradient(model, ig.MI("x", "y"), params={"a": 2.0})
        >>> round(float(g.value["a"]), 6)  # a / (1 + a^2)
        0.4
    """
    check_is_objective(objective)
    key = as_key(rng_key)
    args, kwargs = as_args(model_args, model_kwargs)
    method = resolve_method(scores)
    sm, objective, complete = enter_tunable(
        model, objective, args, kwargs, params, method, allow_jumps
    )
    if num_samples is not None:
        check_num_samples(num_samples, method)
    if isinstance(method, str):
        posed, found = choose(sm, objective, complete, key, num_samples)
        if found is not None:
            found = _finer(posed, found, complete, num_samples, key)
    else:
        posed, found = pose(sm, objective, method, complete, "requested"), None
    if found is None:
        found = estimate_gradient(posed, complete, num_samples, key).gradient
    value, error = (
        without_pairs(sm.pairs, each) for each in (found.value, found.standard_error)
    )
    return replace(found, value=value, standard_error=error)
