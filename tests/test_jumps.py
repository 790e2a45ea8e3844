# SPDX-License-Identifier: Apache-2.0
"""Jumps where a probe has to be moved with care, and derivatives that are stopped.

Each refusal stands next to a continuous control that is accepted.
"""

from typing import Any

from methods import rest_slow, slow
from models import affine, channel, with_gain
import pytest
from scipy import stats

import jax
from jax.lax import stop_gradient
import jax.numpy as jnp

import numpyro
from numpyro.contrib.control_flow import scan
import numpyro.distributions as dist
from numpyro.distributions import constraints, transforms

from helpers import check_only as check
import numpyro_infograd as ig
from numpyro_infograd import MI, Entropy, Expectation
from numpyro_infograd.errors import JumpError, ReparametrizationError
from numpyro_infograd.exogenous import wrappers

X_TO_Y = MI("x", "y")


def check_pair(bad: Any, good: Any, objective: Any = X_TO_Y, words="'y' jumps") -> None:
    """The first is refused, and the second, a control, is not."""
    with pytest.raises(JumpError, match=words):
        check(bad, objective)
    check(good, objective)


@pytest.mark.slow
@pytest.mark.parametrize("place", [2.9, 2.5, 3.2])
def test_a_rare_jump_is_found(place):
    """dI/d place is not zero however far out the step is: -0.037 at 2.9."""

    def select(x, place, gap):
        over = jnp.maximum(x - place, 0.0)
        return jnp.where(over > 0, over + gap, 0.0)

    check(driven(lambda x, place: select(x, place, 0.0), place=place))
    jumping = driven(lambda x, place: select(x, place, 20.0), place=place)
    by_chance_none_yet = driven(select, place=place, gap=0.0)
    for model in (jumping, by_chance_none_yet):
        with pytest.raises(JumpError, match="site 'y' jumps"):
            check(model)


@pytest.mark.slow
@pytest.mark.parametrize("rare", [0, 1])
def test_a_rare_jump_beside_a_common_switch_is_found(rare):
    """One select over two components: one of them continuous, or both rare."""

    def select(gap, common):
        def fn(x, shift):
            over = x - shift - jnp.full(2, common).at[rare].set(2.9)
            return jnp.where(over > 0, over + jnp.zeros(2).at[rare].set(gap), 0.0)

        return driven(fn, size=2, shift=0.0)

    for common in (0.0, 2.9):
        check_pair(select(20.0, common), select(0.0, common))


def test_a_rare_branch_is_found():
    def switch(gap):
        def fn(x, shift):
            over = x - shift
            index = (over > 0).astype(int) + (over > 2.9)
            branches = [lambda v: 0.0 * v, lambda v: v, lambda v: v + gap]
            return jax.lax.switch(index, branches, over)

        return driven(fn, shift=0.0)

    check_pair(switch(20.0), switch(0.0))


def broken(v):
    return jnp.where(v > 3, v + 1.0, v)


def leaky(v):
    return jnp.where(v > 3, v, 3.0 + 0.1 * (v - 3.0))


# Expectations.
def located():
    numpyro.sample("y", dist.Normal(numpyro.param("p", 0.5), 1.0))


def test_expectation_of_a_truth():
    positive = Expectation(lambda v: (v["y"] > 0).astype(float))
    for objective in (positive, Expectation(lambda v: v["y"] > 0)):
        with pytest.raises(JumpError, match=r"Expectation\(<lambda>\)"):
            ig.gradient(located, objective)
    # P(y > 0) = Phi(p), but no sample's derivative sees it.
    missed = ig.gradient(located, positive, allow_jumps=True)
    assert stats.norm.pdf(0.5) > 0.35
    assert float(missed.value["p"]) == float(missed.standard_error["p"]) == 0.0


def test_expectation_with_a_switch():
    with pytest.raises(JumpError, match=r"Expectation\(<lambda>\) jumps"):
        check(located, Expectation(lambda v: jnp.where(v["y"] > 0, 1.0, 0.0)))
    check(located, Expectation(lambda v: jnp.where(v["y"] > 0, v["y"], 0.0)))


def test_expectation_is_asked_only_for_what_it_reads():
    def model():
        numpyro.sample("b", dist.Bernoulli(logits=numpyro.param("q", 0.5)))
        located()

    found = ig.gradient(model, Expectation(lambda v: v["y"]))
    assert float(found.value["p"]) == pytest.approx(1.0)
    assert float(found.value["q"]) == float(found.standard_error["q"]) == 0.0
    both = ig.gradient(model, Expectation(lambda v: v["y"] * v["b"]))
    assert float(both.standard_error["q"]) > 0.0


