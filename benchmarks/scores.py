# SPDX-License-Identifier: Apache-2.0
"""Every score method against the truth, on channels whose scores are known; Markdown.

    python benchmarks/scores.py                       # all, ten minutes or so
    python benchmarks/scores.py --only tanh --methods sliced flow

The error of a score is its mean-square error over the mean square of the true score
of the output; that of a posterior score is of grad_y log p(x|y). The gradient is that
of the mutual information in one gain. Times are without compiling, in one process.
"""

import argparse
from collections.abc import Callable
import functools
import time
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig
from numpyro_infograd._problem import pose
from numpyro_infograd._pullback import score_of
import truths

KEY = jax.random.key(0)
XY = ig.MI("x", "y")
METHODS: dict[str, Any] = {
    "mixture": ig.scores.Mixture(),
    "mcmc": ig.scores.MCMC(),
    "denoising": ig.scores.Denoising(),
    "sliced": ig.scores.Sliced(),
    "flow": ig.scores.FlowMatching(),
    "posterior": ig.scores.Posterior(),
}


class Channel(NamedTuple):
    """y = f(x) + noise, with its true scores and the derivative in its gain."""

    model: Callable[[], None]
    marginal: Callable[[Any], np.ndarray]  # s(y)
    conditional: Callable[[Any], np.ndarray]  # s(y | x)
    derivative: float


def multipath() -> Channel:
    """Two paths (eqs. 42-44) at a = 2, b = 1; the gain is a."""

    def model():
        a = numpyro.param("gain", 2.0)
        x = numpyro.sample("x", dist.Normal(0, 1))
        v1 = numpyro.sample("v1", dist.Normal(a * x, 1))
        v2 = numpyro.sample("v2", dist.Normal(x, 1))
        numpyro.sample("y", dist.Normal(v1 + v2, 1))

    return Channel(
        model,
        lambda v: -v["y"] / 12.0,
        lambda v: -(v["y"] - 3 * v["x"]) / 3.0,
        float(truths.multipath_gradient(2.0, 1.0)[0]),
    )


def saturated(matrix: np.ndarray, variance: float) -> Channel:
    """y = tanh(gain A x) + noise, for A with orthogonal rows of equal norm."""
    size, level = len(matrix), float(np.linalg.norm(matrix[0]))

    def model():
        gain = numpyro.param("gain", 1.0)
        x = numpyro.sample("x", dist.Normal(0, 1).expand([size]).to_event(1))
        mean = jnp.tanh(gain * (jnp.asarray(matrix, x.dtype) @ x))
        numpyro.sample("y", dist.Normal(mean, variance**0.5).to_event(1))

    def conditional(v):
        return -(v["y"] - np.tanh(v["x"] @ matrix.T)) / variance

    return Channel(
        model,
        lambda v: truths.tanh_score(v["y"], level, variance),
        conditional,
        size * level * truths.tanh_derivative(level, variance),
    )


def tanh() -> Channel:
    """The amplifier of eq. 84 at a gain of 2."""
    return saturated(np.array([[2.0]]), 0.25)


def tanh_12() -> Channel:
    """Twelve antennas behind amplifiers, at the matrix that is best."""
    return saturated(orthogonal(12) * 5.0 / 12**0.5, 0.5)


def low_noise(gain: float) -> Channel:
    """Four amplifiers in noise of variance 1e-3."""
    return saturated(orthogonal(4) * gain, 1e-3)


def linear_8() -> Channel:
    """Eight antennas, singular values from 3 to 0.3, noise 0.5."""
    matrix = orthogonal(8) @ np.diag(np.geomspace(3, 0.3, 8)) @ orthogonal(8, 1)

    def model():
        gain = numpyro.param("gain", 1.0)
        x = numpyro.sample("x", dist.Normal(0, 1).expand([8]).to_event(1))
        mean = gain * (jnp.asarray(matrix, x.dtype) @ x)
        numpyro.sample("y", dist.Normal(mean, 0.5**0.5).to_event(1))

    precision = np.linalg.inv(matrix @ matrix.T + 0.5 * np.eye(8))
    return Channel(
        model,
        lambda v: -v["y"] @ precision,
        lambda v: -(v["y"] - v["x"] @ matrix.T) / 0.5,
        truths.mimo_derivative(1.0, matrix, 0.5),
    )


def orthogonal(size: int, seed: int = 0) -> np.ndarray:
    """A random rotation."""
    normal = np.random.default_rng(seed).normal(size=(size, size))
    return np.linalg.qr(normal)[0]


CHANNELS = {
    "multipath": multipath,
    "tanh": tanh,
    "linear 8-d": linear_8,
    "tanh 12-d": tanh_12,
    "tanh 4-d, noise 1e-3, gain 0.5": functools.partial(low_noise, 0.5),
    "tanh 4-d, noise 1e-3, gain 2": functools.partial(low_noise, 2.0),
}


def score_error(channel: Channel, method: Any) -> float:
    """Mean-square error of the fitted score over the mean square of the truth."""
    sm = ig.structural_model(channel.model)
    problem = pose(sm, XY, method, sm.params).problem
    reverse = method.scores_inputs_given_outputs
    density = next(d for d in problem.densities if reverse or d.all_sites == ("y",))
    noise = sm.sample_noise(jax.random.key(1), 16384)
    values = sm.evaluate({}, noise)
    plain = {name: np.asarray(v, float) for name, v in values.items()}
    truth = channel.marginal(plain)
    if reverse:
        truth = channel.conditional(plain) - truth

    @jax.jit
    def found(state, noise, values):
        state = problem.method.fit(state, density, sm.forward, sm.params, KEY)
        return score_of(problem.method, state, density, sm.params, noise, values, KEY)

    scores = found(problem.method.init(density, KEY), noise, values)
    error = np.asarray(scores.mean["y"], float) - truth
    return float(np.mean(error**2) / np.mean(truth**2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CHANNELS, default=list(CHANNELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, numpyro {numpyro.__version__}, {device}\n")
    print("| channel | scores | error of the score | gradient | standard error | truth "
          "| gradient's error | warns | seconds |")  # fmt: skip
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |")
    for title in options.only:
        channel = CHANNELS[title]()
        for name in options.methods:
            method = METHODS[name]
            error = score_error(channel, method)
            ig.gradient(channel.model, XY, scores=method)
            start = time.perf_counter()
            found = ig.gradient(channel.model, XY, scores=method, rng_key=KEY)
            value = float(found.value["gain"])
            seconds = time.perf_counter() - start
            off = value / channel.derivative - 1.0
            warns = "yes" if found.warnings else ""
            print(f"| {title} | `{name}` | {error:.2%} | {value:.5f} | "
                  f"{float(found.standard_error['gain']):.5f} | "
                  f"{channel.derivative:.5f} | {off:+.2%} | {warns} | {seconds:.1f} |",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
