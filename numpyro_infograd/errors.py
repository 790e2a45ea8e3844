# SPDX-License-Identifier: Apache-2.0
"""What this package refuses, one exception class for each reason.

Every message names the site or the argument, says what came and what was
expected, and ends with what to do. All classes derive from `InfogradError`, and from
`ValueError`, so `except ValueError` keeps working.
"""

from typing import Any


class InfogradError(Exception):
    """Base of every error that this package raises on purpose."""


class ModelError(InfogradError, ValueError):
    """The model has a construct with no meaning as a generative system.

    `factor` statements, subsampled plates, mutable module state, improper priors; a
    Python branch on a traced value; draws or log densities that are not finite.
    """


class SiteError(InfogradError, ValueError):
    """A named site is missing, observed, intervened on, or named on both sides."""


class ParameterError(InfogradError, ValueError):
    """A parameter is unknown, no number, of another shape, or out of its domain."""


class ReparametrizationError(InfogradError, ValueError):
    """A parameter flows into a site whose sampler has no right pathwise gradient."""


class JumpError(InfogradError, ValueError):
    """A parameter reaches a site through a jump: the pathwise gradient is wrong."""


class BoundaryError(InfogradError, ValueError):
    """A density jumps at a boundary that moves: its own score is not enough."""


class DegenerateError(InfogradError, ValueError):
    """A set of sites carries no noise of its own: its entropy is minus infinity."""


class DensityError(InfogradError, ValueError):
    """A score method needs a density that a site does not have."""


class ScoreError(InfogradError, ValueError):
    """A score method cannot serve this model."""


class ArgumentError(InfogradError, ValueError):
    """An argument of a public function is out of range or of the wrong kind."""


class CheckpointError(InfogradError, ValueError):
    """A checkpoint is damaged, or that of another run."""


class ConstraintError(InfogradError, ValueError):
    """An ascent ended outside a constraint of `subject_to`.

    Attributes:
        result: The `Result` all the same.
    """

    result: Any = None
