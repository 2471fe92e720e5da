"""The CPU backend: compiled graphs against eager mode, and when memory is let go."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite.backends.cpu.executor import compile_graph
from tensorlite.core import Aval, Primitive, bind, primitives
from tensorlite.device import lowering, lowerings_of


@pytest.fixture
def scratch() -> Any:
    """A primitive for one test, without any rule."""
    prim = Primitive("scratch")
    yield prim
    lowerings_of("cpu").pop(prim, None)
    del primitives["scratch"]


def test_a_compiled_graph_maps_arrays_to_arrays() -> None:
    constant = tl.asarray([10.0, 20.0])
    f = lambda x, y: (x * y + constant, constant, x)  # noqa: E731
    graph = tl.make_graph(f)(tl.ones(2), tl.ones(2))
    run = compile_graph(graph, {})
    x, y = np.array([1, 2], np.float32), np.array([3, 4], np.float32)
    for _ in range(2):
        z, c, same = run(x, y)
        assert z.tolist() == [13, 28]
        assert c.tolist() == [10, 20]
        assert same is x


def test_intermediate_results_are_let_go_after_their_last_use(scratch: Primitive) -> None:
    alive: list[int] = []
    made: list[weakref.ref[Any]] = []

    class Array(np.ndarray):
        """An array that can be watched."""

    @scratch.shape
    def _(x: Aval) -> Aval:
        return x

    @scratch.numpy
    def _(x: np.ndarray) -> np.ndarray:
        alive.append(sum(ref() is not None for ref in made))
        out = np.array(x).view(Array)
        made.append(weakref.ref(out))
        return out

    def chain(x: tl.Tensor) -> tl.Tensor:
        for _ in range(5):
            x = bind(scratch, x)
        return x

    run = compile_graph(tl.make_graph(chain)(tl.ones(2)), {})
    gc.disable()
    try:
        result = run(np.ones(2, np.float32))
    finally:
        gc.enable()
    assert result[0].tolist() == [1, 1]
    assert max(alive) == 1, "only the argument of each step is alive while it runs"


def test_a_result_that_a_later_step_reads_is_kept() -> None:
    f = tl.jit(lambda x: (tl.exp(x), tl.exp(x) + x, x + 1, x))
    x = tl.asarray([0.0, 1.0])
    for _ in range(2):
        for a, b in zip(f(x), (tl.exp(x), tl.exp(x) + x, x + 1, x), strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6)


def test_results_nobody_reads_do_no_harm(scratch: Primitive) -> None:
    scratch.shape(lambda x: (x, x, x))
    scratch.numpy(lambda x: (x, x + 1, x + 2))
    assert tl.jit(lambda x: bind(scratch, x)[1])(tl.zeros(2)).tolist() == [1, 1]


def test_lowerings_come_before_the_numpy_rule(scratch: Primitive) -> None:
    scratch.shape(lambda x: x)
    scratch.numpy(lambda x: x + 1)
    x = tl.zeros(1)
    assert bind(scratch, x).item() == 1

    @lowering(scratch, "cpu")
    def _(x: np.ndarray) -> np.ndarray:
        return x + 2

    assert bind(scratch, x).item() == 2
    assert tl.jit(lambda x: bind(scratch, x))(x).item() == 2


def test_a_primitive_without_rules_names_itself(scratch: Primitive) -> None:
    x = tl.ones(2)
    with pytest.raises(NotImplementedError, match="scratch has no implementation for the CPU"):
        bind(scratch, x)
    with pytest.raises(NotImplementedError, match="scratch has no shape rule"):
        tl.jit(lambda x: bind(scratch, x))(x)
    scratch.shape(lambda x: x)
    with pytest.raises(NotImplementedError, match="scratch has no implementation for the CPU"):
        tl.jit(lambda x: bind(scratch, x))(x)
    with pytest.raises(NotImplementedError, match="scratch has no derivative"):
        tl.grad(lambda x: tl.sum(bind(scratch, x)))(x)
    with pytest.raises(NotImplementedError, match="scratch has no batching rule"):
        tl.vmap(lambda x: bind(scratch, x))(x)


def test_an_error_of_a_kernel_that_the_shape_rule_does_not_foresee_is_passed_on(
    scratch: Primitive,
) -> None:
    scratch.shape(lambda x: x)

    @scratch.numpy
    def _(x: np.ndarray) -> np.ndarray:
        raise ValueError("deep inside")

    for f in (lambda x: bind(scratch, x), tl.jit(lambda x: bind(scratch, x))):
        with pytest.raises(ValueError, match="deep inside"):
            f(tl.ones(2))


def test_compiled_results_equal_eager_ones_and_are_the_same_each_time() -> None:
    rng = np.random.default_rng(0)
    w = tl.asarray(rng.normal(size=(8, 8)).astype(np.float32))

    def step(w: tl.Tensor) -> tl.Tensor:
        gradient = tl.grad(lambda w: tl.mean(tl.logsumexp(tl.tanh(w @ w), axis=1)))(w)
        return w - 0.1 * gradient

    compiled = tl.jit(step)(w).numpy()
    np.testing.assert_allclose(compiled, step(w).numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(tl.jit(step)(w).numpy(), compiled)
