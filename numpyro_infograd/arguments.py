# SPDX-License-Identifier: Apache-2.0
"""What a caller hands over: keys, numbers, a model's arguments, functions to trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import operator
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd.errors import ArgumentError, InfogradError, ParameterError

# What JAX raises where Python or NumPy asks a traced value for its number.
_CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def as_key(rng_key: Any) -> jax.Array:
    """A typed PRNG key; None is `jax.random.key(0)`, old-style keys are wrapped.

    Raises:
        ArgumentError: if it is no single key.
    """
    if rng_key is None:
        return jax.random.key(0)
    dtype = getattr(rng_key, "dtype", None)
    if dtype == jnp.uint32:
        # An array of another shape than this generator's keys is no key.
        with contextlib.suppress(TypeError):
            rng_key = jax.random.wrap_key_data(rng_key)
            dtype = rng_key.dtype
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed or rng_key.shape != ():
        raise ArgumentError(
            f"rng_key must be one JAX PRNG key, got {rng_key!r:.80}. Use "
            "jax.random.key(0), with a seed of your choice."
        )
    return rng_key


def use_mesh(mesh: Any) -> contextlib.AbstractContextManager[Any]:
    """A context in which samples are spread over the devices of a mesh.

    Args:
        mesh: A `jax.sharding.Mesh` whose axes all divide the samples; None for none.

    Raises:
        ArgumentError: if it is no mesh, or its size is no power of two.
    """
    if mesh is None:
        return contextlib.nullcontext()
    if not isinstance(mesh, jax.sharding.Mesh):
        raise ArgumentError(
            f"mesh must be a jax.sharding.Mesh, got {mesh!r:.80}. Use "
            'jax.make_mesh((jax.device_count(),), ("samples",)).'
        )
    if mesh.size & (mesh.size - 1):
        raise ArgumentError(
            f"mesh has {mesh.size} devices, by which the samples, a power of two, "
            "cannot be divided. Take a power of two of them."
        )
    # The compiler, not the caller, finds where each array lives.
    auto = (jax.sharding.AxisType.Auto,) * len(mesh.axis_names)
    return jax.set_mesh(
        jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=auto)
    )


def as_real(name: str, value: Any, dtype: Any = None) -> jax.Array:
    """A parameter's value as a real array.

    Raises:
        ParameterError: for what is complex, or no number.
    """
    kind = getattr(value, "dtype", None) or np.asarray(value).dtype
    if jnp.issubdtype(kind, np.complexfloating):
        raise ParameterError(
            f"parameter {name!r} is complex. Use two real parameters, its real and "
            "imaginary parts."
        )
    if not any(jnp.issubdtype(kind, k) for k in (np.floating, np.integer, np.bool_)):
        raise ParameterError(
            f"parameter {name!r} must be a number or an array of numbers, got "
            f"{value!r:.80}. Give real numbers."
        )
    return jnp.asarray(value, dtype)


def as_power_of_two(name: str, value: Any, least: int) -> int:
    """A number of points or samples of quasi-random noise.

    Raises:
        ArgumentError: unless it is a power of two that is large enough.
    """
    try:
        size = operator.index(value)
    except TypeError:
        size = 0
    if size < least or size & (size - 1):
        raise ArgumentError(
            f"{name} must be a power of two of at least {least}, as quasi-random noise "
            f"needs, got {value!r}."
        )
    return size


def check_counts(settings: Any, *names: str) -> None:
    """Raise unless these attributes of an object are whole numbers of at least one.

    Raises:
        ArgumentError: naming the attribute.
    """
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, (int, np.integer)) or value < 1:
            raise ArgumentError(f"{name} must be a positive int, got {value!r}.")


def as_floats(name: str, value: Any) -> tuple[float, ...]:
    """A tuple of numbers.

    Raises:
        ArgumentError: naming the argument, for anything else.
    """
    if not isinstance(value, tuple) or not all(
        isinstance(x, (int, float, np.number)) for x in value
    ):
        raise ArgumentError(f"{name} must be a tuple of numbers, got {value!r}.")
    return value


def check_rate(settings: Any) -> None:
    """Raise unless an object's `learning_rate` is positive and finite.

    Raises:
        ArgumentError: for anything else.
    """
    rate = settings.learning_rate
    if not isinstance(rate, (int, float, np.number)) or not 0 < rate < np.inf:
        raise ArgumentError(f"learning_rate must be positive, got {rate!r}.")


def check_widths(hidden: Any) -> None:
    """Raise unless these are widths of hidden layers.

    Raises:
        ArgumentError: for anything but a tuple of positive ints.
    """
    tuples = isinstance(hidden, tuple) and len(hidden) > 0
    if not tuples or not all(isinstance(n, int) and n > 0 for n in hidden):
        raise ArgumentError(
            f"hidden must be a tuple of positive ints, such as (64, 64), got "
            f"{hidden!r}."
        )


def as_args(
    model_args: Any, model_kwargs: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A model's arguments as a tuple and a dict.

    Raises:
        ArgumentError: if they are something else, such as a single array.
    """
    if not isinstance(model_args, (tuple, list)):
        raise ArgumentError(
            f"model_args must be a tuple, got {model_args!r:.80}. Write "
            "model_args=(value,) for a single argument."
        )
    if model_kwargs is not None and not isinstance(model_kwargs, Mapping):
        raise ArgumentError(
            f"model_kwargs must be a dict, got {model_kwargs!r:.80}. Write "
            "model_kwargs={'name': value}."
        )
    return tuple(model_args), dict(model_kwargs or {})


@contextlib.contextmanager
def tracing(
    what: str, holds: str = "", error: type[InfogradError] = ArgumentError
) -> Iterator[None]:
    """Name a caller's function where it cannot be traced.

    Args:
        what: The function.
        holds: What the dict that it is given holds, where it is given one.
        error: The class to raise for a value that is asked for its number.
    """
    try:
        yield
    except _CONCRETE as cause:
        raise error(
            f"{what} asks for the number behind a traced value (an if, a while, "
            "float() or a NumPy function). Use jnp.where or jax.lax.cond, and "
            "functions of jax.numpy: jnp.tanh for np.tanh."
        ) from cause
    except KeyError as cause:
        if not holds:
            raise
        raise error(f"{what} looked up {cause}, but is given only {holds}.") from cause
