# SPDX-License-Identifier: Apache-2.0
"""Divergences between a twin (q) and recordings (p), and their gradients.

With the scores phi W of both distributions at each level of noise,

    Fisher divergence (eq. 88):  1/2 E_p |phi (W_q - W_p)|^2,
    reverse Kullback-Leibler:    grad KL(q || p) = E_q[(D_params z)^T phi (W_q - W_p)].

The first is an explicit function of the parameters through W_q. Its integral over
levels is KL(p || q), by de Bruijn's identity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import optax

from numpyro_infograd._arguments import explain_grad_errors
from numpyro_infograd._calibrate.features import Features, Moments
from numpyro_infograd._compiling import pytree, quick_jit
from numpyro_infograd._density import simulate
from numpyro_infograd._noise import NoiseSource, NoiseSpec
from numpyro_infograd._optimize.move import Move, all_finite, constrained
from numpyro_infograd._program import Program
from numpyro_infograd.exogenous import Noise
from numpyro_infograd.scores.base import sequence_after

BLUR = "+blur"
_DRAWS = 4  # independent sets of draws of the twin near the end


def shares_of(levels: tuple[float, ...], divergence: str) -> np.ndarray:
    """Weight of each level in the divergence.

    For "fisher" they are the weights of the trapezoid rule, which gives nats. A single
    level has weight one; for "kl" all levels have equal weights.
    """
    if divergence == "kl" or len(levels) == 1:
        return np.full(len(levels), 1 / len(levels))
    width = np.diff(levels)
    return (np.append(width, 0.0) + np.append(0.0, width)) / 2


@pytree("forward", "features", "law", "target", "shares", "constraints")
@dataclass(frozen=True)
class Match:
    """A twin and the moments of the recordings."""

    forward: Program  # the twin's map from parameters and noise to sites
    features: Features  # features of its outputs
    law: Moments  # moments of the recordings
    target: Any  # weights W_p of the recordings
    shares: Any  # weight of each level in the divergence, (levels,)
    # Constraints of the parameters; None with a projection.
    constraints: dict[str, Any] | None
    divergence: str  # "fisher" or "kl"

    def at(self, levels: tuple[float, ...], divergence: str) -> Match:
        """The same with only these levels, for this divergence."""
        index = self.features.index(levels)
        return replace(
            self,
            features=self.features.at(levels),
            law=Moments(*(x[index] for x in self.law)),
            target=self.target[index],
            shares=shares_of(levels, divergence).astype(self.shares.dtype),
            divergence=divergence,
        )

    def outputs(self, unconstrained_params: Any, noise: Any) -> jax.Array:
        """Coordinates of draws of the twin, (num_samples, dimensions)."""
        params = constrained(unconstrained_params, self.constraints)
        return self.features.coordinates(simulate(self.forward, params, noise))

    def moments(
        self, unconstrained_params: Any, rng_key: jax.Array, source: NoiseSource
    ) -> Moments:
        """Moments of fresh draws of the twin."""
        noise, blur = draw(source, rng_key)
        z = self.outputs(unconstrained_params, noise)
        return self.features.moments(z, blur, rng_key)

    def factor(self, local: Local) -> Any:
        """Factor of the gap W_q - W_p in the gradient, of the shape of `slopes`.

        Its product with the slopes is the curvature. For the reverse KL this is the
        Fisher information of the parameters, if twin and recordings have the same
        distribution.
        """
        if self.divergence == "kl":
            return self.shares[:, None, None] * local.flow
        return self.shares[:, None, None] * (self.law.gram @ local.slopes)


def with_blur(spec: NoiseSpec, dimensions: int) -> NoiseSpec:
    """The distributions of the twin's noise and of the noise appended to outputs."""
    return (*spec, (BLUR, Noise("normal", (dimensions,))))


def draw(source: NoiseSource, rng_key: jax.Array) -> tuple[Any, jax.Array]:
    """The twin's noise, and the noise appended to its outputs."""
    noise = source(rng_key)
    return noise, noise.pop(BLUR)


