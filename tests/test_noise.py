# SPDX-License-Identifier: Apache-2.0
"""Draws of noise: every number of a batch is independent of all others."""

import numpy as np
import pytest
from scipy.stats import kstest

import jax
import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

import numpyro_infograd as ig
from numpyro_infograd import _noise
from numpyro_infograd._noise import NoiseSource, probe_noise

KEY = jax.random.key(0)


def model() -> None:
    for i in range(2):
        numpyro.sample(f"normal{i}", dist.Normal().expand([2]).to_event(1))
        numpyro.sample(f"uniform{i}", dist.Uniform())
        numpyro.sample(f"gamma{i}", dist.Gamma(2.0))


SM = ig.structural_model(model)


def assert_uncorrelated(noise: dict) -> None:
    """Numbers, and keys as what they draw, within and between neighbouring samples."""
    rows = [
        x.reshape(len(x), -1)
        if jnp.issubdtype(x.dtype, jnp.floating)
        else jax.vmap(jax.random.normal)(x)[:, None]
        for x in noise.values()
    ]
    table = np.concatenate(rows, axis=1)
    both = np.concatenate([table[1:], table[:-1]], axis=1)
    found = np.corrcoef(both.T) - np.eye(both.shape[1])
    assert np.abs(found).max() < 5 / np.sqrt(len(table))


@pytest.mark.parametrize("at_once", [_noise._AT_ONCE, 0])
def test_batches(monkeypatch, at_once: int) -> None:
    monkeypatch.setattr(_noise, "_AT_ONCE", at_once)
    noise = NoiseSource.independent(SM.spec, 4096)(KEY)
    assert_uncorrelated(noise)
    assert kstest(noise["normal1"].ravel(), "norm").pvalue > 1e-3
    assert kstest(noise["uniform1"], "uniform").pvalue > 1e-3
    with pytest.raises(AssertionError):  # negative control
        assert_uncorrelated(noise | {"normal1": noise["normal0"]})


def test_quasi_random_batches_at_several_keys_are_replicates() -> None:
    source = NoiseSource.of(SM.spec, 256)
    means = np.array(
        [np.mean(source(key)["normal0"], axis=0) for key in jax.random.split(KEY, 64)]
    )
    assert np.abs(means.mean(0)).max() < 4 * means.std() / 8
    assert means.std() < 0.1 / np.sqrt(256)  # those of independent draws are larger


def test_probes() -> None:
    assert_uncorrelated(probe_noise(SM.spec, 1, 2048))


def test_samples_do_not_repeat_what_a_user_draws() -> None:
    sm = ig.structural_model(lambda: numpyro.sample("x", dist.Normal()))
    own = jax.random.normal(KEY, (4096,))
    noise = sm.sample_noise(KEY, 4096)
    assert_uncorrelated({"own": own, **noise})


def test_sites_of_one_law_are_not_equal_in_a_check() -> None:
    """If they were, a share of both would be one half, whatever the draw."""

    def share() -> None:
        parts = [numpyro.sample(f"x{i}", dist.Gamma(2.0)) for i in range(2)]
        numpyro.deterministic("y", numpyro.param("a", 1.5) * parts[0] / sum(parts))

    sm = ig.structural_model(share)
    values = sm.evaluate(sm.params, probe_noise(sm.spec, 1, 64))["y"]
    assert np.std(values) > 0.2
