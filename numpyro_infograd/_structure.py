# SPDX-License-Identifier: Apache-2.0
"""A model as a deterministic function of parameters and exogenous noise.

A `StructuralModel` is `values = g(params, noise)`. The distribution of the noise does
not depend on the parameters, so `g` has a derivative along every path; drawn sites have
none (`_chance`). `density` gives the log density of a set of sites. This file is pure
JAX; effect handlers are in `_messenger`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
import functools
from typing import Any, NamedTuple

import jax

from numpyro_infograd._arguments import as_count, as_key
from numpyro_infograd._density import Density, Values, simulate
from numpyro_infograd._noise import (
    NoiseSpec,
    base_points,
    check_noise,
    draw_noise,
    noise_like,
    spare_key,
)
from numpyro_infograd._parameters import check_inside, complete
from numpyro_infograd._program import Program, dependencies_by_name
from numpyro_infograd._sequences import sum_hidden
from numpyro_infograd._sites import Site, draw_graph, site_noise
from numpyro_infograd._text import html_table
from numpyro_infograd.errors import ArgumentError, SiteError
from numpyro_infograd.exogenous import Noise


class Played(NamedTuple):
    """One run of a model with some values given, by site."""

    values: Values
    log_prob: Values  # of the sites that were asked for
    boundary: dict[str, Any]  # where the densities of these jump
    arguments: dict[str, Any]  # of the distributions of these
    # Whether each argument of these breaks its constraint, by site and argument.
    broken: dict[str, dict[str, jax.Array]]


@dataclass(frozen=True, eq=False)
class StructuralModel:
    """A NumPyro model as `values = g(params, noise)`; see `structural_model`.

    Attributes:
        params: Initial value of every parameter, in constrained space.
        constraints: NumPyro constraint of every parameter.
        site_info: `Site` record of every site, in the model's order.
        run: The model with given values of sites, a `Played`; for internal use.
        forward: The traced map from (params, noise) of one sample to its values.
        appended: Variance of the Gaussian noise appended to sites.
        clean: The model before noise was appended.
        copies: Distributions of noise that an edit draws a second time.
        held_from: The model before its drawn sites were held.
        source: The NumPyro model and its arguments, for pickle; None after an edit.
        pairs: Complex parameters that are given here as pairs of real numbers.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1).expand([3]).to_event(1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 2.0) * x.sum(), 1))
        >>> sm = ig.structural_model(model)
        >>> sm
        StructuralModel(
          x: Normal (3,) <- -
          y: Normal () <- x, a
        )
        >>> noise = sm.sample_noise(jax.random.key(0), 1000)
        >>> values = sm.evaluate({"a": 0.0}, noise)
        >>> values["x"].shape, bool((values["y"] == noise["y"]).all())
        ((1000, 3), True)
    """

    params: dict[str, Any]
    constraints: dict[str, Any]
    site_info: dict[str, Site]
    run: Callable[..., Played]
    forward: Program
    appended: dict[str, Any] = field(default_factory=dict)
    clean: StructuralModel | None = None
    copies: dict[str, Noise] = field(default_factory=dict)
    held_from: StructuralModel | None = None
    source: tuple[Any, ...] | None = None
    pairs: frozenset[str] = frozenset()
    _densities: dict[Any, Density] = field(default_factory=dict, init=False)
    _programs: dict[Any, Program] = field(default_factory=dict, init=False)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of all sites, in the model's order."""
        return tuple(self.site_info)

    @property
    def noise(self) -> dict[str, Noise]:
        """Kind and shape of one draw of each site's exogenous noise."""
        laws = site_noise(self.site_info)
        for name in self.appended:
            laws[appended_name(name)] = Noise("normal", self.site_info[name].shape)
        return laws | self.copies

    @property
    def spec(self) -> NoiseSpec:
        """`noise` as a static, hashable value."""
        return tuple(self.noise.items())

    def complete_params(self, params: Mapping[str, Any] | None) -> dict[str, Any]:
        """Add initial values of missing parameters; check names, shapes and numbers."""
        return complete(self.params, params, self.pairs)

    def check_constraints(self, params: Mapping[str, Any]) -> None:
        """Raise for a parameter outside its NumPyro constraint."""
        check_inside(self.constraints, params)

    def sample_noise(
        self, rng_key: jax.Array, num_samples: int, qmc: bool = False
    ) -> dict[str, jax.Array]:
        """Draw the exogenous noise of every site.

        Args:
            rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
            num_samples: Number of draws; a power of two if `qmc`.
            qmc: Whether explicit noise is quasi-random (scrambled Sobol points).

        Returns:
            Dict of arrays of shape (num_samples, *shape), without units; PRNG keys for
            key noise.

        Raises:
            ArgumentError: If `num_samples` is not positive, or not a power of two with
                `qmc`; if `rng_key` is not a key.
        """
        rng_key = as_key(rng_key)
        num_samples = as_count("num_samples", num_samples)
        if qmc and num_samples & (num_samples - 1):
            raise ArgumentError(
                f"qmc=True needs num_samples to be a power of two, got {num_samples}. "
                f"Use {1 << num_samples.bit_length()}."
            )
        points = base_points(self.spec, num_samples) if qmc else None
        # Not the key itself, from which a user may draw too.
        return draw_noise(self.spec, spare_key(rng_key), num_samples, points)

    def evaluate(self, params: Mapping[str, Any], noise: Values) -> Values:
        """Values of all sites: a deterministic function.

        Args:
            params: Parameters in constrained space, each in its shape; a missing one
                takes its initial value.
            noise: Noise of every site, (num_samples, *shape), from `sample_noise`.

        Returns:
            Dict of arrays of shape (num_samples, *shape), in the sites' units.

        Raises:
            ParameterError: For an unknown name, another shape, or a value outside its
                constraint.
            ArgumentError: For noise that is not of the form of `sample_noise`.
        """
        complete = self.complete_params(params)
        self.check_constraints(complete)
        check_noise(self.spec, noise)
        return simulate(self.forward, complete, dict(noise))

    def sample(
        self,
        rng_key: jax.Array,
        num_samples: int,
        params: Mapping[str, Any] | None = None,
    ) -> Values:
        """Draw from the model.

        Args:
            rng_key: A JAX PRNG key; None is `jax.random.key(0)`.
            num_samples: Number of draws.
            params: As in `evaluate`; None uses all initial values.

        Returns:
            Dict of arrays of shape (num_samples, *shape), in the sites' units.

        Raises:
            InfogradError: As in `sample_noise` and `evaluate`.
        """
        return self.evaluate(
            {} if params is None else params, self.sample_noise(rng_key, num_samples)
        )

    # -- structure --------------------------------------------------------------

    @functools.cached_property
    def _reach(self) -> dict[str, tuple[frozenset[str], ...]]:
        """site -> (parameters, noise) on which its value depends, also indirectly."""
        return dependencies_by_name(self.forward)

    @functools.cached_property
    def drawn(self) -> tuple[str, ...]:
        """Sites that a parameter reaches and whose draws have no right derivative.

        A parameter acts on them by their probability (`_chance`).
        """
        return tuple(
            name
            for name, site in self.site_info.items()
            if site.reason and site.has_law
            if site.state == "free" and self._reach[name][0]
        )

    @functools.cached_property
    def _paths(self) -> dict[str, frozenset[str]]:
        """site -> parameters that move its value while the drawn sites are held."""
        if not self.drawn:
            return {name: params for name, (params, _) in self._reach.items()}
        reach = dependencies_by_name(self.forward_given(self.drawn))
        return {name: params for name, (params, _, _) in reach.items()}

    def _named(self, sites: Iterable[str]) -> tuple[str, ...]:
        """One name or several as a tuple, after a check."""
        single = isinstance(sites, str) or not isinstance(sites, Iterable)
        listed: tuple[Any, ...] = (sites,) if single else tuple(sites)
        for name in listed:
            if name not in self.site_info:
                raise SiteError(
                    f"the model has no site {name!r} (it has: "
                    f"{', '.join(self.sites) or 'none'}). Name one of these."
                )
        return listed

    def in_order(self, names: Collection[str]) -> tuple[str, ...]:
        """Sites of these names, in the model's order."""
        return tuple(name for name in self.site_info if name in names)

    def params_of(self, sites: Iterable[str]) -> frozenset[str]:
        """Parameters that reach any of the sites.

        Args:
            sites: A site name or several.

        Returns:
            A set of names.

        Raises:
            SiteError: For a name that no site has.
        """
        return frozenset().union(*(self._reach[s][0] for s in self._named(sites)))

    def moves(self, site: str) -> bool:
        """Whether a parameter moves the value of a site along a path."""
        return bool(self._paths[site])

    def noise_of(self, sites: Iterable[str]) -> frozenset[str]:
        """Names of the noise that reaches any of the sites.

        Args:
            sites: A site name or several.

        Returns:
            A set of names: those of the sampled sites, and of appended noise.

        Raises:
            SiteError: For a name that no site has.
        """
        return frozenset().union(*(self._reach[s][1] for s in self._named(sites)))

    def noise_given(self, held: Sequence[str], sites: Iterable[str]) -> frozenset[str]:
        """Names of the noise that reaches the sites if `held` have fixed values."""
        held, sites = self._named(held), self._named(sites)
        if not held:
            return self.noise_of(sites)
        reach = dependencies_by_name(self.forward_given(held))
        return frozenset().union(*(reach[s][1] for s in sites))

    @functools.cached_property
    def parents(self) -> dict[str, tuple[str, ...]]:
        """Direct parents of every site: sites first, then parameters.

        They are the dependencies of each site if all sites have given values. Inside a
        scan, a site's parents are the sites of the scan whose noise reaches it at any
        step.
        """
        cut = [n for n, s in self.site_info.items() if not s.control_flow]
        program = Program.trace(
            lambda *inputs: self.run(*inputs, cut=True).values,
            *self.example_inputs(cut),
        )
        return {
            name: tuple(
                s
                for s in self.site_info
                if s != name and (s in sites or (s in noises and s not in cut))
            )
            + tuple(p for p in self.params if p in params)
            for name, (params, noises, sites) in dependencies_by_name(program).items()
        }

    def density(
        self, sites: Sequence[str], given: Sequence[str] = (), whole: bool = False
    ) -> Density:
        """The density of `sites` given the values of `given` and the other noise.

        A score does not need the density of a site if that density uses neither hidden
        noise nor the value of a site that depends on a parameter. Such a density is
        left out, so discrete sites and root inputs may be in the set.

        Args:
            sites: A site name or several.
            given: Names of the sites that are held.
            whole: Whether to leave no density out, as the value of an entropy needs.

        Returns:
            A `Density`, as `scores.complete_data_score` takes it.

        Raises:
            SiteError: For a name that no site has.
            ArgumentError: For a site that is in both sets.
        """
        key = (self._named(sites), self._named(given), whole)
        shared = sorted({*key[0]} & {*key[1]})
        if shared:
            raise ArgumentError(
                f"sites and given share {', '.join(map(repr, shared))}. They must be "
                "disjoint."
            )
        if key not in self._densities:
            self._densities[key] = self._density(*key)
        return self._densities[key]

    def _density(
        self, sites: tuple[str, ...], given: tuple[str, ...], whole: bool
    ) -> Density:
        members = sites + given
        wanted = tuple(s for s in sites if self.site_info[s].kind == "sample")
        wanted += tuple(s for s in sites if s in self.appended and s not in wanted)
        moved_sites = tuple(s for s in members if self.moves(s))

        def run(params: Any, noise: Values, values: Values) -> dict[str, Any]:
            played = self.run(params, noise, values, log_prob_sites=wanted)
            return {"log_prob": played.log_prob, "boundary": played.boundary}

        program = Program.trace(run, *self.example_inputs(members))
        reach = dependencies_by_name(
            program, key=lambda path: (path[0].key, path[1].key)
        )
        read = {s: reach["log_prob", s] for s in wanted}
        log_prob_sites = tuple(
            s for s in wanted if whole or read[s][1] or read[s][2] & set(moved_sites)
        )
        hidden = frozenset().union(*(read[s][1] for s in log_prob_sites))
        moving_boundary = (
            s for s in log_prob_sites if any(reach.get(("boundary", s), ()))
        )
        # NumPyro calls the support of a shifted Exponential real; its row knows more.
        kinds = {s: self.site_info[s].support for s in log_prob_sites}
        hard_boundaries = (
            s
            for s, kind in kinds.items()
            if kind not in ("positive", "unit")
            and (kind != "real" or ("boundary", s) in reach)
        )
        found = Density(
            program,
            sites,
            log_prob_sites,
            given,
            moved_sites,
            tuple(n for n in self.noise if n in hidden),
            tuple(moving_boundary),
            tuple(hard_boundaries),
            tuple(s for s in sites if s not in wanted and self.noise_of((s,)) & hidden),
            tuple(self.site_info[s].size for s in members),
            tuple(self.site_info[s].support for s in members),
            self.spec,
        )
        return sum_hidden(found, self)

    def forward_given(self, sites: Sequence[str]) -> Program:
        """The map from (params, noise, values of `sites`) to all values."""
        key = self._named(sites)
        if key not in self._programs:
            self._programs[key] = Program.trace(
                lambda *inputs: self.run(*inputs).values, *self.example_inputs(sites)
            )
        return self._programs[key]

    def example(self, name: str) -> jax.ShapeDtypeStruct:
        """Shape and type of one draw of a site."""
        site = self.site_info[self._named(name)[0]]
        return jax.ShapeDtypeStruct(site.shape, site.dtype)

    def examples(self, names: Iterable[str]) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and type of one draw of each site."""
        return {name: self.example(name) for name in names}

    def example_inputs(self, given: Iterable[str] = ()) -> tuple[Any, Values, Any]:
        """Examples of parameters, noise and values of some sites, for a trace."""
        return self.params, noise_like(self.spec), self.examples(given)

    def render(self) -> Any:
        """The graph of sites and parameters as a `graphviz.Digraph`.

        Sampled sites are ellipses, deterministic sites boxes, and parameters names.
        Observed, substituted and intervened sites are filled.

        Raises:
            ImportError: If the `graphviz` extra is not installed.
        """
        return draw_graph(self.params, self.site_info, self.parents)

    def _rows(self) -> list[tuple[str, str, str]]:
        return [
            (
                name,
                f"{site.distribution or site.kind} {site.shape}",
                ", ".join(self.parents[name]) or "-",
            )
            for name, site in self.site_info.items()
        ]

    def __repr__(self) -> str:
        rows = [f"  {name}: {what} <- {why}" for name, what, why in self._rows()]
        return "StructuralModel(\n" + "\n".join(rows) + "\n)"

    def _repr_html_(self) -> str:
        head = ("site", "distribution", "made from")
        return html_table("StructuralModel", [head, *self._rows()])


def appended_name(site: str) -> str:
    """Name of the noise appended to a site."""
    return f"{site}+noise"
