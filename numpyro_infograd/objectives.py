# SPDX-License-Identifier: Apache-2.0
"""What to maximise: mutual informations, entropies, expectations, and their sums.

Every objective reduces to a signed sum of joint entropies plus expectations,

    I(A;B|C) = h(A,C) + h(B,C) - h(A,B,C) - h(C),

in which like terms cancel. `resolve` then looks at a model and pairs the joint
entropies into conditional ones where that spares learning a density.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
import math
import numbers
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from numpyro_infograd.arguments import is_number, tracing
from numpyro_infograd.density import Density
from numpyro_infograd.errors import ArgumentError, ScoreError
from numpyro_infograd.program import Program
from numpyro_infograd.structure import StructuralModel, appended_name

Sites = str | Iterable[str]
Joint = frozenset[str]


class Objective:
    """A signed sum of joint entropies and expectations, in nats.

    Built from `MI`, `Entropy` and `Expectation` by `+`, `-`, scalar `*` and `sum`.

    Attributes:
        entropies: Coefficient of the joint entropy of each set of sites.
        expectations: Pairs (coefficient, function of one sample's values).
        terms: Pairs (coefficient, text) of what was written, for the repr.

    Example:
        >>> from numpyro_infograd import MI
        >>> MI("x", "y") - 0.5 * MI("x", "z")
        MI('x', 'y') - 0.5 * MI('x', 'z')
        >>> (MI("x", "y") - MI("x", "y")).entropies
        {}
    """

    __array_ufunc__ = None  # NumPy scalars on the left defer to __rmul__

    def __init__(
        self,
        entropies: dict[Joint, float],
        expectations: tuple[tuple[float, Callable[[Any], Any]], ...] = (),
        terms: tuple[tuple[float, str], ...] = (),
    ) -> None:
        self.entropies = {s: c for s, c in entropies.items() if c != 0}
        self.expectations = tuple((c, f) for c, f in expectations if c != 0)
        self.terms = terms

    def __add__(self, other: Any) -> Objective:
        if isinstance(other, numbers.Number) and other == 0:
            return self  # so that the built-in sum works
        if not isinstance(other, Objective):
            return NotImplemented
        entropies = dict(self.entropies)
        for joint, coefficient in other.entropies.items():
            entropies[joint] = _add(entropies.get(joint, 0.0), coefficient)
        return Objective(
            entropies,
            self.expectations + other.expectations,
            self.terms + other.terms,
        )

    __radd__ = __add__

    def __mul__(self, factor: Any) -> Objective:
        scale = _scale(factor)
        if scale is None:
            return NotImplemented
        if not math.isfinite(scale):
            raise ArgumentError(
                f"an objective was multiplied by {scale}: give a number."
            )
        return Objective(
            {s: scale * c for s, c in self.entropies.items()},
            tuple((scale * c, f) for c, f in self.expectations),
            tuple((scale * c, name) for c, name in self.terms),
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Objective:
        scale = _scale(divisor)
        if scale is None:
            return NotImplemented
        if scale == 0.0:
            raise ArgumentError("an objective was divided by zero: give a number.")
        return self * (1.0 / scale)

    def __neg__(self) -> Objective:
        return self * -1.0

    def __sub__(self, other: Any) -> Objective:
        return self + (-other) if isinstance(other, Objective) else NotImplemented

    def __le__(self, bound: Any) -> Constraint:
        return Constraint(self, "<=", bound)

    def __ge__(self, bound: Any) -> Constraint:
        return Constraint(self, ">=", bound)

    def __lt__(self, bound: Any) -> NoReturn:
        raise TypeError(
            f"{self!r} cannot be held strictly below or above {bound!r:.80}: write <= "
            "or >=."
        )

    __gt__ = __lt__

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites that an entropy of the objective names, sorted."""
        return tuple(sorted(frozenset().union(*self.entropies)))

    def __repr__(self) -> str:
        text = ""
        for coefficient, name in self.terms:
            sign = "-" if coefficient < 0 else "+"
            size = "" if abs(coefficient) == 1 else f"{abs(coefficient):g} * "
            lead = f" {sign} " if text else ("-" if sign == "-" else "")
            text += f"{lead}{size}{name}"
        return text or "0"


@dataclass(frozen=True)
class Constraint:
    """A bound on expectations, for `subject_to`; write it as a comparison.

    Attributes:
        expectations: An objective of nothing but expectations.
        sense: "<=" or ">=".
        bound: A number, in the unit of the expectations.

    Raises:
        ArgumentError: for an entropy on the left, or no finite number on the right;
            for another sense.

    Example:
        >>> from numpyro_infograd import Expectation
        >>> def power(v):
        ...     return v["x"] ** 2
        >>> Expectation(power) <= 1.0
        Expectation(power) <= 1
    """

    expectations: Objective
    sense: str
    bound: float

    def __post_init__(self) -> None:
        check_is_objective(self.expectations, "expectations")
        if self.sense not in ("<=", ">="):
            raise ArgumentError(
                f"the sense of a constraint must be '<=' or '>=', got {self.sense!r}."
            )
        if not is_number(self.bound):
            raise ArgumentError(
                f"the bound of a constraint must be a finite number, got "
                f"{self.bound!r}."
            )
        if self.expectations.entropies or not self.expectations.expectations:
            raise ArgumentError(
                f"{self!r}: only expectations can be constrained. Make an information "
                "a term of the objective, with a weight."
            )

    def __repr__(self) -> str:
        return f"{self.expectations!r} {self.sense} {float(self.bound):g}"

    def __bool__(self) -> bool:
        raise TypeError(
            f"{self!r} has no truth value: pass it in subject_to. Write a range as two "
            "constraints, [low <= f, f <= high]."
        )


def check_is_objective(value: Any, name: str = "objective") -> None:
    """Raise for what is no objective.

    Raises:
        ArgumentError: naming the argument.
    """
    if not isinstance(value, Objective):
        raise ArgumentError(
            f"{name} must be built from MI, Entropy and Expectation, got {value!r}."
        )


def MI(inputs: Sites, outputs: Sites, given: Sites = ()) -> Objective:
    """Mutual information I(inputs; outputs | given), in nats.

    Args:
        inputs: A site name or several.
        outputs: A site name or several.
        given: Sites to condition on.

    Returns:
        An objective, to be added to others and multiplied by numbers.

    Raises:
        ArgumentError: if inputs or outputs are empty, or two sets share a site.

    Example:
        >>> from numpyro_infograd import MI
        >>> secret = MI("x", "y") - MI("x", ("tap", "z"), given="h")
        >>> secret
        MI('x', 'y') - MI('x', ('tap', 'z'), given='h')
        >>> secret.sites
        ('h', 'tap', 'x', 'y', 'z')
    """
    a, b, c = names(inputs, "inputs"), names(outputs, "outputs"), names(given, "given")
    for left, right, where in (
        (a, b, "inputs and outputs"),
        (a, c, "inputs and given"),
        (b, c, "outputs and given"),
    ):
        shared = set(left) & set(right)
        if shared:
            raise ArgumentError(
                f"{where} share {', '.join(map(repr, sorted(shared)))}. The sets of a "
                "mutual information must be disjoint."
            )
    if not a or not b:
        raise ArgumentError(
            f"MI needs at least one input and one output site, got inputs={a}, "
            f"outputs={b}."
        )
    entropies: dict[Joint, float] = {}
    for joint, sign in ((a + c, 1.0), (b + c, 1.0), (a + b + c, -1.0), (c, -1.0)):
        if joint:
            key = frozenset(joint)
            entropies[key] = entropies.get(key, 0.0) + sign
    return Objective(entropies, terms=((1.0, _call("MI", a, b, given=c)),))


def Entropy(sites: Sites, given: Sites = ()) -> Objective:
    """Differential entropy h(sites | given), in nats.

    Args:
        sites: A site name or several.
        given: Sites to condition on.

    Returns:
        An objective. Unlike an information it depends on the units of the sites.

    Raises:
        ArgumentError: if `sites` is empty or shares a site with `given`.

    Example:
        >>> from numpyro_infograd import MI, Entropy
        >>> lost = Entropy("y") - Entropy("y", given="x")
        >>> lost
        Entropy('y') - Entropy('y', given='x')
        >>> lost.entropies == MI("x", "y").entropies
        True
    """
    a, c = names(sites, "sites"), names(given, "given")
    if not a:
        raise ArgumentError("Entropy needs at least one site.")
    if set(a) & set(c):
        shared = ", ".join(map(repr, sorted(set(a) & set(c))))
        raise ArgumentError(f"sites and given share {shared}. They must be disjoint.")
    entropies = {frozenset(a + c): 1.0}
    if c:
        entropies[frozenset(c)] = -1.0
    return Objective(entropies, terms=((1.0, _call("Entropy", a, given=c)),))


def Expectation(fn: Callable[[dict[str, Any]], Any]) -> Objective:
    """E[fn(values)], where `fn` maps the values of one sample to a scalar.

    Args:
        fn: Function of a dict from site to the value of one draw, of the site's shape,
            without an axis of samples. In JAX, so that it can be differentiated.

    Returns:
        An objective in the unit of `fn`; weigh it into a sum with others in nats, or
        compare it with a number for a `Constraint`.

    Raises:
        ArgumentError: if `fn` is not callable.

    Example:
        >>> from numpyro_infograd import MI, Expectation
        >>> def power(v):
        ...     return v["x"] ** 2
        >>> MI("x", "y") - 0.1 * Expectation(power)
        MI('x', 'y') - 0.1 * Expectation(power)
    """
    if not callable(fn):
        raise ArgumentError(f"Expectation needs a function of one sample, got {fn!r}.")
    return Objective({}, ((1.0, fn),), ((1.0, expectation_label(fn)),))


def expectation_label(fn: Callable[..., Any]) -> str:
    """What an expectation is called in messages."""
    return f"Expectation({getattr(fn, '__name__', repr(fn))})"


def names(value: Sites, argument: str, what: str = "site name") -> tuple[str, ...]:
    """A name or an iterable of them as a tuple without repetition.

    Raises:
        ArgumentError: if anything in it is not a string.
    """
    listed: tuple[Any, ...] = (value,)
    if isinstance(value, Iterable) and not isinstance(value, str):
        listed = tuple(value)
    for item in listed:
        if not isinstance(item, str):
            raise ArgumentError(
                f"{argument} must be a {what} or a tuple of them, got {item!r}."
            )
    return tuple(dict.fromkeys(listed))


def _scale(factor: Any) -> float | None:
    """What an objective is multiplied by; None for what is no number."""
    if isinstance(factor, (str, bytes)):
        return None
    try:
        return float(factor)
    except (TypeError, ValueError):
        return None


def _add(a: float, b: float) -> float:
    """The sum, or zero where only rounding is left: 0.1 + 0.2 - 0.3 must cancel."""
    total = a + b
    return 0.0 if abs(total) <= 1e-12 * (abs(a) + abs(b)) else total


def _call(function: str, *sets: tuple[str, ...], given: tuple[str, ...]) -> str:
    arguments = [repr(s[0]) if len(s) == 1 else repr(s) for s in sets]
    if given:
        arguments.append(f"given={given[0] if len(given) == 1 else given!r}")
    return f"{function}({', '.join(arguments)})"


class Term(NamedTuple):
    """coefficient * h(sites | given), where `given` is cut loose from hidden noise."""

    coefficient: float
    sites: tuple[str, ...]
    given: tuple[str, ...]


def resolve(objective: Objective, sm: StructuralModel) -> tuple[Term, ...]:
    """Write an objective as few conditional entropies as the model's graph allows.

    h(A,B) and h(A) with opposite coefficients combine to h(B|A) when A separates B
    from the noise that made A: then p(b|a) is an average over noise that A does not
    touch, and the density of A (which may not exist: A may be discrete, or a codeword
    computed from noise) is never needed.
    """
    order = {name: i for i, name in enumerate(sm.sites)}
    left = dict(objective.entropies)
    terms: list[Term] = []
    for joint in sorted(left, key=lambda s: (-len(s), sorted(s))):
        for inner in sorted(left, key=lambda s: (-len(s), sorted(s))):
            paired = left[joint] * left[inner] < 0 and inner < joint
            if not paired or not _separates(sm, joint, inner):
                continue
            size = min(abs(left[joint]), abs(left[inner]))
            coefficient = size if left[joint] > 0 else -size
            left[joint] = _add(left[joint], -coefficient)
            left[inner] = _add(left[inner], coefficient)
            rest = tuple(sorted(joint - inner, key=order.__getitem__))
            given = tuple(sorted(inner, key=order.__getitem__))
            terms.append(Term(coefficient, rest, given))
    for joint, coefficient in left.items():
        if coefficient:
            sites = tuple(sorted(joint, key=order.__getitem__))
            terms.append(Term(coefficient, sites, ()))
    return tuple(terms)


def without_moving_conditions(
    terms: tuple[Term, ...], sm: StructuralModel
) -> tuple[Term, ...]:
    """h(A | B) as h(A, B) - h(B) where a parameter moves B.

    Samples of A and B do not show how the density of A depends on B: that is the
    difference of two scores.
    """
    order = {name: i for i, name in enumerate(sm.sites)}
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], float] = {}
    for coefficient, sites, given in terms:
        parts = [(coefficient, sites, given)]
        if sm.params_of(given):
            joint = tuple(sorted(sites + given, key=order.__getitem__))
            parts = [(coefficient, joint, ()), (-coefficient, given, ())]
        for share, own, rest in parts:
            found[own, rest] = _add(found.get((own, rest), 0.0), share)
    return tuple(Term(c, sites, given) for (sites, given), c in found.items() if c)


