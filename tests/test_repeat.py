# SPDX-License-Identifier: Apache-2.0
"""What repeated use costs: compilations, import time, forward simulations."""

from collections.abc import Callable
import subprocess
import sys
import time

import links
from methods import slow
from models import with_gain
import numpy as np
import pytest

import jax
import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist

from helpers import information, quiet
import numpyro_infograd as ig
from numpyro_infograd import _compiling
from numpyro_infograd._compiling import quick_jit
from numpyro_infograd.scores import Analytic, Denoising, Mixture

XY = ig.MI("x", "y")
METHODS = {
    "exact": "exact",
    "mixture": Mixture(num_components=256, num_samples=256),
    "denoising": Denoising(
        hidden=(8,), num_steps=5, batch_size=256, pool_size=1024, num_samples=256
    ),
}


@pytest.fixture(scope="module")
def compilations() -> list[str]:
    """Grows by one entry for each program that XLA compiles."""
    found: list[str] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event.endswith("backend_compile_duration"):
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x * 1.2345)(1.0)
    assert found  # the event still has that name
    return found


def count(compilations: list[str], call: Callable[[], object]) -> int:
    before = len(compilations)
    call()
    return len(compilations) - before


def closure(weight: float):
    """A model that captures a constant."""
    captured = jnp.asarray(weight)
    return with_gain(lambda m: dist.Normal(captured * m, 1))


@pytest.mark.parametrize("name", ["exact", "mixture", slow("denoising")])
def test_a_second_gradient_compiles_nothing(compilations, name) -> None:
    def call(weight, a, seed):
        settings = {"params": {"a": a}, "rng_key": jax.random.key(seed)}
        return ig.gradient(closure(weight), XY, scores=METHODS[name], **settings)

    first = call(1.0, 1.0, 0)
    assert count(compilations, lambda: call(1.0, 2.0, 1)) == 0  # other values
    assert count(compilations, lambda: call(3.0, 1.0, 0)) == 0  # another closure
    # The new constant is seen: I is that of the gain 3, dI/da = 9 a / (1 + 9 a^2).
    assert float(first.value["a"]) == pytest.approx(0.5, abs=0.05)
    assert float(call(3.0, 1.0, 0).value["a"]) == pytest.approx(0.9, abs=0.1)


def value(weight, a):
    nested = ig.values.Nested(256, 256, 256)
    return information(closure(weight), params={"a": a}, method=nested)


def ascent(weight, a):
    objective = XY - 0.1 * ig.Expectation(power)
    start = {"a": a}
    return quiet.maximize(closure(weight), objective, init_params=start, num_steps=20)


@pytest.mark.parametrize("call", [ascent, slow(value)])
def test_a_second_one_compiles_nothing(compilations, call) -> None:
    call(1.0, 1.0)
    assert count(compilations, lambda: call(2.0, 0.5)) == 0


def scaled(s, slope=1.0):
    scale = 1 / (1 + s**2)
    with_gain(lambda m: dist.Normal(slope * jnp.tanh(m) + 2 * s, scale))()


@pytest.mark.slow
def test_another_float_as_an_argument_compiles_nothing(compilations) -> None:
    def call(*args, **kwargs):
        settings = {"model_args": args, "model_kwargs": kwargs, "num_samples": 256}
        return ig.gradient(scaled, XY, scores=METHODS["mixture"], **settings).value["a"]

    call(0.5, slope=1.0)
    found = []
    assert count(compilations, lambda: found.append(call(0.7, slope=2.0))) == 0
    right = call(jnp.asarray(0.7), slope=jnp.asarray(2.0))
    assert float(found[0]) == pytest.approx(float(right), rel=1e-5)


def test_a_float_as_an_argument_is_a_float() -> None:
    """Python decides by it, and the facts of a model are those of a constant."""
    seen = []

    def model(s):
        seen.append((isinstance(s, float), s > 0.4, f"{s}", {0.5: 1}[s]))
        numpyro.sample("u", dist.Uniform(-s, s + 1.0))
        numpyro.sample("g", dist.Gamma(s, 1.0))
        numpyro.sample("t", dist.TruncatedNormal(0.0, 1.0, low=s))
        numpyro.sample("b", dist.Beta(3 * s, 1 + s**2))
        numpyro.sample("n", dist.Normal(abs(-s), 2 / s).expand([2]).to_event(1))

    found = ig.structural_model(model, 0.5).site_info
    constant = ig.structural_model(lambda: model(0.5)).site_info
    assert set(seen) == {(True, True, "0.5", 1)}
    for name, site in found.items():
        one, other = (s._replace(unconstrain=None) for s in (site, constant[name]))
        assert one == other
        assert (site.unconstrain is None) == (constant[name].unconstrain is None)
    assert found["u"].unconstrain is not None


