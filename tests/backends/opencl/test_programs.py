"""Building kernels: the cache on disk, what damages it, errors, binaries made ahead of time."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import cli
from tensorlite.backends.opencl.kernels import Kernel
from tensorlite.backends.opencl.programs import BuildError, Programs
from tensorlite.backends.opencl.runtime import runtime

SOURCE = "__kernel void three(__global int *x) { x[get_global_id(0)] = 3; }"


def programs() -> Programs:
    at = runtime("opencl:0")
    return Programs(at.context, at.device, at.traits.key)


def test_equal_sources_are_built_once_and_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path))
    kernel = Kernel("three", SOURCE, (1,), None)
    own = programs()
    first, second = own.kernel(kernel), own.kernel(kernel)
    assert first.int_ptr != second.int_ptr  # arguments belong to a kernel
    assert len(own._built) == 1
    (file,) = (tmp_path / "opencl").glob("*.object")
    built: list[str] = []
    original = Programs._from_binary

    def from_binary(self: Programs, binary: bytes, kernel: Kernel, options: str) -> object:
        built.append("binary")
        return original(self, binary, kernel, options)

    monkeypatch.setattr(Programs, "_from_binary", from_binary)
    assert programs().kernel(kernel).function_name == "three"
    assert built == ["binary"]
    file.write_bytes(b"damaged")
    assert programs().kernel(kernel).function_name == "three"
    assert built == ["binary"]  # not what was damaged
    assert file.read_bytes() != b"damaged"


def test_a_source_that_does_not_compile_is_shown() -> None:
    wrong = Kernel("wrong", "__kernel void wrong() {\n    no such thing;\n}", (1,), None)
    with pytest.raises(BuildError) as error:
        programs().kernel(wrong)
    assert "wrong: the compiler of" in str(error.value)
    assert "   2     no such thing;" in str(error.value)


STEP = """
import numpy as np, tensorlite as tl
x = tl.asarray(np.arange(12, dtype=np.float32).reshape(3, 4), device="opencl:0")
y = tl.jit(lambda x: tl.sum(tl.exp(x * 0.1), axis=1) @ x)(x)
print(np.asarray(y).tolist())
"""


def start(cache: pathlib.Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STEP],
        env={**os.environ, "TENSORLITE_CACHE": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def steps(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with a module of the user's."""
    (tmp_path / "steps.py").write_text(
        "import numpy as np, tensorlite as tl\n"
        "@tl.jit\n"
        "def train(x):\n"
        "    return tl.sum(tl.exp(x * 0.1), axis=1) @ x\n"
        "def example():\n"
        "    return (np.zeros((3, 4), np.float32),)\n"
    )
    return tmp_path


def test_kernels_made_ahead_of_time(
    steps: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(steps)
    folder = steps / "kernels"
    command = ["kernels", "export", "steps:train", "steps:example", "--out", str(folder)]
    assert cli.main(command) == 0
    assert "programs and a manifest" in capsys.readouterr().out
    document = json.loads((folder / "manifest.json").read_text())
    sources = [program["source"] for program in document["programs"]]
    assert sources and all((folder / source).exists() for source in sources)

    missing = start(steps / "none", TENSORLITE_OPENCL_KERNELS=str(folder)).communicate()
    assert "has not been compiled" in missing[1] and ".bin is missing" in missing[1]

    assert cli.main(["kernels", "build", str(folder)]) == 0
    out, err = start(steps / "none", TENSORLITE_OPENCL_KERNELS=str(folder)).communicate()
    want = np.exp(np.arange(12).reshape(3, 4) * 0.1).sum(axis=1) @ np.arange(12).reshape(3, 4)
    assert out, err
    np.testing.assert_allclose(json.loads(out), want, rtol=1e-5)
    assert not (steps / "none").exists()  # nothing was compiled

    document["programs"] = document["programs"][1:]
    (folder / "manifest.json").write_text(json.dumps(document))
    _, err = start(steps / "none", TENSORLITE_OPENCL_KERNELS=str(folder)).communicate()
    assert "nothing is compiled" in err and "is not in" in err


def test_a_folder_without_a_manifest(tmp_path: pathlib.Path) -> None:
    _, err = start(tmp_path / "none", TENSORLITE_OPENCL_KERNELS=str(tmp_path)).communicate()
    assert "there is no manifest.json" in err


def test_eager_results_match_after_a_jit() -> None:
    x = tl.asarray(np.arange(5, dtype=np.float32), device="opencl:0")
    np.testing.assert_array_equal(np.asarray(tl.jit(lambda y: y + 1)(x)), np.asarray(x + 1))
