# SPDX-License-Identifier: Apache-2.0
"""Twins by gradients against gradient-free calibration; prints Markdown.

    python benchmarks/gradient_free.py

The other way to fit a simulator to unpaired recordings: SciPy's differential evolution
on the energy distance (an MMD with a distance kernel) between recordings and draws of
the simulator, both thinned to 2,048, with the same noise at every call, compiled. It
gets `TIMES` the time that `calibrate` took, compiling included.

How well a twin fits is the energy distance between fresh draws of it and of the truth,
in units of its scatter between two samples of the truth.
"""

import argparse
import time

import numpy as np
from scipy.optimize import differential_evolution
from scipy.spatial.distance import cdist

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

NUMBER, TIMES, SEEN, FRESH = 20_000, 3, 2048, 4000
MIX = np.random.default_rng(5).normal(size=(8, 5)).astype(np.float32)


def saturated():
    """One number: the gain of a saturated channel."""
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(jnp.tanh(numpyro.param("eta", 1.0) * x), 0.5))


def front():
    """Thirty numbers: a network in front of a linear mix, eight outputs."""
    start = 0.5 * jnp.eye(5) + 0.1 * jax.random.normal(jax.random.key(1), (5, 5))
    weights = numpyro.param("weights", start)
    offsets = numpyro.param("offsets", jnp.zeros(5))
    x = numpyro.sample("x", dist.Normal(0, 1).expand([5]).to_event(1))
    hidden = jnp.tanh(x @ weights + offsets)
    numpyro.sample("y", dist.Normal(MIX @ hidden, 0.3).to_event(1))


def truths(name):
    """True parameters, and the box that differential evolution searches."""
    if name == "saturated":
        return {"eta": jnp.asarray(2.0)}, (0.1, 5.0)
    rng = np.random.default_rng(9)
    weights, offsets = 0.7 * rng.normal(size=(5, 5)), 0.5 * rng.normal(size=5)
    return {"weights": jnp.asarray(weights), "offsets": jnp.asarray(offsets)}, (-2, 2)


def sampler(model):
    """(params, key, number) -> draws of y, (number, dimensions)."""
    sm = ig.structural_model(model)

    def draws(params, key, number):
        values = sm.sample(key, number, params)["y"]
        return values.reshape(number, -1)

    return draws


def energy(a, b):
    """The energy distance of two samples."""
    within = lambda x: cdist(x, x).sum() / (len(x) * (len(x) - 1))  # noqa: E731
    return 2 * cdist(a, b).mean() - within(a) - within(b)


def by_evolution(draws, like, recorded, box, seconds):
    """Differential evolution until its time is up, compiling included."""
    began = time.perf_counter()
    flat, unravel = ravel_pytree(like)
    scale = recorded.std(axis=0)
    rows = np.random.default_rng(1).permutation(len(recorded))[:SEEN]
    seen = jnp.asarray(recorded[rows] / scale)
    noise = jax.random.key(7)

    def distances(a, b):
        squares = jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)
        return jnp.mean(jnp.sqrt(squares + 1e-12))

    def loss(flat):
        drawn = draws(unravel(flat), noise, SEEN) / scale
        return 2 * distances(seen, drawn) - distances(drawn, drawn)

    losses = jax.jit(lambda all_flat: jax.lax.map(loss, all_flat))
    found = differential_evolution(
        lambda x: np.asarray(losses(jnp.asarray(x.T, flat.dtype))),
        [box] * len(flat),
        rng=np.random.default_rng(0),
        maxiter=100_000,
        tol=1e-6,
        polish=False,
        updating="deferred",
        vectorized=True,
        callback=lambda intermediate_result: time.perf_counter() - began > seconds,
    )
    return unravel(jnp.asarray(found.x, flat.dtype)), time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    print("| twin | fitted by | seconds | energy distance, in units of noise |")
    print("|---|---|---:|---:|")
    for model in (saturated, front):
        name = model.__name__
        if options.only not in name:
            continue
        truth, box = truths(name)
        draws = sampler(model)
        recorded = np.asarray(draws(truth, jax.random.key(0), NUMBER), np.float64)
        scale = recorded.std(axis=0)

        def apart(
            params, keys=tuple(range(11, 27)), draws=draws, truth=truth, scale=scale
        ):
            """Energy distance from the truth: mean and scatter over fresh samples."""
            pairs = [jax.random.split(jax.random.key(k)) for k in keys]
            each = [
                energy(
                    np.asarray(draws(truth, first, FRESH)) / scale,
                    np.asarray(draws(params, second, FRESH)) / scale,
                )
                for first, second in pairs
            ]
            return np.mean(each), np.std(each, ddof=1)

        began = time.perf_counter()
        twin = ig.calibrate(
            model,
            {"y": recorded.reshape(NUMBER, *MIX.shape[:1])}
            if name == "front"
            else {"y": recorded[:, 0]},
            divergence="kl",
            progress_bar=False,
        )
        seconds = time.perf_counter() - began
        other, others_seconds = by_evolution(
            draws, truth, recorded, box, TIMES * seconds
        )
        _, unit = apart(truth)
        start = ig.structural_model(model).params
        for label, params, took in (
            ("nothing: the start", start, 0.0),
            ("calibrate", twin.params, seconds),
            ("differential evolution", other, others_seconds),
        ):
            mean, _ = apart(params)
            print(f"| {name} | {label} | {took:.0f} | {mean / unit:.1f} |", flush=True)
        if name == "saturated":
            etas = f"{float(twin.params['eta']):.3f}, {float(other['eta']):.3f}"
            print(f"\neta, true 2: {etas} (by evolution)\n")


if __name__ == "__main__":
    main()
