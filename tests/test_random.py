import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlite as tl
from tensorlite import random
from tensorlite.ops.random import philox

FLOATS = [tl.float16, tl.bfloat16, tl.float32, tl.float64]


def values(x):
    return np.asarray(x)


# ---- the generator -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        (
            "00000000 00000000 00000000 00000000",
            "00000000 00000000",
            "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, words):
    def column(text):
        return np.array([[int(word, 16)] for word in text.split()], np.uint64)

    np.testing.assert_array_equal(philox(column(counter), column(key)), column(words))


def test_bits_are_the_words_of_successive_counters():
    assert [hex(w) for w in values(random.bits(random.key(0), 4))] == [
        "0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8",
    ]  # fmt: skip
    counters = np.zeros((4, 3), np.uint64)
    counters[0] = range(3)
    key = np.array([[7], [5]], np.uint64)
    expected = philox(counters, key).T.reshape(-1)
    np.testing.assert_array_equal(values(random.bits(random.key(7 + 5 * 2**32), 11)), expected[:11])


def test_the_low_word_of_64_bits_comes_first():
    narrow = values(random.bits(random.key(3), 6)).astype(np.uint64)
    wide = values(random.bits(random.key(3), 3, tl.uint64))
    np.testing.assert_array_equal(wide, narrow[0::2] | (narrow[1::2] << np.uint64(32)))


def test_a_long_draw_begins_as_a_short_one():
    key = random.key(1)
    np.testing.assert_array_equal(values(random.bits(key, 50_000))[:7], values(random.bits(key, 7)))


# ---- keys ----------------------------------------------------------------------------------------


@given(st.integers(-(2**70), 2**70))
def test_every_integer_is_a_seed(seed):
    key = values(random.key(seed))
    assert key.dtype == np.uint32 and key.shape == (4,)
    assert int(key[0]) + (int(key[1]) << 32) == seed % 2**64
    assert key[2] == key[3] == 0


def test_split_unpacks_and_all_keys_differ():
    key = random.key(0)
    first, second = random.split(key)
    many = values(random.split(key, 1000))
    np.testing.assert_array_equal(values(first), many[0])
    np.testing.assert_array_equal(values(second), many[1])
    assert len({tuple(k) for k in many} | {tuple(values(key))}) == 1001


def test_fold_in_gives_one_key_per_integer_of_any_dtype():
    key = random.key(0)
    numbers = [0, 1, 2, 2**32, 2**32 + 1, 2**63 - 1, -1, -(2**63)]
    keys = {tuple(values(random.fold_in(key, n))) for n in numbers}
    keys |= {tuple(k) for k in values(random.split(key, 3))}
    assert len(keys) == len(numbers) + 3
    np.testing.assert_array_equal(
        values(random.fold_in(key, -5)), values(random.fold_in(key, tl.asarray(-5, dtype=tl.int8)))
    )
    np.testing.assert_array_equal(
        values(random.fold_in(key, 2**64 - 5)), values(random.fold_in(key, -5))
    )


