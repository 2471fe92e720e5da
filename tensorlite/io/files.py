"""Pytrees in files: models, optimizer states, checkpoints.

A file maps the dotted names of the leaves (`tree.paths`) to arrays, so other programs can read it
without knowing any class, and nothing in it is ever executed. The suffix of its name says which
format it has. It is written beside its final place and then renamed, so that a reader sees the old
file or the whole new one, whatever happens meanwhile.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import tree
from ..core import Tensor
from ..ops.creation import asarray
from . import npz, safetensors

_BARE = "value"  # the name of a tree that is one tensor


class _Format(NamedTuple):
    """How arrays by name are written to a path and read back; `reserved` says which names the
    format keeps for itself."""

    write: Callable[[Path, dict[str, np.ndarray], dict[str, str]], None]
    read: Callable[[Path], dict[str, np.ndarray]]
    reserved: Callable[[str], bool]


_FORMATS = {
    ".safetensors": _Format(safetensors.write, safetensors.read, safetensors.is_reserved),
    ".npz": _Format(npz.write, npz.read, npz.is_reserved),
}


def save(path: str | os.PathLike[str], tree_: Any, metadata: dict[str, str] | None = None) -> None:
    """Write a pytree of tensors, arrays and numbers to a `.safetensors` or `.npz` file.

    The file appears all at once: an existing one is replaced only when the new one is safely on the
    disk. In an `.npz` file, which has no bfloat16, a leaf of that dtype is kept as its bits
    (uint16) under the name `<name>:bfloat16`.

    Args:
        path: a local file, whose folder exists; its suffix chooses the format.
        metadata: short texts to keep with it, in a `.safetensors` file; see `read_metadata`.

    Raises:
        ValueError: the suffix is another one, two leaves have the same name, or metadata is given
            for an `.npz` file.
        TypeError: a leaf is no tensor or number, or metadata is not of texts.
        OSError: the file cannot be written; what was there before is still there.

    Example:
        >>> import os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "weights.safetensors")
        >>> tl.save(path, {"w": tl.ones(2), "layers": [tl.zeros(3)]}, {"epoch": "7"})
        >>> tl.load(path, like={"w": tl.zeros(2), "layers": [tl.ones(3)]})["w"]
        Tensor([1., 1.], dtype=float32, device=cpu)
        >>> sorted(tl.load(path)), tl.io.read_metadata(path)
        (['layers.0', 'w'], {'epoch': '7'})
    """
    path = Path(path)
    format_ = _format("tl.save", path)
    metadata = dict(metadata or {})
    for key, value in metadata.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise TypeError(f"tl.save: metadata maps texts to texts, got {key!r}: {value!r}")
    if metadata and path.suffix == ".npz":
        raise ValueError("tl.save: an .npz file keeps no metadata; save as .safetensors instead")
    tensors = _named(tree_, "tl.save", format_)
    arrays = {
        name: np.array(tensor.numpy(), order="C", copy=None) for name, tensor in tensors.items()
    }
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"tl.save: there is no folder {path.parent} to write {path.name} to"
        )
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        format_.write(temporary, arrays, metadata)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], like: Any = None) -> Any:
    """Read a `.safetensors` or `.npz` file.

    Args:
        like: a pytree with the names, shapes and dtypes that are expected, such as a freshly made
            model.

    Returns:
        a tree of the structure of `like`, on the devices of its leaves; without `like` a dict of
        tensors by name, sorted, on the default device.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the suffix is another one, the file is damaged, or it does not fit `like`; the
            message lists what differs.
    """
    arrays = read_arrays("tl.load", Path(path))
    if like is None:
        return {name: asarray(array) for name, array in arrays.items()}
    expected = _named(like, "tl.load: like", _format("tl.load", Path(path)))
    _check_agreement(path, arrays, expected)
    leaves = [asarray(arrays[name], device=tensor.device) for name, tensor in expected.items()]
    return tree.unflatten(tree.structure(like), leaves)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that were saved with a `.safetensors` file, without reading its tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no safetensors file.
    """
    return safetensors.read_metadata(_existing("read_metadata", Path(path)))


def read_arrays(op: str, path: Path) -> dict[str, np.ndarray]:
    """The read-only arrays of a file by name, sorted; raises as `load` does, in the name of
    `op`."""
    arrays = _format(op, path).read(_existing(op, path))
    return {name: arrays[name] for name in sorted(arrays)}


# ---- helpers -------------------------------------------------------------------------------------


def _format(op: str, path: Path) -> _Format:
    if path.suffix not in _FORMATS:
        raise ValueError(
            f"{op}: the name of the file says which format it has, .safetensors or .npz, "
            f"got {path.name!r}"
        )
    return _FORMATS[path.suffix]


def _existing(op: str, path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{op}: there is no file {path}")
    return path


def _named(tree_: Any, what: str, format_: _Format) -> dict[str, Tensor]:
    """The leaves by name, which must be unique."""
    names = [name or _BARE for name in tree.paths(tree_)]
    wrong = [name for name, count in collections.Counter(names).items() if count > 1]
    wrong += [name for name in names if format_.reserved(name)]
    if wrong:
        raise ValueError(
            f"{what}: leaves need names of their own, but there are several (or a reserved name): "
            f"{', '.join(wrong)}; rename a key"
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


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        raise ValueError(f"tl.load: {path} does not fit:\n  {shortened(lines)}")


def shortened(lines: list[str], limit: int = 20) -> str:
    """Lines of a message, cut after the first `limit`."""
    rest = [f"and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n  ".join([*lines[:limit], *rest])
