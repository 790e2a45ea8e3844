# SPDX-License-Identifier: Apache-2.0
"""The residual network of the learned scores, and ensembles of it."""

from __future__ import annotations

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from numpyro_infograd.scores.base import symmetric_power

RIDGE = 1e-5  # of the mean square feature


class ResidualNetwork(nnx.Module):
    """A small multilayer perceptron whose output is exactly zero at the start."""

    def __init__(
        self, inputs: int, outputs: int, hidden: tuple[int, ...], *, rngs: nnx.Rngs
    ) -> None:
        widths = (inputs, *hidden)
        self.layers = nnx.List(
            nnx.Linear(a, b, rngs=rngs)
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        zeros = nnx.initializers.zeros_init()
        self.last = nnx.Linear(widths[-1], outputs, kernel_init=zeros, rngs=rngs)

    def features(self, x: jax.Array) -> jax.Array:
        """Activations of the last hidden layer."""
        for layer in self.layers:
            x = nnx.silu(layer(x))
        return x

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (..., inputs) to (..., outputs)."""
        return self.last(self.features(x))


class Ensemble:
    """Several residual networks of one shape, their parameters on a leading axis."""

    def __init__(self, inputs: int, outputs: int, hidden: tuple[int, ...]) -> None:
        self.shape = (inputs, outputs, hidden)

    def init(self, rng_key: jax.Array, size: int) -> Any:
        """Parameters of `size` networks."""

        def one(key: jax.Array) -> Any:
            return nnx.split(ResidualNetwork(*self.shape, rngs=nnx.Rngs(key)))[1]

        return jax.vmap(one)(jax.random.split(rng_key, size))

    def member(self, parameters: Any, x: jax.Array) -> jax.Array:
        """One network at a batch of inputs (num_samples, inputs)."""
        return nnx.merge(_definition(*self.shape), parameters)(x)

    def __call__(self, parameters: Any, x: jax.Array, common: bool = False) -> Any:
        """All networks: (size, num_samples, outputs), each at its own or one batch."""
        return jax.vmap(self.member, in_axes=(0, None if common else 0))(parameters, x)

    def features(self, parameters: Any, x: jax.Array) -> jax.Array:
        """Last hidden layers at one batch: (size, num_samples, width)."""

        def one(parameters: Any) -> jax.Array:
            return nnx.merge(_definition(*self.shape), parameters).features(x)

        return jax.vmap(one)(parameters)

    def solve_last(self, parameters: Any, x: jax.Array, y: jax.Array) -> Any:
        """Least squares for the last layer of each network on its own batch.

        The residual of the fit is then orthogonal to every feature, so what is left of
        the error of a linear functional is of second order.
        """

        def one(parameters: Any, x: jax.Array, y: jax.Array) -> Any:
            network = nnx.merge(_definition(*self.shape), parameters)
            features = network.features(x)
            ones = jnp.ones((features.shape[0], 1), features.dtype)
            design = jnp.concatenate([features, ones], axis=1)
            gram = design.T @ design / len(design)
            ridge = RIDGE * jnp.trace(gram) / len(gram) * jnp.eye(len(gram))
            solved = symmetric_power(gram + ridge, -1.0) @ (design.T @ y / len(design))
            network.last.kernel[...] = solved[:-1]
            network.last.bias[...] = solved[-1]
            return nnx.split(network)[1]

        return jax.vmap(one)(parameters, x, y)


@functools.cache
def _definition(inputs: int, outputs: int, hidden: tuple[int, ...]) -> Any:
    def make() -> ResidualNetwork:
        return ResidualNetwork(inputs, outputs, hidden, rngs=nnx.Rngs(0))

    return nnx.split(nnx.eval_shape(make))[0]
