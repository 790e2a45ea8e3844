# SPDX-License-Identifier: Apache-2.0
"""Checks of parameter values: names, shapes, finite numbers, constraints."""

from __future__ import annotations

from collections.abc import Collection, Mapping
import contextlib
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro.distributions import biject_to
from numpyro.distributions.constraints import Constraint, real
from numpyro.distributions.transforms import Transform

from numpyro_infograd._arguments import as_parameter
from numpyro_infograd._pairs import with_pairs
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ParameterError


def constraint_of(name: str, value: Any, constraint: Any) -> Constraint | None:
    """The constraint of a value of numpyro.param; None if it is not a parameter."""
    leaves = jax.tree.leaves(value)
    if not leaves or any(
        not hasattr(x, "dtype") and not np.isscalar(x) for x in leaves
    ):
        return None  # random_flax_module and others use this for the shapes of priors
    constraint = constraint or real
    if not isinstance(constraint, Constraint):
        raise ParameterError(
            f"parameter {name!r} has the constraint {constraint!r}, which is not one "
            "of numpyro.distributions.constraints. Write "
            "constraint=constraints.positive, and call those that take bounds."
        )
    return constraint


def bijection(constraint: Constraint) -> Transform | None:
    """NumPyro's map from real numbers to a constraint; None if there is none."""
    try:
        return biject_to(constraint)
    except NotImplementedError:  # such as for a sphere
        return None


def named_leaves(tree: Any) -> dict[str, np.ndarray]:
    """Arrays by name; parameters of a network are named "net.layer.kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in leaves
    }


def complete(
    initial: Mapping[str, Any],
    params: Mapping[str, Any] | None,
    pairs: Collection[str],
) -> dict[str, Any]:
    """Add initial values of missing parameters; check names, shapes and numbers.

    Parameters in `pairs` are complex, and become pairs of real numbers.
    """
    if params is not None and not isinstance(params, Mapping):
        first = next(iter(initial), "a")
        raise ParameterError(
            "params (init_params of an ascent) must be a dict from names of parameters "
            f"to values, got {brief(params)}. Write {{{first!r}: value}}."
        )
    given = dict(params or {})
    for name in given:
        if name not in initial:
            known = ", ".join(initial) or "none"
            raise ParameterError(
                f"{name!r} got a value, but the model has no such parameter (it has: "
                f"{known}). Use the names in numpyro.param."
            )
    paired = with_pairs(pairs, given)
    numbers = {name: given.get(name, 0j) for name in pairs}
    return {
        name: _like(name, paired.get(name, old), old, numbers.get(name))
        for name, old in initial.items()
    }


def check_inside(constraints: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Raise for a parameter outside its NumPyro constraint."""
    for name, constraint in constraints.items():
        for leaf in jax.tree.leaves(params[name]):
            if isinstance(leaf, jax.core.Tracer):
                continue
            if not np.all(np.asarray(constraint(np.asarray(leaf)))):
                raise ParameterError(
                    f"parameter {name!r} is outside its constraint {constraint}: "
                    f"{np.asarray(leaf)}. Give a value inside."
                )


def _like(name: str, value: Any, initial: Any, numbers: Any) -> Any:
    """`value` as arrays with the structure, shapes and types of the initial value.

    If these are pairs, `numbers` are the complex numbers that the user gave.
    """
    expected: Any = jax.tree.structure(initial)
    if isinstance(value, (list, tuple)) and jax.tree_util.all_leaves([initial]):
        with contextlib.suppress(ValueError):  # of rows of different lengths
            value = np.asarray(value)
    got: Any = jax.tree.structure(value)
    if got != expected:
        raise ParameterError(
            f"parameter {name!r} has another structure than the model's: got "
            f"{brief(value)} ({type(value).__name__}). Give jax arrays of these "
            f"shapes: {jax.tree.map(jnp.shape, initial)}."
        )

    def leaf(new: Any, old: Any) -> jax.Array:
        array = as_parameter(name, new, old.dtype)
        if array.shape != old.shape:
            expected, got, what = f"{old.shape}", f"{array.shape}", "a value"
            if numbers is not None:
                expected, what = f"{old.shape[:-1]}, complex,", "complex numbers"
                is_pair = any(map(np.iscomplexobj, jax.tree.leaves(numbers)))
                got = f"{array.shape[:-1]}" if is_pair else f"{array.shape}, real"
            raise ParameterError(
                f"parameter {name!r} has shape {expected} in the model, "
                f"got {got}. Give {what} of this shape, or change the initial "
                "value in numpyro.param."
            )
        tracer = isinstance(array, jax.core.Tracer)
        if not tracer and not np.all(np.isfinite(np.asarray(array))):
            raise ParameterError(
                f"parameter {name!r} is not finite: {np.asarray(array)}. "
                "Give finite values."
            )
        return array

    return jax.tree.map(leaf, value, initial)
