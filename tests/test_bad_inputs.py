# SPDX-License-Identifier: Apache-2.0
"""Bad inputs to every public function: none hangs, and none returns a number.

A table by function. Each case raises exactly one class, and its message names what is
at fault (a site, a parameter, an argument) and says what to do about it. Functions that
take the same input must all refuse it in these words. The fast tests ask them in turn,
a row each; the slow tests ask all of them.
"""

from collections.abc import Callable
import dataclasses
import functools
import itertools
import operator
import pathlib
import re
from typing import Any

from links import amplifier, common_cause, lagged, link, pam, two_users
from models import affine, channel, pytree_param, tanh_channel, with_gain
import numpy as np
import pytest

from flax import nnx
import jax
import jax.numpy as jnp
import optax
from optax.projections import projection_box

import numpyro
from numpyro import handlers
from numpyro.contrib.control_flow import scan
import numpyro.distributions as dist
from numpyro.distributions import constraints

from helpers import REMEDY
import numpyro_infograd as ig
from numpyro_infograd import MI, Entropy, Expectation, exogenous, scores
from numpyro_infograd.distributions import ComplexNormal, Quantized
from numpyro_infograd.errors import (
    ArgumentError,
    CheckpointError,
    DegenerateError,
    DensityError,
    JumpError,
    ModelError,
    ParameterError,
    ScoreError,
    SiteError,
)
from numpyro_infograd.scores import (
    Analytic,
    Denoising,
    FlowMatching,
    Mixture,
    Posterior,
    Sliced,
)
from numpyro_infograd.values import DeBruijn, Exact, Nested, Path

XY = MI("x", "y")
KEY = jax.random.key(0)
QUIET = {"progress_bar": False}
HERE = pathlib.Path(__file__)


def power(v):
    return v["y"] ** 2


def loud(v):
    return jnp.where(v["y"] > 1.0, 1.0, 0.0)


COUNTER = itertools.count()
OUTSIDE = np.random.default_rng(0)
POWER = Expectation(power)
# Scores of which that of the joint set should be a dict.
BARE = {s: lambda p, v: -sum(v.values()) for s in ("x", "y", ("x", "y"))}


# Models.
def unit(mean):
    return dist.Normal(mean, 1.0)


def gained(gain):
    x = numpyro.sample("x", dist.Normal())
    numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * gain * x, 1.0))


def bounded(start, constraint=constraints.positive):
    """Y = s X + Z, with that start and constraint of s."""
    return channel(lambda x: unit(numpyro.param("s", start, constraint=constraint) * x))


fixed = channel(unit)


def of_scale(s):
    """Noise of scale s: a parameter that may not become zero."""
    return with_gain(lambda m: dist.Normal(jnp.tanh(m), numpyro.param("s", s)))


def hidden_site():
    x = numpyro.sample("x", dist.Normal())
    with handlers.block(hide=["z"]):
        z = numpyro.sample("z", dist.Normal())
    numpyro.sample("y", dist.Normal(tuned() * x + z, 1.0))


class Unscored(dist.Distribution):
    """A distribution that can be drawn, without a `log_prob`."""

    support = constraints.real

    def sample(self, key, sample_shape=()):
        return jax.random.normal(key, sample_shape)


def nested_scans():
    def inner(state, _):
        return numpyro.sample("z", dist.Normal(state, 1.0)), None

    def outer(state, _):
        return scan(inner, state, None, length=2)[0], None

    start = tuned() * numpyro.sample("x", dist.Normal())
    numpyro.sample("y", dist.Normal(scan(outer, start, None, length=2)[0], 1.0))


def site_in_a_vmap():
    def one(gain):
        return numpyro.sample("z", dist.Normal(tuned() * gain, 1.0))

    x = numpyro.sample("x", dist.Normal())
    numpyro.sample("y", dist.Normal(x + jax.vmap(one)(jnp.ones(3)).sum(), 1.0))


def loop_of_traced_length(x):
    gain, start = tuned(), (0.0, x)
    x = jax.lax.while_loop(lambda c: c[0] < x, lambda c: (c[0] + 1, gain * c[1]), start)
    return dist.Normal(x[1], 1.0)


def invalid_in_a_scan():
    def step(gain, _):
        x = numpyro.sample("x", dist.Normal())
        numpyro.sample("y", dist.Normal(gain * x, 1.0 + 0.3 * x))
        return gain, None

    scan(step, tuned(), None, length=4)


def parameter_in_a_scan():
    def step(state, _):
        made = dist.Normal(numpyro.param("a", 1.0) * state, 1.0)
        return numpyro.sample("y", made), None

    scan(step, numpyro.sample("x", dist.Normal()), None, length=2)


def beside(make: Callable[[], Any]) -> Callable[[], None]:
    """A model with something else in it."""

    def model():
        affine()
        make()

    return model


def awkward(num_steps, model):
    """A model with arguments that other functions have too."""
    gained(num_steps * model)


def tuned() -> Any:
    return numpyro.param("a", 0.5)


def guess(law: Callable[[Any], dist.Distribution], site="x", gain=tuned) -> Any:
    """A posterior of X given Y."""
    return lambda y: numpyro.sample(site, law(gain() * y))


# Short calls, which the test makes: of one function, or of several alike.
def grad(model=affine, objective=XY, **settings):
    """`gradient` and `maximize`, which start from the same parameters."""
    starts = {"init_params" if k == "params" else k: v for k, v in settings.items()}
    gradient = functools.partial(ig.gradient, model, objective, **settings)
    return gradient, ascend(model, objective, **starts)


complex_gains = with_gain(
    lambda m: ComplexNormal(m, 1.0), start=jnp.ones(2) + 0j, size=2
)


def sized(size):
    with_gain(unit, size=size)()


def every(model=affine, objective=XY, **settings):
    """`estimate` as well."""
    value = functools.partial(ig.estimate, model, objective, **settings)
    return (*grad(model, objective, **settings), value)


def thresholds():
    start = jnp.array([-1.0, 1.0])
    channel(lambda x: Quantized(unit(x), numpyro.param("edges", start)))()


def unnormalised():
    a = numpyro.param("a", 1.0)
    x = numpyro.sample("x", dist.Bernoulli(0.5))
    table = jnp.array([[0.7, 0.3], [0.2, 0.8]])
    numpyro.sample("y", dist.Categorical(probs=2 * a * table[x]))


def mean(fn):
    return every(objective=XY + Expectation(fn))


def value(model=affine, objective=XY, **settings):
    return lambda: ig.estimate(model, objective, **settings)


def path(**settings):
    return lambda: ig.estimate(affine, XY, method=Path(**settings))


def ascend(model=affine, objective=XY, **settings):
    quick = {"num_steps": 2, **QUIET, **settings}
    return lambda: ig.maximize(model, objective, **quick)


def minimize(model, objective):
    return lambda: ig.minimize(model, objective, **QUIET)


def region(bounds, **settings):
    return lambda: ig.rate_region(two_users, bounds, num_steps=2, **QUIET, **settings)


def check(model=amplifier, **settings):
    return lambda: ig.diagnostics.check_scores(model, XY, verbose=False, **settings)


def pretrain(over, model=amplifier, **settings):
    return lambda: ig.pretrain_scores(model, XY, over, **settings)


@functools.cache
def trained():
    """Scores for etas from a half to two that know no density."""
    return ig.pretrain_scores(amplifier, POWER, {"eta": (0.5, 2.0)}, num_points=16)


def analytic(functions):
    return lambda: ig.gradient(
        amplifier, XY, scores=Analytic(functions), num_samples=256
    )


def networks(make):
    return grad(amplifier, scores=Denoising(network=make))


def posterior(model):
    return grad(amplifier, scores=Posterior(model=model))


def begun(model=affine, optimizer=None):
    """An ascent that has a state, and the state."""
    ascent = ig.InfoMax(model, XY, optimizer)
    return ascent, ascent.init(KEY)


def traced(model=affine):
    return ig.structural_model(model)


