"""The collectives on trees of tensors: structure, dtypes and devices come back as they went in."""

import json
import threading
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite.distributed.reduction import WIRES
from tensorlite.distributed.ring import Ring


class Pair(NamedTuple):
    left: object
    right: object


def tree_of(rank):
    """A tree with several dtypes, scalars, an empty leaf and one large enough for the ring."""
    return {
        "weights": [
            tl.asarray(np.full((3, 4), rank, np.float32)),
            tl.asarray(np.full((40_000,), rank + 1, np.float32)),
        ],
        "pair": Pair(tl.asarray(np.int32(rank)), np.full(2, rank, ml_dtypes.bfloat16)),
        "flag": np.array([rank == 0, rank < 5]),
        "empty": tl.asarray(np.zeros((0, 3), np.float64)),
        "none": None,
    }


def to_numpy(tree):
    return tl.tree.map(np.asarray, tree)


def assert_trees_equal(got, want):
    assert tl.tree.structure(got) == tl.tree.structure(want)
    for path, a, b in zip(
        tl.tree.paths(got), tl.tree.leaves(got), tl.tree.leaves(want), strict=True
    ):
        assert isinstance(a, tl.Tensor), path
        assert np.asarray(a).dtype == np.asarray(b).dtype, path
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=path)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_reduce_of_a_tree(size):
    for got in dist.run_local(
        lambda w: dist.all_reduce(tree_of(w.rank), op="max"), num_workers=size
    ):
        assert_trees_equal(got, tree_of(size - 1) | {"flag": np.array([True, True])})


def test_sum_and_mean_of_tensors():
    def main(worker):
        tree = {"a": tl.asarray(np.arange(3.0) * worker.rank)}
        return dist.all_reduce(tree), dist.all_reduce(tree, op="mean")

    for total, mean in dist.run_local(main, num_workers=3):
        assert_trees_equal(total, {"a": np.array([0.0, 3.0, 6.0])})
        assert_trees_equal(mean, {"a": np.array([0.0, 1.0, 2.0])})


def test_the_default_is_the_sum_and_bare_leaves_are_trees():
    got = dist.run_local(lambda w: dist.all_reduce(np.float32(w.rank + 1)), num_workers=2)
    assert_trees_equal(got[0], np.float32(3))


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("wire", ["float16", "bfloat16"])
def test_halves_on_the_wire(wire, jitted):
    inputs = np.random.default_rng(0).normal(size=(3, 20_000)).astype(np.float32)

    def main(worker):
        tree = {"large": inputs[worker.rank], "small": tl.ones(2)}
        reduce = lambda tree: dist.all_reduce(tree, "mean", wire)  # noqa: E731
        return to_numpy((tl.jit(reduce) if jitted else reduce)(tree))

    first, *others = dist.run_local(main, num_workers=3, shared_memory=False)
    for other in others:
        assert other["large"].tobytes() == first["large"].tobytes()
    half = WIRES[wire]
    np.testing.assert_array_equal(first["large"].astype(half).astype(np.float32), first["large"])
    unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[wire]
    error = np.abs(first["large"] - inputs.astype(np.float64).mean(0))
    assert np.all(error <= 3.1 * unit * np.abs(inputs).mean(0))
    np.testing.assert_array_equal(first["small"], np.ones(2))


@pytest.mark.parametrize("root", [0, 2])
def test_broadcast(root):
    for got in dist.run_local(lambda w: dist.broadcast(tree_of(w.rank), root), num_workers=3):
        assert_trees_equal(got, tree_of(root))


@pytest.mark.parametrize("size", [1, 3])
def test_all_gather_stacks(size):
    trees = [to_numpy(tree_of(rank)) for rank in range(size)]
    want = tl.tree.map(lambda *leaves: np.stack(leaves), *trees)
    for got in dist.run_local(lambda w: dist.all_gather(tree_of(w.rank)), num_workers=size):
        assert_trees_equal(got, want)


