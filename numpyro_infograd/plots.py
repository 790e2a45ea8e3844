# SPDX-License-Identifier: Apache-2.0
"""Figures; needs the extra `plots`."""

from __future__ import annotations

from typing import Any

import numpy as np

from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.regions import RateRegion

try:
    import matplotlib.pyplot as plt
except ImportError as error:  # ArviZ 1 no longer brings it
    raise ImportError(
        "figures need matplotlib: pip install 'numpyro_infograd[plots]'."
    ) from error

_SHOWN = 2000  # points of a scatter


def plot_rate_region(region: RateRegion, ax: Any = None) -> Any:
    """The hull of a region of two rates, and the points that made it.

    Args:
        region: What `rate_region` returned.
        ax: Axes to draw on; None makes a figure.

    Returns:
        The axes.

    Raises:
        ArgumentError: for a region of another number of rates.
    """
    if len(region.rates) != 2:
        raise ArgumentError(
            f"a region of {len(region.rates)} rates has no picture in a plane. Draw "
            "two columns of its `points` or `vertices` yourself."
        )
    if ax is None:
        _, ax = plt.subplots()
    hull = region.vertices
    around = np.append(hull, hull[:1], axis=0)
    ax.fill(around[:, 0], around[:, 1], alpha=0.2, color="C0", label="time sharing")
    ax.plot(around[:, 0], around[:, 1], color="C0")
    ax.plot(region.points[:, 0], region.points[:, 1], "o", color="C1", label="points")
    ax.set(xlabel=f"{region.rates[0]} (nats)", ylabel=f"{region.rates[1]} (nats)")
    ax.set(xlim=(0, None), ylim=(0, None))
    ax.legend()
    return ax


def plot_score_check(check: Any, ax: Any = None) -> Any:
    """Two methods' cotangents against each other, one colour for each site.

    Args:
        check: What `diagnostics.check_scores` returned.
        ax: Axes to draw on; None makes a figure.

    Returns:
        The axes.

    Raises:
        ArgumentError: if no second method was asked for.
    """
    if not check.cotangents:
        raise ArgumentError(
            "there is one method only. Give check_scores another in `against`."
        )
    if ax is None:
        _, ax = plt.subplots()
    for index, (site, both) in enumerate(check.cotangents.items()):
        ours, theirs = both.reshape(2, -1)[:, :_SHOWN]
        ax.plot(ours, theirs, ".", markersize=2, color=f"C{index}", label=site)
        ends = [ours.min(), ours.max()]
        ax.plot(ends, ends, color="black", linewidth=0.8)
    ax.set(xlabel=f"cotangent by {check.method}", ylabel=f"by {check.against}")
    ax.legend()
    return ax