def turned(t):
    """A symmetric matrix whose eigenvectors turn by t / 2."""
    return jnp.array([[jnp.cos(t), jnp.sin(t)], [jnp.sin(t), -jnp.cos(t)]])


def projected(t):
    v = jnp.linalg.eigh(turned(t))[1][:, 1]
    return v * v[0]


FACTORS = {
    "eigh": (lambda t: jnp.linalg.eigh(turned(t))[1][:, 1], projected),
    "order": (
        lambda t: jnp.linalg.eigh(jnp.diag(jnp.stack([t, 0.3])))[1][0],
        lambda t: jnp.linalg.eigvalsh(jnp.diag(jnp.stack([t, 0.3]))),
    ),
    "qr": (
        lambda t: jnp.linalg.qr(turned(t))[0][0],
        lambda t: jnp.matmul(*jnp.linalg.qr(turned(t)))[0],
    ),
    "svd": (
        lambda t: jnp.linalg.svd(turned(t) + t * jnp.eye(2))[0][0],
        lambda t: jnp.linalg.norm(turned(t) + t * jnp.eye(2), 2),
    ),
}


@pytest.mark.parametrize("name", ["eigh", "order", slow("qr"), slow("svd")])
def test_a_factor_of_a_matrix_jumps_and_what_is_unique_does_not(name):
    bad, good = (driven(lambda x, a, f=f: f(a * x), a=1.0) for f in FACTORS[name])
    check_pair(bad, good, Entropy("y"))


# Draws from a key.
def scaled_gamma(fn):
    def model():
        g = numpyro.sample("g", dist.Gamma(3.0, 1.0))
        numpyro.sample("y", dist.Normal(fn(numpyro.param("p", 1.0) * g), 1.0))

    return model


def shaped_gamma(fn):
    def model():
        g = numpyro.sample("g", dist.Gamma(jnp.exp(numpyro.param("p", 1.0)), 1.0))
        numpyro.sample("y", dist.Gamma(fn(g), 1.0))

    return model


def stepped(fn):
    def model():
        x = numpyro.sample("x", dist.Normal())
        a = numpyro.param("a", 3.0)

        def step(state, _):
            return fn(numpyro.sample("v", dist.StudentT(3.0, a * state, 0.5))), None

        last, _ = scan(step, x, None, length=3)
        numpyro.sample("y", dist.Normal(last, 0.5))

    return model


@pytest.mark.slow
@rest_slow("make", [scaled_gamma, shaped_gamma, stepped])
def test_a_switch_on_a_draw_from_a_key(make):
    check_pair(make(broken), make(leaky), Entropy("y"))


def test_a_jump_on_a_draw_from_a_key_has_no_pathwise_gradient():
    model = scaled_gamma(lambda v: jnp.where(v > 3, 2.0, 0.0))
    objective = Expectation(lambda v: v["y"])
    with pytest.raises(JumpError):
        check(model, objective)
    missed = ig.gradient(model, objective, allow_jumps=True)
    assert 2 * 3 * stats.gamma(3.0).pdf(3.0) > 1.3  # d/dp of 2 P(p g > 3) at p = 1
    assert float(missed.value["p"]) == 0.0


# Vectors.
@pytest.mark.slow
def test_one_element_of_a_vector_jumps():
    size = 200

    def last(gap):
        gaps = jnp.zeros(size).at[-1].set(gap)
        return driven(lambda x, a: jnp.where(a + x > 0, a + x + gaps, 0.5 * (a + x)),
                      size=size, a=1.0)  # fmt: skip

    check_pair(last(1.0), last(0.0))


def test_one_output_of_a_cond_jumps():
    def model(gap):
        x = numpyro.sample("x", dist.Normal())
        v = numpyro.param("a", 1.0) + x
        first, second = jax.lax.cond(v > 0, lambda u: (u, u + gap), lambda u: (u, u), v)
        numpyro.sample("y", dist.Normal(first, 0.5))
        numpyro.sample("z", dist.Normal(second, 0.5))

    check_pair(lambda: model(1.0), lambda: model(0.0), MI("x", ("y", "z")), words="'z'")


# Places and sizes.
def driven(fn, size=None, **params):
    """Y is a function of X and of parameters, in noise of variance 1/4."""

    def model():
        law = dist.Normal(jnp.zeros(() if size is None else size))
        x = numpyro.sample("x", law.to_event(jnp.ndim(law.loc)))
        values = {name: numpyro.param(name, value) for name, value in params.items()}
        noisy = dist.Normal(fn(x, **values), 0.5)
        numpyro.sample("y", noisy.to_event(jnp.ndim(noisy.loc)))

    return model


