"""Names and parts of devices, what is said where there are none, forks, errors."""

from __future__ import annotations

import collections
import os
import pathlib
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyopencl as cl
import pytest

import tensorlite as tl
from tensorlite import observe
from tensorlite.backends.opencl import runtime
from tensorlite.backends.opencl.kernels import Kernel


def run(program: str, **environment: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def failed(kind: type[Exception], routine: str, status: int) -> Exception:
    """What PyOpenCL raises when a function of OpenCL returns this status."""
    return kind(cl._cl._ErrorRecord(routine, status, ""))


def test_devices_are_listed_behind_the_cpu() -> None:
    names = [d.name for d in tl.devices()]
    assert names[:2] == ["cpu", "opencl:0"]
    assert tl.asarray([1.0], device="opencl").device == "opencl:0"


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
    if name == "opencl:0/4096" and not makes_parts():
        pytest.skip("the driver makes no parts, so their number has no limit")
    with pytest.raises(ValueError, match=message):
        tl.asarray([1.0], device=name)


def makes_parts() -> bool:
    """Whether the driver of the first device can divide it."""
    wanted = cl.device_partition_property.EQUALLY
    return wanted in runtime.find("opencl:0").device.partition_properties


def divided() -> runtime.Found:
    """A device with two parts at least."""
    whole = runtime.find("opencl:0")
    if whole.traits.units < 2:
        pytest.skip("the device has one compute unit")
    return whole


def test_parts_of_a_device() -> None:
    whole = divided()
    first, second = (tl.asarray([1.0, 2.0], device=n) for n in ("opencl:0/2", "opencl:0/2:1"))
    assert first.device == "opencl:0/2:0" and second.device == "opencl:0/2:1"
    assert tl.asarray(1.0, device="opencl:0/2:0").device is first.device
    assert runtime.find("opencl:0/1") is whole
    with pytest.raises(ValueError, match="live on opencl:0/2:0 and on opencl:0/2:1"):
        first + second
    moved = tl.asarray(first, device="opencl:0/2:1") + second
    np.testing.assert_array_equal(np.asarray(tl.asarray(moved, device="opencl:0")), [2, 4])


def test_parts_have_units_of_their_own_and_a_share_of_the_memory() -> None:
    whole = divided()
    if not makes_parts():
        pytest.skip("the driver makes no parts")
    half = runtime.runtime("opencl:0/2:1")
    assert half.traits.units == whole.traits.units // 2
    assert half.pool.limit == runtime.runtime("opencl:0").pool.limit // 2
    # PoCL runs on all units what goes to a queue of the whole.
    assert half.queue.device == half.device != whole.device


def test_where_the_driver_makes_no_parts_they_share_memory_only(
    monkeypatch: pytest.MonkeyPatch, look_again: Any
) -> None:
    claim(monkeypatch, [Claimed("GPU", "Acme", "gpu", partition_properties=[0])])
    look_again()
    whole, part = runtime.find("opencl:0"), runtime.find("opencl:0/3:2")
    assert part == ("opencl:0/3:2", whole.device, 1 / 3, whole.traits)


def test_two_parts_work_at_once() -> None:
    divided()
    results: dict[str, np.ndarray] = {}

    def work(name: str) -> None:
        x = tl.asarray([1.0, 2.0], device=name)
        for _ in range(20):
            x = tl.jit(lambda y: y * 1.5 - 1)(x)
        results[name] = np.asarray(x)

    threads = [
        threading.Thread(target=work, args=(name,)) for name in ("opencl:0/2", "opencl:0/2:1")
    ]
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


@pytest.fixture
def look_again() -> Iterator[Callable[[], None]]:
    """Forget which devices there are, now and when the test is over."""

    def forget() -> None:
        runtime._survey.cache_clear()
        runtime.find.cache_clear()

    yield forget
    forget()


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch, look_again: Any) -> None:
    def none() -> Any:
        raise failed(cl.LogicError, "clGetPlatformIDs", cl.status_code.PLATFORM_NOT_FOUND_KHR)

    monkeypatch.setattr(cl, "get_platforms", none)
    look_again()
    assert [d.name for d in tl.devices()] == ["cpu"]
    with pytest.raises(ValueError, match="no OpenCL driver was found; pip install"):
        tl.asarray(1.0, device="opencl:0")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("raise ModuleNotFoundError(name='pyopencl')", "PyOpenCL is not installed; pip install"),
        (
            "raise ImportError('libOpenCL.so.1: cannot open shared object file')",
            "PyOpenCL cannot be imported (libOpenCL.so.1: cannot open shared object file); pip",
        ),
    ],
)
def test_without_pyopencl(tmp_path: pathlib.Path, module: str, message: str) -> None:
    (tmp_path / "pyopencl.py").write_text(module)
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import tensorlite as tl
print([d.name for d in tl.devices()])
try:
    tl.asarray(1.0, device="opencl:0")
