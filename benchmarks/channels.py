# SPDX-License-Identifier: Apache-2.0
"""Gradients on channels of every kind against truths; Markdown.

    python benchmarks/channels.py                       # all, half an hour or so
    python benchmarks/channels.py --only "tanh, 16"     # those whose name has this
    python benchmarks/channels.py --values              # the information as well
    python benchmarks/channels.py --scores denoising    # other scores than "auto"

Truths are integrals on dense grids in double precision, independent of the package.
A channel of several dimensions is so many scalar channels, whose outputs are mixed by
an orthogonal matrix, so that no component by itself shows how they are made.
"""

import argparse
from collections.abc import Callable
import functools
import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

STEP = 1e-3  # of the differences that make a derivative of an information


class Scalar(NamedTuple):
    """A channel from x to y with one gain.

    Attributes:
        source: Law of x.
        output: Law of y given x and the gain.
        grid: Values of x and their probabilities.
        density: p(y | x) at broadcast y, x and gain.
        reach: Where y may be.
    """

    source: Any
    output: Callable[[Any, Any], Any]
    grid: tuple[NDArray, NDArray]
    density: Callable[[Any, Any, float], NDArray]
    reach: tuple[float, float]


def information(channel: Scalar, gain: float, points: int = 6001) -> float:
    """I(x; y) of a scalar channel, in nats, on a dense grid."""
    x, weight = channel.grid
    y = np.linspace(*channel.reach, points)
    total, step = 0.0, y[1] - y[0]
    for part in np.array_split(y, 24):
        given = channel.density(part[:, None], x, gain)
        marginal = given @ weight
        ratio = np.log(
            np.maximum(given, 1e-300) / np.maximum(marginal, 1e-300)[:, None]
        )
        total += float(np.sum((given * ratio) @ weight)) * step
    return total


def derivative(channel: Scalar, gain: float) -> float:
    """d I(x; y) / d gain."""
    ends = (information(channel, gain + sign * STEP) for sign in (1, -1))
    return float(np.subtract(*ends)) / (2 * STEP)


def continuous(law: Any, low: float, high: float, points: int = 1201) -> Any:
    """A grid of a continuous law: the middles of cells, by their probabilities."""
    ends = np.linspace(low, high, points + 1)
    weight = np.diff(law.cdf(ends))
    return 0.5 * (ends[1:] + ends[:-1]), weight / weight.sum()


def whole(law: Any, most: int) -> Any:
    """A grid of a law of whole numbers."""
    numbers = np.arange(most + 1.0)
    return numbers, law.pmf(numbers) / law.pmf(numbers).sum()


NORMAL = continuous(stats.norm, -7, 7)


def additive(
    source: Any, grid: Any, shape: Callable[..., Any], noise: float, reach: float
) -> Scalar:
    """y = shape(gain, x) + normal noise; `shape` takes jnp or np as its first."""
    return Scalar(
        source,
        lambda gain, x: dist.Normal(shape(jnp, gain, x), noise),
        grid,
        lambda y, x, gain: stats.norm.pdf(y, shape(np, gain, x), noise),
        (-reach, reach),
    )


def noisy(output: Any, density: Any, reach: float) -> Scalar:
    """A normal input, and another law of the noise."""
    return Scalar(dist.Normal(0, 1), output, NORMAL, density, (-reach, reach))


def _linear(xp, gain, x):
    return gain * x


def _tanh(xp, gain, x):
    return xp.tanh(gain * x)


