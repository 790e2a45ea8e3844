# SPDX-License-Identifier: Apache-2.0
"""Runs that outlive their process: arrays and facts in a folder, by Orbax.

A checkpoint holds arrays and JSON, no code. Orbax writes each into a folder of its own
that gets its name when it is whole, so that a process killed at any moment leaves the
last one behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import contextlib
import hashlib
import os
from pathlib import Path
import re
import signal
import threading
from typing import Any

import numpy as np
from orbax.checkpoint import (
    CheckpointManager,
    CheckpointManagerOptions,
    args as items,
)

import jax
import jax.numpy as jnp

from numpyro_infograd.arguments import is_key
from numpyro_infograd.errors import ArgumentError, CheckpointError
from numpyro_infograd.program import Program

_FORMAT = "numpyro_infograd 1"
_KEPT = 2  # the last is whole, or the one before is


class Checkpoint:
    """A folder with the last states of one run.

    Args:
        path: The folder; made where there is none.
        identity: What the run is recognised by, JSON.

    Raises:
        ArgumentError: if `path` is no path.
        CheckpointError: if the folder is no checkpoint, or that of another run.
    """

    def __init__(self, path: Any, identity: dict[str, Any]) -> None:
        try:
            self.path = Path(os.fspath(path)).expanduser().resolve()
            is_file = self.path.exists() and not self.path.is_dir()
        except (OSError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"checkpoint must be the path of a folder, or None, got {path!r:.80} "
                f"({error!s:.80})."
            ) from None
        if is_file:
            raise CheckpointError(
                f"checkpoint {self.path} is a file. Name a folder, or a path where "
                "there is nothing yet."
            )
        if jax.process_count() > 1:
            raise ArgumentError(
                f"checkpoint is for runs in one process, and this is one of "
                f"{jax.process_count()}. Leave it out."
            )
        self.identity = {"format": _FORMAT, **identity}
        strange = [p.name for p in _entries(self.path) if not _is_ours(p)]
        if strange:
            raise CheckpointError(
                f"checkpoint {self.path} holds other things ({strange[0]!r}). Name an "
                "empty folder, or a path where there is nothing yet."
            )
        try:
            self.manager = CheckpointManager(
                self.path,
                options=CheckpointManagerOptions(
                    max_to_keep=_KEPT, enable_async_checkpointing=False
                ),
            )
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {self.path} cannot be opened: {error}"
            ) from error

    def load(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Arrays and facts of the last save, or None where nothing was saved.

        Raises:
            CheckpointError: if the files are damaged, or of another run.
        """
        step = self.manager.latest_step()
        if step is None:
            return None
        try:
            found = self.manager.restore(
                step,
                args=items.Composite(
                    facts=items.JsonRestore(),
                    arrays=items.StandardRestore(fallback_sharding=_here()),
                ),
            )
            facts, arrays = found["facts"], found["arrays"]
            identity = facts.pop("identity")
        except Exception as error:  # whatever Orbax finds wrong
            raise CheckpointError(
                f"checkpoint {self.path} is damaged, or is none of this package: "
                f"{error!s:.200}. Remove the folder {self.path / str(step)}: the run "
                "then goes on from the save before, or starts anew."
            ) from error
        for name, mine in self.identity.items():
            if identity.get(name) != mine:
                raise CheckpointError(
                    f"checkpoint {self.path} is of another run: its {name} is "
                    f"{identity.get(name)!r:.300}, and not {mine!r:.300}. Name another "
                    "path, or remove the folder."
                )
        return arrays, facts

    def save(self, step: int, arrays: dict[str, Any], facts: dict[str, Any]) -> None:
        """Write a state; nested dicts of arrays, and JSON. An interrupt waits for it.

        Raises:
            CheckpointError: if nothing was written.
        """
        with _uninterrupted():
            if step in self.manager.all_steps():
                self.manager.delete(step)
            written = self.manager.save(
                step,
                args=items.Composite(
                    arrays=items.StandardSave(arrays),
                    facts=items.JsonSave({**facts, "identity": self.identity}),
                ),
            )
        if not written:
            raise CheckpointError(
                f"checkpoint {self.path} took no save of step {step}: it holds a later "
                "one. Name another path, or remove the folder."
            )

    def close(self) -> None:
        """Release what Orbax holds."""
        self.manager.close()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds an interrupt by the user back; only the main thread gets any."""
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


def _entries(path: Path) -> Iterable[Path]:
    return path.iterdir() if path.exists() else ()


def _is_ours(path: Path) -> bool:
    """Whether Orbax made this entry: a step's number, whole or still being written."""
    return bool(re.match(r"\d+($|\.orbax-checkpoint-tmp)", path.name))


def _here() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


# -- trees and their identity ---------------------------------------------------------


def pack(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree as plain arrays by number; random keys as their data.

    Orbax keeps no empty arrays, so these are left out.
    """
    leaves = enumerate(map(_plain, jax.tree.leaves(tree)))
    return {str(i): leaf for i, leaf in leaves if leaf.size}


def unpack(arrays: dict[str, Any], like: Any) -> Any:
    """The tree that `pack` took apart, in the structure of another."""
    leaves, structure = jax.tree.flatten(like)

    def one(index: str, leaf: Any) -> Any:
        if index not in arrays:
            return leaf  # empty
        if is_key(leaf):
            impl = jax.random.key_impl(leaf)
            return jax.random.wrap_key_data(jnp.asarray(arrays[index]), impl=impl)
        return jnp.asarray(arrays[index])

    return jax.tree.unflatten(structure, [one(str(i), x) for i, x in enumerate(leaves)])


def digest(tree: Any) -> str:
    """A fingerprint of a tree of programs and arrays, equal across processes.

    It holds what is computed, not how it was written.
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
    return found.hexdigest()[:16]


def _plain(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)
