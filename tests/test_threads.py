"""The one setting for threads: what it takes, where it comes from, and whom it reaches."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import threadpoolctl

import tensorlite as tl


@pytest.fixture
def restored():
    before = tl.get_num_threads()
    yield
    tl.set_num_threads(before)


def test_set_and_get(restored):
    tl.set_num_threads(2)
    assert tl.get_num_threads() == 2
    tl.set_num_threads(1)
    assert tl.get_num_threads() == 1
    blas = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
    assert {pool["num_threads"] for pool in blas} == {1}


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", True, None])
def test_what_is_no_number_of_threads_is_refused(count, restored):
    with pytest.raises(ValueError, match="set_num_threads: takes a positive number of threads"):
        tl.set_num_threads(count)


def _in_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    cleared = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")}
    return subprocess.run(
        [sys.executable, "-c", f"import tensorlite as tl\n{code}"],
        capture_output=True,
        text=True,
        env=cleared | environment,
        timeout=60,
    )


def test_the_environment_is_the_default():
    show = "print(tl.get_num_threads())"
    both = {"TENSORLITE_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}
    assert _in_new_process(show, **both).stdout == "3\n"
    assert _in_new_process(show, OMP_NUM_THREADS="5").stdout == "5\n"
    processors = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    assert _in_new_process(show).stdout == f"{processors}\n"


def test_a_misspelt_environment_is_refused():
    done = _in_new_process("tl.get_num_threads()", TENSORLITE_NUM_THREADS="two")
    assert "TENSORLITE_NUM_THREADS is a positive number of threads, got 'two'" in done.stderr
