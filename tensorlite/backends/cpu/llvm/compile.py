"""From nests to addresses."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ....compiler.loops import Nest
from ....compiler.lower import lower
from .axes import canonical
from .engine import compile_text, machine
from .render import render
from .text import Module

_addresses: dict[Any, int] = {}


def compile_nests(nests: Sequence[Nest]) -> list[int]:
    """The address of a C function `void f(void **buffers)` for each nest. It takes pointers to the
    inputs, then to the outputs, and runs on all threads of the OpenMP pool; it may be called
    without the GIL. The code stays for the life of the process."""
    keys = [nest.key() for nest in nests]
    fresh = {key: nest for key, nest in zip(keys, nests, strict=True) if key not in _addresses}
    if fresh:
        module, names = Module(), []
        for key, nest in fresh.items():
            names.append(
                f"nest_{hashlib.sha256((nest.name + repr(key)).encode()).hexdigest()[:20]}"
            )
            render(module, names[-1], canonical(lower(nest)), machine().register_bytes)
        found = compile_text(str(module), names)
        _addresses.update(zip(fresh, found, strict=True))
    return [_addresses[key] for key in keys]


def compile_ir(text: Any, names: Sequence[str]) -> list[int]:
    """The addresses of functions in a module of LLVM IR (text, or what `str` makes text of)."""
    return compile_text(str(text), names)


def run_nest(nest: Nest, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
    """Run a nest on arrays; each is a buffer from its first element on."""
    (address,) = compile_nests([nest])
    arrays = [*inputs, *outputs]
    pointers = (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays])
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(pointers)
