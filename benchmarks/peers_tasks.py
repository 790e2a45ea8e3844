# SPDX-License-Identifier: Apache-2.0
"""The tasks of `peers.py`: a NumPyro model, the same system for peers, and its truth.

The system of a peer is a source of x, a mean of y given x, and the scale of normal
noise (or Bernoulli outcomes), in plain JAX. The truths are closed forms and integrals
on dense grids in double precision. Neither knows the package.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import channels
import estimators
import numpy as np
import run
from scipy.optimize import minimize
from scipy.special import expit, i0e

import jax
import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist

from numpyro_infograd.distributions import ComplexNormal
import truths

Params = dict[str, jax.Array]


class Task(NamedTuple):
    """One system and what is asked of it.

    Attributes:
        model: The NumPyro model, with sites "x" and "y" and parameters `params`.
        params: Where the ascent starts; empty if the task is a value.
        source: Draws of x: `source(params, key, n)` of shape (n, dx).
        mean: Mean of y given x, or its logits: shapes (n, dx) to (n, dy).
        scale: Standard deviation of the normal noise; None for Bernoulli outcomes.
        truth: The maximum, or the value, in nats.
        value: Information at parameters, with a standard error; None for a value.
        project: The constraint.
        log_source: log p(x) where a parameter enters it.
    """

    model: Callable[..., None]
    params: Params
    source: Callable[[Params, jax.Array, int], jax.Array]
    mean: Callable[[Params, jax.Array], jax.Array]
    scale: Callable[[Params], Any] | None
    truth: float
    value: Callable[[dict[str, np.ndarray]], tuple[float, float]] | None = None
    project: Callable[[Params], Params] | None = None
    log_source: Callable[[Params, jax.Array], jax.Array] | None = None


def normal_source(size: int, scale: float = 1.0, shift: float = 0.0) -> Callable:
    return lambda _, key, n: shift + scale * jax.random.normal(key, (n, size))


# -- ascents ---------------------------------------------------------------------------


def relay() -> Task:
    """Two gains of a relayed path share one power."""

    def value(p: Any) -> tuple[float, float]:
        return float(truths.multipath_information(p["a"], p["b"])), 0.0

    angles = np.linspace(0, np.pi, 1_000_001)
    best = truths.multipath_information(np.cos(angles), np.sin(angles)).max()
    return Task(
        run.multipath,
        {"a": jnp.ones(()), "b": jnp.zeros(())},
        normal_source(1),
        lambda p, x: (1 + p["a"] * p["b"]) * x,
        lambda p: jnp.sqrt(p["b"] ** 2 + 2),
        float(best),
        value,
        optax.projections.projection_l2_sphere,
    )


def matrix(nonlinearity: Callable, size: int, information: Callable) -> Task:
    """A matrix of norm at most 5 before a nonlinearity, from a random start."""
    start = jax.random.normal(jax.random.key(1), (size, size))
    best, _ = information(np.eye(size) * run.RADIUS / size**0.5)
    return Task(
        functools.partial(run.matrix_channel, nonlinearity, size),
        run.inside({"A": start}),
        normal_source(size),
        lambda p, x: nonlinearity(x @ p["A"].T),
        lambda p: run.NOISE**0.5,
        best,
        lambda p: information(np.asarray(p["A"], float)),
        run.inside,
    )


POWER = 4.0  # of a precoder
ANTENNAS, VARIANCE = 4, 0.5  # of complex noise


def precoder() -> Task:
    """A complex precoder of bounded power before a known complex channel."""
    rng = np.random.default_rng(3)
    h = rng.normal(size=(2, ANTENNAS, ANTENNAS)) / 2**0.5
    h = h[0] + 1j * h[1]
    start = jax.random.normal(jax.random.key(2), (2, ANTENNAS, ANTENNAS))

    def project(p: Params) -> Params:
        return optax.projections.projection_l2_ball(p, POWER**0.5)

    def signal(p: Params, symbols: jax.Array) -> jax.Array:
        return symbols @ (jnp.asarray(h) @ (p["F"][0] + 1j * p["F"][1])).T

    def model() -> None:
        p = {"F": numpyro.param("F", start)}
        symbol = ComplexNormal(0.0, 1.0).expand([ANTENNAS]).to_event(1)
        x = numpyro.sample("x", symbol)
        noise = VARIANCE**0.5 * jnp.ones(ANTENNAS)
        numpyro.sample("y", ComplexNormal(signal(p, x), noise).to_event(1))

    def mean(p: Params, x: jax.Array) -> jax.Array:
        y = signal(p, x[:, :ANTENNAS] + 1j * x[:, ANTENNAS:])
        return jnp.concatenate([y.real, y.imag], axis=1)

    def value(p: Any) -> tuple[float, float]:
        f = np.asarray(p["F"], float)
        through = h @ (f[0] + 1j * f[1])
        gram = np.eye(ANTENNAS) + through @ through.conj().T / VARIANCE
        return float(np.linalg.slogdet(gram)[1]), 0.0

    gains = np.linalg.svd(h, compute_uv=False) ** 2 / VARIANCE
    levels = [(POWER + np.sum(1 / gains[:k])) / k for k in range(1, ANTENNAS + 1)]
    water = min(levels)  # each level but the right one is too high
    best = np.sum(np.log(np.maximum(gains * water, 1)))
    return Task(
        model,
        project({"F": start}),
        normal_source(2 * ANTENNAS, 2**-0.5),
        mean,
        lambda p: (VARIANCE / 2) ** 0.5,
        float(best),
        value,
        project,
    )


LEVELS = np.arange(-7.0, 8.0, 2.0)


def shaping() -> Task:
    """Probabilities of eight levels of a power ten times that of the noise."""

    def amplitude(q: Any, xp: Any) -> Any:
        return xp.sqrt(10.0 / xp.sum(q * LEVELS**2))

    def model() -> None:
        q = jax.nn.softmax(numpyro.param("logits", jnp.zeros(8)))
        x = numpyro.sample("x", dist.Categorical(probs=q))
        level = amplitude(q, jnp) * jnp.asarray(LEVELS)[x]
        numpyro.sample("y", dist.Normal(level, 1.0))

    def source(p: Params, key: jax.Array, n: int) -> jax.Array:
        return jax.nn.one_hot(jax.random.categorical(key, p["logits"], shape=(n,)), 8)

    def mean(p: Params, x: jax.Array) -> jax.Array:
        return amplitude(jax.nn.softmax(p["logits"]), jnp) * (x @ LEVELS)[:, None]

    def information(logits: np.ndarray) -> float:
        q = np.exp(logits - logits.max())
        q /= q.sum()
        points = amplitude(q, np) * LEVELS
        y = np.linspace(points.min() - 9, points.max() + 9, 4001)
        density = np.exp(-0.5 * (y[:, None] - points) ** 2) @ q / (2 * np.pi) ** 0.5
        entropy = -np.sum(density * np.log(density)) * (y[1] - y[0])
        return float(entropy - 0.5 * np.log(2 * np.pi * np.e))

    found = minimize(lambda half: -information(np.r_[half, half[::-1]]), np.zeros(4))
    return Task(
        model,
        {"logits": jnp.zeros(8)},
        source,
        mean,
        lambda p: 1.0,
        -float(found.fun),
        lambda p: (information(np.asarray(p["logits"], float)), 0.0),
        log_source=lambda p, x: x @ jax.nn.log_softmax(p["logits"]),
    )


def memory() -> Task:
    """Lengths of three lists that tell most of a person's memory, all read at once."""
    start = jnp.array([4.0, 5.0, 6.0])

    def model() -> None:
        length = numpyro.param("length", start)
        x = numpyro.sample("x", dist.Normal(7.0, 2.0))
        numpyro.sample("y", dist.Bernoulli(logits=x - length).to_event(1))

    ability = np.linspace(-11, 25, 2001)
    prior = np.exp(-0.5 * ((ability - 7) / 2) ** 2)
    prior /= prior.sum()

    def information(length: np.ndarray) -> float:
        right = expit(ability[:, None] - length)
        outcomes = np.ones((len(ability), 1))
        for each in right.T[:, :, None]:
            outcomes = np.concatenate([outcomes * each, outcomes * (1 - each)], axis=1)
        outcomes = np.maximum(outcomes, 1e-300)
        marginal = prior @ outcomes
        return float(prior @ np.sum(outcomes * np.log(outcomes / marginal), axis=1))

    found = minimize(lambda length: -information(length), np.array([6.0, 7.0, 8.0]))
    return Task(
        model,
        {"length": start},
        normal_source(1, 2.0, 7.0),
        lambda p, x: x - p["length"],
        None,
        -float(found.fun),
        lambda p: (information(np.asarray(p["length"], float)), 0.0),
    )


