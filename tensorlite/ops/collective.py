"""Collectives: operations whose results depend on the tensors of all ranks.

Every rank must run the same ones in the same order. Within a jitted function they are equations, so
that a compiler can start them early and wait for them late.

A derivative is that of the sum, over all ranks, of what each of them differentiates: the gradient
on a rank says how that total changes with the rank's own argument. So the derivative of a sum over
ranks is the sum over ranks of the cotangents, and those of `all_gather` and `reduce_scatter` are
each other.

A world of one needs no communication: the functions then bind nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import dtypes
from ..communication import exchange, world
from ..core import Aval, Primitive, Tensor, bind, tracing_graph
from .creation import asarray, cast
from .shape import moveaxis, reshape

OPS = ("sum", "mean", "max", "min")
WIRES = ("float16", "bfloat16")


def all_reduce(x: Any, op: str = "sum", wire: str | None = None) -> Tensor:
    """The reduction of `x` over all ranks, on all of them.

    Args:
        op: "sum", "mean", "max" or "min". Equal extrema share the gradient.
        wire: "float16" or "bfloat16": what a float32 `x` may be rounded to where it travels. Its
            cotangent travels as it is.

    Returns:
        the shape and dtype of `x`.

    Raises:
        ValueError: there is no such op or wire.
        TypeError: it makes no sense for the dtype.
    """
    x, (size, bucket_bytes) = asarray(x), world()
    params = {"op": op, "size": size, "bucket_bytes": bucket_bytes, "wire": wire}
    all_reduce_p.abstract(x.aval, **params)
    return x if size == 1 else bind(all_reduce_p, x, **params)


def all_gather(x: Any) -> Tensor:
    """The tensors of all ranks, stacked along a new first axis in the order of ranks."""
    x, size = asarray(x), world().size
    return reshape(x, (1, *x.shape)) if size == 1 else bind(all_gather_p, x, size=size)


def reduce_scatter(x: Any, op: str = "sum") -> Tensor:
    """This rank's part of the reduction of `x` over all ranks: the `rank`-th of `size` equal parts
    of its first axis.

    Args:
        x: (n, ...), where the number of ranks divides n.
        op: as in `all_reduce`.

    Returns:
        (n / size, ...), of the dtype of `x`.

    Raises:
        ValueError: there is no such op, or `x` cannot be cut.
        TypeError: the op makes no sense for the dtype.
    """
    x, size = asarray(x), world().size
    reduce_scatter_p.abstract(x.aval, op=op, size=size)
    return x if size == 1 else bind(reduce_scatter_p, x, op=op, size=size)


_counted: contextvars.ContextVar[Tensor | None] = contextvars.ContextVar("counted", default=None)


@contextlib.contextmanager
def counting(live: Tensor) -> Iterator[None]:
    """Within the block, what this rank computes belongs to the global batch only if `live`, a bool
    without dimensions, is true: a rank for which no row is left still has to compute something."""
    token = _counted.set(live)
    try:
        yield
    finally:
        _counted.reset(token)


def counted() -> Tensor:
    """Whether this rank's rows belong to the global batch."""
    live = _counted.get()
    return asarray(True) if live is None else live


def is_traced(*leaves: Any) -> bool:
    """Whether a collective of these is part of what a transform sees, rather than to run now."""
    return tracing_graph() is not None or any(
        isinstance(x, Tensor) and x.trace is not None for x in leaves
    )


def _check(name: str, op: str, dtype: np.dtype[Any]) -> None:
    if op not in OPS:
        raise ValueError(f"{name}: there is no op {op!r}; choose one of {', '.join(OPS)}")
    if (op == "mean" and not dtypes.is_float(dtype)) or (op == "sum" and dtype.kind == "b"):
        raise TypeError(f"{name}: there is no {op} of {dtype}; convert with astype first")


def _check_wire(wire: str, dtype: np.dtype[Any]) -> None:
    if wire not in WIRES:
        raise ValueError(
            f"all_reduce: wire must be None or one of {', '.join(WIRES)}, got {wire!r}"
        )
    if dtype != np.float32:
        raise TypeError(
            f"all_reduce: wire={wire!r} is for float32 tensors, not {dtype}; leave it out, or "
            "convert with astype first"
        )


# ---- all_reduce ----------------------------------------------------------------------------------

