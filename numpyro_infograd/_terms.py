# SPDX-License-Identifier: Apache-2.0
"""An objective on a model: conditional entropies, and expectations as programs.

`resolve` combines joint entropies of an objective to conditional entropies, if that
avoids the estimate of a density.
"""

from __future__ import annotations

from collections.abc import Callable
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import explain_trace_errors
from numpyro_infograd._causality import check_sources
from numpyro_infograd._objectives import Joint, Objective, expectation_label, plus
from numpyro_infograd._pairs import without_pairs
from numpyro_infograd._program import Program
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError, ScoreError

_NO_JOINT = (
    "the objective has a directed information, which needs the model's own densities, "
    "but these scores are learned from samples alone. Use scores='auto'."
)


class Term(NamedTuple):
    """coefficient * h(sites | given), or h(sites || given) if causally conditioned.

    Both are means of the log density of the sites' own noise, with the values of given
    put in the model. If given sites depend on the sites, as by feedback, only the
    second is.
    """

    coefficient: float
    sites: tuple[str, ...]
    given: tuple[str, ...]
    causal: bool = False


def resolve(objective: Objective, sm: StructuralModel) -> tuple[Term, ...]:
    """Write an objective as few conditional entropies, as far as the graph allows.

    h(A,B) and h(A) with opposite coefficients combine to h(B|A) if A separates B from
    the noise of A. Then p(b|a) is an average over noise that A does not depend on, and
    the density of A is not needed. A may have none, if it is discrete or a codeword
    computed from noise.
    """
    left = dict(objective.entropies)
    pairs = _pair_off(left, -1, lambda joint, inner: _separates(sm, joint, inner))
    terms = [_conditional(sm, *pair) for pair in pairs]
    terms += [_conditional(sm, c, joint, frozenset()) for joint, c in left.items() if c]
    for sets, coefficient in objective.causal.items():
        check_sources(sm, sets)
        given = sm.in_order(sets.inputs + sets.given)
        terms.append(Term(coefficient, sets.outputs, given, causal=True))
    return tuple(terms)


def without_moving_conditions(
    terms: tuple[Term, ...], sm: StructuralModel
) -> tuple[Term, ...]:
    """h(A | B) as h(A, B) - h(B), if B depends on a parameter.

    The score of p(A | B) in B cannot be learned from samples of A and B. It is the
    difference of two scores that can.
    """
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], float] = {}
    for coefficient, sites, given, causal in terms:
        if causal:
            raise ScoreError(_NO_JOINT)
        parts = [(coefficient, sites, given)]
        if sm.params_of(given):
            joint = sm.in_order(sites + given)
            parts = [(coefficient, joint, ()), (-coefficient, given, ())]
        for share, own, rest in parts:
            found[own, rest] = plus(found.get((own, rest), 0.0), share)
    return tuple(Term(c, sites, given) for (sites, given), c in found.items() if c)


def resolve_reversed(objective: Objective, sm: StructuralModel) -> tuple[Term, ...]:
    """The objective as entropies h(A | B) of sites A that no parameter reaches."""
    if objective.causal:
        raise ScoreError(_NO_JOINT)
    left = dict(objective.entropies)
    pairs = _pair_off(left, 1, lambda joint, inner: not sm.params_of(joint - inner))
    terms = [_conditional(sm, *pair) for pair in pairs if sm.params_of(pair[2])]
    for sites, coefficient in left.items():
        if coefficient and sm.params_of(sites):
            raise ScoreError(
                "scores='posterior' needs an objective of MI(inputs, outputs) whose "
                "inputs no parameter reaches, but this objective also needs the "
                f"entropy of {sorted(sites)}. Use scores='denoising'."
            )
    return tuple(terms)


