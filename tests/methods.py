# SPDX-License-Identifier: Apache-2.0
"""Score methods that are small enough for a test, and all of them as parameters."""

import pytest

from numpyro_infograd.scores import Denoising, Mixture

LEARN = Denoising(hidden=(32, 32), num_steps=150, pool_size=16384, num_samples=4096)
AVERAGE = Mixture(num_components=1024, num_samples=4096)
METHODS = {"exact": "exact", "mixture": AVERAGE, "denoising": LEARN}
named = pytest.mark.parametrize("scores", METHODS.values(), ids=METHODS)
# Networks learn much the same in most tests, so there they are slow tests.
_SLOW = pytest.param(LEARN, marks=pytest.mark.slow)
named_and_slow = pytest.mark.parametrize(
    "scores",
    ["exact", AVERAGE, _SLOW],
    ids=METHODS,
)
sampled = pytest.mark.parametrize(
    "scores", [AVERAGE, LEARN], ids=["mixture", "denoising"]
)
sampled_and_slow = pytest.mark.parametrize(
    "scores", [AVERAGE, _SLOW], ids=["mixture", "denoising"]
)
