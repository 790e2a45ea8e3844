# SPDX-License-Identifier: Apache-2.0
"""Information gradients of NumPyro models.

`__init__.pyi` lists the public names. They load on first use, so importing the package
is fast. Modules whose names start with an underscore are private.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
