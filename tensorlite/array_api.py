"""What the Python array API standard lets a client ask: the version of the standard, and what this
namespace and its devices can do.

`docs/array_api.md` says what of the standard is left out.
"""

from __future__ import annotations

from . import device as devices_
from . import dtypes

VERSION = "2024.12"


class Info:
    """What `tl.__array_namespace_info__()` returns."""

    def capabilities(self) -> dict[str, bool | int]:
        """Boolean indexing and data-dependent shapes exist in eager mode; jit and vmap refuse them
        with `TracerError`. A tensor has at most 64 dimensions, as in NumPy."""
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 64}

    def default_device(self) -> devices_.Device:
        """Where new tensors go."""
        return devices_.current_device()

    def devices(self) -> list[devices_.Device]:
        """All devices."""
        return devices_.devices()

    def default_dtypes(
        self, *, device: str | devices_.Device | None = None
    ) -> dict[str, dtypes.DType]:
        """The dtypes of new tensors by kind; the same on every device."""
        devices_.get_device(device)
        return {
            "real floating": dtypes.default_float,
            "integral": dtypes.default_int,
            "indexing": dtypes.default_int,
        }

    def dtypes(
        self,
        *,
        device: str | devices_.Device | None = None,
        kind: str | tuple[str, ...] | None = None,
    ) -> dict[str, dtypes.DType]:
        """The dtypes of the standard by name, those of `kind` if it is given. float16 and bfloat16,
        which the standard does not know, exist too; there are no complex dtypes."""
        devices_.get_device(device)
        extra = {dtypes.float16, dtypes.bfloat16}
        return {
            dtype.name: dtype
            for dtype in sorted(dtypes.ALL - extra, key=lambda d: d.num)
            if kind is None or dtypes.isdtype(dtype, kind)
        }


def array_namespace_info() -> Info:
    """What this namespace and its devices can do."""
    return Info()
