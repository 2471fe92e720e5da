"""TensorBoard's files: scalars, histograms, and the graph of the loss."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import random

from .details import histograms
from .local import local_worker
from .monitor import Record


class TensorBoard:
    """Writes scalars of each record, the graph of the loss, histograms while training, and at the
    end those of the trained parameters.

    Args:
        loss, model: what is trained, as `Trainer` has them.

    Raises:
        ImportError: tensorboardX is missing.
    """

    SCALARS = ("loss", "images_per_second", "communication", "hidden_communication")

    def __init__(self, folder: str, loss: Callable[..., Any], model: Any):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ImportError(
                "Trainer: tensorboard needs tensorboardX: pip install 'tensorlite[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(folder)
        self._loss, self._model = loss, model
        self._step = 0
        self._has_graph = False

    def __call__(self, record: Record) -> None:
        """Write a record's numbers."""
        self._step = record["step"]
        for name, value in record.items():
            if name in self.SCALARS:
                self._writer.add_scalar(f"training/{name}", value, self._step)
            elif name.startswith("validation_"):
                measure = name.removeprefix("validation_")
                self._writer.add_scalar(f"validation/{measure}", value, self._step)

    def details(self, found: dict[str, Any]) -> None:
        """Write what `Details` tells."""
        if "batch" in found and not self._has_graph:
            self._has_graph = True  # a training that starts again tells it again
            self._draw(found["batch"])
        for name, histogram in found.get("histograms", {}).items():
            self._add(name, histogram, found["step"])

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Write the parameters, and close the file."""
        if result is not None:
            for name, histogram in histograms(result.model, []):
                self._add(name, histogram, result.summary["steps"])
        self._writer.close()

    def _add(self, name: str, histogram: dict[str, Any], step: int) -> None:
        counts = histogram["counts"]
        first, width = histogram["first"], histogram["width"]
        self._writer.add_histogram_raw(
            name,
            min=histogram["min"],
            max=histogram["max"],
            num=histogram["num"],
            sum=histogram["sum"],
            sum_squares=histogram["sum_squares"],
            bucket_limits=[first + width * (k + 1) for k in range(len(counts))],
            bucket_counts=counts,
            global_step=step,
        )

    def _draw(self, batch: list[Any]) -> None:
        from tensorboardX.proto import event_pb2

        try:
            graph = traced(self._loss, self._model, batch)
        except Exception as error:  # the loss has worked on the workers, but perhaps only there
            warnings.warn(
                f"TensorBoard gets no graph: {type(error).__name__} where the driver traces the "
                f"loss: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        definition = graph_def(graph, tl.tree.paths(self._model))
        event = event_pb2.Event(graph_def=definition.SerializeToString())
        self._writer.file_writer.add_event(event)


def traced(loss: Callable[..., Any], model: Any, batch: list[Any]) -> Any:
    """The graph of the loss of a batch that is like this: [dtype, shape] of each array."""
    arrays = [np.zeros(shape, np.dtype(getattr(tl, dtype, dtype))) for dtype, shape in batch]
    takes_key = "key" in inspect.signature(loss).parameters
    with local_worker():
        if takes_key:
            return tl.make_graph(loss)(model, *arrays, key=random.key(0))
        return tl.make_graph(loss)(model, *arrays)


def graph_def(graph: Any, parameters: list[str]) -> Any:
    """A graph as TensorBoard draws it: a node for each equation, in the scope of its module, and
    one for each argument. `parameters` are the names of the first of these."""
    from tensorboardX.proto.attr_value_pb2 import AttrValue
    from tensorboardX.proto.graph_pb2 import GraphDef
    from tensorboardX.proto.node_def_pb2 import NodeDef
    from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto

    nodes: list[Any] = []
    places: dict[Any, str] = {}  # what a variable is called as an input
    counts: dict[str, int] = {}

    def add(name: str, op: str, inputs: list[str], outputs: Any) -> None:
        counts[name] = counts.get(name, 0) + 1
        if counts[name] > 1:
            name = f"{name}_{counts[name] - 1}"
        shapes = [
            TensorShapeProto(dim=[TensorShapeProto.Dim(size=n) for n in v.aval.shape])
            for v in outputs
        ]
        kinds = ", ".join(str(v.aval) for v in outputs)
        attr = {
            "_output_shapes": AttrValue(list=AttrValue.ListValue(shape=shapes)),
            "results": AttrValue(s=kinds.encode()),
        }
        nodes.append(NodeDef(name=name, op=op, input=inputs, attr=attr))
        places.update({v: f"{name}:{k}" if k else name for k, v in enumerate(outputs)})

    for number, variable in enumerate(graph.inputs):
        is_parameter = number < len(parameters)
        name = f"argument_{number - len(parameters)}"
        if is_parameter:
            name = f"parameters/{parameters[number].replace('.', '/')}"
        add(name, "Parameter" if is_parameter else "Placeholder", [], [variable])
    for equation in graph.equations:
        scope = equation.source.path if equation.source is not None else ""
        variables = (atom for atom in equation.inputs if not isinstance(atom, tl.Tensor))
        inputs = [places[variable] for variable in variables]
        add(f"{scope}/{equation.prim}".strip("/"), str(equation.prim), inputs, equation.outputs)
    return GraphDef(node=nodes)
