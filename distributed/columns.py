"""Columns of Arrow batches as NumPy arrays: numbers, arrays of numbers, images.

Rows that have no value, or an image that cannot be read, are told apart from the others, so that
the caller decides what becomes of them.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .dataframes import DataFrameError, Shape

_IMAGE_FIELDS = {"height", "width", "nChannels", "mode", "data"}
# OpenCV's numbers for 8-bit images of 1, 3 and 4 channels, which Spark's image source gives.
_CHANNELS_OF_MODE = {0: 1, 16: 3, 24: 4}


@dataclasses.dataclass(frozen=True)
class Column:
    """The values of a batch's sound rows, (n, ...), and for each of the others what is wrong."""

    values: np.ndarray
    problems: dict[int, str]


Image = np.ndarray | str  # (height, width, channels) of uint8; or what is wrong


def read(
    name: str,
    array: pa.Array,
    image_size: tuple[int, int] | None = None,
    pool: concurrent.futures.Executor | None = None,
    planar: Shape | None = None,
) -> Column:
    """The column `name` of a batch.

    Args:
        image_size: (height, width) to which images are scaled.
        pool: where images are decoded; None decodes them here.
        planar: (channels, height, width) of the raw pixels that a column of bytes holds; None if
            it holds encoded images.

    Raises:
        DataFrameError: the column has a type that is not understood, or rows of several shapes.
    """
    kind = array.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return _numbers(array)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _lists(name, array)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        if planar is not None:
            if image_size not in (None, planar[1:]):
                raise DataFrameError(
                    f"column {name!r} has raw pixels of {planar[1]} x {planar[2]}, which are not "
                    f"scaled; leave the image size {image_size} out"
                )
            return _planes(array, planar)
        decode = functools.partial(_decoded, size=image_size)
        return _images(name, array.to_pylist(), decode, pool)
    if pa.types.is_struct(kind) and {field.name for field in kind} >= _IMAGE_FIELDS:
        whole = _of_one_kind(array, image_size)
        if whole is not None:
            return Column(whole, {})
        decode = functools.partial(_of_struct, size=image_size)
        return _images(name, array.to_pylist(), decode, pool)
    raise DataFrameError(
        f"column {name!r} has the type {kind}; numbers, arrays of numbers, vectors, images and "
        "encoded images (bytes) can be used. Text is made a number by a StringIndexer"
    )


def _nulls(array: pa.Array) -> dict[int, str]:
    if array.null_count == 0:
        return {}
    missing = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))
    return dict.fromkeys(missing.tolist(), "null")


def _numbers(array: pa.Array) -> Column:
    problems = _nulls(array)
    values = (array.drop_null() if problems else array).to_numpy(zero_copy_only=False)
    return Column(values, problems)


def _lists(name: str, array: pa.Array) -> Column:
    """Lists of one length, nested ones of one length at each depth."""
    problems = _nulls(array)
    sound = array.drop_null() if problems else array
    count, shape = len(sound), []
    while pa.types.is_list(sound.type) or pa.types.is_large_list(sound.type):
        lengths = np.unique(sound.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) > 1:
            raise DataFrameError(
                f"column {name!r} has arrays of lengths {', '.join(map(str, lengths[:4]))}; all "
                "rows must have the same"
            )
        shape.append(int(lengths[0]) if len(lengths) else 0)
        sound = sound.flatten()
    if sound.null_count:
        raise DataFrameError(f"column {name!r} has arrays with null among their numbers")
    if not (pa.types.is_integer(sound.type) or pa.types.is_floating(sound.type)):
        raise DataFrameError(f"column {name!r} has arrays of {sound.type}; they must be of numbers")
    return Column(sound.to_numpy(zero_copy_only=False).reshape(count, *shape), problems)


# ---- images --------------------------------------------------------------------------------------


def _images(
    name: str,
    values: list[Any],
    decode: Callable[[Any], Image],
    pool: concurrent.futures.Executor | None,
) -> Column:
    images = list((map if pool is None else pool.map)(decode, values))
    problems = {row: image for row, image in enumerate(images) if isinstance(image, str)}
    sound = [image for image in images if not isinstance(image, str)]
    shapes = sorted({image.shape for image in sound})
    if len(shapes) > 1:
        raise DataFrameError(
            f"column {name!r} has images of several shapes (height, width, channels): "
            f"{', '.join(map(str, shapes[:4]))}; choose an image size to which all are scaled, and "
            "convert them to the same number of channels"
        )
    return Column(np.stack(sound) if sound else np.empty((0,), np.uint8), problems)


