# SPDX-License-Identifier: Apache-2.0
"""From a NumPyro model to a `StructuralModel`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import copyreg
import functools
import inspect
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro.distributions import Distribution

from numpyro_infograd._arguments import as_parameter, explain_trace_errors, line_of
from numpyro_infograd._density import Values, simulate
from numpyro_infograd._doors import is_inside, public
from numpyro_infograd._messenger import Generate, isolated, warn_of_handlers
from numpyro_infograd._noise import NoiseSpec, noise_like, probe_noise
from numpyro_infograd._parameters import check_inside
from numpyro_infograd._program import Program
from numpyro_infograd._sites import site_noise
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd.errors import (
    UNSTEADY,
    ArgumentError,
    InfogradError,
    ModelError,
    ParameterError,
)

_CHANGED = (
    "something that the model reads has changed since structural_model traced it. Call "
    "structural_model again, or pass what changes as an argument of the model."
)
# NumPyro's errors for invalid distributions, and what to do.
_NO_LAW = {
    "_matrix parameter": "The matrix must be symmetric and positive definite. If it is "
    "symmetric except for rounding, use (c + c.T) / 2.",
    "distribution got invalid": "Use other values, or a constraint in numpyro.param.",
    "Invalid type for 'fn'": "Call the class of a distribution: dist.Normal(0.0, 1.0).",
}


def _strong(name: str, value: Any) -> jax.Array:
    """A floating array without the weak type of a Python number."""
    array = as_parameter(name, value)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        array = array.astype(jnp.zeros(()).dtype)
    return jax.lax.convert_element_type(array, array.dtype)


class _Float(float):
    """A Python float that JAX takes as an array, so its value is not compiled.

    It is a float for Python: for `if`, `math` and `isinstance`. Sums, products and
    powers of it are of this class too.
    """

    def __jax_array__(self) -> jax.Array:
        with jax.ensure_compile_time_eval():
            return jnp.asarray(float(self))

    def __reduce__(self) -> Any:
        return float, (float(self),)


def _keep_class(name: str) -> None:
    method = getattr(float, name)

    def call(self: float, *others: Any) -> Any:
        found = method(self, *others)
        return _Float(found) if type(found) is float else found

    setattr(_Float, name, call)


for _name in ("add", "sub", "mul", "truediv", "pow"):
    _keep_class(f"__{_name}__")
    _keep_class(f"__r{_name}__")
for _name in ("neg", "pos", "abs"):
    _keep_class(f"__{_name}__")


def _as_float(argument: Any) -> Any:
    return _Float(argument) if type(argument) is float else argument


@public(inside=True)
def structural_model(
    model: Callable[..., Any] | StructuralModel, *args: Any, **kwargs: Any
) -> StructuralModel:
    """Trace a NumPyro model into `values = g(params, noise)`.

    Every sample site becomes a deterministic function of parameters and exogenous
    noise. The distribution of the noise does not depend on the parameters (section II
    of Wadayama's paper).

    Args:
        model: A NumPyro model with `sample`, `param`, `deterministic`, `plate`, `scan`
            and handlers, from which values can be drawn.
        *args: Arguments of the model.
        **kwargs: Keyword arguments of the model.

    Returns:
        The traced model; its `params`, `sites`, `parents` and `noise` describe it. It
        can be pickled if the NumPyro model and the arguments can.

    Raises:
        ModelError: For a construct that a generative model cannot have.
        ArgumentError: If `model` is not callable or an argument is not finite.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 2.0) * x, 1))
        >>> ig.structural_model(model).parents
        {'x': (), 'y': ('x', 'a')}
    """
    return trace_model(model, args, kwargs)


def trace_model(
    model: Callable[..., Any] | StructuralModel,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> StructuralModel:
    """`structural_model` with the arguments of the model as a tuple and a dict."""
    if isinstance(model, StructuralModel):
        if args or kwargs:
            raise ArgumentError(
                "a StructuralModel is traced already, so it takes no arguments. Pass "
                "the NumPyro model to trace it with other arguments."
            )
        if model.source is not None:
            params, noise, _ = model.example_inputs()
            again = _forward(model.run, params, noise)
            _check_same(model.forward, again, params, model.spec, _CHANGED)
        return model
    if not callable(model) or isinstance(model, Distribution):
        raise ArgumentError(
            f"model must be a NumPyro model (callable), got {model!r}. Pass the "
            "function itself, not the result of a call."
        )
    _check_finite(args, kwargs)
    args = tuple(map(_as_float, args))
    kwargs = {name: _as_float(value) for name, value in kwargs.items()}
    warn_of_handlers()

    def call(messenger: Generate) -> None:
        try:
            model(*args, **kwargs)
        except InfogradError:
            raise
        except (TypeError, ValueError) as error:
            check_call(model, args, kwargs)
            check_inside(messenger.constraints, messenger.param_values)
            if messenger.unset:
                raise ParameterError(
                    f"parameter {messenger.unset!r} has no value. Give it one, "
                    f"numpyro.param({messenger.unset!r}, 1.0)."
                ) from error
            advice = [text for say, text in _NO_LAW.items() if say in str(error)]
            if not advice:
                raise
            raise ModelError(
                f"{messenger} has a distribution that is not valid{line_of(error)}: "
                f"{error} {advice[0]}"
            ) from error

    def play(messenger: Generate) -> None:
        try:
            with (
                explain_trace_errors(messenger, error=ModelError),
                isolated(),
                messenger,
            ):
                call(messenger)
        except Exception as error:
            if not isinstance(error, InfogradError):
                error.add_note(f"This happened in {messenger} while it was traced.")
            raise

    def explore() -> Generate:
        messenger = Generate(rng_key=jax.random.key(0))
        play(messenger)
        messenger.played.values.clear()  # traced values must not outlive their trace
        messenger.rng_key = None
        return messenger

    def trace_only() -> None:
        found = explore()
        listed.update((name, site.choices) for name, site in found.sites.items())
        facts = jax.tree.leaves((found.param_values, found.constraints))
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in facts):
            explored.append(found)

    explored: list[Generate] = []
    listed: dict[str, Any] = {}  # values of discrete sites that no draw changes
    jax.eval_shape(trace_only)
    # Without tracing, if the model computes an initial value or a bound.
    seen = explored[0] if explored else explore()
    for name, site in seen.sites.items():
        seen.sites[name] = site._replace(choices=listed.get(name, site.choices))
    shared = [name for name in seen.param_values if name in seen.sites]
    if shared:
        raise ModelError(
            f"{shared[0]!r} is the name of a parameter and of a site. Give them "
            "different names."
        )
    params = {
        name: jax.tree.map(functools.partial(_strong, name), value)
        for name, value in seen.param_values.items()
    }

    def run(params, noise, given, log_prob_sites=(), cut=False):
        messenger = Generate(params, noise, given, log_prob_sites, cut)
        play(messenger)
        return messenger.played

    spec = tuple(site_noise(seen.sites).items())
    forward, again = (_forward(run, params, noise_like(spec)) for _ in range(2))
    _check_same(forward, again, params, spec, UNSTEADY)
    forward.check_batches("the model")
    source = (model, args, kwargs)
    return StructuralModel(
        params, seen.constraints, seen.sites, run, forward, source=source
    )


def _forward(run: Callable[..., Any], params: Any, noise: Values) -> Program:
    """The map from parameters and noise to the values of all sites."""
    return Program.trace(lambda p, n: run(p, n, {}).values, params, noise)


def _same(first: list[Any], second: list[Any]) -> bool:
    """Whether arrays are equal; those of a trace around this one count as equal."""

    def numbers(x: Any) -> Any:
        is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if is_key else x

    pairs = [
        (a, b)
        for a, b in zip(first, second, strict=True)
        if a is not b and not isinstance(b, jax.core.Tracer)
    ]
    return all(np.array_equal(numbers(a), numbers(b)) for a, b in pairs)


def _check_same(
    first: Program, second: Program, params: Any, spec: NoiseSpec, why: str
) -> None:
    """Raise for a model whose runs differ with the same parameters and noise.

    If traces differ, as by callbacks that a model makes, values at 64 draws decide.
    """
    if first.code is second.code and _same(first.consts, second.consts):
        return
    if is_inside():
        return  # no values are known
    draws = probe_noise(spec, 1, 64)
    a, b = (jax.device_get(simulate(f, params, draws)) for f in (first, second))
    for name in (*a, *b):
        if name not in a or name not in b or not _near(a[name], b[name]):
            raise ModelError(
                "two runs of the model with the same parameters and noise give site "
                f"{name!r} different values: {why}"
            )


def _near(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether arrays are equal up to rounding."""
    if a.shape != b.shape:
        return False
    a, b = (np.asarray(x, np.result_type(x, float)) for x in (a, b))
    size = np.max(np.abs(np.nan_to_num(a)), initial=0.0)
    return np.allclose(a, b, rtol=0.0, atol=1e-5 * size, equal_nan=True)


