# SPDX-License-Identifier: Apache-2.0
"""Linear-Gaussian models: nothing to estimate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_infograd.noise import NoiseSpec, noise_like
from numpyro_infograd.objectives import Term
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


def noise_jacobian(
    forward: Program, spec: NoiseSpec, params: Any, sites: tuple[str, ...]
) -> jax.Array:
    """Jacobian of the sites' values in all explicit noise, (dimensions, noise)."""
    inert = noise_like(spec)
    normal = {name: inert[name] for name, law in spec if law.kind == "normal"}
    rest = {name: value for name, value in inert.items() if name not in normal}

    def values(noise: Any) -> jax.Array:
        made = forward(params, {**rest, **noise})
        return flatten({s: made[s][None] for s in sites}, sites)[0]

    columns = jax.jacobian(values)(normal)
    parts = [columns[name].reshape(columns[name].shape[0], -1) for name in normal]
    return jnp.concatenate(parts, axis=1)


def gaussian_entropies(
    forward: Program, spec: NoiseSpec, terms: tuple[Term, ...], params: Any
) -> jax.Array:
    """sum of coefficient * h(sites | given) over the terms, in nats."""
    total = jnp.zeros(())
    for term in terms:
        members = term.given + term.sites
        jacobian = noise_jacobian(forward, spec, params, members)
        total += term.coefficient * (_half_log_det(jacobian))
        if term.given:
            head = noise_jacobian(forward, spec, params, term.given)
            total -= term.coefficient * _half_log_det(head)
    return total


def _half_log_det(jacobian: jax.Array) -> jax.Array:
    """Entropy of J z, z standard normal: half the log determinant of 2 pi e J J^T."""
    rows = jacobian.shape[0]
    # Singular values keep twice the digits of the covariance matrix.
    singular = jnp.linalg.svd(jacobian, full_matrices=False, compute_uv=False)
    log_det = jnp.sum(jnp.log(singular))
    return log_det + 0.5 * rows * (jnp.log(2 * jnp.pi) + 1.0)
