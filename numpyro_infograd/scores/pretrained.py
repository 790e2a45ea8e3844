# SPDX-License-Identifier: Apache-2.0
"""Scores s(y; params) that are trained once for a range of parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._density import Density, Values
from numpyro_infograd._program import Program
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd.errors import ArgumentError, ScoreError
from numpyro_infograd.scores.base import ScoreMethod, Scores
from numpyro_infograd.scores.learned import Fitted, Learned
from numpyro_infograd.scores.pool import Learning, with_noise
from numpyro_infograd.scores.quadratic import held_out_gain, solve

_EDGE = 1e-3  # tolerance for rounding at the ends of a range, relative to its size


class Range(NamedTuple):
    """The range of parameters that scores were trained on, as flat arrays."""

    low: jax.Array
    high: jax.Array

    def setting(self, params: Any, names: tuple[str, ...]) -> jax.Array:
        """The parameters scaled to [-1, 1], the inputs of the networks."""
        flat = flatten_params(params, names)
        return (2 * flat - self.low - self.high) / (self.high - self.low)


class _State(NamedTuple):
    networks: Any
    ranges: Range
    learning: Learning


def flatten_params(params: Any, names: tuple[str, ...]) -> jax.Array:
    """All numbers of the named parameters in one flat array."""
    leaves = [x for name in names for x in jax.tree.leaves(params[name])]
    return jnp.concatenate([jnp.ravel(x).astype(jnp.zeros(()).dtype) for x in leaves])


@dataclass(frozen=True)
class Pretrained(ScoreMethod):
    """Scores trained over a range of parameters; made by `pretrain_scores`.

    The inputs of the networks are the whitened values and the parameters. The networks
    are not trained again. At new parameters the moments are estimated from fresh
    samples; a single gradient also fits the last layers, by least squares.

    Attributes:
        method: The score method of the training.
        names: The parameters that are inputs of the networks.
        ranges: Lower and upper bounds of all their numbers, (num_numbers,) each.
        trained: Networks of each set of sites, by (sites, given).
        forward: The forward map of the model of the training.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> from numpyro_infograd.scores.pretrained import Range
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     gain = numpyro.param("gain", 1.0)
        ...     numpyro.sample("y", dist.Normal(jnp.tanh(gain * x), 0.5))
        >>> sm = ig.structural_model(model)
        >>> trained = ig.scores.Pretrained(  # by hand, without networks
        ...     ig.scores.Denoising(),
        ...     names=("gain",),
        ...     ranges=Range(jnp.array([0.0]), jnp.array([3.0])),
        ...     trained={},
        ...     forward=sm.forward,
        ... )
        >>> trained.prepare(sm, {"gain": 3.5}, ())
        Traceback (most recent call last):
        ...
        numpyro_infograd.errors.ArgumentError: parameter 'gain' is 3.5, outside the
        range [0.] to [3.] that the scores were trained for. Call pretrain_scores with
        a wider range.
    """

    method: Learned
    names: tuple[str, ...]
    ranges: Range = field(compare=False, repr=False)
    trained: dict[Any, Any] = field(compare=False, repr=False)
    forward: Program = field(compare=False, repr=False)

    num_samples = property(lambda self: self.method.num_samples)
    num_deviations = property(lambda self: self.method.num_deviations)
    noise_variance = property(lambda self: self.method.noise_variance)
    samples_only = property(lambda self: self.method.samples_only)

    def check(self, density: Density) -> None:
        """Raise unless there are networks for this density."""
        if density.is_known:
            return
        self.method.check(density)
        if (density.sites, density.given) not in self.trained:
            known = ", ".join(repr("|".join(map(",".join, s))) for s in self.trained)
            raise ScoreError(
                f"the scores were not trained for {density.all_sites}, but for: "
                f"{known}. Call pretrain_scores with this objective."
            )

    def prepare(
        self, sm: StructuralModel, params: Any, densities: tuple[Density, ...]
    ) -> Pretrained:
        """Raise for another model, or for parameters outside the range of training."""
        same = sm.forward.code == self.forward.code and all(
            np.array_equal(a, b)
            for a, b in zip(sm.forward.consts, self.forward.consts, strict=True)
        )
        if not same:
            raise ScoreError(
                "the scores were trained on another model, or with other arguments of "
                "this one. Call pretrain_scores with this model and these arguments."
            )
        low, high = map(np.asarray, self.ranges)
        setting = np.asarray(self.ranges.setting(params, self.names))
        ends = np.cumsum([len(flatten_params(params, (name,))) for name in self.names])
        parts = np.split(np.arange(len(low)), ends[:-1])
        for name, part in zip(self.names, parts, strict=True):
            if not np.all(np.abs(setting[part]) <= 1 + _EDGE):
                raise ArgumentError(
                    f"parameter {name!r} is {np.asarray(params[name])}, outside the "
                    f"range {low[part]} to {high[part]} that the scores were trained "
                    "for. Call pretrain_scores with a wider range."
                )
        return self

    def warnings_for(self, density: Density, evidence: dict[str, float]) -> list[str]:
        """Those of the method."""
        return self.method.warnings_for(density, evidence)

    def init(self, density: Density, rng_key: jax.Array) -> Any:
        """Noise for fresh samples, and the trained networks."""
        method = self.method
        learning = Learning.of(with_noise(density), method, method.num_networks)
        networks = self.trained[density.sites, density.given]
        return _State(networks, self.ranges, learning)

    def fit(
        self,
        state: Any,
        density: Density,
        forward: Program,
        params: Any,
        rng_key: jax.Array,
        warm: bool = False,
    ) -> Any:
        """Fit the moments at these parameters; from scratch, also the last layers."""
        networks, ranges, learning = state
        method, setting = self.method, ranges.setting(params, self.names)
        source = learning.again if warm else learning.cold
        here = method.draw(density, forward, params, rng_key, source, setting)
        loss = method.loss(density, here[0])
        own = networks if warm else solve(*loss, *here, networks)
        _, (_, gain) = held_out_gain(*loss, *here, own)
        fitted = Fitted.new(own, here[0], gain)
        return state._replace(learning=learning._replace(fitted=fitted))

    def score(
        self,
        state: Any,
        density: Density,
        params: Any,
        noise: Values,
        values: Values,
        rng_key: jax.Array,
    ) -> Scores:
        """Scores of the trained networks, as the method computes them."""
        learning, fitted = state.learning, state.learning.fitted
        found = self.method.score(learning, density, params, noise, values, rng_key)
        outside = jnp.max(jnp.abs(fitted.frame.setting)) > 1 + _EDGE
        evidence = {
            "held_out_gain": fitted.gain,
            "outside": outside.astype(fitted.gain.dtype),
        }
        return found._replace(evidence=evidence)
