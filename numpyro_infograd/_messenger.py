# SPDX-License-Identifier: Apache-2.0
"""The effect handler that traces a model.

It supplies every value: a sample site is computed from its exogenous noise, or takes a
given value; a parameter takes a given value. There is no `seed` handler, so a model
cannot use randomness outside of sample sites without an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
from contextvars import ContextVar
import threading
from typing import Any

import numpy as np

import jax
from jax.extend.core import get_opaque_trace_state
import jax.numpy as jnp

from numpyro.distributions import Delta, MaskedDistribution, Unit, constraints
from numpyro.primitives import _PYRO_STACK, Messenger

from numpyro_infograd._arguments import is_real
from numpyro_infograd._doors import warn
from numpyro_infograd._noise import one_draw
from numpyro_infograd._parameters import bijection, constraint_of
from numpyro_infograd._sites import Site
from numpyro_infograd._structure import Played
from numpyro_infograd.errors import UNSTEADY, ArgumentError, ModelError
from numpyro_infograd.exogenous import Noise, lookup
from numpyro_infograd.exogenous.rows import innermost, leaf_of

_FEW = 1024  # listed values of a discrete distribution, at most
# Words in the names of supports with fewer dimensions than values, so without a density
# on R^d.
_THIN = (
    "simplex",
    "corr",
    "sphere",
    "zerosum",
    "lowercholesky",
    "positivedefinite(",
    "positivesemidefinite",
)
# Called with the given values and the operands of each scan of a model that runs.
scan_watcher: ContextVar[Any] = ContextVar("scan_watcher", default=lambda *_: None)
# NumPyro's stack of handlers is global, so only one thread may run a model.
_stack = threading.RLock()
_HARMLESS = ("trace", "seed", "block", "Generate", "_Isolate")  # change no numbers


class _Isolate(Messenger):
    """Hides a model's messages from the handlers around it."""

    def process_message(self, msg: Any) -> None:
        msg["stop"] = True


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """A context for running a model: without other handlers, and without threads."""
    with _stack, _Isolate():
        yield


def warn_of_handlers() -> None:
    """Warn of handlers around a call that would change a model, but do not reach it."""
    with _stack:
        active = [type(handler).__name__ for handler in _PYRO_STACK]
    for name in dict.fromkeys(active):
        if name not in _HARMLESS:
            warn(
                f"the NumPyro handler {name!r} is active around this call, but does "
                "not reach the model. Apply it to the model, as in "
                "handlers.substitute(model, data), and pass the result."
            )


class _Give(Messenger):
    """Supplies given values at one step of a scan."""

    def __init__(self, given: Mapping[str, jax.Array], step: Any) -> None:
        self.given, self.step = given, step
        super().__init__()

    def process_message(self, msg: Any) -> None:
        free = msg["type"] == "sample" and msg["value"] is None
        if (free or msg["type"] == "deterministic") and msg["name"] in self.given:
            msg["value"] = self.given[msg["name"]][self.step]


