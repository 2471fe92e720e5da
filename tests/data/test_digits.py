"""The handwritten digits as CIFAR-10 records: faithful, stratified, and always the same bytes."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from tensorlite.data import DataError, cifar10, digits_as_cifar10, handwritten_digits

load_digits = pytest.importorskip("sklearn.datasets").load_digits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_as_cifar10(tmp_path_factory.mktemp("digits") / "made")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_split_is_stratified_and_shuffled(folder: Path) -> None:
    train, test = cifar10(folder).arrays[1], cifar10(folder, train=False).arrays[1]
    assert (len(train), len(test)) == (1438, 359)
    whole = np.bincount(load_digits().target)
    assert (np.bincount(train) + np.bincount(test) == whole).all()
    assert (np.abs(np.bincount(test) - 0.2 * whole) <= 0.5).all()
    # Each of the five files has every class: a batch read in stored order is a fair one.
    for file in folder.glob("data_batch_*.bin"):
        assert np.bincount(cifar10(file).arrays[1], minlength=10).min() >= 10


def test_every_digit_appears_once_with_its_label(folder: Path) -> None:
    # The middle of each 3x3 block is the original pixel, so the originals can be recovered.
    made = [cifar10(folder, train=part).arrays for part in (True, False)]
    images = np.concatenate([images for images, _ in made])
    labels = np.concatenate([labels for _, labels in made])
    assert (images == images[..., :1]).all(), "grey: all channels alike"
    framed = images[..., 0].astype(np.int64)
    assert framed.sum() == framed[:, 4:28, 4:28].sum(), "black around the central 24x24"
    small = np.rint(framed[:, 5:28:3, 5:28:3] * 16 / 255).astype(int).reshape(-1, 64)

    digits = load_digits()
    originals = digits.data.astype(int)
    found = sorted(
        [*row, label] for row, label in zip(small.tolist(), labels.tolist(), strict=True)
    )
    wanted = sorted(
        [*row, label] for row, label in zip(originals.tolist(), digits.target.tolist(), strict=True)
    )
    assert found == wanted


@pytest.mark.parametrize("train", [True, False])
def test_the_small_digits_are_the_same_rows(folder: Path, train: bool) -> None:
    images, labels = handwritten_digits(train).arrays
    large, same_labels = cifar10(folder, train=train).arrays
    assert (labels == same_labels).all()
    assert (images.dtype, labels.dtype) == (np.float32, np.int64)
    assert images.shape == (len(labels), 8, 8, 1)
    assert (images.min(), images.max()) == (0, 1)
    # The middle of each 3x3 block of the large image is the pixel of the small one.
    assert (np.floor(images[..., 0] * 255 + 0.5) == large[:, 5:28:3, 5:28:3, 0]).all()


def test_another_seed_gives_the_small_digits_another_split() -> None:
    first, second = (handwritten_digits(train=False, seed=s).arrays[0] for s in (0, 1))
    assert first.shape == second.shape and (first != second).any()


def test_enlarging_is_bilinear(folder: Path) -> None:
    image = cifar10(folder).arrays[0][0, 4:28, 4:28, 0].astype(float)
    centres = image[1::3, 1::3]
    np.testing.assert_allclose(
        image[1::3, 2:-1:3], (2 * centres[:, :-1] + centres[:, 1:]) / 3, atol=1
    )
    np.testing.assert_array_equal(image[0], image[1])
    np.testing.assert_array_equal(image[:, -1], image[:, -2])


def test_the_bytes_never_change(folder: Path) -> None:
    digest = hashlib.sha256(b"".join(contents(folder).values())).hexdigest()
    assert digest == "8d8d6f2fa1e1aa79f44ecc752f2592c0f712a5a18cc80f30ccb8d07903e51b75"


def test_a_second_call_changes_nothing_and_restores_what_is_missing(folder: Path) -> None:
    before = contents(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    digits_as_cifar10(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    (folder / "data_batch_3.bin").unlink()
    digits_as_cifar10(str(folder))
    assert contents(folder) == before


def test_files_of_another_origin_are_never_overwritten(tmp_path: Path) -> None:
    real = tmp_path / "test_batch.bin"
    real.write_bytes(b"precious")
    with pytest.raises(DataError, match=r"test_batch.bin exists and is not what seed=0 gives"):
        digits_as_cifar10(tmp_path)
    assert contents(tmp_path) == {"test_batch.bin": b"precious"}


def test_the_seed_changes_the_split(folder: Path, tmp_path: Path) -> None:
    other = digits_as_cifar10(tmp_path, seed=1)
    assert contents(other)["test_batch.bin"] != contents(folder)["test_batch.bin"]
    with pytest.raises(DataError, match="is not what seed=0 gives"):
        digits_as_cifar10(other)


def test_without_scikit_learn_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'tensorlite\[demo\]'"):
        digits_as_cifar10(tmp_path)
