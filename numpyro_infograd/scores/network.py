# SPDX-License-Identifier: Apache-2.0
"""Networks of the learned scores: features, a last linear layer, and ensembles.

A network maps inputs (num_samples, inputs) to features of any width. A last linear
layer maps the features to outputs. It starts at zero, so an untrained network adds
nothing, and it is fitted by least squares.

The features also include sigmoid steps of each single input, placed at its quantiles.
Many systems apply a nonlinearity or noise to each component alone. Their score then
also acts on each component alone, and with little noise it changes within a small part
of the range. A perceptron learns such functions slowly.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from itertools import pairwise
from typing import Any

import lazy_loader

import jax
import jax.numpy as jnp
import optax

from numpyro_infograd._arguments import check_counts, check_numbers, check_widths
from numpyro_infograd.errors import ArgumentError

nnx = lazy_loader.load("flax.nnx", suppress_warning=True)  # only networks need it

_STEPS = 16  # sigmoid steps of one input, at most
_ALL_STEPS = 256  # sigmoid steps of all inputs, at most

# `make(inputs, rngs=...) -> nnx.Module`, or `(init(rng_key, inputs) -> parameters,
# apply(parameters, x) -> features)`.
Network = Callable[..., Any] | tuple[Callable[..., Any], Callable[..., Any]]


@functools.cache
def perceptron(hidden: tuple[int, ...] | None) -> Network:
    """The built-in network; by default its width grows with the inputs."""

    def make(inputs: int, rngs: Any) -> Any:
        width = max(64, min(2 * inputs, 256))
        layers = pairwise((inputs, *(hidden or (width, width))))
        each = ((nnx.Linear(*sizes, rngs=rngs), nnx.silu) for sizes in layers)
        return nnx.Sequential(*(function for pair in each for function in pair))

    return make


def check_network(network: Any, hidden: Any) -> None:
    """Raise unless at most one of `network` and `hidden` is given, and is valid."""
    if hidden is not None:
        check_widths(hidden)
    if network is None:
        return
    pair = isinstance(network, tuple) and len(network) == 2
    if not all(map(callable, network if pair else (network,))):
        raise ArgumentError(f"network={network!r} is not a function. {_USE}")
    if isinstance(network, nnx.Module):
        raise ArgumentError(
            f"network is a {type(network).__name__} object, but each network of the "
            f"ensemble must be made anew. {_USE}"
        )
    if hidden is not None:
        raise ArgumentError(
            "hidden is for the built-in network: leave it out if you pass network."
        )


def check_training(settings: Any, members: int) -> None:
    """Raise for wrong numbers of steps, batches and rates of a training."""
    steps = ("num_steps", "num_warm_steps", "batch_size")
    check_counts(settings, *(name for name in steps if hasattr(settings, name)))
    check_numbers(settings, "learning_rate")
    if settings.batch_size < members:
        raise ArgumentError(
            f"batch_size is {settings.batch_size}: too few for {members} networks to "
            "share."
        )


class Ensemble:
    """Networks of one shape, each with a last linear layer, stacked on a leading axis.

    The first `stepped` inputs have sigmoid steps.
    """

    def __init__(
        self, network: Network, inputs: int, outputs: int, stepped: int = 0
    ) -> None:
        self.network, self.inputs, self.outputs = network, inputs, outputs
        each = max(2, min(_STEPS, _ALL_STEPS // stepped)) if stepped else 0
        self.knots = (stepped, each)

    def init(self, rng_key: jax.Array, size: int) -> Any:
        """Parameters of `size` networks; their outputs are exactly zero."""

        def one(key: jax.Array) -> Any:
            body = _initial(self.network, self.inputs, key)
            start = {"body": body, "knots": jnp.zeros(self.knots)}
            x = jax.ShapeDtypeStruct((1, self.inputs), jnp.zeros(()).dtype)
            width = jax.eval_shape(self.features, start, x).shape[-1]
            zero = jnp.zeros((width, self.outputs))
            return start | {"last": zero, "half": zero}

        return jax.vmap(one)(jax.random.split(rng_key, size))

    def place(self, networks: Any, x: jax.Array) -> Any:
        """The networks with their steps at quantiles of inputs (num_samples, stepped).

        Steps are denser at both ends, where both saturation and noise act.
        """
        count = self.knots[1]
        share = 0.5 - 0.5 * jnp.cos(jnp.pi * (jnp.arange(count) + 0.5) / max(count, 1))
        knots = jnp.quantile(x, share, axis=0).T
        return networks | {"knots": jnp.broadcast_to(knots, networks["knots"].shape)}

    def features(self, parameters: Any, x: jax.Array) -> jax.Array:
        """All features of one network: steps, its own and a constant, (..., width)."""
        body, knots = parameters["body"], jax.lax.stop_gradient(parameters["knots"])
        if isinstance(self.network, tuple):
            found = self.network[1](body, x)
        else:
            found = nnx.merge(_definition(self.network, self.inputs), body)(x)
        rows = x.shape[:-1]
        parts = [found, jnp.ones((*rows, 1), found.dtype)]
        if knots.size:
            width = 0.7 * jnp.maximum(jnp.asarray(jnp.gradient(knots, axis=1)), 0.02)
            rising = jnp.arange(knots.shape[1]) >= knots.shape[1] // 2
            # Each falls on its outer side, which few samples reach.
            width = jnp.where(rising, width, -width)
            steps = nnx.sigmoid((x[..., : len(knots), None] - knots) / width)
            parts.insert(0, steps.reshape(*rows, knots.size))
        return jnp.concatenate(parts, axis=-1)

    def __call__(self, parameters: Any, x: jax.Array) -> jax.Array:
        """One network at a batch: (num_samples, outputs)."""
        return self.features(parameters, x) @ parameters["last"]

    def both(self, parameters: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Outputs of one network from all features, and from half of them."""
        features = self.features(parameters, x)
        return features @ parameters["last"], features @ parameters["half"]

    def check(self) -> None:
        """Raise unless the network maps (num_samples, inputs) to features."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        try:
            jax.eval_shape(lambda key: self.init(key, 2), key)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ArgumentError):
                raise
            raise ArgumentError(
                f"network={self.network!r} failed on inputs of shape "
                f"(1, {self.inputs}): {str(error).rstrip('.')}. {_USE}"
            ) from error


def adam(
    loss: Callable[[Any, Any], jax.Array],
    batch: Callable[[Any], Any],
    rate: float,
    steps: int,
) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
    """Start and step of Adam with a cosine schedule, for a scan.

    A step lowers `loss(networks, batch(x))`, with x the next of what is scanned over.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def start(networks: Any) -> Any:
        return networks, optimizer.init(networks)

    def step(carry: Any, x: Any) -> tuple[Any, None]:
        networks, state = carry
        gradient = jax.grad(loss)(networks, batch(x))
        updates, state = optimizer.update(gradient, state, networks)
        return (optax.apply_updates(networks, updates), state), None

    return start, step


_USE = (
    "Pass make(inputs, rngs=...) that returns an nnx.Module, or a pair of functions "
    "init(rng_key, inputs) and apply(parameters, x), where inputs is a number."
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
            "dropout), but scores must be pure functions. Use layers without state."
        )
    return parameters


@functools.lru_cache(maxsize=64)
def _definition(network: Callable[..., Any], inputs: int) -> Any:
    return nnx.split(nnx.eval_shape(lambda: network(inputs, rngs=nnx.Rngs(0))))[0]
