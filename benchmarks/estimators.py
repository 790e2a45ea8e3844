# SPDX-License-Identifier: Apache-2.0
"""Values of mutual information against estimators from samples; prints Markdown.

    python benchmarks/estimators.py
    python benchmarks/estimators.py --only "tanh 4-d, 0.05" --seconds 2

Each estimator gets the time that ours took on the same channel, or `--seconds`, after
all compiling: the learned ones train until it is over, the others take as many samples
as fit. They see samples, as many as they like; ours sees the model, which is what
it is for. The rivals:

- InfoNCE with a separable critic (van den Oord et al. 2018), at most log(batch).
- MINE (Belghazi et al. 2018), the Donsker-Varadhan bound with an averaged denominator,
  stopped early by a held-out split and evaluated on a third.
- KSG (Kraskov et al. 2004), its first estimator with 3 neighbours.
- Kernel densities, each point left out of its own, bandwidth by likelihood.
"""

import argparse
from collections.abc import Callable, Sequence
import functools
import math
import time
from typing import Any, NamedTuple

import numpy as np
from scipy.special import digamma
from sklearn.neighbors import KDTree, NearestNeighbors

import jax
import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig
import truths

WIDTHS = (128, 128)
CHUNK = 20  # training steps between two looks at the clock


# -- channels --------------------------------------------------------------------------


def multipath():
    x = numpyro.sample("x", dist.Normal(0, 1))
    v1 = numpyro.sample("v1", dist.Normal(2.0 * x, 1))
    v2 = numpyro.sample("v2", dist.Normal(x, 1))
    numpyro.sample("y", dist.Normal(v1 + v2, 1))


def tanh_channel():
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(jnp.tanh(2.0 * x), 0.5))


def cascade():
    x = numpyro.sample("x", dist.Normal(0, 1))
    v1 = numpyro.sample("v1", dist.Normal(jnp.tanh(2.0 * x), 0.3))
    v2 = numpyro.sample("v2", dist.Normal(jnp.tanh(2.0 * v1), 0.3))
    numpyro.sample("y", dist.Normal(jnp.tanh(2.0 * v2), 0.3))


def matrix_channel(function: Callable, matrix: np.ndarray, variance: float):
    def model():
        size = matrix.shape[1]
        x = numpyro.sample("x", dist.Normal(jnp.zeros(size), 1.0).to_event(1))
        mean = function(jnp.asarray(matrix, x.dtype) @ x)
        numpyro.sample("y", dist.Normal(mean, math.sqrt(variance)).to_event(1))

    return model


def rotation(size: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def identity(v):
    return v


GAINS = np.geomspace(3.0, 0.3, 8)
EIGHT = (rotation(8, 1) * GAINS) @ rotation(8, 2)
LINEAR = 0.5 * float(np.sum(np.log1p(GAINS**2 / 0.5)))


class Channel(NamedTuple):
    model: Callable[[], None]
    truth: float
    method: str = "auto"  # linear-Gaussian ones are not let off by their closed form


CHANNELS = {
    "multipath": Channel(
        multipath, float(truths.multipath_information(2.0, 1.0)), "nested"
    ),
    "tanh": Channel(tanh_channel, truths.tanh_information(2.0)),
    "three stages": Channel(cascade, truths.cascade_information()),
    **{
        f"tanh 4-d, {variance:g}": Channel(
            matrix_channel(jnp.tanh, rotation(4, 0), variance), truth
        )
        for variance, truth in (
            (5.0, 0.151803),
            (0.5, 1.15463),
            (0.05, 4.05621),
            (0.005, 7.96075),
        )
    },
    "linear 8-d": Channel(matrix_channel(identity, EIGHT, 0.5), LINEAR, "mcmc"),
    "identity 4-d": Channel(
        matrix_channel(identity, np.eye(4), 1 / 200), 2 * math.log(201), "mcmc"
    ),
}


# -- estimators from samples -----------------------------------------------------------

Draw = Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]


def init(key: jax.Array, sizes: Sequence[int]) -> Any:
    keys = jax.random.split(key, len(sizes))
    return [
        (jax.random.normal(k, (a, b)) * math.sqrt(2 / a), jnp.zeros(b))
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=False)
    ]


def apply(layers: Any, x: jax.Array) -> jax.Array:
    for weight, bias in layers[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    return x @ layers[-1][0] + layers[-1][1]


def train(loss: Callable, params: Any, seconds: float, look: Callable) -> Any:
    """Adam until the time is over; `look(params)` between chunks, its best kept."""
    optimizer = optax.adam(5e-4)

    @jax.jit
    def chunk(params: Any, state: Any, key: jax.Array) -> tuple[Any, Any]:
        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, state = carry
            gradient = jax.grad(loss)(params, key)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), jax.random.split(key, CHUNK))[0]

    look = jax.jit(look)
    state, best = optimizer.init(params), (-math.inf, params)
    jax.block_until_ready((chunk(params, state, jax.random.key(0)), look(params)))
    end, count = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        count += 1
        params, state = chunk(params, state, jax.random.key(count))
        score = float(look(params)) if count % 5 == 0 else -math.inf
        if score > best[0]:
            best = (score, params)
    return best[1] if best[0] > -math.inf else params


