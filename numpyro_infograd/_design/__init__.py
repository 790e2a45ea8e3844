# SPDX-License-Identifier: Apache-2.0
"""The expected information gain of many candidate designs at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd import _checks
from numpyro_infograd._arguments import as_args, as_key, as_power_of_two
from numpyro_infograd._design.candidates import Candidates
from numpyro_infograd._design.result import Designs
from numpyro_infograd._design.targets import CELLS, with_probabilities
from numpyro_infograd._doors import public
from numpyro_infograd._noise import standard_error
from numpyro_infograd._objectives import MI, Objective, Sites, names
from numpyro_infograd._parameters import check_inside
from numpyro_infograd._problem import REPLICATES, check_num_samples, enter
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import resolve, trace_expectations
from numpyro_infograd._tracing import trace_model
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.scores.exact import GaussianEntropies, why_not_exact
from numpyro_infograd.scores.mixture import SOUND_SAMPLE_SIZE
from numpyro_infograd.values.exact import evaluate_each, why_not_closed
from numpyro_infograd.values.nested import Average, average_each, refuse_without_density
from numpyro_infograd.values.sums import UNSEEN, sums_each, tables

__all__ = ["Designs", "design"]

_COMPONENTS = 1024
_EVALUATIONS = 2**29  # density evaluations of one call, unless the caller says more
_LEAST, _MOST = 256, 2**14  # outer samples by default
_COARSE = 0.2  # loss by cells in nats beyond which they are too wide


@public
def design(
    model: Callable[..., Any] | StructuralModel,
    designs: Any,
    inputs: Sites,
    outputs: Sites,
    given: Sites = (),
    *,
    params: Mapping[str, Any] | None = None,
    num_samples: int | None = None,
    num_components: int = _COMPONENTS,
    rng_key: jax.Array | None = None,
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
) -> Designs:
    """Rank candidate designs by their expected information gain, in nats.

    The expected information gain of a design d is I(inputs; outputs | given) of the
    model at d. All designs are evaluated in one compiled call, on the same random
    numbers. Linear-Gaussian models have a closed form. Outcomes with few joint states
    are summed over. Other outcomes are sampled, and nested averages give the densities.
    All other latent sites are nuisance, and are averaged out.

    Args:
        model: A NumPyro model, or the result of `structural_model`.
        designs: Candidates with a leading axis of designs. An array is the first
            positional argument of the model; a dict or a table holds keyword arguments
            of the model, or values of parameters (`numpyro.param`).
        inputs: The sites to learn about. A computed site may take few values, or be one
            number, which is grouped into 32 cells of equal probability if no density is
            known.
        outputs: The outcomes of the experiment, discrete or continuous.
        given: Sites to condition on.
        params: Other parameters; a missing one takes its initial value.
        num_samples: Outer samples of each design, a power of two of at least 256; None
            takes as many as a fixed amount of work allows, at most 16384.
        num_components: Inner samples of each of 16 replicates, a power of two. They are
            the contrastive samples of the bounds.
        rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
        model_args: Positional arguments of the model, after the design.
        model_kwargs: Keyword arguments of the model.

    Returns:
        A `Designs`: values, errors, bounds and the ranking. A jackknife removes the
        bias of nested averages, and the error includes half of what was removed.

    Raises:
        InfogradError: A subclass that names the site or argument at fault.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def recall(length):
        ...     theta = numpyro.sample("theta", dist.Normal(7, 2))
        ...     numpyro.sample("y", dist.Bernoulli(logits=theta - length))
        >>> found = ig.design(recall, jnp.arange(1, 16), "theta", "y")
        >>> int(found.best), round(float(found.value.max()), 3)
        (7, 0.231)
    """
    key = as_key(rng_key)
    components = as_power_of_two("num_components", num_components, 2)
    if num_samples is not None:
        num_samples = check_num_samples(num_samples, None)
    args, kwargs = as_args(model_args, model_kwargs)
    candidates = Candidates.of(model, designs, args, kwargs)
    objective = MI(inputs, outputs, given)
    fixed = {**(params or {}), **jax.tree.map(lambda x: x[0], candidates.params)}
    traced = trace_model(candidates.model, args, kwargs)
    batch = candidates.like(traced.params)
    sm, _, complete = enter(traced, objective, (), {}, fixed, keeps_readouts=True)
    check_inside(sm.constraints, complete | batch)
    idle = [n for n in batch if n not in sm.params_of(objective.sites)]
    if idle:
        raise ArgumentError(
            f"the design {idle[0]!r} reaches none of the sites "
            f"{', '.join(objective.sites)}, so all designs would have the same "
            "information. Use it in the distribution of an output."
        )
    _checks.check_finite(objective, sm, complete)
    named = names(inputs, "inputs")
    problem = sm, objective, named, complete, batch, key, num_samples, components
    found = _information(*problem, cells=CELLS)
    if found.grouped:
        found = _with_loss(found, _information(*problem, cells=CELLS // 2))
    return _ranked(found, candidates, components)


class _Found(NamedTuple):
    """Averages at all designs, with an axis of designs, and what they were made by."""

    average: Average
    method: str
    num_samples: int
    warnings: tuple[str, ...]
    grouped: tuple[str, ...] = ()  # the sites that are grouped into cells


def _with_loss(found: _Found, coarse: _Found) -> _Found:
    """The errors and upper bounds with the loss by cells, from half as many cells.

    The loss falls as the square of the width of a cell, so it is about a third of what
    halving the number of cells loses. All of that enters the errors. A large loss says
    that outcomes tell apart what one cell holds together; then there is no upper bound.
    """
    average = found.average
    loss = jnp.abs(average.value - coarse.average.value)
    is_coarse = loss > _COARSE
    average = average._replace(
        error=jnp.hypot(average.error, loss),
        upper=jnp.where(is_coarse, jnp.inf, average.upper + loss),
        bias=average.bias + loss,
        replicates=average.replicates.at[..., 2].add(loss[:, None]),
    )
    sentence = (
        f"site {found.grouped[0]!r} is computed, and has no density given the outputs. "
        f"It is grouped into {CELLS} cells, which lose some of the information. The "
        "errors include it."
    )
    warnings = *found.warnings, sentence
    if number := int(jnp.sum(is_coarse)):
        warnings += (
            f"the cells are too wide for the outcomes of {number} designs, so the "
            "information there may be far higher. Add noise to the computed site, or "
            "use ig.mutual_information for single designs.",
        )
    return found._replace(average=average, warnings=warnings)


def _information(
    sm: StructuralModel,
    objective: Objective,
    inputs: tuple[str, ...],
    params: Any,
    designs: Any,
    rng_key: jax.Array,
    num_samples: int | None,
    num_components: int,
    *,
    cells: int,
) -> _Found:
    """The objective at all designs, by the first method that the model allows."""
    count = len(jax.tree.leaves(designs)[0])
    if not why_not_exact(sm, objective.sites):
        _checks.check_rank(objective, sm, params)
        closed = GaussianEntropies.of(objective, sm)
        value = evaluate_each(closed, params, designs)
        none = jnp.zeros(count)
        sure = jnp.broadcast_to(value[:, None, None], (count, REPLICATES, 3))
        whole = Average(
            value,
            error=none,
            lower=value,
            upper=value,
            correction=none,
            effective=none + jnp.inf,
            bias=none,
            replicates=sure,
        )
        return _Found(whole, "exact", 0, ())
    closed_form = not why_not_closed(objective, sm)
    warnings: tuple[str, ...] = ()
    grouped: tuple[str, ...] = ()
    if not closed_form:
        sm, grouped = with_probabilities(sm, objective, inputs, params, designs, cells)
    _checks.check_rank(objective, sm, params)
    terms = resolve(objective, sm)
    entropies = () if closed_form else tables(sm, terms, num_components)
    if entropies:
        if num_samples is None:
            num_samples = _affordable(
                lambda n: sum(t.evaluations(n) for t in entropies), count
            )
        found, off = sums_each(sm, entropies, params, designs, rng_key, num_samples)
        missed = ~(off <= UNSEEN)
        if number := int(jnp.sum(missed)):
            found = found._replace(
                error=jnp.where(missed, jnp.inf, found.error),
                bias=jnp.where(missed, jnp.inf, found.bias),
                lower=jnp.where(missed, -jnp.inf, found.lower),
                upper=jnp.where(missed, jnp.inf, found.upper),
            )
            warnings += (
                f"the probabilities of all outcomes miss one by up to "
                f"{float(jnp.max(off)):.2g}: counts that did not occur in draws at 64 "
                "of the designs are left out, or a distribution is not valid. Errors "
                f"are infinite for {number} of the designs: evaluate these in a "
                "separate call.",
            )
        return _Found(found, "sums", num_samples, warnings, grouped)
    refuse_without_density(sm, terms)
    if num_samples is None:
        hidden = sum(
            bool(sm.density(t.sites, t.given, whole=True).hidden) for t in terms
        )
        inner = 1 if closed_form else max(hidden, 1) * num_components
        num_samples = _affordable(lambda n: n * inner, count)
    found = average_each(
        terms,
        trace_expectations(objective, sm),
        sm,
        params,
        designs,
        rng_key,
        num_samples,
        num_components,
        closed_form=closed_form,
    )
    if poor := int(jnp.sum(found.effective < SOUND_SAMPLE_SIZE)):
        low = float(jnp.min(found.effective))
        warnings += (
            f"the inner effective sample size is only {low:.0f} at the worst of {poor} "
            f"designs with {num_components} components, so their values may have a "
            "bias above the standard error. The bounds still hold. Raise "
            "num_components.",
        )
    method = "exact" if closed_form else "nested"
    return _Found(found, method, num_samples, warnings, grouped)


def _affordable(work: Callable[[int], int], count: int) -> int:
    """The largest default number of samples within the work of one call."""
    size = _MOST
    while size > _LEAST and work(size) * count > _EVALUATIONS:
        size //= 2
    return size


def _ranked(found: _Found, candidates: Candidates, num_components: int) -> Designs:
    """The result, with differences to the best design on common random numbers."""
    average = jax.tree.map(np.asarray, found.average)
    value = average.value
    finite = np.isfinite(value)
    warnings = found.warnings
    if not np.all(finite):
        warnings += (
            f"the information is not finite at {np.sum(~finite)} designs, which come "
            "last. A distribution is not valid there, or an outcome is certain.",
        )
    value = np.where(finite, value, np.nan)
    best = int(np.argmax(np.where(finite, value, -np.inf)))
    errors = np.asarray(standard_error(jnp.moveaxis(average.replicates, 1, 0)))
    paired = average.replicates[:, :, 0] - average.replicates[best, :, 0]
    shift = 0.5 * (average.correction - average.correction[best])
    with np.errstate(invalid="ignore"):
        apart = np.abs(average.bias - average.bias[best])
    shift = np.maximum(np.abs(shift), np.where(np.isnan(apart), np.inf, apart))
    paired_error = np.hypot(np.asarray(standard_error(paired.T)), shift)
    if not found.num_samples:  # a closed form
        paired_error, errors = 0 * paired_error, 0 * errors
    # Equal designs differ by rounding.
    paired_error += 4 * np.finfo(value.dtype).eps * np.maximum(np.abs(value), 1.0)
    paired_error[best] = 0.0
    means = np.mean(average.replicates, axis=1)
    return Designs(
        designs=candidates.designs,
        value=value,
        standard_error=average.error,
        difference=value - value[best],
        difference_error=paired_error,
        lower=np.where(np.isneginf(average.lower), -np.inf, means[:, 1]),
        lower_error=errors[:, 1],
        upper=np.where(np.isposinf(average.upper), np.inf, means[:, 2]),
        upper_error=errors[:, 2],
        method=found.method,
        num_samples=found.num_samples,
        num_components=num_components,
        warnings=warnings,
        names=candidates.names,
    )
