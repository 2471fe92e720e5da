"""The rooms of the house and which way they look: imports point down, files stay readable, and
importing costs nothing that was not asked for."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ENGINE = sorted((ROOT / "tensorlite").rglob("*.py"))
DISTRIBUTED = sorted((ROOT / "distributed").rglob("*.py"))

# From the ground up. A room may import those before it and itself. Transforms lean on the
# operations that make, shape and add tensors; operations lean on the core.
ROOMS = (
    ("core", "threads"),
    ("dtypes", "tree", "origin", "arguments", "names"),
    ("device",),
    ("observe", "communication"),
    ("ops", "precision"),
    ("boxes", "autodiff", "vectorize", "graph", "render", "drawing"),
    ("checkpoint_policies",),
    ("halves", "composite", "custom_derivative", "jit"),
    ("control_flow", "scan", "derivatives"),
    ("linalg", "array_api"),
    ("compiler",),
    ("backends",),
    ("random", "futex"),
    ("nn", "optim", "data", "io"),
    ("debug", "profiler"),
    ("doctor", "bench", "completions"),
    ("cli",),
)
# Operations that are made of transforms: composites.
ABOVE_TRANSFORMS = {"composite"}
LINES = 500


def module_name(path: pathlib.Path) -> str:
    """The dotted name of the module in a file of the repository."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "distributed":
        parts = ["tensorlite", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: pathlib.Path) -> Iterator[str]:
    """The dotted names that a file imports, relative ones resolved; `if TYPE_CHECKING` is left
    out."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            for alias in node.names:
                yield ".".join([*base, alias.name])


def _without_type_checking(module: ast.Module) -> ast.Module:
    class Remove(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

    return Remove().visit(module)


def room(module: str) -> int | None:
    """How high up the room of a module of the engine is; None for the face `tensorlite` itself."""
    inside = module.removeprefix("tensorlite").strip(".")
    heights = {
        name: height
        for height, names in enumerate(ROOMS)
        for name in names
        if inside == name or inside.startswith(f"{name}.")
    }
    return heights[max(heights, key=len)] if heights else None


@pytest.mark.parametrize("path", ENGINE, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: pathlib.Path) -> None:
    own = module_name(path)
    height = room(own)
    if height is None:
        assert own in {"tensorlite", "tensorlite._version"}, f"{own} is in no room: add it to ROOMS"
        return
    for name in imports(path):
        if not name.startswith("tensorlite."):
            continue
        above = room(name)
        if own.startswith("tensorlite.ops") and name.split(".")[1] in ABOVE_TRANSFORMS:
            continue
        assert above is None or above <= height, f"{own} imports {name} from a room above"


def test_nothing_in_the_engine_imports_the_runtime() -> None:
    for path in ENGINE:
        if path.name == "cli.py":  # the console command stands above both
            continue
        for name in imports(path):
            assert not name.startswith("tensorlite.distributed"), f"{path} imports {name}"


def test_the_runtime_uses_the_public_api_only() -> None:
    public = {"tensorlite", "nn", "optim", "random", "data", "io", "tree", "distributed"}
    for path in DISTRIBUTED:
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "tensorlite" or len(parts) < 3:
                continue  # a name of `tensorlite` itself
            assert parts[1] in public, f"{path} imports {name}, which is inside the engine"
            assert not any(p.startswith("_") for p in parts), f"{path} imports the private {name}"


def test_operations_know_no_backend_and_no_device_by_name() -> None:
    for path in (ROOT / "tensorlite" / "ops").rglob("*.py"):
        assert not any("backends" in name for name in imports(path)), path


@pytest.mark.parametrize("path", [*ENGINE, *DISTRIBUTED], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_can_be_read_in_one_sitting(path: pathlib.Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LINES, f"{path} has {lines} lines; split it"


def test_the_walk_sees_what_it_should() -> None:
    found = set(imports(ROOT / "tensorlite" / "jit.py"))
    assert {"functools", "tensorlite.tree", "tensorlite.core.bind"} <= found
    assert room("tensorlite.ops.creation.asarray") == room("tensorlite.ops.shape")
    assert room("tensorlite.jit") > room("tensorlite.core")  # type: ignore[operator]


def test_importing_starts_no_thread_and_loads_no_heavy_library() -> None:
    code = (
        "import sys, threading, tensorlite\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "heavy = {'pyspark', 'pyopencl', 'sklearn', 'matplotlib', 'pyarrow', 'scipy'}\n"
        "loaded = sorted(heavy & set(sys.modules))\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