def drawn(change):
    """Values from noise that was changed."""
    return lambda: traced().evaluate({}, change(traced().sample_noise(KEY, 4)))


@functools.cache
def one_rate():
    """The region of a link."""

    def clip(params):
        return {n: jnp.clip(p, -1.0, 1.0) for n, p in params.items()}

    return ig.rate_region(affine, {"r": XY}, num_weights=2, projection=clip, **QUIET)


def rectified():
    y = numpyro.sample("y", dist.Normal(numpyro.param("m", 0.0), 1))
    numpyro.deterministic("z", y + 0.1 * jnp.tanh(y))


RECORDED = 1.4 * np.random.default_rng(0).normal(size=1000)


def fit(observed, model=affine, **settings):
    return lambda: ig.calibrate(model, observed, **QUIET, **settings)


def recordings(change):
    return fit({"y": change(RECORDED)})


def fit_with(model=affine, **settings):
    return fit({"y": RECORDED}, model, **settings)


class Silent(scores.ScoreMethod):
    def score(self, state, density, params, noise, values, rng_key):
        return None


@dataclasses.dataclass
class Mutable(Silent):
    size: int = 1


class Guess:
    def value(self, sm, objective, params, rng_key):
        return 1.0


class Ours(dist.Normal):
    pass


def case(row: tuple) -> Any:
    """What the message must hold, which names the test; the calls; their error."""
    words, calls, *error = row
    return pytest.param(words, calls, *error or (ArgumentError,), id=words)


def projected(words: str, function: Callable[..., Any]) -> tuple:
    return f"projection.*{words}", ascend(projection=function)


def wrong_score(words: str, function: Callable[..., Any]) -> tuple:
    made = analytic({"y": function})
    return rf"score of \('y',\).*{words}", made, ScoreError


def invalid(make: Any, name: str, wanted: str, *values: Any) -> list[tuple]:
    """A row for each value of a setting of a class, or of functions as below."""
    words = f"{name} must be {wanted}.*got "
    if isinstance(make, type):
        make = functools.partial(functools.partial, make)
    return [(words + re.escape(repr(v)), make(**{name: v})) for v in values]


