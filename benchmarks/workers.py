"""Frameworks side by side: each in a process of its own, with its own interpreter, taking turns.

The parent starts a `Worker` for every framework and asks it for things, one JSON object a line over
its standard input and output. While one works, the others are stopped (SIGSTOP), so that no thread
pool that spins for more work takes a core from it. A worker is pinned to as many processors as it
may have threads, before it imports anything.

Requests and their answers:

    {"build": function, "arguments": {...}}   builds the step: a function of no arguments that
                                              returns a number or None -> {}
    {"run": n}                                -> {"seconds": [...], "values": [...]} of n steps
    {"profile": n, "path": p}                 the same under the framework's own profiler, which
                                              writes to p
    {"memory": true}                          -> {"base": ..., "peak": ...}: KiB of memory at most
                                              until the framework was imported, and until now

An answer that is {"error": traceback} raises `WorkerError` in the parent.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pathlib
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEERS = pathlib.Path(os.environ.get("TENSORLITE_PEERS", ROOT / ".peers"))
PATIENCE = 900  # seconds for one answer; a compiler that starts cold may need minutes
THREAD_VARIABLES = (
    "TENSORLITE_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}
WITHOUT_GPUS = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class WorkerError(RuntimeError):
    """A worker could not do what it was asked; the message holds its traceback."""


def interpreter(framework: str) -> pathlib.Path | None:
    """The Python that has `framework`: this one for tensorlite and numpy, else that of the
    environment of this name below `PEERS`, or None where there is none."""
    if framework in ("tensorlite", "numpy"):
        return pathlib.Path(sys.executable)
    python = PEERS / framework / "bin" / "python"
    return python if python.exists() else None


# ---- the parent's side ---------------------------------------------------------------------------


class Worker:
    """A process that runs one framework. It sleeps except while it answers.

    Args:
        framework: whose interpreter is used; see `interpreter`.
        module: the module below `benchmarks` that holds the functions to build.
        threads: processors and threads that the worker may use.
        prefix: a command that runs the one behind it, such as `ip netns exec NAME`.
        gpus: whether the framework sees the GPUs of this machine.

    Raises:
        WorkerError: there is no environment for the framework, or the machine has fewer processors.
    """

    def __init__(
        self,
        framework: str,
        module: str,
        threads: int,
        prefix: Sequence[str] = (),
        gpus: bool = False,
    ):
        python = interpreter(framework)
        if python is None:
            raise WorkerError(f"no environment for {framework} below {PEERS}; make one: make peers")
        processors = sorted(os.sched_getaffinity(0))
        if threads > len(processors):
            raise WorkerError(
                f"{threads} threads asked for, and this process may use {len(processors)} "
                "processors; ask for fewer"
            )
        self.framework = framework
        self.started = time.perf_counter()
        self._asked: dict[str, Any] = {}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        pinned = ",".join(map(str, processors[:threads]))
        self._process = subprocess.Popen(
            [*prefix, python, "-m", "benchmarks.workers", module, pinned],
            cwd=ROOT,
            env=_environment(threads, gpus),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Wake the worker, ask, wait for the answer, and put it to sleep again.

        Raises:
            WorkerError: the worker failed, died, or did not answer within `PATIENCE` seconds.
        """
        self.request(**request)
        try:
            return self.answer()
        finally:
            self.sleep()

    def request(self, **request: Any) -> None:
        """Wake the worker and ask; for workers that need each other to answer."""
        assert self._process.stdin is not None
        self._asked = request
        with contextlib.suppress(BrokenPipeError, ProcessLookupError):  # `answer` will tell
            self._signal(signal.SIGCONT)
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for the answer to the last request; raises as `ask` does."""
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], PATIENCE)
        line = stdout.readline() if ready else ""
        if not line:
            raise WorkerError(
                f"{self.framework} gave no answer to {self._asked}:\n{self._last_words()}"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.framework} failed at {self._asked}:\n{answer['error']}")
        return answer

    def sleep(self) -> None:
        """Put the worker to sleep until the next request."""
        with contextlib.suppress(ProcessLookupError):
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)  # it leads a group of its own

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read()[-2000:]


def take_turns(workers: list[Worker], rounds: int, seconds: float = 0.3) -> list[float]:
    """The median seconds of a step of each worker.

    In every round each worker in turn takes as many steps as fit into about `seconds`, and one
    before them that is not counted: its caches are cold, since others have worked meanwhile.
    """
    steps = []
    for worker in workers:
        quick = statistics.median(worker.ask(run=3)["seconds"])
        steps.append(min(max(round(seconds / quick), 2), 1000))
    taken: list[list[float]] = [[] for _ in workers]
    for _ in range(rounds):
        for worker, count, times in zip(workers, steps, taken, strict=True):
            times += worker.ask(run=count + 1)["seconds"][1:]
    return [statistics.median(times) for times in taken]


def warn_if_busy() -> None:
    """Say so if others use this machine: two threads that wait for each other then take turns."""
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: the load of this machine is {load:.1f} already; figures will be off")


def _environment(threads: int, gpus: bool) -> Mapping[str, str]:
    """This process's environment with the number of threads in every variable that is read."""
    counts = dict.fromkeys(THREAD_VARIABLES, str(threads))
    hidden = {} if gpus else WITHOUT_GPUS
    # The workers of PyTorch's compiler are processes that would wait beside the one measured.
    return {**os.environ, **QUIET, **hidden, **counts, "TORCHINDUCTOR_COMPILE_THREADS": "1"}


# ---- the worker's side ---------------------------------------------------------------------------


def serve(module_name: str, processors: set[int]) -> None:
    """Answer requests until standard input ends."""
    # Answers alone go to the parent; what the framework prints goes to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.sched_setaffinity(0, processors)
    step: Callable[[], float | None] = _nothing_built
    module: Any = None
    base = 0
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if module is None:
                module = importlib.import_module(f"benchmarks.{module_name}")
                base = peak_memory()
            if "build" in request:
                step = getattr(module, request["build"])(
                    threads=len(processors), **request["arguments"]
                )
            elif "run" in request:
                answer = run(step, request["run"])
            elif "profile" in request:
                with module.profile(request["path"]):
                    answer = run(step, request["profile"])
            elif "memory" in request:
                answer = {"base": base, "peak": peak_memory()}
            else:
                raise ValueError(f"no such request: {request}")
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def run(step: Callable[[], float | None], times: int) -> dict[str, Any]:
    """Seconds and values of so many steps."""
    seconds, values = [], []
    for _ in range(times):
        start = time.perf_counter()
        value = step()
        seconds.append(time.perf_counter() - start)
        values.append(value)
    return {"seconds": seconds, "values": values}


def peak_memory() -> int:
    """The most memory that this process has had resident, in KiB."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def _nothing_built() -> float | None:
    raise ValueError("there is no step to run yet: send a build request first")


if __name__ == "__main__":
    serve(sys.argv[1], {int(number) for number in sys.argv[2].split(",")})
