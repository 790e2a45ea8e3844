# SPDX-License-Identifier: Apache-2.0
"""The result of an ascent: its best end, the value there, and the status."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import jax

from numpyro_infograd.errors import ConstraintError, InfogradError
from numpyro_infograd.optimize.budgets import SLACK, ConstraintReport
from numpyro_infograd.optimize.log import join
from numpyro_infograd.optimize.move import constrained
from numpyro_infograd.optimize.result import Result
from numpyro_infograd.optimize.run import CYCLE, MAX_CYCLES, Run
from numpyro_infograd.optimize.step import StepInfo
from numpyro_infograd.readouts import see_through
from numpyro_infograd.values import MCMC, Estimate, value_of

_ROUGH = 0.02  # relative error of a first value of the start

# Parameters, the value there or None, and why there is no value.
End = tuple[Any, Estimate | None, str]


def finish(run: Run) -> Result:
    """Choose the best restart, and estimate the objective at its end.

    Raises:
        ConstraintError: If the run gave up and a constraint is not met.
    """
    ends = [_end(run, index) for index in range(len(run.starts))]
    reports = [_report(run, index, end[0]) for index, end in enumerate(ends)]
    best = max(range(len(ends)), key=lambda i: _rank(ends[i][1], reports[i]))
    params, estimate, _ = ends[best]
    histories = _histories(run, bool(reports[best]))
    result = Result(
        run.clean.sm.without_pairs(params),
        estimate,
        histories[best],
        _status(run, best, ends[best], reports[best], histories[best]),
        {
            "method": run.clean.method_name,
            "reason": run.clean.reason,
            "skipped_steps": _skipped(histories[best]),
            "restarts": [e.value if e is not None else None for _, e, _ in ends],
        },
        reports[best],
        histories,
    )
    missed = _missed(reports[best])
    if missed and run.gave_up:
        error = ConstraintError(
            f"the ascent found no parameters that meet {missed[0]!r} in "
            f"{MAX_CYCLES * CYCLE} steps. Use a bound that can be met, or other "
            "init_params. The `result` of this error has the last parameters."
        )
        error.result = result
        raise error
    return result


def _status(
    run: Run,
    index: int,
    end: End,
    reports: tuple[ConstraintReport, ...],
    history: dict[str, Any],
) -> str:
    """How the run ended, and the problems that were found."""
    _, estimate, trouble = end
    norms = history.get("gradient_norm", np.ones(0))
    status = run.status
    fall = _fall(run, estimate)
    if fall and run.plan.is_default:
        status += (
            f"; but it ended below its start, {fall}: the gradient is wrong, or "
            "smaller than its noise. Raise num_samples, use other scores, or keep the "
            "start"
        )
    elif fall:
        status = (
            f"diverged: after {len(norms)} steps the objective is worse than at the "
            f"start, {fall}. Lower the learning rate of the optimizer"
        )
    if len(norms) and norms[0] == 0:
        status += _why_at_rest(run)
    if skipped := _skipped(history):
        status += (
            f"; {skipped} steps were not finite and were skipped (for instance at "
            "p = 0 of an amplitude sqrt(p): make the amplitude the parameter)"
        )
    if estimate is None:
        status += f"; no value: {trouble}"
    if missed := _missed(reports):
        status += f"; constraints are not met: {', '.join(map(repr, missed))}"
    return status


def _skipped(history: dict[str, Any]) -> int:
    """Number of steps that were not finite."""
    return int(np.sum(~history.get("finite", np.ones(0, bool))))


def _missed(reports: tuple[ConstraintReport, ...]) -> list[ConstraintReport]:
    """Constraints that are not met."""
    return [report for report in reports if not report.is_met]


def _report(run: Run, index: int, params: Any) -> tuple[ConstraintReport, ...]:
    """The report of each constraint."""
    key = jax.random.fold_in(run.rng_key, 8)
    reports = []
    for i, constraint in enumerate(run.plan.subject_to):
        found = value_of(run.clean.sm, constraint.expectations, params, key)
        bound = float(constraint.bound)
        over = found.value - bound
        scale = float(run.ascent.budgets.scales[i])
        reports.append(
            ConstraintReport(
                constraint,
                found.value,
                found.standard_error,
                bound,
                max(over if constraint.sense == "<=" else -over, 0.0),
                SLACK * scale + 2 * found.standard_error,
                float(run.states.multipliers[index, i]) / scale,
            )
        )
    return tuple(reports)


def _why_at_rest(run: Run) -> str:
    """A possible reason why the gradient was zero at the start."""
    objective = run.clean.objective
    sites = objective.sites
    if not objective.expectations and not run.clean.sm.params_of(sites):
        return f"; no parameter reaches {', '.join(map(repr, sites))}"
    if run.plan.projection is not None:
        return "; the projection allows no move from the start"
    return (
        "; the gradient was zero at the start, which may be a saddle point: use other "
        "init_params or num_restarts"
    )


def _fall(run: Run, end: Estimate | None) -> str:
    """How far the ascent fell below its start, in words; "" if it did not fall.

    Both values use the same key. With constraints there is no check, because the
    objective may have to fall to meet them.
    """
    if run.plan.subject_to or not run.chunks:
        return ""
    if end is not None and end.method == "mcmc":
        # A rough value of the start is usually enough, and takes a tenth of the time.
        rough, _ = _value(run, run.starts[0], MCMC(tolerance=_ROUGH))
        far = 4 * math.hypot(rough.standard_error, end.standard_error) if rough else 0.0
        if rough and end.value > rough.value + far:
            return ""
    start, _ = _value(run, run.starts[0])
    if start is None:
        return ""
    if end is None:
        return f"{start.value:.4g} nats, and has no value at the end"
    error = math.hypot(start.standard_error, end.standard_error)
    if end.value >= start.value - 2 * error - 1e-6 * abs(start.value):
        return ""
    return f"{start.value:.4g} to {end.value:.4g} nats"


def _end(run: Run, index: int) -> End:
    """Where a restart ended, with its value or the reason why it has none.

    If the objective has no value after the last step, the point before it is used.
    """
    trouble = ""
    for tree in (run.states.unconstrained_params, run.states.previous):
        tree = jax.tree.map(lambda x: x[index], tree)
        params = constrained(tree, run.plan.constraints(run.clean))
        value, why = _value(run, params)
        if value is not None:
            return params, value, ""
        trouble = trouble or why
    return params, None, trouble


def _value(
    run: Run, params: Any, method: str | MCMC = "auto"
) -> tuple[Estimate | None, str]:
    """The value of the objective at `params`, or the reason why it has none."""
    key = jax.random.fold_in(run.rng_key, 7)
    try:
        sm, objective = see_through(run.clean.sm, run.plan.objective, params)
        value = value_of(sm, objective, params, key, method)
    except InfogradError as error:
        return None, str(error)
    if math.isfinite(value.value):
        return value, ""
    return None, "it is not finite at the last parameters"


def _rank(value: Estimate | None, reports: tuple[ConstraintReport, ...]) -> Any:
    """Sort key of ends: first by violations of constraints, then by value."""
    missed = sum(r.violation / r.tolerance for r in _missed(reports))
    return (-missed, -math.inf if value is None else value.value)


def _histories(run: Run, budgets: bool) -> tuple[dict[str, Any], ...]:
    """The histories of all restarts: arrays over steps."""
    if not run.chunks:
        return ({},) * len(run.starts)
    infos = join(run.chunks)
    return tuple(
        _history(run, jax.tree.map(lambda x, i=i: x[i], infos), budgets)
        for i in range(len(run.starts))
    )


def _history(run: Run, info: StepInfo, budgets: bool) -> dict[str, Any]:
    """The history of one restart: arrays over steps."""
    history = {
        "gradient_norm": info.gradient_norm,
        "gain": info.gain,
        "params": run.clean.sm.without_pairs(info.params),
        "finite": info.finite,
    }
    history |= info.evidence
    if np.any(np.isfinite(info.objective)):
        history["objective"] = info.objective
    if budgets:
        history["excess"] = info.excess
    return history