except ValueError as error:
    print(error)
"""
    lines = run(program).splitlines()
    assert lines[0] == "['cpu']"
    assert lines[1].startswith(f"there is no device 'opencl:0': {message}")


def test_a_broken_driver_hides_no_other(monkeypatch: pytest.MonkeyPatch, look_again: Any) -> None:
    class Broken:
        name = "Broken Computing"

        def get_devices(self) -> Any:
            raise failed(cl.LogicError, "clGetDeviceIDs", cl.status_code.OUT_OF_RESOURCES)

    good, names = cl.get_platforms(), [found.name for found in runtime.find_all()]
    monkeypatch.setattr(cl, "get_platforms", lambda: [Broken(), *good])
    look_again()
    assert [found.name for found in runtime.find_all()] == names
    with pytest.raises(ValueError, match="the driver of Broken Computing fails: clGetDeviceIDs"):
        tl.asarray(1.0, device="opencl:99")


def test_files_that_name_no_driver_do_no_harm(tmp_path: pathlib.Path) -> None:
    if not list((pathlib.Path(cl.__file__).parent / ".libs").glob("libpocl*")):
        pytest.skip("PyOpenCL has no PoCL beside it")
    (tmp_path / "gone.icd").write_text("/no/such/libdriver.so")
    (tmp_path / "text.icd").write_text(__file__)
    program = "import tensorlite as tl; print([d.name for d in tl.devices()])"
    assert run(program, OCL_ICD_VENDORS=str(tmp_path)).strip() == "['cpu', 'opencl:0']"


class Claimed:
    """A device as its driver describes it."""

    def __init__(self, kind: str, platform: str, name: str, **properties: Any):
        self.type = getattr(cl.device_type, kind)
        self.platform = types.SimpleNamespace(name=platform, version="OpenCL 3.0")
        self.name = name
        self.extensions = "cl_khr_fp16"
        self.local_mem_type = cl.device_local_mem_type.LOCAL
        self.driver_version = "1"
        self.mem_base_addr_align = 1024
        self.available = self.compiler_available = True
        sizes = ("compute_units", "work_group_size", "mem_alloc_size")
        for size in (*(f"max_{size}" for size in sizes), "local_mem_size", "address_bits"):
            setattr(self, size, 64)
        self.native_vector_width_float = 4
        vars(self).update(properties)


def claim(monkeypatch: pytest.MonkeyPatch, devices: list[Claimed]) -> None:
    """Have one platform with these devices, and find them."""
    platform = types.SimpleNamespace(name="Claims", get_devices=lambda: devices)
    monkeypatch.setattr(cl, "get_platforms", lambda: [platform])
    runtime._survey.cache_clear()


def test_numbers_do_not_depend_on_the_order_of_drivers(
    monkeypatch: pytest.MonkeyPatch, look_again: Any
) -> None:
    devices = [
        Claimed("CPU", "Acme", "cpu"),
        Claimed("GPU", "Zeta", "first"),
        Claimed("ACCELERATOR", "Acme", "fpga"),
        Claimed("GPU", "Acme", "gpu"),
        Claimed("GPU", "Zeta", "first"),  # the same model twice
    ]
    orders = [devices, devices[::-1]]
    for order in orders:
        claim(monkeypatch, order)
        found = runtime.find_all()
        assert [f.name for f in found] == [f"opencl:{number}" for number in range(5)]
        assert [f.device.name for f in found] == ["gpu", "first", "first", "fpga", "cpu"]
        twins = [device for device in order if device.name == "first"]
        assert [found[1].device, found[2].device] == twins  # in the order of their driver


def test_what_code_generators_learn(monkeypatch: pytest.MonkeyPatch, look_again: Any) -> None:
    claim(monkeypatch, [Claimed("GPU", "Acme ", " gpu"), Claimed("CPU", "Acme", "cpu")])
    gpu, cpu = (found.traits for found in runtime.find_all())
    assert (gpu.kind, gpu.vector, gpu.dedicated_local) == ("gpu", 1, True)
    assert (cpu.kind, cpu.vector, cpu.dedicated_local) == ("cpu", 4, False)
    assert gpu.float16 and not gpu.float64 and gpu.alignment == 128
    assert gpu.key == "Acme | OpenCL 3.0 | gpu | 1"


def test_devices_that_cannot_be_used_are_named(
    monkeypatch: pytest.MonkeyPatch, look_again: Any
) -> None:
    fpga = Claimed("ACCELERATOR", "Acme", "fpga", compiler_available=False)
    claim(monkeypatch, [fpga, Claimed("GPU", "Acme", "gpu", available=False)])
    assert runtime.find_all() == ()
    assert "fpga has no compiler: set TENSORLITE_OPENCL_KERNELS" in runtime.why_none()
    assert "gpu is not available now" in runtime.why_none()
    monkeypatch.setenv("TENSORLITE_OPENCL_KERNELS", "folder")
    claim(monkeypatch, [fpga])
    assert [found.device for found in runtime.find_all()] == [fpga]


FORK = """
import os, signal
import numpy as np
import tensorlite as tl
f = tl.jit(lambda a: a * 2 + 1)
x = tl.asarray(np.ones(100_000, np.float32), device="opencl:0")
y, seen = f(x), np.asarray(x + 1)
uses = [
    lambda: tl.asarray([1.0], device="opencl:0"),
    lambda: tl.asarray([1.0], device="opencl:0/2:1"),
    lambda: np.asarray(y),
    lambda: x + 1,
    lambda: f(x),
]
for use in uses:
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            use()
        except RuntimeError as error:
            os._exit(7 if "before this process was forked" in str(error) else 8)
        os._exit(9)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
