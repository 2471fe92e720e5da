"""Scale-out on one machine: hosts with a share of a core and a slow link, in dilated time.

    python benchmarks/scaleout.py                  1, 2, 3, 4 and 8 hosts: about 20 minutes, as root
    python benchmarks/scaleout.py --quick          1, 2 and 8 hosts with links of 1 Gbit/s
    python benchmarks/scaleout.py --spark --quick  the same with workers of a Spark cluster
    python benchmarks/scaleout.py --save runs/points.json
    python benchmarks/scaleout.py --load runs/a.json,runs/b.json    tables and picture only
    python benchmarks/scaleout.py --clean          remove what a killed run has left

Each host is a network namespace with a link to a bridge, and a cgroup that lets it have the same
share of a core, whatever their number. Links are slower by the same factor, so the ratio of compute
to communication is that of hosts with a whole core and links of 1 or 10 Gbit/s. What trains there
is the network of examples/cifar10.py, by the step that `Trainer` runs. docs/scaling.md says what
this shows and what it cannot show.

Prints tables of weak and strong scaling, draws the speed-up against hosts beside the paper's
Figure 3, and exits 1 if a bar of this project is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.lab import calibrate, network
from benchmarks.lab import hosts as lab_hosts
from benchmarks.lab.commands import LabError, require
from benchmarks.lab.figures import draw
from benchmarks.lab.hosts import Laboratory
from benchmarks.lab.points import Point, Series, load, save, table, verdicts
from benchmarks.lab.worlds import Message, Steps, Worlds, steps_of
from benchmarks.workers import ROOT, warn_if_busy

ROWS = 128  # of a host's batch in weak scaling, and of the whole batch in strong scaling
TURN = 4  # steps
FIGURE = ROOT / "runs" / "scaleout.png"


def measure(laboratory: Laboratory, args: argparse.Namespace) -> list[Point]:
    """All points. Worlds take turns with single hosts, since a machine's speed drifts by more than
    the bars leave."""
    points: list[Point] = []
    for hosts in args.hosts:
        for series, timed in measure_hosts(laboratory, hosts, args):
            points.append(point_of(series, hosts, timed, laboratory.share))
            print_point(points[-1])
    return points


def measure_hosts(
    laboratory: Laboratory, hosts: int, args: argparse.Namespace
) -> Iterator[tuple[Series, Timed]]:
    """The steps of worlds of so many hosts, in every series."""
    ways = list(itertools.product(args.scaling, args.overlap))
    if hosts == 1:  # it has nobody to talk to, whatever the links
        _, timed = next(measure_together(laboratory, 1, *ways[0], args))
        for series in itertools.product(args.scaling, args.rates, args.overlap):
            yield Series(*series), timed
        return
    for scaling, overlap in ways:
        yield from measure_together(laboratory, hosts, scaling, overlap, args)


@dataclasses.dataclass(frozen=True)
class Timed:
    """Steps of worlds, and what they are compared with.

    Attributes:
        batch: rows of a global batch.
        steps: of the worlds.
        alone: of one host with `ROWS` rows, between them.
        compute: of one host with the rows that each host has there.
    """

    batch: int
    steps: Steps
    alone: Steps
    compute: Steps


def measure_together(
    laboratory: Laboratory, hosts: int, scaling: str, overlap: bool, args: argparse.Namespace
) -> Iterator[tuple[Series, Timed]]:
    """The steps of worlds of so many hosts, at every rate."""
    what = "spark" if args.spark and hosts > 1 else "train"
    batch = ROWS * hosts if scaling == "weak" else ROWS
    with contextlib.ExitStack() as stack:

        def begun(size: int, rows: int, *how: Any) -> Worlds:
            worlds = stack.enter_context(Worlds(laboratory, size, rows, *how))
            worlds.pause()
            return worlds

        taking_turns = [begun(1, ROWS)]
        if batch // hosts != ROWS:
            taking_turns.append(begun(1, batch // hosts))
        taking_turns.append(begun(hosts, batch, what, options_of(overlap, args)))
        for rate in args.rates:
            laboratory.links(rate, args.latency)
            alone, *between, steps = take_turns(taking_turns, args.steps)
            compute = between[0] if between else alone
            yield Series(scaling, rate, overlap), Timed(batch, steps, alone, compute)


def take_turns(worlds: list[Worlds], count: int) -> list[Steps]:
    """At least `count` steps of each, a few at a time."""
    taken: list[list[list[Message]]] = [[] for _ in worlds]
    for _ in range(-(-count // TURN)):
        for each, messages in zip(worlds, taken, strict=True):
            each.resume()
            messages += each.take(TURN + 1)  # the first one says when the next begins
            each.pause()
    return [steps_of(messages) for messages in taken]


def options_of(overlap: bool, args: argparse.Namespace) -> dict[str, Any]:
    """The options of `Trainer`: gradients are sent in buckets during the backward pass, or all
    together after it."""
    options: dict[str, Any] = {}
    if not overlap:
        options["bucket_bytes"] = None
    elif args.bucket_bytes:
        options["bucket_bytes"] = args.bucket_bytes
    if args.compression != "none":
        options["compression"] = args.compression
    return options


def point_of(series: Series, hosts: int, timed: Timed, share: float) -> Point:
    """A point in the hosts' own time."""
    low, _, high = statistics.quantiles(timed.steps.seconds, n=4)
    return Point(
        series=series,
        hosts=hosts,
        batch=timed.batch,
        step=timed.steps.median * share,
        spread=(high - low) / 2 * share,
        exposed=timed.steps.exposed * share,
        alone=timed.alone.median * share,
        alone_batch=ROWS,
        compute=timed.compute.median * share,
    )


