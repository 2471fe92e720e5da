"""Several processes: killed while they build, building at once, sharing a device by its parts."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pyopencl as cl
import pytest

from tensorlite.backends import cache
from tensorlite.backends.opencl import runtime

# What every process below begins with. It says when it compiles, and can be told to die by
# SIGKILL in the middle of writing what it has compiled.
BEGINNING = """
import json, os, signal, sys
import numpy as np, tensorlite as tl
from tensorlite.backends import cache
from tensorlite.backends.opencl.programs import Programs

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

class Half:
    def __init__(self, handle, mode):
        self.file = open(handle, mode)
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def write(self, content):
        if len(content) == 32:  # a checksum comes first
            self.file.write(content)
            return
        self.file.write(content[:len(content) // 2])
        self.file.flush()
        die()

built, from_source = [], Programs._from_source

def telling(self, source):
    built.append(source)
    print("building", flush=True)
    return from_source(self, source)

Programs._from_source = telling
moment = os.environ.get("MOMENT")
if moment == "half written":
    cache.os = type(os)("os")
    vars(cache.os).update(vars(os), fdopen=Half)
elif moment == "before renaming":
    cache.os = type(os)("os")
    vars(cache.os).update(vars(os), replace=die)

def together():
    print("ready", flush=True)
    sys.stdin.readline()
"""
STEP = """
x = tl.asarray(np.arange(12, dtype=np.float32).reshape(3, 4), device="opencl:0")
together()
y = tl.jit(lambda x: tl.sum(tl.exp(x * 0.1), axis=1) @ x)(x)
print(json.dumps({"result": np.asarray(y).tolist(), "built": len(built)}))
"""
X = np.arange(12).reshape(3, 4)
WANTED = np.exp(X * 0.1).sum(axis=1) @ X


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Where the caches of tensorlite and of the driver are."""
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path))
    monkeypatch.setenv("POCL_CACHE_DIR", str(tmp_path / "driver"))
    return tmp_path


def start(program: str, **environment: str) -> subprocess.Popen[str]:
    """A process that stops where it says `together`."""
    return subprocess.Popen(
        [sys.executable, "-c", BEGINNING + program],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    pytest.fail(f"a process ended before it said {word!r}: {process.communicate()[1]}")


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def outcomes(processes: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """What processes report that go on at the same moment."""
    for process in processes:
        wait_for(process, "ready")
    for process in processes:
        go_on(process)
    found = []
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        found.append(json.loads(out.splitlines()[-1]))
    return found


def check_the_cache(folder: pathlib.Path, killed: int) -> None:
    """All entries are whole; what killed writers left is under names that nobody reads."""
    files = list((folder / "opencl").iterdir())
    entries = [file for file in files if file.suffix == ".object"]
    assert all(cache.read("opencl", file.stem) is not None for file in entries)
    others = [file for file in files if file not in entries]
    assert all(file.name.startswith("new-") for file in others) and len(others) <= killed


def test_processes_that_build_the_same_kernels_at_once(folder: pathlib.Path) -> None:
    first = outcomes([start(STEP) for _ in range(3)])
    for outcome in first:
        np.testing.assert_allclose(outcome["result"], WANTED, rtol=1e-5)
    assert sum(outcome["built"] for outcome in first) > 0
    check_the_cache(folder, killed=0)
    (later,) = outcomes([start(STEP)])
    assert later == {"result": first[0]["result"], "built": 0}


@pytest.mark.parametrize("moment", ["compiling", "half written", "before renaming"])
def test_processes_that_are_killed_leave_the_cache_whole(folder: pathlib.Path, moment: str) -> None:
    delays = [0.0, 0.02, 0.1] if moment == "compiling" else [0.0]
    for delay in delays:
        process = start(STEP, MOMENT=moment)
        wait_for(process, "ready")
        go_on(process)
        wait_for(process, "building")
        if moment == "compiling":
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=100)
        assert process.returncode == -signal.SIGKILL
    if moment != "compiling":
        assert not list((folder / "opencl").glob("*.object"))
        assert len(list((folder / "opencl").glob("new-*"))) == 1
    for outcome in outcomes([start(STEP) for _ in range(2)]):
        np.testing.assert_allclose(outcome["result"], WANTED, rtol=1e-5)
    check_the_cache(folder, killed=len(delays))
    assert outcomes([start(STEP)])[0]["built"] == 0


# ---- parts of one device -------------------------------------------------------------------------

PART = """
from tensorlite.backends.opencl.runtime import runtime
name = os.environ["DEVICE"]
x = tl.asarray(np.full((64, 64), 0.01, np.float32), device=name)
step = tl.jit(lambda x: tl.tanh(x @ x) + 0.01)
step(x)
together()
for _ in range(100):
    x = step(x)
at, refused = runtime(name), ""
try:
    tl.zeros((160 << 20,), dtype=tl.float32, device=name)
except MemoryError as error:
    refused = str(error)
with tl.default_device(name):
    small = float(tl.sum(tl.ones((16 << 20,), dtype=tl.float32)))
print(json.dumps({
    "device": str(x.device.name), "result": float(x[3, 5]), "units": at.traits.units,
    "limit": at.pool.limit, "refused": refused, "small": small, "after": float(step(x)[3, 5]),
}))
"""


def test_two_processes_share_a_device_by_parts(folder: pathlib.Path) -> None:
    """Each has its units and its half of the memory; one that asks for more goes on with less."""
    whole = runtime.find("opencl:0")
    if whole.traits.units < 2:
        pytest.skip("the device has one compute unit")
    makes_parts = cl.device_partition_property.EQUALLY in whole.device.partition_properties
    names = ["opencl:0/2:0", "opencl:0/2:1"]
    limit = {"TENSORLITE_MEMORY_LIMIT": "1GiB"}
    found = outcomes([start(PART, DEVICE=name, **limit) for name in names])
    x = np.full((64, 64), 0.01, np.float32)
    for _ in range(100):
        x = np.tanh(x @ x) + np.float32(0.01)
    for name, outcome in zip(names, found, strict=True):
        assert outcome["device"] == name
        assert outcome["units"] == whole.traits.units // (2 if makes_parts else 1)
        assert outcome["limit"] == 512 << 20
        assert f"{name} has no room for 640.0 MiB" in outcome["refused"]
        assert outcome["small"] == 16 << 20
        np.testing.assert_allclose([outcome["result"], outcome["after"]], x[3, 5], rtol=1e-5)
