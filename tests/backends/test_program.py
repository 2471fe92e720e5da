"""Native programs: launches over one arena give what NumPy gives, whatever shares memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import nn, observe
from tensorlite.backends.cpu import executor, native
from tensorlite.backends.cpu.compile import compile_program
from tensorlite.backends.cpu.executor import compile_graph
from tensorlite.backends.cpu.program import Execution, Program
from tensorlite.compiler.launches import HostStep
from tensorlite.device import lowerings_of
from tensorlite.graph import make_graph

pytestmark = pytest.mark.skipif(
    not executor.compiles_natively(), reason="the native compiler is not installed"
)


def program(f: Any, *args: Any) -> Program:
    return compile_program(make_graph(f)(*args), lowerings_of("cpu"))


def kinds(compiled: Program) -> list[str]:
    """Of each launch: compiled by us, oneDNN's, or Python's."""
    return [
        "python"
        if isinstance(launch, HostStep)
        else "onednn"
        if isinstance(launch.code, Execution)
        else "native"
        for launch in compiled.launches
    ]


def check(f: Any, *args: np.ndarray) -> Program:
    """The program of `f` gives what NumPy gives for its graph."""
    graph = make_graph(f)(*args)
    compiled = compile_program(graph, lowerings_of("cpu"))
    for _ in range(2):  # the second run finds the arena as the first one left it
        got = compiled(*args)
        wanted = compile_graph(graph, lowerings_of("cpu"))(*args)
        for a, b in zip(got, wanted, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    return compiled


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def network(x: Any, w1: Any, b1: Any, w2: Any) -> Any:
    x = nn.relu(nn.conv(x, w1) + b1)
    x = nn.max_pool(x, 2)
    return nn.softmax(x.reshape(x.shape[0], -1) @ w2)


IMAGES, W1, B1, W2 = random(4, 8, 8, 3), random(3, 3, 3, 5), random(5), random(80, 7)


def test_a_network_runs_without_python() -> None:
    compiled = check(network, IMAGES, W1, B1, W2)
    assert set(kinds(compiled)) == {"native", "onednn"}
    assert len(compiled.sections) == 1


def test_its_gradient() -> None:
    def loss(w1: Any, b1: Any, w2: Any, x: Any) -> Any:
        return tl.mean(network(x, w1, b1, w2)[:, 0])

    compiled = check(tl.grad(loss, argnums=(0, 1, 2)), W1, B1, W2, IMAGES)
    assert "python" not in kinds(compiled)


def test_what_has_no_native_code_runs_in_between() -> None:
    compiled = check(lambda x: tl.exp(tl.sort(tl.sin(x) * 2, axis=0)), random(6, 5))
    assert kinds(compiled) == ["native", "python", "native"]
    assert compiled.sections == [(0, 1), (1, 2), (2, 3)]


def test_random_bits_are_native_and_the_same() -> None:
    key = np.asarray(tl.random.key(7))
    compiled = check(lambda key: tl.random.bits(key, (3, 5)), key)
    assert kinds(compiled) == ["native"]
    check(lambda key: tl.random.uniform(key, (33, 5)), key)
    check(tl.vmap(lambda key: tl.random.bits(key, (4,), dtype=tl.uint64)), np.stack([key, key + 1]))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x,
        lambda x: (x, x + 1, x),
        lambda x: (x.reshape(-1), x.reshape(-1)),
        lambda x: (tl.exp(x).reshape(-1), tl.exp(x)),
        lambda x: tl.ones((2, 3)),
        lambda x: (tl.sort(x, axis=0).reshape(-1), x),
        lambda x: tl.stop_gradient(x) * 1,
        lambda x: (x.T, x.T + 1),
    ],
)
def test_results_that_are_arguments_constants_or_the_same_value(f: Any) -> None:
    check(f, random(3, 4))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty_arrays(shape: tuple[int, ...]) -> None:
    check(lambda x: (x * 2, tl.sum(x), tl.sort(x, axis=-1)), np.zeros(shape, np.float32))


def test_scalars_and_strided_arguments() -> None:
    check(lambda x, y: x * y + 1, random(6, 4).T, np.float32(3))
    check(lambda x, y: (x - y, x @ x.T), random(12, 10)[::2, ::3], np.float32(3).reshape(()))


def test_a_chain_runs_in_the_memory_of_two_values() -> None:
    def chain(x: Any) -> Any:
        for _ in range(6):
            x = tl.sort(tl.exp(x) - 1, axis=0)
        return x

    compiled = program(chain, random(64, 64))
    assert compiled.layout.size <= 2 * 64 * 64 * 4


def test_a_nest_writes_over_an_input_that_nobody_reads_again() -> None:
    def f(x: Any) -> Any:
        y = tl.sort(x, axis=0)
        return tl.sort(tl.exp(y) * y, axis=0)

    x = random(64, 64)
    compiled = check(f, x)
    assert compiled.layout.size == x.nbytes
    kept = check(lambda x: (lambda y: tl.sort(y.T * 2, axis=0) + y)(tl.sort(x, axis=0)), x)
    assert kept.layout.size >= 2 * x.nbytes


def test_arguments_are_never_written() -> None:
    x = random(64, 64)
    before = x.copy()
    program(lambda x: tl.exp(x) * 2, x)(x)
    np.testing.assert_array_equal(x, before)


def test_threads_run_one_program_at_the_same_time() -> None:
    compiled = program(network, IMAGES, W1, B1, W2)
    inputs = [random(4, 8, 8, 3) + i for i in range(8)]
    wanted = [compiled(x, W1, B1, W2)[0].copy() for x in inputs]
    results: list[Any] = [None] * len(inputs)

    def work(i: int) -> None:
        for _ in range(20):
            results[i] = compiled(inputs[i], W1, B1, W2)[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, expected in zip(results, wanted, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("onednn", [None, "/nowhere"], ids=["onednn", "loops alone"])
def test_a_forked_process_runs_programs_too(onednn: str | None) -> None:
    code = """