def test_streams_of_split_keys_do_not_correlate():
    keys = random.split(random.key(11), 40)
    draws = values(tl.vmap(lambda k: random.normal(k, (2000,)))(keys))
    correlation = np.corrcoef(draws) - np.eye(40)
    assert np.abs(correlation).max() < 5 / math.sqrt(2000)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.integers(1, 5),
    st.sampled_from(["bits", "bits64", "normal"]),
)
def test_shards_together_draw_what_one_process_draws(sizes, width, kind):
    draw = {
        "bits": lambda k, shape: random.bits(k, shape),
        "bits64": lambda k, shape: random.bits(k, shape, tl.uint64),
        "normal": lambda k, shape: random.normal(random.split(random.fold_in(k, 3))[1], shape),
    }[kind]
    key, total = random.key(5), sum(sizes)
    whole = values(draw(key, (total, width)))
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    parts = [
        values(draw(random.shard(key, s, n), (n, width)))
        for s, n in zip(starts, sizes, strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_sharded_key_draws_alike_everywhere_what_is_not_a_batch():
    key = random.key(5)
    sharded = random.shard(key, 6, 4)
    np.testing.assert_array_equal(values(random.bits(sharded, 7)), values(random.bits(key, 7)))
    np.testing.assert_array_equal(
        values(random.permutation(sharded, 8)), values(random.permutation(key, 8))
    )


def test_the_rows_of_a_shard_may_be_traced():
    key = random.shard(random.key(2), 3, 2)
    draw = tl.jit(lambda k: random.uniform(k, (2, 3)))
    np.testing.assert_array_equal(
        values(draw(key)), values(random.uniform(random.key(2), (8, 3)))[3:5]
    )


# ---- the transforms ------------------------------------------------------------------------------

DRAWS = {
    "bits": lambda k: random.bits(k, (3,)),
    "uniform": lambda k: random.uniform(k, (2, 3)),
    "uniform in a range": lambda k: random.uniform(k, (2, 3), minval=-2, maxval=5),
    "normal": lambda k: random.normal(k, (5,)),
    "truncated_normal": lambda k: random.truncated_normal(k, -1, 2, (5,)),
    "bernoulli": lambda k: random.bernoulli(k, 0.3, (7,)),
    "randint": lambda k: random.randint(k, (4,), -3, 9),
    "permutation": lambda k: random.permutation(k, 6),
    "permutation of rows": lambda k: random.permutation(k, tl.reshape(tl.arange(6), (3, 2))),
    "categorical": lambda k: random.categorical(k, tl.zeros((4, 3))),
    "choice": lambda k: random.choice(k, tl.arange(9), (2, 2)),
    "split": lambda k: random.split(k, 3),
    "fold_in": lambda k: random.fold_in(k, 3),
}
# What floating-point functions make of the bits, which compiled code rounds in its own way.
ROUNDED = {"uniform in a range", "normal", "truncated_normal"}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_the_same_under_jit_and_vmap(name):
    draw = DRAWS[name]
    keys = random.split(random.key(8), 3)
    alone = [values(draw(k)) for k in keys]
    tolerance = 2e-6 if name in ROUNDED else 0
    np.testing.assert_allclose(values(tl.jit(draw)(keys[0])), alone[0], 0, tolerance)
    np.testing.assert_array_equal(values(tl.vmap(draw)(keys)), np.stack(alone))
    np.testing.assert_allclose(values(tl.jit(tl.vmap(draw))(keys)), np.stack(alone), 0, tolerance)


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16, tl.float32, tl.float64], ids=str)
def test_jit_keeps_every_bit_of_uniform_draws(dtype):
    draw = functools.partial(random.uniform, shape=(40, 50), dtype=dtype)
    np.testing.assert_array_equal(values(tl.jit(draw)(random.key(3))), values(draw(random.key(3))))


def test_fold_in_maps_over_numbers():
    key = random.key(4)
    keys = tl.vmap(random.fold_in, (None, 0))(key, tl.arange(3))
    np.testing.assert_array_equal(
        values(keys), np.stack([values(random.fold_in(key, i)) for i in range(3)])
    )


def test_gradients_flow_to_the_bounds_and_around_the_noise():
    def f(scale):
        return tl.sum(scale * random.normal(random.key(1), (4,))) + random.uniform(
            random.key(2), (), maxval=scale
        )

    expected = values(random.normal(random.key(1), (4,))).sum() + values(
        random.uniform(random.key(2))
    )
    np.testing.assert_allclose(values(tl.grad(f)(tl.asarray(2.0))), expected, rtol=1e-5)


# ---- distributions -------------------------------------------------------------------------------


def kolmogorov_smirnov(sample, distribution):
    """The largest distance of the empirical distribution function, times sqrt(n): above 2 with
    probability 7e-4.
    """
    ordered = np.sort(np.asarray(sample, np.float64))
    n = len(ordered)
    expected = distribution(ordered)
    steps = np.arange(n + 1) / n
    return max(np.max(steps[1:] - expected), np.max(expected - steps[:-1])) * math.sqrt(n)


def normal_cdf(x):
    return np.array([(1 + math.erf(v / math.sqrt(2))) / 2 for v in x])


