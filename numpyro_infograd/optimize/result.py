# SPDX-License-Identifier: Apache-2.0
"""Where an ascent ended."""

from __future__ import annotations

from dataclasses import dataclass, field
import importlib
from typing import Any

from numpyro_infograd.optimize.budgets import ConstraintReport
from numpyro_infograd.text import html_table, with_error
from numpyro_infograd.values import Estimate


@dataclass(frozen=True)
class Result:
    """Where an ascent ended.

    Attributes:
        params: The parameters, in constrained space.
        estimate: The objective there in nats, with a standard error; None (and a reason
            in `status`) where no estimator applies.
        history: Arrays over steps, (num_steps,): "gradient_norm", "gain" (nats; to
            first order, of the system with what noise its annealing adds), "finite"
            (whether the step was taken), "objective" (nats; NaN where it is not known
            exactly), and what the scores say of themselves by set of sites, such as
            "stein_residual(y)", "held_out_gain(y)" and "trained(y)": whether the
            networks were trained at the step. "params" is a dict of arrays (num_steps,
            *shape); "excess", with `subject_to`, is (num_steps, num_constraints).
        status: How it ended, in words.
        diagnostics: Score method and why it was chosen; skipped steps; restarts.
        constraints: How each constraint of `subject_to` stands.
        histories: As `history`, for each restart; `history` is that of the best.

    Example:
        >>> import numpyro, optax, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     a, b = numpyro.param("a", 1.0), numpyro.param("b", 0.0)
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal((a + b) * x, 1))
        >>> result = ig.maximize_mi(
        ...     model, "x", "y", num_steps=100, progress_bar=False,
        ...     projection=optax.projections.projection_l2_sphere,
        ... )
        >>> result.status
        'took all of num_steps=100 steps'
        >>> round(result.estimate.value, 3), result.history["params"]["a"].shape
        (0.549, (100,))
    """

    params: dict[str, Any]
    estimate: Estimate | None
    history: dict[str, Any]
    status: str
    diagnostics: dict[str, Any] = field(default_factory=dict)
    constraints: tuple[ConstraintReport, ...] = ()
    histories: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    def _rows(self) -> list[tuple[str, str]]:
        """Parameters as text."""
        return [(name, with_error(value)) for name, value in self.params.items()]

    def _notes(self) -> list[str]:
        """The rest as text."""
        scores = self.diagnostics.get("method", "?")
        return [
            f"objective: {self.estimate}",
            *map(repr, self.constraints),
            f"scores: {scores} ({self.diagnostics.get('reason', '')})",
            self.status,
        ]

    def __repr__(self) -> str:
        rows = [f"{name} = {text}" for name, text in self._rows()]
        return "\n  ".join([f"{type(self).__name__}:", *rows, *self._notes()])

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, self._rows(), self._notes())

    def plot(self, axes: Any = None) -> Any:
        """Draw the ascent, all restarts of it: see `plots.plot_ascent`.

        Args:
            axes: Two matplotlib axes, or one for the objective alone; None makes a
                figure.

        Returns:
            The axes.

        Raises:
            ArgumentError: for a result without steps.
            ImportError: if the `plots` extra is not installed.
        """
        plots = importlib.import_module("numpyro_infograd.plots")
        return plots.plot_ascent(self, axes)

    def to_inference_data(self) -> Any:
        """What was found as ArviZ data: an `InferenceData`, from ArviZ 1 a `DataTree`.

        Here `posterior` holds the parameters over the steps, one chain for each
        restart, and `sample_stats` the rest of the history: no draws of a posterior,
        but what trace plots and tables are made of.

        Raises:
            ArgumentError: where there are no steps to show.
        """
        room = "numpyro_infograd.diagnostics.inference_data"
        return importlib.import_module(room).to_inference_data(self)
