"""The report of a run: one HTML file that needs nothing else, written anew while the run goes on.

A folder holds the run: `run.json` says what is trained and where, `records.jsonl` has a line for
each record, and `report.html` is made of both. A run that is started again, or goes on from a
checkpoint, adds to the same lines.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import tensorlite as tl

from .monitor import Record

RUN, RECORDS, PAGE = "run.json", "records.jsonl", "report.html"
SECONDS_BETWEEN_PAGES = 5.0
MOST_POINTS = 2000  # of a curve in the page
_TEMPLATE = Path(__file__).with_name("report.html")


class RunReport:
    """Keeps what is reported of a run in a folder.

    Args:
        folder: a local folder, which is made.
        title: what the page is called.
        options: the configuration, for people to read.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str], title: str, options: dict[str, Any]):
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._began, self._last_page = time.monotonic(), 0.0
        self._about: dict[str, Any] = {
            "title": title,
            "begun": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
            "state": "running",
            "seconds": 0.0,
            "options": {name: _text(value) for name, value in options.items()},
            "environment": environment(),
            "summary": {},
            "warnings": [],
            "ranks": [],
        }
        self._records = open(self._folder / RECORDS, "a", buffering=1)  # noqa: SIM115
        self._save()

    def __call__(self, record: Record) -> None:
        """Keep a record, and now and then write the page."""
        with self._lock:
            if self._records.closed:
                return
            seconds = time.monotonic() - self._began
            self._records.write(json.dumps(_sound({**record, "seconds": seconds})) + "\n")
            self._about["seconds"] = seconds
            self._about["ranks"] = record.get("ranks", self._about["ranks"])
            if time.monotonic() - self._last_page > SECONDS_BETWEEN_PAGES:
                self._save()

    def warn(self, text: str) -> None:
        """Keep a warning."""
        with self._lock:
            self._about["warnings"].append(text)

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Write the last page. `result` is a `TrainingResult`, or None after an error."""
        with self._lock:
            self._about["seconds"] = time.monotonic() - self._began
            self._about["state"] = "failed" if error is not None else "done"
            if error is not None:
                self._about["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            summary = dict(result.summary) if result is not None else {}
            self._about["ranks"] = summary.pop("ranks", self._about["ranks"])
            self._about["summary"] = summary
            self._save()
            self._records.close()

    def _save(self) -> None:
        self._last_page = time.monotonic()
        _write(self._folder / RUN, json.dumps(_sound(self._about), indent=1))
        _write(self._folder / PAGE, page(self._folder))


def page(folder: str | os.PathLike[str]) -> str:
    """The report of a run's folder as HTML.

    Raises:
        FileNotFoundError: it is no such folder.
        ValueError: its files are damaged.
    """
    folder = Path(folder)
    if not (folder / RUN).is_file():
        raise FileNotFoundError(
            f"report: {folder} has no {RUN}; give the folder that Trainer(report=...) was given"
        )
    run = json.loads((folder / RUN).read_text())
    records = list(_read(folder / RECORDS))
    run["validation"] = _validation(records)
    run["records"] = thinned(records)
    # Within a script element only an end tag ends it.
    data = json.dumps(_sound(run)).replace("</", "<\\/")
    return _TEMPLATE.read_text().replace("DATA", data, 1)


def thinned(records: list[Record], most: int = MOST_POINTS) -> list[Record]:
    """Records whose curves look the same, at most so many: the last of each group."""
    each = -(-len(records) // most) or 1
    return [records[min(end, len(records)) - 1] for end in range(each, len(records) + each, each)]


def environment() -> dict[str, str]:
    """What the numbers of this process depend on."""
    found = {
        "tensorlite": tl.__version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "system": platform.platform(),
        "host": platform.node(),
        "CPUs": str(os.cpu_count()),
    }
    from importlib import metadata

    for name in ("pyspark", "onednn-cpu-gomp", "llvmlite"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _validation(records: Iterable[Record]) -> dict[str, list[list[float]]]:
    """Points (step, value) of each validation measure, by name."""
    found: dict[str, list[list[float]]] = {}
    for record in records:
        for name, value in record.items():
            if name.startswith("validation_"):
                found.setdefault(name, []).append([record["step"], value])
    return found


def _read(path: Path) -> Iterable[Record]:
    """The records of a file, each step once: what a run that was started again says last."""
    by_step: dict[int, Record] = {}
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a process that was killed
        # A run that went back to a checkpoint says the steps after it anew.
        while by_step and next(reversed(by_step)) >= record["step"]:
            by_step.popitem()
        by_step[record["step"]] = record
    return by_step.values()


def _sound(value: Any) -> Any:
    """A value as JSON can carry it: numbers that are not finite as null."""
    if isinstance(value, dict):
        return {name: _sound(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_sound(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _text(value: Any) -> str:
    """An option for people to read."""
    name = getattr(value, "__qualname__", None)
    return name if name is not None else str(value)


def _write(path: Path, text: str) -> None:
    """Give a file this content at once, since a browser may be reading it."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)
