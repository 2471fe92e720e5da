"""The chaos suite: faults in a row, each in a training of its own on a local cluster.

    python -m tests.chaos.run --faults 200 --seed 0

Prints a line for each and exits 1 if anything was lost, left behind, or too late.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import random
import statistics
import sys
import tempfile

from tests.chaos import faults
from tests.distributed.conftest import spark_local_cluster, spark_session


def main() -> int:
    """Strike, print, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--faults", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of kinds, ranks and steps")
    parser.add_argument("--train", type=pathlib.Path, help=argparse.SUPPRESS)  # a driver to kill
    args = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if args.train is not None:
        with spark_session("local[2]"):
            faults.fit(args.train, lambda record: None)
        return 0
    with spark_local_cluster(workers=2):
        return 0 if suite(args.faults, args.seed) else 1


def suite(count: int, seed: int) -> bool:
    """Whether `count` faults were survived."""
    kinds = random.Random(seed)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        undisturbed = faults.fit(place / "undisturbed", lambda record: None)
        for number in range(count):
            fault = kinds.choice(list(faults.FAULTS))
            own = place / f"fault{number}"
            outcomes.append(faults.strike(fault, seed + number, own, undisturbed))
            print(f"{number + 1:4} {outcomes[-1]}")
    of_kind = collections.defaultdict(list)
    for outcome in outcomes:
        of_kind[outcome.fault].append(outcome)
    print(f"\n{'fault':26}{'times':>6}{'well':>6}{'named, s':>18}{'resumed, s':>18}")
    for fault, found in of_kind.items():
        spans = "".join(
            _span([getattr(outcome, what) for outcome in found]) for what in ("noticed", "resumed")
        )
        print(f"{fault:26}{len(found):6}{sum(o.is_well and o.is_in_time for o in found):6}{spans}")
    return all(outcome.is_well and outcome.is_in_time for outcome in outcomes)


def _span(seconds: list[float]) -> str:
    """Median and longest of those that came to pass."""
    known = [s for s in seconds if s == s]
    return f"{f'{statistics.median(known):.1f} (<= {max(known):.1f})' if known else '-':>18}"


if __name__ == "__main__":
    sys.exit(main())
