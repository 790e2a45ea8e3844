# SPDX-License-Identifier: Apache-2.0
"""Scores from a conditional density of the inputs given the outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd import _guides
from numpyro_infograd._arguments import check_counts, check_powers_of_two
from numpyro_infograd._density import Density, Values, draw_values, flatten, simulate
from numpyro_infograd._doors import settings_class
from numpyro_infograd._noise import NoiseSource, permutation
from numpyro_infograd._program import Program
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd.errors import ArgumentError, ScoreError
from numpyro_infograd.scores.base import ScoreMethod, Scores, symmetric_powers
from numpyro_infograd.scores.coordinates import Free
from numpyro_infograd.scores.learned import report_scores
from numpyro_infograd.scores.network import (
    Ensemble,
    Network,
    adam,
    check_network,
    check_training,
    perceptron,
)
from numpyro_infograd.scores.pool import Learning, share_of

_MEMBERS = 4
_LOST = 0.02  # nats that held-out samples may lose by chance
_FEW = 2  # input dimensions that a mixture of normal distributions describes well
_CHECKED = 256  # draws at which a user's model is checked
_SYMBOLS = 256  # values of discrete inputs, at most, for a classifier


class _Affine(NamedTuple):
    """A linear regression of the sites on the given sites, from a pool's moments."""

    mean: jax.Array  # mean of the given values, (inputs,)
    whiten: jax.Array  # whitens the given values, (inputs, inputs)
    centre: jax.Array  # mean of the sites, (dimensions,)
    slope: jax.Array  # regression on whitened given values, (dimensions, inputs)
    scale: jax.Array  # whitens the residuals, (dimensions, dimensions)


