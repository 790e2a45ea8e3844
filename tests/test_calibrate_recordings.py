# SPDX-License-Identifier: Apache-2.0
"""Recordings in the forms in which people have them."""

import numpy as np
import pandas  # with xarray, a dependency of ArviZ
import pytest
import xarray

import jax.numpy as jnp

import numpyro
import numpyro.distributions as dist

from helpers import quiet
import numpyro_infograd as ig
from numpyro_infograd._calibrate.fit import into_blocks
from numpyro_infograd._calibrate.likelihood import count_rows, rows_of
from numpyro_infograd._calibrate.recordings import as_recordings, as_tables

RNG = np.random.default_rng(0)
Y = RNG.normal(size=600).astype(np.float32)
Z = RNG.normal(size=(600, 3)).astype(np.float32)


def model() -> None:
    a = numpyro.param("a", 1.0)
    numpyro.sample("y", dist.Normal(0, a))
    numpyro.sample("z", dist.Normal(jnp.zeros(3), a).to_event(1))
    numpyro.sample("n", dist.Poisson(a))


SM = ig.structural_model(model)


def read(**observed):
    return as_recordings(as_tables(observed), SM, likely="n" in observed)


def test_forms_of_scalars() -> None:
    forms = {
        "list": Y.tolist(),
        "jax": jnp.asarray(Y),
        "series": pandas.Series(Y, index=np.arange(600)[::-1]),
        "nullable": pandas.Series(Y.astype(float)).astype("Float64"),
        "xarray": xarray.DataArray(Y, dims="time"),
        "files": np.split(Y, [100, 350]),
        "series of files": [pandas.Series(part) for part in np.split(Y, [7])],
    }
    for name, form in forms.items():
        found, warnings = read(y=form)
        np.testing.assert_array_equal(found["y"], Y, err_msg=name)
        assert not warnings


def test_forms_of_vectors() -> None:
    frame = pandas.DataFrame(Z, columns=["u", "v", "w"])
    for form in (Z.tolist(), list(Z), frame, [frame[:200], Z[200:]]):
        np.testing.assert_array_equal(read(z=form)[0]["z"], Z)


def test_a_table_of_sites() -> None:
    table = as_tables(pandas.DataFrame({"y": Y, "n": np.arange(600) % 4}))
    found, _ = as_recordings(table, SM, likely=True)
    np.testing.assert_array_equal(found["y"], Y)
    assert found["n"].dtype == np.int32 and found["n"].max() == 3


def test_a_list_of_masked_rows_keeps_its_masks() -> None:
    rows = [
        np.ma.masked_array(row, [False, i % 2 == 0, False]) for i, row in enumerate(Z)
    ]
    found, (warning,) = read(z=rows)
    np.testing.assert_array_equal(found["z"], Z[1::2])
    assert "300 of 600" in warning


def test_rows_with_gaps_are_left_out_of_all_sites() -> None:
    y, z = Y.copy(), np.ma.masked_array(Z, False)
    y[5], z[7, 1], z[5, 0] = np.nan, np.ma.masked, np.ma.masked
    counts = pandas.Series(np.arange(600) % 4, dtype="Int64")
    counts[9] = pandas.NA
    found, (warning,) = read(y=y, z=z, n=counts)
    kept = np.delete(np.arange(600), [5, 7, 9])
    np.testing.assert_array_equal(found["y"], Y[kept])
    np.testing.assert_array_equal(found["z"], Z[kept])
    np.testing.assert_array_equal(found["n"], kept % 4)
    assert "3 of 600 recordings" in warning and "'y' (1), 'z' (2), 'n' (1)" in warning


@pytest.mark.parametrize("number", [256, 300, 600, 20_000, 20_061])
def test_blocks_lose_few_rows(number: int) -> None:
    train, held = into_blocks(number)
    rows = np.sort(np.concatenate([train.ravel(), held.ravel()]))
    np.testing.assert_array_equal(rows, np.arange(len(rows)))
    assert number - len(rows) < 0.03 * number and len(held) == len(train) / 4


def test_equal_rows_are_counted_by_block() -> None:
    train, _ = into_blocks(600)
    n = {"n": np.arange(600) % 7}
    rows = rows_of(n, train)
    values = np.asarray(rows.values["n"])
    assert count_rows(n, train) == 7 and set(values) == set(range(7))
    for value in range(7):
        share = rows.shares[:, values == value].sum(axis=1)
        np.testing.assert_allclose(share, np.mean(n["n"][train] == value, axis=1))


@pytest.mark.slow
def test_a_million_recordings() -> None:
    """Five outputs; errors fall as one over the root of their number."""
    mix = np.random.default_rng(0).normal(size=(5, 3))
    truth = np.array([0.5, 1.0, 2.0])

    def link() -> None:
        gains = numpyro.param("gains", jnp.ones(3))
        x = numpyro.sample("x", dist.Normal(0, 1).expand([3]).to_event(1))
        numpyro.sample("y", dist.Normal(mix @ jnp.tanh(gains * x), 0.3).to_event(1))

    rng = np.random.default_rng(1)
    y = np.tanh(truth * rng.normal(size=(1_000_000, 3))) @ mix.T
    y += 0.3 * rng.normal(size=y.shape)
    errors = []
    for number in (10_000, 1_000_000):
        twin = quiet.calibrate(link, {"y": y[:number]}, divergence="kl")
        errors.append(np.asarray(twin.standard_error["gains"]))
        off = np.abs(np.asarray(twin.params["gains"]) - truth)
        assert np.all(off < 3.5 * errors[-1]), (off, errors[-1])
    np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.35)
