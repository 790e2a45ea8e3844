# SPDX-License-Identifier: Apache-2.0
"""Distributions of receivers: quantised, clipped and complex values.

They are NumPyro distributions, for `numpyro.sample` in any model.

Example:
    >>> import numpyro, numpyro.distributions as dist
    >>> import numpyro_infograd as ig
    >>> def model():
    ...     x = numpyro.sample("x", dist.Normal(0, 1))
    ...     numpyro.sample("y", ig.distributions.Quantized(dist.Normal(x, 1), [0.0]))
    >>> ig.structural_model(model).site_info["y"].choices
    (0, 1)
"""

from numpyro_infograd.distributions.clipped import Clipped
from numpyro_infograd.distributions.complex_normal import (
    ComplexNormal,
    MultivariateComplexNormal,
)
from numpyro_infograd.distributions.quantized import Quantized

__all__ = ["Clipped", "ComplexNormal", "MultivariateComplexNormal", "Quantized"]
