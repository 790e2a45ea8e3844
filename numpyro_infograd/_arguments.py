# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments: keys, numbers, model arguments, functions to trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import difflib
import math
import numbers
import operator
import os
import sysconfig
import traceback
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

import numpyro

from numpyro_infograd._text import brief
from numpyro_infograd.errors import (
    ArgumentError,
    InfogradError,
    ModelError,
    ParameterError,
)

# Errors of JAX if Python or NumPy needs the number of a traced value.
_CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)

# Folders of library code.
_LIBRARIES = tuple(
    folder + os.sep
    for folder in (
        os.path.dirname(__file__),
        *(os.path.dirname(os.path.dirname(str(m.__file__))) for m in (jax, numpyro)),
        sysconfig.get_path("stdlib"),
    )
)

_MOST = 2**30  # points or samples, at most


def as_key(rng_key: Any) -> jax.Array:
    """A typed PRNG key; None is `jax.random.key(0)`, old-style keys are wrapped."""
    if rng_key is None:
        return jax.random.key(0)
    if getattr(rng_key, "dtype", None) == jnp.uint32:
        # An array of another shape than a key stays, and raises below.
        with contextlib.suppress(TypeError):
            rng_key = jax.random.wrap_key_data(rng_key)
    if is_key(rng_key) and rng_key.shape != ():
        raise ArgumentError(
            f"rng_key must be one JAX PRNG key, got an array of shape {rng_key.shape}. "
            "Pass one of them, as keys[0]."
        )
    if not is_key(rng_key):
        raise ArgumentError(
            f"rng_key must be one JAX PRNG key, got {brief(rng_key)}. Use "
            "jax.random.key(0), with a seed of your choice."
        )
    return rng_key


def is_key(value: Any) -> bool:
    """Whether a value is a typed PRNG key, or an array of them."""
    dtype = getattr(value, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def use_mesh(mesh: Any) -> contextlib.AbstractContextManager[Any]:
    """A context in which samples are split over all axes of a mesh; None changes
    nothing.
    """
    if mesh is None:
        return contextlib.nullcontext()
    if not isinstance(mesh, jax.sharding.Mesh):
        raise ArgumentError(
            f"mesh must be a jax.sharding.Mesh, got {brief(mesh)}. Use "
            'jax.make_mesh((jax.device_count(),), ("samples",)).'
        )
    if mesh.size & (mesh.size - 1):
        raise ArgumentError(
            f"mesh has {mesh.size} devices, but the number of samples is a power of "
            "two and must be divisible by it. Use a power of two devices."
        )
    # Axes of type Auto: the compiler chooses where each array is.
    if not jax.sharding.get_abstract_mesh().empty:
        raise ArgumentError(
            "a mesh is set already (jax.set_mesh). Leave its context, and pass the "
            "mesh only as mesh=..."
        )
    auto = (jax.sharding.AxisType.Auto,) * len(mesh.axis_names)
    return jax.set_mesh(
        jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=auto)
    )


def as_parameter(name: str, value: Any, dtype: Any = None) -> jax.Array:
    """A parameter's value as an array; real if `dtype` is, else real or complex."""
    kind = _kind(value)
    is_complex = jnp.issubdtype(kind, np.complexfloating)
    if is_complex and dtype and not jnp.issubdtype(dtype, np.complexfloating):
        raise ParameterError(
            f"parameter {name!r} is real in the model, got the complex value "
            f"{brief(value)}. Give numpyro.param a complex initial value."
        )
    if not is_complex and not is_real(value) and not jnp.issubdtype(kind, np.bool_):
        raise ParameterError(
            f"parameter {name!r} must be a number or an array of numbers, got "
            f"{brief(value)}. Pass numbers."
        )
    with np.errstate(over="ignore"):  # infinite values raise an error later
        return jnp.asarray(value, dtype)


def is_real(value: Any) -> bool:
    """Whether a value is a real number or an array of them; bools are not."""
    kind = _kind(value)
    return any(jnp.issubdtype(kind, real) for real in (np.floating, np.integer))


def _kind(value: Any) -> Any:
    """The dtype of an array, or of a value as an array; also of traced values."""
    return getattr(value, "dtype", None) or np.asarray(value).dtype


