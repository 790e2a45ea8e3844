# SPDX-License-Identifier: Apache-2.0
"""Scores that the user knows in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import as_power_of_two, explain_trace_errors, is_real
from numpyro_infograd._density import Density, Values
from numpyro_infograd._objectives import names
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError, ScoreError
from numpyro_infograd.scores.base import ScoreMethod, Scores

ScoreFunction = Callable[[Any, Values], Any]


class Analytic(ScoreMethod):
    """Scores given as functions, one for each set of sites.

    Args:
        functions: Maps a set of sites to `fn(params, values)`, the score of their
            joint density at one sample. `fn` returns a dict from site to an array of
            the site's shape, in nats per unit of the site; a single array is enough if
            only one site of the set depends on a parameter. A set is a site name or a
            tuple of names in any order. The score of `sites` given root inputs equals
            that of the joint set. Sets whose density hides no noise need no function.
        num_samples: Default number of samples of a gradient.

    Example:
        >>> from numpyro_infograd import scores
        >>> method = scores.Analytic({"y": lambda params, v: -v["y"] / 2})
    """

    def __init__(
        self,
        functions: Mapping[str | tuple[str, ...], ScoreFunction],
        num_samples: int = 16384,
    ) -> None:
        if not isinstance(functions, Mapping):
            raise ArgumentError(
                "Analytic takes a dict from sets of sites to functions, such as "
                f"{{'y': fn}}, got {brief(functions)}."
            )
        self.num_samples = as_power_of_two("num_samples", num_samples, 256)
        self.functions = {
            frozenset(names(sites, "a key of Analytic")): fn
            for sites, fn in functions.items()
        }
        for sites, fn in functions.items():
            if not callable(fn):
                raise ArgumentError(
                    f"Analytic needs a function for {sites!r}, got {brief(fn)}. Write "
                    "fn(params, values) for one sample."
                )

    def check(self, density: Density) -> None:
        """Raise if the density hides noise and no function gives its score.

        The boundary of a known density can be read from the model. A density that hides
        noise may be smooth in spite of such a boundary, so it is not checked.
        """
        if density.is_known:
            super().check(density)
        if not density.is_known and frozenset(density.all_sites) not in self.functions:
            known = ", ".join(repr(tuple(sorted(s))) for s in self.functions)
            raise ScoreError(
                f"Analytic has no score for {density.all_sites} (it has: {known}). "
                "Add an entry for that set of sites."
            )

    def score(
        self,
        state: Any,
        density: Density,
        params: Any,
        noise: Values,
        values: Values,
        rng_key: jax.Array,
    ) -> Scores:
        """The user's function at each sample of a batch."""
        fn = self.functions[frozenset(density.all_sites)]
        what = f"the Analytic score of {density.all_sites}"
        holds = (
            f"the parameters {', '.join(params)} and one sample of the sites "
            f"{', '.join(density.all_sites)}. Write fn(params, values) in these"
        )

        def one(sample: Values) -> Values:
            with explain_trace_errors(what, holds, ScoreError):
                score = fn(params, sample)
            if not isinstance(score, Mapping):
                if len(density.moved_sites) != 1:
                    raise ScoreError(
                        f"{what} must return a dict with entries for "
                        f"{density.moved_sites}, got {brief(score)}."
                    )
                score = {density.moved_sites[0]: score}
            missing = [name for name in density.moved_sites if name not in score]
            if missing:
                raise ScoreError(
                    f"{what} lacks {missing}. Add them to what it returns."
                )
            picked = {name: score[name] for name in density.moved_sites}
            for name, each in picked.items():
                shape, wanted = np.shape(each), sample[name].shape
                if shape != wanted:
                    raise ScoreError(
                        f"{what} has shape {shape} for {name!r}, expected {wanted}."
                    )
                if not is_real(each):
                    raise ScoreError(
                        f"{what} must be real numbers, got {brief(each)} for {name!r}."
                    )
            return jax.tree.map(jnp.asarray, picked)

        return Scores(jax.vmap(one)(density.pick(values)), None, {})