@given(size=st.integers(1, 4), rows=st.integers(0, 3), columns=st.integers(0, 5))
@settings(max_examples=15)
def test_tiled_all_gather_undoes_reduce_scatter(size, rows, columns):
    def leaves(rank):
        values = np.arange(size * rows * columns, dtype=np.float32).reshape(size * rows, columns)
        return {"a": values * (rank + 1), "b": values[:, :1] + rank, "c": np.arange(size) * rank}

    def main(worker):
        tree = leaves(worker.rank)
        part = dist.reduce_scatter(tree)
        assert np.asarray(part["a"]).shape == (rows, columns)
        return dist.all_gather(part, tiled=True), dist.all_reduce(tree)

    if columns == 0:
        columns = 1
    for gathered, reduced in dist.run_local(main, num_workers=size):
        assert_trees_equal(gathered, reduced)


def test_a_tree_goes_around_once_for_each_dtype(monkeypatch):
    calls = []
    reduce_one = Ring.all_reduce_

    def counted(self, array, op="sum", **options):
        calls.append((self.rank, array.dtype.name))
        return reduce_one(self, array, op, **options)

    monkeypatch.setattr(Ring, "all_reduce_", counted)
    dist.run_local(
        lambda worker: dist.all_reduce(tree_of(worker.rank), op="max") and None, num_workers=2
    )
    assert len(calls) == len(set(calls)) == 10


def test_results_are_on_the_device_of_their_leaves():
    def main(worker):
        return [leaf.device for leaf in tl.tree.leaves(dist.all_reduce([tl.ones(2), np.ones(2)]))]

    for devices in dist.run_local(main, num_workers=2):
        assert devices == ["cpu", "cpu"]


def test_a_tree_without_leaves():
    assert dist.run_local(lambda w: dist.all_reduce({"a": []}), num_workers=2) == [{"a": []}] * 2


def test_inputs_are_left_alone():
    def main(worker):
        mine = np.full(50_000, worker.rank, np.float32)
        for collective in (dist.all_reduce, dist.broadcast, dist.reduce_scatter, dist.all_gather):
            collective(mine)
        return np.all(mine == worker.rank)

    assert dist.run_local(main, num_workers=2) == [True, True]