def as_real(value: Any) -> np.ndarray | None:
    """An array of real numbers; None for other values, and rows of several lengths."""
    try:
        array = np.asarray(value)
    except ValueError:
        return None
    return array if is_real(array) else None


def is_number(value: Any) -> bool:
    """Whether a value is one finite real number, of Python, NumPy or JAX."""
    if isinstance(value, numbers.Real):
        return not isinstance(value, bool) and math.isfinite(value)
    arrays = (np.generic, np.ndarray, jax.Array)
    single = isinstance(value, arrays) and value.shape == ()
    return single and is_real(value) and math.isfinite(value)


def as_number(
    name: str, value: Any, low: float = -np.inf, high: float = np.inf
) -> float:
    """A number strictly between two others."""
    if not is_number(value) or not low < value < high:
        raise ArgumentError(
            f"{name} must be a finite number in ({low:g}, {high:g}), got "
            f"{brief(value)}."
        )
    return float(value)


def as_flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentError(f"{name} must be True or False, got {brief(value)}.")
    return bool(value)


def as_count(name: str, value: Any, least: int = 1) -> int:
    """A whole number."""
    try:
        count = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = least - 1
    if count < least:
        wanted = "a positive int" if least == 1 else f"an int of at least {least}"
        raise ArgumentError(f"{name} must be {wanted}, got {brief(value)}.")
    return count


def as_power_of_two(name: str, value: Any, least: int) -> int:
    """A number of samples, points, steps or levels."""
    try:
        size = operator.index(value)
    except TypeError:
        raise ArgumentError(
            f"{name} must be an int, a power of two of at least {least}, got "
            f"{brief(value)} ({type(value).__name__})."
        ) from None
    if not least <= size <= _MOST or size & (size - 1):
        near = min(max(1 << max(size - 1, 0).bit_length(), least), _MOST)
        raise ArgumentError(
            f"{name} must be a power of two of at least {least} (and at most {_MOST}), "
            f"got {brief(value)}. Use {near}."
        )
    return size


def resolve_name(
    argument: str,
    given: Any,
    registry: Mapping[str, Callable[[], Any]],
    is_method: Callable[[Any], bool],
    kind: str,
) -> Any:
    """A method with default settings for a name; "auto" and methods stay as they are.

    Raises `ArgumentError` for another name, for a class and for another object.
    """
    if isinstance(given, str) and given in registry:
        return registry[given]()
    if isinstance(given, type):
        raise ArgumentError(
            f"{argument}={given.__name__} is a class: call it, {given.__name__}()."
        )
    named = isinstance(given, str)
    if (named and given == "auto") or (not named and is_method(given)):
        return given
    known = ("auto", *registry)
    raise ArgumentError(
        f"{argument} must be one of {', '.join(map(repr, known))} or {kind}, got "
        f"{given!r}.{nearest(given, known)}"
    )


def nearest(given: Any, known: Iterable[str]) -> str:
    """What may be meant by a wrong method, as the end of an error; "" if unknown."""
    if isinstance(given, str):
        # A mixture of scores and nested averages for values are one idea.
        same = {"nested": "mixture", "mixture": "nested"}.get(given, given)
        near = difflib.get_close_matches(same.lower(), known, 1, 0.5)
        return f" Did you mean {near[0]!r}?" if near else ""
    for module, argument in (("scores", "scores"), ("values", "method")):
        if type(given).__module__.startswith(f"numpyro_infograd.{module}."):
            return f" This is an object of ig.{module}, for the argument {argument}."
    return ""


def check_counts(settings: Any, *names: str) -> None:
    """Make these attributes of frozen settings ints of at least one."""
    for name in names:
        object.__setattr__(settings, name, as_count(name, getattr(settings, name)))


def check_numbers(settings: Any, *names: str) -> None:
    """Make these attributes of frozen settings floats above zero."""
    for name in names:
        number = as_number(name, getattr(settings, name), 0.0)
        object.__setattr__(settings, name, number)


def check_powers_of_two(settings: Any, least: int, *names: str) -> None:
    """Raise unless these attributes of settings are numbers of points or samples."""
    for name in names:
        as_power_of_two(name, getattr(settings, name), least)


