"""Profiles: what ran when, as a trace that Perfetto and chrome://tracing open.

The file is in the Trace Event Format: a JSON object whose `traceEvents` are complete events
(`ph: "X"`, microseconds) and metadata that name the rows. There is one row for each device and
thread, and one for the named spans of each thread.
"""

from __future__ import annotations

import json
import os
import threading
from time import perf_counter_ns
from typing import Any

from .observe import Launch, Watcher, avals, span, unwatch, watch
from .origin import here

__all__ = ["profile", "span"]


class profile(Watcher):
    """Record everything that runs in a block, in all threads, and write it as a Chrome trace.

        with tl.profile("trace.json"):
            step(model, batch)

    Open the file at ui.perfetto.dev. Eager operations and the calls of jitted functions are slices;
    the steps of a compiled graph lie inside its call. Arguments of a slice are the shapes and
    dtypes, the parameters, the scope and the user's line. `tl.profiler.span` adds slices of one's
    own. The file is written when the block ends, also by an exception; a block inside a block
    writes a file of its own.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        self._events: list[dict[str, Any]] = []
        self._rows: dict[tuple[str, int], int] = {}
        self._lock = threading.Lock()
        self._start = 0

    def __enter__(self) -> profile:
        folder = os.path.dirname(self.path) or "."
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"profile: there is no folder {folder!r} to write a trace to")
        self._events, self._rows = [], {}
        self._start = perf_counter_ns()
        watch(self)
        return self

    def __exit__(self, *exc: Any) -> None:
        unwatch(self)
        content = {
            "traceEvents": [*self._metadata(), *self._events],
            "displayTimeUnit": "ns",
        }
        partial = f"{self.path}.{os.getpid()}.partial"
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(content, file, default=str)  # a span may have details of any kind
        os.replace(partial, self.path)

    def launched(self, launch: Launch) -> None:
        origin = launch.origin if launch.step else here()
        details: dict[str, Any] = {
            "inputs": avals(launch.inputs),
            "results": avals(launch.results),
        }
        for name, value in launch.params.items():
            if not hasattr(value, "equations"):
                details[name] = str(value)
        if origin is not None:
            details["line"] = f"{origin.file}:{origin.line}"
            details["scope"] = origin.path
            details["derivative"] = origin.backward
        title = launch.title
        if origin is not None and origin.scope:
            title = f"{origin.path}/{title}"
        category = "step" if launch.step else "op"
        self._add(title, category, str(launch.device), launch.start, launch.stop, details)

    def passed(self, name: str, start: int, stop: int, details: dict[str, Any]) -> None:
        self._add(name, "span", "spans", start, stop, details)

    def _add(
        self, name: str, category: str, row: str, start: int, stop: int, details: dict[str, Any]
    ) -> None:
        event = {
            "name": name,
            "cat": category,
            "ph": "X",
            "pid": os.getpid(),
            "tid": self._row(row),
            "ts": (start - self._start) / 1000,
            "dur": (stop - start) / 1000,
            "args": details,
        }
        self._events.append(event)

    def _row(self, name: str) -> int:
        key = (f"{name}, {threading.current_thread().name}", threading.get_ident())
        with self._lock:
            return self._rows.setdefault(key, len(self._rows) + 1)

    def _metadata(self) -> list[dict[str, Any]]:
        process: dict[str, Any] = {"ph": "M", "pid": os.getpid(), "tid": 0}
        named = [{**process, "name": "process_name", "args": {"name": "tensorlite"}}]
        for (name, _), row in self._rows.items():
            named.append({**process, "name": "thread_name", "tid": row, "args": {"name": name}})
            order = {"sort_index": row}
            named.append({**process, "name": "thread_sort_index", "tid": row, "args": order})
        return named
