# SPDX-License-Identifier: Apache-2.0
"""Where a pathwise gradient would miss something: jumps, and stopped derivatives.

Hard jumps are read off the traced model. A switch (where, select, cond) may be
continuous: pairs of draws are moved into each other until the switch flips, and the
values just before and just after are compared. A draw made from a PRNG key cannot be
moved through its key, so there the values of the drawn sites are moved instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
import functools
from typing import Any

import jax
import jax.numpy as jnp

from numpyro.distributions import biject_to

from numpyro_infograd.errors import JumpError, ReparametrizationError
from numpyro_infograd.jaxpr_facts import Jump
from numpyro_infograd.noise import draw_noise, noise_like
from numpyro_infograd.program import Program
from numpyro_infograd.structure import StructuralModel, Values, simulate

# What moves by more than this share of its scale while the rest moves by one float
# has jumped.
_JUMP = 1e-3
_NUM_PROBES = 64
# Parameters take this relative step to see whether a value follows. It follows if it
# moves, both ways, by more than this share of its size.
_STEP, _FOLLOWS = 1e-3, 1e-5
_REMEDY = (
    "The pathwise gradient does not see a jump. Soften it, put noise before it, "
    "or pass allow_jumps=True if you know that it does not matter."
)


@dataclass(frozen=True)
class View:
    """A model as an objective sees it: some of its sites, and expectations.

    Attributes:
        sm: The model.
        sites: The sites whose entropies are asked for.
        expectations: Functions of one sample's values, by what they are called.
    """

    sm: StructuralModel
    sites: tuple[str, ...]
    expectations: Mapping[str, Program]

    @functools.cached_property
    def whole(self) -> Program:
        """`program` with nothing given."""
        return self.program(())

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs of `program` that matter."""
        return (*self.sites, *self.expectations)

    @property
    def read(self) -> tuple[str, ...]:
        """The sites that matter: the named ones and those an expectation reads."""
        found = set(self.sites)
        for program in self.expectations.values():
            used = frozenset().union(*program.dependencies())
            found |= {s for s in self.sm.sites if used & {*program.input_indices(0, s)}}
        return tuple(s for s in self.sm.sites if s in found)

    def program(self, given: Collection[str]) -> Program:
        """The map from (params, noise, values of `given`) to sites and expectations.

        A given site is passed on as given and returned as made, so that a jump shows
        on either side of it.
        """
        sm = self.sm

        def run(params: Any, noise: Values, put: Values) -> dict[str, Any]:
            made = sm.run(params, noise, put, cut=True)[0]
            passed = {**made, **put}
            means = {n: jnp.asarray(e(passed)) for n, e in self.expectations.items()}
            # A truth is averaged as a number: then it jumps.
            numbers = {n: m.astype(jnp.result_type(float)) for n, m in means.items()}
            return made | numbers

        example = {name: sm.example(name) for name in given}
        return Program.trace(run, sm.params, noise_like(sm.spec), example)

    def call(self, name: str) -> str:
        """What an output is called in a message."""
        return name if name in self.expectations else f"site {name!r}"


def check_jumps(view: View, params: Any) -> None:
    """Refuse hard jumps; probe switches, which may be continuous.

    Raises:
        JumpError: naming the site or expectation that a parameter reaches by a jump.
    """
    sm, program = view.sm, view.whole
    driven = program.input_indices(0)
    found = _reaching(program, driven, view.names)
    for jump, names in found.values():
        if not jump.switch:
            raise JumpError(
                f"a parameter reaches {view.call(names[0])} through "
                f"{jump.primitive!r}, which jumps. {_REMEDY}"
            )
    if not found:
        return
    drawn = tuple(
        name
        for name, site in sm.site_info.items()
        if site.noise is not None and site.noise.kind == "key" and not site.discrete
    )
    keyed = _keyed(program, driven, drawn)
    if keyed is None:
        raise JumpError(
            f"{_depends(view, found)} a branch inside another branch or a while loop, "
            f"where no probe can follow. {_REMEDY}"
        )
    keyed &= frozenset(found)
    given = view.program(drawn) if keyed else program
    twins = _twins(view, given, drawn) if keyed else {}
    hidden = keyed - frozenset(twins)
    noise = draw_noise(sm.spec, jax.random.key(2), 2 * _NUM_PROBES)
    followed: set[Any] = set()
    for point in (params, _perturb(sm, params)):
        plain = {path: found[path][1] for path in found if path not in twins}
        followed |= _probe(view, program, driven, plain, point, (noise, {}))
        if twins:
            values = simulate(sm.forward, point, noise)
            put = {name: values[name] for name in drawn}
            wrt = _driven(sm, given, drawn)
            _probe(view, given, wrt, dict(twins.values()), point, (noise, put))
    if not hidden <= followed:
        raise JumpError(
            f"{_depends(view, {path: found[path] for path in hidden - followed})} a "
            "condition (where, select or cond) inside the making of a draw, where no "
            f"probe can follow. {_REMEDY}"
        )