# What the message must hold, the calls, and the class unless it is ArgumentError.
CASES: list[tuple] = [
    # MI and Entropy
    ("inputs and outputs share 'x'.*disjoint", lambda: MI("x", "x")),
    ("'z'.*disjoint", lambda: MI(("x", "z"), ("y", "z"))),
    ("inputs and given share 'x'", lambda: MI("x", "y", given=["x"])),
    ("outputs and given share 'y'", lambda: MI("x", "y", given=["y"])),
    (r"at least one input.*inputs=\(\)", lambda: MI((), "y")),
    (r"one output site.*outputs=\(\)", lambda: MI("x", [])),
    ("outputs must be.*got 3", lambda: MI("x", ("y", 3))),
    (r"inputs.*got \('x',\)", lambda: MI((("x",),), "y")),
    ("at least one site", lambda: Entropy(())),
    ("sites and given share 'x'.*disjoint", lambda: Entropy("x", given=("x", "y"))),
    # Expectation
    ("needs a function.*'y'", lambda: Expectation("y")),
    (r"Expectation\(<lambda>\).*\(2,\).*Sum or average",
        mean(lambda v: jnp.stack([v["x"], v["y"]]))),
    ("real scalar.*got 'x'", mean(lambda v: "x")),
    ("real scalar.*complex", mean(lambda v: 1j * v["x"])),
    ("'q'.*sites x, y. Use these", mean(lambda v: v["q"])),
    ("'a'.*numpyro.deterministic", mean(lambda v: v["a"])),
    (r"Expectation\(<lambda>\).*jnp.where",
        mean(lambda v: v["x"] if v["x"] > 0 else 0.0)),
    ("functions of jax.numpy", mean(lambda v: np.sin(v["x"]))),
    (r"Expectation\(<lambda>\) is not finite.*Use other values",
        mean(lambda v: jnp.log(v["y"])), ModelError),
    (r"Expectation\(<lambda>\).*use a smooth step",
        grad(objective=XY + Expectation(lambda v: v["y"] > 0)), JumpError),
    (r"Expectation\(<lambda>\) failed.*'w'.*sites x, y", mean(lambda v, w: 0.0)),
    (r"Expectation\(<lambda>\) failed.*'x'.*sites x, y", mean(lambda v: v.x)),
    # The algebra of objectives; operators raise TypeError, as Python's do
    ("'Objective' and 'str'", lambda: XY + "y", TypeError),
    ("has no constant", lambda: 1.0 - XY),
    ("has no constant", lambda: XY + 2),
    ("'str'", lambda: sum([XY, "x"]), TypeError),
    ("'Objective' and 'Constraint'", lambda: XY + (POWER <= 1.0), TypeError),
    ("'Objective' and 'Objective'", lambda: XY * XY, TypeError),
    ("'Objective'", lambda: XY * np.ones(3), TypeError),
    ("'Objective'", lambda: np.ones(3) * XY, TypeError),
    ("'Objective' and 'int'", lambda: XY**2, TypeError),
    ("objective was multiplied by nan: give a number", lambda: np.nan * XY),
    ("objective was divided by zero: give a number", lambda: XY / 0),
    ("'Objective' and 'Objective'", lambda: XY / XY, TypeError),
    # Constraints
    (r"MI\('x', 'y'\) <= 1.*only expectations.*Add an information", lambda: XY <= 1.0),
    ("only expectations", lambda: 0 * POWER <= 1.0),
    ("bound of a constraint.*'1'", lambda: POWER <= "1"),
    ("bound.*finite number", lambda: POWER <= np.nan),
    ("bound.*finite number", lambda: POWER <= np.ones(2)),
    (r"bound.*Expectation\(power\)", lambda: POWER <= POWER),
    (r"Expectation\(power\) >= 0.*two constraints",
        lambda: 0.0 <= POWER <= 1.0, TypeError),
    ("bound.*finite number, got True", lambda: POWER <= True),
    (r"\(power\).*\(1.0\): write <= or >=", lambda: POWER < 1.0, TypeError),
    ("sense of a constraint must be '<=' or '>=', got '<'",
        lambda: ig.Constraint(POWER, "<", 1.0)),
    ("expectations must be built.*'E'", lambda: ig.Constraint("E", "<=", 1.0)),
    # Sites in place of an objective, and other arguments by position
    (r"ig.gradient\(model, ig.MI\('x', 'y'\)", lambda: ig.gradient(affine, "x", "y")),
    (r"ig.MI\('x', \('y',\)\)", lambda: ig.estimate(affine, "x", ("y",))),
    (r"Write ig.maximize\(model, ig.MI\(", lambda: ig.maximize(affine, "x", "y")),
    (r"Write ig.MI\('x', 'y'\)", lambda: ig.gradient(affine, "x")),
    ("Give all others by name", lambda: ig.gradient(affine, XY, {"a": 1.0})),
    ("by name", lambda: ig.mutual_information(affine, "x", "y", (), {})),
    # gradient: objective and model
    ("objective must be.*function MI", every(objective=MI)),
    ("MI, Entropy and Expectation.*got .'x', 'y'.", every(objective=("x", "y"))),
    ("'q'.*it has: x, y", every(objective=MI("x", "q")), SiteError),
    ("'a', which is a parameter", every(objective=MI("x", "a")), SiteError),
    (r"objective must be.*Expectation\(power\) <= 1", every(objective=POWER <= 1.0)),
    ("objective MI.*is empty", every(objective=XY - XY)),
    ("model must be.*got None. Pass the function", every(None)),
    ("'x'.*it has: none", every(lambda: None), SiteError),
    ("'y' occurs twice. Give",
        every(beside(lambda: numpyro.sample("y", dist.Normal()))), ModelError),
    ("'x' is the name of a parameter and of a site. Give",
        every(beside(lambda: numpyro.param("x", 1.0))), ModelError),
    ("named 3: names are strings",
        grad(beside(lambda: numpyro.sample(3, dist.Normal())))[0], ModelError),
    ("after site 'x', .*not valid.*Call the class",
        every(channel(lambda x: 3.0)), ModelError),
    (r"after site 'x', .*not valid.*dist.Normal\(0.0, 1.0\)",
        every(channel(lambda x: dist.Normal)), ModelError),
    (r"'y' of the objective is empty.*\(0,\). Leave it out",
        grad(with_gain(lambda m: dist.Normal(m * jnp.ones(0), 1.0))), SiteError),
    ("handlers.block hides.*is not hidden", every(hidden_site), ModelError),
    ("inside another.*Python loop", every(nested_scans), ModelError),
    ("'z' is a factor: .*a Delta with a log_density", every(with_gain(
        lambda m: dist.Normal(numpyro.sample("z", dist.Delta(m, log_density=-m)), 1))),
        ModelError),
    ("site 'z': Unscored has no log_prob.*Add this",
        every(beside(lambda: numpyro.sample("z", Unscored())),
              objective=MI("x", "z")), ModelError),
    ("give site 'y' different values.*numpy.random.*pass them as arguments",
        every(with_gain(lambda m: dist.Normal(m + OUTSIDE.normal(), 1.0))), ModelError),
    ("give site 'z' different shapes.*a counter", every(beside(lambda: numpyro.sample(
        "z", dist.Normal(jnp.zeros(next(COUNTER) + 1), 1).to_event(1)))), ModelError),
    ("give site 'z' different values.*a counter", every(beside(
        lambda: next(COUNTER) % 2 and numpyro.deterministic("z", jnp.ones(2)))),
        ModelError),
    ("give site 'y' different values", every(with_gain(
        lambda m: dist.Normal(m + jnp.asarray(OUTSIDE.normal(size=2)).sum(), 1.0))),
        ModelError),
    ("'z' is inside.*numpyro.plate", every(site_in_a_vmap), ModelError),
    ("a loop whose length.*jax.lax.scan",
        grad(channel(loop_of_traced_length)), ModelError),
    ("'a'.*before the scan", every(parameter_in_a_scan), ModelError),
    ("the model, after site 'x', needs the number.*if x > 0.*line.*jnp.where",
        every(channel(lambda x: dist.Normal(tuned() if x > 0 else x, 1.0))),
        ModelError),
    ("after site 'x'.*scale.*constraint in numpyro.param",
        every(with_gain(lambda m: dist.Normal(m, -1.0))), ModelError),
    (r"site 'y': the loc of Normal is NaN or outside .* at 4\d\.\d+% of draws.*Use a f",
        every(with_gain(lambda m: dist.Normal(jnp.log(m), 1.0))), ModelError),
    ("site 'y': the scale of Normal .* at 0.04% of draws",
        every(with_gain(lambda m: dist.Normal(m, 1.0 + 0.3 * m))), ModelError),
    ("site 'y': the scale of Normal .* at 0.04% of draws",
        every(with_gain(lambda m: dist.Normal(m, 1e-6 * (1.0 + 0.3 * m)))), ModelError),
    ("site 'y': the scale of Normal .* at 0.1.% of draws",
        every(invalid_in_a_scan), ModelError),
    ("site 'y': the rate of Poisson .* at 0.1.% of draws",
        grad(with_gain(lambda m: dist.Poisson(3.0 + m))), ModelError),
    ("site 'y': the scale of Laplace .* at 0.04% of draws", every(with_gain(
        lambda m: dist.Laplace(m, jnp.ones(3).at[1].add(0.3 * m)).to_event(1))),
        ModelError),
    ("site 'h': the rate of Exponential .* at 0.1.% of draws", every(with_gain(
        lambda m: dist.Normal(m, numpyro.sample("h", dist.Exponential(3.0 + m))))),
        ModelError),
    ("'y'.*is observed.*Pass the model without",
        every(handlers.condition(affine, {"y": 0.5})), SiteError),
    ("'x'.*substituted", every(handlers.substitute(affine, {"x": 0.5})), SiteError),
    ("'x'.*intervened", every(handlers.do(affine, {"x": 0.5})), SiteError),
    (r"'y' \(Quantized\).*edges do not increase",
        every(thresholds, params={"edges": jnp.array([1.0, -1.0])}), ModelError),
    (r"'y' \(CategoricalProbs\).*do not add up to 1", every(unnormalised), ModelError),
    ("site 'y': the probs of BinomialProbs is NaN or outside .*100.00%",
        every(with_gain(lambda m: dist.Binomial(2, 1.2 + 0.0 * m))), ModelError),
    ("'y'.*Quantized.*smooth step",
        grad(with_gain(lambda m: dist.Normal(jnp.floor(m), 1.0))), JumpError),
    ("'x', 'y'.*only 1.*Add the missing noise", every(lambda: numpyro.deterministic(
        "y", tuned() * numpyro.sample("x", dist.Normal()))), DegenerateError),
    ("no parameters: mark.*numpyro.param", grad(fixed)),
    ("allow_jumps must be True or False, got 'no'", grad(allow_jumps="no")),
    ("'s' has the constraint 'positive'.*constraints.positive",
        every(bounded(1.0, "positive")), ParameterError),
    ("'s' has the constraint.*_GreaterThan.*call those",
        every(bounded(1.0, constraints.greater_than)), ParameterError),
    ("'w' has no value. Give it one",
        every(beside(lambda: 2 * numpyro.param("w"))), ParameterError),
    ("'y': the scale of Normal", every(of_scale(1.0), params={"s": -1.0}), ModelError),
    # gradient: arguments of the model
    (r"model_args.*'2'.*\(value,\)", every(gained, model_args="2")),
    (r"model argument \[0\]\[0\].*Clean", every(gained, model_args=(np.nan,))),
    ("model_kwargs must be.*{'name': value}", every(gained, model_kwargs=["gain"])),
    ("'gain'.*not finite", every(gained, model_kwargs={"gain": np.inf})),
    ("model_kwargs must name arguments.*got 1. Write",
        every(gained, model_kwargs={1: 2.0})),
    ("model cannot be called.*'q'.*model_kwargs",
        every(gained, model_args=(1.0,), model_kwargs={"q": 1.0})),
    ("model cannot be called.*'gain'.*model_args", every(gained)),
    ("model cannot be called.*too many.*model_args", every(model_args=(1.0,))),
    # gradient: parameters
    ("params.*must be a dict.*Write", every(params=[1.0]), ParameterError),
    ("'b'.*it has: a.*Use the names", every(params={"b": 1.0}), ParameterError),
    ("'a'.*number.*'1'. Pass numbers", every(params={"a": "1"}), ParameterError),
    ("'a'.*got None .*Give jax arrays", every(params={"a": None}), ParameterError),
    ("'a' is real.*complex value.*Give", every(params={"a": 1j}), ParameterError),
    ("'a' is not finite.*Give", every(params={"a": np.nan}), ParameterError),
    ("'a' is not finite: inf. Give", every(params={"a": 1e300}), ParameterError),
    (r"'a' has shape \(2,\), complex, .*got \(2,\), real. Give complex",
        grad(complex_gains, params={"a": jnp.ones(2)}), ParameterError),
    (r"'a' has shape \(\) .*got \(2,\). Give",
        every(params={"a": np.ones(2)}), ParameterError),
    ("'net' has another structure.*shapes",
        every(pytree_param, params={"net": {"w": np.ones((2, 2))}}), ParameterError),
    ("'s' is outside.*Positive.*Give a value inside",
        every(bounded(1.0), params={"s": -1.0}), ParameterError),
    ("'s' is outside.*Positive", every(bounded(-1.0)), ParameterError),
    ("'s'.*number.*'one'",
        every(beside(lambda: numpyro.param("s", "one"))), ParameterError),
    ("'s' is not finite", every(bounded(np.nan)), ParameterError),
    (r"'a' has shape \(\) in the model, got \(1,\)",
        every(params={"a": [1.0]}), ParameterError),
    (r"'a' has another structure.*got \[1.0, \[2.0\]\] \(list\).*shapes: \(\)",
        every(params={"a": [1.0, [2.0]]}), ParameterError),
    ("'p' is outside its constraint UnitInterval.*: 1.5", every(beside(
        lambda: numpyro.sample("b", dist.Bernoulli(numpyro.param(
            "p", 1.5, constraint=constraints.unit_interval))))), ParameterError),
    ("model must be a NumPyro model.*Normal object", every(dist.Normal(0.0, 1.0))),
    # gradient: settings
    ("scores must be one of.*got 'mixure'.*mean 'mixture'", grad(scores="mixure")),
    ("scores must be.*object of ig.values, for the argument method",
     grad(scores=ig.values.MCMC())),
    ("has no argument 'method'. Did you mean 'scores'", grad(method="mcmc")),
    *invalid(grad, "num_samples", "an int", 4096.0, "1024"),
    *invalid(grad, "num_samples", "a power of two", 1000, 0, -256, 2**70, True),
    ("scores=Denoising.*call it", grad(scores=Denoising)),
    ("scores must be.*ScoreMethod", grad(scores=power)),
    ("scores='exact'.*'y'.*Use", grad(tanh_channel, scores="exact"), ScoreError),
    ("'y' is deterministic.*Use", grad(lagged, scores="mixture"), DensityError),
    ("Silent.score must return.*Scores", grad(amplifier, scores=Silent()), ScoreError),
    (r"scores=Mutable\(...\) must have a hash.*frozen=True",
        grad(amplifier, scores=Mutable())),
    ("num_samples.*at least 256", grad(tanh_channel, num_samples=128)[0]),
    (r"rng_key.*got 0. Use jax.random.key\(0\)", every(rng_key=0)),
    ("rng_key.*Use", every(rng_key=jnp.zeros(2))),
    ("rng_key.*uint32", every(rng_key=np.zeros(3, np.uint32))),
    ("rng_key must be one", every(rng_key=jax.random.split(KEY))),
    # estimate
    ("unit must be 'nats' or 'bits'.*'bit'", value(unit="bit")),
    ("method must be one of.*got 'nestd'. Did you mean 'nested'",
     value(method="nestd")),
    ("method must be.*object of ig.scores, for the argument scores",
     value(method=ig.scores.MCMC())),
    ("method must be.*'denoising'", value(method="denoising")),
    ("method=Nested.*call it", value(method=Nested)),
    ("method='exact'.*'y'.*Use method='nested'", value(tanh_channel, method="exact")),
    ("'y' is deterministic.*Use method='fisher'",
        value(lagged, method="nested"), DensityError),
    ("num_samples.*at least 1024",
        value(tanh_channel, method="fisher", num_samples=256)),
    ("'a'.*it has: none", value(fixed, params={"a": 1.0}), ParameterError),
    ("Guess.value must return a values.Estimate, got 1.0", value(method=Guess())),
    (r"method=Guess\(...\).*leave num_samples out",
        value(method=Guess(), num_samples=1024)),
    ("'n', 'x', 'y'.*leave out",
        lambda: ig.estimate(lagged, Entropy(("x", "n", "y"))), DegenerateError),
    # values: Nested, DeBruijn, Exact, Path
    *invalid(Nested, "num_components", "a power of two", 1000),
    *invalid(Nested, "num_samples", "a power of two of at least 256", 100),
    *invalid(DeBruijn, "hidden", r"a tuple.*such as \(64, 64\)", (), (64, -1)),
    *invalid(DeBruijn, "num_networks", "even", 3),
    *invalid(DeBruijn, "num_networks", "a positive int", "4", 2.0),
    *invalid(DeBruijn, "learning_rate", "a finite number", -1, np.nan, True),
    *invalid(DeBruijn, "num_steps", "a positive int", 0.5),
    *invalid(DeBruijn, "num_samples", "a power of two of at least 1024", 512),
    *invalid(Exact, "num_samples", "a.*power of two", 1000, None),
    *invalid(Path, "num_nodes", "an int of at least 4", 3, 12.0, np.nan),
    *invalid(Path, "reference", "a dict", 0.0),
    *invalid(Path, "reference_value", "a finite number", "0", np.nan),
    *invalid(path, "way", "a function", 3.0, "line"),
    ("max_components.*below num_components", lambda: Nested(max_components=512)),
    ("batch_size is 2: too few", lambda: DeBruijn(batch_size=2)),
    ("both way and reference.*leave one out",
        lambda: Path(way=lambda s: {}, reference={})),
    ("'q'.*it has: a", path(reference={"q": 0.0}), ParameterError),
    ("'s' is outside.*inside",
        value(bounded(1.0), method=Path(reference={"s": -1.0})), ParameterError),
    (r"no parameter.*zero.*no default start.*values.Path\(reference=",
        value(bounded(1.0), method="path")),
    ("method='path' needs a model with parameters.*numpyro.param",
        value(fixed, method="path")),
    ("way must return a dict", path(way=lambda s: s)),
    (r"way\(1\).*'a'.*Let the way end", path(way=lambda s: {"a": 2 * s})),
    ("way failed.*'t'.*position from 0 to 1", path(way=lambda s, t: {"a": s})),
    (
        "way needs the number.*jnp.where",
        path(way=lambda s: {"a": s if s > 0.5 else s * s}),
    ),
    ("'a' must be a number.*'one'", path(way=lambda s: {"a": "one"}), ParameterError),
    ("scores must be one of.*'typo'", path(scores="typo")),
    ("not finite", value(of_scale(1.0), method="path"), ModelError),
    ("'s' is outside",
        value(bounded(1.0), method=Path(way=lambda t: {"s": 1 - 8 * t + 8 * t**2})),
        ParameterError),
    # mutual_information and null_check
    ("'z'.*it has: x, y", lambda: ig.mutual_information(affine, "x", "z"), SiteError),
    ("unit.*'Bits'", lambda: ig.mutual_information(affine, "x", "y", unit="Bits")),
    ("'q'.*it has: x, y", lambda: ig.null_check(affine, "q", "y"), SiteError),
    ("model must be", lambda: ig.null_check(None, "x", "y")),
    ("inputs and given both.*'u'",
        lambda: ig.null_check(common_cause, "x", "y", given="u")),
    (r"names of sites, got MI\('x', 'y'\). Pass the sites, or write ig.estimate\(model",
        lambda: ig.mutual_information(affine, XY)),
    ("names of sites, got MI.*Pass the sites", lambda: ig.null_check(affine, XY)),
    ("given must be a site name.*got 4. Arguments of the model.*model_args",
        lambda: ig.mutual_information(affine, "x", "y", 4)),
    ("method must be.*'knn'", lambda: ig.null_check(affine, "x", "y", method="knn")),
    ("method must be.*array",
        lambda: ig.null_check(affine, "x", "y", method=np.ones(2))),
    # maximize: numbers and functions
    *invalid(ascend, "num_steps", "a positive int", 0, "10", True),
    *invalid(ascend, "num_restarts", "a positive int", -1, True, None),
    ("optimizer must be an optax.*'adam'", ascend(optimizer="adam")),
    ("optimizer must be.*function adam", ascend(optimizer=optax.adam)),
    ("optimizer must be.*numpyro.optim.Adam.*Call",
        ascend(optimizer=numpyro.optim.Adam)),
    ("optimizer must be.*Call", ascend(optimizer=optax.GradientTransformation)),
    ("projection must be a function", ascend(projection=1.0)),
    projected("None. Return all", lambda p: None),
    projected("Return all of them", lambda p: p["a"]),
    ("projection must return.*Return all",
        ascend(link, projection=lambda p: {"a": p["a"]})),
    projected(r"\(2,\)", lambda p: {"a": jnp.ones(2)}),
    projected("looked up 'gain'.*Use these", lambda p: {"gain": p["gain"]}),
    projected("failed.*radius", lambda p, radius: p),
    projected("failed.*apply a function f", lambda p: projection_box(p, -1.0, 1.0)),
    projected("failed.*'a'.*parameters a", lambda p: p.a),
    projected("must return floats.*complex64", lambda p: {"a": 1j * p["a"]}),
    projected("must return floats.*bool", lambda p: {"a": p["a"] > 0}),
    projected("must return floats.*int32", lambda p: {"a": p["a"].astype(int)}),
    projected("must return a dict", lambda p: [p["a"]]),
    projected("'a'.*nan.*not finite. Guard", lambda p: {"a": jnp.nan * p["a"]}),
    projected("needs the number.*jnp.where",
        lambda p: p if p["a"] > 0 else {"a": 0.0}),
    projected("jnp.tanh", lambda p: {"a": np.tanh(p["a"])}),
    projected("all of them", lambda p: {}),
    ("designs is an array.*no arguments. Name one of its parameters",
        lambda: ig.design(affine, jnp.arange(3.0), "x", "y")),
    ("projection takes parameter 's'.*outside its constraint Positive.*enforce",
        ascend(bounded(1.0), projection=lambda p: {"s": -p["s"] ** 2})),
    ("projection takes parameter 's'.*remove constraint=",
        fit_with(bounded(1.0), projection=lambda p: p)),
    ("mesh must be.*Use jax.make_mesh", ascend(mesh=2)),
    ("site 'y': Normal has a complex mean.*ComplexNormal",
        every(with_gain(lambda m: dist.Normal(1j * m, 1))), ModelError),
    (r"'a' has shape \(2,\), complex, .*got \(4,\). Give complex",
        grad(complex_gains, params={"a": jnp.ones(4) + 0j}), ParameterError),
    (r"'a': \(1,\)}. Return all of them, in these shapes: {'a': \(2,\)}",
        ascend(complex_gains, projection=lambda p: {"a": p["a"][:1]})),
    ("number of a traced value.*for a shape.*sizes and switches as Python numbers",
        every(sized, model_args=(jnp.array(2),)), ModelError),
    # maximize: constraints
    (r"subject_to.*Expectation\(f\) <= 1.0, got True",
        ascend(subject_to=[POWER <= 1.0, True])),
    ("subject_to.*got False", ascend(subject_to=POWER == 1.0)),
    (r"subject_to.*got Expectation\(power\)", ascend(subject_to=POWER)),
    ("subject_to must hold comparisons", ascend(subject_to=[(POWER, 1.0)])),
    ("subject_to.*'power < 1'", ascend(subject_to="power < 1")),
    ("'q'.*sites x, y. Use these",
        ascend(subject_to=Expectation(lambda v: v["q"]) <= 1.0)),
    (r"Expectation\(loud\).*use a smooth step",
        ascend(subject_to=Expectation(loud) <= 0.1), JumpError),
    # maximize: annealing, starts and checkpoints
    ("optimizer's update.*optax.lbfgs.*optax.adam", ascend(optimizer=optax.lbfgs())),
    *invalid(ascend, "annealing", "a positive number", 0.0, "warm", np.nan),
    ("annealing must be.*-1.0", ascend(annealing={"y": -1.0})),
    ("annealing names 'q'.*reaches: 'y'", ascend(annealing={"q": 1.0})),
    ("annealing names 'x'.*reaches: 'y'", ascend(annealing={"x": 1.0})),
    ("init_params.*must be a dict", ascend(init_params=[1.0]), ParameterError),
    ("'q'.*it has: a", ascend(init_params={"q": 1.0}), ParameterError),
    ("'s' is outside.*inside",
        ascend(bounded(1.0), init_params={"s": -1.0}), ParameterError),
    ("'s' starts on the boundary.*projection",
        ascend(bounded(0.0, constraints.nonnegative)), ParameterError),
    (r"'s'.*Sphere\(\).*Pass a projection",
        ascend(bounded(jnp.array([0.6, 0.8]), constraints.sphere))),
    ("checkpoint must be the path", ascend(checkpoint=3)),
    ("checkpoint must be the path.*null", ascend(checkpoint="a\0b")),
    ("checkpoint must be the path.*too long", ascend(checkpoint="a" * 5000)),
    (f"{HERE.name} is a file. Name a folder", ascend(checkpoint=HERE), CheckpointError),
    (f"{HERE.parent.name} holds other things.*Name an empty folder",
        ascend(checkpoint=HERE.parent), CheckpointError),
    ("checkpoint .*run cannot be opened",
        ascend(checkpoint=HERE / "run"), CheckpointError),
    # maximize_mi, minimize and InfoMax
    ("'z'.*it has: x, y", lambda: ig.maximize_mi(affine, "x", "z", **QUIET), SiteError),
    (r"names of sites, got MI.*write ig.maximize\(model",
        lambda: ig.maximize_mi(affine, inputs=XY, outputs="y")),
    ("no parameters: mark", lambda: ig.maximize_mi(fixed, "x", "y", **QUIET)),
    ("objective must be built", minimize(affine, 3.0)),
    ("model must be.*'affine'", minimize("affine", XY)),
    ("num_samples.*got 100", lambda: ig.InfoMax(affine, XY, num_samples=100)),
    ("rng_key.*Use", lambda: ig.InfoMax(affine, XY).init(0)),
    (r"model argument \[0\]\[0\].*Clean",
        lambda: ig.InfoMax(gained, XY).init(KEY, np.nan)),
    ("rng_key.*got 10", lambda: ig.InfoMax(affine, XY).run(10, None)),
    ("no state yet: call init first",
        lambda: ig.InfoMax(affine, XY).update(begun()[1])),
    ("no state yet: call init first",
        lambda: ig.InfoMax(affine, XY).get_params(begun()[1])),
    ("state must be an InfoMaxState.*Take",
        lambda: begun()[0].update(begun()[0].update(begun()[1]))),
    ("state is of an InfoMax with another optimizer. Take",
        lambda: begun()[0].update(begun(optimizer=optax.sgd(0.1))[1])),
    ("state must be an InfoMaxState.*None", lambda: begun()[0].get_params(None)),
    ("state must be.*of this model", lambda: begun()[0].update(begun(bounded(1.0))[1])),
    # rate_region
    ("bounds must be a dict.*such as", region({})),
    ("bounds must be a dict", region([MI("x1", "y")])),
    (r"bound of \('r',\).*built from MI", region({"r": 1.0})),
    (r"bound of \('r',\).*Expectation", region({"r": POWER})),
    (r"bound of \('r',\).*from MI", region({"r": MI("x1", "y") - 0.1 * POWER})),
    (r"bound of \('r',\).*Entropy\('y'\). Use an information",
        region({"r": Entropy("y")})),
    (r"bound of \('r',\).*-MI.*positive", region({"r": -MI("x1", "y")})),
    ("bounds must be a name of a rate.*got 1", region({1: MI("x1", "y")})),
    ("num_weights=21 makes 3108105 directions of 9.*Lower",
        region({f"r{i}": MI("x1", "y") for i in range(9)})),
    ("'R2' in the sum.*no bound of 'R2' alone. Is it 'r2'.*add {'R2'",
        region(dict.fromkeys(["r1", "r2", ("r1", "R2")], MI("x1", "y")))),
    ("rate_region has no argument 'checkpoint'. Use one of model, bounds",
        region({"r": MI("x1", "y")}, checkpoint="run")),
    (r"rates must be finite numbers in 1 columns \(r\), got 'r'",
        lambda: one_rate().contains("r")),
    ("rates must be finite numbers.*'a'", lambda: one_rate().contains({"r": "a"})),
    ("slack must be a finite number.*nan",
        lambda: one_rate().contains([0.1], slack=np.nan)),
    ("bounds.*empty set.*Name one", region({(): MI("x1", "y")})),
    ("bounds.*'r', 's'.*twice. Leave",
        region(dict.fromkeys([("s", "r"), ("r", "s")], MI("x1", "y")))),
    ("'q'.*it has: x1, x2, y", region({"r": MI("q", "y")}), SiteError),
    ("num_weights.*at least 2.*1", region({"r": MI("x1", "y")}, num_weights=1)),
    ("rng_key.*Use", region({"r": MI("x1", "y")}, rng_key=0)),
    ("'q'.*it has: a, b",
        region({"r": MI("x1", "y")}, init_params={"q": 1.0}), ParameterError),
    ("no parameters: mark", lambda: ig.rate_region(fixed, {"r": XY}, **QUIET)),
    # calibrate
    ("observed must be a dict", fit(RECORDED)),
    ("observed must be a dict", fit({})),
    ("observed .*'z'.*x, y", fit({"y": RECORDED, "z": RECORDED})),
    ("observed has 100 .*at least 256", recordings(lambda y: y[:100])),
    (r"'y' have shape \(\).*one row", fit({"y": 1.0})),
    ("1000 of 1000 .*'y' .*infinite", recordings(lambda y: 1e300 * np.sign(y))),
    ("recordings of 'y' are so far from zero.*Subtract", recordings(lambda y: y + 1e6)),
    (r"'y' have shape \(1000, 1\)", recordings(lambda y: y[:, None])),
    ("'y' must be numbers", fit({"y": ["a"] * 1000})),
    ("'y' must be numbers", recordings(lambda y: y > 0)),
    ("'y' are complex, but the site is real", recordings(lambda y: 1j * y)),
    ("1 of 1000 .*'y' .*Drop these",
        recordings(lambda y: np.where(np.arange(1000) == 7, np.inf, y))),
    ("200 recordings without gaps, but at least 256",
        recordings(lambda y: np.where(np.arange(1000) >= 200, np.nan, y))),
    ("files of different lengths.*one order",
        fit({"x": np.split(RECORDED, [400]), "y": np.split(RECORDED, [500])})),
    ("recordings of 'y' are constant.*Leave", recordings(np.ones_like)),
    ("'y' repeat.*add uniform noise", recordings(np.round)),
    ("'x': 900.*same recording", fit({"y": RECORDED, "x": RECORDED[:900]})),
    ("'y' are outside the support.*LogNormal",
        fit_with(lambda: numpyro.sample("y", dist.LogNormal(tuned(), 1.0)))),
    ("'y' are outside the support.*Poisson",
        fit_with(lambda: numpyro.sample("y", dist.Poisson(jnp.exp(tuned()))))),
    ("'symbol' is discrete.*likelihood",
        fit({"symbol": RECORDED}, pam, divergence="kl")),
    ("'symbol' are not whole.*Round", fit({"symbol": RECORDED}, pam)),
    ("'symbol' are outside.*0 to 3: the recordings go from 1 to 4",
        fit({"symbol": 1 + np.arange(1000) % 4}, pam)),
    ("noise_levels has no effect",
        fit_with(divergence="likelihood", noise_levels=(0.0,))),
    ("robust=True needs divergence", fit_with(divergence="likelihood", robust=True)),
    ("'z' is deterministic.*no likelihood",
        fit({"z": RECORDED}, rectified, divergence="likelihood"), DensityError),
    ("boundary of site 'y'.*no derivative",
        fit_with(lambda: numpyro.sample("y", dist.Uniform(-9.0, tuned() + 9.0)),
                 divergence="likelihood"), DensityError),
    ("robust must be", fit_with(robust=1)),
    ("num_restarts must be", fit_with(num_restarts=0)),
    ("'y' is observed in the model. Leave out",
        fit_with(handlers.condition(affine, {"y": 1.0}))),
    ("no parameter reaches 'x': mark", fit({"x": RECORDED})),
    ("divergence must be 'fisher', 'kl',.*'KL'", fit_with(divergence="KL")),
    ("noise_levels must be a tuple", fit_with(noise_levels=0.1)),
    ("noise_levels must be rising", fit_with(noise_levels=(0.2, 0.1))),
    ("num_steps must be a positive int.*1.5", fit_with(num_steps=1.5)),
    ("num_draws.*at least 20", fit_with(num_draws=19)),
    ("num_samples.*got 1000", fit_with(num_samples=1000)),
    ("hidden must be a tuple", fit_with(hidden=())),
    ("hidden is for the built-in.*leave it out",
        fit_with(hidden=(8,), network=nnx.Linear)),
    ("projection must be a function", fit_with(projection=1.0)),
    ("'s' is outside.*inside",
        fit_with(bounded(1.0), init_params={"s": -1.0}), ParameterError),
    ("without gaps", recordings(lambda y: np.ma.masked_where(y > -1.5, y))),
    ("recordings of 'y' are not an array", fit({"y": [[1.0, 2.0], [3.0]]})),
    ("'y'.*type object", recordings(lambda y: y.astype(object))),
    (r"'y' have shape \(1000, 200\), expected .num_recordings,.",
        fit({"y": np.zeros((1000, 200))})),
    ("'gain' got a value, but the model has no such parameter",
        fit_with(init_params={"gain": 1.0}), ParameterError),
    # pretrain_scores
    ("over lacks parameter 'eta'.*Add bounds", pretrain({})),
    ("over must be a dict", pretrain((0.5, 2.0))),
    ("over names 'gain'.*it has: eta", pretrain({"gain": (0, 1)})),
    (r"over\['eta'\] must have low < high", pretrain({"eta": (2, 1)})),
    (r"over\['eta'\].*finite", pretrain({"eta": (0, np.inf)})),
    (r"over\['eta'\] must be \(low, high\), numbers.*'01'", pretrain({"eta": "01"})),
    ("no parameters: mark", pretrain({}, fixed)),
    ("over is empty.*Use sites", lambda: ig.pretrain_scores(affine, Entropy("x"), {})),
    (r"over\['eta'\].*distribution", pretrain({"eta": dist.Uniform})),
    (r"over\['s'\] leaves.*Give a range inside",
        pretrain({"s": (-1.0, 1.0)}, bounded(1.0))),
    ("num_points.*power of two", pretrain({"eta": (0, 1)}, num_points=100)),
    ("pretrain_scores.*learns scores.*'mixture'. Use 'denoising'",
        pretrain({"eta": (0, 1)}, scores="mixture")),
    (r"not trained for \('y',\).*Call pretrain_scores",
        lambda: ig.gradient(amplifier, XY, scores=trained()), ScoreError),
    ("'eta' is 4.0, outside.*wider range",
        lambda: ig.gradient(amplifier, XY, params={"eta": 4.0}, scores=trained())),
    ("scores were trained on another model.*Call pretrain_scores",
        lambda: ig.gradient(tanh_channel, XY, scores=trained()), ScoreError),
    (r"over\['eta'\].*shape", pretrain({"eta": dist.Normal(jnp.zeros(3), 1)})),
    ("leaves the parameter's constraint",
        pretrain({"s": dist.Normal(0, 1)}, bounded(1.0))),
    # Score methods
    *invalid(Denoising, "hidden", "a tuple", (), (-8,), (True,)),
    *invalid(Denoising, "num_networks", "2, 4 or 8", 3, 9),
    *invalid(Denoising, "num_networks", "a positive int", 4.0),
    *invalid(Denoising, "refit", "a positive number.*'auto'", True, "never", 0),
    *invalid(Denoising, "noise_variance", r"a finite number in \(0, inf\)",
        True, "a", np.inf, -0.1, 0.0),
    *invalid(Denoising, "noise_levels", "a tuple of numbers", ("0.1", "0.2"), 0.1),
    *invalid(Denoising, "noise_levels", "two or more", (0.1,), (0.2, 0.1)),
    *invalid(Denoising, "num_steps", "a positive int", 0),
    *invalid(Denoising, "pool_size", "a power of two", 1000),
    *invalid(Denoising, "warm_pool_size", "a power of two", 128),
    *invalid(Denoising, "num_samples", "a power of two", 100, 1000),
    *invalid(Denoising, "learning_rate", "a finite number", "fast"),
    *invalid(Sliced, "hidden", "a tuple", 64),
    *invalid(Sliced, "refit", "a positive number", "often"),
    *invalid(FlowMatching, "times", "two or more.*falling",
        (0.8, 0.9), (1.0, 0.9), (0.9, 0.1)),
    *invalid(FlowMatching, "times", "a tuple", 0.9),
    *invalid(Mixture, "num_components", "a power of two", 0),
    *invalid(Mixture, "block_size", "a power of two", 100),
    *invalid(Posterior, "num_samples", "a power of two", -3),
    *invalid(Posterior, "num_components", "a positive int", 2.5, 0),
    *invalid(Posterior, "learning_rate", "a finite number", np.nan),
    *invalid(scores.MCMC, "num_samples", "a power of two", 1000),
    *invalid(scores.MCMC, "max_steps", "a power of two", 8),
    *invalid(scores.MCMC, "pilot_size", "a power of two", 100),
    *invalid(ig.values.MCMC, "tolerance", r"a finite number in \(0, 1\)", -0.1, np.nan),
    *(("batch_size is 2: too few", functools.partial(learned, batch_size=2))
        for learned in (Denoising, Sliced, Posterior)),
    ("network='mlp' is not a function. Pass make", lambda: Denoising(network="mlp")),
    ("network is a Linear.*Pass make",
        lambda: Denoising(network=nnx.Linear(1, 2, rngs=nnx.Rngs(0)))),
    ("network=.*failed.*Pass make", networks(lambda inputs, rngs: None)),
    ("network=.*failed.*'width.*Pass make", networks(lambda inputs, rngs: {}["width"])),
    ("network=.*state.*Use layers",
        networks(lambda inputs, rngs: nnx.Dropout(0.5, rngs=rngs))),
    ("num_samples must be a power of two.*got 1000",
        lambda: Analytic({"y": lambda p, v: v["y"]}, num_samples=1000)),
    ("unit='bits' is for information",
        lambda: ig.estimate(affine, Expectation(lambda v: v["x"]), unit="bits")),
    ("model must be a NumPyro model", lambda: Posterior(model="guide")),
    ("prepare sets symbols.*3: leave", lambda: Posterior(symbols=3)),
    ("makes 'x' discrete, but in your.*continuous. Give",
        posterior(guess(lambda m: dist.Bernoulli(logits=m))), ScoreError),
    ("'x' a distribution whose support.*Give it a",
        posterior(guess(lambda m: dist.LogNormal(m, 1.0))), ScoreError),
    (r"'x' in shape \(2,\), but in your.*\(\). Give",
        posterior(guess(lambda m: dist.Normal(m * jnp.ones(2), 1.0))), ScoreError),
    ("posterior model needs the number.*jnp.where",
        posterior(guess(lambda m: dist.Normal(m if m > 0 else 0.0, 1.0))), ScoreError),
    (r"\['y'\].*'z'.*Name its arguments",
        posterior(lambda z: guess(unit)(z)), ScoreError),
    (r"samples \['z'\], expected \['x'\]",
        posterior(guess(unit, site="z")), ScoreError),
    ("posterior model has no parameters to train.*numpyro.param",
        posterior(guess(unit, gain=lambda: 1.0)), ScoreError),
    (r"\['x'\]. Use scores='denoising'",
        grad(common_cause, scores="posterior"), ScoreError),
    ("Analytic takes a dict.*such as", lambda: Analytic(power)),
    (r"Analytic has no score for \('y',\).*Add an entry",
        analytic({("y", "q"): lambda p, v: -v["y"]}), ScoreError),
    ("key of Analytic must be a site name.*3", analytic({3: power})),
    ("Analytic needs a function for 'y', got 3. Write", analytic({"y": 3})),
    wrong_score(r"has shape \(3,\)", lambda p, v: jnp.ones(3)),
    wrong_score(r"lacks \['y'\]", lambda p, v: {}),
    wrong_score("failed.*parameters eta.*sites y", lambda v: 0.0),
    wrong_score("looked up 'q'.*sites y", lambda p, v: v["q"]),
    wrong_score("needs the number.*jnp.where",
        lambda p, v: 1.0 if v["y"] > 0 else -v["y"]),
    wrong_score("needs the number.*jax.numpy", lambda p, v: -np.sin(v["y"])),
    wrong_score("must be real numbers, got None", lambda p, v: None),
    wrong_score("must be real numbers.*bool", lambda p, v: v["y"] > 0),
    wrong_score("must be real numbers.*complex", lambda p, v: 1j * v["y"]),
    ("network=.*nnx.Module",
        grad(amplifier, scores=Denoising(network=lambda inputs: None))),
    ("network=.*shape",
        networks((lambda rng_key, size: jnp.ones((size, 2)), lambda w, x: jnp.sum(x)))),
    ("Name its arguments after these sites", posterior(lambda obs: None), ScoreError),
    ("entropy of", grad(amplifier, Entropy("y"), scores="posterior"), ScoreError),
    ("no score for.*'x'",
        grad(link, scores=Analytic({"y": lambda p, v: -v["y"]})), ScoreError),
    ("dict", grad(common_cause, scores=Analytic(BARE)), ScoreError),
    # check_scores, to_inference_data and figures
    ("no parameters: mark", check(fixed)),
    ("scores must be one of.*'typo'", check(scores="typo")),
    ("num_samples.*got 1000", check(num_samples=1000)),
    ("rng_key.*Use", check(rng_key=1)),
    ("'q'.*it has: eta", check(params={"q": 1.0}), ParameterError),
    ("no chain checked these scores", lambda: check(affine)().plot()),
    ("neither steps nor draws",
        lambda: ig.Result({}, None, {}, "interrupted").to_inference_data()),
    # structural_model and its methods
    ("model must be.*'model'. Pass", lambda: ig.structural_model("model")),
    ("takes no arguments", lambda: ig.structural_model(traced(), 1.0)),
    ("'gain'.*not finite. Clean", lambda: ig.structural_model(gained, gain=np.nan)),
    ("num_samples.*got 0", lambda: traced().sample(KEY, 0)),
    ("rng_key.*got 4", lambda: traced().sample(4, KEY)),
    ("'q'.*it has: a", lambda: traced().sample(KEY, 4, {"q": 1.0}), ParameterError),
    ("num_samples must be a positive int, got 1.5", lambda: traced().sample(KEY, 1.5)),
    ("'s' is outside",
        lambda: traced(bounded(1.0)).sample(KEY, 4, {"s": -1.0}), ParameterError),
    ("num_samples must be a positive int, got '4'",
        lambda: traced().sample_noise(KEY, "4")),
    ("num_samples.*1000. Use 1024", lambda: traced().sample_noise(KEY, 1000, qmc=True)),
    ("'a'.*number", lambda: traced().evaluate({"a": "1"}, {}), ParameterError),
    ("noise must be a dict.*x, y.*None. Draw it with sample_noise",
        drawn(lambda noise: None)),
    ("noise must be a dict.*x, y", drawn(lambda noise: {"x": noise["x"]})),
    (r"noise of 'y' must be.*\(4, 1\). Draw",
        drawn(lambda noise: noise | {"y": noise["y"][:, None]})),
    ("noise of 'y' must be a normal array",
        drawn(lambda noise: noise | {"y": np.array(["a"] * 4)})),
    (r"no site 'q' \(it has: x, y\). Name one",
        lambda: traced().density(("q",)), SiteError),
    ("sites and given share 'y'.*disjoint", lambda: traced().density(("y",), ("y",))),
    ("no site 'v1'", lambda: traced().params_of("v1"), SiteError),
    ("no site 'q'", lambda: traced().noise_of(("q",)), SiteError),
    ("no site 'q'", lambda: traced().noise_given(("q",), ("y",)), SiteError),
    ("no site 'q'", lambda: traced().forward_given(("q",)), SiteError),
    ("no site 'q'", lambda: traced().example("q"), SiteError),
    # exogenous
    ("register takes a Distribution class.*int", lambda: exogenous.register(int)),
    ("Normal is already known.*derive", lambda: exogenous.register(dist.Normal)),
    ("share 'x'", lambda: ig.channel(inputs="x", outputs=("x", "y"))),
    ("inputs", lambda: ig.channel(inputs=3, outputs="y")),
    ("decorates a NumPyro model", lambda: ig.channel(inputs="x", outputs="y")(3)),
    ("Ours.*both base_noise and transform",
        lambda: exogenous.register(Ours, transform=power)),
    ("Ours. takes functions.*got 1 and 2",
        lambda: exogenous.register(Ours, base_noise=1, transform=2)),
    ("boundary must be a tuple of names.*'loc'",
        lambda: exogenous.register(Ours, boundary="loc")),
    ("fn must be a NumPyro distribution, got None. Call",
        lambda: exogenous.noise_of(None)),
    ("fn must be a NumPyro distribution.*Normal.*Call its class",
        lambda: exogenous.noise_of(dist.Normal)),
    (r"noise for Normal has shape \(3,\).*draw it as noise_of",
        lambda: exogenous.transform(dist.Normal(), jnp.zeros(3), ())),
]  # fmt: skip


