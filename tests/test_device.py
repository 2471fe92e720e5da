"""Devices, the registry of backends, and tensors that live in different places.

A second backend of NumPy buffers stands for an accelerator: it counts what crosses over to it.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import device as devices_module
from tensorlite.core import Primitive, Tensor
from tensorlite.device import Device, gather_on_one_device, get_device, lowering, lowerings_of
from tensorlite.ops.creation import transfer_p


class Buffer:
    """Memory that NumPy cannot see into."""

    def __init__(self, array: np.ndarray):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype


class Elsewhere:
    """Two devices that run everything through the NumPy rules, on buffers of their own."""

    name = "elsewhere"

    def __init__(self) -> None:
        self.all = [Device(f"elsewhere:{i}", self, f"Pretender {i}") for i in range(2)]
        self.arrived = 0

    def devices(self) -> list[Device]:
        return self.all

    def device(self, name: str) -> Device | None:
        return next((device for device in self.all if device.name == name), None)

    def from_numpy(self, array: np.ndarray, device: Device) -> Buffer:
        self.arrived += 1
        return Buffer(np.array(array))

    def to_numpy(self, buffer: Buffer) -> np.ndarray:
        return buffer.array

    def run(
        self, device: Device, prim: Primitive, args: tuple[Tensor, ...], params: dict[str, Any]
    ) -> Any:
        home, args = gather_on_one_device(prim, args) if args else (device, args)
        if prim is transfer_p:
            target = params["device"]
            return Tensor(target.from_numpy(args[0].numpy()), target)
        assert prim.numpy_rule is not None
        return Tensor(Buffer(prim.numpy_rule(*[a.data.array for a in args], **params)), home)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    backend = Elsewhere()
    monkeypatch.setitem(devices_module._modules, "elsewhere", "never.imported")
    monkeypatch.setitem(devices_module._backends, "elsewhere", backend)
    yield backend


def test_the_cpu_is_the_first_device() -> None:
    cpu = tl.devices()[0]
    assert (str(cpu), repr(cpu), cpu.name) == ("cpu", "Device('cpu')", "cpu")
    assert cpu == "cpu"
    assert cpu != "opencl:0"
    assert get_device("cpu:0") is get_device(cpu) is get_device(None) is cpu
    assert pickle.loads(pickle.dumps(cpu)) is cpu
    assert {cpu: 1}[get_device("cpu")] == 1


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "", 7, "opencl:99"])
def test_unknown_devices_are_refused_with_the_known_ones(name: Any) -> None:
    with pytest.raises(ValueError, match=rf"there is no device {name!r}; this machine has cpu"):
        get_device(name)
    with pytest.raises(ValueError, match="there is no device"):
        tl.zeros(2, device=name)


def test_devices_of_a_backend_are_listed_and_found(elsewhere: Elsewhere) -> None:
    first, second = elsewhere.devices()
    assert tl.devices()[-2:] == [first, second]
    assert get_device("elsewhere:1") is second
    assert repr(first) == "Device('elsewhere:0', 'Pretender 0')"


def test_tensors_are_made_and_computed_where_asked(elsewhere: Elsewhere) -> None:
    x = tl.asarray(np.arange(3.0), device="elsewhere:0")
    assert x.device == "elsewhere:0"
    y = tl.sum(x * 2 + 1)
    assert y.device is x.device
    assert y.item() == 9
    assert tl.grad(lambda x: tl.sum(x * x))(x).device is x.device
    assert tl.zeros_like(x).device is x.device
    assert x.device.name in repr(x)


def test_the_default_device(elsewhere: Elsewhere) -> None:
    first, second = elsewhere.devices()
    with tl.default_device("elsewhere:0") as device:
        assert device is first
        assert tl.zeros(2).device is first
        with tl.default_device(second):
            assert tl.asarray([1.0]).device is second
            assert tl.zeros(2, device="cpu").device == "cpu"
        assert tl.arange(3).device is first
    assert tl.zeros(2).device == "cpu"


def test_a_decorated_function_may_call_itself(elsewhere: Elsewhere) -> None:
    @tl.default_device("elsewhere:1")
    def countdown(n: int) -> list[str]:
        here = tl.zeros(1).device.name
        return [here, *(countdown(n - 1) if n else []), tl.zeros(1).device.name]

    assert countdown(2) == ["elsewhere:1"] * 6
    assert tl.zeros(1).device == "cpu"
    block = tl.default_device("elsewhere:0")
    with block, block:
        assert tl.zeros(1).device == "elsewhere:0"
    assert tl.zeros(1).device == "cpu"


def test_the_default_is_that_of_the_thread(elsewhere: Elsewhere) -> None:
    seen: list[Any] = []
    with tl.default_device("elsewhere:0"):
        thread = threading.Thread(target=lambda: seen.append(tl.zeros(1).device.name))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_moving_between_devices(elsewhere: Elsewhere) -> None:
    x = tl.asarray([1.0, 2.0])
    there = tl.asarray(x, device="elsewhere:0")
    assert there.device == "elsewhere:0"
    assert tl.asarray(there, device="elsewhere:0") is there
    assert tl.asarray(there, device="cpu").tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"copy=False, but float32 on cpu must be copied"):
        tl.asarray(x, device="elsewhere:0", copy=False)


def test_gradients_come_back_to_the_device_of_the_argument(elsewhere: Elsewhere) -> None:
    def f(x: tl.Tensor) -> tl.Tensor:
        there = tl.asarray(x, device="elsewhere:0")
        return tl.sum(tl.asarray(there * there, device="cpu") * x)

    gradient = tl.grad(f)(tl.asarray([1.0, 2.0]))
    assert gradient.device == "cpu"
    assert gradient.tolist() == [3, 12]
    batched = tl.vmap(lambda x: tl.asarray(x, device="elsewhere:0") * 2)(tl.asarray([1.0, 2.0]))
    assert batched.device == "elsewhere:0"


def test_tensors_with_dimensions_do_not_meet_across_devices(elsewhere: Elsewhere) -> None:
    x, y = tl.ones(2), tl.ones(2, device="elsewhere:0")
    for a, b in ((x, y), (y, x)):
        with pytest.raises(ValueError, match=r"add: arguments live on .*tl.asarray\(x, device="):
            a + b


def test_scalars_are_sent_along(elsewhere: Elsewhere) -> None:
    scalar, y = tl.asarray(2.0), tl.ones(2, device="elsewhere:0")
    for result in (scalar * y, y * scalar):
        assert result.device == "elsewhere:0"
        assert result.tolist() == [2, 2]
    there = tl.asarray(3.0, device="elsewhere:0")
    assert (tl.ones(2) * there).device == "cpu"


def test_pickles_are_loaded_on_the_default_device(elsewhere: Elsewhere) -> None:
    data = pickle.dumps(tl.ones(2, device="elsewhere:0"))
    assert pickle.loads(data).device == "cpu"
    with tl.default_device("elsewhere:1"):
        assert pickle.loads(data).device == "elsewhere:1"


def test_lowerings_are_kept_by_backend() -> None:
    prim = tl.add.prim
    before = dict(lowerings_of("elsewhere"))

    @lowering(prim, "elsewhere")
    def kernel(x: Any, y: Any) -> Any:
        return x

    try:
        assert lowerings_of("elsewhere")[prim] is kernel
        assert lowerings_of("cpu").get(prim) is not kernel
    finally:
        lowerings_of("elsewhere").clear()
        lowerings_of("elsewhere").update(before)


def test_a_jitted_function_runs_on_one_device(elsewhere: Elsewhere) -> None:
    with pytest.raises(ValueError, match=r"transfer: a jitted function runs on one device.*before"):
        tl.jit(lambda x: tl.asarray(x, device="elsewhere:0"))(tl.ones(2))
    assert tl.jit(lambda x: tl.asarray(x, device="cpu"))(tl.ones(2)).tolist() == [1, 1]
