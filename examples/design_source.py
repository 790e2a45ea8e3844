# SPDX-License-Identifier: Apache-2.0
"""Where to listen for two hidden sources: a batch of experiments on a plane.

Sources of unit strength stand at unknown places; a detector at x hears the logarithm of
the sum of their strengths over squared distances, with noise (Foster et al. 2021, Deep
Adaptive Design, section 6.1). Ten detectors are placed at once: the best of a batch of
random designs, then an ascent from there.
"""

import numpy as np

import jax
import jax.numpy as jnp
import optax

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

DETECTORS, SOURCES, NOISE = 10, 2, 0.5


def experiment():
    x = numpyro.param("x", jnp.zeros((DETECTORS, 2)))
    place = numpyro.sample("place", dist.Normal(0, 1).expand([SOURCES, 2]).to_event(2))
    squares = jnp.sum((x[:, None] - place) ** 2, axis=-1)
    heard = jnp.log(0.1 + jnp.sum(1 / (1e-4 + squares), axis=-1))
    numpyro.sample("y", dist.Normal(heard, NOISE).to_event(1))


random = {"x": np.random.default_rng(0).normal(size=(16, DETECTORS, 2))}
batch = ig.design(experiment, random, "place", "y", num_samples=256, num_components=512)
ascent = ig.InfoMax(
    experiment,
    ig.MI("place", "y"),
    optax.adam(optax.cosine_decay_schedule(0.05, 50)),
    scores=ig.scores.Contrastive(num_components=512),  # log(513) = 6.2 nats
    num_samples=512,
)
# `init` and `update` in place of `run`, whose value at the end takes longer.
state = ascent.init(jax.random.key(0), init_params=batch.best)
for _ in range(50):
    state, _ = ascent.update(state)
end = ascent.get_params(state)
both = {"x": np.stack([batch.best["x"], end["x"]])}
check = ig.design(
    experiment, both, "place", "y", num_samples=1024, num_components=2**15
)
for name, i in (("best of 16 random designs", 0), ("after 50 steps", 1)):
    low, high = check.lower[i], check.upper[i]
    print(f"{name}: bounds {low:.3f} and {high:.3f} nats")
gain = check.lower[1] - check.upper[0]
print(f"the ascent gained at least {gain:.3f} nats")
print(np.round(end["x"], 2))
assert gain > 0.1
