"""Collectives over the ring: NumPy's results, with the same bits on every rank.

Where the ranks disagree or one is missing, there is an error that says so, never a wrong number.
"""

import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tensorlite.distributed as dist
from tensorlite.distributed import WorkerError, local_worker
from tensorlite.distributed.algorithms import cutting
from tests.distributed.transports import TRANSPORTS, reached_through

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
INTEGERS = [np.dtype(np.int8), np.dtype(np.uint16), np.dtype(np.int32), np.dtype(np.int64)]
NUMPY = {"sum": np.add.reduce, "max": np.maximum.reduce, "min": np.minimum.reduce}


OPTIONS = {}


@pytest.fixture(params=TRANSPORTS, scope="module", autouse=True)
def transports(request):
    """Every test of this file runs with each of them."""
    with reached_through(request.param) as options:
        OPTIONS.update(options)
        yield


def run_local(main, **options):
    return dist.run_local(main, **options, **OPTIONS)


def same_everywhere(results):
    first = results[0]
    for other in results:
        assert other.dtype == first.dtype
        assert other.shape == first.shape
        assert other.tobytes() == first.tobytes()
    return first


def all_reduce(inputs, op):
    """The result that all ranks agree on, where rank r brings `inputs[r]`."""
    results = run_local(
        lambda worker: worker.ring.all_reduce_(inputs[worker.rank].copy(), op),
        num_workers=len(inputs),
    )
    return same_everywhere(results)


def whole_numbers(size, length, dtype):
    """One array for each rank, small enough that every sum is exact in every dtype."""
    draws = np.random.default_rng(length).integers(0, 12, (size, length))
    return draws.astype(dtype)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("length", [0, 1, 7, 10**6])
@pytest.mark.parametrize("op", ["sum", "max", "min"])
def test_all_reduce_equals_numpy(size, length, op):
    for dtype in (np.dtype(np.float32), BFLOAT16, np.dtype(np.int32)):
        inputs = whole_numbers(size, length, dtype)
        got = all_reduce(list(inputs), op)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, NUMPY[op](inputs.astype(np.float64)).astype(dtype))


@pytest.mark.parametrize("length", [7, 10**5])
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, np.dtype(np.complex64)], ids=str)
def test_sums_of_every_dtype(length, dtype):
    inputs = whole_numbers(3, length, dtype)
    np.testing.assert_array_equal(all_reduce(list(inputs), "sum"), inputs.sum(0, dtype=dtype))


@pytest.mark.parametrize("length", [1, 10**5])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_mean(length, dtype):
    inputs = whole_numbers(4, length, dtype)
    want = inputs.astype(np.float64).mean(0).astype(dtype)
    np.testing.assert_array_equal(all_reduce(list(inputs), "mean"), want)


@pytest.mark.parametrize("length", [9, 10**5])
def test_bool_max_is_or_and_min_is_and(length):
    inputs = np.random.default_rng(0).random((3, length)) < 0.5
    np.testing.assert_array_equal(all_reduce(list(inputs), "max"), inputs.any(0))
    np.testing.assert_array_equal(all_reduce(list(inputs), "min"), inputs.all(0))


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
@pytest.mark.parametrize("length", [10, 10**5])
def test_sixteen_bit_sums_are_rounded_once(dtype, length):
    inputs = np.random.default_rng(1).normal(size=(5, length)).astype(dtype)
    exact = inputs.astype(np.float64).sum(0)
    got = all_reduce(list(inputs), "sum").astype(np.float64)
    half_a_unit = np.spacing(np.abs(exact.astype(dtype))).astype(np.float64) / 2
    assert np.all(np.abs(got - exact) <= half_a_unit + 1e-6)


def test_float_sums_are_the_same_from_run_to_run():
    inputs = list(np.random.default_rng(2).normal(size=(4, 200_000)).astype(np.float32))
    first = all_reduce(inputs, "sum")
    assert first.tobytes() == all_reduce(inputs, "sum").tobytes()
    np.testing.assert_allclose(first, np.sum(inputs, axis=0, dtype=np.float64), atol=1e-5)


def test_nan_reaches_everyone():
    inputs = [np.array([1.0, np.nan, 2.0], np.float32), np.ones(3, np.float32)]
    np.testing.assert_array_equal(all_reduce(inputs, "max"), [1, np.nan, 2])


