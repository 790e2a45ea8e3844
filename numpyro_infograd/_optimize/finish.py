# SPDX-License-Identifier: Apache-2.0
"""The result of an ascent: its best end, the value there, and the status."""

from __future__ import annotations

from dataclasses import replace
import math
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._optimize.budgets import ConstraintReport, multipliers_from
from numpyro_infograd._optimize.landing import land, slopes
from numpyro_infograd._optimize.log import join
from numpyro_infograd._optimize.move import constrained
from numpyro_infograd._optimize.polish import is_below_others
from numpyro_infograd._optimize.remaining import flat
from numpyro_infograd._optimize.result import Ending, Result, Status
from numpyro_infograd._optimize.run import CYCLE, MAX_CYCLES, NEGLIGIBLE, Run
from numpyro_infograd._optimize.step import StepInfo, ascend_many
from numpyro_infograd._pairs import without_pairs
from numpyro_infograd._problem import REPLICATES
from numpyro_infograd._readouts import see_through
from numpyro_infograd.errors import ConstraintError, InfogradError
from numpyro_infograd.values import MCMC, Estimate, value_of
from numpyro_infograd.values.bounds import information_of

HIDDEN = 0.01  # gain that noise may hide without a warning, relative to the value
_CHECKED = 2**15  # samples of a constraint's expectation
_ROUGH = 0.02  # relative error of a first value of the start

# Parameters, the value there or None, and why there is no value.
End = tuple[Any, Estimate | None, str]


def finish(ended: Run) -> Result:
    """Choose the best restart, and estimate the objective at its end."""
    ends = [_end(ended, index) for index in range(len(ended.starts))]
    reports = _reports(ended, [params for params, *_ in ends])
    best = max(range(len(ends)), key=lambda i: _rank(ends[i][1], reports[i]))
    params, estimate, _ = ends[best]
    histories = _histories(ended, bool(reports[best]))
    status = _status(ended, best, params, estimate, histories[best])
    missed = _missed(reports[best])
    said = _warnings_for(ended, best, status, ends[best], missed, histories[best])
    if status == ended.status and status.ending is Ending.CONVERGED:
        status = Status(status + _within(ended, best), Ending.CONVERGED)
    result = Result(
        without_pairs(ended.clean.sm.pairs, params),
        estimate,
        histories[best],
        status,
        {
            "method": ended.clean.method_name,
            "reason": ended.clean.reason,
            "skipped_steps": _skipped(histories[best]),
            "restarts": [e.value if e is not None else None for _, e, _ in ends],
        },
        reports[best],
        said,
        histories,
    )
    if missed and ended.status.ending is Ending.UNFINISHED:
        error = ConstraintError(
            f"the ascent found no parameters that meet {missed[0]!r} in "
            f"{MAX_CYCLES * CYCLE} steps. Use a bound that can be met, or other "
            "init_params. The `result` of this error has the last parameters."
        )
        error.result = result
        raise error
    return result


def _within(ended: Run, index: int) -> str:
    """The gain that noise may hide, in words; "" if it is negligible."""
    if not ended.outlooks or not ended.ascent.problem.is_sampled:
        return ""
    hidden = ended.outlooks[index].most
    small = hidden <= NEGLIGIBLE * ended.unit_of_gain(index)
    return "" if small else f", to within {hidden:.2g} nats"


def _status(
    ended: Run,
    index: int,
    params: Any,
    estimate: Estimate | None,
    history: dict[str, Any],
) -> Status:
    """How the run ended, after a look at its start and its end."""
    norms = history.get("gradient_norm", np.ones(0))
    if len(norms) and norms[0] == 0:
        return _at_rest(ended, index, params)
    if ended.status.ending is Ending.INTERRUPTED:
        return ended.status
    fall = _fall(ended, estimate)
    if fall and ended.plan.is_default:
        return Status(
            f"{ended.status}, but it ended worse than its start, {fall}",
            Ending.BELOW_START,
        )
    if fall:
        return Status(
            f"diverged: after {len(norms)} steps the objective is worse than at the "
            f"start, {fall}. Lower the learning rate of the optimizer",
            Ending.DIVERGED,
        )
    value = error = 0.0
    if estimate is not None and ended.clean.objective.sites:
        value, error = estimate.value, estimate.standard_error
    unknown = error > max(1.0, abs(value))
    free = ended.plan.projection is None and not ended.plan.subject_to
    hint = ": is a constraint or a projection missing?" if free else ""
    if ended.status.ending is Ending.CONVERGED and unknown:
        return Status(
            f"stopped after {len(norms)} steps where the objective is not known, +- "
            f"{error:.1g} nats{hint}",
            Ending.UNFINISHED,
        )
    if ended.status.ending is Ending.UNFINISHED:
        gain = ended.outlooks[index].gain
        told = gain > 0 and not ended.plan.subject_to
        status = ended.status + (f" of about {gain:.1g} nats" if told else "")
        return Status(status + hint, Ending.UNFINISHED)
    return ended.status


