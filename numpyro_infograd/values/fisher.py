# SPDX-License-Identifier: Apache-2.0
"""Values by the Fisher integral over appended noise.

Let w be the values in coordinates of mean 0 and covariance I, w_t = w + sqrt(t) z with
z standard normal, s_t the score of w_t, and -w_t / (1 + t) that of a normal law of the
same covariance. De Bruijn's identity (eqs. 54-55) then reads

    h(w) = -E log N(w; 0, I) - 1/2 int_0^inf E |s_t(w_t) + w_t / (1 + t)|^2 dt,

for any law of w: what a normal law explains is outside the integral, so that its
integrand falls as t^-4 and needs no tail, and is zero for a linear-Gaussian model.

The integrand is the least square error of a regression: of the complete-data score at
w_t, whose mean given w_t is s_t. So the integral over log t is one least squares
problem, with log t a coordinate of the same quasi-random points as the noise. Networks
are trained for its features; the value is solved from sums over fresh samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
import math
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp
import optax

from numpyro_infograd.arguments import as_power_of_two
from numpyro_infograd.edits import append_noise
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.exogenous import Noise
from numpyro_infograd.gradient import STUDENT
from numpyro_infograd.noise import NoiseSpec, base_points, draw_noise
from numpyro_infograd.objectives import Objective, Term, resolve, trace_expectations
from numpyro_infograd.problem import REPLICATES
from numpyro_infograd.program import Program
from numpyro_infograd.scores.base import complete_data_scores, flatten
from numpyro_infograd.scores.network import RIDGE, Ensemble
from numpyro_infograd.structure import Density, StructuralModel, simulate
from numpyro_infograd.values.base import Estimate, report
from numpyro_infograd.values.nested import average

_POOLS = 4  # of the samples' size, to train on
_HIGHEST = 100.0  # variance, in units of the values' own
_LOWEST = 1e-3  # variance, in units of the smoothing that the model itself does
_UNSMOOTHED = 0.1  # what is taken for that where the model does none, or much
# What features are still missing, by what the second half of them gained: where truths
# are known it was between one and two times that.
_MISSING = 1.5


@dataclass(frozen=True)
class Fisher:
    """The Fisher integral, with one noise-conditional score network.

    Serves outputs without a density of their own and information too high for nested
    averages; entropies that hide no noise are averaged as they are. The standard error
    holds the sampling and the fit (a jackknife over 16 replicates), half of what the
    value was corrected by for features that the networks lack, and the part below the
    lowest variance.

    Args:
        num_samples: Samples of the least squares problem, a power of two.
        hidden: Widths of the hidden layers.
        num_networks: How many networks give features, an even number.
        num_steps: Training steps.
        batch_size: Samples of a training step, shared out among the networks.
        learning_rate: Peak of the cosine schedule.
    """

    num_samples: int = 524288
    hidden: tuple[int, ...] = (64, 64)
    num_networks: int = 4
    num_steps: int = 1000
    batch_size: int = 2048
    learning_rate: float = 4e-3

    def __post_init__(self) -> None:
        as_power_of_two("num_samples", self.num_samples, 64 * REPLICATES)
        if self.num_networks < 2 or self.num_networks % 2:
            raise ArgumentError(
                f"num_networks must be even and at least 2, got {self.num_networks}."
            )

    def value(
        self, objective: Objective, sm: StructuralModel, params: Any, rng_key: jax.Array
    ) -> Estimate:
        """The value: one least squares problem for each entropy that hides noise."""
        why = why_not_fisher(objective, sm)
        if why:
            raise ArgumentError(
                f"method='fisher' needs scores, but {why}. Use method='nested'."
            )
        # Seen through a little noise every site has a density, so that the graph alone
        # decides which entropies are conditional.
        bare = [s for s in objective.sites if is_bare(sm, s)]
        noisy = append_noise(sm, dict.fromkeys(bare, 1.0)) if bare else sm
        terms = resolve(objective, noisy)
        known: list[tuple[Term, Density]] = []
        learned: list[tuple[Term, Density]] = []
        for term in terms:
            density = sm.density(term.sites, term.given, whole=True)
            own = not any(is_bare(sm, s) for s in term.sites)
            (known if own and not density.hidden else learned).append((term, density))
        key, *keys = jax.random.split(rng_key, 1 + len(learned))
        rest = average(
            tuple(term for term, _ in known),
            trace_expectations(objective, sm),
            sm,
            params,
            key,
            2**16,
        )
        value, variance = rest.value, rest.error**2
        diagnostics: dict[str, Any] = {}
        for (term, density), key in zip(learned, keys, strict=True):
            found = self._entropy(sm, density, params, key)
            value += term.coefficient * found.value
            variance += (term.coefficient * found.error) ** 2
            label = ",".join(term.sites) + ("|" + ",".join(term.given)).rstrip("|")
            diagnostics |= {
                f"{name}({label})": number
                for name, number in found._asdict().items()
                if name not in ("value", "error")
            }
        return report(value, math.sqrt(variance), "fisher", (), diagnostics)

    def _entropy(
        self, sm: StructuralModel, density: Density, params: Any, rng_key: jax.Array
    ) -> _Entropy:
        """h(sites | given) of one set of sites."""
        sizes = density.sizes[: len(density.sites)]
        dimensions = sum(sizes)
        spec = (
            *sm.spec,
            ("+variance", Noise("uniform", ())),
            ("+noise", Noise("normal", (dimensions,))),
        )
        size = self.num_samples // REPLICATES
        draw_key, init_key, train_key = jax.random.split(rng_key, 3)
        draws = _draw(
            sm.forward,
            replace(density, blocks=density.sites),
            params,
            base_points(spec, size),
            draw_key,
            spec=spec,
            size=size,
        )
        pool = jax.tree.map(
            lambda x: x[:_POOLS].reshape(_POOLS * size, *x.shape[2:]), draws
        )
        fresh = jax.tree.map(lambda x: x[_POOLS:], draws)
        frame = _Frame.of(pool)
        networks = _train(self, frame, pool, init_key, train_key)
        gram, cross, square, floor = (
            np.asarray(x, np.float64) for x in _sums(self, frame, networks, fresh)
        )
        constant = 0.5 * dimensions * math.log(2 * math.pi) + float(frame.log_volume)
        # Features of the first half of the networks are a problem of their own.
        half = np.r_[: gram.shape[1] // 2, -1]
        gaussian = _leave_one_out(constant + 0.5 * square)
        whole = _least_squares(gram, cross)
        part = _least_squares(gram[:, half][:, :, half], cross[:, half])
        missing = _MISSING * (whole - part)
        value, error = _jackknife(gaussian - whole - missing)
        gained, _ = _jackknife(whole - part)
        below = 0.5 * float(np.mean(floor))
        return _Entropy(
            value,
            math.sqrt(error**2 + (0.5 * _MISSING * gained) ** 2 + below**2),
            _jackknife(whole + missing)[0],
            gained,
            math.exp(frame.lowest),
        )


class _Entropy(NamedTuple):
    value: float
    error: float
    negentropy: float
    gained: float
    lowest_variance: float


def is_bare(sm: StructuralModel, site: str) -> bool:
    """Whether a site has no density of its own."""
    return sm.site_info[site].kind == "deterministic" and site not in sm.appended


def why_not_fisher(objective: Objective, sm: StructuralModel) -> str:
    """Why a site that needs a score has none; "" if all have."""
    bare = [s for s in objective.sites if is_bare(sm, s) and not _whole(sm, s)]
    noisy = append_noise(sm, dict.fromkeys(bare, 1.0)) if bare else sm
    for term in resolve(objective, noisy):
        hidden = noisy.density(term.sites, term.given, whole=True).hidden
        for site in term.sites:
            if hidden and (sm.site_info[site].discrete or _whole(sm, site)):
                return f"site {site!r} is discrete"
    return ""


def _whole(sm: StructuralModel, site: str) -> bool:
    """Whether a site holds whole numbers."""
    return not jnp.issubdtype(sm.site_info[site].dtype, jnp.floating)


# -- samples -----------------------------------------------------------------------


class _Draws(NamedTuple):
    """Samples, with a leading axis of them or of replicates and them."""

    values: jax.Array  # (dimensions,)
    given: jax.Array  # (inputs,)
    score: jax.Array  # complete-data score, or zero where that is no unbiased target
    position: jax.Array  # in (0, 1), of the logarithm of the variance
    noise: jax.Array  # standard normal, (dimensions,)


@jax.jit(static_argnames=("spec", "size"))
def _draw(
    forward: Program,
    density: Density,
    params: Any,
    points: Any,
    rng_key: jax.Array,
    spec: NoiseSpec,
    size: int,
) -> _Draws:
    """Pools to train on, then replicates to solve from: (pools + 16, size, ...)."""

    def one(key: jax.Array) -> _Draws:
        noise = draw_noise(spec, key, size, points)
        position, normal = noise.pop("+variance"), noise.pop("+noise")
        values = simulate(forward, params, noise)
        flat = flatten(values, density.sites)
        score = jnp.zeros_like(flat)
        # Without the terms that a boundary adds, appended noise alone is the target.
        if density.unbounded and not density.moving and density.scored == density.sites:
            target = complete_data_scores(density, params, noise, values)
            score = flatten(target, density.sites)
        given = jnp.zeros((size, 0))
        if density.given:
            given = flatten(values, density.given)
        return _Draws(flat, given, score, position, normal)

    return jax.lax.map(one, jax.random.split(rng_key, _POOLS + REPLICATES))


class _Frame(NamedTuple):
    """Coordinates: w = whiten (values - mean - slope inputs), inputs standardised."""

    mean: jax.Array
    whiten: jax.Array
    unwhiten: jax.Array
    log_volume: jax.Array  # log |det unwhiten|
    slope: jax.Array  # (dimensions, inputs): linear regression on what is given
    given_mean: jax.Array
    given_scale: jax.Array
    axes: jax.Array  # eigenvectors of the mean square of the complete-data score of w
    sharpness: jax.Array  # and eigenvalues
    smoothing: jax.Array  # variance that the model itself smooths w with
    lowest: jax.Array  # log of the lowest variance of the integral

    @staticmethod
    def of(pool: _Draws) -> _Frame:
        """From the pool's moments. Any frame is right; a good one leaves little."""
        values, given, score = (np.asarray(x, np.float64) for x in pool[:3])
        mean, given_mean = values.mean(0), given.mean(0)
        scale = given.std(0)
        scale = np.where(scale > 0, scale, 1.0)
        inputs, centred = (given - given_mean) / scale, values - mean
        slope = np.linalg.lstsq(inputs, centred, rcond=1e-6)[0].T
        centred = centred - inputs @ slope.T
        unwhiten = np.linalg.cholesky(centred.T @ centred / len(centred))
        target = score @ unwhiten
        sharpness, axes = np.linalg.eigh(target.T @ target / len(target))
        if not score.any():
            sharpness[:] = np.inf  # an infinite variance has no weight
        smoothing = _UNSMOOTHED
        if np.isfinite(sharpness).all():
            smoothing = min(1.0 / np.mean(sharpness), _UNSMOOTHED)
        frame = (
            mean,
            np.linalg.inv(unwhiten),
            unwhiten,
            np.sum(np.log(np.diag(unwhiten))),
            slope,
            given_mean,
            scale,
            axes,
            np.maximum(sharpness, 0.0),
            smoothing,
            math.log(_LOWEST * smoothing),
        )
        return _Frame(*(jnp.asarray(x, pool.values.dtype) for x in frame))

    @property
    def span(self) -> jax.Array:
        """Length of the integral over log t; the lowest e-fold is all that is below."""
        return math.log(_HIGHEST) - self.lowest + 1.0

    def regression(self, draws: _Draws) -> _Regression:
        """Inputs, gain and target of the least squares problem for a batch."""
        below = (draws.position * self.span < 1.0).astype(draws.values.dtype)
        level = jnp.maximum(self.lowest - 1.0 + draws.position * self.span, self.lowest)
        t = jnp.exp(level)[:, None]
        inputs = (draws.given - self.given_mean) / self.given_scale
        w = (draws.values - self.mean - inputs @ self.slope.T) @ self.whiten.T
        w_t = w + jnp.sqrt(t) * draws.noise
        # Both the model's own score and that of the appended noise have s_t for a mean;
        # these are the weights of least variance if the model's own noise is normal.
        own = 1.0 / (1.0 + t * self.sharpness)
        score = (draws.score @ self.unwhiten @ self.axes) * own
        score -= (draws.noise / jnp.sqrt(t) @ self.axes) * (1.0 - own)
        target = jnp.sqrt(t) * (score @ self.axes.T + w_t / (1.0 + t))
        gain = jnp.sqrt(t / (self.smoothing + t)) * (1.0 + t) ** -1.5
        levels = jnp.stack(
            [
                2.0 * (level - self.lowest) / self.span - 1.0,
                jnp.log(self.smoothing + t[:, 0]) / 3.0,
            ],
            axis=1,
        )
        columns = [w_t / jnp.sqrt(1.0 + t), inputs]
        clipped = jnp.clip(jnp.concatenate(columns, axis=1), -8.0, 8.0)
        seen = jnp.concatenate([clipped, levels], axis=1)
        return _Regression(seen, gain, target, w, below)