def as_number_tuple(name: str, value: Any) -> tuple[float, ...]:
    """A tuple of numbers."""
    if not isinstance(value, tuple) or not all(
        isinstance(x, numbers.Real) and not isinstance(x, bool) for x in value
    ):
        raise ArgumentError(f"{name} must be a tuple of numbers, got {value!r}.")
    return value


def check_widths(hidden: Any) -> None:
    """Raise unless these are widths of hidden layers."""
    tuples = isinstance(hidden, tuple) and len(hidden) > 0
    if not tuples or not all(type(n) is int and n > 0 for n in hidden):
        raise ArgumentError(
            f"hidden must be a tuple of positive ints, such as (64, 64), got "
            f"{hidden!r}."
        )


def as_args(
    model_args: Any, model_kwargs: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A model's arguments as a tuple and a dict."""
    if not isinstance(model_args, (tuple, list)):
        raise ArgumentError(
            f"model_args must be a tuple, got {brief(model_args)}. Write "
            "model_args=(value,) for a single argument."
        )
    if model_kwargs is not None and not isinstance(model_kwargs, Mapping):
        raise ArgumentError(
            f"model_kwargs must be a dict, got {brief(model_kwargs)}. Write "
            "model_kwargs={'name': value}."
        )
    strange = [key for key in model_kwargs or {} if not isinstance(key, str)]
    if strange:
        raise ArgumentError(
            f"model_kwargs must name arguments of the model, got {brief(strange[0])}. "
            "Write model_kwargs={'name': value}."
        )
    return tuple(model_args), dict(model_kwargs or {})


@contextlib.contextmanager
def explain_trace_errors(
    what: object, holds: str = "", error: type[InfogradError] = ArgumentError
) -> Iterator[None]:
    """A context that explains why a caller's function cannot be traced.

    `what` names the function, by its `str` after the failure. `holds` describes its
    argument, if callers may expect another.
    """
    try:
        yield
    except _CONCRETE as cause:
        raise error(
            f"{what} needs the number of a traced value{line_of(cause)}, for a shape, "
            "an if, a while, float() or a NumPy function. Pass sizes and switches as "
            "Python numbers, choose by jnp.where or jax.lax.cond, and use functions of "
            "jax.numpy: jnp.tanh for np.tanh."
        ) from cause
    except KeyError as cause:
        if not holds:
            raise
        raise error(f"{what} looked up {cause}, but is given only {holds}.") from cause
    except (AttributeError, IndexError, TypeError, ValueError) as cause:
        if not holds or isinstance(cause, (InfogradError, jax.errors.JAXTypeError)):
            raise
        why = str(cause).rstrip(".")
        raise error(f"{what} failed: {why}. It is given only {holds}.") from cause


def line_of(error: BaseException) -> str:
    """The line of the caller's code that raised an error, as text."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.line and not f.filename.startswith(_LIBRARIES)]
    if not own:
        return ""
    last = own[-1]
    where = f"line {last.lineno} of {os.path.basename(last.filename)}"
    return f" in {last.line!r} ({where})"


@contextlib.contextmanager
def explain_grad_errors() -> Iterator[None]:
    """A context that explains why a model cannot be differentiated."""
    try:
        yield
    except ValueError as cause:
        if "callbacks do not support JVP" in str(cause):
            raise ModelError(
                "the model or an Expectation calls Python by jax.pure_callback or "
                "io_callback, which has no derivative. Write the function in "
                "jax.numpy; or call pure_callback, with vmap_method='sequential', "
                "inside a jax.custom_jvp function that gives its derivative."
            ) from cause
        if "Reverse-mode differentiation" not in str(cause):
            raise
        raise ModelError(
            "the model has a loop whose length is not known before it runs "
            "(jax.lax.while_loop, or fori_loop with a traced bound), so it has no "
            "reverse-mode derivative. Use jax.lax.scan or a fori_loop of fixed length, "
            "and jnp.where for steps that do nothing."
        ) from cause
    except TypeError as cause:
        if "custom_vjp" not in str(cause):
            raise
        raise ModelError(
            "the model calls a jax.custom_vjp function (as odeint does), which has no "
            "forward-mode derivative. Use jax.custom_jvp, or code without a custom "
            "rule, such as a fixed number of steps."
        ) from cause
