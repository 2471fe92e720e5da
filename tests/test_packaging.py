"""What is installed, what importing it costs others, and what `make` says when something lacks."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import tensorlite

ROOT = Path(__file__).resolve().parent.parent


def run_outside(tmp_path: Path, code: str) -> str:
    """Run code in a fresh interpreter that sees what is installed but not the repository."""
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_engine_imports_nothing_heavy(tmp_path: Path) -> None:
    modules = run_outside(
        tmp_path, "import sys, json, tensorlite; print(json.dumps(list(sys.modules)))"
    )
    imported = set(json.loads(modules))
    assert "tensorlite" in imported
    heavy = {
        "pyspark",
        "pyopencl",
        "matplotlib",
        "pyarrow",
        "scipy",
        "sklearn",
        "shtab",
        "tensorlite.distributed",
    }
    assert not imported & heavy


def test_the_top_level_folder_imports_as_a_subpackage(tmp_path: Path) -> None:
    code = """
import importlib.util, tensorlite.distributed as dist
print(dist.__name__, importlib.util.find_spec("distributed"))
"""
    assert run_outside(tmp_path, code).split() == ["tensorlite.distributed", "None"]


def test_every_package_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["packages"]
    folders = {
        module.parent.relative_to(ROOT)
        for top in ("tensorlite", "distributed")
        for module in (ROOT / top).rglob("*.py")
    }
    bare = sorted(str(folder) for folder in folders if not (ROOT / folder / "__init__.py").exists())
    assert not bare, f"these folders hold modules but no __init__.py: {bare}"
    packages = {".".join(folder.parts) for folder in folders}
    wanted = {f"tensorlite.{p}" if p.startswith("distributed") else p for p in packages}
    assert sorted(listed) == sorted(wanted), "edit [tool.setuptools] packages in pyproject.toml"


def test_the_version_stands_in_one_place() -> None:
    assert tensorlite.__version__ == metadata.version("tensorlite") == "0.1.0"


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make where there is only the Makefile and its scripts, so that nothing gets installed."""
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copytree(ROOT / ".ci", folder / ".ci", symlinks=True)
    # The tests may have been started by a make of their own, whose settings are not for this one.
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON"}
    inherited = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("target", ["demo", "test"])
def test_without_java_the_first_line_says_what_to_install(tmp_path: Path, target: str) -> None:
    done = make(tmp_path, target, JAVA_HOME=str(tmp_path / "none"))
    first = done.stdout.splitlines()[0]
    assert done.returncode != 0
    assert first.startswith("Spark needs Java 17 or newer")
    for remedy in (
        "Debian/Ubuntu: sudo apt-get install openjdk-17",
        "Fedora: sudo dnf",
        "macOS: brew",
    ):
        assert remedy in first


@pytest.mark.parametrize(
    ("banner", "found"),
    [
        ('openjdk version "11.0.22" 2024-01-16', "is 11.0.22"),
        ('java version "1.8.0_301"', "is 1.8.0_301"),
        ("Unable to locate a Java Runtime.", "is not a working Java"),
    ],
)
def test_a_java_that_is_too_old_or_broken_is_named(tmp_path: Path, banner: str, found: str) -> None:
    java = script(tmp_path / "jdk/bin/java", f"echo '{banner}' >&2")
    done = make(tmp_path, "java", JAVA_HOME=str(tmp_path / "jdk"))
    assert done.returncode != 0
    assert f"{java} {found}. Debian/Ubuntu:" in done.stdout.splitlines()[0]


@pytest.mark.parametrize("version", ["17.0.15", "21-ea", "24"])
def test_a_java_that_is_new_enough_passes(tmp_path: Path, version: str) -> None:
    noise = "echo Picked up JAVA_TOOL_OPTIONS: -Xmx1g >&2"
    script(tmp_path / "jdk/bin/java", f"{noise}; echo 'openjdk version \"{version}\"' >&2")
    done = make(tmp_path, "java", JAVA_HOME=str(tmp_path / "jdk"))
    assert (done.returncode, done.stdout) == (0, "")


def test_a_python_that_is_missing_or_too_old_is_named(tmp_path: Path) -> None:
    done = make(tmp_path, ".venv/.installed", "--what-if=pyproject.toml", PYTHON="python-none")
    assert done.returncode != 0
    assert done.stdout.startswith("PYTHON=python-none was not found; name a Python 3.11 or newer")


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    old = script(tmp_path / "old", 'test "$1" = --version && echo "Python 3.9.2"')
    done = make(tmp_path, ".venv/.installed", "--what-if=pyproject.toml", PYTHON=str(old))
    assert done.returncode != 0
    first = done.stdout.splitlines()[0]
    assert first.startswith(f"PYTHON={old} is Python 3.9.2, but Python 3.11 or newer is needed")