class Generate(Messenger):
    """Supplies every value of a model run, and records sites and parameters.

    With `noise=None` only the records are used: sites are computed from one draw of
    their noise, and parameters take the model's initial values.
    """

    def __init__(
        self,
        params: Mapping[str, Any] | None = None,
        noise: Mapping[str, jax.Array] | None = None,
        given: Mapping[str, jax.Array] | None = None,
        log_prob_sites: tuple[str, ...] = (),
        cut: bool = False,
        rng_key: jax.Array | None = None,
    ) -> None:
        self.params, self.noise, self.given = params, noise, given or {}
        self.log_prob_sites, self.cut, self.rng_key = log_prob_sites, cut, rng_key
        self.sites: dict[str, Site] = {}
        self.param_values: dict[str, Any] = {}
        self.unset = ""  # name of the last parameter, if it has no value
        self.constraints: dict[str, Any] = {}
        self.played = Played({}, {}, {}, {}, {})
        self._laws: dict[str, Noise] = {}
        self._states: dict[str, str] = {}
        self._held: set[str] = set()
        super().__init__()

    def __str__(self) -> str:
        """The model and its last site, for messages."""
        return "the model" + "".join(f", after site {s!r}," for s in [*self.sites][-1:])

    def __enter__(self) -> Any:
        self._level = get_opaque_trace_state()
        return super().__enter__()

    # -- messages of the model -----------------------------------------------------

    def process_message(self, msg: Any) -> None:
        is_site = msg["type"] in ("sample", "deterministic")
        if (is_site or msg["type"] == "param") and not isinstance(msg["name"], str):
            raise ModelError(
                f"the model has a site or a parameter named {msg['name']!r}: names are "
                "strings."
            )
        if is_site:
            self._check_site(msg["name"])
        handle = getattr(self, f"_on_{msg['type']}", None)
        if handle is not None:
            handle(msg)

    def _check_site(self, name: str) -> None:
        if name in self.sites:
            raise ModelError(
                f"site {name!r} occurs twice. Give every site a different name."
            )
        if get_opaque_trace_state() != self._level:
            raise ModelError(
                f"site {name!r} is inside a JAX transformation (jax.vmap, jax.jit, "
                "jax.lax.scan), from which its value cannot be recorded. Use "
                "numpyro.plate in place of vmap, and scan and cond of "
                "numpyro.contrib.control_flow."
            )

    def postprocess_message(self, msg: Any) -> None:
        exploring = msg["type"] == "param" and self.params is None
        if exploring and msg["name"] not in self._held:
            name, value = msg["name"], msg["value"]
            # None if flax_module looks for a parameter before it makes one.
            self.unset = name if value is None else ""
            constraint = constraint_of(name, value, msg["kwargs"].get("constraint"))
            if constraint is not None:
                self.param_values[name] = value
                self.constraints[name] = constraint
                if isinstance(value, np.ndarray):  # which a traced number cannot index
                    msg["value"] = jnp.asarray(value)

    def _on_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if _is_factor(fn, bool(msg.get("_control_flow_done"))):
            raise ModelError(
                f"site {name!r} is a factor: a numpyro.factor statement, a Unit, or a "
                "Delta with a log_density. A factor reweights runs of a model, but "
                "draws of a generative model have no weights. Express it as a sample "
                "site, or remove it."
            )
        if msg.get("_control_flow_done"):
            state = self._states.get(name, "observed")
        elif "_intervener_id" in msg:
            state = "intervened"
        elif msg["is_observed"]:
            state = "observed"
        else:
            state = "free" if msg["value"] is None else "substituted"
        made = msg["value"]
        if made is None:
            made = self._draw(name, fn, msg["kwargs"]["sample_shape"])
        msg["value"] = self._keep(name, made, not msg.get("_control_flow_done"))
        msg["intermediates"] = []
        self._describe(name, fn, msg, state)
        if name in self.log_prob_sites:
            self._score(name, fn, msg["value"])

    def _draw(self, name: str, fn: Any, sample_shape: tuple[int, ...]) -> jax.Array:
        """A site's value from its noise."""
        law = self._laws[name] = _noise_of(name, fn, sample_shape)
        return _transform(name, fn, self._noise(name, law), sample_shape)

    def _noise(self, name: str, law: Noise) -> Any:
        if self.noise is None:  # not zero, where a model may divide by zero
            return one_draw(law, seed=len(self._laws))
        return self.noise.get(name)

    def _keep(self, name: str, made: Any, settable: bool) -> Any:
        """Record a value, and return the value for the model: made, or given."""
        passed = self.given.get(name, made) if settable else made
        self.played.values[name] = jnp.asarray(made if self.cut else passed)
        return passed

    def _score(self, name: str, fn: Any, value: jax.Array) -> None:
        law = lookup.density(fn)
        # `_checks` raises an error if the objective needs what is missing.
        with contextlib.suppress(NotImplementedError):
            self.played.log_prob[name] = lookup.log_probs(law, value)
        self.played.boundary[name] = lookup.boundary(law)
        self.played.broken[name] = lookup.broken_constraints(fn)
        numbers = [x for x in jax.tree.leaves(fn) if is_real(x)]
        self.played.arguments[name] = numbers or [self.played.log_prob.get(name, 0.0)]

    def _describe(self, name: str, fn: Any, msg: Any, state: str) -> None:
        value = jnp.asarray(msg["value"])
        self.sites[name] = Site(
            name=name,
            # A Delta has no density, so it counts as computed.
            kind="deterministic" if _class_name(fn) == "Delta" else "sample",
            shape=value.shape,
            dtype=value.dtype,
            noise=self._laws.get(name) if state in ("free", "intervened") else None,
            distribution=_class_name(fn),
            reason=lookup.reason_not_reparametrized(fn),
            has_law=lookup.has_law(fn),
            discrete=bool(fn.support.is_discrete),
            support="mixed" if lookup.has_atoms(fn) else _support(fn.support),
            state=state,
            masked=_is_masked(fn),
            scaled=msg.get("scale") is not None and not _is_all(msg["scale"], 1),
            control_flow=bool(msg.get("_control_flow_done")),
            unconstrain=_unconstrain(fn),
            choices=_choices(fn),
        )

    def _on_deterministic(self, msg: Any) -> None:
        name = msg["name"]
        done = bool(msg.get("_control_flow_done"))
        msg["value"] = self._keep(name, msg["value"], not done)
        value = jnp.asarray(msg["value"])
        self.sites[name] = Site(
            name, "deterministic", value.shape, value.dtype, control_flow=done
        )

    def _on_param(self, msg: Any) -> None:
        if msg.get("_control_flow_done"):
            raise ModelError(
                f"parameter {msg['name']!r} is declared inside a scan or a cond, where "
                "it cannot get a value. Write numpyro.param before the scan or cond, "
                "and use its value inside."
            )
        if msg["value"] is not None:  # a handler fixes it, so it is not a parameter
            self._held.add(msg["name"])
        elif self.params is not None and msg["name"] in self.params:
            msg["value"] = self.params[msg["name"]]

    def _on_control_flow(self, msg: Any) -> None:
        """Supply values inside a scan or a cond, through its substitute stack.

        Setting a value on the sites that it returns would change only the record, not
        the values that the model uses.
        """
        is_scan = "history" in msg["kwargs"]
        length = 0
        if is_scan:
            scan_watcher.get()(self.given, *msg["args"])
            fn, init, xs, length, reverse = msg["args"]
            length = jax.tree.leaves(xs)[0].shape[0] if length is None else length
            each = xs, jnp.arange(length)
            msg["args"] = self._with_given(fn), init, each, length, reverse

        def supply(site: Any) -> Any:
            name = site["name"]
            if site["type"] != "sample":
                return self.given.get(name)  # in a cond
            self._states[name] = "free"
            if site["value"] is not None:
                fixed = "observed" if site["is_observed"] else "substituted"
                self._states[name] = fixed
                return None
            step = site["infer"].get("_scan_current_index")
            fn, shape = site["fn"], site["kwargs"]["sample_shape"]
            law = _noise_of(name, fn, shape)
            stacked = (length,) if is_scan and law.kind != "none" else ()
            self._laws[name] = law._replace(shape=stacked + law.shape)
            noise = self._noise(name, law)
            if self.noise is not None and step is not None and noise is not None:
                noise = noise[step]
            made = _transform(name, fn, noise, shape)
            return made if is_scan else self.given.get(name, made)

        msg["kwargs"]["substitute_stack"].append(("substitute", supply))

    def _with_given(self, fn: Any) -> Any:
        """The function of a scan with given values, from an index beside its inputs."""

        def step(carry: Any, both: Any) -> Any:
            x, index = both
            with _Give(self.given, index):
                return fn(carry, x)

        return step

    # -- constructs that raise an error --------------------------------------------

    def _on_plate(self, msg: Any) -> None:
        size, subsample_size = msg["args"]
        if subsample_size is not None and subsample_size != size:
            raise ModelError(
                f"plate {msg['name']!r} is subsampled ({subsample_size} of {size}), "
                "but information is a property of the whole model: leave out "
                "subsample_size."
            )

    def _on_mutable(self, msg: Any) -> None:
        raise ModelError(
            f"{msg['name']!r} is mutable state (batch normalisation, dropout "
            "counters), but a run of the model must not change the next run: freeze "
            "it, or use a module without state."
        )

    def _on_prng_key(self, msg: Any) -> None:
        if self.rng_key is not None:
            self.rng_key, msg["value"] = jax.random.split(self.rng_key)
        elif get_opaque_trace_state() != self._level:
            raise ModelError(
                "the model samples in a scan or cond inside another one, where its "
                "noise cannot be supplied. Write the inner one as a Python loop, or as "
                "one site of more dimensions."
            )
        else:
            raise ModelError(
                "the model draws from numpyro.prng_key() outside a sample site, or at "
                "a site that handlers.block hides, so its noise cannot be supplied. "
                "Write it as a numpyro.sample that is not hidden."
            )


