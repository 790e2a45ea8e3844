# SPDX-License-Identifier: Apache-2.0
"""Information gradients of NumPyro models.

Names are loaded on first use, so importing the package is fast.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpyro_infograd import (
        diagnostics,
        distributions,
        exogenous,
        plots,
        scores,
    )
    from numpyro_infograd.calibrate import Calibration, calibrate
    from numpyro_infograd.channel import channel
    from numpyro_infograd.design import Designs, design
    from numpyro_infograd.estimation import Gradient
    from numpyro_infograd.gradient import gradient
    from numpyro_infograd.injective import injective
    from numpyro_infograd.objectives import (
        MI,
        Constraint,
        DirectedInformation,
        Entropy,
        Expectation,
    )
    from numpyro_infograd.optimize import (
        InfoMax,
        Result,
        maximize,
        maximize_mi,
        minimize,
    )
    from numpyro_infograd.pretraining import pretrain_scores
    from numpyro_infograd.regions import RateRegion, rate_region
    from numpyro_infograd.structure import StructuralModel
    from numpyro_infograd.tracing import structural_model
    from numpyro_infograd.values import Estimate, estimate, mutual_information

__version__ = "0.1.0"

_ROOMS = {
    "Calibration": "calibrate",
    "Constraint": "objectives",
    "Designs": "design",
    "DirectedInformation": "objectives",
    "Entropy": "objectives",
    "Estimate": "values",
    "Expectation": "objectives",
    "Gradient": "estimation",
    "InfoMax": "optimize",
    "MI": "objectives",
    "RateRegion": "regions",
    "Result": "optimize",
    "StructuralModel": "structure",
    "calibrate": "calibrate",
    "channel": "channel",
    "design": "design",
    "estimate": "values",
    "gradient": "gradient",
    "injective": "injective",
    "maximize": "optimize",
    "maximize_mi": "optimize",
    "minimize": "optimize",
    "mutual_information": "values",
    "null_check": "values",
    "pretrain_scores": "pretraining",
    "rate_region": "regions",
    "structural_model": "tracing",
}
_MODULES = (
    "diagnostics",
    "distributions",
    "errors",
    "exogenous",
    "plots",
    "scores",
    "values",
)

__all__ = [  # noqa: PLE0604
    "MI",
    "Calibration",
    "Constraint",
    "Designs",
    "DirectedInformation",
    "Entropy",
    "Estimate",
    "Expectation",
    "Gradient",
    "InfoMax",
    "RateRegion",
    "Result",
    "StructuralModel",
    "calibrate",
    "channel",
    "design",
    "diagnostics",
    "distributions",
    "errors",
    "estimate",
    "exogenous",
    "gradient",
    "injective",
    "maximize",
    "maximize_mi",
    "minimize",
    "mutual_information",
    "null_check",
    "plots",
    "pretrain_scores",
    "rate_region",
    "scores",
    "structural_model",
    "values",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"numpyro_infograd.{name}")
    if name in _ROOMS:
        room = importlib.import_module(f"numpyro_infograd.{_ROOMS[name]}")
        globals()[name] = getattr(room, name)
        return globals()[name]
    raise AttributeError(f"module 'numpyro_infograd' has no attribute {name!r}")


class _Package(types.ModuleType):
    """Keeps functions such as `gradient` from being replaced by their modules."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ROOMS and isinstance(value, types.ModuleType):
            return  # the import system sets a submodule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
