# SPDX-License-Identifier: Apache-2.0
"""References for the benchmarks: closed forms and dense grids, in nats.

Plain NumPy in double precision, and independent of the package on purpose.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "cascade_information",
    "fading_information",
    "mimo_derivative",
    "mimo_gradient",
    "mimo_information",
    "pam_information",
    "multipath_gradient",
    "multipath_information",
    "tanh_density",
    "tanh_derivative",
    "tanh_information",
    "tanh_score",
]


def multipath_information(a: ArrayLike, b: ArrayLike) -> NDArray:
    """Mutual information I(X;Y) of the two-path network.

    ``y = b (a x + n1) + x + n2 + n3`` with independent standard normals, so
    ``I = 1/2 log(1 + (1 + a b)^2 / (b^2 + 2))``.

    Args:
        a: First gain of the relayed path.
        b: Second gain of the relayed path; broadcasts against `a`.

    Returns:
        The information in nats, in the broadcast shape.

    Example:
        >>> print(round(float(multipath_information(1.0, 1.0)), 6))
        0.423649
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    return 0.5 * np.log1p((1 + a * b) ** 2 / (b**2 + 2))


def multipath_gradient(a: ArrayLike, b: ArrayLike) -> tuple[NDArray, NDArray]:
    """Gradient of `multipath_information`: ``(dI/da, dI/db)``, in nats.

    With signal ``g = 1 + a b``, noise ``s = b^2 + 2`` and total ``t = s + g^2``,
    ``dI/da = b g / t`` and ``dI/db = (b + a g) / t - b / s``.

    Example:
        >>> print([round(float(g), 6) for g in multipath_gradient(1.0, 1.0)])
        [0.285714, 0.095238]
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    gain, noise = 1 + a * b, b**2 + 2
    total = noise + gain**2
    return b * gain / total, (b + a * gain) / total - b / noise


def cascade_information(gain: float = 2.0, points: int = 1201) -> float:
    """Mutual information of three saturating stages, each with its own noise.

    ``v1 = tanh(gain x) + n1``, ``v2 = tanh(gain v1) + n2``, ``y = tanh(gain v2) + n3``
    with unit ``x`` and noise of standard deviation 0.3: the law of y given x is a
    product of two kernels on a grid.

    Example:
        >>> print(round(cascade_information(), 4))
        0.5777
    """
    deviation, reach = 0.3, 8.0
    x = np.linspace(-reach, reach, points)
    grid = np.linspace(-1 - reach * deviation, 1 + reach * deviation, points)

    def kernel(source: NDArray) -> NDArray:
        z = (grid - np.tanh(gain * source)[:, None]) / deviation
        return np.exp(-(z**2) / 2) / (deviation * np.sqrt(2 * np.pi))

    step = grid[1] - grid[0]
    given_x = kernel(x) @ kernel(grid) @ kernel(grid) * step**2
    weight = np.exp(-(x**2) / 2)
    weight /= weight.sum()
    marginal = weight @ given_x
    ratio = np.log(np.maximum(given_x, 1e-300) / np.maximum(marginal, 1e-300))
    return float(np.sum(weight[:, None] * given_x * ratio) * step)


def pam_information(decibels: float) -> float:
    """Information of four equally likely levels of unit power over Gaussian noise.

    Args:
        decibels: Signal to noise ratio.

    Example:
        >>> print(round(pam_information(10.0), 5))
        1.09654
    """
    deviation = 10 ** (-decibels / 20)
    levels = np.array([-3.0, -1.0, 1.0, 3.0]) / np.sqrt(5.0)
    y = np.linspace(-1.5 - 9 * deviation, 1.5 + 9 * deviation, 200001)
    z = (y - levels[:, None]) / deviation
    density = np.mean(np.exp(-(z**2) / 2), axis=0) / (deviation * np.sqrt(2 * np.pi))
    positive = np.maximum(density, 1e-300)
    entropy = -np.sum(density * np.log(positive)) * (y[1] - y[0])
    return float(entropy - 0.5 * np.log(2 * np.pi * np.e * deviation**2))


def fading_information(power: float) -> float:
    """Ergodic information of a 2 x 2 Rayleigh link whose receiver knows the channel.

    The eigenvalues of a complex Wishart matrix have density ``(1 + (1 - u)^2) e^-u``,
    counted together, so that ``I = int log(1 + power u / 2) (1 + (1 - u)^2) e^-u du``.

    Args:
        power: Total signal power over the noise of one antenna.

    Example:
        >>> print(round(fading_information(10.0), 4))
        3.8464
    """
    u = np.linspace(0.0, 80.0, 4_000_001)
    each = np.log1p(power * u / 2) * (1 + (1 - u) ** 2) * np.exp(-u)
    return float((np.sum(each) - 0.5 * (each[0] + each[-1])) * (u[1] - u[0]))


def tanh_density(
    eta: float, noise_variance: float = 0.25
) -> tuple[NDArray, NDArray, NDArray]:
    """Grid over y, density of Y there, and its derivative in `eta`."""
    # The trapezoidal rule converges exponentially on these integrands: halving
    # both grids changes no digit that is kept.
    scale = np.sqrt(noise_variance)
    x = np.linspace(-9.0, 9.0, 3001)
    y = np.linspace(-1.0 - 9.0 * scale, 1.0 + 9.0 * scale, 1501)
    weight = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi) * (x[1] - x[0])
    mean = np.tanh(eta * x)
    slope = x * (1 - mean**2)
    residual = (y[:, None] - mean) / noise_variance
    kernel = np.exp(-0.5 * noise_variance * residual**2)
    kernel /= np.sqrt(2 * np.pi * noise_variance)
    return y, kernel @ weight, (kernel * residual) @ (weight * slope)


def tanh_information(eta: float, noise_variance: float = 0.25) -> float:
    """Mutual information I(X;Y) of ``y = tanh(eta x) + noise``, on a dense grid.

    ``I = h(Y) - 1/2 log(2 pi e noise_variance)`` with x standard normal.

    Args:
        eta: Gain in front of the nonlinearity.
        noise_variance: Variance of the Gaussian noise.

    Returns:
        The information in nats.

    Example:
        >>> [round(tanh_information(eta), 6) for eta in (0.5, 1.0, 2.0, 3.0)]
        [0.26305, 0.463508, 0.588576, 0.620317]
    """
    y, density, _ = tanh_density(eta, noise_variance)
    entropy = -np.sum(density * np.log(density)) * (y[1] - y[0])
    return float(entropy - 0.5 * np.log(2 * np.pi * np.e * noise_variance))


def tanh_derivative(eta: float, noise_variance: float = 0.25) -> float:
    """Derivative of `tanh_information` in `eta`, in nats: ``-int p' log p dy``.

    Example:
        >>> [round(tanh_derivative(eta), 6) for eta in (0.5, 1.0, 2.0, 3.0)]
        [0.58345, 0.252563, 0.054911, 0.017186]
    """
    y, density, derivative = tanh_density(eta, noise_variance)
    return float(-np.sum(derivative * np.log(density)) * (y[1] - y[0]))


def _mimo_gram(
    alpha: float, matrix: ArrayLike, noise_variance: float
) -> tuple[NDArray, NDArray]:
    """The channel matrix A, and ``I + alpha^2 A A^T / noise_variance``."""
    matrix = np.asarray(matrix, float)
    snr = alpha**2 / noise_variance
    return matrix, np.eye(len(matrix)) + snr * matrix @ matrix.T


def mimo_information(
    alpha: float, matrix: ArrayLike, noise_variance: float = 1.0
) -> float:
    """Mutual information I(X;Y) of ``y = alpha A x + N(0, noise_variance I)``.

    ``I = 1/2 log det(I + alpha^2 A A^T / noise_variance)`` with x ~ N(0, I).

    Args:
        alpha: Gain.
        matrix: The channel matrix A, of shape (outputs, inputs).
        noise_variance: Variance of the noise on each output.

    Returns:
        The information in nats.

    Example:
        >>> print(round(mimo_information(2.0, [[1.0]]), 6))
        0.804719
    """
    _, gram = _mimo_gram(alpha, matrix, noise_variance)
    return float(0.5 * np.linalg.slogdet(gram)[1])


def mimo_derivative(
    alpha: float, matrix: ArrayLike, noise_variance: float = 1.0
) -> float:
    """Derivative of `mimo_information` in `alpha`, in nats.

    ``dI/dalpha = alpha / s tr((I + alpha^2 A A^T / s)^-1 A A^T)``, s the noise
    variance.

    Example:
        >>> print(round(mimo_derivative(2.0, [[1.0]]), 6))
        0.4
    """
    matrix, gram = _mimo_gram(alpha, matrix, noise_variance)
    whitened = np.linalg.solve(gram, matrix @ matrix.T)
    return float(alpha / noise_variance * np.trace(whitened))


def mimo_gradient(
    alpha: float, matrix: ArrayLike, noise_variance: float = 1.0
) -> NDArray:
    """Gradient of `mimo_information` in the matrix, of its shape, in nats.

    ``dI/dA = alpha^2 / s (I + alpha^2 A A^T / s)^-1 A``, s the noise variance.

    Example:
        >>> print(mimo_gradient(2.0, [[1.0]]).round(6))
        [[0.8]]
    """
    matrix, gram = _mimo_gram(alpha, matrix, noise_variance)
    return alpha**2 / noise_variance * np.linalg.solve(gram, matrix)


def tanh_score(y: ArrayLike, eta: float, noise_variance: float = 0.25) -> NDArray:
    """Score of ``y = tanh(eta x) + noise`` at each of its values, on a dense grid.

    Example:
        >>> print(tanh_score(0.5, 2.0).round(4))
        0.3821
    """
    # In the angle of the amplifier's output the grid is dense where y is.
    x = np.linspace(-9.0, 9.0, 6001)
    weight = np.exp(-0.5 * x**2)
    mean = np.tanh(eta * x)
    flat = np.asarray(y, float).ravel()
    found = []
    for part in np.array_split(flat, max(flat.size // 2048, 1)):
        residual = (part[:, None] - mean) / noise_variance
        exponent = -0.5 * noise_variance * residual**2
        kernel = np.exp(exponent - exponent.max(axis=1, keepdims=True)) * weight
        found.append(-(kernel * residual).sum(axis=1) / kernel.sum(axis=1))
    return np.concatenate(found).reshape(np.shape(y))
