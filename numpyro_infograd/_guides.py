# SPDX-License-Identifier: Apache-2.0
"""NumPyro models as conditional log densities q(sites | given) with parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from numpyro import handlers
from numpyro.distributions import biject_to, constraints

from numpyro_infograd._arguments import explain_trace_errors
from numpyro_infograd._density import Values
from numpyro_infograd._messenger import isolated
from numpyro_infograd.errors import ScoreError

Model = Callable[..., Any]
_OUTSIDE = 0.01  # share of draws that may be outside a support by rounding


def check(model: Model, own: Values, given: Values, discrete: frozenset[str]) -> None:
    """Raise unless a model is a distribution of sites given others, with parameters.

    The arguments of the model are the values of the given sites, by name. `own` are
    draws of exactly the sites that it must sample.
    """
    try:
        inspect.signature(model).bind(**given)
    except TypeError as error:
        raise ScoreError(
            f"the posterior model is called with the values of {sorted(given)} by "
            f"name: {error}. Name its arguments after these sites."
        ) from None

    def inside(own: Values, given: Values) -> Values:
        """Whether one draw of each site is in the support of the model."""
        trace = _trace(handlers.seed(model, jax.random.key(0)), given)
        drawn = {n: s for n, s in trace.items() if s["type"] == "sample"}
        if set(drawn) != set(own):
            raise ScoreError(
                f"the posterior model samples {sorted(drawn)}, expected {sorted(own)}: "
                "the inputs of the mutual information. Use the site names of your "
                "model."
            )
        if not any(site["type"] == "param" for site in trace.values()):
            raise ScoreError(
                "the posterior model has no parameters to train. Declare them with "
                "numpyro.param."
            )
        for name, site in drawn.items():
            shape = jnp.shape(site["value"])
            if shape != own[name].shape:
                raise ScoreError(
                    f"the posterior model samples {name!r} in shape {shape}, but in "
                    f"your model it has shape {own[name].shape}. Give it that shape."
                )
            if site["fn"].support.is_discrete != (name in discrete):
                kinds = ("discrete", "continuous")
                theirs, ours = kinds if name not in discrete else kinds[::-1]
                raise ScoreError(
                    f"the posterior model makes {name!r} {theirs}, but in your model "
                    f"it is {ours}. Give it a {ours} distribution."
                )
        return {n: jnp.all(s["fn"].support(own[n])) for n, s in drawn.items()}

    with explain_trace_errors("the posterior model", error=ScoreError):
        share = jax.tree.map(jnp.mean, jax.vmap(inside)(own, given))
    for name, part in share.items():
        if part < 1.0 - _OUTSIDE:
            raise ScoreError(
                f"the posterior model gives {name!r} a distribution whose support "
                f"contains only {float(part):.0%} of your model's draws. Give it a "
                "distribution whose support contains all of them."
            )


def initial_params(
    model: Model, given: Mapping[str, Any], rng_key: jax.Array
) -> dict[str, Any]:
    """A model's `numpyro.param` values in unconstrained space."""
    return {
        name: jax.tree.map(_transform(site).inv, site["value"])
        for name, site in _trace(handlers.seed(model, rng_key), given).items()
        if site["type"] == "param"
    }


def log_density(
    model: Model, params: Any, values: Values, given: Mapping[str, Any]
) -> jax.Array:
    """log q(values | given) of one sample in nats, for unconstrained parameters."""

    def constrained(site: Any) -> Any:
        if site["type"] != "param":
            return None
        return jax.tree.map(_transform(site), params[site["name"]])

    conditioned = handlers.condition(model, dict(values))
    filled = handlers.substitute(conditioned, substitute_fn=constrained)
    parts = [
        jnp.sum(site["fn"].log_prob(site["value"]))
        for site in _trace(filled, given).values()
        if site["type"] == "sample"
    ]
    return sum(parts, jnp.zeros(()))


def _trace(model: Model, given: Mapping[str, Any]) -> Any:
    with isolated():
        return handlers.trace(model).get_trace(**given)


def _transform(site: Any) -> Any:
    return biject_to(site["kwargs"].get("constraint", constraints.real))
