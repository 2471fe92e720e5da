"""Functions as ONNX models: onnxruntime computes what tensorlite does, and so does the model when
it is imported again."""

from __future__ import annotations

import functools
import importlib.util
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlite as tl
from tensorlite import nn, random, tree
from tensorlite.io.onnx.builder import EXPORTS
from tensorlite.ops.control import optimization_barrier
from tensorlite.ops.creation import iota

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
ROOT = pathlib.Path(__file__).parents[3]
SILENT = onnxruntime.SessionOptions()
SILENT.log_severity_level = 3


def arrays(*shapes, seed=0, dtype=np.float32, positive=False):
    rng = np.random.default_rng(seed)
    made = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    return [tl.asarray(np.abs(a) + np.asarray(0.1, dtype) if positive else a) for a in made]


def check(f, *args, rtol=1e-4, atol=1e-5, **options):
    """Export, run, compare; return the model."""
    model = tl.io.to_onnx(f, *args, **options)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), SILENT, providers=["CPUExecutionProvider"]
    )
    leaves = [tl.asarray(leaf) for leaf in tree.leaves(args)]
    feed = {i.name: np.asarray(x) for i, x in zip(model.graph.input, leaves, strict=True)}
    expected = [np.asarray(tl.asarray(leaf)) for leaf in tree.leaves(f(*args))]
    for results in (session.run(None, feed), tl.io.from_onnx(model)(feed)):
        for result, want in zip(map(np.asarray, results), expected, strict=True):
            assert (result.shape, result.dtype) == (want.shape, want.dtype)
            np.testing.assert_allclose(result, want, rtol=rtol, atol=atol)
    return model


# ---- every entry of the tables -------------------------------------------------------------------

X, Y = arrays((3, 4), (3, 4))
P, Q = arrays((3, 4), (3, 4), positive=True)
UNIT = tl.asarray(np.linspace(-0.9, 0.9, 12).reshape(3, 4).astype(np.float32))
M, K = tl.asarray(np.arange(-6, 6).reshape(3, 4)), tl.asarray(np.arange(1, 13).reshape(3, 4))
B, C = X > 0, Y > 0
BYTES = tl.asarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
(IMAGES,) = arrays((2, 7, 6, 4))
WHERE = tl.asarray(np.array([2, 0, 2]))
SPECIAL = tl.asarray(np.array([np.nan, np.inf, -np.inf, 0, 1.5], np.float32))

UNARY = "abs ceil cos cosh erf exp expm1 floor negative round sigmoid sign sin sinh square tan tanh"
OF_POSITIVE = "log log1p log2 log10 reciprocal rsqrt sqrt trunc"
OF_UNIT = "acos asin atan atanh expm1 log1p"
BINARY = "add subtract multiply divide maximum minimum hypot logaddexp pow remainder floor_divide"
INTEGER = "add subtract multiply maximum minimum remainder floor_divide bitwise_and bitwise_or "
INTEGER += "bitwise_xor equal not_equal less greater_equal"
BOOLEAN = (
    "logical_and logical_or logical_xor equal not_equal less less_equal greater greater_equal "
)
BOOLEAN += "maximum minimum add multiply bitwise_and bitwise_or bitwise_xor"

