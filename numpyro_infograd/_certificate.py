# SPDX-License-Identifier: Apache-2.0
"""The certificate of a learned score: an error bound from Markov chains.

Two chains that start at the noise u_0 of a sample S are independent given u_0. Let u
and v be their states, and c the complete-data score. For any score model s_hat,

    E< c(S, u) - s_hat(S), c(S, v) - s_hat(S) >
        = E| E[c(S, u) | S, u_0] - s_hat(S) |^2  >=  E| s(S) - s_hat(S) |^2.

This is the error of the network plus an error of chains that still depend on u_0. Both
are non-negative, so if the sum is small, the network is right and the chains have
mixed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._density import Density, Values, simulate
from numpyro_infograd._noise import NoiseSource, standard_error, subkeys
from numpyro_infograd._problem import (
    REPLICATES,
    Posed,
    Problem,
    fit_anew,
    is_learned,
    pose,
)
from numpyro_infograd._pullback import cotangents, score_of
from numpyro_infograd.errors import InfogradError
from numpyro_infograd.scores import MCMC
from numpyro_infograd.scores.base import Scores

CHAINS = MCMC(both_ends=False)


class Certificate(NamedTuple):
    """Errors of learned scores, estimated by chains."""

    # For each set of sites, the mean-square error of the score over its mean square: an
    # upper bound in expectation.
    error: dict[str, jax.Array]
    standard_error: dict[str, jax.Array]  # standard error of `error`
    shift: Any  # error of the gradient due to the scores, by parameter
    shift_error: Any  # standard error of `shift`
    # For each site of each set, by the scores and by chains at the same samples, (2,
    # num_samples, *shape).
    cotangents: dict[str, jax.Array]


def certify(
    posed: Posed, states: tuple[Any, ...], params: Any, rng_key: jax.Array
) -> Certificate | None:
    """The certificate of a problem's scores; None if chains cannot sample its noise."""
    method = posed.problem.method
    if method is None or not method.needs_certificate or posed.problem.chance:
        return None
    chains = _chained(posed, params)
    if chains is None:
        return None
    fit_key, key = subkeys(rng_key, 2)
    tunings = fit_anew(chains, params, fit_key)
    source = NoiseSource.of(posed.problem.spec, CHAINS.num_samples // REPLICATES)
    error, *rest = _compare(posed.problem, states, chains, tunings, params, source, key)
    sure = {label: each for label, each in error.items() if np.isfinite(each)}
    return Certificate(sure, *rest) if sure else None


def _chained(posed: Posed, params: Any) -> Problem | None:
    """The problem for chains, with only the sets whose score is learned and whose noise
    chains can sample; None if there is no such set.

    Scores of inputs given outputs are compared with the sum of all sets' scores.
    """
    problem = posed.problem
    assert problem.method is not None
    if problem.method.scores_inputs_given_outputs:
        try:
            return pose(posed.sm, posed.objective, CHAINS, params).problem
        except InfogradError:
            return None
    kept = [
        i
        for i, density in enumerate(problem.densities)
        if is_learned(problem.method, density) and density.walk is not None
    ]
    if not kept:
        return None
    return replace(
        problem,
        densities=tuple(problem.densities[i] for i in kept),
        coefficients=jnp.asarray(np.asarray(problem.coefficients)[kept]),
        method=CHAINS,
    )


@quick_jit
def _compare(
    problem: Problem,
    states: tuple[Any, ...],
    chained: Problem,
    tunings: tuple[Any, ...],
    params: Any,
    source: NoiseSource,
    rng_key: jax.Array,
) -> tuple[Any, ...]:
    """The fields of a `Certificate`, from replicates."""
    densities, method = problem.densities, problem.method
    assert method is not None

    def replicate(keys: jax.Array) -> Any:
        noise_key, score_key = keys[:2]
        noise = source(noise_key)

        def run(params: Any) -> tuple[Values, Values]:
            values = simulate(problem.forward, params, noise)
            return {n: values[n] for d in densities for n in d.moved_sites}, values

        moved, pullback, values = jax.vjp(run, params, has_aux=True)

        def scores(density: Density, state: Any, by: Any, key: jax.Array) -> Scores:
            return score_of(by, state, density, params, noise, values, key)

        learned = [
            scores(d, s, method, jax.random.fold_in(score_key, i))
            for i, (d, s) in enumerate(zip(densities, states, strict=True))
        ]

        def chains(key: jax.Array) -> list[Scores]:
            return [
                scores(d, s, CHAINS if d.hidden else None, jax.random.fold_in(key, i))
                for i, (d, s) in enumerate(zip(chained.densities, tunings, strict=True))
            ]

        both = jax.vmap(chains)(keys[2:])

        def by_set(of: Problem, found: list[Scores]) -> dict[str, Values]:
            """The cotangents of each set; their sum if outputs are conditions."""
            if method.scores_inputs_given_outputs:
                whole, _ = cotangents(of.densities, of.coefficients, found)
                return {densities[0].label: whole}
            parts = zip(of.densities, of.coefficients, found, strict=True)
            return {d.label: cotangents([d], [c], [own])[0] for d, c, own in parts}

        ours = by_set(problem, learned)
        first, second = (
            by_set(chained, jax.tree.map(lambda x, i=i: x[i], both)) for i in range(2)
        )
        shift = {n: jnp.zeros_like(x) for n, x in moved.items()}
        sums, shown = {}, {}
        for label in first:
            error, power = jnp.zeros(()), jnp.zeros(())
            for site, a in first[label].items():
                b, c = second[label][site], ours[label][site]
                error += jnp.vdot(a - c, b - c)
                power += jnp.vdot(a, b)
                mean = 0.5 * (a + b)
                shift[site] += ((c - mean) / source.size).astype(moved[site].dtype)
                shown[f"{site} of {label}"] = jnp.stack([c, mean])
            sums[label] = jnp.stack([error, power]) / source.size
        return pullback(shift)[0], sums, shown

    keys = jax.random.split(rng_key, (REPLICATES, 4))
    shifts, sums, shown = jax.vmap(replicate)(keys)
    error, spread = {}, {}
    for label, each in sums.items():
        wrong, power = jnp.mean(each, axis=0)
        error[label] = wrong / power
        left = each[:, 0] - error[label] * each[:, 1]
        spread[label] = standard_error(left) / power
    return (
        error,
        spread,
        jax.tree.map(lambda x: jnp.mean(x, axis=0), shifts),
        jax.tree.map(standard_error, shifts),
        {n: jnp.concatenate(jnp.unstack(x), axis=1) for n, x in shown.items()},
    )
