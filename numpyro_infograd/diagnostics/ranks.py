# SPDX-License-Identifier: Apache-2.0
"""Simulation-based calibration: whether a twin's errors are right, by simulation.

Parameters are drawn around the twin, recordings are simulated from them, and the model
is fitted to these. If the errors are right, each parameter is a draw from the
distribution that its own fit reports, so its rank among the fit's draws is uniform
(Talts et al., "Validating Bayesian inference algorithms with simulation-based
calibration", 2018). A fit's draws are those of a confidence distribution, so this holds
at every place of the parameters; there is no prior.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chisquare
from tqdm.auto import tqdm

import jax

from numpyro_infograd._arguments import as_args, as_count, as_key
from numpyro_infograd._calibrate import Calibration, calibrate
from numpyro_infograd._doors import public
from numpyro_infograd._optimize import Ending
from numpyro_infograd._pairs import to_pair
from numpyro_infograd._parameters import named_leaves
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._text import brief, draw, html_table, warned
from numpyro_infograd._tracing import trace_model
from numpyro_infograd.errors import ArgumentError

_IN_A_BIN = 10  # expected number of ranks in a bin
_MOST_BINS = 20
_WRONG = 0.01  # p-value below which errors are called wrong


@dataclass(frozen=True, repr=False)
class RankCheck:
    """What `simulation_based_calibration` found.

    Attributes:
        ranks: For each parameter, the share of each fit's draws below the true value,
            (num_simulations, *shape); NaN where a fit has no standard error.
        zscores: (estimate - true value) / standard error, of the same shape.
        num_unfinished: Number of fits that did not converge. Their ranks count.

    Example:
        >>> import numpy as np, numpyro_infograd as ig
        >>> ranks = (np.arange(100) + 0.5) / 100  # by hand
        >>> check = ig.diagnostics.RankCheck({"a": ranks}, {"a": 4 * ranks - 2}, 0)
        >>> float(check.pvalue["a"]), float(check.coverage["a"])
        (1.0, 1.0)
        >>> check
        RankCheck:
          a: ranks uniform with p = 1; two standard errors cover 100%
          100 simulations
    """

    ranks: dict[str, np.ndarray]
    zscores: dict[str, np.ndarray]
    num_unfinished: int = 0

    @staticmethod
    def histogram(ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts in bins of equal width, and their edges; more bins for more ranks."""
        bins = int(np.clip(len(ranks) // _IN_A_BIN, 2, _MOST_BINS))
        return np.histogram(ranks, bins, (0.0, 1.0))

    @property
    def pvalue(self) -> dict[str, np.ndarray]:
        """p-value of a chi-square test that the ranks of each number are uniform."""
        return _each(self.ranks, lambda x: chisquare(self.histogram(x)[0]).pvalue)

    @property
    def coverage(self) -> dict[str, np.ndarray]:
        """Share of fits whose two standard errors hold the true value."""
        return _each(self.zscores, lambda z: np.mean(np.abs(z) < 2))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that name the parameters whose errors are wrong."""
        found = []
        number = sum(x.size for x in self.pvalue.values())
        for name, pvalue in self.pvalue.items():
            ranks = self.ranks[name]
            if lost := int(np.max(np.sum(~np.isfinite(ranks), axis=0))):
                found.append(
                    f"{lost} of {len(ranks)} fits have no standard error of "
                    f"{name!r}, so they are left out."
                )
            if np.any(pvalue * number < _WRONG):  # of so many tests
                found.append(
                    f"the ranks of {name!r} are not uniform (p = {np.min(pvalue):.2g}):"
                    " its standard errors or its estimates are wrong for recordings of"
                    " this number. See .plot()."
                )
        if self.num_unfinished:
            found.append(f"{self.num_unfinished} of the fits did not converge.")
        return tuple(found)

    def _lines(self) -> list[tuple[str, str]]:
        pvalue, coverage = self.pvalue, self.coverage
        lines = []
        for name in self.ranks:
            lowest, cover = np.min(pvalue[name]), np.mean(coverage[name])
            text = f"ranks uniform with p = {lowest:.2g}; two standard errors cover"
            lines.append((name, f"{text} {cover:.0%}"))
        return lines

    def _notes(self) -> list[str]:
        number = len(next(iter(self.ranks.values())))
        return [f"{number} simulations", *warned(self.warnings)]

    def __repr__(self) -> str:
        rows = map(": ".join, self._lines())
        return "\n  ".join([f"{type(self).__name__}:", *rows, *self._notes()])

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, self._lines(), self._notes())

    def plot(self, axes: Any = None) -> Any:
        """Draw histograms of the ranks: see `plots.plot_ranks`."""
        return draw("plot_ranks", self, axes)


@public(settings_of=calibrate)
def simulation_based_calibration(
    model: Callable[..., Any] | StructuralModel,
    twin: Calibration,
    *,
    num_simulations: int = 100,
    num_recordings: int | None = None,
    rng_key: jax.Array | None = None,
    progress_bar: bool = True,
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    **settings: Any,
) -> RankCheck:
    """Check a twin's standard errors by simulation.

    Each simulation takes one of the twin's bootstrap draws as the true parameters,
    simulates recordings from it, and calibrates the model to them. The rank of the true
    value among the draws of that fit is uniform if the errors are right (Talts et al.,
    2018). All fits share their compiled functions.

    Args:
        model: The model of the twin.
        twin: What `calibrate` returned.
        num_simulations: Number of fits, at least 20.
        num_recordings: Number of recordings of each; None is that of the twin's fit
            with its held-out fifth.
        rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
        progress_bar: Whether to show a bar over the simulations.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.
        **settings: Of `calibrate`. By default each fit has the twin's divergence and
            noise levels, and starts at the twin's parameters. Repeat other settings of
            the twin, such as `robust` or `projection`.

    Returns:
        A `RankCheck`: ranks, a test that they are uniform, and the share of true values
        that two standard errors cover.

    Raises:
        ArgumentError: For a twin without standard errors; and as `calibrate`.

    Example:
        >>> import numpyro_infograd as ig
        >>> ig.diagnostics.simulation_based_calibration(lambda: None, "twin")
        Traceback (most recent call last):
        numpyro_infograd.errors.ArgumentError: simulation_based_calibration takes ...
    """
    key = as_key(rng_key)
    args, kwargs = as_args(model_args, model_kwargs)
    num_simulations = as_count("num_simulations", num_simulations, 20)
    if not isinstance(twin, Calibration) or not twin.draws:
        raise ArgumentError(
            "simulation_based_calibration takes a Calibration with standard errors, "
            f"got {brief(twin)}. Pass what calibrate returned; its status and warnings "
            "say why it has none."
        )
    if num_recordings is None:
        num_recordings = -(-5 * len(next(iter(twin.recorded.values()))) // 4)
    num_recordings = as_count("num_recordings", num_recordings)
    sm = trace_model(model, args, kwargs)
    used = {"divergence": twin.diagnostics["divergence"], "init_params": twin.params}
    if levels := twin.diagnostics.get("noise_levels"):
        used["noise_levels"] = levels
    found, unfinished = [], 0
    for index in tqdm(range(num_simulations), disable=not progress_bar):
        keys = jax.random.split(jax.random.fold_in(key, index), 3)
        count = len(next(iter(jax.tree.leaves(twin.draws))))
        picked = int(jax.random.randint(keys[0], (), 0, count))
        truth = jax.tree.map(lambda x, i=picked: x[i], twin.draws)
        made = sm.sample(keys[1], num_recordings, truth)
        fit = calibrate(
            sm,
            {name: np.asarray(made[name]) for name in twin.recorded},
            rng_key=keys[2],
            progress_bar=False,
            **used | settings,
        )
        unfinished += fit.status.ending is not Ending.CONVERGED
        found.append(_compare(truth, fit))
    both = jax.tree.map(lambda *x: np.stack(x), *found)
    ranks, zscores = ({n: pair[i] for n, pair in both.items()} for i in range(2))
    return RankCheck(ranks, zscores, unfinished)


def _each(
    values: dict[str, np.ndarray], of: Callable[[np.ndarray], Any]
) -> dict[str, np.ndarray]:
    """What `of` finds in the finite values of each number; NaN without any."""

    def one(array: np.ndarray) -> np.ndarray:
        known = (row[np.isfinite(row)] for row in array.reshape(len(array), -1).T)
        return np.reshape([of(x) if len(x) else np.nan for x in known], array.shape[1:])

    return {name: one(array) for name, array in values.items()}


def _compare(truth: Any, fit: Calibration) -> dict[str, list[np.ndarray]]:
    """Rank and z-score of each true value in a fit; NaN without a standard error."""
    made = fit.draws or jax.tree.map(lambda x: np.asarray(x)[None], fit.params)
    trees = jax.tree.map(to_pair, (fit.params, fit.standard_error, made, truth))
    values, errors, draws, truths = map(named_leaves, trees)
    found = {}
    for name, true in truths.items():
        rank = (np.sum(draws[name] < true, axis=0) + 0.5) / (len(draws[name]) + 1)
        zscore = (values[name] - true) / errors[name]
        known = np.isfinite(errors[name])
        found[name] = [np.where(known, x, np.nan) for x in (rank, zscore)]
    return found
