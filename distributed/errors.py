"""What can go wrong among workers, and the report in which a failure travels.

A failure starts in one rank and is felt by all of them. The rank where it starts writes a
`Failure`; the control connections carry it to the other ranks, and the task results carry it to the
driver. So everyone names the same culprit, and nobody reports that a peer closed its connection
when the story is that rank 3 could not read a file."""

from __future__ import annotations

import dataclasses
import json
import traceback
from typing import Any

TEXT_LIMIT = (
    24_000  # characters of a traceback that travel; the end is kept, because it holds the error
)


class DistributedError(RuntimeError):
    """The base of every error that the distributed runtime raises."""


class RendezvousError(DistributedError):
    """The workers could not find or authenticate each other."""


class PeerError(DistributedError):
    """Raised in a worker because another worker failed, died or left early. `failure` says which
    and why."""

    def __init__(self, message: str, failure: Failure | None = None):
        super().__init__(message)
        self.failure = failure


class MismatchError(PeerError):
    """The workers called different collectives, or the same one with other shapes, dtypes or
    leaves."""


class DeadlineError(DistributedError, TimeoutError):
    """Nothing was received from a peer, and nothing could be sent to it, for as long as `timeout`
    allows."""


class SlotsError(DistributedError):
    """The cluster cannot run as many tasks at the same time as there are workers."""


class WorkerError(DistributedError):
    """Raised on the driver: a worker failed.

    Attributes:
        failure: all that is known about it.
        rank, host, partition: where it happened; -1 or "" where Spark did not say.
        error_type: the class of the exception in the worker, such as `"ValueError"`.
        traceback: the worker's own traceback as text, or "" if it left none (a killed process).
    """

    def __init__(self, failure: Failure):
        super().__init__(failure.describe())
        self.failure = failure

    rank = property(lambda self: self.failure.rank)
    host = property(lambda self: self.failure.host)
    partition = property(lambda self: self.failure.partition)
    error_type = property(lambda self: self.failure.error_type)
    traceback = property(lambda self: self.failure.traceback)

    def __reduce__(self) -> Any:
        return WorkerError, (self.failure,)


@dataclasses.dataclass(frozen=True)
class Failure:
    """How a worker failed, in a form that is safe to read from a socket: text and whole numbers.

    Attributes:
        kind: "error" (an exception), "mismatch" (ranks disagree), or "lost" (a process went without
            a word).
        origin: False if the worker only stopped because another one had failed; `cause` is then
            that other failure.
    """

    rank: int
    host: str
    kind: str
    error_type: str
    message: str
    traceback: str = ""
    partition: int = -1
    origin: bool = True
    cause: Failure | None = None

    def describe(self) -> str:
        """One line that names rank, host, partition and error, then the traceback, if there is
        one."""
        partition = f", partition {self.partition}" if self.partition >= 0 else ""
        who = f"rank {self.rank}" if self.rank >= 0 else "a worker"
        where = f" (host {self.host or 'unknown'}{partition})"
        if self.kind == "lost":
            head = f"{who}{where} was lost: {self.message}"
        else:
            head = f"{who}{where} raised {self.error_type}: {self.message}"
        return f"{head}\n\n{self.traceback.rstrip()}" if self.traceback else head

    def headline(self) -> str:
        """The first line of `describe`."""
        return dataclasses.replace(self, traceback="").describe().split("\n", 1)[0]

    def root(self) -> Failure:
        """The failure that this one follows from; itself if it is an origin."""
        return self.cause if self.cause is not None else self

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Failure:
        """Raises `ValueError` when `text` is not a failure."""
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("a failure must be a JSON object")
        cause = fields.pop("cause", None)
        types = {"rank": int, "partition": int, "origin": bool}
        if any(not isinstance(value, types.get(name, str)) for name, value in fields.items()):
            raise ValueError("a failure has a field of a wrong type")
        if isinstance(cause, dict) and cause.get("cause"):
            raise ValueError("a failure's cause has no cause of its own")
        try:
            return cls(**fields, cause=cls.from_json(json.dumps(cause)) if cause else None)
        except TypeError as error:
            raise ValueError(f"not a failure: {error}") from None


def failure_of(error: BaseException, rank: int, host: str, partition: int = -1) -> Failure:
    """The report of an exception that was caught in this worker."""
    cause = error.failure if isinstance(error, PeerError) else None
    if cause is not None and cause.rank == rank:
        cause = None  # this rank was the first to notice, so nobody else is to blame
    return Failure(
        rank=rank,
        host=host,
        kind="mismatch" if isinstance(error, MismatchError) else "error",
        error_type=type(error).__name__,
        message=_shorten(str(error)),
        traceback=_shorten("".join(traceback.format_exception(error))),
        partition=partition,
        origin=cause is None,
        cause=cause,
    )


def peer_error(failure: Failure) -> PeerError:
    """The exception that a worker raises when `failure` reaches it from another rank."""
    if failure.kind == "mismatch":
        return MismatchError(failure.message, failure)
    text = failure.describe().replace("\n", "\n    ")
    return PeerError(f"stopped, because {text}", failure)


def first_cause(failures: list[Failure]) -> Failure:
    """Which of the failures that came back from several ranks is the one to raise."""
    named = [failure.cause for failure in failures if failure.cause is not None]
    named_ranks = {failure.rank for failure in named}

    def remoteness(failure: Failure) -> tuple[bool, bool, int]:
        # Disagreement and silence may themselves follow from an error elsewhere; nothing else does.
        symptom = failure.error_type in ("MismatchError", "DeadlineError")
        return symptom, failure.rank not in named_ranks, failure.rank

    origins = [failure for failure in failures if failure.origin]
    return min(origins or named or failures, key=remoteness)


def _shorten(text: str) -> str:
    if len(text) <= TEXT_LIMIT:
        return text
    return f"[... the first {len(text) - TEXT_LIMIT} characters are left out]\n{text[-TEXT_LIMIT:]}"