def _noise_of(name: str, fn: Any, sample_shape: tuple[int, ...]) -> Noise:
    try:
        return lookup.noise_of(fn, sample_shape)
    except ModelError as error:
        raise ModelError(f"site {name!r}: {error}") from None


def _transform(name: str, fn: Any, noise: Any, sample_shape: tuple[int, ...]) -> Any:
    try:
        return lookup.transform(fn, noise, sample_shape)
    except ArgumentError as error:  # the shape of noise that another run asked for
        raise ModelError(
            f"two runs of the model give site {name!r} different shapes: {UNSTEADY}"
        ) from error
    except (ImportError, NotImplementedError) as error:  # of NumPyro's own sampler
        missing = str(error).rstrip(".") or "a part of it has no sampler or no icdf"
        raise ModelError(
            f"site {name!r} cannot be drawn, because NumPyro's sampler of "
            f"{_class_name(fn)} fails: {missing}. Use a distribution for which "
            "fn.sample(jax.random.key(0)) works."
        ) from error


def _support(support: Any) -> str:
    """The kind of a support, as in `Site`."""
    support = innermost(support)
    if any(word in repr(support).lower() for word in _THIN):
        return "thin"
    if support in (constraints.real, constraints.real_matrix):
        return "real"
    if support in (constraints.positive, constraints.nonnegative):
        return "positive"
    if support is constraints.nonnegative_integer:
        return "count"
    return "unit" if support is constraints.unit_interval else "bounded"


