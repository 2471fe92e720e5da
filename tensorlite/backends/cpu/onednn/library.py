"""The shared library: finding it, declaring its C functions, its errors, its threads.

oneDNN needs no header here: the few functions and constants that are used are declared in this
package. Any library of major version 3 will do. It is loaded when the first operation asks for it,
since a program that only shuffles small arrays need not pay for that.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import os
import pathlib
import sys
import threading
import warnings
from ctypes import POINTER, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint, c_void_p
from typing import Any

from .. import openmp

VARIABLE = "TENSORLITE_ONEDNN"


class DnnlError(RuntimeError):
    """A call of oneDNN failed."""

    def __init__(self, op: str, function: str, status: str):
        super().__init__(f"{op}: {function} of oneDNN failed with status {status!r}")
        self.op, self.function, self.status = op, function, status


class Unsupported(DnnlError):
    """oneDNN has no implementation of what was asked for on this processor."""


class _Version(ctypes.Structure):
    """dnnl_version_t"""

    _fields_ = (
        ("major", c_int),
        ("minor", c_int),
        ("patch", c_int),
        ("hash", c_char_p),
        ("cpu_runtime", c_uint),
        ("gpu_runtime", c_uint),
    )


# Argument types of what returns a status; handles are opaque pointers. The names are those of the C
# API without the prefix dnnl_.
_handle, _out, _dims = c_void_p, POINTER(c_void_p), POINTER(c_int64)
_slide = (_dims, _dims, _dims, _dims)  # strides, dilations, padding before, padding after
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "engine_create": (_out, c_int, c_size_t),
    "stream_create": (_out, _handle, c_uint),
    "memory_desc_create_with_strides": (_out, c_int, _dims, c_int, _dims),
    "memory_desc_create_with_tag": (_out, c_int, _dims, c_int, c_int),
    "memory_desc_create_submemory": (_out, _handle, _dims, _dims),
    "memory_desc_clone": (_out, _handle),
    "memory_desc_destroy": (_handle,),
    "memory_create": (_out, _handle, _handle, _handle),
    "memory_set_data_handle": (_handle, _handle),
    "memory_destroy": (_handle,),
    "post_ops_create": (_out,),
    "post_ops_destroy": (_handle,),
    "post_ops_append_eltwise": (_handle, c_int, c_float, c_float),
    "post_ops_append_binary": (_handle, c_int, _handle),
    "post_ops_append_sum": (_handle, c_float, c_int, c_int),
    "primitive_attr_create": (_out,),
    "primitive_attr_destroy": (_handle,),
    "primitive_attr_set_post_ops": (_handle, _handle),
    "primitive_attr_set_scratchpad_mode": (_handle, c_int),
    "primitive_desc_query": (_handle, c_int, c_int, c_void_p),
    "primitive_desc_destroy": (_handle,),
    "primitive_create": (_out, _handle),
    "primitive_destroy": (_handle,),
    "primitive_execute": (_handle, _handle, c_int, c_void_p),
    "reorder_primitive_desc_create": (_out, *(_handle,) * 5),
    "convolution_forward_primitive_desc_create": (
        *(_out, _handle, c_int, c_int),
        *((_handle,) * 4),
        *_slide,
        _handle,
    ),
    "convolution_backward_data_primitive_desc_create": (
        *(_out, _handle, c_int),
        *((_handle,) * 3),
        *_slide,
        *((_handle,) * 2),
    ),
    "convolution_backward_weights_primitive_desc_create": (
        *(_out, _handle, c_int),
        *((_handle,) * 4),
        *_slide,
        *((_handle,) * 2),
    ),
    "matmul_primitive_desc_create": (_out, *(_handle,) * 6),
    "pooling_forward_primitive_desc_create": (
        *(_out, _handle, c_int, c_int, _handle, _handle),
        *(_dims, _dims, _dims, _dims, _dims, _handle),
    ),
    "pooling_backward_primitive_desc_create": (
        *(_out, _handle, c_int, _handle, _handle),
        *(_dims, _dims, _dims, _dims, _dims, _handle, _handle),
    ),
    "eltwise_forward_primitive_desc_create": (
        *(_out, _handle, c_int, c_int, _handle, _handle, c_float, c_float, _handle),
    ),
    "softmax_forward_primitive_desc_create": (
        *(_out, _handle, c_int, c_int, _handle, _handle, c_int, _handle),
    ),
    "layer_normalization_forward_primitive_desc_create": (
        *(_out, _handle, c_int, _handle, _handle, _handle, c_float, c_uint, _handle),
    ),
    "batch_normalization_forward_primitive_desc_create": (
        *(_out, _handle, c_int, _handle, _handle, c_float, c_uint, _handle),
    ),
}
# What returns something else than a status: (result, arguments).
_QUERIES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "version": (POINTER(_Version), ()),
    "status2str": (c_char_p, (c_int,)),
    "dt2str": (c_char_p, (c_int,)),
    "prop_kind2str": (c_char_p, (c_int,)),
    "alg_kind2str": (c_char_p, (c_int,)),
    "scratchpad_mode2str": (c_char_p, (c_int,)),
    "engine_kind2str": (c_char_p, (c_int,)),
    "fmt_tag2str": (c_char_p, (c_int,)),
    "memory_desc_equal": (c_int, (_handle, _handle)),
    "memory_desc_get_size": (c_size_t, (_handle,)),
    "primitive_desc_query_md": (_handle, (_handle, c_int, c_int)),
}
ENGINE_CPU, _STREAM_IN_ORDER = 1, 1


class Library:
    """A loaded oneDNN with one engine, the CPU, and one stream, which is in order.

    Attributes:
        path: where it was found.
        version: such as (3, 2, 0).
        functions: the C functions by name, without the prefix dnnl_; their addresses are
            `address(name)`.
        engine, stream: handles.
    """

    def __init__(self, path: str):
        """Raises OSError if `path` cannot be loaded, is no oneDNN 3, or lacks a function."""
        self.path = path
        self._dll = ctypes.CDLL(path)
        self.functions: dict[str, Any] = {}
        try:
            for name, arguments in _FUNCTIONS.items():
                self._declare(name, c_int, arguments)
            for name, (result, arguments) in _QUERIES.items():
                self._declare(name, result, arguments)
        except AttributeError as error:
            raise OSError(f"{path} is no oneDNN 3: {error}") from None
        found = self.functions["version"]().contents
        self.version = (found.major, found.minor, found.patch)
        if found.major != 3:
            raise OSError(f"{path} is oneDNN {found.major}.{found.minor}, version 3 is needed")
        self.engine = self.create("oneDNN", "engine_create", ENGINE_CPU, 0)
        self.stream = self.create("oneDNN", "stream_create", self.engine, _STREAM_IN_ORDER)

    def _declare(self, name: str, result: Any, arguments: tuple[Any, ...]) -> None:
        function = getattr(self._dll, f"dnnl_{name}")
        function.restype, function.argtypes = result, arguments
        self.functions[name] = function

    def call(self, op: str, name: str, *arguments: Any) -> None:
        """Call a function that returns a status.

        Raises:
            Unsupported: the status is "unimplemented".
            DnnlError: it is another one than "success"; the message names `op`, for which it was
                called, and the status.
        """
        status = self.functions[name](*arguments)
        if status:
            self.fail(op, name, status)

    def create(self, op: str, name: str, *arguments: Any) -> int:
        """Call a function that stores a new handle through its first argument; the handle."""
        handle = c_void_p()
        self.call(op, name, ctypes.byref(handle), *arguments)
        return handle.value or 0

    def fail(self, op: str, name: str, status: int) -> None:
        """Raise the error for a status that is not "success"."""
        words = self.functions["status2str"](status).decode()
        kind = Unsupported if words == "unimplemented" else DnnlError
        raise kind(op, f"dnnl_{name}", words)

    def address(self, name: str) -> int:
        """The address of a C function, for native code that calls it."""
        return ctypes.cast(self.functions[name], c_void_p).value or 0


class Handle:
    """Owns one object of the library, and destroys it when nobody needs it any more."""

    __slots__ = ("_destroy", "value")

    def __init__(self, value: int, destroy: Any):
        self.value = value
        self._destroy = destroy

    def __del__(self) -> None:
        self._destroy(self.value)


def make(op: str, name: str, *arguments: Any, of: str) -> Handle:
    """Create an object of kind `of` (such as "primitive") by the function `name`."""
    found = library()
    return Handle(found.create(op, name, *arguments), found.functions[f"{of}_destroy"])


# ---- finding it ----------------------------------------------------------------------


def library() -> Library:
    """The library.

    Raises:
        DnnlError: there is none.
    """
    found = load()
    if found is None:
        raise DnnlError("oneDNN", "dlopen", "library not found")
    return found


_loading = threading.Lock()


def load() -> Library | None:
    """The library, loaded at the first call; None, with a warning, if there is none.

    It is looked for where the environment variable TENSORLITE_ONEDNN says, which is then the only
    place; else among the libraries of the Python environment; else among those of the system.
    """
    with _loading:  # what threads make with two engines does not go together
        return _load()


@functools.cache
def _load() -> Library | None:
    failures = []
    for path in candidates():
        try:
            found = Library(path)
        except OSError as error:
            failures.append(str(error))
        else:
            openmp.register(ctypes.CDLL(path))
            return found
    detail = f" ({'; '.join(failures)})" if failures else ""
    warnings.warn(
        f"oneDNN 3 was not found{detail}: convolutions and other heavy operations run on NumPy, "
        "with the same results, but much slower. Install it with `pip install onednn-cpu-gomp` "
        f"(Linux, x86-64), or set {VARIABLE} to the path of a libdnnl.so.3.",
        RuntimeWarning,
        stacklevel=3,
    )
    return None


def candidates() -> list[str]:
    """The paths to try, in order."""
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return [chosen]
    name = "libdnnl.3.dylib" if sys.platform == "darwin" else "libdnnl.so.3"
    own = pathlib.Path(sys.prefix, "lib", name)
    system = ctypes.util.find_library("dnnl")
    return [*([str(own)] if own.exists() else []), *([system] if system else [])]
