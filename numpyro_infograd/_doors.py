# SPDX-License-Identifier: Apache-2.0
"""What every public function does around its call.

It refuses JAX transformations and wrong arguments, keeps BLAS on one thread, and warns
with the line of the caller.
"""

from __future__ import annotations

from collections.abc import Callable
import difflib
import functools
import inspect
import os
import sys
import threading
from typing import Any, ParamSpec, TypeVar
import warnings

from threadpoolctl import threadpool_limits

import jax
from jax.extend.core import get_opaque_trace_state

from numpyro_infograd.errors import ArgumentError, TransformationError

P = ParamSpec("P")
R = TypeVar("R")

# What to write if a function of inputs and outputs is given an objective.
_WITH_OBJECTIVE = {
    "mutual_information": "Pass the sites, or write ig.estimate(model, objective).",
    "maximize_mi": "Pass the sites, or write ig.maximize(model, objective).",
}
# What is meant by arguments that other libraries have.
_RATE = "Pass optimizer=optax.adam(learning_rate). "
_ELSEWHERE = {
    "learning_rate": ("optimizer", _RATE),
    "lr": ("optimizer", _RATE),
    # What a gradient calls scores is the method of a value.
    "method": ("scores", "Did you mean 'scores'? "),
    "scores": ("method", "Did you mean 'method'? "),
    "candidates": ("designs", "Did you mean 'designs'? "),
    "data": ("observed", "Did you mean 'observed'? "),
    "inputs": ("bounds", "Pass the bounds, {rate: ig.MI(inputs, outputs)}. "),
    "constraint": (
        "projection",
        "Write it in the model, numpyro.param(name, value, constraint=...), or pass "
        "projection=. ",
    ),
}
_PACKAGE = os.path.dirname(__file__) + os.sep


def public(
    function: Callable[P, R], settings_of: Callable[..., Any] | None = None
) -> Callable[P, R]:
    """A public function that checks how it is called, before anything else.

    Its `**settings`, if it has any, are the named arguments of `settings_of`.
    """
    parameters = inspect.signature(function).parameters.values()
    open_ended = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    takes = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    needs = [p.name for p in parameters if p.name in takes and p.default is p.empty]
    shown = ", ".join(key for key in needs if key != "self")
    name = function.__qualname__.removesuffix(".__init__")
    where = "ig.diagnostics" if ".diagnostics" in function.__module__ else "ig"
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    if settings_of is not None:
        passed_on = inspect.signature(settings_of).parameters.values()
        named = (p.name for p in passed_on if p.kind is p.KEYWORD_ONLY)
        known += [key for key in named if key not in known]
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters) and not settings_of

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check_outside(name)
        if len(args) > len(takes) and not open_ended:
            raise ArgumentError(
                f"{name} takes {', '.join(takes)} and named settings, got {len(args)} "
                f"arguments. {_advice(f'{where}.{name}', takes, args)}"
            )
        if unknown := [key for key in kwargs if key not in known and not any_name]:
            near = difflib.get_close_matches(unknown[0], known, 1, 0.5)
            meant = f"Did you mean {near[0]!r}? " if near else ""
            other, advice = _ELSEWHERE.get(unknown[0], ("", ""))
            meant = advice if other in known else meant
            raise ArgumentError(
                f"{name} has no argument {unknown[0]!r}. {meant}Use one of "
                f"{', '.join(key for key in known if key != 'self')}."
            )
        if missing := [key for key in needs[len(args) :] if key not in kwargs]:
            raise ArgumentError(
                f"{name} needs {' and '.join(missing)}. Write {name}({shown}, ...)."
            )
        sites = args[takes.index("model") + 1 :] if "model" in takes else ()
        if any(map(_is_model, sites)) and not _is_model(args[-len(sites) - 1]):
            raise ArgumentError(
                f"{name} takes the model first: write {where}.{name}({shown})."
            )
        given = args[1] if len(args) > 1 else kwargs.get("inputs")
        if takes[1:3] == ["inputs", "outputs"] and hasattr(given, "entropies"):
            raise ArgumentError(
                f"{name} takes inputs and outputs, which are names of sites, got "
                f"{given!r:.80}. {_WITH_OBJECTIVE.get(name, 'Pass the sites.')}"
            )
        # Many small systems are solved. On more threads this takes twice the time, and
        # ten times on a busy machine. Does nothing if another thread set the number.
        with threadpool_limits(1, user_api="blas"):
            return function(*args, **kwargs)

    return call


def public_with_settings_of(
    other: Callable[..., Any],
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for a public function that passes its settings on to another."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        return public(function, other)

    return decorate


def _is_model(value: Any) -> bool:
    """Whether a value can be a model: a function, or one that has been traced."""
    return callable(value) or hasattr(value, "site_info")


def _advice(name: str, takes: list[str], args: tuple[Any, ...]) -> str:
    """What to write in place of too many positional arguments."""
    sites = args[1:]
    if takes[1:2] == ["objective"] and all(isinstance(s, (str, tuple)) for s in sites):
        shown = ", ".join(map(repr, sites))
        return f"Write {name}(model, ig.MI({shown})): the objective is one argument."
    return "Give all others by name."


def check_outside(name: str) -> None:
    """Raise inside a JAX transformation; `name` is what was called."""
    if get_opaque_trace_state() != _outside():
        raise TransformationError(
            f"{name} was called inside a JAX transformation (jax.jit, jax.vmap, "
            "jax.grad, jax.lax.scan), but it inspects the model and returns plain "
            "numbers. Call it outside. Inside, use structural_model(...).evaluate for "
            "samples, or InfoMax.update(state) for steps along the information "
            "gradient. The derivative of an information is ig.gradient."
        )


@functools.cache
def _outside() -> Any:
    """JAX's state outside of all transformations, as it is in a new thread."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(get_opaque_trace_state()))
    thread.start()
    thread.join()
    return found[0]


@jax.custom_jvp
def without_derivative(tree: Any) -> Any:
    """The same values; their derivative raises a `TransformationError`."""
    return tree


@without_derivative.defjvp
def _raise(primals: Any, tangents: Any) -> Any:
    raise TransformationError(
        "InfoMax.update was differentiated, but a step has no useful derivative: the "
        "gradient of the objective is info.gradient. Pass parameters through "
        "jax.lax.stop_gradient before they enter the state."
    )


def warn(message: str) -> None:
    """Warn of the line that called a public function."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth)
