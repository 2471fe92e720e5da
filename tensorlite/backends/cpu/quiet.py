"""Kernels run quietly: an operation on a tensor gives inf and nan without a warning.

NumPy keeps its handling of floating-point errors in a context variable. Entering `np.errstate`
costs more than a small operation, and so does setting the variable; entering a context in which it
has been set once costs next to nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator

import numpy as np


class _Quiet(threading.local):
    """`quiet.run(f, *args, **kwargs)` calls f where NumPy ignores floating-point errors. f must not
    come back here, but through `nested`."""

    def __init__(self) -> None:
        self.run = _quiet_context().run


def _quiet_context() -> contextvars.Context:
    context = contextvars.copy_context()
    context.run(np.seterr, all="ignore")
    return context


quiet = _Quiet()


@contextlib.contextmanager
def nested() -> Iterator[None]:
    """For kernels that run operations on tensors: a context can be entered only once."""
    outer = quiet.run
    quiet.run = _quiet_context().run
    try:
        yield
    finally:
        quiet.run = outer
