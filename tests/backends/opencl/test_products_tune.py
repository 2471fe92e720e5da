"""The search for tiles, and where its results are kept."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tensorlite import dtypes
from tensorlite.backends.opencl import products
from tensorlite.backends.opencl.products import choices
from tensorlite.backends.opencl.products.blocks import Block
from tensorlite.backends.opencl.products.tiles import Tile
from tensorlite.backends.opencl.runtime import runtime
from tensorlite.core import Aval
from tensorlite.ops.window import Window
from tests.backends.opencl.plans import run_plan
from tests.backends.opencl.product_cases import CPU, GPU, close

PROBLEM = products.Problem(
    "matmul",
    (Aval((40, 300), dtypes.float32), Aval((300, 50), dtypes.float32)),
    Aval((40, 50), dtypes.float32),
    (False, False),
)
OTHER = Tile(4, 3, 8, 64, False, 32, 48)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path))
    monkeypatch.delenv("TENSORLITE_TUNE", raising=False)
    return tmp_path


def name(problem: products.Problem = PROBLEM) -> str:
    return choices.class_of(problem, products.contractions(problem)[0])


def test_choices_come_back_and_are_added_to() -> None:
    choices.keep(CPU, {name(): OTHER})
    choices.keep(CPU, {"another class": Tile()})
    contraction = products.contractions(PROBLEM)[0]
    assert choices.known(CPU, PROBLEM, contraction) == OTHER
    assert choices.known(CPU._replace(key="another CPU"), PROBLEM, contraction) is None
    content = json.loads(choices.path(CPU).read_text())  # type: ignore[union-attr]
    assert content["device"] == CPU.key
    assert list(content["choices"]) == ["another class", name()]


def test_plans_follow_what_was_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    before = products.plan(CPU, PROBLEM)
    choices.keep(CPU, {name(): OTHER})
    assert products.plan(CPU, PROBLEM) == products.plan_with(CPU, PROBLEM, OTHER) != before
    monkeypatch.setenv("TENSORLITE_TUNE", "0")
    assert products.plan(CPU, PROBLEM) == before


def test_other_wishes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORLITE_TUNE", "2")
    with pytest.raises(ValueError, match="TENSORLITE_TUNE is 0 or 1, got '2'"):
        products.plan(CPU, PROBLEM)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"choices": 3}',
        '{"choices": {"NAME": {"rows": 4}}}',
        '{"choices": {"NAME": {"rows": "4", "vectors": 2, "lanes": 8, "depth": 1,'
        ' "packed": true, "block": 1, "columns": 1}}}',
        '{"choices": {"NAME": {"rows": 0, "vectors": 2, "lanes": 8, "depth": 1,'
        ' "packed": true, "block": 1, "columns": 1}}}',
    ],
)
def test_damaged_files_count_as_missing(content: str) -> None:
    place = choices.path(CPU)
    assert place is not None
    place.parent.mkdir(parents=True)
    place.write_text(content.replace("NAME", name()))
    assert products.plan(CPU, PROBLEM) == products.plan_with(CPU, PROBLEM, Tile())
    choices.keep(CPU, {name(): OTHER})
    assert choices.known(CPU, PROBLEM, products.contractions(PROBLEM)[0]) == OTHER


def test_without_a_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORLITE_CACHE", "")
    choices.keep(CPU, {name(): OTHER})
    assert products.plan(CPU, PROBLEM) == products.plan_with(CPU, PROBLEM, Tile())


def test_problems_of_one_class() -> None:
    def matmul(m: int, k: int, n: int, dtype: Any = dtypes.float32, turned: bool = False) -> str:
        x, y = Aval((k, m) if turned else (m, k), dtype), Aval((k, n), dtype)
        return name(products.Problem("matmul", (x, y), Aval((m, n), dtype), (turned, False)))

    assert matmul(1000, 600, 70) == matmul(1024, 1000, 128) == "matmul nn float32 2^10 x 2^7 x 2^10"
    different = [
        matmul(1000, 600, 70), matmul(2000, 600, 70), matmul(1000, 300, 70),
        matmul(1000, 600, 7), matmul(1000, 600, 70, dtypes.float16),
        matmul(1000, 600, 70, turned=True),
    ]  # fmt: skip
    assert len(set(different)) == len(different)


def test_tuning_tries_and_keeps() -> None:
    at, told = runtime("opencl:0"), list[products.Tuned]()
    found = products.tune(at, [PROBLEM, PROBLEM], report=told.append)
    assert [tuned.name for tuned in found] == [name()]
    assert told == found and str(told[0]).startswith(f"{name()}: ")
    assert choices.known(at.traits, PROBLEM, products.contractions(PROBLEM)[0]) == found[0].choice


def test_planning_may_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORLITE_TUNE", "1")
    at = runtime("opencl:0")
    plan = products.plan(at.traits, PROBLEM)
    found = choices.known(at.traits, PROBLEM, products.contractions(PROBLEM)[0])
    assert found is not None
    assert plan == products.plan_with(at.traits, PROBLEM, found)
    # Traits of no device here cannot be tuned for.
    default = products.plan_with(CPU, PROBLEM, Tile())
    assert products.plan(CPU._replace(key="far away"), PROBLEM) == default


TILES = [
    Tile(3, 3, 8), Tile(4, 3, 8, 1), Tile(6, 2, 4, 100, False), Tile(8, 1, 8, 33, True, 8, 8),
    Tile(1, 4, 8, 7, False, 1000, 1000), Tile(5, 2, 2),
]  # fmt: skip
BLOCKS = [
    Block(64, 64, 16, 4, 4), Block(128, 64, 8, 8, 4), Block(32, 32, 32, 2, 2),
    Block(16, 16, 8, 1, 1), Block(256, 64, 4, 8, 8),
]  # fmt: skip


@pytest.mark.parametrize("choice", [*TILES, *BLOCKS], ids=str)
def test_every_tile_gives_the_same_result(choice: Any) -> None:
    traits = CPU if isinstance(choice, Tile) else GPU
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(70, 300)), rng.normal(size=(300, 50))
    problem = PROBLEM._replace(
        inputs=(Aval(x.shape, dtypes.float32), Aval(y.shape, dtypes.float32)),
        out=Aval((70, 50), dtypes.float32),
    )
    plan = products.plan_with(traits, problem, choice)
    assert plan is not None
    result = np.empty((70, 50), np.float32)
    run_plan(plan, [x.astype(np.float32), y.astype(np.float32)], [result])
    close(result, x @ y, 300)


@pytest.mark.parametrize("choice", [Tile(4, 3, 8, 16), Block(32, 32, 8, 4, 4)], ids=str)
def test_tiles_of_strided_gradients(choice: Any) -> None:
    traits = CPU if isinstance(choice, Tile) else GPU
    window = Window((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1))
    g, w = (Aval(s, dtypes.float16) for s in [(2, 5, 5, 40), (3, 3, 20, 40)])
    problem = products.Problem(
        "conv_input_grad", (g, w), Aval((2, 9, 9, 20), dtypes.float16), window
    )
    plan = products.plan_with(traits, problem, choice)
    assert plan is not None
    ones = [np.ones(v.shape, v.dtype) for v in (g, w)]
    result = np.empty(problem.out.shape, np.float16)
    run_plan(plan, ones, [result])
    assert sorted(set(result[0, :, :, 0].ravel().tolist())) == [40.0, 80.0, 160.0]