def _warnings_for(
    ended: Run,
    index: int,
    status: Status,
    end: End,
    missed: list[ConstraintReport],
    history: dict[str, Any],
) -> tuple[str, ...]:
    """Sentences that say why the end may not be what was asked for."""
    _, estimate, trouble = end
    sound = Ending.CONVERGED, Ending.ALL_STEPS, Ending.INTERRUPTED
    found = []
    if status.ending is Ending.BELOW_START:
        found.append(
            f"{status}: the gradient is wrong or smaller than its noise"
            f"{', or the rates are too high' if ended.plan.slowdown == 1 else ''}. "
            "Raise num_samples, use other scores, or keep the start."
        )
    elif status.ending not in sound or status != ended.status:
        found.append(str(status))
    found += _prospects(ended, index, status, estimate)
    if (chance := ended.clean.problem.chance) and ended.chunks:
        last = ended.chunks[-1].evidence
        found += chance.warnings_for({m: np.mean(v[index]) for m, v in last.items()})
    if skipped := _skipped(history):
        found.append(
            f"{skipped} steps were not finite and were skipped (for instance at p = 0 "
            "of an amplitude sqrt(p): make the amplitude the parameter)."
        )
    if estimate is None:
        found.append(f"no value: {trouble}")
    if missed:
        found.append(f"constraints are not met: {', '.join(map(repr, missed))}.")
    if estimate is not None:
        found += estimate.warnings
    return tuple(found)


def _prospects(
    ended: Run, index: int, status: Status, estimate: Estimate | None
) -> list[str]:
    """What more steps would gain, and what noise hides."""
    if not ended.outlooks or status.ending in (Ending.SADDLE, Ending.AT_REST):
        return []
    ahead, found = ended.outlooks[index], []
    may_rise = status.ending in (Ending.CONVERGED, Ending.ALL_STEPS)
    clear_first = ended.is_clear_first[index] if ended.is_clear_first else True
    unit = error = 0.0
    if estimate is not None:
        unit, error = abs(estimate.value), estimate.standard_error
    if estimate is None or ended.plan.subject_to:
        unit = max(unit, 1.0)
    noisy = not ahead.is_clear and ended.ascent.problem.is_sampled
    more = ahead.gain
    if estimate is not None and information_of(-ended.plan.objective):
        more = min(more, -estimate.value)  # information falls to zero at most
    if may_rise and ahead.is_rising and more > max(NEGLIGIBLE * unit, error):
        # With constraints the gain is that of the augmented Lagrangian.
        gain = f"more steps would gain {more:.1g} nats, by order of magnitude"
        why = "the constraints still move it" if ended.plan.subject_to else gain
        found.append(
            f"the ascent is not finished: {why}. Raise num_steps, or start again from "
            "these parameters."
        )
    elif noisy and ahead.most > max(HIDDEN * unit, 2 * error):
        found.append(
            "the gradient at the end is smaller than its error, which may hide a gain "
            f"of up to {ahead.most:.2g} nats. Raise num_samples to find it."
        )
    if not clear_first:
        found.append(
            "the gradient at the start could not be told from its noise, so the first "
            "steps were random. Raise num_samples, or use other init_params."
        )
    return found


def _at_rest(ended: Run, index: int, params: Any) -> Status:
    """How a run ended whose gradient was zero at the start."""
    said, ending, start = ended.status, ended.status.ending, ended.starts[index]
    objective, sites = ended.clean.objective, ended.clean.objective.sites
    if not objective.expectations and not ended.clean.sm.params_of(sites):
        named = ", ".join(map(repr, sites))
        return Status(f"{said}; no parameter reaches {named}", Ending.AT_REST)
    if _free_gradient_norm(ended, start) > 0:
        held = f"{said}; the projection allows no move from the start"
        return Status(held, Ending.AT_REST)
    if np.any(flat(params) != flat(start)):
        left = "from a start at a saddle point, which it left in a random direction"
        return Status(f"{said}, {left}", ending)
    exact, move = ended.ascent.problem.closed_form, ended.ascent.move
    key = jax.random.fold_in(ended.rng_key, index)
    here = jax.tree.map(lambda x: x[index], ended.states.unconstrained_params)
    higher = None if exact is None else is_below_others(exact, move, here, key)
    if higher is False:
        return said  # it is a maximum
    may_be = "is" if higher else "may be"
    return Status(
        f"{said}; the gradient was zero at the start, which {may_be} a saddle point: "
        "use other init_params or num_restarts",
        Ending.SADDLE,
    )


