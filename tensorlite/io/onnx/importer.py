"""ONNX import: a model as a function of tensors.

The nodes are run one by one with tensorlite's own operations, so the function works under every
transform. What can be computed from constants and shapes is computed at once, also while `tl.jit`
traces, so that a Reshape whose sizes come from a Shape costs nothing. Operators that tensorlite has
no entry for, but that ONNX defines by a function of simpler ones, are expanded.
"""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import dtypes
from ...core import Tensor, TracerError
from ...ops.creation import asarray
from .package import the_onnx_package
from .registry import (
    OPERATORS,
    Image,
    Node,
    Operator,
    apply_pointwise,
    as_image,
    as_tensor,
    dtype_of,
    folded,
)

# Before opset 7 these broadcast by other rules, or had training and inference in one.
_CHANGED_IN_7 = frozenset(
    [
        "Add",
        "And",
        "BatchNormalization",
        "Div",
        "Equal",
        "Greater",
        "Less",
        "Mul",
        "Or",
        "PRelu",
        "Pow",
        "Sub",
        "Xor",
    ]
)


def from_onnx(model: Any) -> OnnxFunction:
    """An ONNX model as a function of tensors.

    Args:
        model: a path, the bytes of a file, or an `onnx.ModelProto`.

    Returns:
        a function of a dict of tensors by input name, a sequence of tensors in the order of the
        graph's inputs, or the tensors themselves; it returns a tuple of the graph's outputs in
        their order. It runs under `tl.jit`, `tl.vmap` and `tl.grad` with respect to its inputs.
        Images are channels first, as in the model.

    Raises:
        ImportError: the package onnx is not installed.
        NotImplementedError: an operator is not supported; the message names all of them.
        TypeError: a constant has a dtype that tensorlite lacks.
        ValueError: it is no ONNX model, or too old (opset 6 and before).
    """
    onnx = the_onnx_package("tl.io.from_onnx")
    proto = _read(onnx, model)
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    version = versions.get("", versions.get("ai.onnx", 1))
    outdated = sorted(_CHANGED_IN_7.intersection(n.op_type for n in proto.graph.node))
    if version < 7 and outdated:
        raise ValueError(
            f"tl.io.from_onnx: the model has opset {version}, where {', '.join(outdated)} had "
            "another meaning than since opset 7; convert it with onnx.version_converter"
        )
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    unsupported = _unsupported(onnx, proto.graph)
    if unsupported:
        proto = _expanded(onnx, proto, unsupported)
        _refuse(_unsupported(onnx, proto.graph))
    return OnnxFunction(_graph(onnx, proto.graph, version))


