# SPDX-License-Identifier: Apache-2.0
"""Results as ArviZ data, for ArviZ 0 and ArviZ 1."""

from __future__ import annotations

from typing import Any

import arviz
import numpy as np

import jax

from numpyro_infograd._calibrate import Calibration
from numpyro_infograd._optimize import Result
from numpyro_infograd._pairs import to_pair
from numpyro_infograd._parameters import named_leaves
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError


def to_inference_data(result: Result) -> Any:
    """A result as ArviZ data: see `Result.to_inference_data`."""
    if not isinstance(result, Result):
        raise ArgumentError(
            "to_inference_data takes a Result, as maximize and calibrate return, got "
            f"{brief(result)}."
        )
    histories = [history for history in result.histories if history]
    draws = result.draws if isinstance(result, Calibration) else {}
    if not histories and not draws:
        raise ArgumentError(
            "the result has neither steps nor draws to show. Its `status` says why."
        )
    steps: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    if histories:
        name = "descent" if isinstance(result, Calibration) else "ascent"
        stacked = jax.tree.map(lambda *x: np.stack(x), *histories)
        steps[name] = named_leaves(stacked.pop("params"))
        steps[f"{name}_stats"] = named_leaves(stacked)
    if isinstance(result, Calibration):
        if draws:
            chain = jax.tree.map(
                lambda x, error: np.where(np.isinf(error), np.nan, x)[None],
                jax.tree.map(to_pair, draws),
                jax.tree.map(to_pair, result.standard_error),
            )
            groups["posterior"] = named_leaves(chain)
        groups["observed_data"] = result.recorded
        groups["posterior_predictive"] = {
            name: values[None] for name, values in result.simulated.items()
        }
    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict(steps | groups)
    data = arviz.from_dict(**groups)
    data.add_groups({name: arviz.dict_to_dataset(x) for name, x in steps.items()})
    return data
