# SPDX-License-Identifier: Apache-2.0
"""What a calibration reports: errors, draws, what is free, what to doubt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp

from numpyro_infograd.calibrate.result import Calibration, TwoSample
from numpyro_infograd.optimize.step import constrained, onto
from numpyro_infograd.scores.coordinates import CLIP
from numpyro_infograd.values import Estimate

if TYPE_CHECKING:
    from numpyro_infograd.calibrate.fit import Fit

_LOST = 0.05  # part that a parameter may have in what is undetermined


def make_report(
    fit: Fit,
    status: str,
    before: Estimate,
    after: Estimate,
    test_before: TwoSample,
    targets: Any,
    pulls: Any,
) -> Calibration:
    """All that is known at the end.

    Args:
        fit: Where the twin stands.
        status: How it got there.
        before: Divergence from the held-out recordings at the start.
        after: The same at the end.
        test_before: Two-sample test at the start.
        targets: W_p of resampled recordings.
        pulls: Their G_p (W_q - W_p).
    """
    params = constrained(fit.free, fit.constraints)
    draws: dict[str, Any] = {}
    errors = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan), params)
    undetermined: tuple[dict[str, Any], ...] = ()
    if fit.end is not None:
        draws, errors, undetermined = _spread(fit, targets, pulls)
    test_after = fit.test()
    simulated = fit.simulate(fit.free, fit.train.size)
    history: dict[str, Any] = {}
    if fit.history:
        history = jax.tree.map(lambda *x: np.concatenate(x), *fit.history)
        skipped = int(np.sum(~history["finite"]))
        if skipped:
            status += f"; {skipped} steps were not finite and were skipped"
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
        simulated={n: np.asarray(v) for n, v in simulated.items()},
        warnings=fit.warnings + _doubts(fit, after, test_after, undetermined),
    )


def _spread(fit: Fit, targets: Any, pulls: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """Draws of the parameters, their errors, and what is undetermined."""
    assert fit.end is not None
    local, weights, directions, noise = fit.end
    flat, unravel = ravel_pytree(fit.free)
    project = fit.settings.projection

    def params_at(flat: jax.Array) -> Any:
        return constrained(onto(project, unravel(flat)), fit.constraints)

    found = fit.resampled_gradients(local, weights, targets, pulls)
    found = found - found.mean(0)
    found += fit.rng.multivariate_normal(np.zeros(len(noise)), noise, len(found))
    free = np.asarray(flat) + directions.solve(found)
    draws = jax.vmap(params_at)(jnp.asarray(free, flat.dtype))
    errors = jax.tree.map(lambda x: jnp.std(x, axis=0), draws)
    undetermined = []
    for column in jnp.asarray(directions.unknown.T, flat.dtype):
        moved = jax.jvp(params_at, (flat,), (column,))[1]
        undetermined.append(moved)
        longest = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(moved))
        errors = jax.tree.map(
            lambda e, m, most=_LOST * longest: jnp.where(jnp.abs(m) > most, jnp.inf, e),
            errors,
            moved,
        )
    return draws, errors, tuple(undetermined)


def _doubts(
    fit: Fit, after: Estimate, test: TwoSample, undetermined: tuple[Any, ...]
) -> tuple[str, ...]:
    """What a careful user should read."""
    found = []
    if fit.end is not None and fit.end.directions.rough:
        found.append(
            "derivatives of the twin's draws are too noisy to say what the "
            "recordings determine (a step that is almost a jump?): widen the step, "
            "or use divergence='kl' with noise_levels=(0.05, 0.2, 0.6)."
        )
    elif undetermined:
        found.append(
            "the recordings leave parameters free, along "
            f"{_count(len(undetermined))} (see .undetermined): those that take part "
            "have infinite standard errors. Fix some, or record more sites."
        )
    _, edges = fit.ways()
    if edges:
        found.append(
            "the projection holds the parameters at an edge of its set, along "
            f"{_count(edges)}: standard errors are of moves along the edge alone."
        )
    far = after.value > 3 * after.standard_error
    if far or (test.pvalue < 0.05 and after.lower > 0):
        found.append(
            f"draws of the twin can still be told from recordings "
            f"({after.value:.3g} +- {after.standard_error:.2g} nats; two-sample "
            f"test p = {test.pvalue:.2g}): this descent, or any model of this "
            "form, gets no nearer, and standard errors are not those of a truth."
        )
    drawn = fit.whole.features.coordinates(fit.simulate(fit.free, 1024))
    outside = float(jnp.mean(jnp.any(jnp.abs(drawn) > CLIP, axis=1)))
    if outside > 0.01:
        found.append(
            f"{outside:.0%} of the twin's draws are more than {CLIP:.0f} standard "
            "deviations from all recordings, where nothing says which way is "
            "nearer. Give init_params whose outputs overlap the recordings."
        )
    return tuple(found)


def _count(number: int) -> str:
    return "1 direction" if number == 1 else f"{number} directions"
