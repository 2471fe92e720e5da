"""NumPy's .npz format: a zip archive with one .npy file for each array, uncompressed.

The format has no bfloat16. An array of that dtype is kept as its bits, uint16, and its name says so
with the ending `:bfloat16`; NumPy's own reader shows the bits under that name.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from .. import dtypes

_BITS = ":bfloat16"


def is_reserved(name: str) -> bool:
    """Whether the format keeps this name for itself."""
    return name.endswith(_BITS)


def write(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write arrays by name; the format has no place for metadata."""
    # Not numpy.savez, whose keywords cannot have every name.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            if array.dtype == dtypes.bfloat16:
                name, array = name + _BITS, array.view(np.uint16)
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, read-only.

    Raises:
        ValueError: the file is damaged, or has a dtype that tensorlite lacks.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array without a name")
        with archive:
            stored = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        size = path.stat().st_size
        raise ValueError(
            f"tl.load: {path} ({size} bytes) is damaged, cut off, or no .npz file: {error}"
        ) from None
    arrays = {}
    for name, array in stored.items():
        if name.endswith(_BITS) and array.dtype == np.uint16:
            name, array = name.removesuffix(_BITS), array.view(dtypes.bfloat16)
        if array.dtype.newbyteorder("=") not in dtypes.ALL:
            raise ValueError(
                f"tl.load: {path}: {name!r} has dtype {array.dtype}, which tensorlite lacks"
            )
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
        array.flags.writeable = False
        arrays[name] = array
    return arrays
