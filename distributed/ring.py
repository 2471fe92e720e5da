"""The collectives of one worker on NumPy arrays: what may be asked for, in which order it runs, and
what can go wrong. How the data moves is the business of `algorithms`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .agreement import Leaf, Signature, leaf_of, signature
from .algorithms import Algorithm
from .algorithms.cutting import chunks_of
from .control import Control
from .errors import (
    DeadlineError,
    DistributedError,
    Failure,
    MismatchError,
    failure_of,
    peer_error,
)
from .fabric import Fabric
from .reduction import Array, Reduction, check_dtype, reduction, wire_dtype
from .transport import ConnectionLost, Patience, TransportError, Unreachable
from .turns import Handle, Turns, closed

NEWS_SECONDS = 2.0  # after a connection ended, how long to wait for the news that explains it


class Ring:
    """The collectives of one worker. Every rank must make the same calls in the same order, and
    they run in the order in which they are started, whether the caller waits or not.

    All methods raise `PeerError` when another rank fails or leaves, `MismatchError` when the ranks
    disagree about the call, and `DeadlineError` when nothing moves for `timeout` seconds. After
    such an error the ring is of no use any more.

    Args:
        rank: this worker's number.
        hosts: the addresses of all workers, in rank order.
        fabric: the way to the other workers; a world of one needs none.
        control: where failures are told and heard of.
        patience: how long a collective waits while nothing moves; the fabric has the same.

    Attributes:
        rank, size: this worker's number, and how many there are.
    """

    def __init__(
        self,
        rank: int,
        hosts: Sequence[str],
        fabric: Fabric | None = None,
        control: Control | None = None,
        patience: Patience | None = None,
    ):
        self.rank = rank
        self.size = len(hosts)
        self._patience = patience or Patience(300.0)
        self._hosts = hosts
        self._fabric = fabric
        self._control = control
        self._turns = Turns(f"tensorlite-ring-{rank}")
        self._closing = False
        self._bucket: Array = np.empty(0, np.uint8)

    @property
    def timeout(self) -> float:
        """Seconds without any progress after which a collective gives up. What is set counts for
        the collectives that are started later."""
        return self._patience.seconds

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._patience.seconds = seconds

    def all_reduce_(
        self,
        array: Array,
        op: str = "sum",
        *,
        wire: str | None = None,
        leaves: Sequence[Leaf] = (),
    ) -> Array:
        """Replace `array` by its reduction over all ranks, in place, and return it.

        Args:
            array: C-contiguous and writeable; same shape and dtype on every rank.
            op: "sum", "mean" (floats), "max" or "min".
            wire: "float16" or "bfloat16": what float32 arrays are rounded to where they travel over
                a connection. They are added in float32, and all ranks get the same bits. Ranks that
                share memory exchange float32, and arrays of up to 32 KiB travel as they are.
            leaves: what the ranks should compare and quote instead of this array's shape and dtype.

        Raises:
            TypeError: `op` makes no sense for this dtype, or `wire` is for float32 only.
        """
        run = self._all_reduce(array, op, wire, leaves)
        with self._turns.turn():
            return run()

    def all_reduce_async(
        self,
        array: Array,
        op: str = "sum",
        *,
        wire: str | None = None,
        leaves: Sequence[Leaf] = (),
    ) -> Handle:
        """Start what `all_reduce_` does, and return at once. The array must be left alone until the
        handle is done; `Handle.wait` returns it, or raises what `all_reduce_` would."""
        return self._turns.start(self._all_reduce(array, op, wire, leaves))

    def all_reduce_list_(self, arrays: Sequence[Array], op: str = "sum") -> None:
        """`all_reduce_` of several arrays of one dtype in a single pass. They need not be
        contiguous."""
        if not arrays:
            raise ValueError("all_reduce_list_: got no arrays; pass at least one")
        dtypes = {array.dtype for array in arrays}
        if len(dtypes) > 1:
            names = ", ".join(sorted(map(str, dtypes)))
            raise TypeError(
                f"all_reduce_list_: got arrays of {names}; make one call for each dtype"
            )
        dtype = arrays[0].dtype
        how = reduction(op, dtype, "all_reduce")
        nbytes = sum(array.size for array in arrays) * how.work_dtype.itemsize
        with self._turns.turn():
            if self._bucket.nbytes < nbytes:
                self._bucket = np.empty(nbytes, np.uint8)
            bucket = self._bucket[:nbytes].view(how.work_dtype)
            parts = np.split(bucket, np.cumsum([array.size for array in arrays])[:-1])
            for part, array in zip(parts, arrays, strict=True):
                part.reshape(array.shape)[...] = array
            self._all_reduce(bucket, op, None, [leaf_of(array) for array in arrays])()
            for part, array in zip(parts, arrays, strict=True):
                array[...] = part.reshape(array.shape)

    def reduce_scatter_(
        self, array: Array, op: str = "sum", *, leaves: Sequence[Leaf] = ()
    ) -> Array:
        """Reduce over all ranks, and return this rank's part: the `rank`-th of `size` equal blocks
        along the first axis.

        The result is a view of `array`, the rest of which is overwritten with intermediate values.

        Raises:
            ValueError: the length of the first axis is not a multiple of the number of ranks.
        """
        _check_in_place(array, "reduce_scatter_")
        how = reduction(op, array.dtype, "reduce_scatter")
        if array.ndim == 0 or array.shape[0] % self.size:
            raise ValueError(
                f"reduce_scatter: the first axis of an array of shape {array.shape} cannot be cut "
                f"into {self.size} equal blocks, one for each rank; pad it"
            )
        rows = array.shape[0] // self.size
        mine = array[self.rank * rows : (self.rank + 1) * rows]
        if self.size == 1:
            return mine
        sig = signature(f"reduce_scatter(op={op!r})", tuple(leaves) or (leaf_of(array),))
        with self._turns.turn():
            work = _working(array, how)
            chunks = chunks_of(work.reshape(-1), self.size)
            self._run(sig, array.size, lambda a: a.reduce_scatter(sig, chunks, how))
            if work is not array:
                mine[...] = chunks[self.rank].reshape(mine.shape)
        return mine

    def all_gather(self, array: Array, *, leaves: Sequence[Leaf] = ()) -> Array:
        """The arrays of all ranks, stacked along a new first axis in rank order: shape `(size,
        *array.shape)`."""
        array = np.asarray(array)
        check_dtype(array.dtype, "all_gather")
        out = np.empty((self.size, *array.shape), array.dtype)
        out[self.rank] = array
        if self.size > 1:
            sig = signature("all_gather()", tuple(leaves) or (leaf_of(array),))
            chunks = list(out.reshape(self.size, -1))
            with self._turns.turn():
                self._run(sig, array.size, lambda a: a.all_gather(sig, chunks))
        return out

    def broadcast_(self, array: Array, root: int = 0, *, leaves: Sequence[Leaf] = ()) -> Array:
        """Replace `array` by that of rank `root`, in place, and return it.

        Raises:
            ValueError: there is no rank `root`.
        """
        _check_in_place(array, "broadcast_")
        check_dtype(array.dtype, "broadcast")
        if not 0 <= root < self.size:
            raise ValueError(
                f"broadcast: there is no rank {root!r} to be root; ranks are 0 to {self.size - 1}"
            )
        if self.size > 1:
            sig = signature(f"broadcast(root={root})", tuple(leaves) or (leaf_of(array),))
            flat = array.reshape(-1)
            with self._turns.turn():
                self._run(sig, flat.size, lambda a: a.broadcast(sig, flat, root))
        return array

    def barrier(self) -> None:
        """Wait until every rank has called it."""
        if self.size > 1:
            sig = signature("barrier()", ())
            with self._turns.turn():
                self._run(sig, 0, lambda a: a.agree(sig))

    def close(self) -> None:
        """Close the connections to the other ranks. What they still wait for will not come, and
        what was started here and is not done fails."""
        self._closing = True
        self._turns.close()
        if self._fabric is not None:
            self._fabric.interrupt()
            self._fabric.close()

    def _all_reduce(
        self, array: Array, op: str, wire: str | None, leaves: Sequence[Leaf]
    ) -> Callable[[], Array]:
        """What `all_reduce_` does once its turn has come. Raises what is wrong with arguments."""
        _check_in_place(array, "all_reduce_")
        how = reduction(op, array.dtype, "all_reduce")
        travelling = wire_dtype(wire, array.dtype, "all_reduce")
        options = f"op={op!r}" if wire is None else f"op={op!r}, wire={wire!r}"
        sig = signature(f"all_reduce({options})", tuple(leaves) or (leaf_of(array),))

        def run() -> Array:
            if self.size > 1:
                work = _working(array, how)
                flat = work.reshape(-1)
                self._run(sig, flat.size, lambda a: a.all_reduce(sig, flat, how, travelling))
                if work is not array:
                    array[...] = work
            return array

        return run

    def _run(self, sig: Signature, length: int, call: Callable[[Algorithm], None]) -> None:
        """Make the call; where there is nothing to send, the ranks only agree."""
        assert self._fabric is not None and self._control is not None
        algorithm = self._fabric.algorithm
        if self._control.failure is not None:
            raise peer_error(self._control.failure)
        try:
            if length == 0:
                algorithm.agree(sig)
            else:
                call(algorithm)
        except TransportError as error:
            if self._closing:
                raise closed() from None
            raise self._explain(error, sig) from None
        except BaseException as error:
            # Half a collective is on its way: nobody can go on from there.
            self._control.abort(failure_of(error, self.rank, self._hosts[self.rank]))
            raise

    def _explain(self, error: TransportError, sig: Signature) -> DistributedError:
        """The exception to raise for a broken stream, after telling the other ranks about it."""
        assert self._control is not None
        lost = isinstance(error, ConnectionLost)
        news = self._control.wait_failure(NEWS_SECONDS if lost else 0.0)
        if news is not None:
            return peer_error(news)
        peer = f"rank {error.peer} (host {self._hosts[error.peer]})"
        if lost:
            text = (
                f"{sig.call}: {peer} left the ring while rank {self.rank} waited for it ({error}); "
                "its main returned without calling the same number of collectives as the others"
            )
            failure = Failure(self.rank, self._hosts[self.rank], "mismatch", "MismatchError", text)
            problem: DistributedError = MismatchError(text, failure)
        elif isinstance(error, Unreachable):
            text = (
                f"rank {self.rank} (host {self._hosts[self.rank]}) cannot reach it any more "
                f"({error}), though both may reach rank 0; see to the network between them"
            )
            failure = Failure(error.peer, self._hosts[error.peer], "lost", "PeerError", text)
            problem = peer_error(failure)
        else:
            problem = DeadlineError(
                f"{sig.call}: {peer}: {error}. It is stuck, cut off, or far behind this rank "
                f"({self.rank}); see what it is doing, or allow more time with timeout=..."
            )
            failure = failure_of(problem, self.rank, self._hosts[self.rank])
        self._control.abort(failure)
        return problem


def _working(array: Array, how: Reduction) -> Array:
    """The array in the dtype in which it is reduced: itself, or a copy."""
    return array if how.work_dtype == array.dtype else array.astype(how.work_dtype)


def _check_in_place(array: Any, caller: str) -> None:
    if (
        not isinstance(array, np.ndarray)
        or not array.flags.c_contiguous
        or not array.flags.writeable
    ):
        raise ValueError(
            f"{caller} works in place: it needs a C-contiguous, writeable NumPy array, not this "
            f"{type(array).__name__}; pass numpy.ascontiguousarray(x), or a copy"
        )
