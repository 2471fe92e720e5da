"""One training step of six models, in tensorlite and in the frameworks that one would take instead.

    make peers                                       their environments, once
    python benchmarks/train_step.py                  everything: takes hours
    python benchmarks/train_step.py --models tutorial,lenet --batch 128 --threads 2
    python benchmarks/train_step.py --ours           tensorlite alone, with a profile of each model

Every framework has a process of its own, and they take turns (see `workers`). All start from the
same weights and train on the same batch, so their losses must agree, and it is printed whether they
do. Reported are the median of a step's time and its ratio to ours (larger: we are faster), the peak
of resident memory since the framework was imported, and the time from the start of the process to
the end of its first step.

Exits 1 if a worker failed, losses disagree, or a bar of this project is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.models import definitions
from benchmarks.workers import (
    ROOT,
    Worker,
    WorkerError,
    interpreter,
    take_turns,
    warn_if_busy,
)

CHECKED = 5  # steps after which losses are compared
TOLERANCE = {"f32": 1e-4, "bf16": 2e-2}
PROFILED = 3  # steps in a profile


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A framework and how it is used."""

    framework: str
    module: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def enters(self, model: str) -> bool:
        """Whether it differs from the others on this model: without images there is one layout."""
        has_images = len(definitions.MODELS[model].image) == 3
        return has_images or not self.options.get("channels_last")


def _torch(**options: bool) -> Contestant:
    return Contestant("torch", "models.in_torch", options)


OURS = "tensorlite"
CONTESTANTS = {
    OURS: Contestant("tensorlite", "models.in_tensorlite"),
    "torch": _torch(),
    "torch-nhwc": _torch(channels_last=True),
    "torch-compile": _torch(compiled=True),
    "torch-compile-nhwc": _torch(compiled=True, channels_last=True),
    "tensorflow": Contestant("tensorflow", "models.in_tensorflow"),
    "tensorflow-xla": Contestant("tensorflow", "models.in_tensorflow", {"xla": True}),
    "jax": Contestant("jax", "models.in_jax"),
}
EAGER = ("torch", "torch-nhwc")
TORCH = (*EAGER, "torch-compile", "torch-compile-nhwc")
TENSORFLOW = ("tensorflow", "tensorflow-xla")
PEERS = (*TORCH, *TENSORFLOW, "jax")


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What is trained, and with what."""

    model: str
    batch: int
    threads: int
    precision: str

    def __str__(self) -> str:
        plural = "s" if self.threads > 1 else ""
        size = f"batch {self.batch}, {self.threads} thread{plural}, {self.precision}"
        return f"{self.model}, {size}"


@dataclasses.dataclass(frozen=True)
class Result:
    """What one contestant did in one configuration."""

    step: float  # seconds, median
    first: float  # seconds from the start of the process to the end of the first step
    memory: float  # MiB, beyond what the imported framework takes
    losses: list[float]


Results = dict[str, Result]


# ---- the bars ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Bar:
    """`rivals`' figure, the best of theirs, must be at least `ratio` times ours."""

    what: str  # a field of Result
    rivals: tuple[str, ...]
    ratio: float

    def verdict(self, results: Results) -> tuple[bool, str] | None:
        """Whether it is met, and a line that says so; None if no rival took part."""
        theirs = {
            name: getattr(results[name], self.what) for name in self.rivals if name in results
        }
        if not theirs or OURS not in results:
            return None
        best = min(theirs, key=lambda name: theirs[name])
        ratio = theirs[best] / getattr(results[OURS], self.what)
        met = ratio >= self.ratio
        text = f"{self.what}: {best} takes {ratio:.2f} times ours, bar {self.ratio:g}"
        return met, f"{text}, {'met' if met else 'MISSED'}"


def bars_of(configuration: Configuration) -> list[Bar]:
    """The bars that hold for float32; there are none yet beside a peer in bfloat16."""
    model, batch, threads = configuration.model, configuration.batch, configuration.threads
    bars: list[Bar] = []
    if configuration.precision != "f32":
        return bars
    if model == "tutorial" and (batch, threads) == (128, 2):
        bars += [Bar("step", PEERS, 1.4), Bar("step", EAGER, 2.2), Bar("memory", TORCH, 1 / 0.8)]
        bars += [Bar("first", ("jax",), 2.0), Bar("first", TENSORFLOW, 2.0)]
    elif model in ("resnet20", "vgg11", "lenet"):
        bars += [Bar("step", (*TORCH, *TENSORFLOW), 1.15)]
    elif model in ("mlp", "transformer"):
        bars += [Bar("step", PEERS, 1.0)]
    if model in ("lenet", "mlp") and batch == 32:
        bars += [Bar("step", EAGER, 2.0)]
    return bars


