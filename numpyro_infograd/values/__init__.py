# SPDX-License-Identifier: Apache-2.0
"""Values of objectives in nats, with standard errors and bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax

from numpyro_infograd import _checks
from numpyro_infograd._arguments import as_args, as_key, nearest, resolve_name, use_mesh
from numpyro_infograd._doors import public
from numpyro_infograd._edits import shuffle_inputs, with_few_values
from numpyro_infograd._objectives import MI, Objective, Sites, check_is_objective, names
from numpyro_infograd._problem import check_num_samples, enter, noise_warnings
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import without_density
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError, DensityError
from numpyro_infograd.values.base import Estimate, Estimator
from numpyro_infograd.values.bounds import warnings_for
from numpyro_infograd.values.choice import choose
from numpyro_infograd.values.exact import Exact
from numpyro_infograd.values.fisher import DeBruijn
from numpyro_infograd.values.mcmc import MCMC
from numpyro_infograd.values.nested import Nested
from numpyro_infograd.values.particles import Particles
from numpyro_infograd.values.path import Path
from numpyro_infograd.values.sums import Sums

__all__ = [
    "MCMC",
    "Estimate",
    "Estimator",
    "Exact",
    "DeBruijn",
    "Nested",
    "Particles",
    "Path",
    "Sums",
    "estimate",
    "mutual_information",
    "null_check",
    "value_of",
]

REGISTRY: dict[str, type] = {
    "exact": Exact,
    "sums": Sums,
    "nested": Nested,
    "fisher": DeBruijn,
    "mcmc": MCMC,
    "particles": Particles,
    "path": Path,
}


@public
def estimate(
    model: Callable[..., Any] | StructuralModel,
    objective: Objective,
    *,
    params: Mapping[str, Any] | None = None,
    method: str | Estimator = "auto",
    num_samples: int | None = None,
    rng_key: jax.Array | None = None,
    unit: str = "nats",
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Estimate:
    """The value of an objective, in nats.

    Args:
        model: A NumPyro model, or the result of `structural_model`.
        objective: Built from `MI`, `Entropy`, `Expectation`.
        params: Parameter values, each in its shape; a missing one takes its initial
            value.
        method: A name, or an object of `numpyro_infograd.values` with settings.

            - "exact" (`Exact`): closed form, for models that are linear-Gaussian given
              their conditions. Only the conditions are sampled.
            - "sums" (`Sums`): sums over the states of discrete sites, with averages
              over draws of the hidden noise. For outputs of few states.
            - "nested" (`Nested`): averages of the model's own densities over draws of
              hidden noise, with bounds that hold in expectation.
            - "mcmc" (`MCMC`): annealing between a reference distribution and the
              posterior of the hidden noise, in both directions, with bounds that hold
              in expectation. Also for high information.
            - "particles" (`Particles`): particle filters, for hidden noise in the body
              of a scan.
            - "fisher" (`DeBruijn`): the integral of the Fisher information over
              appended noise, by one score network (eqs. 54-55). Also for outputs
              without a density.
            - "path" (`Path`): the integral of the gradient from a reference (eq. 50).
            - "auto": exact or sums if the model allows it; else nested, or particles or
              mcmc if their error is smaller; else fisher. `.reason` says which one and
              why.
        num_samples: Samples, a power of two of at least 256; None for the method's
            default. "auto" raises it for a method that needs more.
        rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
        unit: "nats" or "bits".
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.
        mesh: Devices to split the samples over; their number is a power of two.

    Returns:
        An `Estimate` in that unit. Its `.warnings` say why its error may be too small.

    Raises:
        InfogradError: A subclass that names the site or argument at fault.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1))
        >>> ig.estimate(model, ig.MI("x", "y"), params={"a": 3.0})  # log(10) / 2
        1.15129 nats (exact)
    """
    check_is_objective(objective)
    if unit not in ("nats", "bits"):
        meant = nearest(unit, ("nats", "bits"))
        raise ArgumentError(f"unit must be 'nats' or 'bits', got {unit!r}.{meant}")
    if unit == "bits" and not objective.sites:
        raise ArgumentError(
            "unit='bits' is for information and entropies. An Expectation has the unit "
            "of its function: leave out unit."
        )
    chosen = _resolve(method)
    check_num_samples(num_samples, None)
    key = as_key(rng_key)
    args, kwargs = as_args(model_args, model_kwargs)
    with use_mesh(mesh):
        sm, seen, complete = enter(
            model, objective, args, kwargs, params, keeps_readouts=False
        )
        sm.check_constraints(complete)
        found = value_of(sm, seen, complete, key, chosen, num_samples)
    return found.in_bits() if unit == "bits" else found


@public(settings_of=estimate)
def mutual_information(
    model: Callable[..., Any] | StructuralModel,
    inputs: Sites,
    outputs: Sites,
    given: Sites = (),
    **settings: Any,
) -> Estimate:
    """I(inputs; outputs | given), in nats; the settings are those of `estimate`.

    Args:
        model: A NumPyro model, or the result of `structural_model`.
        inputs: A site name or several.
        outputs: A site name or several.
        given: Sites to condition on.
        **settings: As for `estimate`: params, method, num_samples, unit and the rest.

    Returns:
        An `Estimate`.

    Raises:
        InfogradError: A subclass that names the site or argument at fault.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(x, 1))
        >>> ig.mutual_information(model, "x", "y", unit="bits")
        0.5 bits (exact)
    """
    return estimate(model, MI(inputs, outputs, given), **settings)


@public(settings_of=estimate)
def null_check(
    model: Callable[..., Any] | StructuralModel,
    inputs: Sites,
    outputs: Sites,
    given: Sites = (),
    **settings: Any,
) -> Estimate:
    """Estimate the information of shuffled pairs, whose true value is 0 nats.

    The outputs are made from a second, independent draw of the inputs. So the
    information is exactly zero, while inputs and outputs keep their marginal
    distributions. The difference of the estimate from zero is the estimator's error.
    "auto" uses the method that it chooses for the original pairs.

    Args:
        model: A NumPyro model, or the result of `structural_model`.
        inputs: A site name or several.
        outputs: A site name or several.
        given: Sites to condition on.
        **settings: As for `estimate`.

    Returns:
        An `Estimate`. It has a warning if its value is more than three standard errors
        from zero.

    Raises:
        ArgumentError: If inputs and given share noise, so that shuffling would change
            the distribution of the given sites.
        InfogradError: Another subclass, as from `estimate`.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Laplace(0, 1))
        ...     numpyro.sample("y", dist.Normal(x, 1))
        >>> found = ig.null_check(model, "x", "y", method="nested")
        >>> abs(found.value) <= 3 * found.standard_error + 1e-5
        True
    """
    objective = MI(inputs, outputs, given)
    args, kwargs = as_args(
        settings.pop("model_args", ()), settings.pop("model_kwargs", None)
    )
    params = settings.get("params")
    sm, *_ = enter(model, objective, args, kwargs, params, keeps_readouts=True)
    a, c = names(inputs, "inputs"), names(given, "given")
    shuffled = shuffle_inputs(sm, a, c)
    if isinstance(_resolve(settings.get("method", "auto")), str):  # "auto"
        settings["method"] = estimate(sm, objective, **settings).method
    try:
        found = estimate(shuffled, objective, **settings)
    except DensityError:  # the method does not apply to the shuffled copies
        found = estimate(shuffled, objective, **(settings | {"method": "auto"}))
    if abs(found.value) > 3 * found.standard_error + 1e-4:
        sentence = (
            "shuffled pairs carry no information, but the estimate is "
            f"{found.value:.3g} {found.unit}: the method's standard error is too small "
            "for this model. Use another method or more samples."
        )
        found = replace(found, warnings=(*found.warnings, sentence))
    return found


def value_of(
    sm: StructuralModel,
    objective: Objective,
    params: Any,
    rng_key: jax.Array,
    method: str | Estimator = "auto",
    num_samples: int | None = None,
) -> Estimate:
    """The value of an objective in nats, for a traced model and all its parameters.

    Args:
        sm: The result of `structural_model`.
        objective: Built from `MI`, `Entropy`, `Expectation`.
        params: Value of every parameter, in its shape and in constrained space.
        rng_key: A JAX PRNG key.
        method: "auto", or an object of `numpyro_infograd.values`.
        num_samples: Samples, a power of two; None for the method's default.

    Returns:
        An `Estimate` in nats.

    Raises:
        InfogradError: A subclass that names the site or argument at fault.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1))
        >>> sm = ig.structural_model(model)
        >>> ig.values.value_of(sm, ig.MI("x", "y"), sm.params, jax.random.key(0))
        0.346574 nats (exact)
    """
    check_is_objective(objective)
    _checks.check_laws(objective, sm)
    _checks.check_finite(objective, sm, params)
    sm = with_few_values(sm, without_density(objective, sm), params)
    _checks.check_rank(objective, sm, params)

    def by(estimator: Any) -> Estimate:
        name = type(estimator).__name__
        if num_samples is not None:
            # "auto" raises the number for a method that needs more.
            least = getattr(estimator, "least_samples", 0) if method == "auto" else 0
            try:
                estimator = replace(estimator, num_samples=max(num_samples, least))
            except TypeError:
                raise ArgumentError(
                    f"method={name}(...) is not a dataclass with a field num_samples: "
                    "leave num_samples out."
                ) from None
        found = estimator.value(sm, objective, params, rng_key)
        if not isinstance(found, Estimate):
            raise ArgumentError(
                f"{name}.value must return a values.Estimate, got {brief(found)}."
            )
        return found

    if isinstance(method, str):
        found = choose(sm, objective, params, by, num_samples)
    else:
        found = by(method)
    warnings = found.warnings + noise_warnings(sm)
    if found.method not in ("exact", "sampled"):
        warnings += warnings_for(found, objective, sm, params)
    unit = found.unit if objective.sites else ""
    return replace(found, warnings=warnings, unit=unit)


def _resolve(method: Any) -> str | Estimator:
    """The estimator object for a method; "auto" stays "auto"."""
    found: str | Estimator = resolve_name(
        "method",
        method,
        REGISTRY,
        lambda given: callable(getattr(given, "value", None)),
        "an object of numpyro_infograd.values",
    )
    return found
