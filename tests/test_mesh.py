# SPDX-License-Identifier: Apache-2.0
"""Samples on several devices, and in several processes, give the same numbers."""

import json
import os
from pathlib import Path
import socket
import subprocess
import sys

import links
import numpy as np
import pytest

import jax

import numpyro_infograd as ig
from numpyro_infograd.errors import ArgumentError

HERE = Path(__file__).parent

START = """
import json
import sys

devices, count, index, port = map(int, sys.argv[1:])
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", devices)
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, index)
import links
import numpyro_infograd as ig

size = len(jax.devices())
assert size == devices * count
mesh = jax.make_mesh((size,), ("samples",)) if size > 1 else None
quick = {"mesh": mesh, "progress_bar": False}
"""
ASCENT = """
if mesh is not None:  # the samples are where they are said to be
    from numpyro_infograd._arguments import use_mesh
    from numpyro_infograd._noise import NoiseSource
    spec = ig.structural_model(links.amplifier).spec
    draw = jax.jit(NoiseSource.independent(spec, 1024))
    with use_mesh(mesh):
        drawn = draw(jax.random.key(0))
    assert all(len(x.addressable_shards[0].data) == 1024 // size
               for x in drawn.values())
if count > 1:
    try:
        ig.maximize_mi(links.amplifier, "x", "y", checkpoint="nowhere", **quick)
        raise SystemExit("a checkpoint of several processes was not refused")
    except ig.errors.ArgumentError as error:
        assert "runs in one process" in str(error)
ascent = ig.maximize_mi(links.amplifier, "x", "y", num_steps=20, **quick)
value = ig.mutual_information(links.amplifier, "x", "y", mesh=mesh)
found = [float(ascent.params["eta"]), ascent.estimate.value, value.value]
print(json.dumps(found))
"""
TWIN = """
y = np.tanh(np.random.default_rng(0).normal(size=4000))
y += 0.5 * np.random.default_rng(1).normal(size=4000)
twin = ig.calibrate(
    links.amplifier, {"y": y}, divergence="kl", num_steps=20, num_draws=20, **quick
)
found = [float(twin.params["eta"]), float(twin.standard_error["eta"])]
print(json.dumps(found))
"""


def run(devices: int, count: int = 1, task: str = ASCENT) -> list[list[float]]:
    """What each of some processes with some devices finds."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                START + task,
                *map(str, (devices, count, index, port)),
            ],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    outs = [process.communicate(timeout=500)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    return [json.loads(out.strip().splitlines()[-1]) for out in outs]


@pytest.fixture(scope="module")
def alone() -> list[float]:
    return run(1)[0]


@pytest.mark.slow
def test_two_processes_agree_with_one(alone) -> None:
    first, second = run(1, count=2)
    assert first == second
    np.testing.assert_allclose(first, alone, rtol=1e-5)


@pytest.mark.slow
def test_eight_devices_agree_with_one(alone) -> None:
    (eight,) = run(8)
    np.testing.assert_allclose(eight, alone, rtol=1e-5)


@pytest.mark.slow
def test_twins_are_the_same_on_any_number_of_devices() -> None:
    (alone,) = run(1, task=TWIN)
    (eight,) = run(8, task=TWIN)
    first, second = run(1, count=2, task=TWIN)
    assert first == second
    np.testing.assert_allclose(eight, alone, rtol=1e-5)
    np.testing.assert_allclose(first, alone, rtol=1e-5)


def test_meshes_that_will_not_do() -> None:
    for mesh, what in ((4, "must be a jax.sharding.Mesh"), ("data", "must be a")):
        with pytest.raises(ArgumentError, match=f"mesh {what}"):
            ig.mutual_information(links.amplifier, "x", "y", mesh=mesh)
    mesh = jax.make_mesh((1,), ("samples",))
    words = "set already.*only as mesh"
    with jax.set_mesh(mesh), pytest.raises(ArgumentError, match=words):
        ig.mutual_information(links.amplifier, "x", "y", mesh=mesh)


def test_a_mesh_of_one_device_changes_nothing() -> None:
    mesh = jax.make_mesh((1,), ("samples",))
    alone, spread = (
        ig.estimate(links.amplifier, ig.MI("x", "y"), num_samples=1024, mesh=each)
        for each in (None, mesh)
    )
    assert spread.value == alone.value
