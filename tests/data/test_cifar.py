"""The CIFAR-10 reader and writer: every form of path, every way in which files can be wrong."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.data import ArrayDataset, DataError, cifar10, write_cifar10

TRAIN = [f"data_batch_{i}.bin" for i in range(1, 6)]


def some_images(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32, 32, 3), np.uint8), rng.integers(0, 10, n)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five training files with 1 to 5 records, labelled by file, and one test file with label 9."""
    for i, name in enumerate(TRAIN):
        write_cifar10(tmp_path / name, some_images(i + 1, seed=i)[0], [i] * (i + 1))
    write_cifar10(tmp_path / "test_batch.bin", some_images(2)[0], [9, 9])
    return tmp_path


def message(error: type[Exception], *args: object) -> str:
    """What cifar10 says when it fails as it should."""
    with pytest.raises(error) as caught:
        cifar10(*args)  # type: ignore[arg-type]
    return str(caught.value)


def labels_of(ds: ArrayDataset) -> list[int]:
    return ds.arrays[1].tolist()


def test_a_record_is_a_label_and_three_colour_planes(tmp_path: Path) -> None:
    planes = np.zeros((3, 32, 32), np.uint8)
    planes[0, 1, 2], planes[1, 3, 4], planes[2, 31, 0] = 10, 20, 30
    file = tmp_path / "one.bin"
    file.write_bytes(bytes([7]) + planes.tobytes())

    images, labels = cifar10(file).arrays
    assert images.dtype == np.uint8 and images.shape == (1, 32, 32, 3)
    assert labels.dtype == np.int64 and labels.tolist() == [7]
    assert images[0, 1, 2].tolist() == [10, 0, 0]
    assert images[0, 3, 4].tolist() == [0, 20, 0]
    assert images[0, 31, 0].tolist() == [0, 0, 30]
    assert images.sum() == 60


@given(
    n=st.integers(1, 20),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([np.uint8, np.int32, np.int64]),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, n: int, seed: int, dtype: type
) -> None:
    images, labels = some_images(n, seed)
    file = tmp_path_factory.mktemp("cifar") / "some.bin"
    write_cifar10(file, images, labels.astype(dtype))
    assert file.stat().st_size == n * 3073
    read_images, read_labels = cifar10(file).arrays
    np.testing.assert_array_equal(read_images, images)
    np.testing.assert_array_equal(read_labels, labels)


def test_every_form_of_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4]
    assert labels_of(cifar10(folder)) == train
    assert labels_of(cifar10(f"{folder}/")) == train
    assert labels_of(cifar10(f"file://{folder}")) == train
    assert labels_of(cifar10(folder, train=False)) == [9, 9]
    assert labels_of(cifar10(folder / "data_batch_2.bin", train=False)) == [1, 1]
    assert labels_of(cifar10(f"{folder}/data_batch_[12].bin")) == [0, 1, 1]
    assert labels_of(cifar10(f"file://{folder}/*_batch.bin")) == [9, 9]
    monkeypatch.chdir(folder)
    assert labels_of(cifar10("data_batch_2.bin")) == [1, 1]
    assert labels_of(cifar10("data_batch_?.bin")) == train


def test_a_file_uri_may_hold_escapes_but_no_other_host(tmp_path: Path) -> None:
    (tmp_path / "with space").mkdir()
    write_cifar10(tmp_path / "with space" / "a.bin", *some_images(3))
    assert len(cifar10(f"file://{tmp_path}/with%20space/a.bin")) == 3
    assert "names the host 'elsewhere'" in message(ValueError, "file://elsewhere/a.bin")


def test_a_file_of_a_wrong_size_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cut.bin"
    file.write_bytes(bytes(3073 + 100))
    said = message(DataError, file)
    assert str(file) in said and "has 3173 bytes" in said and "multiple of 3073" in said
    file.write_bytes(b"")
    assert "has 0 bytes" in message(DataError, file)


