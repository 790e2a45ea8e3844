# SPDX-License-Identifier: Apache-2.0
"""Information gradients of NumPyro models.

`__init__.pyi` lists the public names. They load on first use, so importing the package
is fast. Modules whose names start with an underscore are private.
"""

import sys
from typing import Any

import lazy_loader

__version__ = "0.1.0"

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except AttributeError as unknown:
        for room in ("diagnostics", "distributions", "errors", "scores", "values"):
            if not name.startswith("_") and hasattr(_load(room), name):
                raise AttributeError(f"{unknown}. Write ig.{room}.{name}.") from None
        # With these, Python's message says which public name may be meant.
        unknown.name, unknown.obj = name, sys.modules[__name__]
        raise
