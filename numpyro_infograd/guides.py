# SPDX-License-Identifier: Apache-2.0
"""A NumPyro model of some sites given others, as a log density with parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from numpyro import handlers
from numpyro.distributions import biject_to, constraints

from numpyro_infograd.arguments import explain_trace_errors
from numpyro_infograd.density import Values
from numpyro_infograd.errors import ScoreError

Model = Callable[..., Any]
_OUTSIDE = 0.01  # share of draws that rounding may put outside a support


def check(model: Model, own: Values, given: Values, discrete: frozenset[str]) -> None:
    """Raise unless a model is a law of some sites given others, to be trained.

    Args:
        model: Called with the values of the given sites by name.
        own: Draws of the sites that it must sample, and no others.
        given: The same draws of the given sites.
        discrete: The sites that are discrete.

    Raises:
        ScoreError: if it samples other sites, or has no parameters.
    """
    try:
        inspect.signature(model).bind(**given)
    except TypeError as error:
        raise ScoreError(
            f"the posterior model is called with the values of {sorted(given)} by "
            f"name: {error}. Name its arguments after these sites."
        ) from None

    def inside(own: Values, given: Values) -> Values:
        """Whether one draw of each site is in the support of the model's law."""
        trace = _trace(model, given, jax.random.key(0))
        drawn = {n: s for n, s in trace.items() if s["type"] == "sample"}
        if set(drawn) != set(own):
            raise ScoreError(
                f"the posterior model samples {sorted(drawn)}, expected {sorted(own)}: "
                "the inputs of the mutual information, by the names that the system "
                "has."
            )
        if not any(site["type"] == "param" for site in trace.values()):
            raise ScoreError(
                "the posterior model has no parameters to train: mark them with "
                "numpyro.param."
            )
        for name, site in drawn.items():
            shape = jnp.shape(site["value"])
            if shape != own[name].shape:
                raise ScoreError(
                    f"the posterior model samples {name!r} in shape {shape}, but the "
                    f"system has it in {own[name].shape}. Give it that shape."
                )
            if site["fn"].support.is_discrete != (name in discrete):
                kinds = ("discrete", "continuous")
                theirs, ours = kinds if name not in discrete else kinds[::-1]
                raise ScoreError(
                    f"the posterior model makes {name!r} {theirs}, but the system has "
                    f"it {ours}. Give it a {ours} distribution."
                )
        return {n: jnp.all(s["fn"].support(own[n])) for n, s in drawn.items()}

    with explain_trace_errors("the posterior model", error=ScoreError):
        share = jax.tree.map(jnp.mean, jax.vmap(inside)(own, given))
    for name, part in share.items():
        if part < 1.0 - _OUTSIDE:
            raise ScoreError(
                f"the posterior model gives {name!r} a distribution whose support "
                f"holds only {float(part):.0%} of the system's draws. Give it one "
                "whose support holds all of them."
            )


def initial_params(
    model: Model, given: Mapping[str, Any], rng_key: jax.Array
) -> dict[str, Any]:
    """A model's `numpyro.param` values in unconstrained space.

    Args:
        model: Called with the values of the given sites by name.
        given: Values of the given sites at one sample.
        rng_key: For initial values that are drawn.
    """
    return {
        name: jax.tree.map(_transform(site).inv, site["value"])
        for name, site in _trace(model, given, rng_key).items()
        if site["type"] == "param"
    }


def log_density(
    model: Model, params: Any, values: Values, given: Mapping[str, Any]
) -> jax.Array:
    """log q(values | given) of one sample, in nats, at unconstrained parameters."""

    def constrained(site: Any) -> Any:
        if site["type"] != "param":
            return None
        return jax.tree.map(_transform(site), params[site["name"]])

    conditioned = handlers.condition(model, dict(values))
    filled = handlers.substitute(conditioned, substitute_fn=constrained)
    trace = handlers.trace(filled).get_trace(**given)
    parts = [
        jnp.sum(site["fn"].log_prob(site["value"]))
        for site in trace.values()
        if site["type"] == "sample"
    ]
    return sum(parts, jnp.zeros(()))


def _trace(model: Model, given: Mapping[str, Any], rng_key: jax.Array) -> Any:
    return handlers.trace(handlers.seed(model, rng_key)).get_trace(**given)


def _transform(site: Any) -> Any:
    return biject_to(site["kwargs"].get("constraint", constraints.real))
