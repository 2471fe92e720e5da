"""`tensorlite bench`: what is measured, of which models, and what is typed wrongly."""

from __future__ import annotations

import json
import os
import pathlib
import re

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import bench, cli, random
from tensorlite.threads import get_num_threads

MODELS = """
import tensorlite as tl
from tensorlite import nn, random


class Net(nn.Module):
    def __init__(self, key):
        self.norm, self.drop = nn.BatchNorm(3), nn.Dropout(0.5)
        self.head = nn.Linear(12, 4, key=key)

    def __call__(self, x, training=False, key=None):
        x = self.norm(x, training=training).reshape(x.shape[0], -1)
        return self.head(self.drop(x, key=key, training=training))


class Mean(nn.Module):
    def __init__(self, key):
        self.scale = tl.ones(3)

    def __call__(self, x):
        return tl.mean(x * self.scale, axis=0)


def line(key):
    return nn.Linear(3, 1, key=key)
"""


@pytest.fixture(autouse=True)
def quick(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sizes, few runs, and a module of the user's in the working directory."""
    (tmp_path / "nets_of_bench.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(bench, "SECONDS", 0.01)
    monkeypatch.setattr(bench, "PRODUCTS", (32, 64))
    monkeypatch.setattr(bench, "COPIED", 1 << 20)
    monkeypatch.setattr(bench, "BATCH", 4)


def test_a_measurement_is_a_median_of_rates() -> None:
    found = bench.measured("it", 6.0, "things/s", [1.0, 2.0, 3.0, 4.0, 100.0])
    assert (found.value, found.seconds, found.repeats) == (2.0, 3.0, 5)
    assert found.spread > 0


def test_the_first_run_is_not_counted_and_the_others_are_repeated() -> None:
    runs: list[int] = []
    times = bench.timed(lambda: runs.append(1), "cpu")
    assert bench.LEAST <= len(times) == len(runs) - 1 <= bench.MOST


@pytest.mark.parametrize("bfloat16", [True, False])
def test_the_machine(
    bfloat16: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (bench, cli):
        monkeypatch.setattr(module, "has_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    threads = get_num_threads()
    assert cli.main(["bench"]) == 0
    assert get_num_threads() == threads
    head, note, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith(f"cpu: {bench.processor()}, {threads} thread")
    assert "in the last minute 99.0 processes wanted these" in note
    if bfloat16:
        assert any("bfloat16" in line and "GFLOP/s" in line for line in lines)
    else:
        assert lines.pop(0) == (
            "Note: this processor has no instructions for bfloat16, which is left out"
        )
        assert not any("bfloat16" in line for line in lines)
    for line in lines:
        assert re.search(
            r" [\d.,e+]+ (GFLOP/s|GB/s|images/s) +[\d.]+ (s|ms|us) ± \d+% +\d+ runs$", line
        )
    of_training = [line for line in lines if line.startswith("training step, tutorial network")]
    assert f"batch 4, {threads} thread" in of_training[-1] and ", 1 thread " in of_training[0]


def test_parts_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--only", "copy", "--only", "convolution", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["device"] == "cpu" and found["machine"]["host"]
    copy, convolution = found["measurements"]
    assert copy["what"].startswith("copy") and copy["unit"] == "GB/s"
    assert convolution["value"] > 0 and convolution["repeats"] >= bench.LEAST
    assert np.isclose(copy["value"] * copy["seconds"], 2e-9 * bench.COPIED)


def test_an_opencl_device(capsys: pytest.CaptureFixture[str]) -> None:
    if len(tl.devices()) == 1:
        pytest.skip("there is no OpenCL device here")
    assert cli.main(["bench", "--device", "opencl:0", "--only", "products"]) == 0
    head, *_, line = capsys.readouterr().out.splitlines()
    assert head.startswith("opencl:0: ") and "threads" not in head
    assert line.startswith("matrix product") and "float32" in line


def test_a_model_of_the_users(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "nets_of_bench:Net", "--input", "2,2,3", "--batch", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("forward, batch 8, float32") for line in lines)
    assert any(line.startswith("training step, batch 8, float32") for line in lines)


def test_a_model_of_one_number_is_trained_by_squares(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "nets_of_bench:line", "--input", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["measurements"]
    assert {row["unit"] for row in rows} == {"rows/s"}


def test_the_tutorial_network_gives_logits() -> None:
    network = bench.TutorialNetwork(random.key(0))
    assert network(bench._rows((2, 24, 24, 3))).shape == (2, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "1"], "--workers is how many processes all-reduce, 2 or more, got 1"),
        (["--only", "all-reduce"], "--only all-reduce needs --workers, such as --workers 2"),
        (["--batch", "0"], "--batch is a number of rows, 1 or more, got 0"),
        (["--input", "3"], "name a MODEL, as module:Net"),
        (["--device", "opencl:99"], "there is no device 'opencl:99'; this machine has cpu"),
        (["nets_of_bench:Net"], "such as 32,32,3; got nothing"),
        (["nets_of_bench:Net", "--input", "2,x"], "such as 32,32,3; got '2,x'"),
        (["nets_of_bench:Net", "--input", "2", "--only", "copy"], "leave MODEL out"),
        (["Net", "--input", "3"], "'Net' is not written module:name"),
        (["nets_of_bench:Net", "--input", "2,2,4"], "to float32 rows of shape (128, 2, 2, 4): "),
        (["nets_of_bench:Mean", "--input", "3"], "Mean returns shape (3,) for 128 rows"),
    ],
)
def test_what_is_typed_wrong_is_said(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err
