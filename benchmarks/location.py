# SPDX-License-Identifier: Apache-2.0
"""Static designs and policies that locate two sources; prints Markdown.

    python benchmarks/location.py                                   # the full problem
    python benchmarks/location.py --rounds 4 --steps 300 --outer 256 --contrasts 256

Foster et al. 2021, Deep Adaptive Design, section 6.1: two sources on a plane, places
from N(0, I), base signal 0.1, largest signal 1 / 1e-4, noise 0.5 on the log intensity.
The contrastive bound in plain JAX and optax has the same network, batches and
optimizer, and trains for as long as this package and for TIMES as long, compiling
included. All are valued by the contrastive lower bound and the nested upper bound with
the same contrastive samples.
"""

import argparse
import math
from pathlib import Path
import sys
import time

from flax import nnx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
import optax

import numpyro_infograd as ig

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from design_policy import CODE, NOISE, SOURCES, Policy, adaptive, static  # noqa: E402

TIMES, CHUNK = 3, 20


def loudness(x, place):
    """Of sources at place (..., SOURCES, 2), heard at x (2,)."""
    squares = jnp.sum((x - place) ** 2, axis=-1)
    return jnp.log(0.1 + jnp.sum(1 / (1e-4 + squares), axis=-1))


def rolled(params, place, noise):
    """Designs (rounds, 2) and outcomes (rounds,) of one experiment."""
    if "x" in params:
        x = params["x"]
        return x, jax.vmap(loudness, (0, None))(x, place) + NOISE * noise
    frame, state = nnx.split(Policy(nnx.Rngs(0)))
    nnx.replace_by_pure_dict(state, params["policy$params"])
    policy = nnx.merge(frame, state)

    def step(carry, e):
        code, x = carry
        y = loudness(x, place) + NOISE * e
        return policy(code, x, y), (x, y)

    return jax.lax.scan(step, (jnp.zeros(CODE), params["first"]), noise)[1]


def bound(params, key, rounds, outer, contrasts):
    """The contrastive bound of one batch, to ascend."""
    keys = jax.random.split(key, 3)
    own = jax.random.normal(keys[0], (outer, SOURCES, 2))
    others = jax.random.normal(keys[1], (contrasts, SOURCES, 2))
    noise = jax.random.normal(keys[2], (outer, rounds))
    x, y = jax.vmap(rolled, (None, 0, 0))(params, own, noise)
    means = jax.vmap(jax.vmap(loudness, (0, None)), (0, None))(x, others)
    rest = -0.5 * jnp.sum((y[..., None] - means) ** 2, axis=1) / NOISE**2
    first = -0.5 * jnp.sum(noise**2, axis=1)
    every = jnp.concatenate([first[:, None], rest], axis=1)
    return jnp.mean(first - logsumexp(every, axis=1)) + jnp.log(contrasts + 1.0)


def optimizer(rate, steps):
    decay = optax.cosine_decay_schedule(rate, steps)
    return optax.chain(optax.clip_by_global_norm(10.0), optax.adam(decay))


def ours(model, args, rate, steps):
    """Parameters and seconds of this package."""
    began = time.perf_counter()
    ascent = ig.InfoMax(
        model,
        ig.MI("place", "y"),
        optimizer(rate, steps),
        scores=ig.scores.Contrastive(num_components=args.contrasts),
        num_samples=args.outer,
    )
    state = ascent.init(jax.random.key(0), args.rounds)
    for _ in range(steps):
        state, _ = ascent.update(state)
    params = jax.block_until_ready(ascent.get_params(state))
    return params, time.perf_counter() - began, steps


def theirs(params, args, rate, seconds):
    """The same by the gradient of the bound in JAX; the rate falls with time."""
    began = time.perf_counter()
    scaled = optax.chain(optax.clip_by_global_norm(10.0), optax.scale_by_adam())

    @jax.jit
    def chunk(params, state, key, rate):
        def step(carry, key):
            params, state = carry
            gradient = jax.grad(bound)(
                params, key, args.rounds, args.outer, args.contrasts
            )
            updates, state = scaled.update(gradient, state)
            moved = jax.tree.map(lambda p, u: p + rate * u, params, updates)
            return (moved, state), None

        keys = jax.random.split(key, CHUNK)
        return jax.lax.scan(step, (params, state), keys)[0]

    state, done = scaled.init(params), 0
    while (share := (time.perf_counter() - began) / seconds) < 1:
        now = rate * 0.5 * (1 + jnp.cos(jnp.pi * share))
        key = jax.random.fold_in(jax.random.key(1), done)
        params, state = jax.block_until_ready(chunk(params, state, key, now))
        done += CHUNK
    return params, time.perf_counter() - began, done


def show(name, model, params, args, seconds="", steps=""):
    """A row of the table, and the lower bound with its error."""
    count = args.valued
    found = ig.mutual_information(
        model,
        "place",
        "y",
        params=params,
        method=ig.values.Nested(num_components=count, max_components=count),
        num_samples=args.samples,
        model_args=(args.rounds,),
    )
    low, high = (found.diagnostics[f"{end}_bound"] for end in ("lower", "upper"))
    row = (f"{mean:.3f} +- {error:.3f}" for mean, error in (low, high))
    took = f"{seconds:.0f}" if seconds else ""
    print(f"| {name} | {took} | {steps} | {' | '.join(row)} |", flush=True)
    return low


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--outer", type=int, default=512)
    parser.add_argument("--contrasts", type=int, default=1024)
    parser.add_argument("--valued", type=int, default=2**17)
    parser.add_argument("--samples", type=int, default=4096)
    args = parser.parse_args()
    print(
        f"{args.rounds} rounds, {args.outer} samples and {args.contrasts} contrasts "
        f"a step; bounds with {args.valued} contrasts.\n"
    )
    print("| design | seconds | steps | lower bound, nats | upper bound, nats |")
    print("|---|---:|---:|---:|---:|")
    side = math.ceil(args.rounds**0.5)
    line = jnp.linspace(-1.2, 1.2, side)
    grid = jnp.stack(jnp.meshgrid(line, line), axis=-1).reshape(-1, 2)[: args.rounds]
    random = jax.random.normal(jax.random.key(5), (args.rounds, 2))
    show("random", static, {"x": random}, args)
    show("grid", static, {"x": grid}, args)
    for name, model, rate in (("static", static, 0.03), ("policy", adaptive, 0.01)):
        start = ig.structural_model(model, args.rounds).params
        params, seconds, steps = ours(model, args, rate, args.steps)
        show(f"{name}, this package", model, params, args, seconds, steps)
        for times in (1, TIMES):
            found = theirs(start, args, rate, times * seconds)
            label = f"{name}, contrastive bound, {times} x the time"
            show(label, model, found[0], args, *found[1:])


if __name__ == "__main__":
    main()
