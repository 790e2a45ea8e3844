# SPDX-License-Identifier: Apache-2.0
"""Jumps that a pathwise gradient would miss.

Operations that always jump (sign, floor, casts) are found in the traced model. A switch
(where, select, cond) may be continuous. To test it, pairs of draws are interpolated,
the point where the switch flips is found by bisection, and the values on both sides are
compared. A draw from a PRNG key cannot be interpolated through its key, so there the
values of the drawn sites are interpolated. A jump is harmless if no noise drives it, or
if no parameter moves the place of the jump.

Differences of means with common random numbers would be one simpler probe in place of
this one and that of `_slopes`. On the models of `tests/test_jumps.py` it missed jumps
that few draws cross, or that are zero at the given parameters, and it refused kinks
that many draws cross. So both probes stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import math
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._density import Values, simulate
from numpyro_infograd._edits import probes
from numpyro_infograd._jaxpr_facts import Jump
from numpyro_infograd._jaxpr_walk import FACTORS
from numpyro_infograd._program import Program
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._views import FAR, NUM_PROBES, View, lines_through, perturb
from numpyro_infograd.errors import JumpError

# A value has jumped if it changes by more than this share of its scale, and by more
# than rounding, between neighbouring floats of the input.
_JUMP = 1e-5
# Relative steps of parameters: a small one that keeps the order of the knots of a
# spline, and one to test whether the place of a flip moves.
_NEAR, _BESIDE = 3e-3, 1e-2
# A flip is bracketed by this many bisections, and by a bracket that is wider by _WIDE
# on each side. A continuous value changes far less in the narrow bracket. Whether the
# place of the flip moves is tested _PAD outside, where rounding cannot flip the switch.
_HALVINGS, _WIDE, _PAD = 22, 2.0**-12, 2.0**-18
# Draws for the search of rare flips, and the largest number of values in them.
_POOL, _POOL_NUMBERS = 2**14, 2**24
_CASTS = {"convert_element_type": "a cast (astype, or a comparison in a product)"}
_REMEDY = (
    "A derivative does not see a jump, but the parameter moves values across it and so "
    "changes their distribution: the gradient would be wrong. If noise enters before "
    "the jump, write both as one site, such as numpyro.sample(name, "
    "ig.distributions.Quantized(dist.Normal(mean, scale), edges)); edges=[0.0] is a "
    "sign. Else use a smooth step, such as jnp.tanh(k * v). If you know that the jump "
    "does not matter, pass allow_jumps=True."
)


_PROBABILITY = (
    "For the probability that a site is below a threshold, such as an outage, write "
    "its cdf in the model, numpyro.deterministic(name, dist.Exponential(1.0)."
    "cdf(threshold)), and average this site. "
)


def check_jumps(view: View, params: Any) -> None:
    """Raise for operations that jump, and for switches that are not continuous."""
    sm, program = view.sm, view.program()
    driven = program.input_indices(0)
    found = _reaching(program, driven, view.names)
    for jump, names in found.values():
        if not jump.switch:
            raise JumpError(
                f"a parameter reaches {view.call(names[0])} through "
                f"{_CASTS.get(jump.primitive, repr(jump.primitive))}, whose output "
                f"jumps from one value to another. {_remedy(view, names[0])}"
            )
    if not found:
        return
    drawn = view.keyed
    keyed = _keyed(program, driven, drawn)
    if keyed is None:
        raise JumpError(
            f"{_depends(view, found)} a branch inside another branch or a while loop, "
            f"which cannot be tested for jumps. {_REMEDY}"
        )
    keyed &= frozenset(found)
    given = view.program(drawn) if keyed else program
    twins = _twins(view, given, drawn) if keyed else {}
    hidden = keyed - frozenset(twins)
    plain = {path: found[path][1] for path in found if path not in twins}
    followed = _probe_around(view, program, driven, plain, (), params)
    if twins:
        wrt = _driven(sm, given, drawn)
        _probe_around(view, given, wrt, dict(twins.values()), drawn, params)
    if not hidden <= followed:
        raise JumpError(
            f"{_depends(view, {path: found[path] for path in hidden - followed})} a "
            "condition (where, select or cond) inside a draw from a PRNG key, which "
            f"cannot be tested for jumps. {_REMEDY}"
        )


def _remedy(view: View, name: str) -> str:
    """What to write in place of a jump before this output."""
    return f"{_PROBABILITY if name in view.expectations else ''}{_REMEDY}"


def _reaching(
    program: Program, driven: list[int], names: Iterable[str]
) -> dict[Any, tuple[Jump, tuple[str, ...]]]:
    """Path -> the jump there, and the `names` that it reaches."""
    where = {name: frozenset(program.output_indices(name)) for name in names}
    found: dict[Any, tuple[Jump, tuple[str, ...]]] = {}
    for jump in program.jumps(driven, _noise(program)):
        if hit := tuple(n for n, outputs in where.items() if outputs & jump.outputs):
            found[jump.path] = jump, hit
    return found


def _noise(program: Program) -> list[int]:
    """Indices of the random inputs of a program: noise and given draws."""
    return program.input_indices(1) + program.input_indices(2)


def _driven(sm: StructuralModel, program: Program, drawn: Iterable[str]) -> list[int]:
    """Indices of the inputs that a parameter moves: parameters and given draws."""
    moved = (name for name in drawn if sm.params_of((name,)))
    inputs = [i for name in moved for i in program.input_indices(2, name)]
    return program.input_indices(0) + inputs


def _twins(
    view: View, given: Program, drawn: tuple[str, ...]
) -> dict[Any, tuple[Any, tuple[str, ...]]]:
    """Path of a switch -> its path and its outputs in the program with given draws.

    Only for switches that then read no key. Given draws are outputs too, so that a
    switch in the computation of a draw is found there.
    """
    sm = view.sm
    around = sm.noise_of(view.read)
    names = (*view.names, *(s for s in drawn if s in around and s not in view.names))
    whole, wrt = view.program(), _driven(sm, given, drawn)
    before = _reaching(whole, whole.input_indices(0), names)
    after = _reaching(given, wrt, names)
    keyed = _keyed(given, wrt, drawn)
    if keyed is None or len(before) != len(after):  # a draw inside a scan
        return {}
    still = _keyed(whole, whole.input_indices(0), drawn)
    pairs = zip(before, after.items(), strict=True)
    return {
        old: (new, reached)
        for old, (new, (_, reached)) in pairs
        if old in (still or ()) and new not in keyed
    }


def _keyed(
    program: Program, driven: list[int], drawn: Iterable[str]
) -> frozenset[Any] | None:
    """Paths of the switches that read the key of a draw; None if not visible."""
    predicates = program.predicates(driven, _noise(program))
    if predicates is None:
        return None
    keys = {i for name in drawn for i in program.input_indices(1, name)}
    reads = predicates.dependencies()
    found = program.jumps(driven, _noise(program))
    paths = [jump.path for jump in found if jump.switch]
    return frozenset(p for p, used in zip(paths, reads, strict=True) if used & keys)


def _depends(view: View, found: Mapping[Any, tuple[Jump, tuple[str, ...]]]) -> str:
    _, names = found[min(found)]
    return f"{view.call(names[0])} depends on a parameter through"


def _probe_around(
    view: View,
    program: Program,
    driven: list[int],
    chosen: Mapping[Any, tuple[str, ...]],
    drawn: tuple[str, ...],
    params: Any,
) -> set[Any]:
    """Test switches at the parameters, then at other draws or parameters.

    A switch that flipped is tested again at parameters close by, because a jump may be
    zero at the given parameters by chance. That step is short, since a large one could
    change the order of the knots of a spline. A switch that did not flip is tested with
    many more draws, and then at parameters far away.

    `driven` are the inputs that a parameter moves, `chosen` the paths of switches with
    the outputs that each reaches, `drawn` the sites whose draws are given to the
    program. Returns the paths of the switches that flipped.
    """
    sm, noise = view.sm, _noise(program)
    switches = [jump for jump in program.jumps(driven, noise) if jump.switch]
    numbers = tuple(i for i, jump in enumerate(switches) if jump.path in chosen)
    if not numbers:
        return set()
    names = tuple(dict.fromkeys(n for hit in chosen.values() for n in hit))
    predicates = program.predicates(driven, noise)
    moved = tuple(sorted(name for name in drawn if sm.params_of((name,))))

    def moving_at(point: Any, noise: Values) -> tuple[Values, Values]:
        put = simulate(sm.forward, point, noise) if drawn else {}
        return noise, {name: put[name] for name in drawn}

    def probe(point: Any, moving: tuple[Values, Values], rows: Any) -> Any:
        beside, _ = lines_through(sm, point, 1, np.array([_BESIDE, -_BESIDE]))
        beside = jax.tree.map(lambda x: x[0], beside)
        jumped, flipped = jax.device_get(
            _flips(program, predicates, point, beside, moving, names, numbers, moved)
        )
        for row, column in np.argwhere(jumped & rows[:, None]):
            primitive = switches[numbers[row]].primitive
            where = (
                "a condition that depends on a parameter changes (where, select or "
                f"cond; here {primitive!r})."
            )
            if primitive in FACTORS:
                where = (
                    f"a vector of {primitive!r} changes its sign or its place, which "
                    "are arbitrary. Use what does not depend on them, such as the "
                    "projector v v^T in place of an eigenvector v."
                )
            raise JumpError(
                f"{view.call(names[column])} jumps where {where} "
                f"{_remedy(view, names[column])}"
            )
        return flipped

    near = perturb(sm, params, _NEAR)

    def probe_twice(moving: tuple[Values, Values]) -> Any:
        flipped = probe(params, moving, np.ones(len(numbers), bool))
        if flipped.any():
            probe(near, moving, flipped)
        return flipped

    few = probes(sm, params, 2, 2 * NUM_PROBES)
    moving = moving_at(params, few)
    flipped = probe_twice(moving)
    size = sum(site.size for site in sm.site_info.values())
    size += sum(math.prod(law.shape) for _, law in sm.spec)
    count = max(min(_POOL, _POOL_NUMBERS // size), 2 * NUM_PROBES)
    pool = moving_at(params, probes(sm, params, 3, count))
    unseen = np.asarray(_unseen(predicates, params, moving, pool, numbers))
    if unseen.any():
        flipped = flipped | probe_twice(_paired(moving, pool, unseen))
    if not flipped.all():
        far = perturb(sm, params, FAR)
        flipped = flipped | probe(far, moving_at(far, few), ~flipped)
    seen = zip(numbers, flipped, strict=True)
    return {switches[number].path for number, flip in seen if flip}


@quick_jit(static_argnames=("numbers",))
def _unseen(
    predicates: Program, params: Any, few: Any, pool: Any, numbers: tuple[int, ...]
) -> jax.Array:
    """For which draws of a pool a switch takes a value not seen in the small batch.

    A value is not seen if it is outside the range of the small batch, for any element
    of the switch. Shape (draws, switches).
    """

    def states(one: Any) -> list[jax.Array]:
        found = predicates(params, *one)
        return [found[i].astype(jnp.int32) for i in numbers]

    seen = jax.vmap(states)(few)
    ends = [(jnp.min(x, axis=0), jnp.max(x, axis=0)) for x in seen]

    def outside(one: Any) -> jax.Array:
        pairs = zip(states(one), ends, strict=True)
        return jnp.stack([jnp.any((x < a) | (x > b)) for x, (a, b) in pairs])

    return jax.lax.map(outside, pool, batch_size=256)


def _paired(few: Any, pool: Any, unseen: np.ndarray) -> Any:
    """Pairs for `_flips` of a common draw and a rare draw, in both orders.

    Values that are not floats, such as keys, are those of the first of a pair.
    """
    columns = np.flatnonzero(unseen.any(axis=0))
    each = max(1, NUM_PROBES // len(columns))
    ends = [np.resize(np.flatnonzero(unseen[:, i]), each) for i in columns]
    at = np.resize(np.concatenate(ends), NUM_PROBES)
    swap = np.arange(NUM_PROBES) % 2 == 1

    def pair(common: jax.Array, rare: jax.Array) -> jax.Array:
        both = jnp.stack([jnp.broadcast_to(common[0], rare[at].shape), rare[at]])
        first = both[swap.astype(int), np.arange(NUM_PROBES)]
        second = both[1 - swap, np.arange(NUM_PROBES)]
        return jnp.concatenate([first, second])

    return jax.tree.map(pair, few, pool)


@quick_jit(static_argnames=("names", "numbers", "moved"))
def _flips(
    program: Program,
    predicates: Program,
    params: Any,
    beside: Any,
    moving: tuple[Values, Values],
    names: tuple[str, ...],
    numbers: tuple[int, ...],
    moved: tuple[str, ...],
) -> tuple[jax.Array, jax.Array]:
    """Which outputs jump at the flip of a switch between pairs of draws.

    A flip does not count if its place stays when the parameters move to `beside` and
    the `moved` draws move. Also returns which switches flipped.
    """
    first = jax.tree.map(lambda x: x[:NUM_PROBES], moving)
    second = jax.tree.map(lambda x: x[NUM_PROBES:], moving)

    def outputs(moving: Any) -> list[jax.Array]:
        made = program(params, *moving)
        return [made[n].astype(jnp.result_type(float)) for n in names]

    scale = [jnp.std(v, axis=0) for v in jax.vmap(outputs)(moving)]
    reach = {n: _BESIDE * jnp.std(moving[1][n], axis=0) for n in moved}

    def between(a: Any, b: Any, t: jax.Array) -> Any:
        def mix(x: jax.Array, y: jax.Array) -> jax.Array:
            floating = jnp.issubdtype(x.dtype, jnp.floating)
            return (1 - t) * x + t * y if floating else x

        return jax.tree.map(mix, a, b)

    def states(params: Any, moving: Any) -> jax.Array:
        found = predicates(params, *moving)
        flat = [found[i].astype(jnp.int32).ravel() for i in numbers]
        # The last element never flips; it stands for switches without elements.
        return jnp.concatenate([*flat, jnp.zeros(1, jnp.int32)])

    one = jax.tree.map(lambda x: x[0], moving)
    shapes = jax.eval_shape(predicates, params, *one)
    sizes = [math.prod(shapes[i].shape) for i in numbers]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    picks = max(1, min(16, -(-max(sizes) // 16)))  # one element alone may jump

    def pair(a: Any, b: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        at = jax.vmap(lambda t: states(params, between(a, b, t)))
        start, end = at(jnp.array([0.0, 1.0]))
        changed = start != end

        def bisect(element: jax.Array) -> jax.Array:
            def halve(_: int, bracket: Any) -> Any:
                low, high = bracket
                middle = 0.5 * (low + high)
                now = states(params, between(a, b, middle))
                same = now[element] == start[element]
                return jnp.where(same, middle, low), jnp.where(same, high, middle)

            whole = jnp.zeros(()), jnp.ones(())
            low, high = jax.lax.fori_loop(0, _HALVINGS, halve, whole)
            wide = jnp.maximum(low - _WIDE, 0.0), jnp.minimum(high + _WIDE, 1.0)
            points = jnp.stack([low, high, *wide])
            sides = jax.vmap(lambda t: outputs(between(a, b, t)))(points)

            def stays(where: Any, sign: jax.Array, t: jax.Array) -> jax.Array:
                noise, put = between(a, b, t)
                push = {n: put[n] + sign * reach[n] for n in moved}
                return states(where, (noise, put | push))[element]

            signs = jnp.array([1.0, -1.0])
            near = jax.vmap(jax.vmap(stays, (None, None, 0)), (0, 0, None))(
                beside, signs, jnp.stack([low - _PAD, high + _PAD])
            )
            same = near == start[element]
            moves = changed[element] & ~(jnp.all(same[:, 0]) & ~jnp.any(same[:, 1]))

            def jumped(x: jax.Array, spread: jax.Array) -> jax.Array:
                narrow, wide = jnp.abs(x[0] - x[1]), jnp.abs(x[2] - x[3])
                size = jnp.maximum(jnp.abs(x[0]), jnp.abs(x[1]))
                least = 64 * jnp.finfo(x.dtype).eps * size + _JUMP * spread
                return moves & jnp.any((narrow > 0.5 * wide) & (narrow > least))

            # A continuous change shrinks with the bracket.
            return jnp.stack(list(map(jumped, sides, scale)))

        elements, flips = [], []
        for index, (size, stop) in enumerate(zip(sizes, ends, strict=True)):
            part = changed[stop - size : stop] if size else changed[-1:]
            shape = (picks, part.size)
            chance = jax.random.uniform(jax.random.fold_in(key, index), shape)
            pick = jnp.argmax(jnp.where(part, chance, -1.0), axis=1)
            elements.append(stop - size + pick)
            flips.append(jnp.any(part))
        found = jax.lax.map(bisect, jnp.concatenate(elements), batch_size=8)
        jumped = jnp.any(found.reshape(len(sizes), picks, -1), axis=1)
        return jumped, jnp.stack(flips)

    keys = jax.random.split(jax.random.key(5), NUM_PROBES)
    return jax.tree.map(
        lambda x: jnp.any(x, axis=0), jax.vmap(pair)(first, second, keys)
    )
