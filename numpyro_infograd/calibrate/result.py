# SPDX-License-Identifier: Apache-2.0
"""Where a calibration ended, and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass, field
import importlib
from typing import Any, NamedTuple

import numpy as np

from numpyro_infograd.optimize import Result
from numpyro_infograd.text import with_error
from numpyro_infograd.values import Estimate


class TwoSample(NamedTuple):
    """Whether held-out recordings and draws of the twin can be told apart.

    Attributes:
        statistic: Energy distance between them, in units of the recordings.
        pvalue: Share of random relabellings with a larger one.
    """

    statistic: float
    pvalue: float


@dataclass(frozen=True, repr=False)  # the repr of any Result
class Calibration(Result):
    """The twin that `calibrate` found.

    `params` and `status` are as in any `Result`, and `estimate` is `after`. `history`
    has arrays over steps, (num_steps,): "gradient_norm", "finite" (whether the step was
    taken) and "divergence", the Fisher divergence over the levels in use (nats); and
    "params", a dict of arrays (num_steps, *shape).
    `diagnostics` has the divergence and the levels.

    Attributes:
        standard_error: Of every parameter, in its shape, by a bootstrap over recordings
            and from what sampling the twin adds; infinite for what the recordings leave
            free, NaN where there is none (a parameter that a projection holds; more
            than 64 numbers; an interruption).
        draws: Bootstrap draws of every parameter, (num_draws, *shape). They do not move
            along what the recordings leave free, so that what is determined may be
            computed from them, such as the product of two factors.
        before: Divergence from held-out recordings at the start, in nats, as far as
            features trained there show it; the standard error is on the safe side.
        after: The same at the end; what a twin of another form cannot reach remains.
        test_before: Two-sample test on held-out recordings at the start.
        test_after: The same at the end.
        undetermined: Directions in parameter space along which the recordings say
            nothing: a move of the parameters' own size changes the outputs' law by
            less than the recordings can show. Each maps parameters to arrays.
        recorded: The recordings that were fitted to, (num_recordings, *shape) by site.
        simulated: Replicates of the recordings by the twin, each of one bootstrap draw
            of the parameters, (num_replicates, num_recordings, *shape) by site.
        warnings: Sentences that a careful user should read.

    Example:
        >>> import numpy as np
        >>> from numpyro_infograd import Calibration, Estimate
        >>> twin = Calibration(  # by hand; `calibrate` makes them
        ...     {"a": 2.0, "b": 0.5},
        ...     estimate=None,
        ...     history={},
        ...     status="converged",
        ...     standard_error={"a": np.inf, "b": np.inf},
        ...     draws={"a": np.array([1.9, 2.1]), "b": np.array([0.53, 0.47])},
        ...     before=Estimate(0.41, 0.01, 0.39, 0.43, "features"),
        ...     after=Estimate(0.001, 0.002, -0.003, 0.005, "features"),
        ... )
        >>> twin
        Calibration:
          a = 2 +- inf
          b = 0.5 +- inf
          divergence from held-out recordings, before: 0.41 +- 0.01 nats (features)
          divergence from held-out recordings, after: 0.001 +- 0.002 nats (features)
          converged
        >>> (twin.draws["a"] * twin.draws["b"]).mean().round(2)  # what is determined
        np.float64(1.0)
    """

    standard_error: dict[str, Any] = field(default_factory=dict)
    draws: dict[str, Any] = field(default_factory=dict)
    before: Estimate | None = None
    after: Estimate | None = None
    test_before: TwoSample | None = None
    test_after: TwoSample | None = None
    undetermined: tuple[dict[str, Any], ...] = ()
    recorded: dict[str, np.ndarray] = field(default_factory=dict)
    simulated: dict[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def _rows(self) -> list[tuple[str, str]]:
        errors = self.standard_error
        return [(n, with_error(value, errors[n])) for n, value in self.params.items()]

    def _notes(self) -> list[str]:
        return [
            f"divergence from held-out recordings, before: {self.before!r}",
            f"divergence from held-out recordings, after: {self.after!r}",
            *(
                f"two-sample test {when}: energy distance {test.statistic:.3g}, "
                f"p = {test.pvalue:.3g}"
                for when, test in (
                    ("before", self.test_before),
                    ("after", self.test_after),
                )
                if test is not None
            ),
            *(f"warning: {sentence}" for sentence in self.warnings),
            self.status,
        ]

    def plot(self, axes: Any = None) -> Any:
        """Draw the recordings and the twin's replicates: see `plots.plot_twin`.

        `plots.plot_ascent` draws how the calibration went.

        Args:
            axes: Matplotlib axes, one for each number of an output; None makes a
                figure.

        Returns:
            The axes.

        Raises:
            ArgumentError: for axes that are none, or too many.
            ImportError: if the `plots` extra is not installed.
        """
        plots = importlib.import_module("numpyro_infograd.plots")
        return plots.plot_twin(self, axes)

    def to_inference_data(self) -> Any:
        """What was found as ArviZ data: an `InferenceData`, from ArviZ 1 a `DataTree`.

        `posterior` holds the bootstrap draws, NaN for what the recordings leave free;
        `warmup_posterior` and `warmup_sample_stats` the history, `observed_data` the
        recordings and `posterior_predictive` the twin's replicates of them: what
        `arviz.plot_ppc`, from ArviZ 1 `arviz.plot_ppc_dist`, compares.

        Raises:
            ArgumentError: where there are neither steps nor draws to show.
        """
        return super().to_inference_data()
