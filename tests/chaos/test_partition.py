"""Networks that fail: a host that is cut off while it trains, or two that do not reach each other,
of which every rank says so within seconds and ends; and links that lose packets, which change no
bit."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

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
        laboratory.{fault}
        began = time.monotonic()
        with contextlib.suppress(LabError):
            listen([world], [world], 10**6, 60)  # until a rank has ended
        for process in world._processes:
            process.wait(30)
        world._log.seek(0)
        print(json.dumps({{"seconds": time.monotonic() - began, "said": world._log.read()}}))
"""

LOSE = """
import contextlib, json
from benchmarks.lab.hosts import Laboratory
from benchmarks.lab.worlds import World, listen

losses, lost = [], []
with Laboratory(2, 0.4) as laboratory:
    for queue in ({queues}):
        laboratory.links(1e9, queue=queue)
        before = laboratory.lost()
        with contextlib.closing(World(laboratory.hosts, 64)) as world:
            listen([world], [world], 12, 60)
            losses.append([message["loss"] for message in world.messages[:12]])
        lost.append(laboratory.lost() - before)
print(json.dumps({{"losses": losses, "lost": lost}}))
"""


def can_build() -> bool:
    try:
        require()
    except LabError:
        return False
    return True


pytestmark = [
    pytest.mark.skipif(not can_build(), reason="needs root, cgroups, ip and tc"),
    pytest.mark.timeout(170),
]


def told_by(program: str) -> dict[str, Any]:
    """What a program in a laboratory of its own prints."""
    environment = os.environ | {"TENSORLITE_LAB": f"tlcut{os.getpid()}"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_links_that_lose_packets() -> None:
    found = told_by(LOSE.format(queues="1024 * 1024, 96 * 1024"))
    few, many = found["lost"]
    assert few < 10 < many, found["lost"]
    assert len(found["losses"][0]) == 12 and found["losses"][0] == found["losses"][1]


def test_two_hosts_that_do_not_reach_each_other() -> None:
    """Rank 0 reaches both, so no sign of life is missing."""
    found = told_by(CUT.format(fault="part(1, 2)"))
    said = [line for line in found["said"].splitlines() if "cannot reach it any more" in line]
    assert len(said) >= 3, found["said"]
    assert all("rank 1 (host 10.99.0.11) was lost: rank 2" in line for line in said), said
    assert found["seconds"] < 20


@pytest.mark.parametrize("victim", [0, 2])
def test_a_host_that_is_cut_off(victim: int) -> None:
    found = told_by(CUT.format(fault=f"cut({victim})"))
    said = [line for line in found["said"].splitlines() if "no sign of life" in line]
    assert len(said) >= 3, found["said"]
