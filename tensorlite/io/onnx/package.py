"""The package onnx, which is imported when it is needed only."""

from __future__ import annotations

from typing import Any


def the_onnx_package(what: str) -> Any:
    """The module `onnx` with the parts that are used here.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import onnx
        import onnx.checker
        import onnx.defs
        import onnx.helper
        import onnx.inliner
        import onnx.numpy_helper
    except ImportError as error:
        raise ImportError(
            f"{what} needs the package onnx; install it with: pip install 'tensorlite[onnx]'"
        ) from error
    return onnx