def _unconstrain(fn: Any) -> Any:
    """NumPyro's transform from real numbers to the support, or None.

    None for a support that depends on a traced value or has atoms, and for a support
    that NumPyro calls real although the density has an edge, such as that of a shifted
    Beta.
    """
    support = fn.support
    if lookup.has_atoms(fn):
        return None
    moves = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(support))
    if support.is_discrete or moves:
        return None
    if _support(support) == "real" and lookup.has_edge(lookup.density(fn)):
        return None
    return bijection(support)


def _choices(fn: Any) -> tuple[float, ...] | None:
    """The sorted values of a discrete distribution if they are known and few, else ().

    None for a vector whose entries depend on each other, such as counts with a fixed
    sum.
    """
    fn = leaf_of(fn)
    if fn.event_dim and fn.support.is_discrete:
        return None
    if not fn.has_enumerate_support:
        return ()
    try:
        with jax.ensure_compile_time_eval():
            found = np.asarray(fn.enumerate_support(expand=False)).ravel()
    except (NotImplementedError, jax.errors.JAXTypeError):
        return ()  # their number depends on a traced value
    return tuple(np.unique(found).tolist()) if len(found) <= _FEW else ()


def _class_name(fn: Any) -> str:
    """Name of the distribution's class, without NumPyro's wrappers."""
    return type(leaf_of(fn)).__name__


def _is_factor(fn: Any, control_flow: bool) -> bool:
    """Whether a distribution draws nothing, but weighs a run of the model.

    A scan stacks the log density of a Delta, so that its value is not known.
    """
    leaf = leaf_of(fn)
    weighs = isinstance(leaf, Delta) and not _is_all(leaf.log_density, 0)
    return isinstance(lookup.density(fn), Unit) or (weighs and not control_flow)


def _is_masked(fn: Any) -> bool:
    """Whether the distribution has a mask that is not known to be all true."""
    while hasattr(fn, "base_dist"):
        if isinstance(fn, MaskedDistribution) and not _is_all(fn._mask, 1):
            return True
        fn = fn.base_dist
    return False


def _is_all(array: Any, number: float) -> bool:
    """Whether an array is known to hold this number alone."""
    is_known = not isinstance(array, jax.core.Tracer)
    return is_known and bool(np.all(np.asarray(array) == number))
