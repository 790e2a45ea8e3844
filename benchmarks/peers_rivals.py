# SPDX-License-Identifier: Apache-2.0
"""The peers of `peers.py`: what people would train instead, in JAX and optax.

Each peer is one objective of the parameters and of its networks, maximised over both
by Adam on the same batches; gradients in the parameters go through the reparameterised
draws. Draws without a derivative (discrete sites) add the log-derivative term with a
baseline. A value is the same training with nothing but the networks to train.
"""

from collections.abc import Callable, Iterator
import contextlib
import math
import time
from typing import Any, NamedTuple

from estimators import apply, init, ksg
import numpy as np
from peers_tasks import Params, Task
import tqdm

import jax
from jax.lax import stop_gradient
import jax.numpy as jnp
from jax.scipy.special import logsumexp
import optax

import numpyro_infograd as ig
from numpyro_infograd._compiling import quick_jit
import recipe

CHUNK = 10  # steps between two looks at the clock
WARM_UP = 2.0  # processor seconds that networks learn before the parameters move
DECAY = 5.0  # seconds after which the rate of the parameters has halved
NETWORK_RATE = 1e-3
HELD_OUT = 4096  # draws of a bound at the end, eight times


class Settings(NamedTuple):
    """What is tuned: rate of the parameters, batch, width of networks or contrasts."""

    rate: float = 0.05
    batch: int = 512
    width: int = 128


Draws = tuple[jax.Array, jax.Array, jax.Array]
Loss = Callable[[Params, Any, jax.Array], jax.Array]


def draw(task: Task, params: Params, key: jax.Array, size: int) -> Draws:
    """x, y, and the log probability of those draws that have no derivative."""
    x_key, y_key = jax.random.split(key)
    x = task.source(params, x_key, size)
    y, chance = task.mean(params, x), jnp.zeros(size)
    if task.log_source is not None:
        chance += task.log_source(params, x)
    if task.scale is None:
        y, logits = jax.random.bernoulli(y_key, jax.nn.sigmoid(y)).astype(y.dtype), y
        chance += log_density(task, params, y, logits)
    else:
        y += task.scale(params) * jax.random.normal(y_key, y.shape)
    return x, y, chance


def log_density(task: Task, params: Params, y: jax.Array, mean: Any) -> jax.Array:
    """log p(y | x) of broadcast y and mean, up to a constant."""
    if task.scale is None:
        return jnp.sum(y * mean - jax.nn.softplus(mean), axis=-1)
    scale = task.scale(params)
    each = -0.5 * ((y - mean) / scale) ** 2 - jnp.log(scale)
    return jnp.sum(each, axis=-1)


def with_chance(each: jax.Array, chance: jax.Array) -> jax.Array:
    """The mean of `each`, whose gradient has the log-derivative term as well."""
    weight = stop_gradient(each - jnp.mean(each))
    return jnp.mean(each + weight * (chance - stop_gradient(chance)))


# -- peers: how networks start, and what is maximised ----------------------------------


def no_networks(task: Task, settings: Settings, key: jax.Array) -> Any:
    return ()


def contrastive(task: Task, settings: Settings) -> Loss:
    """Prior contrastive estimation (Foster et al. 2020): it needs the likelihood."""

    def objective(params: Params, networks: Any, key: jax.Array) -> jax.Array:
        own_key, other_key = jax.random.split(key)
        x, y, chance = draw(task, params, own_key, settings.batch)
        others = task.source(params, other_key, settings.width)
        own = log_density(task, params, y, task.mean(params, x))
        table = log_density(task, params, y[:, None], task.mean(params, others))
        if task.log_source is not None:  # a gradient of the contrasts' law as well
            law = task.log_source(params, others)
            table += law - stop_gradient(law)
        table = jnp.concatenate([own[:, None], table], axis=1)
        bound = own - logsumexp(table, axis=1) + math.log(table.shape[1])
        return with_chance(bound, chance)

    return objective


def towers(task: Task, settings: Settings, key: jax.Array) -> Any:
    """Two networks, for x and for y, whose product is the critic."""
    x, y, _ = draw(task, task.params, key, 2)
    sizes = (settings.width, settings.width, 64)
    keys = jax.random.split(key)
    return [init(k, (v.shape[1], *sizes)) for k, v in zip(keys, (x, y), strict=True)]