@pytest.mark.parametrize("dtype", [tl.float32, tl.float64])
def test_distributions(dtype):
    keys = iter(random.split(random.key(2024), 5))
    n = 20_000
    assert kolmogorov_smirnov(values(random.uniform(next(keys), n, dtype)), lambda x: x) < 2
    assert (
        kolmogorov_smirnov(
            values(random.uniform(next(keys), n, dtype, -3, 5)), lambda x: (x + 3) / 8
        )
        < 2
    )
    assert kolmogorov_smirnov(values(random.normal(next(keys), n, dtype)), normal_cdf) < 2
    low, high = normal_cdf([-1.0, 2.0])
    truncated = values(random.truncated_normal(next(keys), -1, 2, n, dtype))
    assert kolmogorov_smirnov(truncated, lambda x: (normal_cdf(x) - low) / (high - low)) < 2
    assert truncated.min() >= -1 and truncated.max() <= 2


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_float_dtype(dtype):
    key = random.key(77)
    unit = random.uniform(key, 20_000, dtype)
    assert unit.dtype == dtype
    as_float = values(unit).astype(np.float64)
    assert as_float.min() >= 0 and as_float.max() < 1
    assert abs(as_float.mean() - 0.5) < 0.01
    narrow = values(random.uniform(key, 20_000, dtype, 1.0, 1.01)).astype(np.float64)
    assert narrow.min() >= 1 and narrow.max() < float(np.asarray(1.01, dtype))
    drawn = random.normal(key, 20_000, dtype)
    assert drawn.dtype == dtype
    as_float = values(drawn).astype(np.float64)
    assert (
        abs(as_float.mean()) < 0.03
        and abs(as_float.std() - 1) < 0.03
        and np.isfinite(as_float).all()
    )
    assert random.truncated_normal(key, -2, 2, 10, dtype).dtype == dtype


def test_bernoulli_follows_its_probabilities():
    p = tl.asarray([0.0, 0.1, 0.5, 1.0])
    drawn = values(random.bernoulli(random.key(3), p, (20_000, 4)))
    assert drawn.dtype == np.bool_
    np.testing.assert_allclose(drawn.mean(axis=0), values(p), atol=0.015)
    assert drawn[:, 3].all() and not drawn[:, 0].any()
    assert random.bernoulli(random.key(3), p).shape == (4,)


@given(st.sampled_from([np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64]), st.data())
def test_randint_stays_in_its_range(dtype, data):
    limits = np.iinfo(dtype)
    low = data.draw(st.integers(int(limits.min), int(limits.max)))
    high = data.draw(st.integers(low + 1, int(limits.max) + 1))
    drawn = random.randint(random.key(1), (50,), low, high, dtype)
    assert drawn.dtype == dtype
    assert all(low <= int(v) < high for v in values(drawn))


def test_randint_is_uniform():
    drawn = values(random.randint(random.key(1), (60_000,), -2, 4))
    counts = np.bincount(drawn + 2, minlength=6)
    assert (
        (counts - 10_000) ** 2 / 10_000
    ).sum() < 20.5  # chi-squared with 5 degrees of freedom: 1e-3


def test_permutations():
    key = random.key(6)
    order = values(random.permutation(key, 100))
    assert (
        order.dtype == np.int64
        and sorted(order) == list(range(100))
        and list(order) != list(range(100))
    )
    x = tl.reshape(tl.arange(200), (2, 100))
    np.testing.assert_array_equal(values(random.permutation(key, x, axis=1)), values(x)[:, order])
    firsts = values(tl.vmap(lambda k: random.permutation(k, 3))(random.split(key, 6000)))
    _, counts = np.unique(firsts, axis=0, return_counts=True)
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5
    assert random.permutation(key, 0).shape == (0,)


def test_categorical_follows_the_softmax():
    logits = tl.asarray(np.log([[0.1, 0.2, 0.7], [0.5, 0.5, 1e-30]]))
    drawn = values(
        tl.vmap(lambda k: random.categorical(k, logits))(random.split(random.key(9), 10_000))
    )
    assert drawn.shape == (10_000, 2)
    np.testing.assert_allclose(np.bincount(drawn[:, 0]) / 10_000, [0.1, 0.2, 0.7], atol=0.02)
    assert set(drawn[:, 1]) == {0, 1}
    assert random.categorical(random.key(0), tl.zeros((3, 5, 2)), axis=1).shape == (3, 2)


