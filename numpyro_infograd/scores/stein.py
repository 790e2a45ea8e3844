# SPDX-License-Identifier: Apache-2.0
"""Stein's identities as control variates.

For a density that vanishes where its support ends, E[s] = 0 and E[s(u) u^T] = -I.
Scores are corrected by the linear function of the values that makes a batch obey them:
this removes an error of scale (the calibration of the paper), errors of mean and
slope, and most of the sampling noise that a linear-Gaussian part would leave.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from numpyro_infograd.density import Density, Values
from numpyro_infograd.scores.base import (
    Layout,
    Scores,
    flatten,
    symmetric_power,
    unflatten,
)

# The map is fitted on the batch that it corrects. Quasi-random noise keeps the bias of
# that tiny; with other noise, this many samples keep it below half a standard error of
# the mean of 16 batches.
_SAMPLES_PER_COLUMN = 64


def calibrate(density: Density, score: Scores, values: Values) -> Scores:
    """Make a batch of scores obey Stein's identities, where they hold.

    They hold for the sites whose density it is, not for those conditioned on, and
    only if the density has no boundary. Perturbations are corrected towards zero by
    the same map. Evidence gains "stein_residual", the relative defect found:
    E<Y, s> / d + 1 before the correction.
    """
    own = tuple(name for name in density.blocks if name in density.sites)
    if not own or not density.unbounded:
        return score
    raw = flatten(score.mean, own)
    u = flatten(values, density.all_sites)
    centred = u - jnp.mean(u, axis=0)
    layout = Layout.of(density)
    mine = jnp.asarray([layout.outputs[i] for i in layout.own], int)
    measured = jnp.sum(centred[:, mine] * raw) / raw.size
    evidence = {**score.evidence, "stein_residual": measured + 1.0}
    num_samples, width = u.shape
    if num_samples < _SAMPLES_PER_COLUMN * width:  # scale alone
        scale = jnp.clip(-1.0 / measured, 0.5, 2.0)
        mean = {name: scale * score.mean[name] for name in own}
        return Scores({**score.mean, **mean}, score.deviations, evidence)

    scale = jnp.std(u, axis=0)
    scale = jnp.where(scale > 0, scale, 1.0)
    unit = centred / scale
    inverse = symmetric_power(unit.T @ unit / num_samples, -1.0)
    wanted = jnp.zeros((width, len(mine)), u.dtype)
    wanted = wanted.at[mine, jnp.arange(len(mine))].set(-1.0 / scale[mine])

    def correct(each: jax.Array, wanted: jax.Array | float) -> jax.Array:
        each = each - jnp.mean(each, axis=0)
        defect = wanted - unit.T @ each / num_samples
        return each + unit @ (inverse @ defect)

    mean = {**score.mean, **unflatten(correct(raw, wanted), values, own)}
    deviations = score.deviations
    if deviations is not None:
        flat = jax.vmap(lambda d: flatten(d, own))({n: deviations[n] for n in own})
        fixed = jax.vmap(lambda d: correct(d, 0.0))(flat)
        deviations = {**deviations, **unflatten(fixed, values, own)}
    return Scores(mean, deviations, evidence)
