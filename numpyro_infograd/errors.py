# SPDX-License-Identifier: Apache-2.0
"""What this package refuses, one exception class for each reason.

Every message names the site or the argument, says what came and what was
expected, and ends with what to do. All classes derive from `InfogradError`, and from
`ValueError`, so `except ValueError` keeps working.

Example:
    >>> import numpyro_infograd as ig
    >>> try:
    ...     ig.MI("x", "x")
    ... except ig.errors.ArgumentError as error:
    ...     print(error)
    inputs and outputs share 'x'. The sets of a mutual information must be disjoint.
"""

from typing import Any


class InfogradError(Exception):
    """Base of every error that this package raises on purpose; catch all by it."""


class ModelError(InfogradError, ValueError):
    """The model has a construct with no meaning as a generative system.

    Raised when a model is traced: for `factor` statements, subsampled plates, mutable
    module state, improper priors, randomness outside of sites, a Python branch on a
    traced value; and for draws, log densities or expectations that are not finite.
    Write the construct as the message says, or give parameters with finite draws.
    """


class SiteError(InfogradError, ValueError):
    """A named site is missing, or is none that information can be about.

    Raised for a site of the objective that the model does not have, or that is
    observed, substituted, intervened on, complex or empty. Name another site, or pass
    the model without `obs=` and handlers.
    """


class ParameterError(InfogradError, ValueError):
    """A parameter is unknown, no number, of another shape, or out of its domain.

    Raised for `params` and `init_params`, and for `numpyro.param` without a value or
    with a constraint that is none. An ascent also refuses to start on the boundary of a
    constraint. Give the model's names, shapes, and values inside; or a projection.
    """


class ReparametrizationError(InfogradError, ValueError):
    """A parameter flows into a site whose sampler has no right pathwise gradient.

    Raised where a gradient is asked for, also if a derivative is stopped on the way.
    Use a law with a pathwise gradient, such as `RelaxedBernoulli` for `Bernoulli`, or
    `exogenous.register` for a class of your own.
    """


class JumpError(InfogradError, ValueError):
    """A parameter reaches a site through a jump: the pathwise gradient is wrong.

    Raised where a gradient is asked for, for `floor`, `sign`, `argmax`, casts, and
    branches that do not meet. Soften the jump, or put noise before it;
    `allow_jumps=True` is for those that are known to do no harm.
    """


class BoundaryError(InfogradError, ValueError):
    """A density jumps at a boundary that moves: its own score is not enough.

    Raised by score methods, for laws such as `Uniform` and `Exponential` whose end
    depends on something. Use a law that falls to zero at its end, or
    `scores.Denoising(noise_variance=...)`, whose noise has none.
    """


class DegenerateError(InfogradError, ValueError):
    """A set of sites carries less noise than dimensions: its entropy is not finite.

    Raised before a value or a gradient is computed, also where the derivative in the
    noise is not finite. Add the noise that is missing, or leave out sites that are
    functions of the others.
    """


class DensityError(InfogradError, ValueError):
    """A method needs a density that a site does not have.

    Raised for a computed site under a method that takes densities, a computed site that
    takes few values or one again and again, and a support of fewer dimensions than its
    values. Take `scores="denoising"` or `method="fisher"`, or add noise (a sample
    site).
    """


class ScoreError(InfogradError, ValueError):
    """A score method cannot serve this model or objective.

    Raised where the method is chosen by hand, such as "exact" for a nonlinear model,
    pretrained scores for another one, or a function of yours that returns another
    shape. Take `scores="auto"`, or what the message names.
    """


class ArgumentError(InfogradError, ValueError):
    """An argument of a public function is out of range or of the wrong kind.

    Raised as soon as it can be seen, mostly before anything is computed. Give what the
    message says was expected.
    """


class CheckpointError(InfogradError, ValueError):
    """A checkpoint is damaged, or that of another run.

    Raised by `checkpoint=`, also for a folder with other things in it. Name another
    folder, or remove this one to start anew.
    """


class ConstraintError(InfogradError, ValueError):
    """An ascent has found no parameters inside a constraint of `subject_to`.

    Raised when `num_steps` is None and the last cycle of steps has ended outside; with
    a number of steps, `Result.status` and `Result.constraints` say so instead. Use a
    bound that can be reached, or other `init_params`.

    Attributes:
        result: The `Result` all the same.
    """

    result: Any = None
