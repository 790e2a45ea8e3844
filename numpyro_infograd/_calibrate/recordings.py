# SPDX-License-Identifier: Apache-2.0
"""Recordings in any form as arrays, and their checks before a model is fitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import jax.numpy as jnp

from numpyro_infograd._sites import Site
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError

FEWEST = 256  # recordings, at least
MOST = 128  # numbers in one recording, at most: moments need their square
_REPEATED = 0.01  # largest share of repeated recordings
_COARSE = 0.01  # largest rounding step, in standard deviations


def as_tables(observed: Any) -> dict[str, Any]:
    """Recordings by site; a table, as of pandas, has a column for each site."""
    is_dict = isinstance(observed, Mapping)
    names = list(observed if is_dict else getattr(observed, "columns", ()))
    if not names:
        raise ArgumentError(
            "observed must be a dict from names of sites to recordings of shape "
            "(num_recordings, *shape of the site), or a table with a column for each "
            f"site, got {brief(observed)}."
        )
    return {name: observed[name] for name in names}


def as_recordings(
    observed: Mapping[str, Any], sm: StructuralModel, likely: bool
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Arrays of the recorded sites, without rows that have a gap; and warnings.

    For a likelihood (`likely`), which needs no score, they may be discrete, rounded,
    repeated or clipped.
    """
    parts = {n: _parts(n, value, sm, likely) for n, value in observed.items()}
    files = {n: [len(part) for part in each] for n, each in parts.items()}
    if len({tuple(lengths) for lengths in files.values() if len(lengths) > 1}) > 1:
        raise ArgumentError(
            f"the sites have files of different lengths: {files}. Pass the files of "
            "all sites in one order, with matching rows."
        )
    found = {n: np.concatenate(each) for n, each in parts.items()}
    counts = {name: len(array) for name, array in found.items()}
    if len(set(counts.values())) > 1:
        raise ArgumentError(
            f"the sites have different numbers of recordings: {counts}. A row of each "
            "must belong to the same recording."
        )
    found, warnings = _without_gaps(found)
    found = {n: _checked(n, a, sm.site_info[n], likely) for n, a in found.items()}
    number = len(next(iter(found.values())))
    if number < FEWEST:
        whole = " without gaps" if warnings else ""
        raise ArgumentError(
            f"observed has {number} recordings{whole}, but at least {FEWEST} are "
            "needed to compare them with the twin and to hold some out. Record more."
        )
    flat = np.concatenate([a.reshape(number, -1) for a in found.values()], axis=1)
    if flat.shape[1] > MOST:
        raise ArgumentError(
            f"each recording has {flat.shape[1]} numbers, but at most {MOST} are "
            "allowed. Use windows or summaries of the recordings; compute them in the "
            "model by numpyro.deterministic."
        )
    if not likely:
        _check_continuous(found, flat)
    return found, warnings


def _parts(name: str, value: Any, sm: StructuralModel, likely: bool) -> list[Any]:
    """The recordings of one site: an array for each file."""
    if name not in sm.site_info:
        known = ", ".join(sm.sites) or "none"
        what = "is a parameter" if name in sm.params else "is not a site of the model"
        raise ArgumentError(
            f"observed has {name!r}, which {what}. Sites are: {known}. Use these "
            "names, or leave it out."
        )
    site = sm.site_info[name]
    if site.state != "free":
        raise ArgumentError(
            f"site {name!r} is {site.state} in the model. Leave out its obs= (or the "
            "handler): calibrate compares what the model draws with the recordings."
        )
    if not likely and (_is_whole(site) or site.support == "mixed"):
        atoms = f"({site.distribution}) has atoms"
        remedy = "Pass divergence='likelihood', or leave divergence out."
        if site.kind == "deterministic":
            remedy = (
                "It is computed, so it has no probability either. Draw it from "
                "ig.distributions.Quantized(base, edges), with the noise in base."
            )
        raise ArgumentError(
            f"site {name!r} {'is discrete' if _is_whole(site) else atoms}, so it has "
            f"no score. {remedy}"
        )
    if isinstance(value, (list, tuple)) and value and hasattr(value[0], "__array__"):
        first = _as_array(name, value[0], site)
        if first.ndim and first.shape[1:] == site.shape:
            return [part for each in value for part in _parts(name, each, sm, likely)]
    array = _as_array(name, value, site)
    if array.shape[1:] != site.shape or array.ndim == 0:
        wanted = ", ".join(("num_recordings", *map(str, site.shape)))
        raise ArgumentError(
            f"the recordings of {name!r} have shape {array.shape}, expected ({wanted}"
            f"{'' if site.shape else ','}): one row for each draw of the site. Write "
            "the model of one recording, without a plate over recordings."
        )
    return [array]


