# SPDX-License-Identifier: Apache-2.0
"""The residual network of the learned scores, and ensembles of it."""

from __future__ import annotations

import functools
from typing import Any

from flax import nnx
import jax


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

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (..., inputs) to (..., outputs)."""
        for layer in self.layers:
            x = nnx.silu(layer(x))
        return self.last(x)


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


@functools.cache
def _definition(inputs: int, outputs: int, hidden: tuple[int, ...]) -> Any:
    def make() -> ResidualNetwork:
        return ResidualNetwork(inputs, outputs, hidden, rngs=nnx.Rngs(0))

    return nnx.split(nnx.eval_shape(make))[0]