# ---- measuring -----------------------------------------------------------------------------------


def measure(
    configuration: Configuration, names: list[str], rounds: int, profile: pathlib.Path | None
) -> tuple[Results, list[str]]:
    """Results by name, and what went wrong. `profile` is where tensorlite's is written to."""
    results: Results = {}
    failures: list[str] = []
    started: dict[str, tuple[Worker, float, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        arrays = pathlib.Path(folder) / "arrays.npz"
        definitions.save(arrays, configuration.model, configuration.batch)
        for name in names:
            try:
                started[name] = start(stack, configuration, name, arrays)
            except WorkerError as error:
                failures.append(f"{configuration}: {error}")
        workers = [worker for worker, _, _ in started.values()]
        medians = take_turns(workers, rounds)
        for (name, (worker, first, losses)), step in zip(started.items(), medians, strict=True):
            memory = worker.ask(memory=True)
            used = (memory["peak"] - memory["base"]) / 1024
            results[name] = Result(step, first, used, losses)
            if name == OURS and profile is not None:
                worker.ask(profile=PROFILED, path=str(profile))
    return results, failures


def start(
    stack: contextlib.ExitStack, configuration: Configuration, name: str, arrays: pathlib.Path
) -> tuple[Worker, float, list[float]]:
    """A worker that has taken `CHECKED` steps, the seconds until it had taken one, and the losses.

    Raises:
        WorkerError: it could not.
    """
    contestant = CONTESTANTS[name]
    worker = Worker(contestant.framework, contestant.module, configuration.threads)
    stack.enter_context(worker)
    arguments = {
        "arrays": str(arrays),
        "model": configuration.model,
        "precision": configuration.precision,
        **contestant.options,
    }
    worker.ask(build="build_step", arguments=arguments)
    losses = worker.ask(run=1)["values"]
    first = time.perf_counter() - worker.started
    return worker, first, losses + worker.ask(run=CHECKED - 1)["values"]


def disagreements(results: Results, tolerance: float) -> list[str]:
    """One line for each contestant whose losses are not those of the first."""
    lines = []
    (reference, expected), *others = results.items()
    for name, result in others:
        pairs = zip(result.losses, expected.losses, strict=True)
        worst = max(abs(a - b) / abs(b) for a, b in pairs)
        if not worst <= tolerance:  # NaN is not
            lines.append(f"the losses of {name} and {reference} differ by {worst:.1e}")
    return lines


# ---- printing ------------------------------------------------------------------------------------


def print_table(configuration: Configuration, results: Results) -> None:
    """One line for each contestant."""
    print(f"\n{configuration}")
    print(f"{'':20}{'step ms':>10}{'ratio':>8}{'peak MiB':>10}{'first s':>9}{'loss':>11}")
    for name, result in results.items():
        ratio = f"{result.step / results[OURS].step:.2f}" if OURS in results else "-"
        print(
            f"{name:20}{result.step * 1e3:10.2f}{ratio:>8}{result.memory:10.0f}"
            f"{result.first:9.2f}{result.losses[-1]:11.6f}"
        )


def markdown(table: dict[Configuration, Results]) -> str:
    """Two tables for docs/performance.md: times with ratios, and memory with the first step."""
    names = [n for n in CONTESTANTS if any(n in results for results in table.values())]
    head = ["model", "batch", "threads", *names]
    times, others = [head], [head]
    for configuration, results in table.items():
        row = [configuration.model, str(configuration.batch), str(configuration.threads)]
        times.append([*row, *[_time(results, name) for name in names]])
        others.append([*row, *[_memory(results, name) for name in names]])
    return (
        "Milliseconds of a step (times ours):\n\n" + _rows(times) + "\n\n"
        "Peak memory in MiB / seconds to the first finished step:\n\n" + _rows(others)
    )


def _time(results: Results, name: str) -> str:
    if name not in results:
        return "-"
    step = results[name].step
    if name == OURS or OURS not in results:
        return f"{step * 1e3:.2f}"
    return f"{step * 1e3:.2f} ({step / results[OURS].step:.2f}x)"


def _memory(results: Results, name: str) -> str:
    if name not in results:
        return "-"
    return f"{results[name].memory:.0f} / {results[name].first:.1f}"


def _rows(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * 3 + ["---:"] * (len(head) - 3), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- the command line ----------------------------------------------------------------------------


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--models", default=",".join(definitions.MODELS), help="default: %(default)s")
    add("--batch", default="32,128", help="sizes of a batch (default: %(default)s)")
    processors = len(os.sched_getaffinity(0))
    usual = "1,2" if processors > 1 else "1"
    add("--threads", default=usual, help="numbers of threads (default: %(default)s)")
    add("--peers", help=f"of {', '.join(PEERS)}; default: all that have an environment")
    add("--rounds", type=int, default=10, help="turns of each (default: %(default)s)")
    add("--precision", choices=["f32", "bf16"], default="f32")
    add("--markdown", action="store_true", help="print the tables of docs/performance.md too")
    add("--ours", action="store_true", help="only tensorlite; writes profiles below runs/")
    args = parser.parse_args(arguments)
    args.models = args.models.split(",")
    for model in args.models:
        if model not in definitions.MODELS:
            parser.error(f"--models: there is no {model!r}; of {', '.join(definitions.MODELS)}")
    try:
        args.batch = [int(size) for size in args.batch.split(",")]
        args.threads = [int(number) for number in args.threads.split(",")]
    except ValueError as error:
        parser.error(f"--batch and --threads are integers with commas between them: {error}")
    if any(size < 2 or size % 2 for size in args.batch):
        parser.error(f"--batch: sizes are even and positive, got {args.batch}")
    if any(not 1 <= number <= processors for number in args.threads):
        parser.error(f"--threads: between 1 and the {processors} processors here")
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {args.rounds}")
    if args.ours and args.peers:
        parser.error("--ours is without peers, and --peers names some")
    args.peers = _peers(parser, args)
    return args


def _peers(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[str]:
    if args.ours:
        return []
    missing = [name for name in PEERS if interpreter(CONTESTANTS[name].framework) is None]
    if args.peers is None:
        for name in missing:
            print(f"without {name}: there is no environment for it; make one with `make peers`")
        return [name for name in PEERS if name not in missing]
    names: list[str] = args.peers.split(",")
    for name in names:
        if name not in PEERS:
            parser.error(f"--peers: there is no {name!r}; of {', '.join(PEERS)}")
        if name in missing:
            parser.error(f"--peers: {name} has no environment; make one with `make peers`")
    return names


def main() -> int:
    """Measure every configuration, print, and judge."""
    args = parse()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    warn_if_busy()
    table: dict[Configuration, Results] = {}
    problems: list[str] = []
    for threads in args.threads:
        for model in args.models:
            for batch in args.batch:
                configuration = Configuration(model, batch, threads, args.precision)
                names = [n for n in (OURS, *args.peers) if CONTESTANTS[n].enters(model)]
                profile = _profile_path(configuration) if args.ours else None
                results, failures = measure(configuration, names, args.rounds, profile)
                problems += failures
                for failure in failures:
                    print(failure)
                if not results:
                    continue
                table[configuration] = results
                print_table(configuration, results)
                problems += judge(configuration, results)
                if profile is not None:
                    print(f"profile of {PROFILED} steps: {profile}")
    if args.markdown:
        print("\n" + markdown(table))
    print(f"\n{len(problems)} problems" if problems else "\nall agree, and every bar is met")
    return 1 if problems else 0


def judge(configuration: Configuration, results: Results) -> list[str]:
    """Print how losses and bars stand; return the lines that tell of trouble."""
    problems = disagreements(results, TOLERANCE[configuration.precision])
    if not problems:
        print(f"losses of {CHECKED} steps agree to {TOLERANCE[configuration.precision]:.0e}")
    for line in problems:
        print(line)
    for bar in bars_of(configuration):
        verdict = bar.verdict(results)
        if verdict is not None:
            met, line = verdict
            print(line)
            problems += [] if met else [line]
    return problems


def _profile_path(configuration: Configuration) -> pathlib.Path:
    folder = ROOT / "runs"
    folder.mkdir(exist_ok=True)
    name = f"{configuration.model}_{configuration.batch}_{configuration.threads}.json"
    return folder / f"train_step_{name}"


if __name__ == "__main__":
    sys.exit(main())