SHARED = [row for row in CASES if isinstance(row[1], tuple)]


@pytest.mark.parametrize(("words", "calls", "error"), [case(row) for row in CASES])
def test_bad_input(words: str, calls: Any, error: type[Exception], request) -> None:
    several = calls if isinstance(calls, tuple) else (calls,)
    if request.config.option.markexpr == "not slow" and len(several) > 1:
        turn = [row[1] for row in SHARED].index(calls)
        several = several[turn % len(several) :][:1]
    for call in several:
        with pytest.raises(error, match=re.compile(words, re.DOTALL)) as caught:
            call()
        assert caught.type is error
        assert not isinstance(calls, tuple) or REMEDY.search(str(caught.value))


# Every public function of a model: how to call it, and what stands before the model.
IN_ORDER: dict[str, tuple[Any, ...]] = {
    "gradient(model, objective)": (XY,),
    "estimate(model, objective)": (XY,),
    "maximize(model, objective)": (XY,),
    "minimize(model, objective)": (XY,),
    "InfoMax(model, objective)": (XY,),
    "pretrain_scores(model, objective, over)": (XY,),
    "diagnostics.check_scores(model, objective)": (XY,),
    "maximize_mi(model, inputs, outputs)": ("x", "y"),
    "mutual_information(model, inputs, outputs)": ("x", "y"),
    "calibrate(model, observed)": ({"y": np.zeros(9)},),
    "design(model, designs, inputs, outputs)": (np.ones(2), "x", "y"),
}


