# SPDX-License-Identifier: Apache-2.0
"""Experimental design against contrastive and nested training; prints Markdown.

    python benchmarks/design.py

Where to listen for two sources on a plane (Foster et al. 2021, Deep Adaptive Design,
section 6.1), four detectors at once. The others ascend, by Adam, the prior contrastive
lower bound (Foster et al. 2020) or the nested Monte Carlo value, both in JAX, compiled
in one scan, for as long as `maximize_mi` took and for `TIMES` as long, compiling
included. All designs are valued by the contrastive lower bound with 1e5 inner samples,
on the same draws. The law of the sources looks the same from every side, so designs are
turned into one orientation first: equal designs then differ by no noise.
"""

import argparse
import time

import numpy as np
from scipy import optimize

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
import optax

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

DETECTORS, SOURCES, NOISE, TIMES = 4, 2, 0.5, 3
OUTER, INNER, STEPS, RATE = 512, 512, 50, 0.02
CAREFUL = 400  # steps of maximize_mi, which stops after 200 if it is not told
VALUED, ROWS, CONTRASTS, BLOCK = 2**17, 2**14, 100_000, 2000


def heard(x, place):
    """Means at detectors x (detectors, 2) of sources at place (..., sources, 2)."""
    squares = jnp.sum((x[:, None] - place[..., None, :, :]) ** 2, axis=-1)
    return jnp.log(0.1 + jnp.sum(1 / (1e-4 + squares), axis=-1))


def start():
    """Detectors at random."""
    return jax.random.normal(jax.random.key(5), (DETECTORS, 2))


def experiment():
    x = numpyro.param("x", start())
    law = dist.Normal(0, 1).expand([SOURCES, 2]).to_event(2)
    place = numpyro.sample("place", law)
    numpyro.sample("y", dist.Normal(heard(x, place), NOISE).to_event(1))


def log_likelihood(y, mean):
    """Up to a constant, of y (..., detectors)."""
    return -0.5 * jnp.sum((y - mean) ** 2, axis=-1) / NOISE**2


def trained_value(x, key, contrastive):
    """The contrastive bound, or the nested value, to ascend."""
    keys = jax.random.split(key, 3)
    own = jax.random.normal(keys[0], (OUTER, SOURCES, 2))
    others = jax.random.normal(keys[1], (INNER, SOURCES, 2))
    mean = heard(x, own)
    y = mean + NOISE * jax.random.normal(keys[2], mean.shape)
    first = log_likelihood(y, mean)
    rest = log_likelihood(y[:, None], heard(x, others))
    if contrastive:
        rest = jnp.concatenate([first[:, None], rest], axis=1)
    return jnp.mean(first - logsumexp(rest, axis=1)) + jnp.log(rest.shape[1])


def train(contrastive, seconds):
    """A design, its time and its number of steps."""
    began = time.perf_counter()
    optimizer = optax.adam(RATE)

    @jax.jit
    def chunk(x, state, key):
        def step(carry, key):
            x, state = carry
            gradient = jax.grad(trained_value)(x, key, contrastive)
            gradient = jax.tree.map(jnp.negative, gradient)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(step, (x, state), jax.random.split(key, STEPS))[0]

    x = start()
    state, steps = optimizer.init(x), 0
    while time.perf_counter() - began < seconds:
        x, state = jax.block_until_ready(
            chunk(x, state, jax.random.fold_in(jax.random.key(1), steps))
        )
        steps += STEPS
    return x, time.perf_counter() - began, steps


def turned(x, like):
    """A design in the order, and turned or mirrored to the orientation, of another."""
    x, like, ends = np.asarray(x), np.asarray(like), []
    for angle in np.linspace(0, 2 * np.pi, 36, endpoint=False):
        c, s = np.cos(angle), np.sin(angle)
        for turn in ([[c, -s], [s, c]], [[c, s], [s, -c]]):
            apart = np.sum((like[:, None] - x @ turn) ** 2, axis=2)
            order = x[optimize.linear_sum_assignment(apart)[1]]
            left, _, right = np.linalg.svd(order.T @ like)
            ends.append(order @ left @ right)
    return jnp.asarray(min(ends, key=lambda end: np.sum((end - like) ** 2)))


def values(x):
    """The contrastive lower bound of each of VALUED draws."""
    keys = jax.random.split(jax.random.key(99), VALUED // ROWS)
    return np.concatenate([some_values(x, key) for key in keys])


@jax.jit
def some_values(x, key):
    """The same of ROWS draws."""
    keys = jax.random.split(key, 3)
    own = jax.random.normal(keys[0], (ROWS, SOURCES, 2))
    mean = heard(x, own)
    y = mean + NOISE * jax.random.normal(keys[1], mean.shape)
    first = log_likelihood(y, mean)

    def block(total, key):
        means = heard(x, jax.random.normal(key, (BLOCK, SOURCES, 2)))
        cross = y @ means.T - 0.5 * jnp.sum(means**2, axis=1)
        rest = (cross - 0.5 * jnp.sum(y**2, axis=1)[:, None]) / NOISE**2
        return jnp.logaddexp(total, logsumexp(rest, axis=1)), None

    blocks = jax.random.split(keys[2], CONTRASTS // BLOCK)
    total, _ = jax.lax.scan(block, first, blocks)
    return first - total + jnp.log(CONTRASTS + 1.0)


def main():
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    began = time.perf_counter()
    ascent = ig.maximize_mi(
        experiment, "place", "y", num_steps=CAREFUL, progress_bar=False
    )
    seconds = time.perf_counter() - began
    ours = ascent.params["x"]
    grid = jnp.array([[-0.7, -0.7], [-0.7, 0.7], [0.7, -0.7], [0.7, 0.7]])
    designs = {
        "random": (start(), 0.0, ""),
        "grid": (grid, 0.0, ""),
        "maximize_mi": (ours, seconds, CAREFUL),
        "contrastive bound": train(True, seconds),
        "contrastive bound, longer": train(True, TIMES * seconds),
        "nested Monte Carlo, longer": train(False, TIMES * seconds),
    }
    base = values(ours)
    print("| design | seconds | steps | information, nats | less than maximize_mi |")
    print("|---|---:|---:|---:|---:|")
    for name, (x, took, steps) in designs.items():
        each = values(turned(x, ours))
        gap, root = base - each, len(base) ** 0.5
        print(
            f"| {name} | {took:.0f} | {steps} | {each.mean():.4f} +- "
            f"{each.std() / root:.4f} | {gap.mean():+.4f} +- {gap.std() / root:.4f} |"
        )


if __name__ == "__main__":
    main()
