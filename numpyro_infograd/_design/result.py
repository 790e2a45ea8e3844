# SPDX-License-Identifier: Apache-2.0
"""`Designs`: candidate designs with their information, ranked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
import math
from typing import Any

import numpy as np

import jax

from numpyro_infograd._text import html_table, warned, with_error

_SHOWN = 5  # designs in the repr


@dataclass(frozen=True, eq=False)
class Designs:
    """Expected information gains of candidate designs, in nats.

    All designs are evaluated on the same random numbers, so the error of a difference
    is much smaller than the errors of the values.

    Attributes:
        designs: The candidates as they were given, with a leading axis of designs.
        value: Information of each design, (num_designs,).
        standard_error: Of each value, with half of the bias that was removed.
        difference: Value of each design minus that of the best one.
        difference_error: Standard error of each difference, on common random numbers.
        lower: Prior contrastive bound of each design, which is below the information in
            expectation. It is at most log(num_components + 1).
        lower_error: Standard error of each lower bound.
        upper: Nested Monte Carlo bound of each design, which is above the information
            in expectation.
        upper_error: Standard error of each upper bound.
        method: "exact" (closed form, averaged over draws of conditions and
            expectations), "sums" over all outcomes, or "nested" for sampled outcomes.
        num_samples: Outer samples of each design.
        num_components: Inner (contrastive) samples of each of 16 replicates.
        warnings: Sentences that say why a value or its error may be wrong.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model(x):
        ...     slope = numpyro.sample("slope", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(slope * x, 1))
        >>> found = ig.design(model, jnp.array([0.0, 1.0, 2.0]), "slope", "y")
        >>> float(found.best), found.ranking.tolist()
        (2.0, [2, 1, 0])
    """

    designs: Any
    value: np.ndarray
    standard_error: np.ndarray
    difference: np.ndarray
    difference_error: np.ndarray
    lower: np.ndarray
    lower_error: np.ndarray
    upper: np.ndarray
    upper_error: np.ndarray
    method: str
    num_samples: int
    num_components: int
    warnings: tuple[str, ...] = ()
    names: tuple[str, ...] = field(default=(), repr=False)

    @property
    def ranking(self) -> np.ndarray:
        """Indices of the designs, from most information to least; NaN comes last."""
        return np.argsort(-self.value, kind="stable")

    @property
    def best(self) -> Any:
        """The design with most information, in the structure of `designs`."""
        return self[int(self.ranking[0])]

    @property
    def contenders(self) -> np.ndarray:
        """Indices of the designs within two standard errors of the best, in order."""
        order = self.ranking
        near = self.difference[order] >= -2 * self.difference_error[order]
        return order[near]

    def __getitem__(self, index: int) -> Any:
        """The design with this index."""
        return jax.tree.map(lambda x: x[index], self.designs)

    def __len__(self) -> int:
        return len(self.value)

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        yield "design", "information", "less the best"
        for i in self.ranking[:_SHOWN]:
            design = self[int(i)]
            parts = design if isinstance(design, dict) else {self.names[0]: design}
            label = ", ".join(f"{k}={with_error(v)}" for k, v in parts.items())
            behind = "-"
            if i != self.ranking[0]:
                behind = _shown(self.difference[i], self.difference_error[i])
            yield label, _shown(self.value[i], self.standard_error[i]), behind
        if len(self) > _SHOWN:
            yield "...", "", ""

    @property
    def _head(self) -> str:
        near = len(self.contenders)
        close = "" if near < 2 else f"; {near} within two errors of the best"
        return f"{len(self)} designs, information in nats ({self.method}){close}"

    def __repr__(self) -> str:
        rows = [*self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n  ".join([self._head, *lines, *warned(self.warnings)])

    def _repr_html_(self) -> str:
        return html_table(self._head, self._rows(), warned(self.warnings))


def _shown(value: float, error: float) -> str:
    """A number with its error, in digits that the error allows."""
    if not error > 0:
        return f"{value:.6g}"
    digits = max(1 - math.floor(math.log10(error)), 0) if math.isfinite(error) else 4
    return f"{value:.{digits}f} +- {error:.2g}"
