"""Real images without a download: scikit-learn's handwritten digits, as they are or as CIFAR-10
records.

The 1797 digits (8x8, 17 grey levels; a copy of the test set of the UCI "Optical Recognition of
Handwritten Digits" data, which ships with scikit-learn) have ten classes, as CIFAR-10 has. Written
in its format they go through the very reader, model and command that CIFAR-10 itself takes.
"""

import os
from pathlib import Path

import numpy as np

from tensorlite.data.cifar import (
    CHANNELS,
    SIDE,
    TEST_FILES,
    TRAIN_FILES,
    DataError,
    encode_records,
    write_atomically,
)
from tensorlite.data.dataset import ArrayDataset, permutation

TEST_SHARE = 0.2
# Digits are enlarged this many times, from 8x8 to 24x24.
ENLARGE = 3
GREY_LEVELS = 16


def handwritten_digits(train: bool = True, seed: int = 0) -> ArrayDataset:
    """The digits as they are: images, float32 (N, 8, 8, 1) from 0 to 1, and labels, int64 (N,).

    The seed picks the test images, 20% of each class, and the order of the rest: the 1438 rows to
    train on and the 359 to test on are those of `digits_as_cifar10`, in the same order.

    Raises ImportError if scikit-learn is not installed.
    """
    grey, labels = _load("handwritten_digits")
    rows = _stratified_split(labels, seed)[0 if train else 1]
    images = (grey[rows, :, :, None] / GREY_LEVELS).astype(np.float32)
    return ArrayDataset(images, labels[rows])


def digits_as_cifar10(folder: str | os.PathLike[str], seed: int = 0) -> Path:
    """Write the digits to `folder` as data_batch_1.bin to data_batch_5.bin and test_batch.bin.

    Each digit fills the central 24x24 of a 32x32 image (bilinear, black around it), the same grey
    in all three channels. The seed picks the test images, 20% of each class, and the order of the
    rest. The bytes depend on the seed alone, so files that are there already are kept as they are.

    Returns:
        the folder, which is made if need be. `cifar10(folder)` reads 1438 training images,
        `cifar10(folder, train=False)` 359 test images.

    Raises:
        DataError: the folder holds a file of one of these names with other content; nothing has
            been written then.
        ImportError: scikit-learn is not installed.
    """
    folder = Path(folder)
    grey, labels = _load("digits_as_cifar10")
    images = _as_cifar_images(grey)
    train, test = _stratified_split(labels, seed)
    parts = [*np.array_split(train, len(TRAIN_FILES)), test]
    files = {
        folder / name: encode_records(images[rows], labels[rows])
        for name, rows in zip(TRAIN_FILES + TEST_FILES, parts, strict=True)
    }
    present = [path for path in files if path.exists()]
    for path in present:
        if path.read_bytes() != files[path]:
            raise DataError(
                f"digits_as_cifar10: {path} exists and is not what seed={seed} gives; it is left "
                "as it is. Pass another folder, or remove the file"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        if path not in present:
            write_atomically(path, content)
    return folder


def _load(caller: str) -> tuple[np.ndarray, np.ndarray]:
    """Return grey levels 0..16, int64 (N, 8, 8), and labels, int64 (N,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            f"{caller}: the digits come with scikit-learn; pip install 'tensorlite[demo]'"
        ) from error
    digits = load_digits()
    return digits.images.astype(np.int64), digits.target.astype(np.int64)


def _as_cifar_images(grey: np.ndarray) -> np.ndarray:
    """Return uint8 (N, 32, 32, 3) for grey levels 0..16, int64 (N, 8, 8).

    Integer arithmetic throughout, so that no rounding differs between machines.
    """
    thirds = _bilinear_thirds(grey.shape[1])
    ninths = thirds @ grey @ thirds.T
    whole = GREY_LEVELS * ENLARGE**2
    large = ((ninths * 255 + whole // 2) // whole).astype(np.uint8)
    edge = (SIDE - large.shape[1]) // 2
    framed = np.pad(large, ((0, 0), (edge, edge), (edge, edge)))
    return np.repeat(framed[..., None], CHANNELS, axis=-1)


def _bilinear_thirds(size: int) -> np.ndarray:
    """Return the matrix, int64 (3 * size, size), that enlarges a row three times, times three.

    Pixel i of the large row has its centre at (i - 1) / 3 in the small one, so its weights are
    whole thirds. Beyond the outermost centres the outermost pixel is repeated.
    """
    position = np.clip(np.arange(ENLARGE * size) - 1, 0, ENLARGE * (size - 1))
    left, right_weight = np.divmod(position, ENLARGE)
    right = np.minimum(left + 1, size - 1)
    columns = np.arange(size)
    return (ENLARGE - right_weight)[:, None] * (columns == left[:, None]) + right_weight[
        :, None
    ] * (columns == right[:, None])


def _stratified_split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on and those to test on, both in a random order."""
    order = permutation(len(labels), seed)
    by_class = np.argsort(labels[order], kind="stable")
    counts = np.bincount(labels)
    # Each row's rank among the rows of its class, in the permuted order.
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_test = rank < np.rint(TEST_SHARE * counts)[labels[order]]
    # The first rows of each class went to the test, so those left over begin with the classes that
    # happened to come up most: the order of each part must be drawn afresh.
    train, test = order[~is_test], order[is_test]
    return (
        train[permutation(len(train), seed, epoch=1)],
        test[permutation(len(test), seed, epoch=2)],
    )
