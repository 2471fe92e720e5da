"""What a run of the laboratory yields: points, what follows from them, and the bars they must meet.

All times of a point are in seconds of the hosts: of the machine, divided by the dilation."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Any

PAPER = {2: 1.97, 3: 2.93}  # speed-up against hosts, from its Figure 3
BARS = {**PAPER, 4: 3.8, 8: 7.2}  # least speed-up of weak scaling at `BAR_RATE`
BAR_RATE = 1e9
MOST_EXPOSED = 0.05  # of a step


@dataclasses.dataclass(frozen=True, order=True)
class Series:
    """Points that differ in the number of hosts alone.

    Attributes:
        scaling: "weak" (the batch grows with the hosts) or "strong" (it does not).
        rate: bits per second of a host's link.
        overlap: communication goes on during the backward pass.
    """

    scaling: str
    rate: float
    overlap: bool

    def __str__(self) -> str:
        how = "with" if self.overlap else "without"
        return f"{self.scaling} scaling, {self.rate / 1e9:g} Gbit/s, {how} overlap"


@dataclasses.dataclass(frozen=True)
class Point:
    """The median step of `hosts` hosts.

    Attributes:
        batch: rows of the global batch.
        step: seconds.
        spread: half of the range in which the middle half of all steps lies, in seconds.
        exposed: seconds of it in which the first host did nothing but communicate.
        alone: seconds of a step of one host with `alone_batch` rows, just before and after.
        compute: seconds of a step of one host with the rows that each host has here.
    """

    series: Series
    hosts: int
    batch: int
    step: float
    spread: float
    exposed: float
    alone: float
    alone_batch: int
    compute: float

    @property
    def images_per_second(self) -> float:
        """Of all hosts together."""
        return self.batch / self.step

    @property
    def speedup(self) -> float:
        """Images per second beside those of one host."""
        return self.images_per_second / (self.alone_batch / self.alone)

    @property
    def exposed_share(self) -> float:
        """The part of a step in which there is only communication."""
        return self.exposed / self.step


def save(path: pathlib.Path, points: Iterable[Point], about: dict[str, Any]) -> None:
    """Write points as JSON; `about` says how they were measured."""
    content = {"about": about, "points": [dataclasses.asdict(point) for point in points]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def load(path: pathlib.Path) -> list[Point]:
    """The points in a file that `save` wrote."""
    entries = json.loads(path.read_text())["points"]
    return [Point(**{**entry, "series": Series(**entry["series"])}) for entry in entries]


def table(points: list[Point]) -> str:
    """One table for each series, in Markdown."""
    parts = []
    for series in sorted({point.series for point in points}):
        lines = [
            f"{str(series)[0].upper()}{str(series)[1:]}:\n",
            "| hosts | batch | step ms | images/s | speed-up | efficiency | exposed |",
            "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        of_series = [point for point in points if point.series == series]
        for p in sorted(of_series, key=lambda point: point.hosts):
            lines.append(
                f"| {p.hosts} | {p.batch} | {p.step * 1e3:.1f} ± {p.spread * 1e3:.1f} | "
                f"{p.images_per_second:.0f} | {p.speedup:.2f} | {p.speedup / p.hosts:.1%} | "
                f"{p.exposed_share:.1%} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def verdicts(points: list[Point]) -> list[tuple[bool, str]]:
    """Whether each bar that these points speak of is met, and a line that says so.

    The bars are those of weak scaling with links of `BAR_RATE`, with overlap where it was measured.
    """
    weak = [p for p in points if (p.series.scaling, p.series.rate) == ("weak", BAR_RATE)]
    best = max((point.series.overlap for point in weak), default=False)
    lines = []
    for p in sorted(weak, key=lambda point: point.hosts):
        if p.series.overlap != best or p.hosts not in BARS:
            continue
        bar = BARS[p.hosts]
        met = p.speedup >= bar
        lines.append((met, f"{p.hosts} hosts: {p.speedup:.2f}x, bar {bar:g}x, {_word(met)}"))
        met = p.exposed_share < MOST_EXPOSED
        text = f"{p.hosts} hosts: {p.exposed_share:.1%} of a step is exposed communication"
        lines.append((met, f"{text}, bar {MOST_EXPOSED:.0%}, {_word(met)}"))
    return lines


def _word(met: bool) -> str:
    return "met" if met else "MISSED"
