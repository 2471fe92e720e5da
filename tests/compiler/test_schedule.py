"""Buckets: what travels together, in which order, when it starts, and where it lies."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import collective, communication
from tensorlite.backends.cpu.compile import compile_program
from tensorlite.backends.cpu.executor import compiles_natively
from tensorlite.backends.cpu.program import Program
from tensorlite.compiler.inline import inline
from tensorlite.compiler.launches import Copy, Launch, Start, Wait
from tensorlite.compiler.schedule import arranged, bucket_p, bucketed, start_p, wait_p
from tensorlite.device import lowerings_of
from tensorlite.graph import Graph
from tests.worlds import Mirror

KILO, MEGA = 1 << 10, 1 << 20


def graph_of(f: Any, *args: Any, bucket_bytes: int | None = 25 * MEGA) -> Graph:
    with communication.entered(Mirror(2)), communication.bucketing(bucket_bytes):
        return inline(tl.make_graph(f)(*args))


def buckets(graph: Graph) -> list[list[tuple[int, ...]]]:
    """The shapes in each bucket."""
    return [
        [aval.shape for aval in eqn.params["bucket"].avals]
        for eqn in bucketed(graph).equations
        if eqn.prim is bucket_p
    ]


def perceptron(widths: list[int]) -> tuple[Any, list[np.ndarray]]:
    """The reduced gradients of a chain of products, in the order of its layers."""
    weights = [np.ones((a, b), np.float32) for a, b in itertools.pairwise(widths)]

    def f(x: Any, *weights: Any) -> Any:
        def loss(weights: Any) -> Any:
            y = x
            for w in weights:
                y = tl.tanh(y @ w)
            return tl.sum(y)

        gradients = tl.grad(loss)(weights)
        return [collective.all_reduce(g * 0.5, "mean") for g in gradients]

    return f, weights


def test_the_gradient_that_is_ready_first_is_sent_first() -> None:
    f, weights = perceptron([3, 4, 5, 6])
    graph = graph_of(f, np.ones((2, 3), np.float32), *weights, bucket_bytes=1)
    assert buckets(graph) == [[(5, 6)], [(4, 5)], [(3, 4)]]


def test_what_is_only_returned_is_sent_last() -> None:
    def f(x: Any, *weights: Any) -> Any:
        loss = tl.sum(x @ weights[0])
        updated = weights[0] - collective.all_reduce(tl.tanh(x @ x.T) @ weights[0])
        return collective.all_reduce(loss), updated

    graph = graph_of(f, *[np.ones((3, 3), np.float32)] * 2, bucket_bytes=1)
    assert buckets(graph) == [[(3, 3)], [()]]


def test_sizes_of_buckets() -> None:
    f, weights = perceptron([64] * 65)  # 16 KiB each
    x = np.ones((2, 64), np.float32)

    def counts(bucket_bytes: int | None) -> list[int]:
        return list(map(len, buckets(graph_of(f, x, *weights, bucket_bytes=bucket_bytes))))

    assert counts(25 * MEGA) == [16] * 4  # 256 KiB at least
    assert counts(32 * KILO) == [2] * 32
    assert counts(None) == [64]


def test_buckets_of_a_large_model() -> None:
    f, _ = perceptron([1] * 25)
    weights = [np.broadcast_to(np.float32(1), (1024, 1024))] * 24  # 4 MiB each: a part is 6 MiB
    graph = graph_of(f, np.ones((2, 1024), np.float32), *weights)
    assert list(map(len, buckets(graph))) == [1] + [2] * 11 + [1]


def test_each_kind_has_buckets_of_its_own() -> None:
    def f(x: Any, y: Any) -> Any:
        return [
            collective.all_reduce(x, "sum"),
            collective.all_reduce(y, "sum"),
            collective.all_reduce(x, "max"),
            collective.all_reduce(x * 2, "sum"),
            collective.all_reduce(x[1:], wire="float16"),
        ]

    graph = graph_of(f, np.ones(3, np.float32), np.ones(4))
    assert sorted(buckets(graph)) == [[(2,)], [(3,)], [(3,), (3,)], [(4,)]]
    made = [e.params["bucket"] for e in bucketed(graph).equations if e.prim is bucket_p]
    assert {b.avals[0].shape: b.wire for b in made} == {(2,): "float16", (3,): None, (4,): None}


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_buckets_do_not_depend_on_the_number_of_rows(rows: int) -> None:
    f, weights = perceptron([7, 5, 3, 2])
    x = np.ones((rows, 7), np.float32)
    assert buckets(graph_of(f, x, *weights, bucket_bytes=70)) == [[(3, 2), (5, 3)], [(7, 5)]]


def test_what_depends_on_a_bucket_is_not_in_it() -> None:
    def f(x: Any) -> Any:
        first = collective.all_reduce(x)
        return first, collective.all_reduce(first * 2), collective.all_reduce(x + 1)

    graph = bucketed(graph_of(f, np.ones(3, np.float32)))
    sent = [eqn for eqn in graph.equations if eqn.prim is bucket_p]
    assert sorted(len(eqn.params["bucket"].avals) for eqn in sent) == [1, 2]
    assert [eqn.params["bucket"].number for eqn in sent] == [0, 1]
    _check_order(graph)


def _check_order(graph: Graph) -> None:
    """Every operand is made before it is read."""
    known = set(graph.inputs)
    for eqn in graph.equations:
        assert {a for a in eqn.inputs if not isinstance(a, tl.Tensor)} <= known
        known.update(eqn.outputs)


def random_program(seed: int) -> Any:
    """A function with collectives anywhere in it."""

    def f(*args: Any) -> Any:
        rng, values = random.Random(seed), list(args)
        for _ in range(25):
            x, y = rng.choice(values), rng.choice(values)
            kind = rng.randrange(6)
            if kind == 0:
                values.append(collective.all_reduce(x, rng.choice(["sum", "mean", "max"])))
            elif kind == 1:
                values.append(tl.sum(collective.all_gather(x), axis=0) / 2)
            elif kind == 2:
                values.append(tl.tanh(x @ y))
            elif kind == 3:
                values.append(collective.all_reduce(x.T.reshape(2, 18)).reshape(6, 6) / 2)
            else:
                values.append(tl.tanh(x + y))
        return rng.sample(values, 4) + values[-2:] + values[:1]

    return f


@pytest.mark.parametrize("seed", range(20))
def test_random_programs_keep_their_order(seed: int) -> None:
    args = [np.random.default_rng(seed + k).normal(size=(6, 6)) for k in range(2)]
    graph = graph_of(random_program(seed), *args, bucket_bytes=600)
    packed = bucketed(graph)
    _check_order(packed)
    for split in (False, True):
        ordered = arranged(packed, split=split)
        _check_order(ordered)
        waits = [eqn.params["bucket"].number for eqn in ordered.equations if eqn.prim is wait_p]
        starts = [eqn.params["bucket"].number for eqn in ordered.equations if eqn.prim is start_p]
        assert waits == starts == sorted(starts)
    again = bucketed(graph_of(random_program(seed), *args, bucket_bytes=600))
    assert [e.prim for e in again.equations] == [e.prim for e in packed.equations]


@pytest.mark.skipif(not compiles_natively(), reason="the native compiler is not installed")
class TestNative:
    def program(self, f: Any, *args: Any, bucket_bytes: int | None = 25 * MEGA) -> Program:
        with communication.entered(Mirror(2)), communication.bucketing(bucket_bytes):
            return compile_program(tl.make_graph(f)(*args), lowerings_of("cpu"))

    def kinds(self, program: Program) -> list[str]:
        names = {Start: "start", Wait: "wait", Copy: "copy"}
        launches = [x for x in program.launches if isinstance(x, Launch)]
        assert len(launches) == len(program.launches), "a step of Python"
        return [names.get(type(x.code), "compute") for x in launches]

    def step(self, layers: int, width: int) -> tuple[Any, list[np.ndarray]]:
        weights = [np.ones((width, width), np.float32) for _ in range(layers)]

        def f(x: Any, *weights: Any) -> Any:
            def loss(weights: Any) -> Any:
                y = x
                for w in weights:
                    y = tl.tanh(y @ w)
                return tl.sum(y)

            gradients = tl.grad(loss)(weights)
            return [
                w - 0.1 * collective.all_reduce(g) for w, g in zip(weights, gradients, strict=True)
            ]

        return f, weights

    def test_gradients_are_sent_as_they_become_ready_and_awaited_last(self) -> None:
        f, weights = self.step(layers=4, width=8)
        kinds = self.kinds(self.program(f, np.ones((2, 8), np.float32), *weights, bucket_bytes=1))
        starts = [i for i, kind in enumerate(kinds) if kind == "start"]
        assert len(starts) == 4 and "copy" not in kinds
        for here, following in itertools.pairwise(starts):
            assert "compute" in kinds[here:following]  # something goes on behind it
        # The last gradient is followed by nothing that could be done without it; then each update
        # comes as soon as its gradient is there.
        assert kinds[starts[-1] + 1 :] == ["wait", "compute"] * 4

    def test_members_lie_side_by_side_and_overlap_nothing(self) -> None:
        f, weights = self.step(layers=5, width=20)  # 1600 bytes each, a multiple of 64
        program = self.program(f, np.ones((2, 20), np.float32), *weights)
        (start,) = [x for x in program.launches if isinstance(x.code, Start)]  # type: ignore[union-attr]
        bucket = start.code.bucket  # type: ignore[union-attr]
        assert bucket.offsets == tuple(range(0, 5 * 1600, 1600)) and bucket.nbytes == 5 * 1600
        number = start.values[0].number  # type: ignore[union-attr]
        written = {
            v.offset
            for x in program.launches
            for v in x.values  # type: ignore[union-attr]
            if not v.external and v.number == number
        }
        assert written == set(bucket.offsets)

    def test_gaps_between_members(self) -> None:
        f, weights = self.step(layers=3, width=3)  # 36 bytes each
        program = self.program(f, np.ones((2, 3), np.float32), *weights)
        (start,) = [x for x in program.launches if isinstance(x.code, Start)]  # type: ignore[union-attr]
        bucket = start.code.bucket  # type: ignore[union-attr]
        assert bucket.offsets == (0, 64, 128) and bucket.nbytes == 164
        flat = np.arange(41, dtype=np.float32)
        assert [gap.tolist() for gap in bucket.gaps(flat)] == [
            list(range(9, 16)),
            list(range(25, 32)),
        ]

    @pytest.mark.parametrize("seed", range(20))
    def test_random_programs_give_what_numpy_gives(self, seed: int) -> None:
        args = [np.random.default_rng(seed + k).normal(size=(6, 6)) for k in range(2)]
        f = random_program(seed)
        for bucket_bytes in (1, 600, None):
            with communication.entered(Mirror(2)), communication.bucketing(bucket_bytes):
                compiled = tl.jit(f)
                for _ in range(2):  # the second run finds the arena as the first one left it
                    for a, b in zip(compiled(*args), f(*map(tl.asarray, args)), strict=True):
                        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9)

    def test_what_is_read_after_the_start_is_copied(self) -> None:
        def f(x: Any) -> Any:
            y = tl.tanh(x)
            return collective.all_reduce(y), y, collective.all_reduce(x), collective.all_reduce(y.T)

        x = np.random.default_rng(0).normal(size=(3, 3))
        with communication.entered(Mirror(2)):
            total, kept, given, turned = map(np.asarray, tl.jit(f)(x))
        np.testing.assert_allclose(kept, np.tanh(x))
        np.testing.assert_allclose(total, 2 * np.tanh(x))
        np.testing.assert_allclose(turned, 2 * np.tanh(x).T)
        np.testing.assert_array_equal(given, 2 * x)
