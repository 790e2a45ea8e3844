# SPDX-License-Identifier: Apache-2.0
"""What is refused, by which class, in which words, and why it has to be.

Where an unrefused gradient would have been wrong, a control computes it and shows how
far it is from the truth.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from links import normal_grid, slope, table_information
from methods import slow
from models import affine, channel, multipath, qam, tanh_channel, with_gain
import numpy as np
import pytest
from scipy import special, stats

from flax import nnx
import jax
import jax.numpy as jnp

import numpyro
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import nnx_module
import numpyro.distributions as dist
from numpyro.distributions import transforms

from helpers import assert_found, assert_within, check_only, refuses, refuses_gradient
import numpyro_infograd as ig
from numpyro_infograd import MI, Entropy, errors, exogenous, scores
from numpyro_infograd._edits import append_noise
from numpyro_infograd.errors import (
    ArgumentError,
    BoundaryError,
    DegenerateError,
    DensityError,
    InfogradError,
    JumpError,
    ModelError,
    ReparametrizationError,
    ScoreError,
    SiteError,
)

X_TO_Y = MI("x", "y")
MIXTURE = scores.Mixture(num_components=512)
SMALL = scores.Denoising(num_networks=2, pool_size=16384)


def through(fn: Callable[[Any], Any]) -> Callable[[], None]:
    """X normal; V = a X + Z / 2; Y is fn(V) in noise of variance 1/4."""

    def model():
        x = numpyro.sample("x", dist.Normal())
        v = numpyro.sample("v", dist.Normal(numpyro.param("a", 1.0) * x, 0.5))
        s = numpyro.deterministic("s", fn(v))
        numpyro.sample("y", dist.Normal(s, 0.5))

    return model


# References on dense grids, independent of the package.
def entropy_of_shifted(density: Callable[[Any], Any], gain: float) -> float:
    """h(gain X + N) for X standard normal and noise of that density."""
    (x, weight), y = normal_grid(8.5, 1701), np.linspace(-14.0, 26.0, 4001)
    p = density(y[:, None] - gain * x) @ weight
    return float(special.entr(p).sum() * (y[1] - y[0]))


@functools.cache
def truth_of_sign() -> float:
    """dI(X;Y)/da of `through(sign)` at a = 1."""

    def information(gain: float) -> float:
        (x, weight), y = normal_grid(8.0, 1601), np.linspace(-6.0, 6.0, 1201)
        up = stats.norm.cdf(gain * x / 0.5)
        above, below = stats.norm.pdf(y, 1, 0.5), stats.norm.pdf(y, -1, 0.5)
        given = up[:, None] * above + (1 - up[:, None]) * below
        return table_information(given * (y[1] - y[0]), weight)

    return slope(information)


def assert_far(estimate: Any, error: Any, truth: float, sigmas: float = 20.0) -> None:
    """A control: the estimate looks sharp and is wrong."""
    estimate, error = float(estimate), float(error)
    assert np.isfinite(estimate)
    assert abs(estimate - truth) > sigmas * error, (estimate, error, truth)
    assert abs(estimate - truth) > 0.1 * abs(truth), (estimate, error, truth)


def value_of(model: Any, objective: Any = X_TO_Y, **settings) -> dict[str, float]:
    """The gradient's value as floats."""
    found = ig.gradient(model, objective, **settings).value
    return {name: float(number) for name, number in found.items()}


# The classes.
def test_every_class_is_an_infograd_error_and_a_value_error():
    every = vars(errors).values()
    classes = [c for c in every if getattr(c, "__module__", "") == errors.__name__]
    assert len(classes) == 14
    for cls in classes:
        assert issubclass(cls, InfogradError)
        assert cls is InfogradError or issubclass(cls, ValueError)
        assert cls.__doc__