def test_choice():
    key = random.key(10)
    assert sorted(values(random.choice(key, 5, (5,), replace=False))) == [0, 1, 2, 3, 4]
    rows = tl.asarray([[1, 2], [3, 4], [5, 6]])
    assert random.choice(key, rows, (4, 2)).shape == (4, 2, 2)
    drawn = values(random.choice(key, 3, (10_000,), p=[0.2, 0.0, 0.8]))
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 10_000, [0.2, 0, 0.8], atol=0.02)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: random.key(0.5), TypeError, "the seed is an integer"),
        (lambda: random.normal(0, (3,)), TypeError, r"did you pass a seed\? use random.key"),
        (lambda: random.split(None), TypeError, "needs a key, got None"),
        (lambda: random.normal(tl.zeros(4)), TypeError, r"a key is uint32\[4\], got float32\[4\]"),
        (lambda: random.uniform(random.split(random.key(0))), TypeError, "several keys"),
        (lambda: random.split(random.key(0), 0), ValueError, "num must be at least 1"),
        (lambda: random.split(random.key(0), 1.5), TypeError, "split: num is .* got 1.5"),
        (lambda: random.shard(random.key(0), 0.5, 2), TypeError, "shard: first_row is .* got 0.5"),
        (lambda: random.shard(random.key(0), 0, 2.0), TypeError, "shard: rows is .* got 2.0"),
        (lambda: random.randint(random.key(0), 2, 0.5, 2), TypeError, "minval is .* got 0.5"),
        (lambda: random.randint(random.key(0), 2, 0, 2.0), TypeError, "maxval is .* got 2.0"),
        (lambda: random.fold_in(random.key(0), 1.5), TypeError, "data is one integer"),
        (lambda: random.fold_in(random.key(0), tl.arange(3)), TypeError, "data is one integer"),
        (lambda: random.shard(random.key(0), -1, 2), ValueError, "must be in .* got -1 and 2"),
        (
            lambda: random.shard(random.key(0), 0, 2**32),
            ValueError,
            "first_row and rows must be in",
        ),
        (
            lambda: random.bits(random.key(0), (3, -1)),
            ValueError,
            "random.bits: a shape has no negative sizes",
        ),
        (lambda: random.bits(random.key(0), 3, tl.int8), TypeError, "use randint"),
        (lambda: random.uniform(random.key(0), 3, tl.int32), TypeError, "draws floats"),
        (
            lambda: random.uniform(random.key(0), 3, minval=2, maxval=1),
            ValueError,
            "less than the upper",
        ),
        (lambda: random.truncated_normal(random.key(0), 2, 1), ValueError, "less than the upper"),
        (lambda: random.bernoulli(random.key(0), 1.5), ValueError, "p is a probability"),
        (
            lambda: random.randint(random.key(0), 3, 5, 5),
            ValueError,
            "minval must be less than maxval",
        ),
        (
            lambda: random.randint(random.key(0), 3, 0, 300, tl.uint8),
            ValueError,
            "does not fit uint8",
        ),
        (lambda: random.randint(random.key(0), 3, 0, 3, tl.float32), TypeError, "use uniform"),
        (lambda: random.permutation(random.key(0), -1), ValueError, "cannot permute -1"),
        (
            lambda: random.permutation(random.key(0), tl.asarray(1.0)),
            ValueError,
            "at least one dimension",
        ),
        (lambda: random.categorical(random.key(0), tl.arange(3)), TypeError, "logits are floats"),
        (
            lambda: random.choice(random.key(0), 3, (4,), replace=False),
            ValueError,
            "cannot draw 4 of 3",
        ),
        (lambda: random.choice(random.key(0), 0, (4,)), ValueError, "nothing to draw from"),
        (
            lambda: random.choice(random.key(0), 3, (4,), p=[0.5, 0.5]),
            ValueError,
            "one probability for each",
        ),
    ],
)
def test_errors_say_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()
