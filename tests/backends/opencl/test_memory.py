"""The pool of device memory: reuse, limits, what is said when it is full; sharing with the host."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import dtypes

cl = pytest.importorskip("pyopencl")
from tensorlite.backends.opencl import memory  # noqa: E402
from tensorlite.backends.opencl.memory import DeviceMemoryError, Pool, limit_of  # noqa: E402
from tensorlite.backends.opencl.runtime import runtime  # noqa: E402


def pool(limit: int = 1 << 20) -> Pool:
    return Pool(runtime("opencl:0"), limit)


def test_dropped_memory_serves_the_next() -> None:
    own = pool()
    first = own.allocate(1000, "a")
    pointer = first.memory.int_ptr
    assert own.statistics()[:3] == (1024, 1024, 1024)
    del first
    assert own.statistics()[:3] == (0, 1024, 1024)
    assert own.allocate(900, "b").memory.int_ptr == pointer


def test_the_limit_and_what_holds_the_memory() -> None:
    own = pool(1 << 20)
    kept = [own.allocate(300_000, "values of step") for _ in range(2)]
    kept.append(own.allocate(200_000, "images"))
    with pytest.raises(DeviceMemoryError) as error:
        own.allocate(400_000, "conv of step")
    text = str(error.value)
    assert text.startswith("conv of step: opencl:0 has no 400,000 bytes left")
    assert "in 2 of values of step" in text and "in 1 of images" in text
    assert "TENSORLITE_MEMORY_LIMIT" in text
    assert isinstance(error.value, MemoryError)
    del kept[0]
    assert own.allocate(300_000, "conv of step").size >= 300_000  # still usable


def test_what_waits_is_given_back_before_it_fails() -> None:
    own = pool(1 << 20)
    for size in (100_000, 200_000, 300_000, 400_000):
        own.allocate(size, "passing")
    assert own.statistics().held > 600_000
    whole = own.allocate(1 << 20, "all of it")
    assert own.statistics().held == whole.size


def test_programs_let_go_of_their_arenas_under_pressure() -> None:
    at = runtime("opencl:0")
    step = tl.jit(lambda x: tl.sort(x * 2, axis=0) + 1)
    x = tl.asarray(np.ones((1000, 100), np.float32), device="opencl:0")
    np.asarray(step(x))
    before = at.pool.statistics().in_use
    at.pool.trim()
    assert at.pool.statistics().in_use < before
    np.testing.assert_array_equal(np.asarray(step(x)), 3)


def test_the_process_stays_usable_when_a_device_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    at = runtime("opencl:0")
    gc.collect()
    monkeypatch.setattr(at.pool, "limit", at.pool.statistics().in_use + (1 << 20))
    x = tl.asarray(np.ones(1000, np.float32), device="opencl:0")
    with pytest.raises(MemoryError, match="no .* bytes left"):
        tl.jit(lambda y: y[:, None] * y[None, :])(x)
    np.testing.assert_array_equal(np.asarray(x + 1), 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 1000),
        ("500", 500),
        ("0.5kB", 500),
        ("50%", 500),
        ("opencl:0=100,opencl:1=200", 100),
        ("opencl:1=10%", 1000),
        ("4GiB", 1000),
    ],
)
def test_writing_a_limit(monkeypatch: pytest.MonkeyPatch, text: str, expected: int) -> None:
    monkeypatch.setenv("TENSORLITE_MEMORY_LIMIT", text)
    assert limit_of("opencl:0", 1000) == expected
    assert limit_of("opencl:0/2:1", 1000, 0.5) == expected // 2


@pytest.mark.parametrize("text", ["much", "5 apples", "-3", "opencl:1=x", "i"])
def test_a_limit_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TENSORLITE_MEMORY_LIMIT", text)
    with pytest.raises(ValueError, match="TENSORLITE_MEMORY_LIMIT is an amount such as 4GiB"):
        limit_of("opencl:0", 1000)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_large_arrays_are_shared_with_the_host() -> None:
    if runtime("opencl:0").traits.kind != "cpu":
        pytest.skip("the device has memory of its own")
    raw = np.zeros((1 << 20) + 64, np.uint8)
    start = -address(raw) % 64
    array = raw[start : start + (1 << 20)].view(np.float32)
    array[:] = np.arange(array.size)
    array.flags.writeable = False
    x = tl.Tensor(tl.asarray(0.0, device="opencl:0").device.from_numpy(array), runtime_device())
    assert address(np.asarray(x)) == address(array)
    np.testing.assert_array_equal(np.asarray(x + 1), array + 1)


def runtime_device() -> tl.Device:
    return tl.asarray(0.0, device="opencl:0").device


def test_results_are_seen_without_a_copy_and_outlive_their_tensor() -> None:
    x = tl.asarray(np.ones(100_000, np.float32), device="opencl:0") * 3
    seen = np.asarray(x)
    assert not seen.flags.writeable
    del x
    gc.collect()
    others = [tl.asarray(np.zeros(100_000, np.float32), device="opencl:0") + 7 for _ in range(3)]
    np.testing.assert_array_equal(seen, 3)
    np.testing.assert_array_equal(np.asarray(others[0]), 7)


def test_what_is_written_later_does_not_reach_the_device() -> None:
    array = np.ones(200_000, np.float32)
    x = tl.asarray(array, device="opencl:0")
    array[:] = 5
    np.testing.assert_array_equal(np.asarray(x), 1)


@pytest.mark.parametrize("dtype", sorted(dtypes.ALL, key=str), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5, 7)])
def test_every_dtype_goes_there_and_back(dtype: np.dtype, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    buffer = memory.from_numpy(runtime("opencl:0"), array)
    back = memory.to_numpy(buffer)
    assert back.dtype == dtype and back.shape == shape
    np.testing.assert_array_equal(back, array)
