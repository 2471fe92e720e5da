"""The cache of machine code: what happens to it when files are damaged, many processes write at
once, or one is killed."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest

from tensorlite.backends import cache

llvm = pytest.importorskip("tensorlite.backends.cpu.llvm")
pytestmark = pytest.mark.skipif(not llvm.available(), reason="nests cannot be compiled here")

PROGRAM = """
    import numpy as np
    from tensorlite.backends.cpu import llvm
    from tensorlite.backends.cpu.llvm import engine
    from tensorlite.compiler.loops import Nest, Operand, Output, Recorder, Scalars

    made = []
    compile_ = engine._Machine.compile
    engine._Machine.compile = lambda self, text: made.append(1) or compile_(self, text)
    recorder = Recorder()
    x = recorder.emit("load", (), np.dtype(np.float32), 0)
    y = Scalars(recorder).exp(x)
    operand = Operand(x.dtype, (1,))
    nest = Nest((50,), (), (operand,), tuple(recorder.body), (Output(y.position, operand),))
    data, out = np.linspace(-1, 1, 50, dtype=np.float32), np.zeros(50, np.float32)
    llvm.run_nest(nest, [data], [out])
    np.testing.assert_allclose(out, np.exp(data), rtol=1e-6)
    print(len(made))
"""


def start(folder: pathlib.Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        env={**os.environ, "TENSORLITE_CACHE": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def compiled(process: subprocess.Popen[str]) -> int:
    """How many modules a finished program had to compile."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Warning" not in err
    return int(out)


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted((folder / "llvm").iterdir())


def test_the_next_process_compiles_nothing(tmp_path: pathlib.Path) -> None:
    assert compiled(start(tmp_path)) == 1
    assert compiled(start(tmp_path)) == 0
    (path,) = files(tmp_path)
    content = path.read_bytes()
    for damaged in (b"", content[:20], content[:-1], content[:40] + b"x" + content[41:]):
        path.write_bytes(damaged)
        assert compiled(start(tmp_path)) == 1
        assert path.read_bytes() == content


def test_many_at_once(tmp_path: pathlib.Path) -> None:
    processes = [start(tmp_path) for _ in range(4)]
    assert all(compiled(p) in (0, 1) for p in processes)
    assert len(files(tmp_path)) == 1
    assert compiled(start(tmp_path)) == 0


def test_killed_while_it_writes(tmp_path: pathlib.Path) -> None:
    """The writer stops in the middle of its file, for good."""
    program = """
        import os, time
        from tensorlite.backends import cache

        replace = os.replace
        os.replace = lambda *a: (print("now", flush=True), time.sleep(60))
        cache.write("llvm", "name", b"code" * 1000)
    """
    environment = {**os.environ, "TENSORLITE_CACHE": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "now\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORLITE_CACHE", str(tmp_path))
        assert cache.read("llvm", "name") is None
        cache.write("llvm", "name", b"code")
        assert cache.read("llvm", "name") == b"code"


def test_the_oldest_go(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "LIMIT", 5000)
    monkeypatch.setattr(cache, "_PRUNE_EVERY", 1)
    for i in range(6):
        cache.write("llvm", f"number{i}", bytes(1000))
        os.utime(tmp_path / "llvm" / f"number{i}.object", (i, i))
    cache.write("llvm", "last", bytes(1000))
    left = {p.stem for p in files(tmp_path)}
    assert "last" in left and "number0" not in left and len(left) <= 5


def test_a_folder_that_cannot_be_written_to(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llvm").write_text("in the way")
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="TENSORLITE_CACHE"):
        cache.write("llvm", "name", b"code")
    assert cache.read("llvm", "name") is None


def test_nothing_is_kept_when_the_variable_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORLITE_CACHE", "")
    cache.write("llvm", "name", b"code")
    assert cache.folder("llvm") is None and cache.read("llvm", "name") is None
