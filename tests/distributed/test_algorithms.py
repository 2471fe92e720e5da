"""Every way in which data moves gives the same results: against NumPy, on all ranks, from run to
run, and against each other."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlite.distributed import DistributedError, WorkerError, run_local
from tensorlite.distributed.agreement import HEADER, MAGIC, MAX_TEXT, text_length
from tensorlite.distributed.algorithms import cutting
from tensorlite.distributed.reduction import WIRES
from tests.distributed.transports import TRANSPORTS, reached_through

DTYPES = [np.dtype(d) for d in ("f2", ml_dtypes.bfloat16, "f4", "f8", "i1", "u2", "i4", "i8", "c8")]
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # half the distance between neighbours of 1


def everywhere(inputs, call, transport):
    """What all ranks agree on, where `call(ring, array)` runs on a copy of `inputs[rank]`."""
    with reached_through(transport) as options:
        first, *rest = run_local(
            lambda worker: call(worker.ring, inputs[worker.rank].copy()),
            num_workers=len(inputs),
            **options,
        )
    for other in rest:
        assert other.dtype == first.dtype
        assert other.tobytes() == first.tobytes()
    return first


def normal(size, length, dtype, seed=0):
    draws = np.random.default_rng([seed, length]).normal(scale=3, size=(size, length))
    return draws.astype(dtype)


@given(
    size=st.integers(1, 5),
    length=st.integers(1, 5000),
    dtype=st.sampled_from(DTYPES),
    op=st.sampled_from(["sum", "max", "min"]),
    small_bytes=st.sampled_from([0, 1 << 15]),
    segment_bytes=st.sampled_from([64, 4096]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30)
def test_all_transports_agree(size, length, dtype, op, small_bytes, segment_bytes, seed):
    if dtype.kind == "c":
        op = "sum"
    inputs = normal(size, length, dtype, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "SMALL_BYTES", small_bytes)
        patch.setattr(cutting, "SEGMENT_BYTES", segment_bytes)
        results = [
            everywhere(inputs, lambda ring, x: ring.all_reduce_(x, op), transport)
            for transport in TRANSPORTS * 2
        ]
    first, second, third, *again = (result.tobytes() for result in results)
    assert first == second, "memory adds in the order of the ring"
    assert [first, second, third] == again
    for result in results[1:3]:
        check_reduced(result, inputs, op)


def check_reduced(result, inputs, op):
    size, dtype = len(inputs), inputs.dtype
    ufunc = {"sum": np.add, "max": np.maximum, "min": np.minimum}[op]
    if dtype.kind in "iu" or op != "sum":
        np.testing.assert_array_equal(result, ufunc.reduce(inputs, dtype=dtype))
    else:
        wide = np.complex128 if dtype.kind == "c" else np.float64
        want = inputs.astype(wide).sum(0)
        unit = float(ml_dtypes.finfo(dtype).eps)
        limit = unit * np.abs(inputs.astype(wide)).sum(0) * size
        assert np.all(np.abs(result.astype(wide) - want) <= limit)


@given(
    size=st.integers(2, 5),
    length=st.integers(1, 5000),
    op=st.sampled_from(["sum", "mean", "max", "min"]),
    wire=st.sampled_from(sorted(WIRES)),
    segment_bytes=st.sampled_from([64, 4096]),
    transport=st.sampled_from(["connections", "two levels"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30)
def test_halves_on_the_wire(size, length, op, wire, segment_bytes, transport, seed):
    """What travelled is rounded: as often as it travelled, and once more at the end."""
    inputs = normal(size, length, np.float32, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "SMALL_BYTES", 0)
        patch.setattr(cutting, "SEGMENT_BYTES", segment_bytes)
        first, again = (
            everywhere(inputs, lambda ring, x: ring.all_reduce_(x, op, wire=wire), transport)
            for _ in range(2)
        )
    assert first.dtype == np.float32
    assert first.tobytes() == again.tobytes()
    np.testing.assert_array_equal(first.astype(WIRES[wire]).astype(np.float32), first)
    wide = inputs.astype(np.float64)
    want = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}[op](wide, axis=0)
    scale = np.abs(wide).sum(0) / (size if op == "mean" else 1)
    assert np.all(np.abs(first - want) <= size * 1.01 * UNIT[wire] * scale + 1e-6)


def test_halves_travel_once_the_array_is_large():
    inputs = np.full((2, 20_000), 1 + 2.0**-20, np.float32)

    def reduced(length, transport):
        def call(ring, x):
            return ring.all_reduce_(x, "max", wire="float16")

        return everywhere(inputs[:, :length], call, transport)

    assert np.all(reduced(20_000, "connections") == 1)
    assert np.all(reduced(8_000, "connections") == inputs[0, 0])
    assert np.all(reduced(20_000, "memory") == inputs[0, 0]), "memory rounds nothing"


def test_bad_wires():
    def with_wire(dtype, wire):
        return lambda worker: worker.ring.all_reduce_(np.ones(4, dtype), wire=wire)

    with pytest.raises(WorkerError, match="wire must be None or one of float16, bfloat16, got 'f"):
        run_local(with_wire(np.float32, "fp8"), num_workers=1)
    with pytest.raises(WorkerError, match="wire='float16' is for float32 arrays, not float64"):
        run_local(with_wire(np.float64, "float16"), num_workers=1)
    with pytest.raises(WorkerError, match="the ranks disagree: .*wire='float16'"):
        run_local(
            lambda worker: worker.ring.all_reduce_(
                np.ones(9000, np.float32), wire="float16" if worker.rank else None
            ),
            num_workers=2,
        )


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("size", [2, 3, 5])
def test_arrays_of_many_pieces(size, transport):
    """Twelve megabytes: longer than what ranks leave for each other at a time."""
    inputs = np.random.default_rng(size).integers(-99, 99, (size, 3_000_001)).astype(np.float32)
    rows = inputs[:, : 3_000_000 // size * size].reshape(size, size, -1)

    def main(worker):
        ring, mine = worker.ring, inputs[worker.rank]
        return (
            ring.all_reduce_(mine.copy()),
            ring.reduce_scatter_(rows[worker.rank].copy(), "max").copy(),
            ring.all_gather(mine[:1_000_001]),
            ring.broadcast_(mine.copy(), root=size - 1),
        )

    with reached_through(transport) as options:
        results = run_local(main, num_workers=size, **options)
    for rank, (reduced, scattered, gathered, spread) in enumerate(results):
        np.testing.assert_array_equal(reduced, inputs.sum(0))
        np.testing.assert_array_equal(scattered[0], rows[:, rank].max(0))
        np.testing.assert_array_equal(gathered, inputs[:, :1_000_001])
        np.testing.assert_array_equal(spread, inputs[-1])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_collectives_follow_each_other_closely(transport):
    """What one leaves for the others is not overwritten before they have read it."""

    def main(worker):
        total = 0.0
        for step in range(300):
            kind = step % 4
            mine = np.full([3, 9000, 40_000, 3][kind], worker.rank + step, np.float32)
            if kind == 3:
                total += float(worker.ring.all_gather(mine).sum())
            else:
                total += float(worker.ring.all_reduce_(mine)[-1])
        return total

    with reached_through(transport) as options:
        first, *rest = run_local(main, num_workers=4, **options)
    assert rest == [first] * 3
    want = sum((6 + 4 * step) * (3 if step % 4 == 3 else 1) for step in range(300))
    assert first == want


def test_a_claimed_length_is_bounded():
    longest = HEADER.pack(MAGIC, MAX_TEXT, 1, bytes(16))
    assert text_length(longest, 1) == MAX_TEXT
    for claim in (MAX_TEXT + 1, 2**32 - 1):
        with pytest.raises(DistributedError, match="rank 1 sent bytes that begin no collective"):
            text_length(HEADER.pack(MAGIC, claim, 1, bytes(16)), 1)