def _reaching(
    program: Program, driven: list[int], names: Iterable[str]
) -> dict[Any, tuple[Jump, tuple[str, ...]]]:
    """Path -> the jump there, and which of `names` it reaches."""
    where = {name: frozenset(program.output_indices(name)) for name in names}
    found: dict[Any, tuple[Jump, tuple[str, ...]]] = {}
    for jump in program.jumps(driven):
        hit = tuple(n for n, outputs in where.items() if outputs & jump.outputs)
        if hit:
            found[jump.path] = jump, hit
    return found


def _driven(sm: StructuralModel, program: Program, drawn: Iterable[str]) -> list[int]:
    """Inputs of a program of given draws that a parameter moves."""
    moved = (name for name in drawn if sm.params_of((name,)))
    inputs = [i for name in moved for i in program.input_indices(2, name)]
    return program.input_indices(0) + inputs


def _twins(
    view: View, given: Program, drawn: tuple[str, ...]
) -> dict[Any, tuple[Any, tuple[str, ...]]]:
    """Path of a switch -> where it is once draws are given, and what it reaches then.

    Only of switches that read no key any more. A given draw is an output as well: a
    switch in its making is seen there and nowhere else.
    """
    sm = view.sm
    around = sm.noise_of(view.read)
    names = (*view.names, *(s for s in drawn if s in around and s not in view.names))
    whole, wrt = view.whole, _driven(sm, given, drawn)
    before = _reaching(whole, whole.input_indices(0), names)
    after = _reaching(given, wrt, names)
    keyed = _keyed(given, wrt, drawn)
    if keyed is None or len(before) != len(after):  # a draw in a scan hides its making
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
    """Paths of the switches that read the key of a draw; None if they are hidden."""
    predicates = program.predicates(driven)
    if predicates is None:
        return None
    keys = {i for name in drawn for i in program.input_indices(1, name)}
    reads = predicates.dependencies()
    paths = [jump.path for jump in program.jumps(driven) if jump.switch]
    return frozenset(p for p, used in zip(paths, reads, strict=True) if used & keys)


def _depends(view: View, found: Mapping[Any, tuple[Jump, tuple[str, ...]]]) -> str:
    _, names = found[min(found)]
    return f"{view.call(names[0])} depends on a parameter through"


def _probe(
    view: View,
    program: Program,
    driven: list[int],
    chosen: Mapping[Any, tuple[str, ...]],
    params: Any,
    moving: tuple[Values, Values],
) -> frozenset[Any]:
    """Raise if something differs on both sides of a switch's flip.

    Args:
        view: For messages.
        program: Where to look.
        driven: Its inputs that a parameter moves.
        chosen: Paths of switches, with the outputs that each reaches.
        params: Values of the parameters.
        moving: Noise, and values of given draws.

    Returns:
        The paths of the switches that flipped.
    """
    switches = [jump for jump in program.jumps(driven) if jump.switch]
    numbers = tuple(i for i, jump in enumerate(switches) if jump.path in chosen)
    if not numbers:
        return frozenset()
    names = tuple(dict.fromkeys(n for hit in chosen.values() for n in hit))
    predicates = program.predicates(driven)
    jumped, flipped = _flips(program, predicates, params, moving, names, numbers)
    for name in names:
        if jumped[name]:
            raise JumpError(
                f"{view.call(name)} jumps where a condition that depends on a "
                f"parameter changes (where, select or cond). {_REMEDY}"
            )
    pairs = zip(numbers, flipped, strict=True)
    return frozenset(switches[number].path for number, flip in pairs if flip)


