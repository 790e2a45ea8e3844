# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: arrays and JSON data of a run in a folder, by Orbax.

A checkpoint has no code. Orbax writes each save to a temporary folder and renames the
folder when it is complete. So if a process is killed, the last complete save remains.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import hashlib
import os
from pathlib import Path
import re
import signal
import threading
from typing import Any

import lazy_loader
import numpy as np

import jax
import jax.numpy as jnp

from numpyro_infograd._arguments import is_key
from numpyro_infograd._program import Program
from numpyro_infograd._text import brief
from numpyro_infograd.errors import ArgumentError, CheckpointError

# Only runs with a checkpoint need it; `orbax` is a namespace without code.
ocp = lazy_loader.load("orbax.checkpoint", suppress_warning=True)

_FORMAT = "numpyro_infograd 1"
_KEPT = 2  # saves to keep, in case the last one is damaged
# Folders of Orbax: a step, complete or still being written.
_OURS = re.compile(r"\d+($|\.orbax-checkpoint-tmp)")


class Checkpoint:
    """A folder with the last states of one run; it is made if it does not exist.

    `identity` is JSON data that must be equal for a run to continue.
    """

    def __init__(self, path: Any, identity: dict[str, Any]) -> None:
        try:
            self.path = Path(os.fspath(path)).expanduser().resolve()
            is_file = self.path.exists() and not self.path.is_dir()
        except (OSError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"checkpoint must be the path of a folder, or None, got {brief(path)} "
                f"({error!s:.80})."
            ) from None
        if is_file:
            raise CheckpointError(
                f"checkpoint {self.path} is a file. Name a folder, or a path that does "
                "not exist."
            )
        if jax.process_count() > 1:
            raise ArgumentError(
                "checkpoint is for runs in one process, but there are "
                f"{jax.process_count()} processes. Leave it out."
            )
        self.identity = {"format": _FORMAT, **identity}
        entries = self.path.iterdir() if self.path.exists() else ()
        strange = [p.name for p in entries if not _OURS.match(p.name)]
        if strange:
            raise CheckpointError(
                f"checkpoint {self.path} holds other things ({strange[0]!r}). Name an "
                "empty folder, or a path that does not exist."
            )
        try:
            self.manager = ocp.CheckpointManager(
                self.path,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=_KEPT, enable_async_checkpointing=False
                ),
            )
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {self.path} cannot be opened: {error}. Use another folder."
            ) from error

    def load(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Arrays and facts of the last save; None before the first save."""
        step = self.manager.latest_step()
        if step is None:
            return None
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        try:
            found = self.manager.restore(
                step,
                args=ocp.args.Composite(
                    facts=ocp.args.JsonRestore(),
                    arrays=ocp.args.StandardRestore(fallback_sharding=here),
                ),
            )
            facts, arrays = found["facts"], found["arrays"]
            identity = facts.pop("identity")
        except Exception as error:  # any error of Orbax
            raise CheckpointError(
                f"checkpoint {self.path} is damaged, or not of this package: "
                f"{error!s:.200}. Remove the folder {self.path / str(step)}: the run "
                "then continues from the save before, or starts again."
            ) from error
        for name, mine in self.identity.items():
            if (saved := identity.get(name)) != mine:
                differs = f"is {saved!r:.300}, not {mine!r:.300}"
                if isinstance(mine, Digest):
                    differs = "differs"
                raise CheckpointError(
                    f"checkpoint {self.path} is of another run: its {name} {differs}. "
                    "Name another path, or remove the folder. For more steps, pass the "
                    "parameters of its result as init_params, and another path."
                )
        return arrays, facts

    def save(self, step: int, arrays: dict[str, Any], facts: dict[str, Any]) -> None:
        """Save nested dicts of arrays, and JSON data; an interrupt waits for it."""
        with _uninterrupted():
            if step in self.manager.all_steps():
                self.manager.delete(step)
            written = self.manager.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(arrays),
                    facts=ocp.args.JsonSave({**facts, "identity": self.identity}),
                ),
            )
        if not written:
            raise CheckpointError(
                f"checkpoint {self.path} did not save step {step}, because it has a "
                "later step. Name another path, or remove the folder."
            )

    def close(self) -> None:
        self.manager.close()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay an interrupt by the user; only the main thread receives interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *what: caught.append(what))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


# -- trees and their identity ---------------------------------------------------------


def pack(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree as arrays by number; PRNG keys as their data.

    Orbax cannot save empty arrays, so these are left out.
    """
    leaves = enumerate(map(_plain, jax.tree.leaves(tree)))
    return {str(i): leaf for i, leaf in leaves if leaf.size}


def unpack(arrays: dict[str, Any], like: Any) -> Any:
    """The tree of packed arrays, in the structure of `like`."""
    leaves, structure = jax.tree.flatten(like)

    def one(index: str, leaf: Any) -> Any:
        if index not in arrays:
            return leaf  # empty
        if is_key(leaf):
            impl = jax.random.key_impl(leaf)
            return jax.random.wrap_key_data(jnp.asarray(arrays[index]), impl=impl)
        return jnp.asarray(arrays[index])

    return jax.tree.unflatten(structure, [one(str(i), x) for i, x in enumerate(leaves)])


class Digest(str):
    """A hash, which says nothing to a reader."""


def digest(tree: Any) -> Digest:
    """A hash of a tree of programs and arrays, equal in all processes.

    It depends on the computation of a program, not on its source.
    """
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Program)):
        if isinstance(leaf, Program):
            found.update(leaf.code.text.encode())
            found.update(digest(leaf.consts).encode())
        else:
            array = _plain(leaf)
            found.update(f"{array.dtype}{array.shape}".encode())
            found.update(array.tobytes())
    return Digest(found.hexdigest()[:16])


def _plain(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)
