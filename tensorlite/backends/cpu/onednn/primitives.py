"""Primitives and their attributes: post-operations, scratchpads, and the layouts that a primitive
chose."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p
from typing import Any

from .library import Handle, Unsupported, library, make
from .memory import Desc, clone

# dnnl_query_t
QUERY_IMPLEMENTATION = 8
SRC, DIFF_SRC, WEIGHTS, DIFF_WEIGHTS, DST, DIFF_DST, WORKSPACE, SCRATCHPAD = range(129, 137)

# DNNL_ARG_*: the numbers by which a primitive knows its arguments.
ARG_SRC, ARG_SRC_1, ARG_DST, ARG_WEIGHTS, ARG_BIAS = 1, 2, 17, 33, 41
ARG_MEAN, ARG_VARIANCE = 49, 50
ARG_WORKSPACE, ARG_SCRATCHPAD = 64, 80
ARG_DIFF_SRC, ARG_DIFF_DST, ARG_DIFF_WEIGHTS, ARG_DIFF_BIAS = 129, 145, 161, 169
_ARG_POST_OP = 32768

# dnnl_prop_kind_t
FORWARD_TRAINING, FORWARD_INFERENCE = 64, 96

# dnnl_alg_kind_t
CONVOLUTION_DIRECT = 0x1
POOLING_MAX, POOLING_AVERAGE_WITH_PADDING = 0x1FF, 0x2FF
ELTWISE_LINEAR = 0x26
SOFTMAX, LOG_SOFTMAX = 0x30000, 0x30001
BINARY_ADD, BINARY_MUL = 0x1FFF0, 0x1FFF1

SCRATCHPAD_USER = 1  # dnnl_scratchpad_mode_user


def post_op_argument(index: int) -> int:
    """The number of the second operand of the binary post-operation at `index` of the chain."""
    return _ARG_POST_OP * (index + 1) | ARG_SRC_1


class Attributes:
    """The attributes of a primitive to be made: the caller gives the scratchpad, and the
    post-operations appended so far."""

    def __init__(self, op: str):
        self.op = op
        self.length = 0
        self._chain = make(op, "post_ops_create", of="post_ops")

    def eltwise(self, algorithm: int, alpha: float = 0.0, beta: float = 0.0) -> None:
        """Append a function of one number."""
        self._append("eltwise", algorithm, alpha, beta)

    def sum(self) -> None:
        """Append that the result is added to what is there."""
        self._append("sum", 1.0, 0, 0)

    def binary(self, algorithm: int, operand: Desc) -> int:
        """Append an operation with a second operand; its argument number."""
        self._append("binary", algorithm, operand.value)
        return post_op_argument(self.length - 1)

    def _append(self, kind: str, *arguments: Any) -> None:
        library().call(self.op, f"post_ops_append_{kind}", self._chain.value, *arguments)
        self.length += 1

    def handle(self) -> Handle:
        """The finished attributes."""
        made = make(self.op, "primitive_attr_create", of="primitive_attr")
        call = library().call
        call(self.op, "primitive_attr_set_scratchpad_mode", made.value, SCRATCHPAD_USER)
        if self.length:
            call(self.op, "primitive_attr_set_post_ops", made.value, self._chain.value)
        return made


class PrimitiveDesc(Handle):
    """What a primitive will do, and how; `describe` makes it."""

    __slots__ = ("op",)

    def __init__(self, op: str, value: int):
        super().__init__(value, library().functions["primitive_desc_destroy"])
        self.op = op

    @property
    def implementation(self) -> str:
        """The library's name for the implementation that it chose."""
        name = c_char_p()
        function = "primitive_desc_query"
        library().call(self.op, function, self.value, QUERY_IMPLEMENTATION, 0, ctypes.byref(name))
        return (name.value or b"").decode()

    def layout(self, what: int) -> Desc:
        """The memory descriptor of an argument, such as WEIGHTS."""
        return clone(library().functions["primitive_desc_query_md"](self.value, what, 0))

    def primitive(self) -> Handle:
        """The primitive itself: its code is generated here."""
        return make(self.op, "primitive_create", self.value, of="primitive")


def describe(
    op: str,
    name: str,
    *arguments: Any,
    attributes: Attributes | None = None,
    may_be_slow: bool = False,
) -> PrimitiveDesc:
    """Make a primitive descriptor by the function dnnl_<name>_primitive_desc_create, whose
    arguments between the engine and the attributes are given.

    Raises:
        Unsupported: there is no implementation, or only the reference, which is slower than NumPy.
        DnnlError: the arguments do not fit each other.
    """
    found, function = library(), f"{name}_primitive_desc_create"
    attr = (attributes or Attributes(op)).handle()
    values = [a.value if isinstance(a, Handle) else a for a in arguments]
    engine = () if name == "reorder" else (found.engine,)
    desc = PrimitiveDesc(op, found.create(op, function, *engine, *values, attr.value))
    if not may_be_slow and desc.implementation.startswith("ref"):
        raise Unsupported(op, f"dnnl_{function}", "only a reference implementation")
    return desc
