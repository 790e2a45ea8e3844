# SPDX-License-Identifier: Apache-2.0
"""Identity VI: a readout that loses nothing has the information of what it reads."""

import functools

from methods import slow
from models import channel
import numpy as np
import pytest

import jax
from jax.lax import complex as pair
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jax.scipy.stats import norm

import numpyro
import numpyro.distributions as dist
from numpyro.distributions import transforms

from helpers import assert_found, assert_within, quiet, refuses
import numpyro_infograd as ig
from numpyro_infograd._readouts import check_readouts, see_through
from numpyro_infograd._tracing import trace_model
from numpyro_infograd.distributions import ComplexNormal
from numpyro_infograd.errors import (
    ArgumentError,
    DegenerateError,
    DensityError,
    ParameterError,
)

RNG = np.random.default_rng(0)
H = jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32)
SINGULAR = H.at[3].set(H[0] + H[1])


def stacked(z):
    return jnp.stack([z.real, z.imag])


def read_by(fn, law=None, gain=1.0):
    """x -> y, in four dimensions, and the readout w = fn(y)."""

    def model():
        x = numpyro.sample("x", dist.Normal(0, 1).expand([4]).to_event(1))
        mean = numpyro.param("q", gain) * x
        noisy = law(mean) if law else dist.Normal(mean, 0.5).to_event(1)
        y = numpyro.sample("y", noisy)
        numpyro.deterministic("w", fn(y))

    return model


def is_seen_through(model, name="w", of="y"):
    sm = ig.structural_model(model)
    _, seen = see_through(sm, ig.MI("x", name), sm.params)
    return seen.entropies == ig.MI("x", of).entropies


LOSSLESS = {
    "reshape": lambda v: v.reshape(2, 2).T[::-1],
    "stack": lambda v: jnp.stack([v[i] for i in (2, 0, 3, 1)]),
    "permutation": lambda v: v[jnp.array([3, 1, 0, 2])],
    "halves": lambda v: jnp.concatenate([v[2:], v[:2]]),
    "repeated": lambda v: jnp.stack([v, v]),
    "set": lambda v: v.at[1].set(2.0 * v[1]),
    "affine": lambda v: 3.0 * v + jnp.arange(4.0),
    "matrix": lambda v: H @ v,
    "butterfly": lambda v: jnp.stack([v[0] + v[1], v[0] - v[1], v[2], v[3]]),
    "cumsum": jnp.cumsum,
    "fft": lambda v: stacked(jnp.fft.fft(pair(v[:2], v[2:]))),
    "real fft": lambda v: stacked(jnp.fft.rfft(v)),
    "complex gain": lambda v: stacked(pair(v[:2], v[2:]) * (1 + 2j) / (3 - 1j)),
    "layers": lambda v: jnp.tanh(H @ jnp.arcsinh(H @ v) / 20.0),
    "exp": jnp.exp,
    "sinh": jnp.sinh,
    "saturating": lambda v: jnp.tanh(30.0 * v),
    "cube": lambda v: v**3,
    "signed root": lambda v: jnp.sign(v) * jnp.sqrt(jnp.abs(v)),
    "half cube": lambda v: v * jnp.sqrt(jnp.abs(v)),
    "sum of powers": lambda v: v + v**3,
    "cdf": norm.cdf,
    "logit": lambda v: (lambda p: jnp.log(p / (1.0 - p)))(jax.nn.sigmoid(v)),
    "leaky": jax.nn.leaky_relu,
    "softplus": jax.nn.softplus,
    "and its square": lambda v: jnp.concatenate([v, v**2]),
    "tuned gain": lambda v: jnp.tanh(numpyro.param("k", -0.7) * v),
    "tuned matrix": lambda v: numpyro.param("W", H) @ v,
}

