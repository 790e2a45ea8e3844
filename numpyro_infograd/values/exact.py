# SPDX-License-Identifier: Apache-2.0
"""Values of linear-Gaussian models in closed form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax

from numpyro_infograd._arguments import as_power_of_two
from numpyro_infograd._doors import settings_class
from numpyro_infograd._objectives import Objective
from numpyro_infograd._problem import REPLICATES
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import Term, resolve, trace_expectations
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.scores.exact import (
    GaussianEntropies,
    why_not_exact,
    why_not_gaussian,
)
from numpyro_infograd.values.base import Estimate, report
from numpyro_infograd.values.nested import average_each

_AT_ONCE = 64  # designs evaluated at once


@settings_class
class Exact:
    """Log determinants, for entropies that are linear-Gaussian given their conditions.

    The value has no error unless something is sampled: expectations, and conditions
    that change the coefficients, such as the state of a fading channel.

    Args:
        num_samples: Number of draws of the conditions, a power of two.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1))
        >>> ig.mutual_information(model, "x", "y", method=ig.values.Exact())
        0.346574 nats (exact)
    """

    num_samples: int = 2**16

    def __post_init__(self) -> None:
        as_power_of_two("num_samples", self.num_samples, 16 * REPLICATES)

    def value(
        self, sm: StructuralModel, objective: Objective, params: Any, rng_key: jax.Array
    ) -> Estimate:
        """The value; its standard error is that of the sampled parts."""
        why = why_not_closed(objective, sm)
        if why:
            raise ArgumentError(
                f"method='exact' needs a linear-Gaussian model, but {why}. Use "
                "method='nested'."
            )
        terms, value = resolve(objective, sm), 0.0
        if terms and not why_not_exact(sm, objective.sites):
            value = float(evaluate(GaussianEntropies.of(objective, sm), params))
            if not objective.expectations:
                return report(value, 0.0, "exact")
            terms = ()
        means = trace_expectations(objective, sm)
        size = self.num_samples
        found = average_each(
            terms, means, sm, params, {}, rng_key, size, closed_form=True
        )
        if not objective.sites:
            return report(found.value, found.error, "sampled")
        over = {g for term in terms for g in term.given if _changes(sm, term, g)}
        sampled = [f"averaged over {', '.join(sorted(over))}"] if over else []
        sampled += ["expectations sampled"] if objective.expectations else []
        return replace(
            report(value + found.value, found.error, "exact"),
            sampled=", ".join(sampled),
        )


def why_not_closed(objective: Objective, sm: StructuralModel) -> str:
    """Why an entropy is not linear-Gaussian given its conditions; "" if all are."""
    for term in resolve(objective, sm):
        why = why_not_gaussian(sm, term.sites, term.given, term.causal)
        if why:
            return why
    return ""


def _changes(sm: StructuralModel, term: Term, name: str) -> bool:
    """Whether a condition may change how the sites of a term follow the noise."""
    program = sm.forward_given(term.given)
    moved = program.input_indices(1) + program.input_indices(2, name)
    affine = program.affine_outputs(moved)
    return not all(affine[i] for s in term.sites for i in program.output_indices(s))


@jax.jit
def evaluate(exact: GaussianEntropies, params: Any) -> jax.Array:
    """The closed form at these parameters; compiled once for all values."""
    return exact(params)


@jax.jit
def evaluate_each(exact: GaussianEntropies, params: Any, designs: Any) -> jax.Array:
    """The closed form at each of many values of some parameters."""
    return jax.lax.map(lambda d: exact(params | d), designs, batch_size=_AT_ONCE)
