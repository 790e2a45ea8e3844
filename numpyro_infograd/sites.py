# SPDX-License-Identifier: Apache-2.0
"""What is known about one site without drawing it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numpyro_infograd.exogenous import Noise


class Site(NamedTuple):
    """Static information about one site."""

    name: str
    kind: str  # "sample" or "deterministic"
    shape: tuple[int, ...]
    dtype: Any
    noise: Noise | None = None
    distribution: str = ""
    reason: str = ""  # why its draws have no derivative in a parameter; "" if they have
    has_law: bool = True  # whether its density or probability is right
    discrete: bool = False
    support: str = "real"  # also "positive", "unit", "bounded", "thin", "mixed" (atoms)
    state: str = "free"  # "free", "observed", "substituted" or "intervened"
    masked: bool = False  # whether it has a mask, which does not change draws
    control_flow: bool = False  # whether it is inside a scan or a cond
    unconstrain: Any = None  # NumPyro transform from real numbers to the support
    choices: tuple[float, ...] | None = ()  # values of a discrete site, if few

    @property
    def size(self) -> int:
        """Number of scalars in one draw of the site."""
        return math.prod(self.shape)