def print_point(point: Point) -> None:
    """A line while the run goes on."""
    print(
        f"{point.series}, {point.hosts} hosts: {point.step * 1e3:.1f} ms, "
        f"{point.speedup:.2f}x, {point.exposed_share:.1%} exposed"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--hosts", help="numbers of hosts (default: 1,2,3,4,8)")
    add("--rates", help="Gbit/s of the links (default: 1,10)")
    add("--scaling", help="weak, strong or both (default: weak,strong)")
    add("--overlap", help="on, off or both (default: on,off)")
    add("--bucket-bytes", type=int, help="of gradients, with overlap (default: that of Trainer)")
    kinds = ("none", "float16", "bfloat16", "powersgd")
    add("--compression", choices=kinds, default="none", help="of gradients, as Trainer has it")
    add("--steps", type=int, help="steps of each point and world (default: 12)")
    add("--share", type=float, default=0.2, help="of a core, for each host (default: 0.2)")
    add("--latency", type=float, default=0.0, help="microseconds each way, added by netem")
    add("--quick", action="store_true", help="hosts 1,2,8, rate 1, weak, overlap on, 6 steps")
    add(
        "--spark", action="store_true", help="workers of a standalone Spark cluster, not bare ranks"
    )
    add("--save", type=pathlib.Path, help="write the points to this file")
    add("--load", help="print and draw the points of these files, without measuring")
    add("--figure", type=pathlib.Path, default=FIGURE, help=f"(default: {FIGURE})")
    add("--clean", action="store_true", help="remove what is left of a run that was killed")
    args = parser.parse_args(arguments)
    usual = ("1,2,3,4,8", "1,10", "weak,strong", "on,off", 12)
    if args.quick:
        usual = ("1,2,8", "1", "weak", "on", 6)
    hosts, rates, scaling, overlap, steps = usual
    try:
        args.hosts = sorted({int(number) for number in (args.hosts or hosts).split(",")})
        args.rates = [float(rate) * 1e9 for rate in (args.rates or rates).split(",")]
    except ValueError as error:
        parser.error(f"--hosts and --rates are numbers with commas between them: {error}")
    args.scaling = (args.scaling or scaling).split(",")
    args.overlap = (args.overlap or overlap).split(",")
    args.steps = args.steps or steps
    args.latency *= 1e-6
    if args.hosts[0] < 1 or args.hosts[-1] > ROWS:
        parser.error(f"--hosts: between 1 and {ROWS}, got {args.hosts}")
    if min(args.rates) <= 0:
        parser.error("--rates must be positive")
    for kind in args.scaling:
        if kind not in ("weak", "strong"):
            parser.error(f"--scaling: weak or strong, not {kind!r}")
    for switch in args.overlap:
        if switch not in ("on", "off"):
            parser.error(f"--overlap: on or off, not {switch!r}")
    args.overlap = [switch == "on" for switch in args.overlap]
    if args.steps < 2:
        parser.error(f"--steps must be at least 2, not {args.steps}")
    if not 0 < args.share <= 1:
        parser.error(f"--share is a part of a core, above 0 and at most 1, not {args.share:g}")
    return args


def main() -> int:
    """Measure, print, draw, judge."""
    args = parse()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        if args.clean:
            lab_hosts.remove()
            return 0
        points = (
            [p for path in args.load.split(",") for p in load(pathlib.Path(path))]
            if args.load
            else measured(args)
        )
    except LabError as error:
        print(f"scaleout.py: {error}", file=sys.stderr)
        return 2
    print("\n" + table(points) + "\n")
    draw(points, args.figure)
    print(f"speed-up against hosts: {args.figure}")
    missed = 0
    for met, line in verdicts(points):
        print(line)
        missed += not met
    return 1 if missed else 0


def measured(args: argparse.Namespace) -> list[Point]:
    """The points of a run, saved if asked for."""
    require()
    warn_if_busy()
    if args.latency and not network.can_delay():
        raise LabError(
            "--latency needs a kernel with netem (CONFIG_NET_SCH_NETEM; on Fedora and RHEL: dnf "
            "install kernel-modules-extra); without the option links are only slow"
        )
    began = time.monotonic()
    with Laboratory(args.hosts[-1], args.share) as laboratory:
        points = measure(laboratory, args)
        calibration = calibrate.as_json(laboratory) if args.save else None
    print(f"measured in {time.monotonic() - began:.0f} s")
    if args.save:
        about = {"share": args.share, "latency": args.latency, "steps": args.steps}
        save(args.save, points, about | {"calibration": calibration})
    return points


if __name__ == "__main__":
    sys.exit(main())