# Models without meaning as a generative system.
def test_factor():
    def model(weigh=True):
        x = numpyro.sample("x", dist.Normal())
        if weigh:
            numpyro.factor("tilt", -1.5 * x**2)
        numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1.0))

    refuses_gradient(ModelError, "'tilt'", "factor", model=model)
    # The factor makes X of variance 1/4: dI/da = 0.25 a / (1 + 0.25 a^2).
    found = value_of(model, model_kwargs={"weigh": False})["a"]
    assert_far(found, 0.0, 0.2)


def test_subsampled_plate():
    def model(subsample_size=None, size=4):
        x = numpyro.sample("x", dist.Normal())
        a = numpyro.param("a", 1.0)
        with numpyro.plate("sensors", size, subsample_size=subsample_size):
            numpyro.sample("y", dist.Normal(a * x, 1.0))

    refuses_gradient(ModelError, "'sensors'", "2 of 4", model=model, model_args=(2,))
    truth = 4.0 / 5.0  # n a / (1 + n a^2)
    assert_within(value_of(model)["a"], 0.0, truth, max_standard_error=0.0)
    assert_far(value_of(model, model_args=(None, 2))["a"], 0.0, truth)


def test_mutable_state():
    norm = nnx.BatchNorm(1, use_running_average=False, rngs=nnx.Rngs(0))

    def model():
        layer = nnx_module("norm", norm)
        x = numpyro.sample("x", dist.Normal())
        v = numpyro.sample("v", dist.Normal(numpyro.param("a", 1.0) * x, 1.0))
        numpyro.sample("y", dist.Normal(layer(v[None, None])[0, 0], 1.0))

    refuses_gradient(ModelError, "'norm$state'", "mutable", model=model)

    # One run sees a batch of one, which it normalises to nothing. Truth: V / s + Z.
    def per_run(a):
        x, z = jax.random.normal(jax.random.key(0), (2, 64))
        return jax.vmap(lambda v: nnx.clone(norm)(v[None, None])[0, 0])(a * x + z)

    def information(a):
        signal = a**2 / (1 + a**2)
        return 0.5 * np.log(2 / (2 - signal))

    values, slopes = jax.jvp(per_run, (1.0,), (1.0,))
    assert jnp.all(jnp.abs(values) < 1e-6)
    assert_far(jnp.abs(slopes).max(), 0.0, slope(information))


def test_randomness_outside_a_site():
    def model(hidden=True):
        x = numpyro.sample("x", dist.Normal())
        w = jax.random.normal(numpyro.prng_key()) if hidden else 0.7
        mean = numpyro.param("a", 1.0) * x + numpyro.param("b", 1.0) * w
        numpyro.sample("y", dist.Normal(mean, 1.0))

    refuses_gradient(ModelError, "prng_key", "numpyro.sample", model=model)
    # Frozen randomness is no noise: dI/db of log(1 + a^2 / (1 + b^2)) / 2 is lost.
    found = value_of(model, model_kwargs={"hidden": False})["b"]
    assert_far(found, 0.0, slope(lambda b: 0.5 * np.log(1 + 1 / (1 + b**2))))


def test_scale_is_warned_about():
    def model():
        x = numpyro.sample("x", dist.Normal())
        with handlers.scale(scale=2.0):
            numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1.0))

    with pytest.warns(UserWarning, match="site 'y' carries a scale"):
        assert value_of(model)["a"] == pytest.approx(0.5)


# Sites.
def test_recorded_site_of_a_scan():
    def model(readings=None):
        a = numpyro.param("a", 1.0)

        def step(state, reading):
            state = numpyro.sample("x", dist.Normal(0.5 * state, 1.0))
            numpyro.sample("y", dist.Normal(a * state, 1.0), obs=reading)
            return state, None

        scan(step, jnp.zeros(()), readings, length=3)

    refuses_gradient(SiteError, "'y'", model=model, model_args=(jnp.ones(3),))
    assert value_of(model)["a"] > 0


