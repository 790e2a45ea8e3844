# SPDX-License-Identifier: Apache-2.0
"""Linear-Gaussian models: nothing to estimate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
import functools
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_infograd.noise import NoiseSpec, noise_like
from numpyro_infograd.objectives import Objective, resolve
from numpyro_infograd.program import Program
from numpyro_infograd.scores.base import flatten
from numpyro_infograd.structure import StructuralModel


@dataclass(frozen=True)
class Exact:
    """Closed form for models that are affine in Gaussian noise; detected, not declared.

    The joint covariance of any set of sites is J J^T with J the Jacobian in the noise,
    so entropies are log determinants and gradients come from differentiating those.
    Standard errors are zero.
    """


def why_not_exact(sm: StructuralModel, sites: Iterable[str]) -> str:
    """The reason why the sites are not jointly linear-Gaussian; "" if they are."""
    sites = tuple(sites)
    for name in sites:
        if sm.site_info[name].discrete:
            return f"site {name!r} is discrete"
    for name in sorted(sm.noise_of(sites)):
        if sm.noise[name].kind != "normal":
            return f"the noise of site {name!r} is not Gaussian"
    inputs = sm.forward.input_indices(1)
    affine = sm.forward.affine_outputs(inputs)
    for name in sites:
        if not all(affine[i] for i in sm.forward.output_indices(name)):
            return f"site {name!r} is not an affine function of the noise"
    return ""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("forward", "coefficients"),
    meta_fields=("terms", "spec"),
)
@dataclass(frozen=True)
class GaussianEntropies:
    """sum of coefficient * h(sites | given) of a linear-Gaussian model, in nats.

    `terms` pairs the sites of each entropy with the noise that moves them given the
    others: all that these are not made of, for `resolve` pairs only such sets.
    """

    forward: Program
    coefficients: jax.Array
    terms: tuple[tuple[tuple[str, ...], frozenset[str]], ...]
    spec: NoiseSpec

    @staticmethod
    def of(objective: Objective, sm: StructuralModel) -> GaussianEntropies:
        """The entropies of an objective on a model that is not `why_not_exact`."""
        resolved = resolve(objective, sm)
        return GaussianEntropies(
            sm.forward,
            jnp.asarray([term.coefficient for term in resolved]),
            tuple(
                (t.sites, sm.noise_of(t.sites) - sm.noise_of(t.given)) for t in resolved
            ),
            sm.spec,
        )

    def __call__(self, params: Any) -> jax.Array:
        """The value at these parameters, a scalar."""
        total = jnp.zeros(())
        for coefficient, term in zip(self.coefficients, self.terms, strict=True):
            total += coefficient * _entropy(self._jacobian(params, *term))
        return total

    def _jacobian(
        self, params: Any, sites: tuple[str, ...], moving: frozenset[str]
    ) -> jax.Array:
        """Jacobian of the sites' values in some of the noise, (dimensions, noise)."""
        inert = noise_like(self.spec)
        rest = {n: v for n, v in inert.items() if n not in moving}

        def values(noise: Any) -> jax.Array:
            made = self.forward(params, {**rest, **noise})
            return flatten({s: made[s][None] for s in sites}, sites)[0]

        columns = jax.jacobian(values)({n: inert[n] for n in moving})
        parts = [c.reshape(c.shape[0], -1) for c in columns.values()]
        return jnp.concatenate(parts, axis=1)


def _entropy(jacobian: jax.Array) -> jax.Array:
    """Entropy of J z, z standard normal: half the log determinant of 2 pi e J J^T."""
    rows = jacobian.shape[0]
    # Singular values keep twice the digits of the covariance matrix.
    singular = jnp.linalg.svd(jacobian, full_matrices=False, compute_uv=False)
    log_det = jnp.sum(jnp.log(singular))
    return log_det + 0.5 * rows * (jnp.log(2 * jnp.pi) + 1.0)
