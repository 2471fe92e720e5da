"""Outputs larger than caches are written past them, if their lines can be written whole."""

from __future__ import annotations

import numpy as np
import pytest

from tensorlite.compiler.axes import canonical
from tensorlite.compiler.loops import Nest, Operand, Output, Recorder
from tensorlite.compiler.lower import lower

llvm = pytest.importorskip("tensorlite.backends.cpu.llvm")
pytestmark = pytest.mark.skipif(not llvm.available(), reason="nests cannot be compiled here")

FLOAT32 = np.dtype(np.float32)
LARGE = (1 << 23) + 5  # elements
REGISTER = 64  # bytes


def sums(shape: tuple[int, ...], pitch: int = 0) -> Nest:
    """y = x + row, which is there once for all rows."""
    recorder = Recorder()
    x, row = (recorder.emit("load", (), FLOAT32, i) for i in range(2))
    y = x + row
    strides = (1,) if len(shape) == 1 else (pitch or shape[1], 1)
    operands = Operand(FLOAT32, strides), Operand(FLOAT32, (0,) * (len(shape) - 1) + (1,))
    body = tuple(recorder.body)
    return Nest(shape, (), operands, body, (Output(y.position, operands[0]),), "sums")


def text(nest: Nest) -> str:
    from tensorlite.backends.cpu.llvm.render import render
    from tensorlite.backends.cpu.llvm.text import Module

    module = Module()
    render(module, "f", canonical(lower(nest)), REGISTER)
    return str(module)


def aligned(size: int, start: int = 0) -> np.ndarray:
    """float32 whose first element lies `start` bytes behind the beginning of a cache line."""
    memory = np.zeros(4 * size + 192, np.uint8)
    first = -memory.ctypes.data % 64 + start
    return memory[first : first + 4 * size].view(np.float32)


@pytest.mark.parametrize("start", [0, 4, 32])
@pytest.mark.parametrize("shape", [(LARGE,), (1 << 17, 64), (40_000, 221)])
def test_results(shape: tuple[int, ...], start: int) -> None:
    size = int(np.prod(shape))
    rng = np.random.default_rng(0)
    x, row = aligned(size), rng.standard_normal(shape[-1], dtype=np.float32)
    x[:] = rng.standard_normal(size, dtype=np.float32)
    want = (x.reshape(shape) + row).reshape(-1)
    y = aligned(size, start)
    llvm.run_nest(sums(shape), [x, row], [y])
    np.testing.assert_array_equal(y, want)
    llvm.run_nest(sums(shape), [x, row], [x])  # over its input
    np.testing.assert_array_equal(x, want)


def test_only_large_outputs_of_whole_lines_are_streamed() -> None:
    assert "!nontemporal" in text(sums((LARGE,)))
    assert "!nontemporal" in text(sums((1 << 17, 64)))
    assert "!nontemporal" in text(sums((1 << 17, 70), pitch=80))
    assert "!nontemporal" not in text(sums((LARGE // 2,)))
    assert "!nontemporal" not in text(sums((1 << 17, 70), pitch=72))