def _free_gradient_norm(ended: Run, start: Any) -> float:
    """Norm of the gradient at a start, in all directions."""
    ascent = ended.ascent
    ascent = replace(ascent, move=ascent.move._replace(projection=None))
    state = ended.plan.start(ended.clean, ended.rng_key, start)
    batch = jax.tree.map(lambda x: x[None], state)
    _, info = ascend_many(ascent, batch, jnp.ones(1))
    return float(info.gradient_norm[0, 0])


def _skipped(history: dict[str, Any]) -> int:
    """Number of steps that were not finite."""
    return int(np.sum(~history.get("finite", np.ones(0, bool))))


def _missed(reports: tuple[ConstraintReport, ...]) -> list[ConstraintReport]:
    """Constraints that are not met."""
    return [report for report in reports if not report.is_met]


def _reports(ended: Run, ends: list[Any]) -> list[tuple[ConstraintReport, ...]]:
    """The reports of the constraints where each restart ended."""
    if not ended.plan.subject_to:
        return [()] * len(ends)
    has_steps = ended.chunks and not ended.is_stopped
    gradients = _free_gradients(ended) if has_steps else [None] * len(ends)
    return [_report(ended, i, at, gradients[i]) for i, at in enumerate(ends)]


def _report(
    ended: Run, index: int, params: Any, gradients: np.ndarray | None
) -> tuple[ConstraintReport, ...]:
    """The report of each constraint."""
    budgets, reports = ended.ascent.budgets, []
    multipliers, errors = _multipliers(ended, index, gradients)
    found = _constrained(ended, params, jax.random.fold_in(ended.rng_key, 8))
    for i, constraint in enumerate(ended.plan.subject_to):
        value, error = found[i].value, found[i].standard_error
        bound, scale = float(constraint.bound), float(budgets.scales[i])
        reports.append(
            ConstraintReport(
                constraint,
                value=value,
                standard_error=error,
                bound=bound,
                violation=max(constraint.sign * (value - bound), 0.0),
                tolerance=scale * float(budgets.rounding[i]) + 2 * error,
                multiplier=float(multipliers[i]) / scale,
                multiplier_error=float(errors[i]) / scale,
            )
        )
    return tuple(reports)


def _free_gradients(ended: Run) -> np.ndarray:
    """Gradients of the objective alone where each restart ended, in units of the rates;
    (num_restarts, num_gradients, num_parameters).
    """
    budgets = ended.ascent.budgets
    nowhere = budgets._replace(bounds=jnp.full_like(budgets.bounds, jnp.inf))
    free = replace(ended.ascent, budgets=nowhere)
    steps = ended.chunks[-1].finite.shape[1]  # for which it is compiled
    _, infos = ascend_many(free, ended.states, jnp.zeros(steps))  # moves nothing
    return flat(infos.gradient, 2) * ended.flat_scale()


