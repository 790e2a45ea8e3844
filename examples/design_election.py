# SPDX-License-Identifier: Apache-2.0
"""Whom to poll before an election: the target is the winner, not the opinions.

A smaller version of Pyro's election tutorial, with made-up numbers. Ten regions have
correlated opinions (log odds of party A), each region gives all its seats to its
winner, and a poll of 500 people is split over the regions. The winner is computed from
the opinions, so it has no density given the poll; its few values are counted.
"""

import numpy as np
from scipy import stats

import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig

POLLED = 500
SEATS = np.array([29, 20, 18, 16, 15, 11, 10, 55, 38, 3])
MEAN = np.array([0.02, 0.12, 0.06, -0.05, 0.15, -0.2, 0.1, 0.6, -0.5, 2.2])
SCALE = np.array([0.25, 0.2, 0.22, 0.2, 0.25, 0.25, 0.2, 0.3, 0.3, 0.2])
COMMON = 0.6  # correlation of opinions
CHOLESKY = np.linalg.cholesky(
    np.outer(SCALE, SCALE) * (COMMON + (1 - COMMON) * np.eye(10))
)


def election(poll):
    z = numpyro.sample("z", dist.Normal(0, 1).expand([10]).to_event(1))
    opinion = numpyro.deterministic("opinion", MEAN + CHOLESKY @ z)
    seats = jnp.sum(SEATS * (opinion > 0))
    numpyro.deterministic("winner", seats > SEATS.sum() / 2)
    numpyro.sample("y", dist.Binomial(poll, logits=opinion).to_event(1))


def one_region(region):
    """I(winner; count) of a poll in one region: sums over counts and 2^16 draws."""
    rng = np.random.default_rng(0)
    opinion = MEAN + rng.normal(size=(2**16, 10)) @ CHOLESKY.T
    winner = (opinion > 0) @ SEATS > SEATS.sum() / 2
    p = 1 / (1 + np.exp(-opinion[:, region]))
    joint = [
        stats.binom.pmf(np.arange(POLLED + 1)[:, None], POLLED, p[side]).sum(axis=1)
        for side in (winner, ~winner)
    ]
    joint = np.stack(joint) / len(p)
    free = joint.sum(axis=0) * joint.sum(axis=1, keepdims=True)
    seen = joint > 0
    return np.sum(joint[seen] * np.log(joint[seen] / free[seen]))


marginal = np.where(np.abs(MEAN) < 0.16, SEATS, 0)
polls = {
    "largest swing region": POLLED * np.eye(10)[0],
    "safest region": POLLED * np.eye(10)[9],
    "evenly": np.full(10, POLLED / 10),
    "by seats": np.round(POLLED * SEATS / SEATS.sum()),
    "swing regions by seats": np.round(POLLED * marginal / marginal.sum()),
}
found = ig.design(
    election,
    np.stack(list(polls.values())).astype(int),
    "winner",
    "y",
    num_samples=4096,
    num_components=2048,
)
for i in found.ranking:
    print(
        f"{list(polls)[i]:24}{found.value[i]:.4f} +- {found.standard_error[i]:.4f} "
        f"nats, {found.difference[i]:.4f} +- {found.difference_error[i]:.4f}"
    )
print(*found.warnings, sep="\n")
truth = np.array([one_region(0), one_region(9)])
print(f"one region by sums: {truth[0]:.4f}, {truth[1]:.4f}")
assert np.all(np.abs(found.value[:2] - truth) < 4 * found.standard_error[:2] + 1e-3)
assert found.ranking[-1] == 1