def test_an_intervention_leaves_an_unrelated_site():
    sm = ig.structural_model(handlers.do(affine, data={"x": 0.5}))
    values = sm.sample(jax.random.key(0), 4096)
    # Unrefused, I(X;Y) would be asked of a site that Y never saw.
    assert abs(np.corrcoef(values["x"], values["y"])[0, 1]) < 4 / np.sqrt(4096)


# Samplers without a gradient: more in test_exogenous.py and test_chance.py.
@pytest.mark.slow
def test_samplers_without_a_gradient_may_stand_where_no_parameter_goes():
    found = ig.gradient(qam, MI("symbol", "y"), scores=MIXTURE, num_samples=1024)
    assert np.linalg.norm(found.value["points"]) > 0.1

    def model():  # the discrete site depends on b, but reaches neither x nor y
        numpyro.sample("off", dist.Bernoulli(logits=numpyro.param("b", 0.5)))
        affine()

    assert value_of(model) == pytest.approx({"a": 0.5, "b": 0.0})


def test_unknown_class_and_registering():
    class Shifted(dist.Normal):
        """Known to nobody: a subclass may override its sampler."""

        def sample(self, key, sample_shape=()):
            return self.loc + 0.5 * jax.random.normal(key, self.shape(sample_shape))

        def log_prob(self, value):
            return dist.Normal(self.loc, 0.5).log_prob(value)

    model = with_gain(Shifted)
    refuses_gradient(ReparametrizationError, "'y'", "Shifted", "register", model=model)
    assert exogenous.register(Shifted) is Shifted
    found = ig.gradient(model, X_TO_Y, scores=MIXTURE, num_samples=8192)
    assert_found(found, {"a": 1.0 / (1.0 + 0.25)}, 0.05)


SENSORS = {
    "Clipped(base, low=limit)": (
        lambda base: dist.LeftCensoredDistribution(base, True),
        lambda base: ig.distributions.Clipped(base, low=0.5)),
    "Clipped(base, high=limit)": (
        lambda base: dist.RightCensoredDistribution(base, True),
        lambda base: ig.distributions.Clipped(base, high=0.5)),
    "Quantized(base, edges)": (
        lambda base: dist.IntervalCensoredDistribution(base, True, True),
        lambda base: ig.distributions.Quantized(base, [0.0, 0.5])),
}  # fmt: skip


@pytest.mark.parametrize("advice", SENSORS)
def test_censored_and_what_to_write_in_its_place(advice):
    censored, remedy = (
        with_gain(lambda mean, law=law: law(dist.Normal(mean, 1.0)))
        for law in SENSORS[advice]
    )
    refuses_gradient(ReparametrizationError, "'y'", f"ig.distributions.{advice}",
                     model=censored)  # fmt: skip
    check_only(remedy)

    # Unrefused, draws of one law would meet the density of another.
    fixed = channel(lambda x: SENSORS[advice][0](dist.Normal(x, 1.0)))
    value = functools.partial(ig.mutual_information, fixed, "x", "y")
    refuses(DensityError, "'y'", f"ig.distributions.{advice}", call=value)


@pytest.mark.parametrize("inside_scan", [False, True])
def test_sampler_that_numpyro_lacks(inside_scan):
    def model(marginal):
        a = numpyro.param("a", 1.0)

        def step(state, _):
            x = numpyro.sample("x", dist.Normal(state, 1.0))
            law = dist.GaussianCopula(marginal(a * x), correlation_matrix=jnp.eye(2))
            numpyro.sample("y", law)
            return x, None

        if inside_scan:
            scan(step, 0.0, None, length=2)
        else:
            step(0.0, None)

    bits, normals = (functools.partial(model, marginal) for marginal in (
        lambda mean: dist.Bernoulli(logits=mean), lambda mean: dist.Normal(mean, 1.0)
    ))  # fmt: skip
    refuses_gradient(ModelError, "'y'", "GaussianCopula", "icdf", model=bits)
    check_only(normals)


