# SPDX-License-Identifier: Apache-2.0
"""Bad inputs to every public function: none hangs, and none returns a number.

A table by function. Each case raises exactly one class, and its message names what is
at fault (a site, a parameter, an argument) and says what to do about it.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from pathlib import Path
import re
from typing import Any

from links import amplifier, common_cause, lagged, link, pam
from models import affine, pytree_param, tanh_channel
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

import numpyro_infograd as ig
from numpyro_infograd import MI, Entropy, Expectation, exogenous, scores, values
from numpyro_infograd.errors import (
    ArgumentError,
    BoundaryError,
    CheckpointError,
    DegenerateError,
    DensityError,
    JumpError,
    ModelError,
    ParameterError,
    ReparametrizationError,
    ScoreError,
    SiteError,
)

XY = MI("x", "y")
KEY = jax.random.key(0)
QUIET = {"progress_bar": False}
HERE = Path(__file__)


def power(v):
    return v["y"] ** 2


def is_up(v):
    return jnp.where(v["y"] > 1.0, 1.0, 0.0)


POWER = Expectation(power)


# Models.


def channel(law: Callable[[Any], dist.Distribution]) -> Callable[[], None]:
    """X standard normal, Y from `law(x)`."""

    def model():
        numpyro.sample("y", law(numpyro.sample("x", dist.Normal())))

    return model


def gained(gain):
    x = numpyro.sample("x", dist.Normal())
    numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * gain * x, 1.0))


def bounded(start, constraint=constraints.positive):
    """Y = s X + Z, with that start and constraint of s."""

    def law(x):
        return dist.Normal(numpyro.param("s", start, constraint=constraint) * x, 1.0)

    return channel(law)


def two_users():
    a, b = numpyro.param("a", 1.0), numpyro.param("b", 1.0)
    x1 = numpyro.sample("x1", dist.Normal())
    x2 = numpyro.sample("x2", dist.Normal())
    numpyro.sample("y", dist.Normal(a * x1 + b * x2, 1.0))


def fixed():
    x = numpyro.sample("x", dist.Normal())
    numpyro.sample("y", dist.Normal(x, 1.0))


def tilted():
    affine()
    numpyro.factor("tilt", 1.0)


def subsampled():
    affine()
    with numpyro.plate("sensors", 4, subsample_size=2):
        numpyro.sample("z", dist.Normal())


def improper():
    affine()
    numpyro.sample("w", dist.ImproperUniform(constraints.real, (), ()))


def wordy():
    numpyro.param("s", "one")
    affine()


def twice():
    affine()
    numpyro.sample("y", dist.Normal())


def complex_output():
    x = numpyro.sample("x", dist.Normal())
    numpyro.deterministic("y", numpyro.param("a", 1.0) * x * 1j)


def noise_of_no_site():
    affine()
    numpyro.sample("z", dist.Normal(jax.random.normal(numpyro.prng_key()), 1.0))


def hidden_site():
    x = numpyro.sample("x", dist.Normal())
    with handlers.block(hide=["z"]):
        z = numpyro.sample("z", dist.Normal())
    numpyro.sample("y", dist.Normal(tuned() * x + z, 1.0))


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


def parameter_in_a_scan():
    def step(state, _):
        made = dist.Normal(numpyro.param("a", 1.0) * state, 1.0)
        return numpyro.sample("y", made), None

    scan(step, numpyro.sample("x", dist.Normal()), None, length=2)


def beside(make: Callable[[], Any]) -> Callable[[], None]:
    """A model with something else in it."""

    def model():
        make()
        affine()

    return model


def awkward(num_steps, model):
    """A model with arguments that other functions have too."""
    gained(num_steps * model)


def tuned() -> Any:
    return numpyro.param("a", 0.5)


def guess(law: Callable[[Any], dist.Distribution]) -> Callable[[Any], None]:
    """A posterior of X given Y."""

    def model(y):
        numpyro.sample("x", law(tuned() * y))

    return model


# Short calls.

grad = functools.partial(ig.gradient, objective=XY)
value = functools.partial(ig.estimate, objective=XY)
ascend = functools.partial(ig.maximize, objective=XY, num_steps=2, **QUIET)
region = functools.partial(ig.rate_region, two_users, num_steps=2, **QUIET)
check = functools.partial(ig.diagnostics.check_scores, amplifier, XY, verbose=False)


def mean(fn):
    return ig.gradient(affine, Expectation(fn))


def path(**settings):
    return value(affine, method=values.Path(**settings))


def pretrain(over, **settings):
    return ig.pretrain_scores(amplifier, XY, over, **settings)


@functools.cache
def trained():
    """Scores for etas from a half to two that know no density."""
    return ig.pretrain_scores(amplifier, POWER, {"eta": (0.5, 2.0)}, num_points=16)


def analytic(functions):
    return grad(amplifier, scores=scores.Analytic(functions), num_samples=256)


def networks(make):
    return grad(amplifier, scores=scores.Denoising(network=make))


def posterior(model):
    return grad(amplifier, scores=scores.Posterior(model=model))


def begun(model=affine):
    """An ascent that has a state, and the state."""
    ascent = ig.InfoMax(model, XY)
    return ascent, ascent.init(KEY)


def traced(model=affine):
    return ig.structural_model(model)


def drawn(change=dict):
    """Values from noise that was changed."""
    return traced().evaluate({}, change(traced().sample_noise(KEY, 4)))


@functools.cache
def one_rate():
    """The region of a link."""

    def clip(params):
        return {n: jnp.clip(p, -1.0, 1.0) for n, p in params.items()}

    return ig.rate_region(affine, {"r": XY}, num_weights=2, projection=clip, **QUIET)


RECORDED = 1.4 * np.random.default_rng(0).normal(size=1000)


def fit(observed, model=affine, **settings):
    return ig.calibrate(model, observed, **QUIET, **settings)


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


def misnamed(z):
    numpyro.sample("x", dist.Normal(tuned() * z, 1.0))


def another_site(y):
    numpyro.sample("z", dist.Normal(tuned() * y, 1.0))


def untrainable(y):
    numpyro.sample("x", dist.Normal(y, 1.0))


# Name: (class, what the message must hold, call).
CASES: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    # MI and Entropy
    "MI: input is output": (
        ArgumentError, "inputs and outputs share 'x'.*disjoint", lambda: MI("x", "x")),
    "MI: sets overlap": (
        ArgumentError, "'z'.*disjoint", lambda: MI(("x", "z"), ("y", "z"))),
    "MI: given an output": (
        ArgumentError, "outputs and given share 'y'", lambda: MI("x", "y", given="y")),
    "MI: given an input": (
        ArgumentError, "inputs and given share 'x'", lambda: MI("x", "y", given=["x"])),
    "MI: no inputs": (
        ArgumentError, r"at least one input.*inputs=\(\)", lambda: MI((), "y")),
    "MI: no outputs": (
        ArgumentError, r"one output site.*outputs=\(\)", lambda: MI("x", [])),
    "MI: None": (
        ArgumentError, "inputs must be a site name.*None", lambda: MI(None, "y")),
    "MI: a number among names": (
        ArgumentError, "outputs must be.*got 3", lambda: MI("x", ("y", 3))),
    "MI: nested tuples": (
        ArgumentError, r"inputs.*got \('x',\)", lambda: MI((("x",),), "y")),
    "MI: given None": (
        ArgumentError, "given must be a site name", lambda: MI("x", "y", given=None)),
    "Entropy: of nothing": (
        ArgumentError, "at least one site", lambda: Entropy(())),
    "Entropy: given itself": (
        ArgumentError, "sites and given share 'x'.*disjoint",
        lambda: Entropy("x", given=("x", "y"))),
    "Entropy: a number": (
        ArgumentError, "sites must be a site name", lambda: Entropy(1.0)),
    # Expectation
    "Expectation: of a name": (
        ArgumentError, "needs a function.*'y'", lambda: Expectation("y")),
    "Expectation: of a number": (
        ArgumentError, "needs a function.*1.0", lambda: Expectation(1.0)),
    "Expectation: of an objective": (
        ArgumentError, "needs a function.*MI", lambda: Expectation(XY)),
    "Expectation: a vector": (
        ArgumentError, r"Expectation\(<lambda>\).*\(2,\).*Sum or average",
        lambda: mean(lambda v: jnp.stack([v["x"], v["y"]]))),
    "Expectation: a string": (
        ArgumentError, "real scalar.*got 'x'", lambda: mean(lambda v: "x")),
    "Expectation: None": (
        ArgumentError, "real scalar.*got None", lambda: mean(lambda v: None)),
    "Expectation: all sites": (
        ArgumentError, "real scalar.*Sum or average", lambda: mean(lambda v: v)),
    "Expectation: complex": (
        ArgumentError, "real scalar.*complex", lambda: mean(lambda v: 1j * v["x"])),
    "Expectation: a site that is missing": (
        ArgumentError, "'q'.*sites x, y. Use these", lambda: mean(lambda v: v["q"])),
    "Expectation: a parameter": (
        ArgumentError, "'a'.*numpyro.deterministic", lambda: mean(lambda v: v["a"])),
    "Expectation: an if": (
        ArgumentError, r"Expectation\(<lambda>\).*jnp.where",
        lambda: mean(lambda v: v["x"] if v["x"] > 0 else 0.0)),
    "Expectation: of NumPy": (
        ArgumentError, "functions of jax.numpy",
        lambda: mean(lambda v: np.sin(v["x"]))),
    "Expectation: not finite": (
        ModelError, r"Expectation\(<lambda>\) is not finite.*Use other values",
        lambda: mean(lambda v: jnp.log(v["y"]))),
    "Expectation: an indicator": (
        JumpError, r"Expectation\(<lambda>\).*Use a smooth step",
        lambda: mean(lambda v: v["y"] > 0)),
    "Expectation: two arguments": (
        ArgumentError, r"Expectation\(<lambda>\) failed.*'w'.*sites x, y",
        lambda: mean(lambda v, w: 0.0)),
    "Expectation: an attribute": (
        ArgumentError, r"Expectation\(<lambda>\) failed.*'x'.*sites x, y",
        lambda: mean(lambda v: v.x)),
    "Expectation: a function of an array": (
        ArgumentError, r"Expectation\(mean\) failed.*sites x, y",
        lambda: mean(jnp.mean)),
    # The algebra of objectives; operators raise TypeError, as Python's do
    "algebra: plus a string": (TypeError, "'Objective' and 'str'", lambda: XY + "y"),
    "algebra: plus a number": (TypeError, "'Objective' and 'float'", lambda: XY + 1.0),
    "algebra: plus None": (TypeError, "'Objective' and 'NoneType'", lambda: XY + None),
    "algebra: from a number": (TypeError, "'float' and 'Objective'", lambda: 1.0 - XY),
    "algebra: a sum with a name": (TypeError, "'str'", lambda: sum([XY, "x"])),
    "algebra: plus a constraint": (
        TypeError, "'Objective' and 'Constraint'", lambda: XY + (POWER <= 1.0)),
    "algebra: a product": (TypeError, "'Objective' and 'Objective'", lambda: XY * XY),
    "algebra: times a string": (TypeError, "'Objective'", lambda: XY * "2"),
    "algebra: times None": (TypeError, "'Objective' and 'NoneType'", lambda: XY * None),
    "algebra: times an array": (TypeError, "'Objective'", lambda: XY * np.ones(3)),
    "algebra: array times": (TypeError, "'Objective'", lambda: np.ones(3) * XY),
    "algebra: times a JAX array": (TypeError, "'Objective'", lambda: jnp.ones(3) * XY),
    "algebra: a square": (TypeError, "'Objective' and 'int'", lambda: XY**2),
    "algebra: times NaN": (
        ArgumentError, "objective was multiplied by nan: give a number",
        lambda: np.nan * XY),
    "algebra: times infinity": (
        ArgumentError, "objective was multiplied by inf", lambda: XY * np.inf),
    "algebra: over NaN": (
        ArgumentError, "objective was multiplied by nan", lambda: XY / np.nan),
    "algebra: over zero": (
        ArgumentError, "objective was divided by zero: give a number", lambda: XY / 0),
    "algebra: over a string": (TypeError, "'Objective' and 'str'", lambda: XY / "2"),
    "algebra: a quotient": (TypeError, "'Objective' and 'Objective'", lambda: XY / XY),
    # Constraints
    "constraint: on an information": (
        ArgumentError, r"MI\('x', 'y'\) <= 1.*only expectations.*Add an information",
        lambda: XY <= 1.0),
    "constraint: on nothing": (
        ArgumentError, "only expectations", lambda: 0 * POWER <= 1.0),
    "constraint: a string": (
        ArgumentError, "bound of a constraint.*'1'", lambda: POWER <= "1"),
    "constraint: None": (
        ArgumentError, "bound of a constraint.*None", lambda: POWER >= None),
    "constraint: an information and None": (
        ArgumentError, "bound of a constraint.*None", lambda: XY <= None),
    "constraint: NaN": (
        ArgumentError, "bound.*finite number", lambda: POWER <= np.nan),
    "constraint: infinite": (
        ArgumentError, "bound.*finite number", lambda: POWER >= -np.inf),
    "constraint: an array": (
        ArgumentError, "bound.*finite number", lambda: POWER <= np.ones(2)),
    "constraint: another expectation": (
        ArgumentError, r"bound.*Expectation\(power\)", lambda: POWER <= POWER),
    "constraint: a range": (
        TypeError, r"Expectation\(power\) >= 0.*two constraints",
        lambda: 0.0 <= POWER <= 1.0),
    "constraint: a bool": (
        ArgumentError, "bound.*finite number, got True", lambda: POWER <= True),
    "constraint: strict": (
        TypeError, r"\(power\).*\(1.0\): write <= or >=", lambda: POWER < 1.0),
    "constraint: strict, from the left": (
        TypeError, "write <= or >=", lambda: 1.0 < POWER),
    "Constraint: another sense": (
        ArgumentError, "sense of a constraint must be '<=' or '>=', got '<'",
        lambda: ig.Constraint(POWER, "<", 1.0)),
    "Constraint: of a name": (
        ArgumentError, "expectations must be built.*'E'",
        lambda: ig.Constraint("E", "<=", 1.0)),
    # gradient: objective and model
    "gradient: an input that is missing": (
        SiteError, "'q'.*it has: x, y", lambda: ig.gradient(affine, MI("q", "y"))),
    "gradient: names in one string": (
        SiteError, "'x, y'.*it has: x, y",
        lambda: ig.gradient(affine, Entropy("x, y"))),
    "gradient: a parameter as a site": (
        SiteError, "'a', which is a parameter",
        lambda: ig.gradient(affine, MI("x", "a"))),
    "gradient: of a name": (
        ArgumentError, "objective must be built from MI",
        lambda: ig.gradient(affine, "MI")),
    "gradient: of None": (
        ArgumentError, "objective must be.*None", lambda: ig.gradient(affine, None)),
    "gradient: of a constraint": (
        ArgumentError, r"objective must be.*Expectation\(power\) <= 1",
        lambda: ig.gradient(affine, POWER <= 1.0)),
    "gradient: of nothing": (
        ArgumentError, "objective MI.*is empty", lambda: ig.gradient(affine, XY - XY)),
    "gradient: a model that was called": (
        ArgumentError, "model must be.*got None. Pass the function",
        lambda: grad(None)),
    "gradient: no sites": (
        SiteError, "'x'.*it has: none", lambda: grad(lambda: None)),
    "gradient: a factor": (
        ModelError, "'tilt'.*factor.*remove it", lambda: grad(tilted)),
    "gradient: a subsampled plate": (
        ModelError, "'sensors'.*2 of 4.*leave out subsample_size",
        lambda: grad(subsampled)),
    "gradient: an improper prior": (
        ModelError, "'w': ImproperUniform.*Use a distribution", lambda: grad(improper)),
    "gradient: one name for two sites": (
        ModelError, "'y' occurs twice. Give", lambda: grad(twice)),
    "gradient: one name for a site and a parameter": (
        ModelError, "'x' is the name of a parameter and of a site. Give",
        lambda: grad(beside(lambda: numpyro.param("x", 1.0)))),
    "gradient: a number as name": (
        ModelError, "named 3: names are strings",
        lambda: grad(beside(lambda: numpyro.sample(3, dist.Normal())))),
    "gradient: a number as distribution": (
        ModelError, "after site 'x', .*not valid.*Call the class",
        lambda: grad(channel(lambda x: 3.0))),
    "gradient: a distribution that was not called": (
        ModelError, r"after site 'x', .*not valid.*dist.Normal\(0.0, 1.0\)",
        lambda: grad(channel(lambda x: dist.Normal))),
    "gradient: an empty output": (
        SiteError, r"'y' of the objective is empty.*\(0,\). Leave it out",
        lambda: grad(channel(lambda x: dist.Normal(tuned() * x * jnp.ones(0), 1.0)))),
    "gradient: hidden randomness": (
        ModelError, "prng_key.*numpyro.sample", lambda: grad(noise_of_no_site)),
    "gradient: a hidden site": (
        ModelError, "handlers.block hides.*is not hidden", lambda: grad(hidden_site)),
    "gradient: a scan in a scan": (
        ModelError, "inside another.*Python loop", lambda: grad(nested_scans)),
    "gradient: a site in a vmap": (
        ModelError, "'z' is inside.*numpyro.plate", lambda: grad(site_in_a_vmap)),
    "gradient: a loop of traced length": (
        ModelError, "a loop whose length.*jax.lax.scan",
        lambda: grad(channel(loop_of_traced_length))),
    "gradient: a parameter in a scan": (
        ModelError, "'a'.*before the scan", lambda: grad(parameter_in_a_scan)),
    "gradient: an if in the model": (
        ModelError, "the model, after site 'x', asks.*if x > 0.*line.*jnp.where",
        lambda: grad(channel(lambda x: dist.Normal(tuned() if x > 0 else x, 1.0)))),
    "gradient: a negative scale": (
        ModelError, "after site 'x'.*scale.*constraint in numpyro.param",
        lambda: grad(channel(lambda x: dist.Normal(tuned() * x, -1.0)))),
    "gradient: a draw that is not finite": (
        ModelError, "a draw of site 'y'.*Use other values",
        lambda: grad(channel(lambda x: dist.Normal(jnp.log(tuned() * x), 1.0)))),
    "gradient: an observed output": (
        SiteError, "'y'.*is observed.*Pass the model without",
        lambda: grad(handlers.condition(affine, {"y": 0.5}))),
    "gradient: a substituted input": (
        SiteError, "'x'.*substituted",
        lambda: grad(handlers.substitute(affine, {"x": 0.5}))),
    "gradient: an intervention": (
        SiteError, "'x'.*intervened", lambda: grad(handlers.do(affine, {"x": 0.5}))),
    "gradient: a complex output": (
        SiteError, "'y'.*complex.*stack", lambda: grad(complex_output)),
    "gradient: a parameter of a discrete site": (
        ReparametrizationError, "'y' depends on 'a'.*discrete.*RelaxedBernoulli",
        lambda: grad(channel(lambda x: dist.Bernoulli(logits=tuned() * x)))),
    "gradient: a jump": (
        JumpError, "'y'.*Use a smooth step",
        lambda: grad(channel(lambda x: dist.Normal(jnp.floor(tuned() * x), 1.0)))),
    "gradient: a cast": (
        JumpError, "'y' through a cast",
        lambda: grad(
            channel(lambda x: dist.Normal((tuned() * x).astype(int) + 0.0, 1.0)))),
    "gradient: a boundary that moves": (
        BoundaryError, "'y'.*noise_variance",
        lambda: grad(channel(lambda x: dist.Uniform(tuned() * x, tuned() * x + 1.0)))),
    "gradient: no noise at the output": (
        DegenerateError, "'x', 'y'.*Add the missing noise",
        lambda: grad(lambda: numpyro.deterministic(
            "y", tuned() * numpyro.sample("x", dist.Normal())))),
    "gradient: no parameters": (
        ArgumentError, "no parameters: mark.*numpyro.param", lambda: grad(fixed)),
    "gradient: all parameters substituted": (
        ArgumentError, "no parameters",
        lambda: grad(handlers.substitute(affine, {"a": 2.0}))),
    "gradient: allow_jumps": (
        ArgumentError, "allow_jumps must be True or False, got 'no'",
        lambda: grad(affine, allow_jumps="no")),
    "numpyro.param: a constraint by name": (
        ParameterError, "'s' has the constraint 'positive'.*constraints.positive",
        lambda: grad(bounded(1.0, "positive"))),
    "numpyro.param: a constraint that was not called": (
        ParameterError, "'s' has the constraint.*_GreaterThan.*call those",
        lambda: grad(bounded(1.0, constraints.greater_than))),
    "numpyro.param: no value": (
        ParameterError, "'w' has no value. Give it one",
        lambda: grad(beside(lambda: 2 * numpyro.param("w")))),
    # gradient: arguments of the model
    "model_args: a number": (
        ArgumentError, r"model_args.*\(value,\)", lambda: grad(gained, model_args=2.0)),
    "model_args: a string": (
        ArgumentError, "model_args.*'2'", lambda: grad(gained, model_args="2")),
    "model_args: NaN": (
        ArgumentError, r"model argument \[0\]\[0\].*Clean",
        lambda: grad(gained, model_args=(np.nan,))),
    "model_kwargs: a list": (
        ArgumentError, "model_kwargs must be a dict.*Write",
        lambda: grad(gained, model_kwargs=["gain"])),
    "model_kwargs: infinite": (
        ArgumentError, "'gain'.*not finite",
        lambda: grad(gained, model_kwargs={"gain": np.inf})),
    "model_kwargs: a number as name": (
        ArgumentError, "model_kwargs must name arguments.*got 1. Write",
        lambda: grad(gained, model_kwargs={1: 2.0})),
    "model_kwargs: an unknown name": (
        ArgumentError, "model cannot be called.*'q'.*model_kwargs",
        lambda: grad(gained, model_args=(1.0,), model_kwargs={"q": 1.0})),
    "model_args: none": (
        ArgumentError, "model cannot be called.*'gain'.*model_args",
        lambda: grad(gained)),
    "model_args: one too many": (
        ArgumentError, "model cannot be called.*too many.*model_args",
        lambda: grad(affine, model_args=(1.0,))),
    # gradient: parameters
    "params: a list": (
        ParameterError, "params.*must be a dict.*Write",
        lambda: grad(affine, params=[1.0])),
    "params: an unknown name": (
        ParameterError, "'b'.*it has: a.*Use the names",
        lambda: grad(affine, params={"b": 1.0})),
    "params: a site": (
        ParameterError, "'x'.*it has: a", lambda: grad(affine, params={"x": 1.0})),
    "params: a string": (
        ParameterError, "'a'.*number.*'1'. Pass real",
        lambda: grad(affine, params={"a": "1"})),
    "params: a function": (
        ParameterError, "'a' must be a number",
        lambda: grad(affine, params={"a": np.sin})),
    "params: None": (
        ParameterError, "'a'.*got None. Give arrays",
        lambda: grad(affine, params={"a": None})),
    "params: complex": (
        ParameterError, "'a' is complex. Use two",
        lambda: grad(affine, params={"a": 1j})),
    "params: NaN": (
        ParameterError, "'a' is not finite.*Give",
        lambda: grad(affine, params={"a": np.nan})),
    "params: too large": (
        ParameterError, "'a' is not finite: inf. Give",
        lambda: grad(affine, params={"a": 1e300})),
    "params: another shape": (
        ParameterError, r"'a' has shape \(\).*got \(3,\). Give",
        lambda: grad(affine, params={"a": np.ones(3)})),
    "params: another tree": (
        ParameterError, "'net' has another structure.*shapes",
        lambda: grad(pytree_param, params={"net": {"w": np.ones((2, 2))}})),
    "params: outside a constraint": (
        ParameterError, "'s' is outside.*Positive.*Give a value inside",
        lambda: grad(bounded(1.0), params={"s": -1.0})),
    "params: an initial value outside": (
        ParameterError, "'s' is outside.*Positive", lambda: grad(bounded(-1.0))),
    "params: an initial value that is a word": (
        ParameterError, "'s'.*number.*'one'", lambda: grad(wordy)),
    "params: an initial value that is NaN": (
        ParameterError, "'s' is not finite", lambda: grad(bounded(np.nan))),
    # gradient: settings
    "scores: a misspelt name": (
        ArgumentError, "scores must be one of.*'mixture'.*'mixure'",
        lambda: grad(affine, scores="mixure")),
    "scores: None": (
        ArgumentError, "scores must be.*None", lambda: grad(affine, scores=None)),
    "scores: a class": (
        ArgumentError, "scores=Denoising.*call it",
        lambda: grad(affine, scores=scores.Denoising)),
    "scores: an estimator of values": (
        ArgumentError, "scores must be.*Nested",
        lambda: grad(affine, scores=values.Nested())),
    "scores: a function": (
        ArgumentError, "scores must be.*ScoreMethod",
        lambda: grad(affine, scores=power)),
    "scores: exact for a saturated channel": (
        ScoreError, "scores='exact'.*'y'.*Use",
        lambda: grad(tanh_channel, scores="exact")),
    "scores: a mixture without a density": (
        DensityError, "'y' is deterministic.*Use",
        lambda: grad(lagged, scores="mixture")),
    "scores: a method without scores": (
        ScoreError, "Silent.score must return.*Scores",
        lambda: grad(amplifier, scores=Silent())),
    "scores: a method without a hash": (
        ArgumentError, r"scores=Mutable\(...\) must have a hash.*frozen=True",
        lambda: grad(amplifier, scores=Mutable())),
    "num_samples: zero": (
        ArgumentError, "num_samples must be a power of two",
        lambda: grad(tanh_channel, num_samples=0)),
    "num_samples: negative": (
        ArgumentError, "num_samples.*got -256",
        lambda: grad(tanh_channel, num_samples=-256)),
    "num_samples: no power of two": (
        ArgumentError, "num_samples.*got 1000",
        lambda: grad(tanh_channel, num_samples=1000)),
    "num_samples: too few": (
        ArgumentError, "num_samples.*at least 256",
        lambda: grad(tanh_channel, num_samples=128)),
    "num_samples: a float": (
        ArgumentError, "num_samples.*1024.0",
        lambda: grad(tanh_channel, num_samples=1024.0)),
    "num_samples: a string": (
        ArgumentError, "num_samples.*'1024'",
        lambda: grad(tanh_channel, num_samples="1024")),
    "num_samples: a bool": (
        ArgumentError, "num_samples.*True",
        lambda: grad(tanh_channel, num_samples=True)),
    "num_samples: more than there is memory": (
        ArgumentError, "num_samples.*at most",
        lambda: grad(tanh_channel, num_samples=2**70)),
    "rng_key: an int": (
        ArgumentError, r"rng_key.*got 0. Use jax.random.key\(0\)",
        lambda: grad(affine, rng_key=0)),
    "rng_key: a string": (
        ArgumentError, "rng_key.*'seed'. Use", lambda: grad(affine, rng_key="seed")),
    "rng_key: floats": (
        ArgumentError, "rng_key.*Use", lambda: grad(affine, rng_key=jnp.zeros(2))),
    "rng_key: three words": (
        ArgumentError, "rng_key.*uint32",
        lambda: grad(affine, rng_key=np.zeros(3, np.uint32))),
    "rng_key: several": (
        ArgumentError, "rng_key must be one",
        lambda: grad(affine, rng_key=jax.random.split(KEY))),
    # estimate
    "estimate: a misspelt unit": (
        ArgumentError, "unit must be 'nats' or 'bits'.*'bit'",
        lambda: value(affine, unit="bit")),
    "estimate: no unit": (
        ArgumentError, "unit.*None", lambda: value(affine, unit=None)),
    "estimate: a misspelt method": (
        ArgumentError, "method must be one of.*'nested'.*'nestd'",
        lambda: value(affine, method="nestd")),
    "estimate: a name of scores": (
        ArgumentError, "method must be.*'denoising'",
        lambda: value(affine, method="denoising")),
    "estimate: a class": (
        ArgumentError, "method=Nested.*call it",
        lambda: value(affine, method=values.Nested)),
    "estimate: a score method": (
        ArgumentError, "method must be.*Mixture",
        lambda: value(affine, method=scores.Mixture())),
    "estimate: exact for a saturated channel": (
        ArgumentError, "method='exact'.*'y'.*Use 'nested'",
        lambda: value(tanh_channel, method="exact")),
    "estimate: nested without a density": (
        DensityError, "'y' is deterministic.*Use method='fisher'",
        lambda: value(lagged, method="nested")),
    "estimate: too few samples for a method": (
        ArgumentError, "num_samples.*at least 1024",
        lambda: value(tanh_channel, method="fisher", num_samples=256)),
    "estimate: num_samples": (
        ArgumentError, "num_samples.*got 1000",
        lambda: value(affine, num_samples=1000)),
    "estimate: a seed": (
        ArgumentError, "rng_key.*Use", lambda: value(affine, rng_key=1)),
    "estimate: params": (
        ParameterError, "'a' is not finite",
        lambda: value(affine, params={"a": np.inf})),
    "estimate: params of a model without": (
        ParameterError, "'a'.*it has: none", lambda: value(fixed, params={"a": 1.0})),
    "estimate: outside a constraint": (
        ParameterError, "'s' is outside.*Positive.*Give a value inside",
        lambda: value(bounded(1.0), params={"s": -1.0})),
    "estimate: an estimator that returns a number": (
        ArgumentError, "Guess.value must return a values.Estimate, got 1.0",
        lambda: value(affine, method=Guess())),
    "estimate: an estimator without num_samples": (
        ArgumentError, r"method=Guess\(...\).*leave num_samples out",
        lambda: value(affine, method=Guess(), num_samples=1024)),
    "estimate: a redundant site": (
        DegenerateError, "'n', 'x', 'y'.*leave out",
        lambda: ig.estimate(lagged, Entropy(("x", "n", "y")))),
    "estimate: an expectation": (
        ArgumentError, "'q'.*sites x, y",
        lambda: ig.estimate(affine, XY + Expectation(lambda v: v["q"]))),
    # values: Nested, DeBruijn, Exact, Path
    "Nested: num_components": (
        ArgumentError, "num_components must be a power of two",
        lambda: values.Nested(num_components=1000)),
    "Nested: max_components below": (
        ArgumentError, "max_components.*below num_components",
        lambda: values.Nested(max_components=512)),
    "Nested: num_samples": (
        ArgumentError, "num_samples.*got 100", lambda: values.Nested(num_samples=100)),
    "DeBruijn: no layers": (
        ArgumentError, r"hidden.*such as \(64, 64\)",
        lambda: values.DeBruijn(hidden=())),
    "DeBruijn: a negative width": (
        ArgumentError, r"hidden.*\(64, -1\)", lambda: values.DeBruijn(hidden=(64, -1))),
    "DeBruijn: an odd number of networks": (
        ArgumentError, "num_networks must be even",
        lambda: values.DeBruijn(num_networks=3)),
    "DeBruijn: networks as a string": (
        ArgumentError, "num_networks must be a positive int, got '4'",
        lambda: values.DeBruijn(num_networks="4")),
    "DeBruijn: networks as a float": (
        ArgumentError, "num_networks must be a positive int, got 2.0",
        lambda: values.DeBruijn(num_networks=2.0)),
    "DeBruijn: learning_rate": (
        ArgumentError, "learning_rate must be a finite number.*-1",
        lambda: values.DeBruijn(learning_rate=-1)),
    "DeBruijn: a learning_rate that is NaN": (
        ArgumentError, "learning_rate must be a finite number.*nan",
        lambda: values.DeBruijn(learning_rate=np.nan)),
    "DeBruijn: a learning_rate that is True": (
        ArgumentError, "learning_rate must be a finite number.*True",
        lambda: values.DeBruijn(learning_rate=True)),
    "DeBruijn: half a step": (
        ArgumentError, "num_steps must be a positive int",
        lambda: values.DeBruijn(num_steps=0.5)),
    "DeBruijn: a small batch": (
        ArgumentError, "batch_size is 2: too few",
        lambda: values.DeBruijn(batch_size=2)),
    "DeBruijn: num_samples": (
        ArgumentError, "num_samples.*1024", lambda: values.DeBruijn(num_samples=512)),
    "Exact: num_samples": (
        ArgumentError, "num_samples.*power of two",
        lambda: values.Exact(num_samples=1000)),
    "Exact: no num_samples": (
        ArgumentError, "num_samples.*power of two.*None",
        lambda: values.Exact(num_samples=None)),
    "Path: few nodes": (
        ArgumentError, "num_nodes.*at least 4", lambda: values.Path(num_nodes=3)),
    "Path: nodes as a float": (
        ArgumentError, "num_nodes.*12.0", lambda: values.Path(num_nodes=12.0)),
    "Path: a number as reference": (
        ArgumentError, "reference must be a dict", lambda: values.Path(reference=0.0)),
    "Path: a string as value": (
        ArgumentError, "reference_value.*'0'",
        lambda: values.Path(reference_value="0")),
    "Path: NaN as value": (
        ArgumentError, "reference_value.*finite",
        lambda: values.Path(reference_value=np.nan)),
    "Path: a way and a reference": (
        ArgumentError, "way and reference.*leave one out",
        lambda: values.Path(way=lambda s: {}, reference={})),
    "Path: an unknown reference": (
        ParameterError, "'q'.*it has: a", lambda: path(reference={"q": 0.0})),
    "Path: a reference outside": (
        ParameterError, "'s' is outside.*inside",
        lambda: value(bounded(1.0), method=values.Path(reference={"s": -1.0}))),
    "Path: nowhere to start from": (
        ArgumentError, r"no parameter.*zero.*values.Path\(reference=",
        lambda: value(bounded(1.0), method="path")),
    "Path: no parameters": (
        ArgumentError, "method='path'.*numpyro.param",
        lambda: value(fixed, method="path")),
    "Path: a way of numbers": (
        ArgumentError, "way must return a dict", lambda: path(way=lambda s: s)),
    "Path: a way that ends elsewhere": (
        ArgumentError, r"way\(1\).*'a'.*Let the way end",
        lambda: path(way=lambda s: {"a": 2 * s})),
    "Path: a way to an unknown parameter": (
        ParameterError, "'q'.*it has: a", lambda: path(way=lambda s: {"a": s, "q": s})),
    "Path: a number as way": (
        ArgumentError, "way must be a function.*3.0", lambda: path(way=3.0)),
    "Path: a name as way": (
        ArgumentError, "way must be a function.*'line'", lambda: path(way="line")),
    "Path: a way of two arguments": (
        ArgumentError, "way failed.*'t'.*position from 0 to 1",
        lambda: path(way=lambda s, t: {"a": s})),
    "Path: an if in the way": (
        ArgumentError, "way asks for.*jnp.where",
        lambda: path(way=lambda s: {"a": s if s > 0.5 else s * s})),
    "Path: a way to a string": (
        ParameterError, "'a' must be a number.*'one'",
        lambda: path(way=lambda s: {"a": "one"})),
    "Path: misspelt scores": (
        ArgumentError, "scores must be one of.*'typo'", lambda: path(scores="typo")),
    # mutual_information and null_check
    "mutual_information: a missing output": (
        SiteError, "'z'.*it has: x, y",
        lambda: ig.mutual_information(affine, "x", "z")),
    "mutual_information: a missing condition": (
        SiteError, "'h'.*it has",
        lambda: ig.mutual_information(affine, "x", "y", given="h")),
    "mutual_information: of itself": (
        ArgumentError, "share 'x'", lambda: ig.mutual_information(affine, "x", "x")),
    "mutual_information: the model last": (
        ArgumentError, "outputs must be a site",
        lambda: ig.mutual_information("x", "y", affine)),
    "mutual_information: unit": (
        ArgumentError, "unit.*'Bits'",
        lambda: ig.mutual_information(affine, "x", "y", unit="Bits")),
    "null_check: a missing input": (
        SiteError, "'q'.*it has: x, y", lambda: ig.null_check(affine, "q", "y")),
    "null_check: no model": (
        ArgumentError, "model must be", lambda: ig.null_check(None, "x", "y")),
    "null_check: input and condition of one noise": (
        ArgumentError, "inputs and given both.*'u'",
        lambda: ig.null_check(common_cause, "x", "y", given="u")),
    "null_check: method": (
        ArgumentError, "method must be.*'knn'",
        lambda: ig.null_check(affine, "x", "y", method="knn")),
    "null_check: an array as method": (
        ArgumentError, "method must be.*array",
        lambda: ig.null_check(affine, "x", "y", method=np.ones(2))),
    "null_check: outside a constraint": (
        ParameterError, "'s' is outside",
        lambda: ig.null_check(bounded(1.0), "x", "y", params={"s": -1.0})),
    "null_check: model_args": (
        ArgumentError, r"model_args.*\(value,\)",
        lambda: ig.null_check(gained, "x", "y", model_args=2.0)),
    # maximize: numbers and functions
    "maximize: no steps": (
        ArgumentError, "num_steps must be a positive int, got 0",
        lambda: ascend(affine, num_steps=0)),
    "maximize: steps as a float": (
        ArgumentError, "num_steps.*got 2.0", lambda: ascend(affine, num_steps=2.0)),
    "maximize: steps as a string": (
        ArgumentError, "num_steps.*'10'", lambda: ascend(affine, num_steps="10")),
    "maximize: negative restarts": (
        ArgumentError, "num_restarts.*got -1", lambda: ascend(affine, num_restarts=-1)),
    "maximize: restarts as a float": (
        ArgumentError, "num_restarts.*1.5", lambda: ascend(affine, num_restarts=1.5)),
    "maximize: steps as a bool": (
        ArgumentError, "num_steps must be a positive int, got True",
        lambda: ascend(affine, num_steps=True)),
    "maximize: restarts as a bool": (
        ArgumentError, "num_restarts must be a positive int, got True",
        lambda: ascend(affine, num_restarts=True)),
    "maximize: no restarts": (
        ArgumentError, "num_restarts must be a positive int, got None",
        lambda: ascend(affine, num_restarts=None)),
    "maximize: allow_jumps": (
        ArgumentError, "allow_jumps must be True or False, got 'no'",
        lambda: ascend(affine, allow_jumps="no")),
    "maximize: num_samples": (
        ArgumentError, "num_samples.*power of two.*100",
        lambda: ascend(affine, num_samples=100)),
    "maximize: an optimizer by name": (
        ArgumentError, "optimizer must be an optax.*'adam'",
        lambda: ascend(affine, optimizer="adam")),
    "maximize: a rate as optimizer": (
        ArgumentError, "optimizer must be.*0.1", lambda: ascend(affine, optimizer=0.1)),
    "maximize: an optimizer that was not called": (
        ArgumentError, "optimizer must be.*function adam",
        lambda: ascend(affine, optimizer=optax.adam)),
    "maximize: a class of NumPyro as optimizer": (
        ArgumentError, "optimizer must be.*numpyro.optim.Adam.*Call",
        lambda: ascend(affine, optimizer=numpyro.optim.Adam)),
    "maximize: a class of optax as optimizer": (
        ArgumentError, "optimizer must be.*Call",
        lambda: ascend(affine, optimizer=optax.GradientTransformation)),
    "maximize: a number as projection": (
        ArgumentError, "projection must be a function",
        lambda: ascend(affine, projection=1.0)),
    "maximize: a projection that returns nothing": (
        ArgumentError, "projection.*None. Return all",
        lambda: ascend(affine, projection=lambda p: None)),
    "maximize: a projection of one parameter": (
        ArgumentError, "projection.*Return all of them",
        lambda: ascend(affine, projection=lambda p: p["a"])),
    "maximize: a projection that drops one": (
        ArgumentError, "projection must return.*Return all",
        lambda: ascend(link, projection=lambda p: {"a": p["a"]})),
    "maximize: a projection to another shape": (
        ArgumentError, r"projection.*\(2,\)",
        lambda: ascend(affine, projection=lambda p: {"a": jnp.ones(2)})),
    "maximize: a projection of another name": (
        ArgumentError, "projection looked up 'gain'.*Use these",
        lambda: ascend(affine, projection=lambda p: {"gain": p["gain"]})),
    "maximize: a projection of two arguments": (
        ArgumentError, "projection failed.*radius",
        lambda: ascend(affine, projection=lambda p, radius: p)),
    "maximize: a projection of one array": (
        ArgumentError, "projection failed.*apply a function",
        lambda: ascend(affine, projection=lambda p: projection_box(p, -1.0, 1.0))),
    "maximize: a projection by attribute": (
        ArgumentError, "projection failed.*'a'.*parameters a",
        lambda: ascend(affine, projection=lambda p: p.a)),
    "maximize: a projection to complex numbers": (
        ArgumentError, "projection must return floats.*complex64",
        lambda: ascend(affine, projection=lambda p: {"a": 1j * p["a"]})),
    "maximize: a projection to truths": (
        ArgumentError, "projection must return floats.*bool",
        lambda: ascend(affine, projection=lambda p: {"a": p["a"] > 0})),
    "maximize: a projection to whole numbers": (
        ArgumentError, "projection must return floats.*int32",
        lambda: ascend(affine, projection=lambda p: {"a": p["a"].astype(int)})),
    "maximize: a projection to NaN": (
        ArgumentError, "projection takes parameter 'a'.*nan.*not finite. Guard",
        lambda: ascend(affine, projection=lambda p: {"a": jnp.nan * p["a"]})),
    "maximize: no mesh": (
        ArgumentError, "mesh must be.*Use jax.make_mesh",
        lambda: ascend(affine, mesh=2)),
    # maximize: constraints
    "subject_to: a bool": (
        ArgumentError, r"subject_to.*Expectation\(f\) <= 1.0, got True",
        lambda: ascend(affine, subject_to=[POWER <= 1.0, True])),
    "subject_to: an equality": (
        ArgumentError, "subject_to.*got False",
        lambda: ascend(affine, subject_to=POWER == 1.0)),
    "subject_to: an expectation": (
        ArgumentError, r"subject_to.*got Expectation\(power\)",
        lambda: ascend(affine, subject_to=POWER)),
    "subject_to: a pair": (
        ArgumentError, "subject_to must hold comparisons",
        lambda: ascend(affine, subject_to=[(POWER, 1.0)])),
    "subject_to: a string": (
        ArgumentError, "subject_to.*'y < 1'",
        lambda: ascend(affine, subject_to="y < 1")),
    "subject_to: None": (
        ArgumentError, "subject_to.*got None", lambda: ascend(affine, subject_to=None)),
    "subject_to: a site that is missing": (
        ArgumentError, "'q'.*sites x, y. Use these",
        lambda: ascend(affine, subject_to=Expectation(lambda v: v["q"]) <= 1.0)),
    "subject_to: a share of draws": (
        JumpError, r"Expectation\(is_up\).*Use a smooth step",
        lambda: ascend(affine, subject_to=Expectation(is_up) <= 0.1)),
    # maximize: annealing, starts and checkpoints
    "optimizer: a line search": (
        ArgumentError, "optimizer's update.*optax.lbfgs.*optax.adam",
        lambda: ascend(affine, optimizer=optax.lbfgs())),
    "annealing: zero": (
        ArgumentError, "annealing must be a positive number.*0.0",
        lambda: ascend(affine, annealing=0.0)),
    "annealing: negative": (
        ArgumentError, "annealing must be.*-1.0",
        lambda: ascend(affine, annealing={"y": -1.0})),
    "annealing: a bool": (
        ArgumentError, "annealing must be.*True",
        lambda: ascend(affine, annealing=True)),
    "annealing: a word": (
        ArgumentError, "annealing must be.*'warm'",
        lambda: ascend(affine, annealing="warm")),
    "annealing: an unknown site": (
        ArgumentError, "annealing names 'q'.*reaches: 'y'",
        lambda: ascend(affine, annealing={"q": 1.0})),
    "annealing: a site that nothing moves": (
        ArgumentError, "annealing names 'x'.*reaches: 'y'",
        lambda: ascend(affine, annealing={"x": 1.0})),
    "init_params: a list": (
        ParameterError, "init_params.*must be a dict",
        lambda: ascend(affine, init_params=[1.0])),
    "init_params: an unknown name": (
        ParameterError, "'q'.*it has: a",
        lambda: ascend(affine, init_params={"q": 1.0})),
    "init_params: outside": (
        ParameterError, "'s' is outside.*inside",
        lambda: ascend(bounded(1.0), init_params={"s": -1.0})),
    "init_params: on the boundary": (
        ParameterError, "'s' starts on the boundary.*projection",
        lambda: ascend(bounded(0.0, constraints.nonnegative))),
    "init_params: a constraint that no bijection reaches": (
        ArgumentError, r"'s'.*Sphere\(\).*Pass a projection",
        lambda: ascend(bounded(jnp.array([0.6, 0.8]), constraints.sphere))),
    "checkpoint: a number": (
        ArgumentError, "checkpoint must be the path",
        lambda: ascend(affine, checkpoint=3)),
    "checkpoint: a bool": (
        ArgumentError, "checkpoint must be the path",
        lambda: ascend(affine, checkpoint=True)),
    "checkpoint: a zero byte": (
        ArgumentError, "checkpoint must be the path.*null",
        lambda: ascend(affine, checkpoint="a\0b")),
    "checkpoint: a name that is too long": (
        ArgumentError, "checkpoint must be the path.*too long",
        lambda: ascend(affine, checkpoint="a" * 5000)),
    "checkpoint: a file": (
        CheckpointError, f"{HERE.name} is a file. Name a folder",
        lambda: ascend(affine, checkpoint=HERE)),
    "checkpoint: a folder in use": (
        CheckpointError, f"{HERE.parent.name} holds other things.*Name an empty folder",
        lambda: ascend(affine, checkpoint=HERE.parent)),
    "checkpoint: below a file": (
        CheckpointError, "checkpoint .*run cannot be opened",
        lambda: ascend(affine, checkpoint=HERE / "run")),
    # maximize_mi, minimize and InfoMax
    "maximize_mi: a missing output": (
        SiteError, "'z'.*it has: x, y",
        lambda: ig.maximize_mi(affine, "x", "z", **QUIET)),
    "maximize_mi: empty outputs": (
        ArgumentError, r"outputs=\(\)",
        lambda: ig.maximize_mi(affine, "x", (), **QUIET)),
    "maximize_mi: no parameters": (
        ArgumentError, "no parameters: mark",
        lambda: ig.maximize_mi(fixed, "x", "y", **QUIET)),
    "minimize: a number": (
        ArgumentError, "objective must be built",
        lambda: ig.minimize(affine, 3.0, **QUIET)),
    "minimize: a model by name": (
        ArgumentError, "model must be.*'affine'",
        lambda: ig.minimize("affine", XY, **QUIET)),
    "minimize: None": (
        ArgumentError, "objective must be built.*None",
        lambda: ig.minimize(affine, None, **QUIET)),
    "minimize: a name": (
        ArgumentError, "objective must be built.*'MI'",
        lambda: ig.minimize(affine, "MI", **QUIET)),
    "minimize: a constraint": (
        ArgumentError, r"objective must be built.*Expectation\(power\) <= 1",
        lambda: ig.minimize(affine, POWER <= 1.0, **QUIET)),
    "InfoMax: num_samples": (
        ArgumentError, "num_samples.*got 100",
        lambda: ig.InfoMax(affine, XY, num_samples=100)),
    "InfoMax.init: a seed": (
        ArgumentError, "rng_key.*Use", lambda: ig.InfoMax(affine, XY).init(0)),
    "InfoMax.init: an argument that is NaN": (
        ArgumentError, r"model argument \[0\]\[0\].*Clean",
        lambda: ig.InfoMax(gained, XY).init(KEY, np.nan)),
    "InfoMax.run: steps before the key": (
        ArgumentError, "rng_key.*got 10", lambda: ig.InfoMax(affine, XY).run(10, None)),
    "InfoMax.update: before init": (
        ArgumentError, "no state yet: call init first",
        lambda: ig.InfoMax(affine, XY).update(begun()[1])),
    "InfoMax.get_params: before init": (
        ArgumentError, "no state yet: call init first",
        lambda: ig.InfoMax(affine, XY).get_params(begun()[1])),
    "InfoMax.update: what update returned": (
        ArgumentError, "state must be an InfoMaxState.*Take",
        lambda: begun()[0].update(begun()[0].update(begun()[1]))),
    "InfoMax.get_params: None": (
        ArgumentError, "state must be an InfoMaxState.*None",
        lambda: begun()[0].get_params(None)),
    "InfoMax.update: the state of another model": (
        ArgumentError, "state must be.*of this model",
        lambda: begun()[0].update(begun(bounded(1.0))[1])),
    "InfoMax.update: surplus arguments": (
        ArgumentError, "model cannot be called.*too many",
        lambda: begun()[0].update(begun()[1], 1.0)),
    # rate_region
    "rate_region: no bounds": (
        ArgumentError, "bounds must be a dict.*such as", lambda: region({})),
    "rate_region: a list": (
        ArgumentError, "bounds must be a dict", lambda: region([MI("x1", "y")])),
    "rate_region: a number as bound": (
        ArgumentError, r"bound of \('r',\).*built from MI", lambda: region({"r": 1.0})),
    "rate_region: a name as bound": (
        ArgumentError, r"bound of \('r',\).*'x1'", lambda: region({"r": "x1"})),
    "rate_region: an expectation as bound": (
        ArgumentError, r"bound of \('r',\).*Expectation", lambda: region({"r": POWER})),
    "rate_region: an entropy as bound": (
        ArgumentError, r"bound of \('r',\).*Entropy\('y'\). Use an information",
        lambda: region({"r": Entropy("y")})),
    "rate_region: less than nothing as bound": (
        ArgumentError, r"bound of \('r',\).*-MI.*positive",
        lambda: region({"r": -MI("x1", "y")})),
    "rate_region: a number as rate": (
        ArgumentError, "bounds must be a name of a rate.*got 1",
        lambda: region({1: MI("x1", "y")})),
    "rate_region: many rates": (
        ArgumentError, "num_weights=21 makes 3108105 directions of 9.*Lower",
        lambda: region({f"r{i}": MI("x1", "y") for i in range(9)})),
    "rate_region: a checkpoint": (
        ArgumentError, "checkpoint is for one ascent.*Leave it out",
        lambda: region({"r": MI("x1", "y")}, checkpoint="run")),
    "contains: a name": (
        ArgumentError, r"rates must be finite numbers in 1 columns \(r\), got 'r'",
        lambda: one_rate().contains("r")),
    "contains: rows of two lengths": (
        ArgumentError, "rates must be finite numbers",
        lambda: one_rate().contains([[0.1], [0.1, 0.2]])),
    "contains: complex": (
        ArgumentError, "rates must be finite numbers",
        lambda: one_rate().contains([1j])),
    "contains: a string by name": (
        ArgumentError, "rates must be finite numbers.*'a'",
        lambda: one_rate().contains({"r": "a"})),
    "contains: slack": (
        ArgumentError, "slack must be a finite number.*nan",
        lambda: one_rate().contains([0.1], slack=np.nan)),
    "rate_region: an empty set": (
        ArgumentError, "bounds.*empty set.*Name one",
        lambda: region({(): MI("x1", "y")})),
    "rate_region: a set twice": (
        ArgumentError, "bounds.*'r', 's'.*twice. Leave",
        lambda: region(dict.fromkeys([("s", "r"), ("r", "s")], MI("x1", "y")))),
    "rate_region: a missing site": (
        SiteError, "'q'.*it has: x1, x2, y", lambda: region({"r": MI("q", "y")})),
    "rate_region: one weight": (
        ArgumentError, "num_weights.*at least 2.*1",
        lambda: region({"r": MI("x1", "y")}, num_weights=1)),
    "rate_region: weights as a float": (
        ArgumentError, "num_weights.*3.0",
        lambda: region({"r": MI("x1", "y")}, num_weights=3.0)),
    "rate_region: a seed": (
        ArgumentError, "rng_key.*Use", lambda: region({"r": MI("x1", "y")}, rng_key=0)),
    "rate_region: init_params": (
        ParameterError, "'q'.*it has: a, b",
        lambda: region({"r": MI("x1", "y")}, init_params={"q": 1.0})),
    "rate_region: no parameters": (
        ArgumentError, "no parameters: mark",
        lambda: ig.rate_region(fixed, {"r": XY}, **QUIET)),
    # calibrate
    "calibrate: an array": (
        ArgumentError, "observed must be a dict", lambda: fit(RECORDED)),
    "calibrate: no sites": (ArgumentError, "observed must be a dict", lambda: fit({})),
    "calibrate: arguments in the wrong order": (
        ArgumentError, "observed must be a dict",
        lambda: ig.calibrate({"y": RECORDED}, affine)),
    "calibrate: an unknown site": (
        ArgumentError, "observed .*'z'.*x, y",
        lambda: fit({"y": RECORDED, "z": RECORDED})),
    "calibrate: a parameter as a site": (
        ArgumentError, "observed .*'a'.*x, y", lambda: fit({"a": RECORDED})),
    "calibrate: few": (
        ArgumentError, "observed has 100 .*at least 512",
        lambda: recordings(lambda y: y[:100])),
    "calibrate: one number": (
        ArgumentError, r"'y' have shape \(\).*one row", lambda: fit({"y": 1.0})),
    "calibrate: none": (
        ArgumentError, "observed has 0 recordings, but at least 512",
        lambda: recordings(lambda y: y[:0])),
    "calibrate: too large": (
        ArgumentError, "1000 of 1000 .*'y' .*infinite",
        lambda: recordings(lambda y: 1e300 * np.sign(y))),
    "calibrate: far from zero": (
        ArgumentError, "recordings of 'y' are so far from zero.*Subtract",
        lambda: recordings(lambda y: y + 1e6)),
    "calibrate: another shape": (
        ArgumentError, r"'y' have shape \(1000, 1\)",
        lambda: recordings(lambda y: y[:, None])),
    "calibrate: strings": (
        ArgumentError, "'y' must be numbers", lambda: fit({"y": ["a"] * 1000})),
    "calibrate: bools": (
        ArgumentError, "'y' must be numbers", lambda: recordings(lambda y: y > 0)),
    "calibrate: None": (ArgumentError, "'y' must be numbers", lambda: fit({"y": None})),
    "calibrate: complex": (
        ArgumentError, "'y' are complex. Stack", lambda: recordings(lambda y: 1j * y)),
    "calibrate: NaN": (
        ArgumentError, "1 of 1000 .*'y' .*Drop these",
        lambda: recordings(lambda y: np.where(np.arange(1000) == 7, np.nan, y))),
    "calibrate: constant": (
        ArgumentError, "recordings of y are constant.*Leave",
        lambda: recordings(np.ones_like)),
    "calibrate: rounded": (
        ArgumentError, "'y' repeat.*add uniform noise", lambda: recordings(np.round)),
    "calibrate: unequal lengths": (
        ArgumentError, "'x': 900.*same recording",
        lambda: fit({"y": RECORDED, "x": RECORDED[:900]})),
    "calibrate: outside the support": (
        ArgumentError, "'y' are outside the support.*LogNormal",
        lambda: fit_with(lambda: numpyro.sample("y", dist.LogNormal(tuned(), 1.0)))),
    "calibrate: a discrete site": (
        ArgumentError, "'symbol' is discrete.*continuous",
        lambda: fit({"symbol": RECORDED}, pam)),
    "calibrate: a site that is observed already": (
        ArgumentError, "'y' is observed in the model. Leave out",
        lambda: fit_with(handlers.condition(affine, {"y": 1.0}))),
    "calibrate: a site that nothing moves": (
        ArgumentError, "no parameter reaches 'x': mark", lambda: fit({"x": RECORDED})),
    "calibrate: divergence": (
        ArgumentError, "divergence must be 'fisher' or 'kl'.*'KL'",
        lambda: fit_with(divergence="KL")),
    "calibrate: one level": (
        ArgumentError, "noise_levels must be a tuple",
        lambda: fit_with(noise_levels=0.1)),
    "calibrate: levels that fall": (
        ArgumentError, "noise_levels must be rising",
        lambda: fit_with(noise_levels=(0.2, 0.1))),
    "calibrate: a negative level": (
        ArgumentError, "noise_levels must be rising",
        lambda: fit_with(noise_levels=(-0.1,))),
    "calibrate: num_steps": (
        ArgumentError, "num_steps must be a positive int.*1.5",
        lambda: fit_with(num_steps=1.5)),
    "calibrate: num_steps as a bool": (
        ArgumentError, "num_steps must be a positive int, got True",
        lambda: fit_with(num_steps=True)),
    "calibrate: num_draws": (
        ArgumentError, "num_draws.*at least 20", lambda: fit_with(num_draws=19)),
    "calibrate: num_samples": (
        ArgumentError, "num_samples.*got 1000", lambda: fit_with(num_samples=1000)),
    "calibrate: hidden": (
        ArgumentError, "hidden must be a tuple", lambda: fit_with(hidden=())),
    "calibrate: a network and hidden": (
        ArgumentError, "hidden is for the built-in.*leave it out",
        lambda: fit_with(hidden=(8,), network=nnx.Linear)),
    "calibrate: projection": (
        ArgumentError, "projection must be a function",
        lambda: fit_with(projection=1.0)),
    "calibrate: init_params": (
        ParameterError, "'s' is outside.*inside",
        lambda: fit_with(bounded(1.0), init_params={"s": -1.0})),
    # pretrain_scores
    "pretrain_scores: no ranges": (
        ArgumentError, "over lacks parameter 'eta'.*Add bounds", lambda: pretrain({})),
    "pretrain_scores: a pair": (
        ArgumentError, "over must be a dict", lambda: pretrain((0.5, 2.0))),
    "pretrain_scores: an unknown parameter": (
        ArgumentError, "over names 'gain'.*it has: eta",
        lambda: pretrain({"gain": (0, 1)})),
    "pretrain_scores: reversed": (
        ArgumentError, r"over\['eta'\] must have low < high",
        lambda: pretrain({"eta": (2, 1)})),
    "pretrain_scores: infinite": (
        ArgumentError, r"over\['eta'\].*finite",
        lambda: pretrain({"eta": (0, np.inf)})),
    "pretrain_scores: one bound": (
        ArgumentError, r"over\['eta'\] must be \(low, high\)",
        lambda: pretrain({"eta": 2.0})),
    "pretrain_scores: a string": (
        ArgumentError, r"over\['eta'\] must be \(low, high\), numbers.*'01'",
        lambda: pretrain({"eta": "01"})),
    "pretrain_scores: strings": (
        ArgumentError, r"over\['eta'\] must be \(low, high\), numbers",
        lambda: pretrain({"eta": ("0", "1")})),
    "pretrain_scores: no parameters": (
        ArgumentError, "no parameters: mark",
        lambda: ig.pretrain_scores(fixed, XY, {})),
    "pretrain_scores: sites that nothing moves": (
        ArgumentError, "over is empty.*Use sites",
        lambda: ig.pretrain_scores(affine, Entropy("x"), {})),
    "pretrain_scores: a law that was not called": (
        ArgumentError, r"over\['eta'\].*distribution",
        lambda: pretrain({"eta": dist.Uniform})),
    "pretrain_scores: outside a constraint": (
        ArgumentError, r"over\['s'\] leaves.*Give a range inside",
        lambda: ig.pretrain_scores(bounded(1.0), XY, {"s": (-1.0, 1.0)})),
    "pretrain_scores: num_points": (
        ArgumentError, "num_points.*power of two",
        lambda: pretrain({"eta": (0, 1)}, num_points=100)),
    "pretrain_scores: scores that are not learned": (
        ArgumentError, "pretrain_scores.*'mixture'. Use 'denoising'",
        lambda: pretrain({"eta": (0, 1)}, scores="mixture")),
    "pretrained: another set of sites": (
        ScoreError, r"not trained for \('y',\).*Call pretrain_scores",
        lambda: grad(amplifier, scores=trained())),
    "pretrained: out of range": (
        ArgumentError, "'eta' is 4.0, outside.*wider range",
        lambda: grad(amplifier, params={"eta": 4.0}, scores=trained())),
    "pretrained: another model": (
        ScoreError, "scores were trained on another model.*Call pretrain_scores",
        lambda: grad(tanh_channel, scores=trained())),
    # Score methods
    "Denoising: no layers": (
        ArgumentError, "hidden must be a tuple", lambda: scores.Denoising(hidden=())),
    "Denoising: a negative width": (
        ArgumentError, r"hidden.*\(-8,\)", lambda: scores.Denoising(hidden=(-8,))),
    "Denoising: a width as a float": (
        ArgumentError, r"hidden.*\(64.0,\)", lambda: scores.Denoising(hidden=(64.0,))),
    "Denoising: num_networks": (
        ArgumentError, "num_networks must be 2, 4 or 8",
        lambda: scores.Denoising(num_networks=3)),
    "Denoising: networks as a float": (
        ArgumentError, "num_networks must be a positive int, got 4.0",
        lambda: scores.Denoising(num_networks=4.0)),
    "Denoising: a width as a bool": (
        ArgumentError, r"hidden.*\(True,\)", lambda: scores.Denoising(hidden=(True,))),
    "Denoising: refit as a bool": (
        ArgumentError, "refit must be.*True", lambda: scores.Denoising(refit=True)),
    "Denoising: noise_variance as a bool": (
        ArgumentError, "noise_variance must be.*True",
        lambda: scores.Denoising(noise_variance=True)),
    "Denoising: noise_variance as a string": (
        ArgumentError, "noise_variance must be.*'a'",
        lambda: scores.Denoising(noise_variance="a")),
    "Denoising: noise_variance as a list": (
        ArgumentError, r"noise_variance must be.*\[0.1\]",
        lambda: scores.Denoising(noise_variance=[0.1])),
    "Denoising: infinite noise_variance": (
        ArgumentError, "noise_variance must be a finite",
        lambda: scores.Denoising(noise_variance=np.inf)),
    "Denoising: noise_levels as strings": (
        ArgumentError, "noise_levels must be a tuple of numbers",
        lambda: scores.Denoising(noise_levels=("0.1", "0.2"))),
    "Denoising: num_steps": (
        ArgumentError, "num_steps must be a positive int",
        lambda: scores.Denoising(num_steps=0)),
    "Denoising: batch_size": (
        ArgumentError, "batch_size is 2: too few",
        lambda: scores.Denoising(batch_size=2)),
    "Denoising: pool_size": (
        ArgumentError, "pool_size.*power of two",
        lambda: scores.Denoising(pool_size=1000)),
    "Denoising: learning_rate": (
        ArgumentError, "learning_rate must be a finite number.*'fast'",
        lambda: scores.Denoising(learning_rate="fast")),
    "Denoising: refit": (
        ArgumentError, "refit must be.*'auto'.*'never'",
        lambda: scores.Denoising(refit="never")),
    "Denoising: noise_variance": (
        ArgumentError, r"noise_variance must be .*\(0, inf\), got -0.1",
        lambda: scores.Denoising(noise_variance=-0.1)),
    "Denoising: noise_levels": (
        ArgumentError, "noise_levels must be two or more",
        lambda: scores.Denoising(noise_levels=(0.1,))),
    "Denoising: num_samples": (
        ArgumentError, "num_samples.*got 100",
        lambda: grad(amplifier, scores=scores.Denoising(num_samples=100))),
    "Denoising: a network by name": (
        ArgumentError, "network='mlp' is not a function. Pass make",
        lambda: scores.Denoising(network="mlp")),
    "Denoising: a network that is made already": (
        ArgumentError, "network is a Linear.*Pass make",
        lambda: scores.Denoising(network=nnx.Linear(1, 2, rngs=nnx.Rngs(0)))),
    "Denoising: a network of nothing": (
        ArgumentError, "network=.*failed.*Pass make",
        lambda: networks(lambda inputs, rngs: None)),
    "Denoising: a network that looks up a name": (
        ArgumentError, "network=.*failed.*'width.*Pass make",
        lambda: networks(lambda inputs, rngs: {}["width"])),
    "Denoising: a network with state": (
        ArgumentError, "network=.*state.*Use layers",
        lambda: networks(lambda inputs, rngs: nnx.Dropout(0.5, rngs=rngs))),
    "Sliced: hidden": (
        ArgumentError, "hidden must be", lambda: scores.Sliced(hidden=64)),
    "FlowMatching: times that rise": (
        ArgumentError, "times must be.*falling",
        lambda: scores.FlowMatching(times=(0.8, 0.9))),
    "FlowMatching: one time": (
        ArgumentError, "times must be a tuple", lambda: scores.FlowMatching(times=0.9)),
    "Mixture: num_components": (
        ArgumentError, "num_components.*power of two",
        lambda: scores.Mixture(num_components=0)),
    "Denoising: a number of samples": (
        ArgumentError, "num_samples must be a power of two.*got 1000",
        lambda: scores.Denoising(num_samples=1000)),
    "Posterior: a number of samples": (
        ArgumentError, "num_samples must be a power of two.*got -3",
        lambda: scores.Posterior(num_samples=-3)),
    "Analytic: a number of samples": (
        ArgumentError, "num_samples must be a power of two.*got 1000",
        lambda: scores.Analytic({"y": lambda p, v: v["y"]}, num_samples=1000)),
    "estimate: bits of an expectation": (
        ArgumentError, "unit='bits' is for information",
        lambda: ig.estimate(affine, Expectation(lambda v: v["x"]), unit="bits")),
    "Mixture: block_size": (
        ArgumentError, "block_size.*power of two",
        lambda: scores.Mixture(block_size=100)),
    "Posterior: model": (
        ArgumentError, "model must be a NumPyro model",
        lambda: scores.Posterior(model="guide")),
    "Posterior: num_components": (
        ArgumentError, "num_components must be",
        lambda: scores.Posterior(num_components=2.5)),
    "Posterior: batch_size": (
        ArgumentError, "batch_size is 2: too few",
        lambda: scores.Posterior(batch_size=2)),
    "Posterior: symbols": (
        ArgumentError, "prepare sets symbols.*3: leave",
        lambda: scores.Posterior(symbols=3)),
    "Posterior: another kind of law": (
        ScoreError, "makes 'x' discrete, but in your.*continuous. Give",
        lambda: posterior(guess(lambda m: dist.Bernoulli(logits=m)))),
    "Posterior: another support": (
        ScoreError, "'x' a distribution whose support.*Give it a",
        lambda: posterior(guess(lambda m: dist.LogNormal(m, 1.0)))),
    "Posterior: another shape": (
        ScoreError, r"'x' in shape \(2,\), but in your.*\(\). Give",
        lambda: posterior(guess(lambda m: dist.Normal(m * jnp.ones(2), 1.0)))),
    "Posterior: an if": (
        ScoreError, "posterior model asks for.*jnp.where",
        lambda: posterior(guess(lambda m: dist.Normal(m if m > 0 else 0.0, 1.0)))),
    "Posterior: other arguments": (
        ScoreError, r"\['y'\].*'z'.*Name its arguments", lambda: posterior(misnamed)),
    "Posterior: other sites": (
        ScoreError, r"\['z'\], expected \['x'\]", lambda: posterior(another_site)),
    "Posterior: no parameters": (
        ScoreError, "posterior model has no parameters.*numpyro.param",
        lambda: posterior(untrainable)),
    "Posterior: inputs that a parameter moves": (
        ScoreError, r"\['x'\]. Use scores='denoising'",
        lambda: grad(common_cause, scores="posterior")),
    "Analytic: a function": (
        ArgumentError, "Analytic takes a dict.*such as",
        lambda: scores.Analytic(power)),
    "Analytic: an unknown set": (
        ScoreError, r"Analytic has no score for \('y',\).*Add an entry",
        lambda: analytic({("y", "q"): lambda params, v: -v["y"]})),
    "Analytic: another shape": (
        ScoreError, r"score of \('y',\) has shape \(3,\)",
        lambda: analytic({"y": lambda params, v: jnp.ones(3)})),
    "Analytic: a dict without the site": (
        ScoreError, r"score of \('y',\) lacks \['y'\]",
        lambda: analytic({"y": lambda params, v: {}})),
    "Analytic: a number as key": (
        ArgumentError, "key of Analytic must be a site name.*3",
        lambda: analytic({3: power})),
    "Analytic: a number as function": (
        ArgumentError, "Analytic needs a function for 'y', got 3. Write",
        lambda: analytic({"y": 3})),
    "Analytic: one argument": (
        ScoreError, r"score of \('y',\) failed.*parameters eta.*sites y",
        lambda: analytic({"y": lambda v: 0.0})),
    "Analytic: a site that is missing": (
        ScoreError, r"score of \('y',\) looked up 'q'.*sites y",
        lambda: analytic({"y": lambda params, v: v["q"]})),
    "Analytic: an if": (
        ScoreError, r"score of \('y',\) asks for.*jnp.where",
        lambda: analytic({"y": lambda params, v: 1.0 if v["y"] > 0 else -v["y"]})),
    "Analytic: of NumPy": (
        ScoreError, r"score of \('y',\) asks for.*jax.numpy",
        lambda: analytic({"y": lambda params, v: -np.sin(v["y"])})),
    "Analytic: None": (
        ScoreError, r"score of \('y',\) must be real numbers, got None",
        lambda: analytic({"y": lambda params, v: None})),
    "Analytic: truths": (
        ScoreError, r"score of \('y',\) must be real numbers.*bool",
        lambda: analytic({"y": lambda params, v: v["y"] > 0})),
    "Analytic: complex": (
        ScoreError, r"score of \('y',\) must be real numbers.*complex",
        lambda: analytic({"y": lambda params, v: 1j * v["y"]})),
    # check_scores, to_inference_data and figures
    "check_scores: no parameters": (
        ArgumentError, "no parameters: mark",
        lambda: ig.diagnostics.check_scores(fixed, XY, verbose=False)),
    "check_scores: misspelt scores": (
        ArgumentError, "scores must be one of.*'typo'", lambda: check(scores="typo")),
    "check_scores: num_samples": (
        ArgumentError, "num_samples.*got 1000", lambda: check(num_samples=1000)),
    "check_scores: a seed": (ArgumentError, "rng_key.*Use", lambda: check(rng_key=1)),
    "check_scores: params": (
        ParameterError, "'q'.*it has: eta", lambda: check(params={"q": 1.0})),
    "check_scores: nothing to plot": (
        ArgumentError, "no chain checked these scores",
        lambda: ig.diagnostics.check_scores(affine, XY, verbose=False).plot()),
    "to_inference_data: no steps": (
        ArgumentError, "neither steps nor draws",
        lambda: ig.Result({}, None, {}, "interrupted").to_inference_data()),
    # structural_model and its methods
    "structural_model: a name": (
        ArgumentError, "model must be.*'model'. Pass",
        lambda: ig.structural_model("model")),
    "structural_model: traced already": (
        ArgumentError, "takes no arguments",
        lambda: ig.structural_model(ig.structural_model(affine), 1.0)),
    "structural_model: NaN": (
        ArgumentError, "'gain'.*not finite. Clean",
        lambda: ig.structural_model(gained, gain=np.nan)),
    "sample: none": (
        ArgumentError, "num_samples.*got 0",
        lambda: ig.structural_model(affine).sample(KEY, 0)),
    "sample: arguments in the wrong order": (
        ArgumentError, "rng_key.*got 4",
        lambda: ig.structural_model(affine).sample(4, KEY)),
    "sample: params": (
        ParameterError, "'q'.*it has: a",
        lambda: ig.structural_model(affine).sample(KEY, 4, {"q": 1.0})),
    "sample: a float": (
        ArgumentError, "num_samples must be a positive int, got 1.5",
        lambda: traced().sample(KEY, 1.5)),
    "sample: a bool": (
        ArgumentError, "num_samples must be a positive int, got True",
        lambda: traced().sample(KEY, True)),
    "sample: outside a constraint": (
        ParameterError, "'s' is outside",
        lambda: traced(bounded(1.0)).sample(KEY, 4, {"s": -1.0})),
    "sample_noise: a string": (
        ArgumentError, "num_samples must be a positive int, got '4'",
        lambda: traced().sample_noise(KEY, "4")),
    "sample_noise: None": (
        ArgumentError, "num_samples must be a positive int, got None",
        lambda: traced().sample_noise(KEY, None, qmc=True)),
    "sample_noise: no power of two": (
        ArgumentError, "num_samples.*1000. Use 1024",
        lambda: ig.structural_model(affine).sample_noise(KEY, 1000, qmc=True)),
    "evaluate: params": (
        ParameterError, "'a'.*number",
        lambda: ig.structural_model(affine).evaluate({"a": "1"}, {})),
    "evaluate: no noise": (
        ArgumentError, "noise must be a dict.*x, y.*None. Draw it with sample_noise",
        lambda: drawn(lambda noise: None)),
    "evaluate: noise of one site": (
        ArgumentError, "noise must be a dict.*x, y",
        lambda: drawn(lambda noise: {"x": noise["x"]})),
    "evaluate: surplus noise": (
        ArgumentError, "noise must be a dict.*x, y",
        lambda: drawn(lambda noise: noise | {"z": noise["x"]})),
    "evaluate: noise of another shape": (
        ArgumentError, r"noise of 'y' must be.*\(4, 1\). Draw",
        lambda: drawn(lambda noise: noise | {"y": noise["y"][:, None]})),
    "evaluate: noise as text": (
        ArgumentError, "noise of 'y' must be a normal array",
        lambda: drawn(lambda noise: noise | {"y": np.array(["a"] * 4)})),
    "density: an unknown site": (
        SiteError, r"no site 'q' \(it has: x, y\). Name one",
        lambda: traced().density(("q",))),
    "density: given itself": (
        ArgumentError, "sites and given share 'y'.*disjoint",
        lambda: traced().density(("y",), ("y",))),
    "params_of: an unknown site": (
        SiteError, "no site 'v1'", lambda: traced().params_of("v1")),
    "noise_of: an unknown site": (
        SiteError, "no site 'q'", lambda: traced().noise_of(("q",))),
    "noise_given: an unknown site": (
        SiteError, "no site 'q'", lambda: traced().noise_given(("q",), ("y",))),
    "forward_given: an unknown site": (
        SiteError, "no site 'q'", lambda: traced().forward_given(("q",))),
    "example: an unknown site": (
        SiteError, "no site 'q'", lambda: traced().example("q")),
    # exogenous
    "register: a type": (
        ArgumentError, "register takes a Distribution class.*int",
        lambda: exogenous.register(int)),
    "register: a known class": (
        ArgumentError, "Normal is already known.*derive",
        lambda: exogenous.register(dist.Normal)),
    "register: half": (
        ArgumentError, "Ours.*both base_noise and transform",
        lambda: exogenous.register(Ours, transform=power)),
    "register: numbers as functions": (
        ArgumentError, "Ours. takes functions.*got 1 and 2",
        lambda: exogenous.register(Ours, base_noise=1, transform=2)),
    "register: one name as boundary": (
        ArgumentError, "boundary must be a tuple of names.*'loc'",
        lambda: exogenous.register(Ours, boundary="loc")),
    "noise_of: None": (
        ArgumentError, "fn must be a NumPyro distribution, got None. Call",
        lambda: exogenous.noise_of(None)),
    "noise_of: a class": (
        ArgumentError, "fn must be a NumPyro distribution.*Normal.*Call its class",
        lambda: exogenous.noise_of(dist.Normal)),
    "transform: noise of another shape": (
        ArgumentError, r"noise for Normal has shape \(3,\).*draw it as noise_of",
        lambda: exogenous.transform(dist.Normal(), jnp.zeros(3), ())),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str) -> None:
    error, words, call = CASES[name]
    with pytest.raises(error, match=re.compile(words, re.DOTALL)) as caught:
        call()
    assert caught.type is error


# Every public function of a model and an objective, by how to call it.
IN_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "gradient(model, objective)": ig.gradient,
    "estimate(model, objective)": ig.estimate,
    "maximize(model, objective)": ig.maximize,
    "minimize(model, objective)": ig.minimize,
    "InfoMax(model, objective)": ig.InfoMax,
    "pretrain_scores(model, objective, over)": (
        lambda *both: ig.pretrain_scores(*both, {"a": (0.5, 2.0)})
    ),
    "diagnostics.check_scores(model, objective)": ig.diagnostics.check_scores,
    "values.value_of(sm, objective, params, rng_key)": (
        lambda *both: values.value_of(*both, {"a": 1.0}, KEY)
    ),
}


@pytest.mark.parametrize("call", IN_ORDER)
def test_the_model_comes_first(call: str) -> None:
    name = call.partition("(")[0].rpartition(".")[2]
    order = re.escape(f"{name} takes the model first: write ig.{call}.")
    for model in (affine, traced()):
        with pytest.raises(ArgumentError, match=f"^{order}$"):
            IN_ORDER[call](XY, model)
        with pytest.raises(ArgumentError, match=f"(?s)^objective must be.* {order}$"):
            IN_ORDER[call](model, model)


def test_a_model_may_name_its_arguments_as_it_likes() -> None:
    taken = ascend(awkward, model_kwargs={"num_steps": 1.0, "model": 1.0})
    assert taken.params["a"] > 1.0


def test_numbers_of_numpy_and_jax_are_numbers() -> None:
    assert scores.Denoising(noise_variance=np.float32(0.5)).noise_variance == 0.5
    assert scores.Denoising(num_steps=np.array(9)).num_steps == 9
    assert (POWER <= jnp.asarray(2)).bound == 2
    for count in (np.int8(4), np.array(4), jnp.asarray(4)):
        assert traced().sample(KEY, count)["y"].shape == (4,)
    found = grad(affine, allow_jumps=np.bool_(True))
    assert found.value["a"] == pytest.approx(0.5)
