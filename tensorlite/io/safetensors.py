"""The safetensors format: a header of names, dtypes and shapes, then the bytes. It has every dtype
of tensorlite, and texts beside the tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .. import dtypes

_DTYPES = {
    "BOOL": dtypes.bool_,
    **{f"I{dtype.itemsize * 8}": dtype for dtype in dtypes.SIGNED},
    **{f"U{dtype.itemsize * 8}": dtype for dtype in dtypes.UNSIGNED},
    **{
        "F16": dtypes.float16,
        "BF16": dtypes.bfloat16,
        "F32": dtypes.float32,
        "F64": dtypes.float64,
    },
}


def is_reserved(name: str) -> bool:
    """Whether the format keeps this name for itself."""
    return name == "__metadata__"


def write(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write contiguous arrays by name."""
    from safetensors.numpy import save_file

    # Without tensors and with empty metadata, safetensors 0.8 writes a header that it cannot read.
    save_file(arrays, path, metadata=metadata or None)


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, read-only.

    Raises:
        ValueError: the file is damaged, or has a dtype that tensorlite lacks.
    """
    from safetensors import SafetensorError, deserialize

    content = path.read_bytes()
    try:
        entries = deserialize(content)
    except SafetensorError as error:
        raise _damaged(path, error) from None
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise ValueError(
                f"tl.load: {path}: {name!r} has dtype {entry['dtype']}, which tensorlite lacks"
            )
        array = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        array.flags.writeable = False  # nobody else holds the buffer, so no copy is needed
        arrays[name] = array
    return arrays


def read_metadata(path: Path) -> dict[str, str]:
    """The texts of a file.

    Raises:
        ValueError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    size = path.stat().st_size
    return ValueError(
        f"tl.load: {path} ({size} bytes) is damaged, cut off, or no safetensors file: {error}"
    )
