"""What the tables of export are written against: a builder of ONNX graphs, and the registry.

An entry is a function `(builder, inputs, *results, **params)`: the inputs as `Value`s, the avals of
the results, the parameters of the primitive. It emits nodes and returns the name of the result, or
a list of names. It raises `Decompose` where ONNX has no operator for a composite with these
parameters, so that its body is written instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..._version import __version__
from ...core import Aval, Tensor


class Decompose(Exception):
    """Raised by an entry: the body of the composite is to be written."""


class Value(NamedTuple):
    """A tensor in the ONNX graph."""

    name: str
    aval: Aval


Input = Value | str
Entry = Callable[..., str | list[str]]

EXPORTS: dict[str, Entry] = {}  # by the names of primitives


def exports(*names: str) -> Callable[[Entry], Entry]:
    """Decorator: the entry for the primitives of these names."""

    def register(entry: Entry) -> Entry:
        for name in names:
            if name in EXPORTS:
                raise ValueError(f"there is already an entry for the primitive {name!r}")
            EXPORTS[name] = entry
        return entry

    return register


class Builder:
    """Collects nodes and initializers.

    `arrays` holds the constants by name. Transposes are remembered, so that two in a row become
    one, or none.
    """

    def __init__(self, onnx: Any, opset: int, parameter_names: dict[int, str]):
        self.onnx = onnx
        self.opset = opset
        self.arrays: dict[str, np.ndarray] = {}
        self._nodes: list[Any] = []
        self._names: set[str] = set()
        self._parameters: dict[int, Value] = {}
        self._parameter_names = parameter_names
        self._kept: list[Tensor] = []  # while their identity serves as a key
        self._small: dict[Any, str] = {}
        self._turned: dict[tuple[str, tuple[int, ...]], str] = {}  # constants
        self._transposed: dict[str, tuple[str, tuple[int, ...]]] = {}

    def emit(self, op: str, *inputs: Input, **attributes: Any) -> str:
        """Add a node of one output; return the output's name."""
        return self.emit_all(op, 1, *inputs, **attributes)[0]

    def emit_all(self, op: str, count: int, *inputs: Input, **attributes: Any) -> list[str]:
        """Add a node of `count` outputs; return their names."""
        outputs = [self._fresh(op.lower()) for _ in range(count)]
        names = [x.name if isinstance(x, Value) else x for x in inputs]
        self._nodes.append(self.onnx.helper.make_node(op, names, outputs, **attributes))
        return outputs

    def constant(self, array: Any, dtype: Any = None) -> Value:
        """A constant; equal small ones are one initializer."""
        array = np.asarray(array, dtype)
        key = (array.dtype, array.shape, array.tobytes()) if array.nbytes <= 64 else None
        name = self._small.get(key)
        if name is None:
            name = self._fresh("constant")
            self.arrays[name] = array
            if key is not None:
                self._small[key] = name
        return Value(name, Aval(array.shape, array.dtype))

    def number(self, value: float, like: Value) -> Value:
        """A scalar constant of the dtype of `like`."""
        return self.constant(value, like.aval.dtype)

    def integers(self, values: Sequence[int]) -> Value:
        """A vector of int64, as shapes and axes are."""
        return self.constant(np.asarray(values, np.int64).reshape(len(values)))

    def parameter(self, tensor: Tensor) -> Value:
        """A tensor that the function closes over."""
        value = self._parameters.get(id(tensor))
        if value is None:
            array = tensor.numpy()
            if id(tensor) in self._parameter_names:
                value = Value(self._fresh(self._parameter_names[id(tensor)]), tensor.aval)
                self.arrays[value.name] = array
            else:
                value = self.constant(array)
            self._parameters[id(tensor)] = value
            self._kept.append(tensor)
        return value

    def reshape(self, x: Input, shape: Sequence[int]) -> str:
        """`x` in another shape."""
        return self.emit("Reshape", x, self.integers(shape))

    def cast(self, x: Value, dtype: Any) -> str:
        """`x` as another dtype."""
        if x.aval.dtype == dtype:
            return x.name
        return self.emit("Cast", x, to=self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def transpose(self, x: Input, perm: Sequence[int]) -> str:
        """`x` with its axes in another order: a constant is transposed at once."""
        name, order = (x.name if isinstance(x, Value) else x), tuple(perm)
        if name in self.arrays:
            if (name, order) not in self._turned:
                turned = self._turned[name, order] = self._fresh(name)
                self.arrays[turned] = self.arrays[name].transpose(order)
            return self._turned[name, order]
        if name in self._transposed:
            name, inner = self._transposed[name]
            order = tuple(inner[axis] for axis in order)
        if order == tuple(range(len(order))):
            return name
        result = self.emit("Transpose", name, perm=order)
        self._transposed[result] = (name, order)
        return result

    def reduce(self, op: str, x: Input, axes: Sequence[int]) -> str:
        """A reduction that drops `axes`."""
        if not axes:
            return self.emit("Identity", x)
        if op == "ReduceSum" or self.opset >= 18:
            return self.emit(op, x, self.integers(axes), keepdims=0)
        return self.emit(op, x, axes=list(axes), keepdims=0)

    def reserve(self, name: str) -> str:
        """Keep a name for an input or output."""
        self._names.add(name)
        return name

    def rename(self, value: Value, name: str) -> None:
        """Give a value the name of an output."""
        self._nodes.append(self.onnx.helper.make_node("Identity", [value.name], [name]))

    def model(self, name: str, inputs: Sequence[Value], outputs: Sequence[Value]) -> Any:
        """The finished model, without nodes and constants that no output needs."""
        helper = self.onnx.helper
        used, nodes = {value.name for value in outputs}, []
        for node in reversed(self._nodes):
            if not used.isdisjoint(node.output):
                nodes.append(node)
                used.update(node.input)
        graph = helper.make_graph(
            nodes[::-1],
            name,
            [self._declared(value) for value in inputs],
            [self._declared(value) for value in outputs],
            [self._initializer(name) for name in self.arrays if name in used],
        )
        opset = helper.make_opsetid("", self.opset)
        return helper.make_model(
            graph,
            opset_imports=[opset],
            # The oldest format that has this opset, since readers refuse formats newer than theirs.
            ir_version=helper.find_min_ir_version_for([opset]),
            producer_name="tensorlite",
            producer_version=__version__,
        )

    def _initializer(self, name: str) -> Any:
        return self.onnx.numpy_helper.from_array(np.array(self.arrays[name], order="C"), name)

    def _declared(self, value: Value) -> Any:
        dtype = self.onnx.helper.np_dtype_to_tensor_dtype(value.aval.dtype)
        return self.onnx.helper.make_tensor_value_info(value.name, dtype, value.aval.shape)

    def _fresh(self, stem: str) -> str:
        name, number = stem, 0
        while name in self._names:
            number += 1
            name = f"{stem}_{number}"
        self._names.add(name)
        return name
