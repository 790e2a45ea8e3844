# SPDX-License-Identifier: Apache-2.0
"""Where an ascent ended."""

from __future__ import annotations

from dataclasses import dataclass, field
import importlib
import math
from typing import Any

import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd.optimize.budgets import ConstraintReport
from numpyro_infograd.values import Estimate


@dataclass(frozen=True)
class Result:
    """Where an ascent ended.

    Attributes:
        params: The parameters, in constrained space.
        estimate: The objective there, with a standard error; None (and a reason in
            `status`) where no estimator applies.
        history: Arrays over steps: "gradient_norm", "gain", "params" (a dict),
            "objective" where it is known exactly, and what the scores say of
            themselves by set of sites, such as "stein_residual(y)", "held_out_gain(y)"
            and "trained(y)": whether the networks were trained at the step.
        status: How it ended, in words.
        diagnostics: Score method and why it was chosen; skipped steps; restarts.
        constraints: How each constraint of `subject_to` stands.
        histories: As `history`, for each restart; `history` is that of the best.
    """

    params: dict[str, Any]
    estimate: Estimate | None
    history: dict[str, Any]
    status: str
    diagnostics: dict[str, Any] = field(default_factory=dict)
    constraints: tuple[ConstraintReport, ...] = ()
    histories: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        rows = ["Result:"]
        for name, value in self.params.items():
            leaves = jax.tree.leaves(value)
            size = sum(leaf.size for leaf in leaves)
            if len(leaves) == 1 and size <= 8:
                text = np.array2string(np.asarray(leaves[0]), precision=5)
            else:
                norm = math.sqrt(sum(float(jnp.sum(x**2)) for x in leaves))
                text = f"{size} numbers, norm {norm:.5g}"
            rows.append(f"  {name} = {text}")
        rows.append(f"  objective: {self.estimate}")
        rows += [f"  {report!r}" for report in self.constraints]
        scores = self.diagnostics.get("method", "?")
        rows.append(f"  scores: {scores} ({self.diagnostics.get('reason', '')})")
        rows.append(f"  {self.status}")
        return "\n".join(rows)

    def to_inference_data(self) -> Any:
        """What was found as ArviZ data: an `InferenceData`, from ArviZ 1 a `DataTree`.

        Here `posterior` holds the parameters over the steps, one chain for each
        restart, and `sample_stats` the rest of the history: no draws of a posterior,
        but what trace plots and tables are made of.
        """
        room = "numpyro_infograd.diagnostics.inference_data"
        return importlib.import_module(room).to_inference_data(self)
