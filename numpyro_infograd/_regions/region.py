# SPDX-License-Identifier: Apache-2.0
"""The result of `rate_region`: polytopes of rates, and their convex hull."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, QhullError

from numpyro_infograd._arguments import as_number, as_real
from numpyro_infograd._optimize import Ending, Status
from numpyro_infograd._text import brief, draw, warned
from numpyro_infograd.errors import ArgumentError


@dataclass(frozen=True)
class RateRegion:
    """Achievable rates in nats, with time sharing between all points.

    Attributes:
        rates: Names of the rates, in the order of the columns.
        weights: Directions that were maximised, (num_points, num_rates).
        points: The rates reached in each direction, (num_points, num_rates).
        standard_error: Largest standard error of the rates of each point at `params`,
            (num_points,). Where a rate is the difference of two bounds, their errors
            add up. If an ascent ended before the boundary, the error does not include
            it; see `statuses`.
        params: The parameters of each point.
        statuses: How the ascent to each point ended.
        facets: Each bound at each point, clipped at zero, (num_points,).
        corners: Corners of the polytopes of all points, (num_corners, num_rates).
        warnings: Sentences that say why the region may be wrong.

    Example:
        >>> import numpy as np
        >>> from numpyro_infograd import RateRegion
        >>> from numpyro_infograd import Ending, Status
        >>> region = RateRegion(  # by hand; `rate_region` makes them
        ...     rates=("r1", "r2"),
        ...     weights=np.eye(2),
        ...     points=np.array([[0.8, 0.3], [0.3, 0.8]]),
        ...     standard_error=np.zeros(2),
        ...     params=[{"p": 0.7}, {"p": 0.3}],
        ...     statuses=[Status("converged", Ending.CONVERGED)] * 2,
        ...     facets={},
        ...     corners=np.array([[0, 0], [0.8, 0], [0.8, 0.3], [0.3, 0.8], [0, 0.8]]),
        ... )
        >>> region
        RateRegion(r1 <= 0.8, r2 <= 0.8 nats; 2 points, 2 converged, standard errors up
        to 0)
        >>> region.contains([[0.55, 0.55], [0.7, 0.7]])  # first: by time sharing
        array([ True, False])
    """

    rates: tuple[str, ...]
    weights: np.ndarray
    points: np.ndarray
    standard_error: np.ndarray
    params: list[dict[str, Any]]
    statuses: list[Status]
    facets: dict[tuple[str, ...], np.ndarray]
    corners: np.ndarray
    warnings: tuple[str, ...] = ()

    @property
    def vertices(self) -> np.ndarray:
        """Corners of the convex hull, (num_vertices, num_rates); two rates in order.

        If a rate is always zero the region is flat, and points on its edges are kept.
        """
        if len(self.rates) == 1:
            return self.corners[[0, -1]]  # sorted
        try:
            return self.corners[ConvexHull(self.corners).vertices]
        except QhullError:
            return self.corners

    def contains(self, rates: Any, slack: float = 0.0) -> Any:
        """Whether rates are achievable.

        Args:
            rates: One vector of rates in nats, (num_rates,); several of them, (...,
                num_rates); or a dict by name.
            slack: Nats by which each rate may exceed the region.

        Returns:
            A bool, or an array (...) of them.

        Raises:
            ArgumentError: For vectors of another length, other names, or values that
                are not finite.
        """
        if isinstance(rates, Mapping):
            if set(rates) != set(self.rates):
                raise ArgumentError(
                    f"rates must name each of {', '.join(self.rates)}, got {rates!r}."
                )
            rates = [rates[name] for name in self.rates]
        slack = as_number("slack", slack)
        width = len(self.rates)
        asked = as_real(rates)
        fits = asked is not None and asked.shape[-1:] == (width,)
        if asked is None or not fits or not np.all(np.isfinite(asked)):
            raise ArgumentError(
                f"rates must be finite numbers in {width} columns "
                f"({', '.join(self.rates)}), got {brief(rates)}."
            )
        asked = asked.astype(float)
        found = [self._reaches(row, slack) for row in asked.reshape(-1, width)]
        return found[0] if asked.ndim == 1 else np.reshape(found, asked.shape[:-1])

    def _reaches(self, rates: np.ndarray, slack: float) -> bool:
        """Whether a convex combination of corners is at least the rates."""
        if np.any(rates < 0):
            return False
        count = len(self.corners)
        rounding = 1e-6 * max(1.0, float(np.max(self.corners)))
        solved = linprog(
            np.zeros(count),
            A_ub=-self.corners.T,
            b_ub=slack + rounding - rates,
            A_eq=np.ones((1, count)),
            b_eq=[1.0],
        )
        return bool(solved.success)

    def plot(self, ax: Any = None) -> Any:
        """Draw a region of two or three rates: see `plots.plot_rate_region`."""
        return draw("plot_rate_region", self, ax)

    def __repr__(self) -> str:
        most = self.corners.max(axis=0)
        shown = ", ".join(
            f"{r} <= {m:.5g}" for r, m in zip(self.rates, most, strict=True)
        )
        endings = [getattr(s, "ending", None) for s in self.statuses]
        converged = endings.count(Ending.CONVERGED)
        head = (
            f"RateRegion({shown} nats; {len(self.points)} points, {converged} "
            f"converged, standard errors up to {self.standard_error.max():.2g})"
        )
        return "\n  ".join([head, *warned(self.warnings)])
