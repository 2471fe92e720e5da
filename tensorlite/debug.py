"""The first NaN: which operation made it, from what, and which of the user's lines asked for it."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import numpy as np

from . import dtypes
from .core import Aval
from .observe import Launch, Watcher, set_verbosity, unwatch, watch
from .origin import here

__all__ = ["debug_nans"]


class debug_nans(contextlib.ContextDecorator, Watcher):
    """Stop at the first result that holds a NaN.

    The `FloatingPointError` names the operation, the shapes, dtypes and ranges of its arguments and
    the line that asked for it, in eager mode, in derivatives (by the line of the forward operation)
    and in jitted functions, whose equations then run one by one. It holds for all threads. Outside
    of it nothing is checked and nothing is paid; inside, every result is read. `start` and `stop`
    do without a block, and TENSORLITE_DEBUG_NANS=1 in the environment switches it on for the whole
    process (=inf with infinities).

    Args:
        infinities: stop at infinite results, too.

    Example:
        >>> with tl.debug_nans():
        ...     tl.log(tl.asarray([1.0, -1.0]))
        Traceback (most recent call last):
            ...
        FloatingPointError: debug_nans: log gave NaN in 1 of 2 values of its result ...
    """

    stepwise = True

    def __init__(self, *, infinities: bool = False):
        self.infinities = infinities

    def _recreate_cm(self) -> debug_nans:
        return debug_nans(infinities=self.infinities)

    def start(self) -> None:
        """Check from now on."""
        watch(self)

    def stop(self) -> None:
        """Check no longer."""
        unwatch(self)

    def __enter__(self) -> debug_nans:
        self.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.stop()

    def launched(self, launch: Launch) -> None:
        if not launch.inputs:
            return  # what makes a NaN from nothing was asked for it
        for result in launch.results:
            if dtypes.is_float(result.dtype):
                values = launch.device.to_numpy(result)
                wrong = self._wrong(values)
                if wrong.any():
                    raise FloatingPointError(self._message(launch, values, wrong))

    def _wrong(self, values: np.ndarray) -> np.ndarray:
        return ~np.isfinite(values) if self.infinities else np.isnan(values)

    def _message(self, launch: Launch, values: np.ndarray, wrong: np.ndarray) -> str:
        nans = np.isnan(values)
        kind = "infinity" if not nans.any() else "NaN" if nans[wrong].all() else "NaN and infinity"
        arguments = "".join(
            f"\n  argument {i}: {_summary(launch.device.to_numpy(x))}"
            for i, x in enumerate(launch.inputs)
        )
        origin = launch.origin or here()
        source = f"\n  at {origin}" if origin is not None else ""
        return (
            f"debug_nans: {launch.prim.name} gave {kind} in {int(wrong.sum())} of {values.size} "
            f"values of its result {Aval(values.shape, values.dtype)}{source}{arguments}"
        )


def _summary(values: np.ndarray) -> str:
    """Shape and dtype, and if there is something to say the range and what is not finite."""
    text = str(Aval(values.shape, values.dtype))
    if not dtypes.is_float(values.dtype) or not values.size:
        return text
    finite = values[np.isfinite(values)].astype(np.float64)
    if finite.size:
        text += f", from {finite.min():.6g} to {finite.max():.6g}"
    nans, infinities = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    text += f", {nans} NaN already" if nans else ""
    return text + (f", {infinities} infinite" if infinities else "")


def start_from_environment() -> None:
    """Do what TENSORLITE_DEBUG and TENSORLITE_DEBUG_NANS ask for."""
    level = os.environ.get("TENSORLITE_DEBUG", "").strip() or "0"
    if not level.isdecimal():
        raise ValueError(f"TENSORLITE_DEBUG is a number from 0 to 4, got {level!r}")
    if int(level):
        set_verbosity(int(level))
    nans = os.environ.get("TENSORLITE_DEBUG_NANS", "").strip() or "0"
    if nans not in ("0", "1", "inf"):
        raise ValueError(f"TENSORLITE_DEBUG_NANS is 0, 1 or inf, got {nans!r}")
    if nans != "0":
        debug_nans(infinities=nans == "inf").start()
