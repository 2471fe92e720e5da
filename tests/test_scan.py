"""scan against the Python loop that it stands for, under every transform."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorlite as tl
from tensorlite.core import primitives

rng = np.random.default_rng(0)
W = tl.asarray(rng.normal(size=(3, 3)))
START = tl.asarray(rng.normal(size=3))
XS = tl.asarray(rng.normal(size=(7, 3)))


def body_with(w: tl.Tensor) -> Any:
    def body(carry: tl.Tensor, x: tl.Tensor) -> tuple[tl.Tensor, tl.Tensor]:
        carry = tl.tanh(w.T @ carry + x)  # w.T depends on a constant of the loop alone
        return carry, carry * 2

    return body


def by_loop(w: tl.Tensor, carry: tl.Tensor, xs: tl.Tensor, reverse: bool = False) -> Any:
    ys: list[tl.Tensor] = []
    for x in reversed(list(xs)) if reverse else xs:
        carry, y = body_with(w)(carry, x)
        ys.append(y)
    return carry, tl.stack(ys[::-1] if reverse else ys)


def by_scan(w: tl.Tensor, carry: tl.Tensor, xs: tl.Tensor, **options: Any) -> Any:
    return tl.scan(body_with(w), carry, xs, **options)


def loss_of(loop: Any, **options: Any) -> Any:
    def loss(w: tl.Tensor, carry: tl.Tensor, xs: tl.Tensor) -> tl.Tensor:
        end, ys = loop(w, carry, xs, **options)
        return tl.sum(end * end) + tl.sum(tl.sin(ys))

    return loss


def same(a: Any, b: Any, rtol: float = 1e-9) -> None:
    for x, y in zip(tl.tree.leaves(a), tl.tree.leaves(b), strict=True):
        assert x.aval == y.aval
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=1e-11)


OPTIONS = [{}, {"checkpoint": True}, {"reverse": True}, {"reverse": True, "checkpoint": True}]


def plain(options: dict[str, bool]) -> dict[str, bool]:
    return {"reverse": options.get("reverse", False)}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values(options: dict[str, bool]) -> None:
    same(by_scan(W, START, XS, **options), by_loop(W, START, XS, **plain(options)))
    jitted = tl.jit(lambda *args: by_scan(*args, **options))
    same(jitted(W, START, XS), by_loop(W, START, XS, **plain(options)))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_of_constants_carry_and_inputs(options: dict[str, bool]) -> None:
    expected = tl.grad(loss_of(by_loop, **plain(options)), (0, 1, 2))(W, START, XS)
    loss = loss_of(by_scan, **options)
    same(tl.grad(loss, (0, 1, 2))(W, START, XS), expected)
    same(tl.jit(tl.grad(loss, (0, 1, 2)))(W, START, XS), expected)
    same(tl.grad(tl.jit(loss), (0, 1, 2))(W, START, XS), expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_second_order_and_forward_mode(options: dict[str, bool]) -> None:
    loss, reference = loss_of(by_scan, **options), loss_of(by_loop, **plain(options))
    same(tl.hessian(loss)(W, START, XS), tl.hessian(reference)(W, START, XS), rtol=1e-8)
    points, moves = (W, START, XS), (W * 0.5, START, -XS)
    same(tl.jvp(loss, points, moves), tl.jvp(reference, points, moves))


@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, 0)])
def test_vmap_in_each_argument(axes: tuple[int | None, ...]) -> None:
    args = [
        x if axis is None else tl.asarray(rng.normal(size=(4, *x.shape)))
        for x, axis in zip((W, START, XS), axes, strict=True)
    ]
    same(tl.vmap(by_scan, axes)(*args), tl.vmap(by_loop, axes)(*args))
    of_scan, of_loop = tl.grad(loss_of(by_scan)), tl.grad(loss_of(by_loop))
    same(tl.vmap(of_scan, axes)(*args), tl.vmap(of_loop, axes)(*args))
    same(tl.jit(tl.vmap(of_scan, axes))(*args), tl.vmap(of_loop, axes)(*args))


@settings(max_examples=20)
@given(length=st.integers(0, 20), reverse=st.booleans(), checkpoint=st.booleans())
def test_every_length(length: int, reverse: bool, checkpoint: bool) -> None:
    xs = tl.arange(length) + 1

    def digits(carry: tl.Tensor, x: tl.Tensor) -> tuple[tl.Tensor, tl.Tensor]:
        return (carry * 31 + x) % 1009, carry

    carry, ys = tl.scan(digits, 7, xs, reverse=reverse, checkpoint=checkpoint)
    expected, seen = 7, []
    for x in range(length, 0, -1) if reverse else range(1, length + 1):
        seen.append(expected)
        expected = (expected * 31 + x) % 1009
    assert int(carry) == expected
    assert ys.tolist() == (seen[::-1] if reverse else seen)


def test_trees_and_no_inputs() -> None:
    def fibonacci(carry: Any, _: None) -> Any:
        return {"a": carry["b"], "b": carry["a"] + carry["b"]}, {"seen": carry["a"]}

    end, ys = tl.scan(fibonacci, {"a": 0, "b": 1}, length=10)
    assert ys["seen"].tolist() == [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]
    assert int(end["a"]) == 55


def test_integer_carry_beside_a_differentiated_one() -> None:
    def body(carry: Any, x: tl.Tensor) -> Any:
        step, total = carry
        return (step + 1, total + x * step.astype(x.dtype)), None

    def loss(xs: tl.Tensor) -> tl.Tensor:
        return tl.scan(body, (0, tl.zeros((), dtype=tl.float64)), xs)[0][1]

    assert tl.grad(loss)(tl.ones(4, dtype=tl.float64)).tolist() == [0, 1, 2, 3]


def test_map_is_a_loop_of_its_function() -> None:
    same(tl.map(lambda x: tl.sum(x * x), XS), tl.vmap(lambda x: tl.sum(x * x))(XS))


def stacked_bytes(loss: Any, *args: tl.Tensor) -> int:
    """Bytes of what the forward scans of a gradient hand to the backward ones."""
    graph = tl.make_graph(tl.grad(loss))(*args)
    scans = [eqn for eqn in graph.equations if eqn.prim is primitives["scan"]]
    forward = scans[0]
    kept = forward.outputs[forward.params["layout"].carries :]
    return sum(v.aval.size * v.aval.dtype.itemsize for v in kept)


def test_constants_of_the_loop_are_not_kept_once_a_step() -> None:
    step = 3 * 8  # bytes of a carry
    # Two carries for the derivative of tanh and of the product, one for the outputs.
    assert stacked_bytes(loss_of(by_scan), W, START, XS) <= 7 * 3 * step


def test_checkpoint_keeps_the_square_root_of_what_scan_keeps() -> None:
    def loss(x: tl.Tensor, length: int, checkpoint: bool) -> tl.Tensor:
        def body(carry: tl.Tensor, _: None) -> Any:
            return tl.tanh(carry * x), None

        return tl.sum(tl.scan(body, x, length=length, checkpoint=checkpoint)[0])

    x = tl.ones(16)
    whole = stacked_bytes(lambda x: loss(x, 10_000, False), x)
    pieces = stacked_bytes(lambda x: loss(x, 10_000, True), x)
    assert whole >= 10_000 * 64 and pieces <= 2 * 100 * 64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tl.scan(lambda c, x: c, 0.0, XS), "must return \\(carry, y\\), got GraphTracer"),
        (
            lambda: tl.scan(lambda c, x: (x, c), 0.0, XS),
            r"carry like the one it gets, float32\[\], but it returned float64\[3\]",
        ),
        (
            lambda: tl.scan(lambda c, x: ({"s": x}, x), {"s": 0.0}, XS),
            r"carry like the one it gets, float32\[\] at 's', but it returned float64\[3\]",
        ),
        (
            lambda: tl.scan(lambda c, x: ((c, c), x), 0.0, XS),
            "carry like the one it gets, .* returned: it is a tuple, not a single value",
        ),
        (lambda: tl.scan(lambda c, x: (c, x), 0.0), "needs xs, or a length"),
        (lambda: tl.scan(lambda c, x: (c, x), 0.0, XS, 5), "lengths disagree: 7 by 'xs'; 5 by"),
        (
            lambda: tl.scan(lambda c, x: (c, x), 0.0, {"a": XS, "b": tl.ones(2)}),
            "7 by 'a'; 2 by 'b'",
        ),
        (lambda: tl.scan(lambda c, x: (c, x), 0.0, 3), r"scan: xs is int64\[\], which has no axis"),
        (lambda: tl.scan(lambda c, x: (c, x), 0.0, {"n": 3}), r"scan: xs is int64\[\] at 'n'"),
        (lambda: tl.scan(3, 0.0, XS), r"scan: takes a function f\(carry, x\), .* got 3"),
        (lambda: tl.map(lambda x: x, 3), r"map: xs is int64\[\], which has no axis"),
        (lambda: tl.map(lambda x: x, []), "map: xs holds no tensors"),
        (lambda: tl.map(lambda x: x, (XS, tl.ones(2))), "map: the lengths disagree: 7 by '0'; 2"),
        (lambda: tl.map(XS, XS), r"map: takes a function f\(x\)"),
        (lambda: tl.scan(lambda c, x: (c if c > 0 else x, x), 0.0, tl.ones(3)), "tl.where or"),
    ],
)
def test_messages(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()