def limited(x, lo, hi):
    return jnp.where(x < lo, lo, jnp.where(x > hi, hi, x))


def rotated(x, a):
    generator = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    return jax.scipy.linalg.expm(a * generator)[0, 1] * x  # sin(a) x


JUMPING = {
    "small": (lambda x, a: 3e3 * x + jnp.where(x + a > 0.5, 1, -1), {"a": 1.0}),
    "gap of nothing": (lambda x, g: jnp.where(x > g, x + g, x), {"g": 0.0}),
    "bearing": (lambda x, a: jnp.arctan2(x + a, -1.0), {"a": 0.1}),
    "sign": (lambda x, a: jnp.sign(x + a), {"a": 0.5}),
    "remainder": (lambda x, a: jnp.mod(x + a, 2.0), {"a": 1.0}),
    "levels": (
        lambda x, a: jnp.arange(4.0)[jnp.searchsorted(jnp.arange(-1.0, 2.0), a * x)],
        {"a": 1.0}),
    "pieces": (lambda x, a: jnp.select([x < a, x < a + 1], [a, x], 0.0), {"a": 0.2}),
    "moving place": (
        lambda x, a: jnp.where(x > 0, 1, -1) + jnp.where(x > a, 1, -1), {"a": 0.1}),
}  # fmt: skip
STEADY = {
    "limits": (limited, {"lo": 0.4, "hi": 0.6}),
    "limits at zero": (limited, {"lo": 0.0, "hi": 0.5}),
    "limits both ways": (limited, {"lo": -0.2, "hi": 0.2}),
    "bearing": (
        lambda x, s: jnp.arctan2(5 + 0.3 * x - s[1], 3 - s[0]), {"s": jnp.zeros(2)}),
    "signed root": (
        lambda x, a: jnp.sign(x + a) * jnp.sqrt(jnp.abs(x + a)), {"a": 0.2}),
    "pieces": (lambda x, a: jnp.select([x < a, x < 1], [a, x], 1.0), {"a": 0.2}),
    "pulse": (lambda x, a: jnp.sinc(x - a), {"a": 0.3}),
    "quantile": (
        lambda x, a: jax.scipy.special.ndtri(jax.nn.sigmoid(a * x)), {"a": 1.0}),
    "phase": (lambda x, a: jnp.cos(jnp.mod(3 * x + a, 2 * jnp.pi)), {"a": 1.0}),
    "determinant": (
        lambda x, a: jnp.linalg.det(jnp.eye(4) + a * x * jnp.ones((4, 4))), {"a": 1.0}),
    "no noise": (rotated, {"a": 1.0}),
    "fixed place": (
        lambda x, a: jnp.where(x > 0, 1, -1) + jax.nn.leaky_relu(a * x), {"a": 1.0}),
    "spline": (
        lambda x, a, b: jnp.interp(a * x + b, jnp.linspace(-2, 2, 7), jnp.arange(7.0)),
        {"a": 1.0, "b": 0.1}),
}  # fmt: skip


@pytest.mark.parametrize("name", [slow(n) if n == "levels" else n for n in JUMPING])
def test_jumps_that_count(name):
    fn, params = JUMPING[name]
    with pytest.raises(JumpError, match="'y' jumps"):
        check(driven(fn, **params))


DEAR = ("pieces", "spline", "quantile", "no noise")


@pytest.mark.parametrize(
    "name", [slow(n) if "limits " in n or n in DEAR else n for n in STEADY]
)
def test_jumps_that_are_none_or_do_not_move(name):
    fn, params = STEADY[name]
    check(driven(fn, **params))


def test_a_jump_at_a_fixed_place_leaves_the_gradient_right():
    fn, params = STEADY["fixed place"]
    found = ig.gradient(driven(fn, **params), Expectation(lambda v: v["y"] ** 2))
    # Y = a X + 1 above 0 and a X / 100 - 1 below, and noise: E Y^2 has the slope
    # a (1 + 1e-4) + 2 (1 + 1/100) E[X; X > 0].
    truth = 1.0001 + 2.02 * stats.norm.pdf(0.0)
    error = float(found.standard_error["a"])
    assert abs(float(found.value["a"]) - truth) < 5 * error < 0.5


