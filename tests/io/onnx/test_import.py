"""Models as functions of tensors: how they are called, under transforms, in other opsets, and what
is said when something does not fit."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import nn, random

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
FLOAT = onnx.TensorProto.FLOAT
INT64 = onnx.TensorProto.INT64
RNG = np.random.default_rng(0)


def build(nodes, inputs, outputs, constants=None, opset=17, domains=()):
    """A model of nodes (op, inputs, outputs, attributes); inputs are shapes of floats by name."""
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node(op, given, made, **attributes) for op, given, made, attributes in nodes],
        "test",
        [helper.make_tensor_value_info(n, FLOAT, shape) for n, shape in inputs.items()],
        [helper.make_tensor_value_info(n, FLOAT, None) for n in outputs],
        [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *[helper.make_opsetid(d, 1) for d in domains]]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    return model


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


CNN = build(
    [
        ("Conv", ["x", "w1", "b1"], ["c1"], {"pads": [1, 1, 1, 1]}),
        ("BatchNormalization", ["c1", "scale", "bias", "mean", "var"], ["n1"], {}),
        ("Relu", ["n1"], ["r1"], {}),
        ("MaxPool", ["r1"], ["p1"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Conv", ["p1", "w2"], ["c2"], {"group": 2}),
        ("Add", ["c2", "channel"], ["a2"], {}),
        ("Shape", ["a2"], ["s"], {}),
        ("Gather", ["s", "zero"], ["n"], {"axis": 0}),
        ("Unsqueeze", ["n", "axis0"], ["n_"], {}),
        ("Concat", ["n_", "minus1"], ["flat"], {"axis": 0}),
        ("Reshape", ["a2", "flat"], ["f"], {}),
        ("Gemm", ["f", "w3", "b3"], ["logits"], {"transB": 1}),
        ("Softmax", ["logits"], ["y"], {"axis": 1}),
    ],
    {"x": (2, 3, 8, 8)},
    ["y", "logits"],
    {
        "w1": floats(6, 3, 3, 3),
        "b1": floats(6),
        "scale": floats(6),
        "bias": floats(6),
        "mean": floats(6),
        "var": np.abs(floats(6)),
        "w2": floats(4, 3, 2, 2),
        "channel": floats(4, 1, 1),
        "zero": np.int64(0),
        "axis0": np.array([0]),
        "minus1": np.array([-1]),
        "w3": floats(5, 36),
        "b3": floats(5),
    },
)
X = floats(2, 3, 8, 8)


def reference(model, **feed):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def close(results, expected, **tolerance):
    for result, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(np.asarray(result), want, rtol=1e-4, atol=1e-5, **tolerance)


# ---- calling -------------------------------------------------------------------------------------


def test_a_cnn_computes_what_onnxruntime_does():
    close(tl.io.from_onnx(CNN)(X), reference(CNN, x=X))


def test_ways_to_give_a_model_and_its_inputs(tmp_path):
    onnx.save(CNN, tmp_path / "cnn.onnx")
    expected = reference(CNN, x=X)
    for source in (CNN, tmp_path / "cnn.onnx", str(tmp_path / "cnn.onnx"), CNN.SerializeToString()):
        f = tl.io.from_onnx(source)
        assert repr(f) == "OnnxFunction(x) -> (y, logits)"
        for results in (f(X), f([X]), f((tl.asarray(X),)), f({"x": X}), f(x=X)):
            assert isinstance(results, tuple)
            close(results, expected)


def test_an_initializer_is_a_default():
    model = build([("Add", ["x", "y"], ["z"], {})], {"x": (2,), "y": (2,)}, ["z"], {"y": floats(2)})
    f = tl.io.from_onnx(model)
    assert f.input_names == ("x",)
    np.testing.assert_array_equal(np.asarray(f({"x": np.zeros(2), "y": np.ones(2)})[0]), 1)


def test_images_stay_channels_last_between_operators():
    f = tl.io.from_onnx(CNN)
    graph = tl.make_graph(lambda x: f(x)[1])(tl.asarray(X))
    text = str(graph)
    assert text.count("permute") == 3  # in, out to be flattened, and the transposed weight of Gemm


def test_a_function_can_be_sent_to_another_process():
    f = pickle.loads(pickle.dumps(tl.io.from_onnx(CNN)))
    close(f(X), reference(CNN, x=X))


# ---- transforms ----------------------------------------------------------------------------------


def test_jit():
    """Shapes that are computed from shapes are known while it traces."""
    f = tl.io.from_onnx(CNN)
    close(tl.jit(f)(tl.asarray(X)), reference(CNN, x=X))


def test_grad_with_respect_to_inputs():
    f = tl.io.from_onnx(CNN)

    def loss(x):
        return tl.sum(f(x)[1] ** 2)

    gradient = np.asarray(tl.grad(loss)(tl.asarray(X)))
    np.testing.assert_allclose(
        np.asarray(tl.jit(tl.grad(loss))(tl.asarray(X))), gradient, rtol=1e-3, atol=1e-4
    )
    x64, direction = X.astype(np.float64), RNG.normal(size=X.shape)
    wide = onnx.ModelProto()
    wide.CopyFrom(CNN)
    for tensor in wide.graph.initializer:
        if tensor.data_type == FLOAT:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    g = tl.io.from_onnx(wide)
    loss64 = lambda x: float(tl.sum(g(tl.asarray(x))[1] ** 2))  # noqa: E731
    eps = 1e-6
    slope = (loss64(x64 + eps * direction) - loss64(x64 - eps * direction)) / (2 * eps)
    np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-3)


def test_vmap():
    f = tl.io.from_onnx(CNN)
    batches = np.stack([X, X + 1, -X])
    for function in (tl.vmap(f), tl.jit(tl.vmap(f))):
        y, logits = function(tl.asarray(batches))
        for i, x in enumerate(batches):
            close((y[i], logits[i]), reference(CNN, x=x))


def test_a_traced_shape_is_named():
    model = build(
        [("Reshape", ["x", "shape"], ["y"], {})],
        {"x": (2, 3)},
        ["y"],
    )
    model.graph.input.append(onnx.helper.make_tensor_value_info("shape", INT64, [1]))
    f = tl.io.from_onnx(model)
    shape = tl.asarray(np.array([6]))
    x = tl.asarray(floats(2, 3))
    assert f(x, shape)[0].shape == (6,)
    assert tl.jit(lambda x: f(x, shape))(x)[0].shape == (6,)
    with pytest.raises(tl.TracerError, match=r"Reshape \(node 'y'\): its input 'shape' decides"):
        tl.jit(f)(x, shape)


def test_fine_tuning_around_an_imported_model():
    f, head = tl.io.from_onnx(CNN), nn.Linear(5, 2, key=random.key(0))
    grads = tl.grad(lambda head: tl.sum(head(f(tl.asarray(X))[1]) ** 2))(head)
    assert grads.weight.shape == (5, 2) and np.asarray(grads.weight).any()


# ---- opsets --------------------------------------------------------------------------------------

AXES = np.array([0])
VERSIONS = {
    "Squeeze 11": (11, "Squeeze", {"axes": [0]}, {}),
    "Squeeze 13": (13, "Squeeze", {}, {"axes": AXES}),
    "Unsqueeze 11": (11, "Unsqueeze", {"axes": [0, 2]}, {}),
    "Unsqueeze 13": (13, "Unsqueeze", {}, {"axes": np.array([0, 2])}),
    "ReduceSum 11": (11, "ReduceSum", {"axes": [1], "keepdims": 0}, {}),
    "ReduceSum 13": (13, "ReduceSum", {"keepdims": 0}, {"axes": np.array([1])}),
    "ReduceMax 13": (13, "ReduceMax", {"axes": [2]}, {}),
    "ReduceMax 18": (18, "ReduceMax", {}, {"axes": np.array([2])}),
    "Clip 6": (10, "Clip", {"min": -0.5, "max": 0.5}, {}),
    "Clip 11": (11, "Clip", {}, {"min": np.float32(-0.5), "max": np.float32(0.5)}),
    "Pad 2": (10, "Pad", {"pads": [0, 1, 0, 0, 0, 2], "value": 3.0}, {}),
    "Pad 11": (11, "Pad", {}, {"pads": np.array([0, 1, 0, 0, 0, 2]), "value": np.float32(3)}),
    "Pad that cuts": (11, "Pad", {}, {"pads": np.array([0, -1, 0, 0, 1, -2])}),
    "Slice 9": (9, "Slice", {"starts": [1], "ends": [9], "axes": [2]}, {}),
    "Slice 10": (10, "Slice", {}, {"starts": AXES, "ends": np.array([2]), "axes": np.array([2])}),
    "Softmax 11": (11, "Softmax", {"axis": 1}, {}),
    "LogSoftmax 11": (11, "LogSoftmax", {}, {}),
    "Softmax 13": (13, "Softmax", {"axis": 1}, {}),
    "Dropout 7": (7, "Dropout", {"ratio": 0.3}, {}),
    "Dropout 12": (12, "Dropout", {}, {"ratio": np.float32(0.3)}),
    "Reshape 13": (13, "Reshape", {}, {"shape": np.array([0, -1, 2])}),
}


@pytest.mark.parametrize("name", VERSIONS)
def test_attributes_that_became_inputs(name):
    opset, op, attributes, inputs = VERSIONS[name]
    node = (op, ["x", *inputs], ["y"], attributes)
    model = build([node], {"x": (1, 3, 4)}, ["y"], inputs, opset=opset)
    x = floats(1, 3, 4)
    expected = reference(model, x=x)
    f = tl.io.from_onnx(model)
    close(f(x), expected)
    close(tl.jit(f)(tl.asarray(x)), expected)


def test_a_branch_that_is_known_and_a_loop():
    x = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        agraph (float[3] x) => (float[3] y, float[r, 3] all)
        {
            yes = Constant<value = bool {1}>()
            five = Constant<value = int64 {5}>()
            z = If (yes) <
                then_branch = t () => (float[3] a) { a = Add(x, x) },
                else_branch = e () => (float[3] b) { b = Neg(x) }
            >
            y, all = Loop (five, yes, z) <
                body = body (int64 i, bool on, float[3] s) => (bool go, float[3] r, float[3] kept)
                { go = Identity(on) r = Add(s, x) kept = Identity(s) }
            >
        }
        """
    )
    values = floats(3)
    f = tl.io.from_onnx(x)
    for function in (f, tl.jit(f)):
        last, every = function(tl.asarray(values))
        np.testing.assert_allclose(np.asarray(last), 7 * values, rtol=1e-5)
        np.testing.assert_allclose(np.asarray(every), np.arange(2, 7)[:, None] * values, rtol=1e-5)