def _reduce(sm: StructuralModel) -> tuple[Any, ...]:
    """For pickle: the NumPyro model is traced again when it is loaded."""
    if sm.source is None:
        raise ArgumentError(
            "a StructuralModel with appended noise, shuffled inputs or a path has no "
            "NumPyro model to pickle. Use pickle on the result of structural_model, "
            "and change it after loading."
        )
    return trace_model, sm.source


copyreg.pickle(StructuralModel, _reduce)  # type: ignore[arg-type]


def check_call(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise if a model that failed cannot be called with these arguments."""
    try:
        signature = inspect.signature(model)
    except (TypeError, ValueError):
        return  # no signature
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentError(
            f"the model cannot be called with these arguments: {error}. Pass them as "
            "model_args=(...) and model_kwargs={...}; structural_model and the methods "
            "of InfoMax take them directly."
        ) from None


def _check_finite(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path((args, dict(kwargs)))[0]:
        if isinstance(leaf, jax.core.Tracer):
            continue
        number = isinstance(leaf, (float, complex)) or hasattr(leaf, "dtype")
        floating = number and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        if floating and not np.all(np.isfinite(np.asarray(leaf))):
            raise ArgumentError(
                f"model argument {jax.tree_util.keystr(path)} has values that are not "
                "finite. Clean the data before tracing."
            )