def test_improper_site_of_a_scan():
    def model(proper=False):
        a = numpyro.param("a", 1.0)
        flat = dist.ImproperUniform(dist.constraints.real, (), ())

        def step(state, _):
            x = numpyro.sample("x", dist.Normal(state, 1.0) if proper else flat)
            numpyro.sample("y", dist.Normal(a * x, 1.0))
            return x, None

        scan(step, 0.0, None, length=2)

    refuses_gradient(ModelError, "'x'", "ImproperUniform", model=model)
    check_only(functools.partial(model, proper=True))


# Sets without noise of their own.
def test_two_equal_outputs():
    def copy():
        multipath()
        numpyro.deterministic("copy", numpyro.param("c", 1.0) * 0.0)

    def twin():
        x = numpyro.sample("x", dist.Normal())
        y = numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1.0))
        numpyro.deterministic("z", 2.0 * y + 1.0)

    refuses_gradient(DegenerateError, "'y'", "'z'", model=twin, objective=MI("y", "z"))
    both = ig.gradient(twin, MI("x", ("y", "z")))  # z repeats y, which adds nothing
    assert float(both.value["a"]) == pytest.approx(0.5)
    copies = {"model": copy, "objective": MI("x", ("y", "copy"))}
    with pytest.warns(UserWarning, match="'copy' has no noise"):
        refuses_gradient(DegenerateError, "'copy'", **copies)
    assert value_of(twin)["a"] == pytest.approx(0.5)


def test_more_outputs_than_noise():
    def model():
        x = numpyro.sample("x", dist.Normal())
        w = numpyro.sample("w", dist.Normal())
        a = numpyro.param("a", jnp.array([1.0, 2.0, 3.0]))
        numpyro.deterministic("y", a * x + w)

    refuses_gradient(DegenerateError, "'y'", "3", "only 2", model=model,
                     objective=Entropy("y"))  # fmt: skip


@pytest.mark.slow
def test_thin_support():
    for law in (
        lambda m: dist.Dirichlet(jnp.exp(m + jnp.zeros(3))),
        lambda m: dist.ZeroSumNormal(jnp.exp(m), event_shape=(3,)),
        lambda m: dist.Wishart(4.0, scale_matrix=jnp.exp(m) * jnp.eye(2)),
    ):
        words = "'y'", "fewer dimensions"
        refuses_gradient(DensityError, *words, model=with_gain(law))
    sphere = with_gain(lambda m: dist.ProjectedNormal(m * jnp.ones(2)))
    refuses_gradient(DensityError, *words, model=sphere, objective=Entropy("y"))


# Jumps.
def one_hot(v):
    return jax.nn.one_hot(jnp.argmax(jnp.stack([v, 0.0 * v + 0.2])), 2)[0]


JUMPS = {
    "sign": jnp.sign,
    "ceil": jnp.ceil,
    "bool cast": lambda v: (v > 0.2).astype(jnp.float32),
    "argmax": one_hot,
    "straight through": lambda v: jax.lax.stop_gradient(jnp.round(v) - v) + v,
    "sum of signs": lambda v: v + 0.1 * jnp.sign(v - 0.3),
}


@pytest.mark.parametrize("name", JUMPS)
def test_hard_jumps(name):
    model, words = through(JUMPS[name]), ("allow_jumps=True", "smooth step")
    refuses(JumpError, *words, call=lambda: check_only(model))
    if name == "sum of signs":  # it rises, so it loses nothing
        assert float(ig.gradient(model, MI("x", "s")).value["a"]) == pytest.approx(0.8)
        return
    refuses(JumpError, call=lambda: check_only(model, MI("x", "s")))


def test_sign_has_no_pathwise_gradient():
    model = through(jnp.sign)
    settings = {"allow_jumps": True, "scores": MIXTURE, "num_samples": 1024}
    found = ig.gradient(model, X_TO_Y, **settings)
    assert truth_of_sign() > 0.15
    assert_far(found.value["a"], found.standard_error["a"], truth_of_sign())


