"""What a training step costs on N hosts: predicted, checked against the laboratory, drawn to 1,024.

    python benchmarks/scaleout.py --save runs/points.json      measures, as root
    python benchmarks/cost_model.py runs/points.json           checks and draws

`benchmarks/lab/model.py` is the model. What it is told was measured with one host (the seconds of a
step and their deviation, when gradients become ready) or with all-reduces alone (latency, the work
for a byte); rates are those of the links. The points with several hosts are for the check. Prints
each point beside its prediction, then tables to 1,024 hosts for the tutorial network and for a
network of the size of ResNet-50, and draws both. Exits 1 if a prediction is off by more than 10%.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.lab.model import Bucket, Cluster, Prediction, Step, predict
from benchmarks.lab.points import Point, load
from benchmarks.workers import ROOT

TOLERANCE = 0.10
GOODPUT = 1448 / 1514  # bytes of data in a packet of an Ethernet of MTU 1500, with its headers
HOSTS = [2**n for n in range(11)]
RATES = (1e9, 10e9)
FIGURE = ROOT / "runs" / "cost_model.png"
BUCKET_BYTES = 4 << 20  # of the network of the size of ResNet-50
RESNET_BATCH = 32
TUTORIAL_FLOPS = 128 * 2 * 52.7e6  # of a step with 128 images: products, forward and backward


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was measured without training on several hosts.

    Attributes:
        latency, call, work: see `Cluster`.
        buckets: bytes of each, and the part of a step's computation after which it is ready.
    """

    latency: float
    call: float
    work: float
    buckets: list[tuple[float, float]]

    def cluster(self, rate: float, **options: Any) -> Cluster:
        """Hosts with links of `rate` bits per second."""
        bandwidth = rate / 8 * GOODPUT
        return Cluster(bandwidth, self.latency, self.work, self.call, **options)

    def step(self, alone: float, deviation: float) -> Step:
        """The step of the tutorial network that takes `alone` seconds on one host.

        Nearly all of the update goes on while the last bucket is under way, so none of it counts as
        coming after."""
        buckets = [Bucket(nbytes, share * alone) for nbytes, share in self.buckets]
        return Step(alone, 0.0, deviation, buckets)


def calibration_of(path: pathlib.Path) -> Calibration:
    """That of a file of `scaleout.py --save`.

    Raises:
        ValueError: there is none in it.
    """
    about = json.loads(path.read_text())["about"]
    if "calibration" not in about:
        raise ValueError(f"{path} has no calibration; measure again with scaleout.py --save")
    fields = about["calibration"]
    return Calibration(**{**fields, "buckets": [tuple(bucket) for bucket in fields["buckets"]]})


# ---- the check -----------------------------------------------------------------------------------


def checks(points: list[Point], found: Calibration) -> Iterator[tuple[Point, Prediction, float]]:
    """Each point of several hosts, its prediction, and the relative error of that."""
    ones = {p.series.scaling: p for p in points if p.hosts == 1}
    for point in sorted(points, key=lambda point: (point.series, point.hosts)):
        if point.hosts == 1:
            continue
        # Half of the middle half of a normal variable's range is 0.674 of its deviation.
        deviation = ones[point.series.scaling].spread / 0.674 if ones else 0.0
        step = found.step(point.compute, deviation)
        cluster = found.cluster(point.series.rate)
        predicted = predict(step, point.hosts, cluster, point.series.overlap)
        yield point, predicted, predicted.step / point.step - 1


# ---- beyond the laboratory -----------------------------------------------------------------------


def resnet50(flops: float) -> Step:
    """A network of the size of ResNet-50 (He et al., 2016, table 1) that runs at `flops` operations
    per second, with RESNET_BATCH images of 224x224 on each host.

    Operations of the products alone are counted, the backward pass being twice the forward pass.
    Its gradients become ready from the last layer to the first."""
    layers = list(_resnet50_layers())
    forward = sum(2 * macs for _, macs in layers) * RESNET_BATCH / flops
    now, waiting, buckets = forward, 0.0, []
    for parameters, macs in reversed(layers):
        now += 2 * 2 * macs * RESNET_BATCH / flops
        waiting += 4 * parameters
        if waiting >= BUCKET_BYTES:
            buckets.append(Bucket(waiting, now))
            waiting = 0.0
    buckets.append(Bucket(waiting, now))
    return Step(now, 0.0, 0.0, buckets)


