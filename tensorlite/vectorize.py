"""vmap: a function of one example becomes a function of a batch.

Inside vmap a tensor that varies over the batch is a `BatchTracer` whose value carries the batch at
axis 0; each primitive's batching rule says how to compute all examples at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from . import tree
from .arguments import check_function
from .core import Aval, Primitive, Tensor, Trace, Tracer, TracerError, captured, new_trace
from .ops.creation import asarray
from .ops.shape import broadcast_to, moveaxis


class BatchTracer(Tracer):
    """One example of a batch; `value` holds all of them along axis 0."""

    __slots__ = ("trace", "value")

    def __init__(self, trace: BatchTrace, value: Tensor):
        self.trace = trace
        self.value = value

    @property
    def aval(self) -> Aval:
        return Aval(self.value.shape[1:], self.value.dtype)

    @property
    def device(self) -> Any:
        return self.value.device

    def concrete(self, wanted: str) -> Tensor:
        raise TracerError(
            f"{wanted} needs one concrete value, but inside tl.vmap this {self.aval} stands for a "
            "whole batch; "
            "use tl.where (or tl.cond) instead of branching on it"
        )


class BatchTrace(Trace):
    """Applies batching rules."""

    def __init__(self, level: int, size: int, f: Callable[..., Any]):
        super().__init__(level)
        self.size = size
        self.f = f

    def __str__(self) -> str:
        return f"tl.vmap of {getattr(self.f, '__name__', type(self.f).__name__)}"

    def process(self, prim: Primitive, args: tuple[Tensor, ...], params: dict[str, Any]) -> Any:
        batched = [arg.trace is self for arg in args]
        values = [arg.value if b else arg for arg, b in zip(args, batched, strict=True)]  # type: ignore[attr-defined]
        if prim.batch_rule is not None:
            out = prim.batch_rule(values, batched, **params)
        elif prim.body is not None:
            return prim.body(*args, **params)
        else:
            raise NotImplementedError(f"{prim.name} has no batching rule")
        if isinstance(out, tuple):
            for o in out:
                if o.trace is self:
                    raise captured(self, prim)
            return tuple(BatchTracer(self, o) for o in out)
        return BatchTracer(self, out)


def vmap(
    f: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0, *, axis_size: int | None = None
) -> Any:
    """`f` over a batch of arguments.

    Args:
        f: a function of pytrees for one example.
        in_axes: which axis of each argument is the batch, None for an argument shared by all
            examples, which reaches `f` as it is and need not be a tensor: an int or None for all
            positional arguments, or a tuple with one entry each, which may be a pytree prefix of
            that argument. Keyword arguments are mapped over axis 0.
        out_axes: where the batch goes in each result, a pytree prefix; None where a result does not
            depend on the batch.
        axis_size: the batch size; needed only when nothing is mapped.

    Raises:
        ValueError: batch sizes disagree, an axis does not exist, or nothing is mapped.
        TypeError: `f` is no function.

    Example:
        >>> x, y = tl.asarray([[1.0, 2.0], [3.0, 4.0]]), tl.asarray([10.0, 1.0])
        >>> print(tl.vmap(tl.vecdot, in_axes=(0, None))(x, y))
        [12. 34.]
        >>> def loss(w, x):
        ...     return tl.sum(w * x) ** 2
        >>> print(tl.vmap(tl.grad(loss), in_axes=(None, 0))(y, x))  # a gradient for each row of x
        [[ 24.  48.]
         [204. 272.]]
    """
    check_function("vmap", f)

    @functools.wraps(f)
    def batched(*args: Any, **kwargs: Any) -> Any:
        axes = tuple(in_axes) if isinstance(in_axes, list | tuple) else (in_axes,) * len(args)
        if len(axes) != len(args):
            raise ValueError(
                f"vmap: in_axes has {len(axes)} entries for {len(args)} positional arguments"
            )
        leaves, treedef = tree.flatten((args, kwargs))
        flat_axes = tree.broadcast_prefix(axes, args, "vmap: in_axes")
        flat_axes += [0] * (len(leaves) - len(flat_axes))
        leaves = [
            leaf if axis is None else asarray(leaf)
            for leaf, axis in zip(leaves, flat_axes, strict=True)
        ]
        size = _batch_size(leaves, flat_axes, (args, kwargs), axis_size)
        with new_trace(BatchTrace, size, f) as trace:
            wrapped = [
                leaf if axis is None else BatchTracer(trace, _move_axis(leaf, axis, 0))
                for leaf, axis in zip(leaves, flat_axes, strict=True)
            ]
            new_args, new_kwargs = tree.unflatten(treedef, wrapped)
            out = f(*new_args, **new_kwargs)
            out_leaves, out_def = tree.flatten(out)
        flat_out = tree.broadcast_prefix(out_axes, out, "vmap: out_axes")
        results = [_unbatch(o, axis, trace) for o, axis in zip(out_leaves, flat_out, strict=True)]
        return tree.unflatten(out_def, results)

    return batched


def _batch_size(
    leaves: list[Any], axes: list[int | None], arguments: Any, axis_size: int | None
) -> int:
    def name(number: int) -> str:
        return f"argument {tree.paths(arguments)[number].partition('.')[2]!r}"

    first: dict[int, int] = {}  # the first leaf that has this batch size
    for number, (leaf, axis) in enumerate(zip(leaves, axes, strict=True)):
        if axis is not None:
            _check_axis("in_axes", axis, leaf.shape, functools.partial(name, number))
            first.setdefault(leaf.shape[axis], number)
    known = set(first) if axis_size is None else {*first, axis_size}
    if len(known) == 1:
        return known.pop()
    if not known:
        raise ValueError(
            "vmap: nothing is mapped; give an argument an axis in in_axes, or pass axis_size"
        )
    found = [f"{size} by {name(i)} of shape {leaves[i].shape}" for size, i in first.items()]
    if axis_size is not None:
        found.append(f"{axis_size} by axis_size")
    raise ValueError("vmap: batch sizes disagree: " + "; ".join(found))


def _check_axis(option: str, axis: Any, shape: tuple[int, ...], of: Callable[[], str]) -> None:
    if not isinstance(axis, int) or isinstance(axis, bool):
        raise TypeError(f"vmap: {option} holds ints and None, got {axis!r}")
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"vmap: {option} is {axis}, but {of()} has shape {shape} and no such axis")


def _unbatch(out: Any, axis: int | None, trace: BatchTrace) -> Tensor:
    """A result of the function with the batch moved to `axis`."""
    out = asarray(out)
    if isinstance(out, BatchTracer) and out.trace is trace:
        if axis is None:
            raise ValueError(
                f"vmap: out_axes is None for a result of {out.aval} that depends on the batch"
            )
        whole = out.value
    elif axis is None:
        return out
    else:
        whole = broadcast_to(out, (trace.size, *out.shape))
    _check_axis("out_axes", axis, whole.shape, lambda: "a result with its batch")
    return _move_axis(whole, 0, axis)


def _move_axis(x: Tensor, source: int, destination: int) -> Tensor:
    return x if source == destination else moveaxis(x, source, destination)
