# SPDX-License-Identifier: Apache-2.0
"""What is known about the sites of a model without drawing them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
import itertools
import math
from typing import Any, NamedTuple

import lazy_loader
import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd.exogenous import Noise

graphviz = lazy_loader.load("graphviz")  # an extra

MOST_STATES = 64  # joint states of discrete sites that are summed over, at most
# Colours of Okabe and Ito, as in `plots`.
_TUNED, _FIXED = "#D55E00", "#56B4E9"


class Site(NamedTuple):
    """Static information about one site."""

    name: str
    kind: str  # "sample" or "deterministic"
    shape: tuple[int, ...]
    dtype: Any
    noise: Noise | None = None
    distribution: str = ""
    reason: str = ""  # why its draws have no derivative in a parameter; "" if they have
    has_law: bool = True  # whether its density or probability is right
    discrete: bool = False
    # Also "positive", "count", "unit", "bounded", "thin", or "mixed" (with atoms).
    support: str = "real"
    state: str = "free"  # "free", "observed", "substituted" or "intervened"
    masked: bool = False  # whether it has a mask, which does not change draws
    scaled: bool = False  # whether it has a scale other than one, which neither does
    control_flow: bool = False  # whether it is inside a scan or a cond
    unconstrain: Any = None  # NumPyro transform from real numbers to the support
    # Values of a discrete site; () if many or unknown, None if entries are dependent.
    choices: tuple[float, ...] | None = ()
    pair: bool = False  # whether a last axis has the real and the imaginary part

    @property
    def size(self) -> int:
        """Number of scalars in one draw of the site."""
        return math.prod(self.shape)

    @property
    def keyed(self) -> bool:
        """Whether it is drawn from a PRNG key."""
        return self.noise is not None and self.noise.kind == "key"

    @property
    def is_float(self) -> bool:
        """Whether its values are real floating-point numbers."""
        return bool(jnp.issubdtype(self.dtype, jnp.floating))

    def numbers(self, values: jax.Array) -> jax.Array:
        """The index of the choice of each discrete value, flat; the value if all whole
        numbers are choices.
        """
        if not self.choices:
            return values.ravel().astype(int)
        table = jnp.asarray(self.choices)
        return jnp.searchsorted(table, values.ravel().astype(table.dtype))

    def values(self, numbers: jax.Array) -> jax.Array:
        """Inverse of `numbers`, in the site's shape."""
        found = jnp.asarray(self.choices)[numbers] if self.choices else numbers
        return found.reshape(self.shape).astype(self.dtype)


def choice_counts(sites: Iterable[Site]) -> tuple[int, ...]:
    """Number of choices of each value of discrete sites; 0 if unlimited."""
    return tuple(len(site.choices or ()) for site in sites for _ in range(site.size))


def choice_numbers(sites: Iterable[Site], values: Mapping[str, Any]) -> jax.Array:
    """The indices of the choices of discrete sites, side by side."""
    flat = [site.numbers(values[site.name]) for site in sites]
    return jnp.concatenate([jnp.zeros(0, int), *flat])


def choice_values(sites: Sequence[Site], numbers: jax.Array) -> dict[str, jax.Array]:
    """Inverse of `choice_numbers`."""
    ends = np.cumsum([site.size for site in sites], dtype=int)
    parts = zip(sites, jnp.split(numbers, ends)[:-1], strict=True)
    return {site.name: site.values(own) for site, own in parts}


def site_noise(site_info: Mapping[str, Site]) -> dict[str, Noise]:
    """The exogenous noise of each site that has some."""
    return {
        name: site.noise
        for name, site in site_info.items()
        if site.noise is not None and site.noise.kind != "none"
    }


def joint_states(
    site_info: Mapping[str, Site], discrete: Iterable[str], most: int = MOST_STATES
) -> dict[str, jax.Array]:
    """Joint states of discrete sites, (num_states, *shape) by site, if there are at
    most so many, else an empty dict.
    """
    sites = [site_info[name] for name in discrete]
    counts = [(len(site.choices or ()), site.size) for site in sites]
    # The power is clipped: a float overflows.
    total = math.prod(float(count) ** min(size, 64) for count, size in counts)
    if not sites or not 1 <= total <= most:
        return {}
    cells = [site.choices or () for site in sites for _ in range(site.size)]
    table = np.array(list(itertools.product(*cells)))
    columns = np.split(table, np.cumsum([site.size for site in sites])[:-1], axis=1)
    return {
        site.name: jnp.asarray(own.reshape(-1, *site.shape), site.dtype)
        for site, own in zip(sites, columns, strict=True)
    }


def count_states(states: Mapping[str, Any]) -> int:
    """Number of joint states; one of no sites."""
    return len(next(iter(states.values()), [0]))


def draw_graph(
    params: Iterable[str],
    site_info: Mapping[str, Site],
    parents: Mapping[str, tuple[str, ...]],
) -> Any:
    """The graph of sites and parameters; see `StructuralModel.render`."""
    if find_spec("graphviz") is None:
        raise ImportError(
            "render needs graphviz: pip install 'numpyro_infograd[plots]'."
        )
    graph = graphviz.Digraph()
    for name in params:
        graph.node(name, shape="plaintext", fontcolor=_TUNED)
    for name, site in site_info.items():
        label = f"{name}\n{site.distribution}" if site.distribution else name
        filled = {"style": "filled", "fillcolor": _FIXED}
        style = {} if site.state == "free" else filled
        shape = "ellipse" if site.kind == "sample" else "box"
        graph.node(name, label=label, shape=shape, **style)
    for name, above in parents.items():
        for parent in above:
            graph.edge(parent, name)
    return graph
