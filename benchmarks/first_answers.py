# SPDX-License-Identifier: Apache-2.0
"""Processor seconds of the first answer of a fresh process; prints Markdown.

    python benchmarks/first_answers.py                   # all, about five minutes
    python benchmarks/first_answers.py gradient svi      # some

Each call runs in its own process, on the tanh channel, without a compilation cache.
The seconds include imports and compilation. For comparison, NumPyro's own SVI and NUTS
infer the input of the same channel from one output. A second call takes another key.
"""

import argparse
from collections.abc import Callable, Sequence
import os
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import numpyro_infograd as ig


def channel(y: Any = None) -> None:
    """An amplifier that saturates (eq. 84)."""
    eta = numpyro.param("eta", 1.0)
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(jnp.tanh(eta * x), 0.5), obs=y)


INFORMATION = ig.MI("x", "y")
RECORDED = np.random.default_rng(0).normal(size=400).astype(np.float32)


def svi(key: jax.Array) -> Any:
    guide = AutoNormal(channel)
    inference = SVI(channel, guide, optax.adam(0.01), Trace_ELBO())
    return inference.run(key, 1000, y=0.7, progress_bar=False).losses


def nuts(key: jax.Array) -> Any:
    sampler = MCMC(NUTS(channel), num_warmup=500, num_samples=500, progress_bar=False)
    sampler.run(key, y=0.7)
    return sampler.get_samples()


def gradient(scores: str) -> Callable[[jax.Array], Any]:
    return lambda key: ig.gradient(channel, INFORMATION, scores=scores, rng_key=key)


def value(method: str) -> Callable[[jax.Array], Any]:
    return lambda key: ig.estimate(channel, INFORMATION, method=method, rng_key=key)


def ascent(key: jax.Array) -> Any:
    settings = {"num_steps": 100, "progress_bar": False, "rng_key": key}
    return ig.maximize_mi(channel, "x", "y", **settings)


def twin(divergence: str) -> Callable[[jax.Array], Any]:
    def run(key: jax.Array) -> Any:
        x = RECORDED
        y = np.tanh(1.5 * x) + 0.5 * np.random.default_rng(1).normal(size=len(x))
        recorded = {"x": x, "y": y.astype(np.float32)}
        settings = {"divergence": divergence, "progress_bar": False, "rng_key": key}
        return ig.calibrate(channel, recorded, **settings)

    return run


CALLS: dict[str, Callable[[jax.Array], Any]] = {
    "svi": svi,
    "nuts": nuts,
    "gradient": gradient("auto"),
    "denoising": gradient("denoising"),
    "mcmc": gradient("mcmc"),
    "value": value("auto"),
    "value, fisher": value("fisher"),
    "ascent": ascent,
    "twin, kl": twin("kl"),
    "twin, fisher": twin("fisher"),
}


def run_here(name: str) -> None:
    """One call and a second one with another key, in this process."""
    for index in range(2):
        begun = time.process_time(), time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(CALLS[name](jax.random.key(index))))
        now = time.process_time(), time.perf_counter()
        print(*(b - a for a, b in zip(begun, now, strict=True)), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("calls", nargs="*", choices=[*CALLS, []], default=[])
    parser.add_argument("--here", choices=CALLS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.here:
        run_here(options.here)
        return
    print(f"jax {jax.__version__}, numpyro {numpyro.__version__}, "
          f"{os.cpu_count()} cores\n")  # fmt: skip
    print("| call | processor s | wall s | second call, processor s |")
    print("| --- | ---: | ---: | ---: |")
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    for name in options.calls or CALLS:
        before, start = spent(), time.perf_counter()
        command = [sys.executable, __file__, "--here", name]
        found = subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        )
        again, wall_again = map(float, found.stdout.splitlines()[1].split())
        wall = time.perf_counter() - start - wall_again
        first = spent() - before - again
        print(f"| {name} | {first:.1f} | {wall:.1f} | {again:.1f} |", flush=True)


def spent() -> float:
    """Processor seconds of all processes that this one started and that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
