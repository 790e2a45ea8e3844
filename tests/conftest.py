# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests."""

from collections.abc import Iterator

import pytest

import jax


@pytest.fixture
def x64() -> Iterator[None]:
    """Run one test in double precision, and restore the setting after it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Modules share few compiled programs, and all of them take gigabytes."""
    yield
    jax.clear_caches()