def test_a_jump_off_the_path_is_fine():
    def model():  # the source is quantised; no parameter reaches the jump
        u = numpyro.sample("u", dist.Normal())
        x = numpyro.deterministic("x", jnp.round(u))
        numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 0.5))
        numpyro.deterministic("flag", jnp.sign(numpyro.param("b", 1.0) + u))

    check_only(model, MI("u", "y"))
    refuses_gradient(JumpError, "'flag'", model=model, objective=MI("u", "flag"))


CONTINUOUS = {
    "leaky relu": lambda v: jnp.where(v > 0, v, 0.1 * v),
    "clip": lambda v: jnp.clip(v, -1.0, 1.0),
    "abs": jnp.abs,
    "double where": lambda v: jnp.where(v > 0, v * jnp.log(jnp.where(v > 0, v, 1)), 0),
    "square root": lambda v: jnp.where(v > 0, jnp.sqrt(jnp.where(v > 0, v, 1.0)), 0.0),
    "cond": lambda v: jax.lax.cond(v > 0, lambda u: u, lambda u: 0.1 * u, v),
}
BROKEN = {
    "where": lambda v: jnp.where(v > 0, v + 0.1, v),
    "threshold": lambda v: jnp.where(v > 0.5, 1.0, -1.0),
    "cond": lambda v: jax.lax.cond(v > 0.3, lambda u: u, lambda u: -u, v),
    "heaviside": lambda v: jnp.where(jnp.abs(v) < 0.4, 0.0, v),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_switches_are_accepted(name):
    check_only(through(CONTINUOUS[name]))


@pytest.mark.parametrize("name", BROKEN)
def test_discontinuous_switches_are_refused(name):
    refuses(
        JumpError, "'y'", "condition", call=lambda: check_only(through(BROKEN[name]))
    )


def test_switches_inside_a_scan():
    def in_scan(fn: Callable[[Any], Any]) -> Callable[[], None]:
        """The function applied to the state at each of three steps."""

        def model():
            a = numpyro.param("a", 0.9)

            def step(state, _):
                return fn(numpyro.sample("v", dist.Normal(a * state, 0.5))), None

            last, _ = scan(step, numpyro.sample("x", dist.Normal()), None, length=3)
            numpyro.sample("y", dist.Normal(last, 0.5))

        return model

    check_only(in_scan(CONTINUOUS["leaky relu"]))
    refuses_gradient(JumpError, "'y'", model=in_scan(BROKEN["where"]))
    refuses_gradient(JumpError, "'sign'", model=in_scan(jnp.sign))


def test_a_switch_that_jumps_only_elsewhere():
    # Continuous at the initial value of b alone: parameters are wiggled.
    model = through(lambda v: jnp.where(v > 0, v + numpyro.param("b", 0.0), v))
    refuses_gradient(JumpError, "'y'", model=model)


def test_a_switch_that_jumps_for_other_arrays():
    # Both trace to one code; the verdict must not outlive the captured number.
    def model(gap):
        return through(lambda v: jnp.where(v > 0, v + gap, v))

    check_only(model(jnp.zeros(())))
    refuses_gradient(JumpError, "'y'", model=model(jnp.ones(())))
    check_only(model(jnp.zeros(())))


def test_a_derivative_that_is_not_finite():
    # The derivative of the root at 0 is infinite, and times the 0 of the maximum NaN.
    model = through(lambda v: jnp.sqrt(jnp.maximum(v, 0.0)))
    with pytest.raises(InfogradError, match="'(s|y)'.*not finite"):
        ig.gradient(model, X_TO_Y)


@pytest.mark.slow
def test_leaky_relu_has_the_right_gradient():
    model = with_gain(lambda m: dist.Normal(jnp.where(m > 0, m, 0.1 * m), 0.5))
    found = ig.gradient(model, X_TO_Y, scores=MIXTURE, num_samples=1024)

    def information(a):
        x = np.linspace(-8.5, 8.5, 2001)
        y = np.linspace(-5.0, 12.0, 1701)
        mean = np.where(a * x > 0, a * x, 0.1 * a * x)
        density = stats.norm.pdf(y[:, None], mean, 0.5) @ stats.norm.pdf(x)
        return special.entr(density * (x[1] - x[0])).sum() * (y[1] - y[0])

    assert_found(found, {"a": slope(information)}, 0.03)


# Densities that jump at a place that moves.
def located(base: dist.Distribution) -> Callable[[Any], dist.Distribution]:
    """The law of a location plus noise from `base`."""
    shift = transforms.AffineTransform
    return lambda m: dist.TransformedDistribution(base, shift(m, 1.0))


MOVING = {
    "Uniform": (lambda m: dist.Uniform(m - 0.5, m + 0.5), stats.uniform(-0.5).pdf),
    "Exponential": (located(dist.Exponential(1.0)), stats.expon.pdf),
    "HalfNormal": (located(dist.HalfNormal(1.0)), stats.halfnorm.pdf),
}
SMOOTH = {
    "Laplace": (lambda m: dist.Laplace(m, 1.0), stats.laplace.pdf),
    "Gamma(3)": (located(dist.Gamma(3.0, 1.0)), stats.gamma(3.0).pdf),
    # A boundary that stays: log Y = -a X + log E, Gumbel-like noise of location -a X.
    "rate": (lambda m: dist.Exponential(jnp.exp(m)), stats.gumbel_r.pdf),
}


def truth_of(density: Callable[[Any], Any]) -> float:
    return slope(lambda a: entropy_of_shifted(density, a), step=0.05)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        (n, m) if i == j else slow(n, m)
        for i, n in enumerate(MOVING)
        for j, m in enumerate(("mixture", "denoising", "auto"))
    ],
)
def test_moving_boundary(name, method):
    model = with_gain(MOVING[name][0])
    words = "'y'", "boundary", "noise_variance"
    refuses_gradient(BoundaryError, *words, model=model, scores=method)


