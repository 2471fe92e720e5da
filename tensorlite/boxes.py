"""Reverse mode as a stack of boxes.

While a function is differentiated, its inputs are boxes. Every primitive that meets a box computes
its answer at once, on the value below the box, and leaves a node that knows how to pull a cotangent
back. Values below a box are concrete, so Python's `if`, `while` and `print` work; nodes hold values
of the level below, so that a pullback can itself be differentiated, batched or traced.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import tree
from .core import (
    Aval,
    Primitive,
    Tensor,
    Trace,
    Tracer,
    TracerError,
    bind,
    captured,
    new_trace,
    tracing_graph,
)
from .origin import Origin, here, recording, replays

_next_order = itertools.count().__next__


class Node:
    """One step of the forward computation: where its arguments came from, and how cotangents go
    back to them."""

    __slots__ = ("order", "parents", "pull", "results")

    def __init__(self, parents: Sequence[Source | None], pull: Any, results: int | None = None):
        self.order = _next_order()  # creation order is a topological order
        self.parents = parents
        self.pull = pull  # a tuple of functions, one per parent, or one joint function
        self.results = (
            results  # how many, if the primitive returns a tuple; None if it returns one tensor
        )


Source = tuple[Node, int]


class Box(Tracer):
    """A tensor in the computation that `trace` differentiates: its value one level below, and its
    source, the node that made it and which of the node's results it is."""

    __slots__ = ("dtype", "source", "trace", "value")

    def __init__(self, trace: VJPTrace, value: Tensor, source: Source):
        self.trace = trace
        self.value = value
        self.source = source
        self.dtype = value.dtype  # type: ignore[misc]  # asked for by every operator

    @property
    def aval(self) -> Aval:
        return self.value.aval

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def device(self) -> Any:
        return self.value.device

    def concrete(self, wanted: str) -> Tensor:
        """The value below: looking at it is allowed, but it takes no gradient along."""
        return self.value.concrete(wanted)

    def numpy(self) -> np.ndarray:
        return self.concrete("numpy()").numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise TracerError(
            f"conversion to NumPy of a value of {self.aval} inside tl.grad would lose its "
            "gradient; "
            "use tensorlite's own function, or x.numpy() to look at the value only"
        )

    def __repr__(self) -> str:
        return f"Box({self.value!r})"

    def __str__(self) -> str:
        return str(self.value)


class VJPTrace(Trace):
    """Records how cotangents flow back through the primitives that meet its boxes."""

    def __init__(self, level: int, what: str, f: Callable[..., Any]):
        super().__init__(level)
        self.what, self.f = what, f
        # Lines of eager operations are worth their time only when somebody looks for a mistake.
        self.records = recording.on or tracing_graph() is not None

    def __str__(self) -> str:
        return f"tl.{self.what} of {getattr(self.f, '__name__', type(self.f).__name__)}"

    def process(self, prim: Primitive, args: tuple[Tensor, ...], params: dict[str, Any]) -> Any:
        if not prim.differentiable:
            return bind(prim, *[a.value if a.trace is self else a for a in args], **params)  # type: ignore[attr-defined]
        values: list[Tensor] = []
        parents: list[Source | None] = []
        for arg in args:
            if arg.trace is self:
                values.append(arg.value)  # type: ignore[attr-defined]
                parents.append(arg.source)  # type: ignore[attr-defined]
            else:
                values.append(arg)
                parents.append(None)
        if prim.fwd_rule is not None:
            needs = tuple(parent is not None for parent in parents)
            ans, pull = prim.fwd_rule(needs, *values, **params)
        elif prim.vjp_rule is not None:
            ans = bind(prim, *values, **params)
            pull = prim.vjp_rule(ans, *values, **params)
            if not isinstance(pull, tuple):
                pull = (pull,)
        elif prim.body is not None:
            return prim.body(*args, **params)
        else:
            raise NotImplementedError(f"{prim.name} has no derivative")
        if self.records:
            pull = _recorded(pull, here())
        if isinstance(ans, tuple):
            for a in ans:
                if a.trace is self:
                    raise captured(self, prim)
            node = Node(parents, pull, len(ans))
            return tuple(Box(self, a, (node, i)) for i, a in enumerate(ans))
        return Box(self, ans, (Node(parents, pull), 0))