@pytest.mark.slow
def test_a_draw_from_a_key_moves_the_place():
    def model(place):
        shift = numpyro.param("p", 0.0)
        g = numpyro.sample("g", dist.StudentT(5.0, shift))
        u = numpyro.sample("u", dist.StudentT(5.0))
        v = {"moving": g, "fixed": u}[place] * jnp.exp(shift)
        numpyro.sample("y", dist.Normal(jnp.where(v > 0, v + 1.0, v), 1.0))

    check_pair(lambda: model("moving"), lambda: model("fixed"), Entropy("y"))


# Code of a user inside a distribution.
class Map(transforms.ParameterFreeTransform):
    """A transform of somebody else."""

    domain = codomain = constraints.real

    def __init__(self, fn):
        self.fn = fn

    def __call__(self, x):
        return self.fn(x)

    def _inverse(self, y):
        return y

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        return jnp.zeros_like(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "nested"),
    [(dist.Normal, True), (lambda m: dist.StudentT(5.0, m), False)],
    ids=["normal", "key"],
)
def test_a_transform_of_a_user_is_not_trusted(base, nested):
    def mapped(fn):
        step = transforms.ComposeTransform([Map(fn)]) if nested else Map(fn)
        return with_gain(lambda m: dist.TransformedDistribution(base(m), [step]))

    with pytest.raises(JumpError, match="'y'.*'sign'"):
        check(mapped(lambda v: v + jnp.sign(v)))
    check_pair(mapped(broken), mapped(leaky))


def test_transforms_of_numpyro_are_trusted():
    steps = [transforms.ExpTransform().inv, transforms.SigmoidTransform()]
    for step in (*steps, transforms.ComposeTransform(steps)):
        assert wrappers.is_numpyros(step)
    for step in (Map(jnp.sin), Map(jnp.sin).inv, transforms.UnpackTransform(dict)):
        assert not wrappers.is_numpyros(step)


@pytest.mark.slow
def test_a_drift_is_not_trusted():
    def walk(drift):
        def law(x):
            a = numpyro.param("a", 3.0)
            sde = lambda v, t: (drift(a * v + x), 1.0)  # noqa: E731
            return dist.EulerMaruyama(jnp.arange(4.0) / 4, sde, dist.Normal(x, 1.0))

        return channel(law)

    with pytest.raises(JumpError, match="'y'.*'sign'"):
        check(walk(jnp.sign))
    check_pair(walk(broken), walk(leaky))


def test_a_switch_that_no_probe_can_move():
    def model():
        a = numpyro.param("a", 3.0)
        sde = lambda v, t: (leaky(a * v), 1.0)  # noqa: E731
        times = jnp.arange(4.0) / 4
        numpyro.sample("y", dist.EulerMaruyama(times, sde, dist.Delta(0.0)))

    with pytest.raises(JumpError, match="'y'.*cannot be tested for jumps"):
        check(model, Entropy("y"))


# Stopped derivatives.
@jax.custom_jvp
def silent(a):
    return 2.0 * a


silent.defjvp(lambda primals, tangents: (silent(*primals), 0.0 * tangents[0]))

