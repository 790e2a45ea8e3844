# SPDX-License-Identifier: Apache-2.0
"""A small zoo of models of different shape, shared by the tests.

`channel` and `with_gain` make a channel of the law of its output. Every entry of `ZOO`
is a plain NumPyro model without arguments: traced by the package or run by NumPyro
itself, it must have the same law. Several are in the spirit of NumPyro's own examples.
"""

from collections.abc import Callable
from typing import Any

from flax import linen, nnx
import jax
import jax.numpy as jnp

import numpyro
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.contrib.module import flax_module, nnx_module
import numpyro.distributions as dist
from numpyro.distributions import constraints, transforms
from numpyro.infer.reparam import LocScaleReparam

Model = Callable[[], None]


def channel(law: Callable[[Any], dist.Distribution], size: int | None = None) -> Model:
    """X standard normal, Y from `law(x)`; both of `size` components if it is given."""

    def model() -> None:
        if size is None:
            numpyro.sample("y", law(numpyro.sample("x", dist.Normal())))
            return
        x = numpyro.sample("x", dist.Normal(0, 1).expand([size]).to_event(1))
        numpyro.sample("y", law(x).to_event(1))

    return model


def with_gain(law: Any, name: str = "a", start: Any = 1.0, size: Any = None) -> Model:
    """X standard normal, Y from `law(a x)` with a parameter of this name and start."""
    return channel(lambda x: law(numpyro.param(name, start) * x), size)


def affine() -> None:
    """Y = a X + Z with unit normals: I(X;Y) = log(1 + a^2) / 2."""
    x = numpyro.sample("x", dist.Normal())
    numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1.0))


def tanh_channel() -> None:
    """Y = tanh(a X) + Z, noise of variance 1/4."""
    x = numpyro.sample("x", dist.Normal())
    numpyro.sample("y", dist.Normal(jnp.tanh(numpyro.param("a", 1.0) * x), 0.5))


def multipath() -> None:
    """The two-path relay network, with one deterministic site."""
    a, b = numpyro.param("a", 0.9), numpyro.param("b", -0.6)
    x = numpyro.sample("x", dist.Normal(0, 1))
    u = numpyro.sample("u", dist.Normal(a * x, 1))
    v = numpyro.deterministic("v", jnp.tanh(b * u))
    numpyro.sample("y", dist.Normal(v + x, 1.4))


def nested_plates() -> None:
    """Three groups of four items; one sum of them."""
    scale = numpyro.param("scale", 0.7, constraint=constraints.positive)
    top = numpyro.sample("top", dist.Gumbel(0.2, 1.0))
    with numpyro.plate("groups", 3):
        group = numpyro.sample("group", dist.Normal(top, scale))
        with numpyro.plate("items", 4):
            item = numpyro.sample("item", dist.Normal(group, 1.0))
    total = numpyro.deterministic("total", item.sum(0))
    numpyro.sample("y", dist.Normal(total, 1.0).to_event(1))


def constrained_params() -> None:
    """Parameters under several constraints, among them a simplex and an interval."""
    share = numpyro.param("share", jnp.ones(3) / 3, constraint=constraints.simplex)
    gain = numpyro.param("gain", 0.4, constraint=constraints.interval(0.0, 2.0))
    rate = numpyro.param("rate", jnp.array([1.0, 2.0]), constraint=constraints.positive)
    x = numpyro.sample("x", dist.Normal(0, 1).expand([3]).to_event(1))
    w = numpyro.sample("w", dist.Exponential(rate).to_event(1))
    mean = jnp.sum(jnp.sqrt(share) * x)
    numpyro.sample("y", dist.Normal(mean + gain * w.sum(), gain + 0.1))