@given(
    size=st.integers(1, 5),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
    small_bytes=st.sampled_from([0, 64, 1 << 15]),
    segment_bytes=st.sampled_from([16, 256, 1 << 20]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40)
def test_any_shape_however_it_is_cut(size, shape, small_bytes, segment_bytes, seed):
    """Tiny segments and no shortcut for small arrays bring out every path of the large ones."""
    draws = np.random.default_rng(seed).integers(-9, 9, (size, *shape)).astype(np.float64)
    inputs = [np.array(part) for part in draws]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "SMALL_BYTES", small_bytes)
        patch.setattr(cutting, "SEGMENT_BYTES", segment_bytes)

        def main(worker):
            mine = inputs[worker.rank]
            reduced = worker.ring.all_reduce_(mine.copy(), "sum")
            gathered = worker.ring.all_gather(mine)
            root = size - 1
            spread = worker.ring.broadcast_(mine.copy(), root)
            tiled = np.concatenate([mine.reshape(-1)] * size)
            scattered = worker.ring.reduce_scatter_(tiled, "max").copy()
            return reduced, gathered, spread, scattered

        results = run_local(main, num_workers=size)
    for reduced, gathered, spread, scattered in results:
        np.testing.assert_array_equal(reduced, sum(inputs))
        np.testing.assert_array_equal(gathered, np.stack(inputs))
        np.testing.assert_array_equal(spread, inputs[-1])
        np.testing.assert_array_equal(scattered, np.max(inputs, axis=0).reshape(-1))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_reduce_scatter_gives_each_rank_its_rows(size):
    inputs = np.random.default_rng(3).integers(0, 9, (size, 6 * size, 20_000)).astype(np.float32)
    results = run_local(
        lambda worker: worker.ring.reduce_scatter_(inputs[worker.rank].copy(), "mean"),
        num_workers=size,
    )
    want = inputs.sum(0) / np.float32(size)
    np.testing.assert_array_equal(np.concatenate(results), want)


def test_reduce_scatter_of_sixteen_bit_floats():
    inputs = whole_numbers(2, 10, BFLOAT16)
    results = run_local(
        lambda worker: worker.ring.reduce_scatter_(inputs[worker.rank].copy()), num_workers=2
    )
    np.testing.assert_array_equal(np.concatenate(results), inputs.sum(0))


@pytest.mark.parametrize("root", [0, 1, 3])
def test_broadcast_of_megabytes(root):
    want = np.random.default_rng(root).normal(size=700_000)

    def main(worker):
        mine = want.copy() if worker.rank == root else np.zeros_like(want)
        return worker.ring.broadcast_(mine, root)

    np.testing.assert_array_equal(same_everywhere(run_local(main, num_workers=4)), want)


def test_a_list_of_arrays_in_one_pass():
    shapes = [(3, 4), (), (0,), (50_000,)]

    def main(worker):
        arrays = [np.full(shape, worker.rank + 1, np.float16) for shape in shapes]
        arrays.append(np.full((4, 6), worker.rank + 1, np.float16).T)  # not contiguous
        worker.ring.all_reduce_list_(arrays, "sum")
        worker.ring.all_reduce_list_(arrays[:1], "max")
        return arrays

    for arrays in run_local(main, num_workers=3):
        for array in arrays:
            np.testing.assert_array_equal(array, np.full(array.shape, 6))


def test_barrier_holds_everyone_back():
    arrived = []

    def main(worker):
        if worker.rank == 2:
            threading.Event().wait(0.2)
        arrived.append(worker.rank)
        worker.ring.barrier()
        return len(arrived)

    assert run_local(main, num_workers=3) == [3, 3, 3]


def test_in_place_means_in_place():
    def main(worker):
        array = np.ones(100_000, np.float32)
        return worker.ring.all_reduce_(array) is array and array[0] == 2

    assert run_local(main, num_workers=2) == [True, True]


# What is refused


def alone(call):
    with local_worker() as worker:
        return call(worker.ring)


@pytest.mark.parametrize(
    ("dtype", "op", "error", "message"),
    [
        (np.float32, "avg", ValueError, "no op 'avg'; choose one of sum, mean, max, min"),
        (np.bool_, "sum", TypeError, r"the sum of bool is not a bool; use op='max' \(or\)"),
        (np.bool_, "mean", TypeError, "the mean of bool"),
        (np.int32, "mean", TypeError, "the mean of int32 is not a whole number; convert"),
        (np.complex64, "max", TypeError, "complex64 has no order"),
        (np.dtype(object), "sum", TypeError, "cannot send arrays of dtype object"),
        (np.dtype("datetime64[s]"), "max", TypeError, "cannot send arrays of dtype datetime64"),
        (np.dtype(">f4"), "sum", TypeError, "own byte order"),
    ],
)
def test_senseless_reductions(dtype, op, error, message):
    for method in ("all_reduce_", "reduce_scatter_"):
        with pytest.raises(error, match=message):
            alone(lambda ring, method=method: getattr(ring, method)(np.zeros(2, dtype), op))


def test_arrays_that_cannot_be_changed_in_place():
    frozen = np.ones(3)
    frozen.flags.writeable = False
    for array in (frozen, np.ones((4, 4))[:, 1], [1.0, 2.0]):
        with pytest.raises(ValueError, match="works in place: it needs a C-contiguous, writeable"):
            alone(lambda ring, array=array: ring.all_reduce_(array))


