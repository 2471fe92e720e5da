"""Donated memory: it becomes that of new results, unless somebody can still see it."""

from __future__ import annotations

import numpy as np
import pytest

import tensorlite as tl
from tensorlite.backends.cpu import recycle as r
from tensorlite.core import Aval

SHAPE = (33, 77)  # of a size that nothing else here has


@pytest.fixture(autouse=True)
def nothing_waits():
    r._waiting.clear()
    r._held = 0
    yield
    r._waiting.clear()
    r._held = 0


def donated() -> tl.Tensor:
    return tl.exp(tl.zeros(SHAPE))


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def new(shape=SHAPE, dtype=np.float32) -> np.ndarray:
    return r.empty(Aval(shape, np.dtype(dtype)))


def test_the_memory_of_a_deleted_tensor_serves_again_in_another_shape_and_dtype():
    tensor = donated()
    place = address(tensor.data)
    tensor.delete()
    other = np.dtype(np.int32)
    array = new((77, 33), other)
    assert (address(array), array.shape, array.dtype) == (place, (77, 33), other)
    assert array.flags.c_contiguous
    assert address(new()) != place, "it is given away only once"


def test_recycled_memory_is_recycled_again():
    tensor = donated()
    place = address(tensor.data)
    for _ in range(3):
        tensor.delete()
        tensor = tl.Tensor(new(), tensor.device)
        assert address(tensor.data) == place
    seen = tensor.numpy()
    tensor.delete()
    assert not r._waiting
    assert seen.shape == SHAPE


def test_what_somebody_can_see_is_left_alone():
    def keep_view(t):
        return t.numpy()

    def keep_reshaped(t):
        return tl.reshape(t, (77, 33))

    def keep_itself(t):
        return t.data

    def keep_export(t):
        return memoryview(t.data)

    for keep in (keep_view, keep_reshaped, keep_itself, keep_export):
        tensor = donated()
        kept = keep(tensor)
        tensor.delete()
        assert not r._waiting, keep.__name__
        np.testing.assert_array_equal(np.asarray(kept), 1)


def test_a_step_with_donation_leaves_other_tensors_as_they_were():
    step = tl.jit(lambda w, g: w - 0.1 * g, donate_argnums=0)
    w, g = donated(), donated()
    seen = np.asarray(w)
    for i in range(5):
        w = step(w, g)
        np.testing.assert_allclose(np.asarray(w), 1 - 0.1 * (i + 1), rtol=1e-5)
    np.testing.assert_array_equal(seen, 1)
    np.testing.assert_array_equal(np.asarray(g), 1)


def test_a_tensor_is_deleted_once():
    tensor = donated()
    tensor.delete()
    tensor.delete()
    assert len(r._waiting) == 1


def test_no_more_than_the_limit_waits(monkeypatch):
    monkeypatch.setattr(r, "LIMIT", 4 * SHAPE[0] * SHAPE[1])
    for tensor in (donated(), donated()):
        tensor.delete()
    del tensor
    assert sum(map(len, r._waiting.values())) == 1
