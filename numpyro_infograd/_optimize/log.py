# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: what is saved, and how a run continues from it."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._checkpoint import Checkpoint, digest, pack, unpack
from numpyro_infograd._optimize.step import Ascent, InfoMaxState, StepInfo, ascend_many
from numpyro_infograd._problem import Posed
from numpyro_infograd._program import Program
from numpyro_infograd.scores.base import Measure

_PAUSE = 1.0  # seconds between saves, at least
_SHARE = 0.05  # share of the run time that saves take, at most


class Log:
    """Saves the state of a run, so that it can continue after an interruption."""

    def __init__(self, path: Any, identity: dict[str, Any]) -> None:
        self.checkpoint = Checkpoint(path, identity)
        self.next_save = -np.inf
        # What is not yet written: the steps so far, arrays by name, and JSON data, in
        # which "done" is true if the run has ended.
        self.pending: tuple[list[StepInfo], dict[str, Any], dict[str, Any]] | None
        self.pending = None

    def note(
        self, chunks: list[StepInfo], trees: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        """Keep the state of a run, and save it if the last save is old enough."""
        self.pending = chunks, trees, facts
        if facts["done"] or time.monotonic() > self.next_save:
            self.flush()

    def flush(self) -> None:
        """Save what is pending."""
        if self.pending is None:
            return
        start = time.monotonic()
        (chunks, trees, facts), self.pending = self.pending, None
        infos = join(chunks)
        lengths = [chunk.finite.shape[1] for chunk in chunks]
        arrays = {name: pack(tree) for name, tree in (trees | {"infos": infos}).items()}
        self.checkpoint.save(
            2 * sum(lengths) + facts["done"],
            {name: leaves for name, leaves in arrays.items() if leaves},
            facts | {"lengths": lengths, "evidence": sorted(infos.evidence)},
        )
        end = time.monotonic()
        self.next_save = end + max(_PAUSE, (end - start) / _SHARE)


def join(chunks: list[StepInfo]) -> StepInfo:
    """All chunks as one, without gradients.

    After a change of the score method, chunks have other evidence; gaps become NaN.
    """
    said = dict.fromkeys(measure for chunk in chunks for measure in chunk.evidence)

    def silent(chunk: StepInfo) -> Any:
        return np.full(chunk.finite.shape, np.nan)

    alike = [
        chunk._replace(
            gradient=None,
            evidence={m: chunk.evidence.get(m, silent(chunk)) for m in said},
        )
        for chunk in chunks
    ]
    return jax.tree.map(lambda *x: np.concatenate(x, axis=1), *alike)


def take_apart(
    arrays: dict[str, Any],
    facts: dict[str, Any],
    starts: list[Any],
    unconstrained_params: Any,
) -> list[StepInfo]:
    """The chunks that were joined and saved, split again."""
    one: Any = np.zeros(())
    shape = len(starts), sum(facts["lengths"])
    excess: Any = np.zeros((*shape, 0))  # empty arrays are not saved
    params = jax.tree.map(lambda x: np.zeros((*shape, *x.shape)), starts[0])
    evidence = {Measure(*each): one for each in facts["evidence"]}
    like = StepInfo(params, one, one, one, one, evidence, excess, None)
    joined = jax.device_get(unpack(arrays["infos"], like))
    ends = np.cumsum(facts["lengths"])
    chunks = [
        jax.tree.map(lambda x, a=start, b=end: x[:, a:b], joined)
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    count = min(len(chunks), 2)
    last = jax.device_get(unpack(arrays["last"], [unconstrained_params] * count))
    pairs = zip(chunks[-count:], last, strict=True)
    return chunks[:-count] + [c._replace(gradient=g) for c, g in pairs]


def identify(
    posed: Posed,
    ascent: Ascent,
    states: InfoMaxState,
    starts: list[Any],
    rng_key: jax.Array,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Data that must be equal for a run to continue."""
    method = posed.problem.method
    shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", starts[0])
    held = jax.tree.leaves(
        [*getattr(method, "__dict__", {}).values()],
        is_leaf=lambda x: isinstance(x, Program),
    )
    arrays = [x for x in held if isinstance(x, (Program, jax.Array, np.ndarray))]
    steps = Program.trace(ascend_many, ascent, states, jnp.zeros(1))
    return {
        "objective": repr(posed.objective),
        "sites": {n: list(site.shape) for n, site in posed.sm.site_info.items()},
        "parameters": {n: str(shape) for n, shape in shapes.items()},
        "scores": re.sub(r" at 0x[0-9a-f]+", "", repr(method)),
        **{name: str(value) for name, value in settings.items()},
        "rng_key": np.asarray(jax.random.key_data(rng_key)).tolist(),
        "mesh": str(jax.sharding.get_abstract_mesh()),
        "start": digest(starts),
        "optimizer": digest(states.opt_state),
        "trained scores": digest(arrays),
        "computation (the model, its arguments, functions of yours)": digest(
            [ascent, steps]
        ),
    }
