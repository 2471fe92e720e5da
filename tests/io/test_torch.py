"""Weights to and from PyTorch. The layouts are checked against loops, and where PyTorch is
installed against PyTorch."""

import numpy as np
import pytest
import safetensors.numpy

import tensorlite as tl
from tensorlite import nn, random, tree


class Net(nn.Module):
    def __init__(self, seed=0):
        k1, k2, k3, k4 = random.split(random.key(seed), 4)
        self.conv = nn.Conv(3, 8, 3, key=k1, stride=2, padding=1)
        self.norm = nn.BatchNorm(8)
        self.grow = nn.ConvTranspose(8, 6, 3, key=k2, stride=2, padding=1, groups=2)
        self.head = nn.Sequential(nn.Linear(6 * 7 * 7, 5, key=k3), nn.relu, nn.LayerNorm(5))
        self.table = nn.Embedding(5, 4, key=k4)

    def __call__(self, x):
        x = self.grow(nn.relu(self.norm(self.conv(x))))
        x = self.head(x.reshape(x.shape[0], -1))
        return x @ self.table.weight


FLATTENED = {"head.layers.0": (6, 7, 7)}


def same(a, b):
    assert tree.structure(a) == tree.structure(b)
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_names_and_shapes_are_those_of_pytorch():
    state = tl.io.to_torch(Net(), as_numpy=True)
    assert {name: array.shape for name, array in state.items()} == {
        "conv.weight": (8, 3, 3, 3),
        "conv.bias": (8,),
        "norm.weight": (8,),
        "norm.bias": (8,),
        "norm.running_mean": (8,),
        "norm.running_var": (8,),
        "norm.num_batches_tracked": (),
        "grow.weight": (8, 3, 3, 3),
        "grow.bias": (6,),
        "head.0.weight": (5, 6 * 7 * 7),
        "head.0.bias": (5,),
        "head.2.weight": (5,),
        "head.2.bias": (5,),
        "table.weight": (5, 4),
    }


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_kernels_lie_as_documented(dims):
    """Entry by entry: ours [window, in, out] is theirs [out, in, window]."""
    window = (2, 3, 4)[:dims]
    conv = nn.Conv(3, 5, window, key=random.key(1))
    grow = nn.ConvTranspose(3, 5, window, key=random.key(1))
    for layer in (conv, grow):
        ours = np.asarray(layer.weight)
        theirs = tl.io.to_torch(layer, as_numpy=True)["weight"]
        for index in np.ndindex(ours.shape):
            *cell, inner, outer = index
            assert theirs[(outer, inner, *cell)] == ours[index]


def test_a_dense_layer_of_flattened_images_computes_the_same():
    """Ours flattens (H, W, C), theirs (C, H, W)."""
    layer = nn.Linear(2 * 3 * 4, 5, key=random.key(0))
    state = tl.io.to_torch(layer, as_numpy=True, flattened={"": (4, 2, 3)})
    images = np.random.default_rng(0).normal(size=(2, 2, 3, 4)).astype(np.float32)
    ours = np.asarray(layer(tl.asarray(images.reshape(2, -1))))
    channels_first = np.moveaxis(images, -1, 1).reshape(2, -1)
    np.testing.assert_allclose(channels_first @ state["weight"].T + state["bias"], ours, rtol=1e-5)
    same(tl.io.from_torch(state, layer, flattened={"": (4, 2, 3)}), layer)


