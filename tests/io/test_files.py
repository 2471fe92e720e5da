import os
import re

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import tensorlite as tl
from tensorlite import io, nn, optim, random, tree

DTYPES = [
    tl.bool, tl.int8, tl.int16, tl.int32, tl.int64, tl.uint8, tl.uint16, tl.uint32, tl.uint64,
    tl.float16, tl.bfloat16, tl.float32, tl.float64,
]  # fmt: skip


def same(a, b):
    assert tree.structure(a) == tree.structure(b)
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


arrays = st.builds(
    lambda dtype, shape, seed: tl.asarray(
        np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)
    ),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.integers(0, 99),
)
trees = st.recursive(
    arrays,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text("abµ", min_size=1, max_size=2), inner, max_size=3)
    ),
)


@given(trees, st.sampled_from([".safetensors", ".npz"]))
def test_any_tree_comes_back(tmp_path_factory, value, suffix):
    path = tmp_path_factory.mktemp("trees") / f"tree{suffix}"
    tl.save(path, value)
    zeros = tree.map(tl.zeros_like, value)
    same(tl.load(path, like=zeros), value)
    assert set(tl.load(path)) == {name or "value" for name in tree.paths(value)}


class Net(nn.Module):
    def __init__(self, seed=0):
        self.layers = nn.Sequential(nn.Linear(3, 4, key=random.key(seed)), nn.relu, nn.BatchNorm(4))


def test_a_model_and_its_optimizer_come_back(tmp_path):
    opt = optim.adam(0.1)
    model = Net(1)
    state = {
        "model": model,
        "optimizer": opt.init(model),
        "step": 7,
        "rate": 0.5,
        "raw": np.arange(3),
    }
    path = str(tmp_path / "model.safetensors")
    tl.save(path, state, metadata={"note": "größe", "epoch": "3"})
    fresh = Net(2)
    loaded = tl.load(
        path,
        like={
            "model": fresh,
            "optimizer": opt.init(fresh),
            "step": 0,
            "rate": 0.0,
            "raw": np.zeros(3, int),
        },
    )
    same(loaded["model"], model)
    assert isinstance(loaded["model"], Net) and loaded["step"].item() == 7
    assert "optimizer.m.layers.layers.0.weight" in tl.load(path)
    assert io.read_metadata(path) == {"note": "größe", "epoch": "3"}
    assert list(tl.load(path)) == sorted(tl.load(path))


def test_other_programs_read_and_write_the_same_format(tmp_path):
    path = tmp_path / "plain.safetensors"
    values = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True, False])}
    safetensors.numpy.save_file(values, path)
    same(tl.load(path), {name: tl.asarray(value) for name, value in values.items()})
    tl.save(path, {"outer": {"a": tl.asarray(values["a"]).mT}})
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["outer.a"], values["a"].T)
    assert io.read_metadata(path) == {}


def test_what_is_loaded_is_a_tensor_like_any_other(tmp_path):
    tl.save(tmp_path / "x.safetensors", tl.arange(3))
    x = tl.load(tmp_path / "x.safetensors")["value"]
    np.testing.assert_array_equal(np.asarray(x.at[0].set(5) + 1), [6, 2, 3])


# ---- nothing is lost -----------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    tl.save(path, {"a": tl.ones(3)})

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full_disk)
            with pytest.raises(OSError, match="No space left"):
                tl.save(path, {"a": tl.zeros(3)})
        assert os.listdir(tmp_path) == ["model.safetensors"]
        np.testing.assert_array_equal(np.asarray(tl.load(path)["a"]), np.ones(3))


def test_a_traced_value_cannot_be_saved(tmp_path):
    with pytest.raises(tl.TracerError):
        tl.jit(lambda x: tl.save(tmp_path / "x.safetensors", x))(tl.ones(2))
    assert not os.listdir(tmp_path)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 5, 8, 40, -1])
def test_a_damaged_file_is_named(tmp_path, kept):
    path = tmp_path / "model.safetensors"
    tl.save(path, {"a": tl.ones((3, 3)), "b": tl.zeros(2)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        ValueError, match=rf"tl.load: {re.escape(str(path))} \(\d+ bytes\) is damaged"
    ):
        tl.load(path)
    with pytest.raises(ValueError, match="is damaged, cut off, or no safetensors file"):
        io.read_metadata(path)


def test_a_file_that_does_not_fit_is_refused_with_the_differences(tmp_path):
    path = tmp_path / "model.safetensors"
    tl.save(path, {"a": tl.ones((3, 3)), "b": tl.zeros(2), "c": tl.zeros(1), "same": tl.zeros(1)})
    like = {
        "a": tl.ones((3, 4)),
        "b": tl.zeros(2, dtype=tl.float64),
        "d": tl.zeros(5),
        "same": tl.zeros(1),
    }
    with pytest.raises(ValueError, match="does not fit") as caught:
        tl.load(path, like=like)
    assert str(caught.value).splitlines() == [
        f"tl.load: {path} does not fit:",
        "  d: not in the file, expected float32[5]",
        "  a: float32[3,3] in the file, expected float32[3,4]",
        "  b: float32[2] in the file, expected float64[2]",
        "  c: float32[1] in the file, not expected",
    ]


def test_long_differences_are_cut(tmp_path):
    path = tmp_path / "many.safetensors"
    tl.save(path, {f"leaf{i}": tl.zeros(1) for i in range(30)})
    with pytest.raises(ValueError, match=r"and 10 more$"):
        tl.load(path, like={})


def test_a_dtype_that_tensorlite_lacks_is_named(tmp_path):
    path = tmp_path / "complex.safetensors"
    safetensors.numpy.save_file({"z": np.zeros(2, np.complex64)}, path)
    with pytest.raises(ValueError, match="'z' has dtype C64"):
        tl.load(path)


@pytest.mark.parametrize(
    ("value", "metadata", "error", "message"),
    [
        ({"a": {"b": 1}, "a.b": 2}, None, ValueError, "leaves need names of their own.*a.b"),
        ({"": 1, "value": 2}, None, ValueError, "leaves need names of their own.*value"),
        ({"__metadata__": 1}, None, ValueError, "__metadata__"),
        ({"a": "text"}, None, TypeError, "leaf 'a' is a str, not a tensor"),
        ({"a": 1}, {"epoch": 3}, TypeError, "metadata maps texts to texts, got 'epoch': 3"),
    ],
)
def test_what_cannot_be_saved(tmp_path, value, metadata, error, message):
    with pytest.raises(error, match=message):
        tl.save(tmp_path / "x.safetensors", value, metadata)
    assert not os.listdir(tmp_path)


def test_missing_files_and_folders(tmp_path):
    for read in (tl.load, io.read_metadata):
        with pytest.raises(FileNotFoundError, match="there is no file .*nowhere"):
            read(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere to write x.npz to"):
        tl.save(tmp_path / "nowhere" / "x.npz", {})