def _multipliers(
    ended: Run, index: int, gradients: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers of the relative excesses at the end, and their standard errors.

    The ascent's own multipliers suffice to hold the bounds. But they follow products of
    a noisy excess and a noisy gradient, whose mean is not the product of the means. The
    distance from these is a part of the error, because the end is not quite an optimum.
    """
    own = np.asarray(ended.states.multipliers[index], float)
    if gradients is None:
        return own, np.full(len(own), np.inf)
    holds = own > 0
    found, errors = np.zeros((2, len(own)))
    if np.any(holds):
        here = jax.tree.map(lambda x: x[index], ended.states.unconstrained_params)
        key = jax.random.fold_in(ended.rng_key, 9)
        normals = flat(slopes(ended.ascent, here, key), 1) * ended.flat_scale()
        found[holds], errors[holds] = multipliers_from(normals[holds], gradients)
        errors = np.hypot(errors, found - own)
    return found, errors


def _constrained(ended: Run, params: Any, rng_key: jax.Array) -> list[Estimate]:
    """The expectation of each constraint."""
    size = max(REPLICATES * ended.ascent.source.size, _CHECKED)
    return [
        value_of(ended.clean.sm, c.expectations, params, rng_key, num_samples=size)
        for c in ended.plan.subject_to
    ]


def _landed(ended: Run, index: int, unconstrained_params: Any) -> Any:
    """The parameters after a correction onto the bounds that hold them."""
    subject_to, key = ended.plan.subject_to, jax.random.fold_in(ended.rng_key, 9)

    def measure(here: Any) -> tuple[np.ndarray, np.ndarray]:
        params = constrained(here, ended.ascent.move.constraints)
        try:
            found = _constrained(ended, params, key)
        except InfogradError:  # such as an expectation that is not finite here
            nowhere = np.full(len(subject_to), math.nan)
            return nowhere, nowhere
        pairs = zip(subject_to, found, strict=True)
        over = [c.sign * (estimate.value - c.bound) for c, estimate in pairs]
        return np.array(over), np.array([e.standard_error for e in found])

    multipliers = ended.states.multipliers[index]
    return land(ended.ascent, unconstrained_params, multipliers, measure, key)


def _fall(ended: Run, end: Estimate | None) -> str:
    """How far the ascent fell below its start, in words; "" if it did not fall.

    The words hold for what is minimised, too. Both values use the same key. With
    constraints there is no check, because the objective may have to fall to meet them.
    """
    if ended.plan.subject_to or not ended.chunks:
        return ""
    if end is not None and end.method == "mcmc":
        # A rough value of the start is usually enough, and takes a tenth of the time.
        rough, _ = _value(ended, ended.starts[0], MCMC(tolerance=_ROUGH))
        far = 4 * math.hypot(rough.standard_error, end.standard_error) if rough else 0.0
        if rough and end.value > rough.value + far:
            return ""
    start, _ = _value(ended, ended.starts[0])
    if start is None:
        return ""
    if end is None:
        return "and has no value at the end"
    error = math.hypot(start.standard_error, end.standard_error)
    if end.value >= start.value - 2 * error - 1e-6 * abs(start.value):
        return ""
    return f"by {start.value - end.value:.4g} nats"


def _end(ended: Run, index: int) -> End:
    """Where a restart ended, with its value or the reason why it has none.

    If the objective has no value after the last step, the point before it is used.
    """
    trouble = ""
    for tree in (ended.states.unconstrained_params, ended.states.previous):
        tree = jax.tree.map(lambda x: x[index], tree)
        if ended.plan.subject_to:
            tree = _landed(ended, index, tree)
        params = constrained(tree, ended.ascent.move.constraints)
        value, why = _value(ended, params)
        if value is not None or ended.is_stopped:
            return params, value, why
        trouble = trouble or why
    return params, None, trouble


def _value(
    ended: Run, params: Any, method: str | MCMC = "auto"
) -> tuple[Estimate | None, str]:
    """The value of the objective at `params`, or the reason why it has none."""
    key = jax.random.fold_in(ended.rng_key, 7)
    if ended.is_stopped:
        return None, "its estimate was interrupted"
    try:
        sm, objective = see_through(ended.clean.sm, ended.plan.objective, params)
        value = value_of(sm, objective, params, key, method)
    except (InfogradError, jax.errors.JaxRuntimeError) as error:  # or out of memory
        return None, str(error)
    except KeyboardInterrupt:  # the ascent is done, and must not be lost
        ended.is_stopped = True
        return _value(ended, params, method)
    if math.isfinite(value.value):
        return value, ""
    return None, "it is not finite at the last parameters"


def _rank(value: Estimate | None, reports: tuple[ConstraintReport, ...]) -> Any:
    """Sort key of ends: first by violations of constraints, then by value."""
    missed = sum(r.violation / r.tolerance for r in _missed(reports))
    return (-missed, -math.inf if value is None else value.value)


def _histories(ended: Run, budgets: bool) -> tuple[dict[str, Any], ...]:
    """The histories of all restarts: arrays over steps."""
    if not ended.chunks:
        return ({},) * len(ended.starts)
    infos = join(ended.chunks)
    return tuple(
        _history(ended, jax.tree.map(lambda x, i=i: x[i], infos), budgets)
        for i in range(len(ended.starts))
    )


def _history(ended: Run, info: StepInfo, budgets: bool) -> dict[str, Any]:
    """The history of one restart: arrays over steps."""
    history = {
        "gradient_norm": info.gradient_norm,
        "gain": info.gain,
        "params": without_pairs(ended.clean.sm.pairs, info.params),
        "finite": info.finite,
    }
    history |= {str(measure): each for measure, each in info.evidence.items()}
    if np.any(np.isfinite(info.objective)):
        history["objective"] = info.objective
    if budgets:
        history["excess"] = info.excess
    return history
