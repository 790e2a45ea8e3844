# SPDX-License-Identifier: Apache-2.0
"""The result of a calibration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from numpyro_infograd._optimize import Result
from numpyro_infograd._text import draw, warned, with_error
from numpyro_infograd.values import Estimate


class TwoSample(NamedTuple):
    """A two-sample test of held-out recordings and draws of the twin.

    Attributes:
        statistic: Energy distance between them, in whitened units of the recordings.
        pvalue: Share of random permutations with a larger distance.
    """

    statistic: float
    pvalue: float


@dataclass(frozen=True, repr=False)  # the repr of any Result
class Calibration(Result):
    """The twin that `calibrate` found.

    `params` and `status` are as in any `Result`, and `estimate` is `after`. `history`
    has arrays over steps, (num_steps,): "gradient_norm", "finite" (whether the step was
    taken) and "divergence", the Fisher divergence over the levels in use (nats), or
    "negative_log_likelihood" (nats for one recording); and "params", a dict of arrays
    (num_steps, *shape).
    `diagnostics` has the divergence and the levels.

    Attributes:
        standard_error: Standard error of every parameter, in its shape, from a
            bootstrap over recordings and the sampling of the twin. It is infinite for
            parameters that the recordings do not determine. It is NaN for a parameter
            that a projection holds, for more than 64 numbers, and after an
            interruption. That of a complex parameter has the errors of its real and
            imaginary parts.
        draws: Bootstrap draws of every parameter, (num_draws, *shape). They do not vary
            along undetermined directions. So functions that the recordings determine,
            such as the product of two factors, can be computed from them.
        before: Divergence from held-out recordings at the start, in nats, as far as
            features trained there show it. Its standard error is conservative. For
            "likelihood", minus the mean log likelihood of held-out recordings.
        after: The same at the end. A divergence stays positive if the model is
            misspecified.
        test_before: Two-sample test on held-out recordings at the start.
        test_after: The same at the end.
        undetermined: Directions in parameter space that the recordings do not
            determine: a move of the parameters' own size changes the distribution of
            the outputs by less than the recordings can show. Each maps parameters to
            arrays.
        recorded: The recordings of the fit, (num_recordings, *shape) by site.
        simulated: Replicates of the recordings by the twin, each for one bootstrap draw
            of the parameters, (num_replicates, num_recordings, *shape) by site.
        warnings: Sentences that say why results may be wrong.

    Example:
        >>> import numpy as np
        >>> from numpyro_infograd import Calibration, Ending, Estimate, Status
        >>> twin = Calibration(  # by hand; `calibrate` makes them
        ...     {"a": 2.0, "b": 0.5},
        ...     estimate=None,
        ...     history={},
        ...     status=Status("converged", Ending.CONVERGED),
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
        >>> (twin.draws["a"] * twin.draws["b"]).mean().round(2)  # determined
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

    def _rows(self) -> list[tuple[str, str]]:
        errors = self.standard_error
        return [(n, with_error(value, errors[n])) for n, value in self.params.items()]

    def _notes(self) -> list[str]:
        what = "divergence from held-out recordings"
        if self.after is not None and self.after.method == "likelihood":
            what = "minus the mean log likelihood of held-out recordings"
        tests = {"before": self.test_before, "after": self.test_after}
        return [
            f"{what}, before: {self.before!r}",
            f"{what}, after: {self.after!r}",
            *(
                f"two-sample test {when}: energy distance {test.statistic:.3g}, "
                f"p = {test.pvalue:.3g}"
                for when, test in tests.items()
                if test
            ),
            *warned(self.warnings),
            self.status,
        ]

    def plot(self, axes: Any = None) -> Any:
        """Draw the recordings and the twin's replicates: see `plots.plot_twin`.

        `plots.plot_ascent` draws the history of the calibration.
        """
        return draw("plot_twin", self, axes)

    def to_inference_data(self) -> Any:
        """The calibration as ArviZ data: an `InferenceData`, from ArviZ 1 a `DataTree`.

        `posterior` holds the bootstrap draws, NaN for undetermined parameters; a
        complex parameter has its real and imaginary parts in a new last axis.
        `descent` and `descent_stats` hold the history, `observed_data` the recordings,
        and `posterior_predictive` the twin's replicates. The function `arviz.plot_ppc`
        (from ArviZ 1 `arviz.plot_ppc_dist`) compares the last two.

        Raises:
            ArgumentError: If there are neither steps nor draws.
        """
        return super().to_inference_data()
