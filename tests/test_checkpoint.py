# SPDX-License-Identifier: Apache-2.0
"""Runs that are stopped, killed and taken up again."""

import functools
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import links
from methods import rest_slow, slow
from models import channel
import numpy as np
from orbax.checkpoint import CheckpointManager
import pytest

import jax
import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from helpers import quiet
import numpyro_infograd as ig
from numpyro_infograd._checkpoint import digest
from numpyro_infograd._optimize import log, run
from numpyro_infograd._program import Program
from numpyro_infograd.errors import CheckpointError

SPHERE = {"projection": optax.projections.projection_l2_sphere}
CASES = {
    "exact": (links.link, SPHERE),
    "mixture, open end": (links.amplifier, {"num_samples": 256}),
    "denoising": (links.amplifier, {"scores": "denoising", "num_steps": 60}),
    "cooled": (links.amplifier, {"annealing": 1.0, "num_steps": 100}),
    "restarts": (links.link, {"num_restarts": 3, **SPHERE}),
    "budget": (
        links.link,
        {"subject_to": ig.Expectation(lambda v: v["v1"] ** 2) <= 3.0, "num_steps": 100},
    ),
    "a mixture that gives out": (links.quiet_amplifier, {"num_steps": 60}),
}


class Stop(BaseException):
    """What no handler in the package catches, as a killed process."""


def ascend(model, path=None, **settings):
    """`maximize_mi` from x to y without a bar."""
    return quiet.maximize_mi(model, "x", "y", checkpoint=path, **settings)


def same(a: ig.Result, b: ig.Result) -> bool:
    """Bit for bit, in all that a result holds."""
    numbers = lambda r: (r.params, r.history, r.histories)  # noqa: E731
    alike = jax.tree.map(
        lambda x, y: bool(np.array_equal(x, y, equal_nan=True)), numbers(a), numbers(b)
    )
    said = lambda r: (r.status, r.estimate, repr(r.constraints), r.diagnostics)  # noqa: E731
    return jax.tree.all(alike) and said(a) == said(b)


@pytest.fixture
def stop_after(monkeypatch):
    """Raise an exception instead of some chunk of steps; save after every chunk."""
    monkeypatch.setattr(log, "_PAUSE", 0.0)
    monkeypatch.setattr(log, "_SHARE", np.inf)
    whole = run.ascend_many

    def arrange(count: int | None, error: type[BaseException] = Stop) -> None:
        calls = iter(range(10**6))

        def chunk(*args):
            if next(calls) == count:
                raise error
            return whole(*args)

        monkeypatch.setattr(run, "ascend_many", chunk)

    return arrange


@rest_slow("case", CASES)
def test_a_run_that_was_stopped_ends_as_if_it_was_not(case, tmp_path, stop_after):
    model, settings = CASES[case]
    whole = ascend(model, **settings)
    for count in (2, 1, 3):  # chunks until it is stopped, again and again
        stop_after(count)
        try:
            ascend(model, tmp_path / "run", **settings)
        except Stop:
            continue
    stop_after(None)
    assert same(whole, ascend(model, tmp_path / "run", **settings))
    stop_after(0)  # it has ended: no step is taken again
    assert same(whole, ascend(model, tmp_path / "run", **settings))


def test_an_interrupted_run_is_saved_to_its_last_chunk(
    tmp_path, stop_after, monkeypatch
) -> None:
    whole = ascend(links.link, **SPHERE)
    stop_after(4, KeyboardInterrupt)
    monkeypatch.setattr(log, "_PAUSE", 1e9)  # nothing is saved on the way
    part = ascend(links.link, tmp_path, **SPHERE)
    assert part.status.startswith("interrupted")
    assert len(part.history["gradient_norm"]) == 4 * run.CHUNK
    stop_after(None)
    steps, chunk = [], run.ascend_many
    counted = lambda *args: steps.append(len(args[-1])) or chunk(*args)  # noqa: E731
    monkeypatch.setattr(run, "ascend_many", counted)
    assert same(whole, ascend(links.link, tmp_path, **SPHERE))
    assert sum(steps) == run.CYCLE - 4 * run.CHUNK


def test_other_runs_are_refused(tmp_path) -> None:
    ascend(links.link, tmp_path, num_steps=20, **SPHERE)

    cases = [
        (functools.partial(links.link, jnp.sin), {}, "computation|scores"),
        (links.link, {"num_steps": 40}, "num_steps"),
        (links.link, {"rng_key": jax.random.key(1)}, "rng_key"),
        (links.link, {"init_params": {"b": 0.5}}, "start"),
        (links.link, {"num_restarts": 2}, "num_restarts"),
        (links.link, {"optimizer": optax.sgd(0.1)}, "optimizer differs"),
        (links.link, {"scores": "mixture"}, "scores"),
        (links.link, {"projection": None}, "start|computation"),
        (links.amplifier, {}, "sites"),
    ]
    for model, change, what in cases:
        settings = {"num_steps": 20, **SPHERE, **change}
        with pytest.raises(CheckpointError, match=f"another run: its ({what})"):
            ascend(model, tmp_path, **settings)
    settings = {"checkpoint": tmp_path, "num_steps": 20, **SPHERE}
    with pytest.raises(CheckpointError, match="another run: its objective"):
        quiet.minimize(links.link, ig.MI("x", "y"), **settings)


