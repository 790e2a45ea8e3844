# SPDX-License-Identifier: Apache-2.0
"""The common part of all learned scores: an ensemble of networks, fitted to a pool."""

from __future__ import annotations

from abc import abstractmethod
import functools
import math
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import check_counts, check_powers_of_two
from numpyro_infograd._density import Density, Values, unflatten
from numpyro_infograd._doors import settings_class
from numpyro_infograd._noise import NoiseSource, student
from numpyro_infograd._program import Program
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.scores.base import TOLERATED, Layout, ScoreMethod, Scores
from numpyro_infograd.scores.coordinates import Frame, Free
from numpyro_infograd.scores.network import (
    Ensemble,
    Network,
    check_network,
    check_training,
    perceptron,
)
from numpyro_infograd.scores.pool import Learning, Pool, draw_pool, share_of, with_noise
from numpyro_infograd.scores.quadratic import Batch, Problem, held_out_gain, train

# Scale of the noise variance as an input of a network. It is small so that the errors
# of a network are similar at all levels; else the extrapolation would amplify them.
FAINT = 0.1
_PLACED = 4096  # samples whose quantiles place the steps of the inputs
DRIFTED = 0.02  # relative change of the score's linear part that triggers a refit
LOST = 0.01  # lost share of the Fisher information, held out, that triggers a refit


class Fitted(NamedTuple):
    """A fitted ensemble."""

    networks: Any  # parameters of all networks, stacked on a leading axis
    frame: Frame  # moments at the present parameters
    # Weight of each network's output, found on samples of another network, (networks,).
    shrink: jax.Array
    # Share of the Fisher information that the networks add on held-out samples.
    gain: jax.Array
    trained_gain: jax.Array  # `gain` when the networks were last trained
    trained_base: jax.Array  # `frame.base` when the networks were last trained
    drift: jax.Array  # relative mean-square change of the Gaussian score since then
    age: jax.Array  # number of fits since then

    @staticmethod
    def new(networks: Any, frames: Frame, gain: jax.Array) -> Fitted:
        """The state of networks just trained at the parameters of the first frame."""
        frame = jax.tree.map(lambda x: x[0], frames)
        sure = jnp.ones(len(jax.tree.leaves(networks)[0]))
        zero = jnp.zeros_like(gain)
        return Fitted(networks, frame, sure, gain, gain, frame.base, zero, zero)


