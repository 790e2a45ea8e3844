# SPDX-License-Identifier: Apache-2.0
"""Figures that compare: scores by two methods, recordings and twins, ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import binom

from numpyro_infograd._calibrate import Calibration
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.plots.style import TRUTH, as_axes, indexed, look

_SHOWN = 2000  # points of a scatter plot, at most
_PANELS = 12  # outputs in one figure, at most
_BINS = 40
_TAIL = 0.002  # share of values outside the bins at each end, at most


def plot_score_check(check: Any, ax: Any = None) -> Any:
    """Draw cotangents (nats per unit of a site) by a method against those by chains.

    Args:
        check: What `diagnostics.check_scores` returned.
        ax: Matplotlib axes to draw on; None makes a figure.

    Returns:
        The axes, with a colour and a marker for each site of each set. Points of right
        scores scatter around the line; those of wrong scores leave it.

    Raises:
        ArgumentError: If no chain could check the scores.
        ImportError: If matplotlib is not installed.

    Example:
        >>> import matplotlib, numpy as np, numpyro_infograd as ig
        >>> matplotlib.use("Agg")  # draws without a window
        >>> check = ig.diagnostics.ScoreCheck(
        ...     "denoising", (), {"y of y": np.zeros((2, 100, 1))}
        ... )
        >>> ax = ig.plots.plot_score_check(check)  # or check.plot()
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('cotangent by denoising', 'by chains')
    """
    if not hasattr(check, "cotangents"):
        raise ArgumentError(
            f"plot_score_check takes what check_scores returns, got {brief(check)}."
        )
    if not check.cotangents:
        raise ArgumentError(
            "no chain checked these scores, so there is nothing to compare them with."
        )
    (ax,) = as_axes("ax", ax)
    for index, (site, both) in enumerate(check.cotangents.items()):
        ours, theirs = both.reshape(2, -1)[:, :_SHOWN]
        small = {"markersize": 2.5, "markeredgewidth": 0, "alpha": 0.6}
        ax.plot(ours, theirs, label=site, **look(index).points | small)
    ax.axline((0, 0), slope=1, label="equal", **TRUTH)
    ax.set(xlabel=f"cotangent by {check.method}", ylabel="by chains")
    ax.legend(fontsize="small", markerscale=2)
    return ax


def plot_twin(calibration: Calibration, axes: Any = None) -> np.ndarray:
    """Draw histograms of each recorded output and of the twin's replicates.

    Black: a histogram of the recordings. Blue: the mean histogram of the replicates, in
    a band from the lowest to the highest. The band shows the uncertainty from the
    parameters' errors and the number of recordings. The title has the p-values of the
    two-sample tests.

    Args:
        calibration: What `calibrate` returned.
        axes: Matplotlib axes, at most 12, for the first numbers of the recorded sites;
            None makes a figure of the first 12.

    Returns:
        An array of the axes that were used.

    Raises:
        ArgumentError: If `calibration` is not a calibration, or has no recordings.
        ImportError: If matplotlib is not installed.

    Example:
        >>> import matplotlib, numpy as np, numpyro_infograd as ig
        >>> matplotlib.use("Agg")  # draws without a window
        >>> y = np.random.default_rng(0).normal(size=(6, 500))
        >>> twin = ig.Calibration(
        ...     {}, None, {}, "", recorded={"y": y[0]}, simulated={"y": y[1:]}
        ... )
        >>> (ax,) = ig.plots.plot_twin(twin)  # or twin.plot()
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('y', 'density')
    """
    if not isinstance(calibration, Calibration) or not calibration.recorded:
        raise ArgumentError(
            "plot_twin takes a Calibration with recordings, as calibrate returns, got "
            f"{brief(calibration)}."
        )
    outputs = [
        (indexed(site, at), recorded[:, *at], calibration.simulated[site][:, :, *at])
        for site, recorded in calibration.recorded.items()
        for at in np.ndindex(recorded.shape[1:])
    ][:_PANELS]
    axes = as_axes("axes", axes, len(outputs), _PANELS)[: len(outputs)]
    for ax, (name, recorded, simulated) in zip(axes, outputs, strict=False):
        _draw_laws(ax, recorded.astype(float), simulated.astype(float))
        ax.set(xlabel=name, ylabel="density")
    tests = {"before": calibration.test_before, "after": calibration.test_after}
    found = [f"{test.pvalue:.2g} {when}" for when, test in tests.items() if test]
    if found:
        axes[0].set_title(f"two-sample p: {', '.join(found)}", fontsize="small")
    axes[0].legend(fontsize="small")
    return axes


def plot_ranks(check: Any, axes: Any = None) -> np.ndarray:
    """Draw histograms of the ranks of a simulation-based calibration.

    Grey: the band that holds the height of a bar with probability 99 % if the ranks are
    uniform. Bars in the middle mean that errors are too large; bars at both ends, too
    small; bars at one end, that estimates are biased.

    Args:
        check: What `diagnostics.simulation_based_calibration` returned.
        axes: Matplotlib axes, at most 12, for the first numbers of the parameters; None
            makes a figure of the first 12.

    Returns:
        An array of the axes that were used.

    Raises:
        ArgumentError: If `check` is something else.
        ImportError: If matplotlib is not installed.

    Example:
        >>> import matplotlib, numpy as np, numpyro_infograd as ig
        >>> matplotlib.use("Agg")  # draws without a window
        >>> ranks = np.random.default_rng(0).uniform(size=100)
        >>> check = ig.diagnostics.RankCheck({"a": ranks}, {"a": ranks})
        >>> (ax,) = ig.plots.plot_ranks(check)  # or check.plot()
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('rank of a', 'simulations')
    """
    if not hasattr(check, "ranks"):
        raise ArgumentError(
            "plot_ranks takes what simulation_based_calibration returns, got "
            f"{brief(check)}."
        )
    pvalues = check.pvalue
    numbers = [
        (indexed(name, at), ranks[:, *at], pvalues[name][at])
        for name, ranks in check.ranks.items()
        for at in np.ndindex(ranks.shape[1:])
    ][:_PANELS]
    axes = as_axes("axes", axes, len(numbers), _PANELS)[: len(numbers)]
    color = look(0).color
    for ax, (name, ranks, pvalue) in zip(axes, numbers, strict=False):
        known = ranks[np.isfinite(ranks)]
        counts, edges = check.histogram(known)
        bins = len(counts)
        low, high = binom.ppf([0.005, 0.995], len(known), 1 / bins)
        ax.axhspan(low, high, color="0.9", label="99% if uniform")
        ax.axhline(len(known) / bins, **TRUTH)
        ax.stairs(counts, edges, fill=True, color=color, alpha=0.6, label="ranks")
        ax.set(xlabel=f"rank of {name}", ylabel="simulations", xlim=(0, 1))
        ax.set_title(f"p = {pvalue:.2g}", fontsize="small")
    axes[0].legend(fontsize="small")
    return axes


def _draw_laws(ax: Any, recorded: np.ndarray, simulated: np.ndarray) -> None:
    """A histogram of the recordings, and those of the replicates."""
    finite = simulated[np.isfinite(simulated)]
    ends = [np.quantile(x, [_TAIL, 1 - _TAIL]) for x in (recorded, finite) if x.size]
    edges = np.linspace(np.min(ends), np.max(ends), _BINS + 1)

    def density(values: np.ndarray) -> np.ndarray:
        # Divide by the number of all values, including those outside the bins.
        return np.histogram(values, edges)[0] / (values.size * np.diff(edges))

    ours = np.stack([density(replicate) for replicate in simulated])
    twin = look(0)
    low, high = ours.min(axis=0), ours.max(axis=0)
    ax.stairs(high, edges, baseline=low, fill=True, color=twin.color, alpha=0.35)
    mean = {"color": twin.color, "linestyle": "--", "linewidth": 1.2}
    ax.stairs(ours.mean(axis=0), edges, baseline=None, label="twin", **mean)
    ax.stairs(density(recorded), edges, baseline=None, label="recordings", **TRUTH)
    ax.set_ylim(0, None)