@pytest.mark.parametrize("call", IN_ORDER)
def test_the_model_comes_first(call: str) -> None:
    path, others = call.partition("(")[0], IN_ORDER[call]
    name = path.rpartition(".")[2]
    order = re.escape(f"{name} takes the model first: write ig.{call}.")
    more = {"over": {"a": (0.5, 2.0)}} if name == "pretrain_scores" else {}
    function = functools.partial(operator.attrgetter(path)(ig), **more)
    for model in (affine, traced()):
        with pytest.raises(ArgumentError, match=f"^{order}$"):
            function(*others, model)
        if others == (XY,):
            with pytest.raises(ArgumentError, match="^objective must be built from"):
                function(model, model)
    with pytest.raises(ArgumentError, match="takes the model first"):
        ig.gradient(XY, model=affine)


def test_errors_name_the_function_that_was_called() -> None:
    settings = {"inputs": "x", "outputs": "y"}
    named = ig.channel(**settings)(affine)
    for function in (ig.maximize_mi, ig.mutual_information, ig.null_check):
        name = function.__name__
        with pytest.raises(ArgumentError, match=f"^{name} has no argument 'samples'."):
            function(affine, **settings, samples=3)
        with pytest.raises(
            ArgumentError, match=f"^{name} needs outputs. Write ig.{name}"
        ):
            function(affine, "x")
        with pytest.raises(ArgumentError, match=f"^{name} has no .* mean 'outputs'\\?"):
            function(affine, inputs="x", output="y")
    with pytest.raises(ArgumentError, match="^maximize_mi .* mean 'num_steps'\\?"):
        ig.maximize_mi(affine, "x", "y", steps=3)
    with pytest.raises(ArgumentError, match="^InfoMax has no argument 'lr'. Pass opt"):
        ig.InfoMax(affine, XY, lr=0.1)
    with pytest.raises(ArgumentError, match="got inputs twice: as argument 2 and as"):
        ig.null_check(affine, "x", "y", inputs="x")
    with pytest.raises(ArgumentError, match="^MI has no argument 'condition'"):
        ig.MI("x", "y", condition="z")
    with pytest.raises(ArgumentError, match="^Entropy needs sites"):
        ig.Entropy()
    with pytest.raises(ArgumentError, match="^channel has no argument 'input'. Did"):
        ig.channel(input="x", outputs="y")
    with pytest.raises(
        ArgumentError, match="^channel takes named settings, got 1 arg.*inputs=..., out"
    ):
        ig.channel(affine)
    with pytest.raises(ArgumentError, match="^structural_model needs model. Write ig"):
        ig.structural_model()
    for call, words in (
        (
            lambda: ig.scores.Mixture(n_components=4),
            "^Mixture has no .*'num_components",
        ),
        (lambda: ig.values.MCMC(tol=0.1), "^MCMC has no argument 'tol'. .*'tolerance'"),
        (lambda: ig.scores.Denoising(3), r"^Denoising takes .*ig.scores.Denoising\(\)"),
        (
            lambda: ig.scores.Exact(3),
            r"^Exact takes no arg.*Write ig.scores.Exact\(\)",
        ),
        (lambda: ig.scores.Exact(a=3), r"^Exact has no argument 'a'. Write ig.sc"),
        (lambda: named.gradient(XY), "^Channel.gradient takes .*as model_args="),
        (lambda: named.maximize_mi(steps=3), "^Channel.maximize_mi has .*'num_steps'"),
        (lambda: ig.gradient(affine, XY, seed=1), "Pass rng_key=jax.random.key"),
        (lambda: ig.maximize(affine, XY, constraints=()), "mean 'subject_to'"),
    ):
        with pytest.raises(ArgumentError, match=words):
            call()
    with pytest.raises(ArgumentError, match="^InfoMax.get_params needs state"):
        ig.InfoMax(affine, XY).get_params()


