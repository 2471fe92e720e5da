"""Profiles against the Trace Event Format: rows, slices, nesting, and what a slice says."""

from __future__ import annotations

import json
import pathlib
import threading
from typing import Any

import pytest

import tensorlite as tl
from tensorlite import nn, observe, random


def recorded(path: pathlib.Path) -> list[dict[str, Any]]:
    """The slices of a trace, after a check of the whole file against the format."""
    trace = json.loads(path.read_text())
    assert set(trace) <= {"traceEvents", "displayTimeUnit", "otherData"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    rows: dict[int, str] = {}
    slices = []
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str) and event["name"]
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "M":
            key = {"process_name": "name", "thread_name": "name", "thread_sort_index": "sort_index"}
            assert set(event["args"]) == {key[event["name"]]}
            if event["name"] == "thread_name":
                rows[event["tid"]] = event["args"]["name"]
        else:
            assert event["ph"] == "X"
            assert event["ts"] >= 0 and event["dur"] >= 0
            assert isinstance(event["args"], dict)
            slices.append(event)
    for event in slices:
        event["row"] = rows[event["tid"]]
    for row in rows.values():  # slices of a row nest, or else viewers draw nonsense
        ends: list[float] = []
        for event in sorted(
            (e for e in slices if e["row"] == row), key=lambda e: (e["ts"], -e["dur"])
        ):
            while ends and ends[-1] <= event["ts"]:
                ends.pop()
            assert not ends or event["ts"] + event["dur"] <= ends[-1] + 1e-3
            ends.append(event["ts"] + event["dur"])
    return slices


def test_eager_operations_are_slices_with_shapes_scopes_and_lines(tmp_path: pathlib.Path) -> None:
    layer = nn.Linear(2, 3, key=random.key(0))
    with tl.profile(tmp_path / "trace.json"):
        y = layer(tl.ones((4, 2)))
    slices = recorded(tmp_path / "trace.json")
    (matmul,) = [s for s in slices if s["name"] == "Linear/matmul"]
    assert matmul["cat"] == "op"
    assert matmul["row"] == "cpu, MainThread"
    assert matmul["args"]["inputs"] == "float32[4,2], float32[2,3]"
    assert matmul["args"]["results"] == "float32[4,3]"
    assert matmul["args"]["scope"] == "Linear"
    assert matmul["args"]["line"].startswith(__file__)
    assert y.shape == (4, 3)


def test_the_steps_of_a_compiled_graph_lie_inside_its_call(tmp_path: pathlib.Path) -> None:
    def f(x: tl.Tensor) -> tl.Tensor:
        with tl.named_scope("part"):
            y = tl.sort(tl.exp(x), axis=0) @ x
        return tl.sum(y, axis=0)

    gradient = tl.jit(tl.grad(lambda x: tl.sum(f(x))))
    path = tmp_path / "trace.json"
    with tl.profile(path):
        gradient(tl.ones((2, 2)))
    slices = recorded(path)
    (call,) = [s for s in slices if s["name"].startswith("call ")]
    steps = [s for s in slices if s["cat"] == "step"]
    assert {"part/exp", "part/matmul_t"} <= {s["name"] for s in steps}
    assert next(s for s in steps if s["name"] == "part/matmul_t")["args"]["derivative"] is True
    for step in steps:
        assert call["ts"] <= step["ts"]
        assert step["ts"] + step["dur"] <= call["ts"] + call["dur"]
    traced = [s for s in slices if s["name"].startswith("trace ")]
    assert [s["cat"] for s in traced] == ["span"]


def test_threads_have_rows_of_their_own_and_spans_too(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.json"

    def work() -> None:
        with tl.profiler.span("load", rows=3, path=pathlib.PurePosixPath("a/b")):
            tl.ones(2) + 1

    with tl.profile(path):
        thread = threading.Thread(target=work, name="loader")
        thread.start()
        thread.join()
        tl.ones(2) * 2
    slices = recorded(path)
    assert {s["row"] for s in slices} == {"cpu, MainThread", "cpu, loader", "spans, loader"}
    (span,) = [s for s in slices if s["name"] == "load"]
    assert span["args"] == {"rows": 3, "path": "a/b"}
    (add,) = [s for s in slices if s["name"] == "add"]
    assert add["row"] == "cpu, loader"


def test_the_file_is_written_when_the_block_fails_and_blocks_nest(tmp_path: pathlib.Path) -> None:
    outer, inner = tmp_path / "outer.json", tmp_path / "inner.json"
    with pytest.raises(ZeroDivisionError), tl.profile(outer):
        tl.ones(2)
        with tl.profile(inner):
            tl.sin(tl.ones(2))
        raise ZeroDivisionError
    assert "sin" in {s["name"] for s in recorded(inner)}
    assert len(recorded(outer)) == len(recorded(inner)) + 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inner.json", "outer.json"]
    assert not observe.watchers


def test_without_a_profile_a_span_is_nothing(tmp_path: pathlib.Path) -> None:
    assert tl.profiler.span("a") is tl.profiler.span("b", size=1)
    plain = tl.devices()[0].run.func
    with tl.profile(tmp_path / "empty.json"):
        assert tl.devices()[0].run.func != plain
    assert tl.devices()[0].run.func == plain
    assert recorded(tmp_path / "empty.json") == []


def test_a_path_that_cannot_be_written_is_refused_at_once(tmp_path: pathlib.Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match=r"profile: there is no folder .*missing"),
        tl.profile(tmp_path / "missing" / "trace.json"),
    ):
        pass
    assert not observe.watchers
