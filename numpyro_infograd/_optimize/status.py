# SPDX-License-Identifier: Apache-2.0
"""How a run ended: an enum with a message."""

from __future__ import annotations

import enum
from typing import Any


class Ending(enum.Enum):
    """How an ascent, or a calibration, ended.

    Example:
        >>> from numpyro_infograd._optimize import Ending
        >>> Ending("converged") is Ending.CONVERGED
        True
    """

    CONVERGED = "converged"
    ALL_STEPS = "took all steps"
    UNFINISHED = "unfinished"
    SADDLE = "rests at a saddle point"
    AT_REST = "no parameter can move"
    DIVERGED = "diverged"
    BELOW_START = "below its start"
    OUT_OF_RANGE = "left the range of its scores"
    NOT_FINITE = "values are not finite"
    INTERRUPTED = "interrupted"


class Status(str):
    """A message that says how a run ended, with the same as an enum.

    Attributes:
        ending: The enum. Compare this, not the text.

    Example:
        >>> from numpyro_infograd._optimize import Ending, Status
        >>> status = Status("converged after 200 steps", Ending.CONVERGED)
        >>> print(status)
        converged after 200 steps
        >>> status.ending is Ending.CONVERGED
        True
    """

    ending: Ending

    def __new__(cls, message: str, ending: Ending) -> Status:
        """The message with its ending."""
        status = super().__new__(cls, message)
        status.ending = ending
        return status

    def __getnewargs__(self) -> Any:
        """Arguments of `__new__` for copies and pickles."""
        return str(self), self.ending
