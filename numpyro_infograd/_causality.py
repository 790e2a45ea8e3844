# SPDX-License-Identifier: Apache-2.0
"""Whether the model has the densities of a directed information.

With inputs X_t = f_t(Y^(t-1), U), outputs Y_t = g_t(X^t, V) and independent noise U, V,

    sum_t h(Y_t | X^t, Y^(t-1)) = -E log p(Y^n || X^n),

and p(y || x) is the density of the outputs when the inputs are held at x. So the noise
must be separate (`check_sources`), and time must have an order (`check_time_order`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._density import Values, simulate
from numpyro_infograd._noise import probe_noise
from numpyro_infograd._objectives import Causal, Objective
from numpyro_infograd._program import Program
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd.errors import ArgumentError, DensityError

_DRAWS = 8
_ROUNDING = 1e-4  # of the scale of a value


def check_sources(sm: StructuralModel, sets: Causal) -> None:
    """Check that inputs and outputs share no noise, given the others' values."""
    outputs, inputs, given = sets
    own = sm.noise_given(inputs + given, outputs)
    source = sm.noise_given(outputs + given, inputs)
    shared = sorted(own & source | (own | source) & sm.noise_of(given))
    if shared:
        raise DensityError(
            f"inputs {_names(inputs)} and outputs {_names(outputs)} of a directed "
            f"information (or its given sites) share the noise {shared[0]!r} directly. "
            "An input may see the channel's noise through earlier outputs alone. Feed "
            "back outputs only, name the site that the input sees as an output, or use "
            "MI."
        )


def check_time_order(sm: StructuralModel, objective: Objective, params: Any) -> None:
    """Check at draws that no value of a directed information depends on a later one."""
    for outputs, inputs, given in objective.causal:
        uses = {_uses(sm, names) for names in (inputs, outputs)}
        if len(uses) > 1:
            raise ArgumentError(
                f"inputs {_names(inputs)} and outputs {_names(outputs)} of a directed "
                f"information have {' and '.join(map(str, sorted(uses)))} uses. The "
                "first axis of each must be time."
            )
        last = np.arange(uses.pop())
        one, two = (
            simulate(sm.forward, params, probe_noise(sm.spec, seed, _DRAWS))
            for seed in (12, 13)
        )
        noise = probe_noise(sm.spec, 12, _DRAWS)
        for held, made, until in ((inputs, outputs, last), (outputs, inputs, last - 1)):
            program = sm.forward_given(held + given)
            put = {
                n: jnp.where(_mask(sm, held, n, until)[:, None], one[n], two[n])
                for n in held
            }
            put |= {n: jnp.stack([one[n]] * len(last)) for n in given}
            found = _each(program, params, noise, put)
            for name in made:
                moved = np.abs(np.asarray(found[name] - one[name], np.float64))
                scale = np.std(np.asarray(one[name], np.float64), axis=0) + 1e-30
                early = np.asarray(_mask(sm, made, name, last))
                if np.any(np.where(early[:, None], moved / scale, 0.0) > _ROUNDING):
                    raise ArgumentError(
                        f"site {name!r} of a directed information depends on a later "
                        f"value of {_names(held)}. Name the sites in order of time: an "
                        "output may depend on the inputs up to its use, and an input "
                        "on the outputs before its use. Without such an order, use MI."
                    )


@quick_jit
def _each(program: Program, params: Any, noise: Values, put: Values) -> Values:
    """Values of all sites for each first index of `put` and each draw."""
    each = jax.vmap(jax.vmap(program, (None, 0, 0)), (None, None, 0))
    return each(params, noise, put)


def _uses(sm: StructuralModel, names: tuple[str, ...]) -> int:
    shape = sm.site_info[names[0]].shape
    return shape[0] if _is_stacked(sm, names) else len(names)


def _is_stacked(sm: StructuralModel, names: tuple[str, ...]) -> bool:
    """Whether the only site has an axis of time."""
    info = sm.site_info[names[0]]
    return len(names) == 1 and len(info.shape) > (1 if info.pair else 0)


def _mask(
    sm: StructuralModel, names: tuple[str, ...], name: str, until: np.ndarray
) -> Any:
    """Which entries of a site belong to uses up to each of `until`."""
    shape = sm.site_info[name].shape
    if not _is_stacked(sm, names):
        return (names.index(name) <= until).reshape(-1, *[1] * len(shape))
    time = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return time <= until.reshape(-1, *[1] * len(shape))


def _names(sites: Iterable[str]) -> str:
    return ", ".join(map(repr, sites))
