"""Checkpoints of a run: one safetensors file for each saved step in a folder, written atomically,
the newest few kept."""

from __future__ import annotations

import contextlib
import pathlib
import re
from typing import Any

import tensorlite as tl

_NAME = re.compile(r"step-(\d{9,})\.safetensors")


class CheckpointFolder:
    """The checkpoints in `path`, a local folder that is made when the first one is saved.

    Args:
        keep: how many of the newest are kept.
    """

    def __init__(self, path: str, keep: int = 3):
        if "://" in path:
            raise ValueError(
                f"checkpoint: {path!r} is a URI, but checkpoints go to folders of rank 0's host; "
                "pass a local path, or one that all hosts mount"
            )
        self.path = pathlib.Path(path).expanduser()
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps saved, oldest first."""
        if not self.path.is_dir():
            return []
        found = [_NAME.fullmatch(entry.name) for entry in self.path.iterdir()]
        return sorted(int(match[1]) for match in found if match)

    def save(self, step: int, tree: Any, metadata: dict[str, str]) -> None:
        """Save `tree` as the state after `step` steps, then drop the oldest ones."""
        self.path.mkdir(parents=True, exist_ok=True)
        tl.save(self._file(step), tree, metadata={"step": str(step), **metadata})
        for old in self.steps()[: -self.keep]:
            with contextlib.suppress(FileNotFoundError):
                self._file(old).unlink()

    def metadata(self, step: int) -> dict[str, str]:
        """What was saved beside the state."""
        return tl.io.read_metadata(self._file(step))

    def load(self, step: int, like: Any) -> Any:
        """The state after `step` steps.

        Raises:
            ValueError: names, shapes or dtypes differ from those of `like`; lists them.
        """
        return tl.load(self._file(step), like=like)

    def _file(self, step: int) -> pathlib.Path:
        return self.path / f"step-{step:09d}.safetensors"