def resolve_reversed(objective: Objective, sm: StructuralModel) -> tuple[Term, ...]:
    """The objective as entropies h(A | B) of sites that no parameter reaches.

    Raises:
        ScoreError: if something else is left that a parameter moves.
    """
    order = {name: i for i, name in enumerate(sm.sites)}
    left = dict(objective.entropies)
    terms = []
    for joint in sorted(left, key=lambda s: (-len(s), sorted(s))):
        for inner in sorted(left, key=lambda s: (len(s), sorted(s))):
            own = joint - inner
            if not inner < joint or left[joint] * left[inner] >= 0 or sm.params_of(own):
                continue
            size = min(abs(left[joint]), abs(left[inner]))
            coefficient = size if left[joint] > 0 else -size
            left[joint] = _add(left[joint], -coefficient)
            left[inner] = _add(left[inner], coefficient)
            if sm.params_of(inner):
                parts = (sorted(part, key=order.__getitem__) for part in (own, inner))
                terms.append(Term(coefficient, *map(tuple, parts)))
    for sites, coefficient in left.items():
        if coefficient and sm.params_of(sites):
            raise ScoreError(
                "scores='posterior' needs an objective made of MI(inputs, outputs) "
                "whose inputs no parameter reaches, but it leaves the entropy of "
                f"{sorted(sites)}. Use scores='denoising'."
            )
    return tuple(terms)


