# SPDX-License-Identifier: Apache-2.0
"""Candidate designs as values of a model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import inspect
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

import numpyro

from numpyro_infograd._arguments import is_real
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._text import brief
from numpyro_infograd._tracing import check_call
from numpyro_infograd.errors import ArgumentError


@dataclass(frozen=True)
class Candidates:
    """Designs that enter a model as parameters.

    Attributes:
        model: The model, in which arguments that are designs have become parameters.
        designs: As the caller gave them, as NumPy arrays.
        params: The designs by parameter, with a leading axis of designs.
        names: Names of the designs for display.
    """

    model: Callable[..., Any] | StructuralModel
    designs: Any
    params: dict[str, Any]
    names: tuple[str, ...]

    @staticmethod
    def of(
        model: Callable[..., Any] | StructuralModel,
        designs: Any,
        model_args: tuple[Any, ...],
        model_kwargs: Mapping[str, Any],
    ) -> Candidates:
        """Check the designs; make parameters of those that are arguments."""
        found = _arguments(model)
        stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        arguments = [p.name for p in found or () if p.kind not in stars]
        if hasattr(designs, "columns"):  # a table, as of pandas
            designs = {name: np.asarray(designs[name]) for name in designs.columns}
        if isinstance(designs, str):
            raise ArgumentError(
                f"designs must hold candidates, got {designs!r}. The order of "
                "arguments is design(model, designs, inputs, outputs)."
            )
        if not isinstance(designs, Mapping):
            if isinstance(model, StructuralModel):
                raise ArgumentError(
                    "designs must be a dict from names of parameters to candidates, "
                    "because a StructuralModel takes no arguments. Pass the NumPyro "
                    "model to vary its first argument."
                )
            if found == ():
                raise ArgumentError(
                    "designs is an array for the first argument of the model, but the "
                    "model takes no arguments. Name one of its parameters: {'name': "
                    "candidates}."
                )
            name = next(iter(arguments), "design")
            array = _as_arrays("designs", designs)
            check_call(model, (array[0], *model_args), model_kwargs)
            _check_lengths({name: array})
            model = _experiment(model, {name: array}, {})
            return Candidates(model, array, {_own(name): array}, (name,))
        named = {str(n): _as_arrays(f"designs[{n!r}]", x) for n, x in designs.items()}
        _check_lengths(named)
        twice = [n for n in named if n in model_kwargs]
        if twice:
            raise ArgumentError(
                f"{twice[0]!r} is in designs and in model_kwargs. Leave it out of one "
                "of them."
            )
        passed = {n: x for n, x in named.items() if n in arguments}
        missing = [
            p.name
            for p in (found or ())[len(model_args) :]
            if p.default is p.empty and p.kind not in stars
        ]
        missing = [n for n in missing if n not in passed and n not in model_kwargs]
        if missing and (strange := [n for n in named if n not in passed]):
            raise ArgumentError(
                f"designs names {strange[0]!r}, but the model has no such argument, "
                f"and its argument {missing[0]!r} has no value. Name {missing[0]!r} in "
                "designs, or pass its value in model_kwargs."
            )
        params = {_own(n) if n in passed else n: x for n, x in named.items()}
        if passed:
            check_call(model, model_args, {**passed, **model_kwargs})
            model = _experiment(model, {}, passed)
        return Candidates(model, named, params, tuple(named))

    def like(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """All designs in the types of the model's parameters."""
        for name in self.params:
            if name not in params:
                known = ", ".join(p for p in params if p not in self.params) or "none"
                raise ArgumentError(
                    f"designs names {name!r}, which is neither an argument of the "
                    f"model nor one of its parameters (it has: {known}). Add it as an "
                    "argument, or as numpyro.param."
                )
        return {
            name: jax.tree.map(lambda x, p: jnp.asarray(x, p.dtype), x, params[name])
            for name, x in self.params.items()
        }


def _own(name: str) -> str:
    """Name of an argument's parameter; a site may have the argument's name."""
    return f"{name}+design"


def _arguments(model: Any) -> tuple[inspect.Parameter, ...] | None:
    """The arguments of a model; None if it has no signature."""
    try:
        return tuple(inspect.signature(model).parameters.values())
    except (TypeError, ValueError):
        return None


def _as_arrays(name: str, value: Any) -> Any:
    """A tree of finite NumPy arrays with at least one axis."""

    def leaf(x: Any) -> np.ndarray:
        try:
            array = np.asarray(x)
        except ValueError:
            array = np.asarray(None)
        if np.iscomplexobj(array):
            raise ArgumentError(
                f"{name} must hold real numbers, got {brief(x)}. Pass real and "
                "imaginary parts as two arguments, and combine them in the model."
            )
        good = (is_real(array) or array.dtype == bool) and array.ndim and len(array)
        if not good or not np.all(np.isfinite(array)):
            raise ArgumentError(
                f"{name} must hold finite numbers with a leading axis of designs, got "
                f"{brief(x)}. Pass an array of shape (num_designs, ...), a dict of "
                "such arrays, or a table of numbers."
            )
        return array

    # A list of numbers or of rows is an array.
    if isinstance(value, (list, tuple)):
        return leaf(value)
    if not jax.tree.leaves(value):
        raise ArgumentError(f"{name} is empty. Pass at least one candidate.")
    return jax.tree.map(leaf, value)


def _check_lengths(named: Mapping[str, Any]) -> None:
    """Raise if there is no design, or if arrays differ in length."""
    if not named:
        raise ArgumentError("designs is empty. Pass at least one candidate.")
    counts = {n: len(x) for n, tree in named.items() for x in jax.tree.leaves(tree)}
    if len({len(x) for x in jax.tree.leaves(dict(named))}) > 1:
        raise ArgumentError(
            f"designs must have one leading axis of the same length, got {counts}. "
            "Repeat the shorter ones, as numpy.meshgrid does."
        )


def _param(name: str, batch: Any) -> Any:
    """A parameter whose value has the type of the design: an int stays one."""
    first = jax.tree.map(lambda x: x[0], batch)
    value = numpyro.param(name, jax.tree.map(lambda x: jnp.asarray(x, float), first))

    def restore(x: Any, like: Any) -> Any:
        if np.issubdtype(like.dtype, np.floating):
            return x
        return jnp.round(x).astype(jax.dtypes.canonicalize_dtype(like.dtype))

    return jax.tree.map(restore, value, first)


def _experiment(
    model: Any, positional: Mapping[str, Any], named: Mapping[str, Any]
) -> Callable[..., Any]:
    """The model with its first arguments, or some named ones, as parameters."""

    def experiment(*args: Any, **kwargs: Any) -> Any:
        first = [_param(_own(name), batch) for name, batch in positional.items()]
        own = {name: _param(_own(name), batch) for name, batch in named.items()}
        return model(*first, *args, **kwargs, **own)

    return experiment