def test_there_and_back_gives_the_same_model():
    state = tl.io.to_torch(Net(1), as_numpy=True, flattened=FLATTENED)
    same(tl.io.from_torch(state, Net(2), flattened=FLATTENED), Net(1))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_through_a_file(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    tl.save(path, tl.io.to_torch(Net(1), as_numpy=True))
    same(tl.io.from_torch(path, Net(2)), Net(1))


def test_a_file_that_another_program_wrote(tmp_path):
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    path = tmp_path / "linear.safetensors"
    safetensors.numpy.save_file({"fc.weight": weight, "fc.bias": np.ones(3, np.float32)}, path)
    layer = tl.io.from_torch(path, nn.Linear(2, 3, key=random.key(0)), names=lambda n: f"fc.{n}")
    np.testing.assert_array_equal(np.asarray(layer.weight), weight.T)


def test_names_by_a_dict_of_modules_and_parameters():
    names = {"conv": "features.0", "head.0": "classifier", "table.weight": "vectors"}
    state = tl.io.to_torch(Net(1), as_numpy=True, names=names)
    assert {"features.0.weight", "classifier.bias", "vectors", "grow.bias"} <= set(state)
    same(tl.io.from_torch(state, Net(2), names=names), Net(1))


def test_keys_with_dots_are_names_of_pytorch():
    layers = {"features.0": Net().conv, "features": {"1": Net().norm}}
    state = tl.io.to_torch(layers, as_numpy=True)
    assert state["features.0.weight"].shape == (8, 3, 3, 3)
    assert state["features.1.running_mean"].shape == (8,)
    same(layers, tl.io.from_torch(state, like=layers))


def test_values_are_cast_to_the_dtype_of_the_model():
    layer = nn.Linear(2, 3, key=random.key(0))
    state = {k: v.astype(np.float64) for k, v in tl.io.to_torch(layer, as_numpy=True).items()}
    assert tl.io.from_torch(state, layer).weight.dtype == tl.float32


def test_what_does_not_fit_is_listed():
    state = tl.io.to_torch(Net(), as_numpy=True)
    state["conv.weight"] = state["conv.weight"][:4]
    state["other"] = state.pop("grow.bias")
    with pytest.raises(ValueError) as caught:
        tl.io.from_torch(state, Net())
    assert str(caught.value).splitlines() == [
        "tl.io.from_torch: the weights do not fit:",
        "  conv.weight: has shape (4, 3, 3, 3); conv.weight takes (8, 3, 3, 3)",
        "  grow.bias: missing; grow.bias takes (6,)",
        "  other: unexpected; it has shape (6,)",
    ]


def test_not_strict_keeps_what_is_missing_but_refuses_other_shapes():
    model, state = Net(2), tl.io.to_torch(Net(1), as_numpy=True)
    state["other"] = state.pop("grow.bias") + 1
    loaded = tl.io.from_torch(state, model, strict=False)
    np.testing.assert_array_equal(np.asarray(loaded.grow.bias), np.asarray(model.grow.bias))
    np.testing.assert_array_equal(np.asarray(loaded.conv.weight), np.asarray(Net(1).conv.weight))
    with pytest.raises(ValueError, match="conv.bias: has shape"):
        tl.io.from_torch({"conv.bias": np.ones(9, np.float32)}, model, strict=False)


@pytest.mark.parametrize(
    ("state", "options", "error", "message"),
    [
        ([], {}, TypeError, "takes a state_dict or the path of a file, got list"),
        ({"weight": "text"}, {}, TypeError, "'weight' is a str"),
        ({"weight": np.ones((3, 2), int), "bias": np.ones(3)}, {}, TypeError, "weight is int64"),
        ({}, {"flattened": {"": (5, 5)}}, ValueError, "have 25 features, but weight takes 2"),
        ({}, {"flattened": {"fc": (2,)}}, ValueError, "there is no Linear called fc"),
        ("weights.pt", {}, ValueError, r"\.safetensors or \.npz, got 'weights.pt'"),
    ],
)
def test_errors(state, options, error, message):
    with pytest.raises(error, match=message):
        tl.io.from_torch(state, nn.Linear(2, 3, key=random.key(0)), **options)


def test_two_parameters_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two parameters would be called 'w'"):
        tl.io.to_torch(nn.Linear(2, 3, key=random.key(0)), as_numpy=True, names=lambda name: "w")


def test_without_pytorch_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ImportError, match="PyTorch is not installed; pass as_numpy=True"):
        tl.io.to_torch(nn.Linear(2, 3, key=random.key(0)))


def test_pytorch_computes_the_same():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    net = Net(3)
    twin = torch.nn.ModuleDict(
        {
            "conv": torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
            "norm": torch.nn.BatchNorm2d(8),
            "grow": torch.nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, groups=2),
            "head": torch.nn.Sequential(
                torch.nn.Linear(6 * 7 * 7, 5), torch.nn.ReLU(), torch.nn.LayerNorm(5)
            ),
            "table": torch.nn.Embedding(5, 4),
        }
    ).eval()
    twin["norm"].running_mean.normal_()
    twin["norm"].running_var.uniform_(0.5, 2)
    net = tl.io.from_torch(twin.state_dict(), net, flattened=FLATTENED)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    with torch.no_grad():
        x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
        x = twin["grow"](torch.relu(twin["norm"](twin["conv"](x))))
        expected = twin["head"](x.flatten(1)) @ twin["table"].weight
    np.testing.assert_allclose(np.asarray(net(images)), expected.numpy(), rtol=1e-5, atol=1e-5)
    twin.load_state_dict(tl.io.to_torch(net, flattened=FLATTENED))
    half = {name: value.bfloat16() for name, value in twin.state_dict().items()}
    loaded = tl.io.from_torch(half, net, flattened=FLATTENED, strict=True)
    assert loaded.conv.weight.dtype == tl.float32
