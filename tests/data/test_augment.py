import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlite as tl
from tensorlite import random
from tensorlite.data import augment

KEY = random.key(3)


def some_images(n=6, height=8, width=9, channels=3, dtype=np.float32, seed=0):
    """Images in which every pixel is different."""
    rng = np.random.default_rng(seed)
    if dtype == np.uint8:
        return rng.integers(0, 256, (n, height, width, channels)).astype(np.uint8)
    return rng.uniform(0, 255, (n, height, width, channels)).astype(dtype)


RANDOM = {
    "random_crop": lambda key, x: augment.random_crop(key, x, (5, 4)),
    "random_flip_left_right": augment.random_flip_left_right,
    "random_brightness": lambda key, x: augment.random_brightness(key, x, 63),
    "random_contrast": lambda key, x: augment.random_contrast(key, x, 0.2, 1.8),
    "cifar10_train": lambda key, x: augment.cifar10_train(key, x, size=6),
}


# ---- what each function does ---------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 9), st.sampled_from([np.uint8, np.float32, np.float64]))
def test_a_crop_is_a_window_of_the_image(rows, columns, dtype):
    images = some_images(dtype=dtype)
    crops = np.asarray(augment.random_crop(KEY, images, (rows, columns)))
    assert crops.shape == (6, rows, columns, 3) and crops.dtype == dtype
    for image, crop in zip(images, crops, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(image, (rows, columns, 3)).reshape(
            -1, rows, columns, 3
        )
        assert any(np.array_equal(crop, window) for window in windows)


def test_crops_reach_every_place():
    image = np.arange(20).reshape(1, 4, 5, 1)
    corners = np.asarray(augment.random_crop(KEY, np.repeat(image, 2000, axis=0), (2, 3)))[
        :, 0, 0, 0
    ]
    values, counts = np.unique(corners, return_counts=True)
    assert sorted(values) == [0, 1, 2, 5, 6, 7, 10, 11, 12]
    assert counts.min() > 150


def test_center_crop():
    images = some_images(height=8, width=9)
    np.testing.assert_array_equal(
        np.asarray(augment.center_crop(images, (4, 6))), images[:, 2:6, 1:7]
    )
    np.testing.assert_array_equal(np.asarray(augment.center_crop(images, (8, 9))), images)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_about_half_of_the_images_are_mirrored(dtype):
    images = some_images(400, 2, 3, dtype=dtype)
    flipped = np.asarray(augment.random_flip_left_right(KEY, images))
    assert flipped.dtype == dtype
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (flipped == images).all(axis=(1, 2, 3))
    assert np.all(mirrored | same) and 150 < mirrored.sum() < 250


def test_brightness_adds_one_number_to_each_image():
    images = some_images(500)
    deltas = np.asarray(augment.random_brightness(KEY, images, 63.0), np.float64) - images
    np.testing.assert_allclose(
        deltas, np.broadcast_to(deltas[:, :1, :1, :1], deltas.shape), atol=1e-4
    )
    deltas = deltas[:, 0, 0, 0]
    assert deltas.min() < -55 and deltas.max() > 55 and np.abs(deltas).max() < 63.001
    np.testing.assert_allclose(deltas.mean(), 0, atol=6)


def test_contrast_scales_the_distance_from_the_mean_of_the_channel():
    images = some_images(500)
    changed = np.asarray(augment.random_contrast(KEY, images, 0.2, 1.8), np.float64)
    mean = images.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    factors = (changed - mean) / (images - mean)
    middle = np.median(factors, axis=(1, 2, 3))
    np.testing.assert_allclose(
        changed, (images - mean) * middle[:, None, None, None] + mean, atol=1e-3
    )
    assert 0.2 <= middle.min() < 0.25 and 1.75 < middle.max() < 1.8


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_standardization(dtype):
    images = some_images(dtype=dtype)
    result = np.asarray(augment.per_image_standardization(images))
    assert result.dtype == (np.float64 if dtype == np.float64 else np.float32)
    wide = images.astype(np.float64)
    expected = (wide - wide.mean((1, 2, 3), keepdims=True)) / wide.std((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_standardization_of_uniform_images_is_bounded():
    images = np.full((2, 4, 4, 3), 7.0)
    np.testing.assert_array_equal(np.asarray(augment.per_image_standardization(images)), 0 * images)
    images[0, 0, 0, 0] = 7.001
    result = np.asarray(augment.per_image_standardization(images))
    np.testing.assert_allclose(result[0, 0, 0, 0], 0.001 * 47 / 48 * np.sqrt(48), rtol=1e-6)


def test_the_pipelines_are_their_parts_in_order():
    images = some_images(dtype=np.uint8)
    k1, k2, k3, k4 = random.split(KEY, 4)
    x = augment.random_flip_left_right(k2, augment.random_crop(k1, images, 6))
    x = augment.random_contrast(k4, augment.random_brightness(k3, x, 63), 0.2, 1.8)
    np.testing.assert_array_equal(
        np.asarray(augment.cifar10_train(KEY, images, size=6)),
        np.asarray(augment.per_image_standardization(x)),
    )
    np.testing.assert_array_equal(
        np.asarray(augment.cifar10_eval(images, size=6)),
        np.asarray(augment.per_image_standardization(augment.center_crop(images, 6))),
    )
    unflipped = augment.random_contrast(
        k4, augment.random_brightness(k3, augment.random_crop(k1, images, 6), 63), 0.2, 1.8
    )
    np.testing.assert_array_equal(
        np.asarray(augment.cifar10_train(KEY, images, size=6, flip=False)),
        np.asarray(augment.per_image_standardization(unflipped)),
    )


# ---- keys and transforms -------------------------------------------------------------------------


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_transforms_change_nothing(name, dtype):
    change, images = RANDOM[name], some_images(dtype=dtype)
    eager = np.asarray(change(KEY, images))
    np.testing.assert_allclose(np.asarray(tl.jit(change)(KEY, images)), eager, rtol=1e-5, atol=1e-5)
    # As the trainer calls it: one key for each row, made from the row's number, and batches of one.
    rows = tl.arange(6)

    def one(row, image):
        return change(random.fold_in(KEY, row), tl.expand_dims(image))[0]

    mapped = np.asarray(tl.jit(tl.vmap(one))(rows, images))
    for row in range(6):
        alone = np.asarray(change(random.fold_in(KEY, row), images[row : row + 1]))[0]
        np.testing.assert_allclose(mapped[row], alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", RANDOM)
def test_a_sharded_key_changes_its_rows_as_the_whole_batch(name):
    change, images = RANDOM[name], some_images()
    whole = np.asarray(change(KEY, images))
    for first, rows in [(0, 2), (2, 3), (5, 1)]:
        part = change(random.shard(KEY, first, rows), images[first : first + rows])
        np.testing.assert_allclose(
            np.asarray(part), whole[first : first + rows], rtol=1e-5, atol=1e-4
        )


def test_an_empty_batch_stays_empty():
    assert augment.cifar10_train(KEY, np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 24, 24, 3)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: augment.random_crop(KEY, x, 9),
            "window of 9 x 9 pixels does not fit images of 8 x 9",
        ),
        (lambda x: augment.center_crop(x, (0, 3)), "window of 0 x 3 pixels"),
        (
            lambda x: augment.random_flip_left_right(KEY, x[0]),
            r"takes a batch of images \(N, H, W, C\)",
        ),
        (lambda x: augment.random_brightness(KEY, x, -1), "max_delta must not be negative"),
        (lambda x: augment.random_contrast(KEY, x, 1.0, 1.0), "needs 0 <= lower < upper"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(some_images())