CASES = {
    **{name: (getattr(tl, name), X) for name in UNARY.split()},
    **{f"{name} of positive": (getattr(tl, name), P) for name in OF_POSITIVE.split()},
    **{f"{name} of unit": (getattr(tl, name), UNIT) for name in OF_UNIT.split()},
    **{name: (getattr(tl, name), P, Q) for name in BINARY.split()},
    **{f"{name} of integers": (getattr(tl, name), M, K) for name in INTEGER.split()},
    **{f"{name} of booleans": (getattr(tl, name), B, C) for name in BOOLEAN.split()},
    "half a power": (lambda x: x**0.5, SPECIAL),
    "remainder of any sign": (tl.remainder, X, Y),
    "remainder of negative integers": (tl.remainder, K, tl.where(M == 0, 1, M)),
    "floor_divide by negative integers": (tl.floor_divide, K, tl.where(M == 0, 1, M)),
    "acosh": (lambda x: tl.acosh(1 + x), P),
    "asinh": (tl.asinh, X),
    "logical_not": (tl.logical_not, B),
    "bitwise_invert": (lambda i, b: (tl.bitwise_invert(i), tl.bitwise_invert(b)), M, B),
    "shifts": (lambda x: (x << tl.uint8.type(2), x >> tl.uint8.type(1)), BYTES),
    "rounding integers": (lambda i: (tl.floor(i), tl.trunc(i), tl.round(i)), M),
    "special values": (
        lambda x: (tl.isnan(x), tl.isinf(x), tl.isfinite(x), tl.logaddexp(x, x)),
        SPECIAL,
    ),
    "where": (tl.where, B, X, Y),
    "comparisons": (lambda x, y: (x < y, x <= y, x > y, x >= y, x == y, x != y), X, Y),
    "clip": (lambda x: tl.clip(x, -0.5, 0.5), X),
    "casts": (lambda x: [x.astype(d) for d in (tl.int32, tl.float16, tl.bool, tl.float64)], X),
    "activations": (
        lambda x: [nn.relu(x), nn.relu6(4 * x), nn.leaky_relu(x, 0.3), nn.elu(x, 0.7), nn.silu(x)],
        X,
    ),
    "softplus, gelu": (lambda x: (nn.softplus(x), nn.gelu(x), nn.gelu(x, approximate=False)), X),
    "softmax": (lambda x: (nn.softmax(x, 0), nn.log_softmax(x)), X),
    "cross-entropy": (lambda x: nn.softmax_cross_entropy(x, WHERE), X),
    "identities": (lambda x, y: (tl.stop_gradient(x), *optimization_barrier(x, y)), X, Y),
    "full": (lambda x: x + tl.full((2, 3, 4), 7.0), X),
    "iota": (lambda x: x + iota((3, 4), 0).astype(tl.float32), X),
    "reshape": (lambda x: (x.reshape(2, -1), tl.expand_dims(x, axis=(0, 2))), X),
    "permute": (lambda x: tl.permute_dims(x, (2, 0, 1, 3)), IMAGES),
    "broadcast": (lambda x: tl.broadcast_to(x, (2, 3, 4)), X),
    "concat": (lambda x, y: (tl.concat([x, y], axis=1), tl.stack([x, y])), X, Y),
    "flip": (lambda x: (tl.flip(x), tl.flip(x, axis=1)), X),
    "slices": (lambda x: (x[1:, ::2], x[::-1, 1], x[..., None, -1]), X),
    "pad": (lambda x: tl.pad(x, [(1, 2), (0, 3)], constant_values=2.5), X),
    "interior pad": (tl.grad(lambda x: tl.sum(x[::2, 1::3] ** 2)), arrays((7, 8))[0]),
    "gather": (lambda x: (x[WHERE], x[WHERE, WHERE], tl.take(x, WHERE, axis=1)), X),
    "gather of bytes": (lambda x, i: x[i], X, tl.asarray(np.array([1, 0], np.uint8))),
    "scatter": (
        lambda x, y: [getattr(x.at[WHERE], m)(y) for m in ("add", "multiply", "min", "max")],
        X,
        Y,
    ),
    "scatter set": (lambda x, y: x.at[WHERE[:2], WHERE[:2]].set(y), X, arrays((2,))[0]),
    "sums": (lambda x: (tl.sum(x), tl.sum(x, axis=1), tl.mean(x, axis=0, keepdims=True)), X),
    "extrema": (lambda x: (tl.max(x, axis=0), tl.min(x), tl.argmax(x, axis=1), tl.argmin(x)), X),
    "all, any": (lambda b: (tl.all(b, axis=0), tl.any(b)), B),
    "prod": (lambda x: tl.prod(x, axis=1), X),
    "over no axis": (lambda x: (tl.sum(x, axis=()), tl.max(x, axis=())), X),
    "sort": (lambda x: (tl.sort(x), tl.argsort(x, axis=0, descending=True)), tl.round(2 * X)),
    "cumulative_sum": (lambda x: tl.cumulative_sum(x, axis=1), X),
    "logsumexp, std": (lambda x: (tl.logsumexp(x, axis=1), tl.std(x, axis=0)), X),
    "matmul": (lambda x, y: (x @ y.T, x @ y[0], tl.tensordot(x, y, axes=2)), X, Y),
    "local_response_norm": (
        lambda x: (nn.local_response_norm(x, 3), nn.local_response_norm(x, 2, alpha=0.1)),
        IMAGES,
    ),
    "local_response_norm of vectors": (lambda x: nn.local_response_norm(x, 3, alpha=0.5), X),
    "avg_pool": (lambda x: nn.avg_pool(x, 3, stride=2, padding="same"), IMAGES),
    "max_pool": (lambda x: nn.max_pool(x, (2, 3), stride=2, padding="same"), IMAGES),
    "conv": (functools.partial(nn.conv, w=arrays((3, 3, 2, 6))[0], groups=2, stride=2), IMAGES),
    "conv_transpose": (
        functools.partial(nn.conv_transpose, w=arrays((3, 3, 3, 4))[0], stride=2, groups=2),
        IMAGES,
    ),
    "relu_gate": (tl.grad(lambda x: tl.sum(nn.relu(x) ** 2)), X),
    "jit, checkpoint": (tl.jit(lambda x: tl.checkpoint(lambda x: tl.sin(x) * 2)(x)), X),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    function, *args = CASES[name]
    check(function, *args)


def test_every_entry_of_the_tables_is_used_by_a_case(monkeypatch):
    used = set()
    for name, entry in list(EXPORTS.items()):

        def recorded(*args, _name=name, _entry=entry, **params):
            used.add(_name)
            return _entry(*args, **params)

        monkeypatch.setitem(EXPORTS, name, recorded)
    for function, *args in CASES.values():
        tl.io.to_onnx(function, *args)
    assert set(EXPORTS) - used == {"transfer"}  # needs a second device


@pytest.mark.parametrize("opset", [17, 20, 21])
def test_other_opsets(opset):
    model = check(lambda x: (nn.gelu(x), tl.max(x, axis=1), tl.sum(x, axis=0)), X, opset=opset)
    assert model.opset_import[0].version == opset
    assert ("Gelu" in {node.op_type for node in model.graph.node}) == (opset >= 20)


# ---- shapes --------------------------------------------------------------------------------------

few = settings(max_examples=25, deadline=None)
sizes = st.integers(1, 4)


@few
@given(data=st.data(), dims=st.integers(1, 3))
def test_convolutions_of_any_shape(data, dims):
    per_axis = st.tuples(*[sizes] * dims)
    groups, inner, outer = data.draw(st.integers(1, 2)), data.draw(sizes), data.draw(sizes)
    window = data.draw(st.tuples(*[st.integers(1, 3)] * dims))
    x, w = arrays(
        (data.draw(sizes), *[n + 4 for n in data.draw(per_axis)], inner * groups),
        (*window, inner, outer * groups),
    )
    options = {
        "stride": data.draw(st.tuples(*[st.integers(1, 3)] * dims)),
        "padding": data.draw(st.sampled_from(["same", "valid", "full", 1])),
        "dilation": data.draw(st.integers(1, 2)),
        "groups": groups,
    }
    check(lambda x: nn.conv(x, w, **options), x)


@few
@given(data=st.data(), dims=st.integers(1, 3))
def test_transposed_convolutions_of_any_shape(data, dims):
    inner, outer = data.draw(sizes), data.draw(sizes)
    window = data.draw(st.tuples(*[st.integers(1, 3)] * dims))
    spatial = [n + 1 for n in data.draw(st.tuples(*[sizes] * dims))]
    x, w = arrays((data.draw(sizes), *spatial, inner), (*window, outer, inner))
    stride, padding = data.draw(st.integers(1, 2)), data.draw(st.sampled_from(["same", "valid"]))
    check(lambda x: nn.conv_transpose(x, w, stride=stride, padding=padding), x)


@few
@given(data=st.data(), dims=st.integers(1, 3))
def test_pooling_of_any_shape(data, dims):
    window = data.draw(st.tuples(*[st.integers(1, 3)] * dims))
    (x,) = arrays((data.draw(sizes), *[n + 3 for n in window], data.draw(sizes)))
    options = {
        "stride": data.draw(st.none() | st.integers(1, 3)),
        "padding": data.draw(st.sampled_from(["same", "valid"])),
    }
    pools = (nn.max_pool, nn.avg_pool, functools.partial(nn.avg_pool, count_include_pad=True))
    check(lambda x: [pool(x, window, **options) for pool in pools], x)


@few
@given(lead=st.lists(sizes, max_size=2), m=sizes, k=sizes, n=sizes, shared=st.booleans())
def test_products_of_any_shape(lead, m, k, n, shared):
    check(lambda x, y: x @ y, *arrays((*lead, m, k), (k, n) if shared else (*lead, k, n)))


@few
@given(shape=st.lists(sizes, min_size=1, max_size=3), data=st.data())
def test_slices_and_pads_of_any_shape(shape, data):
    index = tuple(
        slice(data.draw(st.integers(0, n - 1)), n, data.draw(st.integers(1, 3))) for n in shape
    )
    widths = [(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in shape]
    check(lambda x: (tl.pad(x[index], widths), tl.flip(x)), *arrays(shape))


# ---- models --------------------------------------------------------------------------------------


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tutorial_cnn():
    pytest.importorskip("pyspark", reason="the example needs pyspark")
    net = example("cifar10").TutorialCNN(random.key(0))
    model = check(net, *arrays((2, 24, 24, 3)))
    names = {tensor.name for tensor in model.graph.initializer}
    assert {"conv1.weight_1", "conv1.bias", "head.weight"} <= names
    count = sum(node.op_type == "Transpose" for node in model.graph.node)
    assert count == 6, "a pooling and a normalization in a row need no transposes between them"


class Block(nn.Module):
    def __init__(self, key):
        k1, k2 = random.split(key)
        self.conv = nn.Conv(3, 8, 3, key=k1, stride=2)
        self.norm = nn.BatchNorm(8)
        self.head = nn.Linear(8, 4, key=k2)
        self.last = nn.LayerNorm(4)

    def __call__(self, x, training=False):
        x = nn.relu(self.norm(self.conv(x), training=training))
        return self.last(self.head(tl.mean(x, axis=(1, 2))))


def trained_block():
    block = Block(random.key(1))
    block.norm.mean, block.norm.variance = arrays((8,), (8,), positive=True)
    return block


def test_a_net_with_batch_norm():
    check(trained_block(), *arrays((2, 9, 8, 3)))


def test_an_mlp_and_its_gradient():
    mlp = nn.Sequential(
        nn.Linear(4, 8, key=random.key(0)), nn.gelu, nn.Linear(8, 3, key=random.key(1))
    )
    check(mlp, X)
    check(tl.grad(lambda x: tl.sum(nn.relu(mlp(x)) ** 2)), X, atol=1e-4)


def test_parameters_may_be_arguments():
    layer = nn.Linear(4, 2, key=random.key(0))
    model = check(lambda p, x: {"y": x @ p["w"] + p["b"]}, {"w": layer.weight, "b": layer.bias}, X)
    assert not model.graph.initializer
    assert [len(i.type.tensor_type.shape.dim) for i in model.graph.input] == [1, 2, 2]


def test_names_and_files(tmp_path):
    model = check(
        lambda x, y: (x + y, x, tl.ones(2)),
        X,
        Y,
        input_names=["left", "right"],
        output_names=["sum", "same", "constant"],
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    loaded = tl.io.from_onnx(path)
    assert (loaded.input_names, loaded.output_names) == (
        ("left", "right"),
        ("sum", "same", "constant"),
    )
    total, same, _ = loaded({"right": Y, "left": X})
    np.testing.assert_array_equal(np.asarray(total), np.asarray(X + Y))
    np.testing.assert_array_equal(np.asarray(same), np.asarray(X))


def test_bfloat16_survives_the_round_trip():
    weight = tl.ones((4, 2), dtype=tl.bfloat16) * 1.5
    back = tl.io.from_onnx(tl.io.to_onnx(lambda x: x @ weight, X.astype(tl.bfloat16)))
    (result,) = back(X.astype(tl.bfloat16))
    assert result.dtype == tl.bfloat16
    np.testing.assert_array_equal(np.asarray(result), np.asarray(X.astype(tl.bfloat16) @ weight))


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: tl.erfinv(x), r"'erfinv' of \(float32\[3,4\]\) has no counterpart in ONNX"),
        (tl.jit(lambda x: tl.atan2(x, x)), "the primitive 'atan2'"),
        (lambda x: x.astype(tl.int32) << 1, "'bitwise_left_shift' of int32.*unsigned"),
    ],
)
def test_a_primitive_without_counterpart_is_named(function, message):
    with pytest.raises(NotImplementedError, match=message):
        tl.io.to_onnx(function, X)


def test_random_numbers_are_constants_or_refused():
    """With a key that is known, a mask is; the model computes what the function does."""
    check(lambda x: nn.dropout(x, 0.5, random.key(0)), *arrays((40, 30)))
    with pytest.raises(NotImplementedError, match="the primitive 'random_"):
        tl.io.to_onnx(lambda x, key: nn.dropout(x, 0.5, key), X, random.key(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 16}, "opset 16 is outside 17 to"),
        ({"opset": 99}, "opset 99 is outside 17 to"),
        ({"input_names": ["a", "b"]}, "input_names needs 1 different names"),
        ({"output_names": []}, "output_names needs 1 different names"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        tl.io.to_onnx(tl.sin, X, **options)


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match=r"to_onnx: takes a function .* got 3"):
        tl.io.to_onnx(3)


def test_not_inside_another_transform():
    with pytest.raises(TypeError, match="closes over a value"):
        tl.grad(lambda x: tl.io.to_onnx(lambda y: x + y, Y) and tl.sum(x))(X)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    for use in (lambda: tl.io.to_onnx(tl.sin, X), lambda: tl.io.from_onnx("model.onnx")):
        with pytest.raises(ImportError, match=r"pip install 'tensorlite\[onnx\]'"):
            use()