def info_nce(draw: Draw, seconds: float, batch: int = 512) -> float:
    """log(batch) less the cross-entropy of finding the partner in a batch."""
    x, y = draw(jax.random.key(0), 2)
    k1, k2 = jax.random.split(jax.random.key(1))
    params = (init(k1, (x.shape[1], *WIDTHS, 32)), init(k2, (y.shape[1], *WIDTHS, 32)))

    def bound(params: Any, key: jax.Array, size: int = batch) -> jax.Array:
        x, y = draw(key, size)
        table = apply(params[0], x) @ apply(params[1], y).T
        hits = jnp.diag(table) - jax.scipy.special.logsumexp(table, axis=1)
        return jnp.mean(hits) + math.log(size)

    found = train(
        lambda p, key: -bound(p, key), params, seconds, lambda p: bound(p, k1, 2048)
    )
    each = [bound(found, jax.random.key(100 + i), 2048) for i in range(8)]
    return float(np.mean(each))


def mine(draw: Draw, seconds: float, batch: int = 512) -> float:
    """The Donsker-Varadhan bound, held out twice."""
    x, y = draw(jax.random.key(0), 2)
    params = init(jax.random.key(1), (x.shape[1] + y.shape[1], *WIDTHS, 1))

    def parts(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        paired = apply(params, jnp.concatenate([x, y], axis=1))[:, 0]
        apart = apply(params, jnp.concatenate([x, jnp.roll(y, 1, 0)], axis=1))[:, 0]
        mean = jax.scipy.special.logsumexp(apart) - math.log(len(x))
        return jnp.mean(paired), mean

    def held_out(params: Any, seed: int) -> jax.Array:
        paired, mean = parts(params, *draw(jax.random.key(seed), 16384))
        return paired - mean

    def loss(params: Any, key: jax.Array) -> jax.Array:
        paired, mean = parts(params, *draw(key, batch))
        return mean - paired

    found = train(loss, params, seconds, lambda p: held_out(p, 7))
    return float(held_out(found, 8))


def ksg(x: np.ndarray, y: np.ndarray, neighbours: int = 3) -> float:
    joint = np.concatenate([x, y], axis=1)
    search = NearestNeighbors(n_neighbors=neighbours, metric="chebyshev").fit(joint)
    radius = np.nextafter(search.kneighbors()[0][:, -1], 0)
    total = digamma(neighbours) + digamma(len(x))
    for part in (x, y):
        tree = KDTree(part, metric="chebyshev")
        inside = tree.query_radius(part, radius, count_only=True)
        total -= np.mean(digamma(inside))
    return float(total)


def kernel_densities(x: np.ndarray, y: np.ndarray) -> float:
    joint = np.concatenate([x, y], axis=1)
    entropy = [_kernel_entropy(jnp.asarray(v)) for v in (x, y, joint)]
    return entropy[0] + entropy[1] - entropy[2]


def _kernel_entropy(v: jax.Array) -> float:
    """The least over bandwidths of minus the mean log density at points left out."""
    scale = jnp.std(v, axis=0)
    widths = jnp.asarray([0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6])
    found = [_left_out(v / scale, width) for width in widths]
    return float(min(found) + jnp.sum(jnp.log(scale)))


@jax.jit
def _left_out(v: jax.Array, width: jax.Array) -> jax.Array:
    size, dimensions = v.shape

    def one(i: jax.Array) -> jax.Array:
        square = jnp.sum((v - v[i]) ** 2, axis=1) / width**2
        return jax.scipy.special.logsumexp(jnp.where(jnp.arange(size) == i, -jnp.inf,
                                                     -0.5 * square))  # fmt: skip

    each = jax.lax.map(one, jnp.arange(size), batch_size=64)
    constant = math.log(size - 1) + 0.5 * dimensions * math.log(2 * math.pi)
    return constant + dimensions * jnp.log(width) - jnp.mean(each)


def from_samples(estimator: Callable, draw: Draw, seconds: float) -> float:
    """The estimate from as many samples as the time allows, doubling from 1024."""
    size, spent, value = 1024, 0.0, math.nan
    while spent < seconds / 2 and size <= 2**17:
        x, y = (np.asarray(v, np.float64) for v in draw(jax.random.key(size), size))
        estimator(x, y)  # compiles
        begin = time.perf_counter()
        value = estimator(x, y)
        spent = time.perf_counter() - begin
        size *= 2
    return value


RIVALS = {
    "InfoNCE": info_nce,
    "MINE": mine,
    "KSG": functools.partial(from_samples, ksg),
    "KDE": functools.partial(from_samples, kernel_densities),
}


# -- the table -------------------------------------------------------------------------


def run(channel: Channel, seconds: float | None) -> tuple[Any, float, dict[str, float]]:
    sm = ig.structural_model(channel.model)

    def ours(seed: int) -> Any:
        return ig.mutual_information(
            sm, "x", "y", method=channel.method, rng_key=jax.random.key(seed)
        )

    ours(0)
    begin = time.perf_counter()
    found = ours(1)
    taken = time.perf_counter() - begin

    def draw(key: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        values = sm.sample(key, size)
        return tuple(values[s].reshape(size, -1) for s in ("x", "y"))

    given = seconds or taken
    return found, taken, {name: rival(draw, given) for name, rival in RIVALS.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CHANNELS, default=list(CHANNELS))
    parser.add_argument("--seconds", type=float, help="for each rival")
    options = parser.parse_args(arguments)
    print("\n## Mutual information in equal time: error in nats\n")
    print(f"| channel | truth | time, s | ours, method | {' | '.join(RIVALS)} |")
    print("| --- " * (4 + len(RIVALS)) + "|")
    for name in options.only:
        found, taken, rivals = run(CHANNELS[name], options.seconds)
        truth = CHANNELS[name].truth
        others = " | ".join(f"{value - truth:+.3f}" for value in rivals.values())
        print(
            f"| {name} | {truth:.5f} | {taken:.1f} | {found.value - truth:+.5f} "
            f"+- {found.standard_error:.5f}, {found.method} | {others} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
