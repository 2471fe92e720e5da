"""Collectives on NumPy arrays over a ring of ranks, in which each rank sends to the next and
receives from the previous.

A collective is written as a generator: `yield buffer` means "go on when the previous rank has
filled this buffer", and whatever is appended to `sends` meanwhile goes to the next rank. The
transport does both at the same time.

Large arrays are cut into one chunk per rank. In N - 1 steps each chunk travels once around the ring
while every rank adds its own part (reduce-scatter), and in N - 1 more the finished chunks travel to
everyone (all-gather): 2 (N - 1) / N of the bytes per rank, whatever N (Patarasuk and Yuan, 2009).
Chunks move in segments, so that one segment is reduced while the next arrives. Small arrays are
gathered whole and reduced in rank order, for that takes half as many steps. Both orders are fixed
by rank and size alone, and a chunk is
finished by one rank whose bytes all others receive: results are bit-identical on every rank and
from run to run."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .agreement import HEADER, Leaf, Signature, difference, leaf_of, signature, text_length
from .control import Control
from .errors import (
    DeadlineError,
    DistributedError,
    Failure,
    MismatchError,
    failure_of,
    peer_error,
)
from .reduction import Array, Reduction, check_dtype, reduction
from .transport import ConnectionLost, Transport, TransportError

SEGMENT_BYTES = 1024 * 1024
SMALL_BYTES = 32 * 1024  # arrays up to this size are gathered and reduced in rank order
NEWS_SECONDS = 2.0  # after a connection ended, how long to wait for the news that explains it

Program = Callable[[deque[memoryview]], Iterator[memoryview]]


class Ring:
    """The collectives of one worker. Every rank must make the same calls in the same order; one
    thread at a time.

    All methods raise `PeerError` when another rank fails or leaves, `MismatchError` when the ranks
    disagree about the call, and `DeadlineError` when nothing moves for `timeout` seconds. After
    such an error the ring is of no use any more.

    Attributes:
        rank, size: this worker's number, and how many there are.
        timeout: seconds without any progress after which a collective gives up.
    """

    def __init__(
        self,
        rank: int,
        hosts: Sequence[str],
        transport: Transport | None = None,
        control: Control | None = None,
        timeout: float = 300.0,
    ):
        self.rank = rank
        self.size = len(hosts)
        self.timeout = timeout
        self._hosts = hosts
        self._transport = transport
        self._control = control
        self._lock = threading.Lock()
        self._calls = 0
        self._scratch: Array = np.empty(SEGMENT_BYTES if self.size > 1 else 0, np.uint8)
        self._bucket: Array = np.empty(0, np.uint8)

    def all_reduce_(self, array: Array, op: str = "sum", *, leaves: Sequence[Leaf] = ()) -> Array:
        """Replace `array` by its reduction over all ranks, in place, and return it.

        Args:
            array: C-contiguous and writeable; same shape and dtype on every rank.
            op: "sum", "mean" (floats), "max" or "min".
            leaves: what the ranks should compare and quote instead of this array's shape and dtype.
        """
        _check_in_place(array, "all_reduce_")
        how = reduction(op, array.dtype, "all_reduce")
        if self.size == 1:
            return array
        work = array if how.work_dtype == array.dtype else array.astype(how.work_dtype)
        flat = work.reshape(-1)
        sig = signature(f"all_reduce(op={op!r})", tuple(leaves) or (leaf_of(array),))
        if flat.nbytes <= SMALL_BYTES:
            self._reduce_small(flat, how, sig)
        else:
            chunks = _chunks(flat, self.size)
            self._run(sig, lambda sends: self._reduce_then_gather(sends, chunks, how))
        if work is not array:
            array[...] = work
        return array

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
        total = sum(array.size for array in arrays)
        if self._bucket.nbytes < total * how.work_dtype.itemsize:
            self._bucket = np.empty(total * how.work_dtype.itemsize, np.uint8)
        bucket = self._bucket[: total * how.work_dtype.itemsize].view(how.work_dtype)
        parts = np.split(bucket, np.cumsum([array.size for array in arrays])[:-1])
        for part, array in zip(parts, arrays, strict=True):
            part.reshape(array.shape)[...] = array
        self.all_reduce_(bucket, op, leaves=[leaf_of(array) for array in arrays])
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
        work = array if how.work_dtype == array.dtype else array.astype(how.work_dtype)
        sig = signature(f"reduce_scatter(op={op!r})", tuple(leaves) or (leaf_of(array),))
        chunks = _chunks(work.reshape(-1), self.size)
        if array.size == 0:
            self._agree(sig)
        else:
            self._run(sig, lambda sends: self._reduce_scatter(sends, chunks, how))
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
            self._gather(out, sig)
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
            # Bytes run one way here, so the root would learn of a disagreement too late: agree
            # first.
            self._agree(sig)
            self._run(sig, lambda sends: self._pass_on(sends, array.reshape(-1), root))
        return array

    def barrier(self) -> None:
        """Wait until every rank has called it."""
        if self.size > 1:
            self._agree(signature("barrier()", ()))

    def close(self) -> None:
        """Close the connections to the neighbours. What they still wait for will not come."""
        if self._transport is not None:
            self._transport.interrupt()
            self._transport.close()

    # --- The collectives as programs

    def _reduce_small(self, flat: Array, how: Reduction, sig: Signature) -> None:
        everyone = np.empty((self.size, *flat.shape), flat.dtype)
        everyone[self.rank] = flat
        self._gather(everyone, sig)
        flat[...] = everyone[0]
        for contribution in everyone[1:]:
            how.ufunc(flat, contribution, out=flat)
        how.finish(flat, self.size)

    def _gather(self, out: Array, sig: Signature) -> None:
        chunks = list(out.reshape(self.size, -1))
        if out.size == 0:
            self._agree(sig)
        else:
            self._run(sig, lambda sends: self._all_gather(sends, chunks))

    def _agree(self, sig: Signature) -> None:
        """Pass a byte around, so that every rank knows that all of them are here and mean the
        same."""
        tokens = list(np.zeros((self.size, 1), np.uint8))
        self._run(sig, lambda sends: self._all_gather(sends, tokens))

    def _reduce_then_gather(
        self, sends: deque[memoryview], chunks: list[Array], how: Reduction
    ) -> Iterator[memoryview]:
        yield from self._reduce_scatter(sends, chunks, how, then_send=True)
        yield from self._all_gather(sends, chunks, already_sent=True)

    def _reduce_scatter(
        self, sends: deque[memoryview], chunks: list[Array], how: Reduction, then_send: bool = False
    ) -> Iterator[memoryview]:
        """Leave the reduction of chunk `rank` in place; `then_send` starts its way to the other
        ranks."""
        sends.extend(map(_bytes, _segments(chunks[self.rank - 1])))
        for step in range(self.size - 1):
            last = step == self.size - 2
            for mine in _segments(chunks[(self.rank - 2 - step) % self.size]):
                received = self._scratch[: mine.nbytes].view(mine.dtype)
                yield _bytes(received)
                how.accumulate(received, into=mine)
                if last:
                    how.finish(mine, self.size)
                if then_send or not last:
                    sends.append(_bytes(mine))

    def _all_gather(
        self, sends: deque[memoryview], chunks: list[Array], already_sent: bool = False
    ) -> Iterator[memoryview]:
        if not already_sent:
            sends.extend(map(_bytes, _segments(chunks[self.rank])))
        for step in range(self.size - 1):
            for segment in _segments(chunks[(self.rank - 1 - step) % self.size]):
                yield _bytes(segment)
                if step < self.size - 2:
                    sends.append(_bytes(segment))

    def _pass_on(self, sends: deque[memoryview], flat: Array, root: int) -> Iterator[memoryview]:
        if self.rank == root:
            sends.extend(map(_bytes, _segments(flat)))
            return
        for segment in _segments(flat):
            yield _bytes(segment)
            if (self.rank + 1) % self.size != root:
                sends.append(_bytes(segment))

    # --- Running a program, and what can go wrong

    def _run(self, sig: Signature, program: Program) -> None:
        assert self._transport is not None and self._control is not None
        with self._lock:
            if self._control.failure is not None:
                raise peer_error(self._control.failure)
            sends: deque[memoryview] = deque()
            try:
                self._transport.exchange(sends, self._checked(sig, program, sends), self.timeout)
            except TransportError as error:
                raise self._explain(error, sig) from None
            except BaseException as error:
                # Half a collective is in the streams: nobody can use them any more.
                self._control.abort(failure_of(error, self.rank, self._hosts[self.rank]))
                raise

    def _checked(
        self, sig: Signature, program: Program, sends: deque[memoryview]
    ) -> Iterator[memoryview]:
        """The program, once the header of the previous rank has shown that it is about to run the
        same."""
        self._calls += 1
        sends.append(memoryview(sig.header(self._calls)))
        body = program(sends)
        first = next(body, None)  # the program's first sends go out with the header
        header = bytearray(HEADER.size)
        yield memoryview(header)
        previous = (self.rank - 1) % self.size
        text = bytearray(text_length(header, previous))
        yield memoryview(text)
        problem = difference(sig, self.rank, header, text, previous)
        if problem is not None:
            host = self._hosts[self.rank]
            raise MismatchError(
                problem, Failure(self.rank, host, "mismatch", "MismatchError", problem)
            )
        if first is not None:
            yield first
            yield from body

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
        else:
            problem = DeadlineError(
                f"{sig.call}: {peer}: {error}. It is stuck, cut off, or far behind this rank "
                f"({self.rank}); see what it is doing, or allow more time with timeout=..."
            )
            failure = failure_of(problem, self.rank, self._hosts[self.rank])
        self._control.abort(failure)
        return problem


def _chunks(flat: Array, size: int) -> list[Array]:
    """`size` parts of a flat array, as equal as can be; the bounds depend on the length and on
    `size` only."""
    bounds = [flat.size * part // size for part in range(size + 1)]
    return [flat[low:high] for low, high in itertools.pairwise(bounds)]


def _segments(flat: Array) -> Iterator[Array]:
    step = SEGMENT_BYTES // flat.itemsize
    return (flat[start : start + step] for start in range(0, flat.size, step))


def _bytes(array: Array) -> memoryview:
    return array.view(np.uint8).data  # by way of uint8, since bfloat16 has no buffer format


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
