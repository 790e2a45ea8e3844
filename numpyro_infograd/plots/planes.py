# SPDX-License-Identifier: Apache-2.0
"""Figures of rate regions and of points in the plane."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from numpyro_infograd._arguments import is_real
from numpyro_infograd._regions import RateRegion
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.plots.style import BARS, as_axes, look

_MANY = 200  # points from which markers are small


def plot_rate_region(region: RateRegion, ax: Any = None) -> Any:
    """Draw a region of two or three rates (nats), and its points.

    For two rates the facets are drawn too: lines where a rate, or a sum of rates,
    equals the largest value of its bound. Points have error bars of two standard
    errors.

    Args:
        region: What `rate_region` returned.
        ax: Matplotlib axes to draw on, for three rates with projection="3d"; None makes
            a figure.

    Returns:
        The axes.

    Raises:
        ArgumentError: For a region of another number of rates.
        ImportError: If matplotlib is not installed.

    Example:
        >>> import matplotlib, numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> matplotlib.use("Agg")  # draws without a window
        >>> def model():
        ...     a, b = numpyro.param("a", 1.0), numpyro.param("b", 1.0)
        ...     x1 = numpyro.sample("x1", dist.Normal(0, 1))
        ...     x2 = numpyro.sample("x2", dist.Normal(0, 1))
        ...     numpyro.sample("y1", dist.Normal(a * x1, 1))
        ...     numpyro.sample("y2", dist.Normal(b * x2, 1))
        >>> bounds = {"r1": ig.MI("x1", "y1"), "r2": ig.MI("x2", "y2")}
        >>> region = ig.rate_region(
        ...     model, bounds, num_weights=2, num_steps=2, progress_bar=False
        ... )
        >>> ax = ig.plots.plot_rate_region(region)  # or region.plot()
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('r1 (nats)', 'r2 (nats)')
    """
    if not isinstance(region, RateRegion):
        raise ArgumentError(
            f"plot_rate_region takes what rate_region returns, got {brief(region)}."
        )
    if len(region.rates) not in (2, 3):
        raise ArgumentError(
            f"plot_rate_region draws two or three rates, got {len(region.rates)} "
            "rates. Draw two columns of its `points` or `vertices` yourself."
        )
    solid = len(region.rates) == 3
    own = ax is None
    (ax,) = as_axes("ax", ax, projection="3d" if solid else None)
    if solid:
        _draw_solid(region, ax)
        if own:
            ax.view_init(elev=25, azim=40)  # from the side of high rates
    else:
        _draw_plane(region, ax)
    ax.errorbar(
        *region.points.T,
        *[2 * region.standard_error] * len(region.rates),
        label="points, 2 s.e.",
        **look(1).points | BARS,
    )
    for axis, rate in zip("xyz", region.rates, strict=False):
        ax.set(**{f"{axis}label": f"{rate} (nats)"})
        getattr(ax, f"set_{axis}lim")(0, None)
    ax.legend(fontsize="small")
    return ax


def _draw_plane(region: RateRegion, ax: Any) -> None:
    """Draw the hull, and a line for each bound."""
    hull, style = region.vertices, look(0)
    around = np.append(hull, hull[:1], axis=0)
    ax.fill(*around.T, alpha=0.15, color=style.color, linewidth=0)
    ax.plot(*around.T, color=style.color, label="time sharing")
    # Lines extend a little beyond the region, so that they are visible.
    far = 1.08 * hull.max(axis=0)
    for index, (subset, values) in enumerate(region.facets.items()):
        bound, style = float(np.max(values)), look(2 + index)
        counted = np.array([rate in subset for rate in region.rates])
        if bound > counted @ far:  # other bounds are tighter everywhere
            continue
        if counted.all():
            low = max(bound - far[1], 0.0)
            high = min(far[0], bound)
            line = np.array([[low, bound - low], [high, bound - high]])
        else:
            line = np.array([counted * bound, np.where(counted, bound, far)])
        ax.plot(
            *line.T,
            color=style.color,
            linestyle=style.linestyle,
            linewidth=1.2,
            label=f"{' + '.join(subset)} <= {bound:.3g}",
        )


def _draw_solid(region: RateRegion, ax: Any) -> None:
    """Draw the surface of the hull, if it has one."""
    try:
        triangles = ConvexHull(region.corners).simplices
    except QhullError:  # a rate is always zero
        return
    ax.plot_trisurf(
        *region.corners.T, triangles=triangles, color=look(0).color, alpha=0.25
    )


def plot_constellation(
    points: Any, probabilities: Any = None, ax: Any = None, *, label: str | None = None
) -> Any:
    """Draw points in the plane: a constellation, or samples of a signal.

    Another call with the same axes uses another colour and marker.

    Args:
        points: Complex numbers of any shape, or real ones (..., 2).
        probabilities: Probability of each point; its area is proportional to it.
        ax: Matplotlib axes to draw on; None makes a figure.
        label: Label of the points in the legend.

    Returns:
        The axes.

    Raises:
        ArgumentError: If `points` or `probabilities` are not valid.
        ImportError: If matplotlib is not installed.

    Example:
        >>> import matplotlib, numpy as np, numpyro_infograd as ig
        >>> matplotlib.use("Agg")  # draws without a window
        >>> points = np.exp(2j * np.pi * np.arange(8) / 8)
        >>> ax = ig.plots.plot_constellation(points, np.ones(8) / 8, label="8-PSK")
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('in phase', 'quadrature')
    """
    array, names = _plane(points)
    size: Any = 45.0 if len(array) < _MANY else 4.0
    if probabilities is not None:
        size = 45.0 * len(array) * _law(probabilities, len(array))
    (ax,) = as_axes("ax", ax)
    style = look(len(ax.collections))
    ax.scatter(
        *array.T,
        s=size,
        color=style.color,
        marker=style.marker,
        linewidth=0,
        alpha=0.8,
        label=label,
    )
    ax.set(xlabel=names[0], ylabel=names[1], aspect="equal")
    if label is not None:  # outside the axes, because points fill the corners
        ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def _plane(points: Any) -> tuple[np.ndarray, tuple[str, str]]:
    """Points (num_points, 2), and the names of their coordinates."""
    try:
        array = np.asarray(points)
    except ValueError:  # rows of several lengths
        array = np.zeros(0, object)
    if np.iscomplexobj(array):
        flat = array.ravel()
        return np.stack([flat.real, flat.imag], axis=1), ("in phase", "quadrature")
    if array.shape[-1:] != (2,) or not is_real(array):
        raise ArgumentError(
            "points must be complex numbers or real ones in two columns, got "
            f"{brief(points)} of shape {array.shape}. Choose two columns, or add 0j to "
            "real numbers."
        )
    return array.reshape(-1, 2), ("first component", "second component")


def _law(probabilities: Any, count: int) -> np.ndarray:
    """Probabilities of `count` points, after a check."""
    try:
        law = np.asarray(probabilities, float).ravel()
    except (TypeError, ValueError):
        law = np.zeros(0)
    if law.shape != (count,) or not np.all(law >= 0) or abs(law.sum() - 1) > 1e-3:
        raise ArgumentError(
            f"probabilities must be {count} numbers of at least 0 that sum to one, one "
            f"for each point, got {brief(probabilities)}."
        )
    return law