all_reduce_p = Primitive("all_reduce")


@all_reduce_p.shape
def _(x: Aval, *, op: str, size: int, bucket_bytes: int | None, wire: str | None) -> Aval:
    # `bucket_bytes` is for the compiler, which packs several of these into one.
    _check("all_reduce", op, x.dtype)
    if wire is not None:
        _check_wire(wire, x.dtype)
    return x


@all_reduce_p.numpy
def _(
    x: np.ndarray, *, op: str, size: int, bucket_bytes: int | None, wire: str | None
) -> np.ndarray:
    own = np.array(x, order="C")
    return exchange("all_reduce", size, lambda c: c.all_reduce_(own, op, wire=wire))


@all_reduce_p.vjp
def _(
    y: Tensor, x: Tensor, *, op: str, size: int, bucket_bytes: int | None, wire: str | None
) -> Any:
    def reduced(g: Tensor, by: str = op) -> Tensor:
        return bind(all_reduce_p, g, op=by, size=size, bucket_bytes=bucket_bytes, wire=None)

    if op in ("sum", "mean"):
        return reduced
    extrema = y if wire is None else reduced(x)  # what was rounded may equal none of them
    return _to_extrema(x, extrema, lambda g: reduced(g, "sum"), lambda hits: reduced(hits, "sum"))


@all_reduce_p.batch
def _(args: list[Tensor], batched: list[bool], **params: Any) -> Tensor:
    return bind(all_reduce_p, args[0], **params)


def _to_extrema(x: Tensor, extrema: Tensor, spread: Any, count: Any) -> Any:
    """The pull of an extremum over ranks: `spread` gives every rank the whole cotangent, `count`
    sums over ranks."""

    def pull(g: Tensor) -> Tensor:
        hits = cast(x == extrema, x.dtype)
        return hits * (spread(g) / count(hits))

    return pull


# ---- all_gather and reduce_scatter ---------------------------------------------------------------

all_gather_p = Primitive("all_gather")
reduce_scatter_p = Primitive("reduce_scatter")


@all_gather_p.shape
def _(x: Aval, *, size: int) -> Aval:
    return Aval((size, *x.shape), x.dtype)


@all_gather_p.numpy
def _(x: np.ndarray, *, size: int) -> np.ndarray:
    return exchange("all_gather", size, lambda c: c.all_gather(np.asarray(x, order="C")))


@all_gather_p.vjp
def _(y: Tensor, x: Tensor, *, size: int) -> Any:
    return lambda g: reshape(bind(reduce_scatter_p, g, op="sum", size=size), x.shape)


@all_gather_p.batch
def _(args: list[Tensor], batched: list[bool], *, size: int) -> Tensor:
    return moveaxis(bind(all_gather_p, args[0], size=size), 0, 1)


@reduce_scatter_p.shape
def _(x: Aval, *, op: str, size: int) -> Aval:
    _check("reduce_scatter", op, x.dtype)
    if not x.shape or x.shape[0] % size:
        raise ValueError(
            f"reduce_scatter: {x} cannot be cut along its first axis into {size} equal parts, one "
            "for each rank; pad it, or use all_reduce"
        )
    return Aval((x.shape[0] // size, *x.shape[1:]), x.dtype)


@reduce_scatter_p.numpy
def _(x: np.ndarray, *, op: str, size: int) -> np.ndarray:
    return exchange(
        "reduce_scatter", size, lambda c: c.reduce_scatter_(np.array(x, order="C"), op).copy()
    )


@reduce_scatter_p.vjp
def _(y: Tensor, x: Tensor, *, op: str, size: int) -> Any:
    def whole(part: Tensor) -> Tensor:
        return reshape(bind(all_gather_p, part, size=size), x.shape)

    if op == "sum":
        return whole
    if op == "mean":
        return lambda g: whole(g) / size

    def summed(hits: Tensor) -> Tensor:
        return whole(bind(reduce_scatter_p, hits, op="sum", size=size))

    return _to_extrema(x, whole(y), whole, summed)


@reduce_scatter_p.batch
def _(args: list[Tensor], batched: list[bool], **params: Any) -> Tensor:
    return moveaxis(bind(reduce_scatter_p, moveaxis(args[0], 0, 1), **params), 0, 1)