def fisher_gradient(
    match: Match, unconstrained_params: Any, rng_key: jax.Array, source: NoiseSource
) -> tuple[jax.Array, Any]:
    """The Fisher divergence from two independent draws of the twin, and its gradient.

    The product of two draws has no bias; the square of one draw would have one. W_q is
    an implicit function of the parameters, G W_q = c, so its derivative needs only
    that of `defect`, at fixed weights.
    """
    features, keys = match.features, jax.random.split(rng_key)

    def law(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        moments = match.moments(unconstrained_params, key, source)
        return moments.gram, features.weights(moments)

    grams, weights = jax.lax.map(law, keys)
    gaps = weights - match.target
    pulls = match.shares[:, None, None] * (match.law.gram @ gaps)

    def pulled(given: tuple[jax.Array, ...]) -> Any:
        key, gram, weights, pull = given
        noise, blur = draw(source, key)
        z, back = jax.vjp(lambda at: match.outputs(at, noise), unconstrained_params)
        factor = features.solve(gram, pull)

        def add(total: jax.Array, at: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            level, weights, factor = at
            slope = jax.grad(
                lambda z: jnp.vdot(
                    factor, features.defect(z, blur, key, level, weights)
                )
            )
            return total + slope(z), None

        levels = jnp.asarray(features.levels)
        cotangent, _ = jax.lax.scan(add, jnp.zeros_like(z), (levels, weights, factor))
        return back(cotangent)[0]

    each = jax.lax.map(pulled, (keys, grams, weights, pulls[::-1]))
    gradient = jax.tree.map(lambda x: jnp.mean(x, axis=0), each)
    return 0.5 * jnp.vdot(pulls[0], gaps[1]), gradient


def kl_gradient(
    match: Match, unconstrained_params: Any, rng_key: jax.Array, source: NoiseSource
) -> tuple[jax.Array, Any]:
    """The Fisher divergence and the gradient of the reverse KL.

    Both use one draw. So the divergence is a little too large, and the gradient has a
    bias, because the twin's weights W_q come from the same draw. The bias is far below
    a standard error unless the draws are few and the outputs many. Corrections use
    weights from other draws.
    """
    features = match.features
    noise, blur = draw(source, rng_key)
    z, back = jax.vjp(lambda at: match.outputs(at, noise), unconstrained_params)
    gap = features.weights(features.moments(z, blur, rng_key)) - match.target

    def push(total: jax.Array, at: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        share, level, gap = at
        phi = features(z + level**0.5 * blur, level)
        return total + share * features.weigh(z) * (phi @ gap), None

    levels = jnp.asarray(features.levels)
    cotangent, _ = jax.lax.scan(push, jnp.zeros_like(z), (match.shares, levels, gap))
    value = jnp.einsum("l,lwd,lwv,lvd->", match.shares, gap, match.law.gram, gap)
    return 0.5 * value, back(cotangent / source.size)[0]


# -- descent -----------------------------------------------------------------------


class Descent(NamedTuple):
    """The state of a descent."""

    unconstrained_params: Any
    opt_state: Any
    step: jax.Array

    def moved(
        self, move: Move, gradient: Any, rate: jax.Array
    ) -> tuple[Descent, dict[str, Any]]:
        """The state after a step, which is not taken unless all numbers are finite."""
        here, ascent = self.unconstrained_params, jax.tree.map(jnp.negative, gradient)
        there, opt_state, ascent = move(here, self.opt_state, ascent, rate)
        finite = all_finite(ascent, there)
        new = Descent(there, opt_state, self.step + 1)
        new = optax.tree.where(finite, new, self._replace(step=new.step))
        return new, {"gradient_norm": optax.tree.norm(ascent), "finite": finite}


@quick_jit
def descend(
    match: Match,
    move: Move,
    state: Descent,
    rates: jax.Array,
    rng_key: jax.Array,
    source: NoiseSource,
) -> tuple[Descent, dict[str, Any]]:
    """A chunk of steps; parameters, divergence and gradient norm of each."""

    def step(state: Descent, rate: jax.Array) -> tuple[Descent, dict[str, Any]]:
        key = jax.random.fold_in(rng_key, state.step)
        descent = kl_gradient if match.divergence == "kl" else fisher_gradient
        with explain_grad_errors():
            value, gradient = descent(match, state.unconstrained_params, key, source)
        new, info = state.moved(move, gradient, rate)
        params = constrained(state.unconstrained_params, match.constraints)
        return new, info | {"params": params, "divergence": value}

    return jax.lax.scan(step, state, rates)


# -- near the end --------------------------------------------------------------------


@quick_jit
def draw_weights(
    match: Match, unconstrained_params: Any, rng_key: jax.Array, source: NoiseSource
) -> jax.Array:
    """W_q from independent draws, (draws, levels, width, dimensions)."""
    laws = jax.lax.map(
        lambda key: match.moments(unconstrained_params, key, source),
        jax.random.split(rng_key, _DRAWS),
    )
    return jax.lax.map(match.features.weights, laws)


class Local(NamedTuple):
    """Derivatives of the twin in its parameters, by independent draws of its noise."""

    # Derivative of W_q in each unconstrained number, (draws, numbers, levels, width,
    # dimensions).
    slopes: jax.Array
    flow: jax.Array  # E_q[phi (D_params z)] for each number, of the same shape


@quick_jit
def look_around(
    match: Match,
    unconstrained_params: Any,
    weights: jax.Array,
    rng_key: jax.Array,
    many: NoiseSource,
    few: NoiseSource,
) -> Local:
    """Derivatives of the twin in its parameters, by forward mode.

    W_q is an implicit function of the parameters, G W_q = c. `many` samples of each
    draw give the flow, and `few` the slopes, which take longer.
    """
    flat, unravel = ravel_pytree(unconstrained_params)
    features = match.features
    numbers = jnp.eye(len(flat), dtype=flat.dtype)

    def one(given: tuple[jax.Array, jax.Array]) -> Local:
        weights, (key, few_key) = given
        noise, blur = draw(many, key)
        z = match.outputs(unconstrained_params, noise)
        levels = jnp.asarray(features.levels)
        phi = jax.lax.map(lambda t: features(z + t**0.5 * blur, t), levels)

        def stream(number: jax.Array) -> jax.Array:
            outputs = lambda flat: match.outputs(unravel(flat), noise)  # noqa: E731
            moved = features.weigh(z) * jax.jvp(outputs, (flat,), (number,))[1]
            return jnp.swapaxes(phi, 1, 2) @ moved / many.size

        flow = jax.lax.map(stream, numbers)
        noise, blur = draw(few, few_key)

        def defect(flat: jax.Array) -> jax.Array:
            z = match.outputs(unravel(flat), noise)
            return jax.lax.map(
                lambda at: features.defect(z, blur, few_key, *at), (levels, weights)
            )

        right = jax.lax.map(lambda n: jax.jvp(defect, (flat,), (n,))[1], numbers)
        z = match.outputs(unconstrained_params, sequence_after(noise, right))
        gram = features.moments(z, blur, few_key).gram
        columns = jnp.moveaxis(right, 0, -1).reshape(*gram.shape[:2], -1)
        slopes = features.solve(gram, columns).reshape(*weights.shape, len(flat))
        return Local(jnp.moveaxis(slopes, -1, 0), flow)

    keys = jax.random.split(rng_key, (len(weights), 2))
    return jax.lax.map(one, (weights, keys))
