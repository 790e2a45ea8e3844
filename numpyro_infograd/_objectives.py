# SPDX-License-Identifier: Apache-2.0
"""Objectives: mutual informations, entropies, expectations, and their sums.

Every objective reduces to a signed sum of joint entropies plus expectations,

    I(A;B|C) = h(A,C) + h(B,C) - h(A,B,C) - h(C),

in which equal terms cancel. `_terms` combines them on a model. A directed information
also has an entropy of outputs that are causally conditioned on inputs (`Causal`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
import math
import numbers
from typing import Any, NamedTuple, NoReturn

import jax

from numpyro_infograd._arguments import is_number
from numpyro_infograd._doors import check_outside, public, warn
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError

Sites = str | Iterable[str]
Joint = frozenset[str]
_MOST_NAMED = 32  # uses of a directed information as named sites


class Causal(NamedTuple):
    """The sites of h(outputs || inputs | given); outputs and inputs in order of time.

    Outputs and inputs each hold one site for each use, or one site whose first axis is
    time.
    """

    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    given: tuple[str, ...]


class Objective:
    """A signed sum of joint entropies and expectations, in nats.

    Built from `MI`, `Entropy` and `Expectation` by `+`, `-`, scalar `*` and `sum`.

    Attributes:
        entropies: Coefficient of the joint entropy of each set of sites.
        expectations: Pairs (coefficient, function of one sample's values).
        terms: Pairs (coefficient, text) for the repr.
        causal: Coefficient of each causally conditioned entropy.

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
        causal: dict[Causal, float] | None = None,
    ) -> None:
        self.entropies = {s: c for s, c in entropies.items() if c != 0}
        self.expectations = tuple((c, f) for c, f in expectations if c != 0)
        self.terms = terms
        self.causal = {s: c for s, c in (causal or {}).items() if c != 0}

    def __add__(self, other: Any) -> Objective:
        if isinstance(other, numbers.Number):
            if other == 0:
                return self  # for the built-in sum
            raise ArgumentError(
                f"{brief(self)} has no constant, which would move no maximum. Leave "
                "the number out, or move it to the bound of a constraint."
            )
        if not isinstance(other, Objective):
            return NotImplemented
        return Objective(
            _sum(self.entropies, other.entropies),
            self.expectations + other.expectations,
            self.terms + other.terms,
            _sum(self.causal, other.causal),
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
            {s: scale * c for s, c in self.causal.items()},
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
        return -(-self + other)

    def __rsub__(self, other: Any) -> Objective:
        return -self + other

    def __le__(self, bound: Any) -> Constraint:
        return Constraint(self, "<=", bound)

    def __ge__(self, bound: Any) -> Constraint:
        return Constraint(self, ">=", bound)

    def __lt__(self, bound: Any) -> NoReturn:
        raise TypeError(
            f"{self!r} has no constraint < or > ({brief(bound)}): write <= or >=."
        )

    __gt__ = __lt__

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites of the entropies, sorted."""
        causal = [name for sets in self.causal for names in sets for name in names]
        return tuple(sorted(frozenset(causal).union(*self.entropies)))

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
        expectations: An objective with only expectations.
        sense: "<=" or ">=".
        bound: A finite number, in the unit of the expectations.

    Raises:
        ArgumentError: For an entropy on the left, a right side that is not a finite
            number, or another sense.

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
        if self.expectations.sites or not self.expectations.expectations:
            raise ArgumentError(
                f"{self!r}: only expectations can be constrained. Add an information "
                "to the objective with a weight instead."
            )

    @property
    def sign(self) -> float:
        """The sign of an excess: 1 for "<=", -1 for ">="."""
        return 1.0 if self.sense == "<=" else -1.0

    def __repr__(self) -> str:
        return f"{self.expectations!r} {self.sense} {float(self.bound):g}"

    def __bool__(self) -> bool:
        raise TypeError(
            f"{self!r} has no truth value: pass it in subject_to. Write a range as two "
            "constraints, [low <= f, f <= high]."
        )


def check_is_objective(value: Any, name: str = "objective") -> None:
    """Raise unless `value` is an objective."""
    if isinstance(value, Objective):
        return
    are_names = isinstance(value, (str, tuple, list))
    advice = " Write ig.MI('x', 'y') for information of sites." if are_names else ""
    raise ArgumentError(
        f"{name} must be built from MI, Entropy and Expectation, got {value!r}.{advice}"
    )


@public(inside=True)
def MI(inputs: Sites, outputs: Sites, given: Sites = ()) -> Objective:
    """Mutual information I(inputs; outputs | given), in nats.

    Args:
        inputs: A site name or several.
        outputs: A site name or several.
        given: Sites to condition on; none by default.

    Returns:
        An objective; it can be added to others and multiplied by numbers.

    Raises:
        ArgumentError: If inputs or outputs are empty, or two sets share a site.

    Example:
        >>> from numpyro_infograd import MI
        >>> secret = MI("x", "y") - MI("x", ("tap", "z"), given="h")
        >>> secret
        MI('x', 'y') - MI('x', ('tap', 'z'), given='h')
        >>> secret.sites
        ('h', 'tap', 'x', 'y', 'z')
    """
    a, b, c = _ends("MI", inputs, outputs, given)
    signed = (a + c, 1.0), (b + c, 1.0), (a + b + c, -1.0), (c, -1.0)
    entropies = {frozenset(joint): sign for joint, sign in signed if joint}
    return Objective(entropies, terms=((1.0, _call("MI", a, b, given=c)),))


@public(inside=True)
def DirectedInformation(inputs: Sites, outputs: Sites, given: Sites = ()) -> Objective:
    """Directed information I(inputs -> outputs | given) of uses in time, in nats.

    I(X^n -> Y^n) = sum_t I(X^t; Y_t | Y^(t-1)) = h(Y^n) - sum_t h(Y_t | X^t, Y^(t-1)),

    by Massey, "Causality, feedback and directed information", 1990. It is the
    information that a channel carries if its inputs depend on earlier outputs
    (feedback). Without feedback it is the mutual information. Divide it by n for the
    rate of one use.

    Args:
        inputs: The site of each use, in order of time; or one site whose first axis is
            time, as for sites inside a `scan`. More than 32 named sites take minutes,
            and give a warning.
        outputs: The same for the outputs. An output may depend on the inputs up to its
            use, and an input on the outputs before its use.
        given: Sites to condition on, such as a fading that the receiver knows.

    Returns:
        An objective; it can be added to others and multiplied by numbers.

    Raises:
        ArgumentError: If inputs or outputs are empty, differ in number, or two sets
            share a site.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():  # an input corrects for the noise that it saw
        ...     y = 0.0
        ...     for t in range(3):
        ...         w = numpyro.sample(f"w{t}", dist.Normal(0, 1))
        ...         x = numpyro.deterministic(f"x{t}", w - 0.5 * y)
        ...         y = numpyro.sample(f"y{t}", dist.Normal(x, 1))
        >>> xs, ys = ("x0", "x1", "x2"), ("y0", "y1", "y2")
        >>> ig.estimate(model, ig.DirectedInformation(xs, ys))  # 3 log(2) / 2
        1.03972 nats (exact)
    """
    a, b, c = _ends("DirectedInformation", inputs, outputs, given)
    if len(a) != len(b):
        raise ArgumentError(
            f"DirectedInformation got {len(a)} inputs and {len(b)} outputs. Name one "
            "input and one output for each use, or one of each whose first axis is "
            "time."
        )
    if len(a) > _MOST_NAMED:
        warn(
            f"DirectedInformation got {len(a)} named uses, and more than {_MOST_NAMED} "
            "take minutes. Write the uses as a numpyro.contrib.control_flow.scan, and "
            "pass the site of its inputs and that of its outputs: "
            "ig.DirectedInformation('x', 'y')."
        )
    text = _call("DirectedInformation", a, b, given=c)
    return Objective(_given(b, c), (), ((1.0, text),), {Causal(b, a, c): -1.0})


@public(inside=True)
def Entropy(sites: Sites, given: Sites = ()) -> Objective:
    """Differential entropy h(sites | given), in nats.

    Args:
        sites: A site name or several.
        given: Sites to condition on.

    Returns:
        An objective. Unlike an information, it depends on the units of the sites.

    Raises:
        ArgumentError: If `sites` is empty or shares a site with `given`.

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
    if shared := ", ".join(map(repr, sorted(set(a) & set(c)))):
        raise ArgumentError(f"sites and given share {shared}. They must be disjoint.")
    return Objective(_given(a, c), terms=((1.0, _call("Entropy", a, given=c)),))


@public(inside=True)
def Expectation(fn: Callable[[dict[str, Any]], Any]) -> Objective:
    """E[fn(values)], where `fn` maps the values of one sample to a scalar.

    Args:
        fn: Function, written in JAX, of a dict from site to the value of one draw, in
            the site's shape without an axis of samples.

    Returns:
        An objective in the unit of `fn`. Add it with a weight to objectives in nats, or
        compare it with a number for a `Constraint`.

    Raises:
        ArgumentError: If `fn` is not callable.

    Example:
        >>> from numpyro_infograd import MI, Expectation
        >>> def power(v):
        ...     return v["x"] ** 2
        >>> MI("x", "y") - 0.1 * Expectation(power)
        MI('x', 'y') - 0.1 * Expectation(power)
    """
    if not callable(fn):
        name = fn if isinstance(fn, str) else "x"
        raise ArgumentError(
            f"Expectation needs a function of one sample, got {brief(fn)}. Write "
            f"Expectation(lambda v: v[{name!r}])."
        )
    return Objective({}, ((1.0, fn),), ((1.0, expectation_label(fn)),))


def expectation_label(fn: Callable[..., Any]) -> str:
    """Name of an expectation in messages."""
    return f"Expectation({getattr(fn, '__name__', repr(fn))})"


def names(value: Sites, argument: str, what: str = "site name") -> tuple[str, ...]:
    """A name or several names as a tuple without repetition."""
    nothing = value is None and argument == "given"
    listed: tuple[Any, ...] = () if nothing else (value,)
    if isinstance(value, Iterable) and not isinstance(value, str):
        listed = tuple(value)
    for item in listed:
        if not isinstance(item, str):
            hint = " Arguments of the model go into model_args=(...)."
            raise ArgumentError(
                f"{argument} must be a {what} or a tuple of them, got {brief(item)}."
                f"{hint if is_number(item) else ''}"
            )
    return tuple(dict.fromkeys(listed))


def _ends(
    what: str, inputs: Sites, outputs: Sites, given: Sites
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The sets of an information."""
    a, b, c = names(inputs, "inputs"), names(outputs, "outputs"), names(given, "given")
    for left, right, where in (
        (a, b, "inputs and outputs"),
        (a, c, "inputs and given"),
        (b, c, "outputs and given"),
    ):
        if shared := set(left) & set(right):
            raise ArgumentError(
                f"{where} share {', '.join(map(repr, sorted(shared)))}. The sets of "
                f"{what} must be disjoint."
            )
    if not a or not b:
        raise ArgumentError(
            f"{what} needs at least one input and one output site, got inputs={a}, "
            f"outputs={b}."
        )
    return a, b, c


def _given(sites: tuple[str, ...], given: tuple[str, ...]) -> dict[Joint, float]:
    """h(sites | given) as joint entropies."""
    return {frozenset(sites + given): 1.0} | ({frozenset(given): -1.0} if given else {})


def _scale(factor: Any) -> float | None:
    """A factor as a float; None if it is not a number."""
    if isinstance(factor, (str, bytes)):
        return None
    if isinstance(factor, jax.core.Tracer):
        check_outside("the product of an objective and a traced number")
    try:
        return float(factor)
    except (TypeError, ValueError):
        return None


def _sum(left: dict[Any, float], right: dict[Any, float]) -> dict[Any, float]:
    """The sum of the coefficients of each set."""
    return {s: plus(left.get(s, 0.0), right.get(s, 0.0)) for s in left | right}


def plus(a: float, b: float) -> float:
    """The sum; zero if only rounding is left, so that 0.1 + 0.2 - 0.3 cancels."""
    total = a + b
    return 0.0 if abs(total) <= 1e-12 * (abs(a) + abs(b)) else total


def _call(function: str, *sets: tuple[str, ...], given: tuple[str, ...]) -> str:
    arguments = [repr(s[0]) if len(s) == 1 else repr(s) for s in sets]
    if given:
        arguments.append(f"given={given[0] if len(given) == 1 else given!r}")
    return f"{function}({', '.join(arguments)})"
