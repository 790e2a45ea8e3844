# SPDX-License-Identifier: Apache-2.0
"""The style of figures, and the error if matplotlib is missing."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError

try:
    import matplotlib
    import matplotlib.pyplot as plt
except ModuleNotFoundError:
    matplotlib = None  # type: ignore[assignment]

# Indices of Okabe-Ito colours: black is for true values, yellow is too pale for lines.
_COLOURS = (5, 6, 3, 1, 7, 2)
_LINES = ("-", "--", "-.", ":", (0, (7, 2)), (0, (4, 1, 1, 1, 1, 1)))
# One more marker than colours, so that a pair of both repeats late.
_MARKERS = "osD^vPX"

TRUTH = {"color": "black", "linewidth": 1.2}
ASIDE = {"color": "0.65", "linewidth": 0.9, "linestyle": "--", "zorder": 1.5}
BARS = {"capsize": 2.5, "elinewidth": 1.0, "markersize": 4.5}


class Look(NamedTuple):
    """Colour, line style and marker of one element of a figure."""

    color: Any
    linestyle: Any
    marker: str

    @property
    def points(self) -> dict[str, Any]:
        """Settings of points without a line between them."""
        return {"color": self.color, "marker": self.marker, "linestyle": "none"}


def indexed(name: str, place: tuple[int, ...]) -> str:
    """Name of one number of an array; the name itself for a scalar."""
    return f"{name}[{', '.join(map(str, place))}]" if place else name


def look(index: int) -> Look:
    """The style of element number `index`, counted from zero."""
    colour = _COLOURS[index % len(_COLOURS)]
    return Look(
        matplotlib.color_sequences["okabe_ito"][colour],
        _LINES[index % len(_LINES)],
        _MARKERS[index % len(_MARKERS)],
    )


def as_axes(
    name: str,
    axes: Any,
    number: int = 1,
    most: int | None = None,
    projection: str | None = None,
) -> np.ndarray:
    """An array of the caller's axes, or of `number` axes of a new figure.

    The caller may pass up to `most`, which is `number` by default.
    """
    if matplotlib is None:
        raise ImportError(
            "figures need matplotlib: pip install 'numpyro_infograd[plots]'."
        )
    if axes is None:
        return _new_axes(number, projection)
    given = np.ravel(np.asarray(axes, dtype=object))
    most = most or number
    if not all(isinstance(each, matplotlib.axes.Axes) for each in given):
        raise ArgumentError(
            f"{name} must be matplotlib axes, got {brief(axes)}. Pass the axes from "
            "plt.subplots, or None for a new figure."
        )
    if not 1 <= len(given) <= most:
        wanted = "one axes" if most == 1 else f"1 to {most} axes"
        raise ArgumentError(
            f"{name} must be {wanted}, got {len(given)} of them. Pass None for a new "
            "figure."
        )
    if projection is not None and given[0].name != projection:
        raise ArgumentError(
            f"{name} must be axes in space. Make them with plt.subplots(subplot_kw="
            f"{{'projection': '{projection}'}}), or pass None for a new figure."
        )
    return given


def _new_axes(number: int, projection: str | None) -> np.ndarray:
    """Axes of a new figure, at most four in a row."""
    columns = min(number, 4)
    rows = -(-number // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(1.2 + 3.4 * columns, 0.6 + 3.0 * rows),
        layout="constrained",
        squeeze=False,
        subplot_kw={"projection": projection},
    )
    axes = grid.ravel()
    for spare in axes[number:]:
        spare.remove()
    if projection is None:
        for each in axes[:number]:
            each.spines[["top", "right"]].set_visible(False)
            each.grid(linewidth=0.5, alpha=0.4)
    return axes[:number]