def info_nce(task: Task, settings: Settings) -> Loss:
    """InfoNCE (van den Oord et al. 2018) with a separable critic."""

    def objective(params: Params, networks: Any, key: jax.Array) -> jax.Array:
        x, y, chance = draw(task, params, key, settings.batch)
        table = apply(networks[0], x) @ apply(networks[1], y).T / 8.0
        others = logsumexp(table + chance - stop_gradient(chance), axis=1)
        each = jnp.diag(table) - stop_gradient(others)
        moving = jnp.mean(stop_gradient(others) - others)
        return with_chance(each, chance) + moving + math.log(settings.batch)

    return objective


def critic(task: Task, settings: Settings, key: jax.Array) -> Any:
    """One network of x and y."""
    x, y, _ = draw(task, task.params, key, 2)
    sizes = x.shape[1] + y.shape[1], settings.width, settings.width, 1
    return init(key, sizes)


def mine(task: Task, settings: Settings) -> Loss:
    """MINE (Belghazi et al. 2018): the Donsker-Varadhan bound, pairs against shifts."""

    def objective(params: Params, networks: Any, key: jax.Array) -> jax.Array:
        x, y, chance = draw(task, params, key, settings.batch)
        paired, apart = (
            apply(networks, jnp.concatenate([x, v], axis=1))[:, 0]
            for v in (y, jnp.roll(y, 1, axis=0))
        )
        law = chance - stop_gradient(chance)
        extra = jnp.roll(law, 1)  # of the shifted y
        if task.log_source is not None:
            extra += law  # of x
        return with_chance(paired, chance) - (
            logsumexp(apart + extra) - math.log(settings.batch)
        )

    return objective


def denoisers(task: Task, settings: Settings, key: jax.Array) -> Any:
    """The recipe's two networks, for s(y) and s(y|x)."""
    x, y, _ = draw(task, task.params, key, 2)
    dim, keys = y.shape[1], jax.random.split(key)
    return (
        recipe._init_network(keys[0], dim, dim),
        recipe._init_network(keys[1], dim + x.shape[1], dim),
    )


def denoising(task: Task, settings: Settings) -> Loss:
    """The paper's recipe, its networks kept from step to step of the ascent."""
    spread = recipe.NOISE_VARIANCE**0.5

    def objective(params: Params, networks: Any, key: jax.Array) -> jax.Array:
        key, noise_key = jax.random.split(key)
        x, y, _ = draw(task, params, key, settings.batch)
        fixed = stop_gradient(y)
        z = jax.random.normal(noise_key, y.shape)
        fit, cotangent = 0.0, 0.0
        for network, given, sign in ((networks[0], (), -1), (networks[1], (x,), 1)):
            score = recipe._apply_network(network, fixed + spread * z, *given)
            fit += jnp.mean((score + z / spread) ** 2)
            score = stop_gradient(recipe._apply_network(network, fixed, *given))
            cotangent += sign * recipe._stein_constant(fixed, score) * score
        return jnp.mean(jnp.sum(cotangent * y, axis=1)) - fit

    return objective


class Peer(NamedTuple):
    """A family of methods: its networks, its objective, and the settings tried."""

    networks: Callable[[Task, Settings, jax.Array], Any]
    objective: Callable[[Task, Settings], Loss]
    grid: tuple[Settings, ...]


PEERS = {
    "contrastive": Peer(
        no_networks,
        contrastive,
        (Settings(0.2, 256, 1024), Settings(0.05, 256, 1024), Settings(0.2, 64, 8192)),
    ),
    "InfoNCE": Peer(
        towers,
        info_nce,
        (Settings(0.05), Settings(0.01), Settings(0.05, 1024, 256), Settings(0.2)),
    ),
    "MINE": Peer(
        critic,
        mine,
        (Settings(0.05), Settings(0.01), Settings(0.02, 1024, 256), Settings(0.2)),
    ),
    "denoising": Peer(
        denoisers,
        denoising,
        (
            Settings(0.05, 1024),
            Settings(0.01, 1024),
            Settings(0.02, 4096),
            Settings(0.2, 1024),
        ),
    ),
}


def can(name: str, task: Task) -> bool:
    """Whether a method has this kind of task."""
    if name == "denoising":  # no score of a discrete law
        smooth = task.scale is not None and task.log_source is None
        return smooth and task.value is not None
    if name == "KSG":
        return task.value is None
    return name == "ours" or task.value is not None or name != "contrastive"


