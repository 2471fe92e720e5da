"""Watching: what debugging and profiling share.

A watcher is told of every primitive that a device has run and of every span of time that has a
name. While nobody watches, devices run as ever and nothing is paid: the first watcher replaces the
`run` of the devices, and the last one puts it back.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import Any, NamedTuple

from .core import Aval, Primitive, Tensor
from .device import Device, devices
from .origin import Origin, recording

logger = logging.getLogger("tensorlite")


class Launch(NamedTuple):
    """A primitive that has just run: eagerly, or as a step of a compiled graph."""

    prim: Primitive
    params: dict[str, Any]
    inputs: tuple[Any, ...]  # buffers of the device
    results: tuple[Any, ...]
    device: Device
    start: int  # nanoseconds of time.perf_counter_ns
    stop: int
    step: bool  # of a compiled graph
    origin: Origin | None  # of a step; an eager operation's is on the stack, for `origin.here`

    @property
    def title(self) -> str:
        """The primitive, and the names of the graphs that it runs."""
        return self.prim.title(self.params)


class Watcher:
    """Somebody who is told what runs."""

    stepwise = False  # run compiled graphs equation by equation, with every result looked at

    def launched(self, launch: Launch) -> None:
        """A primitive has run, in this thread. What this raises reaches the user."""

    def passed(self, name: str, start: int, stop: int, details: dict[str, Any]) -> None:
        """A span of time has ended, in this thread."""


watchers: tuple[Watcher, ...] = ()
_lock = threading.Lock()


def watch(watcher: Watcher) -> None:
    """Tell `watcher` of everything that runs from now on, in all threads."""
    with _lock:
        _set_watchers((*watchers, watcher))


def unwatch(watcher: Watcher) -> None:
    """Stop telling `watcher`."""
    with _lock:
        _set_watchers(tuple(w for w in watchers if w is not watcher))


def _set_watchers(new: tuple[Watcher, ...]) -> None:
    global watchers
    watchers = new
    recording.on = is_stepwise()
    for device in devices():
        run = functools.partial(device.backend.run, device)
        device.run = functools.partial(_run_watched, device) if new else run


def is_stepwise() -> bool:
    """Whether a watcher wants to see the equations of compiled graphs one by one."""
    return any(w.stepwise for w in watchers)


def _run_watched(
    device: Device, prim: Primitive, args: tuple[Tensor, ...], params: dict[str, Any]
) -> Any:
    start = perf_counter_ns()
    out = device.backend.run(device, prim, args, params)
    stop = perf_counter_ns()
    results = tuple(t.data for t in (out if isinstance(out, tuple) else (out,)))
    inputs = tuple(arg.data for arg in args)
    _tell(Launch(prim, params, inputs, results, device, start, stop, False, None))
    return out


def _tell(launch: Launch) -> None:
    for watcher in watchers:
        watcher.launched(launch)


def reported(
    kernel: Callable[..., Any],
    prim: Primitive,
    params: dict[str, Any],
    device: Device,
    origin: Origin | None,
) -> Callable[..., Any]:
    """`kernel`, a step of a compiled graph, telling the watchers when it has run."""

    def run(*buffers: Any) -> Any:
        start = perf_counter_ns()
        out = kernel(*buffers)
        stop = perf_counter_ns()
        results = out if isinstance(out, tuple) else (out,)
        _tell(Launch(prim, params, buffers, results, device, start, stop, True, origin))
        return out

    return run


@contextlib.contextmanager
def _timed(name: str, details: dict[str, Any]) -> Iterator[None]:
    start = perf_counter_ns()
    try:
        yield
    finally:
        stop = perf_counter_ns()
        for watcher in watchers:
            watcher.passed(name, start, stop, details)


_NOTHING = contextlib.nullcontext()


def span(name: str, **details: Any) -> contextlib.AbstractContextManager[None]:
    """`with span("all_reduce", bytes=n): ...` is a slice of that name in the profile. `details`
    are shown with it. Without a profile it does nothing."""
    return _timed(name, details) if watchers else _NOTHING


# ---- the ladder of TENSORLITE_DEBUG --------------------------------------------------------------


class _Verbosity:
    level = 0


verbosity = _Verbosity()


def set_verbosity(level: int) -> None:
    """What goes to the logger "tensorlite": 0 nothing, 1 what is traced and why, 2 also what the
    compiler makes of it, 3 also every launch, 4 also how long it took.

    Without a handler of the application's own the lines go to standard error.
    """
    if not isinstance(level, int) or not 0 <= level <= 4:
        raise ValueError(f"the debugging level (TENSORLITE_DEBUG) is 0 to 4, got {level!r}")
    for watcher in watchers:
        if isinstance(watcher, _LaunchLog):
            unwatch(watcher)
    verbosity.level = level
    if level:
        logger.setLevel(logging.DEBUG)
        if not logger.hasHandlers():
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(logging.Formatter("tensorlite: %(message)s"))
            logger.addHandler(handler)
    if level >= 3:
        watch(_LaunchLog())


class _LaunchLog(Watcher):
    def launched(self, launch: Launch) -> None:
        text = f"{'  step' if launch.step else 'launch'} {launch.title}({avals(launch.inputs)})"
        text += f" -> {avals(launch.results)} on {launch.device}"
        if launch.origin is not None:
            text += f"  # {' '.join(filter(None, (launch.origin.path, launch.origin.where)))}"
        if verbosity.level >= 4:
            text = f"{(launch.stop - launch.start) / 1000:9.1f} us  {text}"
        logger.debug(text)


def avals(buffers: tuple[Any, ...]) -> str:
    """`float32[2,3], int32[]`."""
    return ", ".join(str(Aval(b.shape, b.dtype)) for b in buffers)
