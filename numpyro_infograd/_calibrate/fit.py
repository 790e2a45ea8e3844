# SPDX-License-Identifier: Apache-2.0
"""Settings and host loop of a calibration: descent, corrections, bootstrap, tests.

`matched` and `likely` say how a twin is compared with recordings.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
import itertools
import math
from typing import Any, Generic, NamedTuple

import numpy as np
from tqdm.auto import tqdm

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp

from numpyro_infograd._calibrate.inference import (
    Directions,
    Inner,
    Place,
    find_directions,
    grown,
    limited,
    two_sample,
)
from numpyro_infograd._calibrate.matching import Descent
from numpyro_infograd._calibrate.result import TwoSample
from numpyro_infograd._density import Density, Values, draw_values
from numpyro_infograd._noise import NoiseSource
from numpyro_infograd._optimize import Ending, Status
from numpyro_infograd._optimize.move import (
    RATE,
    Move,
    Projection,
    as_optax,
    constrained,
    decay,
    is_mapped,
    onto,
    scales,
    unconstrained,
)
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd.scores.network import Network, perceptron
from numpyro_infograd.values import Estimate

# Default variances of the appended noise, in units of the recordings.
LEVELS: tuple[float, ...] = (0.0, 0.05, 0.2, 0.6)
NUM_STEPS = 150  # the features are trained again after half of them
_BLOCKS = 125  # blocks of consecutive recordings, at most
_FEWEST_BLOCKS = 75
HELD_OUT = 5  # one of so many blocks is held out
_CHUNK = 25  # steps of one compiled scan
_FAR = 1 / 3  # of the parameters' size: a step that no parabola can be trusted for
_NOISE = 3.0  # a gradient below so many of its errors over draws counts as zero
_RESAMPLES = 50  # bootstrap draws for the error of the first divergence
_AT_ONCE = 16384  # draws of the twin that are made at once
_MOST = 64  # largest number of parameters with corrections and standard errors
# Names of values in the history of a descent.
VALUES = ("divergence", "negative_log_likelihood")
_TESTED = 1000  # recordings in a two-sample test


@dataclass(frozen=True)
class Settings:
    """Settings of a calibration, after checks."""

    divergence: str  # "fisher", "kl" or "likelihood"
    used: tuple[float, ...]  # noise levels of the divergence that is minimised
    reported: tuple[float, ...]  # noise levels of the divergence that is reported
    optimizer: Any = None  # None, or an optax or numpyro optimizer
    projection: Projection | None = None  # projection of the parameters, or None
    # Function or functions that make the networks of the features.
    network: Network = perceptron((32, 32))
    num_steps: int = NUM_STEPS  # steps of the optimizer
    num_samples: int = 4096  # draws of the twin in a step
    num_draws: int = 200  # bootstrap draws of the parameters
    robust: bool = False  # whether recordings far out have no weight
    slowdown: float = 1.0  # of the rates of the default optimizer

    @property
    def levels(self) -> tuple[float, ...]:
        """All levels, in rising order."""
        return tuple(sorted({*self.used, *self.reported}))


class End(NamedTuple, Generic[Inner]):
    """The twin at the last correction."""

    place: Place[Inner]  # what it was computed from
    directions: Directions  # directions that the recordings determine, and the others
    # Number of directions in which a projection allows moves of one sign only.
    edges: int


class Fit(abc.ABC, Generic[Inner]):
    """The state of a calibration."""

    settled = 1.0  # length of the last correction at convergence, in standard errors
    doubt = ""  # what else may be the cause if a direction is not determined
    corrections = 12  # Newton steps, at most
    stride = 1.0  # factor of the longest correction after one that went down

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
        key = jax.random.fold_in(rng_key, 0)  # other starts have 1, 2, ...
        self.keys = (jax.random.fold_in(key, i) for i in itertools.count())
        self.constraints = sm.constraints if settings.projection is None else None
        self.unconstrained_params = unconstrained(params, self.constraints)
        self.train, self.held = into_blocks(len(next(iter(recorded.values()))))
        seed = jax.random.key_data(next(self.keys))
        self.rng = np.random.default_rng(np.asarray(seed))
        self.history: list[dict[str, Any]] = []
        self.end: End[Inner] | None = None
        self.largest: Any = None  # largest rates of the parameters so far
        self.last: Place[Inner] | None = None  # start of the last correction
        self.is_drifting = True  # whether the last two corrections lead away
        self.reach = 1.0  # length of the longest correction, in units of the default

    @property
    def flat(self) -> jax.Array:
        """The unconstrained numbers, (numbers,)."""
        return ravel_pytree(self.unconstrained_params)[0]

    def unravel(self, flat: Any) -> Any:
        """Unconstrained parameters with these numbers."""
        old, unravel = ravel_pytree(self.unconstrained_params)
        return unravel(jnp.asarray(flat, old.dtype))

    # -- how twin and recordings are compared --------------------------------------

    def look(self) -> None:
        """Prepare a descent from the present parameters."""

    @abc.abstractmethod
    def chunk(
        self, move: Move, state: Any, rates: Any, rng_key: jax.Array
    ) -> tuple[Any, dict[str, Any]]:
        """A chunk of steps of a descent; see `matching.descend`."""

    @abc.abstractmethod
    def place(self) -> Place[Inner] | None:
        """The divergence around the present parameters; None if it is not finite."""

    @abc.abstractmethod
    def rises(self, last: Place[Inner], here: Place[Inner]) -> bool:
        """Whether the divergence rose from one place to the other."""

    @abc.abstractmethod
    def resampled(
        self, place: Place[Inner], num_draws: int, joined: int = 1
    ) -> np.ndarray:
        """Gradients there for resamples of the recordings, (num_draws, numbers)."""

    @abc.abstractmethod
    def measure(self, num_draws: int) -> Estimate:
        """How far the held-out recordings are from the twin."""

    @abc.abstractmethod
    def coordinates(self, values: Values) -> np.ndarray:
        """Recorded sites in units of the recordings, (num_samples, dimensions)."""

    def sharpen(self, place: Place[Inner], directions: Directions) -> bool:
        """Make later places more precise if this one is too noisy; whether it did."""
        return False

    def doubts(self) -> list[str]:
        """Sentences that say why results may be wrong."""
        return []

    def near(self, coordinates: Any) -> np.ndarray:
        """Whether rows have weight in the fit, (num_samples,)."""
        return np.ones(len(coordinates), bool)

    # -- the parts -----------------------------------------------------------------

    def recordings(self, index: np.ndarray) -> Values:
        """The recordings with these indices."""
        return {n: v[index] for n, v in self.recorded.items()}

    def shares(self, num_draws: int, joined: int = 1) -> np.ndarray:
        """Share of each block of the fit in resamples of them, (num_draws, blocks);
        `joined` neighbours count as one block.
        """
        count = len(self.train) // joined
        counts = self.rng.multinomial(count, np.full(count, 1 / count), num_draws)
        return np.repeat(counts / (count * joined), joined, axis=1)

    def simulate(self, unconstrained_params: Any, size: int) -> Values:
        """Independent draws of the recorded sites: quasi-random ones would be too even
        for a two-sample test."""
        params = constrained(unconstrained_params, self.constraints)
        key, parts = next(self.keys), []
        source = NoiseSource.independent(self.sm.spec, _AT_ONCE)
        for start in range(0, size, _AT_ONCE):  # all of one size: they compile once
            own = jax.random.fold_in(key, start)
            values = draw_values(self.sm.forward, params, source, own)
            drawn = jax.device_get({n: values[n] for n in self.recorded})
            parts.append({n: v[: size - start] for n, v in drawn.items()})
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def descend(self, num_steps: int, bar: Any) -> None:
        """Steps of the optimizer, with a rate that falls to zero."""
        settings, start = self.settings, self.unconstrained_params
        scaled, optimizer = settings.optimizer is None, as_optax(settings.optimizer)
        scale = self._scales() if scaled else None
        scale = jax.tree.map(lambda s: s / settings.slowdown, scale)
        projection = settings.projection
        move = Move.trace(start, optimizer, projection, self.constraints, scale)
        state = Descent(start, optimizer.init(start), jnp.zeros((), jnp.int32))
        steps = np.arange(num_steps)
        rates = decay(steps, num_steps) if scaled else np.ones(num_steps)
        key = next(self.keys)
        try:
            for start in range(0, num_steps, _CHUNK):
                part = rates[start : start + _CHUNK].astype(jnp.result_type(float))
                state, info = self.chunk(move, state, part, key)
                info = jax.device_get(info)
                self.history.append(info)
                bar.update(len(info["finite"]))
                name = next(n for n in VALUES if n in info)
                bar.set_postfix_str(f"{name} {float(info[name][-1]):.3g}")
        finally:
            self.unconstrained_params = state.unconstrained_params

    # -- the end --------------------------------------------------------------------

    def correct(self) -> float | None:
        """A Newton step along the directions that the recordings determine.

        Along others it goes down where the gradient is not zero. Returns its largest
        component, in standard errors of the parameters or of the gradient; infinity if
        more draws may determine more. NaN, without a step, if something is not finite.
        None if the last step raised the divergence or led to values that are not
        finite; then half of it is undone.
        """
        flat, here = self.flat, self.place()
        if self.last is not None and (here is None or self.rises(self.last, here)):
            half = self.unravel((self.last.flat + flat) / 2)
            self.unconstrained_params = onto(self.settings.projection, half)
            self.reach = 1.0
            return None
        if here is None:
            return math.nan
        previous, self.last = self.last, here
        self.reach *= self.stride if previous else 1.0
        allowed, edges = self._ways()
        information = np.atleast_2d(np.cov(self.resampled(here, _RESAMPLES).T))
        size = grown(self.sizes(), here.curvatures, information)
        directions = find_directions(here.curvatures, size, allowed, information)
        down, steepness = directions.slope(
            here.gradient, information + _NOISE**2 * here.noise
        )
        step = directions.solve(here.gradient) + self.reach * down
        step = limited(step, size, directions.error, self.reach)
        moved = onto(self.settings.projection, self.unravel(flat + step))
        step = np.asarray(ravel_pytree(moved)[0] - flat, float)  # after projection
        own = np.sqrt(np.diag(directions.known.T @ here.noise @ directions.known))
        error = np.hypot(directions.error, _NOISE * own / directions.curvature)
        in_sizes = directions.known / size[:, None] ** 2
        along = step @ in_sizes / error
        self.is_drifting = (
            previous is None
            or drifts((here.flat - previous.flat) @ in_sizes / error, along)
            or bool(np.any(np.abs(step @ in_sizes) > _FAR))
        )
        self.unconstrained_params = moved
        self.end = End(here, directions, edges)
        if self.sharpen(here, directions) and directions.rough:
            return math.inf
        return max(float(np.abs(along).max(initial=0.0)), steepness)

    def _step_back(self) -> None:
        """Return to the start of the last correction, to which `end` belongs."""
        if self.last is not None:
            self.unconstrained_params = self.unravel(self.last.flat)

    def _scales(self) -> dict[str, Any]:
        """Peak rate of the default optimizer, for each parameter separately.

        Parameters may have different units. A parameter that starts at zero gets a rate
        from the typical size of all; one that becomes small keeps its first rate.
        """
        found = dict(scales(self.unconstrained_params, self.constraints))
        for name, tree in self.unconstrained_params.items():
            if any(np.any(leaf) for leaf in jax.tree.leaves(jax.device_get(tree))):
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
        flat, project = self.flat, self.settings.projection
        if project is None:
            return np.eye(len(flat)), 0

        def projected(flat: jax.Array) -> jax.Array:
            return ravel_pytree(project(self.unravel(flat)))[0]

        jacobian = np.asarray(jax.jacobian(projected)(flat), float)
        values, vectors = np.linalg.eigh((jacobian + jacobian.T) / 2)
        held = vectors[:, values <= 0.5]
        reach = 0.01 * float(np.sqrt(np.mean(self.sizes() ** 2)))
        moved = [
            max(float(jnp.linalg.norm(projected(flat + s * v) - flat)) for s in (-1, 1))
            for v in jnp.asarray(reach * held.T, flat.dtype)
        ]
        return vectors[:, values > 0.5], sum(x > 0.5 * reach for x in moved)

    def test(self) -> TwoSample:
        """Two-sample test of held-out recordings and draws of the twin."""
        rows = self.held.ravel()
        picked = rows[:: -(-len(rows) // _TESTED)]  # far apart: rows may be correlated
        drawn = self.simulate(self.unconstrained_params, len(picked))
        a, b = map(self.coordinates, (self.recordings(picked), drawn))
        a, b = (x[self.near(x)] for x in (a, b))
        if min(len(a), len(b)) < 2:  # they lie far apart
            return TwoSample(math.inf, 0.0)
        return two_sample(a, b)

    def run(self, progress_bar: bool) -> tuple[Status, Estimate, Estimate, TwoSample]:
        """Run descent, corrections, bootstrap and tests.

        Returns the status, the divergence from the held-out recordings at the start and
        at the end, and the two-sample test at the start.
        """
        total = self.settings.num_steps
        cycles = [total - total // 2, total // 2] if total > 1 else [1]
        with tqdm(total=total, disable=not progress_bar, desc="features") as bar:
            self.look()
            before = self.measure(_RESAMPLES)
            test_before = self.test()
            try:
                for cycle, steps in enumerate(cycles):
                    if cycle:
                        self.look()
                    bar.set_description("descent")
                    self.descend(steps, bar)
                bar.set_description("Newton steps")
                status = self._settle(total)
            except KeyboardInterrupt:
                self._step_back()
                status = Status(
                    "interrupted by the user: no standard errors", Ending.INTERRUPTED
                )
                self.end = None
            bar.set_description("bootstrap")
            after = self.measure(self.settings.num_draws)
            bar.set_description("calibration")
        return status, before, after, test_before

    def _settle(self, total: int) -> Status:
        """Newton steps until they are short; returns the status."""
        if self.flat.size > _MOST:
            self.warnings += (
                f"the parameters have {self.flat.size} numbers, more than {_MOST}, so "
                "there are no Newton steps and no standard errors.",
            )
            return Status(f"took {total} steps", Ending.ALL_STEPS)
        for _ in range(self.corrections):
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
            if not directions.known.size and not length:
                why = "the recordings determine no parameter. Use other init_params"
                if directions.rough:
                    why = "derivatives of the twin are too noisy"
                elif not directions.unknown.size:
                    why = "the projection lets no parameter move"
                return Status(
                    f"took {total} steps, without Newton steps: {why}", Ending.ALL_STEPS
                )
            if length < self.settled and not self.is_drifting:
                last = f"the last Newton step was {length:.2g} of a standard error"
                return Status(f"converged: {last}", Ending.CONVERGED)
        self._step_back()
        if length is None:
            text = "Newton steps raised the divergence. Raise num_samples"
        else:
            last = f"the last Newton step was still {length:.2g} standard errors"
            text = f"{last}. Raise num_steps or num_samples"
        text = f"not converged: {text}, or use other init_params"
        return Status(text, Ending.UNFINISHED)


def drifts(old: np.ndarray, new: np.ndarray) -> bool:
    """Whether two steps in sequence, in standard errors, lead away together: noise goes
    back and forth, and far from a parabola steps become longer.
    """
    together = np.abs(old + new).max(initial=0.0)
    is_longer = np.linalg.norm(new) > np.linalg.norm(old)
    return bool(old @ new > 0 and (is_longer or together >= 1.0))


def into_blocks(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the blocks of the fit, and of those that are held out.

    As many blocks as lose the fewest rows, which do not fill a block.
    """
    counts = range(_BLOCKS, _FEWEST_BLOCKS - 1, -HELD_OUT)
    blocks = min(counts, key=lambda count: number % count)
    rows = np.arange(number // blocks * blocks).reshape(blocks, -1)
    held = np.arange(blocks) % HELD_OUT == HELD_OUT - 1
    return rows[~held], rows[held]