STOPPED = {
    "whole": lambda x, a: stop_gradient(a)[0] * x + a[1] * x * 0,
    "part": lambda x, a: stop_gradient(a[0]) * x + a[1],
    "rule": lambda x, a: silent(a[0]) * x,
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_stopped_derivative(name):
    model = driven(STOPPED[name], a=jnp.array([1.0, 0.5]))
    with pytest.raises(ReparametrizationError, match="'y' does not move with 'a'"):
        check(model)
    missed = ig.gradient(model, X_TO_Y, allow_jumps=True)
    assert float(missed.value["a"][0]) == 0.0  # I(X;Y) grows with the gain


def test_a_derivative_stopped_inside_an_expectation():
    with pytest.raises(ReparametrizationError, match="Expectation.* not move with 'a'"):
        check(affine, Expectation(lambda v: stop_gradient(v["y"]) ** 2))
    check(affine, Expectation(lambda v: v["y"] ** 2))


@jax.custom_jvp
def squared(a):
    return a**2


squared.defjvp(lambda p, t: (squared(*p), p[0] * t[0]))  # half of the truth

WRONG = {
    "behind an offset": (lambda x, a: 1e3 + stop_gradient(a) * x, {"a": 1.0}),
    "beside": (lambda x, a: jnp.stack([1e4 * x, stop_gradient(a) * x]), {"a": 1.0}),
    "half": (lambda x, a: (a + stop_gradient(a)) * x, {"a": 1.0}),
    "rule": (lambda x, a: squared(a) * x, {"a": 1.0}),
    "out of nothing": (lambda x, a: x + a - stop_gradient(a), {"a": 1.0}),
    "at zero": (lambda x, a: x + stop_gradient(a) ** 2, {"a": 0.0}),
    "of some draws": (
        lambda x, a: x * jnp.where(x > 0, stop_gradient(a), a), {"a": 1.0}),
    "in a rare branch": (
        lambda x, a: a * jnp.where(abs(x) > 2.2, stop_gradient(a), a) * x, {"a": 1.0}),
    "near a bound": (
        lambda x, a, b, p: b * jnp.log(p) * stop_gradient(a) * x,
        {"a": 1.0, "b": 1.0, "p": 0.1}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_derivative_and_whose_it_is(name):
    fn, params = WRONG[name]
    with pytest.raises(ReparametrizationError, match="not move with 'a' as"):
        check(driven(fn, **params))


@pytest.mark.parametrize("in_scan", [False, slow(True)])
def test_a_wrong_derivative_before_a_draw_from_a_key(in_scan):
    """The derivative of the draw is no evidence, that of its distribution is."""

    def model(fn):
        def use(a, _):
            x = numpyro.sample("x", dist.Normal())
            numpyro.sample("y", dist.StudentT(3.0, fn(a * x), 0.5))
            return a, None

        def whole():
            a = numpyro.param("a", 1.0)
            return scan(use, a, None, 3) if in_scan else use(a, None)

        return whole

    with pytest.raises(ReparametrizationError, match="distribution of site 'y'"):
        check(model(lambda z: z + stop_gradient(2 * jnp.tanh(z) - z)))
    check(model(lambda z: 2 * jnp.tanh(z)))


def test_a_stop_that_cancels_is_no_wrong_derivative():
    """A reference that is subtracted and added again."""

    def steady(x, a):
        z = jnp.stack([a * x, -a, x])
        most = stop_gradient(jnp.max(z))
        return most + jnp.log(jnp.sum(jnp.exp(z - most)))

    check(driven(steady, a=1.0))


@pytest.mark.slow
def test_a_draw_from_a_key_that_is_stopped():
    def model(stop):
        g = numpyro.sample("g", dist.Gamma(jnp.exp(numpyro.param("p", 1.0)), 1.0))
        numpyro.sample("y", dist.Normal(stop(g), numpyro.param("s", 1.0)))

    with pytest.raises(ReparametrizationError, match="not move with 'p' as"):
        check(lambda: model(stop_gradient), Entropy("y"))
    check(lambda: model(jnp.sqrt), Entropy("y"))


WEIGHTS = jnp.sin(jnp.arange(64.0))


def network(x, w):
    hidden = jax.nn.relu(jnp.outer(WEIGHTS, WEIGHTS) @ jax.nn.relu(w * x + 0.1 * w))
    return jnp.stack([hidden.mean(), x])


def normalized(x, w):
    hidden = w * x + WEIGHTS
    hidden = (hidden - hidden.mean()) / jnp.sqrt(hidden.var() + 1e-5)
    return x + jnp.mean(jnp.tanh(hidden) * WEIGHTS)


RIGHT = {
    "network": (network, {"w": WEIGHTS}),
    "network of zeros": (network, {"w": 0 * WEIGHTS}),
    "layer norm": (normalized, {"w": WEIGHTS[::-1]}),
    "offset": (lambda x, a: 1e5 + a * x, {"a": 1.0}),
    "fast": (lambda x, a: x + jnp.sin(300 * a * x), {"a": 1.0}),
    "small unit": (lambda x, a: 1e6 * a * x, {"a": 1e-6}),
    "order": (lambda x, w: jnp.sort(w * x)[:5] + x, {"w": WEIGHTS}),
}


@pytest.mark.parametrize("name", [slow(n) if "network " in n else n for n in RIGHT])
def test_a_derivative_that_is_right(name):
    fn, params = RIGHT[name]
    check(driven(fn, **params), Entropy("y"))


FLOWING = {
    "zero at the start": (lambda x, a: a**2 * x, 0.0),
    "dead": (lambda x, a: x + jax.nn.relu(a - 5.0), 1.0),
    "shifted": (lambda x, a: jax.nn.softmax(a * x)[0], jnp.zeros(3)),
    "saturated": (lambda x, a: x + jnp.tanh(100.0 * a), 1.0),
    "sphere": (lambda x, a: a[0] * x, jnp.array([1.0, 0.0])),
}


@pytest.mark.parametrize("name", FLOWING)
def test_a_derivative_that_may_vanish(name):
    fn, start = FLOWING[name]
    check(driven(fn, a=start))
