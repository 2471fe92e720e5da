"""Random changes of training images, and the matching preparation of test images.

Every function takes a batch of images (N, H, W, C), uint8 or floating-point, and treats each image
by itself; a random one draws for each image from one key. They are made of tensor operations on the
whole batch, so they run under `tl.jit`, `tl.vmap` and on every device. `cifar10_train` and
`cifar10_eval` are the pipelines of the TensorFlow CIFAR-10 tutorial.
"""

from __future__ import annotations

import math
from typing import Any

import tensorlite as tl
from tensorlite import random

__all__ = [
    "center_crop",
    "cifar10_eval",
    "cifar10_train",
    "per_image_standardization",
    "random_brightness",
    "random_contrast",
    "random_crop",
    "random_flip_left_right",
]


def cifar10_train(key: tl.Tensor, images: Any, *, size: int = 24, flip: bool = True) -> tl.Tensor:
    """The distortions of the TensorFlow CIFAR-10 tutorial: float32 of shape (N, size, size, C).

    A random crop, a random flip (unless `flip` is False), brightness within 63, contrast within
    [0.2, 1.8], standardization, in this order. Pixels are expected in [0, 255].
    """
    crop_key, flip_key, brightness_key, contrast_key = random.split(key, 4)
    images = random_crop(crop_key, images, size)
    if flip:
        images = random_flip_left_right(flip_key, images)
    images = random_brightness(brightness_key, images, 63.0)
    images = random_contrast(contrast_key, images, 0.2, 1.8)
    return per_image_standardization(images)


def cifar10_eval(images: Any, *, size: int = 24) -> tl.Tensor:
    """What `cifar10_train` does without chance: the central crop, standardized."""
    return per_image_standardization(center_crop(images, size))


def random_crop(key: tl.Tensor, images: Any, size: int | tuple[int, int]) -> tl.Tensor:
    """A window of `size` (height and width, or one for both) at a random place of each image.

    Raises:
        ValueError: the window is larger than the images.

    Example:
        >>> images = tl.zeros((4, 32, 32, 3), dtype=tl.uint8)
        >>> tl.data.augment.random_crop(random.key(0), images, 24).shape
        (4, 24, 24, 3)
    """
    images = _batch("random_crop", images)
    n, height, width, channels = images.shape
    rows, columns = _crop_size("random_crop", images, size)
    # One draw of two numbers for each image, scaled to the places that there are.
    places = tl.asarray([height - rows + 1, width - columns + 1])
    offsets = random.bits(key, (n, 2), tl.uint64) % places.astype(tl.uint64)
    offsets = offsets.astype(tl.int64).reshape(n, 1, 2)
    y = offsets[:, :, 0] + tl.arange(rows)
    x = offsets[:, :, 1] + tl.arange(columns)
    positions = tl.expand_dims(y * width, axis=2) + tl.expand_dims(x, axis=1)
    pixels = images.reshape(n, height * width, channels)
    return pixels[tl.arange(n).reshape(n, 1, 1), positions]


def center_crop(images: Any, size: int | tuple[int, int]) -> tl.Tensor:
    """The central window of `size` (height and width, or one for both).

    Of an odd number of pixels too many, the larger part is cut at the end.

    Raises:
        ValueError: the window is larger than the images.
    """
    images = _batch("center_crop", images)
    rows, columns = _crop_size("center_crop", images, size)
    top, left = (images.shape[1] - rows) // 2, (images.shape[2] - columns) // 2
    return images[:, top : top + rows, left : left + columns]


def random_flip_left_right(key: tl.Tensor, images: Any) -> tl.Tensor:
    """Each image mirrored with probability 1/2."""
    images = _batch("random_flip_left_right", images)
    mirrored = random.bernoulli(key, 0.5, images.shape[:1])
    return tl.where(_per_image(mirrored), tl.flip(images, axis=2), images)


def random_brightness(key: tl.Tensor, images: Any, max_delta: float) -> tl.Tensor:
    """Each image plus one number, uniform on [-max_delta, max_delta); floating-point.

    Raises:
        ValueError: `max_delta` is negative.
    """
    if max_delta < 0:
        raise ValueError(f"random_brightness: max_delta must not be negative, got {max_delta}")
    images = _floats("random_brightness", images)
    unit = random.uniform(key, images.shape[:1], images.dtype)
    return images + _per_image((2 * unit - 1) * max_delta)


def random_contrast(key: tl.Tensor, images: Any, lower: float, upper: float) -> tl.Tensor:
    """The distance of each pixel from its channel's mean over the image times one random factor.

    The factor of an image is uniform on [lower, upper). The result is floating-point.

    Raises:
        ValueError: not 0 <= lower < upper.
    """
    if not 0 <= lower < upper:
        raise ValueError(
            f"random_contrast: needs 0 <= lower < upper, got lower={lower} and upper={upper}"
        )
    images = _floats("random_contrast", images)
    factor = random.uniform(key, images.shape[:1], images.dtype, lower, upper)
    mean = tl.mean(images, axis=(1, 2), keepdims=True)
    return (images - mean) * _per_image(factor) + mean


def per_image_standardization(images: Any) -> tl.Tensor:
    """(x - mean) / max(stddev, 1 / sqrt(number of elements)) of each image; floating-point.

    As TensorFlow's function of that name: the bound keeps uniform images finite.
    """
    images = _floats("per_image_standardization", images)
    axes = (1, 2, 3)
    centered = images - tl.mean(images, axis=axes, keepdims=True)
    deviation = tl.sqrt(tl.mean(centered * centered, axis=axes, keepdims=True))
    return centered / tl.maximum(deviation, 1 / math.sqrt(math.prod(images.shape[1:]) or 1))


# ---- helpers -------------------------------------------------------------------------------------


def _batch(op: str, images: Any) -> tl.Tensor:
    images = tl.asarray(images)
    if images.ndim != 4:
        raise ValueError(
            f"{op}: takes a batch of images (N, H, W, C), got shape {images.shape}; "
            "for one image, add an axis: tl.expand_dims(image)"
        )
    return images


def _floats(op: str, images: Any) -> tl.Tensor:
    images = _batch(op, images)
    return (
        images
        if images.dtype.kind == "f" or images.dtype == tl.bfloat16
        else images.astype(tl.float32)
    )


def _per_image(values: tl.Tensor) -> tl.Tensor:
    """One value for each image, shaped to broadcast over it."""
    return values.reshape(values.shape[0], 1, 1, 1)


def _crop_size(op: str, images: tl.Tensor, size: int | tuple[int, int]) -> tuple[int, int]:
    rows, columns = (size, size) if isinstance(size, int) else size
    height, width = images.shape[1:3]
    if not (1 <= rows <= height and 1 <= columns <= width):
        raise ValueError(
            f"{op}: a window of {rows} x {columns} pixels does not fit images of {height} x {width}"
        )
    return rows, columns
