"""Arrays as a data set, and the seeded order in which an epoch visits them.

The order is a function of (number of rows, seed, epoch) and of nothing else, so that any worker,
any number of workers, and a run resumed next year on another machine all see the same rows in the
same batches.
"""

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt


class ArrayDataset:
    """A fixed set of rows, stored as one or more arrays of equal length.

    The rows are shared, not copied: `arrays` are read-only views of what was passed, and slices are
    views of those. Anything that `numpy.asarray` takes may be passed.

    Raises:
        ValueError: no array is given, one has no rows dimension or holds Python objects instead of
            numbers, or the lengths differ.

    Example:
        >>> images, labels = np.zeros((10, 8, 8, 1), np.uint8), np.arange(10)
        >>> dataset = tl.data.ArrayDataset(images, labels)
        >>> for image_batch, label_batch in dataset.batches(4, seed=0, epoch=3):
        ...     print(image_batch.shape, label_batch)
        (4, 8, 8, 1) [5 4 6 7]
        (4, 8, 8, 1) [9 0 1 2]
        (2, 8, 8, 1) [3 8]
    """

    def __init__(self, *arrays: npt.ArrayLike) -> None:
        if not arrays:
            raise ValueError(
                "ArrayDataset: got no arrays; pass at least one, such as images, labels"
            )
        self._arrays = tuple(_as_rows(array, place) for place, array in enumerate(arrays))
        lengths = [len(array) for array in self._arrays]
        if len(set(lengths)) > 1:
            found = ", ".join(
                f"array {place} has {n} rows (shape {array.shape})"
                for place, (n, array) in enumerate(zip(lengths, self._arrays, strict=True))
            )
            raise ValueError(f"ArrayDataset: all arrays must have the same number of rows; {found}")

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays, read-only, each of shape (len(self), ...)."""
        return self._arrays

    def __len__(self) -> int:
        return len(self._arrays[0])

    def __repr__(self) -> str:
        columns = ", ".join(f"{a.dtype}{list(a.shape[1:])}" for a in self._arrays)
        return f"ArrayDataset({len(self)} rows of {columns})"

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        """Return one row (int), or the rows of a slice, of an array of row numbers or of a boolean
        mask: always a tuple with one entry per array.

        Raises:
            IndexError: there is no such row.
            TypeError: it is any other kind of index.
        """
        rows = _as_index(index, len(self))
        return tuple(array[rows] for array in self._arrays)

    def take(self, n: int) -> "ArrayDataset":
        """Return the first n rows as a data set.

        Raises:
            ValueError: there are fewer.
        """
        n = operator.index(n)
        if not 0 <= n <= len(self):
            raise ValueError(f"take: {n} rows were asked for, but the data set has {len(self)}")
        return ArrayDataset(*self[:n])

    def split(
        self, first: int | float, seed: int | None = None
    ) -> tuple["ArrayDataset", "ArrayDataset"]:
        """Return two data sets that share out the rows, for example to train and to validate.

        `first` is the size of the first part: a number of rows (int), or a share of them (float
        between 0 and 1, rounded to a whole row). With a seed the rows are permuted first; without
        one they are cut in their stored order.

        Raises:
            ValueError: either part would be empty.

        Example:
            >>> train, test = tl.data.ArrayDataset(np.arange(10)).split(0.8, seed=0)
            >>> len(train), len(test)
            (8, 2)
        """
        rows = round(first * len(self)) if isinstance(first, float) else operator.index(first)
        if not 0 < rows < len(self):
            raise ValueError(
                f"split: first={first} puts {rows} of {len(self)} rows into the first part, and "
                "neither part may be empty; pass a number of rows, or a share between 0.0 and 1.0"
            )
        if seed is None:
            return ArrayDataset(*self[:rows]), ArrayDataset(*self[rows:])
        order = permutation(len(self), seed, epoch=0)
        return ArrayDataset(*self[order[:rows]]), ArrayDataset(*self[order[rows:]])

    def batches(
        self, batch_size: int, seed: int | None = None, epoch: int = 0, drop_last: bool = False
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield every row once, in tuples of arrays of batch_size rows.

        With a seed the order is `permutation(len(self), seed, epoch)`, without one the stored
        order. The last batch is smaller if batch_size does not divide the rows; drop_last leaves it
        out instead.

        Raises:
            ValueError: `batch_size` is below 1, or so large that `drop_last` would leave no batch
                at all; at once, not at the first batch.
        """
        batch_size = operator.index(batch_size)
        if batch_size < 1:
            raise ValueError(f"batches: batch_size must be at least 1, not {batch_size}")
        if drop_last and batch_size > len(self):
            raise ValueError(
                f"batches: with drop_last no batch is left, because batch_size is {batch_size} "
                f"and the data set has {len(self)} rows; lower batch_size or pass drop_last=False"
            )
        stop = len(self) // batch_size * batch_size if drop_last else len(self)
        order = None if seed is None else permutation(len(self), seed, epoch)

        def generate() -> Iterator[tuple[np.ndarray, ...]]:
            for start in range(0, stop, batch_size):
                rows = slice(start, min(start + batch_size, stop))
                yield self[rows] if order is None else self[order[rows]]

        return generate()


