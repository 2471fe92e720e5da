"""The pool of device memory: reuse, limits, what is said when it is full; sharing with the host."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pyopencl as cl
import pytest

import tensorlite as tl
from tensorlite import dtypes
from tensorlite.backends.opencl import memory
from tensorlite.backends.opencl.kernels import Kernel
from tensorlite.backends.opencl.pool import DeviceMemoryError, Pool, limit_of
from tensorlite.backends.opencl.runtime import (
    DeviceError,
    Runtime,
    memory_statistics,
    runtime,
)


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


def test_statistics_say_what_memory_is_for() -> None:
    own = pool()
    kept = [own.allocate(1000, "few"), *(own.allocate(1000, "many") for _ in range(3))]
    kept.append(own.allocate(4, ("arrays", (1,), np.dtype(np.float32))))
    found = own.statistics()
    assert found.limit == 1 << 20
    assert found.uses == (("many", 3, 3072), ("few", 1, 1024), ("arrays: float32[1]", 1, 256))
    del kept
    found = own.statistics()
    assert (found.in_use, found.held, found.peak, found.uses) == (0, 4352, 4352, ())


def test_the_limit_and_what_holds_the_memory() -> None:
    own = pool(1 << 20)
    kept = [own.allocate(300_000, "values of step") for _ in range(2)]
    kept.append(own.allocate(200_000, ("results of conv", (50, 1000), np.dtype(np.float32))))
    kept += [own.allocate(100 * i, f"number {i}") for i in range(1, 6)]
    with pytest.raises(DeviceMemoryError) as error:
        own.allocate(400_000, "sum of step")
    lines = str(error.value).splitlines()
    assert lines[0].startswith("sum of step: opencl:0 has no room for 390.6 KiB; 810.0 KiB are")
    assert lines[0].endswith("in use, the limit is 1.0 MiB")
    assert lines[1:3] == [
        "  608.0 KiB in 2 x values of step",
        "  200.0 KiB in 1 x results of conv: float32[50,1000]",
    ]
    assert lines[7] == "  256 bytes in 1 others"
    assert "TENSORLITE_MEMORY_LIMIT" in lines[8]
    assert isinstance(error.value, MemoryError)
    del kept[0]
    assert own.allocate(300_000, "sum of step").size >= 300_000  # still usable


def test_what_waits_is_given_back_before_it_fails() -> None:
    own = pool(1 << 20)
    for size in (50_000, 60_000, 70_000):
        own.allocate(size, "passing")
    assert own.statistics().held > 150_000
    whole = own.allocate(1 << 20, "all of it")
    assert own.statistics().held == whole.size


def test_little_of_the_hosts_memory_waits() -> None:
    if runtime("opencl:0").traits.kind != "cpu":
        pytest.skip("the device has memory of its own")
    own = pool(1 << 20)
    for size in (100_000, 200_000, 300_000):
        own.allocate(size, "passing")
    assert own.statistics().held <= 1 << 18


def test_one_piece_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    at = runtime("opencl:0")
    monkeypatch.setattr(at, "traits", at.traits._replace(max_allocation=1_000_001))
    own = pool(1 << 30)
    assert own.allocate(1_000_000, "x").size == 1_000_000  # rounded up it would not fit
    with pytest.raises(MemoryError, match="x: opencl:0 gives at most 976.6 KiB in one piece, and"):
        own.allocate(1_100_000, "x")


def test_a_device_that_is_full_below_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    own = pool()
    own.allocate(5000, "dropped")

    def full(*args: Any, **kwargs: Any) -> Any:
        raise cl.MemoryError(cl._cl._ErrorRecord("clCreateBuffer", -4, ""))

    with monkeypatch.context() as patch:
        patch.setattr(cl, "Buffer", full)
        with pytest.raises(MemoryError, match="x: opencl:0 has no room for 9.8 KiB; 0 bytes are"):
            own.allocate(10_000, "x")
    assert own.statistics().held == 0  # it was tried again without what waited
    assert own.allocate(10_000, "x").size >= 10_000


def test_memory_that_is_gone_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    own = pool(1 << 20)
    monkeypatch.setattr(runtime("opencl:0"), "failed", "matmul of step")
    with pytest.raises(MemoryError, match="after matmul of step failed, which some devices do not"):
        own.allocate(1 << 21, "x")


def test_a_driver_that_refuses_for_other_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise cl.LogicError(cl._cl._ErrorRecord("clCreateBuffer", -34, ""))

    monkeypatch.setattr(cl, "Buffer", refuse)
    with pytest.raises(DeviceError, match="an allocation of 1.0 KiB failed on opencl:0"):
        pool().allocate(1000, "x")


def test_threads_share_a_pool() -> None:
    own, failures = pool(1 << 30), []

    def work(seed: int) -> None:
        rng, kept = np.random.default_rng(seed), []
        try:
            for size in rng.integers(1, 5000, 500):
                kept.append(own.allocate(int(size), f"of {size % 7}"))
                if len(kept) > 10:
                    kept.pop(int(rng.integers(10)))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    found = own.statistics()
    assert found.in_use == 0 and found.uses == () and found.held >= found.peak > 0


def test_programs_let_go_of_their_arenas_under_pressure() -> None:
    at = runtime("opencl:0")
    step = tl.jit(lambda x: tl.sort(x * 2, axis=0) + 1)
    x = tl.asarray(np.ones((1000, 100), np.float32), device="opencl:0")
    np.asarray(step(x))
    before = at.pool.statistics().in_use
    at.pool.trim()
    assert at.pool.statistics().in_use < before
    np.testing.assert_array_equal(np.asarray(step(x)), 3)


def test_a_program_that_asks_for_memory_keeps_its_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    at = runtime("opencl:0")
    step = tl.jit(lambda x: (tl.sort(x * 2, axis=0) + 1, x * 3, x * 4))
    data = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    x = tl.asarray(data, device="opencl:0")
    expected = [np.asarray(y).copy() for y in step(x)]
    at.pool.trim()
    taken = []
    monkeypatch.setattr(at.pool, "_trim", lambda: taken.append(trim()))
    trim = type(at.pool)._trim.__get__(at.pool)
    allocate = at.pool.allocate

    def under_pressure(size: int, label: Any) -> Any:
        at.pool.trim()
        return allocate(size, label)

    monkeypatch.setattr(at.pool, "allocate", under_pressure)
    for _ in range(3):
        for result, values in zip(step(x), expected, strict=True):
            np.testing.assert_array_equal(np.asarray(result), values)
    assert len(taken) >= 9


def test_the_process_stays_usable_when_a_device_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    at = runtime("opencl:0")
    gc.collect()
    monkeypatch.setattr(at.pool, "limit", at.pool.statistics().in_use + (1 << 20))
    x = tl.asarray(np.ones(1000, np.float32), device="opencl:0")
    with pytest.raises(
        MemoryError, match=r"float32\[1000,1000\]: opencl:0 has no room for 3.8 MiB"
    ):
        tl.jit(lambda y: y[:, None] * y[None, :])(x)
    with pytest.raises(MemoryError, match="arrays from the host: float32.3000000.: opencl:0 has"):
        tl.asarray(np.ones(3_000_000, np.float32), device="opencl:0")
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
        ("300%", 1000),
        ("opencl:0=100, 200", 100),
        ("200, opencl:0=100", 100),
        ("opencl:1=100, 200 B", 200),
        ("0.1k,", 100),
    ],
)
def test_writing_a_limit(monkeypatch: pytest.MonkeyPatch, text: str, expected: int) -> None:
    monkeypatch.setenv("TENSORLITE_MEMORY_LIMIT", text)
    assert limit_of("opencl:0", 1000) == expected
    assert limit_of("opencl:0/2:1", 1000, 0.5) == expected // 2


@pytest.mark.parametrize(
    "text", ["much", "5 apples", "-3", "opencl:1=x", "i", "opencl:0/2=5", "cpu=5", "=5"]
)
def test_a_limit_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TENSORLITE_MEMORY_LIMIT", text)
    with pytest.raises(ValueError, match="TENSORLITE_MEMORY_LIMIT is an amount such as 4GiB"):
        limit_of("opencl:0", 1000)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def aligned(size: int, offset: int = 0) -> np.ndarray:
    """A read-only array of float32 that begins `offset` bytes behind a multiple of 4096."""
    raw = np.zeros(size * 4 + 4096 + offset, np.uint8)
    start = -address(raw) % 4096 + offset
    array = raw[start : start + size * 4].view(np.float32)
    array[:] = np.arange(size)
    array.flags.writeable = False
    return array


def seen_by_a_kernel(buffer: memory.Buffer) -> int:
    """The address that a kernel is given."""
    at = buffer.runtime
    source = "__kernel void at(__global void *x, __global ulong *y) { y[0] = (ulong)x; }"
    kernel = at.programs.kernel(Kernel("at", source, (1,), None))
    result = memory.empty(at, (1,), np.dtype(np.uint64), "test")
    kernel.set_args(buffer.memory, result.memory)
    at.enqueue(kernel, (1,), None, "at")
    return int(memory.to_numpy(result)[0])


def host() -> Runtime:
    at = runtime("opencl:0")
    if at.traits.kind != "cpu" or "Oclgrind" in at.traits.key:
        pytest.skip("the device has memory of its own")
    return at


@pytest.mark.parametrize("size", [1 << 18, 16411])
@pytest.mark.parametrize("offset", [0, 1])
def test_large_arrays_are_shared_with_the_device(size: int, offset: int) -> None:
    at = host()
    array = aligned(size, offset * at.traits.alignment)
    buffer = memory.from_numpy(at, array)
    assert seen_by_a_kernel(buffer) == address(array) == address(memory.to_numpy(buffer))
    x = tl.Tensor(buffer, tl.asarray(0.0, device="opencl:0").device)
    del array, buffer
    gc.collect()
    np.testing.assert_array_equal(np.asarray(x + 1), np.arange(1, size + 1, dtype=np.float32))


@pytest.mark.parametrize("offset", [4, 16, 32])
def test_arrays_that_lie_badly_are_copied(offset: int) -> None:
    array = aligned(1 << 18, offset)
    buffer = memory.from_numpy(host(), array)
    assert address(memory.to_numpy(buffer)) != address(array)
    np.testing.assert_array_equal(memory.to_numpy(buffer), array)


def test_results_are_seen_without_a_copy_and_outlive_their_tensor() -> None:
    x = tl.asarray(np.ones(100_000, np.float32), device="opencl:0") * 3
    seen = np.asarray(x)
    assert not seen.flags.writeable
    if "Oclgrind" not in x.data.runtime.traits.key and x.data.runtime.traits.kind == "cpu":
        assert seen_by_a_kernel(x.data) == address(seen)
    del x
    gc.collect()
    others = [tl.asarray(np.zeros(100_000, np.float32), device="opencl:0") + 7 for _ in range(3)]
    np.testing.assert_array_equal(seen, 3)
    np.testing.assert_array_equal(np.asarray(others[0]), 7)


def busy(at: Runtime) -> Any:
    """Something that the device works at for a while."""
    source = (
        "__kernel void work(__global float *x) { float a = 0; "
        "for (int i = 0; i < 3000000; i++) a = a * x[0] + 1; x[1] = a; }"
    )
    kernel = at.programs.kernel(Kernel("work", source, (1,), None))
    block = at.pool.allocate(64, "test")
    kernel.set_arg(0, block.memory)
    for _ in range(5):
        at.enqueue(kernel, (1,), None, "work")
    return block


@pytest.mark.parametrize("size", [10, 200_000])
@pytest.mark.parametrize("is_busy", [False, True])
def test_what_is_written_later_does_not_reach_the_device(size: int, is_busy: bool) -> None:
    at = runtime("opencl:0")
    array, kept, buffers = np.ones(size, np.float32), [], []
    for number in range(20):  # more than may be under way
        if is_busy:
            kept.append(busy(at))
        array[:] = number
        buffers.append(memory.from_numpy(at, array))
    array[:] = -1
    for number, buffer in enumerate(buffers):
        np.testing.assert_array_equal(memory.to_numpy(buffer), number)


def test_copies_from_the_host_do_not_wait_for_launches() -> None:
    at = runtime("opencl:0")
    at.finish()
    assert at.is_idle()
    block = busy(at)
    x = memory.from_numpy(at, np.ones(200_000, np.float32))
    assert block and not at.is_idle()
    np.testing.assert_array_equal(memory.to_numpy(x), 1)
    assert at.is_idle()


@pytest.mark.parametrize("dtype", sorted(dtypes.ALL, key=str), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5, 7)])
def test_every_dtype_goes_there_and_back(dtype: np.dtype, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    buffer = memory.from_numpy(runtime("opencl:0"), array)
    back = memory.to_numpy(buffer)
    assert back.dtype == dtype and back.shape == shape
    np.testing.assert_array_equal(back, array)


def test_statistics_of_a_device() -> None:
    before = memory_statistics("opencl:0")
    x = tl.asarray(np.ones((77, 1001), np.float32), device="opencl:0")
    after = memory_statistics(str(x.device))
    assert after.in_use >= before.in_use + 77 * 1001 * 4 and after.peak >= after.in_use
    assert ("arrays from the host: float32[77,1001]", 1) in [use[:2] for use in after.uses]
    with pytest.raises(ValueError, match="there is no device 'opencl:99'"):
        memory_statistics("opencl:99")
