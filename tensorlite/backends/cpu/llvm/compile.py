"""From nests to addresses, by way of the cache on disk."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ....compiler import axes, formats, loops, lower, powers
from ....compiler import math as mathematics
from ....compiler.axes import canonical
from ....compiler.loops import Nest
from ... import cache
from .engine import machine
from .plan import make_plan
from .random_bits import render_random_bits
from .render import render
from .scatter import Scatter, render_scatter
from .text import Module

_addresses: dict[Any, int] = {}
_lock = threading.RLock()


def compile_nests(nests: Sequence[Nest]) -> list[int]:
    """The address of a C function `void f(void **buffers)` for each nest. It takes pointers to the
    inputs, then to the outputs, and runs on all threads of the OpenMP pool; it may be called
    without the GIL. The code stays for the life of the process. Buffers must not overlap, except
    where `may_share` allows it.

    Raises:
        NotImplementedError: a nest has an operation on a dtype that there is no code for.
    """
    keys = [nest.key() for nest in nests]
    with _lock:
        for key, nest in zip(keys, nests, strict=True):
            if key not in _addresses:
                _addresses[key] = _compiled(repr(key), functools.partial(_render, nest))
        return [_addresses[key] for key in keys]


def may_share(nest: Nest, output: int, source: int) -> bool:
    """Whether an output may be written to the very buffer of an input: each element is read for the
    last time just before it is written. No other input may lie in that buffer."""
    target, operand = nest.outputs[output].operand, nest.inputs[source]
    read = [i for i in nest.body if i.op == "gather" and i.attribute[0] == source]
    if target != operand or read or 0 in nest.shape:
        return False
    spread = [s for s, n in zip(target.strides, nest.shape, strict=True) if n > 1]
    if 0 in spread:  # several points share an element
        return False
    plan = make_plan(canonical(lower.lower(nest)), machine().register_bytes)
    return plan.depth[plan.nest.outputs[output].value] == max(plan.passes - 1, 0)


def compile_random_bits(keys: int, shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    """The address of a C function of (keys, bits): `keys` times four uint32, and for each of them
    uint32 or uint64 of `shape`, as the primitive `random_bits` gives them."""
    count, width = math.prod(shape), dtype.itemsize // 4
    key = ("random_bits", keys, count, width)
    with _lock:
        if key not in _addresses:
            _addresses[key] = _compiled(
                repr(key),
                lambda module, name: render_random_bits(module, name, keys, count, width),
            )
        return _addresses[key]


def compile_scatter(scatter: Scatter) -> int:
    """The address of a C function of (base unless it is filled, updates, indices, result)."""
    key = ("scatter", scatter.key())
    with _lock:
        if key not in _addresses:
            _addresses[key] = _compiled(
                repr(key), lambda module, name: render_scatter(module, name, scatter)
            )
        return _addresses[key]


def compile_ir(text: Any, names: Sequence[str]) -> list[int]:
    """The addresses of functions in a module of LLVM IR: text, or what `str` makes text of. The
    names must differ from those of all other modules, unless these are the same."""
    whole = str(text)
    with _lock:
        code = _code(cache.key(whole, machine().description), lambda: whole)
        key = hashlib.sha256(code).hexdigest()
        if key not in _addresses:
            machine().load(code)
            _addresses[key] = 0
        return [machine().address(name) for name in names]


def run_nest(nest: Nest, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
    """Run a nest on arrays; each is a buffer from its first element on."""
    (address,) = compile_nests([nest])
    arrays = [*inputs, *outputs]
    pointers = (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays])
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(pointers)


def _render(nest: Nest, module: Module, name: str) -> None:
    render(module, name, canonical(lower.lower(nest)), machine().register_bytes)


def _compiled(what: str, write: Callable[[Module, str], None]) -> int:
    """The address of what `write` adds to a module under the name that it is given. `what` says
    all that the function depends on beside this package and the machine."""
    key = cache.key(what, machine().description, _sources())
    name = f"f{key}"

    def text() -> str:
        module = Module(machine().avx512, machine().float16)
        write(module, name)
        return str(module)

    machine().load(_code(key, text))
    return machine().address(name)


def _code(key: str, text: Callable[[], str]) -> bytes:
    code = cache.read("llvm", key)
    if code is None:
        code = machine().compile(text())
        cache.write("llvm", key, code)
    return code


@functools.cache
def _sources() -> str:
    """A hash of the files that code depends on."""
    digest = hashlib.sha256()
    own = pathlib.Path(__file__).parent.glob("*.py")
    modules = (axes, formats, loops, lower, mathematics, powers)
    files = [*own, *[pathlib.Path(str(module.__file__)) for module in modules]]
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()
