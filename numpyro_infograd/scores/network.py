# SPDX-License-Identifier: Apache-2.0
"""The networks of the learned scores: features, a linear layer on top, ensembles.

A network maps inputs (num_samples, inputs) to features of any width. What is learned is
a linear function of its features that starts at zero, so that any network is a residual
on whatever it is added to, and so that the last layer of a fit is least squares.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from numpyro_infograd.arguments import check_widths
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.scores.base import symmetric_power

RIDGE = 1e-5  # of the mean square feature
_BENDS = 8  # of one input

# `make(inputs, rngs=...) -> nnx.Module`, or `(init(rng_key, inputs) -> parameters,
# apply(parameters, x) -> features)`.
Network = Callable[..., nnx.Module] | tuple[Callable[..., Any], Callable[..., Any]]


class Features(nnx.Module):
    """A multilayer perceptron, and bends of each input alone.

    Systems are often a nonlinearity or a noise on each component; then so is the score,
    in coordinates that keep components apart. A perceptron is slow to find that out.
    """

    def __init__(
        self, inputs: int, hidden: tuple[int, ...], bends: int, *, rngs: nnx.Rngs
    ) -> None:
        widths = (inputs, *hidden)
        self.layers = nnx.List(
            nnx.Linear(a, b, rngs=rngs)
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        slope = jnp.linspace(1.0, 2.5, bends) * jnp.where(jnp.arange(bends) % 2, 1, -1)
        place = jnp.linspace(-2.0, 2.0, bends)
        shake = 0.1 * jax.random.normal(rngs.params(), (inputs, bends))
        self.slope = nnx.Param(jnp.tile(slope, (inputs, 1)))
        self.place = nnx.Param(jnp.tile(place, (inputs, 1)) + shake)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (..., inputs) to (..., features)."""
        slope = self.slope[...]
        bent = nnx.silu(slope * x[..., None] + jnp.abs(slope) * self.place[...])
        for layer in self.layers:
            x = nnx.silu(layer(x))
        return jnp.concatenate([x, bent.reshape(*x.shape[:-1], -1)], axis=-1)


@functools.cache
def perceptron(hidden: tuple[int, ...] | None, bent: bool = True) -> Network:
    """The built-in network; without hidden widths it widens with the inputs."""

    def make(inputs: int, rngs: nnx.Rngs) -> nnx.Module:
        width = max(64, min(2 * inputs, 256))
        bends = max(2, min(_BENDS, 128 // inputs)) if bent else 0
        return Features(inputs, hidden or (width, width), bends, rngs=rngs)

    return make


def check_network(network: Any, hidden: Any) -> None:
    """Raise unless one of the two, or none, says what the networks are.

    Raises:
        ArgumentError: for a network that is no function, or widths that are none.
    """
    if hidden is not None:
        check_widths(hidden)
    pair = isinstance(network, tuple) and len(network) == 2
    functions = network if pair else (network,)
    if network is not None and not all(map(callable, functions)):
        raise ArgumentError(f"network={network!r} is no function. {_USE}")
    if network is not None and hidden is not None:
        raise ArgumentError(
            "hidden is for the built-in network: leave it out with a network of yours."
        )


class Ensemble:
    """Networks of one shape, each with its linear layer, on a leading axis."""

    def __init__(self, network: Network, inputs: int, outputs: int) -> None:
        self.network, self.inputs, self.outputs = network, inputs, outputs

    def init(self, rng_key: jax.Array, size: int) -> Any:
        """Parameters of `size` networks; their outputs are exactly zero."""

        def one(key: jax.Array) -> Any:
            body = _initial(self.network, self.inputs, key)
            x = jax.ShapeDtypeStruct((1, self.inputs), jnp.zeros(()).dtype)
            width = jax.eval_shape(self._features, body, x).shape[-1]
            zero = jnp.zeros((width, self.outputs))
            return {"body": body, "last": zero, "half": zero}

        return jax.vmap(one)(jax.random.split(rng_key, size))

    def _features(self, body: Any, x: jax.Array) -> jax.Array:
        """Features and a constant, (num_samples, width + 1)."""
        if isinstance(self.network, tuple):
            found = self.network[1](body, x)
        else:
            found = nnx.merge(_definition(self.network, self.inputs), body)(x)
        return jnp.concatenate([found, jnp.ones((*x.shape[:-1], 1), found.dtype)], -1)

    def features(self, parameters: Any, x: jax.Array) -> jax.Array:
        """The features of one network, a constant one the last of them."""
        return self._features(parameters["body"], x)

    def __call__(self, parameters: Any, x: jax.Array) -> jax.Array:
        """One network at a batch: (num_samples, outputs)."""
        return self.features(parameters, x) @ parameters["last"]

    def both(self, parameters: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One network at a batch, and what half of its features make of it."""
        features = self.features(parameters, x)
        return features @ parameters["last"], features @ parameters["half"]

    def check(self) -> None:
        """Raise unless the network maps (num_samples, inputs) to features.

        Raises:
            ArgumentError: saying what went wrong.
        """
        x = jax.ShapeDtypeStruct((3, self.inputs), jnp.zeros(()).dtype)
        key = jax.eval_shape(lambda: jax.random.key(0))
        try:
            body = jax.eval_shape(
                lambda key: _initial(self.network, self.inputs, key), key
            )
            jax.eval_shape(self._features, body, x)
        except (IndexError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ArgumentError):
                raise
            raise ArgumentError(
                f"network={self.network!r} failed on inputs of shape "
                f"(3, {self.inputs}): {str(error).rstrip('.')}. {_USE}"
            ) from error


_USE = (
    "Give make(inputs, rngs=...) that returns an nnx.Module, or a pair of functions "
    "init(rng_key, inputs) and apply(parameters, x)."
)


def _initial(network: Network, inputs: int, rng_key: jax.Array) -> Any:
    if isinstance(network, tuple):
        return network[0](rng_key, inputs)
    _, parameters, *rest = nnx.split(
        network(inputs, rngs=nnx.Rngs(rng_key)), nnx.Param, ...
    )
    if jax.tree.leaves(rest):
        raise ArgumentError(
            f"network={network!r} has state besides its parameters (batch statistics, "
            "dropout): scores are pure functions. Use layers without state."
        )
    return parameters


@functools.lru_cache(maxsize=64)
def _definition(network: Callable[..., nnx.Module], inputs: int) -> Any:
    return nnx.split(nnx.eval_shape(lambda: network(inputs, rngs=nnx.Rngs(0))))[0]


def least_squares(gram: jax.Array, cross: jax.Array) -> jax.Array:
    """The last layer from its normal equations, with a small ridge."""
    ridge = RIDGE * jnp.trace(gram) / len(gram) * jnp.eye(len(gram))
    return symmetric_power(gram + ridge, -1.0) @ cross
