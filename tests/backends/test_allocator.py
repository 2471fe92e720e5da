"""Memory of results: it serves again when nobody can see it any more, and not before."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import tensorlite as tl
from tensorlite.backends.cpu import allocator
from tensorlite.core import Aval

SHAPE = (133, 177)  # of a size that nothing else here has


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    allocator.waiting.by_size.clear()
    allocator.waiting.held = 0
    yield
    allocator.waiting.by_size.clear()
    allocator.waiting.held = 0


def new(shape: tuple[int, ...] = SHAPE, dtype: object = np.float32) -> np.ndarray:
    return allocator.empty(Aval(shape, np.dtype(dtype)))


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_dropped_memory_serves_again_in_another_shape_and_dtype() -> None:
    array = new()
    place = address(array)
    assert place % 64 == 0 and array.flags.c_contiguous and array.flags.writeable
    del array
    other = new((177, 133), np.int32)
    assert (address(other), other.shape, other.dtype) == (place, (177, 133), np.int32)
    assert address(new()) != place, "it is given away only once"
    assert new(dtype=tl.bfloat16).dtype == tl.bfloat16


@pytest.mark.parametrize(
    "keep",
    [
        lambda a: a[3:5, ::2],
        lambda a: a.reshape(-1).view(np.int32),
        lambda a: memoryview(a),
        lambda a: tl.asarray(a, copy=False),
        lambda a: tl.asarray(a, copy=False).numpy(),
        lambda a: np.from_dlpack(a),
    ],
)
def test_what_somebody_can_see_is_left_alone(keep: object) -> None:
    array = new()
    array[...] = 7
    kept = keep(array)  # type: ignore[operator]
    before = np.asarray(kept).copy()
    del array
    others = [new() for _ in range(3)]
    for other in others:
        other[...] = 1
    np.testing.assert_array_equal(np.asarray(kept), before)
    del kept, others, other
    gc.collect()
    assert sum(map(len, allocator.waiting.by_size.values())) == 4


def test_small_arrays_are_numpys_own() -> None:
    assert new((3,)).base is None


def test_no_more_than_the_limit_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "LIMIT", 5 * SHAPE[0] * SHAPE[1])
    arrays = [new(), new()]
    arrays.clear()
    assert sum(map(len, allocator.waiting.by_size.values())) == 1
    assert allocator.waiting.held == 4 * SHAPE[0] * SHAPE[1] + 64


def test_steps_with_and_without_donation_leave_other_tensors_as_they_were() -> None:
    for donated in ((), (0,)):
        step = tl.jit(lambda w, g: w - 0.1 * g, donate_argnums=donated)
        w, g = tl.ones(SHAPE), tl.ones(SHAPE)
        seen = []
        for i in range(5):
            w = step(w, g)
            seen.append(np.asarray(w))
            np.testing.assert_allclose(seen[-1], 1 - 0.1 * (i + 1), rtol=1e-5)
        for i, array in enumerate(seen):
            np.testing.assert_allclose(array, 1 - 0.1 * (i + 1), rtol=1e-5)
        np.testing.assert_array_equal(np.asarray(g), 1)


def test_threads_never_get_the_same_memory() -> None:
    wrong = []

    def work(number: int) -> None:
        for _ in range(200):
            array = new()
            array[...] = number
            again = new()
            again[...] = -number
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_arrays_may_outlive_the_interpreter() -> None:
    code = "import tensorlite as tl\nkept = tl.jit(lambda x: x * 2)(tl.ones((300, 300)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
