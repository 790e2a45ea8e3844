# SPDX-License-Identifier: Apache-2.0
"""The host loop of an ascent: chunks, progress, interruption, when to stop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tqdm.auto import tqdm

import jax
import jax.numpy as jnp
import optax

from numpyro_infograd._checkpoint import unpack
from numpyro_infograd._gradient import pose_beyond_mixtures, why_not_mixture
from numpyro_infograd._optimize.annealing import Annealing, cooled, initial_variances
from numpyro_infograd._optimize.budgets import FARTHEST, is_settled
from numpyro_infograd._optimize.log import Log, identify, take_apart
from numpyro_infograd._optimize.move import constrained, decay
from numpyro_infograd._optimize.plan import Plan
from numpyro_infograd._optimize.polish import top
from numpyro_infograd._optimize.remaining import Outlook, Steepness, flat, outlook
from numpyro_infograd._optimize.result import Ending, Status
from numpyro_infograd._optimize.step import StepInfo, ascend_many
from numpyro_infograd._problem import Posed, as_fine
from numpyro_infograd.scores import Mixture
from numpyro_infograd.scores.base import measured

CHUNK = 20  # steps of one compiled scan; the progress bar moves between them
CYCLE = 200  # steps of one cosine decay if num_steps is None
MAX_CYCLES = 5
NEGLIGIBLE = 2e-4  # expected gain of more steps, relative to its unit, to stop
FIRST = 8  # steps whose gradients are compared with their noise
FEWEST = 2 * FIRST  # fewer steps do not show whether an ascent is finished


class Run:
    """The host loop of an ascent: chunks, progress, interruption, when to stop."""

    def __init__(
        self,
        plan: Plan,
        posed: Posed,
        rng_key: jax.Array,
        starts: list[Any],
        num_steps: int | None,
        annealing: Annealing = None,
        checkpoint: Any = None,
    ) -> None:
        self.plan, self.rng_key, self.starts = plan, rng_key, starts
        self.num_steps = num_steps
        self.posed = self.clean = posed  # with and without the noise of annealing
        self.heat = initial_variances(posed, starts[0], annealing)
        self.chunks: list[StepInfo] = []
        self.status = Status("", Ending.ALL_STEPS)
        self.is_stopped = False  # whether the user interrupted an estimate at the end
        self.reason = ""  # why the mixture was replaced
        self.middle: Any = None  # parameters and gradient in the middle of a cycle
        self.outlooks: list[Outlook] = []  # of each restart, at the end
        self.is_clear_first: list[bool] = []  # gradients of the first steps
        self.cycle, self.steps = 0, 0  # finished cycles, steps of the present one
        self._begin(starts)
        self.log: Log | None = None
        if checkpoint is not None:
            settings = {
                "num_steps": num_steps,
                "num_samples": self.ascent.source.size,
                "num_restarts": len(starts),
                "annealing": annealing,
            }
            self.log = Log(
                checkpoint,
                identify(posed, self.ascent, self.states, starts, rng_key, settings),
            )

    def _begin(self, starts: list[Any]) -> None:
        """Fit scores at the starts, which are where each restart is."""
        states = [
            self.plan.start(self.posed, jax.random.fold_in(self.rng_key, i), params)
            for i, params in enumerate(starts)
        ]
        self.states = jax.tree.map(lambda *x: jnp.stack(x), *states)
        self.ascent = self.plan.make_ascent(self.posed, self.starts[0])

    def run(self, progress_bar: bool) -> Run:
        """Run from the start, or from a checkpoint, to the end; returns itself."""
        total = self.num_steps or CYCLE
        try:
            if not self._resume():
                self._ascend(total, progress_bar)
                self._note(done=True)
        except KeyboardInterrupt:
            self.status = Status("interrupted by the user", Ending.INTERRUPTED)
            if self.log is not None:
                self.log.flush()
        finally:
            if self.log is not None:
                self.log.checkpoint.close()
        return self

    # -- checkpoints ------------------------------------------------------------------

    def _note(self, done: bool = False) -> None:
        """Keep the present state in the log, if there is one, to continue from it."""
        if self.log is None:
            return
        trees = {
            "states": self.states,
            "scale": self.ascent.move.scale,
            "middle": self.middle,
            "last": [chunk.gradient for chunk in self.chunks[-2:]],
        }
        facts = {
            "cycle": self.cycle,
            "steps": self.steps,
            "status": [self.status, self.status.ending.value],
            "reason": self.reason,
            "noisy": self.posed is not self.clean,
            "outlooks": self.outlooks,
            "is_clear_first": self.is_clear_first,
            "done": done,
        }
        self.log.note(list(self.chunks), trees, facts)

    def _resume(self) -> bool:
        """Load a snapshot if one was saved; return whether the run had ended."""
        found = self.log.checkpoint.load() if self.log is not None else None
        if found is None:
            return False
        arrays, facts = found
        if facts["reason"]:
            self._leave_mixture(facts["reason"])
        if facts["noisy"]:
            self._change(cooled(self.clean, self.heat, 0.0, self._params()[0]))
        self.states = unpack(arrays["states"], self.states)
        like = self.states.unconstrained_params
        scale = unpack(arrays["scale"], self.ascent.move.scale)
        self.ascent = self.ascent.rescaled(scale)
        if "middle" in arrays:
            self.middle = unpack(arrays["middle"], (like, like))
        self.outlooks = [Outlook(*each) for each in facts["outlooks"]]
        self.is_clear_first = facts["is_clear_first"]
        self.cycle, self.steps = facts["cycle"], facts["steps"]
        message, ending = facts["status"]
        self.status = Status(message, Ending(ending))
        self.chunks = take_apart(arrays, facts, self.starts, like)
        return bool(facts["done"])

    # -- steps ------------------------------------------------------------------------

    def _ascend(self, total: int, progress_bar: bool) -> None:
        """Run from the present state to the end."""
        done = sum(c.finite.shape[1] for c in self.chunks)
        bar = tqdm(
            total=self.cycle * CYCLE + total,
            initial=done,
            disable=not progress_bar,
            desc="ascent",
        )
        with bar:
            while not self._cycle(total, bar):
                self._rescale()
                self.cycle, self.steps = self.cycle + 1, 0
                bar.total += CYCLE
                bar.refresh()

    def _cycle(self, total: int, bar: Any) -> bool:
        """Run the rest of a cycle; return whether the run has ended."""
        chunk = self._chunk(total)
        middle = -(-total // (2 * chunk)) * chunk
        for start in range(self.steps, total, chunk):
            if self.heat and not self.cycle:
                self._cool(2 * start / total)
            steps = np.arange(start, min(start + chunk, total))
            infos = self._take(steps, total, is_middle=start == middle)
            bar.update(len(steps))
            norm = float(np.min(infos.gradient_norm[:, -1]))
            bar.set_postfix_str(f"gradient norm {norm:.3g}")
            self._watch(infos)
            self.steps = start + len(steps)
            if self._has_left(infos):
                return True
            self._note()
        return self._has_ended(total)

    def _take(self, steps: np.ndarray, total: int, is_middle: bool) -> StepInfo:
        """Take the steps of a chunk, and keep what the end of a cycle needs of them."""
        before, is_sampled = self.states, self.ascent.problem.is_sampled
        rates = jnp.asarray(self._rates(steps, total), jnp.zeros(()).dtype)
        self.states, infos = ascend_many(self.ascent, before, rates)
        infos = jax.device_get(infos)
        if self.posed is not self.clean:  # objective with appended noise
            infos = infos._replace(objective=np.full_like(infos.objective, np.nan))
        self.chunks.append(infos)
        if is_middle:
            few = max(total // 10, 1) if is_sampled else 1
            mean = jax.tree.map(lambda x: x[:, :few].mean(axis=1), infos.gradient)
            self.middle = before.unconstrained_params, mean
        if len(self.chunks) == 1 and is_sampled:
            self.is_clear_first = self._are_clear(infos)
            if not all(self.is_clear_first):
                # Steps across an optimum look like noise: look without a move.
                _, still = ascend_many(self.ascent, before, jnp.zeros_like(rates))
                self.is_clear_first = self._are_clear(jax.device_get(still))
        if len(self.chunks) > 2:  # only the last two gradients are used
            self.chunks[-3] = self.chunks[-3]._replace(gradient=None)
        return infos

    def _has_ended(self, total: int) -> bool:
        """Whether the run has ended after a cycle, and how."""
        done = sum(c.finite.shape[1] for c in self.chunks)
        self.outlooks = self._look_ahead(total)
        if self.num_steps:
            text = f"took all of num_steps={total} steps"
            if total < FEWEST:
                text += ", too few to say what more would gain"
            self.status = Status(text, Ending.ALL_STEPS)
            return True
        if self._is_stationary() and self._polish():
            self.status = Status(f"converged after {done} steps", Ending.CONVERGED)
            return True
        if self.cycle + 1 < MAX_CYCLES:
            return False
        text = f"stopped after {done} steps while the gradient still promised a gain"
        self.status = Status(text, Ending.UNFINISHED)
        return True

    def _chunk(self, total: int) -> int:
        """Steps of a chunk: two chunks show what more steps would gain."""
        if self.heat:  # noise falls at least five times before it is removed
            return min(CHUNK, max(total // 10, 1))
        return min(CHUNK, -(-total // 2)) if total >= FEWEST else CHUNK

    def _rates(self, steps: np.ndarray, total: int) -> np.ndarray:
        """The rate at steps of a cycle; the caller's optimizer has its own."""
        return decay(steps, total) if self.plan.is_default else np.ones(len(steps))

    def _watch(self, infos: StepInfo) -> None:
        """Under "auto", replace a mixture whose scores have become poor."""
        automatic = isinstance(self.plan.scores, str)
        mixture = isinstance(self.clean.problem.method, Mixture)
        if not automatic or not mixture or self.posed is not self.clean:
            return
        if why := why_not_mixture(infos.evidence):
            self._leave_mixture(why)

    def _leave_mixture(self, reason: str) -> None:
        """Continue with chains, or with networks if chains cannot sample the noise."""
        old, params = self.clean, self._params()[0]
        self.reason = reason
        beyond = pose_beyond_mixtures(old.sm, old.objective, params, reason)
        self.clean = as_fine(beyond, old)
        self._change(self.clean)

    def _has_left(self, infos: StepInfo) -> bool:
        """Whether the parameters left the range of pretrained scores."""
        if not any(np.any(v > 0) for v in measured(infos.evidence, "outside")):
            return False
        self.status = Status(
            "stopped where the parameters left the range that the scores were trained "
            "for: call pretrain_scores with a wider range",
            Ending.OUT_OF_RANGE,
        )
        return True

    def _cool(self, share: float) -> None:
        """Noise annealing: change to the problem after this share of the cooling."""
        if share >= 1.0:
            if self.posed is not self.clean:
                self._change(self.clean)
            return
        noisy = cooled(self.clean, self.heat, share, self._params()[0])
        if self.posed is self.clean:
            self._change(noisy)
        else:  # the same computation with other numbers
            self.posed, scale = noisy, self.ascent.move.scale
            ascent = self.plan.make_ascent(noisy, self.starts[0])
            self.ascent = ascent.rescaled(scale)

    def _change(self, posed: Posed) -> None:
        """Continue from here with scores for another problem."""
        params, old, scale = self._params(), self.states, self.ascent.move.scale
        self.posed = posed
        self._begin(params)
        self.states = self.states._replace(
            previous=old.previous,
            opt_state=old.opt_state,
            multipliers=old.multipliers,
            rng_key=old.rng_key,
            step=old.step,
        )
        self.ascent = self.ascent.rescaled(scale)

    def _params(self) -> list[Any]:
        """The present parameters of each restart."""
        constraints = self.ascent.move.constraints
        return [constrained(f, constraints) for f in self._each_unconstrained()]

    def _each_unconstrained(self) -> list[Any]:
        return [
            jax.tree.map(lambda x, i=i: x[i], self.states.unconstrained_params)
            for i in range(len(self.starts))
        ]

    # -- when to stop -----------------------------------------------------------------

    def _rescale(self) -> None:
        """At the start of a cycle, scale the rates to the present parameters."""
        if not self.plan.is_default:
            return
        constraints = self.ascent.move.constraints
        scale = self.plan.scales(self.states.unconstrained_params, constraints)
        self.ascent = self.ascent.rescaled(scale)
        if self._came_from_far():
            fresh = jax.vmap(self.plan.optimizer.init)(self.states.unconstrained_params)
            self.states = self.states._replace(opt_state=fresh)

    def _came_from_far(self) -> bool:
        """Whether the ascent was far outside a constraint in the last cycle.

        The gradients there are large, so Adam's steps stay small for long afterwards.
        """
        cycle = self.chunks[-(CYCLE // CHUNK) :]
        return any(np.any(chunk.excess > FARTHEST) for chunk in cycle)

    def _is_stationary(self) -> bool:
        """Whether no restart would gain by more steps, or by a one percent move."""
        return not self._came_from_far() and all(
            max(self._gain_of_small_move(i), ahead.gain if ahead.is_rising else 0.0)
            <= NEGLIGIBLE * self.unit_of_gain(i)
            and is_settled(
                np.mean(self.chunks[-1].excess[i], axis=0), self.states.multipliers[i]
            )
            for i, ahead in enumerate(self.outlooks)
        )

    def _look_ahead(self, total: int) -> list[Outlook]:
        """The outlook of each restart after a cycle; empty for less than two chunks."""
        if self.middle is None or len(self.chunks) < 2:
            return []
        rates = self._rates(np.arange(total), total)
        ratio = float(np.sum(rates) / np.sum(rates[total // 2 :]))
        # A gradient without noise needs no mean.
        steps = max(total // 5, 2) if self.ascent.problem.is_sampled else 1
        found = []
        for i in range(len(self.starts)):
            there, before = (flat(each, 1)[i] for each in self.middle)
            last = [flat(c.gradient, 2)[i] for c in self.chunks[-2:]]
            gradients = np.concatenate(last)[-steps:]
            moved = flat(self.states.unconstrained_params, 1)[i] - there
            scale = self.flat_scale()
            found.append(outlook(gradients, before, moved, scale, ratio))
        return found

    def _are_clear(self, infos: StepInfo) -> list[bool]:
        """Whether the first gradients of each restart can be told from their noise."""
        gradients = flat(infos.gradient, 2)[:, :FIRST] * self.flat_scale()
        few = gradients.shape[1] < FIRST
        return [few or Steepness.of(each).is_clear for each in gradients]

    def flat_scale(self) -> np.ndarray:
        """The peak rate of each number."""
        scale, start = self.ascent.move.scale, self._each_unconstrained()[0]
        return flat(
            jax.tree.map(lambda s, x: np.broadcast_to(s, x.shape), scale, start)
        )

    def _polish(self) -> bool:
        """Climb to the maximum, if the objective is known exactly; whether nothing is
        left to gain.
        """
        exact = self.ascent.problem.closed_form
        if exact is None or not self.plan.is_default:
            return True
        ends = [
            top(exact, self.ascent.move, here, jax.random.fold_in(self.rng_key, index))
            for index, here in enumerate(self._each_unconstrained())
        ]
        found = jax.tree.map(lambda *x: jnp.stack(x), *(end.params for end in ends))
        self.states = self.states._replace(
            previous=self.states.unconstrained_params, unconstrained_params=found
        )
        self.outlooks = [Outlook(float(end.remaining), 0.0, True) for end in ends]
        return all(end.remaining <= NEGLIGIBLE * abs(end.value) for end in ends)

    def _gain_of_small_move(self, index: int) -> float:
        """Gain in nats, beyond doubt, of a move by one percent of the parameters' size.

        It is the gain to first order by the gradient at the end of a cycle, where the
        parameters hardly move. Two errors are subtracted from its squared norm, so that
        noise does not look like a rise.
        """
        last = [flat(chunk.gradient, 2)[index] for chunk in self.chunks[-2:]]
        found = Steepness.of(np.concatenate(last))
        sure = max(found.square - 2.0 * found.error, 0.0)
        size = float(optax.tree.norm(self._each_unconstrained()[index])) or 1.0
        return 0.01 * size * math.sqrt(sure)

    def unit_of_gain(self, index: int) -> float:
        """Unit of a gain: one nat, or the whole gain of a restart if that is more.

        With constraints it is one nat, because the gain may come from meeting them.
        """
        if self.plan.subject_to:
            return 1.0
        return max(1.0, float(sum(np.nansum(c.gain[index]) for c in self.chunks)))
