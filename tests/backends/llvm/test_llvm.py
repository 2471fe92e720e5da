"""What is LLVM's own in rendering nests: stages, errors, sharing memory, old processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from tensorlite import dtypes
from tensorlite.compiler.loops import Nest, Operand, Output, Recorder, Scalars
from tests.backends.nests.runners import in_llvm
from tests.backends.nests.test_nests import check, nests

split = pytest.importorskip("tensorlite.backends.cpu.llvm.split")
compile_module = pytest.importorskip("tensorlite.backends.cpu.llvm.compile")
llvm = pytest.importorskip("tensorlite.backends.cpu.llvm")
pytestmark = pytest.mark.skipif(not llvm.available(), reason="nests cannot be compiled here")

FLOAT32 = dtypes.float32


@settings(max_examples=60, deadline=None)
@given(nests())
def test_split_into_stages(nest: Nest) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split, "LEAST_NANOSECONDS", 0.0)
        patch.setattr(split, "PART", 16)
        patch.setattr(split, "ENOUGH_UNITS", 1000)
        patch.setattr(compile_module, "_addresses", {})
        # The same nest may be known under this name as one function.
        check(in_llvm, nest._replace(name="split"))


def test_an_operation_without_code_is_named() -> None:
    recorder = Recorder()
    value = recorder.emit("load", (), dtypes.bool_, 0)
    wrong = recorder.emit("sqrt", (value,), dtypes.bool_)
    operand = Operand(dtypes.bool_, (1,))
    nest = Nest((3,), (), (operand,), tuple(recorder.body), (Output(wrong.position, operand),))
    with pytest.raises(NotImplementedError, match="no 'sqrt' of bool"):
        llvm.compile_nests([nest])


def test_outputs_in_the_buffer_of_an_input() -> None:
    recorder = Recorder()
    k: Any = Scalars(recorder)
    x: Any = recorder.emit("load", (), FLOAT32, 0)
    e = k.exp(x - recorder.emit("reduce", (x,), FLOAT32, "max"))
    y = e / recorder.emit("reduce", (e,), FLOAT32, "sum")
    operand = Operand(FLOAT32, (70, 1))
    outputs = (Output(y.position, operand), Output(e.position, operand))
    nest = Nest((5, 70), (1,), (operand,), tuple(recorder.body), outputs)
    assert llvm.may_share(nest, 0, 0)
    assert not llvm.may_share(nest, 1, 0)  # written before the last pass reads
    alone = nest._replace(outputs=outputs[:1])
    data = np.random.default_rng(0).normal(size=(5, 70)).astype(np.float32)
    want = np.exp(data) / np.exp(data).sum(axis=1, keepdims=True)
    llvm.run_nest(alone, [data], [data])
    np.testing.assert_allclose(data, want, rtol=1e-5)


def test_float16_on_processors_without_conversions(monkeypatch: pytest.MonkeyPatch) -> None:
    """All float16 there are, to float32 and back, and float32 that are rounded to them."""
    from tensorlite.backends.cpu.llvm.engine import machine

    monkeypatch.setattr(machine(), "float16", False)
    monkeypatch.setenv("TENSORLITE_CACHE", "")  # this code is not what others should find
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    between = np.random.default_rng(0).normal(size=2**16).astype(np.float32)
    between *= 2.0 ** np.random.default_rng(1).integers(-30, 20, 2**16)
    for x, target in ((every, dtypes.float32), (between, dtypes.float16)):
        recorder = Recorder()
        value = recorder.cast(recorder.emit("load", (), x.dtype, 0), target)
        nest = Nest(
            (2**16,),
            (),
            (Operand(x.dtype, (1,)),),
            tuple(recorder.body),
            (Output(value.position, Operand(target, (1,))),),
        )
        out = np.zeros(2**16, target)
        llvm.run_nest(nest, [x], [out])
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(out, x.astype(target))
