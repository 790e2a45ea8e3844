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

from numpyro_infograd.density import Values
from numpyro_infograd.errors import ScoreError

Model = Callable[..., Any]


def initial_params(
    model: Model, sites: tuple[str, ...], given: Mapping[str, Any], rng_key: jax.Array
) -> dict[str, Any]:
    """Its `numpyro.param` values in unconstrained space.

    Args:
        model: Called with the values of the given sites by name.
        sites: The sites that it must sample, and no others.
        given: Values of the given sites at one sample.
        rng_key: For initial values that are drawn.

    Raises:
        ScoreError: if it samples other sites.
    """
    try:
        inspect.signature(model).bind(**given)
    except TypeError as error:
        raise ScoreError(
            f"the posterior model is called with the values of {sorted(given)} by "
            f"name: {error}. Name its arguments after these sites."
        ) from None
    trace = handlers.trace(handlers.seed(model, rng_key)).get_trace(**given)
    drawn = {n for n, site in trace.items() if site["type"] == "sample"}
    if drawn != set(sites):
        raise ScoreError(
            f"the posterior model samples {sorted(drawn)}, expected {sorted(sites)}: "
            "the inputs of the mutual information, by the names that the system has."
        )
    params = {
        name: jax.tree.map(_transform(site).inv, site["value"])
        for name, site in trace.items()
        if site["type"] == "param"
    }
    if not params:
        raise ScoreError(
            "the posterior model has no parameters to train: mark them with "
            "numpyro.param."
        )
    return params


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


def _transform(site: Any) -> Any:
    return biject_to(site["kwargs"].get("constraint", constraints.real))