@pytest.mark.parametrize("name", ["Uniform", "Exponential"])
def test_moving_boundary_is_missed_by_the_score_inside(name):
    law, density = MOVING[name]
    truth = truth_of(density)
    known = {"Uniform": 0.922, "Exponential": 0.589}[name]
    assert truth == pytest.approx(known, rel=0.02)
    # Inside the support grad log p(y|x) is one constant, hence also its mean given y.
    x, noise = jax.random.normal(jax.random.key(0), (2, 16384))
    inside = jnp.full(16384, 0.3)
    scores_inside = jax.vmap(jax.grad(lambda y, x: law(x).log_prob(y)))(x + inside, x)
    each = np.asarray(-x * scores_inside, np.float64)
    assert_far(each.mean(), each.std() / np.sqrt(16384), truth)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, MIXTURE) for name in SMOOTH), slow("Laplace", SMALL)],
    ids=[*SMOOTH, "Laplace by denoising"],
)
def test_smooth_or_vanishing_boundary_is_served(name, method):
    law, density = SMOOTH[name]
    found = ig.gradient(with_gain(law), X_TO_Y, scores=method, num_samples=4096)
    assert_found(found, {"a": truth_of(density)}, 0.03)


@pytest.mark.slow
def test_a_boundary_beyond_all_components_is_served():
    """With y = a x + Gamma(2) a rare low y has no component in a half, or in two."""
    law, density = located(dist.Gamma(2.0, 1.0)), stats.gamma(2.0).pdf
    truth, unexplained = {"a": truth_of(density)}, 0.0
    for seed in range(4):
        found = ig.gradient(with_gain(law), X_TO_Y, rng_key=jax.random.key(seed))
        assert found.diagnostics["method"] == "mixture" and not found.warnings
        unexplained += found.diagnostics["unexplained(y)"]
        error = found.standard_error
        assert_within(found.value, error, truth, max_standard_error=0.01)
    assert unexplained > 0


