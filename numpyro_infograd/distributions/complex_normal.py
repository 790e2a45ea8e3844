# SPDX-License-Identifier: Apache-2.0
"""Circular complex normal distributions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro.distributions import Distribution, biject_to, constraints, transforms
from numpyro.distributions.util import promote_shapes, validate_sample

from numpyro_infograd.distributions.arrays import as_floats, as_shape, is_known
from numpyro_infograd.errors import ArgumentError


class _Plane(type(constraints.complex)):  # type: ignore[misc]
    """The complex numbers, with coordinates for NUTS and SVI."""

    def __repr__(self) -> str:
        return "Complex()"


class _Pair(transforms.ComplexTransform):
    """A complex number from its real and imaginary part.

    NumPyro's own transform has a complex log determinant, which NUTS cannot use.
    """

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        return jnp.zeros_like(y.real)


@biject_to.register(_Plane)
def _pair(constraint: Any) -> Any:
    return _Pair()


_PLANE = _Plane()


class ComplexNormal(Distribution):
    """A circular complex normal variable, such as thermal noise or Rayleigh fading.

        p(z) = exp(-|z - loc|^2 / scale^2) / (pi scale^2),    E |z - loc|^2 = scale^2.

    Real and imaginary part are independent, and each has the variance scale^2 / 2.
    Draws have the right derivative in both parameters.

    Args:
        loc: Mean, a complex or real array.
        scale: Root of the mean square of |z - loc|, a positive array that broadcasts
            with `loc`.
        validate_args: Whether to check values, as in NumPyro.

    Raises:
        ArgumentError: If `loc` is not a number, or `scale` is not real and positive.

    Example:
        >>> import jax
        >>> from numpyro_infograd.distributions import ComplexNormal
        >>> fn = ComplexNormal(1.0 + 2.0j, 0.5)
        >>> round(float(fn.log_prob(1.0 + 2.5j)), 4)  # -1 - log(pi / 4)
        -0.7584
        >>> fn.sample(jax.random.key(0), (3,)).dtype
        dtype('complex64')
    """

    arg_constraints = {"loc": _PLANE, "scale": constraints.positive}
    support = _PLANE
    reparametrized_params = ["loc", "scale"]

    def __init__(
        self, loc: Any = 0.0, scale: Any = 1.0, *, validate_args: bool | None = None
    ) -> None:
        loc, scale = as_floats("loc", loc, complex), as_floats("scale", scale)
        if is_known(scale) and not np.all(scale > 0):
            raise ArgumentError(
                f"scale must be positive, got {scale}. It is the root of a variance."
            )
        shape = as_shape(np.shape(loc), np.shape(scale), names="loc and scale")
        self.loc, self.scale = promote_shapes(loc, scale)
        super().__init__(shape, (), validate_args=validate_args)

    def from_normal(self, noise: Any) -> jax.Array:
        """Draws from real standard normal noise.

        Args:
            noise: Shape (..., *batch_shape, 2).

        Returns:
            Complex numbers, shape (..., *batch_shape).
        """
        return self.loc + self.scale * _circular(noise)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws, shape sample_shape + batch_shape."""
        return self.from_normal(jax.random.normal(key, (*self.shape(sample_shape), 2)))

    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        """Log density on the plane, a real number."""
        square = _square((value - self.loc) / self.scale)
        return -square - 2 * jnp.log(self.scale) - _LOG_PI

    @property
    def mean(self) -> jax.Array:
        """Mean, complex, shape batch_shape."""
        return jnp.broadcast_to(self.loc, self.batch_shape)

    @property
    def variance(self) -> jax.Array:
        """E |z - loc|^2, shape batch_shape."""
        return jnp.broadcast_to(self.scale**2, self.batch_shape)

    def entropy(self) -> jax.Array:
        """Differential entropy on the plane in nats, log(pi e scale^2)."""
        found = 1.0 + _LOG_PI + 2 * jnp.log(self.scale)
        return jnp.broadcast_to(found, self.batch_shape)


