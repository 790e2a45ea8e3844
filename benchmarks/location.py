# SPDX-License-Identifier: Apache-2.0
"""Static designs and policies that locate two sources; prints Markdown.

    python benchmarks/location.py                             # 15 processor minutes
    python benchmarks/location.py --only static --rounds 4

Foster et al. 2021, Deep Adaptive Design, section 6.1: two sources on a plane, places
from N(0, I), base signal 0.1, largest signal 1 / 1e-4, noise 0.5 on the log intensity.
The contrastive bound in plain JAX and optax has the same network, batches and
optimizer. Its rate is the best of several, relative to this package's, in as much time
each. It then trains for TIMES as long as this package. Policies start at the static
design, whose time is not counted again. Times are processor seconds and include
compiling. All are valued by the contrastive lower bound and the nested upper
bound with the same contrastive samples. The last column is the mean difference of the
lower bound, with 100,000 contrastive samples, to that of this package's static design,
on the same draws, after a rotation that makes the designs alike.
"""

import argparse
import math
from pathlib import Path
import sys
import time

from design import some_values, turned

from flax import nnx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
import optax

import numpyro_infograd as ig

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from design_policy import CODE, NOISE, SOURCES, Policy, adaptive, static  # noqa: E402

TIMES, CHUNK = 3, 20


MODELS = {"static": (static, 0.1), "policy": (adaptive, 0.01)}  # with their rates


def loudness(x, place):
    """Of sources at place (..., SOURCES, 2), heard at x (2,)."""
    squares = jnp.sum((x - place) ** 2, axis=-1)
    return jnp.log(0.1 + jnp.sum(1 / (1e-4 + squares), axis=-1))


def rolled(params, place, noise):
    """Designs (rounds, 2) and outcomes (rounds,) of one experiment."""
    x = params["x"]
    if "policy$params" not in params:
        return x, jax.vmap(loudness, (0, None))(x, place) + NOISE * noise
    frame, state = nnx.split(Policy(nnx.Rngs(0)))
    nnx.replace_by_pure_dict(state, params["policy$params"])
    policy = nnx.merge(frame, state)

    def step(carry, given):
        code, shift = carry
        at = given[0] + shift
        y = loudness(at, place) + NOISE * given[1]
        return policy(code, at, y), (at, y)

    return jax.lax.scan(step, (jnp.zeros(CODE), jnp.zeros(2)), (x, noise))[1]


def bound(params, key, rounds, outer, contrasts):
    """The contrastive bound of one batch, to ascend."""
    keys = jax.random.split(key, 3)
    own = jax.random.normal(keys[0], (outer, SOURCES, 2))
    others = jax.random.normal(keys[1], (contrasts, SOURCES, 2))
    noise = jax.random.normal(keys[2], (outer, rounds))
    x, y = jax.vmap(rolled, (None, 0, 0))(params, own, noise)
    heard = jax.vmap(loudness, (0, None))
    if "policy$params" not in params:  # one design for all experiments
        means = heard(params["x"], others)[None]
    else:
        means = jax.vmap(heard, (0, None))(x, others)
    rest = -0.5 * jnp.sum((y[..., None] - means) ** 2, axis=1) / NOISE**2
    first = -0.5 * jnp.sum(noise**2, axis=1)
    every = jnp.concatenate([first[:, None], rest], axis=1)
    return jnp.mean(first - logsumexp(every, axis=1)) + jnp.log(contrasts + 1.0)


def optimizer(rate, steps):
    decay = optax.cosine_decay_schedule(rate, steps)
    return optax.chain(optax.clip_by_global_norm(10.0), optax.adam(decay))


