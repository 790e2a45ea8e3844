# SPDX-License-Identifier: Apache-2.0
"""The protocol of score methods, and the identity that all of them use.

The score of a set of sites is the gradient of its log density with respect to the
sites' values. Fisher's identity writes it as the conditional mean of the complete-data
score, which can always be computed:

    s(a) = E[ grad_a log p(a | other noise) | sites = a ].

A score method estimates that conditional mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_infograd._compiling import quick_jit
from numpyro_infograd._density import Density, Values
from numpyro_infograd._program import Program
from numpyro_infograd._structure import StructuralModel
from numpyro_infograd.errors import BoundaryError


class Measure(NamedTuple):
    """What a number measures, and the label of the set of sites that it is about."""

    name: str
    label: str

    def __str__(self) -> str:
        return f"{self.name}({self.label})"

    @property
    def is_size(self) -> bool:
        """Whether it is an effective sample size, whose reciprocals are averaged."""
        return self.name.startswith("effective_sample_size")


Evidence = Mapping[Measure, Any]


def about(evidence: Evidence, label: str) -> dict[str, Any]:
    """The numbers about one set of sites, by name."""
    return {m.name: value for m, value in evidence.items() if m.label == label}


def measured(evidence: Evidence, name: str) -> list[Any]:
    """The numbers of one name, about all sets of sites."""
    return [value for m, value in evidence.items() if m.name == name]


TOLERATED = 0.05  # largest Stein residual and certificate without a warning


class Scores(NamedTuple):
    """Scores of a batch of values.

    Attributes:
        mean: For each of `density.moved_sites` (the sites that depend on a parameter),
            scores of shape (num_samples, *shape), in nats per unit of the site.
        deviations: The same with a leading axis of `num_deviations` perturbations that
            measure the error of the fit. A linear function of the scores is evaluated
            at each of them; the sum of the squares is added to its squared standard
            error. None if the fit is exact.
        evidence: Named scalars that measure how good the scores are.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_infograd.scores import Scores
        >>> y = jnp.array([-1.0, 0.0, 2.0])
        >>> found = Scores({"y": -y}, deviations=None, evidence={})  # of N(0, 1)
        >>> found.mean["y"].shape
        (3,)
    """

    mean: Values
    deviations: Values | None
    evidence: dict[str, jax.Array]


class ScoreMethod(ABC):
    """A way to estimate the score of a `Density`; hashable and without mutable state.

    `prepare`, `check` and `init` run on the host; `fit` and `score` are pure and
    traceable. A subclass must define `score`; everything else has a default.

    Attributes:
        num_samples: Default number of samples of a gradient.
        step_samples: Default number of samples of one step of an ascent.
        num_deviations: Length of the leading axis of `Scores.deviations`; a divisor of
            16.
        noise_variance: Variance of the noise to append to every site whose score is
            needed; None appends none.
        samples_only: Whether it uses only samples, so that no parameter may move a
            condition.
        scores_inputs_given_outputs: Whether it uses densities of the inputs given the
            outputs.
        needs_certificate: Whether its scores may have an error that only a certificate
            shows.

    Example:
        >>> import numpyro_infograd as ig
        >>> class Normal(ig.scores.ScoreMethod):  # a normal density for each site
        ...     def score(self, state, density, params, noise, values, rng_key):
        ...         y = {site: values[site] for site in density.moved_sites}
        ...         mean = {s: (v.mean(0) - v) / v.var(0) for s, v in y.items()}
        ...         return ig.scores.Scores(mean, None, {})
        >>> Normal().num_samples
        16384
    """

    num_samples: int = 16384
    step_samples: int = 4096
    num_deviations: int = 1
    noise_variance: float | None = None
    samples_only: bool = False
    scores_inputs_given_outputs: bool = False
    needs_certificate: bool = True

    def prepare(
        self, sm: StructuralModel, params: Any, densities: tuple[Density, ...]
    ) -> ScoreMethod:
        """The method adapted to a model; raises if the method cannot serve the model.

        Args:
            sm: The traced model, with the noise of `noise_variance` appended.
            params: Value of every parameter, in its shape and in constrained space.
            densities: The sets of sites whose scores are needed.
        """
        return self

    def check(self, density: Density) -> None:
        """Raise if the method cannot estimate the score of the density.

        Raises:
            BoundaryError: If the density jumps at a boundary that moves.
        """
        if density.moving_boundary:
            raise BoundaryError(
                f"the density of site {density.moving_boundary[0]!r} jumps at a "
                "boundary that depends on a parameter, a site or noise, so the score "
                "inside its support misses the probability that crosses the boundary. "
                "Use scores.Denoising(noise_variance=...): it appends Gaussian noise, "
                "whose density has no boundary."
            )

    def init(self, density: Density, rng_key: jax.Array) -> Any:
        """An initial state: a pytree of arrays, such as points or network parameters.

        Args:
            density: The set of sites.
            rng_key: A JAX PRNG key.
        """
        return None

    def fit(
        self,
        state: Any,
        density: Density,
        forward: Program,
        params: Any,
        rng_key: jax.Array,
        warm: bool = False,
    ) -> Any:
        """Fit the state to the density at these parameters.

        Args:
            state: What `init` or `fit` returned.
            density: The set of sites.
            forward: The map from (params, noise) of one sample to its values.
            params: Value of every parameter, in its shape and in constrained space.
            rng_key: A JAX PRNG key.
            warm: Whether to start from `state`, which was fitted at the previous step
                of an ascent; else the fit starts from scratch.

        Returns:
            The fitted state. Later fits keep its structure.
        """
        return state

    def improve(self, state: Any) -> Any | None:
        """A state with a smaller fit error, at more cost; None if no better one exists.

        A gradient calls it while the fit adds more to its error than sampling does.

        Args:
            state: What `fit` or `improve` returned; None for a known density.
        """
        return None

    def warnings_for(self, density: Density, evidence: dict[str, float]) -> list[str]:
        """Sentences that say why the standard error of a score may be too small.

        `stein_correct` corrects the scale of scores that violate Stein's identity. The
        standard error does not include their other errors.

        Args:
            density: The set of sites.
            evidence: Averages of `Scores.evidence`, with what `stein_correct` adds.
        """
        found = []
        wrong = evidence.get("certificate", 0.0)
        if wrong - 2 * evidence.get("certificate_error", 0.0) > TOLERATED:
            found.append(
                f"the score of {density.label!r} is wrong: Markov chains put its "
                f"mean-square error at {wrong:.1%} of its mean square (or the chains "
                "are stuck). The standard error of the gradient includes this error. "
                "Use scores='mcmc', and read its warnings."
            )
        residual = evidence.get("stein_residual", 0.0)
        if abs(residual) - 2 * evidence.get("stein_residual_error", 0.0) > TOLERATED:
            found.append(
                f"the score of {density.label!r} missed Stein's identity by "
                f"{residual:+.1%} before it was corrected: the error may exceed the "
                "standard error. If you wrote the score, check its formula; else raise "
                "the samples or steps of the method, or use another method."
            )
        return found

    @abstractmethod
    def score(
        self,
        state: Any,
        density: Density,
        params: Any,
        noise: Values,
        values: Values,
        rng_key: jax.Array,
    ) -> Scores:
        """Scores of the density's moved sites at a batch of values, in nats per unit.

        Args:
            state: What `fit` returned.
            density: The set of sites.
            params: Value of every parameter, in its shape and in constrained space.
            noise: The noise that made the values, by name, (num_samples, *shape).
            values: Values of each site of the model, (num_samples, *shape).
            rng_key: A JAX PRNG key.
        """


@quick_jit(static_argnames=("method", "warm"))
def fit_score(
    method: ScoreMethod,
    state: Any,
    density: Density,
    forward: Program,
    params: Any,
    rng_key: jax.Array,
    warm: bool = False,
) -> Any:
    """`ScoreMethod.fit`, compiled."""
    return method.fit(state, density, forward, params, rng_key, warm)


def complete_data_score(
    density: Density, params: Any, noise: Values, values: Values
) -> Values:
    """grad_a log p(a | other noise) for one sample: the integrand of Fisher's identity.

    Args:
        density: The set of sites.
        params: Parameters, in constrained space.
        noise: One draw of the density's hidden noise, by name; more is ignored.
        values: One value of each of the density's sites, in its shape.

    Returns:
        For each moved site, an array of the site's shape, in nats per unit of the site.
        Without hidden noise this is the score itself.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import numpyro_infograd as ig
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * x, 1))
        >>> density = ig.structural_model(model).density(("y",))
        >>> found = ig.scores.complete_data_score(
        ...     density, {"a": 2.0}, noise={"x": 0.5}, values={"y": 3.0}
        ... )
        >>> float(found["y"])  # 2 * 0.5 - 3
        -2.0
    """
    moved = {name: values[name] for name in density.moved_sites}
    rest = {name: values[name] for name in density.all_sites if name not in moved}
    return jax.grad(lambda a: density.log_prob(params, noise, {**rest, **a}))(moved)


def complete_data_scores(
    density: Density, params: Any, noise: Values, values: Values
) -> Values:
    """`complete_data_score` for a batch: `noise` and `values` have a leading axis."""
    hidden = {name: noise[name] for name in density.hidden}
    inside = density.pick(values)
    over = jax.vmap(complete_data_score, in_axes=(None, None, 0, 0))
    return over(density, params, hidden, inside)


def sequence_after(tree: Any, *others: Any) -> Any:
    """`tree`, computed only after `others`.

    XLA's CPU runtime runs independent loops and matrix decompositions in parallel, and
    with few threads that can deadlock. A data dependence that the compiler cannot
    remove makes them run one after the other.
    """
    before = [x for x in floating_leaves(others) if x.size]
    if not any(isinstance(x, jax.core.Tracer) for x in before):
        return tree
    last = (jnp.nan_to_num(x.ravel()[-1]) for x in before)
    token = sum((0.0 * x for x in last), jnp.zeros(()))

    def wait(x: jax.Array) -> jax.Array:
        moves = jnp.issubdtype(x.dtype, jnp.floating)
        return x + token.astype(x.dtype) if moves else x

    return jax.tree.map(wait, tree)


def floating_leaves(tree: Any) -> list[Any]:
    """The arrays of floating-point numbers in a tree."""
    arrays = [x for x in jax.tree.leaves(tree) if hasattr(x, "dtype")]
    return [x for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]


def symmetric_powers(matrix: jax.Array, *powers: float) -> tuple[jax.Array, ...]:
    """Powers of a positive semi-definite matrix, with a floor under its eigenvalues.

    Eigenvectors stay finite where a Cholesky decomposition fails.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    floor = 1e-6 * jnp.max(values, axis=-1, keepdims=True)
    values = jnp.maximum(values, jnp.maximum(floor, 1e-30))
    back = jnp.swapaxes(vectors, -1, -2)
    return tuple((vectors * (values**p)[..., None, :]) @ back for p in powers)


class Layout(NamedTuple):
    """Column indices of the flat inputs and outputs of a density's score."""

    outputs: tuple[int, ...]  # the input column of each score component
    own: tuple[int, ...]  # indices of the score components that belong to `sites`
    given: tuple[int, ...]  # the input columns of `given`

    @property
    def own_columns(self) -> tuple[int, ...]:
        """The input column of each of `own`."""
        return tuple(self.outputs[i] for i in self.own)

    @staticmethod
    def of(density: Density) -> Layout:
        """The layout of flattened values of `all_sites` and scores of `moved_sites`."""
        where, start = {}, 0
        for site, size in zip(density.all_sites, density.sizes, strict=True):
            where[site] = range(start, start + size)
            start += size
        outputs = [
            (site, column) for site in density.moved_sites for column in where[site]
        ]
        return Layout(
            tuple(column for _, column in outputs),
            tuple(i for i, (site, _) in enumerate(outputs) if site in density.sites),
            tuple(column for site in density.given for column in where[site]),
        )
