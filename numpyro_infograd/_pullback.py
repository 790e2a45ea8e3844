# SPDX-License-Identifier: Apache-2.0
"""The information gradient: one vector-Jacobian product for all parameters.

Every objective is a signed sum of entropies, and

    grad h(S) = - E[ (D_params S)^T s_S(S) ],

so the cotangent of a site is the sum of -coefficient * score over the entropies that
contain the site. One vector-Jacobian product of the traced model with these cotangents
is the gradient of the objective. This is Theorems 1 and 2 and Corollary 3 of Wadayama's
paper, for all sites that depend on a parameter, including inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import explain_grad_errors
from numpyro_infograd._density import Density, Values, simulate
from numpyro_infograd._problem import REPLICATES, Problem, is_learned
from numpyro_infograd.errors import ScoreError
from numpyro_infograd.scores.base import (
    Measure,
    ScoreMethod,
    Scores,
    complete_data_scores,
    sequence_after,
)
from numpyro_infograd.scores.stein import stein_correct


def cotangents(
    densities: Sequence[Density],
    coefficients: Sequence[jax.Array] | jax.Array,
    scores: Sequence[Scores],
) -> tuple[Values, Values]:
    """Sum of -coefficient * score over the entropies of each site; deviations too."""
    mean: Values = {}
    spread: Values = {}
    for density, coefficient, score in zip(
        densities, coefficients, scores, strict=True
    ):
        for name in density.moved_sites:
            mean[name] = mean.get(name, 0.0) - coefficient * score.mean[name]
            if score.deviations is not None:
                extra = -coefficient * score.deviations[name]
                spread[name] = spread.get(name, 0.0) + extra
    return mean, spread


def score_weights(
    method: ScoreMethod | None,
    densities: tuple[Density, ...],
    coefficients: jax.Array,
    scores: list[Scores],
) -> jax.Array:
    """Weight of each entropy's score; one minus it weighs its negative log density.

    For a known density, -E[d log p(values; params) / d params] is also the gradient of
    the entropy: it differs from eq. 18 by the score in the parameters, whose mean is
    zero. Noise of a small fixed scale adds much variance to eq. 18 and none to the log
    density. With large noise, the score of eq. 18 cancels those of other entropies. The
    weight minimises the mean square of the sum of the cotangents.
    """
    every = range(len(densities))
    found = [jnp.ones(())] * len(densities)
    for i in every:
        if _uses_neg_log_prob(method, densities[i]):
            others = [j for j in every if j != i]
            rest, _ = cotangents(
                [densities[j] for j in others],
                [coefficients[j] for j in others],
                [scores[j] for j in others],
            )
            own = {s: coefficients[i] * x for s, x in scores[i].mean.items()}
            shared = sum(jnp.vdot(own[s], rest[s]) for s in own if s in rest)
            power = sum(jnp.vdot(x, x) for x in own.values())
            found[i] = jnp.clip(shared / jnp.maximum(power, 1e-30), 0.0, 1.0)
    return jnp.asarray(found)


def score_of(
    method: ScoreMethod | None,
    state: Any,
    density: Density,
    params: Any,
    noise: Values,
    values: Values,
    rng_key: jax.Array,
) -> Scores:
    """The density's score: computed if no noise is hidden, else by the method.

    Both are then corrected to satisfy Stein's identities on the batch.
    """
    if method is not None and is_learned(method, density):
        raw = method.score(state, density, params, noise, values, rng_key)
        _check_scores(method, density, raw, values)
    else:
        raw = Scores(complete_data_scores(density, params, {}, values), None, {})
    return stein_correct(density, raw, values)


def _scores_of(
    problem: Problem,
    states: tuple[Any, ...],
    params: Any,
    noise: Values,
    values: Values,
    rng_key: jax.Array,
) -> list[Scores]:
    """The scores of all densities at a batch, one after the other."""
    found: list[Scores] = []
    for i, (density, state) in enumerate(zip(problem.densities, states, strict=True)):
        own = jax.random.fold_in(rng_key, i)
        found.append(
            score_of(problem.method, state, density, params, noise, values, own)
        )
        values = sequence_after(values, found[-1].mean)
    return found


def _check_scores(
    method: ScoreMethod, density: Density, found: Any, values: Values
) -> None:
    """Raise unless a method returned `Scores` of the right shapes."""
    name = type(method).__name__
    if not isinstance(found, Scores):
        raise ScoreError(
            f"{name}.score must return numpyro_infograd.scores.Scores(mean, "
            f"deviations, evidence), got {type(found).__name__}."
        )
    count = method.num_deviations
    for what, tree, leading in (
        ("mean", found.mean, ()),
        ("deviations", found.deviations, (count,)),
    ):
        if tree is None:
            continue
        for site in density.moved_sites:
            expected = (*leading, *values[site].shape)
            got = jnp.shape(tree[site]) if site in tree else "nothing"
            if got != expected:
                raise ScoreError(
                    f"{name}.score gave a {what} of shape {got} for site {site!r}, "
                    f"expected {expected}."
                )
    if found.deviations is not None and REPLICATES % count:
        raise ScoreError(
            f"{name}.num_deviations must be a divisor of {REPLICATES}, got {count}."
        )


def _uses_neg_log_prob(method: ScoreMethod | None, density: Density) -> bool:
    """Whether the log density may give the gradient of an entropy, not the score."""
    learned = method is not None and is_learned(method, density)
    return density.is_known and not learned and not density.moving_boundary


def _pulled(pullback: Callable[..., Any], cotangent: Any, by_chance: Any) -> Any:
    """What a cotangent is pulled back to.

    NumPyro's derivative of an impossible event's probability is a product of the
    cotangent, the largest number and zero. So the cotangent must not be large.
    """
    if by_chance is None:
        return pullback(cotangent)[0]
    largest = jnp.max(jnp.sum(jnp.abs(by_chance), axis=-1))
    scale = jnp.maximum(1.0, largest)
    found = pullback(jax.tree.map(lambda x: (x / scale).astype(x.dtype), cotangent))[0]
    return jax.tree.map(lambda x: x * scale.astype(x.dtype), found)


class Pulled(NamedTuple):
    """Result of one replicate: gradient, one deviation of it, means, evidence."""

    gradient: Any
    deviation: Any
    means: jax.Array  # of the expectations
    evidence: dict[Measure, jax.Array]


def pull_back(
    problem: Problem,
    states: tuple[Any, ...],
    params: Any,
    noise: Values,
    rng_key: jax.Array,
    deviation_index: jax.Array | None = None,
    expectation_coefficients: Callable[[jax.Array], jax.Array] | None = None,
) -> Pulled:
    """Simulate a batch of noise, score its values, and pull the cotangents back.

    The deviation of the scores with `deviation_index` is pulled back too.
    `expectation_coefficients` gives the coefficients of the expectations from their
    values; None takes the objective's own.
    """
    densities, coefficients = problem.densities, problem.coefficients
    method, expectations = problem.method, problem.expectations
    moved_sites = tuple(dict.fromkeys(s for d in densities for s in d.moved_sites))
    chance = problem.chance
    held = chance.held(problem.forward, params, noise) if chance else {}

    def run(params: Any) -> tuple[tuple[Values, jax.Array, jax.Array, Any], Values]:
        if chance:
            values = chance.values(params, noise, held)
            likelihood = chance.likelihood(params, noise, held)
        else:
            values = simulate(problem.forward, params, noise)
            likelihood = None
        moved = {name: values[name] for name in moved_sites}
        neg_log_probs = [
            -jnp.mean(d.log_probs(params, values))
            if _uses_neg_log_prob(method, d)
            else jnp.zeros(())
            for d in densities
        ]
        found = moved, expectations(values), jnp.asarray(neg_log_probs), likelihood
        return found, values

    (moved, means, neg_log_probs, likelihood), pullback, values = jax.vjp(
        run, params, has_aux=True
    )
    num_samples = next(iter(values.values())).shape[0]
    scores = _scores_of(problem, states, params, noise, values, rng_key)
    by_score = score_weights(method, densities, coefficients, scores)
    mean, spread = cotangents(densities, coefficients * by_score, scores)
    scaled = {n: mean[n].astype(moved[n].dtype) / num_samples for n in moved_sites}
    on_means = expectations.coefficients
    if expectation_coefficients is not None:
        on_means = expectation_coefficients(means)
    rest = coefficients * (1.0 - by_score)
    rest = rest.astype(neg_log_probs.dtype)
    evidence: dict[Measure, jax.Array] = {}
    by_chance = missed = None
    if chance:
        weighted = expectations._replace(coefficients=on_means)
        own = jax.random.fold_in(rng_key, len(densities))
        by_chance, missed, evidence = chance.cotangent(
            params, noise, values, weighted, likelihood, own
        )
    with explain_grad_errors():
        on_means = on_means.astype(means.dtype)
        gradient = _pulled(pullback, (scaled, on_means, rest, by_chance), by_chance)
    deviation = None
    if deviation_index is not None and (spread or (chance and chance.is_estimated)):
        picked = {
            name: spread[name][deviation_index % spread[name].shape[0]] / num_samples
            if name in spread
            else jnp.zeros_like(moved[name])
            for name in moved_sites
        }
        nothing = jnp.zeros_like(means), jnp.zeros_like(neg_log_probs)
        if missed is not None:
            # The deviation of drawn sites counts once, whatever the method's number.
            count = 1 if method is None else method.num_deviations
            missed = jnp.where(deviation_index % count == 0, missed, 0.0)
        deviation = _pulled(pullback, (picked, *nothing, missed), missed)
    for density, score in zip(densities, scores, strict=True):
        for key, number in score.evidence.items():
            evidence[Measure(key, density.label)] = number
    return Pulled(gradient, deviation, means, evidence)
