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