class OnnxFunction:
    """A model that `from_onnx` has read. Call it on tensors; see there."""

    def __init__(self, graph: Graph):
        self._graph = graph

    @property
    def input_names(self) -> tuple[str, ...]:
        """The graph's inputs, without those that have an initializer."""
        return self._graph.inputs

    @property
    def output_names(self) -> tuple[str, ...]:
        """The graph's outputs."""
        return self._graph.outputs

    def __call__(self, *inputs: Any, **named: Any) -> tuple[Tensor, ...]:
        """The outputs for a dict, a sequence, or tensors; keywords are inputs by name."""
        values = {name: _checked(name, x) for name, x in self._by_name(inputs, named).items()}
        return tuple(as_tensor(v) for v in run(self._graph, values))

    def __repr__(self) -> str:
        return f"OnnxFunction({', '.join(self.input_names)}) -> ({', '.join(self.output_names)})"

    def _by_name(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        names = self._graph.inputs
        first = inputs[0] if len(inputs) == 1 else None
        if isinstance(first, Mapping):
            given = {**first, **named}
        else:
            row: Sequence[Any] = first if isinstance(first, list | tuple) else inputs
            if len(row) > len(names):
                raise TypeError(f"{self}: got {len(row)} inputs, takes {len(names)}")
            given = {**dict(zip(names, row, strict=False)), **named}
        missing = [name for name in names if name not in given]
        extra = [name for name in given if name not in names and name not in self._graph.constants]
        if missing or extra:
            raise TypeError(f"{self}: missing inputs {missing}, unknown inputs {extra}")
        return given


def _checked(name: str, value: Any) -> Tensor:
    if type(value).__name__ == "TensorProto":  # as data sets of ONNX hold types NumPy lacks
        return _constant(the_onnx_package("an input of type TensorProto"), value)
    try:
        return asarray(value)
    except TypeError as error:
        raise TypeError(f"input {name!r}: {error}") from None


# ---- graphs --------------------------------------------------------------------------------------


class Graph(NamedTuple):
    """An ONNX graph, decoded. `dropped[i]` are the values that no node after the i-th one needs;
    `captured` are names of the graph around it."""

    inputs: tuple[str, ...]
    constants: dict[str, Tensor]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    dropped: tuple[tuple[str, ...], ...]
    captured: frozenset[str]


def run(graph: Graph, values: Mapping[str, Any]) -> list[Any]:
    """The outputs of `graph`, for its inputs and whatever it captures."""
    known: dict[str, Any] = {"": None, **graph.constants, **values}
    for node, dropped in zip(graph.nodes, graph.dropped, strict=True):
        inputs = [known[name] for name in node.inputs]
        inner = {
            name: functools.partial(_run_body, body, {n: known[n] for n in body.captured})
            for name, body in node.attributes.items()
            if isinstance(body, Graph)
        }
        entry = OPERATORS[node.op]
        if inner:
            node = node._replace(attributes={**node.attributes, **inner})
            results = entry.function(node, *map(as_tensor, inputs))
        else:
            results = folded(functools.partial(_apply, entry, node), *inputs)
        if isinstance(results, Tensor | Image):
            results = (results,)
        known |= {n: x for n, x in zip(node.outputs, results, strict=False) if n}
        for name in dropped:
            del known[name]
    return [known[name] for name in graph.outputs]


def _run_body(body: Graph, captured: dict[str, Any], *inputs: Tensor) -> list[Any]:
    """A graph inside a node, for values of the graph around it and inputs of its own."""
    return run(body, {**captured, **dict(zip(body.inputs, inputs, strict=True))})


def _apply(entry: Operator, node: Node, *inputs: Any) -> Any:
    try:
        if entry.layout == "pointwise":
            return apply_pointwise(entry.function, node, list(inputs))
        if entry.layout == "image":
            return entry.function(node, as_image(inputs[0]), *map(as_tensor, inputs[1:]))
        return entry.function(node, *map(as_tensor, inputs))
    except (TypeError, ValueError, IndexError) as error:
        if str(node) in str(error):
            raise
        kinds = (TracerError, IndexError, TypeError, ValueError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(f"{node}: {error}") from error


def _graph(onnx: Any, proto: Any, version: int) -> Graph:
    if proto.sparse_initializer:
        name = proto.sparse_initializer[0].values.name
        raise NotImplementedError(
            f"tl.io.from_onnx: the initializer {name!r} is sparse; only dense ones are supported"
        )
    constants = {t.name: _constant(onnx, t) for t in proto.initializer}
    nodes = tuple(_node(onnx, node, version) for node in proto.node)
    inputs = tuple(entry.name for entry in proto.input if entry.name not in constants)
    outputs = tuple(entry.name for entry in proto.output)
    made = {*inputs, *constants, *(name for node in nodes for name in node.outputs), ""}
    uses = [_uses(node) for node in nodes]
    captured = frozenset().union(*uses, outputs) - made
    return Graph(inputs, constants, nodes, outputs, _last_uses(nodes, uses, outputs), captured)


def _uses(node: Node) -> frozenset[str]:
    """The names that a node reads, in the graphs inside it too."""
    bodies = [body.captured for body in node.attributes.values() if isinstance(body, Graph)]
    return frozenset(node.inputs).union(*bodies)


def _last_uses(
    nodes: Sequence[Node], uses: Sequence[frozenset[str]], outputs: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """For each node, the results of nodes that are not needed after it."""
    made = {name for node in nodes for name in node.outputs if name}
    kept, dropped = set(outputs), []
    for used in reversed(uses):
        dropped.append(tuple(sorted((used & made) - kept)))
        kept |= used
    return tuple(reversed(dropped))


def _node(onnx: Any, proto: Any, version: int) -> Node:
    attributes = {}
    for attribute in proto.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = _constant(onnx, value).numpy()
        elif isinstance(value, onnx.GraphProto):
            value = _graph(onnx, value, version)
        elif isinstance(value, bytes):
            value = value.decode()
        elif attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
            value = tuple(value)
        attributes[attribute.name] = value
    name = proto.name or (proto.output[0] if proto.output else "")
    return Node(proto.op_type, name, version, attributes, tuple(proto.input), tuple(proto.output))


def _constant(onnx: Any, proto: Any) -> Tensor:
    dtype = dtype_of(proto.data_type, f"tl.io.from_onnx: constant {proto.name!r}")
    array = onnx.numpy_helper.to_array(proto)
    if dtype == dtypes.bfloat16 and array.dtype != dtypes.bfloat16:
        array = array.astype(dtypes.bfloat16)
    return asarray(np.array(array, dtype))


# ---- reading -------------------------------------------------------------------------------------


def _read(onnx: Any, model: Any) -> Any:
    if isinstance(model, onnx.ModelProto):
        return model
    try:
        if isinstance(model, bytes):
            return onnx.load_model_from_string(model)
        if isinstance(model, str | os.PathLike):
            return onnx.load(os.fspath(model))
    except FileNotFoundError:
        raise FileNotFoundError(f"tl.io.from_onnx: there is no file {model}") from None
    except Exception as error:  # protobuf's own exception, which has no public name
        what = "these bytes" if isinstance(model, bytes) else model
        raise ValueError(f"tl.io.from_onnx: {what} holds no ONNX model: {error}") from error
    raise TypeError(
        f"tl.io.from_onnx: takes a path, bytes or an onnx.ModelProto, got {type(model).__name__}"
    )


def _unsupported(onnx: Any, graph: Any) -> dict[tuple[str, str], list[str]]:
    """The names of the nodes whose operators have no entry, by (domain, operator)."""
    found = collections.defaultdict(list)
    for node in graph.node:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain or node.op_type not in OPERATORS:
            found[domain, node.op_type].append(node.name or ", ".join(node.output))
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.HasField("g") else attribute.graphs
            for body in inner:
                for key, names in _unsupported(onnx, body).items():
                    found[key] += names
    return dict(found)


def _expanded(onnx: Any, proto: Any, unsupported: Mapping[tuple[str, str], Any]) -> Any:
    """The model with unsupported operators replaced by the functions that define them in ONNX."""
    schemas = {
        (domain, op): onnx.defs.get_schema(op, domain=domain)
        for domain, op in unsupported
        if onnx.defs.has(op, domain)
    }
    defined = {
        key: schema
        for key, schema in schemas.items()
        if schema.has_function or schema.has_context_dependent_function
    }
    if not defined:
        return proto
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    for node in whole.graph.node:
        if (node.domain, node.op_type) in defined:
            _spell_out_defaults(node, defined[node.domain, node.op_type])
    try:
        return onnx.inliner.inline_selected_functions(
            whole, list(defined), inline_schema_functions=True
        )
    except RuntimeError:  # a function whose form depends on inputs that are left out
        return proto


def _spell_out_defaults(node: Any, schema: Any) -> None:
    """Expansion leaves an attribute that is not given without a value, even if it has a default."""
    given = {attribute.name for attribute in node.attribute}
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.name:
            node.attribute.add().CopyFrom(attribute.default_value)


def _refuse(unsupported: Mapping[tuple[str, str], list[str]]) -> None:
    if unsupported:
        lines = [
            f"{op} (domain {domain or 'ai.onnx'}), at node {names[0]!r}"
            + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for (domain, op), names in sorted(unsupported.items())
        ]
        raise NotImplementedError(
            "tl.io.from_onnx: the model has operators that tensorlite does not support:\n  "
            + "\n  ".join(lines)
        )