def _recorded(pull: Any, origin: Origin | None) -> Any:
    """`pull`, whose operations come from the line that asked for the forward one."""
    if pull is None or origin is None:
        return pull
    if isinstance(pull, tuple):
        return tuple(_recorded(each, origin) for each in pull)

    of_this = origin._replace(backward=True)

    @replays("source")
    def derivative(ct: Any, source: Origin = of_this) -> Any:
        return pull(ct)

    return derivative


def backward(seeds: Sequence[tuple[Source, Tensor]], leaves: Sequence[Node]) -> list[Tensor | None]:
    """The cotangents that reach `leaves` when those of `seeds` are pulled back; None is zero."""
    arrived: dict[Node, Any] = {}  # a cotangent, or a list of them for a node with several results
    waiting: list[tuple[int, Node]] = []
    push, pop = heapq.heappush, heapq.heappop

    def send(source: Source, cotangent: Tensor) -> None:
        node, index = source
        if node not in arrived:
            push(waiting, (-node.order, node))
            if node.results is None:
                arrived[node] = cotangent
                return
            arrived[node] = [None] * node.results
        if node.results is None:
            arrived[node] += cotangent
        else:
            slots = arrived[node]
            slots[index] = cotangent if slots[index] is None else slots[index] + cotangent

    for source, cotangent in seeds:
        send(source, cotangent)
    while waiting:
        _, node = pop(waiting)
        pulls = node.pull
        if pulls is None:
            continue
        ct = arrived.pop(node)
        if node.results is not None:
            ct = tuple(ct)
        if type(pulls) is tuple:
            for parent, pull in zip(node.parents, pulls, strict=True):
                if parent is not None and pull is not None:
                    cotangent = pull(ct)
                    if cotangent is not None:
                        send(parent, cotangent)
        else:
            for parent, cotangent in zip(node.parents, pulls(ct), strict=True):
                if parent is not None and cotangent is not None:
                    send(parent, cotangent)
    return [arrived.get(leaf) for leaf in leaves]


def linearize(
    f: Callable[..., Any],
    args: tuple[Any, ...],
    active: Sequence[bool],
    has_aux: bool,
    what: str,
    user_function: Callable[..., Any] | None = None,
) -> tuple[Any, Any, Callable[[Sequence[Tensor | None]], list[Tensor | None]], tree.TreeDef]:
    """Run f(*args) with boxes around the `active` leaves of `args`.

    Returns the result, the auxiliary result, a function from cotangents of the result's leaves to
    cotangents of the active leaves, and the structure of the result.
    """
    leaves, treedef = tree.flatten(args)
    with new_trace(VJPTrace, what, user_function or f) as trace:
        sources = [Node((), None) for a in active if a]
        fresh = iter(sources)
        boxed = [
            Box(trace, leaf, (next(fresh), 0)) if a else leaf
            for leaf, a in zip(leaves, active, strict=True)
        ]
        out = f(*tree.unflatten(treedef, boxed))
        aux = None
        if has_aux:
            if not (isinstance(out, tuple) and len(out) == 2):
                raise TypeError(
                    f"{what}: with has_aux=True the function returns (value, aux), got "
                    f"{type(out).__name__}"
                )
            out, aux = out
        out_leaves, out_def = tree.flatten(out)
    ends = [o.source if _is_box_of(o, trace) else None for o in out_leaves]
    result = tree.unflatten(out_def, [_unbox(o, trace) for o in out_leaves])
    if has_aux:
        aux = tree.map(lambda leaf: _unbox(leaf, trace), aux)

    def pull(cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        seeds = [
            (end, ct)
            for end, ct in zip(ends, cotangents, strict=True)
            if end is not None and ct is not None
        ]
        return backward(seeds, sources)

    return result, aux, pull, out_def


def _is_box_of(value: Any, trace: Trace) -> bool:
    return isinstance(value, Box) and value.trace is trace


def _unbox(value: Any, trace: Trace) -> Any:
    return value.value if _is_box_of(value, trace) else value


def flat_vjp(
    f: Callable[..., tuple[Tensor, ...]], args: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[tuple[Tensor, ...], Callable[[Sequence[Tensor | None]], list[Tensor | None]]]:
    """`vjp` for the rules of primitives: of a function of tensors that returns a tuple of them.

    The pullback takes one cotangent for each result and gives one for each argument that is needed;
    None is zero.
    """
    value, _, pull, _ = linearize(f, tuple(args), needs, False, "vjp")
    return value, pull
