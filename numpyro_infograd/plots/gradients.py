# SPDX-License-Identifier: Apache-2.0
"""Figures of gradients: along an ascent, and along a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import jax

from numpyro_infograd._arguments import as_real
from numpyro_infograd._estimation import Gradient
from numpyro_infograd._optimize import Result
from numpyro_infograd._parameters import named_leaves
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.plots.style import ASIDE, BARS, TRUTH, as_axes, indexed, look

_COMPONENTS = 12  # components of a gradient in one figure, at most

Columns = dict[str, np.ndarray]


def plot_ascent(result: Result, axes: Any = None) -> np.ndarray:
    """Draw an ascent: the objective (nats) and the norm of its gradient over steps.

    All restarts are drawn, the best one bold. The dot at the end is the estimate with
    two standard errors. If the objective is known exactly at each step, it is drawn.
    Else the curve is the estimate at the end minus the first-order gains of all later
    steps (including the terms of `subject_to`). For a typical ascent this is too low at
    the start by a few percent of the whole gain, and by more if steps are large.

    Args:
        result: What `maximize`, `minimize`, `maximize_mi` or `calibrate` returned. For
            a calibration the divergence over its noise levels is drawn.
        axes: Two matplotlib axes, or one for only the objective; None makes a figure.

    Returns:
        An array of the axes.

    Raises:
        ArgumentError: If `result` is not a result, or has no steps.
        ImportError: If matplotlib is not installed.

    Example:
        >>> import matplotlib, numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> matplotlib.use("Agg")  # draws without a window
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1))
        >>> result = ig.maximize_mi(model, "x", "y", num_steps=5, progress_bar=False)
        >>> left, right = ig.plots.plot_ascent(result)  # or result.plot()
        >>> left.get_ylabel(), right.get_ylabel()
        ('objective (nats)', 'gradient norm (nats per unit)')
    """
    if not isinstance(result, Result):
        raise ArgumentError(
            f"plot_ascent takes a Result, as maximize returns, got {brief(result)}."
        )
    if not result.history:
        raise ArgumentError("the result has no steps to draw. Its `status` says why.")
    axes = as_axes("axes", axes, 2)
    estimate = result.estimate
    end = None if estimate is None else estimate.value
    unit = "nats" if estimate is None else estimate.unit or "its own unit"
    if len(result.histories) > 1:
        ends = result.diagnostics.get("restarts", [None] * len(result.histories))
        label: str | None = "restarts"
        for history, own in zip(result.histories, ends, strict=True):
            if end is not None and own is None:  # this restart has no value
                own = np.nan
            _draw_way(axes, history, own, ASIDE | {"label": label})
            label = None
    style = look(0)
    best = {"color": style.color, "linestyle": style.linestyle, "linewidth": 2.0}
    best["label"] = "best restart" if len(result.histories) > 1 else "each step"
    what = _draw_way(axes, result.history, end, best)
    if estimate is not None and what.startswith("objective"):
        axes[0].errorbar(
            [len(result.history["gradient_norm"])],
            [estimate.value],
            [2 * estimate.standard_error],
            label="estimate, 2 s.e.",
            **look(1).points | BARS,
        )
    ylabel = f"{what} ({unit})"
    if what == "divergence":  # not in nats
        ylabel = "Fisher divergence of the levels in use"
    axes[0].set(xlabel="step", ylabel=ylabel)
    axes[0].legend(fontsize="small")
    for ax in axes[1:]:
        ax.set(xlabel="step", ylabel=f"gradient norm ({unit} per unit)")
        if any(np.any(line.get_ydata() > 0) for line in ax.lines):
            ax.set_yscale("log")
    return axes


def _draw_way(axes: Any, history: Mapping[str, Any], end: Any, style: Any) -> str:
    """Draw one restart on one or two axes; return the label of the first."""
    what, values = _values(history, end)
    axes[0].plot(values, **style)
    for ax in axes[1:]:
        ax.plot(np.asarray(history["gradient_norm"], float), **style)
    return what


def _values(history: Mapping[str, Any], end: float | None) -> tuple[str, np.ndarray]:
    """The objective before each step (and after the last), and its label."""
    for name in ("objective", "divergence", "negative_log_likelihood"):
        if name in history:
            return name.replace("_", " "), np.asarray(history[name], float)
    taken = np.asarray(history["finite"], bool)
    gain = np.where(taken, history["gain"], 0.0)
    # A step that was not taken also undoes the step before.
    gain[:-1][~taken[1:]] = 0.0
    left = np.append(np.cumsum(gain[::-1])[::-1], 0.0)
    if end is None:
        return "gain, to first order", left[0] - left
    return "objective, to first order", end - left


def plot_gradient_sweep(
    points: Any,
    gradients: Any,
    truth: Any = None,
    *,
    standard_error: Any = None,
    ax: Any = None,
) -> Any:
    """Draw gradients along a line with two standard errors, and the true gradient.

    Args:
        points: Positions on the line, (num_points,).
        gradients: A list with a `Gradient` for each point, or an array (num_points,
            ...) of values; or a dict of several such sweeps, by name.
        truth: The true gradients: an array, or a list of dicts as `jax.grad` returns
            them, with the components of `gradients`.
        standard_error: Standard errors of `gradients` in the same form, if these are
            arrays.
        ax: Matplotlib axes to draw on; None makes a figure.

    Returns:
        The axes. Each component of the gradient has a colour, and each sweep has a
        marker; true gradients are lines.

    Raises:
        ArgumentError: If the arguments do not fit together.
        ImportError: If matplotlib is not installed.

    Example:
        >>> import matplotlib, numpyro, numpyro.distributions as dist
        >>> import numpy as np, numpyro_infograd as ig
        >>> matplotlib.use("Agg")  # draws without a window
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1))
        >>> line = np.array([0.0, 1.0, 2.0])
        >>> found = [ig.gradient(model, ig.MI("x", "y"), params={"a": a}) for a in line]
        >>> ax = ig.plots.plot_gradient_sweep(line, found, line / (1 + line**2))
        >>> ax.get_ylabel()
        'gradient (nats per unit)'
    """
    places = _numbers("points", points)
    if places.ndim != 1 or not len(places):
        raise ArgumentError(
            "points must be numbers along a line, (num_points,), got an array of "
            f"shape {places.shape}. Pass the number that changes from point to point."
        )
    sweeps = gradients if isinstance(gradients, Mapping) else {"": gradients}
    errors = standard_error if isinstance(gradients, Mapping) else {"": standard_error}
    if errors is not None and not isinstance(errors, Mapping):
        raise ArgumentError(
            "standard_error must be a dict with the names of gradients, got "
            f"{brief(standard_error)}."
        )
    drawn = [
        (name, *_sweep(sweep, (errors or {}).get(name), len(places)))
        for name, sweep in sweeps.items()
    ]
    names = list(dict.fromkeys(n for _, values, _ in drawn for n in values))
    truths = {} if truth is None else _columns("truth", truth, len(places))
    if list(truths) == [""] and len(names) == 1:
        truths = {names[0]: truths[""]}
    strangers = sorted(set(truths) - set(names))
    if strangers:
        raise ArgumentError(
            f"truth has {', '.join(map(repr, strangers))}, but gradients have "
            f"{', '.join(map(repr, names))}. Use the same names of parameters."
        )
    if not 1 <= len(names) <= _COMPONENTS:
        raise ArgumentError(
            f"gradients have {len(names)} components, but a figure shows 1 to "
            f"{_COMPONENTS}. Pass arrays of some components."
        )
    (ax,) = as_axes("ax", ax)
    several = len(names) > 1  # if so, components have colours, else sweeps
    for index, name in enumerate(names):
        if name in truths:
            style = look(index)
            line = {"linestyle": style.linestyle, "label": _label(name, "truth")}
            line |= {"color": style.color} if several else {}
            ax.plot(places, truths[name], **TRUTH | line)
    for number, (sweep, values, error) in enumerate(drawn):
        # Markers of later sweeps are larger and empty, so they do not hide the first.
        around = {"markerfacecolor": "none", "markersize": 5.0 + 2.0 * number}
        for name, value in values.items():
            index = names.index(name)
            ax.errorbar(
                places,
                value,
                None if error is None else 2 * error[name],
                color=look(index if several else number).color,
                marker=look(number * len(names) + index).marker,
                linestyle="none",
                label=_label(name, sweep) or "estimate",
                **BARS | (around if number else {}),
            )
    ax.set(xlabel="place on the line", ylabel="gradient (nats per unit)")
    ax.legend(fontsize="small")
    return ax


def _label(name: str, what: str) -> str:
    return ", ".join(filter(None, (name, what)))


def _sweep(sweep: Any, error: Any, count: int) -> tuple[Columns, Columns | None]:
    """Values and standard errors of a sweep, by component."""
    if isinstance(sweep, Sequence) and all(isinstance(g, Gradient) for g in sweep):
        if error is not None:
            raise ArgumentError(
                "standard_error is for arrays: each Gradient has its own. Leave it out."
            )
        values = _columns("gradients", [g.value for g in sweep], count)
        return values, _columns("gradients", [g.standard_error for g in sweep], count)
    values = _columns("gradients", sweep, count)
    if error is None:
        return values, None
    errors = _columns("standard_error", error, count)
    if list(errors) != list(values):
        raise ArgumentError(
            f"standard_error has {len(errors)} components and gradients have "
            f"{len(values)}. Pass one for each."
        )
    return values, errors


def _columns(name: str, values: Any, count: int) -> Columns:
    """Components by name, (num_points,) each, of a list of dicts or of an array."""
    is_list = isinstance(values, Sequence) and len(values) > 0
    if is_list and all(isinstance(value, Mapping) for value in values):
        try:
            values = jax.tree.map(lambda *x: np.stack(x), *values)
        except ValueError:
            raise ArgumentError(
                f"{name} has other parameters, or other shapes, at some points than at "
                "others. Use one model for all points."
            ) from None
    found = {}
    tree = values if isinstance(values, Mapping) else _numbers(name, values)
    for label, leaf in named_leaves(tree).items():
        array = _numbers(name, leaf)
        if array.shape[:1] != (count,):
            raise ArgumentError(
                f"{name} must have one row for each of the {count} points, got an "
                f"array of shape {array.shape}."
            )
        for place in np.ndindex(array.shape[1:]):
            found[indexed(label, place)] = array[:, *place]
    return found


def _numbers(name: str, value: Any) -> np.ndarray:
    """An array of real numbers."""
    array = as_real(value)
    if array is None:
        raise ArgumentError(
            f"{name} must be an array of real numbers, got {brief(value)}."
        )
    return array.astype(float)
