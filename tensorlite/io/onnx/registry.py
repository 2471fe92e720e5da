"""What the tables of ONNX operators are written against: nodes, images, and the registry.

An operator is a function `(node, *inputs)` that returns a tensor or a tuple of them; an optional
input that is left out is None. Whether an operator takes an option as an attribute or as an input
changed between opset versions: `Node.option` and `Node.integers` take either.

ONNX images are channels first, tensorlite's channels last. An operator with `layout="image"` gets
and returns its images as `Image`, which holds them channels last, and a pointwise operator computes
on whichever order comes; so a chain of convolutions, activations and poolings is transposed at its
ends only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ... import dtypes
from ...core import Tensor, Trace, TracerError, new_trace, tracing_graph
from ...device import current_device
from ...ops.creation import asarray
from ...ops.shape import permute_dims, reshape


class Node(NamedTuple):
    """A node of an ONNX graph: which operator with which attributes, and the names it connects.

    `version` is the model's opset; an input that is left out has the name "".
    """

    op: str
    name: str
    version: int
    attributes: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        return f"ONNX {self.op}" + (f" (node {self.name!r})" if self.name else "")

    def get(self, attribute: str, default: Any = None) -> Any:
        """The value of an attribute."""
        return self.attributes.get(attribute, default)

    def option(self, name: str, given: Tensor | None, default: Any = None) -> Any:
        """An option that is an input in some versions and an attribute in others."""
        return self.get(name, default) if given is None else given

    def integers(
        self, name: str, given: Tensor | None, default: Any = None
    ) -> tuple[int, ...] | None:
        """An option of integers, from an attribute or an input whose values can be looked at."""
        value = self.option(name, given, default)
        if value is None:
            return None
        if isinstance(value, Tensor):
            return tuple(int(v) for v in np.atleast_1d(self.known(name, value)))
        return tuple(int(v) for v in value)

    def known(self, name: str, value: Tensor) -> np.ndarray:
        """The values of an input on which shapes or branches depend.

        Raises:
            TracerError: `tl.jit` or `tl.vmap` traces it.
        """
        try:
            return value.concrete(name).numpy()
        except TracerError:
            raise TracerError(
                f"{self}: its input {name!r} decides shapes or branches, so its values must be "
                "known, but it is traced; close over it, or make it a constant of the model"
            ) from None

    def count_outputs(self) -> int:
        """How many outputs are asked for, counted up to the last one with a name."""
        return max((i + 1 for i, name in enumerate(self.outputs) if name), default=0)


class Operator(NamedTuple):
    """How an operator is computed. `layout`: "any" for plain tensors, "pointwise" or "image"."""

    function: Callable[..., Any]
    layout: str


OPERATORS: dict[str, Operator] = {}


def operator(*names: str, layout: str = "any") -> Callable[[Any], Any]:
    """Decorator: this function computes the ONNX operators of these names."""

    def register(function: Any) -> Any:
        for name in names:
            if name in OPERATORS:
                raise ValueError(f"there is already an ONNX operator {name!r}")
            OPERATORS[name] = Operator(function, layout)
        return function

    return register


# ---- images --------------------------------------------------------------------------------------


class Image(NamedTuple):
    """A tensor (N, C, *spatial) of the model, held as (N, *spatial, C)."""

    x: Tensor

    def channels_first(self) -> Tensor:
        """The tensor of the model."""
        return to_channels_first(self.x)


def to_channels_first(x: Tensor) -> Tensor:
    """(N, *spatial, C) -> (N, C, *spatial)."""
    return folded(permute_dims, x, axes=(0, x.ndim - 1, *range(1, x.ndim - 1)))


def to_channels_last(x: Tensor) -> Tensor:
    """(N, C, *spatial) -> (N, *spatial, C)."""
    return folded(permute_dims, x, axes=(0, *range(2, x.ndim), 1))


def as_image(value: Tensor | Image) -> Image:
    """`value` channels last."""
    return value if isinstance(value, Image) else Image(to_channels_last(value))


def as_tensor(value: Any) -> Any:
    """A tensor or image as the model has it; None, of an input that is left out, stays None."""
    return value.channels_first() if isinstance(value, Image) else value


def apply_pointwise(function: Callable[..., Any], node: Node, inputs: list[Any]) -> Any:
    """Run a pointwise operator channels last where one of its inputs is an image."""
    ranks = {v.x.ndim for v in inputs if isinstance(v, Image)}
    ndim = max(ranks, default=0)
    if len(ranks) != 1 or any(isinstance(v, Tensor) and v.ndim > ndim for v in inputs):
        return function(node, *map(as_tensor, inputs))
    moved = [_aligned(v, ndim) if isinstance(v, Tensor) else v and v.x for v in inputs]
    result = function(node, *moved)
    if isinstance(result, tuple):
        return tuple(Image(r) for r in result)
    return Image(result)


def _aligned(x: Tensor, ndim: int) -> Tensor:
    """A tensor of the model that broadcasts against images, channels last."""
    if x.size == 1:
        return folded(reshape, x, shape=())
    return to_channels_last(folded(reshape, x, shape=(*(1,) * (ndim - x.ndim), *x.shape)))


# ---- constants -----------------------------------------------------------------------------------


class _Eager(Trace):
    """Not a transform: what runs under it is computed at once, whatever transform runs outside."""

    name = "eager evaluation"

    def __init__(self, level: int):
        super().__init__(level)
        self.device = current_device()  # that of the graph outside, for new tensors

    def process(self, prim: Any, args: tuple[Tensor, ...], params: dict[str, Any]) -> Any:
        device = args[0].device if args else params["device"]
        return device.run(prim, args, params)


def is_known(value: Any) -> bool:
    """Whether no transform traces this value."""
    x = value.x if isinstance(value, Image) else value
    return x is None or x.trace is None


def folded(function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """`function(*inputs, **options)`, computed at once if all inputs are known, so that shapes and
    constants stay known while jit traces."""
    if tracing_graph() is None or not all(map(is_known, inputs)):
        return function(*inputs, **options)
    with new_trace(_Eager, is_floor=True):
        return function(*inputs, **options)


# ---- helpers of the tables -----------------------------------------------------------------------


@functools.cache
def dtype_of(number: int, where: str) -> np.dtype[Any]:
    """The dtype for a number of ONNX's TensorProto.DataType.

    Raises:
        TypeError: tensorlite has no such dtype.
    """
    import onnx

    name = onnx.TensorProto.DataType.Name(number).lower()
    name = {"float": "float32", "double": "float64"}.get(name, name)
    try:
        return dtypes.canonical(name)
    except TypeError:
        raise TypeError(f"{where}: tensorlite has no dtype {name} (ONNX type {number})") from None


def scalar(value: float, like: Tensor) -> Tensor:
    """A number of the dtype of `like`."""
    return asarray(value, dtype=like.dtype)