def _as_array(name: str, value: Any, site: Site) -> np.ndarray:
    """An array of numbers as the model computes; NaN for what is missing."""
    if isinstance(value, (list, tuple)) and any(map(np.ma.isMaskedArray, value)):
        value = np.ma.stack([*map(np.ma.asarray, value)])
    try:
        array = np.asarray(value)
        if array.dtype == object and hasattr(value, "to_numpy"):  # pandas, with NA
            array = value.to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"the recordings of {name!r} are not an array: {error}. Pass rows of one "
            "shape, or a list of arrays of such rows."
        ) from None
    if site.pair and array.shape[1:] == site.shape[:-1]:
        parts = np.ma.asarray(value)
        value = np.ma.stack([parts.real, parts.imag], axis=-1)
        array = np.asarray(value)
    if np.iscomplexobj(array):
        raise ArgumentError(
            f"the recordings of {name!r} are complex, but the site is real. Make the "
            "site complex, or pass real recordings."
        )
    if array.dtype.kind not in ("fiub" if _is_whole(site) else "fiu"):
        raise ArgumentError(
            f"the recordings of {name!r} must be numbers, got values of type "
            f"{array.dtype}. Convert them: .astype(float)."
        )
    with np.errstate(over="ignore"):  # infinite values are refused later
        array = array.astype(jnp.zeros(()).dtype)
    if np.ma.is_masked(value):
        array = np.where(np.ma.getmaskarray(value), np.nan, array)
    return array


def _without_gaps(
    found: dict[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The rows in which no site has a gap, and a warning with the number of others."""
    gaps = {n: np.isnan(a).any(axis=(*range(1, a.ndim),)) for n, a in found.items()}
    gap = np.any(list(gaps.values()), axis=0)
    if not gap.any():
        return found, ()
    where = ", ".join(f"{n!r} ({rows.sum()})" for n, rows in gaps.items() if rows.any())
    warning = (
        f"{gap.sum()} of {len(gap)} recordings were left out, because they have a gap "
        f"(NaN or masked) at {where}. This is right if gaps do not depend on the "
        "recorded values; otherwise put the cause of the gaps in the model."
    )
    return {name: array[~gap] for name, array in found.items()}, (warning,)


def _checked(name: str, array: np.ndarray, site: Site, likely: bool) -> np.ndarray:
    """The recordings of one site in the type of the site."""
    rows = array.reshape(len(array), site.size)
    if wrong := int(np.sum(~np.isfinite(rows).all(axis=1))):
        raise ArgumentError(
            f"{wrong} of {len(array)} recordings of {name!r} have infinite values. "
            "Drop these rows at all sites, or make them NaN."
        )
    outside: dict[str, Any] = {
        "positive": array <= 0,
        "count": array < 0,
        "unit": (array <= 0) | (array >= 1),
    }
    if wrong := int(np.sum(outside.get(site.support, False))):
        raise ArgumentError(
            f"{wrong} recorded values of {name!r} are outside the support of its "
            f"distribution, {site.distribution}. Drop these rows, or use a "
            "distribution that contains them."
        )
    typed = array if site.is_float else array.astype(site.dtype)
    if wrong := int(np.sum(typed != array)):
        raise ArgumentError(
            f"{wrong} recorded values of {name!r} are not whole numbers, as "
            f"{site.distribution} draws. Round them, or make the site continuous."
        )
    if site.choices:
        low, high = min(site.choices), max(site.choices)
        slack = 1e-5 * (high - low)  # for levels that were computed in another way
        if wrong := int(np.sum((typed < low - slack) | (typed > high + slack))):
            raise ArgumentError(
                f"{wrong} recorded values of {name!r} are outside the values that "
                f"{site.distribution} draws, {low:g} to {high:g}: the recordings go "
                f"from {typed.min():g} to {typed.max():g}. Number the values as the "
                "site does, or drop these rows."
            )
    spread = np.ptp(rows, axis=0) if len(array) else [1.0]
    if not likely and not np.all(spread):
        column = np.unravel_index(int(np.argmin(spread)), site.shape)
        where = (
            f"component {tuple(map(int, column))} of {name!r}" if column else repr(name)
        )
        raise ArgumentError(
            f"the recordings of {where} are constant, so they have no density. Leave "
            "the component out of the site."
        )
    return typed


def _check_continuous(found: dict[str, np.ndarray], flat: np.ndarray) -> None:
    """Raise for recordings that are too coarse or too often equal to have a score."""
    number = len(flat)
    step = np.spacing(np.abs(flat).max(axis=0)) / flat.std(axis=0)
    if np.any(step > _COARSE):
        owners = [name for name, a in found.items() for _ in range(a[0].size)]
        raise ArgumentError(
            f"the recordings of {owners[np.argmax(step)]!r} are so far from zero that "
            f"{flat.dtype} rounds them to {step.max():.1%} of a standard deviation. "
            "Subtract an offset, also in the model."
        )
    by_chance = number * np.prod(step)  # rows that are equal by rounding
    repeated = number - len(np.unique(flat, axis=0))
    if repeated > (_REPEATED + by_chance) * number:
        raise ArgumentError(
            f"{repeated} of {number} recordings of {', '.join(map(repr, found))} "
            "repeat another one, but values of a density never repeat. If they are "
            "rounded or clipped, draw the site from Quantized or Clipped: its "
            "likelihood takes such recordings. Otherwise add uniform noise as wide as "
            "a rounding step, also in the model if it repeats values. If rows were "
            "copied, drop the copies."
        )


def _is_whole(site: Site) -> bool:
    """Whether the values of a site are states or whole numbers."""
    return site.discrete or not site.is_float
