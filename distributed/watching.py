"""Who watches a run on the driver: the progress bar, a function of the user's, the report's page,
TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

import tensorlite as tl

from .monitor import ProgressBar, Record
from .report import RunReport

Watcher = Callable[[Record], None]


class Ending(Protocol):
    """What wants to know how a run ended."""

    def finish(self, result: Any, error: BaseException | None) -> None:
        """`result` is a `TrainingResult`, or None after an error."""


class Watch:
    """Hands each record to all who watch, and tells them the end."""

    def __init__(self, watchers: list[Watcher], endings: list[Ending]):
        self._watchers, self._endings = watchers, endings
        self._result: Any = None

    def __call__(self, record: Record) -> None:
        for watcher in self._watchers:
            watcher(record)

    def also(self, watcher: Any) -> None:
        """Let another one watch, who wants to know the end, too."""
        self._watchers.append(watcher)
        self._endings.append(watcher)

    def warn(self, text: str) -> None:
        """A warning of the run's."""
        for watcher in self._watchers:
            if isinstance(watcher, RunReport):
                watcher.warn(text)

    def ended(self, result: Any) -> None:
        """The run has this result."""
        self._result = result

    def close(self, error: BaseException | None) -> None:
        for ending in self._endings:
            ending.finish(self._result, error)


@contextlib.contextmanager
def watching(
    progress: bool | Watcher,
    report: str | None,
    tensorboard: str | None,
    title: str,
    options: dict[str, Any],
) -> Iterator[Watch]:
    """A watch over one run, as `Trainer` describes its options."""
    watchers: list[Watcher] = []
    endings: list[Ending] = []
    with contextlib.ExitStack() as stack:
        if callable(progress):
            watchers.append(progress)
        elif progress:
            bar = ProgressBar()
            stack.callback(bar.close)
            watchers.append(bar)
        if report is not None:
            page = RunReport(report, title, options)
            watchers.append(page)
            endings.append(page)
        if tensorboard is not None:
            board = TensorBoard(tensorboard)
            watchers.append(board)
            endings.append(board)
        watch = Watch(watchers, endings)
        try:
            yield watch
        except BaseException as error:
            watch.close(error)
            raise
        watch.close(None)


class TensorBoard:
    """Writes scalars of each record, and at the end histograms of the parameters.

    Raises:
        ImportError: tensorboardX is missing.
    """

    SCALARS = ("loss", "images_per_second", "communication", "hidden_communication")

    def __init__(self, folder: str):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ImportError(
                "Trainer: tensorboard needs tensorboardX: pip install 'tensorlite[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(folder)
        self._step = 0

    def __call__(self, record: Record) -> None:
        """Write a record's numbers."""
        self._step = record["step"]
        for name, value in record.items():
            if name in self.SCALARS:
                self._writer.add_scalar(f"training/{name}", value, self._step)
            elif name.startswith("validation_"):
                measure = name.removeprefix("validation_")
                self._writer.add_scalar(f"validation/{measure}", value, self._step)

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Write the parameters, and close the file."""
        if result is not None:
            model = result.model
            for name, leaf in zip(tl.tree.paths(model), tl.tree.leaves(model), strict=True):
                self._writer.add_histogram(name, np.asarray(leaf).astype(np.float32), self._step)
        self._writer.close()
