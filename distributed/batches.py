"""Which rows come at which step, and which worker computes them.

Two kinds of data are trained on. Of arrays that every worker has, a global batch is a list of row
numbers in an order that all compute for themselves, of which each takes its share in rank order. Of
a DataFrame each worker has rows of its own, and gives a proportional part of them to each step: all
workers go through theirs exactly once in an epoch, however unequal they are."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Iterator

import numpy as np

from tensorlite.data import permutation

from .balance import Parts
from .steps import Job, Share
from .worker import Worker


@dataclasses.dataclass(frozen=True)
class Batch:
    """A global batch, as one worker sees it.

    Attributes:
        size: its rows, of all workers.
        shares: this worker's, in order.
        rows: numbers that name the rows in messages.
    """

    epoch: int
    size: int
    shares: list[Share]
    rows: np.ndarray


def batches(job: Job, worker: Worker, parts: Parts, start: int) -> Iterator[Batch]:
    """The global batches from step `start` to the last, of which this worker gets its part."""
    order, of_epoch = np.empty(0, np.int64), -1
    for step in range(start, job.steps):
        epoch, place = divmod(step, job.steps_per_epoch)
        if epoch != of_epoch:
            order, of_epoch = permutation(_own_rows(job, worker), job.seed, epoch), epoch
        if job.counts is None:
            rows = order[place * job.batch_size : (place + 1) * job.batch_size]
            yield Batch(epoch, len(rows), _shares_of_all(worker, rows, job, parts), rows)
        else:
            yield _own_part(job, worker, job.counts, order, epoch, place)


def gathered(job: Job, coming: Iterator[Batch]) -> Iterator[tuple[Batch, list[list[np.ndarray]]]]:
    """Each batch with the rows of its shares, which a thread copies while the step before it is
    computed."""

    def gather(batch: Batch) -> list[list[np.ndarray]]:
        return [[array[share.rows] for array in job.arrays] for share in batch.shares]

    with concurrent.futures.ThreadPoolExecutor(1, "tensorlite-input") as pool:
        waiting: tuple[Batch, concurrent.futures.Future[list[list[np.ndarray]]]] | None = None
        for batch in coming:
            ahead = batch, pool.submit(gather, batch)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = ahead
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def order_of(job: Job) -> dict[str, str]:
    """What decides which rows come at which step: a run goes on only with the same."""
    order = {
        "rows": str(job.rows),
        "batch_size": str(job.batch_size),
        "drop_last": str(job.drop_last),
        "seed": str(job.seed),
    }
    if job.counts is not None:
        order["rows_of_workers"] = ",".join(map(str, job.counts))
    return order


def _own_rows(job: Job, worker: Worker) -> int:
    return job.rows if job.counts is None else job.counts[worker.rank]


def _shares_of_all(worker: Worker, rows: np.ndarray, job: Job, parts: Parts) -> list[Share]:
    """This worker's shares of the batch, in order: one, unless the job has a number of shards or
    accumulates."""
    if job.shards is not None:
        each = job.shards // worker.size  # both are powers of two
        mine = range(worker.rank * each, (worker.rank + 1) * each)
        return [_shard(rows, number, job.shards, len(rows)) for number in mine]
    # What is computed at a time are neighbours: the workers' parts together do not depend on how
    # many they are.
    shares, count = [], min(job.accumulate, len(rows))
    for number in range(count):
        begin, end = len(rows) * number // count, len(rows) * (number + 1) // count
        first, last = parts.bounds(end - begin)
        shares.append(_share(rows[begin:end], first, last, len(rows), begin))
    return shares


def _own_part(
    job: Job, worker: Worker, counts: tuple[int, ...], order: np.ndarray, epoch: int, place: int
) -> Batch:
    """The batch to which each worker gives its rows from n * place / steps to n * (place + 1) /
    steps: sizes of its part differ by one at most, so that two programs serve a whole run."""
    steps = job.steps_per_epoch
    sizes = [n * (place + 1) // steps - n * place // steps for n in counts]
    own, size = counts[worker.rank], sum(sizes)
    rows = order[own * place // steps : own * (place + 1) // steps]
    first, base = sum(sizes[: worker.rank]), sum(counts[: worker.rank])
    parts = max(1, min(job.accumulate, *sizes))  # the same for all: some models reduce in each
    if not len(rows):
        none = Share(np.zeros(1, np.int64), 0, 0.0, base)
        return Batch(epoch, size, [none] * parts, rows)
    shares = [_shard(rows, number, parts, size, first, base) for number in range(parts)]
    return Batch(epoch, size, shares, rows + base)


def _shard(
    rows: np.ndarray, number: int, count: int, size: int, first: int = 0, base: int = 0
) -> Share:
    """Part `number` of `count` of rows whose first has the place `first` in a batch of `size`."""
    begin, end = len(rows) * number // count, len(rows) * (number + 1) // count
    return _share(rows, begin, end, size, first, base)


def _share(
    rows: np.ndarray, begin: int, end: int, size: int, first: int = 0, base: int = 0
) -> Share:
    """The rows from `begin` to `end` of some whose first has the place `first` in a batch of
    `size`."""
    if end == begin:  # no row is left for it: compute one of weight 0, since a mean needs a row
        return Share(rows[:1], 0, 0.0, base)
    return Share(rows[begin:end], first + begin, (end - begin) / size, base)
