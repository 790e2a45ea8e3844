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
quiet = SimpleNamespace(
    **{
        name: functools.partial(getattr(ig, name), progress_bar=False)
        for name in ("calibrate", "maximize", "maximize_mi", "minimize", "rate_region")
    }
)

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


def refuses_gradient(
    error: type[Exception],
    *words: str,
    model: Any,
    objective: Any = _X_TO_Y,
    **settings: Any,
) -> None:
    """`gradient` refuses, and `maximize` does for the same reason."""
    refuses(error, *words, call=lambda: ig.gradient(model, objective, **settings))
    if "params" in settings:
        settings["init_params"] = settings.pop("params")
    quick = {"num_steps": 1, "progress_bar": False, **settings}
    refuses(error, *words, call=lambda: ig.maximize(model, objective, **quick))


def check_only(model: Any, objective: Any = _X_TO_Y) -> None:
    """The checks of `gradient`, without its numbers."""
    sm = ig.structural_model(model)
    _checks.check_objective(objective, sm)
    _checks.check_gradient(objective, sm, sm.params, False)


def assert_within(
    estimate: Any,
    standard_error: Any,
    truth: Any,
    *,
    max_standard_error: float,
    num_sigmas: float = 4.0,
    rounding: float = 1e-6,
) -> None:
    """Assert that an estimate agrees with a truth, and is sharp enough to tell.

    Passes when ``|estimate - truth| <= num_sigmas * standard_error`` everywhere and
    no standard error exceeds ``max_standard_error``. The second condition is what
    keeps a noisy estimate from passing. Nothing is broadcast.

    Args:
        estimate: A number, an array or a pytree of them.
        standard_error: The same tree and shapes as `estimate`.
        truth: The same tree and shapes as `estimate`.
        max_standard_error: Largest standard error allowed, in any element.
        num_sigmas: Allowed distance, in standard errors.
        rounding: Allowance for floating point, relative to ``max(1, |truth|)``, so
            that exact results with a standard error of 0 can be compared.

    Raises:
        AssertionError: With the place, the numbers and which condition failed.
    """
    tree = jax.tree.structure(truth)
    for what, other in (("estimate", estimate), ("standard_error", standard_error)):
        if jax.tree.structure(other) != tree:
            found = jax.tree.structure(other)
            raise AssertionError(f"{what} is {found}; the truth is {tree}")
    failures = []
    for (path, true), value, error in zip(
        jax.tree.leaves_with_path(truth),
        jax.tree.leaves(estimate),
        jax.tree.leaves(standard_error),
        strict=True,
    ):
        place = jax.tree_util.keystr(path) or "value"
        true, value, error = (np.asarray(a, np.float64) for a in (true, value, error))
        if not value.shape == error.shape == true.shape:
            raise AssertionError(
                f"{place}: estimate {value.shape}, standard error {error.shape} and "
                f"truth {true.shape} must have one shape"
            )
        # Written so that a NaN anywhere fails.
        sharp = (error >= 0) & (error <= max_standard_error)
        allowed = num_sigmas * error + rounding * np.maximum(1.0, np.abs(true))
        near = np.abs(value - true) <= allowed
        for index in np.argwhere(~(sharp & near)):
            i = tuple(index)
            where = place + (str([int(k) for k in i]) if i else "")
            line = f"{where}: {value[i]:.6g} +- {error[i]:.2g}, truth {true[i]:.6g}"
            if not near[i]:
                distance = abs(value[i] - true[i])
                sigmas = distance / error[i] if error[i] else np.inf
                line += f"; off by {sigmas:.1f} standard errors (> {num_sigmas:g})"
            if not sharp[i]:
                line += f"; standard error not within [0, {max_standard_error:g}]"
            failures.append(line)
    if failures:
        raise AssertionError("\n".join(failures))


def assert_found(found: Any, truth: Any, sharp: float, **settings: Any) -> None:
    """Assert that a gradient or a value is at the truth, and sharp enough to tell."""
    value, error = found.value, found.standard_error
    assert_within(value, error, truth, max_standard_error=sharp, **settings)