class _Regression(NamedTuple):
    """sqrt(t) (s_t + w_t / (1 + t)) is about gain * network(seen)."""

    seen: jax.Array
    gain: jax.Array
    target: jax.Array
    w: jax.Array
    below: jax.Array  # 1 where the sample stands for the variances below the lowest


# -- fit ---------------------------------------------------------------------------


def _ensemble(method: Fisher, pool: _Draws) -> Ensemble:
    dimensions, given = pool.values.shape[-1], pool.given.shape[-1]
    return Ensemble(dimensions + given + 2, dimensions, method.hidden)


@jax.jit(static_argnames="method")
def _train(
    method: Fisher,
    frame: _Frame,
    pool: _Draws,
    init_key: jax.Array,
    train_key: jax.Array,
) -> Any:
    """Networks fitted to the pool, with fresh variances and noise at every step."""
    ensemble = _ensemble(method, pool)
    members, batch = method.num_networks, method.batch_size // method.num_networks
    optimizer = optax.adam(
        optax.cosine_decay_schedule(method.learning_rate, method.num_steps)
    )

    def loss(networks: Any, at: _Regression) -> jax.Array:
        residual = at.gain * ensemble(networks, at.seen) - at.target
        return jnp.sum(jnp.mean(residual**2, axis=(1, 2)))

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        networks, state = carry
        pick_key, level_key, noise_key = jax.random.split(key, 3)
        picked = jax.random.randint(
            pick_key, (members * batch,), 0, pool.values.shape[0]
        )
        draws = jax.tree.map(lambda x: x[picked], pool)
        spread = jax.random.uniform(level_key, (members, batch))
        levels = (jnp.arange(batch) + spread).ravel() / batch
        noise = jax.random.normal(noise_key, draws.noise.shape)
        at = frame.regression(draws._replace(position=levels, noise=noise))
        at = jax.tree.map(lambda x: x.reshape(members, batch, *x.shape[1:]), at)
        gradient = jax.grad(loss)(networks, at)
        updates, state = optimizer.update(gradient, state, networks)
        return (optax.apply_updates(networks, updates), state), None

    networks = ensemble.init(init_key, members)
    start = (networks, optimizer.init(networks))
    return jax.lax.scan(step, start, jax.random.split(train_key, method.num_steps))[0][
        0
    ]


