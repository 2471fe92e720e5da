"""Checkpoints of a run: one safetensors file for each saved step in a folder, local or on any file
system that pyarrow knows.

A file appears all at once. It holds a digest of its tensors, so that one that was cut off or
damaged later is noticed; then the one before it serves. Nothing in it is executed.

`Writer` saves in a thread of its own while training goes on. Two attempts of one run that save the
same step save the same bytes, so it does no harm if an older attempt, which Spark has given up but
not stopped yet, is the later one to write.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import queue
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite.data.files import UNFINISHED, open_store

FORMAT = 1  # of what is in a file; older ones, without a number, have no digest
_NAME = re.compile(r"step-(\d{9,})\.safetensors")


class DamagedError(ValueError):
    """A checkpoint cannot be read: it was cut off, or its bytes have changed."""


class CheckpointFolder:
    """The checkpoints in `path`, a folder that is made when the first one is saved.

    Args:
        path: a local path or a URI (file://, hdfs://, s3://, ...). Where workers run on several
            hosts, it should be one that all of them reach.
        keep: how many of the newest are kept.
        keep_best: also keep the one with the least loss.

    Raises:
        ValueError: the URI makes no sense.
        OSError: its file system cannot be reached.
        ImportError: it needs pyarrow.
    """

    def __init__(self, path: str, keep: int = 3, keep_best: bool = False):
        self._store, place = open_store(os.path.expanduser(path), "checkpoint")
        self._place = place.rstrip("/")
        self.keep, self.keep_best = keep, keep_best
        self._losses: dict[int, float] = {}

    def __str__(self) -> str:
        return self._store.show(self._place)

    def steps(self) -> list[int]:
        """The steps saved, oldest first."""
        if self._store.kind(self._place) != "folder":
            return []
        found = [_NAME.fullmatch(name) for name in self._store.names(self._place)]
        return sorted(int(match[1]) for match in found if match)

    def prepare(self) -> None:
        """Make sure that it can be written to, and remove what killed writers have left.

        Raises:
            OSError: it cannot.
        """
        probe = f"{self._place}/probe.txt"
        try:
            self._store.put(probe, _touch)
            self._store.remove(probe)
            for name in self._store.names(self._place):
                if UNFINISHED in name:
                    with contextlib.suppress(FileNotFoundError):
                        self._store.remove(f"{self._place}/{name}")
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(
                f"checkpoint: {self} cannot be written to: {reason}; choose another folder, or "
                "make it writable for the workers"
            ) from error

    def save(
        self, step: int, tree: Any, metadata: dict[str, str], loss: float | None = None
    ) -> None:
        """Save `tree` as the state after `step` steps, then drop the oldest ones.

        Raises:
            OSError: it cannot be written; the others are still there.
        """
        about = {"format": str(FORMAT), "step": str(step), "sha256": _digest(tree), **metadata}
        if loss is not None:
            about["loss"] = repr(float(loss))
        self._store.put(self._file(step), lambda path: tl.save(path, tree, metadata=about))
        if loss is not None:
            self._losses[step] = float(loss)
        for old in self._dropped():
            with contextlib.suppress(OSError):  # somebody else may have removed it
                self._store.remove(self._file(old))

    def metadata(self, step: int) -> dict[str, str]:
        """What was saved beside the state.

        Raises:
            DamagedError: the file cannot be read.
        """
        return self._read(step, tl.io.read_metadata)

    def check(self, step: int) -> dict[str, str]:
        """Read a checkpoint and compare it with its digest; its metadata.

        Raises:
            DamagedError: the file was cut off, or has changed.
            ValueError: a newer version of tensorlite wrote it.
        """
        about = self.metadata(step)
        if int(about.get("format", "0")) > FORMAT:
            raise ValueError(
                f"checkpoint: step {step} in {self} was written by a newer version of tensorlite "
                f"(format {about['format']}, this one reads up to {FORMAT}); update tensorlite"
            )
        if "sha256" in about and _digest(self._read(step, tl.load)) != about["sha256"]:
            raise DamagedError(f"checkpoint: step {step} in {self} does not match its digest")
        return about

    def load(self, step: int, like: Any) -> Any:
        """The state after `step` steps.

        Raises:
            ValueError: names, shapes or dtypes differ from those of `like`; lists them.
        """
        with self._store.local(self._file(step)) as path:
            return tl.load(path, like=like)

    def newest(self) -> int | None:
        """The newest step whose checkpoint is whole; damaged ones are named in a warning."""
        for step in reversed(self.steps()):
            try:
                self.check(step)
            except DamagedError as error:
                warnings.warn(f"{error}; an older one is used", RuntimeWarning, stacklevel=2)
            else:
                return step
        return None

    def _read(self, step: int, read: Callable[[Any], Any]) -> Any:
        try:
            with self._store.local(self._file(step)) as path:
                return read(path)
        except ValueError as error:
            raise DamagedError(f"checkpoint: step {step} in {self}: {error}") from error

    def _dropped(self) -> list[int]:
        saved = self.steps()
        old = saved[: -self.keep]
        if self.keep_best and old:
            best = min(saved, key=lambda step: (self._loss(step), step))
            old = [step for step in old if step != best]
        return old

    def _loss(self, step: int) -> float:
        if step not in self._losses:
            try:
                self._losses[step] = float(self.metadata(step).get("loss", "inf"))
            except (DamagedError, OSError):
                self._losses[step] = float("inf")
        loss = self._losses[step]
        return loss if math.isfinite(loss) else math.inf  # NaN would be the least, or not, by place

    def _file(self, step: int) -> str:
        return f"{self._place}/step-{step:09d}.safetensors"


class Writer:
    """Saves to a folder in a thread of its own. While one checkpoint is written, the newest of
    those that come meanwhile waits.

    A checkpoint that cannot be written costs a warning, not the training.

    Args:
        tell: is given each problem, once.
    """

    def __init__(self, folder: CheckpointFolder, tell: Callable[[str], None]):
        self._folder = folder
        self._tell = tell
        self._told: set[str] = set()
        self._waiting: queue.Queue[tuple[Any, ...] | None] = queue.Queue(1)
        self._thread = threading.Thread(target=self._serve, name="tensorlite-checkpoint")
        self._thread.start()

    def put(self, step: int, tree: Any, metadata: dict[str, str], loss: float) -> None:
        """Save this, soon. The tensors are copied before this returns."""
        snapshot = tl.tree.map(lambda leaf: np.array(leaf.numpy()), tree)
        with contextlib.suppress(queue.Empty):
            self._waiting.get_nowait()  # an older one that has not been begun
        self._waiting.put((step, snapshot, metadata, loss))

    def close(self) -> None:
        """Wait until everything is saved."""
        self._waiting.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (item := self._waiting.get()) is not None:
            step, snapshot, metadata, loss = item
            try:
                self._folder.save(step, snapshot, metadata, loss)
            except Exception as error:  # file systems raise errors of many kinds
                reason = getattr(error, "strerror", None) or str(error)
                if reason not in self._told:
                    self._told.add(reason)
                    self._tell(
                        f"the checkpoint of step {step} could not be saved to {self._folder}: "
                        f"{reason}; training goes on, and the next one is tried when it is due"
                    )


def load_checkpoint(path: str, like: Any, step: int | None = None) -> Any:
    """The model of a checkpoint that `Trainer` has saved.

    Args:
        path: the folder, as `Trainer(checkpoint=...)` has it.
        like: a model of the same structure.
        step: which one; None takes the newest that is not damaged.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: the chosen one was cut off, or has changed.
        ValueError: the model is another one; the message lists what differs.
    """
    folder = CheckpointFolder(path)
    chosen = folder.newest() if step is None else step
    if chosen is None or chosen not in folder.steps():
        found = ", ".join(map(str, folder.steps())) or "none"
        raise FileNotFoundError(f"load_checkpoint: {folder} has steps {found}, not {step or 'one'}")
    if step is not None:
        folder.check(step)
    saved = folder._read(chosen, tl.load)
    prefix = "state.model."
    names = tl.tree.paths(like)
    model = {n.removeprefix(prefix): x for n, x in saved.items() if n.startswith(prefix)}
    if "" in names:  # a model that is one tensor
        model = {"": saved["state.model"]}
    expected = {n: tl.asarray(x) for n, x in zip(names, tl.tree.leaves(like), strict=True)}
    lines = [
        f"{n}: {x.aval} is expected, and not saved" for n, x in expected.items() if n not in model
    ]
    for n, x in model.items():
        if n not in expected:
            lines.append(f"{n}: {x.aval} is saved, and not expected")
        elif expected[n].aval != x.aval:
            lines.append(f"{n}: {x.aval} is saved, {expected[n].aval} is expected")
    if lines:
        shown = "\n  ".join(lines[:20])
        raise ValueError(f"load_checkpoint: step {chosen} in {folder} does not fit:\n  {shown}")
    return tl.tree.unflatten(tl.tree.structure(like), [model[name] for name in names])


def _touch(path: Path) -> None:
    path.write_bytes(b"")


def _digest(tree: Any) -> str:
    """A hash of the names, dtypes, shapes and bytes of a tree, or of what a file has of it."""
    digest = hashlib.sha256()
    pairs = zip(tl.tree.paths(tree), tl.tree.leaves(tree), strict=True)
    for name, leaf in sorted(pairs, key=lambda pair: pair[0]):
        array = np.ascontiguousarray(np.asarray(leaf))
        digest.update(f"{name} {array.dtype} {np.shape(leaf)} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