SCALARS: dict[str, tuple[Scalar, float]] = {
    "linear": (additive(dist.Normal(0, 1), NORMAL, _linear, 0.5, 16), 1.0),
    "tanh": (additive(dist.Normal(0, 1), NORMAL, _tanh, 0.5, 5), 1.5),
    "tanh, quiet": (additive(dist.Normal(0, 1), NORMAL, _tanh, 0.1, 2), 1.5),
    "cubic": (
        additive(
            dist.Normal(0, 1),
            NORMAL,
            lambda xp, gain, x: gain * x + 0.2 * x**3,
            0.5,
            30,
        ),
        0.5,
    ),
    "square": (
        additive(dist.Normal(0, 1), NORMAL, lambda xp, gain, x: gain * x**2, 0.5, 50),
        1.0,
    ),
    "sine": (
        additive(
            dist.Normal(0, 1), NORMAL, lambda xp, gain, x: xp.sin(gain * x), 0.3, 4
        ),
        1.0,
    ),
    "limiter": (
        additive(
            dist.Normal(0, 1),
            NORMAL,
            lambda xp, gain, x: gain * x / xp.sqrt(1 + (gain * x) ** 2),
            0.2,
            3,
        ),
        1.0,
    ),
    "Laplace input": (
        additive(
            dist.Laplace(0, 1), continuous(stats.laplace, -16, 16), _linear, 0.4, 18
        ),
        1.0,
    ),
    "Student input": (
        additive(
            dist.StudentT(5.0), continuous(stats.t(5), -40, 40, 4001), _linear, 0.5, 44
        ),
        1.0,
    ),
    "uniform input": (
        additive(
            dist.Uniform(-1, 1),
            continuous(stats.uniform(-1, 2), -1, 1),
            _linear,
            0.3,
            4,
        ),
        1.0,
    ),
    "Gamma input": (
        additive(
            dist.Gamma(2.0, 1.0),
            continuous(stats.gamma(2), 0, 24),
            lambda xp, gain, x: gain * xp.log1p(x),
            0.2,
            6,
        ),
        1.0,
    ),
    "Beta input": (
        additive(
            dist.Beta(2.0, 1.5), continuous(stats.beta(2, 1.5), 0, 1), _linear, 0.2, 5
        ),
        2.0,
    ),
    "two levels": (
        additive(
            dist.Bernoulli(0.5),
            (np.array([0.0, 1.0]), np.array([0.5, 0.5])),
            lambda xp, gain, x: gain * (2 * x - 1),
            0.7,
            6,
        ),
        1.0,
    ),
    "four levels": (
        additive(
            dist.Categorical(probs=jnp.ones(4) / 4),
            (np.arange(4.0), np.ones(4) / 4),
            lambda xp, gain, x: gain * (x - 1.5),
            0.4,
            6,
        ),
        1.0,
    ),
    "Poisson input": (
        additive(dist.Poisson(3.0), whole(stats.poisson(3), 40), _linear, 0.4, 24),
        0.5,
    ),
    "Laplace noise": (
        noisy(
            lambda gain, x: dist.Laplace(gain * x, 0.5),
            lambda y, x, gain: stats.laplace.pdf(y, gain * x, 0.5),
            20,
        ),
        1.0,
    ),
    "Student noise": (
        noisy(
            lambda gain, x: dist.StudentT(4.0, gain * x, 0.5),
            lambda y, x, gain: stats.t.pdf(y, 4, gain * x, 0.5),
            60,
        ),
        1.0,
    ),
    "logistic noise": (
        noisy(
            lambda gain, x: dist.Logistic(gain * x, 0.4),
            lambda y, x, gain: stats.logistic.pdf(y, gain * x, 0.4),
            20,
        ),
        1.0,
    ),
    "Gumbel noise": (
        noisy(
            lambda gain, x: dist.Gumbel(gain * x, 0.4),
            lambda y, x, gain: stats.gumbel_r.pdf(y, gain * x, 0.4),
            20,
        ),
        1.0,
    ),
    "noise that grows": (
        noisy(
            lambda gain, x: dist.Normal(x, 0.3 * jnp.exp(gain * x)),
            lambda y, x, gain: stats.norm.pdf(y, x, 0.3 * np.exp(gain * x)),
            60,
        ),
        0.4,
    ),
}


class Channel(NamedTuple):
    """A model with its truths, in nats; the gradient is that in "gain"."""

    model: Callable[[], None]
    information: float
    derivative: float
    inputs: str = "x"


def single(name: str) -> Channel:
    """A scalar channel."""
    scalar, start = SCALARS[name]

    def model() -> None:
        gain = numpyro.param("gain", start)
        x = numpyro.sample("x", scalar.source)
        numpyro.sample("y", scalar.output(gain, x))

    return Channel(model, information(scalar, start), derivative(scalar, start))


def mixed(name: str, size: int) -> Channel:
    """Scalar channels with normal noise, mixed by an orthogonal matrix."""
    scalar, start = SCALARS[name]
    normal = np.random.default_rng(size).normal(size=(size, size))
    matrix = np.linalg.qr(normal)[0]

    def model() -> None:
        gain = numpyro.param("gain", start)
        x = numpyro.sample("x", scalar.source.expand([size]).to_event(1))
        law = scalar.output(gain, x)
        mean = jnp.asarray(matrix, law.loc.dtype) @ law.loc
        numpyro.sample("y", dist.Normal(mean, law.scale).to_event(1))

    return Channel(
        model, size * information(scalar, start), size * derivative(scalar, start)
    )