# What is refused


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: dist.all_reduce({"net": {"mask": np.array([True])}}),
            TypeError,
            "all_reduce: leaf 'net.mask': the sum of bool is not a bool",
        ),
        (
            lambda: dist.all_reduce({"n": np.arange(3)}, op="mean"),
            TypeError,
            "all_reduce: leaf 'n': the mean of int64 is not a whole number",
        ),
        (lambda: dist.all_reduce(np.ones(2), op="prod"), ValueError, "no op 'prod'; choose one of"),
        (
            lambda: dist.all_reduce(np.ones(2, np.float32), wire="int8"),
            ValueError,
            "all_reduce: wire must be None or one of float16, bfloat16, got 'int8'",
        ),
        (
            lambda: dist.all_reduce({"a": np.ones(2, np.float32), "b": np.ones(2)}, wire="float16"),
            TypeError,
            "leaf 'b': wire='float16' is for float32 arrays, not float64",
        ),
        (
            lambda: dist.all_gather({"name": np.array("text")}),
            TypeError,
            "all_gather: leaf 'name': cannot send arrays of dtype <U4",
        ),
        (lambda: dist.all_gather(np.float32(1), tiled=True), ValueError, "a scalar has no axis"),
        (
            lambda: dist.reduce_scatter({"b": np.float32(1)}),
            ValueError,
            r"leaf 'b' of shape \(\) cannot be cut",
        ),
        (lambda: dist.broadcast(np.ones(1), root=3), ValueError, "there is no rank 3"),
    ],
)
def test_bad_calls(call, error, message):
    with dist.local_worker(), pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("odd", "quoted"),
    [
        ({"w": np.ones(2), "b": np.ones(3)}, ["w: float64[2]", "v: float64[2]"]),
        (
            {"b": np.ones(3)},
            ["all_reduce(op='max') of 1 array", "all_reduce(op='max') of 2 arrays"],
        ),
        ({"v": np.ones(2), "b": np.ones(3, np.int16)}, ["b: int16[3]", "b: float64[3]"]),
        ({}, ["barrier() of 0 arrays", "all_reduce(op='max') of 2 arrays"]),
    ],
)
def test_trees_that_differ_are_quoted_on_both_sides(odd, quoted):
    usual = {"v": np.ones(2), "b": np.ones(3)}
    with pytest.raises(dist.WorkerError) as caught:
        dist.run_local(lambda w: dist.all_reduce(odd if w.rank else usual, op="max"), num_workers=2)
    assert caught.value.error_type == "MismatchError"
    for side in quoted:
        assert side in str(caught.value)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_inside_a_jitted_function(size):
    def everything(tree, rows):
        return {
            "max": dist.all_reduce(tree, op="max"),
            "sum": dist.all_reduce(tree["weights"]),
            "mean": dist.all_reduce(rows, op="mean"),
            "stacked": dist.all_gather(tree),
            "joined": dist.all_gather(rows, tiled=True),
            "part": dist.reduce_scatter(rows),
            "root": dist.broadcast(tree, root=size - 1),
        }

    def main(worker):
        rows = np.random.default_rng(worker.rank).integers(-9, 9, (6, 2)).astype(np.float32)
        arguments = tree_of(worker.rank), rows
        assert_trees_equal(tl.jit(everything)(*arguments), to_numpy(everything(*arguments)))

    dist.run_local(main, num_workers=size)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: dist.all_reduce(x, op="no"), ValueError, "there is no op 'no'"),
        (lambda x: dist.all_reduce({"n": x > 0}), TypeError, "leaf 'n'.*the sum of bool"),
        (lambda x: dist.all_reduce({"n": x}, wire="bfloat16"), TypeError, "leaf 'n'.*not float64"),
        (lambda x: dist.reduce_scatter(x), ValueError, "2 equal parts"),
        (lambda x: dist.broadcast(x, root=2), ValueError, "no rank 2 to be root"),
        (lambda x: dist.all_gather(x[0], tiled=True), ValueError, "no axis to join along"),
        (lambda x: (dist.barrier(), x)[1], dist.DistributedError, "no place for it"),
    ],
)
def test_bad_calls_inside_a_jitted_function(call, error, message):
    def main(worker):
        with pytest.raises(error, match=message):
            tl.jit(call)(np.ones(3))

    dist.run_local(main, num_workers=2)


def test_outside_of_a_world():
    for call in (lambda: dist.all_reduce(np.ones(1)), dist.barrier, dist.current_worker):
        with pytest.raises(
            dist.DistributedError, match="there is no worker here: collectives work"
        ):
            call()


def test_a_new_thread_is_outside_too_and_the_message_says_what_to_do():
    raised = []

    def in_thread():
        try:
            dist.barrier()
        except dist.DistributedError as error:
            raised.append(str(error))

    with dist.local_worker():
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
    assert "contextvars.copy_context().run" in raised[0]


def test_collectives_are_slices_of_a_profile(tmp_path):
    tree = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int64)}

    def main(worker):
        dist.all_reduce(tree, op="max")
        dist.reduce_scatter({"a": tree["a"]})
        dist.all_gather(tree["b"])
        dist.broadcast(tree["b"], root=1)
        dist.barrier()

    with tl.profile(tmp_path / "trace.json"):
        dist.run_local(main, num_workers=2)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event.get("cat") == "span"]
    assert {event["args"]["workers"] for event in spans} == {2}
    assert len({event["tid"] for event in spans}) == 2, "each worker has a row of its own"
    expected = [
        ("all_reduce", 24),
        ("all_reduce", 32),
        ("reduce_scatter", 24),
        ("all_gather", 32),
        ("broadcast", 32),
        ("barrier", None),
    ]
    for row in {event["tid"] for event in spans}:
        mine = [(e["name"], e["args"].get("bytes")) for e in spans if e["tid"] == row]
        assert mine == expected
