import os
import zipfile

import ml_dtypes
import numpy as np
import pytest

import tensorlite as tl


def test_numpy_reads_what_is_saved(tmp_path):
    path = tmp_path / "weights.npz"
    tree = {"file": tl.arange(3), "layers": [{"weight": tl.ones((2, 2))}], "half": tl.ones(2)}
    tl.save(path, {**tree, "half": tree["half"].astype(tl.bfloat16)})
    with np.load(path) as archive:
        assert sorted(archive.files) == ["file", "half:bfloat16", "layers.0.weight"]
        np.testing.assert_array_equal(archive["file"], [0, 1, 2])
        bits = archive["half:bfloat16"]
    np.testing.assert_array_equal(bits, np.ones(2, ml_dtypes.bfloat16).view(np.uint16))


def test_what_numpy_wrote_is_read(tmp_path):
    path = tmp_path / "weights.npz"
    transposed = np.arange(6.0).reshape(2, 3).T
    np.savez_compressed(path, a=transposed, b=np.arange(3, dtype=">i4"), c=np.float32(2))
    loaded = tl.load(path)
    np.testing.assert_array_equal(np.asarray(loaded["a"]), transposed)
    assert loaded["b"].dtype == tl.int32 and loaded["b"].tolist() == [0, 1, 2]
    assert loaded["c"].shape == ()


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.npz"
    tl.save(path, {"a": tl.ones(3)})

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full_disk)
    with pytest.raises(OSError, match="No space left"):
        tl.save(path, {"a": tl.zeros(3)})
    assert os.listdir(tmp_path) == ["weights.npz"]
    np.testing.assert_array_equal(np.asarray(tl.load(path)["a"]), np.ones(3))


@pytest.mark.parametrize("kept", [0, 5, 40, -5])
def test_a_damaged_file_is_named(tmp_path, kept):
    path = tmp_path / "weights.npz"
    tl.save(path, {"a": tl.ones((3, 3))})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"weights.npz \(\d+ bytes\) is damaged, cut off, or no"):
        tl.load(path)


def test_changed_bytes_are_noticed(tmp_path):
    path = tmp_path / "weights.npz"
    tl.save(path, {"a": tl.ones((30, 3))})
    content = bytearray(path.read_bytes())
    content[250] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        tl.load(path)


def test_nothing_in_a_file_is_executed(tmp_path):
    path = tmp_path / "objects.npz"
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        tl.load(path)


def test_a_single_npy_array_is_refused(tmp_path):
    path = tmp_path / "array.npz"
    with open(path, "wb") as file:
        np.save(file, np.ones(2))
    with pytest.raises(ValueError, match="one array without a name"):
        tl.load(path)


def test_a_dtype_that_tensorlite_lacks_is_named(tmp_path):
    path = tmp_path / "complex.npz"
    np.savez(path, z=np.zeros(2, np.complex64))
    with pytest.raises(ValueError, match="'z' has dtype complex64"):
        tl.load(path)


def test_what_the_format_cannot_keep(tmp_path):
    with pytest.raises(ValueError, match=r"keeps no metadata; save as .safetensors"):
        tl.save(tmp_path / "a.npz", {"a": 1}, metadata={"epoch": "3"})
    with pytest.raises(ValueError, match="reserved name.*a:bfloat16"):
        tl.save(tmp_path / "a.npz", {"a:bfloat16": 1})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["model", "model.pt", "model.npz.old"])
def test_other_suffixes_are_refused(tmp_path, name):
    for use in (lambda path: tl.save(path, {"a": 1}), tl.load):
        with pytest.raises(ValueError, match=rf"\.safetensors or \.npz, got '{name}'"):
            use(tmp_path / name)


def test_the_archive_is_the_same_for_the_same_weights(tmp_path):
    for name in ("a.npz", "b.npz"):
        tl.save(tmp_path / name, {"w": tl.ones(4)})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert zipfile.ZipFile(tmp_path / "a.npz").testzip() is None
