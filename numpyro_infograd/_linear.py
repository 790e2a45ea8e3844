# SPDX-License-Identifier: Apache-2.0
"""Linear approximations of a model in its noise, at some draws."""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import explain_grad_errors
from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._density import Density, Values, simulate
from numpyro_infograd._doors import warn
from numpyro_infograd._noise import probe_noise
from numpyro_infograd._program import Program
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd.errors import DegenerateError

_DRAWS = 3
_MANY_PARTS = 100
# Error of a derivative, relative to its row, in units of the machine's epsilon.
_ROUNDING = 25.0


def information(
    sm: StructuralModel, densities: Sequence[Density], params: Any
) -> float:
    """Approximate information of sets of sites about their hidden noise, in nats.

    The largest of all sets that hide more than two dimensions. With fewer dimensions,
    averages over the noise are accurate even for high information.
    """
    hiding = [
        d
        for d in densities
        if sum(math.prod(law.shape) for _, law in d.hidden_spec) > 2
    ]
    named = dict.fromkeys(s for d in hiding for s in d.sites)
    sites = tuple(s for s in named if sm.site_info[s].is_float)  # others: no Jacobian
    linear = Linear.of(sm, sites, params)
    return max((linear.information(d) for d in hiding), default=0.0)


def warn_of_parts(sm: StructuralModel, sites: Sequence[str], params: Any) -> None:
    """Warn of sites in many parts without common noise, whose estimate takes long."""
    sites = tuple(s for s in sites if sm.site_info[s].is_float)
    if sum(sm.site_info[s].size for s in sites) < _MANY_PARTS:
        return
    parts = Linear.of(sm, sites, params).count_parts()
    if parts >= _MANY_PARTS:
        warn(
            f"{', '.join(map(repr, sites))} seem to be {parts} parts without common "
            "noise, such as members of a plate, which take long to estimate at once. "
            "If the parts are independent and alike, model one: their information is "
            f"{parts} times as much."
        )


