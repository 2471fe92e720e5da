"""Who watches a run on the driver: the progress bar, a function of the user's, the report's page,
TensorBoard, MLflow."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Protocol

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

    def details(self, found: dict[str, Any]) -> None:
        """What `Details` tells, for those who show it."""
        for watcher in self._watchers:
            tell = getattr(watcher, "details", None)
            if tell is not None:
                tell(found)

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
    mlflow: bool | str,
    title: str,
    options: dict[str, Any],
    loss: Callable[..., Any],
    model: Any,
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
        if mlflow is not False and report is None:  # MLflow keeps the page
            report = stack.enter_context(tempfile.TemporaryDirectory())
        if report is not None:
            page = RunReport(report, title, options)
            watchers.append(page)
            endings.append(page)
        if tensorboard is not None:
            from .tensorboard import TensorBoard

            board = TensorBoard(tensorboard, loss, model)
            watchers.append(board)
            endings.append(board)
        if mlflow is not False:
            from .tracking import MlflowRun

            assert report is not None
            run = MlflowRun(mlflow if isinstance(mlflow, str) else None, report, options)
            watchers.append(run)
            endings.append(run)  # when the page has been written
        watch = Watch(watchers, endings)
        try:
            yield watch
        except BaseException as error:
            watch.close(error)
            raise
        watch.close(None)