class MultivariateComplexNormal(Distribution):
    """A circular complex normal vector, such as the gains of an array of antennas.

        p(z) = exp(-(z - loc)^H C^-1 (z - loc)) / (pi^n det C)

    with C = E (z - loc) (z - loc)^H, and E (z - loc) (z - loc)^T = 0. Draws have the
    right derivative in all parameters.

    Args:
        loc: Mean, a complex or real array of shape (..., n), or a number.
        covariance_matrix: C, Hermitian and positive definite, shape (..., n, n).
        scale_tril: A lower triangular L with positive diagonal and C = L L^H, shape
            (..., n, n). Pass either C or L.
        validate_args: Whether to check values, as in NumPyro.

    Raises:
        ArgumentError: If a matrix is not of the kind above, if shapes differ, or if not
            exactly one matrix is passed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from numpyro_infograd.distributions import MultivariateComplexNormal
        >>> covariance = jnp.array([[2.0, 1.0j], [-1.0j, 2.0]])
        >>> fn = MultivariateComplexNormal(0.0, covariance)
        >>> round(float(fn.log_prob(jnp.zeros(2))), 4)  # -log(3 pi^2)
        -3.3881
        >>> fn.sample(jax.random.key(0), (5,)).shape
        (5, 2)
    """

    arg_constraints = {
        "loc": constraints.independent(_PLANE, 1),
        "scale_tril": constraints.independent(_PLANE, 2),
    }
    support = constraints.independent(_PLANE, 1)
    reparametrized_params = ["loc", "scale_tril"]

    def __init__(
        self,
        loc: Any = 0.0,
        covariance_matrix: Any = None,
        scale_tril: Any = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if (covariance_matrix is None) == (scale_tril is None):
            raise ArgumentError(
                "MultivariateComplexNormal needs either covariance_matrix or "
                f"scale_tril, got {'both' if scale_tril is not None else 'neither'}."
            )
        if scale_tril is None:
            scale_tril = _cholesky(covariance_matrix)
        else:
            scale_tril = _as_tril(scale_tril)
        loc, size = as_floats("loc", loc, complex), scale_tril.shape[-1]
        if np.ndim(loc) == 0:
            loc = loc[None]
        if loc.shape[-1] not in (1, size):
            raise ArgumentError(
                f"loc has shape {loc.shape}, but the matrix has {size} rows: the last "
                f"axis must have size {size}."
            )
        names = "loc and the matrix"
        shape = as_shape(loc.shape[:-1], scale_tril.shape[:-2], names=names)
        (loc,) = promote_shapes(loc, shape=(*shape, size))
        self.loc = jnp.broadcast_to(loc, (*loc.shape[:-1], size))
        (self.scale_tril,) = promote_shapes(scale_tril, shape=(*shape, size, size))
        super().__init__(shape, (size,), validate_args=validate_args)

    @property
    def covariance_matrix(self) -> jax.Array:
        """C, shape batch_shape + (n, n)."""
        matrix = self.scale_tril @ jnp.conj(jnp.swapaxes(self.scale_tril, -1, -2))
        return jnp.broadcast_to(matrix, (*self.shape(), *self.event_shape))

    def from_normal(self, noise: Any) -> jax.Array:
        """Draws from real standard normal noise.

        Args:
            noise: Shape (..., *batch_shape, n, 2).

        Returns:
            Complex numbers, shape (..., *batch_shape, n).
        """
        turned = jnp.einsum("...ij,...j->...i", self.scale_tril, _circular(noise))
        return self.loc + turned

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws, shape sample_shape + batch_shape + (n,)."""
        return self.from_normal(jax.random.normal(key, (*self.shape(sample_shape), 2)))

    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        """Log density on C^n, a real number."""
        away, log_det = jnp.asarray(value - self.loc), self._log_det()
        square = jnp.sum(_square(_solve(self.scale_tril, away)), axis=-1)
        return -square - log_det - self.event_shape[0] * _LOG_PI

    @property
    def mean(self) -> jax.Array:
        """Mean, complex, shape batch_shape + (n,)."""
        return jnp.broadcast_to(self.loc, self.shape())

    @property
    def variance(self) -> jax.Array:
        """E |z_i - loc_i|^2 of each entry, shape batch_shape + (n,)."""
        return jnp.broadcast_to(_square(self.scale_tril).sum(-1), self.shape())

    def entropy(self) -> jax.Array:
        """Differential entropy on C^n in nats, log det(pi e C)."""
        found = self._log_det() + self.event_shape[0] * (1.0 + _LOG_PI)
        return jnp.broadcast_to(found, self.batch_shape)

    def _log_det(self) -> jax.Array:
        diagonal = jnp.diagonal(self.scale_tril, axis1=-2, axis2=-1).real
        return 2 * jnp.sum(jnp.log(diagonal), axis=-1)


_LOG_PI = math.log(math.pi)


def _circular(noise: Any) -> jax.Array:
    """Complex normals of mean square 1 from pairs of real ones."""
    return jax.lax.complex(noise[..., 0], noise[..., 1]) * math.sqrt(0.5)


def _square(z: Any) -> jax.Array:
    """|z|^2, with a derivative at zero."""
    z = jnp.asarray(z)
    return z.real**2 + z.imag**2


def _solve(tril: Any, vector: jax.Array) -> jax.Array:
    """L^-1 v for matrices (..., n, n) and vectors (..., n)."""
    size = tril.shape[-1]
    shape = jnp.broadcast_shapes(tril.shape[:-2], vector.shape[:-1])
    tril = jnp.asarray(tril)
    if tril.size == size**2:  # one matrix, so one system with many right sides
        right = jnp.broadcast_to(vector, (*shape, size)).reshape(-1, size).T
        found = jax.scipy.linalg.solve_triangular(
            tril.reshape(size, size), right, lower=True
        )
        return found.T.reshape(*shape, size)
    return jax.scipy.linalg.solve_triangular(
        jnp.broadcast_to(tril, (*shape, size, size)),
        jnp.broadcast_to(vector, (*shape, size))[..., None],
        lower=True,
    )[..., 0]


def _as_matrix(name: str, value: Any) -> Any:
    """Square complex matrices."""
    matrix = as_floats(name, value, complex)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or not matrix.size:
        raise ArgumentError(
            f"{name} must be a square matrix, or a batch of them, got shape "
            f"{matrix.shape}."
        )
    return matrix


def _as_tril(value: Any) -> Any:
    """Lower triangular matrices with a positive diagonal."""
    matrix = _as_matrix("scale_tril", value)
    if is_known(matrix):
        diagonal = np.diagonal(matrix, axis1=-2, axis2=-1)
        rounding = 10 * np.finfo(diagonal.dtype).eps * np.abs(diagonal)
        real = np.all(np.abs(diagonal.imag) <= rounding)
        if not (real and np.all(diagonal.real > 0)):
            raise ArgumentError(
                f"scale_tril must have a positive diagonal, got {diagonal}. Multiply "
                "each column by a phase, which does not change L L^H."
            )
        if np.any(np.triu(matrix, 1)):
            raise ArgumentError(
                "scale_tril must be lower triangular, got numbers above the diagonal. "
                "Pass a covariance as covariance_matrix."
            )
    return matrix


def _cholesky(value: Any) -> Any:
    """The lower triangular factor of covariance matrices."""
    matrix = _as_matrix("covariance_matrix", value)
    if not is_known(matrix):
        return jnp.linalg.cholesky(matrix)
    mirrored = np.conj(np.swapaxes(matrix, -1, -2))
    size = np.max(np.abs(matrix))
    if np.max(np.abs(matrix - mirrored)) > 1e-5 * size:
        raise ArgumentError(
            "covariance_matrix must be Hermitian, but it differs from its conjugate "
            "transpose. Use C = A A^H."
        )
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        raise ArgumentError(
            "covariance_matrix must be positive definite. Add a small multiple of the "
            "identity, or remove entries that are functions of the others."
        ) from None
