# SPDX-License-Identifier: Apache-2.0
"""Formulas of the exogenous table that take more than a line."""

import numpyro.distributions as dist


def halves(below, above):
    # below(t) is the quantile at t < 1/2, above(t) the one at 1 - t. Each half counts
    # from its own end, because 1 - u keeps its digits only for u >= 1/2.
    SYMMETRIC = (
        dist.Cauchy,
        dist.Laplace,
        dist.Logistic,
        dist.Normal,
        dist.SoftLaplace,
    )


def no_quantile(d, base) -> str:
    name = type(base).__name__
    return f"{type(d).__name__}: no quantile function of {name} is known"
