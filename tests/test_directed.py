# SPDX-License-Identifier: Apache-2.0
"""Directed information of channels with memory and feedback."""

import functools

import numpy as np
import pytest

import jax
import jax.numpy as jnp

import numpyro
from numpyro.contrib.control_flow import scan
import numpyro.distributions as dist

from helpers import assert_within, refuses
import numpyro_infograd as ig
from numpyro_infograd.errors import ArgumentError, DensityError, ScoreError

STACKED = ig.DirectedInformation("x", "y")
POINT = {"g": 0.9, "f": -0.6}
MEMORY = 0.7  # of the noise of the channel


def names(n):
    """The inputs and the outputs of a model that names one site a use."""
    return tuple(f"x{t}" for t in range(n)), tuple(f"y{t}" for t in range(n))


def encoder():
    """What is sent for a message, with feedback of the last output."""
    g, f = numpyro.param("g", 0.9), numpyro.param("f", -0.6)
    return lambda m, y: g * (m + f * y) / jnp.sqrt(1 + f**2)


def by_name(n):
    """Noise of first order, as a function of the values; one site a use."""
    encode, y, z = encoder(), 0.0, 0.0
    for t in range(n):
        m = numpyro.sample(f"m{t}", dist.Normal())
        x = numpyro.deterministic(f"x{t}", encode(m, y))
        y = numpyro.sample(f"y{t}", dist.Normal(x + MEMORY * z, 1.0))
        z = y - x


def by_scan(n):
    """The same as one scan."""
    encode = encoder()

    def step(carry, _):
        y, z = carry
        m = numpyro.sample("m", dist.Normal())
        x = numpyro.deterministic("x", encode(m, y))
        y = numpyro.sample("y", dist.Normal(x + MEMORY * z, 1.0))
        return (y, y - x), None

    scan(step, (0.0, 0.0), None, length=n)


def hidden(n, level=1.0):
    """A transmitter with noise, and noise with memory that no site shows."""
    encode = encoder()

    def step(carry, _):
        y, z = carry
        m = numpyro.sample("m", dist.Normal())
        x = numpyro.sample("x", dist.Normal(encode(m, y), 0.3))
        z = numpyro.sample("z", dist.Normal(MEMORY * z, 0.8))
        y = numpyro.sample("y", dist.Normal(level * x + z, 0.6))
        return (y, z), None

    scan(step, (0.0, 0.0), None, length=n)


def covariances(params, n, is_hidden):
    """Of what enters the channel without feedback, and of the channel's noise."""
    past = jnp.eye(n, k=-1)
    filtered = jnp.linalg.inv(jnp.eye(n) - MEMORY * past)
    noise = filtered @ filtered.T
    gain = params["g"] / jnp.sqrt(1 + params["f"] ** 2)
    sent = gain**2 * jnp.eye(n)
    if is_hidden:
        noise = 0.64 * noise + 0.36 * jnp.eye(n)
        sent += 0.09 * jnp.eye(n)
    return sent, noise, gain * params["f"] * past


def half_log_det(matrix):
    return 0.5 * jnp.linalg.slogdet(matrix)[1]


def directed(params, n, is_hidden=False):
    """h(Y^n) - h(noise): the receiver takes off what the feedback added."""
    sent, noise, _ = covariances(params, n, is_hidden)
    return half_log_det(sent + noise) - half_log_det(noise)


def mutual(params, n, is_hidden=False):
    """I(X^n; Y^n), which counts what the inputs learn of the noise too."""
    sent, noise, feedback = covariances(params, n, is_hidden)
    loop = jnp.linalg.inv(jnp.eye(n) - feedback)
    seen = jnp.concatenate([loop, loop], axis=1)
    made = jnp.concatenate([jnp.eye(n), jnp.zeros((n, n))], axis=1) + feedback @ seen
    zero = jnp.zeros((n, n))
    joint = jnp.block([[sent, zero], [zero, noise]])
    both = jnp.concatenate([made, seen])
    x, y, xy = map(half_log_det, [m @ joint @ m.T for m in (made, seen, both)])
    return x + y - xy


def check(model, objective, truth, n, is_hidden=False):
    """Value, gradient and rate of a use are exact."""
    settings = {"params": POINT, "model_args": (n,)}
    found = ig.estimate(model, objective / n, **settings)
    assert found.method == "exact"
    near = {"rtol": 0, "atol": 1e-5}
    np.testing.assert_allclose(n * found.value, truth(POINT, n, is_hidden), **near)
    slope = ig.gradient(model, objective, **settings)
    wanted = jax.grad(truth)(POINT, n, is_hidden)
    for name, value in wanted.items():
        np.testing.assert_allclose(slope.value[name], value, **near)
    assert abs(wanted["f"]) > 0.1


