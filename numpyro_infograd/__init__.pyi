# SPDX-License-Identifier: Apache-2.0
from . import (
    diagnostics as diagnostics,
    distributions as distributions,
    errors as errors,
    exogenous as exogenous,
    plots as plots,
    scores as scores,
    values as values,
)
from ._calibrate import Calibration as Calibration, calibrate as calibrate
from ._channel import channel as channel
from ._design import Designs as Designs, design as design
from ._estimation import Gradient as Gradient
from ._gradient import gradient as gradient
from ._injective import injective as injective
from ._objectives import (
    MI as MI,
    Constraint as Constraint,
    DirectedInformation as DirectedInformation,
    Entropy as Entropy,
    Expectation as Expectation,
)
from ._optimize import (
    Ending as Ending,
    InfoMax as InfoMax,
    Result as Result,
    Status as Status,
    maximize as maximize,
    maximize_mi as maximize_mi,
    minimize as minimize,
)
from ._pretraining import pretrain_scores as pretrain_scores
from ._regions import RateRegion as RateRegion, rate_region as rate_region
from ._structure import StructuralModel as StructuralModel
from ._tracing import structural_model as structural_model
from .values import (
    Estimate as Estimate,
    estimate as estimate,
    mutual_information as mutual_information,
    null_check as null_check,
)

__version__: str