def test_functions_of_the_model_are_inlined():
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 17, "local": 1]>
        agraph (float[3] x) => (float[3] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["": 17]>
        twice (a) => (b) { b = Add(a, a) }
        """
    )
    np.testing.assert_array_equal(np.asarray(tl.io.from_onnx(model)(np.ones(3))[0]), 2)


@pytest.mark.parametrize("shape", [(1,), (8,), (4, 8, 8), (2, 1, 8, 8), (3, 2, 4, 8, 8)])
@pytest.mark.parametrize("swap", [False, True])
def test_images_meet_tensors_of_any_rank(shape, swap):
    """The image is held channels last, the other operand as the model has it."""
    sides = ["other", "c"] if swap else ["c", "other"]
    model = build(
        [("Conv", ["x", "w"], ["c"], {}), ("Sub", sides, ["d"], {}), ("Tanh", ["d"], ["y"], {})],
        {"x": (2, 3, 8, 8)},
        ["y"],
        {"w": floats(4, 3, 1, 1), "other": floats(*shape)},
    )
    f, expected = tl.io.from_onnx(model), reference(model, x=X)
    close(f(X), expected)
    close(tl.jit(f)(tl.asarray(X)), expected)


def test_two_images_of_different_ranks_meet():
    model = build(
        [
            ("Conv", ["x", "w"], ["c"], {}),
            ("Conv", ["v", "u"], ["d"], {}),
            ("Add", ["c", "d"], ["y"], {}),
        ],
        {"x": (2, 3, 8, 8), "v": (4, 3, 8)},
        ["y"],
        {"w": floats(4, 3, 1, 1), "u": floats(8, 3, 1)},
    )
    v = floats(4, 3, 8)
    close(tl.io.from_onnx(model)(X, v), reference(model, x=X, v=v))


def test_outputs_and_inputs_that_are_left_out():
    model = build(
        [("TopK", ["x", "k"], ["", "places"], {}), ("Clip", ["x", "", "high"], ["y"], {})],
        {"x": (4,)},
        ["y", "places"],
        {"k": np.array([2]), "high": np.float32(0.5)},
    )
    y, places = tl.io.from_onnx(model)(np.array([-1, 3, 0, 2], np.float32))
    assert y.tolist() == [-1, 0.5, 0, 0.5] and places.tolist() == [1, 3]


@pytest.mark.parametrize("p", [1, 2])
def test_global_lp_pool(p):
    """The one operator for which ONNX has no case of its own."""
    model = build([("GlobalLpPool", ["x"], ["y"], {"p": p})], {"x": (2, 3, 8, 8)}, ["y"])
    close(tl.io.from_onnx(model)(X), reference(model, x=X))


# ---- errors --------------------------------------------------------------------------------------


def test_importing_tensorlite_imports_neither_onnx_nor_torch():
    code = "import sys, tensorlite; print({'onnx', 'onnxruntime', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_unsupported_operator_is_named_at_import():
    model = build(
        [
            ("NonMaxSuppression", ["x", "x"], ["a"], {"name": "boxes"}),
            ("Sin", ["x"], ["b"], {}),
            ("Custom", ["b"], ["c"], {"domain": "com.acme"}),
            ("Custom", ["c"], ["d"], {"domain": "com.acme"}),
        ],
        {"x": (2,)},
        ["a", "d"],
        domains=["com.acme"],
    )
    with pytest.raises(NotImplementedError) as caught:
        tl.io.from_onnx(model)
    assert str(caught.value).splitlines() == [
        "tl.io.from_onnx: the model has operators that tensorlite does not support:",
        "  NonMaxSuppression (domain ai.onnx), at node 'boxes'",
        "  Custom (domain com.acme), at node 'c' and 1 more",
    ]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f(), TypeError, r"missing inputs \['x'\], unknown inputs \[\]"),
        (lambda f: f({"y": X}), TypeError, r"missing inputs \['x'\], unknown inputs \['y'\]"),
        (lambda f: f(X, X), TypeError, "got 2 inputs, takes 1"),
        (lambda f: f("text"), TypeError, "input 'x'"),
        (lambda f: f(X[:, :2]), ValueError, r"ONNX Conv \(node 'c1'\): conv: x has 2 channels"),
    ],
)
def test_bad_inputs(call, error, message):
    with pytest.raises(error, match=message):
        call(tl.io.from_onnx(CNN))


def test_bad_models(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*nowhere"):
        tl.io.from_onnx(tmp_path / "nowhere.onnx")
    with pytest.raises(ValueError, match="these bytes holds no ONNX model"):
        tl.io.from_onnx(b"\xff\xff\xff nonsense")
    with pytest.raises(TypeError, match="takes a path, bytes or an onnx.ModelProto, got int"):
        tl.io.from_onnx(3)
    old = build([("Add", ["x", "x"], ["y"], {"broadcast": 1})], {"x": (2,)}, ["y"], opset=6)
    with pytest.raises(ValueError, match="opset 6, where Add had another meaning"):
        tl.io.from_onnx(old)


def test_what_old_models_may_say_and_is_not_supported():
    vectors = {name: floats(3) for name in ("s", "b", "m", "v")}
    node = ("BatchNormalization", ["x", *vectors], ["y"], {"spatial": 0})
    model = build([node], {"x": (2, 3, 8, 8)}, ["y"], vectors, opset=7)
    with pytest.raises(NotImplementedError, match="spatial=0 is not supported"):
        tl.io.from_onnx(model)(X)


def test_a_sparse_initializer_is_refused():
    model = build([("Relu", ["x"], ["y"], {})], {"x": (2,)}, ["y"])
    values = onnx.numpy_helper.from_array(np.ones(1, np.float32), "w")
    places = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "w_places")
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [4]))
    with pytest.raises(NotImplementedError, match="the initializer 'w' is sparse"):
        tl.io.from_onnx(model)


def test_a_dtype_that_tensorlite_lacks_is_named():
    model = build([("Cast", ["x"], ["y"], {"to": onnx.TensorProto.COMPLEX64})], {"x": (2,)}, ["y"])
    with pytest.raises(TypeError, match="node 'y'.: tensorlite has no dtype complex64"):
        tl.io.from_onnx(model)(np.ones(2, np.float32))
