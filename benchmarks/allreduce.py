"""All-reduce of float32 beside Gloo: latency, and bandwidth among processes of this machine.

    make peers                       PyTorch's environment, once
    python benchmarks/allreduce.py [--ranks 2,4] [--bytes 1024,4194304] [--rounds 5]
                                   [--veth [--per-host 1]]

Every rank is a process. The ranks of one contestant work together while those of the others sleep:
tensorlite through shared memory, tensorlite over TCP on the loopback interface, and Gloo, taking
turns. With --veth each rank has a network namespace of its own, joined to the others by a link of
1 Gbit/s with packets of 1500 bytes; that needs root, and is removed afterwards. With --per-host
several ranks have one together, and may use shared memory there.

A time is what a call takes in a row of them, on the slowest rank. Bus bandwidth is the bytes that
each rank must send, 2 (N - 1) / N of the array, over the time. On a link it is bounded by the
payload of a full packet, 1448 of the 1538 bytes that it takes up on the wire, and N is then the
number of hosts.

Bars: on one host, from 4 MB on, at least twice Gloo's bandwidth; 1 KB in no more time than Gloo's,
through memory and over connections; on links, from 4 MB on, at least 92% of the bound. Exits 1 if
one is missed, or if a sum is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.workers import Worker, interpreter, warn_if_busy

KB, MB = 1024, 1024 * 1024
SIZES = (KB, 64 * KB, MB, 4 * MB, 16 * MB, 64 * MB, 128 * MB)
LINK_SIZES = (KB, MB, 4 * MB, 16 * MB, 64 * MB)
LARGE = 4 * MB
OVER_GLOO, OF_BOUND = 2.0, 0.92
LINK_RATE = 1e9  # bits per second, on the wire
PAYLOAD, COUNTED, ON_WIRE = 1448, 1514, 1538  # bytes of a full packet: data, as tc counts, in all
BOUND = LINK_RATE / 8 * PAYLOAD / ON_WIRE
SECONDS = 0.3  # that a contestant works for in a round

CONTESTANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "memory": ("tensorlite", "collectives.in_tensorlite", {"shared": True}),
    "tcp": ("tensorlite", "collectives.in_tensorlite", {"shared": False}),
    "gloo": ("torch", "collectives.in_torch", {}),
}


class Group:
    """The ranks of one contestant."""

    def __init__(
        self,
        name: str,
        hosts: Sequence[str],
        prefixes: Sequence[Sequence[str]],
        **arguments: Any,
    ):
        framework, module, own = CONTESTANTS[name]
        self._hosts = hosts
        self._arguments = own | arguments
        self._folder = tempfile.TemporaryDirectory()
        # Two processors each: ranks, like the workers of a cluster, are not told where to run.
        self._workers = [Worker(framework, module, 2, prefix) for prefix in prefixes]

    def build(self, nbytes: int, check: bool) -> None:
        """Have every rank make an array of so many bytes."""
        shared = {"folder": self._folder.name, "hosts": self._hosts, **self._arguments}
        for rank, worker in enumerate(self._workers):
            mine = {"rank": rank, "elements": nbytes // 4, "check": check}
            worker.request(build="build_all_reduce", arguments=shared | mine)
        self._answers()

    def run(self, times: int) -> tuple[float, list[float | None]]:
        """The seconds of a call on the slowest rank, and the last value of each."""
        for worker in self._workers:
            worker.request(run=times + 1)  # the first one finds cold caches and is not counted
        answers = self._answers()
        seconds = max(statistics.fmean(answer["seconds"][1:]) for answer in answers)
        return seconds, [answer["values"][-1] for answer in answers]

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()
        self._folder.cleanup()

    def _answers(self) -> list[dict[str, Any]]:
        try:
            return [worker.answer() for worker in self._workers]
        finally:
            for worker in self._workers:
                worker.sleep()


def main() -> int:
    """Measure, print and judge."""
    args = parse()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    warn_if_busy()
    names = ["tcp"] if args.veth and args.per_host == 1 else ["memory", "tcp"]
    if interpreter("torch"):
        names.append("gloo")
    else:
        print("without Gloo: there is no environment for PyTorch; make one with `make peers`")
    verdicts = []
    for size in args.ranks:
        hosts = size // args.per_host if args.veth else 0
        with groups(names, size, hosts) as contestants:
            where = f"{hosts} hosts with links of 1 Gbit/s" if hosts else "one host"
            print(f"\n{size} ranks on {where}: microseconds, and GB/s of bus bandwidth")
            print("     bytes" + "".join(f"{name:>20}" for name in names) + "   verdict")
            for nbytes in args.bytes or (LINK_SIZES if args.veth else SIZES):
                times = measure(contestants, nbytes, args.rounds)
                bars = judge_links(nbytes, hosts, times) if hosts else judge_host(nbytes, times)
                row = "".join(
                    f"{t * 1e6:12.0f}{bus_bandwidth(nbytes, hosts or size, t) / 1e9:8.3f}"
                    for t in times.values()
                )
                print(f"{nbytes:10}{row}   {'; '.join(text for _, text in bars)}")
                verdicts += [met for met, _ in bars]
    return 0 if all(verdicts) else 1


@contextlib.contextmanager
def groups(names: Sequence[str], size: int, hosts: int) -> Iterator[dict[str, Group]]:
    """The contestants, connected: on the loopback interface, or as ranks of so many namespaces."""
    with contextlib.ExitStack() as stack:
        addresses, interface = ["127.0.0.1"] * size, "lo"
        prefixes: list[tuple[str, ...]] = [()] * size
        if hosts:
            # Here, since the laboratory is for root on Linux and the rest is not.
            from benchmarks.lab import network
            from benchmarks.lab.commands import alone, require

            require()
            stack.enter_context(alone())
            network.remove()  # what an earlier run has left, if it was killed
            links = stack.enter_context(network.Network(hosts))
            links.limit(LINK_RATE * COUNTED / ON_WIRE)
            of_rank = [rank * hosts // size for rank in range(size)]
            addresses = [network.address_of(host) for host in of_rank]
            prefixes = [("ip", "netns", "exec", network.name_of(host)) for host in of_rank]
            interface = "eth0"
        made = {}
        for name in names:
            options = {"interface": interface} if name == "gloo" else {}
            made[name] = Group(name, addresses, prefixes, **options)
            stack.callback(made[name].close)
        for name, group in made.items():
            for nbytes in (KB, MB):
                group.build(nbytes, check=True)
                _, values = group.run(1)
                if values != [size * (size + 1) / 2] * size:
                    raise SystemExit(f"{name}: the sums of {size} ranks are {values}")
        yield made


def measure(contestants: dict[str, Group], nbytes: int, rounds: int) -> dict[str, float]:
    """The median seconds of a call of each contestant, who take turns."""
    counts = {}
    for name, group in contestants.items():
        group.build(nbytes, check=False)
        quick, _ = group.run(3)
        counts[name] = min(max(round(SECONDS / quick), 2), 1000)
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, group in contestants.items():
            taken[name].append(group.run(counts[name])[0])
    return {name: statistics.median(times) for name, times in taken.items()}


def bus_bandwidth(nbytes: int, size: int, seconds: float) -> float:
    """Bytes per second that each rank must at least have sent."""
    return 2 * (size - 1) / size * nbytes / seconds


def judge_host(nbytes: int, times: dict[str, float]) -> list[tuple[bool, str]]:
    """What the bars say of ranks on one host; nothing without Gloo."""
    if "gloo" not in times:
        return []
    bars = []
    if nbytes >= LARGE:
        ratio = times["gloo"] / times["memory"]
        met = ratio >= OVER_GLOO
        bars.append((met, f"memory {ratio:.2f} x Gloo (bar {OVER_GLOO:g}) {word(met)}"))
    elif nbytes == KB:
        for name in ("memory", "tcp"):
            ratio = times[name] / times["gloo"]
            met = ratio <= 1
            bars.append((met, f"{name} {ratio:.2f} of Gloo's time (bar 1) {word(met)}"))
    return bars


def judge_links(nbytes: int, hosts: int, times: dict[str, float]) -> list[tuple[bool, str]]:
    """What the bars say of hosts with links; the first contestant is the one that counts."""
    if nbytes < LARGE:
        return []
    (ours, share), *others = (
        (name, bus_bandwidth(nbytes, hosts, t) / BOUND) for name, t in times.items()
    )
    met = share >= OF_BOUND
    text = f"{ours} {share:.1%} of the bound (bar {OF_BOUND:.0%}) {word(met)}"
    return [(met, text + "".join(f", {name} {share:.1%}" for name, share in others))]


def word(met: bool) -> str:
    """How a verdict is printed."""
    return "met" if met else "MISSED"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    numbers = {"type": lambda text: [int(number) for number in text.split(",")]}
    parser.add_argument("--ranks", default=[2, 4], **numbers)  # type: ignore[arg-type]
    parser.add_argument("--bytes", default=None, **numbers)  # type: ignore[arg-type]
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--veth", action="store_true", help="between network namespaces, as root")
    parser.add_argument("--per-host", type=int, default=1, help="ranks in a namespace")
    args = parser.parse_args()
    if min(args.ranks) < 2 or args.rounds < 1 or min(args.bytes or [4]) < 4:
        parser.error("at least 2 ranks, 1 round and 4 bytes")
    if args.per_host < 1 or any(size % args.per_host for size in args.ranks):
        parser.error("--per-host must divide the numbers of ranks")
    return args


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:  # the laboratory or a worker says what is the matter
        sys.exit(f"allreduce: {error}")