def _perturb(sm: StructuralModel, params: Any) -> Any:
    """Parameters a random step away, within their constraints."""
    moved = {}
    for index, (name, value) in enumerate(params.items()):
        leaves, tree = jax.tree.flatten(value)
        try:
            transform = biject_to(sm.constraints[name])
        except NotImplementedError:  # no bijection, as for a sphere
            moved[name] = value
            continue
        keys = jax.random.split(
            jax.random.fold_in(jax.random.key(3), index), len(leaves)
        )
        new = []
        for leaf, key in zip(leaves, keys, strict=True):
            free = transform.inv(leaf)
            step = 0.3 * (1.0 + jnp.abs(free)) * jax.random.normal(key, free.shape)
            new.append(transform(free + step))
        moved[name] = jax.tree.unflatten(tree, new)
    return moved


@functools.partial(jax.jit, static_argnames=("names", "numbers"))
def _flips(
    program: Program,
    predicates: Program,
    params: Any,
    moving: tuple[Values, Values],
    names: tuple[str, ...],
    numbers: tuple[int, ...],
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Which outputs jump at the flip of a numbered switch, between pairs of draws.

    Also tells which of the switches flipped at all.
    """
    first = jax.tree.map(lambda x: x[:_NUM_PROBES], moving)
    second = jax.tree.map(lambda x: x[_NUM_PROBES:], moving)

    def outputs(moving: Any) -> Values:
        made = program(params, *moving)
        return {n: made[n].astype(jnp.result_type(float)) for n in names}

    scale = {n: jnp.std(v, axis=0) for n, v in jax.vmap(outputs)(moving).items()}

    def between(a: Any, b: Any, t: jax.Array) -> Any:
        def mix(x: jax.Array, y: jax.Array) -> jax.Array:
            floating = jnp.issubdtype(x.dtype, jnp.floating)
            return (1 - t) * x + t * y if floating else x

        return jax.tree.map(mix, a, b)

    def pair(a: Any, b: Any, key: jax.Array) -> tuple[Any, ...]:
        def states(t: Any) -> list[jax.Array]:
            found = predicates(params, *between(a, b, t))
            # The end never flips, so that no array is empty.
            return [
                jnp.append(found[i].ravel(), found[i].dtype.type(0)) for i in numbers
            ]

        starts, ends = states(0.0), states(1.0)
        picks = min(8, -(-max(s.size for s in starts) // 64))

        def bisect(index: int, element: jax.Array) -> tuple[Values, Values]:
            start = starts[index][element]
            flips = start != ends[index][element]

            def halve(_: int, bracket: Any) -> Any:
                low, high = bracket
                middle = 0.5 * (low + high)
                same = states(middle)[index][element] == start
                return jnp.where(same, middle, low), jnp.where(same, high, middle)

            bracket = (jnp.zeros(()), jnp.ones(()))
            gaps = []
            for halvings in (12, 10):  # what is continuous shrinks with the bracket
                bracket = jax.lax.fori_loop(0, halvings, halve, bracket)
                low, high = bracket[0], jnp.where(flips, bracket[1], bracket[0])
                sides = [outputs(between(a, b, t)) for t in (low, high)]
                gaps.append(jax.tree.map(lambda x, y: jnp.abs(x - y), *sides))
            return gaps[0], gaps[1]

        gaps = []
        for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
            shape = (picks, start.size)
            chance = jax.random.uniform(jax.random.fold_in(key, index), shape)
            elements = jnp.argmax(jnp.where(start != end, chance, -1.0), axis=1)
            gaps.append(jax.vmap(functools.partial(bisect, index))(elements))
        changed = [jnp.any(s != e) for s, e in zip(starts, ends, strict=True)]
        return *jax.tree.map(lambda *x: jnp.stack(x), *gaps), jnp.stack(changed)

    keys = jax.random.split(jax.random.key(5), _NUM_PROBES)
    wide, narrow, changed = jax.vmap(pair)(first, second, keys)

    def jumped(name: str) -> jax.Array:
        seen = _JUMP * jnp.maximum(scale[name], 1e-6)
        return jnp.any((narrow[name] > 0.5 * wide[name]) & (narrow[name] > seen))

    return {name: jumped(name) for name in names}, jnp.any(changed, axis=0)


# -- stopped derivatives -----------------------------------------------------------


def check_slopes(view: View, params: Any) -> None:
    """Refuse a parameter that moves a value while its derivative is nothing at all.

    Raises:
        ReparametrizationError: naming the parameters and what they move.
    """
    sm, program = view.sm, view.whole
    kinds = {name: sm.site_info[name].dtype for name in view.sites}
    names = tuple(
        name
        for name in view.names
        if jnp.issubdtype(kinds.get(name, jnp.result_type(float)), jnp.floating)
        and sm.params_of((name,) if name in kinds else view.read)
    )
    if not names:
        return
    noise = draw_noise(sm.spec, jax.random.key(2), _NUM_PROBES)
    moves, still = _stopped(program, _perturb(sm, params), noise, names)
    for index, name in enumerate(names):
        if not moves[index]:
            continue
        reach = sm.params_of((name,) if name in kinds else view.read)
        blamed = sorted(p for p in reach if still[p][index])
        raise ReparametrizationError(
            f"{view.call(name)} moves with {', '.join(map(repr, blamed))}, but the "
            "derivative is zero: stop_gradient, a rounding or a custom derivative "
            "stands between. Remove it; to hold a parameter fixed, write its value "
            "without numpyro.param, or pass allow_jumps=True."
        )


@functools.partial(jax.jit, static_argnames="names")
def _stopped(
    program: Program, params: Any, noise: Values, names: tuple[str, ...]
) -> tuple[jax.Array, Any]:
    """Whether each output moves along parameters that it has no derivative in.

    The parameters should be at no special place, where a derivative may vanish. Also
    returns for each parameter whether a part of it has no derivative, by output.
    """

    def outputs(params: Any) -> Values:
        values = jax.vmap(program, in_axes=(None, 0, None))(params, noise, {})
        return {name: values[name] for name in names}

    values, pull = jax.vjp(outputs, params)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(6), len(leaves) + len(names))
    steps = [
        _STEP * leaf * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=False)
    ]
    weights = {
        name: jax.random.normal(key, values[name].shape, values[name].dtype)
        for name, key in zip(names, keys[len(leaves) :], strict=True)
    }

    def one(index: jax.Array) -> tuple[jax.Array, Any]:
        chosen = {n: w * (index == i) for i, (n, w) in enumerate(weights.items())}
        slopes = jax.tree.leaves(pull(chosen)[0])
        flat = [slope == 0 for slope in slopes]
        step = [s * f for s, f in zip(steps, flat, strict=True)]

        def beside(sign: jax.Array) -> Values:
            moved = [x + sign * s for x, s in zip(leaves, step, strict=True)]
            return outputs(jax.tree.unflatten(tree, moved))

        sides = jax.lax.map(beside, jnp.array([1, -1]))
        moves = []
        for name in names:  # a dict that JAX returns is in another order
            least = _FOLLOWS * jnp.max(jnp.abs(values[name]))
            moved = jnp.min(jnp.abs(sides[name] - values[name]), axis=0)
            moves.append(jnp.any(moved > least))
        return jnp.stack(moves)[index], jax.tree.unflatten(
            tree, [jnp.any(f) for f in flat]
        )

    moves, flat = jax.lax.map(one, jnp.arange(len(names)))
    still = {n: jnp.stack(jax.tree.leaves(f)).any(axis=0) for n, f in flat.items()}
    return moves, still
