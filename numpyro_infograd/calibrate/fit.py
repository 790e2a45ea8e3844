# SPDX-License-Identifier: Apache-2.0
"""The host's side of a calibration: descent, correction, bootstrap, tests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tqdm.auto import tqdm

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp

from numpyro_infograd.calibrate.features import Features, Moments, make_features
from numpyro_infograd.calibrate.inference import (
    Directions,
    find_directions,
    gradients,
    held_out,
    limited,
    resample,
    resampled_gradients,
    two_sample,
)
from numpyro_infograd.calibrate.matching import (
    Descent,
    Local,
    Match,
    descend,
    draw_weights,
    look_around,
    with_blur,
)
from numpyro_infograd.calibrate.report import make_report
from numpyro_infograd.calibrate.result import Calibration, TwoSample
from numpyro_infograd.density import Density, Values, simulate
from numpyro_infograd.noise import base_points, draw_noise
from numpyro_infograd.optimize.step import (
    RATE,
    Projection,
    as_optax,
    cast,
    constrained,
    scales,
    unconstrained,
)
from numpyro_infograd.program import Program
from numpyro_infograd.scores.network import Network
from numpyro_infograd.structure import StructuralModel
from numpyro_infograd.values import Estimate

LEVELS: tuple[float, ...] = (
    0.0,
    0.05,
    0.2,
    0.6,
)  # of the average, in units of the recordings
_BLOCKS = 125  # of consecutive recordings, to resample
_HELD_OUT = 5  # one block in so many
_CHUNK = 25  # steps of one compiled scan
_NUM_STEPS = 150  # half of them after the features were trained anew
_CORRECTIONS = 8
_SETTLED = 1.0  # standard errors
_RESAMPLES = 50  # for the error of the divergence at the start
_DRAWS = 4  # independent draws of the twin near the end
_FINAL_SAMPLES = 16384
_FEW_SAMPLES = 2048  # for derivatives in many numbers
_MOST = 64  # numbers in all parameters, for corrections and standard errors
_TESTED = 1000  # recordings in a two-sample test


class Fit:
    """A twin on its way to the recordings."""

    def __init__(
        self,
        sm: StructuralModel,
        density: Density,
        params: Any,
        recorded: dict[str, np.ndarray],
        divergence: str,
        used: tuple[float, ...],
        reported: tuple[float, ...],
        optimizer: Any,
        projection: Projection | None,
        network: Network,
        num_samples: int,
        num_draws: int,
        rng_key: jax.Array,
        warnings: tuple[str, ...],
    ) -> None:
        self.sm, self.density, self.recorded = sm, density, recorded
        self.divergence, self.used, self.reported = divergence, used, reported
        self.levels = tuple(sorted({*used, *reported}))
        self.scaled, self.optimizer = optimizer is None, as_optax(optimizer)
        self.projection, self.network = projection, network
        self.num_samples, self.num_draws = num_samples, num_draws
        self.keys = iter(jax.random.split(rng_key, 64))
        self.constraints = sm.constraints if projection is None else None
        self.free = unconstrained(params, self.constraints)
        self.spec = with_blur(sm.spec, sum(density.sizes))
        number = len(next(iter(recorded.values())))
        rows = np.arange(number // _BLOCKS * _BLOCKS).reshape(_BLOCKS, -1)
        held = np.arange(_BLOCKS) % _HELD_OUT == _HELD_OUT - 1
        self.train, self.held = rows[~held], rows[held]
        self.number = self.train.size
        seed = jax.random.key_data(next(self.keys))
        self.rng = np.random.default_rng(np.asarray(seed))
        self.history: list[dict[str, Any]] = []
        self.end: tuple[Local, jax.Array, Directions] | None = None
        self.warnings = warnings

    # -- the parts -----------------------------------------------------------------

    def look(self) -> None:
        """Train features for where the twin stands, and measure the recordings."""
        train = {
            n: jnp.asarray(v[self.train.ravel()]) for n, v in self.recorded.items()
        }
        self.features = make_features(
            self.density,
            train,
            self.simulate(self.free, 16384),
            self.levels,
            self.network,
            next(self.keys),
        )
        self.blocks = self._moments(self.train)
        self.held_blocks = self._moments(self.held)
        self.match = self._match(self.used, self.divergence)
        self.whole = self._match(self.levels, "fisher")

    def _match(self, levels: tuple[float, ...], divergence: str) -> Match:
        """The twin and the recordings, seen through noise of these levels."""
        index = self._index(levels)
        recorded = Moments(*(jnp.mean(x[:, index], axis=0) for x in self.blocks))
        features = self.features.at(levels)
        return Match(
            self.sm.forward,
            features,
            recorded,
            features.weights(recorded),
            jnp.asarray(shares_of(levels, divergence), jnp.zeros(()).dtype),
            self.constraints,
        )

    def _index(self, levels: tuple[float, ...]) -> np.ndarray:
        return np.asarray([self.levels.index(level) for level in levels])

    def _moments(self, rows: np.ndarray) -> Moments:
        """Moments of blocks of recordings."""
        values = {n: jnp.asarray(v[rows]) for n, v in self.recorded.items()}
        return _block_moments(self.features, values, next(self.keys))

    def simulate(self, free: Any, size: int) -> Values:
        """Independent draws of the recorded sites: no quasi-random ones, which would
        look too even to a test."""
        params = constrained(free, self.constraints)
        noise = draw_noise(self.sm.spec, next(self.keys), size)
        values = simulate(self.sm.forward, params, noise)
        return {name: values[name] for name in self.recorded}

    def descend(self, num_steps: int, bar: Any) -> None:
        """Steps of the optimizer, at a rate that falls to zero."""
        opt_state = self.optimizer.init(self.free)
        scale = (
            scales(self.free, self.constraints)
            if self.scaled
            else jax.tree.map(jnp.ones_like, self.free)
        )
        size = self.num_samples
        each = size if self.divergence == "kl" else size // 2
        state = Descent(self.free, opt_state, jnp.zeros((), jnp.int32))
        update = Program.trace(self.optimizer.update, self.free, opt_state, self.free)
        projection = self.projection and Program.trace(self.projection, self.free)
        rates = 0.5 * (1 + np.cos(np.pi * np.arange(num_steps) / num_steps))
        if not self.scaled:
            rates = np.ones(num_steps)
        key = next(self.keys)
        try:
            for start in range(0, num_steps, _CHUNK):
                state, info = descend(
                    self.match,
                    state,
                    jnp.asarray(rates[start : start + _CHUNK], jnp.zeros(()).dtype),
                    key,
                    update,
                    projection,
                    scale,
                    base_points(self.spec, each),
                    divergence=self.divergence,
                    spec=self.spec,
                    size=size,
                )
                self.history.append(jax.device_get(info))
                bar.update(len(info["finite"]))
                bar.set_postfix_str(f"divergence {float(info['divergence'][-1]):.3g}")
        finally:
            self.free = state.free

    # -- the end --------------------------------------------------------------------

    def correct(self) -> float:
        """A Newton step along what the recordings determine, and how long it was.

        In standard errors, the longest component; NaN, and no step, where something
        is not finite.
        """
        whole = self.draw_weights()
        weights = whole[:, self._index(self.used)]
        numbers = sum(leaf.size for leaf in jax.tree.leaves(self.free))
        few = max(_FINAL_SAMPLES >> (numbers - 1).bit_length(), _FEW_SAMPLES)
        local = look_around(
            self.match,
            self.free,
            weights,
            next(self.keys),
            (base_points(self.spec, _FINAL_SAMPLES), base_points(self.spec, few)),
            spec=self.spec,
            size=_FINAL_SAMPLES,
            few=few,
        )
        if not all(np.isfinite(x).all() for x in jax.tree.leaves((whole, local))):
            return math.nan
        resampled = self.resampled_gradients(
            local, weights, *self.resample(whole, _RESAMPLES)
        )
        flat, unravel = ravel_pytree(self.free)
        size = self._sizes()
        directions = find_directions(
            local,
            self.match,
            self.divergence,
            size,
            self._allowed(),
            np.atleast_2d(np.cov(resampled.T)),
        )
        each, covariance = gradients(local, weights, self.match, self.divergence)
        step = limited(directions.solve(each.mean(0)), size)
        moved = self.feasible(unravel(jnp.asarray(flat + step, flat.dtype)))
        step = np.asarray(ravel_pytree(moved)[0] - flat, float)  # as it was projected
        along = step @ (directions.known / size[:, None] ** 2)
        noise = np.diag(directions.known.T @ covariance @ directions.known)
        noise = np.sqrt(noise) / directions.curvature
        length = np.abs(along) / np.hypot(directions.error, 3 * noise)
        self.free, self.end = moved, (local, weights, directions)
        return float(length.max(initial=0.0))

    def resampled_gradients(
        self, local: Local, weights: jax.Array, targets: Any, pulls: Any
    ) -> np.ndarray:
        """Gradients for resamples of the recordings, (num_draws, numbers)."""
        index = self._index(self.used)
        return resampled_gradients(
            local,
            weights,
            self.match,
            self.divergence,
            targets[:, index],
            pulls[:, index],
        )

    def feasible(self, free: Any) -> Any:
        """Onto the projection's set, where there is one."""
        if self.projection is None:
            return free
        return cast(self.projection(free), free)

    def _sizes(self) -> np.ndarray:
        """How large each free number is, as a step of the optimizer sees it."""
        sizes = jax.tree.map(
            lambda rate, x: jnp.broadcast_to(rate / RATE, x.shape),
            scales(self.free, self.constraints),
            self.free,
        )
        return np.asarray(ravel_pytree(sizes)[0], float)

    def _allowed(self) -> np.ndarray:
        """Orthonormal directions in which a projection lets the parameters move."""
        flat, unravel = ravel_pytree(self.free)
        project = self.projection
        if project is None:
            return np.eye(len(flat))
        onto = jax.jacobian(lambda x: ravel_pytree(project(unravel(x)))[0])
        jacobian = np.asarray(onto(flat), float)
        values, vectors = np.linalg.eigh((jacobian + jacobian.T) / 2)
        return vectors[:, values > 0.5]

    def draw_weights(self) -> jax.Array:
        """W_q of independent draws where the twin stands."""
        return draw_weights(
            self.whole,
            self.free,
            next(self.keys),
            base_points(self.spec, _FINAL_SAMPLES),
            spec=self.spec,
            size=_FINAL_SAMPLES,
            draws=_DRAWS,
        )

    def resample(self, weights: jax.Array, num_draws: int) -> tuple[Any, Any]:
        """A bootstrap over blocks of recordings; see `inference.resample`."""
        count = len(self.train)
        counts = self.rng.multinomial(count, np.full(count, 1 / count), num_draws)
        shares = jnp.asarray(counts / count, jnp.zeros(()).dtype)
        found = resample(self.whole, jnp.mean(weights, axis=0), self.blocks, shares)
        return jax.device_get(found)

    def distance(self, weights: jax.Array, targets: Any) -> Estimate:
        """Divergence from the held-out recordings, averaged over all levels."""
        index = self._index(self.reported)
        match = self._match(self.reported, "fisher")
        held = Moments(*(x[:, index] for x in self.held_blocks))
        return held_out(weights[:, index], targets[:, index], held, match)

    def test(self) -> TwoSample:
        """Held-out recordings against draws of the twin."""
        rows = self.held.ravel()
        picked = rows[:: -(-len(rows) // _TESTED)]  # far apart: they may have a memory
        recorded = {n: jnp.asarray(v[picked]) for n, v in self.recorded.items()}
        drawn = self.simulate(self.free, len(picked))
        a, b = (self.features.coordinates(v) for v in (recorded, drawn))
        return two_sample(np.asarray(a), np.asarray(b))

    def run(self, num_steps: int | None, progress_bar: bool) -> Calibration:
        """Descend, correct, resample, test."""
        total = num_steps or _NUM_STEPS
        cycles = [total - total // 2, total // 2] if total > 1 else [1]
        self.look()
        weights = self.draw_weights()
        before = self.distance(weights, self.resample(weights, _RESAMPLES)[0])
        test_before = self.test()
        try:
            with tqdm(total=total, disable=not progress_bar, desc="calibration") as bar:
                for cycle, steps in enumerate(cycles):
                    if cycle:
                        self.look()
                    self.descend(steps, bar)
            status = self._settle(total)
        except KeyboardInterrupt:
            status = "interrupted by the user: no standard errors"
            self.end = None
        weights = self.draw_weights()
        targets, pulls = self.resample(weights, self.num_draws)
        after = self.distance(weights, targets)
        return make_report(self, status, before, after, test_before, targets, pulls)

    def _settle(self, total: int) -> str:
        """Newton steps until they are short; what became of them."""
        numbers = sum(leaf.size for leaf in jax.tree.leaves(self.free))
        if numbers > _MOST:
            self.warnings += (
                f"with {numbers} numbers in the parameters, more than {_MOST}, there "
                "are no corrections and no standard errors.",
            )
            return f"took {total} steps"
        for _ in range(_CORRECTIONS):
            length = self.correct()
            if math.isnan(length):
                self.end = None
                return (
                    "stopped where draws of the twin or their derivatives are not "
                    "finite: no standard errors. Constrain the parameters "
                    "(numpyro.param(..., constraint=...)), or give other init_params"
                )
            assert self.end is not None
            if not self.end[2].known.size:
                why = (
                    "derivatives of the twin are too noisy"
                    if self.end[2].rough
                    else "the recordings determine nothing here. Give other init_params"
                )
                return f"took {total} steps, with no corrections: {why}"
            if length < _SETTLED:
                return (
                    f"converged: the last correction was {length:.2g} standard errors"
                )
        return (
            f"not converged: the last correction was still {length:.2g} standard "
            "errors. Raise num_steps or num_samples, or give other init_params"
        )


@jax.jit
def _block_moments(features: Features, values: Values, rng_key: jax.Array) -> Moments:
    """Moments of each block, noise and its mirror image added twice."""

    def one(block: tuple[Values, jax.Array]) -> Moments:
        values, key = block
        z = features.coordinates(values)
        keys = jax.random.split(key)
        noise = jax.random.normal(keys[0], (2, *z.shape))
        blur = jnp.concatenate([noise, -noise]).reshape(-1, z.shape[1])
        return features.moments(jnp.tile(z, (4, 1)), blur, keys[1])

    count = len(jax.tree.leaves(values)[0])
    return jax.lax.map(one, (values, jax.random.split(rng_key, count)))


def shares_of(levels: tuple[float, ...], divergence: str) -> np.ndarray:
    """Weight of each level: for "fisher" the trapezoid rule's, so that nats come out.

    One level alone counts in full, and several alike under "kl".
    """
    if divergence == "kl" or len(levels) == 1:
        return np.full(len(levels), 1 / len(levels))
    width = np.diff(levels)
    return (np.append(width, 0.0) + np.append(0.0, width)) / 2
