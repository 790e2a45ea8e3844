# SPDX-License-Identifier: Apache-2.0
"""Values by integrating the information gradient along a path of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import math
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd import _checks
from numpyro_infograd._arguments import as_count, as_number, explain_trace_errors
from numpyro_infograd._doors import settings_class
from numpyro_infograd._edits import POSITION, restrict_to_path
from numpyro_infograd._estimation import estimate_gradient
from numpyro_infograd._gradient import pose_by
from numpyro_infograd._noise import subkeys
from numpyro_infograd._objectives import Objective
from numpyro_infograd._problem import check_num_samples
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.scores import resolve_method
from numpyro_infograd.values.base import Estimate, Estimator, report
from numpyro_infograd.values.exact import Exact, why_not_closed
from numpyro_infograd.values.nested import Nested


@settings_class(eq=False)
class Path:
    """The path integral of the gradient from a reference (eq. 50).

        I(params) = I(reference) + int_0^1 <grad I(way(s)), d way(s) / ds> ds

    The integral uses Gauss-Legendre nodes in sqrt(s), which are denser near the
    reference, where information grows fastest. The integrand is the gradient of a model
    whose only parameter is s, with a standard error. The decay of its Legendre
    coefficients gives the quadrature error.

    Args:
        reference: Parameters at the start, each in its shape; a missing one keeps its
            value. None uses zero for every parameter whose constraint allows zero.
        reference_value: The objective's value at the start, in nats. None estimates it,
            exactly or by nested averages.
        way: Function from s in [0, 1] to parameters. It starts at way(0), instead of
            `reference`, and must end at the parameters of the estimate. None is the
            straight line.
        num_nodes: Number of Gauss-Legendre nodes, at least 4.
        scores: As in `gradient`; "auto" chooses at the end of the path.
        num_samples: Samples of each gradient, a power of two; None for the default of
            the score method.

    Example:
        >>> import numpyro_infograd as ig
        >>> silent = {"gain": 0.0}  # where no information arrives
        >>> method = ig.values.Path(silent, reference_value=0.0)  # for `estimate`
        >>> method.num_nodes
        12
    """

    reference: Mapping[str, Any] | None = None
    reference_value: float | None = None
    way: Callable[[Any], Mapping[str, Any]] | None = None
    num_nodes: int = 12
    scores: Any = "auto"
    num_samples: int | None = None

    def __post_init__(self) -> None:
        as_count("num_nodes", self.num_nodes, 4)
        if self.way is not None and not callable(self.way):
            raise ArgumentError(
                f"way must be a function from [0, 1] to parameters, got {self.way!r}."
            )
        if not isinstance(self.reference, Mapping | None):
            raise ArgumentError(
                f"reference must be a dict from names of parameters to values, got "
                f"{self.reference!r}."
            )
        if self.reference_value is not None:
            as_number("reference_value", self.reference_value)
        if self.way is not None and self.reference is not None:
            raise ArgumentError(
                "Path got both way and reference, but a way starts at way(0): leave "
                "one out."
            )
        check_num_samples(self.num_samples, None)

    def value(
        self, sm: StructuralModel, objective: Objective, params: Any, rng_key: jax.Array
    ) -> Estimate:
        """The value at the end of the path."""
        first_key, key = subkeys(rng_key, 2)
        way = self._way(sm, params)
        if self.reference_value is None:
            _checks.check_finite(objective, sm, way(0.0))
            start: Estimator = Nested() if why_not_closed(objective, sm) else Exact()
            first = start.value(sm, objective, way(0.0), first_key)
        else:
            first = report(float(self.reference_value), 0.0, "exact")
        line = restrict_to_path(sm, way)
        position = {POSITION: jnp.asarray(1.0)}
        _checks.check_gradient(objective, line, position, False)
        method = resolve_method(self.scores)
        posed = pose_by(line, objective, method, position, key)

        roots, weights = np.polynomial.legendre.leggauss(self.num_nodes)
        nodes = 0.5 * (roots + 1.0)
        found = []
        for node, own in zip(nodes, subkeys(key, len(nodes)), strict=True):
            at = {POSITION: jnp.asarray(node**2, jnp.result_type(float))}
            sm.check_constraints(way(at[POSITION]))
            slope = estimate_gradient(posed, at, self.num_samples, own).gradient
            if not math.isfinite(float(slope.value[POSITION])):
                raise ArgumentError(
                    f"the gradient is not finite at s = {node**2:.3g} of the path: a "
                    "density degenerates there. Pass another reference or way."
                )
            found.append((slope.value[POSITION], slope.standard_error[POSITION]))
        slopes, errors = 2.0 * nodes * np.array(found, float).T  # ds = 2 u du
        quadrature = _missed(roots, weights, slopes)
        error = math.hypot(
            first.standard_error,
            quadrature,
            float(np.sqrt(np.sum((0.5 * weights * errors) ** 2))),
        )
        value = first.value + 0.5 * float(weights @ slopes)
        diagnostics = {
            "reference_value": first.value,
            "scores": posed.method_name,
            "quadrature_error": quadrature,
        }
        return report(value, error, "path", first.warnings, diagnostics)

    def _way(self, sm: StructuralModel, params: Any) -> Callable[[Any], Any]:
        """The path as a function of s, after a check of its ends."""
        if not sm.params:
            raise ArgumentError(
                "method='path' needs a model with parameters. Declare them with "
                "numpyro.param, or use method='fisher'."
            )
        if self.way is not None:
            given = self.way

            def curve(s: Any) -> Any:
                with explain_trace_errors(
                    "way", "a position from 0 to 1. Use only that"
                ):
                    found = given(s)
                if not isinstance(found, Mapping):
                    raise ArgumentError(
                        f"way must return a dict of parameters, got {brief(found)}."
                    )
                return sm.complete_params({**params, **found})

            self._check_end(curve(1.0), params)
            sm.check_constraints(curve(0.0))
            return curve
        reference = self.reference
        if reference is None:
            reference = {
                name: jax.tree.map(jnp.zeros_like, value)
                for name, value in params.items()
                if _may_be_zero(sm, name, value)
            }
            if not reference:
                raise ArgumentError(
                    "no parameter of the model may be zero, so method='path' has no "
                    "default start. Pass values.Path(reference={...}) with parameters "
                    "for which the information is known, or easy to estimate."
                )
        first = sm.complete_params({**params, **reference})
        sm.check_constraints(first)
        return lambda s: jax.tree.map(lambda a, b: (1.0 - s) * a + s * b, first, params)

    @staticmethod
    def _check_end(end: Mapping[str, Any], params: Any) -> None:
        for name, value in params.items():
            for a, b in zip(
                jax.tree.leaves(end[name]), jax.tree.leaves(value), strict=True
            ):
                if not np.allclose(a, b, rtol=1e-4, atol=1e-6):
                    raise ArgumentError(
                        f"way(1) gives parameter {name!r} the value {np.asarray(a)}, "
                        f"but params has {np.asarray(b)}. Let the way end at "
                        "params."
                    )


def _may_be_zero(sm: StructuralModel, name: str, value: Any) -> bool:
    """Whether a parameter's constraint allows zero."""
    inside = sm.constraints[name]
    return all(
        bool(np.all(np.asarray(inside(jnp.zeros_like(leaf)))))
        for leaf in jax.tree.leaves(value)
    )


def _missed(roots: np.ndarray, weights: np.ndarray, slopes: np.ndarray) -> float:
    """Estimate of the quadrature error, from the decay of the Legendre coefficients.

    n nodes give n coefficients, and integrate degrees below 2n exactly. Coefficients of
    a smooth function fall geometrically, so the one of degree 2n is about the square of
    the last over the first. The estimate is three times that, at most the last itself.
    """
    count = len(roots)
    legendre = np.polynomial.legendre.legvander(roots, count - 1)
    scale = (2 * np.arange(count) + 1) / 2
    size = np.abs(scale * (legendre.T @ (weights * slopes)))
    last, first = size[-2:].max(), max(size.max(), 1e-30)
    return float(last * min(1.0, 3.0 * last / first))
