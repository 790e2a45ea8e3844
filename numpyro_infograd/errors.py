# SPDX-License-Identifier: Apache-2.0
"""Exceptions of this package, one class for each reason.

Every message names the site or the argument, says what was expected and what came, and
ends with what to do. All classes derive from `InfogradError` and from `ValueError`, so
`except ValueError` catches them too.

Example:
    >>> import numpyro_infograd as ig
    >>> try:
    ...     ig.MI("x", "x")
    ... except ig.errors.ArgumentError as error:
    ...     print(error)
    inputs and outputs share 'x'. The sets of MI must be disjoint.
"""

from typing import Any

# Why runs of a model differ, and what to do.
UNSTEADY = (
    "the model reads random numbers from outside (numpy.random, random), or an object "
    "that it changes, such as a counter. Draw all random numbers by numpyro.sample, or "
    "draw them before and pass them as arguments."
)
VOUCH = (
    "If the function that makes it loses nothing, mark the function: "
    "ig.injective(fn, inverse=...)."
)
"""What to do about a computed site, which has no density."""


class InfogradError(Exception):
    """Base class of all errors that this package raises on purpose."""


class ModelError(InfogradError, ValueError):
    """The model has a construct that a generative model cannot have.

    Raised when a model is traced: for `factor` statements, subsampled plates, mutable
    module state, improper priors, randomness outside of sites, a Python branch on a
    traced value, or a call of Python without a derivative (`jax.pure_callback`). Also
    raised for draws, log densities or expectations that are not finite. Write
    the construct as the message says, or use other parameter values.
    """


class SiteError(InfogradError, ValueError):
    """A site of the objective is missing, or has no information.

    Raised for a site that the model does not have, or that is observed, substituted,
    intervened on or empty. Name another site, or pass the model without `obs=`
    and handlers.
    """


class ParameterError(InfogradError, ValueError):
    """A parameter is unknown, not a number, of another shape, or outside its domain.

    Raised for `params` and `init_params`, and for `numpyro.param` without a value or
    with an invalid constraint. Also raised for an ascent that starts on the boundary of
    a constraint. Use the model's names and shapes, and values inside the constraints;
    or pass a projection.
    """


class ReparametrizationError(InfogradError, ValueError):
    """A parameter reaches a site, but no correct derivative leads there.

    Raised by functions that need a gradient, for distributions of which neither the
    draws nor `log_prob` have a right derivative, such as censored ones. Also raised if
    something stops a derivative. Use another distribution. Register a class of your own
    by `exogenous.register`.
    """


class JumpError(InfogradError, ValueError):
    """A parameter reaches a site through a jump, so the gradient would be wrong.

    A jump is an operation whose output changes from one value to another: `floor`,
    `sign`, `argmax`, a cast, or a branch (`where`, `cond`) whose two sides differ where
    it switches. A derivative does not see the jump, but the parameter moves values
    across it and so changes their distribution. Raised by functions that need a
    gradient. If noise enters before the jump, write both as one distribution, such as
    `distributions.Quantized` or `Bernoulli`. Else use a smooth step in place of the
    jump, such as `jnp.tanh(k * v)`.
    Pass `allow_jumps=True` only if you know that the jump does not matter.
    """


class BoundaryError(InfogradError, ValueError):
    """A density jumps at a boundary that moves, so its score alone is not enough.

    Raised by score methods, for distributions such as `Uniform` and `Exponential` whose
    boundary depends on a parameter, a site or noise. Use a distribution whose density
    falls to zero at the boundary, or `scores.Denoising(noise_variance=...)`, which
    appends noise without a boundary.
    """


class DegenerateError(InfogradError, ValueError):
    """A set of sites has fewer dimensions of noise than values: infinite entropy.

    Raised before a value or a gradient is computed. Also raised if the derivative in
    the noise is not finite. Add the missing noise, or leave out sites that are
    functions of the others.
    """


class DensityError(InfogradError, ValueError):
    """A method needs a density that a site does not have.

    Raised for a computed site with a method that needs densities, for a computed site
    that takes few values or repeats one, and for a support with fewer dimensions than
    its values. Use `scores="denoising"` or `method="fisher"`, or add noise (a sample
    site).
    """


class ScoreError(InfogradError, ValueError):
    """A score method cannot serve this model or objective.

    Raised for a method that you chose, such as "exact" for a nonlinear model,
    pretrained scores for another model, or your own function that returns a wrong
    shape. Use `scores="auto"`, or what the message says.
    """


class ArgumentError(InfogradError, ValueError):
    """An argument of a public function is out of range or of the wrong kind.

    Raised as early as possible, mostly before anything is computed. Pass what the
    message says was expected.
    """


class TransformationError(InfogradError, ValueError):
    """A public function was called inside a JAX transformation.

    Raised inside `jax.jit`, `jax.vmap`, `jax.grad` or a loop of `jax.lax`, also by the
    derivative of `InfoMax.update`. Call the function outside. What works inside:
    `structural_model` and the methods of its result, and `InfoMax.update(state)`.
    """


class CheckpointError(InfogradError, ValueError):
    """A checkpoint is damaged, or belongs to another run.

    Raised by `checkpoint=`, also for a folder with other files in it. Use another
    folder, or remove this one to start again.
    """


class ConstraintError(InfogradError, ValueError):
    """An ascent found no parameters that meet a constraint of `subject_to`.

    Raised if `num_steps` is None and the last cycle of steps ended outside. With a
    number of steps, `Result.status` and `Result.constraints` say so instead. Use a
    bound that can be met, or other `init_params`.

    Attributes:
        result: The `Result` at the end of the ascent.
    """

    result: Any = None