def relay() -> Channel:
    """x -> v -> y through two amplifiers; v is hidden, and the gain is the first's."""
    v = np.linspace(-3, 3, 1501)
    step = v[1] - v[0]

    def density(y, x, gain):
        before = stats.norm.pdf(v[:, None], np.tanh(gain * x), 0.3) * step
        return stats.norm.pdf(y, np.tanh(2 * v), 0.4) @ before

    scalar = Scalar(None, lambda gain, x: None, NORMAL, density, (-4, 4))

    def model() -> None:
        gain = numpyro.param("gain", 1.5)
        x = numpyro.sample("x", dist.Normal(0, 1))
        hidden = numpyro.sample("v", dist.Normal(jnp.tanh(gain * x), 0.3))
        numpyro.sample("y", dist.Normal(jnp.tanh(2 * hidden), 0.4))

    return Channel(model, information(scalar, 1.5), derivative(scalar, 1.5))


def faded(known: bool) -> Channel:
    """y = gain h x + noise, h half-normal; known to the receiver or not."""
    h, weight = continuous(stats.halfnorm, 0, 6, 301)

    def density(y, x, gain):
        found = [
            w * stats.norm.pdf(y, gain * each * x, 0.5)
            for each, w in zip(h, weight, strict=True)
        ]
        return np.sum(found, axis=0)

    grid = continuous(stats.norm, -6, 6, 301)
    scalar = Scalar(None, lambda gain, x: None, grid, density, (-40, 40))

    def value(gain: float) -> float:
        if known:
            return float(0.5 * np.log1p((gain * h / 0.5) ** 2) @ weight)
        return information(scalar, gain, 2401)

    def model() -> None:
        gain = numpyro.param("gain", 1.0)
        fade = numpyro.sample("h", dist.HalfNormal(1.0))
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(gain * fade * x, 0.5))

    slope = (value(1 + STEP) - value(1 - STEP)) / (2 * STEP)
    return Channel(model, value(1.0), slope)


MIXED = ("tanh", "tanh, quiet", "sine", "limiter", "Laplace input", "Gamma input",
         "two levels", "four levels")  # fmt: skip
CHANNELS: dict[str, Callable[[], Channel]] = {
    **{name: functools.partial(single, name) for name in SCALARS},
    **{
        f"{name}, {size} mixed": functools.partial(mixed, name, size)
        for size in (4, 16, 64)
        for name in MIXED
    },
    "relay": relay,
    "fading, unknown": functools.partial(faded, False),
}


class Row(NamedTuple):
    """What came of one channel, and its truth."""

    name: str
    method: str
    found: float
    error: float
    truth: float
    warned: bool
    seconds: float

    @property
    def sigmas(self) -> float:
        """Distance from the truth, in standard errors."""
        return (self.found - self.truth) / max(
            self.error, 1e-7 + 1e-5 * abs(self.truth)
        )


def gradient_row(
    name: str, channel: Channel, seed: int = 0, scores: str = "auto"
) -> Row:
    """The gradient with one key."""
    start = time.perf_counter()
    key, information = jax.random.key(seed), ig.MI("x", "y")
    g = ig.gradient(channel.model, information, scores=scores, rng_key=key)
    found, error = float(g.value["gain"]), float(g.standard_error["gain"])
    return Row(
        name,
        g.diagnostics["method"],
        found,
        error,
        channel.derivative,
        bool(g.warnings),
        time.perf_counter() - start,
    )


def value_row(name: str, channel: Channel, seed: int = 0) -> Row:
    """The information by `method="auto"` with one key."""
    start = time.perf_counter()
    v = ig.mutual_information(channel.model, "x", "y", rng_key=jax.random.key(seed))
    return Row(
        name,
        v.method,
        v.value,
        v.standard_error,
        channel.information,
        bool(v.warnings),
        time.perf_counter() - start,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a part of the name")
    parser.add_argument("--scores", default="auto", help="of the gradients")
    parser.add_argument("--values", action="store_true", help="values as well")
    options = parser.parse_args()
    print(f"jax {jax.__version__}, numpyro {numpyro.__version__}, "
          f"{jax.devices()[0].device_kind}\n")  # fmt: skip
    print("| channel | what | method | found | standard error | truth | off, s.e. "
          "| warns | first call, s |")  # fmt: skip
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | --- | ---: |")
    rows = {"dI/dgain": functools.partial(gradient_row, scores=options.scores)}
    if options.values:
        rows["I"] = value_row
    for name, make in CHANNELS.items():
        if options.only not in name:
            continue
        channel = make()
        for what, row in rows.items():
            r = row(name, channel)
            print(f"| {name} | {what} | `{r.method}` | {r.found:.5f} | {r.error:.5f} | "
                  f"{r.truth:.5f} | {r.sigmas:+.1f} | {'yes' if r.warned else ''} | "
                  f"{r.seconds:.1f} |", flush=True)  # fmt: skip
        jax.clear_caches()


if __name__ == "__main__":
    main()
