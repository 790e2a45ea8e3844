# SPDX-License-Identifier: Apache-2.0
"""What public functions do around their call.

They refuse wrong arguments, and warn with the line of the caller. They keep JAX's rules
for debugging out. Most also refuse JAX transformations, and keep BLAS on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import difflib
import functools
import inspect
import os
import sys
import threading
from typing import (
    Any,
    NamedTuple,
    ParamSpec,
    TypeVar,
    dataclass_transform,
    overload,
)
import warnings

from threadpoolctl import threadpool_limits

import jax
from jax.extend.core import get_opaque_trace_state

from numpyro_infograd._text import brief
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
    "seed": ("rng_key", "Pass rng_key=jax.random.key(seed). "),
    "args": ("model_args", "Did you mean 'model_args'? "),
    "kwargs": ("model_kwargs", "Did you mean 'model_kwargs'? "),
    "constraints": ("subject_to", "Did you mean 'subject_to'? "),
    "constraint": (
        "projection",
        "Write it in the model, numpyro.param(name, value, constraint=...), or pass "
        "projection=. ",
    ),
}
_PACKAGE = os.path.dirname(__file__) + os.sep


class _Call(NamedTuple):
    """How a public function is called, without `self`."""

    name: str
    takes: list[str]  # its positional arguments
    needs: list[str]  # arguments without a default, those by name last
    known: list[str]  # all its arguments, and the settings that it passes on
    is_method: bool
    is_open: bool  # whether it takes any number of positional arguments
    any_name: bool  # whether it takes arguments of any name
    module: str  # where users find it

    @staticmethod
    def of(
        function: Callable[..., Any], settings_of: Any, without: tuple[str, ...]
    ) -> _Call:
        """The call of a function whose `**settings` are those of another, if any,
        without some of them.
        """
        parameters = [*inspect.signature(function).parameters.values()]
        is_method = parameters[0].name == "self"
        parameters = parameters[is_method:]
        takes = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        kinds = {p.kind for p in parameters}
        # Settings of a method are found in their module, all other names in `ig`.
        room = function.__module__.split(".")[1]
        is_class = function.__qualname__.endswith(".__init__")
        is_apart = room == "diagnostics" or is_class and not room.startswith("_")
        stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        if settings_of:
            settings = inspect.signature(settings_of).parameters.values()
            known += [p.name for p in settings if p.kind is p.KEYWORD_ONLY]
        return _Call(
            name=function.__qualname__.removesuffix(".__init__"),
            takes=takes,
            needs=[
                p.name
                for p in parameters
                if p.default is p.empty and p.kind not in stars
            ],
            known=[name for name in dict.fromkeys(known) if name not in without],
            is_method=is_method,
            is_open=stars[0] in kinds,
            any_name=stars[1] in kinds and not settings_of,
            module=f"ig.{room}" if is_apart else "ig",
        )

    @property
    def shown(self) -> str:
        """The shortest call; of a method, without the object."""
        owner, _, method = self.name.rpartition(".")
        name = method if owner else f"{self.module}.{self.name}"
        needs = (n if n in self.takes else f"{n}=..." for n in self.needs)
        return f"{name}({', '.join(needs)})"

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise for arguments that are missing, unknown or in another order."""
        name, takes = self.name, self.takes
        if len(args) > len(takes) and not self.is_open:
            by_name = "named settings" if len(self.known) > len(takes) else ""
            all_takes = " and ".join(filter(None, (", ".join(takes), by_name)))
            all_takes = all_takes or "no arguments"
            raise ArgumentError(
                f"{name} takes {all_takes}, got {len(args)} arguments. "
                f"{self._advice(args)}"
            )
        if unknown := [k for k in kwargs if k not in self.known and not self.any_name]:
            near = difflib.get_close_matches(unknown[0], self.known, 1, 0.5)
            meant = f"Did you mean {near[0]!r}? " if near else ""
            other, advice = _ELSEWHERE.get(unknown[0], ("", ""))
            meant = advice if other in self.known else meant
            known = ", ".join(self.known)
            raise ArgumentError(
                f"{name} has no argument {unknown[0]!r}. {meant}"
                f"{f'Use one of {known}.' if known else 'Write ' + self.shown + '.'}"
            )
        others = [*args[1:], kwargs.get("model")]
        is_first = takes[:1] == ["model"] and len(args) > 0
        if is_first and any(map(_is_model, others)) and not _is_model(args[0]):
            raise ArgumentError(f"{name} takes the model first: write {self.shown}.")
        if twice := [k for k in takes[: len(args)] if k in kwargs]:
            raise ArgumentError(
                f"{name} got {twice[0]} twice: as argument {takes.index(twice[0]) + 1} "
                f"and as {twice[0]}=. Leave one out."
            )
        given = args[1] if len(args) > 1 else kwargs.get("inputs")
        if takes[1:3] == ["inputs", "outputs"] and hasattr(given, "entropies"):
            raise ArgumentError(
                f"{name} takes inputs and outputs, which are names of sites, got "
                f"{brief(given)}. {_WITH_OBJECTIVE.get(name, 'Pass the sites.')}"
            )
        if missing := [k for k in self.needs[len(args) :] if k not in kwargs]:
            raise ArgumentError(
                f"{name} needs {' and '.join(missing)}. Write {self.shown}."
            )

    def _advice(self, args: tuple[Any, ...]) -> str:
        """What to write in place of too many positional arguments."""
        if self.takes[1:2] == ["objective"] and all(
            isinstance(s, (str, tuple)) for s in args[1:]
        ):
            objective = f"ig.MI({', '.join(map(repr, args[1:]))})"
            call = f"{self.module}.{self.name}(model, {objective})"
            return f"Write {call}: the objective is one argument."
        if self.takes:
            return "Give all others by name."
        if "model_args" in self.known:
            return "Give arguments of the model as model_args=(...)."
        return f"Write {self.shown}."