def _resnet50_layers() -> Iterator[tuple[float, float]]:
    """Parameters, and multiplications for an image, of each layer in order."""

    def conv(size: int, inner: int, outer: int, pixels: int) -> tuple[float, float]:
        weights = size * size * inner * outer
        return weights + 2 * outer, weights * pixels * pixels  # with batch norm

    yield conv(7, 3, 64, 112)
    inner = 64
    for blocks, width, pixels in ((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7)):
        for block in range(blocks):
            if block == 0:
                yield conv(1, inner, 4 * width, pixels)
            before = pixels * 2 if block == 0 and width > 64 else pixels
            yield conv(1, inner, width, before)
            yield conv(3, width, width, pixels)
            yield conv(1, width, 4 * width, pixels)
            inner = 4 * width
    yield 2048 * 1000 + 1000, 2048 * 1000


def efficiencies(step: Step, found: Calibration, rate: float) -> list[float]:
    """Speed-up of weak scaling over the number of hosts, for each of `HOSTS`."""
    cluster = found.cluster(rate)
    return [step.alone / predict(step, hosts, cluster, overlap=True).step for hosts in HOSTS]


def draw(lines: dict[tuple[str, float], list[float]], points: list[Point], path: Any) -> None:
    """Efficiency against hosts as a PNG, with the laboratory's points of weak scaling."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(name for name, _ in lines))
    colours = {1e9: "tab:blue", 10e9: "tab:orange"}
    size = (5.2 * len(names), 4.2)
    figure, panels = plt.subplots(1, len(names), figsize=size, squeeze=False, layout="constrained")
    best = max(point.series.overlap for point in points)
    for axes, name in zip(panels[0], names, strict=True):
        for rate in RATES:
            label = f"{rate / 1e9:g} Gbit/s, model"
            values = [100 * value for value in lines[name, rate]]
            axes.plot(HOSTS, values, color=colours[rate], label=label)
            places = [
                (p.hosts, 100 * p.speedup / p.hosts)
                for p in points
                if name == names[0] and (p.series.scaling, p.series.rate) == ("weak", rate)
                if p.series.overlap == best
            ]
            if places:
                label = f"{rate / 1e9:g} Gbit/s, laboratory"
                axes.plot(*zip(*places, strict=True), "o", color=colours[rate], label=label)
        axes.set_xscale("log", base=2)
        axes.set(xticks=HOSTS, xticklabels=HOSTS, ylim=(0, 105), title=name)
        axes.set(xlabel="hosts", ylabel="efficiency of weak scaling, %")
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=9, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> int:
    """Check, print, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("points", type=pathlib.Path, help="a file of scaleout.py --save")
    parser.add_argument("--figure", type=pathlib.Path, default=FIGURE)
    args = parser.parse_args()
    try:
        points, found = load(args.points), calibration_of(args.points)
    except (OSError, ValueError) as error:
        print(f"cost_model.py: {error}", file=sys.stderr)
        return 2
    worst = 0.0
    print("| series | hosts | measured ms | predicted ms | error |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for point, predicted, deviation in checks(points, found):
        worst = max(worst, abs(deviation))
        print(
            f"| {point.series} | {point.hosts} | {point.step * 1e3:.1f} | "
            f"{predicted.step * 1e3:.1f} | {deviation:+.1%} |"
        )
    alone = points[0].alone
    tutorial, resnet = found.step(alone, 0.0), resnet50(TUTORIAL_FLOPS / alone)
    names = {"tutorial network, batch 128": tutorial, "size of ResNet-50, batch 32": resnet}
    lines = {
        (name, rate): efficiencies(step, found, rate)
        for name, step in names.items()
        for rate in RATES
    }
    for name, step in names.items():
        nbytes = sum(bucket.nbytes for bucket in step.buckets)
        print(f"\n{name}: {nbytes / 4e6:.2f} million parameters, {step.alone:.3f} s alone\n")
        print("| hosts | " + " | ".join(f"{hosts:,}" for hosts in HOSTS) + " |")
        print("| --- |" + " ---: |" * len(HOSTS))
        for rate in RATES:
            cells = " | ".join(f"{value:.0%}" for value in lines[name, rate])
            print(f"| {rate / 1e9:g} Gbit/s | {cells} |")
    draw(lines, points, args.figure)
    print(f"\nefficiency against hosts: {args.figure}")
    met = worst <= TOLERANCE and not math.isnan(worst)
    print(f"largest error {worst:.1%}, bar {TOLERANCE:.0%}, {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