def ours(model, args, rate, steps, start):
    """Parameters and seconds of this package."""
    began = time.process_time()
    ascent = ig.InfoMax(
        model,
        ig.MI("place", "y"),
        optimizer(rate, steps),
        scores=ig.scores.Contrastive(num_components=args.contrasts),
        num_samples=args.outer,
    )
    state = ascent.init(jax.random.key(0), args.rounds, init_params=start)

    @jax.jit
    def chunk(state):
        return jax.lax.scan(
            lambda s, _: (ascent.update(s)[0], None), state, None, CHUNK
        )

    for _ in range(-(-steps // CHUNK)):  # whole chunks
        state, _ = chunk(state)
    params = jax.block_until_ready(ascent.get_params(state))
    return params, time.process_time() - began, int(state.step)


def theirs(params, args, rate, seconds):
    """The same by the gradient of the bound in JAX; the rate falls with time."""
    began = time.process_time()
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
    while (share := (time.process_time() - began) / seconds) < 1:
        now = rate * 0.5 * (1 + jnp.cos(jnp.pi * share))
        key = jax.random.fold_in(jax.random.key(1), done)
        params, state = jax.block_until_ready(chunk(params, state, key, now))
        done += CHUNK
    return params, time.process_time() - began, done


def tuned(start, args, rate, seconds):
    """The best rate after some seconds, and what training with each reached."""
    key, reached = jax.random.key(9), {}
    value = jax.jit(bound, static_argnums=(2, 3, 4))
    for factor in args.rates:
        found = theirs(start, args, factor * rate, seconds)
        at = value(found[0], key, args.rounds, 2**12, 2**12)
        reached[factor * rate] = at, found
    best = max(reached, key=lambda each: reached[each][0])
    return best, reached[best][1]


def bounds(model, params, args):
    """The lower and the upper bound of one design, as text."""
    found = ig.mutual_information(
        model,
        "place",
        "y",
        params=params,
        method=ig.values.Nested(num_components=args.valued, max_components=args.valued),
        num_samples=args.samples,
        model_args=(args.rounds,),
    )
    ends = (found.diagnostics[f"{end}_bound"] for end in ("lower", "upper"))
    return " | ".join(f"{mean:.3f} +- {error:.3f}" for mean, error in ends)


def show(name, model, params, args, seconds=None, steps="", base=None):
    """A row of the table."""
    took = "" if seconds is None else f"{seconds:.0f}"
    less = "" if base is None else below(base, params["x"])
    ends = bounds(model, params, args)
    print(f"| {name} | {took} | {steps} | {ends} | {less} |", flush=True)


def below(base, x):
    """How much less than a base a static design is worth, as text."""
    key = jax.random.key(99)
    gap = some_values(base, key) - some_values(turned(x, base), key)
    return f"{gap.mean():+.4f} +- {gap.std() / len(gap) ** 0.5:.4f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--peers", action="store_true", help="also of the policy")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, nargs=2, default=[2400, 200])
    parser.add_argument("--outer", type=int, default=128)
    parser.add_argument("--contrasts", type=int, default=1024)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[0.1, 0.3, 1.0], help="of the peer"
    )
    parser.add_argument("--valued", type=int, default=2**17)
    parser.add_argument("--samples", type=int, default=2048)
    args = parser.parse_args()
    print(
        f"{args.rounds} rounds, {args.outer} samples and {args.contrasts} contrasts "
        f"a step; bounds with {args.valued} contrasts.\n"
    )
    print("| design | seconds | steps | lower bound, nats | upper bound, nats | less |")
    print("|---|---:|---:|---:|---:|---:|")
    reached = {}
    for name in args.only:
        model, rate = MODELS[name]
        start = ig.structural_model(model, args.rounds).params | reached
        steps = args.steps[list(MODELS).index(name)]
        params, seconds, steps = ours(model, args, rate, steps, start)
        reached = {"x": params["x"]}
        base = params["x"] if name == "static" else None
        if base is not None:
            side = math.ceil(args.rounds**0.5)
            line = jnp.linspace(-1.2, 1.2, side)
            grid = jnp.stack(jnp.meshgrid(line, line), axis=-1).reshape(-1, 2)
            show("random", model, start, args, base=base)
            show("grid", model, {"x": grid[: args.rounds]}, args, base=base)
        show(f"{name}, this package", model, params, args, seconds, steps)
        if name == "policy" and not args.peers:
            continue
        best, label = args.rates[0] * rate, f"{name}, contrastive bound"
        if len(args.rates) > 1:
            best, found = tuned(start, args, rate, seconds)
            show(f"{label}, the same time", model, found[0], args, *found[1:], base)
        found = theirs(start, args, best, TIMES * seconds)
        show(f"{label}, {TIMES} x the time", model, found[0], args, *found[1:], base)


if __name__ == "__main__":
    main()
