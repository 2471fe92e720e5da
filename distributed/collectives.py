"""The collectives of the public API: whole trees of tensors, among the workers of the current
world.

Leaves of one dtype are packed into one flat array, so that a model of a hundred small tensors goes
around the ring once. In a profile (`tl.profile`) each such trip is a slice that says how many bytes
this worker brought. Each function flattens, packs, calls the ring, and hands back a tree of the
same structure whose leaves are tensors on the devices of the leaves that came in (NumPy arrays and
numbers count as leaves too, and come back on the worker's device).

Inside a function that `tl.jit`, `tl.grad` or `tl.vmap` transforms, the same functions make one
equation of each leaf (`tensorlite.collective`), which is differentiated and compiled: a jitted step
packs them in buckets and sends these while it computes the rest.

Every worker must call the same functions in the same order, on trees of the same structure, shapes
and dtypes. Where they do not, all of them raise `MismatchError`; `PeerError` says that another
worker failed, `DeadlineError` that one is stuck."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import collective

from .agreement import Leaf, leaf_of
from .errors import DistributedError
from .reduction import Array, check_dtype, reduction, wire_dtype
from .worker import Worker, current_worker


def all_reduce(tree: Any, op: str = "sum", wire: str | None = None) -> Any:
    """Reduce every leaf over all workers; all of them get the same bits.

    Args:
        tree: any pytree; the same structure, shapes and dtypes on every worker.
        op: "sum", "mean" (float and complex leaves only), "max" or "min". For bool leaves max is
            "or" and min is "and".
        wire: "float16" or "bfloat16": what the leaves, all float32, are rounded to where they
            travel over a connection. They are added in float32. Workers that share memory exchange
            float32, and what is packed to no more than 32 KiB travels as it is.

    Returns:
        A tree like `tree`. Integer sums wrap around; sums of float16 and bfloat16 are computed in
        float32.

    Raises:
        ValueError: there is no such op or wire.
        TypeError: a leaf's dtype does not go with `op` or `wire`.
        MismatchError, PeerError, DeadlineError: see the top of this file.

    Example:
        >>> def main(worker):
        ...     return dist.all_reduce({"a": tl.ones(2) * worker.rank}, op="mean")
        >>> print(dist.run_local(main, num_workers=2)[0]["a"])
        [0.5 0.5]
    """
    if _is_traced(tree):
        return _traced(tree, "all_reduce", lambda x: collective.all_reduce(x, op, wire), op, wire)
    packed = _Packed(tree, "all_reduce", op, wire)
    for group in packed.groups():
        flat = packed.pack(group)
        with packed.span(flat.nbytes, op=op):
            _wait_for(lambda ring, x=flat: ring.all_reduce_(x, op, wire=wire, leaves=packed.leaves))
        for index, part in zip(group, packed.split(group, flat), strict=True):
            packed.results[index] = part.reshape(packed.arrays[index].shape)
    return packed.tree()


def reduce_scatter(tree: Any, op: str = "sum") -> Any:
    """Reduce every leaf over all workers, and keep this worker's part of the first axis.

    Args:
        tree: leaves of shape `(n, ...)`, where the number of workers divides `n`.
        op: as in `all_reduce`.

    Returns:
        Leaves of shape `(n / size, ...)`: rows `rank * n / size` and following of what `all_reduce`
        would give.

    Raises:
        ValueError: a leaf cannot be cut into equal parts.
        TypeError, MismatchError, PeerError, DeadlineError: as in `all_reduce`.

    Example:
        >>> def main(worker):
        ...     return dist.reduce_scatter(tl.arange(4))
        >>> for part in dist.run_local(main, num_workers=2):
        ...     print(part)
        [0 2]
        [4 6]
    """
    if _is_traced(tree):
        return _traced(tree, "reduce_scatter", lambda x: collective.reduce_scatter(x, op), op)
    packed = _Packed(tree, "reduce_scatter", op)
    size = packed.worker.size
    for name, _, shape in packed.leaves:
        if not shape or shape[0] % size:
            what = f"leaf {name!r}" if name else "an array"
            raise ValueError(
                f"reduce_scatter: {what} of shape {shape} cannot be cut along its first "
                f"axis into {size} equal parts, one for each worker; pad it, or use all_reduce"
            )
    for group in packed.groups():
        blocks = [packed.arrays[index].reshape(size, -1) for index in group]
        flat = np.concatenate(blocks, axis=1).reshape(-1)
        with packed.span(flat.nbytes, op=op):
            mine = _wait_for(lambda ring, x=flat: ring.reduce_scatter_(x, op, leaves=packed.leaves))
        widths = [block.shape[1] for block in blocks]
        for index, part in zip(group, _split(mine, widths), strict=True):
            rows, *rest = packed.arrays[index].shape
            packed.results[index] = part.reshape(rows // size, *rest)
    return packed.tree()


def all_gather(tree: Any, *, tiled: bool = False) -> Any:
    """Every worker's leaves, in rank order.

    Args:
        tiled: False stacks them along a new first axis; True joins them along the first axis that
            they have, which undoes `reduce_scatter`.

    Returns:
        Leaves of shape `(size, *shape)`, or `(size * shape[0], *shape[1:])` with `tiled`.

    Raises:
        ValueError: `tiled`, and a leaf is a scalar.
        MismatchError, PeerError, DeadlineError: as in `all_reduce`.

    Example:
        >>> def main(worker):
        ...     return dist.all_gather(tl.asarray(worker.rank))
        >>> print(dist.run_local(main, num_workers=3)[0])
        [0 1 2]
    """
    if _is_traced(tree):
        return _traced(tree, "all_gather", _joined if tiled else collective.all_gather)
    packed = _Packed(tree, "all_gather")
    size = packed.worker.size
    if tiled and any(not shape for _, _, shape in packed.leaves):
        raise ValueError("all_gather: a scalar has no axis to join along; use tiled=False")
    for group in packed.groups():
        flat = packed.pack(group)
        with packed.span(flat.nbytes):
            everyone = _wait_for(lambda ring, x=flat: ring.all_gather(x, leaves=packed.leaves))
        widths = [packed.arrays[index].size for index in group]
        columns = np.split(everyone, np.cumsum(widths)[:-1], axis=1)
        for index, column in zip(group, columns, strict=True):
            shape = packed.arrays[index].shape
            joined = (size * shape[0], *shape[1:]) if tiled else (size, *shape)
            packed.results[index] = column.reshape(joined)
    return packed.tree()


def broadcast(tree: Any, root: int = 0) -> Any:
    """The leaves of rank `root`, on every worker.

    Raises:
        ValueError: there is no such rank.
        MismatchError, PeerError, DeadlineError: as in `all_reduce`.

    Example:
        >>> def main(worker):
        ...     return int(dist.broadcast(tl.asarray(worker.rank), root=2))
        >>> dist.run_local(main, num_workers=3)
        [2, 2, 2]
    """
    if _is_traced(tree):
        if not 0 <= root < current_worker().size:
            raise ValueError(f"broadcast: there is no rank {root!r} to be root")
        return _traced(tree, "broadcast", lambda x: collective.all_gather(x)[root])
    packed = _Packed(tree, "broadcast")
    for group in packed.groups():
        flat = packed.pack(group)
        with packed.span(flat.nbytes, root=root):
            packed.worker.ring.broadcast_(flat, root, leaves=packed.leaves)
        for index, part in zip(group, packed.split(group, flat), strict=True):
            packed.results[index] = part.reshape(packed.arrays[index].shape)
    return packed.tree()


def barrier() -> None:
    """Wait until every worker has called it.

    Raises:
        DistributedError: it is called while a function is traced, where it would do nothing later.
    """
    worker = current_worker()
    if collective.is_traced():
        raise DistributedError(
            "barrier: a jitted function has no place for it, since it has no result that anything "
            "could wait for; call it before or after"
        )
    with tl.profiler.span("barrier", workers=worker.size):
        worker.ring.barrier()


def _wait_for(collective: Callable[..., Any]) -> Any:
    """Run `collective` of the ring behind those that are under way; the time is counted as exposed
    communication."""
    return tl.communication.channel().call(collective)


def _is_traced(tree: Any) -> bool:
    return collective.is_traced(*tl.tree.leaves(tree))


def _traced(
    tree: Any,
    caller: str,
    function: Callable[[tl.Tensor], tl.Tensor],
    op: str | None = None,
    wire: str | None = None,
) -> Any:
    """`function` of each leaf, once it is clear that there is a world for it."""
    worker = current_worker()
    if tl.communication.world().size != worker.size:
        raise DistributedError(
            f"{caller}: Trainer(shards=...) computes each part of a batch by itself, without the "
            "other workers; leave shards out to communicate within the loss"
        )
    for leaf, name in zip(tl.tree.leaves(tree), tl.tree.paths(tree), strict=True):
        _check_leaf(tl.asarray(leaf).dtype, name, caller, op, wire)
    return tl.tree.map(lambda leaf: function(tl.asarray(leaf)), tree)


def _check_leaf(
    dtype: np.dtype[Any], name: str, caller: str, op: str | None, wire: str | None
) -> None:
    where = f"{caller}: leaf {name!r}" if name else caller
    if op is None:
        check_dtype(dtype, where)
    else:
        reduction(op, dtype, where)
    wire_dtype(wire, dtype, where)


def _joined(x: tl.Tensor) -> tl.Tensor:
    if not x.shape:
        raise ValueError("all_gather: a scalar has no axis to join along; use tiled=False")
    everyone = collective.all_gather(x)
    return tl.reshape(everyone, (-1, *x.shape[1:]))


class _Packed:
    """A tree taken apart: NumPy arrays in, results in the same order out."""

    def __init__(self, tree: Any, caller: str, op: str | None = None, wire: str | None = None):
        self.worker: Worker = current_worker()
        self._caller = caller
        leaves, self._treedef = tl.tree.flatten(tree)
        self._devices = [
            leaf.device if isinstance(leaf, tl.Tensor) else self.worker.device for leaf in leaves
        ]
        self.arrays: list[Array] = [np.asarray(leaf) for leaf in leaves]
        self.results: list[Array] = list(self.arrays)
        names = tl.tree.paths(tree)
        self.leaves: list[Leaf] = [
            leaf_of(a, name) for a, name in zip(self.arrays, names, strict=True)
        ]
        for array, name in zip(self.arrays, names, strict=True):
            _check_leaf(array.dtype, name, caller, op, wire)
        if not leaves:
            # Nothing to send, but a worker that does bring leaves must be noticed.
            self.worker.ring.barrier()

    def groups(self) -> Iterator[list[int]]:
        """Positions of the leaves of each dtype, in the order in which the dtypes first appear."""
        by_dtype: dict[str, list[int]] = {}
        for index, array in enumerate(self.arrays):
            by_dtype.setdefault(array.dtype.name, []).append(index)
        return iter(by_dtype.values())

    def span(self, nbytes: int, **details: Any) -> AbstractContextManager[None]:
        """The slice of a profile in which a group travels; `nbytes` are this worker's."""
        details |= {"bytes": nbytes, "workers": self.worker.size}
        return tl.profiler.span(self._caller, **details)

    def pack(self, group: list[int]) -> Array:
        """A new flat array of the group's leaves, one after the other."""
        return np.concatenate([self.arrays[index].reshape(-1) for index in group])

    def split(self, group: list[int], flat: Array) -> list[Array]:
        return _split(flat, [self.arrays[index].size for index in group])

    def tree(self) -> Any:
        """The results as tensors, in the structure of the tree."""
        tensors = []
        for result, device in zip(self.results, self._devices, strict=True):
            # Nobody else has the array, so the tensor may keep it.
            tensors.append(tl.asarray(result, device=device, copy=False))
        return tl.tree.unflatten(self._treedef, tensors)


def _split(flat: Array, widths: list[int]) -> list[Array]:
    return np.split(flat, np.cumsum(widths)[:-1])
