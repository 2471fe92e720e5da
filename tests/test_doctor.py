"""`tensorlite doctor`: each fault with its cure, in processes and namespaces that have it."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from tensorlite import cli, doctor


def fake_java(folder: pathlib.Path, says: str, status: int = 0) -> None:
    """A `java` below `folder` that answers like this."""
    command = folder / "bin" / "java"
    command.parent.mkdir(parents=True)
    command.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit {status}\n")
    command.chmod(0o755)


def test_no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = doctor.java()
    assert (found.grade, found.found) == ("fault", "java was not found")
    assert "apt install openjdk-17" in found.cure and "point JAVA_HOME" in found.cure


@pytest.mark.parametrize(
    ("says", "found"),
    [
        ('openjdk version "11.0.22" 2024-01-16', "11.0.22"),
        ('java version "1.8.0_392"', "1.8.0_392"),
    ],
)
def test_an_old_java(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, says: str, found: str
) -> None:
    fake_java(tmp_path, says)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    finding = doctor.java()
    assert finding.grade == "fault"
    assert finding.found == f"{found} at {tmp_path}/bin/java: Spark needs 17 or newer"
    assert f"correct JAVA_HOME={tmp_path}" in finding.cure


def test_a_java_that_does_not_work(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    fake_java(tmp_path, "Error: could not find libjvm.so", status=1)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert "says no version: Error: could not find libjvm.so" in doctor.java().found


def test_a_new_java(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    fake_java(tmp_path, 'openjdk version "21" 2023-09-19')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert doctor.java().grade == "ok"


def command(*arguments: str, prefix: Sequence[str] = (), **environment: str) -> tuple[int, str]:
    """The status and the output of `tensorlite doctor` in a process of its own."""
    program = "import sys; from tensorlite.cli import main; sys.exit(main())"
    done = subprocess.run(
        [*prefix, sys.executable, "-c", program, "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_no_onednn_and_no_opencl(tmp_path: pathlib.Path) -> None:
    status, text = command(
        TENSORLITE_ONEDNN=str(tmp_path / "none.so"), PYTHONPATH=str(_without(tmp_path, "pyopencl"))
    )
    assert status == 1
    assert "FAULT  oneDNN" in text and "is the only place that is looked at: correct" in text
    assert "note   OpenCL        no device" in text
    assert 'pip install "tensorlite[opencl]"' in text


def _without(folder: pathlib.Path, package: str) -> pathlib.Path:
    """A folder for PYTHONPATH in which the package is one that cannot be imported."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text("raise ImportError('not here')\n")
    return folder


def needs(*prefix: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Skip where this command may not be used."""
    try:
        usable = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        usable = False
    return pytest.mark.skipif(not usable, reason=f"{prefix[0]} needs root")


@needs("unshare", "--net")
def test_an_interface_that_is_down() -> None:
    status, text = command("--ports", "7000-7001", prefix=["unshare", "--net"])
    assert status == 1
    assert "FAULT  network" in text and "ip link set lo up" in text
    assert "ports " not in text  # nothing more can be said of them


@needs("unshare", "--mount")
def test_a_small_dev_shm() -> None:
    shell = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    _, text = command(prefix=["unshare", "--mount", "sh", "-c", shell, "sh"])
    assert "note   shared memory anonymous files; /dev/shm has 1 MiB" in text
    assert "--shm-size=1g" in text


def test_ports_that_are_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finding = doctor._ports("127.0.0.1", port, port)
        assert finding.grade == "fault"
        assert finding.found == f"0 of 1 ports are free; {port}: Address already in use"
        assert "ss -ltnp" in finding.cure


@pytest.mark.parametrize("ports", ["7000:7010", "x", "9-7", "0-5", "1-70000"])
def test_ports_that_are_none(capsys: pytest.CaptureFixture[str], ports: str) -> None:
    assert cli.main(["doctor", "--ports", ports]) == 2
    assert f"got {ports!r}" in capsys.readouterr().err


def test_a_host_name_that_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "nowhere.invalid")
    first, second = doctor.network(None)
    assert first.grade == "fault" and "nowhere.invalid, is unknown" in first.found
    assert "/etc/hosts" in first.cure
    assert second.grade == "ok"


def test_what_is_only_slower_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [doctor.Finding("a", "ok", "x"), doctor.Finding("b", "note", "y", "z")]
    assert doctor.report(iter(findings), print)
    assert capsys.readouterr().out.splitlines() == [
        "ok     a             x",
        "note   b             y",
        "                     -> z",
        "",
        "Nothing is wrong",
        "1 note: what is optional, or costs speed only",
    ]
    assert not doctor.report(iter([doctor.Finding("a", "fault", "x", "y")]), print)