def test_other_bad_arguments():
    with pytest.raises(
        ValueError, match="broadcast: there is no rank 1 to be root; ranks are 0 to 0"
    ):
        alone(lambda ring: ring.broadcast_(np.ones(1), 1))
    with pytest.raises(ValueError, match="got no arrays"):
        alone(lambda ring: ring.all_reduce_list_([]))
    with pytest.raises(TypeError, match="float32, float64; make one call for each dtype"):
        alone(lambda ring: ring.all_reduce_list_([np.ones(1), np.ones(1, np.float32)]))
    with pytest.raises(
        WorkerError, match=r"shape \(5,\) cannot be cut into 2 equal blocks.*pad it"
    ):
        run_local(lambda worker: worker.ring.reduce_scatter_(np.ones(5)), num_workers=2)


# Disagreement and delay


def errors_of(main, size):
    """What each rank raised, and the error on the driver."""
    raised = [None] * size

    def watched(worker):
        try:
            main(worker)
        except Exception as error:
            raised[worker.rank] = error
            raise

    with pytest.raises(WorkerError) as driver:
        run_local(watched, num_workers=size, timeout=20.0)
    return raised, driver.value


DISAGREEMENTS = {
    "shape": (
        lambda ring: ring.all_reduce_(np.ones(3, np.float32)),
        lambda ring: ring.all_reduce_(np.ones(4, np.float32)),
        ["float32[3]", "float32[4]"],
    ),
    "large shape": (
        lambda ring: ring.all_reduce_(np.ones(300_000)),
        lambda ring: ring.all_reduce_(np.ones(300_001)),
        ["float64[300000]", "float64[300001]"],
    ),
    "small against large": (
        lambda ring: ring.all_reduce_(np.ones(3)),
        lambda ring: ring.all_reduce_(np.ones(300_000)),
        ["float64[3]", "float64[300000]"],
    ),
    "dtype": (
        lambda ring: ring.all_reduce_(np.ones(4, np.float32)),
        lambda ring: ring.all_reduce_(np.ones(4, np.int32)),
        ["float32[4]", "int32[4]"],
    ),
    "op": (
        lambda ring: ring.all_reduce_(np.ones(4), "max"),
        lambda ring: ring.all_reduce_(np.ones(4), "sum"),
        ["all_reduce(op='max')", "all_reduce(op='sum')"],
    ),
    "collective": (
        lambda ring: ring.broadcast_(np.ones(4)),
        lambda ring: ring.all_gather(np.ones(4)),
        ["broadcast(root=0)", "all_gather()"],
    ),
    "root": (
        lambda ring: ring.broadcast_(np.ones(4), 0),
        lambda ring: ring.broadcast_(np.ones(4), 1),
        ["broadcast(root=0)", "broadcast(root=1)"],
    ),
    "number of arrays": (
        lambda ring: ring.all_reduce_list_([np.ones(2), np.ones(2)]),
        lambda ring: ring.all_reduce_(np.ones(4)),
        ["of 2 arrays", "of 1 array"],
    ),
    "nothing to send": (
        lambda ring: ring.all_reduce_(np.ones((0, 2))),
        lambda ring: ring.all_reduce_(np.ones((0, 3))),
        ["float64[0,2]", "float64[0,3]"],
    ),
}


@pytest.mark.parametrize("odd_rank", [0, 2])
@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_all_ranks_raise_when_one_disagrees(case, odd_rank):
    usual, odd, quoted = DISAGREEMENTS[case]
    raised, driver = errors_of(
        lambda worker: (odd if worker.rank == odd_rank else usual)(worker.ring), size=4
    )
    for error in [*raised, driver]:
        assert "the ranks disagree" in str(error)
        for side in quoted:
            assert side in str(error)
    assert {type(error).__name__ for error in raised} == {"MismatchError"}
    assert driver.error_type == "MismatchError"


def test_a_rank_that_ends_early():
    def main(worker):
        if worker.rank != 1:
            worker.ring.barrier()

    raised, driver = errors_of(main, size=3)
    assert "rank 1 (host 127.0.0.1) left the ring" in str(driver)
    assert "without calling the same number of collectives" in str(driver)
    assert raised[0] is not None
    assert raised[2] is not None


def test_after_an_error_the_ring_stays_closed():
    def main(worker):
        for _ in range(2):
            try:
                worker.ring.all_reduce_(np.ones(3 + (worker.rank == 0)))
            except RuntimeError as error:
                last = error
        raise last

    _, driver = errors_of(main, size=3)
    assert "float64[4]" in str(driver)


def test_a_stuck_rank_is_named_by_the_deadline():
    release = threading.Event()

    def main(worker):
        if worker.rank == 1:
            release.wait(30)
        try:
            worker.ring.barrier()
        finally:
            release.set()

    with pytest.raises(WorkerError) as caught:
        run_local(main, num_workers=3, timeout=0.3)
    assert caught.value.error_type == "DeadlineError"
    assert "nothing arrived from it for 0.3 s" in str(caught.value)
    assert "timeout=" in str(caught.value)


def test_slow_progress_is_no_delay():
    """The deadline is about silence: it may be far shorter than the whole collective takes."""

    def main(worker):
        for _ in range(4):
            threading.Event().wait(0.15)
            worker.ring.barrier()
        return True

    assert run_local(main, num_workers=2, timeout=0.5) == [True, True]