DEVIATION = 0.5  # of the noise of a detector
# The best end of ascents of `located` by Nelder-Mead: two opposite places, 0.623 from
# the centre. The grid is good to 0.02 %.
BEST_PLACES = 1.58217


def located(places: np.ndarray, points: int = 301) -> float:
    """Information of two readings at `places` about a source on the plane."""
    axis = np.linspace(-5, 5, points)
    weight = np.exp(-0.5 * axis**2)
    weight = np.outer(weight, weight).ravel() / weight.sum() ** 2
    y = np.linspace(-5, 12, 171)
    kernels = []
    for place in places:
        squares = np.add.outer((axis - place[0]) ** 2, (axis - place[1]) ** 2).ravel()
        heard = np.log(0.1 + 1 / (1e-4 + squares))
        z = (y[:, None] - heard) / DEVIATION
        kernels.append(np.exp(-0.5 * z**2) / (DEVIATION * (2 * np.pi) ** 0.5))
    density = np.maximum((kernels[0] * weight) @ kernels[1].T, 1e-300)
    entropy = -np.sum(density * np.log(density)) * (y[1] - y[0]) ** 2
    return float(entropy - np.log(2 * np.pi * np.e * DEVIATION**2))


def location() -> Task:
    """Where two detectors hear most of where a source is (Foster et al. 2021)."""
    start = jax.random.normal(jax.random.key(5), (2, 2))

    def mean(p: Params, x: jax.Array) -> jax.Array:
        squares = jnp.sum((x[..., None, :] - p["place"]) ** 2, axis=-1)
        return jnp.log(0.1 + 1 / (1e-4 + squares))

    def model() -> None:
        p = {"place": numpyro.param("place", start)}
        x = numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(mean(p, x), DEVIATION).to_event(1))

    return Task(
        model,
        {"place": start},
        normal_source(2),
        mean,
        lambda p: DEVIATION,
        BEST_PLACES,
        lambda p: (located(np.asarray(p["place"], float)), 0.0),
    )