LOSSY = {
    "abs": jnp.abs,
    "relu": jax.nn.relu,
    "clip": lambda v: jnp.clip(v, -1.0, 1.0),
    "square": jnp.square,
    "square far from zero": lambda v: (v - 20.0) ** 2,
    "swish": jax.nn.swish,
    "sine": jnp.sin,
    "fine wiggle": lambda v: v + 1e-3 * jnp.sin(1e4 * v),
    "fold": lambda v: jnp.where(v > 0.3, v - 0.01, v),
    "sum": jnp.sum,
    "sum of two": lambda v: jnp.stack([v[0], v[1], v[2] + v[3]]),
    "slice": lambda v: v[:3],
    "one component twice": lambda v: v[jnp.array([0, 1, 2, 2])],
    "singular matrix": lambda v: SINGULAR @ v,
    "singular product": lambda v: jnp.linalg.inv(H) @ (SINGULAR @ v),
    "centred": lambda v: v - jnp.mean(v),
    "masked": lambda v: v * jnp.array([1.0, 1.0, 1.0, 0.0]),
    "what rounding leaves": lambda v: v.at[3].set((0.1 * v[3]) * 10.0 - v[3]),
    "half of an fft": lambda v: stacked(jnp.fft.fft(pair(v[:2], v[2:]))[:1]),
    "real part": lambda v: pair(v[:2], v[2:]).real,
    "magnitude": lambda v: jnp.abs(pair(v[:2], v[2:])),
    "phase": lambda v: jnp.angle(pair(v[:2], v[2:])),
    "quantiser": jnp.round,
    "half precision": lambda v: v.astype(jnp.bfloat16).astype(jnp.float32),
    "sorted": jnp.sort,
    "softmax": jax.nn.softmax,
    "norm": lambda v: v / jnp.linalg.norm(v),
    "products": lambda v: v * v[::-1],
    "tuned gain of zero": lambda v: numpyro.param("k", 0.0) * v,
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_seen_through(name) -> None:
    assert is_seen_through(read_by(LOSSLESS[name]))


@pytest.mark.parametrize("name", LOSSY)
def test_not_seen_through(name) -> None:
    assert not is_seen_through(read_by(LOSSY[name]))


def test_support_counts() -> None:
    """A square and a root are one-to-one for positive numbers."""

    def gamma(mean):
        return dist.Gamma(2.0, jnp.exp(mean)).to_event(1)

    for fn in (jnp.square, jnp.sqrt, jnp.abs, lambda v: v * jnp.log1p(v)):
        assert is_seen_through(read_by(fn, gamma))
    assert not is_seen_through(read_by(lambda v: (v - 1.0) ** 2, gamma))


# Values and gradients.
def test_warped() -> None:
    d, s, model = 4, 0.5, read_by(jnp.arcsinh)
    found, direct = (ig.mutual_information(model, "x", out) for out in ("w", "y"))
    assert (found.value, found.method) == (direct.value, "exact")
    np.testing.assert_allclose(found.value, d / 2 * np.log1p(1 / s**2), rtol=1e-6)
    found, direct = (ig.gradient(model, ig.MI("x", out)) for out in ("w", "y"))
    assert found.value == direct.value
    np.testing.assert_allclose(found.value["q"], d / (1 + s**2), rtol=1e-5)


RHO = 0.75
PAIR = -0.5 * np.log(1 - RHO**2)


def both_read(f, g, rho=RHO):
    rho = jnp.asarray(rho)

    def model():
        x = numpyro.sample("x", dist.Normal(0 * rho, 1).to_event(rho.ndim))
        noisy = dist.Normal(rho * x, jnp.sqrt(1 - rho**2))
        y = numpyro.sample("y", noisy.to_event(rho.ndim))
        numpyro.deterministic("u", f(x))
        numpyro.deterministic("v", g(y))

    return model


def roll(v):
    t = 1.5 * jnp.pi * (1.0 + 2.0 * norm.cdf(v))
    return jnp.stack([t * jnp.cos(t), t * jnp.sin(t)]) / 21.0


def unroll(u):
    return ndtri((21.0 * jnp.hypot(u[0], u[1]) / (1.5 * jnp.pi) - 1.0) / 2.0)


@pytest.mark.parametrize(
    ("f", "g"),
    [
        (norm.cdf, norm.cdf),
        (LOSSLESS["half cube"], LOSSLESS["half cube"]),
        (ig.injective(roll, unroll), norm.cdf),
        (ig.injective(transforms.ExpTransform()), jnp.tanh),
    ],
)
def test_both_sides_transformed(f, g) -> None:
    found = ig.mutual_information(both_read(f, g), "u", "v")
    assert found.method == "exact"
    np.testing.assert_allclose(found.value, PAIR, rtol=1e-6)


def turn(i, j, sign=1.0):
    def fn(x):
        c, s = jnp.cos(x @ x / 3), sign * jnp.sin(x @ x / 3)
        return x.at[i].set(c * x[i] - s * x[j]).at[j].set(s * x[i] + c * x[j])

    return fn


def spiral(f, g):
    return both_read(f, g, [0.8, 0.8, 0.0])


def test_marked_spiral() -> None:
    f = ig.injective(turn(0, 1), turn(0, 1, -1.0))
    g = ig.injective(turn(1, 2), turn(1, 2, -1.0))
    found = ig.mutual_information(spiral(f, g), "u", "v")
    np.testing.assert_allclose(found.value, -np.log(1 - 0.8**2), rtol=1e-6)
    wrong = spiral(ig.injective(turn(0, 1), turn(0, 1)), g)
    call = functools.partial(ig.mutual_information, wrong, "u", "v")
    refuses(ArgumentError, "'u'", "inverse", "ig.injective", call=call)


def test_what_is_not_marked_is_refused() -> None:
    for error, model in (
        (DensityError, spiral(turn(0, 1), turn(1, 2))),
        (DegenerateError, both_read(roll, norm.cdf)),
    ):
        call = functools.partial(ig.mutual_information, model, "u", "v")
        refuses(error, "'u'", "ig.injective(fn, inverse=...)", call=call)


def test_a_mark_reads_only_its_argument() -> None:
    def model():
        x = numpyro.sample("x", dist.Normal(0, 1))
        y = numpyro.sample("y", dist.Normal(x, 1))
        plus = ig.injective(lambda v: v + x, inverse=lambda u: u - x)
        numpyro.deterministic("w", plus(y))

    call = functools.partial(ig.mutual_information, model, "x", "w")
    refuses(ArgumentError, "'w'", "other random values", call=call)


@pytest.mark.parametrize(
    ("fn", "inverse", "words"),
    [
        (jnp.exp, None, "a function and its inverse"),
        (jnp.exp, 1.0, "a function and its inverse"),
        (lambda v: (v, v), jnp.log, "fn .* one array"),
        (jnp.exp, jnp.sum, r"shape \(\) for a value of shape \(2,\)"),
    ],
)
def test_invalid_marks(fn, inverse, words) -> None:
    with pytest.raises(ArgumentError, match=words):
        ig.injective(fn, inverse)(jnp.ones(2))


# Sets of several sites.
def three():
    a = numpyro.param("a", 1.0)
    x = numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
    y = numpyro.sample("y", dist.Normal(a * x, 0.5).to_event(1))
    z = numpyro.sample("z", dist.Normal(y, 1.0).to_event(1))
    numpyro.deterministic("w", jnp.tanh(y))
    numpyro.deterministic("s", y**2)
    numpyro.deterministic("first", y[0])
    numpyro.deterministic("second", jnp.exp(y[1]))
    numpyro.deterministic("sum", y + z)


@pytest.mark.parametrize(
    ("objective", "same"),
    [
        (ig.MI("x", ("y", "w")), ig.MI("x", "y")),
        (ig.MI("x", ("w", "s")), ig.MI("x", "y")),
        (ig.MI("x", ("y", "s")), ig.MI("x", "y")),
        (ig.MI("x", ("first", "second")), ig.MI("x", "y")),
        (ig.MI("x", "z", given="w"), ig.MI("x", "z", given="y")),
        (ig.MI("x", ("w", "z")), ig.MI("x", ("y", "z"))),
        (ig.MI("x", "sum", given="y"), ig.MI("x", "z", given="y")),
        (ig.MI("x", ("sum", "w")), ig.MI("x", ("y", "z"))),
        (ig.MI("w", "z"), ig.MI("y", "z")),
        (ig.MI("x", "s", given="y"), None),
    ],
)
def test_sets(objective, same) -> None:
    sm = ig.structural_model(three)
    _, seen = see_through(sm, objective, sm.params)
    assert not seen.expectations
    assert seen.entropies == ({} if same is None else same.entropies)


@pytest.mark.parametrize(
    "objective",
    [
        ig.MI("w", "y"),  # infinite
        ig.MI("w", "y") - ig.MI("s", "y"),
        ig.MI("x", "s"),
        ig.MI("x", "first"),
        ig.MI("x", "sum"),
        ig.MI("first", "second"),
    ],
)
def test_sets_that_stay(objective) -> None:
    sm = ig.structural_model(three)
    same, seen = see_through(sm, objective, sm.params)
    assert same is sm
    assert seen.entropies == objective.entropies


def test_an_infinite_information_stays_infinite() -> None:
    call = functools.partial(ig.mutual_information, three, "w", "y")
    refuses(DegenerateError, "'w'", "infinite", call=call)


# Entropies.
@pytest.mark.parametrize(
    ("fn", "added", "slope"),
    [
        (lambda y, a: jnp.exp(y), 0.0, 0.0),
        slow(lambda y, a: jnp.exp(a) * y[::-1], 3.0, 2.0),
        slow(lambda y, a: jnp.exp(a) * pair(y[0], y[1]), 3.0, 2.0),
    ],
)
def test_entropies(fn, added, slope) -> None:
    def model():
        a = numpyro.param("a", 1.5)
        y = numpyro.sample("y", dist.Normal(0, jnp.stack([1.0, a])).to_event(1))
        numpyro.deterministic("u", fn(y, a))

    found = ig.estimate(model, ig.Entropy("u"))
    truth = np.log(2 * np.pi * np.e * 1.5) + added
    assert_found(found, truth, 1e-3)
    slopes = ig.gradient(model, ig.Entropy("u")).value
    np.testing.assert_allclose(slopes["a"], 1 / 1.5 + slope, rtol=1e-3)


# Complex sites.
def complex_link():
    a = numpyro.param("a", 1.0)
    x = numpyro.sample("x", ComplexNormal(0.0, 1.0))
    y = numpyro.sample("y", ComplexNormal(a * x, 1.0))
    numpyro.deterministic("turned", jnp.exp(0.3j) * y)
    numpyro.deterministic("parts", stacked(y))
    numpyro.deterministic("re", y.real)


@pytest.mark.parametrize(
    ("out", "share"), [("y", 1.0), ("turned", 1.0), ("parts", 1.0), ("re", 0.5)]
)
def test_complex_sites(out, share) -> None:
    found = ig.mutual_information(complex_link, "x", out)
    np.testing.assert_allclose(found.value, share * np.log(2.0), rtol=1e-5)
    slope = ig.gradient(complex_link, ig.MI("x", out)).value["a"]
    np.testing.assert_allclose(slope, share, rtol=1e-5)


def test_complex_sum() -> None:
    def model():
        x, n = (
            numpyro.sample(s, dist.Normal(0, 0.5**0.5).expand([2]).to_event(1))
            for s in ("x", "n")
        )
        a = numpyro.param("a", 1.0)
        numpyro.deterministic("y", a * pair(x[0], x[1]) + pair(n[0], n[1]))

    found = ig.mutual_information(model, "x", "y")
    np.testing.assert_allclose(found.value, np.log(2.0), rtol=1e-6)


@pytest.mark.slow
def test_complex_entropy_and_expectation() -> None:
    """The functions of an expectation and of a constraint see complex values."""
    h = ig.estimate(complex_link, ig.Entropy("y"))
    np.testing.assert_allclose(h.value, np.log(2.0 * np.pi * np.e), rtol=1e-5)
    power = ig.Expectation(lambda v: jnp.abs(v["turned"]) ** 2)
    found = ig.gradient(complex_link, ig.MI("x", "y") - 0.1 * power)
    assert_found(found, {"a": 0.8}, 0.01)
    drawn = ig.structural_model(complex_link).sample(jax.random.key(0), 2)
    assert jnp.iscomplexobj(drawn["y"])


@pytest.mark.slow
def test_complex_recordings() -> None:
    def model():
        s = numpyro.sample("s", ComplexNormal(0.0, 1.0))
        numpyro.sample("y", ComplexNormal(numpyro.param("a", 1.0) * s, 1.0))

    rng = np.random.default_rng(1)
    s, n = rng.normal(size=(2, 2000, 2)) @ np.array([1, 1j]) / 2**0.5
    found = quiet.calibrate(model, {"y": 2.0 * s + n})
    error = found.standard_error["a"]
    assert_within(found.params["a"], error, 2.0, max_standard_error=0.1)


# Complex parameters.

PARTS = RNG.normal(size=(2, 2, 2))
GAIN = jnp.asarray(PARTS[0] + 1j * PARTS[1], jnp.complex64)


def precoded():
    W = numpyro.param("W", 0.3 * GAIN.T)
    x = numpyro.sample("x", ComplexNormal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", ComplexNormal(GAIN @ (W @ x), 1.0).to_event(1))


def capacity(W):
    return jnp.linalg.slogdet(jnp.eye(2) + GAIN @ W @ W.conj().T @ GAIN.conj().T)[1]


def test_complex_gradient_is_the_steepest_ascent() -> None:
    start = jnp.asarray([[1.0, 0.5j], [0.2, -1.0 + 1.0j]])
    found = ig.gradient(precoded, ig.MI("x", "y"), params={"W": start}).value["W"]
    np.testing.assert_allclose(found, jax.grad(capacity)(start).conj(), rtol=1e-4)
    assert capacity(start + 1e-3 * found) > capacity(start)
    value = ig.mutual_information(precoded, "x", "y", params={"W": start}).value
    np.testing.assert_allclose(value, capacity(start), rtol=1e-5)


def test_ascent_of_a_complex_matrix_finds_water_filling() -> None:
    def power(p):
        return {"W": p["W"] * jnp.minimum(1.0, 2.0 / jnp.linalg.norm(p["W"]))}

    found = quiet.maximize_mi(precoded, "x", "y", projection=power)
    gains = np.linalg.svd(np.asarray(GAIN), compute_uv=False) ** 2
    level = (4.0 + np.sum(1.0 / gains)) / 2.0
    assert level > 1.0 / gains.min()  # both streams are in use
    best = np.sum(np.log(gains * level))
    np.testing.assert_allclose(found.estimate.value, best, rtol=1e-3)
    assert found.params["W"].dtype == jnp.complex64
    assert found.history["params"]["W"].shape[1:] == (2, 2)
    assert "+" in repr(found)


def test_complex_parameters_of_an_object() -> None:
    ascent = ig.InfoMax(precoded, ig.MI("x", "y"))
    state, info = ascent.update(ascent.init(None))
    assert jnp.iscomplexobj(ascent.get_params(state)["W"])
    assert jnp.iscomplexobj(info.gradient["W"])


def test_complex_parameters_that_are_refused() -> None:
    def law(x):
        a = numpyro.param("a", 1.0 + 0.0j, constraint=dist.constraints.positive)
        return ComplexNormal(a * x, 1.0)

    call = functools.partial(ig.gradient, channel(law), ig.MI("x", "y"))
    refuses(ParameterError, "'a'", "constraint", call=call)
    call = functools.partial(
        ig.pretrain_scores, precoded, ig.MI("x", "y"), {"W": (0, 1)}
    )
    refuses(ParameterError, "'W'", "Use two", call=call)


def test_volume_is_taken_at_fixed_other_sites():
    """h(x + y | y) = h(x | y), although y is made from x."""

    def model():
        x = numpyro.sample("x", dist.Normal(0, 1))
        y = numpyro.sample("y", dist.Normal(x, 1))
        numpyro.deterministic("d", x + y)

    found = ig.estimate(model, ig.Entropy("d", given="y"))
    truth = 0.5 * np.log(2 * np.pi * np.e * 0.5)
    assert float(found.value) == pytest.approx(truth, abs=1e-5)


def test_discrete_values_have_no_volume():
    def model():
        g = numpyro.sample("g", dist.GeometricProbs(0.5))
        numpyro.deterministic("d", 2.0 * g)

    one, other = (ig.estimate(model, ig.Entropy(site)) for site in ("g", "d"))
    assert float(other.value) == pytest.approx(float(one.value), abs=1e-6)
    assert_found(one, 2 * np.log(2), 0.02)


def test_solution_is_not_linear_in_the_matrix():
    def model():
        y = numpyro.sample("y", dist.Normal(0, 1).expand([3]).to_event(1))
        matrix = jnp.eye(3).at[jnp.array([1, 2, 2]), jnp.array([0, 0, 1])].set(y)
        solved = jax.scipy.linalg.solve_triangular(
            matrix, jnp.array([1.0, 2.0, 3.0]), lower=True, unit_diagonal=True
        )
        numpyro.deterministic("d", solved)

    sm = ig.structural_model(model)
    _, objective = see_through(sm, ig.MI("y", "d"), sm.params)
    assert "d" in objective.sites


def test_a_computed_number_of_a_hidden_complex_site_can_be_checked() -> None:
    """The phase of a symbol in complex noise: its Jacobian is that of two numbers."""

    def model() -> None:
        a = numpyro.param("a", 1.5)
        k = numpyro.sample("k", dist.Categorical(probs=jnp.ones(4) / 4))
        mean = a * jnp.exp(0.5j * jnp.pi * k)
        y = numpyro.sample("y", ig.distributions.ComplexNormal(mean, 1.0))
        numpyro.deterministic("phase", jnp.angle(y))

    sm = trace_model(model, (), {})
    check_readouts(sm, ig.MI("k", "phase"), sm.params)