def _pair_off(
    left: dict[Joint, float], sign: int, fits: Callable[[Joint, Joint], bool]
) -> list[tuple[float, Joint, Joint]]:
    """Pairs of h(joint) and -h(inner) that fit, largest joint first; removed from
    `left`.

    A `sign` of 1 tries the smallest inner sets first, -1 the largest.
    """
    pairs = []
    for joint in sorted(left, key=lambda s: (-len(s), sorted(s))):
        for inner in sorted(left, key=lambda s: (sign * len(s), sorted(s))):
            opposed = left[joint] * left[inner] < 0 and inner < joint
            if not opposed or not fits(joint, inner):
                continue
            size = min(abs(left[joint]), abs(left[inner]))
            coefficient = size if left[joint] > 0 else -size
            left[joint] = plus(left[joint], -coefficient)
            left[inner] = plus(left[inner], coefficient)
            pairs.append((coefficient, joint, inner))
    return pairs


def _conditional(
    sm: StructuralModel, coefficient: float, joint: Joint, inner: Joint
) -> Term:
    """h(joint | inner), with its sites in the order of the model."""
    return Term(coefficient, sm.in_order(joint - inner), sm.in_order(inner))


class Means(NamedTuple):
    """sum of coefficient * E[program(values)]."""

    coefficients: jax.Array
    programs: tuple[Program, ...]

    def __call__(self, values: Any) -> jax.Array:
        """The mean of each program over a batch of values, (num_programs,)."""
        return jnp.mean(at_each(self, values), axis=1)


@jax.jit
def at_each(means: Means, values: Any) -> jax.Array:
    """The value of each program for each sample, (num_programs, num_samples)."""
    found = [jax.vmap(fn)(values) for fn in means.programs]
    return jnp.stack(found) if found else jnp.zeros((0, 1))


def trace_expectations(objective: Objective, sm: StructuralModel) -> Means:
    """The objective's expectations as programs of one sample's values."""
    example = sm.examples(sm.sites)
    pairs = frozenset(name for name, site in sm.site_info.items() if site.pair)
    holds = (
        f"the values of the sites {', '.join(sm.sites)}. Use these; record a parameter "
        "as a site with numpyro.deterministic"
    )
    return Means(
        jnp.asarray([coefficient for coefficient, _ in objective.expectations]),
        tuple(
            _trace_scalar(fn, example, pairs, holds) for _, fn in objective.expectations
        ),
    )


def _trace_scalar(
    fn: Callable[[Any], Any], example: Any, pairs: frozenset[str], holds: str
) -> Program:
    label = expectation_label(fn)

    def scalar(values: Any) -> Any:
        found = fn(without_pairs(pairs, values))
        number = isinstance(found, numbers.Real) or hasattr(found, "dtype")
        if not number or jnp.shape(found) or jnp.iscomplexobj(found):
            shape = f" of shape {jnp.shape(found)}" if number else ""
            raise ArgumentError(
                f"{label} must return a real scalar for one sample, got "
                f"{brief(found)}{shape}. Sum or average inside the function."
            )
        return found

    with explain_trace_errors(label, holds):
        program = Program.trace(scalar, example)
    program.check_batches(label)
    return program


def _separates(sm: StructuralModel, joint: Joint, inner: Joint) -> bool:
    """Whether `inner` and the rest of `joint` share no noise, given `inner`."""
    rest = sorted(joint - inner)
    if not all(has_density(sm, s) for s in rest):
        return False
    # Not `Density.hidden`: it lacks the discrete noise that the density sums over. The
    # noise of `rest` must not reach `inner` either: the density of a cause given its
    # effect is not its density in the model.
    return not sm.noise_given(sorted(inner), rest) & sm.noise_of(inner)


def has_density(sm: StructuralModel, site: str) -> bool:
    """Whether a site has a density given the rest: sampled, or with appended noise."""
    return sm.site_info[site].kind == "sample" or site in sm.appended


def without_density(objective: Objective, sm: StructuralModel) -> set[str]:
    """Computed sites whose distribution an entropy needs.

    A condition is one if the entropy hides noise that the condition depends on.
    """
    found = set()
    for term in resolve(objective, sm):
        hidden = {*sm.density(term.sites, term.given, whole=True).hidden}
        found |= {*term.sites} | {g for g in term.given if sm.noise_of((g,)) & hidden}
    return {s for s in found if not has_density(sm, s)}


def has_atoms(sm: StructuralModel, site: str) -> bool:
    """Whether single values of a site have positive probability, so it has no score."""
    info = sm.site_info[site]
    return info.discrete or info.support == "mixed"