def power(v):
    return v["y"] ** 2


# -- time ------------------------------------------------------------------------
def fastest(call: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return min(times)


def import_time(statement: str) -> float:
    """Best of three fresh interpreters, inside which the import is timed."""
    code = (
        f"import time; t = time.perf_counter(); {statement}; "
        "print(time.perf_counter() - t)"
    )
    command = [sys.executable, "-c", code]
    return min(float(subprocess.check_output(command)) for _ in range(3))


@pytest.mark.slow
def test_import_adds_little_to_numpyro() -> None:
    for _ in range(3):  # other work on the machine may disturb a measurement
        with_it = import_time("import numpyro, numpyro_infograd")
        without = import_time("import numpyro")
        if with_it <= 1.3 * without:
            return
    pytest.fail(f"{with_it:.2f} s with the package, {without:.2f} s without")


def wide(size: int) -> Callable[[], None]:
    """A hidden layer of `size` units on two numbers; 2 x size parameters."""
    out = jnp.ones((2, size)) / size

    def model():
        w = numpyro.param("w", jnp.sin(jnp.arange(2.0 * size)).reshape(size, 2))
        u = numpyro.sample("u", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("y", dist.Normal(out @ jnp.tanh(w @ u), 1.0).to_event(1))

    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_params", "num_samples"), [(10, 1 << 18), (100_000, 256)], ids=str
)
def test_a_gradient_costs_a_few_simulations(num_params, num_samples) -> None:
    """With scores at hand: one pass forward, one back, one for p(y|u)."""
    sm = ig.structural_model(wide(num_params // 2))
    scores = Analytic({"y": lambda p, v: -v["y"], ("u", "y"): lambda p, v: -v["y"]})
    key = jax.random.key(0)

    def simulate():
        return sm.evaluate({}, sm.sample_noise(key, num_samples, qmc=True))["y"]

    # Steps of an ascent, which need no certificate of the scores.
    settings = {"scores": scores, "num_samples": num_samples}
    ascent = ig.InfoMax(sm, ig.MI("u", "y"), optax.sgd(0.1), **settings)
    state = ascent.init(key)

    def pull_back():
        return ascent.update(state)[1].gradient

    simulate(), pull_back()
    ratios = []
    for _ in range(3):
        ratios.append(fastest(pull_back) / fastest(simulate))
        if ratios[-1] <= 4:
            return
    pytest.fail(f"a gradient costs {min(ratios):.1f} simulations")


def test_models_do_not_pile_up_in_the_cache() -> None:
    """The closures of one model share one compiled program."""
    from numpyro_infograd._estimation import _exact_gradient

    for weight in range(2):
        ig.gradient(closure(float(weight)), XY, scores="exact")
    before = _exact_gradient._cache_size()
    for weight in range(5):
        ig.gradient(closure(0.1 * weight), XY, scores="exact")
    assert _exact_gradient._cache_size() == before


def test_the_link_is_traced_in_milliseconds() -> None:
    ig.structural_model(links.link)
    assert fastest(lambda: ig.structural_model(links.link).params) < 0.5


# -- quick compilation ---------------------------------------------------------------
def test_quick_programs_give_the_same_numbers_everywhere() -> None:
    """Alone with compiler options; inside other transformations, which allow none."""

    def curve(x, power=1):
        return jnp.sin(x) ** power

    quick, x = quick_jit(curve, static_argnames="power"), jnp.linspace(0.0, 1.0, 5)
    ways = {
        "alone": (quick(x, power=3), curve(x, 3)),
        "jit": (jax.jit(lambda: quick(x, power=3))(), curve(x, 3)),
        "vmap": (jax.vmap(quick)(x), curve(x)),
        "grad": (jax.grad(quick)(0.5), jnp.cos(0.5)),
        "scan": (jax.lax.scan(lambda c, _: (quick(c), c), 1.0, x)[1][1], jnp.sin(1.0)),
    }
    for way, (got, truth) in ways.items():
        np.testing.assert_allclose(got, truth, rtol=1e-6, err_msg=way)


def test_compiler_options_that_xla_does_not_know_are_left_out(monkeypatch) -> None:
    """A later XLA may have removed one."""
    monkeypatch.setitem(_compiling._OPTIONS, "xla_no_such_option", 1)
    known = _compiling._options.__wrapped__("cpu")
    assert known and "xla_no_such_option" not in known
    assert _compiling._options.__wrapped__("gpu") is None
