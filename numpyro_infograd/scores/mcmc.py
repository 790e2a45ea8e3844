# SPDX-License-Identifier: Apache-2.0
"""Scores by Markov chains over the hidden noise, without training."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import check_powers_of_two
from numpyro_infograd._chains import Walk, average
from numpyro_infograd._density import Density, Values, simulate, unflatten
from numpyro_infograd._doors import settings_class
from numpyro_infograd._noise import NoiseSource
from numpyro_infograd._pilot import FEWEST_STEPS, pilot_size, tune
from numpyro_infograd._program import Program
from numpyro_infograd.errors import DensityError
from numpyro_infograd.scores.base import ScoreMethod, Scores
from numpyro_infograd.scores.pool import Learning

_HARDLY = 0.05  # acceptance below which a chain counts as stuck
_STUCK = 0.01  # share of stuck chains that gives a warning
_MOST = 1.0  # fit error over sampling error that gives a warning


@settings_class
class MCMC(ScoreMethod):
    """The conditional mean of Fisher's identity by Markov chains, without training.

    The noise u_0 that made a sample S is an exact draw from the posterior p(noise | S).
    So a chain for this posterior that starts at u_0 is stationary from its first step.
    After so many steps k that u_k no longer depends on u_0,

        E[(D S)^T s(S)] = E[(D S)^T c(S, u_k)],

    with c the complete-data score and D S the derivative of the sample's values in the
    parameters. Each sample has its own chain: Hamiltonian Monte Carlo in whitened
    coordinates, Metropolis steps for discrete sites with many joint states (sites with
    few are summed over), and occasional draws from a normal distribution around the
    regression of the noise on the sample. Metric, step size and length are tuned on a
    pilot batch and then fixed. A control variate is subtracted from c; in a
    linear-Gaussian model the difference is the score itself.

    A second chain starts at a draw that is independent of u_0 and is annealed to the
    posterior. The first chain may depend on u_0 too much, and the second may not have
    converged, so the score is the mean of both. The standard error includes sampling,
    half of their difference, and how much the means still change with more steps. For a
    gradient the chains double in length, up to max_steps, while these two parts are
    clearly more than their own noise and make up most of the error.

    Args:
        num_samples: Default number of samples of a gradient, a power of two.
        max_steps: Maximum number of steps of a chain, a power of two.
        pilot_size: Samples of the pilot batch, a power of two. Each step of an ascent
            uses a quarter of it. High dimensions raise it.
        both_ends: Whether to average over two chains for each sample. The second starts
            at a draw that is independent of the noise that made the sample.

    Example:
        >>> import numpyro_infograd as ig
        >>> method = ig.scores.MCMC(max_steps=1024)  # for `scores=`
        >>> method.num_samples
        8192
    """

    num_samples: int = 8192
    max_steps: int = 256
    pilot_size: int = 1024
    both_ends: bool = True

    num_deviations = 2
    step_samples = 512
    needs_certificate = False  # nothing is learned

    def __post_init__(self) -> None:
        check_powers_of_two(self, 256, "num_samples", "pilot_size")
        check_powers_of_two(self, FEWEST_STEPS, "max_steps")

    def check(self, density: Density) -> None:
        """Raise for a moving boundary, or hidden noise that chains cannot sample."""
        super().check(density)
        if not density.is_known and density.walk is None:
            raise DensityError(
                f"no Markov chain can sample the noise that the set {density.label!r} "
                f"hides, because {density.why_no_walk}. Use scores='denoising', or "
                "make the output a sample site, with noise added last: "
                "numpyro.sample(name, Normal(mean, scale))."
            )

    def warnings_for(self, density: Density, evidence: dict[str, float]) -> list[str]:
        """Also warns of chains that depend on their start, or are stuck."""
        found = super().warnings_for(density, evidence)
        if evidence["stuck"] > _STUCK:
            found.append(
                f"{evidence['stuck']:.1%} of the chains for {density.label!r} hardly "
                "ever moved, so their scores depend on the noise where they started, "
                "and the error may exceed the standard error. Raise max_steps, or "
                "run ig.diagnostics.check_scores(..., scores='denoising')."
            )
        steps = evidence["num_steps"]
        if evidence.get("fit_error_ratio", 0.0) > _MOST and steps >= self.max_steps:
            found.append(
                f"the chains for {density.label!r} still depend on their start after "
                f"{steps:.0f} steps, which adds most of the standard error. Raise "
                "max_steps; if that does not help, the posterior of the noise may have "
                "several modes, and no chain moves between them."
            )
        return found

    def init(self, density: Density, rng_key: jax.Array) -> Learning:
        """Noise of the pilot batches."""
        columns = sum(density.sizes) + density.walk.size
        sizes = (pilot_size(self.pilot_size // part, columns) for part in (1, 4))
        return Learning(*(NoiseSource.of(density.spec, size) for size in sizes))

    def fit(
        self,
        state: Learning,
        density: Density,
        forward: Program,
        params: Any,
        rng_key: jax.Array,
        warm: bool = False,
    ) -> Learning:
        """Tune the chains on a pilot batch at these parameters."""
        noise_key, key = jax.random.split(rng_key)
        noise = (state.again if warm else state.cold)(noise_key)
        values = simulate(forward, params, noise)
        last = state.fitted if warm else None
        tuning = tune(density.walk, params, noise, values, key, self.max_steps, last)
        return state._replace(fitted=tuning)

    def improve(self, state: Learning | None) -> Learning | None:
        """Chains that are twice as long."""
        if state is None or 2 * int(state.fitted.num_steps) > self.max_steps:
            return None
        longer = 2 * state.fitted.num_steps
        return state._replace(fitted=state.fitted._replace(num_steps=longer))

    def score(
        self,
        state: Learning,
        density: Density,
        params: Any,
        noise: Values,
        values: Values,
        rng_key: jax.Array,
    ) -> Scores:
        """Means over the second half of the chains of each sample.

        The deviations are the change since the quarter before, and half of the
        difference between the two chains.
        """
        hidden, tuning = density.walk, state.fitted
        half = tuning.num_steps // 2
        lengths = jnp.stack([half // 2, half // 2, half])

        def one(keys: jax.Array, noise: Values, values: Values) -> Any:
            walk = Walk.of(hidden, params, values, tuning)
            starts = hidden.start(noise, values)
            if not self.both_ends:
                found = average(walk, starts, jnp.asarray(False), keys[0], lengths)
                return jax.tree.map(lambda x: x[None], found)
            other = walk.begin(keys[2])
            starts = jax.tree.map(lambda *x: jnp.stack(x), starts, other)
            over = jax.vmap(average, (None, 0, 0, 0, None))
            led = jnp.asarray([False, True])
            return over(walk, starts, led, keys[:2], lengths)

        num_samples = next(iter(values.values())).shape[0]
        keys = jax.random.split(rng_key, (num_samples, 3 if self.both_ends else 1))
        means, accepted, states = jax.vmap(one)(keys, noise, values)
        last = means[:, :, -1]
        found = jnp.mean(last, axis=1)
        hardly = accepted < _HARDLY
        # Discrete values that rarely flip are right if both chains have the same ones.
        apart = jnp.any(states[:, :1] != states, axis=(1, 2))[:, None]
        evidence = {
            "acceptance": jnp.mean(accepted[..., 0]),
            "stuck": jnp.mean(hardly[..., 0] | (hardly[..., 1] & apart)),
            "num_steps": tuning.num_steps.astype(found.dtype),
        }
        deviations = jnp.stack(
            [jnp.mean(means[:, :, -2] - last, axis=1), found - last[:, 0]]
        )
        over = jax.vmap(lambda x: unflatten(x, values, density.moved_sites))
        return Scores(
            unflatten(found, values, density.moved_sites), over(deviations), evidence
        )
