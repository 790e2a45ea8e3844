# SPDX-License-Identifier: Apache-2.0
"""Scores of the prior contrastive bound, for much information and for policies."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import check_powers_of_two
from numpyro_infograd._density import Density, Values, quantiles
from numpyro_infograd._doors import settings_class
from numpyro_infograd._noise import draw_noise
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd.errors import ScoreError
from numpyro_infograd.scores.base import ScoreMethod, Scores
from numpyro_infograd.scores.mixture import SOUND_SAMPLE_SIZE, Mixture, expand


@settings_class
class Contrastive(ScoreMethod):
    """The score of a mixture that includes the noise that made the sample.

    With u_0 the hidden noise that made a sample a, and L fresh draws u_1, ..., u_L,

        I_L = E[log p(a | u_0) - log mean_{0..L} p(a | u_l)]  <=  min(I, log(L + 1)),

    the prior contrastive bound (Foster et al. 2020; for policies Foster et al. 2021).
    For independent draws it is the information between a and the index of the draw that
    made it, so the score of the mixture over 0, ..., L gives its gradient without bias.
    A sample that only its own u_0 explains has no gradient. So if the information is
    high, or designs depend on earlier outcomes, this gradient is much less noisy than
    that of the information. Its bias is that of the bound. The standard error includes
    the difference to half as many draws, and a warning says if the draws are too few.

    Args:
        num_components: Fresh draws L, a power of two.
        num_samples: Default number of samples of a gradient, a power of two.
        block_size: Draws evaluated at once, a power of two.

    Example:
        >>> import numpyro_infograd as ig
        >>> method = ig.scores.Contrastive(num_components=512)  # for `scores=`
        >>> method.step_samples
        512
    """

    num_components: int = 1024
    num_samples: int = 8192
    block_size: int = 128

    step_samples = 512
    needs_certificate = False  # nothing is learned

    def __post_init__(self) -> None:
        check_powers_of_two(self, 2, "num_components", "num_samples", "block_size")

    def prepare(
        self, sm: StructuralModel, params: Any, densities: tuple[Density, ...]
    ) -> Contrastive:
        """Raise if more than one density hides noise."""
        hidden = [d for d in densities if not d.is_known]
        if len(hidden) > 1:
            named = " and ".join(repr(d.label) for d in hidden)
            raise ScoreError(
                "scores='contrastive' needs the density of the outputs given the "
                f"inputs, but {named} both hide noise, such as "
                f"{(hidden[0].hidden or hidden[0].without_density)[0]!r}. Use "
                "scores='mcmc'; or name the hidden sites as inputs too, to learn about "
                "them as well."
            )
        return self

    def check(self, density: Density) -> None:
        """Raise for a moving boundary, or for a site without a density."""
        Mixture().check(density)

    def warnings_for(self, density: Density, evidence: dict[str, float]) -> list[str]:
        """Also warns of too few draws."""
        found = super().warnings_for(density, evidence)
        size = evidence["effective_sample_size_low"]
        if not size >= SOUND_SAMPLE_SIZE:
            found.append(
                f"only {size:.0f} of {self.num_components} contrastive draws explain a "
                f"sample of {density.label!r}, so this is the gradient of the "
                "contrastive bound, which is at most "
                f"{math.log(self.num_components + 1):.3g} nats, and not that of the "
                "information. Raise num_components, or use scores='mcmc'."
            )
        return found

    def score(
        self,
        state: Any,
        density: Density,
        params: Any,
        noise: Values,
        values: Values,
        rng_key: jax.Array,
    ) -> Scores:
        """Scores of the mixture of all draws, which are independent: no Sobol points.

        The deviation is the difference to the mean over both halves of the draws.
        """
        fresh = draw_noise(density.hidden_spec, rng_key, self.num_components)
        size = min(self.block_size, self.num_components // 2)
        blocks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), fresh)
        own = {name: noise[name] for name in density.hidden}
        rest = density.pick(values)
        moved = {name: rest.pop(name) for name in density.moved_sites}

        def log_prob(moved: Values, rest: Values, noise: Values) -> jax.Array:
            return density.log_prob(params, noise, {**rest, **moved})

        over_draws = jax.vmap(log_prob, (None, None, 0))

        def each(part: Values) -> jax.Array:
            """log p of each sample given each draw of a block; -inf for NaN."""
            found = jax.vmap(over_draws, (0, 0, None))(moved, rest, part)
            return jnp.where(jnp.isnan(found), -jnp.inf, found)

        def weighted(part: Values, weights: jax.Array, least: Any) -> Values:
            """Sum of weights times scores over a block, by one derivative a sample."""

            def one(moved: Values, rest: Values, own: Values, w: jax.Array) -> Values:
                draws = part
                if least is not None:
                    draws = jax.tree.map(
                        lambda x, y: jnp.where(expand(w > least, x), x, y), part, own
                    )
                return jax.grad(lambda at: w @ over_draws(at, rest, draws))(moved)

            return jax.vmap(one)(moved, rest, own, weights)

        log_own, own_score = jax.vmap(jax.value_and_grad(log_prob))(moved, rest, own)
        log_each = jax.lax.map(each, blocks)  # (num_blocks, num_samples, block size)
        halves = jnp.stack(jnp.split(log_each, 2))
        by_half = jax.nn.logsumexp(halves, axis=(1, 3))
        log_all = jnp.logaddexp(log_own, jnp.logaddexp(*by_half))
        weights = jnp.exp(log_each - log_all[:, None])

        def summed(block: Any, least: Any) -> Values:
            def add(total: Values, block: Any) -> tuple[Values, None]:
                part, weights = block
                found = weighted(part, weights, least)
                return jax.tree.map(jnp.add, total, found), None

            start = jax.tree.map(jnp.zeros_like, moved)
            return jax.lax.scan(add, start, block)[0]

        split = jax.tree.map(
            lambda x: x.reshape(2, -1, *x.shape[1:]), (blocks, weights)
        )

        def over_halves(least: Any = None) -> Values:
            return jax.lax.map(functools.partial(summed, least=least), split)

        # What depends on shared draws alone is computed once for all samples. But draws
        # without weight may have no finite derivative: then each sample leaves out its
        # own. This is a loop of at most one turn, because under vmap both branches of a
        # condition run. The bound on weights is zero; as part of the loop's state it
        # keeps XLA from moving the body out of the loop.
        sums, _ = jax.lax.while_loop(
            lambda state: (state[1] == 0.0) & ~_all_finite(state[0]),
            lambda state: (over_halves(state[1]), state[1] + 1.0),
            (over_halves(), jnp.zeros(())),
        )
        share = jnp.exp(log_own - log_all)
        larger = jnp.exp(log_all - jnp.logaddexp(log_own, by_half))  # (2, num_samples)
        mine = jax.tree.map(lambda x: expand(share, x) * x, own_score)
        mean = jax.tree.map(lambda x, y: x + y[0] + y[1], mine, sums)

        def missed(mean: jax.Array, mine: jax.Array, sums: jax.Array) -> jax.Array:
            coarse = [expand(larger[i], mine) * (mine + sums[i]) for i in range(2)]
            return (mean - 0.5 * (coarse[0] + coarse[1]))[None]

        fresh_share = jnp.sum(weights, axis=(0, 2))
        power = jnp.sum(weights**2, axis=(0, 2))
        kish = fresh_share**2 / jnp.where(power > 0, power, 1.0)
        evidence = {
            "effective_sample_size_low": quantiles(kish, 0.1)[0],
            "own_weight": jnp.mean(share),
        }
        return Scores(mean, jax.tree.map(missed, mean, mine, sums), evidence)


def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))
