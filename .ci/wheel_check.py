"""Builds the wheel and proves that it installs and imports as it should.

The source folder `distributed/` becomes `tensorlite.distributed`, a renaming that an editable
install can get right while the wheel gets it wrong. So the wheel is built (through the source
distribution, as a release would be), compared with the source tree, installed into a clean
environment with its core dependencies only, and imported from a folder outside the repository.

Run by `make wheel-check`. Exits non-zero, naming what is wrong.
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Runs in the clean environment, which holds the core dependencies and nothing else of ours.
IMPORTS = """
import importlib.util, sys
import tensorlite
for name in ("pyspark", "pyopencl"):
    assert name not in sys.modules, f"import tensorlite imported {name}"
import tensorlite.distributed
assert "site-packages" in tensorlite.distributed.__file__, tensorlite.distributed.__file__
assert importlib.util.find_spec("distributed") is None, "a top-level `distributed` was installed"
print("imported", tensorlite.distributed.__name__, "from", tensorlite.distributed.__file__)
"""


def main() -> None:
    """Build, compare, install, import."""
    with tempfile.TemporaryDirectory(prefix="wheel-check-") as name:
        scratch = Path(name)
        wheel = build(scratch)
        compare_with_sources(wheel)
        python = install(wheel, scratch)
        # -I keeps the current folder and PYTHONPATH out, so that only what was installed counts.
        run([str(python), "-I", "-c", IMPORTS], cwd=scratch)
    print("wheel check passed:", wheel.name)


def build(scratch: Path) -> Path:
    """Return the path of the wheel, built from the source distribution."""
    run([sys.executable, "-m", "build", "--outdir", str(scratch), str(ROOT)], quiet=True)
    (wheel,) = scratch.glob("*.whl")
    return wheel


def compare_with_sources(wheel: Path) -> None:
    """Exit unless the wheel holds every module of the source tree, and nothing at the top level
    but `tensorlite` and its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.endswith("/")}
    tops = {name.split("/")[0] for name in packed}
    unwanted = {top for top in tops if top != "tensorlite" and not top.endswith(".dist-info")}
    if unwanted:
        sys.exit(f"wheel check: {wheel.name} holds {sorted(unwanted)} at the top level")

    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tensorlite").rglob("*.py")}
    wanted |= {
        f"tensorlite/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "distributed").rglob("*.py")
    }
    wanted.add("tensorlite/py.typed")
    if wanted - packed:
        sys.exit(
            f"wheel check: {wheel.name} lacks {sorted(wanted - packed)}; "
            "list their packages in [tool.setuptools] of pyproject.toml"
        )


def install(wheel: Path, scratch: Path) -> Path:
    """Install the wheel into an environment of its own and return that one's interpreter."""
    folder = scratch / "environment"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*command, str(wheel)])
    return python


def run(command: list[str], cwd: Path | None = None, quiet: bool = False) -> None:
    """Run a command; on failure show what it printed and exit with its status."""
    done = subprocess.run(
        command,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
    )
    if done.returncode:
        print(done.stdout or "", end="")
        sys.exit(f"wheel check: {' '.join(command[:4])} ... failed with {done.returncode}")


if __name__ == "__main__":
    main()
