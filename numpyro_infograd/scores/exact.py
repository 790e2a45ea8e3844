# SPDX-License-Identifier: Apache-2.0
"""Linear-Gaussian models: nothing to estimate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
import functools
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_infograd.density import Values, flatten
from numpyro_infograd.noise import NoiseSpec, noise_like
from numpyro_infograd.objectives import Objective
from numpyro_infograd.program import Program
from numpyro_infograd.structure import StructuralModel
from numpyro_infograd.terms import resolve

Sites = tuple[str, ...]


@dataclass(frozen=True)
class Exact:
    """Closed form for models that are affine in Gaussian noise; detected, not declared.

    The joint covariance of any set of sites is J J^T with J the Jacobian in the noise,
    so entropies are log determinants and gradients come from differentiating those.
    Standard errors are zero.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1))
        >>> ig.gradient(model, ig.MI("x", "y"), scores=ig.scores.Exact())
        Gradient by exact scores (asked for):
          a: 0.5 +- 0
    """


def why_not_exact(sm: StructuralModel, sites: Iterable[str]) -> str:
    """The reason why the sites are not jointly linear-Gaussian; "" if they are."""
    return _why_not(sm, tuple(sites), ())


def why_not_gaussian(sm: StructuralModel, sites: Sites, given: Sites) -> str:
    """The reason why sites are not linear-Gaussian once the values of others are held.

    The coefficients may depend on these values, as in a channel that the receiver
    knows. "" if they are.
    """
    shared = sorted(sm.noise_given(given, sites) & sm.noise_of(given))
    if shared:
        return f"the noise of site {shared[0]!r} makes both sides of a condition"
    return _why_not(sm, sites, given)


def _why_not(sm: StructuralModel, sites: Sites, given: Sites) -> str:
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


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("program",),
    meta_fields=("sites", "given", "moving", "spec"),
)
@dataclass(frozen=True)
class GaussianEntropy:
    """h(sites | given = a) of sites that are linear-Gaussian once a is held, in nats.

    `moving` is the noise that is left to move the sites.
    """

    program: Program
    sites: Sites
    given: Sites
    moving: Sites
    spec: NoiseSpec

    @staticmethod
    def of(sm: StructuralModel, sites: Sites, given: Sites) -> GaussianEntropy:
        """The entropy of sites that are not `why_not_gaussian`."""
        moving = tuple(sorted(sm.noise_given(given, sites)))
        return GaussianEntropy(sm.forward_given(given), sites, given, moving, sm.spec)

    def __call__(self, params: Any, values: Values) -> jax.Array:
        """The entropy where `given` has these values, a scalar."""
        inert = noise_like(self.spec)
        rest = {n: v for n, v in inert.items() if n not in self.moving}
        held = {name: values[name] for name in self.given}

        def made(noise: Any) -> jax.Array:
            found = self.program(params, {**rest, **noise}, held)
            return flatten({s: found[s][None] for s in self.sites}, self.sites)[0]

        columns = jax.jacobian(made)({n: inert[n] for n in self.moving})
        parts = [c.reshape(c.shape[0], -1) for c in columns.values()]
        return _entropy(jnp.concatenate(parts, axis=1))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("coefficients", "terms", "forward"),
    meta_fields=("spec",),
)
@dataclass(frozen=True)
class GaussianEntropies:
    """sum of coefficient * h(sites | given) of a linear-Gaussian model, in nats.

    What the noise of a given site is makes no difference there, so none is drawn; what
    the parameters make of that site may, as where it is a gain.
    """

    coefficients: jax.Array
    terms: tuple[GaussianEntropy, ...]
    forward: Program
    spec: NoiseSpec

    @staticmethod
    def of(objective: Objective, sm: StructuralModel) -> GaussianEntropies:
        """The entropies of an objective on a model that is not `why_not_exact`."""
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
        total = jnp.zeros(())
        for coefficient, term in zip(self.coefficients, self.terms, strict=True):
            total += coefficient * term(params, values)
        return total


def _entropy(jacobian: jax.Array) -> jax.Array:
    """Entropy of J z, z standard normal: half the log determinant of 2 pi e J J^T."""
    rows, columns = jacobian.shape
    if rows > columns:  # less noise than dimensions
        return jnp.asarray(-jnp.inf)
    # Singular values keep twice the digits of the covariance matrix.
    singular = jnp.linalg.svd(jacobian, full_matrices=False, compute_uv=False)
    log_det = jnp.sum(jnp.log(singular))
    return log_det + 0.5 * rows * (jnp.log(2 * jnp.pi) + 1.0)
