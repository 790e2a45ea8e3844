# SPDX-License-Identifier: Apache-2.0
"""Stein's identities as control variates.

For a density that vanishes at the ends of its support, E[s] = 0 and E[s(u) u^T] = -I.
A linear function of the values is added to the scores of a batch so that the batch
satisfies both identities. This removes errors of scale (the calibration of the paper),
mean and slope, and most of the sampling noise of a linear-Gaussian part.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from numpyro_infograd._density import Density, Values, flatten, unflatten
from numpyro_infograd.scores.base import Layout, Scores, symmetric_powers
from numpyro_infograd.scores.coordinates import Free

# The correction is fitted on the batch that it corrects, which causes a bias. It is
# tiny with quasi-random noise. With other noise, this many samples for each column keep
# it below half a standard error of the mean of 16 batches.
_SAMPLES_PER_COLUMN = 64


def stein_correct(density: Density, score: Scores, values: Values) -> Scores:
    """Correct a batch of scores so that it satisfies Stein's identities.

    The identities hold in unbounded coordinates, for the sites whose density it is and
    not for those conditioned on. The same map corrects deviations towards zero. The
    evidence "stein_residual" is the relative error before the correction,
    E<u, s> / d + 1.
    """
    seen = standard(density, score, values)
    if seen is None:
        return score
    free, raw = seen
    layout = Layout.of(density)
    mine = jnp.asarray(layout.own, int)
    columns = jnp.asarray(layout.own_columns, int)
    centred = free.values - jnp.mean(free.values, axis=0)
    measured = jnp.sum(centred[:, columns] * raw) / raw.size
    evidence = {**score.evidence, "stein_residual": measured + 1.0}
    own = tuple(name for name in density.moved_sites if name in density.sites)

    def back(each: jax.Array) -> Values:
        return unflatten(each / free.slope[:, mine], values, own)

    num_samples, width = centred.shape
    if num_samples < _SAMPLES_PER_COLUMN * width:  # scale alone
        scale = jnp.clip(-1.0 / measured, 0.5, 2.0)
        mean = back(scale * raw - free.bend[:, mine])
        return Scores({**score.mean, **mean}, score.deviations, evidence)

    scale = jnp.std(centred, axis=0)
    scale = jnp.where(scale > 0, scale, 1.0)
    unit = centred / scale
    (inverse,) = symmetric_powers(unit.T @ unit / num_samples, -1.0)
    wanted = jnp.zeros((width, len(mine)), centred.dtype)
    wanted = wanted.at[columns, jnp.arange(len(mine))].set(-1.0 / scale[columns])

    def correct(each: jax.Array, wanted: jax.Array | float) -> jax.Array:
        each = each - jnp.mean(each, axis=0)
        defect = wanted - unit.T @ each / num_samples
        return each + unit @ (inverse @ defect)

    mean = {**score.mean, **back(correct(raw, wanted) - free.bend[:, mine])}
    deviations = score.deviations
    if deviations is not None:

        def fixed(each: Values) -> Values:
            return back(correct(free.slope[:, mine] * flatten(each, own), 0.0))

        deviations = {**deviations, **jax.vmap(fixed)({n: deviations[n] for n in own})}
    return Scores(mean, deviations, evidence)


def standard(
    density: Density, score: Scores, values: Values
) -> tuple[Free, jax.Array] | None:
    """Unbounded coordinates, and in them the scores (num_samples, dimensions) that
    satisfy Stein's identities; None if no scores do.
    """
    own = tuple(name for name in density.moved_sites if name in density.sites)
    if not own or density.hard_boundaries or density.moving_boundary:
        return None
    if density.causal:  # the second identity fails where a condition is an effect
        return None
    free, mine = Free.of(density, values), jnp.asarray(Layout.of(density).own, int)
    raw = free.slope[:, mine] * flatten(score.mean, own) + free.bend[:, mine]
    return free, raw
