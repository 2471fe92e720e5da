"""The reference evaluator of nests, on nests written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tensorlite.compiler.loops import OPERATIONS, Nest, Operand, Output, Recorder
from tests.compiler import nests

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)


def softmax() -> Nest:
    r = Recorder()
    x = r.emit("load", (), F32, 0)
    top = r.emit("reduce", (x,), F32, "max")
    power = r.expression(lambda k, x, top: k.exp(x - top), (x, top))
    total = r.emit("reduce", (power,), F32, "sum")
    y = r.expression(lambda k, a, b: a / b, (power, total))
    rows, row = Operand(F32, (4, 1)), Operand(F32, (1, 0))
    outputs = (Output(y.position, rows), Output(total.position, row))
    return Nest((3, 4), (1,), (rows,), tuple(r.body), outputs)


def test_softmax_is_one_nest() -> None:
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    powers = np.exp(x - x.max(1, keepdims=True))
    y, totals = nests.evaluate(softmax(), [x], [(3, 4), (3,)])
    np.testing.assert_allclose(y, powers / powers.sum(1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(totals, powers.sum(1), rtol=1e-6)


def test_gathers_add_their_indices_to_the_address_of_the_point() -> None:
    r = Recorder()
    row, column = r.emit("index", (), I64, 0), r.emit("index", (), I64, 1)
    x = r.emit("gather", (row, column), F32, (0, (1, 3)))  # x of shape (4, 3), transposed
    whole = Operand(F32, (4, 1))
    nest = Nest((3, 4), (), (Operand(F32, (0, 0)),), tuple(r.body), (Output(x.position, whole),))
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(nests.evaluate(nest, [x], [(3, 4)])[0], x.T)


def test_every_operation_has_a_function() -> None:
    assert {*nests._FUNCTIONS, "nextafter"} == set(OPERATIONS)


def test_nests_that_write_an_element_twice_are_refused() -> None:
    nest = softmax()
    everywhere = Output(nest.outputs[0].value, Operand(F32, (1, 0)))
    with pytest.raises(ValueError, match="has stride 0 along axis 1"):
        nests.check(nest._replace(outputs=(everywhere,)))


def test_accesses_outside_of_a_buffer_are_refused() -> None:
    nest = softmax()
    with pytest.raises(ValueError, match="leaves its buffer"):
        nests.evaluate(nest, [np.ones((3, 4), np.float32)], [(2, 4), (3,)])