def _decoded(content: bytes | None, size: tuple[int, int] | None) -> Image:
    """An encoded image, by Pillow."""
    if content is None:
        return "null"
    from PIL import Image as pillow

    try:
        with pillow.open(io.BytesIO(content)) as image:
            grey = image.mode in ("L", "1", "LA")
            pixels = np.asarray(_scaled(image.convert("L" if grey else "RGB"), size))
            return pixels[..., None] if grey else pixels
    except Exception as error:  # Pillow's readers raise whatever damaged bytes lead them to
        return f"no image ({type(error).__name__})"


def _of_struct(row: dict[str, Any] | None, size: tuple[int, int] | None) -> Image:
    """An image of Spark's image data source, which keeps channels as BGR or BGRA."""
    if row is None or row["data"] is None:
        return "null"
    channels = _CHANNELS_OF_MODE.get(row["mode"])
    if channels is None or len(row["data"]) != row["height"] * row["width"] * channels:
        return f"no image of Spark's image source (mode {row['mode']}, {len(row['data'])} bytes)"
    pixels = np.frombuffer(row["data"], np.uint8)
    pixels = pixels.reshape(row["height"], row["width"], channels)
    rgb = pixels if channels == 1 else pixels[..., 2::-1]
    if size is None or size == rgb.shape[:2]:
        return np.ascontiguousarray(rgb)
    from PIL import Image as pillow

    image = pillow.fromarray(np.ascontiguousarray(rgb[..., 0] if channels == 1 else rgb))
    return np.asarray(_scaled(image, size)).reshape(*size, -1)


def _of_one_kind(array: pa.Array, size: tuple[int, int] | None) -> np.ndarray | None:
    """All images of a batch of Spark's image data source at once, if they are alike and sound."""
    if not len(array) or array.null_count:
        return None
    fields = dict(zip((field.name for field in array.type), array.flatten(), strict=True))
    first = {name: fields[name][0].as_py() for name in ("height", "width", "mode")}
    data = fields["data"]
    alike = all(
        fields[n].null_count == 0 and pc.all(pc.equal(fields[n], v)).as_py()
        for n, v in first.items()
        if v is not None
    )
    channels = _CHANNELS_OF_MODE.get(first["mode"])
    if not alike or None in first.values() or channels is None or data.null_count:
        return None
    shape = (first["height"], first["width"], channels)
    if size not in (None, shape[:2]):
        return None
    if not pc.all(pc.equal(pc.binary_length(data), math.prod(shape))).as_py():
        return None
    pixels = _bytes_of(data, shape)
    return pixels if channels == 1 else np.ascontiguousarray(pixels[..., 2::-1])


def _planes(array: pa.Array, shape: Shape) -> Column:
    """Raw pixels, one channel's plane after the other, as (n, height, width, channels)."""
    problems = _nulls(array)
    lengths = pc.binary_length(array).fill_null(-1).to_numpy(zero_copy_only=False)
    sound = lengths == math.prod(shape)
    for row in np.flatnonzero(~sound & (lengths >= 0)).tolist():
        wanted = " x ".join(map(str, shape))
        problems[row] = f"{lengths[row]} bytes of raw pixels, not {wanted} = {math.prod(shape)}"
    if not sound.all():
        array = array.filter(pa.array(sound))
    pixels = _bytes_of(array, shape) if len(array) else np.empty((0, *shape), np.uint8)
    return Column(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), problems)


def _bytes_of(data: pa.Array, shape: tuple[int, ...]) -> np.ndarray:
    """An array of bytes, whose values all have the length of `shape`, as it lies in memory."""
    offset_type = np.int64 if pa.types.is_large_binary(data.type) else np.int32
    _, offsets, content = data.buffers()
    begin = int(np.frombuffer(offsets, offset_type)[data.offset])
    count = len(data) * math.prod(shape)
    return np.frombuffer(content, np.uint8, count, begin).reshape(len(data), *shape)


def _scaled(image: Any, size: tuple[int, int] | None) -> Any:
    if size is None or size == (image.height, image.width):
        return image
    from PIL import Image as pillow

    return image.resize((size[1], size[0]), pillow.Resampling.BILINEAR)
