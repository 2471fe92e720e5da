"""MLflow: a run's parameters, metrics, report and model.

A tracking server may be slow, or gone, and its client tries again for minutes; so a thread of its
own talks to it, and a training never waits for it before the end.
"""

from __future__ import annotations

import queue
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import tensorlite as tl

from .monitor import Record

SECONDS_BETWEEN_BATCHES = 1.0
MOST_METRICS = 1000  # in a batch, as the server takes them
# How long the end of a training waits for a server that has answered, or that has never done.
LAST_SECONDS, LAST_SECONDS_UNHEARD = 600.0, 30.0
MODEL = "model.safetensors"
_LONGEST_TEXT = 500  # of a parameter, which servers of all versions take
_NO_METRICS = ("step", "steps", "ranks")


class MlflowRun:
    """Logs a training as a run of MLflow: below the active run, where there is one, else of the
    active experiment.

    Args:
        name: of the run; None leaves it to MLflow.
        folder: of the `RunReport` whose page is kept.
        options: the configuration, for people to read.

    Raises:
        ImportError: MLflow is missing.
    """

    def __init__(self, name: str | None, folder: str, options: dict[str, Any]):
        try:
            import mlflow
        except ImportError:
            raise ImportError(
                "Trainer: mlflow needs MLflow's client: pip install 'tensorlite[mlflow]'"
            ) from None
        self._mlflow = mlflow
        self._name, self._folder, self._options = name, folder, options
        self._above = mlflow.active_run()  # of this thread
        self._has_answered = self._has_given_up = False
        self._records: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._ended: tuple[Any, str] = (None, "FAILED")
        # A daemon: a server that does not answer must not keep the process from ending.
        self._thread = threading.Thread(target=self._live, name="tensorlite-mlflow", daemon=True)
        self._thread.start()

    def __call__(self, record: Record) -> None:
        """Log a record's numbers, soon."""
        if not self._has_given_up:
            self._records.put({**record, "at": time.time()})

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Log what has come of it, and wait until the server has it."""
        killed = error is not None and not isinstance(error, Exception)
        status = "FINISHED" if error is None else "KILLED" if killed else "FAILED"
        self._ended = result, status
        self._records.put(None)
        self._thread.join(LAST_SECONDS_UNHEARD)
        if self._thread.is_alive() and self._has_answered:
            self._thread.join(LAST_SECONDS - LAST_SECONDS_UNHEARD)
        if self._thread.is_alive():
            self._give_up("it does not answer")

    def _live(self) -> None:
        try:
            self._log()
        except Exception as error:  # MLflow raises whatever its stores, and the network, do
            self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, problem: str) -> None:
        if self._has_given_up:
            return
        self._has_given_up = True
        warnings.warn(
            f"MLflow's run is not complete: {problem} (tracking URI "
            f"{self._mlflow.get_tracking_uri()}); the training does not depend on it",
            RuntimeWarning,
            stacklevel=3,
        )

    def _log(self) -> None:
        mlflow, above = self._mlflow, self._above
        run = mlflow.start_run(  # active in this thread alone
            run_name=self._name,
            experiment_id=above.info.experiment_id if above is not None else None,
            nested=above is not None,
            parent_run_id=above.info.run_id if above is not None else None,
        )
        self._has_answered = True
        status = "FAILED"
        try:
            client = mlflow.MlflowClient()
            texts = {name: _text(value) for name, value in self._options.items()}
            mlflow.log_params({name: text for name, text in texts.items() if text})
            while (records := self._gathered()) is not None:
                self._log_metrics(client, run.info.run_id, records)
            result, status = self._ended
            self._log_artifacts(result)
        finally:
            mlflow.end_run(status)

    def _gathered(self) -> list[Record] | None:
        """The records of the next second; None after the last ones."""
        first = self._records.get()
        if first is None:
            return None
        records = [first]
        until = time.monotonic() + SECONDS_BETWEEN_BATCHES
        while (left := until - time.monotonic()) > 0:
            try:
                record = self._records.get(timeout=left)
            except queue.Empty:
                break
            if record is None:
                self._records.put(None)  # for the next time
                break
            records.append(record)
        return records

    def _log_metrics(self, client: Any, run_id: str, records: list[Record]) -> None:
        metrics = [
            self._mlflow.entities.Metric(name, value, int(record["at"] * 1e3), record["step"])
            for record in records
            for name, value in record.items()
            if name not in (*_NO_METRICS, "at")
        ]
        for first in range(0, len(metrics), MOST_METRICS):
            client.log_batch(run_id, metrics=metrics[first : first + MOST_METRICS])

    def _log_artifacts(self, result: Any) -> None:
        """The report's files and, of a training that has a result, its summary and the model."""
        self._mlflow.log_artifacts(self._folder, "report")
        if result is None:
            return
        summary = {n: v for n, v in result.summary.items() if isinstance(v, int | float)}
        self._mlflow.log_metrics({f"summary/{name}": float(v) for name, v in summary.items()})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, MODEL)
            tl.save(path, result.model)
            self._mlflow.log_artifact(str(path), "model")


def _text(value: Any) -> str:
    """An option as MLflow keeps it."""
    name = getattr(value, "__qualname__", None)
    return (name if name is not None else str(value))[:_LONGEST_TEXT]