def test_mutual_information_is_another_number(x64):
    settings = {"params": POINT, "model_args": (4,)}
    found = ig.mutual_information(by_scan, "x", "y", **settings).value
    np.testing.assert_allclose(found, mutual(POINT, 4), atol=1e-5)
    assert found > directed(POINT, 4) + 0.3
    message = ig.mutual_information(by_scan, "m", "y", **settings).value
    np.testing.assert_allclose(message, directed(POINT, 4), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("n", [16, 64])
def test_long_blocks(x64, n):
    check(by_scan, STACKED, directed, n)
    check(hidden, STACKED, directed, n, is_hidden=True)
    check(by_scan, ig.MI("x", "y"), mutual, n)


@pytest.mark.slow
def test_many_named_uses(x64):
    check(by_name, ig.DirectedInformation(*names(16)), directed, 16)


@pytest.mark.slow
@pytest.mark.parametrize("scores", ["mixture", "mcmc"])
def test_sampled_scores(scores):
    """Without Stein's identities, which an effect among the conditions breaks."""
    found = ig.gradient(
        hidden, STACKED, params=POINT, scores=scores, model_args=(2,), num_samples=4096
    )
    wanted = jax.grad(directed)(POINT, 2, True)
    assert_within(found.value, found.standard_error, wanted, max_standard_error=0.02)


def fading(n, k=1.0):
    """A power that depends on a fading, which the receiver knows, and on feedback."""
    a = numpyro.param("a", 0.8)
    h = numpyro.sample("h", dist.HalfNormal(1.0))
    y = 0.0
    for t in range(n):
        m = numpyro.sample(f"m{t}", dist.Normal())
        x = numpyro.deterministic(f"x{t}", k * h * (m - jnp.tanh(a * y)))
        y = numpyro.sample(f"y{t}", dist.Normal(jnp.tanh(x), 0.5))


@pytest.mark.slow
def test_values_beyond_gaussian_models():
    """A computed input carries what all that it is made from carries."""
    messages = ("m0", "m1", "m2")
    for more, given in ((("h",), ()), ((), ("h",))):
        wanted = ig.MI(messages + more, names(3)[1], given=given)
        found = ig.DirectedInformation(*names(3), given=given)
        a, b = (ig.estimate(fading, o, model_args=(3,)) for o in (wanted, found))
        error = np.hypot(a.standard_error, b.standard_error)
        assert_within(b.value, error, a.value, max_standard_error=0.01)
        a, b = (ig.gradient(fading, o, model_args=(3,)) for o in (wanted, found))
        error = np.hypot(a.standard_error["a"], b.standard_error["a"])
        assert_within(b.value["a"], error, a.value["a"], max_standard_error=0.01)


def backwards():
    """The channel hears each input one use too early."""
    x = numpyro.sample("x", dist.Normal().expand([3]).to_event(1))
    ahead = jnp.roll(x, -1) * numpyro.param("a", 0.5)
    numpyro.sample("y", dist.Normal(x + ahead, 1.0).to_event(1))


def overheard():
    """The input sees the noise of the channel itself, and not by an output."""
    z = numpyro.sample("z", dist.Normal().expand([3]).to_event(1))
    x = numpyro.sample("x", dist.Normal(numpyro.param("a", 0.5) * z, 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(x + z, 1.0).to_event(1))


def test_refusals():
    late = ig.DirectedInformation(names(2)[0], names(2)[1][::-1])
    for error, words, model, objective, args in (
        (ArgumentError, ("later", "order of time"), backwards, STACKED, ()),
        (ArgumentError, ("later", "'x1'"), by_name, late, (2,)),
        (DensityError, ("'z'", "noise"), overheard, STACKED, ()),
        (ArgumentError, ("3 and 4 uses",), unequal, STACKED, ()),
    ):
        settings = {"model_args": args}
        call = functools.partial(ig.estimate, model, objective, **settings)
        refuses(error, *words, call=call)
    call = functools.partial(ig.DirectedInformation, ("x0", "x1"), "y")
    refuses(ArgumentError, "2 inputs and 1", call=call)
    with pytest.warns(UserWarning, match=r"(?s)64 named uses.*scan"):
        ig.DirectedInformation(*names(64))
    for scores in ("sliced", "posterior"):
        settings = {"scores": scores, "model_args": (2,)}
        call = functools.partial(ig.gradient, by_scan, STACKED, **settings)
        refuses(ScoreError, "directed information", call=call)


def unequal():
    x = numpyro.sample("x", dist.Normal().expand([3]).to_event(1))
    mean = numpyro.param("a", 0.5) * jnp.append(x, 0.0)
    numpyro.sample("y", dist.Normal(mean, 1.0).to_event(1))
