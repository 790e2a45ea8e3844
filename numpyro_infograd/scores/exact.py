# SPDX-License-Identifier: Apache-2.0
"""Scores and entropies of linear-Gaussian models, in closed form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_infograd._compiling import pytree
from numpyro_infograd._density import Values, flatten
from numpyro_infograd._doors import settings_class
from numpyro_infograd._noise import NoiseSpec, noise_like
from numpyro_infograd._objectives import Objective
from numpyro_infograd._program import Program
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import resolve
from numpyro_infograd.scores.base import sequence_after

Sites = tuple[str, ...]


@settings_class
class Exact:
    """Closed form for models that are affine in Gaussian noise.

    Such models are detected from their computation. The joint covariance of a set of
    sites is J J^T, with J the Jacobian in the noise. So entropies are log determinants,
    and gradients are their derivatives. Standard errors are zero.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1))
        >>> ig.gradient(model, ig.MI("x", "y"), scores=ig.scores.Exact())
        Gradient by exact scores (requested):
          a: 0.5 +- 0
    """


def why_not_exact(sm: StructuralModel, sites: Iterable[str]) -> str:
    """The reason why the sites are not jointly linear-Gaussian; "" if they are."""
    return why_not_gaussian(sm, tuple(sites), ())


def why_not_gaussian(
    sm: StructuralModel, sites: Sites, given: Sites, causal: bool = False
) -> str:
    """The reason why sites are not linear-Gaussian given other sites; "" if they are.

    The coefficients may depend on the values of the given sites, as in a fading channel
    that the receiver knows. A causal condition may depend on the sites.
    """
    shared = sorted(sm.noise_given(given, sites) & sm.noise_of(given))
    if shared and not causal:
        return f"site and condition share the noise of site {shared[0]!r}"
    for name in sites:
        if sm.site_info[name].discrete:
            return f"site {name!r} is discrete"
    for name in sorted(sm.noise_given(given, sites)):
        if sm.noise[name].kind != "normal":
            return f"the noise of site {name!r} is not Gaussian"
    program = sm.forward_given(given)
    affine = program.affine_outputs(program.input_indices(1))
    for name in sites:
        if not all(affine[i] for i in program.output_indices(name)):
            return f"site {name!r} is not an affine function of the noise"
    return ""


@pytree("program")
@dataclass(frozen=True)
class GaussianEntropy:
    """h(sites | given = a) in nats, of sites that are linear-Gaussian given a.

    `moving` names the noise that the sites still depend on.
    """

    program: Program
    sites: Sites
    given: Sites
    moving: Sites
    spec: NoiseSpec

    @staticmethod
    def of(sm: StructuralModel, sites: Sites, given: Sites) -> GaussianEntropy:
        """The entropy of sites for which `why_not_gaussian` returns ""."""
        moving = tuple(sorted(sm.noise_given(given, sites)))
        return GaussianEntropy(sm.forward_given(given), sites, given, moving, sm.spec)

    def __call__(self, params: Any, values: Values, after: Any = ()) -> jax.Array:
        """The entropy at these values of `given`, a scalar; computed `after` others."""
        inert = noise_like(self.spec)
        rest = {n: v for n, v in inert.items() if n not in self.moving}
        held = {name: values[name] for name in self.given}

        def made(noise: Any) -> jax.Array:
            found = self.program(params, {**rest, **noise}, held)
            return flatten({s: found[s][None] for s in self.sites}, self.sites)[0]

        columns = jax.jacobian(made)({n: inert[n] for n in self.moving})
        parts = [c.reshape(c.shape[0], -1) for c in columns.values()]
        return _entropy(sequence_after(jnp.concatenate(parts, axis=1), after))


@pytree("coefficients", "terms", "forward")
@dataclass(frozen=True)
class GaussianEntropies:
    """sum of coefficient * h(sites | given) of a linear-Gaussian model, in nats.

    These entropies do not depend on the noise of a given site, so no noise is drawn.
    They may depend on how parameters change a given site, for instance a gain.
    """

    coefficients: jax.Array
    terms: tuple[GaussianEntropy, ...]
    forward: Program
    spec: NoiseSpec

    @staticmethod
    def of(objective: Objective, sm: StructuralModel) -> GaussianEntropies:
        """The entropies of an objective on a model for which `why_not_exact` is ""."""
        resolved = resolve(objective, sm)
        return GaussianEntropies(
            jnp.asarray([term.coefficient for term in resolved]),
            tuple(GaussianEntropy.of(sm, t.sites, t.given) for t in resolved),
            sm.forward,
            sm.spec,
        )

    def __call__(self, params: Any) -> jax.Array:
        """The value at these parameters, a scalar."""
        values = self.forward(params, noise_like(self.spec))
        total, entropy = jnp.zeros(()), jnp.zeros(0)
        for coefficient, term in zip(self.coefficients, self.terms, strict=True):
            entropy = term(params, values, entropy)
            total += coefficient * entropy
        return total


def _entropy(jacobian: jax.Array) -> jax.Array:
    """Entropy of J z for a standard normal z: half of log det(2 pi e J J^T)."""
    rows, columns = jacobian.shape
    if rows > columns:  # less noise than dimensions
        return jnp.asarray(-jnp.inf)
    # Rows of one size: sites may have units that differ by many orders. Powers of two
    # cause no rounding.
    norm = jax.lax.stop_gradient(jnp.linalg.norm(jacobian, axis=1))
    size = jnp.ldexp(jnp.ones(rows), jnp.frexp(jnp.where(norm > 0, norm, 1.0))[1] - 1)
    # Singular values keep twice as many digits as the covariance matrix.
    unit = jacobian / size[:, None]
    singular = jnp.linalg.svd(unit, full_matrices=False, compute_uv=False)
    log_det = jnp.sum(jnp.log(singular)) + jnp.sum(jnp.log(size))
    return log_det + 0.5 * rows * (jnp.log(2 * jnp.pi) + 1.0)
