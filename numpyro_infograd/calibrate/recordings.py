# SPDX-License-Identifier: Apache-2.0
"""Checks of recordings before a model is fitted to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import jax.numpy as jnp

from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.structure import StructuralModel

FEWEST = 512  # recordings, at least
MOST = 128  # numbers in one recording, at most: moments need their square
_REPEATED = 0.01  # largest share of repeated recordings
_COARSE = 0.01  # largest rounding step, in standard deviations


def check_observed(observed: Any) -> None:
    """Raise unless recordings are a dict by site.

    Raises:
        ArgumentError: If they are something else.
    """
    if not isinstance(observed, Mapping) or not observed:
        raise ArgumentError(
            "observed must be a dict from names of sites to recordings of shape "
            f"(num_recordings, *shape of the site), got {observed!r:.80}."
        )


def as_recordings(
    observed: Mapping[str, Any], sm: StructuralModel
) -> dict[str, np.ndarray]:
    """Arrays (num_recordings, *shape) of the recorded sites, all of one length.

    Raises:
        ArgumentError: Names the site and what is wrong with its recordings.
    """
    found = {name: _one(name, value, sm) for name, value in observed.items()}
    counts = {name: len(array) for name, array in found.items()}
    if len(set(counts.values())) > 1:
        raise ArgumentError(
            f"the sites have different numbers of recordings: {counts}. A row of each "
            "must belong to the same recording."
        )
    number = next(iter(counts.values()))
    if number < FEWEST:
        raise ArgumentError(
            f"observed has {number} recordings, but at least {FEWEST} are needed to "
            "learn their score and to hold some out."
        )
    flat = np.concatenate([a.reshape(number, -1) for a in found.values()], axis=1)
    if flat.shape[1] > MOST:
        raise ArgumentError(
            f"each recording has {flat.shape[1]} numbers, but at most {MOST} are "
            "allowed. Use windows or summaries of the recordings; compute them in the "
            "model by numpyro.deterministic."
        )
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
            "rounded, add uniform noise as wide as a rounding step. If the model also "
            "repeats values, as after a clip, add the same small noise to the model "
            "and to the recordings. If rows were copied, drop the copies."
        )
    return found


def _one(name: str, value: Any, sm: StructuralModel) -> np.ndarray:
    """The recordings of one site."""
    if name not in sm.site_info:
        known = ", ".join(sm.sites) or "none"
        what = "is a parameter" if name in sm.params else "is not a site of the model"
        raise ArgumentError(f"observed has {name!r}, which {what}. Sites are: {known}.")
    site = sm.site_info[name]
    if site.state != "free":
        raise ArgumentError(
            f"site {name!r} is {site.state} in the model. Leave out its obs= (or the "
            "handler): calibrate compares what the model draws with the recordings."
        )
    if site.support == "mixed":
        raise ArgumentError(
            f"site {name!r} ({site.distribution}) has atoms, so it has no score. Use a "
            "continuous site that depends on it, or add the noise of the measurement."
        )
    if site.discrete or not jnp.issubdtype(site.dtype, jnp.floating):
        raise ArgumentError(
            f"site {name!r} is discrete, so it has no score. Use a continuous site "
            "that depends on it, or add the noise of the measurement."
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ArgumentError(
            f"the recordings of {name!r} are not an array: {error}. Pass rows of one "
            "shape."
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
    if array.dtype.kind not in "fiu":
        raise ArgumentError(
            f"the recordings of {name!r} must be numbers, got values of type "
            f"{array.dtype}. Convert them: .astype(float)."
        )
    with np.errstate(over="ignore"):  # infinite values are refused below
        array = array.astype(jnp.zeros(()).dtype)  # as the model computes
    if array.shape[1:] != site.shape or array.ndim == 0:
        wanted = ", ".join(("num_recordings", *map(str, site.shape)))
        raise ArgumentError(
            f"the recordings of {name!r} have shape {array.shape}, expected ({wanted}"
            f"{'' if site.shape else ','}): one row for each draw of the site. Write "
            "the model of one recording, without a plate over recordings."
        )
    if np.ma.is_masked(value):
        array = np.where(np.ma.getmaskarray(value), np.nan, array)
    rows = array.reshape(len(array), site.size)
    missing = int(np.sum(~np.isfinite(rows).all(axis=1)))
    if missing:
        raise ArgumentError(
            f"{missing} of {len(array)} recordings of {name!r} have missing (NaN, "
            "masked) or infinite values. Drop these rows at all sites."
        )
    outside = {"positive": array <= 0, "unit": (array <= 0) | (array >= 1)}
    wrong = int(np.sum(outside.get(site.support, False)))
    if wrong:
        raise ArgumentError(
            f"{wrong} recorded values of {name!r} are outside the support of its "
            f"distribution, {site.distribution}. Drop these rows, or use a "
            "distribution that contains them."
        )
    spread = np.ptp(rows, axis=0) if len(array) else [1.0]
    if not np.all(spread):
        column = np.unravel_index(int(np.argmin(spread)), site.shape)
        where = f"component {tuple(map(int, column))} of {name!r}" if column else name
        raise ArgumentError(
            f"the recordings of {where} are constant, so they have no density. Leave "
            "the component out of the site."
        )
    return array
