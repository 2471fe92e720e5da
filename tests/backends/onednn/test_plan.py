"""What a plan holds, and that plans are kept."""

from __future__ import annotations

import gc

import numpy as np

import tensorlite as tl
from tensorlite import dtypes
from tensorlite.backends.cpu.onednn import plan, run
from tensorlite.backends.cpu.onednn.plan import _planned, enough_threads
from tensorlite.compiler.launches import Ref
from tensorlite.core import Aval, primitives
from tensorlite.ops.conv import conv_p
from tensorlite.ops.linalg import matmul_p
from tensorlite.ops.window import Window
from tensorlite.threads import get_num_threads, set_num_threads

WINDOW = Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
X, W, Y = (Aval(shape, dtypes.float32) for shape in ((2, 9, 9, 16), (3, 3, 16, 32), (2, 9, 9, 32)))


def test_a_plan_names_its_buffers_and_brings_kernels_into_their_layout() -> None:
    found = plan(conv_p, (X, W), (Y,), {"window": WINDOW})
    assert found is not None
    reorder, convolution = found.calls
    assert [a.ref for a in reorder.arguments] == [Ref("input", 1), Ref("temporary", 0)]
    refs = {a.number: a.ref for a in convolution.arguments}
    assert refs[1] == Ref("input", 0)
    assert refs[33] == Ref("temporary", 0)
    assert refs[17] == Ref("output", 0)
    assert found.temporaries[0] >= 4 * W.size
    used = {a.ref.place for c in found.calls for a in c.arguments if a.ref.kind == "temporary"}
    assert used == set(range(len(found.temporaries)))
    assert len(found.implementations) == 2


def test_plans_are_kept_by_signature_parameters_epilogue_and_threads() -> None:
    first = plan(conv_p, (X, W), (Y,), {"window": WINDOW})
    assert plan(conv_p, [X, W], [Y], {"window": Window(*WINDOW)}) is first
    assert plan(conv_p, (X, W), (Y,), {"window": WINDOW}, epilogue=(("relu",),)) is not first
    before = get_num_threads()
    try:
        set_num_threads(before + 1)
        assert plan(conv_p, (X, W), (Y,), {"window": WINDOW}) is not first
    finally:
        set_num_threads(before)
    assert plan(conv_p, (X, W), (Y,), {"window": WINDOW}) is first


def test_little_work_is_done_by_one_thread() -> None:
    before = get_num_threads()
    try:
        set_num_threads(2)
        small, large = (Aval((n, n), dtypes.float32) for n in (64, 128))
        assert enough_threads(matmul_p, (small, small), (small,), {}) == 1
        assert enough_threads(matmul_p, (large, large), (large,), {}) == 2
        found = plan(matmul_p, (large, large), (large,), {}, threads=1)
        assert found is not None
        assert found.threads == 1
        found = plan(matmul_p, (small, small), (small,), {})
        assert found is not None
        assert found.threads == 2
    finally:
        set_num_threads(before)


def test_a_primitive_that_onednn_does_not_have_has_no_plan() -> None:
    assert plan(primitives["exp"], (X,), (X,), {}) is None


def test_handles_live_as_long_as_the_plan() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=X.shape).astype(np.float32), rng.normal(size=W.shape).astype(np.float32)
    found = plan(conv_p, (X, W), (Y,), {"window": WINDOW})
    assert found is not None
    _planned.cache_clear()
    gc.collect()
    y, again = (np.empty(Y.shape, np.float32) for _ in range(2))
    run(found, (x, w), (y,))
    run(found, (x, w), (again,))
    np.testing.assert_array_equal(y, again)


def test_eager_operations_take_views() -> None:
    x = np.random.default_rng(0).normal(size=(8, 40)).astype(np.float32)
    for view in (x.T, x[:, ::2], x[::-1]):
        whole = tl.nn.softmax(tl.asarray(np.ascontiguousarray(view))).numpy()
        np.testing.assert_array_equal(tl.nn.softmax(tl.asarray(view)).numpy(), whole)
