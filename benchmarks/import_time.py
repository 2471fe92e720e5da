"""How long `import tensorlite` takes beside `import numpy`, which it cannot do without.

Each import runs in a fresh interpreter and times itself; the two alternate, so that whatever else
the machine does falls on both. The first pair is thrown away: it fills the file cache.

    python benchmarks/import_time.py [--pairs 20]

Prints both medians and their ratio. Exits 1 if the ratio reaches 2, the bar of this project.
"""

import argparse
import statistics
import subprocess
import sys

BAR = 2.0
TIMED_IMPORT = """
from time import perf_counter
start = perf_counter()
import {module}
print(perf_counter() - start)
"""


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=20, help="imports of each (default: 20)")
    pairs = parser.parse_args().pairs
    if pairs < 1:
        parser.error(f"--pairs must be at least 1, not {pairs}")

    modules = ("numpy", "tensorlite")
    seconds: dict[str, list[float]] = {module: [] for module in modules}
    for round_ in range(pairs + 1):
        for module in modules:
            taken = import_seconds(module)
            if round_ > 0:
                seconds[module].append(taken)

    for module in modules:
        median, best = statistics.median(seconds[module]), min(seconds[module])
        print(f"import {module:12} median {median * 1e3:7.1f} ms   best {best * 1e3:7.1f} ms")
    ratio = statistics.median(seconds["tensorlite"]) / statistics.median(seconds["numpy"])
    verdict = "met" if ratio < BAR else "MISSED"
    print(f"ratio of medians {ratio:.2f}x over {pairs} pairs (bar: under {BAR:g}x, {verdict})")
    return 0 if ratio < BAR else 1


def import_seconds(module: str) -> float:
    """Return the seconds that importing `module` takes in a fresh interpreter."""
    command = [sys.executable, "-c", TIMED_IMPORT.format(module=module)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    sys.exit(main())
