# SPDX-License-Identifier: Apache-2.0
"""Score methods: one file for each method, and the table of their names."""

from numpyro_infograd._arguments import resolve_name
from numpyro_infograd.errors import ArgumentError
from numpyro_infograd.scores.analytic import Analytic
from numpyro_infograd.scores.base import ScoreMethod, Scores, complete_data_score
from numpyro_infograd.scores.contrastive import Contrastive
from numpyro_infograd.scores.denoising import Denoising
from numpyro_infograd.scores.exact import Exact
from numpyro_infograd.scores.flow import FlowMatching
from numpyro_infograd.scores.mcmc import MCMC
from numpyro_infograd.scores.mixture import Mixture
from numpyro_infograd.scores.posterior import Posterior
from numpyro_infograd.scores.pretrained import Pretrained
from numpyro_infograd.scores.sliced import Sliced

__all__ = [
    "MCMC",
    "Analytic",
    "Contrastive",
    "Denoising",
    "Exact",
    "FlowMatching",
    "Mixture",
    "Posterior",
    "Pretrained",
    "ScoreMethod",
    "Scores",
    "Sliced",
    "complete_data_score",
    "resolve_method",
]

REGISTRY: dict[str, type[Exact | ScoreMethod]] = {
    "exact": Exact,
    "mixture": Mixture,
    "mcmc": MCMC,
    "contrastive": Contrastive,
    "denoising": Denoising,
    "sliced": Sliced,
    "flow": FlowMatching,
    "posterior": Posterior,
}


def resolve_method(scores: object) -> str | Exact | ScoreMethod:
    """The score method that `scores` names; "auto" stays "auto".

    Args:
        scores: "auto", the name of a method, or a method object.

    Returns:
        A method with default settings for a name; else `scores` unchanged.

    Raises:
        ArgumentError: If `scores` is neither a known name nor a method.

    Example:
        >>> import numpyro_infograd as ig
        >>> ig.scores.resolve_method("mixture")
        Mixture(num_components=1024, num_samples=16384, block_size=128)
    """
    kinds = Exact, ScoreMethod
    found: str | Exact | ScoreMethod = resolve_name(
        "scores",
        scores,
        REGISTRY,
        lambda given: isinstance(given, kinds),
        "a numpyro_infograd.scores.ScoreMethod",
    )
    try:
        hash(found)
    except TypeError as error:
        raise ArgumentError(
            f"scores={type(scores).__name__}(...) must have a hash: {error}. "
            "Use @dataclass(frozen=True), with numbers, strings and tuples only."
        ) from None
    return found