def permutation(n: int, seed: int, epoch: int = 0) -> np.ndarray:
    """Return the order in which `epoch` visits n rows: a permutation of 0..n-1, int64, shape (n,).

    Row i gets the i-th 64-bit word of the Philox-4x64-10 counter generator whose 128-bit key is
    (seed, epoch), and rows are sorted by their words, equal ones by row number. This uses only the
    generator's raw words, which NumPy promises never to change, and a stable sort of integers, so
    the result is the same on every platform and with every NumPy version.

    Args:
        seed, epoch: integers in 0..2**64-1.

    Raises:
        ValueError: they are outside of that, or n < 0.
    """
    n, seed, epoch = operator.index(n), operator.index(seed), operator.index(epoch)
    if n < 0:
        raise ValueError(f"permutation: n must be at least 0, not {n}")
    for name, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value < 2**64:
            raise ValueError(f"permutation: {name} must be in 0..2**64-1, not {value}")
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64)


def _as_rows(array: npt.ArrayLike, place: int) -> np.ndarray:
    try:
        rows = np.asarray(array)
    except ValueError as error:
        raise ValueError(f"ArrayDataset: array {place} is not rectangular: {error}") from error
    if rows.ndim == 0:
        raise ValueError(
            f"ArrayDataset: array {place} is a scalar; its first axis must be the rows"
        )
    if rows.dtype == object:
        raise ValueError(
            f"ArrayDataset: array {place} has dtype object; convert it to an array of numbers"
        )
    rows = rows.view()
    rows.flags.writeable = False
    return rows


def _as_index(index: Any, length: int) -> Any:
    """Return an index of the first axis only, checked here because NumPy's own complaints speak of
    an array that the caller never sees."""
    if isinstance(index, slice):
        return index
    rows = np.asarray(index)
    if rows.dtype == bool:
        if rows.shape != (length,):
            raise IndexError(
                f"ArrayDataset: a mask must have shape ({length},), one entry per row, "
                f"not {rows.shape}"
            )
        return rows
    if rows.size == 0 and isinstance(index, list):
        return rows.astype(np.int64)
    if rows.dtype.kind not in "iu" or isinstance(index, tuple):
        raise TypeError(
            "ArrayDataset: an index must be an int, a slice, an array of row numbers or a boolean "
            f"mask, not {index!r}"
        )
    outside = rows[(rows < -length) | (rows >= length)]
    if outside.size:
        raise IndexError(f"ArrayDataset: row {outside.flat[0]} does not exist; there are {length}")
    return int(rows) if rows.ndim == 0 else rows