@jax.jit(static_argnames="method")
def _sums(
    method: Fisher, frame: _Frame, networks: Any, fresh: _Draws
) -> tuple[jax.Array, ...]:
    """For each replicate: normal equations of the last layer, E|w|^2, what is below.

    Half the span of log t times a mean square is the integral that it stands for; the
    factor is in the sums.
    """
    ensemble = _ensemble(method, fresh)

    def one(draws: _Draws) -> tuple[jax.Array, ...]:
        at = frame.regression(draws)
        hidden = ensemble.features(networks, at.seen)
        ones = jnp.ones((hidden.shape[1], 1), hidden.dtype)
        features = at.gain * jnp.concatenate([*hidden, ones], axis=1)
        scale = 0.5 * frame.span / features.shape[0]
        fitted = at.gain * jnp.mean(ensemble(networks, at.seen, common=True), axis=0)
        return (
            scale * features.T @ features,
            scale * features.T @ at.target,
            jnp.mean(jnp.sum(at.w**2, axis=1)),
            scale * jnp.sum(at.below[:, None] * fitted**2),
        )

    return jax.lax.map(one, fresh)


# -- solve -------------------------------------------------------------------------


def _least_squares(gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """What a regression explains, from all replicates and with each left out."""
    found = []
    for a, b in zip(_leave_one_out(gram), _leave_one_out(cross), strict=True):
        ridge = RIDGE * np.trace(a) / len(a) * np.eye(len(a))
        solved = np.linalg.solve(a + ridge, b)
        found.append(2 * np.sum(solved * b) - np.sum(solved * (a @ solved)))
    return np.array(found)


def _leave_one_out(each: np.ndarray) -> np.ndarray:
    """The mean over replicates, then the means with each of them left out."""
    total, count = each.sum(0), len(each)
    return np.concatenate([total[None] / count, (total - each) / (count - 1)])


def _jackknife(found: np.ndarray) -> tuple[float, float]:
    """Value and standard error of a statistic, its first-order bias removed."""
    count = len(found) - 1
    pseudo = count * found[0] - (count - 1) * found[1:]
    error = STUDENT * np.std(pseudo, ddof=1) / math.sqrt(count)
    return float(np.mean(pseudo)), float(error)
