"""Finding the library, its constants, its errors, its threads, and what happens without it."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

import tensorlite as tl
from tensorlite.backends.cpu.onednn import (
    DnnlError,
    Unsupported,
    epilogue,
    library,
    load,
    memory,
    primitives,
)

CNN = """
import warnings
import numpy as np
import tensorlite as tl
from tensorlite import nn

rng = np.random.default_rng(0)
x, w = (tl.asarray(rng.normal(size=s).astype(np.float32)) for s in ((4, 9, 9, 3), (3, 3, 3, 8)))
head = tl.asarray(rng.normal(size=(128, 600)).astype(np.float32))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    def loss(w):
        y = nn.max_pool(nn.relu(nn.conv(x, w)), 3, stride=2)
        return tl.sum(nn.log_softmax(tl.reshape(y, (4, -1)) @ head / 100.0)[:, 0])
    for _ in range(2):
        value, gradient = tl.value_and_grad(loss)(w)
"""


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_library_of_the_environment_is_found() -> None:
    found = load()
    assert found is not None
    assert found.version[0] == 3
    assert found.address("primitive_execute") != 0
    assert pathlib.Path(found.path) == pathlib.Path(sys.prefix, "lib", "libdnnl.so.3")


@pytest.mark.parametrize("path", ["/nowhere/libdnnl.so.3", "/dev/null", "libm.so.6"])
def test_without_the_library_numpy_computes_the_same_and_one_warning_says_so(path: str) -> None:
    report = "print(len(caught), caught[0].message if caught else '', sep='|')\n"
    numbers = "print(value.item(), float(tl.sum(gradient * gradient)), sep='|')"
    missing, lost = run(CNN + report + numbers, TENSORLITE_ONEDNN=path).splitlines()
    count, message = missing.split("|", 1)
    assert count == "1"
    assert path in message
    assert "pip install onednn-cpu-gomp" in message
    assert "TENSORLITE_ONEDNN" in message
    there, kept = run(CNN + report + numbers).splitlines()
    assert there == "0|"
    np.testing.assert_allclose(
        [float(v) for v in lost.split("|")], [float(v) for v in kept.split("|")], rtol=1e-5
    )


def test_a_path_in_the_environment_is_the_only_one_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "/somewhere/libdnnl.so.3")
    assert library.candidates() == ["/somewhere/libdnnl.so.3"]


def test_a_failing_call_names_the_operation_the_function_and_the_status() -> None:
    message = (
        "^conv: dnnl_memory_desc_create_with_tag of oneDNN failed with status 'invalid_arguments'$"
    )
    with pytest.raises(DnnlError, match=message):
        library.library().create(
            "conv", "memory_desc_create_with_tag", 2, memory.integers((3, -1)), 3, 1
        )


def test_what_has_no_implementation_is_told_from_an_error() -> None:
    x = memory.of_array((4, 4), tl.int32)
    with pytest.raises(Unsupported, match=r"^op: dnnl_softmax_forward.* status 'unimplemented'$"):
        primitives.describe("op", "softmax_forward", 64, primitives.SOFTMAX, x, x, 1)


def name_of(kind: str, value: int) -> str:
    return library.library().functions[f"{kind}2str"](value).decode()


def test_constants_are_those_of_the_library() -> None:
    assert name_of("engine_kind", library.ENGINE_CPU) == "cpu"
    assert name_of("fmt_tag", memory.TAG_ANY) == "any"
    assert name_of("scratchpad_mode", primitives.SCRATCHPAD_USER) == "user"
    assert name_of("prop_kind", primitives.FORWARD_TRAINING) == "forward_training"
    assert name_of("prop_kind", primitives.FORWARD_INFERENCE) == "forward_inference"
    short = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int32": "s32", "uint8": "u8"}
    assert {dtype.name: name_of("dt", v) for dtype, v in memory.DATA_TYPES.items()} == short
    algorithms = {
        "CONVOLUTION_DIRECT": "convolution_direct",
        "POOLING_MAX": "pooling_max",
        "POOLING_AVERAGE_WITH_PADDING": "pooling_avg_include_padding",
        "ELTWISE_LINEAR": "eltwise_linear",
        "SOFTMAX": "softmax_accurate",
        "LOG_SOFTMAX": "softmax_log",
        "BINARY_ADD": "binary_add",
        "BINARY_MUL": "binary_mul",
    }
    for ours, theirs in algorithms.items():
        assert name_of("alg_kind", getattr(primitives, ours)) == theirs


def test_functions_of_epilogues_are_those_of_the_library() -> None:
    theirs = {
        name: [name_of("alg_kind", f.algorithm).removeprefix("eltwise_") for f in chain]
        for name, chain in epilogue.FUNCTIONS.items()
    }
    assert theirs.pop("relu") == ["elu", "abs"]
    assert theirs.pop("sigmoid") == ["logistic"]
    assert theirs.pop("silu") == ["swish"]
    assert theirs == {name: [name] for name in theirs}


def test_the_number_of_threads_holds_in_every_thread() -> None:
    code = """
import ctypes, threading
import numpy as np
import tensorlite as tl
from tensorlite.backends.cpu.onednn import library
from tensorlite.backends.cpu.openmp import num_threads
from tensorlite.threads import set_num_threads

runtime = ctypes.CDLL(library.load().path)
seen = []
def look():
    num_threads()
    seen.append(runtime.omp_get_max_threads())
for count in (3, 1, 2):
    set_num_threads(count)
    assert num_threads() == count
    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
print(seen)
"""
    assert run(code).strip() == "[3, 3, 1, 1, 2, 2]"


def test_the_number_of_threads_is_known_without_the_library() -> None:
    code = "from tensorlite.backends.cpu.openmp import num_threads; print(num_threads())"
    environment = {"TENSORLITE_ONEDNN": "/nowhere", "TENSORLITE_NUM_THREADS": "3"}
    assert run(code, **environment).strip() == "3"


def test_a_forked_process_computes_too() -> None:
    code = """
import os
import numpy as np
import tensorlite as tl
from tensorlite import nn
from tensorlite.threads import set_num_threads

set_num_threads(2)
x, w = tl.ones((8, 20, 20, 16)), tl.ones((5, 5, 16, 16))
expected = nn.conv(x, w).numpy()
child = os.fork()
if not child:
    os._exit(0 if np.array_equal(nn.conv(x, w).numpy(), expected) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert np.array_equal(nn.conv(x, w).numpy(), expected)
print("both")
"""
    assert run(code).strip() == "both"


def test_many_threads_at_once_get_their_own_results() -> None:
    rng = np.random.default_rng(0)
    kernels = tl.asarray(rng.normal(size=(3, 3, 8, 8)).astype(np.float32))
    images = [tl.asarray(rng.normal(size=(2, 9, 9, 8)).astype(np.float32)) for _ in range(4)]
    expected = [tl.nn.conv(x, kernels).numpy() for x in images]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(50):
            if not np.array_equal(tl.nn.conv(images[index], kernels).numpy(), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
