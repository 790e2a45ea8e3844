# SPDX-License-Identifier: Apache-2.0
"""The decorator `channel`: a model with named inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import sys
from typing import Any

from numpyro_infograd._calibrate import Calibration, calibrate
from numpyro_infograd._doors import public
from numpyro_infograd._estimation import Gradient
from numpyro_infograd._gradient import gradient
from numpyro_infograd._objectives import MI, Objective, Sites, names
from numpyro_infograd._optimize import Result, maximize, maximize_mi
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._text import brief
from numpyro_infograd._tracing import structural_model
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.values import Estimate, estimate, mutual_information


class Channel:
    """A NumPyro model with named inputs and outputs; made by `channel`.

    It can still be called, or passed to SVI, MCMC or Predictive. Its methods are the
    functions of the same names, with the model, inputs and outputs filled in.
    """

    def __init__(
        self, model: Callable[..., Any], inputs: Sites, outputs: Sites, given: Sites
    ) -> None:
        functools.update_wrapper(self, model)
        self.model = model
        self.inputs, self.outputs, self.given = inputs, outputs, given

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __reduce__(self) -> Any:
        """For pickle: by name, as a function, where the name is that of this object."""
        found: Any = sys.modules.get(self.__module__)
        name: str = vars(self).get("__qualname__", "")
        for part in name.split("."):
            found = getattr(found, part, None)
        return name if found is self else super().__reduce_ex__(2)

    def __repr__(self) -> str:
        name = getattr(self.model, "__name__", repr(self.model))
        ends = (self.inputs, self.outputs, self.given)
        a, b, c = (", ".join(names(sites, "sites")) for sites in ends)
        return f"<channel {name}: I({a}; {b}{' | ' + c if c else ''})>"

    @property
    def objective(self) -> Objective:
        """I(inputs; outputs | given)."""
        return MI(self.inputs, self.outputs, self.given)

    @public(settings_of=estimate)
    def mutual_information(self, **settings: Any) -> Estimate:
        """The information, in nats; settings as in `estimate`."""
        return mutual_information(
            self.model, self.inputs, self.outputs, self.given, **settings
        )

    @public(settings_of=gradient)
    def gradient(self, **settings: Any) -> Gradient:
        """Gradient of the information in nats; settings as in `ig.gradient`."""
        return gradient(self.model, self.objective, **settings)

    @public(settings_of=maximize)
    def maximize_mi(self, **settings: Any) -> Result:
        """Maximise the information over the parameters; settings as in `maximize`."""
        return maximize_mi(
            self.model, self.inputs, self.outputs, given=self.given, **settings
        )

    @public(settings_of=calibrate)
    def calibrate(self, observed: Mapping[str, Any], **settings: Any) -> Calibration:
        """Fit the model to recordings of its outputs; settings as in `ig.calibrate`."""
        return calibrate(self.model, observed, **settings)

    def structural_model(self, *args: Any, **kwargs: Any) -> StructuralModel:
        """The traced model for these arguments."""
        return structural_model(self, *args, **kwargs)


@public(inside=True)
def channel(
    *, inputs: Sites, outputs: Sites, given: Sites = ()
) -> Callable[[Callable[..., Any]], Channel]:
    """Decorate a model with the names of its inputs and outputs.

    Args:
        inputs: A site name or several.
        outputs: A site name or several.
        given: A site name or several; sites that sender and receiver know.

    Returns:
        A decorator. It returns the model with the methods `mutual_information`,
        `gradient`, `maximize_mi`, `calibrate` and `structural_model`: the functions of
        these names with the model, inputs and outputs filled in.

    Raises:
        ArgumentError: If an argument holds anything but site names, if two share a
            site, or if the decorated object is not a function.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> @ig.channel(inputs="x", outputs="y")
        ... def link(power=1.0):
        ...     x = numpyro.sample("x", dist.Normal(0, power**0.5))
        ...     numpyro.sample("y", dist.Normal(x, 1))
        >>> link.mutual_information(unit="bits", model_kwargs={"power": 3.0})
        1 bits (exact)
    """
    MI(inputs, outputs, given)  # checks the names

    def named(model: Callable[..., Any]) -> Channel:
        if not callable(model) or isinstance(model, StructuralModel):
            raise ArgumentError(
                "channel decorates a NumPyro model, which is a function, got "
                f"{brief(model)}."
            )
        return Channel(model, inputs, outputs, given)

    return named