def test_names_that_are_not_there_say_which_is_meant() -> None:
    with pytest.raises(AttributeError, match="Quantized. Write ig.distributions.Quan"):
        ig.Quantized  # noqa: B018
    with pytest.raises(AttributeError, match="maximise_mi") as unknown:
        ig.maximise_mi  # noqa: B018
    # From these, Python writes "Did you mean: 'maximize_mi'?".
    assert (unknown.value.name, unknown.value.obj) == ("maximise_mi", ig)
    assert "maximize_mi" in dir(ig)
    assert not hasattr(ig, "__wrapped__")


def test_a_model_may_name_its_arguments_as_it_likes() -> None:
    taken = ascend(awkward, model_kwargs={"num_steps": 1.0, "model": 1.0})()
    assert taken.params["a"] > 1.0


def test_numbers_of_numpy_and_jax_are_numbers() -> None:
    assert scores.Denoising(noise_variance=np.float32(0.5)).noise_variance == 0.5
    assert scores.Denoising(num_steps=np.array(9)).num_steps == 9
    assert (POWER <= jnp.asarray(2)).bound == 2
    for count in (np.int8(4), np.array(4), jnp.asarray(4)):
        assert traced().sample(KEY, count)["y"].shape == (4,)
    found = ig.gradient(affine, XY, allow_jumps=np.bool_(True))
    assert found.value["a"] == pytest.approx(0.5)
    for good in (2, True, np.float64(2.0), np.array(2), jnp.ones(())):
        found = ig.gradient(affine, XY, params={"a": good})
        assert np.isfinite(float(found.value["a"]))
