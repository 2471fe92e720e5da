"""Donated arguments: results are written over them where nobody else can see their memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import optim
from tensorlite.backends.cpu import executor

pytestmark = pytest.mark.skipif(
    not executor.compiles_natively(), reason="the native compiler is not installed"
)
SIZE = 40_000  # large enough that the allocator keeps the memory


def address(x: tl.Tensor) -> int:
    return int(x.data.__array_interface__["data"][0])


def update(p: Any, m: Any, g: Any) -> tuple[Any, Any]:
    m = 0.9 * m + g
    return p - 0.1 * m, m


def fresh() -> tuple[tl.Tensor, tl.Tensor, tl.Tensor]:
    """Results of compiled functions, whose memory is the allocator's."""
    rng = np.random.default_rng(0)
    make = tl.jit(lambda x: x * 2)
    p, m, g = (make(rng.normal(size=SIZE).astype(np.float32)) for _ in range(3))
    return p, m, g


@pytest.fixture
def step() -> Callable[..., Any]:
    """A function that donates, and has been compiled."""
    jitted = tl.jit(update, donate_argnums=(0, 1))
    jitted(*fresh())
    return jitted


def expected() -> list[np.ndarray]:
    return [np.asarray(x) for x in tl.jit(update)(*fresh())]


def check(results: Any) -> None:
    for got, want in zip(results, expected(), strict=True):
        np.testing.assert_array_equal(np.asarray(got), want)


def test_results_lie_where_the_arguments_lay(step: Any) -> None:
    p, m, g = fresh()
    places = {address(p), address(m)}
    results = step(p, m, g)
    assert {address(x) for x in results} == places
    check(results)
    with pytest.raises(RuntimeError):
        np.asarray(p)
    np.testing.assert_array_equal(np.asarray(g), np.asarray(fresh()[2]))


SEEN: dict[str, Callable[[tl.Tensor], Any]] = {
    "as an array": np.asarray,
    "by another tensor": tl.stop_gradient,
    "reshaped": lambda x: x.reshape(200, -1),
    "in part": lambda x: np.asarray(x)[5:9],
    "as a buffer": lambda x: memoryview(np.asarray(x)),
    "by DLPack": np.from_dlpack,
}


@pytest.mark.parametrize("how", SEEN)
def test_what_somebody_sees_does_not_change(step: Any, how: str) -> None:
    p, m, g = fresh()
    seen = SEEN[how](p)
    before = np.array(seen)
    check(step(p, m, g))
    np.testing.assert_array_equal(np.asarray(seen), before)


def test_memory_that_is_not_ours_does_not_change(step: Any) -> None:
    arrays = [np.array(np.asarray(x)) for x in fresh()]
    for array in arrays:
        array.flags.writeable = False
    before = [array.copy() for array in arrays]
    check(step(*map(tl.asarray, arrays)))
    for array, was in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, was)


def test_one_tensor_for_two_arguments(step: Any) -> None:
    p, _, g = fresh()
    want = [np.asarray(x) for x in tl.jit(update)(p, p, g)]
    for got, other in zip(step(p, p, g), want, strict=True):
        np.testing.assert_array_equal(np.asarray(got), other)


def test_an_argument_that_is_a_result_as_well() -> None:
    jitted = tl.jit(lambda p: (p, p + 1), donate_argnums=0)
    jitted(fresh()[0])
    p = fresh()[0]
    want = np.array(np.asarray(p))
    same, more = jitted(p)
    np.testing.assert_array_equal(np.asarray(same), want)
    np.testing.assert_array_equal(np.asarray(more), want + 1)


def test_an_argument_that_is_read_later() -> None:
    def twice(p: Any) -> tuple[Any, Any]:
        q = p * 3
        return q, tl.sort(p[::-1]) + tl.flip(p)

    jitted = tl.jit(twice, donate_argnums=0)
    jitted(fresh()[0])
    for got, want in zip(jitted(fresh()[0]), tl.jit(twice)(fresh()[0]), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_training_with_adam_is_the_same_with_and_without() -> None:
    optimizer = optim.adam(0.01)

    def train(weights: Any, state: Any, x: Any) -> Any:
        loss, gradients = tl.value_and_grad(lambda w: tl.sum((x @ w["a"] - w["b"]) ** 2))(weights)
        updates, state = optimizer.update(gradients, state, weights)
        return optim.apply_updates(weights, updates), state, loss

    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 200)).astype(np.float32)
    losses = []
    for donated in ((), (0, 1)):
        step = tl.jit(train, donate_argnums=donated)
        weights = {"a": tl.ones((200, 300)), "b": tl.zeros((300,))}
        state = optimizer.init(weights)
        history = []
        for _ in range(5):
            weights, state, loss = step(weights, state, x)
            history.append(float(loss))
        losses.append(history)
    assert losses[0] == losses[1]


def test_threads(step: Any) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                check(step(*fresh()))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_under_a_watcher(step: Any, tmp_path: Any) -> None:
    with tl.profile(tmp_path / "trace.json"):
        check(step(*fresh()))
    with tl.debug_nans():
        check(step(*fresh()))


def test_transforms_of_a_donating_function(step: Any) -> None:
    p, m, g = fresh()
    gradient = tl.grad(lambda q: tl.sum(step(q, m, g)[0]))(p)
    np.testing.assert_array_equal(np.asarray(gradient), 1)
    check(step(p, m, g))
