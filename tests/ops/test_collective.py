"""Collectives among several ranks: values, derivatives, batches, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import collective, communication
from tensorlite.core import Tensor, bind
from tests.worlds import Mirror

OPS = ("sum", "mean", "max", "min")
REDUCE = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}


def data(rank: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(rank).normal(size=shape)


def everyone(function: Callable[[Any], Any], size: int) -> list[Any]:
    return dist.run_local(function, num_workers=size)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("jitted", [False, True])
def test_values(size: int, jitted: bool) -> None:
    def main(worker: Any) -> Any:
        def f(x: Tensor) -> Any:
            reduced = [collective.all_reduce(x, op) for op in OPS]
            parts = [collective.reduce_scatter(x, op) for op in OPS]
            return reduced, collective.all_gather(x), parts

        return tl.tree.map(np.asarray, (tl.jit(f) if jitted else f)(data(worker.rank, 6, 2)))

    whole = np.stack([data(rank, 6, 2) for rank in range(size)])
    for rank, (reduced, gathered, parts) in enumerate(everyone(main, size)):
        np.testing.assert_array_equal(gathered, whole)
        rows = slice(rank * 6 // size, (rank + 1) * 6 // size)
        for op, result, part in zip(OPS, reduced, parts, strict=True):
            expected = REDUCE[op](whole, axis=0)
            np.testing.assert_allclose(result, expected, rtol=1e-12)
            np.testing.assert_allclose(part, expected[rows], rtol=1e-12)


def functions() -> dict[str, Callable[[Tensor], Tensor]]:
    made: dict[str, Callable[[Tensor], Tensor]] = {}
    for op in OPS:
        made[f"all_reduce {op}"] = lambda x, op=op: collective.all_reduce(x, op)  # type: ignore[misc]
        made[f"reduce_scatter {op}"] = lambda x, op=op: collective.reduce_scatter(x, op)  # type: ignore[misc]
    made["all_gather"] = collective.all_gather
    made["both"] = lambda x: collective.all_reduce(tl.sin(collective.all_gather(x)), "mean")
    return made


@pytest.mark.parametrize("name", functions())
@pytest.mark.parametrize("size", [1, 2, 3])
def test_gradient_is_that_of_the_sum_over_ranks(name: str, size: int) -> None:
    f = functions()[name]

    def main(worker: Any) -> None:
        x = data(worker.rank, 6)

        def loss(x: Any) -> Tensor:
            y = f(x * x)
            return tl.sum(tl.asarray(data(worker.rank + 10, *y.shape)) * y * y)

        def total(x: Any) -> float:
            return float(dist.all_reduce(loss(tl.asarray(x))))

        gradients = [tl.grad(loss)(x), tl.jit(tl.grad(loss))(x), tl.grad(tl.jit(loss))(x)]
        h = 1e-5
        for owner in range(size):
            for place in range(6):
                step = np.zeros(6)
                step[place] = h if worker.rank == owner else 0
                slope = (total(x + step) - total(x - step)) / (2 * h)
                if worker.rank == owner:
                    for gradient in gradients:
                        assert np.asarray(gradient)[place] == pytest.approx(slope, rel=1e-6)

    everyone(main, size)


@pytest.mark.parametrize("name", functions())
def test_vmap_is_a_loop(name: str) -> None:
    f = functions()[name]

    def main(worker: Any) -> None:
        x = data(worker.rank, 3, 4, 2)
        loop = np.stack([np.asarray(f(tl.asarray(row))) for row in x])
        for mapped in (tl.vmap(f), tl.jit(tl.vmap(f)), tl.vmap(tl.jit(f))):
            np.testing.assert_allclose(np.asarray(mapped(x)), loop, rtol=1e-12)

    everyone(main, 2)


def test_equal_extrema_share_the_gradient() -> None:
    with communication.entered(Mirror(4)):
        gradient = tl.grad(lambda x: tl.sum(collective.all_reduce(x, "max")))(tl.ones(3))
    np.testing.assert_array_equal(np.asarray(gradient), np.ones(3))  # a quarter of four ranks' 1


def test_the_gradient_of_rounded_extrema_goes_to_the_exact_ones() -> None:
    inputs = np.random.default_rng(0).normal(size=(2, 20_000)).astype(np.float32)

    def main(worker: Any) -> np.ndarray:
        def f(x: Tensor) -> Tensor:
            return tl.sum(collective.all_reduce(x, "max", "bfloat16"))

        return np.asarray(tl.grad(f)(inputs[worker.rank]))

    gradients = dist.run_local(main, num_workers=2, shared_memory=False)
    np.testing.assert_array_equal(np.stack(gradients), 2.0 * (inputs == inputs.max(0)))


def test_a_world_of_one_binds_nothing() -> None:
    def f(x: Tensor) -> Any:
        return collective.all_reduce(x), collective.all_gather(x), collective.reduce_scatter(x)

    names = {eqn.prim.name for eqn in tl.make_graph(f)(tl.ones(2)).equations}
    assert names == {"reshape"}


def test_a_jitted_function_is_traced_anew_in_another_world() -> None:
    f = tl.jit(lambda x: collective.all_reduce(x))
    assert float(f(1.0)) == 1
    with communication.entered(Mirror(2)):
        assert float(f(1.0)) == 2
        with communication.entered(Mirror(3)):
            assert float(f(1.0)) == 3
        with communication.entered(None):
            assert float(f(1.0)) == 1
        assert float(f(1.0)) == 2
    assert f.cache_info().traces == 3


@pytest.mark.parametrize("jitted", [False, True])
def test_a_wire_is_part_of_the_equation_and_the_cotangent_travels_unrounded(jitted: bool) -> None:
    def f(x: Tensor) -> Any:
        return tl.sum(collective.all_reduce(x, wire="bfloat16"))

    world, gradient = Mirror(2), tl.value_and_grad(f)
    with communication.entered(world):
        (tl.jit(gradient) if jitted else gradient)(tl.ones(3))
    assert world.wires == ["bfloat16", None]


def test_a_jitted_function_has_a_program_for_each_wire() -> None:
    def f(x: Tensor, wire: str | None) -> Tensor:
        return collective.all_reduce(x, wire=wire)

    world, compiled = Mirror(2), tl.jit(f, static_argnames="wire")
    wires = [None, "float16", "bfloat16", "float16", None]
    with communication.entered(world):
        for wire in wires:
            compiled(tl.ones(3), wire=wire)
    assert world.wires == wires
    assert compiled.cache_info().traces == 3


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda x: collective.all_reduce(x, "median"), ValueError, "no op 'median'; choose one of"),
        (lambda x: collective.all_reduce(x > 0), TypeError, "all_reduce: there is no sum of bool"),
        (lambda x: collective.all_reduce(tl.astype(x, tl.int32), "mean"), TypeError, "no mean of"),
        (
            lambda x: collective.all_reduce(x, wire="int8"),
            ValueError,
            "wire must be None or one of",
        ),
        (
            lambda x: collective.all_reduce(tl.astype(x, tl.float64), wire="float16"),
            TypeError,
            "wire='float16' is for float32 tensors, not float64",
        ),
        (
            lambda x: collective.reduce_scatter(x, "or"),
            ValueError,
            "reduce_scatter: there is no op",
        ),
        (lambda x: collective.reduce_scatter(x), ValueError, "into 2 equal parts"),
    ],
)
@pytest.mark.parametrize("jitted", [False, True])
def test_what_is_refused(call: Any, error: type[Exception], words: str, jitted: bool) -> None:
    with communication.entered(Mirror(2)), pytest.raises(error, match=words):
        (tl.jit(call) if jitted else call)(tl.ones(3))


def test_a_graph_of_another_world_is_refused() -> None:
    with communication.entered(Mirror(2)):
        graph = tl.make_graph(lambda x: collective.all_gather(x))(tl.ones(3))
    with pytest.raises(RuntimeError, match="all_gather: traced for 2 workers, but 1 run it"):
        graph.run(tl.ones(3))


def test_bind_in_a_world_of_one_is_the_identity() -> None:
    x = tl.asarray(data(0, 3))
    params = {"op": "mean", "size": 1, "bucket_bytes": None, "wire": None}
    result = bind(collective.all_reduce_p, x, **params)
    np.testing.assert_array_equal(result.numpy(), x.numpy())
