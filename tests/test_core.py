"""Tensors, the trace stack and `bind`: what a tensor is, and what it refuses."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import cloudpickle
import numpy as np
import pytest

import tensorlite as tl
from tensorlite.core import Primitive, exactly, primitives, tracing_graph


def test_a_tensor_knows_its_shape_dtype_and_device() -> None:
    x = tl.zeros((2, 3), dtype=tl.int8)
    assert (x.shape, x.dtype, x.ndim, x.size, len(x)) == ((2, 3), tl.int8, 2, 6, 2)
    assert x.device == "cpu"
    assert str(x.aval) == "int8[2,3]"


def test_repr_and_str_show_values() -> None:
    assert repr(tl.asarray([1, 2])) == "Tensor([1, 2], dtype=int64, device=cpu)"
    assert str(tl.asarray(1.5)) == "1.5"
    assert f"{tl.asarray(2.0):.2f}" == "2.00"
    assert f"{tl.asarray([1, 2])}" == "[1 2]"


def test_scalars_convert() -> None:
    assert float(tl.asarray([[2.5]])) == 2.5
    assert int(tl.asarray(3)) == 3
    assert bool(tl.asarray(0.0)) is False
    assert [10, 20, 30][tl.asarray(1)] == 20
    assert tl.asarray(7).item() == 7
    assert tl.asarray([[1, 2]]).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda x: bool(x), TypeError, r"bool\(\): only a tensor with one element.*\(3,\).*tl.any"),
        (lambda x: float(x), TypeError, r"float\(\): only a tensor with one element"),
        (lambda x: x.item(), ValueError, r"item: only a tensor with one element.*\(3,\)"),
        (lambda x: hash(x), TypeError, r"not hashable.*id\(t\)"),
        (lambda x: range(x[0]), TypeError, r"dtype float32 is no index"),
        (lambda x: len(x[0]), TypeError, r"len\(\) of a 0-d tensor"),
        (lambda x: list(x[0]), TypeError, r"iteration over a 0-d tensor"),
        (lambda x: x.T, ValueError, r"x.T: needs two dimensions, got shape \(3,\)"),
        (lambda x: f"{x:.2f}", ValueError, r"one element"),
        (lambda x: x + "a", TypeError, r"unsupported operand"),
        (lambda x: x @ object(), TypeError, r"unsupported operand"),
    ],
)
def test_misuse_is_refused(
    action: Callable[[tl.Tensor], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        action(tl.arange(3.0))


def test_item_assignment_names_at() -> None:
    x = tl.zeros(3)
    with pytest.raises(TypeError, match=r"immutable.*x\.at\[i\]\.set\(v\)"):
        x[0] = 1.0
    assert x.tolist() == [0, 0, 0]


def test_comparing_with_what_is_no_number() -> None:
    x = tl.zeros(2)
    assert (x == None) is False  # noqa: E711
    assert (x != "a") is True


# ---- NumPy ---------------------------------------------------------------------------------------


def test_numpy_views_share_memory_and_cannot_be_written() -> None:
    x = tl.arange(4.0)
    view = np.asarray(x)
    assert np.shares_memory(view, x.data)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 9
    writable = np.array(x)
    writable[0] = 9
    assert x.tolist() == [0, 1, 2, 3]


def test_conversion_to_another_dtype_copies_and_says_so() -> None:
    x = tl.arange(3)
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match=r"int64 to float64 needs a copy"):
        np.asarray(x, dtype=np.float64, copy=False)
    assert np.shares_memory(np.asarray(x, copy=False), x.data)


@pytest.mark.parametrize("other", [np.ones(3, np.float32), np.float32(2), np.float64(2), 2, 2.5])
@pytest.mark.parametrize("operator", ["__add__", "__sub__", "__mul__", "__truediv__", "__pow__"])
def test_operators_meet_numpy_and_python_from_both_sides(other: Any, operator: str) -> None:
    x = tl.asarray([1.0, 2.0, 3.0])
    array = np.asarray(x)
    reflected = operator.replace("__", "__r", 1)
    for result, expected in (
        (getattr(x, operator)(other), getattr(array, operator)(other)),
        (getattr(x, reflected)(other), getattr(array, reflected)(other)),
    ):
        assert isinstance(result, tl.Tensor)
        assert result.dtype == tl.float32
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6)


def test_numpy_on_the_left_leaves_the_operation_to_the_tensor() -> None:
    x = tl.asarray([1.0, 2.0])
    for result in (np.ones(2, np.float32) + x, np.float32(1) + x, np.ones(2, np.float32) @ x):
        assert isinstance(result, tl.Tensor)
    assert (np.asarray([1.0, 3.0], np.float32) < x).tolist() == [False, False]


def test_no_warnings_and_numpys_own_error_state_stays() -> None:
    x = tl.asarray([-1.0, 0.0, 1e38])
    tiny = tl.asarray([1.0], dtype=tl.float16)
    with warnings.catch_warnings(), np.errstate(divide="raise", over="call", invalid="print"):
        warnings.simplefilter("error")
        before = np.geterr()
        for value in (tl.log(x), x / 0, x * x, tl.sqrt(x), tl.exp(x), x // 0, tl.arange(2) // 0):
            value.tolist()
        assert (tiny * 1e9).tolist() == [np.inf]
        assert tl.asarray([1e9], dtype=tl.float16).tolist() == [np.inf]
        assert tl.full((1,), 1e300).tolist() == [np.inf]
        assert tl.jit(lambda x: tl.log(x * 0))(x).tolist() == [-np.inf] * 3
        with pytest.raises(ValueError, match="add"):
            tl.zeros(2) + tl.zeros(3)
        assert np.geterr() == before
        with pytest.raises(FloatingPointError):
            np.ones(1) / np.zeros(1)


# ---- copies and pickles --------------------------------------------------------------------------


@pytest.mark.parametrize("library", [pickle, cloudpickle])
@pytest.mark.parametrize("dtype", [tl.float32, tl.bfloat16, tl.bool, tl.uint64], ids=str)
def test_tensors_survive_pickling(library: Any, dtype: Any) -> None:
    x = tl.asarray([[0, 1], [1, 1]], dtype=dtype)
    y = library.loads(library.dumps(x))
    assert y.dtype == dtype
    assert y.tolist() == x.tolist()
    assert y.device is x.device


def test_copies_of_the_immutable_are_itself() -> None:
    x = tl.arange(3)
    assert copy.copy(x) is x
    assert copy.deepcopy({"x": x})["x"] is x


@pytest.mark.parametrize("function", [tl.tanh, tl.add, tl.maximum, tl.sum, tl.reshape])
def test_functions_and_primitives_pickle_by_name(function: Any) -> None:
    assert pickle.loads(pickle.dumps(function)) is function


def test_primitives_are_one_in_each_process() -> None:
    for prim in primitives.values():
        assert pickle.loads(pickle.dumps(prim)) is prim
    data = pickle.dumps(tl.tanh.prim)
    with pytest.raises(LookupError, match=r"no primitive 'tanx'.*import the module"):
        pickle.loads(data.replace(b"tanh", b"tanx"))


def test_traced_values_do_not_pickle() -> None:
    with pytest.raises(tl.TracerError, match="pickling"):
        tl.jit(lambda x: (pickle.dumps(x), x)[1])(tl.ones(2))


# ---- tracers that leak ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (lambda f: tl.jit(f), "tl.jit"),
        (lambda f: tl.grad(f), "tl.grad"),
        (lambda f: tl.vmap(f), "tl.vmap"),
        (lambda f: tl.make_graph(f), "tl.make_graph"),
        (lambda f: tl.checkpoint(f), "tl.checkpoint"),
    ],
)
def test_a_leaked_tracer_says_so(transform: Any, name: str) -> None:
    kept: list[tl.Tensor] = []

    def f(x: tl.Tensor) -> tl.Tensor:
        kept.append(x * 2)
        return tl.sum(x)

    transform(f)(tl.ones(3))
    message = f"traced by {name}.*already ended.*leaked.*Return it"
    uses: list[Callable[[tl.Tensor], Any]] = [
        lambda x: x + 1,
        lambda x: tl.zeros(()) + x,
        lambda x: tl.jit(lambda y: y + x)(tl.zeros(())),
        lambda x: tl.jit(lambda y: y)(x),
        lambda x: tl.vmap(lambda y: y + x)(tl.zeros(2)),
        lambda x: tl.grad(lambda y: tl.sum(y * x))(tl.zeros(())),
        lambda x: tl.grad(lambda y: tl.sum(y * y))(x),
        lambda x: tl.jit(tl.grad(lambda y: tl.sum(x * y)))(tl.zeros(())),
    ]
    for use in uses:
        with pytest.raises(tl.TracerError, match=message):
            use(kept[0])


def test_a_tracer_kept_on_an_object_says_so() -> None:
    class Model:
        scale = tl.ones(())

    model = Model()

    @tl.jit
    def step(x: tl.Tensor) -> tl.Tensor:
        model.scale = model.scale * x
        return x

    step(tl.ones(()))
    with pytest.raises(tl.TracerError, match=r"multiply: got a value traced by tl.jit of step"):
        model.scale * 2


@pytest.mark.parametrize("failing", [tl.jit, tl.grad, tl.vmap, tl.checkpoint, tl.make_graph])
def test_an_exception_leaves_the_trace_stack_clean(failing: Any) -> None:
    def f(x: tl.Tensor) -> tl.Tensor:
        raise KeyError("the user's own")

    def nested(x: tl.Tensor) -> tl.Tensor:
        return tl.sum(tl.vmap(tl.jit(f))(tl.stack([x, x])))

    for function in (f, nested):
        with pytest.raises(KeyError, match="the user's own"):
            failing(function)(tl.ones(2))
        assert tracing_graph() is None
        assert tl.grad(lambda x: tl.sum(x * x))(tl.ones(2)).tolist() == [2, 2]
        assert tl.jit(lambda x: x + 1)(tl.ones(2)).tolist() == [2, 2]


@pytest.mark.parametrize("transform", [tl.jit, tl.vmap, tl.make_graph, tl.checkpoint])
@pytest.mark.parametrize(
    "use",
    [
        lambda x: 1 if x > 0 else 2,
        lambda x: [0, 1][int(x)],
        lambda x: float(x),
        lambda x: np.asarray(x),
        lambda x: x.item(),
        lambda x: x.numpy(),
        lambda x: f"{x:.1f}",
        lambda x: tl.zeros(3)[tl.arange(3.0) > x],
    ],
)
def test_values_that_are_not_there_yet(transform: Any, use: Any) -> None:
    point = tl.ones(3) if transform is tl.vmap else tl.ones(())
    with pytest.raises(tl.TracerError, match="tl.where") as caught:
        transform(lambda x: (use(x), x)[1])(point)
    assert "traces" in str(caught.value) or "stands for a whole batch" in str(caught.value)


def test_values_below_a_box_are_there() -> None:
    def f(x: tl.Tensor) -> tl.Tensor:
        assert f"{x:.1f}" == "3.0"
        assert float(x.numpy()) == 3.0
        return x * x if x > 0 else -x

    assert tl.grad(f)(3.0).item() == 6.0
    with pytest.raises(
        tl.TracerError, match=r"inside tl.grad would lose its gradient.*x.numpy\(\)"
    ):
        tl.grad(lambda x: (np.asarray(x), x)[1])(3.0)


# ---- threads -------------------------------------------------------------------------------------


def test_threads_trace_at_the_same_time() -> None:
    start = threading.Barrier(8)
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        start.wait()
        for _ in range(20):
            f = tl.jit(tl.grad(lambda x: tl.sum(tl.vmap(lambda y: y**3 * number)(x))))
            results[number] = f(tl.ones(3)).tolist()
            assert tracing_graph() is None

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [3 * i] * 3 for i in range(8)}


# ---- the registry --------------------------------------------------------------------------------


def test_names_of_primitives_are_unique() -> None:
    with pytest.raises(ValueError, match="already a primitive named 'add'"):
        Primitive("add")


def test_exactly_tells_values_apart_that_compute_differently() -> None:
    values: list[Any] = [1, 1.0, True, 0, 0.0, -0.0, False, (1,), (1.0,), ((True,),), ((1,),), "a"]
    values += [frozenset({1}), frozenset({True}), None, np.float64(1.0), 1.5]
    keys = {exactly(value) for value in values}
    assert len(keys) == len(values)
    assert all(exactly(value) == exactly(copy.copy(value)) for value in values)


def test_a_donated_tensor_names_the_cause() -> None:
    x = tl.ones(2)
    tl.jit(lambda x: x + 1, donate_argnums=0)(x)
    uses: list[Callable[[], Any]] = [
        lambda: x + 1,
        lambda: x.shape,
        lambda: x.numpy(),
        lambda: repr(x),
        lambda: tl.jit(lambda y: y)(x),
        lambda: tl.grad(lambda y: tl.sum(y))(x),
        lambda: tl.where(True, x, 0.0),
        lambda: tl.reshape(x, (2, 1)),
        lambda: x[0],
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match=r"donated.*use the function's result"):
            use()
