# SPDX-License-Identifier: Apache-2.0
"""Graph edits: a structural model from another one.

Noise appended to sites (identity III), shuffled inputs (the null hypothesis), a path of
parameters whose only parameter is the position on it, drawn sites that are held, one
more site that is computed from all others, computed sites as discrete ones, and complex
sites and complex parameters as pairs of real numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
import math
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro.distributions import constraints

from numpyro_infograd._density import Values, num_draws, simulate
from numpyro_infograd._noise import noise_like, probe_noise
from numpyro_infograd._pairs import with_pairs, without_pairs
from numpyro_infograd._program import Program
from numpyro_infograd._sites import Site
from numpyro_infograd._structure import Played, StructuralModel, appended_name
from numpyro_infograd.errors import ArgumentError, ParameterError, SiteError
from numpyro_infograd.exogenous import Noise

POSITION = "position"
FEW = 64  # different values of a computed site that is discrete, at most


def append_noise(sm: StructuralModel, variances: Mapping[str, Any]) -> StructuralModel:
    """The same model with Gaussian noise appended to the named sites.

    The noise is added to the reported value of a site, not inside the model: later
    sites use the value without noise. Denoising score matching and noise annealing use
    this (identity III). A variance is one number, or an array of the site's shape.
    """
    for name in variances:
        if name not in sm.site_info:
            raise SiteError(
                f"append_noise names {name!r}, which is not a site of the model "
                f"(it has: {', '.join(sm.sites)})."
            )
    for name, variance in variances.items():
        array, shape = np.asarray(variance), sm.site_info[name].shape
        if not np.all((array > 0) & np.isfinite(array)):
            raise ArgumentError(
                f"append_noise gives {name!r} a variance of {variance}: it must be "
                "positive and finite."
            )
        if array.shape not in ((), shape):
            raise ArgumentError(
                f"append_noise gives {name!r} variances of shape {array.shape}: "
                f"they must be one number or have the site's shape, {shape}."
            )
    if sm.clean is not None:  # variances of independent noises add up
        total = dict(sm.appended)
        for name, variance in variances.items():
            total[name] = total.get(name, 0.0) + variance
        return append_noise(sm.clean, total)
    scales = {name: jnp.sqrt(jnp.asarray(v)) for name, v in variances.items()}
    inner = sm.run

    def run(params, noise, given, log_prob_sites=(), cut=False):
        # With cut, later sites use the given value, and the computed one is reported.
        clean_given = {k: v for k, v in given.items() if cut or k not in scales}
        own = tuple(s for s in log_prob_sites if s not in scales)
        clean_noise = {k: v for k, v in noise.items() if k not in extra}
        played = inner(params, clean_noise, clean_given, log_prob_sites=own, cut=cut)
        values, log_prob = dict(played.values), dict(played.log_prob)
        for name, scale in scales.items():
            clean = values[name]
            made = clean + scale * noise[appended_name(name)]
            values[name] = made if cut else given.get(name, made)
            if name in log_prob_sites:
                z = (values[name] - clean) / scale
                constant = jnp.log(scale) + 0.5 * math.log(2 * math.pi)
                log_prob[name] = -(0.5 * z**2 + constant)
        return played._replace(values=values, log_prob=log_prob)

    extra = {appended_name(name) for name in scales}
    float_type = jnp.zeros(()).dtype
    noisy = {
        name: sm.site_info[name]._replace(
            dtype=jnp.result_type(sm.site_info[name].dtype, float_type),
            discrete=False,
            choices=(),
            support="real",
        )
        for name in scales
    }
    return _edited(sm, run, noisy, appended=dict(variances), clean=sm)


def restrict_to_path(
    sm: StructuralModel, way: Callable[[jax.Array], dict[str, Any]]
) -> StructuralModel:
    """The same model with one parameter, "position", on a path of parameters."""

    def run(params, noise, given, **options):
        return sm.run(way(params[POSITION]), noise, given, **options)

    return _edited(
        sm,
        run,
        params={POSITION: jnp.asarray(0.5)},
        constraints={POSITION: constraints.real},
        clean=sm.clean and restrict_to_path(sm.clean, way),
    )


def shuffle_inputs(
    sm: StructuralModel, inputs: tuple[str, ...], given: tuple[str, ...] = ()
) -> StructuralModel:
    """The same model, in which all other sites are made from a second draw of inputs.

    The noise of the inputs is drawn twice: once for the inputs, and once for all other
    sites. So I(inputs; outputs | given) is zero, but the inputs and the other sites
    keep their distributions. An estimate of this information is the estimator's error.
    """
    twice = sm.noise_of(inputs)
    shared = sorted(twice & sm.noise_of(given))
    if shared:
        raise ArgumentError(
            f"inputs and given both depend on the noise of site {shared[0]!r}, so "
            "shuffled inputs would change the distribution of the given sites. Leave "
            "out given, or use other inputs."
        )
    copies = {name: f"{name}+copy" for name in sm.noise if name in twice}
    laws = {copy: sm.noise[name] for name, copy in copies.items()}
    inner = sm.run

    def run(params, noise, given, log_prob_sites=(), cut=False):
        first = {k: v for k, v in given.items() if k in inputs}
        rest = {k: v for k, v in given.items() if k not in inputs}
        own = {k: v for k, v in noise.items() if k not in laws}
        other = own | {name: noise[copy] for name, copy in copies.items()}
        here = tuple(s for s in log_prob_sites if s in inputs)
        there = tuple(s for s in log_prob_sites if s not in inputs)
        a: Any = inner(params, own, first, log_prob_sites=here, cut=cut)
        b: Any = inner(params, other, rest, log_prob_sites=there, cut=cut)
        parts = (
            {k: (x if k in inputs else y)[k] for k in {**x, **y}}
            for x, y in zip(a, b, strict=True)
        )
        return Played(*parts)

    clean = sm.clean and shuffle_inputs(sm.clean, inputs, given)
    return _edited(sm, run, copies=laws, clean=clean)


def tabulate(
    sm: StructuralModel, name: str, choices: Any, edges: Any = None
) -> StructuralModel:
    """The same model, in which a computed site is a discrete site with a probability.

    Its probability given the noise is one at the computed value and zero elsewhere, so
    that averages over noise give its probability. Later sites use the computed value.
    With sorted inner `edges` of cells, the value of the site becomes the number of its
    cell.
    """
    inner, info = sm.run, sm.site_info[name]
    dtype = info.dtype if edges is None else jnp.zeros((), int).dtype
    bounds = None if edges is None else jnp.asarray(edges)

    def run(params, noise, given, log_prob_sites=(), cut=False):
        others = {k: v for k, v in given.items() if k != name}
        own = tuple(s for s in log_prob_sites if s != name)
        played = inner(params, noise, others, log_prob_sites=own, cut=cut)
        made, log_prob = played.values[name], dict(played.log_prob)
        if bounds is not None:
            made = jnp.searchsorted(bounds, made).astype(dtype)
        put = made if cut else given.get(name, made)
        if name in log_prob_sites:
            log_prob[name] = jnp.where(jnp.all(put == made), 0.0, -jnp.inf)
        return played._replace(values=played.values | {name: put}, log_prob=log_prob)

    site = info._replace(
        kind="sample",
        dtype=dtype,
        distribution="Delta",
        discrete=True,
        support="bounded",
        choices=tuple(choices),
    )
    return _edited(sm, run, {name: site})


def with_few_values(
    sm: StructuralModel, sites: Iterable[str], params: Any
) -> StructuralModel:
    """The model in which computed sites that take at most 64 values are discrete."""
    chosen = tuple(sites)
    if not chosen:
        return sm
    size = num_draws(sm.forward, 16 * FEW, 64 * FEW)
    values = simulate(sm.forward, params, probe_noise(sm.spec, 11, size))
    for name in chosen:
        choices = np.unique(np.asarray(values[name]))
        if 1 < len(choices) <= FEW:
            sm = tabulate(sm, name, choices.tolist())
    return sm


def _edited(
    sm: StructuralModel,
    run: Callable[..., Any],
    sites: dict[str, Site] | None = None,
    **changes: Any,
) -> StructuralModel:
    """The model with another `run`, of which `forward` is traced, and other sites."""
    site_info = sm.site_info | (sites or {})
    sm = replace(sm, run=run, site_info=site_info, source=None, **changes)
    forward = Program.trace(
        lambda params, noise: run(params, noise, {}).values,
        sm.params,
        noise_like(sm.spec),
    )
    return replace(sm, forward=forward)


def add_site(
    sm: StructuralModel, name: str, fn: Callable[[Any, Values, Values], jax.Array]
) -> StructuralModel:
    """The same model with one more deterministic site, a scalar function of parameters,
    noise and values of all sites.
    """
    inner = sm.run

    def run(params, noise, given, **options):
        played = inner(params, noise, given, **options)
        made = fn(params, noise, {**played.values, **given})
        return played._replace(values=played.values | {name: given.get(name, made)})

    site = Site(name, "deterministic", (), jnp.result_type(float))
    clean = sm.clean and add_site(sm.clean, name, fn)
    return _edited(sm, run, {name: site}, clean=clean)


def as_pairs(sm: StructuralModel, sites: Iterable[str]) -> StructuralModel:
    """The same model with all complex sites as pairs, if one of some sites is complex.

    The last axis of such a site has the real and the imaginary part. The density of a
    complex site is that of these two.
    """

    def is_complex(name: str) -> bool:
        return jnp.issubdtype(sm.site_info[name].dtype, jnp.complexfloating)

    if not any(map(is_complex, sites)):
        return sm
    inner, pairs = sm.run, frozenset(filter(is_complex, sm.sites))

    def run(params, noise, given, **options):
        played = inner(params, noise, without_pairs(pairs, given), **options)
        return played._replace(values=with_pairs(pairs, played.values))

    real = {
        name: site._replace(
            shape=(*site.shape, 2),
            dtype=jnp.finfo(site.dtype).dtype,
            support="real",
            unconstrain=None,
            pair=True,
        )
        for name in pairs
        for site in [sm.site_info[name]]
    }
    return _edited(sm, run, real)


def with_real_params(sm: StructuralModel) -> StructuralModel:
    """The same model with complex parameters as pairs of real numbers."""

    def kinds(tree: Any) -> set[bool]:
        return {jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(tree)}

    pairs = frozenset(name for name, p in sm.params.items() if True in kinds(p))
    if not pairs:
        return sm
    for name in sorted(pairs):
        free = sm.constraints[name] in (constraints.real, constraints.complex)
        if not free or False in kinds(sm.params[name]):
            why = "real arrays too" if free else f"a constraint, {sm.constraints[name]}"
            raise ParameterError(
                f"parameter {name!r} is complex and has {why}. Use separate parameters "
                "for the real arrays, and a projection in place of the constraint."
            )
    inner = sm.run

    def run(params, noise, given, **options):
        return inner(without_pairs(pairs, params), noise, given, **options)

    return _edited(
        sm,
        run,
        params=with_pairs(pairs, sm.params),
        constraints=sm.constraints | dict.fromkeys(pairs, constraints.real),
        pairs=pairs,
    )


def hold(sm: StructuralModel) -> StructuralModel:
    """The same model with the values of the drawn sites in place of their noise.

    All that a parameter does in this model, it does along a path.
    """
    sites, inner = sm.drawn, sm.run
    if not sites:
        return sm
    inert = noise_like(tuple((n, law) for n, law in sm.spec if n in sites))

    def run(params, noise, given, **options):
        put = {n: noise[n].astype(sm.site_info[n].dtype) for n in sites}
        played = inner(params, noise | inert, put | given, **options)
        return played._replace(values=played.values | put)

    held = {
        n: sm.site_info[n]._replace(noise=Noise("held", sm.site_info[n].shape))
        for n in sites
    }
    return _edited(sm, run, held, held_from=sm)


def probes(
    sm: StructuralModel, params: Any, seed: int, num_samples: int
) -> dict[str, Any]:
    """Noise for checks; that of held sites is drawn at these parameters."""
    if sm.held_from is None:
        return probe_noise(sm.spec, seed, num_samples)
    noise = probe_noise(sm.held_from.spec, seed, num_samples)
    values = simulate(sm.held_from.forward, params, noise)
    float_type = jnp.zeros(()).dtype
    held = [n for n, law in sm.spec if law.kind == "held"]
    return noise | {n: np.asarray(values[n], float_type) for n in held}
