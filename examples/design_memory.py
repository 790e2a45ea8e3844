# SPDX-License-Identifier: Apache-2.0
"""How long a list to read out: adaptive design of a test of working memory.

A person recalls a list of `length` words with probability sigmoid(theta - length); the
capacity theta is Normal(7, 2) before the test (Pyro's working memory tutorial). Each
round asks for the length with most information, and the draws of NUTS are the prior of
the next round.
"""

import numpy as np

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

import numpyro_infograd as ig

LENGTHS, CAPACITY, ROUNDS = jnp.arange(1, 16), 5.0, 8


def first_round(length):
    theta = numpyro.sample("theta", dist.Normal(7, 2))
    numpyro.sample("y", dist.Bernoulli(logits=theta - length))


def next_round(length, draws):
    row = numpyro.sample("row", dist.Categorical(logits=jnp.zeros(len(draws))))
    theta = numpyro.deterministic("theta", draws[row])
    numpyro.sample("y", dist.Bernoulli(logits=theta - length))


def all_rounds(lengths, y, seen):
    theta = numpyro.sample("theta", dist.Normal(7, 2))
    answers = dist.Bernoulli(logits=theta - lengths).mask(seen)
    numpyro.sample("y", answers.to_event(1), obs=y)


def quadrature(length):
    theta = np.linspace(-11, 25, 20001)
    prior = np.exp(-0.5 * ((theta - 7) / 2) ** 2)
    prior /= prior.sum()
    p = 1 / (1 + np.exp(length - theta))

    def entropy(p):
        return -p * np.log(p) - (1 - p) * np.log1p(-p)

    return entropy(prior @ p) - prior @ entropy(p)


found = ig.design(first_round, LENGTHS, "theta", "y")
print(found)
truth = np.array([quadrature(x) for x in np.asarray(LENGTHS)])
print(f"quadrature: {truth.max():.4f} nats at length {int(LENGTHS[truth.argmax()])}")
assert int(found.best) == 7 and np.abs(found.value - truth).max() < 1e-3

rng = np.random.default_rng(0)
lengths, answers = np.zeros(ROUNDS), np.zeros(ROUNDS, int)
mcmc = MCMC(
    NUTS(all_rounds),
    num_warmup=300,
    num_samples=1024,
    progress_bar=False,
    jit_model_args=True,  # all rounds have the same shapes, so only one compiles
)
for number in range(ROUNDS):
    lengths[number] = found.best
    answers[number] = rng.random() < 1 / (1 + np.exp(found.best - CAPACITY))
    seen = np.arange(ROUNDS) <= number
    mcmc.run(jax.random.key(number), lengths, answers, seen)
    draws = mcmc.get_samples()["theta"]
    found = ig.design(next_round, LENGTHS, "theta", "y", model_args=(draws,))
    print(
        f"length {lengths[number]:.0f}: {'yes' if answers[number] else 'no '}, "
        f"theta = {draws.mean():.2f} +- {draws.std():.2f}, next {int(found.best)} "
        f"for {found.value.max():.3f} nats"
    )
assert abs(draws.mean() - CAPACITY) < 3 * draws.std() < 6.0
