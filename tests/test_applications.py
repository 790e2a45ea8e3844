# SPDX-License-Identifier: Apache-2.0
"""What the paper puts the gradient to, against optima found independently."""

import functools
from pathlib import Path
import runpy

from links import capacity, fill_water
import numpy as np
import pytest
from scipy.optimize import brentq

from flax import nnx
import jax
import jax.numpy as jnp
import optax

import numpyro
from numpyro.contrib.module import nnx_module
import numpyro.distributions as dist

from helpers import ascend, quiet
import numpyro_infograd as ig
from numpyro_infograd import MI
from numpyro_infograd.scores import Mixture

EXAMPLES = Path(__file__).parents[1] / "examples"
BETAS = (1.6, 2.5, 4.0, 8.0, 20.0)


def ball(power):
    """The projection onto parameters of a power."""
    radius = power**0.5
    return functools.partial(optax.projections.projection_l2_ball, scale=radius)


# -- information bottleneck ------------------------------------------------------------
def bottleneck(rho):
    size = len(rho)
    start = np.eye(size) + 0.2 * np.random.default_rng(0).normal(size=(size, size))
    e = numpyro.param("e", jnp.asarray(start, jnp.float32))
    x = numpyro.sample("x", dist.Normal(jnp.zeros(size), 1).to_event(1))
    y_given_x = dist.Normal(rho * x, jnp.sqrt(1 - rho**2)).to_event(1)
    numpyro.sample("y", y_given_x)
    numpyro.sample("t", dist.Normal(e @ x, 1).to_event(1))


@pytest.mark.slow
@pytest.mark.parametrize("rho", [[0.9], [0.95, 0.8, 0.6, 0.3]], ids=["scalar", "four"])
def test_gaussian_information_bottleneck(rho) -> None:
    """Components with beta rho^2 > 1 are kept (Chechik et al. 2005)."""
    rho = jnp.asarray(rho)
    settings = {"model_args": (rho,)}
    for beta in BETAS:
        kept = np.array([r for r in np.asarray(rho, float) if beta * r**2 > 1])
        price = 0.5 * np.log((beta - 1) * kept**2 / (1 - kept**2))
        truth = price.sum(), (price - 0.5 * np.log(beta * kept**2)).sum()
        result = quiet.maximize(
            bottleneck, beta * MI("t", "y") - MI("x", "t"), **settings
        )
        found = [
            ig.estimate(bottleneck, MI("t", other), params=result.params, **settings)
            for other in ("x", "y")
        ]
        np.testing.assert_allclose([e.value for e in found], truth, rtol=0.005)


@pytest.mark.slow
def test_an_information_in_the_loss_of_svi(capsys) -> None:
    """The script compares itself with the closed form."""
    runpy.run_path(str(EXAMPLES / "bottleneck_elbo.py"))
    assert "within 0.01 nats" in capsys.readouterr().out


# -- powers ----------------------------------------------------------------------------
ANTENNAS = np.random.default_rng(5).normal(size=(4, 4))


def precoder():
    f = numpyro.param("f", jnp.eye(4))
    u = numpyro.sample("u", dist.Normal(jnp.zeros(4), 1).to_event(1))
    x = numpyro.deterministic("x", f @ u)
    mean = jnp.asarray(ANTENNAS, x.dtype) @ x
    numpyro.sample("y", dist.Normal(mean, 1).to_event(1))


@pytest.mark.slow
@pytest.mark.parametrize("power", [1.0, 10.0])
def test_precoder_fills_water(power) -> None:
    """E|x|^2 is |F|^2: the radius of the ball is the root of the power."""
    start = {"f": jnp.eye(4) * power**0.5 / 2}
    result = ascend(precoder, projection=ball(power), init_params=start)
    gains = np.linalg.svd(ANTENNAS, compute_uv=False) ** 2
    assert result.estimate.value == pytest.approx(fill_water(gains, power), rel=0.002)
    f = np.asarray(result.params["f"], float)
    assert np.sum(f**2) <= power * (1 + 1e-5)
    direct = np.linalg.slogdet(np.eye(4) + ANTENNAS @ f @ f.T @ ANTENNAS.T)[1] / 2
    assert result.estimate.value == pytest.approx(direct, rel=1e-4)


SENSORS = 64
CLEAR = np.random.default_rng(3).uniform(0.1, 1.5, SENSORS)
BLUR = np.random.default_rng(3).uniform(0.2, 4.0, SENSORS)


def sensors():
    u = numpyro.param("u", jnp.full(SENSORS, 0.4))
    x = numpyro.sample("x", dist.Normal(0, 1))
    v = numpyro.sample("v", dist.Normal(CLEAR * x, jnp.sqrt(BLUR)).to_event(1))
    sent = u * v / jnp.sqrt(CLEAR**2 + BLUR)
    numpyro.sample("y", dist.Normal(sent, 1).to_event(1))


