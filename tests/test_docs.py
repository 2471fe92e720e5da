"""The documentation is complete, and what it shows runs: examples in docstrings, code on pages."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pathlib
import re
import types
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import nn, optim, random

from . import pages

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
REFERENCE = sorted((DOCS / "api").glob("*.md"))
PAGES = [p for p in sorted(DOCS.rglob("*.md")) if any(pages.blocks(p.read_text()))]
WITHOUT_SPARK = [p for p in PAGES if pages.chosen(p.read_text(), spark=False)]
WITH_SPARK = [p for p in PAGES if any(b.needs_spark for b in pages.blocks(p.read_text()))]
SOURCES = [
    path
    for top in ("tensorlite", "distributed")
    for path in sorted((ROOT / top).rglob("*.py"))
    if ">>>" in path.read_text()
]

# What is public, and the names in which it is also found; those are described once.
PUBLIC = (
    "tensorlite",
    "tensorlite.checkpoint_policies",
    "tensorlite.nn",
    "tensorlite.nn.init",
    "tensorlite.optim",
    "tensorlite.random",
    "tensorlite.tree",
    "tensorlite.data",
    "tensorlite.data.augment",
    "tensorlite.io",
    "tensorlite.linalg",
    "tensorlite.debug",
    "tensorlite.profiler",
    "tensorlite.distributed",
    "tensorlite.distributed.ml",
)
ALSO = {"load": "tensorlite.io", "save": "tensorlite.io", "debug_nans": "tensorlite.debug"}
ALSO |= {"profile": "tensorlite.profiler", "checkpoint_name": "tensorlite"}

MOST_USED = """
grad value_and_grad vjp jvp vmap jit checkpoint custom_vjp jacrev jacfwd hessian linearize scan map
cond while_loop make_graph stop_gradient precision asarray Tensor matmul where result_type save
tree.map tree.flatten tree.leaves tree.paths nn.Module nn.Sequential nn.Linear nn.Conv nn.BatchNorm
nn.conv nn.conv_transpose nn.max_pool nn.avg_pool nn.softmax nn.softmax_cross_entropy nn.one_hot
nn.attention nn.dropout nn.embedding optim.sgd optim.adam optim.chain optim.clip_by_global_norm
optim.exponential_decay optim.warmup_cosine optim.ema random.key random.split random.fold_in
random.normal random.uniform random.permutation data.ArrayDataset io.to_torch linalg.solve
debug_nans
"""


def described() -> dict[str, list[str]]:
    """The names in the reference, by module."""
    found: dict[str, list[str]] = {}
    for page in REFERENCE:
        for module, body in re.findall(r"```\{family\} (\S+)\n(.*?)```", page.read_text(), re.S):
            for line in body.splitlines():
                name, colon, _ = line.partition(": ")
                found.setdefault(module, []).extend([name] if colon else line.split())
    return found


def public_names(module: types.ModuleType) -> list[str]:
    """What a module offers: its `__all__`, or its names without an underscore; no modules."""
    names = getattr(module, "__all__", None) or [n for n in dir(module) if n[0] != "_"]
    return [n for n in names if not isinstance(getattr(module, n), types.ModuleType)]


@pytest.mark.parametrize("name", PUBLIC)
def test_the_reference_has_every_public_name(name: str) -> None:
    pytest.importorskip("pyspark") if name.endswith(".ml") else None
    names = described()[name]
    assert len(names) == len(set(names)), "a name is described twice"
    public = {n for n in public_names(importlib.import_module(name)) if ALSO.get(n, name) == name}
    assert set(names) == public


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring(name: str) -> None:
    pytest.importorskip("pyspark") if name.endswith(".ml") else None
    module = importlib.import_module(name)
    bare = [n for n in public_names(module) if _is_bare(getattr(module, n))]
    for n in public_names(module):
        thing = getattr(module, n)
        if inspect.isclass(thing):
            own = [k for k, v in vars(thing).items() if isinstance(v, types.FunctionType)]
            bare += [
                f"{n}.{k}" for k in own if k[0] != "_" and not inspect.getdoc(getattr(thing, k))
            ]
    assert not bare


def _is_bare(thing: Any) -> bool:
    explains_itself = isinstance(thing, types.FunctionType | type)
    return explains_itself and not (thing.__doc__ or "").strip()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_examples_in_docstrings(path: pathlib.Path) -> None:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    name = ".".join(parts if parts[0] == "tensorlite" else ["tensorlite", *parts])
    module = importlib.import_module(name.removesuffix(".__init__"))
    names = {"np": np, "tl": tl, "nn": nn, "optim": optim, "random": random, "dist": dist}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    own = [x for x in vars(module).values() if isinstance(x, types.FunctionType | type)]
    for thing in [x for x in own if x.__module__ == module.__name__]:
        for test in doctest.DocTestFinder().find(thing, module=module, globs=names):
            runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
    assert runner.tries == path.read_text().count(">>> "), "not all examples were found"


@pytest.mark.parametrize("name", MOST_USED.split())
def test_the_most_used_have_an_example(name: str) -> None:
    thing: Any = tl
    for part in name.split("."):
        thing = getattr(thing, part)
    assert ">>> " in (thing.__doc__ or "")


@pytest.mark.parametrize("page", WITHOUT_SPARK, ids=lambda p: str(p.relative_to(DOCS)))
def test_code_on_pages(page: pathlib.Path, tmp_path: pathlib.Path) -> None:
    pages.run(page, tmp_path, spark=False)


@pytest.mark.spark
@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", WITH_SPARK, ids=lambda p: str(p.relative_to(DOCS)))
def test_code_on_pages_with_spark(page: pathlib.Path, tmp_path: pathlib.Path) -> None:
    pages.run(page, tmp_path, spark=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_marks_are_ones_that_exist(page: pathlib.Path) -> None:
    for block in pages.blocks(page.read_text()):
        known = block.mark in {"", "run first", "run with Spark"} or not block.runs
        assert known, f"{page}:{block.line}: {block.mark}"


def test_a_page_becomes_a_program_with_its_lines() -> None:
    page = (
        "# A page\n\n<!-- run first\nx = 1\n-->\n\n```python\nprint(x)\n```\n\n```text\n1\n```\n"
        "\n<!-- not run: it cannot -->\n```python\nfail()\n```\n"
        "\n<!-- run with Spark -->\n```python\nspark()\n```\n"
    )
    found = list(pages.blocks(page))
    assert [b.code for b in found] == ["x = 1\n", "print(x)\n", "fail()\n", "spark()\n"]
    assert [b.prints for b in found] == [None, "1\n", None, None]
    assert [b.runs for b in found] == [True, True, False, True]
    assert "spark" not in pages.program(page, spark=False)
    lines = pages.program(page, spark=True).splitlines()
    original = page.splitlines()
    for wanted in ("x = 1", "print(x)", "spark()"):
        assert lines.index(wanted) == original.index(wanted)


def test_differences_are_told() -> None:
    assert not pages.difference("loss ...\n", "loss 0.25\n")
    assert "Expected" in pages.difference("1\n", "2\n")
