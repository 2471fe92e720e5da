"""Names and parts of devices, what is said where there are none, forks, errors."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import cli

cl = pytest.importorskip("pyopencl")
from tensorlite.backends.opencl import runtime  # noqa: E402
from tensorlite.backends.opencl.kernels import Kernel  # noqa: E402


def test_devices_are_listed_behind_the_cpu() -> None:
    names = [d.name for d in tl.devices()]
    assert names[:2] == ["cpu", "opencl:0"]
    assert tl.asarray([1.0], device="opencl").device == "opencl:0"


def test_cpus_come_last() -> None:
    kinds = [runtime._KINDS.index(found.traits.kind) for found in runtime.find_all()]
    assert kinds == sorted(kinds)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("opencl:", "is no name of an OpenCL device; write opencl:N"),
        ("opencl:x", "is no name of an OpenCL device"),
        ("opencl:0/", "is no name of an OpenCL device"),
        ("opencl:99", "there is no device 'opencl:99'; this machine has cpu, opencl:0"),
        ("opencl:0/0", "parts are numbered from 0, and there are 0"),
        ("opencl:0/2:2", "there is no device 'opencl:0/2:2'"),
        ("opencl:0/4096", "which cannot make 4096 parts"),
        ("metal:0", "there is no device 'metal:0'; this machine has cpu, opencl:0"),
    ],
)
def test_nonsense_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tl.asarray([1.0], device=name)


def test_parts_of_a_device() -> None:
    whole = runtime.find("opencl:0")
    if whole.traits.units < 2:
        pytest.skip("the device has one compute unit")
    first, second = (tl.asarray([1.0, 2.0], device=n) for n in ("opencl:0/2", "opencl:0/2:1"))
    assert first.device == "opencl:0/2:0" and second.device == "opencl:0/2:1"
    assert runtime.find("opencl:0/1") is whole
    half = runtime.runtime("opencl:0/2:1")
    assert half.traits.units == whole.traits.units // 2
    assert half.pool.limit == runtime.runtime("opencl:0").pool.limit // 2
    with pytest.raises(ValueError, match="live on opencl:0/2:0 and on opencl:0/2:1"):
        first + second
    results: dict[str, np.ndarray] = {}

    def work(x: tl.Tensor) -> None:
        for _ in range(20):
            x = tl.jit(lambda y: y * 1.5 - 1)(x)
        results[str(x.device)] = np.asarray(x)

    threads = [threading.Thread(target=work, args=(x,)) for x in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(*results.values())


def test_transfers() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    there = tl.asarray(tl.asarray(x), device="opencl:0")
    back = tl.asarray(there * 2, device="cpu")
    assert back.device == "cpu"
    np.testing.assert_array_equal(np.asarray(back), 2 * x)
    with pytest.raises(ValueError, match="arguments live on"):
        there + back
    np.testing.assert_array_equal(np.asarray(there + tl.asarray(1.0)), x + 1)


def test_without_a_driver_or_without_pyopencl(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise cl.LogicError("clGetPlatformIDs failed: PLATFORM_NOT_FOUND_KHR")

    for found in (runtime.find_all, runtime.find):
        found.cache_clear()  # type: ignore[attr-defined]
    try:
        with monkeypatch.context() as patch:
            patch.setattr(cl, "get_platforms", none)
            assert [d.name for d in tl.devices()] == ["cpu"]
            with pytest.raises(ValueError, match="no OpenCL driver was found; pip install"):
                tl.asarray(1.0, device="opencl:0")
        runtime.find_all.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(runtime, "cl", None)
            with pytest.raises(ValueError, match="PyOpenCL is not installed"):
                tl.asarray(1.0, device="opencl:0")
    finally:
        for found in (runtime.find_all, runtime.find):
            found.cache_clear()  # type: ignore[attr-defined]


def test_a_broken_driver_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def get_devices(self) -> Any:
            raise cl.LogicError("clGetDeviceIDs failed: OUT_OF_RESOURCES")

    good = cl.get_platforms()
    monkeypatch.setattr(cl, "get_platforms", lambda: [Broken(), *good])
    assert len(runtime._devices()) == len(runtime.find_all())


def test_a_forked_child_is_told() -> None:
    program = """
import os
import tensorlite as tl
tl.asarray([1.0], device="opencl:0")
child = os.fork()
if child == 0:
    try:
        tl.asarray([1.0], device="opencl:0")
    except RuntimeError as error:
        os._exit(7 if "before this process was forked" in str(error) else 8)
    os._exit(9)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "7", done.stderr


def test_importing_asks_no_driver() -> None:
    program = "import sys, tensorlite; print('pyopencl' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_a_launch_that_is_refused_names_the_operation() -> None:
    at = runtime.runtime("opencl:0")
    source = "__kernel void nothing(__global int *x) { x[get_global_id(0)] = 0; }"
    kernel = at.programs.kernel(Kernel("nothing", source, (3,), (2,)))
    kernel.set_arg(0, at.pool.allocate(64, "test").memory)
    with pytest.raises(runtime.DeviceError, match=r"my op \(step.py:3\): kernel nothing, global"):
        at.enqueue(kernel, (3,), (10**9,), "my op (step.py:3)")


def test_float64_needs_a_device_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    at = runtime.runtime("opencl:0")
    monkeypatch.setattr(at, "traits", at.traits._replace(float64=False))
    with pytest.raises(TypeError, match="opencl:0 has no float64"):
        tl.asarray(np.zeros(3), device="opencl:0")


def test_the_command_lists_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "device", "kind", "units", "memory", "dtypes", "driver"]
    assert [line.split()[0] for line in lines[1:]] == [d.name for d in tl.devices()]
