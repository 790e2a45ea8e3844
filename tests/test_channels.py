# SPDX-License-Identifier: Apache-2.0
"""Default settings on channels of every kind, against dense grids; all slow."""

from channels import CHANNELS, Channel, Row, gradient_row
import numpy as np
import pytest

import jax

import numpyro_infograd as ig

pytestmark = pytest.mark.slow
KEYS = 40
# Hidden behind a rotation, heavy-tailed, discrete, faded.
FOUR = ("tanh, 16 mixed", "Laplace input, 4 mixed", "two levels, 4 mixed",
        "fading, unknown")  # fmt: skip


def test_default_gradients_are_within_their_errors() -> None:
    rows: list[Row] = []
    for name, make in CHANNELS.items():
        rows.append(gradient_row(name, make()))
        jax.clear_caches()
    assert len(rows) >= 40
    off = np.abs([row.sigmas for row in rows])
    assert np.mean(off > 3) <= 0.05, [r for r in rows if abs(r.sigmas) > 3]
    assert off.max() < 5, rows[int(off.argmax())]
    for row in rows:
        assert row.warned or abs(row.found - row.truth) <= 0.1 * abs(row.truth), row


def by_gradient(channel: Channel, key: jax.Array) -> tuple[float, float, float]:
    g = ig.gradient(channel.model, ig.MI("x", "y"), scores="mcmc", rng_key=key)
    error = float(g.standard_error["gain"])
    return float(g.value["gain"]), error, channel.derivative


def by_value(channel: Channel, key: jax.Array) -> tuple[float, float, float]:
    v = ig.mutual_information(channel.model, "x", "y", method="mcmc", rng_key=key)
    return v.value, v.standard_error, channel.information


@pytest.mark.parametrize("name", FOUR)
@pytest.mark.parametrize("found", [by_gradient, by_value])
def test_two_errors_of_chains_hold_the_truth(found, name) -> None:
    """For 88 to 100 percent of the keys, with errors of at most thrice their size.

    If the noise of the chains dominates, the two deviations, each from half of the
    replicates, have at most 2 and 6 times the variance of the gradient. So the sum, 9,
    is in the standard error.
    """
    channel, off = CHANNELS[name](), []
    for seed in range(KEYS):
        value, error, truth = found(channel, jax.random.key(seed))
        off.append((value - truth) / error)
    assert np.mean(np.abs(off) <= 2) >= 0.88, off
    assert 1 / 3 < np.std(off) < 1.5, off