def test_a_label_over_nine_is_located(folder: Path) -> None:
    file = folder / "data_batch_3.bin"
    content = bytearray(file.read_bytes())
    content[2 * 3073] = 11
    file.write_bytes(content)
    said = message(DataError, folder)
    assert f"{file}, record 2 (counted from 0): label 11 is not in 0..9; 1 of 3" in said


def test_a_missing_path_is_reported_with_what_is_there(folder: Path, tmp_path: Path) -> None:
    said = message(FileNotFoundError, folder / "data_batch_9.bin")
    assert f"{folder}/data_batch_9.bin does not exist; {folder} holds data_batch_1.bin" in said
    said = message(FileNotFoundError, tmp_path / "a" / "b")
    assert f"does not exist; the folder {tmp_path / 'a'} does not exist either" in said
    said = message(FileNotFoundError, f"{folder}/*.rec")
    assert f"no file matches {folder}/*.rec; {folder} holds data_batch_1.bin" in said


def test_missing_files_are_reported_with_what_was_looked_for(folder: Path) -> None:
    (folder / "data_batch_2.bin").unlink()
    (folder / "data_batch_4.bin").unlink()
    said = message(FileNotFoundError, folder)
    assert f"{folder} lacks data_batch_2.bin, data_batch_4.bin (looked for {TRAIN[0]}" in said
    assert f"{folder} holds data_batch_1.bin, data_batch_3.bin, data_batch_5.bin, test" in said
    assert len(cifar10(folder, train=False)) == 2, "the other half is still readable"


def test_a_long_listing_is_cut(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"other{i:02}").touch()
    said = message(FileNotFoundError, tmp_path)
    assert said.endswith("other10, other11 and 8 more")
    (tmp_path / "empty").mkdir()
    assert message(FileNotFoundError, tmp_path / "empty").endswith("empty is empty")


@pytest.mark.parametrize(
    ("present", "hint"),
    [
        ("data_batch_1", "This is CIFAR-10's Python version (pickles); download the binary"),
        ("cifar-10-batches-py", "This is CIFAR-10's Python version"),
        ("cifar-10-batches-bin", "cifar-10-batches-bin instead"),
        ("cifar-10-binary.tar.gz", "The archive is still packed: unpack it (tar -xzf"),
    ],
)
def test_the_usual_mistakes_get_a_hint(tmp_path: Path, present: str, hint: str) -> None:
    (tmp_path / present).touch()
    assert hint in message(FileNotFoundError, tmp_path)


def test_an_archive_is_not_a_record_file(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(bytes(3073))
    assert "is an archive; unpack it" in message(DataError, tmp_path / "cifar-10-binary.tar.gz")


def test_the_writer_refuses_what_it_could_not_read_back(tmp_path: Path) -> None:
    images, labels = some_images(3)
    file = tmp_path / "kept.bin"
    write_cifar10(file, images, labels)
    before = file.read_bytes()
    for bad_images, bad_labels, reason in [
        (images.astype(np.float32), labels, "images must be uint8 .* not float32"),
        (images.transpose(0, 3, 1, 2), labels, r"not uint8 of shape \(3, 3, 32, 32\)"),
        (images[:0], labels[:0], r"with N at least 1, not uint8 of shape \(0, 32, 32, 3\)"),
        (np.uint8(1), labels, r"not uint8 of shape \(\)"),
        (images, labels[:2], r"labels must be integers of shape \(3,\), one per image, not int64"),
        (images, labels.astype(float), "labels must be integers .* not float64"),
        (images, [0, 10, 1], "labels must be in 0..9, but record 1 has 10"),
        (images, [0, 1, -1], "but record 2 has -1"),
    ]:
        with pytest.raises(DataError, match=reason):
            write_cifar10(file, bad_images, bad_labels)
    with pytest.raises(FileNotFoundError, match=r"the folder .*/none does not exist"):
        write_cifar10(tmp_path / "none" / "a.bin", images, labels)
    with pytest.raises(DataError, match="s3://bucket/a.bin is a URI; only local files"):
        write_cifar10("s3://bucket/a.bin", images, labels)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kept.bin"
    write_cifar10(file, *some_images(1))
    before = file.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_cifar10(file, *some_images(5))
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
