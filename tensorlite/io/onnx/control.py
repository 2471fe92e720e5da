"""ONNX operators with graphs inside: If and Loop, as far as their conditions are known."""

from __future__ import annotations

import itertools
from typing import Any

from ...core import Tensor
from ...ops.creation import asarray
from ...ops.shape import stack
from .registry import Node, as_tensor, operator


@operator("If")
def _(node: Node, condition: Tensor) -> Any:
    chosen = bool(node.known("cond", condition).reshape(()))
    return tuple(node.get("then_branch" if chosen else "else_branch")())


@operator("Loop")
def _(node: Node, count: Tensor | None, condition: Tensor | None, *state: Tensor) -> Any:
    """Unrolled: the body runs for each round whose condition is known to hold."""
    rounds = None if count is None else int(node.known("M", count).reshape(()))
    going = condition is None or bool(node.known("cond", condition).reshape(()))
    carried: list[Any] = list(state)
    scanned: list[list[Tensor]] = []
    for number in itertools.count() if rounds is None else range(rounds):
        if not going:
            break
        keep_going, *results = node.get("body")(asarray(number), asarray(going), *carried)
        going = bool(node.known("cond", as_tensor(keep_going)).reshape(()))
        carried = results[: len(state)]
        scanned.append([as_tensor(x) for x in results[len(state) :]])
    if not scanned and len(node.outputs) > len(state):
        raise NotImplementedError(
            f"{node}: runs no round, so the shapes of its scanned outputs are not known"
        )
    return (*carried, *(stack(column) for column in zip(*scanned, strict=True)))
