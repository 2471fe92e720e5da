"""The all-reduce that `tensorlite bench --workers` measures."""

import json

from tensorlite import cli
from tensorlite.distributed import measuring


def test_bus_bytes():
    assert measuring.bus_bytes(100, 2) == 100 and measuring.bus_bytes(100, 4) == 150


def test_processes_are_measured_through_memory_and_over_connections(capsys):
    assert cli.main(["bench", "--workers", "2", "--only", "all-reduce", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["measurements"]
    assert len(rows) == 2 * len(measuring.SIZES)
    assert rows[0]["what"] == "all-reduce 1 KiB among 2 processes, shared memory"
    assert rows[-1]["what"] == "all-reduce 64 MiB among 2 processes, TCP on this machine"
    for row, nbytes in zip(rows, 2 * measuring.SIZES, strict=True):
        assert row["unit"] == "GB/s bus" and row["repeats"] >= measuring.LEAST
        assert abs(row["value"] * row["seconds"] - 1e-9 * nbytes) < 1e-12
