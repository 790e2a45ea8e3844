# SPDX-License-Identifier: Apache-2.0
"""Text of results: numbers with their errors, and tables in notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
import importlib
import math
from typing import Any

import numpy as np

import jax

_FEW = 8  # numbers of an array that are shown


def brief(value: Any) -> str:
    """The start of a value's repr, in one line, for a message; an array's shape."""
    shape = getattr(value, "shape", ())
    if isinstance(shape, tuple) and math.prod(shape) > _FEW:
        return f"an array of shape {shape}"
    return " ".join(repr(value).split())[:80]


def with_error(value: Any, error: Any = None) -> str:
    """A parameter as short text, with its standard error if there is one."""
    leaves, errors = ([*map(_floats, jax.tree.leaves(x))] for x in (value, error))
    if len(leaves) == 1 and leaves[0].size <= 8:
        shown = [(leaves[0], "{:.6g}")] + [(x, "{:.2g}") for x in errors]
        return " +- ".join(
            np.array2string(
                x, formatter={"float_kind": form.format, "complex_kind": form.format}
            )
            for x, form in shown
        )
    size = sum(x.size for x in leaves)
    norm = math.sqrt(sum(float(np.sum(np.abs(x) ** 2)) for x in leaves))
    text = f"{size} numbers, norm {norm:.6g}"
    if errors:
        worst = max((float(np.max(np.abs(e))) for e in errors if e.size), default=0.0)
        text += f", errors up to {worst:.2g}"
    return text


def _floats(value: Any) -> np.ndarray:
    return np.asarray(value, complex if np.iscomplexobj(value) else float)


def first_sentence(error: Exception) -> str:
    """The first sentence of an error, as a reason."""
    return str(error).split(". ")[0]


def warned(sentences: Iterable[str]) -> list[str]:
    """The warnings of a result as notes."""
    return [f"warning: {sentence}" for sentence in sentences]


def draw(figure: str, *args: Any) -> Any:
    """A figure of `plots`, which is loaded by name: it needs matplotlib."""
    return getattr(importlib.import_module("numpyro_infograd.plots"), figure)(*args)


def html_table(
    title: str, rows: Iterable[Sequence[str]], notes: Iterable[str] = ()
) -> str:
    """A small table with a title above and notes below."""
    cells = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for row in rows
    )
    below = "".join(f"<div>{escape(note)}</div>" for note in notes)
    return f"<div><b>{escape(title)}</b><table>{cells}</table>{below}</div>"