# -- values ----------------------------------------------------------------------------


def rotated(size: int, variance: float) -> Task:
    """Saturating components behind a rotation: so many scalar channels."""
    turn = estimators.rotation(size, 0)

    def bent(x: jax.Array) -> jax.Array:
        return jnp.tanh(1.5 * x)

    def model() -> None:
        x = numpyro.sample("x", dist.Normal(0, 1).expand([size]).to_event(1))
        y = jnp.asarray(turn, x.dtype) @ bent(x)
        numpyro.sample("y", dist.Normal(y, variance**0.5).to_event(1))

    return Task(
        model,
        {},
        normal_source(size),
        lambda p, x: bent(x) @ turn.T,
        lambda p: variance**0.5,
        size * truths.tanh_information(1.5, variance),
    )


CARRIERS, SPREAD = 8, 0.5


def amplifier() -> Task:
    """Eight carriers through an amplifier that saturates in the time domain."""

    def amplified(symbols: jax.Array) -> jax.Array:
        t = 0.8 * jnp.fft.ifft(symbols, norm="ortho")
        return jnp.fft.fft(t / (1 + jnp.abs(t) ** 4) ** 0.25, norm="ortho")

    def model() -> None:
        symbol = ComplexNormal(0.0, 1.0).expand([CARRIERS]).to_event(1)
        x = numpyro.sample("x", symbol)
        noise = SPREAD * jnp.ones(CARRIERS)
        numpyro.sample("y", ComplexNormal(amplified(x), noise).to_event(1))

    def mean(p: Params, x: jax.Array) -> jax.Array:
        y = amplified(x[:, :CARRIERS] + 1j * x[:, CARRIERS:])
        return jnp.concatenate([y.real, y.imag], axis=1)

    # The transforms are unitary, so this is one complex channel, eight times: a radius
    # is amplified, and noise makes a Rice law of it.
    squares = (np.arange(6000) + 0.5) / 200 * 0.64
    weight = np.exp(-squares / 0.64)
    weight /= weight.sum()
    sent = (squares / (1 + squares**2) ** 0.5) ** 0.5
    y = np.linspace(0, 1 + 9 * SPREAD, 2001)[1:]
    product = 2 * np.outer(y, sent) / SPREAD**2
    kernel = np.exp(-((y[:, None] - sent) ** 2) / SPREAD**2) * i0e(product)
    density = kernel @ weight / (np.pi * SPREAD**2)
    entropy = -np.sum(2 * np.pi * y * density * np.log(density)) * (y[1] - y[0])
    return Task(
        model,
        {},
        normal_source(2 * CARRIERS, 2**-0.5),
        mean,
        lambda p: SPREAD / 2**0.5,
        CARRIERS * float(entropy - np.log(np.pi * np.e * SPREAD**2)),
    )


def linear() -> Task:
    """An 8 x 8 matrix with normal inputs."""
    return Task(
        estimators.CHANNELS["linear 8-d"].model,
        {},
        normal_source(8),
        lambda p, x: x @ estimators.EIGHT.T,
        lambda p: 0.5**0.5,
        estimators.LINEAR,
    )


def heavy() -> Task:
    """Four inputs with Laplace laws, mixed by a rotation."""
    channel = channels.mixed("Laplace input", 4)
    turn = np.linalg.qr(np.random.default_rng(4).normal(size=(4, 4)))[0]
    return Task(
        channel.model,
        {},
        lambda p, key, n: jax.random.laplace(key, (n, 4)),
        lambda p, x: x @ turn.T,
        lambda p: 0.4,
        channel.information,
    )


TASKS: dict[str, Callable[[], Task]] = {
    "relay": relay,
    "linear matrix": lambda: matrix(run.identity, 8, run.linear_information),
    "tanh matrix": lambda: matrix(jnp.tanh, 12, run.saturated_information),
    "precoder": precoder,
    "shaping": shaping,
    "memory": memory,
    "location": location,
    "tanh 16-d, noise 0.1": lambda: rotated(16, 0.01),
    "tanh 16-d, noise 0.5": lambda: rotated(16, 0.25),
    "amplifier": amplifier,
    "linear 8-d": linear,
    "Laplace 4-d": heavy,
}
