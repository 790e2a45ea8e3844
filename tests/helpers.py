# SPDX-License-Identifier: Apache-2.0
"""How the tests compare a random estimate with a truth, and expect a refusal."""

from collections.abc import Callable
import functools
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import jax

import numpyro_infograd as ig
from numpyro_infograd import _checks
from numpyro_infograd.errors import InfogradError

__all__ = [
    "REMEDY", "ascend", "assert_found", "assert_within", "check_only", "information",
    "quiet", "refuses", "refuses_gradient",
]  # fmt: skip

# What draws a progress bar, without it.
quiet = SimpleNamespace()
for _name in ("calibrate", "maximize", "maximize_mi", "minimize", "rate_region"):
    setattr(quiet, _name, functools.partial(getattr(ig, _name), progress_bar=False))

# Of a model from x to y.
ascend = functools.partial(quiet.maximize_mi, inputs="x", outputs="y")
information = functools.partial(ig.mutual_information, inputs="x", outputs="y")

_X_TO_Y = ig.MI("x", "y")
# Every message ends with what to do.
REMEDY = re.compile(
    r"\b([Uu]se|Make|Add|[Ll]eave|Give|Pass|pass|Soften|Express|Write|Clean|Name|"
    r"freeze|Raise|take|Observe|mark|one of|must|derive|needs|it has|[Cc]all|Declare)\b"
)


def refuses(
    error: type[Exception], *words: str, call: Callable[[], Any]
) -> pytest.ExceptionInfo:
    """The call raises exactly this class, with these words and a remedy."""
    with pytest.raises(InfogradError) as caught:
        call()
    message = str(caught.value)
    assert caught.type is error, f"{caught.type.__name__}: {message}"
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    assert REMEDY.search(message), f"no remedy in: {message}"
    return caught


def refuses_gradient(error, *words, model, objective=_X_TO_Y, **settings) -> None:
    """`gradient` refuses, and `maximize` does for the same reason."""
    for function in (ig.gradient, functools.partial(quiet.maximize, num_steps=1)):
        call = functools.partial(function, model, objective, **settings)
        refuses(error, *words, call=call)


def check_only(model: Any, objective: Any = _X_TO_Y) -> None:
    """The checks of `gradient`, without its numbers."""
    sm = ig.structural_model(model)
    _checks.check_objective(objective, sm)
    _checks.check_gradient(objective, sm, sm.params, False)


def assert_within(
    estimate,
    standard_error,
    truth,
    *,
    max_standard_error,
    num_sigmas=4.0,
    rounding=1e-6,
) -> None:
    """Assert that an estimate agrees with a truth, and is sharp enough to tell.

    Passes when ``|estimate - truth| <= num_sigmas * standard_error`` everywhere, with
    an allowance for floating point relative to ``max(1, |truth|)``, and no standard
    error exceeds ``max_standard_error``, which keeps a noisy estimate from passing.
    All three are numbers, arrays or equal pytrees of them; nothing is broadcast.
    """
    trees = jax.tree.structure(truth), jax.tree.structure(standard_error)
    assert set(trees) == {jax.tree.structure(estimate)}, trees
    failures = []
    for (path, true), *found in zip(
        jax.tree.leaves_with_path(truth),
        jax.tree.leaves(estimate),
        jax.tree.leaves(standard_error),
        strict=True,
    ):
        true, value, error = (np.asarray(a, np.float64) for a in (true, *found))
        assert value.shape == error.shape == true.shape, "the shapes differ"
        allowed = num_sigmas * error + rounding * np.maximum(1.0, np.abs(true))
        # Written so that a NaN anywhere fails.
        near = np.abs(value - true) <= allowed
        sharp = (error >= 0) & (error <= max_standard_error)
        for right, why in (
            (near, f"off by more than {num_sigmas:g} standard errors"),
            (sharp, f"standard error not within [0, {max_standard_error:g}]"),
        ):
            if not np.all(right):
                numbers = (f"{a[~right]}" for a in (value, error, true))
                shown = "{} +- {}, truth {}".format(*numbers)
                failures.append(f"{jax.tree_util.keystr(path)} {shown}: {why}")
    assert not failures, "\n".join(failures)


def assert_found(found: Any, truth: Any, sharp: float, **settings: Any) -> None:
    """Assert that a gradient or a value is at the truth, and sharp enough to tell."""
    value, error = found.value, found.standard_error
    assert_within(value, error, truth, max_standard_error=sharp, **settings)