def narrow(size: int):
    """A network of so many features, that does not say so."""
    return (
        lambda rng_key, num_inputs: jax.random.normal(rng_key, (num_inputs, size)),
        lambda params, inputs: jnp.tanh(inputs @ params),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ({}, {"constraint": constraints.softplus_positive}, ""),
        ({"optimizer": optax.inject_hyperparams(optax.adam)(0.1)},
         {"optimizer": optax.inject_hyperparams(optax.adam)(0.01)}, "optimizer"),
        ({"scores": ig.scores.Analytic({"y": lambda p, v: -v["y"]})},
         {"scores": ig.scores.Analytic({"y": lambda p, v: -2 * v["y"]})}, ""),
        slow({"scores": ig.scores.Denoising(network=narrow(8), num_steps=2)},
             {"scores": ig.scores.Denoising(network=narrow(4), num_steps=2)}, ""),
    ],
    ids=["constraint", "rate in the optimizer's state", "formula", "network"],
)  # fmt: skip
def test_settings_that_show_in_no_name_are_told_apart(first, second, what, tmp_path):
    def run(settings) -> None:
        quick = {"num_steps": 20, "num_samples": 256, **settings}
        constraint = quick.pop("constraint", constraints.positive)

        def law(x):
            gain = numpyro.param("gain", 1.0, constraint=constraint)
            return dist.Normal(jnp.tanh(gain * x), 0.5)

        ascend(channel(law), tmp_path, **quick)

    run(first)
    with pytest.raises(CheckpointError, match=f"its {what or 'computation'} "):
        run(second)


def test_an_interrupt_waits_for_a_save(tmp_path, stop_after, monkeypatch) -> None:
    stop_after(None)
    whole = CheckpointManager.save

    def save(*args, **settings):
        signal.raise_signal(signal.SIGINT)
        return whole(*args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointManager, "save", save)
        part = ascend(links.link, tmp_path, **SPHERE)
    assert part.status.startswith("interrupted by the user")
    assert len(part.history["gain"]) == run.CHUNK
    assert same(ascend(links.link, tmp_path, **SPHERE), ascend(links.link, **SPHERE))


def test_a_folder_in_use_says_what_it_holds(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="holds other things .'file'"):
        ascend(links.link, tmp_path, num_steps=20, **SPHERE)


@pytest.mark.parametrize("how", ["cut", "emptied", "foreign"])
def test_damaged_checkpoints_are_refused(how, tmp_path) -> None:
    path = tmp_path / "run"
    ascend(links.link, path, num_steps=20, **SPHERE)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if how == "cut":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        elif how == "emptied":
            file.unlink()
        elif file.parent.name == "facts":
            file.write_text('{"a": 1}')
    with pytest.raises(CheckpointError, match="damaged, or not of this package"):
        ascend(links.link, path, num_steps=20, **SPHERE)


def test_fingerprints_tell_computations_apart() -> None:
    """Equal for equal computations, other for another operation, number or shape."""

    def of(fn, x=1.0):
        return digest([Program.trace(fn, jnp.asarray(x))])

    two, three = np.full(3, 2.0, np.float32), np.full(3, 3.0, np.float32)
    assert of(lambda x: two * x) == of(lambda renamed: two * renamed)
    others = [lambda x: three * x, lambda x: two + x, lambda x: two * x * 2]
    assert len({of(fn) for fn in [lambda x: two * x, *others]}) == 4
    assert of(lambda x: 2 * x) != of(lambda x: 2 * x, np.ones(2, np.float32))
    assert of(by_callback(two)) == of(by_callback(two.copy())) != of(by_callback(three))


def by_callback(factor):
    """A function that JAX cannot look into, of an array that can change in place."""
    shape = jax.ShapeDtypeStruct(factor.shape, np.float32)
    return lambda x: jax.pure_callback(lambda y: np.float32(factor * y), shape, x)


HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
SCRIPT = """
import sys
import jax, numpy as np
import links
import numpyro_infograd as ig
path = sys.argv[1] if len(sys.argv) > 1 else None
r = ig.maximize_mi(links.amplifier, "x", "y", checkpoint=path, progress_bar=False,
                   num_samples=2048, num_steps=3000)
leaves = jax.tree.leaves((r.params, r.history))
print([np.asarray(x).tobytes().hex() for x in leaves], r.estimate)
"""


@pytest.mark.slow
def test_killed_runs_end_bit_for_bit(tmp_path) -> None:
    """Runs killed at random moments, against one that was not."""
    env = ENVIRONMENT | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    script = [sys.executable, "-c", SCRIPT]
    whole = subprocess.run(script, env=env, capture_output=True, check=True).stdout
    began = time.monotonic()
    again = subprocess.run(script, env=env, capture_output=True, check=True).stdout
    took = time.monotonic() - began
    assert again == whole
    rng = np.random.default_rng(0)
    killed = 0
    for trial in range(200):
        command = [*script, str(tmp_path / f"run{trial}")]
        for wait in [*rng.uniform(0.3 * took, 1.3 * took, size=3), None]:
            process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
            try:
                out, _ = process.communicate(timeout=wait)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                killed += 1
                continue
            assert process.returncode == 0
            assert out == whole
            break
        if killed >= 20:
            return
    pytest.fail("too few runs lived long enough to be killed")


MEMORY = """
import resource, sys
import links
import numpyro_infograd as ig

def peak(num_steps, name):
    path = f"{sys.argv[1]}/{name}" if len(sys.argv) > 1 else None
    ig.maximize_mi(links.amplifier, "x", "y", checkpoint=path, progress_bar=False,
                   num_samples=256, num_steps=num_steps)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

first = max([peak(200, str(i)) for i in range(4)])  # allocators fill by then
print(peak(10_000, "long") - first)
"""


@pytest.mark.slow
@pytest.mark.parametrize("saved", [False, True], ids=["alone", "saved"])
def test_ten_thousand_steps_hold_their_memory(saved, tmp_path) -> None:
    command = [sys.executable, "-c", MEMORY, *([str(tmp_path)] if saved else [])]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=True)
    assert float(done.stdout) < 30  # megabytes; a history of 10,000 steps is one
