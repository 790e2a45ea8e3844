# SPDX-License-Identifier: Apache-2.0
"""The table: NumPyro distribution -> base noise and transform.

A site drawn from `fn` is written as `value = transform(fn, noise)`, where the
distribution of `noise` does not depend on any parameter. If there is a well-conditioned
closed form, the noise is explicit (independent standard normals, or uniforms on the
open unit interval), so quasi-random points can be used. Else it is one PRNG key. Only
exact classes are looked up, because a subclass may override its sampler. A class that
is not in the table raises an error where a gradient is needed, and so does one whose
row says why its gradient would be wrong.

Example:
    >>> import jax, numpyro.distributions as dist
    >>> from numpyro_infograd import exogenous
    >>> fn = dist.Exponential(2.0).expand((3,)).to_event(1)
    >>> exogenous.noise_of(fn, (5,))
    Noise(kind='uniform', shape=(5, 3))
    >>> float(jax.grad(lambda s: exogenous.transform(dist.Normal(0.0, s), 1.5))(2.0))
    1.5
    >>> exogenous.reason_not_reparametrized(dist.Poisson(3.0))
    'Poisson is discrete'
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

from numpyro.distributions import Distribution

from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.exogenous.lookup import (
    noise_of,
    reason_not_reparametrized,
    transform,
)
from numpyro_infograd.exogenous.rows import (
    TABLE,
    Noise,
    at,
    keyed,
    on_the_line,
    trusted,
)
from numpyro_infograd.exogenous.table import ROWS

__all__ = ["Noise", "noise_of", "reason_not_reparametrized", "register", "transform"]

TABLE.update(ROWS)


def register(
    cls: Any = None,
    *,
    base_noise: Callable[[Any, tuple[int, ...]], Noise] | None = None,
    transform: Callable[[Any, Any, tuple[int, ...]], Any] | None = None,
    boundary: tuple[str, ...] = (),
) -> Any:
    """Register a class of yours, whose pathwise gradient you know to be right.

    Without functions the noise is one key, and `fn.rsample` (`fn.sample` where
    `has_rsample` is false) has the right gradient for every parameter of `fn`.

    Args:
        cls: The class. Subclasses are not included: register each of them.
        base_noise: `base_noise(fn, sample_shape)` gives the `Noise`, of shape
            `sample_shape + fn.batch_shape + ...`.
        transform: `transform(fn, noise, sample_shape)` gives the value.
        boundary: Names of attributes of `fn` that locate jumps of its density.

    Returns:
        `cls`; without `cls`, a decorator.

    Raises:
        ArgumentError: If `cls` is not a distribution class, or already known to this
            package; if only one of the two functions is given; if `boundary` has
            something else than names.

    Example:
        >>> import numpyro.distributions as dist
        >>> @register
        ... class Ours(dist.Normal):
        ...     pass
        >>> reason_not_reparametrized(Ours(0.0, 1.0))
        ''
    """
    if cls is None:
        return functools.partial(
            register, base_noise=base_noise, transform=transform, boundary=boundary
        )
    if not (isinstance(cls, type) and issubclass(cls, Distribution)):
        raise ArgumentError(f"register takes a Distribution class, got {cls!r}.")
    known = TABLE.get(cls)
    if known is not None and not known.registered:
        raise ArgumentError(
            f"{cls.__name__} is already known to this package. To sample it another "
            f"way, derive a class from it and register that one."
        )
    if (base_noise is None) != (transform is None):
        raise ArgumentError(
            f"register({cls.__name__}) needs both base_noise and transform for "
            f"explicit noise, got only one."
        )

    if not all(map(callable, filter(None, (base_noise, transform)))):
        raise ArgumentError(
            f"register({cls.__name__}) takes functions as base_noise and transform, "
            f"got {brief(base_noise)} and {brief(transform)}."
        )
    if isinstance(boundary, str) or not all(isinstance(n, str) for n in boundary):
        raise ArgumentError(
            f"boundary must be a tuple of names of attributes, got {brief(boundary)}."
        )

    def ends(d):
        return None if not boundary and on_the_line(d.support) else at(*boundary)(d)

    row = keyed(ends)._replace(registered=True)
    if base_noise is not None and transform is not None:
        row = row._replace(noise=base_noise, transform=trusted(transform))
    TABLE[cls] = row
    return cls
