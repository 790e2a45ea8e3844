# SPDX-License-Identifier: Apache-2.0
"""Small links with known information, and the truths to hold them against.

Closed forms and dense grids are plain NumPy in double precision, independent of the
package. Values are in nats.
"""

from collections.abc import Callable
from typing import Any

from models import with_gain
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import entr, ndtr
from scipy.stats import norm

from flax import nnx
import jax
import jax.numpy as jnp

import numpyro
from numpyro.contrib.module import nnx_module
import numpyro.distributions as dist
from numpyro.distributions.transforms import AffineTransform

Model = Callable[..., None]


def link(bend: Callable[[Any], Any] = lambda m: m, noise: Any = 1) -> None:
    """Two paths from x to y: y = b (a x + n1) + x + n2 + n3, unit normals."""
    a = numpyro.param("a", 1.0)
    b = numpyro.param("b", 0.0)
    x = numpyro.sample("x", dist.Normal(0, 1))
    v1 = numpyro.sample("v1", dist.Normal(bend(a * x), 1))
    v2 = numpyro.sample("v2", dist.Normal(x, 1))
    numpyro.sample("y", dist.Normal(b * v1 + v2, noise))


def link_scores(a: float, b: float, factor: float = 1.0) -> dict[Any, Any]:
    """Scores of y and of y given x in `link`, times a factor, for `Analytic`."""
    gain, noise = 1 + a * b, b**2 + 2
    return {
        "y": lambda params, v: -factor * v["y"] / (noise + gain**2),
        ("x", "y"): lambda params, v: -factor * (v["y"] - gain * v["x"]) / noise,
    }


# y = tanh(eta x) + N(0, 1/4).
amplifier = with_gain(lambda m: dist.Normal(jnp.tanh(m), 0.5), "eta")
# The same with noise so small that few draws of x explain a given y.
quiet_amplifier = with_gain(lambda m: dist.Normal(jnp.tanh(m), 1e-3), "eta")
# y = a x + Cauchy noise: no variance to whiten by.
cauchy_channel = with_gain(lambda m: dist.Cauchy(m, 1.0))


@with_gain
def gamma_channel(m: Any) -> dist.Distribution:
    """y = a x + Gamma(3, 1): a density with an edge where it vanishes."""
    return dist.TransformedDistribution(dist.Gamma(3.0, 1.0), AffineTransform(m, 1.0))


def black_box() -> None:
    """The amplifier, its output computed: no density is to be had."""
    x = numpyro.sample("x", dist.Normal(0, 1))
    n = numpyro.sample("n", dist.Normal(0, 1))
    numpyro.deterministic("y", jnp.tanh(numpyro.param("eta", 1.0) * x) + 0.5 * n)


def two_users(b: float = 1.0) -> None:
    """y = a x1 + b x2 + n."""
    a, b = numpyro.param("a", 1.0), numpyro.param("b", b)
    x1 = numpyro.sample("x1", dist.Normal(0, 1))
    x2 = numpyro.sample("x2", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(a * x1 + b * x2, 1))


def common_cause() -> None:
    """X = e U + W, Y = X + U + Z: the input depends on the parameter."""
    u = numpyro.sample("u", dist.Normal(0, 1))
    x = numpyro.sample("x", dist.Normal(numpyro.param("e", 1.0) * u, 1))
    numpyro.sample("y", dist.Normal(x + u, 1))


def switched() -> None:
    """A gain that a Bernoulli(0.7) state turns on and off."""
    on = numpyro.sample("on", dist.Bernoulli(0.7))
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * on * x, 1))


def pam() -> None:
    """Four levels, a discrete input, over Gaussian noise of variance 1/4."""
    symbol = numpyro.sample("symbol", dist.Categorical(probs=jnp.ones(4) / 4))
    levels = jnp.array([-1.5, -0.5, 0.5, 1.5])
    numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * levels[symbol], 0.5))


