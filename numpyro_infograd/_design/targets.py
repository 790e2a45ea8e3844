# SPDX-License-Identifier: Apache-2.0
"""Lists of values: of counts, of computed sites with few values, of cells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import jax

from numpyro_infograd._density import simulate
from numpyro_infograd._edits import FEW, tabulate
from numpyro_infograd._noise import probe_noise
from numpyro_infograd._objectives import Objective
from numpyro_infograd._sites import Site
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._terms import has_density, resolve
from numpyro_infograd.errors import DensityError

# Distributions whose number of values is a shape, which no design changes.
_FIXED = ("Bernoulli", "Categorical", "OrderedLogistic", "Quantized", "Delta")
CELLS = 32  # cells of equal probability of a computed number, a power of two
_PROBES, _PLACES = 4096, 64  # draws, and designs, from which values are known


def with_probabilities(
    sm: StructuralModel,
    objective: Objective,
    inputs: tuple[str, ...],
    params: Any,
    designs: Any,
    cells: int,
) -> tuple[StructuralModel, tuple[str, ...]]:
    """The model in which each set of sites has a density, and the grouped sites.

    A computed site whose distribution given the rest is needed becomes discrete. A
    count without an upper end, or with one that a design moves, gets a list of values,
    with some beyond those drawn.
    """
    needed = {s for t in resolve(objective, sm) for s in t.sites}
    sites = {s: sm.site_info[s] for s in sm.sites if s in needed}
    computed = [s for s in sites if not has_density(sm, s)]
    counts = [s for s, site in sites.items() if _is_count(site)]
    grouped: tuple[str, ...] = ()
    if not computed and not counts:
        return sm, grouped
    noise = probe_noise(sm.spec, 11, _PROBES)
    count = len(jax.tree.leaves(designs)[0])
    drawn = []
    for i in np.unique(np.linspace(0, count - 1, _PLACES).astype(int)):
        at = params | jax.tree.map(lambda x, i=i: x[i], designs)
        drawn.append(simulate(sm.forward, at, noise))
    for name in counts:
        seen = np.concatenate([np.asarray(v[name]).ravel() for v in drawn])
        if known := sites[name].choices:
            if np.all(np.isin(seen, known)):
                continue
            seen = np.append(seen, known)
        low, high = int(np.min(seen)), int(np.max(seen))
        beyond = (high - low) // 2 + 2
        first = max(low - beyond, 0) if low >= 0 else low - beyond
        listed = tuple(float(k) for k in range(first, high + beyond + 1))
        site = sm.site_info[name]._replace(choices=listed)
        sm = replace(sm, site_info=sm.site_info | {name: site})
    for name in computed:
        seen = np.concatenate([np.asarray(v[name]) for v in drawn])
        choices = np.unique(seen)
        if len(choices) <= FEW:
            sm = tabulate(sm, name, choices.tolist())
            continue
        if name not in inputs or sm.site_info[name].size > 1:
            raise DensityError(
                f"site {name!r} is computed, takes many values, and has no density "
                "given the other sites. Name the sites that it is computed from, or "
                "one computed number as an input."
            )
        edges = np.quantile(seen.ravel(), np.arange(1, cells) / cells)
        sm = tabulate(sm, name, range(cells), np.unique(edges))
        grouped += (name,)
    return sm, grouped


def _is_count(site: Site) -> bool:
    """Whether a design may change the list of a discrete site's values."""
    if not site.discrete or site.choices is None:
        return False
    return not (site.choices and site.distribution.startswith(_FIXED))
