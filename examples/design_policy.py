# SPDX-License-Identifier: Apache-2.0
"""An adaptive policy: each measurement depends on the outcomes before it.

Two sources stand at unknown places on a plane. A detector at x hears the logarithm of
the sum of their strengths over squared distances, with noise (Foster et al. 2021, Deep
Adaptive Design, section 6.1). A static design fixes all places before the first
outcome. A policy adds to each place a network of the outcomes so far. It starts at the
static design, with a network that gives zero. Nothing is inferred between the rounds.

    python examples/design_policy.py --rounds 10 --steps 5000 --contrasts 1024
"""

import argparse
import math
import time

from flax import nnx
import jax
import jax.numpy as jnp
import optax

import numpyro
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import nnx_module
import numpyro.distributions as dist

import numpyro_infograd as ig

SOURCES, NOISE, CODE, WIDTH = 2, 0.5, 16, 64


def network(inputs, outputs, rngs, last=None):
    first = nnx.Linear(inputs, WIDTH, rngs=rngs)
    last = last or nnx.initializers.lecun_normal()
    second = nnx.Linear(WIDTH, outputs, kernel_init=last, rngs=rngs)
    return nnx.Sequential(first, nnx.relu, second)


class Policy(nnx.Module):
    """From the code of the past and the last experiment to a shift of the next place.

    The code is a sum over experiments, so their order does not matter.
    """

    def __init__(self, rngs):
        self.encode = network(3, CODE, rngs)
        self.decide = network(CODE, 2, rngs, nnx.initializers.zeros)

    def __call__(self, code, x, y):
        code = code + self.encode(jnp.append(x, y))
        return code, self.decide(code)


def listen(x, place):
    """One outcome, heard at x from sources at place (SOURCES, 2)."""
    squares = jnp.sum((x - place) ** 2, axis=-1)
    loudness = jnp.log(0.1 + jnp.sum(1 / (1e-4 + squares)))
    return numpyro.sample("y", dist.Normal(loudness, NOISE))


def sources():
    return numpyro.sample("place", dist.Normal(0, 1).expand([SOURCES, 2]).to_event(2))


def places(rounds):
    return numpyro.param("x", jax.random.normal(jax.random.key(5), (rounds, 2)))


def static(rounds):
    x, place = places(rounds), sources()
    scan(lambda _, x: (None, listen(x, place)), None, x)


def adaptive(rounds):
    policy = nnx_module("policy", Policy(nnx.Rngs(0)))
    x, place = places(rounds), sources()

    def experiment(carry, x):
        code, shift = carry
        y = listen(x + shift, place)
        return policy(code, x + shift, y), x + shift

    scan(experiment, (jnp.zeros(CODE), jnp.zeros(2)), x)


def train(model, rounds, steps, contrasts, samples, rate, start):
    """Parameters after an ascent of the contrastive bound."""
    schedule = optax.cosine_decay_schedule(rate, steps)
    ascent = ig.InfoMax(
        model,
        ig.MI("place", "y"),
        optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule)),
        scores=ig.scores.Contrastive(num_components=contrasts),
        num_samples=samples,
    )
    state = ascent.init(jax.random.key(0), rounds, init_params=start)
    for _ in range(steps):
        state, _ = ascent.update(state)
    return ascent.get_params(state)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--contrasts", type=int, default=256)
    parser.add_argument("--samples", type=int, default=256)
    args = parser.parse_args()
    value = ig.values.Nested(num_components=2**14, max_components=2**14)
    lower, params = {}, {}
    for model, rate in ((static, 0.03), (adaptive, 0.01)):
        began = time.perf_counter()
        params = train(
            model,
            args.rounds,
            args.steps,
            args.contrasts,
            args.samples,
            rate,
            params,
        )
        seconds = time.perf_counter() - began
        found = ig.mutual_information(
            model,
            "place",
            "y",
            params=params,
            method=value,
            num_samples=1024,
            model_args=(args.rounds,),
        )
        low, high = (found.diagnostics[f"{n}_bound"] for n in ("lower", "upper"))
        print(
            f"{model.__name__}: between {low[0]:.3f} +- {low[1]:.3f} and "
            f"{high[0]:.3f} +- {high[1]:.3f} nats, "
            f"after {seconds:.0f} seconds"
        )
        lower[model] = low
    (before, one), (after, other) = lower[static], lower[adaptive]
    gain, error = after - before, math.hypot(one, other)
    print(f"the policy gains {gain:.3f} +- {error:.3f} nats")


if __name__ == "__main__":
    main()
