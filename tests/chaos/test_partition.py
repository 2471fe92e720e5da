"""A host that is cut off while it trains: every rank says so within seconds, and ends."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks.lab.commands import LabError, require

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

CUT = """
import contextlib, json, time
from benchmarks.lab.commands import LabError
from benchmarks.lab.hosts import Laboratory
from benchmarks.lab.worlds import World, listen

with Laboratory(3, 0.4) as laboratory:
    laboratory.links(1e9)
    with contextlib.closing(World(laboratory.hosts, 96)) as world:
        listen([world], [world], 3, 240)
        laboratory.cut({victim})
        began = time.monotonic()
        with contextlib.suppress(LabError):
            listen([world], [world], 10**6, 60)  # until a rank has ended
        for process in world._processes:
            process.wait(30)
        world._log.seek(0)
        print(json.dumps({{"seconds": time.monotonic() - began, "said": world._log.read()}}))
"""


def can_build() -> bool:
    try:
        require()
    except LabError:
        return False
    return True


@pytest.mark.skipif(not can_build(), reason="needs root, cgroups, ip and tc")
@pytest.mark.timeout(170)
@pytest.mark.parametrize("victim", [0, 2])
def test_a_host_that_is_cut_off(victim: int) -> None:
    environment = os.environ | {"TENSORLITE_LAB": f"tlcut{os.getpid()}"}
    done = subprocess.run(
        [sys.executable, "-c", CUT.format(victim=victim)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    said = [line for line in found["said"].splitlines() if "no sign of life" in line]
    assert len(said) >= 3, found["said"]
