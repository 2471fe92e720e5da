"""ONNX's own test cases for single operators, through `from_onnx`."""

from __future__ import annotations

import collections
import functools
import warnings

import numpy as np
import pytest

import tensorlite as tl
from tensorlite.io.onnx.registry import OPERATORS

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")

# No dtype of tensorlite, sequences, and randomness, which needs a key that no model gives.
UNSUPPORTED = (
    "FLOAT8",
    "FLOAT4",
    "INT4",
    "INT2",
    "E8M0",
    "e8m0",
    "_string",
    "_seq",
    "if_opt",
    "training_dropout",
)
PASSING = ("zero_ratio", "zero_ratio_mask", "identity_sequence")
# ONNX computes these in half precision, step by step; tensorlite's softmax runs in float32, and the
# difference exceeds the tolerance, which is that of float32.
ROUNDED = ("attention",)
EXPANDED = "functions expanded"


@functools.cache
def cases() -> dict[str, list]:
    """The cases by operator; those of several nodes under one name."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = load_model_tests(kind="node")
    found = collections.defaultdict(list)
    for case in every:
        nodes = case.model.graph.node
        found[nodes[0].op_type if len(nodes) == 1 else EXPANDED].append(case)
    return found


def as_array(value) -> np.ndarray:
    is_proto = isinstance(value, onnx.TensorProto)
    return onnx.numpy_helper.to_array(value) if is_proto else np.asarray(value)


def is_unsupported(name: str) -> bool:
    return any(part in name for part in UNSUPPORTED) and not name.endswith(PASSING)


def check(case) -> None:
    model = tl.io.from_onnx(case.model)
    for inputs, outputs in case.data_sets:
        results = model(list(inputs))
        assert len(results) == len(outputs), case.name
        for result, expected in zip(map(np.asarray, results), map(as_array, outputs), strict=True):
            assert (result.shape, result.dtype) == (expected.shape, expected.dtype), case.name
            is_float = result.dtype.kind in "fV"
            np.testing.assert_allclose(
                result.astype(np.float64) if is_float else result,
                expected.astype(np.float64) if is_float else expected,
                rtol=case.rtol,
                atol=case.atol,
                err_msg=case.name,
            )


@pytest.mark.xdist_group("onnx")
@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_operator(operator):
    found = cases().get(operator, [])
    for case in found:
        if is_unsupported(case.name):
            with pytest.raises(
                (TypeError, NotImplementedError), match=r"no dtype|asarray|key|support"
            ):
                check(case)
        else:
            check(case)
    if not found:
        assert operator in {"GlobalLpPool"}, f"ONNX has no case for {operator}"


# Their first input decides the shape of the result or the branch.
SHAPED_BY_VALUES = ("Constant", "ConstantOfShape", "If", "Loop", "NonZero", "Range")


@pytest.mark.xdist_group("onnx")
@pytest.mark.parametrize("operator", sorted(set(OPERATORS) - {*SHAPED_BY_VALUES, "GlobalLpPool"}))
def test_operator_under_transforms(operator):
    """jit and vmap give what eager mode gives, and grad finds its way."""
    case = next(c for c in cases()[operator] if not is_unsupported(c.name))
    model = tl.io.from_onnx(case.model)
    inputs = [tl.asarray(as_array(x)) for x in case.data_sets[0][0]]
    # What is traced: the first input, and images, matrices and the like beside it.
    traced = [i for i, x in enumerate(inputs) if not i or (x.dtype.kind == "f" and x.ndim)]

    def f(*values):
        given = dict(enumerate(inputs)) | dict(zip(traced, values, strict=True))
        return model(list(given.values()))

    values = [inputs[i] for i in traced]
    expected = f(*values)
    stacked = tl.vmap(f)(*[tl.stack([x, x]) for x in values])
    for want, jitted, mapped in zip(expected, tl.jit(f)(*values), stacked, strict=True):
        for result in (jitted, mapped[0], mapped[1]):
            assert result.dtype == want.dtype
            np.testing.assert_allclose(np.asarray(result), np.asarray(want), rtol=1e-5, atol=1e-6)
    floating = expected[0].dtype == tl.float32
    if floating and all(x.dtype == tl.float32 for x in values):
        gradient = tl.grad(lambda *xs: tl.sum(f(*xs)[0]))(*values)
        assert gradient.shape == values[0].shape


@pytest.mark.xdist_group("onnx")
def test_operators_expanded_into_simpler_ones():
    passed = 0
    for case in cases()[EXPANDED]:
        if is_unsupported(case.name) or any(part in case.name for part in ROUNDED):
            continue
        try:
            model = tl.io.from_onnx(case.model)
        except NotImplementedError:
            continue
        assert model.output_names
        check(case)
        passed += 1
    assert passed > 250
