# SPDX-License-Identifier: Apache-2.0
"""Score methods that are small enough for a test, and which tests are slow ones."""

from collections.abc import Iterable
import functools
from typing import Any

import pytest

from numpyro_infograd.scores import Denoising, Mixture

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
LEARN = Denoising(hidden=(32, 32), num_steps=150, pool_size=16384, num_samples=4096)
AVERAGE = Mixture(num_components=1024, num_samples=4096)
METHODS = {"exact": "exact", "mixture": AVERAGE, "denoising": LEARN}
named = pytest.mark.parametrize("scores", METHODS.values(), ids=METHODS)
# Networks learn much the same in most tests, so there they are slow tests.
_SLOW = slow(LEARN)
named_and_slow = pytest.mark.parametrize(
    "scores", ["exact", AVERAGE, _SLOW], ids=METHODS
)
exact_and_slow = pytest.mark.parametrize(
    "scores", ["exact", slow(AVERAGE), _SLOW], ids=METHODS
)
sampled_and_slow = pytest.mark.parametrize(
    "scores", [AVERAGE, _SLOW], ids=["mixture", "denoising"]
)


def rest_slow(names: Any, values: Iterable[Any], **settings: Any) -> Any:
    """Parameters of a test that is slow for all values but the first."""
    first, *rest = values
    several = not isinstance(names, str) or "," in names
    rest = [slow(*v) if several else slow(v) for v in rest]
    return pytest.mark.parametrize(names, [first, *rest], **settings)
