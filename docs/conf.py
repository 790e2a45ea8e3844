# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds these pages (`make docs`); nothing is fetched while it does.

A browser loads MathJax from its usual address to set the formulas, and shows their TeX
where it cannot. To read the pages without a network, build them with a copy of MathJax
of your own: `-D mathjax_path=file:///path/to/tex-mml-chtml.js`.
"""

import re
from typing import Any

from numpyro_infograd import __version__

project = "numpyro_infograd"
author = "The numpyro_infograd contributors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

default_role = "code"  # single backticks in docstrings
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the docstrings say in words what an argument is
autodoc_member_order = "bysource"
add_module_names = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False


def escape_formulas(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings write formulas as text: (n, *shape), |s|^2, with no markup in them."""
    paragraphs = re.split(r"(\n\s*\n)", "\n".join(lines))
    for i, paragraph in enumerate(paragraphs):
        text, prompt, code = paragraph.partition(">>>")
        text = re.sub(r"(`[^`]*`)|([*|])", lambda m: m[1] or rf"\{m[2]}", text)
        paragraphs[i] = text + prompt + code
    lines[:] = "".join(paragraphs).split("\n")


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", escape_formulas, priority=400)
