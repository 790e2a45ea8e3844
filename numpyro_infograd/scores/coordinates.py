# SPDX-License-Identifier: Apache-2.0
"""Coordinates for learned scores: unbounded, whitened, close to standard normal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._density import Density, Values, flatten, quantiles
from numpyro_infograd.scores.base import Layout, sequence_after, symmetric_powers

CLIP = 8.0  # standard deviations at which the inputs of a network are clipped
# Tails are heavy above this standard deviation, in units of that of the middle 68 %.
HEAVY = 3.0


class Free(NamedTuple):
    """Values in unbounded coordinates z: log u, logit u or u itself.

    A score s of u becomes u'(z) s + d log u'(z) / dz in z. The second term is only for
    the sites whose density it is, not for those conditioned on.
    """

    values: jax.Array  # (num_samples, inputs)
    slope: jax.Array  # u'(z) for each score component, (num_samples, outputs)
    bend: jax.Array  # d log u'(z) / dz, or 0 for `given`, (num_samples, outputs)

    @staticmethod
    def of(density: Density, site_values: Values) -> Free:
        u = flatten(site_values, density.all_sites)
        layout = Layout.of(density)
        names = np.repeat(density.supports, density.sizes)
        above, below = _distances(u, names)
        values = jnp.where(_is_bounded(names), jnp.log(above / below), u)
        # Columns are picked first: XLA is slow to pick columns of constants.
        columns = np.asarray(layout.outputs, int)
        u, names = u[:, columns], names[columns]
        above, below = _distances(u, names)
        bend = jnp.where(names == "unit", 1.0 - 2.0 * u, names == "positive")
        own = np.isin(np.arange(len(columns)), layout.own)
        return Free(values, above * below, jnp.where(own, bend, 0.0))


def _is_bounded(names: np.ndarray) -> np.ndarray:
    """Which supports have an end that coordinates move to infinity."""
    return np.isin(names, ("positive", "unit"))


def _distances(u: jax.Array, names: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Distances of u from the lower and the upper end of its support.

    The distance from an end that a support does not have is 1.
    """
    small = jnp.finfo(u.dtype).tiny
    above = jnp.where(_is_bounded(names), jnp.maximum(u, small), 1.0)
    below = jnp.where(names == "unit", jnp.maximum(1.0 - u, small), 1.0)
    return above, below


def tails_of(values: np.ndarray) -> float:
    """The largest standard deviation of a column, in units of that of its middle 68 %.

    It is 1 for a normal distribution. Columns whose middle is one value do not count.
    """
    low, high = quantiles(values, 0.16, 0.84)
    middle = 0.5 * (high - low)
    return float(np.max(values.std(axis=0) / np.where(middle > 0, middle, np.inf)))


class Frame(NamedTuple):
    """A normal distribution with a batch's moments, and coordinates that whiten it.

    The score of p(sites | given) is the score of this normal distribution plus a
    residual that a network learns. Both are in units of `fisher_sqrt`. Whitening is
    symmetric, so it does not depend on the order of the columns.
    """

    mean: jax.Array  # (inputs,)
    whiten: jax.Array  # (inputs, inputs)
    base: jax.Array  # (outputs, inputs): score of the normal distribution
    fisher_sqrt: jax.Array  # square root of its Fisher information
    fisher_inv_sqrt: jax.Array  # inverse of that root, both (outputs, outputs)
    setting: jax.Array  # parameters, as inputs of a network trained for a range

    @staticmethod
    def of(
        values: jax.Array, layout: Layout, setting: jax.Array | None = None
    ) -> Frame:
        """The frame of the moments of values (..., inputs), with any axes of samples.

        The variance of a column with heavy tails says little, so the column is scaled
        by quantiles and gets no Gaussian part.
        """
        values = values.reshape(-1, values.shape[-1])
        some = values[:512]  # sorting is slow
        low, middle, high = quantiles(some, 0.16, 0.5, 0.84)
        robust = 0.5 * (high - low)
        deviation = jnp.std(values, axis=0)
        heavy = (deviation > HEAVY * robust) & (robust > 0)
        mean = jnp.where(heavy, middle, jnp.mean(values, axis=0))
        scale = jnp.where(heavy, robust, deviation)
        scale = jnp.where(scale > 0, scale, 1.0)
        standard = (values - mean) / scale
        light = 1.0 - heavy.astype(values.dtype)
        correlation = standard.T @ standard / len(values) * light[:, None] * light
        eye = jnp.eye(values.shape[1], dtype=bool)
        correlation = jnp.where(eye, 1.0, correlation)
        precision, whiten = symmetric_powers(correlation, -1.0, -0.5)
        whiten = whiten / scale

        outputs = jnp.asarray(layout.outputs, int)
        information = precision[outputs][:, outputs] / scale[outputs][:, None]
        information = information / scale[outputs]
        conditional = precision
        if layout.given:
            given = jnp.asarray(layout.given, int)
            own = sequence_after(correlation[given][:, given], precision)
            (alone,) = symmetric_powers(own, -1.0)
            conditional = precision.at[given[:, None], given].add(-alone)
        base = -(conditional * light[:, None])[outputs]
        base = base / scale[outputs][:, None] / scale
        fisher_sqrt, fisher_inv_sqrt = symmetric_powers(
            sequence_after(information, base), 0.5, -0.5
        )
        setting = jnp.zeros(0) if setting is None else setting
        return Frame(mean, whiten, base, fisher_sqrt, fisher_inv_sqrt, setting)

    def gaussian(self, centred: jax.Array) -> jax.Array:
        """Score of the normal distribution, in units of `fisher_sqrt`."""
        return centred @ self.base.T @ self.fisher_inv_sqrt

    def moved(
        self,
        centred: jax.Array,
        layout: Layout,
        noise: jax.Array,
        variance: jax.Array | float,
    ) -> jax.Array:
        """Values minus `mean` plus standard normal noise (num_samples, outputs) times
        the root of a variance: a scalar or (num_samples, 1), relative to the
        conditional variance of a column given all others.
        """
        columns = jnp.asarray(layout.outputs, int)
        return centred.at[:, columns].add(
            jnp.sqrt(variance) * noise @ self.fisher_inv_sqrt
        )

    def clipped(self, centred: jax.Array) -> jax.Array:
        """Whitened values (num_samples, inputs) in the range of the networks."""
        return jnp.clip(centred @ self.whiten.T, -CLIP, CLIP)

    def features(self, centred: jax.Array, level: jax.Array | None = None) -> jax.Array:
        """Inputs of a network: clipped whitened values, the setting, and a noise level.

        The level is a scalar or (num_samples, 1); None has no column.
        """
        parts, rows = [self.clipped(centred)], len(centred)
        if self.setting.shape[-1]:
            parts.append(jnp.broadcast_to(self.setting, (rows, len(self.setting))))
        if level is not None:
            parts.append(jnp.broadcast_to(level, (rows, 1)))
        return jnp.concatenate(parts, axis=1)