def test_known_densities_are_bounded_whatever_the_method():
    law, _ = MOVING["Exponential"]
    right = scores.Analytic({"y": lambda params, v: -v["y"]})
    refuses_gradient(BoundaryError, "'y'", model=with_gain(law), scores=right)


@pytest.mark.slow
def test_appended_noise_has_no_boundary():
    law, _ = MOVING["Uniform"]
    method = dataclasses.replace(SMALL, noise_variance=0.1)
    found = ig.gradient(with_gain(law), X_TO_Y, scores=method, num_samples=4096)

    def density(n):
        spread = np.sqrt(0.1)
        return special.ndtr((n + 0.5) / spread) - special.ndtr((n - 0.5) / spread)

    assert_found(found, {"a": truth_of(density)}, 0.03)


@pytest.mark.parametrize(
    ("model", "site", "words"),
    [
        (tanh_channel, "y", "linear-Gaussian"),
        (with_gain(lambda m: dist.Uniform(m, m + 1.0)), "y", "not Gaussian"),
        (qam, "symbol", "discrete"),
    ],
    ids=["tanh", "uniform", "symbols"],
)
def test_exact_scores_of_a_nonlinear_model(model, site, words):
    objective = MI("symbol", "y") if model is qam else X_TO_Y
    settings = {"model": model, "objective": objective, "scores": "exact"}
    refuses_gradient(ScoreError, f"'{site}'", words, **settings)


def test_appended_noise_has_a_site_and_a_variance():
    sm = ig.structural_model(affine)
    refuses(SiteError, "'z'", "it has: x, y", call=lambda: append_noise(sm, {"z": 1.0}))
    for bad in (-0.1, np.nan):
        refuses(ArgumentError, "'y'", call=lambda b=bad: append_noise(sm, {"y": b}))


def test_rules_that_go_backwards_alone_are_refused() -> None:
    """A custom_vjp has no forward derivative, by which slopes and ranks are checked."""
    rule = jax.custom_vjp(jnp.tanh)
    rule.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g / jnp.cosh(x) ** 2,))

    def model() -> None:
        x = numpyro.sample("x", dist.Normal(0, 1))
        v = numpyro.sample("v", dist.Normal(rule(numpyro.param("a", 1.0) * x), 1))
        numpyro.deterministic("y", rule(v))

    for find in (ig.gradient, ig.estimate):
        with pytest.raises(ModelError, match="custom_vjp"):
            find(model, ig.MI("x", "y"))


def test_noise_that_is_small_beside_many_known_numbers():
    """I(x; y) = 1/2 log(1 + 500 a^2); without noise it is infinite."""

    def model(noisy=True) -> None:
        x = numpyro.sample("x", dist.Normal(0, 1).expand([500]).to_event(1))
        mean = numpyro.param("a", 50.0) * jnp.sum(x)
        if noisy:
            numpyro.sample("y", dist.Normal(mean, 1.0))
        else:
            numpyro.deterministic("y", mean)

    found = ig.gradient(model, X_TO_Y)
    assert found.diagnostics["method"] == "exact"
    assert float(found.value["a"]) == pytest.approx(0.02, rel=1e-3)
    noiseless = functools.partial(model, noisy=False)
    refuses_gradient(DegenerateError, "'y'", "infinite", model=noiseless)


def test_noise_below_single_precision_needs_double() -> None:
    model = with_gain(lambda m: dist.Normal(m, 1e-8))

    def value() -> float:
        return ig.mutual_information(model, "x", "y").value

    refuses(DegenerateError, "'y'", "enable_x64", call=value)
    with jax.enable_x64(True):
        assert value() == pytest.approx(8 * np.log(10), rel=1e-9)