child = os.fork()
if child == 0:  # letting go of what the parent has made is no use of it
    signal.alarm(20)
    del x, y, seen
    raise SystemExit(5)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(float(f(x)[0]))
"""


# What the driver itself does when a child of the process that uses it ends.
DRIVER_AND_FORK = """
import os
import pyopencl as cl
context = cl.Context([cl.get_platforms()[0].get_devices()[0]])
child = os.fork()
if child == 0:
    raise SystemExit(5)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_forked_children_are_told_and_do_not_hang() -> None:
    at_its_end = run(DRIVER_AND_FORK).strip()  # 5; NVIDIA's crashes
    assert run(FORK).split() == ["7"] * 5 + [at_its_end, "3.0"]


def test_a_child_may_be_the_first_to_use_opencl() -> None:
    program = """
import os
import tensorlite as tl
child = os.fork()
if child == 0:
    os._exit(int(float(tl.asarray([3.0], device="opencl:0")[0] * 2)))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(program).strip() == "6"


def test_importing_asks_no_driver() -> None:
    assert run("import sys, tensorlite; print('pyopencl' in sys.modules)").strip() == "False"


def small_kernel(at: runtime.Runtime) -> tuple[Any, Any]:
    """A kernel that is ready, and the memory that it writes to."""
    source = "__kernel void nothing(__global int *x) { x[get_global_id(0)] = 0; }"
    kernel = at.programs.kernel(Kernel("nothing", source, (3,), None))
    block = at.pool.allocate(64, "kept")
    kernel.set_arg(0, block.memory)
    return kernel, block


def test_a_context_that_died_says_nothing_of_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        @property
        def command_execution_status(self) -> int:
            raise failed(cl.LogicError, "clGetEventInfo", -9999)

    def refuse() -> None:
        raise failed(cl.RuntimeError, "clFinish", cl.status_code.OUT_OF_RESOURCES)

    at = runtime.runtime("opencl:0")
    monkeypatch.setattr(at, "_recent", collections.deque([(Event(), "add"), (Event(), "sum")]))
    monkeypatch.setattr(at, "failed", "")
    with pytest.raises(
        runtime.DeviceError, match=r"one of the last launches \(add, sum\) failed on"
    ):
        at.wait(refuse)
    assert at.failed == "one of the last launches (add, sum)"


def test_a_launch_that_is_refused_names_the_operation_and_the_line() -> None:
    at = runtime.runtime("opencl:0")
    kernel, _block = small_kernel(at)
    with pytest.raises(runtime.DeviceError) as error:
        at.enqueue(kernel, (3,), (10**9,), "my op (step.py:3)")
    text = str(error.value)
    assert text.startswith("my op (step.py:3): kernel nothing, global size (3,), local size (1000")
    assert f"failed on opencl:0 ({at.traits.key})" in text
    assert f"noticed at {__file__}:" in text


class Event:
    """An event of a launch that ended so."""

    def __init__(self, status: int):
        self.command_execution_status = status

    def wait(self) -> None:
        if self.command_execution_status < 0:
            raise failed(cl.RuntimeError, "clWaitForEvents", -14)


def test_a_launch_that_fails_later_is_named_where_the_host_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = runtime.Runtime(runtime.find("opencl:0"))
    statuses = iter([0, -5, -5, 0])
    monkeypatch.setattr(cl, "enqueue_nd_range_kernel", lambda *args: Event(next(statuses)))
    for number in range(3):
        at.enqueue(None, (1,), None, f"op {number}")

    def fail() -> None:
        raise failed(cl.RuntimeError, "clFinish", -14)

    with pytest.raises(runtime.DeviceError, match="op 1 failed on opencl:0") as error:
        at.wait(fail)
    assert "TENSORLITE_OPENCL_SYNC=1" in str(error.value)
    at.enqueue(None, (1,), None, "op 3")
    with pytest.raises(runtime.DeviceError, match="waiting failed"):  # blames nobody twice
        at.wait(fail)


def test_waiting_for_each_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORLITE_OPENCL_SYNC", "1")
    at = runtime.Runtime(runtime.find("opencl:0"))
    monkeypatch.setattr(cl, "enqueue_nd_range_kernel", lambda *args: Event(-5))
    with pytest.raises(runtime.DeviceError, match="op failed on opencl:0") as error:
        at.enqueue(None, (1,), None, "op")
    assert "TENSORLITE_OPENCL_SYNC" not in str(error.value)


def test_launches_are_waited_for_while_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    at = runtime.Runtime(runtime.find("opencl:0"))
    monkeypatch.setattr(cl, "enqueue_nd_range_kernel", lambda *args: Event(-5))
    at.enqueue(None, (1,), None, "op")
    monkeypatch.setattr(observe, "watchers", (observe.Watcher(),))
    with pytest.raises(runtime.DeviceError, match="op failed"):
        at.enqueue(None, (1,), None, "op")


def test_a_launch_that_lacks_memory_gets_what_the_pool_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = runtime.Runtime(runtime.find("opencl:0"))
    kernel, block = small_kernel(at)
    at.pool.allocate(1 << 20, "dropped")
    assert at.pool.statistics().held > 1 << 20
    failures = iter([True, False, True, True])
    enqueue = cl.enqueue_nd_range_kernel

    def often_full(*args: Any) -> Any:
        if next(failures):
            raise failed(cl.MemoryError, "clEnqueueNDRangeKernel", -4)
        return enqueue(*args)

    monkeypatch.setattr(cl, "enqueue_nd_range_kernel", often_full)
    at.enqueue(kernel, (3,), None, "op")
    assert at.pool.statistics().held == block.size
    with pytest.raises(MemoryError, match="op: kernel nothing, .* has no memory left") as error:
        at.enqueue(kernel, (3,), None, "op")
    assert "in 1 x kept" in str(error.value)
    at.finish()


def test_float64_needs_a_device_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    at = runtime.runtime("opencl:0")
    monkeypatch.setattr(at, "traits", at.traits._replace(float64=False))
    with pytest.raises(TypeError, match="opencl:0 has no float64"):
        tl.asarray(np.zeros(3), device="opencl:0")