# -- runs: (processor seconds, parameters or a value) as they come ---------------------

Reached = Iterator[tuple[float, Any]]


def train(
    task: Task, peer: Peer, settings: Settings, seconds: float, seed: int = 0
) -> Reached:
    """Adam on parameters and networks, until the time is over."""
    began = time.process_time()
    objective = peer.objective(task, settings)
    key = jax.random.key(seed)
    adam, nets = optax.scale_by_adam(), optax.adam(NETWORK_RATE)
    project = task.project or (lambda p: p)

    @quick_jit
    def chunk(carry: Any, key: jax.Array, rate: Any) -> Any:
        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, networks, adam_state, nets_state = carry
            up, fit = jax.grad(objective, argnums=(0, 1))(params, networks, key)
            up, moved = adam.update(up, adam_state)
            adam_state = jax.tree.map(
                lambda new, old: jnp.where(rate > 0, new, old), moved, adam_state
            )
            params = project(jax.tree.map(lambda p, u: p + rate * u, params, up))
            fit, nets_state = nets.update(jax.tree.map(jnp.negative, fit), nets_state)
            networks = optax.apply_updates(networks, fit)
            return (params, networks, adam_state, nets_state), None

        return jax.lax.scan(step, carry, jax.random.split(key, CHUNK))[0]

    @quick_jit
    def begin(key: jax.Array) -> Any:
        networks = peer.networks(task, settings, key)
        return networks, adam.init(task.params), nets.init(networks)

    networks, *states = begin(key)
    carry = task.params, networks, *states
    yield 0.0, carry[:2]
    count, spent, first = 0, 0.0, None
    while spent < seconds:
        count += 1
        warm = first is not None and spent - first > WARM_UP
        moves = warm or not jax.tree.leaves(networks)
        rate = settings.rate / (1 + spent / DECAY) if moves else 0.0
        step_key = jax.random.fold_in(key, count)
        carry = jax.block_until_ready(chunk(carry, step_key, rate))
        spent = time.process_time() - began
        first = spent if first is None else first
        yield spent, carry[:2]


def bound(task: Task, peer: Peer, settings: Settings, networks: Any) -> float:
    """The value that trained networks give, on fresh draws."""
    loss = jax.jit(peer.objective(task, settings._replace(batch=HELD_OUT)))
    keys = jax.random.split(jax.random.key(99), 8)
    return float(np.mean([loss(task.params, networks, k) for k in keys]))


def neighbours(task: Task, seconds: float, seed: int = 0) -> Reached:
    """KSG from as many samples as the time allows, doubling from 1024."""
    began, size = time.process_time(), 1024
    spent = last = 0.0
    # The next takes more than twice the time of the last.
    while spent + 2 * last < seconds:
        x, y, _ = draw(task, task.params, jax.random.key(seed + size), size)
        value = ksg(np.asarray(x, np.float64), np.asarray(y, np.float64))
        now = time.process_time() - began
        spent, last, size = now, now - spent, 2 * size
        yield spent, (value, math.nan)


@contextlib.contextmanager
def counted(look: Callable[[int], None]) -> Iterator[None]:
    """Call `look` with the number of new steps whenever a progress bar moves."""
    update = tqdm.std.tqdm.update

    def seen(bar: Any, n: int = 1) -> Any:
        look(n)
        return update(bar, n)

    tqdm.std.tqdm.update = seen
    try:
        yield
    finally:
        tqdm.std.tqdm.update = update


def ours(task: Task, seed: int = 0) -> Reached:
    """This package with its default settings."""
    began = time.process_time()
    key = jax.random.key(seed)
    if task.value is None:
        found = ig.mutual_information(task.model, "x", "y", rng_key=key)
        spent = time.process_time() - began
        yield spent, (found.value, found.standard_error)
        return
    yield 0.0, (task.params, ())
    looks: list[tuple[float, int]] = []
    with counted(lambda steps: looks.append((time.process_time() - began, steps))):
        result = ig.maximize_mi(
            task.model,
            "x",
            "y",
            projection=task.project,
            init_params=task.params,
            rng_key=key,
        )
    end = time.process_time() - began
    steps = 0
    for spent, more in looks:
        steps += more
        params = {n: x[steps - 1] for n, x in result.history["params"].items()}
        yield spent, (params, ())
    yield end, (result.params, ())
