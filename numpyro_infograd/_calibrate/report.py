# SPDX-License-Identifier: Apache-2.0
"""The report of a calibration: errors, draws, undetermined directions, warnings.

Also the choice between several starts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
import functools
import math
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._calibrate.fit import HELD_OUT, Fit
from numpyro_infograd._calibrate.result import Calibration, TwoSample
from numpyro_infograd._optimize import Ending, Status
from numpyro_infograd._optimize.move import constrained, onto, unconstrained
from numpyro_infograd._pairs import without_pairs
from numpyro_infograd.scores.coordinates import CLIP
from numpyro_infograd.values import Estimate

_REPLICATES = 20  # replicates of the recordings by the twin, at most
_LARGEST = 2**25  # numbers in all replicates, at most
_COMPARED = 16384  # draws of the twin against which outliers are seen
_BEYOND = 1.25  # distance of an outlier, in distances of the farthest draw
_REJECTED = 0.01  # p-value below which a two-sample test rejects a twin
_FEW_MISSED = 1e-3  # share of recordings that few draws may leave out
_GROWN = 1.5  # growth of errors that chance makes unlikely, in any number of directions
_LOST = 0.05  # largest undetermined part of a parameter with a finite error


def make_report(
    fit: Fit[Any],
    status: Status,
    before: Estimate,
    after: Estimate,
    test_before: TwoSample,
) -> Calibration:
    """The result of a calibration, from where it ended."""
    params = constrained(fit.unconstrained_params, fit.constraints)
    draws: dict[str, Any] = {}
    errors = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan), params)
    undetermined: tuple[dict[str, Any], ...] = ()
    growth = 1.0
    if fit.end is not None:
        draws, errors, undetermined, growth = _spread(fit)
        errors = {name: errors[name] for name in params}  # JAX sorts dicts
    test_after = fit.test()
    simulated = _replicates(fit, draws)
    said = fit.warnings
    history: dict[str, Any] = {}
    if fit.history:
        history = jax.tree.map(lambda *x: np.concatenate(x), *fit.history)
        if skipped := int(np.sum(~history["finite"])):
            also = f"; {skipped} steps were not finite and were skipped"
            status = Status(status + also, status.ending)
            said += (
                f"{skipped} of {len(history['finite'])} steps were not finite and were "
                "skipped, so the fit may rest on few steps. Start from other "
                "init_params, or enable x64 (numpyro.enable_x64()).",
            )
    return Calibration(
        params,
        after,
        history,
        status,
        {"divergence": fit.settings.divergence, "noise_levels": fit.settings.used},
        histories=(history,),
        standard_error=errors,
        draws=draws,
        before=before,
        after=after,
        test_before=test_before,
        test_after=test_after,
        undetermined=undetermined,
        recorded={n: v[fit.train.ravel()] for n, v in fit.recorded.items()},
        simulated=simulated,
        warnings=said
        + _warnings_for(fit, status, after, test_after, undetermined, growth),
    )


def _replicates(fit: Fit[Any], draws: dict[str, Any]) -> dict[str, np.ndarray]:
    """Replicates of the recordings by the twin, each for one draw of parameters."""
    number = fit.train.size
    count = int(np.clip(_LARGEST // (number * sum(fit.density.sizes)), 1, _REPLICATES))
    places = [fit.unconstrained_params] * count
    if draws:
        params = jax.device_get(draws)
        places = [
            unconstrained(jax.tree.map(lambda x, i=i: x[i], params), fit.constraints)
            for i in range(count)
        ]
    made = [fit.simulate(place, number) for place in places]
    return jax.tree.map(lambda *x: np.stack(x), *made)


def _spread(fit: Fit[Any]) -> tuple[Any, Any, tuple[Any, ...], float]:
    """Draws of the parameters, their errors, the undetermined directions, and by how
    much errors grow from blocks to four blocks in one.
    """
    assert fit.end is not None
    place, directions, _ = fit.end
    flat = fit.flat

    def params_at(flat: jax.Array) -> Any:
        moved = onto(fit.settings.projection, fit.unravel(flat))
        return constrained(moved, fit.constraints)

    found = fit.resampled(place, fit.settings.num_draws)
    coarse = fit.resampled(place, fit.settings.num_draws, HELD_OUT - 1)
    growth = _growth(*(x @ directions.known for x in (found, coarse)))
    found, noise = found - found.mean(0), place.noise
    found += fit.rng.multivariate_normal(np.zeros(len(noise)), noise, len(found))
    moved = np.asarray(flat) + directions.solve(found)
    draws = jax.vmap(params_at)(jnp.asarray(moved, flat.dtype))
    # How each parameter changes along the known and the unknown directions.
    known, unknown = directions.known, directions.unknown
    moves = jax.vmap(lambda column: jax.jvp(params_at, (flat,), (column,))[1])(
        jnp.asarray(np.concatenate([known, unknown], axis=1).T, flat.dtype)
    )
    rank = known.shape[1]

    def error(draws: np.ndarray, moved: np.ndarray) -> jax.Array:
        """Infinite if undetermined; NaN if a projection lets it not move."""
        moved = moved.astype(float)
        whole, lost = np.sum(moved**2, axis=0), np.sum(moved[rank:] ** 2, axis=0)
        with np.errstate(all="ignore"):  # parameters may be infinite
            found = np.where(lost > _LOST**2 * whole, np.inf, np.std(draws, axis=0))
        return jnp.asarray(np.where(whole > 0, found, np.nan))

    draws, moves = jax.device_get((draws, moves))
    errors = jax.tree.map(error, draws, moves)
    undetermined = tuple(
        jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), moves)
        for i in range(rank, rank + unknown.shape[1])
    )
    return jax.tree.map(jnp.asarray, draws), errors, undetermined, growth


def _growth(fine: np.ndarray, coarse: np.ndarray) -> float:
    """By how much deviations grow, on average over columns.

    A deviation of 25 blocks is known to 14 %, and one of 100 to 7 %.
    """
    if not fine.size:
        return 1.0
    before, after = (np.maximum(np.std(x, axis=0), 1e-30) for x in (fine, coarse))
    return float(np.exp(np.mean(np.log(after / before))))


def _warnings_for(
    fit: Fit[Any],
    status: Status,
    after: Estimate,
    test: TwoSample,
    undetermined: tuple[Any, ...],
    growth: float,
) -> tuple[str, ...]:
    """Sentences that say why results may be wrong."""
    found = []
    drawn = fit.simulate(fit.unconstrained_params, 1024)
    seen = fit.recordings(fit.train.ravel()[::16])
    outside, usual = (
        float(np.mean(~np.all(np.abs(fit.coordinates(v)) <= CLIP, axis=1)))
        for v in (drawn, seen)
    )
    if outside > 2 * usual + 0.01:
        apart = (
            f"{outside:.0%} of the twin's draws are not finite, or more than "
            f"{CLIP:.0f} standard deviations from the recordings' mean, where the "
            "gradient does not point to the recordings. Use init_params whose outputs "
            "overlap the recordings."
        )
        if outside > 0.5:  # other warnings would follow from this
            return (apart,)
        found.append(apart)
    if fit.end is not None and fit.end.directions.rough:
        found.append(
            "derivatives of the twin's draws are too noisy to show what the "
            "recordings determine. Perhaps they do not determine some parameters: fix "
            "these, or record more sites. Or a step is almost a jump: widen it, or use "
            "divergence='kl' with noise_levels=(0.05, 0.2, 0.6)."
        )
    elif undetermined:
        found.append(
            "the recordings do not determine the parameters along "
            f"{_count(len(undetermined))} (see .undetermined){fit.doubt}: parameters "
            "that change along them have infinite standard errors. Fix some "
            "parameters, or record more sites."
        )
    if fit.end is not None and fit.end.edges:
        found.append(
            "the projection holds the parameters at an edge of its set, along "
            f"{_count(fit.end.edges)}: standard errors are only of moves along the "
            "edge (NaN if no other exists)."
        )
    if growth > _GROWN:
        found.append(
            "the recordings are correlated over more than a block of the bootstrap: "
            f"with blocks four times as long, errors are {growth:.2g} times as large. "
            "Standard errors are too small. Record for longer, or keep "
            "every n-th recording, with n larger than their correlation time."
        )
    converged = status.ending is Ending.CONVERGED
    if fit.end is not None and not converged:
        found.append(
            "the Newton steps did not converge (see .status): standard errors may be "
            "wrong."
        )
    found.extend([*fit.doubts(), *_outliers(fit)])
    if missed := after.diagnostics.get("missed"):
        found.append(
            f"{missed:.2%} of the held-out recordings have probability zero under a "
            "set of the twin's draws, so .after leaves them out. Use a model that can "
            "make every recording."
        )
    likely = fit.settings.divergence == "likelihood"  # its value is no divergence
    far = not likely and after.value > 3 * after.standard_error
    near = likely or after.lower <= 0
    if far or test.pvalue < _REJECTED or (test.pvalue < 0.05 and not near):
        number = f"{after.value:.3g} +- {after.standard_error:.2g}"
        signs = [f"the divergence is {number} nats, not zero"] if far else []
        if test.pvalue < 0.05:
            signs.append(f"a two-sample test has p = {test.pvalue:.2g}")
        why: str = status
        if fit.end is not None and fit.end.edges:
            why = "the projection prevents a better fit"
        elif converged:
            why = "the descent converged, so the model may be misspecified"
        found.append(
            "the twin's distribution differs from that of the recordings "
            f"({' and '.join(signs)}): {why}. Standard errors do not apply."
        )
    return tuple(found)


def _outliers(fit: Fit[Any]) -> list[str]:
    """What is said about recordings that the twin does not make."""
    rows = fit.recordings(fit.train.ravel())
    drawn = fit.simulate(fit.unconstrained_params, _COMPARED)
    z, made = map(fit.coordinates, (rows, drawn))
    out = int(np.sum(~fit.near(z)))
    if out:
        seen, shown = out / len(z), float(np.mean(~fit.near(made)))
        far = f"{out} of {len(z)} recordings are far from the others and have weight "
        if fit.settings.robust:
            return [f"robust: {far}zero."]
        noise = math.sqrt(seen / len(z) + shown / len(made))
        if abs(seen - shown) < 3 * noise:
            return [f"heavy tails: {far}zero, as have {shown:.1%} of the twin's draws."]
        return [
            f"{far}zero, against {shown:.1%} of the twin's draws: the twin does "
            "not make these recordings, and standard errors do not apply. Use other "
            "init_params or another model, pass divergence='likelihood', or "
            "robust=True if they are outliers."
        ]
    farthest = float(np.max(np.linalg.norm(made, axis=1)))
    out = int(np.sum(np.linalg.norm(z, axis=1) > _BEYOND * farthest))
    if out < 2 or out < 5 * len(z) / len(made):
        return []
    text = (
        f"{out} of {len(z)} recordings are farther out than all of {len(made)} draws "
        "of the twin, as outliers are, and they may move the parameters. "
    )
    if fit.settings.divergence == "likelihood":
        return [text + "Give the model heavier tails, or drop these rows."]
    return [text + "Pass robust=True, or give the model heavier tails."]


def _count(number: int) -> str:
    return "1 direction" if number == 1 else f"{number} directions"


def has_fallen(end: Calibration) -> bool:
    """Whether a twin ended farther from its recordings than it began, and unsettled.

    The rates of the default optimizer are too high for a parameter that is large, but
    matters by small changes, as an offset does.
    """
    before, after = end.test_before, end.test_after
    assert before is not None and after is not None
    is_worse = after.statistic > before.statistic
    done = end.status.ending in (Ending.CONVERGED, Ending.INTERRUPTED)
    settled = done and not end.undetermined
    return is_worse and after.pvalue < _REJECTED and not settled


def rank(end: Calibration) -> tuple[bool, float, float]:
    """Sort key of twins, the best first; see `best_of`."""
    assert end.after is not None and end.test_after is not None
    value, missed = end.after.value, end.after.diagnostics.get("missed", 0.0)
    rejected = end.test_after.pvalue < _REJECTED
    out = missed if missed > _FEW_MISSED else 0.0
    return rejected, out, math.inf if value != value else value


def as_given(found: Calibration, pairs: Collection[str]) -> Calibration:
    """The calibration with complex parameters in place of these pairs."""

    seen = functools.partial(without_pairs, pairs)

    def steps(history: dict[str, Any]) -> dict[str, Any]:
        return history and history | {"params": seen(history["params"])}

    return replace(
        found,
        params=seen(found.params),
        history=steps(found.history),
        histories=tuple(map(steps, found.histories)),
        standard_error=seen(found.standard_error),
        draws=seen(found.draws),
        undetermined=tuple(map(seen, found.undetermined)),
    )


def best_of(ends: Sequence[Calibration]) -> Calibration:
    """The calibration with the smallest divergence from held-out recordings.

    One that the two-sample test rejects is worse than one that it does not: the
    divergences come from different features, so the test is the fairer judge. One that
    leaves out more of the recordings is worse too, because it cannot make them. Fewer
    than one in a thousand may be left out only because the draws are few.
    """
    if len(ends) == 1:
        return ends[0]
    best = min(ends, key=rank)
    return replace(
        best,
        diagnostics=best.diagnostics
        | {"restarts": [end.after.value for end in ends if end.after is not None]},
        histories=tuple(end.history for end in ends),
    )