def qam() -> None:
    """Sixteen points: `pam` in two coordinates at once."""
    symbol = numpyro.sample("symbol", dist.Categorical(probs=jnp.ones(16) / 16))
    levels = jnp.array([-1.5, -0.5, 0.5, 1.5])
    point = jnp.stack([levels[symbol // 4], levels[symbol % 4]])
    mean = numpyro.param("a", 1.0) * point
    numpyro.sample("y", dist.Normal(mean, 0.5).to_event(1))


MATRIX = np.random.default_rng(8).normal(size=(8, 8)) / np.sqrt(8)


def mimo() -> None:
    """y = alpha A x + n with eight antennas on each side."""
    x = numpyro.sample("x", dist.Normal(jnp.zeros(8), 1.0).to_event(1))
    mean = numpyro.param("alpha", 1.0) * (jnp.asarray(MATRIX, x.dtype) @ x)
    numpyro.sample("y", dist.Normal(mean, 1.0).to_event(1))


def combiner() -> None:
    """y = w x + n with a vector parameter: I = log(1 + |w|^2) / 2."""
    w = numpyro.param("w", jnp.array([0.5, -1.0, 0.8]))
    x = numpyro.sample("x", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(w @ x, 1.0))


PRECODER = np.array([[1.0, 0.4], [-0.3, 0.8]])


def codeword() -> None:
    """A codeword x = F u that is a deterministic site, in unit noise."""
    f = numpyro.param("f", jnp.asarray(PRECODER, jnp.zeros(()).dtype))
    u = numpyro.sample("u", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    x = numpyro.deterministic("x", f @ u)
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1))


def linear_network() -> None:
    """The same codeword by an nnx layer."""
    net = nnx_module("net", nnx.Linear(2, 2, rngs=nnx.Rngs(1)))
    u = numpyro.sample("u", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    x = numpyro.deterministic("x", net(u))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1))


class Encoder(nnx.Module):
    """Two inputs to two channel uses through a hidden layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(2, 8, rngs=rngs)
        self.last = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, u: jax.Array) -> jax.Array:
        return self.last(nnx.tanh(self.first(u)))


def saturated_network() -> None:
    """A learned encoder before an amplifier that saturates."""
    net = nnx_module("net", Encoder(nnx.Rngs(0)))
    u = numpyro.sample("u", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    mean = jnp.tanh(net(u))
    numpyro.sample("y", dist.Normal(mean, 0.5).to_event(1))


def unobserved() -> None:
    """An output without noise of its own: y = tanh(a x)."""
    x = numpyro.sample("x", dist.Normal(0, 1))
    n = numpyro.sample("n", dist.Normal(0, 1))
    numpyro.deterministic("y", jnp.arcsinh(numpyro.param("a", 1.0) * x + n))


def lagged() -> None:
    """y = a x + n read off without noise of its own."""
    x = numpyro.sample("x", dist.Normal(0, 1))
    n = numpyro.sample("n", dist.Normal(0, 1))
    numpyro.deterministic("y", numpyro.param("a", 1.0) * x + n)


def slope(f: Callable[[float], float], at: float = 1.0, step: float = 1e-4) -> float:
    """A central difference."""
    return (f(at + step) - f(at - step)) / (2 * step)


def common_cause_gradient(e: float) -> float:
    """dI(X;Y)/de of `common_cause`, from its three variances by a difference."""

    def information(e: float) -> float:
        xx, xy, yy = e**2 + 1, e * (e + 1) + 1, (e + 1) ** 2 + 2
        return 0.5 * np.log(xx * yy / (xx * yy - xy**2))

    return float(slope(information, e, 1e-5))


def pam_derivative(a: float) -> float:
    """dI/da of `pam` on a dense grid."""
    levels, y = np.array([[-1.5], [-0.5], [0.5], [1.5]]), np.linspace(-8.0, 8.0, 8001)

    def information(a: float) -> float:
        law = norm.pdf(y, a * levels, 0.5) * (y[1] - y[0])
        return table_information(law, np.full(4, 0.25))

    return slope(information, a)


def capacity(snr: Any) -> Any:
    """Of a Gaussian channel with this signal to noise ratio."""
    return 0.5 * np.log1p(snr)


def fill_water(gains: NDArray, power: float) -> float:
    """max of sum log(1 + g p) / 2 over powers p that add up to `power`."""

    def powers(level: float) -> NDArray:
        return np.maximum(level - 1 / gains, 0)

    level = brentq(lambda v: powers(v).sum() - power, 0, power + 1 / gains.min())
    return float(np.sum(capacity(gains * powers(level))))


def normal_grid(reach: float, size: int = 4001) -> tuple[NDArray, NDArray]:
    """Points of a standard normal variable, and their probabilities."""
    x = np.linspace(-reach, reach, size)
    weight = np.exp(-0.5 * x**2)
    return x, weight / weight.sum()


def table_information(law: NDArray, prior: NDArray) -> float:
    """I(A; B) from tables of p(b|a), (num_a, num_b), and of p(a)."""
    return float(entr(prior @ law).sum() - prior @ entr(law).sum(axis=1))


CODES = np.linspace(-0.875, 0.875, 15)  # edges of a converter of four bits


def converter_information(gain: float, noise: float, edges: NDArray = CODES) -> float:
    """I(x; y) of a converter that reads gain x + N(0, noise^2)."""
    x, p_x = normal_grid(9, 40_001)
    ends = np.concatenate([[-np.inf], edges, [np.inf]])
    law = np.diff(ndtr((ends - gain * x[:, None]) / noise), axis=1)
    return table_information(law, p_x)


def grid_score(
    density: Callable[[NDArray, NDArray], NDArray], values: NDArray
) -> NDArray:
    """Score of y = (function of x) + noise at `values`, x standard normal.

    `density(x, y)` is p(y|x); its mean over a dense grid of x is differentiated by a
    central difference.
    """
    x, weight = normal_grid(8.0)

    def log_p(y: NDArray) -> NDArray:
        return np.log(density(x, y[:, None]) @ weight)

    return (log_p(values + 1e-4) - log_p(values - 1e-4)) / 2e-4
