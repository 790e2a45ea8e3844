# SPDX-License-Identifier: Apache-2.0
"""The host loop of a calibration: descent, corrections, bootstrap, tests."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp

from numpyro_infograd.calibrate.features import (
    Features,
    Moments,
    block_moments,
    make_features,
)
from numpyro_infograd.calibrate.inference import (
    Directions,
    Place,
    find_directions,
    held_out,
    limited,
    mean_gradient,
    resample,
    resampled_gradients,
    rises,
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
from numpyro_infograd.calibrate.result import Outcome, TwoSample
from numpyro_infograd.calibrate.settings import Settings, shares_of
from numpyro_infograd.density import Density, Values, simulate
from numpyro_infograd.noise import base_points, draw_noise
from numpyro_infograd.optimize import Ending, Status
from numpyro_infograd.optimize.move import (
    RATE,
    Move,
    as_optax,
    constrained,
    is_mapped,
    onto,
    scales,
    unconstrained,
)
from numpyro_infograd.structure import StructuralModel
from numpyro_infograd.values import Estimate

_BLOCKS = 125  # blocks of consecutive recordings
_HELD_OUT = 5  # one of so many blocks is held out
_CHUNK = 25  # steps of one compiled scan
_CORRECTIONS = 8  # Newton steps, at most
_SETTLED = 1.0  # length of the last correction at convergence, in standard errors
_RESAMPLES = 50  # bootstrap draws for the error of the first divergence
_DRAWS = 4  # independent sets of draws of the twin near the end
_FINAL_SAMPLES = 16384  # draws of the twin for features, and near the end
_FEW_SAMPLES = 8192  # draws for derivatives in several numbers
_MOST = 64  # largest number of parameters with corrections and standard errors
_TESTED = 1000  # recordings in a two-sample test


class End(NamedTuple):
    """The twin at the last correction.

    Attributes:
        local: Derivatives of the twin in its parameters.
        weights: Its W_q at the levels used, one for each draw.
        directions: Directions that the recordings determine, and the others.
        noise: Covariance of the gradient over draws of the twin.
        edges: Number of directions in which a projection allows moves of one sign only.
    """

    local: Local
    weights: jax.Array
    directions: Directions
    noise: np.ndarray
    edges: int


class Fit:
    """The state of a calibration."""

    def __init__(
        self,
        sm: StructuralModel,
        density: Density,
        params: Any,
        recorded: dict[str, np.ndarray],
        settings: Settings,
        rng_key: jax.Array,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.sm, self.density, self.recorded = sm, density, recorded
        self.settings, self.warnings = settings, warnings
        self.keys = iter(jax.random.split(rng_key, 64))
        self.constraints = sm.constraints if settings.projection is None else None
        self.unconstrained_params = unconstrained(params, self.constraints)
        self.spec = with_blur(sm.spec, sum(density.sizes))
        number = len(next(iter(recorded.values())))
        rows = np.arange(number // _BLOCKS * _BLOCKS).reshape(_BLOCKS, -1)
        held = np.arange(_BLOCKS) % _HELD_OUT == _HELD_OUT - 1
        self.train, self.held = rows[~held], rows[held]
        seed = jax.random.key_data(next(self.keys))
        self.rng = np.random.default_rng(np.asarray(seed))
        self.history: list[dict[str, Any]] = []
        self.end: End | None = None
        self.largest: Any = None  # largest rates of the parameters so far
        self.last: Place | None = None  # start of the last correction

    @property
    def numbers(self) -> int:
        """Count of the numbers in all parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.unconstrained_params))

    # -- the parts -----------------------------------------------------------------

    def look(self) -> None:
        """Train features at the present parameters, and measure the recordings."""
        train = {
            n: jnp.asarray(v[self.train.ravel()]) for n, v in self.recorded.items()
        }
        levels, settings = self.settings.levels, self.settings
        drawn = self.simulate(self.unconstrained_params, _FINAL_SAMPLES)
        features = make_features(
            self.density, train, drawn, levels, settings.network, next(self.keys)
        )
        blocks, held = (self._moments(features, x) for x in (self.train, self.held))
        law = Moments(*(jnp.mean(x, axis=0) for x in blocks))
        whole = Match(
            self.sm.forward,
            features,
            law,
            features.weights(law),
            jnp.ones(len(levels)),
            self.constraints,
        )
        self.blocks, self.held_blocks, self.whole = blocks, held, whole
        used, reported, divergence = settings.used, settings.reported, "fisher"
        self.reported = whole.at(reported, shares_of(reported, divergence))
        self.match = whole.at(used, shares_of(used, settings.divergence))

    def _moments(self, features: Features, rows: np.ndarray) -> Moments:
        """Moments of each block of recordings."""
        values = {n: jnp.asarray(v[rows]) for n, v in self.recorded.items()}
        return block_moments(features, values, next(self.keys))

    def simulate(self, unconstrained_params: Any, size: int) -> Values:
        """Independent draws of the recorded sites: quasi-random ones would be too even
        for a two-sample test."""
        params = constrained(unconstrained_params, self.constraints)
        key, parts = next(self.keys), []
        for start in range(0, size, _FINAL_SAMPLES):  # in parts, to limit memory
            count = min(size - start, _FINAL_SAMPLES)
            noise = draw_noise(self.sm.spec, jax.random.fold_in(key, start), count)
            values = simulate(self.sm.forward, params, noise)
            parts.append({name: values[name] for name in self.recorded})
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    def descend(self, num_steps: int, bar: Any) -> None:
        """Steps of the optimizer, with a rate that falls to zero."""
        settings, start = self.settings, self.unconstrained_params
        scaled, optimizer = settings.optimizer is None, as_optax(settings.optimizer)
        scale = self._scales() if scaled else None
        projection = settings.projection
        move = Move.trace(start, optimizer, projection, self.constraints, scale)
        size = settings.num_samples
        each = size if settings.divergence == "kl" else size // 2
        state = Descent(start, optimizer.init(start), jnp.zeros((), jnp.int32))
        rates = 0.5 * (1 + np.cos(np.pi * np.arange(num_steps) / num_steps))
        if not scaled:
            rates = np.ones(num_steps)
        key = next(self.keys)
        try:
            for start in range(0, num_steps, _CHUNK):
                state, info = descend(
                    self.match,
                    move,
                    state,
                    jnp.asarray(rates[start : start + _CHUNK], jnp.zeros(()).dtype),
                    key,
                    base_points(self.spec, each),
                    divergence=settings.divergence,
                    spec=self.spec,
                    size=size,
                )
                self.history.append(jax.device_get(info))
                bar.update(len(info["finite"]))
                bar.set_postfix_str(f"divergence {float(info['divergence'][-1]):.3g}")
        finally:
            self.unconstrained_params = state.unconstrained_params

    # -- the end --------------------------------------------------------------------

    def correct(self) -> float | None:
        """A Newton step along the directions that the recordings determine.

        Returns:
            The largest component of the step, in standard errors. NaN, without a step,
            if something is not finite. None if the last step raised the divergence or
            led to values that are not finite; then half of it is undone.
        """
        divergence = self.settings.divergence
        whole = self.draw_weights()
        weights = whole[:, self.whole.features.index(self.settings.used)]
        few = _FINAL_SAMPLES if self.numbers == 1 else _FEW_SAMPLES
        local = look_around(
            self.match,
            self.unconstrained_params,
            weights,
            next(self.keys),
            (base_points(self.spec, _FINAL_SAMPLES), base_points(self.spec, few)),
            spec=self.spec,
            size=_FINAL_SAMPLES,
            few=few,
        )
        flat, unravel = ravel_pytree(self.unconstrained_params)
        here = None
        if all(np.isfinite(x).all() for x in jax.tree.leaves((whole, local))):
            slope, noise = mean_gradient(local, weights, self.match, divergence)
            here = Place(np.asarray(flat, float), weights, slope, noise)
        if self.last is not None and (
            here is None or rises(self.last, here, self.match, divergence)
        ):
            half = unravel(jnp.asarray((self.last.flat + flat) / 2, flat.dtype))
            self.unconstrained_params = onto(self.settings.projection, half)
            return None
        if here is None:
            return math.nan
        self.last = here
        resampled = self.resampled_gradients(
            local, weights, *self.resample(whole, _RESAMPLES)
        )
        size = self.sizes()
        allowed, edges = self._ways()
        directions = find_directions(
            local,
            self.match,
            divergence,
            size,
            allowed,
            np.atleast_2d(np.cov(resampled.T)),
        )
        step = limited(directions.solve(here.gradient), size)
        moved = onto(
            self.settings.projection, unravel(jnp.asarray(flat + step, flat.dtype))
        )
        step = np.asarray(ravel_pytree(moved)[0] - flat, float)  # after projection
        along = step @ (directions.known / size[:, None] ** 2)
        own = np.sqrt(np.diag(directions.known.T @ here.noise @ directions.known))
        error = np.hypot(directions.error, 3 * own / directions.curvature)
        self.unconstrained_params = moved
        self.end = End(local, weights, directions, here.noise, edges)
        return float((np.abs(along) / error).max(initial=0.0))

    def _step_back(self) -> None:
        """Return to the start of the last correction, to which `end` belongs."""
        if self.last is not None:
            flat, unravel = ravel_pytree(self.unconstrained_params)
            self.unconstrained_params = unravel(jnp.asarray(self.last.flat, flat.dtype))

    def resampled_gradients(
        self, local: Local, weights: jax.Array, targets: Any, pulls: Any
    ) -> np.ndarray:
        """Gradients for resamples of the recordings, (num_draws, numbers)."""
        index = self.whole.features.index(self.settings.used)
        return resampled_gradients(
            local,
            weights,
            self.match,
            self.settings.divergence,
            targets[:, index],
            pulls[:, index],
        )

    def _scales(self) -> dict[str, Any]:
        """Peak rate of the default optimizer, for each parameter separately.

        Parameters may have different units. A parameter that starts at zero gets a rate
        from the typical size of all; one that becomes small keeps its first rate.
        """
        found = dict(scales(self.unconstrained_params, self.constraints))
        for name, tree in self.unconstrained_params.items():
            if any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(tree)):
                law = self.constraints and {name: self.constraints[name]}
                found[name] = scales({name: tree}, law)[name]
        self.largest = jax.tree.map(jnp.maximum, self.largest or found, found)
        return self.largest

    def sizes(self) -> np.ndarray:
        """Typical size of each unconstrained number, for a correction.

        Coordinates of a bijection have size one; for a scale they are logarithms.
        """
        found = {}
        for name, rates in self._scales().items():
            if is_mapped(name, self.constraints):
                rates = jax.tree.map(lambda _: RATE, rates)
            found[name] = jax.tree.map(
                lambda rate, x: jnp.full(x.shape, rate / RATE),
                rates,
                self.unconstrained_params[name],
            )
        return np.asarray(ravel_pytree(found)[0], float)

    def _ways(self) -> tuple[np.ndarray, int]:
        """Orthonormal directions in which a projection lets the parameters move.

        Also the number of other directions in which it allows moves of one sign,
        because the parameters are at an edge of its set.
        """
        flat, unravel = ravel_pytree(self.unconstrained_params)
        project = self.settings.projection
        if project is None:
            return np.eye(len(flat)), 0

        def projected(flat: jax.Array) -> jax.Array:
            return ravel_pytree(project(unravel(flat)))[0]

        jacobian = np.asarray(jax.jacobian(projected)(flat), float)
        values, vectors = np.linalg.eigh((jacobian + jacobian.T) / 2)
        held = vectors[:, values <= 0.5]
        reach = 0.01 * float(np.sqrt(np.mean(self.sizes() ** 2)))
        moved = [
            max(float(jnp.linalg.norm(projected(flat + s * v) - flat)) for s in (-1, 1))
            for v in jnp.asarray(reach * held.T, flat.dtype)
        ]
        return vectors[:, values > 0.5], sum(x > 0.5 * reach for x in moved)

    def draw_weights(self) -> jax.Array:
        """W_q of independent draws at the present parameters."""
        return draw_weights(
            self.whole,
            self.unconstrained_params,
            next(self.keys),
            base_points(self.spec, _FINAL_SAMPLES),
            spec=self.spec,
            size=_FINAL_SAMPLES,
            draws=_DRAWS,
        )

    def resample(
        self, weights: jax.Array, num_draws: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """A bootstrap over blocks of recordings; see `inference.resample`."""
        count = len(self.train)
        counts = self.rng.multinomial(count, np.full(count, 1 / count), num_draws)
        mean = jnp.mean(weights, axis=0)
        return resample(self.whole, mean, self.blocks, counts / count)

    def distance(self, weights: jax.Array, targets: Any) -> Estimate:
        """Divergence from the held-out recordings, averaged over all levels."""
        index = self.whole.features.index(self.settings.reported)
        held = Moments(*(x[:, index] for x in self.held_blocks))
        return held_out(weights[:, index], targets[:, index], held, self.reported)

    def test(self) -> TwoSample:
        """Two-sample test of held-out recordings and draws of the twin."""
        rows = self.held.ravel()
        picked = rows[:: -(-len(rows) // _TESTED)]  # far apart: rows may be correlated
        recorded = {n: jnp.asarray(v[picked]) for n, v in self.recorded.items()}
        drawn = self.simulate(self.unconstrained_params, len(picked))
        a, b = (self.whole.features.coordinates(v) for v in (recorded, drawn))
        return two_sample(np.asarray(a), np.asarray(b))

    def run(self, progress_bar: bool) -> Outcome:
        """Run descent, corrections, bootstrap and tests."""
        total = self.settings.num_steps
        cycles = [total - total // 2, total // 2] if total > 1 else [1]
        with tqdm(total=total, disable=not progress_bar, desc="features") as bar:
            self.look()
            weights = self.draw_weights()
            before = self.distance(weights, self.resample(weights, _RESAMPLES)[0])
            test_before = self.test()
            try:
                for cycle, steps in enumerate(cycles):
                    if cycle:
                        self.look()
                    bar.set_description("descent")
                    self.descend(steps, bar)
                bar.set_description("corrections")
                status = self._settle(total)
            except KeyboardInterrupt:
                self._step_back()
                status = Status(
                    "interrupted by the user: no standard errors", Ending.INTERRUPTED
                )
                self.end = None
            bar.set_description("bootstrap")
            weights = self.draw_weights()
            targets, pulls = self.resample(weights, self.settings.num_draws)
            after = self.distance(weights, targets)
            bar.set_description("calibration")
        return Outcome(status, before, after, test_before, targets, pulls)

    def _settle(self, total: int) -> Status:
        """Newton steps until they are short; returns the status."""
        if self.numbers > _MOST:
            self.warnings += (
                f"the parameters have {self.numbers} numbers, more than {_MOST}, so "
                "there are no corrections and no standard errors.",
            )
            return Status(f"took {total} steps", Ending.ALL_STEPS)
        for _ in range(_CORRECTIONS):
            length = self.correct()
            if length is None:
                continue
            if math.isnan(length):
                self.end = None
                return Status(
                    "stopped where draws of the twin or their derivatives are not "
                    "finite: no standard errors. Constrain the parameters "
                    "(numpyro.param(..., constraint=...)), or use other init_params",
                    Ending.NOT_FINITE,
                )
            assert self.end is not None
            directions = self.end.directions
            if not directions.known.size:
                why = "the recordings determine nothing here. Use other init_params"
                if directions.rough:
                    why = "derivatives of the twin are too noisy"
                elif not directions.unknown.size:
                    why = "the projection lets no parameter move"
                return Status(
                    f"took {total} steps, with no corrections: {why}", Ending.ALL_STEPS
                )
            if length < _SETTLED:
                return Status(
                    f"converged: the last correction was {length:.2g} standard errors",
                    Ending.CONVERGED,
                )
        self._step_back()
        if length is None:
            text = "corrections raised the divergence. Raise num_samples"
        else:
            last = f"the last correction was still {length:.2g} standard errors"
            text = f"{last}. Raise num_steps or num_samples"
        text = f"not converged: {text}, or use other init_params"
        return Status(text, Ending.UNFINISHED)
