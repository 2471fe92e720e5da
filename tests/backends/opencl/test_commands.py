"""The command `tensorlite` as one types it, rightly and wrongly."""

from __future__ import annotations

import json
import pathlib

import pytest

import tensorlite as tl
from tensorlite import cli
from tensorlite.backends.opencl import runtime
from tensorlite.backends.opencl.products import choices

STEPS = """
import numpy as np, tensorlite as tl
@tl.jit
def train(x, w):
    return tl.grad(lambda w: tl.sum(tl.tanh(x @ w) ** 2))(w)
def plain(x):
    return x + 1
def example():
    return np.zeros((9, 30), np.float32), np.zeros((30, 20), np.float32)
def single():
    return np.zeros(3, np.float32)
def text():
    return "nine", 3
three = 3
"""


@pytest.fixture(autouse=True)
def steps(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder with a module of the user's, to work in, with a cache of its own."""
    (tmp_path / "steps_of_test.py").write_text(STEPS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TENSORLITE_TUNE", raising=False)
    return tmp_path


def test_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "device", "kind", "units", "memory", "dtypes", "driver"]
    assert [row.split()[0] for row in rows] == [device.name for device in tl.devices()]
    assert cli.main(["devices", "--json"]) == 0
    found = runtime.find("opencl:0")
    row = json.loads(capsys.readouterr().out)[1]
    assert row["name"] == "opencl:0" and row["memory"] == found.device.global_mem_size
    assert row["units"] == found.traits.units and row["kind"] == found.traits.kind


def test_drivers_that_fail_are_named_beside_those_that_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "problems", lambda: ("the driver of Acme fails: no such file",))
    assert cli.main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "Not listed: the driver of Acme fails: no such file."


def test_where_there_are_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "find_all", lambda: ())
    assert cli.main(["devices"]) == 0
    assert "No OpenCL devices: " in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["kernels"]])
def test_without_a_command_it_says_which_there_are(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command) == 2
    assert "commands:" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"tensorlite {tl.__version__}\n"


def test_tuning_the_products_of_a_function(capsys: pytest.CaptureFixture[str]) -> None:
    """A product forward, and one for the gradient."""
    assert cli.main(["kernels", "tune", "steps_of_test:train", "steps_of_test:example"]) == 0
    *lines, summary = capsys.readouterr().out.splitlines()
    place = choices.path(runtime.find("opencl:0").traits)
    assert place is not None
    kept = json.loads(place.read_text())["choices"]
    assert len(lines) == len(kept) == 2
    assert sorted(line.partition(": ")[0] for line in lines) == sorted(kept)
    assert all(line.partition(": ")[2].split()[1].startswith("ms") for line in lines)
    assert summary.startswith("one of each: ") and summary.endswith(f"kept in {place}")


def test_nothing_to_tune(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kernels", "tune", "steps_of_test:plain", "steps_of_test:single"]) == 0
    out = capsys.readouterr().out
    assert out == "steps_of_test:plain has no products or convolutions to tune\n"


def test_tuning_needs_a_place_to_keep_things(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORLITE_CACHE", "")
    assert cli.main(["kernels", "tune", "steps_of_test:train", "steps_of_test:example"]) == 2
    assert "TENSORLITE_CACHE is set to nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("function", "example", "message"),
    [
        ("steps_of_test", "steps_of_test:example", "'steps_of_test' is not written module:name"),
        ("nowhere:f", "steps_of_test:example", "cannot import 'nowhere'"),
        ("steps_of_test:nothing", "steps_of_test:example", "'steps_of_test' has no 'nothing'"),
        ("steps_of_test:three", "steps_of_test:example", "steps_of_test:three is int, not a func"),
        ("steps_of_test:train", "steps_of_test:text", "steps_of_test:text returned str among the"),
    ],
)
@pytest.mark.parametrize("command", [["export", "--out", "out"], ["tune"]])
def test_functions_that_cannot_be_taken(
    command: list[str],
    function: str,
    example: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["kernels", *command, function, example]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", [["export", "--out", "out"], ["tune"]])
def test_devices_that_are_none(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    named = ["steps_of_test:train", "steps_of_test:example", "--device", "opencl:99"]
    assert cli.main(["kernels", *command, *named]) == 2
    assert "there is no device 'opencl:99'; this machine has cpu, " in capsys.readouterr().err


def test_building_what_is_none(steps: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kernels", "build", "nowhere"]) == 2
    assert "there is no manifest.json in nowhere" in capsys.readouterr().err
    assert (
        cli.main(
            ["kernels", "export", "steps_of_test:plain", "steps_of_test:single", "--out", "out"]
        )
        == 0
    )
    (source,) = (steps / "out").glob("*.cl")
    source.write_text(source.read_text().replace("{", "{ no such thing;", 1))
    assert cli.main(["kernels", "build", "out"]) == 2
    assert "no such thing" in capsys.readouterr().err
