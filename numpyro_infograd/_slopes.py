# SPDX-License-Identifier: Apache-2.0
"""Derivatives that are wrong: stopped, rounded away, or from a wrong custom rule.

The pathwise derivative of every output of a view is compared with finite differences of
its values at the same noise, along random lines through the parameters.
"""

from __future__ import annotations

from collections.abc import Collection
import functools
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import explain_grad_errors
from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._density import Values, simulate
from numpyro_infograd._edits import probes
from numpyro_infograd._program import Program
from numpyro_infograd._views import FAR, NUM_PROBES, View, lines_through, perturb
from numpyro_infograd.errors import ReparametrizationError

# Number of lines along which derivatives are compared with finite differences.
_GROUPS = 8
_MANY = 1024  # draws if the code of a user stops a derivative, or has a rule for one
_FEW = 0.01  # share of draws with a wrong derivative that refuses such code
_TIMES = np.array([-2e-2, -5e-3, 0.0, 5e-3, 2e-2], np.float32)


def check_slopes(view: View, params: Any) -> None:
    """Raise if a pathwise derivative differs from finite differences."""
    sm = view.sm
    drawn = tuple(name for name in view.keyed if sm.params_of((name,)))
    names = tuple(
        name
        for name in (*view.names, *view.laws(drawn))
        if (name not in view.sites or sm.site_info[name].is_float) and view.movers(name)
    )
    if not names:
        return
    program = view.program(drawn)
    wrt = {*program.input_indices(0), *program.input_indices(2)}
    stopped = program.stops(wrt)
    suspects = tuple(n for n in names if stopped & {*program.output_indices(n)})
    count = _MANY if suspects else NUM_PROBES
    judge = functools.partial(
        _wrong, program, count=count, names=names, drawn=drawn, suspects=suspects
    )
    for point in (params, perturb(sm, params, FAR)):
        noise = probes(sm, point, 2, count)
        values = simulate(sm.forward, point, noise) if drawn else {}
        put = {name: values[name] for name in drawn}

        def wrong(only: Collection[str] | None) -> Any:
            line = lines_through(sm, point, _GROUPS, _TIMES, only)  # noqa: B023
            speeds = {
                name: jnp.std(value, axis=0) * (only is None or name in only)
                for name, value in put.items()  # noqa: B023
            }
            with explain_grad_errors():
                return jax.device_get(judge(line, noise, put, speeds))  # noqa: B023

        for index in [i for i, bad in enumerate(wrong(None)) if bad]:
            name = names[index]
            movers = (*params, *drawn)
            found = [mover for mover in movers if wrong((mover,))[index]]
            blamed = {
                p for m in found for p in ([m] if m in params else sm.params_of((m,)))
            }
            reach = blamed or view.movers(name)
            blame = ", ".join(map(repr, sorted(reach)))
            raise ReparametrizationError(
                f"{view.call(name)} does not move with {blame} as its derivative "
                "says. The cause is a stop_gradient, a rounding or a custom derivative "
                "between them. Remove it. To keep a parameter fixed, write its value "
                "without numpyro.param, or pass allow_jumps=True."
            )


@quick_jit(static_argnames=("count", "names", "drawn", "suspects"))
def _wrong(
    program: Program,
    lines: tuple[Any, Any],
    noise: Values,
    put: Values,
    speeds: Values,
    *,
    count: int,
    names: tuple[str, ...],
    drawn: tuple[str, ...],
    suspects: tuple[str, ...],
) -> jax.Array:
    """Which outputs have a derivative along the lines that differs from differences.

    Each element is compared for each draw. Kinks and rounding spoil some draws; a wrong
    rule fails in many, or in a few draws of `suspects`, whose code may stop a
    derivative in one branch. A draw from a key counts only if its derivative is zero,
    because the derivative of a rejection sampler is right for the distribution, not for
    a draw.
    """

    def outputs(params: Any, noise: Values, put: Values) -> list[jax.Array]:
        made = program(params, noise, put)
        return [made[n].astype(jnp.result_type(float)) for n in names]

    def draw(line: Any, tangent: Any, noise: Values, put: Values, key: Any) -> Any:
        keys = jax.random.split(key, len(put) + 1)
        pushes = {
            n: speeds[n] * jax.random.normal(k, speeds[n].shape, speeds[n].dtype)
            for (n, k) in zip(put, keys, strict=False)
        }

        def at(time: jax.Array, point: Any, tangent: Any) -> Any:
            moved = {n: v + time * pushes[n] for n, v in put.items()}
            return jax.jvp(
                lambda params, put: outputs(params, noise, put),
                (point, moved),
                (tangent, pushes),
            )

        values, slopes = jax.vmap(at)(jnp.asarray(_TIMES), line, tangent)
        return [_judge(*both) for both in zip(values, slopes, strict=True)]

    keys = jax.random.split(jax.random.key(7), count)
    size = count // _GROUPS
    groups = jax.tree.map(
        lambda x: x.reshape(_GROUPS, size, *x.shape[1:]), (noise, put, keys)
    )
    each = jax.vmap(draw, (None, None, 0, 0, 0))
    judged = jax.lax.map(lambda x: each(*x), (*lines, *groups))
    verdicts = []
    for name, (moves, wrong, silent) in zip(names, judged, strict=True):
        if name in drawn:
            wrong &= silent
        moves, wrong = (jnp.sum(x, axis=(0, 1)) for x in (moves, wrong))
        many = (wrong >= count // 8) & (wrong > moves / 4)
        verdicts.append(jnp.any(wrong >= _FEW * count if name in suspects else many))
    return jnp.stack(verdicts)


def _judge(values: jax.Array, slopes: jax.Array) -> tuple[jax.Array, ...]:
    """For each element at five times: whether it moves, its slope is wrong, and its
    slope is zero.
    """
    eps = jnp.finfo(values.dtype).eps
    rounding = 16 * eps * jnp.max(jnp.abs(values), axis=0)
    bend = jnp.max(slopes, axis=0) - jnp.min(slopes, axis=0)
    steps = [(values[4 - i] - values[i]) / (2 * _TIMES[4 - i]) for i in (0, 1)]
    change = jnp.abs(steps[1] - steps[0])
    slope = slopes[2]
    size = jnp.maximum(jnp.abs(slope), jnp.minimum(*map(jnp.abs, steps)))
    moves, wrong = jnp.array(True), jnp.array(True)
    for index, step in enumerate(steps):
        time = _TIMES[4 - index]
        kink = jnp.abs(values[4 - index] + values[index] - 2 * values[2])
        slack = 0.01 * size + bend + change + (kink + rounding) / time
        moves &= size > slack
        wrong &= jnp.abs(step - slope) > slack
    finite = jnp.all(jnp.isfinite(values) & jnp.isfinite(slopes), axis=0)
    silent = jnp.all(slopes == 0, axis=0)
    return moves & finite, wrong & finite, silent
