# SPDX-License-Identifier: Apache-2.0
"""A calibration by the likelihood: the same divergence as KL(p || q), to a constant."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._calibrate.fit import Fit, Settings
from numpyro_infograd._calibrate.inference import Directions, Place
from numpyro_infograd._calibrate.likelihood import (
    Around,
    Likelihood,
    Rows,
    count_rows,
    descend,
    draw_sets,
    look_around,
    rows_of,
)
from numpyro_infograd._density import Density, Values, flatten
from numpyro_infograd._noise import NoiseSource, standard_error, student
from numpyro_infograd._optimize.move import Move
from numpyro_infograd.errors import ArgumentError, DensityError
from numpyro_infograd.values import Estimate
from numpyro_infograd.values.base import report

_SETS = 4  # independent sets of draws
_FEWEST, _MOST = 64, 2**14  # draws in a set
_FIRST, _LAST = 2**24, 2**26  # recordings times draws, at the start and at most
_NOISY = 0.3  # of an error that draws cause, relative to that of the recordings
_MOST_ROWS = 2**17  # different recordings in use
_STEP = 2**20  # recordings times draws in a step of the descent
_BATCH = 4096  # recordings in a step if no noise is hidden
_SOUND = 64  # effective sample size
_FEW = 8  # effective sample size below which slopes are not tested
_OFF = 0.5  # largest difference between derivatives and differences


def check_likelihood(density: Density, levels: Any, robust: bool) -> None:
    """Check that recordings of these sites have a likelihood."""
    if levels is not None:
        raise ArgumentError(
            "noise_levels has no effect on the likelihood. Leave it out, or pass "
            "divergence='fisher' or 'kl'."
        )
    if robust:
        raise ArgumentError(
            "robust=True needs divergence 'fisher' or 'kl'. For the likelihood, put "
            "outliers in the model, as a distribution with heavy tails or a mixture."
        )
    computed = [s for s in density.sites if s not in density.log_prob_sites]
    if computed:
        raise DensityError(
            f"site {computed[0]!r} is deterministic, so recordings of it have no "
            "likelihood. Record what the system adds to it: draw the recorded site "
            "with its noise, numpyro.sample(name, Normal(value, scale)), or its "
            "rounding, Quantized. For continuous sites, divergence='kl' needs no "
            "likelihood."
        )
    if density.moving_boundary:
        raise DensityError(
            f"a parameter or a hidden site may move a boundary of site "
            f"{density.moving_boundary[0]!r}, where its density jumps, so the "
            "likelihood has no derivative there. Use a distribution with a smooth or a "
            "fixed boundary."
        )


class Inside(NamedTuple):
    """What a gradient of the likelihood is computed from."""

    value: float  # minus the mean log likelihood
    slopes: np.ndarray  # its slope for each block of recordings, (blocks, numbers)
    draws: int  # number of draws in each set
    missed: float  # share of the recordings that a set of draws cannot make
    size: float  # a low quantile of the effective sample sizes


class LikelihoodFit(Fit[Inside]):
    """A calibration by the likelihood."""

    settled = 0.1

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.twin = Likelihood.of(self.sm, self.density, self.constraints)
        length = _MOST_ROWS // len(self.train)
        many = self.train.shape[1] > length
        if many and count_rows(self.recorded, self.train) > _MOST_ROWS:
            self.train, self.held = self.train[:, :length], self.held[:, :length]
            self.warnings += (
                f"the likelihood uses {self.train.size} of the recordings, the first "
                "of each block: its time grows with the number of different ones. "
                "Standard errors are those of the recordings in use.",
            )
        self.rows = rows_of(self.recorded, self.train)
        self.held_rows = rows_of(self.recorded, self.held)
        whole = self.recordings(self.train.ravel())
        flat = np.asarray(flatten(whole, self.density.sites))
        self.centre, self.scale = flat.mean(0), np.maximum(flat.std(0), 1e-30)
        if self.twin.spec:
            self.doubt = (
                ", or too few draws of hidden noise show it (raise num_samples)"
            )
        else:
            # The likelihood is exact and quick, and a step too far is seen.
            self.corrections, self.stride = 40, 2.0
        self.count = self._fit(_FIRST)
        self.key = next(self.keys)

    def _fit(self, budget: int) -> int:
        """Number of draws in a set for so many evaluations, a power of two."""
        if not self.twin.spec:
            return 1
        more = max(self.settings.num_samples // Settings.num_samples, 1)
        fits = more * budget // (_SETS * self.rows.shares.shape[1])
        fits = 1 << max(fits, 1).bit_length() - 1
        return int(np.clip(fits, _FEWEST, more * _MOST))

    def chunk(
        self, move: Move, state: Any, rates: Any, rng_key: jax.Array
    ) -> tuple[Any, dict[str, Any]]:
        count = self.settings.num_samples if self.twin.spec else 1
        return descend(
            self.twin,
            move,
            state,
            rates,
            self.rows,
            rng_key,
            NoiseSource.of(self.twin.spec, count),
            batch=min(_BATCH, max(_STEP // count, 16)),
        )

    def _around(
        self, rows: Rows, offsets: Any = None, derivatives: bool = True
    ) -> tuple[Around | None, np.ndarray, float]:
        """`look_around` at the present parameters, and the share of missed rows."""
        flat, here = self.flat, self.unconstrained_params
        offsets = np.zeros((1, len(flat))) if offsets is None else offsets
        keys = jax.random.split(self.key, _SETS if self.twin.spec else 1)
        source = NoiseSource.of(self.twin.spec, self.count)
        around, found, missed = look_around(
            self.twin,
            here,
            jnp.asarray(offsets, flat.dtype),
            rows,
            draw_sets(self.twin, here, keys, source),
            derivatives=derivatives,
        )
        return around, np.asarray(found, float), float(missed)

    def place(self) -> Place[Inside] | None:
        """Gradient and curvature of minus the mean log likelihood."""
        around, _, missed = self._around(self.rows)
        assert around is not None
        if missed > 1 - 1e-6 or not all(np.isfinite(x).all() for x in around[:3]):
            return None
        value, slope, bend = (-np.asarray(x, float) / (1 - missed) for x in around[:3])
        each = slope.mean(axis=1).T  # (sets + 1, numbers); the last is of all draws
        sets, gradient = len(each) - 1, each[-1]
        noise = np.zeros((len(gradient), len(gradient)))
        curvatures = np.moveaxis(bend, 2, 0)
        if sets > 1:
            removed = (each[:-1].mean(0) - gradient) / (sets - 1)
            gradient = gradient - removed
            noise = np.atleast_2d(np.cov(each[:-1].T)) * student(sets) ** 2 / sets
            noise = noise + np.outer(removed, removed)
            apart = curvatures[:-1] - curvatures[:-1].mean(0)
            curvatures = curvatures[-1] + apart
        inside = Inside(
            float(value[:, -1].mean()),
            slope[:, :, -1].T,
            self.count,
            missed,
            float(around.size),
        )
        flat = np.asarray(self.flat, float)
        return Place(flat, gradient, noise, curvatures[:sets], inside)

    def sharpen(self, place: Place[Inside], directions: Directions) -> bool:
        """Take more draws if their noise is not small beside that of the recordings."""
        slopes, before = place.inside.slopes, self.count
        recorded = slopes.std(axis=0, ddof=1) / len(slopes) ** 0.5
        noisy = np.any(np.sqrt(np.diag(place.noise)) > _NOISY * recorded)
        if noisy or directions.rough:
            self.count = min(4 * before, max(self._fit(_LAST), before))
        return self.count > before

    def rises(self, last: Place[Inside], here: Place[Inside]) -> bool:
        """Whether the likelihood of all recordings fell by half a nat."""
        rise = here.inside.value - last.inside.value
        same = here.inside.draws == last.inside.draws
        return bool(same and rise * self.train.size > 0.5)

    def resampled(
        self, place: Place[Inside], num_draws: int, joined: int = 1
    ) -> np.ndarray:
        return self.shares(num_draws, joined) @ place.inside.slopes

    def measure(self, num_draws: int) -> Estimate:
        """Minus the mean log likelihood of the held-out recordings, in nats."""
        _, found, missed = self._around(self.held_rows, derivatives=False)
        by_block = -found[0] / max(1 - missed, 1e-30)
        value = by_block.mean() if missed < 1 else np.inf
        error, seen = float(standard_error(by_block)), {"missed": missed}
        return report(float(value), error, "likelihood", (), seen)

    def coordinates(self, values: Values) -> np.ndarray:
        """Recorded sites minus their means, in standard deviations."""
        flat = np.asarray(flatten(values, self.density.sites))
        return (flat - self.centre) / self.scale

    def doubts(self) -> list[str]:
        if self.end is None:
            return []
        found, inside, directions = [], self.end.place.inside, self.end.directions
        if inside.missed:
            found.append(
                f"{inside.missed:.2%} of the recordings have probability zero under a "
                f"set of {inside.draws} draws of the twin, so they were left out. Use "
                "a model that can make every recording."
            )
        if inside.size < _SOUND:
            found.append(
                "recordings determine the hidden noise so well that few draws of it "
                f"explain one recording (an effective sample size of {inside.size:.0f} "
                "or less for one in twenty). The bias of the sum over draws may exceed "
                "the standard errors. Raise num_samples, record fewer numbers at once, "
                "or use divergence='kl' if all sites are continuous."
            )
        # Else rows come and go, or noise decides.
        if directions.known.size and not inside.missed and inside.size >= _FEW:
            found.extend(self._compare(directions))
        return found

    def _compare(self, directions: Any) -> list[str]:
        """Compare derivatives with differences over one standard error."""
        steps = (directions.known * directions.error).T
        at = np.concatenate([np.zeros_like(steps[:1]), steps, -steps])
        middle, *ends = -self._around(self.rows, at, derivatives=False)[1].mean(1)
        up, down = np.reshape(ends, (2, -1)) * self.train.size
        slope = (up - down) / 2  # the distance to the end, in standard errors
        bend = up + down - 2 * middle * self.train.size
        wanted = directions.curvature * directions.error**2 * self.train.size
        off = np.maximum(np.abs(slope), np.abs(bend - wanted))
        if np.all(off < _OFF * wanted + 0.1):
            return []
        return [
            "the likelihood does not change as its derivatives say, as if a parameter "
            "moved a jump of the model, or a boundary. Parameters and standard errors "
            "may be wrong. Smooth the jump."
        ]
