"""ONNX export: a function of tensors as a model.

The function is traced into a graph, whose equations are written as ONNX nodes by the tables in
`export_elementwise` and `export_structure`, one entry for each primitive. A composite without an
entry is written as its body. What does not depend on the inputs is computed here, so that weights
appear as initializers in the layout that ONNX has for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ... import tree
from ...arguments import check_callables
from ...composite import Composite, checkpoint_p
from ...core import Tensor, bind
from ...graph import Atom, Equation, Graph, Var, trace_graph
from ...jit import call_p
from ...ops.creation import asarray
from .builder import EXPORTS, Builder, Decompose, Value
from .package import the_onnx_package

OPSET = 18
OLDEST_OPSET = 17


def to_onnx(
    f: Callable[..., Any],
    *example_args: Any,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int = OPSET,
) -> Any:
    """A function of tensors as an ONNX model.

    Args:
        f: a function of pytrees of tensors, for instance a module; what it closes over, such as
            parameters, is kept in the model.
        example_args: arguments of the shapes and dtypes that the model is to take, all of which
            are fixed. Their values do not matter.
        input_names, output_names: one for each tensor in the arguments and in the result; by
            default input0, input1, ... and output0, output1, ...
        opset: the version of ONNX's operators, 17 or later.

    Returns:
        an `onnx.ModelProto`, checked; `onnx.save(model, path)` writes it to a file.

    Raises:
        ImportError: the package onnx is not installed.
        TypeError: `f` is no function.
        NotImplementedError: `f` uses a primitive that has no counterpart in ONNX; it is named.
        ValueError: there are too few or too many names, or the opset is too old or too new.
    """
    check_callables("tl.io.to_onnx: takes a function and example arguments, to_onnx(f, x)", f)
    onnx = the_onnx_package("tl.io.to_onnx")
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ValueError(
            f"tl.io.to_onnx: opset {opset} is outside {OLDEST_OPSET} to {newest}, which the "
            "installed onnx knows"
        )
    graph = _traced(f, example_args)
    builder = Builder(onnx, opset, _parameter_names(f))
    inputs = _names("input", input_names, len(graph.inputs))
    outputs = _names("output", output_names, len(graph.outputs))
    arguments = [
        Value(builder.reserve(name), var.aval)
        for name, var in zip(inputs, graph.inputs, strict=True)
    ]
    for name in outputs:
        builder.reserve(name)
    results = _write(builder, graph, arguments)
    for name, value in zip(outputs, results, strict=True):
        builder.rename(value, name)
    declared = zip(outputs, (atom.aval for atom in graph.outputs), strict=True)
    model = builder.model(graph.name, arguments, [Value(n, aval) for n, aval in declared])
    onnx.checker.check_model(model, full_check=True)
    return model


def _traced(f: Callable[..., Any], example_args: Sequence[Any]) -> Graph:
    leaves, treedef = tree.flatten(tuple(example_args))
    name = str(getattr(f, "__name__", type(f).__name__))

    def flat(*tensors: Tensor) -> Any:
        return f(*tree.unflatten(treedef, tensors))

    avals = [asarray(leaf).aval for leaf in leaves]
    traced = trace_graph(flat, avals, name=name, what="tl.io.to_onnx")
    if traced.captured:
        raise TypeError(
            f"tl.io.to_onnx: {name} closes over a value of {traced.captured[0].aval} that "
            f"{traced.captured[0].trace} traces; export outside of other transforms"
        )
    return traced.graph


def _parameter_names(f: Any) -> dict[int, str]:
    """The dotted names of the tensors in `f`, if it is a module or another pytree, by identity."""
    leaves = tree.leaves(f)
    return {
        id(x): path for x, path in zip(leaves, tree.paths(f), strict=True) if isinstance(x, Tensor)
    }


def _names(kind: str, given: Sequence[str] | None, count: int) -> list[str]:
    names = [f"{kind}{i}" for i in range(count)] if given is None else [str(n) for n in given]
    if len(names) != count or len(set(names)) != count:
        raise ValueError(
            f"tl.io.to_onnx: {kind}_names needs {count} different names, one for each tensor, "
            f"got {names}"
        )
    return names


# ---- equations -----------------------------------------------------------------------------------


def _write(builder: Builder, graph: Graph, arguments: Sequence[Value]) -> list[Value]:
    """Write the equations of `graph`; return the values of its outputs."""
    known: dict[Var, Value] = dict(zip(graph.inputs, arguments, strict=True))

    def read(atom: Atom) -> Value:
        return known[atom] if isinstance(atom, Var) else builder.parameter(atom)

    for eqn in graph.equations:
        results = _write_equation(builder, eqn, [read(atom) for atom in eqn.inputs])
        known.update(zip(eqn.outputs, results, strict=True))
    return [read(atom) for atom in graph.outputs]


def _write_equation(builder: Builder, eqn: Equation, inputs: list[Value]) -> list[Value]:
    folded = _folded(builder, eqn, inputs)
    if folded is not None:
        return folded
    rule = EXPORTS.get(eqn.prim.name)
    if rule is not None:
        try:
            written = rule(builder, inputs, *[v.aval for v in eqn.outputs], **eqn.params)
        except Decompose:
            pass
        else:
            names = [written] if isinstance(written, str) else written
            return [Value(name, var.aval) for name, var in zip(names, eqn.outputs, strict=True)]
    body = _body(eqn)
    if body is None:
        avals = ", ".join(str(value.aval) for value in inputs)
        raise NotImplementedError(
            f"tl.io.to_onnx: the primitive {eqn.prim.name!r} of ({avals}) has no counterpart in "
            "ONNX; compute this part outside of the exported function"
        )
    return _write(builder, body, inputs)


def _body(eqn: Equation) -> Graph | None:
    """What an equation stands for, if it is a call or a composite."""
    if eqn.prim is call_p or eqn.prim is checkpoint_p:
        return eqn.params["graph"]
    if isinstance(eqn.prim, Composite):
        return eqn.prim.graph(*[atom.aval for atom in eqn.inputs], **eqn.params)[0]
    return None


def _folded(builder: Builder, eqn: Equation, inputs: list[Value]) -> list[Value] | None:
    """The results as constants, if the inputs are, and the model does not grow by it or ONNX has
    no other way to say it."""
    arrays = [builder.arrays.get(value.name) for value in inputs]
    known = [array for array in arrays if array is not None]
    if not inputs or len(known) < len(inputs):
        return None
    size = sum(var.aval.size * var.aval.dtype.itemsize for var in eqn.outputs)
    grows = size > max(1024, sum(array.nbytes for array in known))
    if grows and (eqn.prim.name in EXPORTS or _body(eqn) is not None):
        return None
    results = bind(eqn.prim, *map(asarray, known), **eqn.params)
    return [builder.constant(np.asarray(x)) for x in _as_tuple(results)]


def _as_tuple(results: Any) -> Iterator[Tensor]:
    return iter(results if isinstance(results, tuple) else (results,))
