# SPDX-License-Identifier: Apache-2.0
"""The result of an ascent, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
import enum
import importlib
from typing import Any

from numpyro_infograd._optimize.budgets import ConstraintReport
from numpyro_infograd._text import draw, html_table, warned, with_error
from numpyro_infograd.values import Estimate


class Ending(enum.Enum):
    """How an ascent, or a calibration, ended.

    Attributes:
        CONVERGED: More steps would gain almost nothing.
        ALL_STEPS: It took all of `num_steps`.
        UNFINISHED: It took the most steps, and more would still gain.
        SADDLE: The gradient was zero at the start, which is no maximum, or may be none.
        AT_REST: No parameter reaches the objective, or a projection allows no move.
        DIVERGED: With the caller's optimizer, it ended worse than its start.
        BELOW_START: With the default optimizer, it ended worse than its start.
        OUT_OF_RANGE: The parameters left the range of pretrained scores.
        NOT_FINITE: A calibration met values that are not finite.
        INTERRUPTED: The user interrupted it.

    Example:
        >>> from numpyro_infograd import Ending
        >>> Ending("converged") is Ending.CONVERGED
        True
    """

    CONVERGED = "converged"
    ALL_STEPS = "took all steps"
    UNFINISHED = "unfinished"
    SADDLE = "rests at a saddle point"
    AT_REST = "no parameter can move"
    DIVERGED = "diverged"
    BELOW_START = "worse than its start"
    OUT_OF_RANGE = "left the range of its scores"
    NOT_FINITE = "values are not finite"
    INTERRUPTED = "interrupted"


class Status(str):
    """A string that says how a run ended; `.ending` says the same as an enum.

    Attributes:
        ending: The enum. Compare this, not the text.

    Example:
        >>> from numpyro_infograd import Ending, Status
        >>> status = Status("converged after 200 steps", Ending.CONVERGED)
        >>> print(status)
        converged after 200 steps
        >>> status.ending is Ending.CONVERGED
        True
    """

    ending: Ending

    def __new__(cls, message: str, ending: Ending) -> Status:
        """The message with its ending."""
        status = super().__new__(cls, message)
        status.ending = ending
        return status

    def __getnewargs__(self) -> Any:
        """Arguments of `__new__` for copies and pickles."""
        return str(self), self.ending


@dataclass(frozen=True)
class Result:
    """The result of an ascent.

    Attributes:
        params: The parameters at the end, in constrained space.
        estimate: The objective there in nats, with a standard error; None if no
            estimator applies, with the reason in `warnings`.
        history: Arrays over steps, (num_steps,): "gradient_norm"; "gain" (first-order
            gain in nats, including appended noise while it anneals); "finite" (whether
            the step was finite and taken); "objective" (nats; NaN if it is not known
            exactly); and numbers that show how good the scores of each set of sites
            are, such as "stein_residual(y)", "held_out_gain(y)" and "trained(y)"
            (whether the networks were trained at the step). "params" is a dict of
            arrays (num_steps, *shape); "excess", with `subject_to`, is (num_steps,
            num_constraints).
        status: How the ascent ended, in words; `status.ending` is the same as an
            `Ending`.
        diagnostics: A dict: "method" and "reason" (the score method, and why it was
            chosen), "skipped_steps" (their number), "restarts" (the value of each).
        constraints: A report for each constraint of `subject_to`.
        warnings: Sentences that say what is wrong: the ascent is not finished, rests at
            a saddle or ended below its start; noise hides the gradient; steps were
            skipped; constraints are not met; and the warnings of `estimate`.
        histories: A `history` for each restart; `history` is that of the best.

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
        >>> result.status, result.warnings
        ('took all of num_steps=100 steps', ())
        >>> round(result.estimate.value, 3), result.history["params"]["a"].shape
        (0.549, (100,))
    """

    params: dict[str, Any]
    estimate: Estimate | None
    history: dict[str, Any]
    status: Status
    diagnostics: dict[str, Any] = field(default_factory=dict)
    constraints: tuple[ConstraintReport, ...] = ()
    warnings: tuple[str, ...] = ()
    histories: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    def _rows(self) -> list[tuple[str, str]]:
        """Parameters as text."""
        return [(name, with_error(value)) for name, value in self.params.items()]

    def _notes(self) -> list[str]:
        """Objective, constraints, scores and status as text."""
        value, reason = self.estimate, self.diagnostics.get("reason")
        scores = f"scores: {self.diagnostics.get('method', '?')}"
        shown = value and replace(value, warnings=())  # they are below
        return [
            f"objective: {shown}",
            *map(repr, self.constraints),
            f"{scores} ({reason})" if reason else scores,
            self.status,
            *warned(w for w in self.warnings if w != self.status),
        ]

    def __repr__(self) -> str:
        rows = map(" = ".join, self._rows())
        return "\n  ".join([f"{type(self).__name__}:", *rows, *self._notes()])

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, self._rows(), self._notes())

    def plot(self, axes: Any = None) -> Any:
        """Draw the ascent with all its restarts: see `plots.plot_ascent`."""
        return draw("plot_ascent", self, axes)

    def to_inference_data(self) -> Any:
        """The history as ArviZ data: an `InferenceData`, from ArviZ 1 a `DataTree`.

        The group `ascent` holds the parameters over the steps, with one chain for each
        restart, and `ascent_stats` the rest of the history. Steps are not draws from a
        posterior, so there is no group `posterior`. `arviz.plot_trace(data["ascent"])`
        draws them, from ArviZ 1 `arviz.plot_trace(data, group="ascent")`.

        Raises:
            ArgumentError: For a result without steps.
        """
        module = "numpyro_infograd.diagnostics.inference_data"
        return importlib.import_module(module).to_inference_data(self)