def pytree_param() -> None:
    """One parameter that is a tree of arrays."""
    start = {"w": jnp.array([[0.5, -0.2], [0.3, 0.9]]), "b": (jnp.zeros(2),)}
    net = numpyro.param("net", start)
    x = numpyro.sample("x", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    mean = jnp.tanh(net["w"] @ x + net["b"][0])
    numpyro.sample("y", dist.Normal(mean, 0.3).to_event(1))


class Encoder(nnx.Module):
    """A two-layer network."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(2, 4, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(nnx.tanh(self.first(x)))


def nnx_network() -> None:
    """An encoder that is an nnx module."""
    net = nnx_module("net", Encoder(nnx.Rngs(0)))
    u = numpyro.sample("u", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    x = numpyro.deterministic("x", net(u))
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1))


class LinenEncoder(linen.Module):
    """The same in linen."""

    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(linen.tanh(linen.Dense(4)(x)))


def flax_network() -> None:
    """An encoder that is a linen module."""
    net = flax_module("net", LinenEncoder(), input_shape=(2,))
    u = numpyro.sample("u", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    x = numpyro.deterministic("x", net(u))
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1))


ERRORS = jnp.array([1.5, 1.0, 1.6, 1.1, 0.9])


def eight_schools() -> None:
    """Five of the eight schools, generatively."""
    tau = numpyro.param("tau", 0.8, constraint=constraints.positive)
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    with numpyro.plate("schools", 5):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, ERRORS))


def reparametrized() -> None:
    """The same, decentred by a handler: theta turns deterministic."""
    config = {"theta": LocScaleReparam(0.0)}
    handlers.reparam(eight_schools, config=config)()


def masked() -> None:
    """A mask weighs a likelihood; it does not change how a site is drawn."""
    x = numpyro.sample("x", dist.Normal(0, 1).expand([3]).to_event(1))
    with handlers.mask(mask=jnp.array([True, False, True])):
        y = numpyro.sample("y", dist.Normal(numpyro.param("a", 1.3) * x, 0.5))
    numpyro.sample("z", dist.Normal(y.sum(), 1.0).mask(False))


def conditioned() -> None:
    """A relay held at a value by `handlers.condition`."""
    handlers.condition(multipath, data={"u": 0.7})()


def substituted() -> None:
    """A source held by `handlers.substitute`."""
    handlers.substitute(multipath, data={"x": -0.4})()


def observed_in_part() -> None:
    """One coordinate recorded, two imputed, by `obs_mask`."""
    x = numpyro.sample("x", dist.Normal(0, 1))
    with numpyro.plate("sensors", 3):
        numpyro.sample(
            "y",
            dist.Normal(numpyro.param("a", 1.3) * x, 0.5),
            obs=jnp.array([0.1, 0.0, 0.0]),
            obs_mask=jnp.array([True, False, False]),
        )


def wrapped_distributions() -> None:
    """Independent, expanded and transformed distributions."""
    a = numpyro.param("a", 0.6)
    base = dist.Normal(a * jnp.ones((2, 1)), jnp.array([0.4, 0.8, 1.2])).to_event(1)
    x = numpyro.sample("x", base.expand([4, 2]).to_event(1))
    skew = dist.TransformedDistribution(
        dist.Normal(jnp.zeros(3), 1.0).to_event(1),
        [transforms.AffineTransform(a, 0.5), transforms.SigmoidTransform()],
    )
    w = numpyro.sample("w", skew)
    z = numpyro.sample("z", dist.LogNormal(a * w.sum(), 0.5))
    numpyro.sample("y", dist.Logistic(x.mean() + z, 0.3))


def mixture_prior() -> None:
    """A mixture with fixed weights as the source of a tunable channel."""
    source = dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.array([0.3, 0.7])),
        dist.Normal(jnp.array([-1.5, 1.0]), jnp.array([0.3, 0.6])),
    )
    x = numpyro.sample("x", source)
    numpyro.sample("y", dist.Normal(numpyro.param("a", 0.8) * x, 0.5))


def qam() -> None:
    """A discrete symbol chooses one of four points of a tunable constellation."""
    corners = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    points = numpyro.param("points", corners / jnp.sqrt(2.0))
    symbol = numpyro.sample("symbol", dist.Categorical(probs=jnp.ones(4) / 4))
    x = numpyro.deterministic("x", points[symbol])
    numpyro.sample("y", dist.Normal(x, 0.4).to_event(1))


def scan_model(reverse: bool = False) -> None:
    """A state space model: Laplace states, Gamma gains (key noise), readings."""
    a = numpyro.param("a", 0.7)
    fading = dist.LogNormal(0.0, 0.5) if reverse else dist.Gamma(3.0, 2.0)
    start = numpyro.sample("start", dist.Normal(0, 1))

    def step(state, drive):
        gain = numpyro.sample("gain", fading)
        state = numpyro.sample("state", dist.Laplace(jnp.tanh(a * state) + drive, 0.5))
        power = numpyro.deterministic("power", gain * state)
        numpyro.sample("reading", dist.Normal(power, 0.4))
        return state, state

    last, _ = scan(step, start, jnp.linspace(-1.0, 1.5, 3), reverse=reverse)
    numpyro.sample("y", dist.Normal(last, 0.2))


def scan_reversed() -> None:
    """The same from the last step to the first, all its noise explicit."""
    scan_model(reverse=True)


def ar2() -> None:
    """NumPyro's AR(2) example: the carry holds two states."""
    first = numpyro.param("first", 0.5)
    second = numpyro.param("second", -0.3)
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))

    def step(carry, _):
        before, last = carry
        mean = first * last + second * before
        now = numpyro.sample("x", dist.Normal(mean, 0.2 + sigma))
        return (last, now), None

    scan(step, (jnp.zeros(()), jnp.ones(())), None, length=4)