@settings_class(kw_only=True)
class Learned(ScoreMethod):
    """Base class of learned scores; `Denoising` documents the settings."""

    hidden: tuple[int, ...] | None = None
    network: Network | None = None
    num_networks: int = 4
    num_steps: int = 200
    num_warm_steps: int = 20
    batch_size: int = 1024
    pool_size: int = 65536
    warm_pool_size: int = 4096
    learning_rate: float = 4e-3
    num_samples: int = 32768
    refit: int | str = "auto"

    def __post_init__(self) -> None:
        check_counts(self, "num_networks")
        if self.num_networks not in (2, 4, 8):
            raise ArgumentError(
                f"num_networks must be 2, 4 or 8, got {self.num_networks}."
            )
        check_network(self.network, self.hidden)
        check_training(self, self.num_networks)
        check_powers_of_two(self, 256, "pool_size", "warm_pool_size", "num_samples")
        whole = type(self.refit) is int and self.refit > 0
        if not whole and self.refit != "auto":
            raise ArgumentError(
                f"refit must be a positive number of steps or 'auto', got "
                f"{self.refit!r}."
            )

    # -- what subclasses define --------------------------------------------------

    def levels(self, density: Density) -> tuple[float, ...]:
        """Variances of noise, relative to the sites', at which the score is learned.

        With several levels the score is extrapolated to zero variance.
        """
        return (0.0,)

    @abstractmethod
    def problem(self, density: Density, frame: Frame, pool: Pool) -> Batch:
        """The quadratic loss for a pool with one axis of samples."""

    def see(
        self, frame: Frame, centred: jax.Array, level: jax.Array | float
    ) -> jax.Array:
        """Inputs of the network, from values with noise of this variance."""
        return frame.features(centred)

    def caution(self, density: Density) -> float:
        """Possible common error of all networks, in units of what the second half of
        their features added.

        In experiments it was much less with densities, and up to one unit from samples.
        """
        sampled = self.levels(density) != (0.0,) or self.samples_only
        return 1.0 if sampled else 0.5

    # -- the protocol of a score method ------------------------------------------

    # One for each network, and as many for errors that all networks share.
    num_deviations = property(lambda self: 2 * self.num_networks)

    def init(self, density: Density, rng_key: jax.Array) -> Any:
        """Noise for the pools of a fit from scratch and of a refit."""
        self.ensemble(density).check()
        return Learning.of(with_noise(density), self, self.num_networks)

    def fit(
        self,
        state: Any,
        density: Density,
        forward: Program,
        params: Any,
        rng_key: jax.Array,
        warm: bool = False,
    ) -> Any:
        """Draw a pool, fit the moments, and train the networks if they are stale."""
        last = state.fitted
        pool_key, init_key, train_key = jax.random.split(rng_key, 3)

        def draw(source: NoiseSource) -> tuple[Frame, Pool]:
            return self.draw(density, forward, params, pool_key, source)

        if not warm:
            here = draw(state.cold)
            networks = self.ensemble(density).init(init_key, self.num_networks)
            networks = self.train(density, *here, networks, train_key, self.num_steps)
            _, (_, gain) = held_out_gain(*self.loss(density, here[0]), *here, networks)
            return state._replace(fitted=Fitted.new(networks, here[0], gain))

        here = draw(state.again)
        frame = jax.tree.map(lambda x: x[0], here[0])
        change = (here[1].values - frame.mean) @ (frame.base - last.trained_base).T
        drift = jnp.mean((change @ frame.fisher_inv_sqrt) ** 2)
        loss = self.loss(density, here[0])
        shrink, (gain, _) = held_out_gain(*loss, *here, last.networks)
        if self.refit == "auto":
            stale = (drift > DRIFTED) | (gain < last.trained_gain - LOST)
        else:
            stale = last.age + 1 >= self.refit

        def retrain(networks: Any) -> Any:
            if self.refit == "auto":
                large, steps = draw(state.cold), self.num_steps // 2
                new = self.train(density, *large, networks, train_key, max(steps, 1))
            else:
                steps = self.num_warm_steps
                new = self.train(density, *here, networks, train_key, steps, False)
            shrink, (gain, _) = held_out_gain(*loss, *here, new)
            return new, shrink, gain

        networks, shrink, gain = jax.lax.cond(
            stale, retrain, lambda networks: (networks, shrink, gain), last.networks
        )
        fitted = Fitted(
            networks,
            frame,
            shrink,
            gain,
            jnp.where(stale, gain, last.trained_gain),
            jnp.where(stale, frame.base, last.trained_base),
            drift,
            jnp.where(stale, 0.0, last.age + 1),
        )
        return state._replace(fitted=fitted)

    def score(
        self,
        state: Any,
        density: Density,
        params: Any,
        noise: Values,
        values: Values,
        rng_key: jax.Array,
    ) -> Scores:
        """Mean score of the networks; their scatter is the error of the fit."""
        fitted: Fitted = state.fitted
        free = Free.of(density, values)
        each, further = self.members(density, fitted, free.values, rng_key)
        evidence = {
            "held_out_gain": fitted.gain,
            "drift": fitted.drift,
            "trained": (fitted.age == 0).astype(fitted.gain.dtype),
        }
        return report_scores(density, values, each, further, evidence)

    def warnings_for(self, density: Density, evidence: dict[str, float]) -> list[str]:
        """Also warns of networks that learned nothing, if no certificate is good."""
        found = super().warnings_for(density, evidence)
        gain = evidence.get("held_out_gain", 0.0)
        wrong = evidence.get("certificate", math.inf)
        wrong += 2 * evidence.get("certificate_error", 0.0)
        if gain < 0.0 and not wrong <= TOLERATED:
            found.append(
                f"the networks learned nothing about {density.label!r} beyond a normal "
                f"distribution (held-out gain {gain:.2%} of its Fisher information). "
                "Unless its distribution is normal, the error may exceed the standard "
                "error. Raise pool_size."
            )
        return found

    # -- parts -------------------------------------------------------------------

    def draw(
        self,
        density: Density,
        forward: Program,
        params: Any,
        rng_key: jax.Array,
        source: NoiseSource,
        setting: jax.Array | None = None,
    ) -> tuple[Frame, Pool]:
        """Samples for all networks at these parameters, and the frame of their moments.

        Both have an axis of frames of length one. It comes first in the frame, and
        after the axis of networks in the pool.
        """
        count = self.num_networks
        pool = draw_pool(density, forward, params, rng_key, count, source)
        frame = Frame.of(pool.values, Layout.of(density), setting)
        return (
            jax.tree.map(lambda x: x[None], frame),
            jax.tree.map(lambda x: x[:, None], pool),
        )

    def ensemble(self, density: Density, settings: int = 0) -> Ensemble:
        """The networks of a density; `settings` parameters are further inputs."""
        layout = Layout.of(density)
        inputs = sum(density.sizes) + settings + (self.levels(density) != (0.0,))
        network = self.network or perceptron(self.hidden)
        return Ensemble(network, inputs, len(layout.outputs), sum(density.sizes))

    def train(
        self,
        density: Density,
        frames: Frame,
        pool: Pool,
        networks: Any,
        rng_key: jax.Array,
        steps: int,
        whole: bool = True,
    ) -> Any:
        """Networks fitted to pools with an axis of frames, as in `quadratic.train`."""
        ensemble, problem = self.loss(density, frames)
        if whole:
            some = pool.values[0, :, : max(_PLACED // pool.values.shape[1], 16)]
            white = jax.vmap(Frame.clipped)(frames, some - frames.mean[:, None])
            networks = ensemble.place(networks, white.reshape(-1, white.shape[-1]))
        return train(
            ensemble,
            problem,
            frames,
            pool,
            networks,
            rng_key,
            steps=steps,
            batch=share_of(self.batch_size, self.num_networks),
            peak=self.learning_rate if whole else 0.5 * self.learning_rate,
            whole=whole,
        )

    def loss(self, density: Density, frames: Frame) -> tuple[Ensemble, Problem]:
        """The networks and what they are fitted to, for functions of `quadratic`."""
        ensemble = self.ensemble(density, frames.setting.shape[-1])
        return ensemble, functools.partial(self.problem, density)

    def members(
        self, density: Density, fitted: Fitted, values: jax.Array, rng_key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Each network's score, (networks, num_samples, outputs), and two deviations of
        their mean: half of what the last level of noise added to the extrapolation, and
        what the second half of the features added.

        Coordinates are unbounded.
        """
        frame, layout = fitted.frame, Layout.of(density)
        ensemble = self.ensemble(density, frame.setting.shape[-1])
        levels = self.levels(density)
        weights = extrapolation(levels)
        coarser = (*extrapolation(levels[:-1]), 0.0) if len(levels) > 1 else weights
        centred = values - frame.mean
        noise = jax.random.normal(rng_key, (len(values), len(layout.outputs)))
        shrink = fitted.shrink[:, None, None]
        total, rough, narrow = jnp.zeros(()), jnp.zeros(()), jnp.zeros(())
        for level, weight, coarse in zip(levels, weights, coarser, strict=True):
            signs = (1.0, -1.0) if level else (0.0,)
            for sign in signs:
                moved = centred
                if level:
                    moved = frame.moved(centred, layout, sign * noise, level)
                seen = self.see(frame, moved, level)
                found, half = jax.vmap(ensemble.both, (0, None))(fitted.networks, seen)
                each = frame.gaussian(moved) / (1.0 + level)
                each = each + shrink * found
                total += weight / len(signs) * each
                rough += coarse / len(signs) * each
                added = shrink * (found - half)
                narrow += weight / len(signs) * added
        last = 0.5 * jnp.mean(total - rough, axis=0) @ frame.fisher_sqrt
        half = self.caution(density) * jnp.mean(narrow, axis=0) @ frame.fisher_sqrt
        return total @ frame.fisher_sqrt, (last, half)


def extrapolation(levels: tuple[float, ...]) -> tuple[float, ...]:
    """Weights of a polynomial through these levels at level zero (Richardson)."""
    powers = np.vander(levels, increasing=True).T
    return tuple(np.linalg.solve(powers, np.eye(len(levels))[0]).tolist())


def report_scores(
    density: Density,
    values: Values,
    each: jax.Array,
    further: tuple[jax.Array, ...],
    evidence: dict[str, jax.Array],
) -> Scores:
    """The mean of all networks as `Scores`; their scatter and `further` are its error.

    `each` has scores in unbounded coordinates, (networks, num_samples, outputs);
    `further` is one or two further deviations of the mean.
    """
    free = Free.of(density, values)
    count, mean = len(each), jnp.mean(each, axis=0)
    spread = student(count) / (count * (count - 1)) ** 0.5 * (each - mean)
    times = count // len(further)  # equal parts, whose squares add up
    parts = [jnp.stack([each / times**0.5] * times) for each in further]
    deviations = jnp.concatenate([spread, *parts])
    return Scores(
        unflatten((mean - free.bend) / free.slope, values, density.moved_sites),
        unflatten(deviations / free.slope, values, density.moved_sites),
        evidence,
    )