class Linear(NamedTuple):
    """Jacobians of sites in the noise, at three draws.

    A PRNG key has no derivative. For a site that is drawn from a key, the derivative is
    in its value instead. For a draw from a key inside a scan there is no derivative.
    """

    # For each site and noise, (3, site size, noise size).
    jacobians: dict[str, dict[str, np.ndarray]]
    sizes: dict[str, int]  # number of scalars in each site
    complete: bool  # whether the Jacobians include all noise
    keyed: bool = False  # whether some noise is a key
    rounding: float = 0.0  # error of a derivative, relative to its row

    @staticmethod
    def of(sm: StructuralModel, sites: tuple[str, ...], params: Any) -> Linear:
        sites = tuple(sorted(sites))  # one compiled function for every order
        keyed = [site for site in sm.site_info.values() if site.keyed]
        opaque = tuple(s.name for s in keyed if not (s.control_flow or s.discrete))
        names = sm.noise_of(sites)
        columns = tuple(
            n for n, law in sm.noise.items() if law.kind != "key" and n in names
        )
        sizes = {name: sm.site_info[name].size for name in sites}
        if not sites or not columns and not opaque:  # only discrete noise
            return Linear({s: {} for s in sites}, sizes, True)
        forward = sm.forward_given(opaque) if opaque else None
        noise = probe_noise(sm.spec, 1, _DRAWS)
        with explain_grad_errors():
            found = _jacobians(
                sm.forward, forward, params, noise, sites, columns, opaque
            )
        return Linear(
            {
                site: {n: np.asarray(x, np.float64) for n, x in row.items()}
                for site, row in found.items()
            },
            sizes,
            not any(site.control_flow for site in keyed),
            any(sm.noise[n].kind == "key" for n in names if n in sm.noise),
            _ROUNDING * float(jnp.finfo(jnp.result_type(float)).eps),
        )

    def rank(self, sites: Sequence[str], given: Sequence[str] = ()) -> int:
        """The rank of some sites' Jacobian in the noise that others leave free.

        It is that of the draw where the others, and then the sites, have most.
        """
        size = sum(self.sizes[s] for s in sites)
        if not self.complete:  # some noise has no Jacobian
            return size
        ranks = [(0, 0)]
        for jacobian in self._rows((*sites, *given)):
            if not np.all(np.isfinite(jacobian)):
                names = ", ".join(map(repr, sorted((*sites, *given))))
                raise DegenerateError(
                    f"the derivative of {names} in the noise is not finite at these "
                    "parameter values, perhaps at a square root, division or "
                    "logarithm. Use jnp.where on its argument too, so that it stays in "
                    "the domain."
                )
            scale = np.linalg.norm(jacobian, axis=1, keepdims=True)
            scaled = jacobian / np.where(scale > 0, scale, 1.0)
            found = [
                self._ranks(scaled[np.ix_(rows, columns)], int(np.sum(rows < size)))
                for rows, columns in _parts(jacobian)
            ]
            held, free = np.reshape(found, (-1, 2)).sum(axis=0)
            ranks.append((int(held), int(free)))
        return max(ranks)[1]

    def _ranks(self, rows: np.ndarray, size: int) -> tuple[int, int]:
        """The rank of the rows after `size`, and of those before, given these."""
        own, held = rows[:size], rows[size:]
        _, sizes, axes = np.linalg.svd(held, full_matrices=False)
        axes = axes[sizes > self.rounding * math.sqrt(len(held))]
        free = own - own @ axes.T @ axes
        tolerance = self.rounding * math.sqrt(len(own))
        return len(axes), int(np.linalg.matrix_rank(free, tol=tolerance))

    def count_parts(self) -> int:
        """The number of parts of all sites that share no noise; 1 if it is unknown.

        Noise without a derivative, as that of a discrete site, makes it unknown. Noise
        that has one at some sites, and moves others by a jump, is not seen.
        """
        rows = self._rows(tuple(self.sizes)) if self.complete else []
        moves = np.any(rows, axis=0)
        if self.keyed or not rows or not moves.any(axis=0).all():
            return 1
        return len(_parts(moves))

    def information(self, density: Density) -> float:
        """Approximate information of a density's sites about its hidden noise, in nats.

        It is exact for a linear-Gaussian model. It is the smallest over the draws, and
        0 if it is not known.
        """
        sites = [s for s in density.sites if s in self.jacobians]
        hidden = set(density.hidden)
        others = {n for s in sites for n in self.jacobians[s]} - hidden
        shown = all(hidden <= set(self.jacobians[s]) for s in sites)
        if not sites or not shown or not others or density.given:
            return 0.0
        whole = self._rows(sites, others | hidden)
        own = self._rows(sites, others)
        return min(_volume(a) - _volume(b) for a, b in zip(whole, own, strict=True))

    def _rows(
        self, sites: Sequence[str], noise: set[str] | None = None
    ) -> list[np.ndarray]:
        """The Jacobian of all sites together at each draw."""
        names = list(dict.fromkeys(n for s in sites for n in self.jacobians[s]))
        names = [n for n in names if noise is None or n in noise]
        if not names:
            return []
        rows = [np.concatenate([self.jacobians[s][n] for n in names], 2) for s in sites]
        return list(np.concatenate(rows, axis=1))


def _parts(matrix: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of each block; outside of all blocks a matrix is zero."""
    rows, columns = np.nonzero(matrix)
    count, total = len(matrix), sum(matrix.shape)
    edges = np.ones(len(rows), bool), (rows, count + columns)
    _, part = connected_components(coo_array(edges, (total, total)), directed=False)
    order = np.argsort(part, kind="stable")
    each = np.split(order, np.cumsum(np.bincount(part))[:-1])
    return [(x[x < count], x[x >= count] - count) for x in each if x[0] < count]


def _volume(jacobian: np.ndarray) -> float:
    """Half of the log determinant of J J^T."""
    with np.errstate(divide="ignore"):
        return float(np.sum(np.log(np.linalg.svd(jacobian, compute_uv=False))))


@quick_jit(static_argnames=("sites", "columns", "opaque"))
def _jacobians(
    whole: Program,
    forward: Program | None,
    params: Any,
    noise: Values,
    sites: tuple[str, ...],
    columns: tuple[str, ...],
    opaque: tuple[str, ...],
) -> dict[str, Values]:
    """For each site and noise, (3, site size, noise size)."""
    values = simulate(whole, params, noise)
    given = {name: values[name] for name in opaque}

    def one(noise: Values, given: Values) -> dict[str, Values]:
        def flat(moving: Values, put: Values) -> Values:
            full = {**noise, **moving}
            made = forward(params, full, put) if forward else whole(params, full)
            return {s: made[s].ravel() for s in sites}

        moving = {name: noise[name] for name in columns}
        found = jax.jacfwd(flat, argnums=(0, 1))(moving, given)
        both = {site: a | b for site, (a, b) in found.items()}
        return jax.tree.map(lambda x: x.reshape(x.shape[0], -1), both)

    return jax.vmap(one)(noise, given)
