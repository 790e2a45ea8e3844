# SPDX-License-Identifier: Apache-2.0
"""`Estimate`, and the protocol of estimators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from numpyro_infograd._density import Values
from numpyro_infograd._objectives import Objective
from numpyro_infograd._program import Program
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import Means, Term, at_each
from numpyro_infograd._views import sites_read


@dataclass(frozen=True)
class Estimate:
    """A value in nats (or bits) with its standard error and bounds.

    Attributes:
        value: The estimate.
        standard_error: Includes sampling, and possible errors of fits, of quadrature
            and of the bias of averages (sums, nested).
        lower: For "sums", "nested" and "mcmc", a lower bound that holds in expectation,
            minus two standard errors of that bound. For other methods, the value minus
            two standard errors, which is not a bound.
        upper: The same from above.
        method: "exact", "sums", "nested", "mcmc", "particles", "fisher", "path"; or
            "sampled" if the objective has only expectations; "features" or "likelihood"
            for the distance of a `Calibration` from its recordings.
        unit: "nats" or "bits"; "" for expectations alone, in the unit of the function.
        reason: Why "auto" chose this method; "" if the caller chose it.
        sampled: Which part of an "exact" value is sampled: "averaged over h" for a
            condition that changes the closed form, or "expectations sampled".
        warnings: Sentences that say why the value or its error may be wrong.
        diagnostics: Further numbers about the estimate.

    Example:
        >>> from numpyro_infograd import Estimate
        >>> found = Estimate(0.5, 0.01, lower=0.47, upper=0.52, method="nested")
        >>> found
        0.5 +- 0.01 nats (nested)
        >>> found.in_bits()
        0.721348 +- 0.014 bits (nested)
        >>> float(found)
        0.5
    """

    value: float
    standard_error: float
    lower: float
    upper: float
    method: str
    unit: str = "nats"
    reason: str = ""
    warnings: tuple[str, ...] = ()
    diagnostics: dict[str, Any] = field(default_factory=dict, compare=False)
    sampled: str = ""

    def __float__(self) -> float:
        """The value alone, in the unit of the estimate."""
        return float(self.value)

    def __neg__(self) -> Estimate:
        """The estimate of the negative objective."""
        return replace(self, value=-self.value, lower=-self.upper, upper=-self.lower)

    def __repr__(self) -> str:
        error = f" +- {self.standard_error:.2g}" if self.standard_error else ""
        notes = "".join(f"\n  warning: {w}" for w in self.warnings)
        how = ", ".join(filter(None, (self.method, self.sampled)))
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.value:.6g}{error}{unit} ({how}){notes}"

    def in_bits(self) -> Estimate:
        """The same estimate in bits: nats are divided by ln 2, others stay."""
        if self.unit != "nats":
            return self
        scale = 1.0 / math.log(2.0)
        return replace(
            self,
            value=scale * self.value,
            standard_error=scale * self.standard_error,
            lower=scale * self.lower,
            upper=scale * self.upper,
            unit="bits",
        )


class Estimator(Protocol):
    """An estimator: a frozen dataclass with a field `num_samples` and a method `value`.

    Example:
        >>> from dataclasses import dataclass
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> @dataclass(frozen=True)
        ... class Formula:
        ...     num_samples: int = 256  # not needed by this one
        ...     def value(self, sm, objective, params, rng_key):
        ...         nats = float(0.5 * jnp.log1p(params["a"] ** 2))
        ...         return ig.Estimate(nats, 0.0, nats, nats, "exact")
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1))
        >>> ig.mutual_information(model, "x", "y", method=Formula())
        0.346574 nats (exact)
    """

    def value(
        self, sm: StructuralModel, objective: Objective, params: Any, rng_key: jax.Array
    ) -> Estimate:
        """The objective's value in nats.

        Args:
            sm: The traced model. The sites of the objective have been checked.
            objective: The objective.
            params: Value of every parameter, in its shape and in constrained space.
            rng_key: A JAX PRNG key.

        Returns:
            The value with its standard error and bounds, in nats.
        """


class Sum(NamedTuple):
    """sum of coefficient * h(sites | given), plus expectations: a pytree."""

    forward: Program
    densities: tuple[Any, ...]
    coefficients: jax.Array
    expectations: Means
    counts: jax.Array  # one if the expectations depend on a discrete site, else zero

    @staticmethod
    def of(
        sm: StructuralModel,
        terms: tuple[Term, ...],
        expectations: Means,
        densities: tuple[Any, ...],
    ) -> Sum:
        """The sum for the density of each term."""
        coefficients = jnp.asarray([term.coefficient for term in terms])
        seen = sites_read(expectations.programs, sm.sites)
        counts = jnp.asarray(float(any(sm.site_info[s].discrete for s in seen)))
        return Sum(sm.forward, densities, coefficients, expectations, counts)

    def expectations_at(self, values: Values) -> jax.Array:
        """The weighted expectations at each of a batch of values, (num_samples,)."""
        return self.expectations.coefficients @ at_each(self.expectations, values)


def report(
    value: float,
    error: float,
    method: str,
    warnings: tuple[str, ...] = (),
    diagnostics: Mapping[str, Any] | None = None,
) -> Estimate:
    """An estimate whose bounds are the value plus and minus two standard errors."""
    return Estimate(
        value,
        error,
        value - 2 * error,
        value + 2 * error,
        method,
        warnings=warnings,
        diagnostics=dict(diagnostics or {}),
    )