def branches() -> None:
    """A discrete switch between two ways to send, by `cond`."""
    a = numpyro.param("a", 0.9)
    on = numpyro.sample("on", dist.Bernoulli(0.4))

    def loud(_):
        return numpyro.sample("x", dist.Normal(a, 2.0))

    def quiet(_):
        return numpyro.sample("x", dist.Normal(-a, 0.5))

    x = cond(on > 0, loud, quiet, None)
    numpyro.sample("y", dist.Normal(x, 0.3))


def stochastic_volatility() -> None:
    """NumPyro's stochastic volatility example on five days."""
    step_size = numpyro.param("step_size", 0.3, constraint=constraints.positive)
    nu = numpyro.sample("nu", dist.Uniform(5.0, 9.0))
    walk = dist.GaussianRandomWalk(scale=step_size, num_steps=5)
    volatility = numpyro.sample("volatility", walk)
    returns = dist.StudentT(df=nu, loc=0.0, scale=jnp.exp(volatility))
    numpyro.sample("returns", returns.to_event(1))


def bayesian_network_layer() -> None:
    """NumPyro's Bayesian neural network, one hidden layer of three units."""
    inputs = numpyro.param("inputs", jnp.array([[0.5, -1.0], [1.5, 0.3]]))
    w1 = numpyro.sample("w1", dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(2))
    w2 = numpyro.sample("w2", dist.Normal(jnp.zeros((3, 1)), 1.0).to_event(2))
    precision = numpyro.sample("precision", dist.Weibull(2.0, 3.0))
    mean = (jnp.tanh(inputs @ w1) @ w2)[:, 0]
    with numpyro.plate("data", 2):
        numpyro.sample("y", dist.Normal(mean, 1.0 / jnp.sqrt(precision)))


def horseshoe() -> None:
    """Horseshoe regression: half-Cauchy scales, heavy tails downstream."""
    design = numpyro.param("design", jnp.array([[1.0, 0.2, -0.5], [0.0, 1.0, 0.7]]))
    local = numpyro.sample("local", dist.HalfCauchy(jnp.ones(3)).to_event(1))
    shared = numpyro.sample("shared", dist.HalfCauchy(1.0))
    unscaled = numpyro.sample("unscaled", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    beta = numpyro.deterministic("beta", shared * local * unscaled)
    numpyro.sample("y", dist.Normal(design @ beta, 1.0).to_event(1))


def gaussian_process() -> None:
    """A Gaussian process read off at tunable places."""
    places = numpyro.param("places", jnp.array([-1.0, 0.0, 0.8]))
    length = numpyro.sample("length", dist.LogNormal(0.0, 0.3))
    variance = numpyro.sample("variance", dist.HalfNormal(1.0))
    distance = (places[:, None] - places) / length
    kernel = variance * jnp.exp(-0.5 * distance**2) + 1e-2 * jnp.eye(3)
    f = numpyro.sample("f", dist.MultivariateNormal(jnp.zeros(3), kernel))
    numpyro.sample("y", dist.Normal(f, 0.3).to_event(1))


ZOO: dict[str, Model] = {
    model.__name__: model
    for model in (
        affine, tanh_channel, multipath, nested_plates, constrained_params,
        pytree_param, nnx_network, flax_network, eight_schools, reparametrized, masked,
        conditioned, substituted, observed_in_part, wrapped_distributions,
        mixture_prior, qam, scan_model, scan_reversed, ar2, branches, gaussian_process,
    )
}  # fmt: skip