import os, warnings
import numpy as np
import tensorlite as tl

warnings.simplefilter("ignore")
tl.set_num_threads(2)
f = tl.jit(lambda x: tl.exp(x) * 2 + tl.sum(x, axis=0))
x = tl.asarray(np.random.default_rng(0).random((1000, 1000), np.float32))
expected = np.asarray(f(x))
for _ in range(2):
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(f(x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(f(x), expected)
"""
    environment = os.environ | ({} if onednn is None else {"TENSORLITE_ONEDNN": onednn})
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)


def test_an_error_in_a_python_step_leaves_the_program_usable() -> None:
    def f(a: Any) -> Any:
        return tl.linalg.cholesky(a * 1.0)

    compiled = program(f, np.eye(3, dtype=np.float32))
    with pytest.raises(np.linalg.LinAlgError):
        compiled(-np.eye(3, dtype=np.float32))
    np.testing.assert_allclose(compiled(np.eye(3, dtype=np.float32) * 4)[0], np.eye(3) * 2)


def test_pointers_are_those_of_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    for direct in (True, False):
        monkeypatch.setattr(native, "_direct", direct and native._direct)
        check(lambda x, y: x * y + 1, random(5, 4), random(5, 4))


def test_every_equation_is_reported_to_a_watcher() -> None:
    launches = []

    class Watcher(observe.Watcher):
        def launched(self, launch: Any) -> None:
            launches.append(launch)

    f = tl.jit(network)
    watcher = Watcher()
    observe.watch(watcher)
    try:
        watched = f(IMAGES, W1, B1, W2)
    finally:
        observe.unwatch(watcher)
    steps = [launch for launch in launches if launch.step]
    assert [s.prim.name for s in steps].count("absorbed") == 1
    assert all(s.stop >= s.start for s in steps)
    np.testing.assert_array_equal(np.asarray(watched), np.asarray(f(IMAGES, W1, B1, W2)))
