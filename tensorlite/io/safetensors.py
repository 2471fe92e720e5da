"""Pytrees in safetensors files: models, optimizer states, checkpoints.

A file maps the dotted names of the leaves (`tree.paths`) to arrays, so other programs can read it
without knowing any class, and nothing in it is ever executed. It is written beside its final place
and then renamed, so that a reader sees the old file or the whole new one, whatever happens
meanwhile.
"""

from __future__ import annotations

import collections
import os
from pathlib import Path
from typing import Any

import numpy as np

from .. import dtypes, tree
from ..core import Tensor
from ..ops.creation import asarray

_BARE = "value"  # the name of a tree that is one tensor
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


def save(path: str | os.PathLike[str], tree_: Any, metadata: dict[str, str] | None = None) -> None:
    """Write a pytree of tensors, arrays and numbers to a safetensors file.

    The file appears all at once: an existing one is replaced only when the new one is safely on the
    disk.

    Args:
        path: a local file, whose folder exists.
        metadata: short texts to keep with it; see `read_metadata`.

    Raises:
        ValueError: two leaves have the same name.
        TypeError: a leaf is no tensor or number, or metadata is not of texts.
        OSError: the file cannot be written; what was there before is still there.
    """
    path = Path(path)
    metadata = dict(metadata or {})
    for key, value in metadata.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise TypeError(f"tl.save: metadata maps texts to texts, got {key!r}: {value!r}")
    tensors = _named(tree_, "tl.save")
    arrays = {
        name: np.array(tensor.numpy(), order="C", copy=None) for name, tensor in tensors.items()
    }
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"tl.save: there is no folder {path.parent} to write {path.name} to"
        )
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        _write(temporary, arrays, metadata)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], like: Any = None) -> Any:
    """Read a safetensors file.

    Args:
        like: a pytree with the names, shapes and dtypes that are expected, such as a freshly made
            model.

    Returns:
        a tree of the structure of `like`, on the devices of its leaves; without `like` a dict of
        tensors by name, sorted, on the default device.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no safetensors file, or it does not fit `like`; the
            message lists what differs.
    """
    arrays = _read(Path(path))
    if like is None:
        return {name: asarray(array) for name, array in arrays.items()}
    expected = _named(like, "tl.load: like")
    _check_agreement(path, arrays, expected)
    leaves = [asarray(arrays[name], device=tensor.device) for name, tensor in expected.items()]
    return tree.unflatten(tree.structure(like), leaves)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that were saved with a file, without reading its tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    path = _existing(Path(path))
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise _damaged(path, error) from None


# ---- helpers -------------------------------------------------------------------------------------


def _named(tree_: Any, what: str) -> dict[str, Tensor]:
    """The leaves by name, which must be unique."""
    names = [name or _BARE for name in tree.paths(tree_)]
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated or "__metadata__" in names:
        raise ValueError(
            f"{what}: leaves need names of their own, but there are several (or a reserved name): "
            f"{', '.join(repeated) or '__metadata__'}; rename a key"
        )
    named = {}
    for name, leaf in zip(names, tree.leaves(tree_), strict=True):
        try:
            named[name] = asarray(leaf)
        except TypeError:
            raise TypeError(
                f"{what}: leaf {name!r} is a {type(leaf).__name__}, not a tensor, array or number"
            ) from None
    return named


def _write(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    from safetensors.numpy import save_file

    # Without tensors and with empty metadata, safetensors 0.8 writes a header that it cannot read.
    save_file(arrays, path, metadata=metadata or None)
    _sync(path)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize

    content = _existing(path).read_bytes()
    try:
        entries = deserialize(content)
    except SafetensorError as error:
        raise _damaged(path, error) from None
    arrays = {}
    for name, entry in sorted(entries, key=lambda item: item[0]):
        if entry["dtype"] not in _DTYPES:
            raise ValueError(
                f"tl.load: {path}: {name!r} has dtype {entry['dtype']}, which tensorlite lacks"
            )
        array = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        array.flags.writeable = False  # nobody else holds the buffer, so no copy is needed
        arrays[name] = array
    return arrays


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"tl.load: there is no file {path}")
    return path


def _damaged(path: Path, error: Exception) -> ValueError:
    size = path.stat().st_size
    return ValueError(
        f"tl.load: {path} ({size} bytes) is damaged, cut off, or no safetensors file: {error}"
    )


def _check_agreement(path: Any, arrays: dict[str, np.ndarray], expected: dict[str, Tensor]) -> None:
    lines = [
        f"{name}: not in the file, expected {t.aval}"
        for name, t in expected.items()
        if name not in arrays
    ]
    for name, array in arrays.items():
        found = f"{array.dtype}[{','.join(map(str, array.shape))}]"
        if name not in expected:
            lines.append(f"{name}: {found} in the file, not expected")
        elif expected[name].shape != array.shape or expected[name].dtype != array.dtype:
            lines.append(f"{name}: {found} in the file, expected {expected[name].aval}")
    if lines:
        shown = "\n  ".join(lines[:20]) + (
            f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
        )
        raise ValueError(f"tl.load: {path} does not fit:\n  {shown}")