@pytest.mark.slow
def test_sensors_under_one_power() -> None:
    """The sum of g(p) = p h^2 / (h^2 + s + p s) is concave: one price for all."""
    total = 10.0
    seen = CLEAR**2 + BLUR

    def powers(price):
        return np.maximum(0, (np.sqrt(CLEAR**2 * seen / price) - seen) / BLUR)

    price = brentq(lambda v: powers(v).sum() - total, 1e-9, np.max(CLEAR**2 / seen))
    best = powers(price)
    assert np.sum(best == 0) > 10  # poor sensors are off
    truth = capacity(np.sum(best * CLEAR**2 / (seen + best * BLUR)))
    result = ascend(sensors, projection=ball(total))
    assert result.estimate.value == pytest.approx(truth, rel=0.005)
    found = np.asarray(result.params["u"], float) ** 2
    assert found.sum() == pytest.approx(total, rel=1e-3)
    assert np.all(found[best == 0] < 0.01 * total / SENSORS)


# -- several users ---------------------------------------------------------------------
def broadcast():
    a, b = numpyro.param("a", 1.0), numpyro.param("b", 1.0)
    u = numpyro.sample("u", dist.Normal(0, 1))
    v = numpyro.sample("v", dist.Normal(0, 1))
    x = a * u + b * v
    numpyro.sample("y1", dist.Normal(x, 1))
    numpyro.sample("y2", dist.Normal(x, 2.0))


@pytest.mark.slow
def test_broadcast_with_superposition() -> None:
    power, num_weights = 10.0, 9
    rates = {"r1": MI("v", "y1", given="u"), "r2": MI("u", "y2")}
    settings = {"num_weights": num_weights, "projection": ball(power)}
    region = quiet.rate_region(broadcast, rates, **settings)
    share = np.linspace(0, 1, 20001)
    strong = capacity(share * power)
    weak = capacity((1 - share) * power / (share * power + 4))
    edge = np.stack([strong, weak], axis=1)
    assert len(region.points) == num_weights
    for weight, point in zip(region.weights, region.points, strict=True):
        assert weight @ point == pytest.approx(np.max(edge @ weight), rel=0.002)
    assert all(not region.contains(1.01 * e + 1e-3) for e in edge[::1000])


def interference():
    a, b = numpyro.param("a", 1.0), numpyro.param("b", 0.8)
    x1 = numpyro.sample("x1", dist.Normal(0, 1))
    x2 = numpyro.sample("x2", dist.Normal(0, 1))
    numpyro.sample("y1", dist.Normal(a * x1 + 1.2 * b * x2, 1))
    numpyro.sample("y2", dist.Normal(b * x2 + 1.2 * a * x1, 1))


@pytest.mark.slow
def test_strong_interference_silences_one_user() -> None:
    box = functools.partial(jax.tree.map, lambda v: jnp.clip(v, -2.0, 2.0))
    rates = MI("x1", "y1") + MI("x2", "y2")
    result = quiet.maximize(interference, rates, projection=box, num_restarts=4)
    assert result.estimate.value == pytest.approx(capacity(4.0), rel=0.002)


# -- the law of the input --------------------------------------------------------------
class Flow(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(1, 16, rngs=rngs)
        self.last = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, u):
        return self.last(jnp.tanh(self.first(u[None])))[0]


def peaked(peak):
    flow = nnx_module("flow", Flow(nnx.Rngs(0)))
    u = numpyro.sample("u", dist.Normal(0, 1))
    x = numpyro.deterministic("x", jnp.clip(2 * flow(3 * u), -peak, peak))
    numpyro.sample("y", dist.Normal(x, 1))


def blahut_arimoto(peak):
    """Capacity under |x| <= peak in unit noise, to 1e-5 nats."""
    x = np.linspace(-peak, peak, 101)
    y = np.linspace(-peak - 7, peak + 7, 801)
    p = np.exp(-0.5 * (y - x[:, None]) ** 2) / np.sqrt(2 * np.pi) * (y[1] - y[0])
    law = np.full(len(x), 1 / len(x))
    while True:
        gain = np.sum(p * np.log(p / (law @ p)), axis=1)
        low, high = np.log(law @ np.exp(gain)), gain.max()
        if high - low < 1e-5:
            return low
        law = law * np.exp(gain)
        law /= law.sum()


@pytest.mark.slow
@pytest.mark.parametrize("peak", [1.0, 2.0])
def test_input_law_under_a_peak(peak) -> None:
    """A flow learns the few points that are best under a peak (Smith 1971)."""
    result = ascend(
        peaked, model_args=(peak,), scores=Mixture(num_components=256), num_steps=400
    )
    truth = blahut_arimoto(peak)
    assert result.estimate.value == pytest.approx(truth, rel=0.01)
    assert result.estimate.standard_error < 0.003 * truth