@overload
def public(function: Callable[P, R]) -> Callable[P, R]: ...


@overload
def public(
    *,
    settings_of: Callable[..., Any] | None = None,
    without: tuple[str, ...] = (),
    inside: bool = False,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def public(
    function: Callable[..., Any] | None = None,
    *,
    settings_of: Callable[..., Any] | None = None,
    without: tuple[str, ...] = (),
    inside: bool = False,
) -> Any:
    """A decorator for a public function that checks how it is called.

    Its `**settings`, if it has any, are the named arguments of `settings_of`, but not
    those of the names in `without`. With `inside`, it may be called in JAX
    transformations.
    """
    if function is None:
        return functools.partial(
            public, settings_of=settings_of, without=without, inside=inside
        )
    expected = _Call.of(function, settings_of, without)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not inside:
            check_outside(expected.name)
        expected.check(args[expected.is_method :], kwargs)
        with _standard_rules():
            if inside:
                return function(*args, **kwargs)
            # Many small systems are solved. On more threads this takes twice the time,
            # and ten times on a busy machine. Does nothing if another thread set it.
            with threadpool_limits(1, user_api="blas"):
                return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def _standard_rules() -> Iterator[None]:
    """JAX's standard rules, whatever the caller has chosen for other code.

    Here NaN stands for what is unknown, and equal keys give equal noise on purpose.
    """
    with (
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.debug_key_reuse(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@dataclass_transform(frozen_default=True)
def settings_class(cls: type | None = None, **options: Any) -> Any:
    """A frozen dataclass whose constructor checks how it is called, as `public` does.

    The options are those of `dataclasses.dataclass`.
    """
    if cls is None:
        return functools.partial(settings_class, **options)
    made: Any = dataclasses.dataclass(frozen=True, **options)(cls)
    made.__init__ = public(inside=True)(made.__init__)
    return made


def _is_model(value: Any) -> bool:
    """Whether a value can be a model: a function, or one that has been traced."""
    return callable(value) or hasattr(value, "site_info")


def check_outside(name: str) -> None:
    """Raise inside a JAX transformation; `name` is what was called."""
    if is_inside():
        raise TransformationError(
            f"{name} was called inside a JAX transformation (jax.jit, jax.vmap, "
            "jax.grad, jax.lax.scan), but it inspects the model and returns plain "
            "numbers. Call it outside. Inside, use structural_model(...).evaluate for "
            "samples, or InfoMax.update(state) for steps along the information "
            "gradient. The derivative of an information is ig.gradient."
        )


def is_inside() -> bool:
    """Whether this is inside a JAX transformation."""
    return get_opaque_trace_state() != _outside()


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