@settings_class(kw_only=True)
class Posterior(ScoreMethod):
    """grad_y log q(x | y), with q an approximate posterior of inputs given outputs.

    For inputs x that no parameter reaches, s(y | x) - s(y) = grad_y log p(x | y). So
    one density gives the whole gradient of I(x; y) (eqs. 19-20 of the paper). q is
    trained by maximum likelihood on samples. It is a mixture of normal distributions
    around the linear regression, a classifier if x is discrete, or your own model. The
    standard error includes the scatter of four fits and what the second half of the
    training changed. An error that all fits share does not show in it.

    Args:
        model: Your q as a NumPyro model, such as a guide or a flow. It is called with
            the values of the outputs and the conditions for one sample, as keyword
            arguments by site name. It must sample the inputs under their site names;
            `numpyro.param` marks what is trained.
        num_components: Number of normal distributions in the built-in mixture.
        hidden: Widths of the hidden layers; None makes two layers that widen with the
            number of inputs.
        network: Your network in place of the built-in one, as in `Denoising`.
        num_steps: Training steps of a fit from scratch.
        num_warm_steps: Training steps at each step of an ascent.
        batch_size: Samples of a training step, divided among four fits.
        pool_size: Samples drawn for a fit from scratch, a power of two.
        warm_pool_size: Samples drawn at each step of an ascent, a power of two.
        learning_rate: Peak of the cosine schedule.
        num_samples: Default number of samples of a gradient, a power of two.
        symbols: The values of discrete inputs. `prepare` sets it; leave it out.

    Example:
        >>> import numpyro_infograd as ig
        >>> ig.scores.Posterior(num_components=4).num_deviations
        8
    """

    model: Callable[..., Any] | None = None
    num_components: int = 8
    hidden: tuple[int, ...] | None = None
    network: Network | None = None
    num_steps: int = 1000
    num_warm_steps: int = 20
    batch_size: int = 2048
    pool_size: int = 65536
    warm_pool_size: int = 4096
    learning_rate: float = 4e-3
    num_samples: int = 16384
    symbols: tuple[tuple[float, ...], ...] = ()  # set by `prepare`

    scores_inputs_given_outputs = True  # it learns p(inputs | outputs)
    num_deviations = 2 * _MEMBERS

    def __post_init__(self) -> None:
        check_network(self.network, self.hidden)
        check_counts(self, "num_components")
        check_training(self, _MEMBERS)
        check_powers_of_two(self, 256, "pool_size", "warm_pool_size", "num_samples")
        if not isinstance(self.symbols, tuple):
            raise ArgumentError(
                f"prepare sets symbols, got {self.symbols!r}: leave it out."
            )
        if self.model is not None and not callable(self.model):
            raise ArgumentError(f"model must be a NumPyro model, got {self.model!r}.")

    def prepare(
        self, sm: StructuralModel, params: Any, densities: tuple[Density, ...]
    ) -> Posterior:
        """The method with the values of discrete inputs."""
        sites = {s for d in densities for s in d.sites}
        discrete = frozenset(s for s in sites if sm.site_info[s].discrete)
        if self.model is not None:
            source = NoiseSource.independent(sm.spec, _CHECKED)
            values = draw_values(sm.forward, params, source, jax.random.key(4))
            for density in densities:
                own = {s: values[s] for s in density.sites}
                given = {s: values[s] for s in density.given}
                _guides.check(self.model, own, given, discrete.intersection(own))
        if self.model is not None or not discrete:
            return self
        if discrete != sites or len(densities) != 1:
            raise ScoreError(
                "scores='posterior' needs inputs that are all continuous, or one set "
                f"of discrete inputs, got {sorted(sites)}. Pass your own posterior: "
                "scores.Posterior(model=...)."
            )
        source = NoiseSource.independent(sm.spec, 16384)
        values = draw_values(sm.forward, params, source, jax.random.key(4))
        columns = [np.asarray(values[s]).reshape(16384, -1) for s in densities[0].sites]
        seen = np.unique(np.concatenate(columns, axis=1).astype(float), axis=0)
        if len(seen) > _SYMBOLS:
            raise ScoreError(
                f"the inputs {densities[0].sites} take more than {_SYMBOLS} values, "
                "too many for a classifier. Pass your own posterior: "
                "scores.Posterior(model=...)."
            )
        return replace(self, symbols=tuple(map(tuple, seen.tolist())))

    def check(self, density: Density) -> None:
        """Raise if the inputs depend on a parameter."""
        moved = [s for s in density.sites if s in density.moved_sites]
        if moved:
            raise ScoreError(
                f"scores='posterior' needs inputs that no parameter reaches, but "
                f"{moved[0]!r} depends on one. Use scores='denoising'."
            )

    def warnings_for(self, density: Density, evidence: dict[str, float]) -> list[str]:
        """Also warns of too few samples, and of too many input dimensions."""
        found = super().warnings_for(density, evidence)
        gain = evidence["log_likelihood_gain"]
        inputs = sum(density.sizes[: len(density.sites)])
        if not gain >= -_LOST:  # or NaN
            found.append(
                f"training made the posterior of {density.label!r} worse on held-out "
                f"samples ({gain:+.2g} nats), so it was undone: "
                "the error may exceed the standard error. Raise pool_size."
            )
        if self.model is None and not self.symbols and inputs > _FEW:
            found.append(
                f"a mixture of {self.num_components} normal distributions is a coarse "
                f"posterior of {inputs} numbers: the error may exceed the standard "
                "error. Use scores='denoising', or scores.Posterior(model=a_flow)."
            )
        return found

    def init(self, density: Density, rng_key: jax.Array) -> Any:
        """Noise for the pools of a fit from scratch and of a refit."""
        self._ensemble(density).check()
        return Learning.of(density.spec, self, _MEMBERS)

    def fit(
        self,
        state: Any,
        density: Density,
        forward: Program,
        params: Any,
        rng_key: jax.Array,
        warm: bool = False,
    ) -> Any:
        """Train q on a fresh pool, from scratch or from the last fit."""
        pool_key, init_key, order_key = jax.random.split(rng_key, 3)
        source = state.again if warm else state.cold
        size = source.size

        def draw(key: jax.Array) -> Values:
            return density.pick(simulate(forward, params, source(key)))

        pool = jax.lax.stop_gradient(
            jax.vmap(draw)(jax.random.split(pool_key, _MEMBERS))
        )
        affine = self._moments(density, pool)
        if warm:
            start = state.fitted[1]
        else:
            one = jax.tree.map(lambda x: x[0, 0], pool)
            start = jax.vmap(lambda key: self._start(density, one, key))(
                jax.random.split(init_key, _MEMBERS)
            )
        steps = self.num_warm_steps if warm else self.num_steps
        batch = min(share_of(self.batch_size, _MEMBERS), size)
        order = permutation(order_key, size)
        shuffled = jax.tree.map(lambda x: x[:, order], pool)

        def likelihoods(fits: Any, part: Values) -> jax.Array:
            def member(fit: Any, part: Values) -> jax.Array:
                each = jax.vmap(lambda one: self._log_q(density, affine, fit, one))
                return jnp.mean(each(part))

            return jax.vmap(member)(fits, part)

        def loss(fits: Any, part: Values) -> jax.Array:
            return -jnp.sum(likelihoods(fits, part))

        def at(index: jax.Array) -> Values:
            first = (index % (size // batch)) * batch
            return jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, first, batch, axis=1),
                shuffled,
            )

        begin, step = adam(loss, at, self.learning_rate, steps)
        middle, _ = jax.lax.scan(step, begin(start), jnp.arange(steps // 2))
        fits = jax.lax.scan(step, middle, jnp.arange(steps // 2, steps))[0][0]
        # Each fit is tested on the pool of the next one. Training is kept only if it
        # raised the likelihood there.
        held = jax.tree.map(lambda x: jnp.roll(x, -1, 0), pool)
        gain = likelihoods(fits, held) - likelihoods(start, held)

        def kept(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where((gain > 0).reshape(-1, *[1] * (new.ndim - 1)), new, old)

        fits, before = (jax.tree.map(kept, found, start) for found in (fits, middle[0]))
        return state._replace(fitted=(affine, fits, before, jnp.mean(gain)))

    def score(
        self,
        state: Any,
        density: Density,
        params: Any,
        noise: Values,
        values: Values,
        rng_key: jax.Array,
    ) -> Scores:
        """grad_y log q(x | y): the mean of the fits; their scatter is the error."""
        affine, fits, before, gain = state.fitted
        inside = density.pick(values)
        moved = {name: inside.pop(name) for name in density.moved_sites}

        def one(fit: Any, moved: Values, rest: Values) -> Values:
            return jax.grad(lambda b: self._log_q(density, affine, fit, {**rest, **b}))(
                moved
            )

        slope = Free.of(density, values).slope

        def scores(fits: Any) -> jax.Array:
            over = jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None))
            each = over(fits, moved, inside)
            return slope * jax.vmap(lambda x: flatten(x, density.moved_sites))(each)

        evidence = {"log_likelihood_gain": gain}
        each = scores(fits)
        doubt = jnp.mean(each - scores(before), axis=0)
        return report_scores(density, values, each, (doubt,), evidence)

    # -- q -----------------------------------------------------------------------

    def _columns(self, density: Density, values: Values) -> tuple[jax.Array, jax.Array]:
        """Values of the sites and of the given sites, (num_samples, columns)."""
        free = Free.of(density, values).values
        count = sum(density.sizes[: len(density.sites)])
        return free[:, :count], free[:, count:]

    def _moments(self, density: Density, pool: Values) -> _Affine | None:
        """Linear regression of the sites on the given sites, over a pool."""
        if self.model is not None:
            return None
        every = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pool)
        a, b = self._columns(density, every)
        mean, centre = jnp.mean(b, axis=0), jnp.mean(a, axis=0)
        scale = jnp.std(b, axis=0)
        standard = (b - mean) / jnp.where(scale > 0, scale, 1.0)
        (root,) = symmetric_powers(standard.T @ standard / len(b), -0.5)
        whiten = root / jnp.where(scale > 0, scale, 1.0)
        white = (b - mean) @ whiten.T
        slope = (a - centre).T @ white / len(a)
        left = a - centre - white @ slope.T
        (scale,) = symmetric_powers(left.T @ left / len(a), -0.5)
        return _Affine(mean, whiten, centre, slope, scale)

    def _ensemble(self, density: Density) -> Ensemble:
        sizes, count = density.sizes, len(density.sites)
        outputs = len(self.symbols) or self.num_components * (
            1 + 2 * sum(sizes[:count])
        )
        network = self.network or perceptron(self.hidden)
        inputs = sum(sizes[count:])
        return Ensemble(network, inputs, outputs, inputs)

    def _start(self, density: Density, one: Values, rng_key: jax.Array) -> Any:
        """Initial parameters of one fit."""
        if self.model is not None:
            given = {name: one[name] for name in density.given}
            return _guides.initial_params(self.model, given, rng_key)
        body_key, offset_key, place_key = jax.random.split(rng_key, 3)
        ensemble = self._ensemble(density)
        networks = ensemble.init(body_key, 1)
        white = jax.random.normal(place_key, (1024, ensemble.inputs))
        networks = ensemble.place(networks, white)
        network = jax.tree.map(lambda x: x[0], networks)
        # Components with equal initial values would stay equal.
        offset = 0.1 * jax.random.normal(offset_key, (ensemble.outputs,))
        return network | {"offset": offset}

    def _log_q(
        self, density: Density, affine: _Affine | None, fit: Any, sample: Values
    ) -> jax.Array:
        """log q(sites | given) of one sample, up to a constant in `given`."""
        if self.model is not None:
            own = {name: sample[name] for name in density.sites}
            given = {name: sample[name] for name in density.given}
            return _guides.log_density(self.model, fit, own, given)
        assert affine is not None
        a, b = self._columns(density, {n: v[None] for n, v in sample.items()})
        white = (b - affine.mean) @ affine.whiten.T
        seen = jnp.clip(white, -8.0, 8.0)
        found = self._ensemble(density)(fit, seen)[0] + fit["offset"]
        if self.symbols:
            distances = jnp.sum((jnp.asarray(self.symbols) - a) ** 2, axis=1)
            return jax.nn.log_softmax(found)[jnp.argmin(distances)]
        left = ((a - affine.centre - white @ affine.slope.T) @ affine.scale.T)[0]
        count, size = self.num_components, len(left)
        logits, rest = found[:count], found[count:].reshape(2, count, size)
        means, log_scales = rest
        each = -0.5 * ((left - means) * jnp.exp(-log_scales)) ** 2 - log_scales
        total = jax.nn.log_softmax(logits) + jnp.sum(each, axis=1)
        return jax.nn.logsumexp(total)
