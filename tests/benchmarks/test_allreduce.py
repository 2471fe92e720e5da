"""The benchmark of all-reduce: its judgement, and a short run of its own contestants."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks import allreduce
from benchmarks.allreduce import BOUND, KB, MB, bus_bandwidth, judge_host, judge_links

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(("size", "factor"), [(2, 1.0), (4, 1.5)])
def test_bus_bandwidth_counts_what_a_rank_must_send(size, factor):
    assert bus_bandwidth(1000, size, 0.5) == 2000 * factor


def test_bars_on_one_host():
    times = {"memory": 1.0, "tcp": 1.5, "gloo": 2.0}
    assert [met for met, _ in judge_host(4 * MB, times)] == [True]
    assert [met for met, _ in judge_host(4 * MB, times | {"gloo": 1.99})] == [False]
    assert [met for met, _ in judge_host(KB, times | {"gloo": 1.2})] == [True, False]
    assert judge_host(MB, times) == []
    assert judge_host(4 * MB, {"memory": 1.0, "tcp": 1.0}) == [], "without Gloo"


def test_bars_on_links():
    fastest = 16 * MB / BOUND  # of two hosts
    assert 117e6 < BOUND < 118e6
    assert judge_links(16 * MB, 2, {"tcp": fastest / 0.93})[0][0]
    ((met, text),) = judge_links(16 * MB, 2, {"tcp": fastest / 0.9, "gloo": fastest / 0.5})
    assert not met
    assert "tcp 90.0% of the bound (bar 92%) MISSED, gloo 50.0%" in text


def test_a_short_run_without_gloo(tmp_path):
    command = [sys.executable, "benchmarks/allreduce.py", "--ranks", "2", "--rounds", "1"]
    environment = os.environ | {"TENSORLITE_PEERS": str(tmp_path)}
    done = subprocess.run(
        [*command, "--bytes", "1024,262144"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "without Gloo" in done.stdout
    rows = re.findall(r"^ +(\d+) +[\d.]+ +([\d.]+) +[\d.]+ +([\d.]+)", done.stdout, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [1024, 262144]


def test_bad_arguments(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["allreduce.py", "--ranks", "1"])
    with pytest.raises(SystemExit):
        allreduce.parse()
    assert "at least 2 ranks" in capsys.readouterr().err
