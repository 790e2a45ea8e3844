# SPDX-License-Identifier: Apache-2.0
"""Samples on several devices, and in several processes, give the same numbers."""

from __future__ import annotations

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

SCRIPT = """
import json
import sys

devices, count, index, port = map(int, sys.argv[1:])
import jax
jax.config.update("jax_num_cpu_devices", devices)
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, index)
import links
import numpy as np
import numpyro_infograd as ig

size = len(jax.devices())
assert size == devices * count
mesh = jax.make_mesh((size,), ("samples",)) if size > 1 else None
quick = {"mesh": mesh, "progress_bar": False}
ascent = ig.maximize_mi(links.amplifier, "x", "y", num_steps=20, **quick)
value = ig.mutual_information(links.amplifier, "x", "y", mesh=mesh)
found = [float(ascent.params["eta"]), ascent.estimate.value, value.value]
if count == 1 and "twin" in SETTINGS:
    rng = np.random.default_rng(0)
    y = np.tanh(2 * rng.normal(size=4000)) + 0.5 * rng.normal(size=4000)
    twin = ig.calibrate(
        links.amplifier, {"y": y}, divergence="kl", num_steps=20, **quick
    )
    found.append(float(twin.params["eta"]))
print(json.dumps(found))
"""


def run(devices: int, count: int = 1, settings: str = "") -> list[list[float]]:
    """What each of some processes with some devices finds."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    script = SCRIPT.replace("SETTINGS", repr(settings))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, (devices, count, index, port))],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    outs = [process.communicate(timeout=500)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    return [json.loads(out.strip().splitlines()[-1]) for out in outs]


def test_two_processes_agree_with_one() -> None:
    (alone,) = run(1)
    first, second = run(1, count=2)
    assert first == second
    np.testing.assert_allclose(first, alone, rtol=1e-5)


@pytest.mark.slow
def test_eight_devices_agree_with_one() -> None:
    (alone,) = run(1, settings="twin")
    (eight,) = run(8, settings="twin")
    np.testing.assert_allclose(eight[:3], alone[:3], rtol=1e-5)
    # Networks are trained by hundreds of steps, in which rounding grows.
    np.testing.assert_allclose(eight[3], alone[3], rtol=1e-2)


def test_meshes_that_will_not_do() -> None:
    for mesh, what in ((4, "must be a jax.sharding.Mesh"), ("data", "must be a")):
        with pytest.raises(ArgumentError, match=f"mesh {what}"):
            ig.mutual_information(links.amplifier, "x", "y", mesh=mesh)


def test_a_mesh_of_one_device_changes_nothing() -> None:
    mesh = jax.make_mesh((1,), ("samples",))
    spread = ig.estimate(ig.MI("x", "y"), links.amplifier, mesh=mesh)
    assert spread.value == ig.estimate(ig.MI("x", "y"), links.amplifier).value