class Means(NamedTuple):
    """sum of coefficient * E[program(values)]."""

    coefficients: jax.Array
    programs: tuple[Program, ...]

    def __call__(self, values: Any) -> jax.Array:
        """The mean of each program over a batch of values, (num_programs,)."""
        return jnp.mean(at_each(self, values), axis=1)


@jax.jit
def at_each(means: Means, values: Any) -> jax.Array:
    """Every program at every sample of a batch, (num_programs, num_samples)."""
    found = [jax.vmap(fn)(values) for fn in means.programs]
    return jnp.stack(found) if found else jnp.zeros((0, 1))


def trace_expectations(objective: Objective, sm: StructuralModel) -> Means:
    """The objective's expectations as programs of one sample's values.

    Raises:
        ArgumentError: if one cannot be traced, or does not return a scalar.
    """
    example = {name: sm.example(name) for name in sm.sites}
    holds = (
        f"the values of the sites {', '.join(sm.sites)}. Use these; make a parameter "
        "a site with numpyro.deterministic"
    )
    return Means(
        jnp.asarray([coefficient for coefficient, _ in objective.expectations]),
        tuple(_trace_scalar(fn, example, holds) for _, fn in objective.expectations),
    )


def _trace_scalar(fn: Callable[[Any], Any], example: Any, holds: str) -> Program:
    label = expectation_label(fn)

    def scalar(values: Any) -> Any:
        found = fn(values)
        number = isinstance(found, numbers.Real) or hasattr(found, "dtype")
        if not number or jnp.shape(found) or jnp.iscomplexobj(found):
            shape = f" of shape {jnp.shape(found)}" if number else ""
            raise ArgumentError(
                f"{label} must return a real scalar for one sample, got "
                f"{found!r:.80}{shape}. Sum or average inside the function."
            )
        return found

    with tracing(label, holds):
        return Program.trace(scalar, example)


def _separates(sm: StructuralModel, joint: Joint, inner: Joint) -> bool:
    """Whether no noise reaches both `inner` and the rest of `joint` given `inner`."""
    if any(sm.site_info[s].control_flow for s in inner):
        settable = all(sm.site_info[s].kind == "sample" for s in inner)
        if not settable:
            return False
    rest = sorted(joint - inner)
    if not all(has_density(sm, s) for s in rest):
        return False
    density: Density = sm.density(tuple(rest), tuple(sorted(inner)))
    # The noise that makes `rest` must not reach `inner` either: p(cause | effect) is
    # not the density of the cause.
    own = {appended_name(s) if s in sm.appended else s for s in rest}
    return not (set(density.hidden) | own) & sm.noise_of(inner)


def has_density(sm: StructuralModel, site: str) -> bool:
    """Whether a site has a density of its own, by its law or by appended noise."""
    return sm.site_info[site].kind == "sample" or site in sm.appended
