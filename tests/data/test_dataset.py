"""The data set of arrays: what it refuses, how it is indexed, and the order of its batches."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.data import ArrayDataset, permutation


def numbered(n: int) -> ArrayDataset:
    """Rows whose entries say which row they are."""
    rows = np.arange(n)
    return ArrayDataset(np.repeat(rows[:, None], 3, axis=1), rows)


def test_refuses_what_is_not_equally_long_arrays_of_numbers() -> None:
    with pytest.raises(ValueError, match="got no arrays"):
        ArrayDataset()
    with pytest.raises(
        ValueError,
        match=r"same number of rows; array 0 has 3 rows \(shape \(3, 2\)\), array 1 has 4",
    ):
        ArrayDataset(np.zeros((3, 2)), np.zeros(4))
    with pytest.raises(ValueError, match="array 1 is a scalar"):
        ArrayDataset(np.zeros(3), 7)
    with pytest.raises(ValueError, match="array 0 has dtype object"):
        ArrayDataset(np.array([None, 1]))
    with pytest.raises(ValueError, match="array 0 is not rectangular"):
        ArrayDataset([[1, 2], [3]])


def test_rows_cannot_be_changed_through_the_data_set() -> None:
    source = np.zeros(3)
    ds = ArrayDataset(source)
    with pytest.raises(ValueError, match="read-only"):
        ds.arrays[0][0] = 1
    source[0] = 5
    assert ds[0] == (5,), "rows are shared with the caller, not copied"


def test_every_kind_of_index_selects_rows_of_every_array() -> None:
    ds = numbered(10)
    image, label = ds[-2]
    assert image.tolist() == [8, 8, 8] and label == 8
    for index in (
        slice(2, 8, 3),
        [2, 5],
        np.array([2, 5], np.uint8),
        np.isin(np.arange(10), [2, 5]),
    ):
        images, labels = ds[index]
        assert labels.tolist() == [2, 5] and images.shape == (2, 3)
    assert ds[[]][0].shape == (0, 3)
    assert [label for _, label in ds] == list(range(10))


def test_bad_index_is_refused() -> None:
    ds = numbered(10)
    with pytest.raises(IndexError, match="row 10 does not exist; there are 10"):
        ds[10]
    with pytest.raises(IndexError, match="row -11 does not exist"):
        ds[[0, -11]]
    with pytest.raises(IndexError, match=r"a mask must have shape \(10,\)"):
        ds[np.ones(9, bool)]
    for index in (1.0, "0", None, (1, 2)):
        with pytest.raises(TypeError, match="an index must be an int, a slice, an array"):
            ds[index]


def test_take_and_split() -> None:
    ds = numbered(10)
    assert ds.take(3).arrays[1].tolist() == [0, 1, 2]
    first, second = ds.split(0.7)
    assert first.arrays[1].tolist() == list(range(7)) and second.arrays[1].tolist() == [7, 8, 9]
    assert len(ds.split(4)[0]) == 4

    first, second = ds.split(0.7, seed=1)
    both = np.concatenate([first.arrays[1], second.arrays[1]])
    assert both.tolist() == permutation(10, 1).tolist()

    with pytest.raises(ValueError, match="take: 11 rows were asked for, but the data set has 10"):
        ds.take(11)
    with pytest.raises(ValueError, match="take: -1 rows"):
        ds.take(-1)
    for first_part in (0, 10, 11, 0.01, 1.0, -0.5):
        with pytest.raises(ValueError, match="neither part may be empty"):
            ds.split(first_part)


@given(
    n=st.integers(0, 40), batch_size=st.integers(1, 50), seed=st.none() | st.integers(0, 2**64 - 1)
)
def test_batches_hold_every_row_once_in_the_order_of_the_permutation(
    n: int, batch_size: int, seed: int | None
) -> None:
    batches = list(numbered(n).batches(batch_size, seed=seed, epoch=5))
    assert [len(labels) for _, labels in batches[:-1]] == [batch_size] * max(len(batches) - 1, 0)
    seen = [label for _, labels in batches for label in labels.tolist()]
    assert seen == (list(range(n)) if seed is None else permutation(n, seed, 5).tolist())
    for images, labels in batches:
        assert (images == labels[:, None]).all(), "images and labels must stay together"


def test_drop_last_leaves_out_the_short_batch_only() -> None:
    ds = numbered(10)
    assert [len(y) for _, y in ds.batches(4, drop_last=True)] == [4, 4]
    assert [len(y) for _, y in ds.batches(4)] == [4, 4, 2]
    assert [len(y) for _, y in ds.batches(5, drop_last=True)] == [5, 5]


def test_bad_batches_are_refused_at_the_call() -> None:
    ds = numbered(10)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        ds.batches(0)
    with pytest.raises(ValueError, match=r"batch_size is 11 and the data set has 10 rows"):
        ds.batches(11, drop_last=True)
    with pytest.raises(ValueError, match=r"epoch must be in 0..2\*\*64-1, not -1"):
        ds.batches(2, seed=0, epoch=-1)


def test_a_data_set_survives_the_journey_to_another_process() -> None:
    ds = pickle.loads(pickle.dumps(numbered(4)))
    assert ds.arrays[1].tolist() == [0, 1, 2, 3]
    assert repr(ds) == "ArrayDataset(4 rows of int64[3], int64[])"


@given(n=st.integers(0, 200), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**64 - 1))
def test_permutation_is_one_and_is_repeatable(n: int, seed: int, epoch: int) -> None:
    order = permutation(n, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    assert (order == permutation(n, seed, epoch)).all()


def philox_words(n: int, seed: int, epoch: int) -> list[int]:
    """Philox-4x64-10 in plain integers, after Salmon et al., "Parallel random numbers: as easy as
    1, 2, 3" (SC 2011), section 3.3. The first block has counter 1."""
    mask = 2**64 - 1
    words: list[int] = []
    for block in range(1, n // 4 + 2):
        c, k = [block, 0, 0, 0], [seed, epoch]
        for _ in range(10):
            high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 2**64)
            high1, low1 = divmod(0xCA5A826395121157 * c[2], 2**64)
            c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
            k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
        words += c
    return words[:n]


@given(n=st.integers(0, 50), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**64 - 1))
def test_permutation_is_what_its_documentation_says(n: int, seed: int, epoch: int) -> None:
    words = philox_words(n, seed, epoch)
    assert permutation(n, seed, epoch).tolist() == sorted(range(n), key=lambda row: words[row])


def test_permutation_never_changes() -> None:
    assert permutation(10, seed=0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert permutation(10, seed=0, epoch=1).tolist() != permutation(10, seed=0).tolist()
    assert permutation(10, seed=1).tolist() != permutation(10, seed=0).tolist()


def test_permutation_refuses_what_it_has_no_key_for() -> None:
    for bad in ({"seed": -1}, {"seed": 2**64}, {"seed": 0, "epoch": -1}):
        with pytest.raises(ValueError, match=r"must be in 0..2\*\*64-1"):
            permutation(3, **bad)
    with pytest.raises(ValueError, match="n must be at least 0, not -3"):
        permutation(-3, seed=0)
    with pytest.raises(TypeError):
        permutation(3, seed=0.5)  # type: ignore[arg-type]
