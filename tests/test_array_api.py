"""The namespace against `array_api_strict`, which implements the Python array API standard and
nothing else: the same names and signatures, and what the standard lets a client ask. What the
functions compute is in `test_array_api_values.py`."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

import tensorlite as tl
from tensorlite import dtypes

xp = pytest.importorskip("array_api_strict")

COMPLEX = {"conj", "imag", "real"}
LATER = {"broadcast_shapes", "isin"}  # than version 2024.12 of the standard
NO_PART = {  # of the standard: array_api_strict's own
    "get_array_api_strict_flags",
    "reset_array_api_strict_flags",
    "set_array_api_strict_flags",
}
NOT_IN_LINALG = {
    "eig",
    "eigvals",
    "conj",
    "finfo",
    "normalize_axis_tuple",
}  # complex, or its own helpers
INTEGERS = [tl.int8, tl.int16, tl.int32, tl.int64, tl.uint8, tl.uint16, tl.uint32, tl.uint64]
FLOATS = [tl.float32, tl.float64]
NUMERIC = INTEGERS + FLOATS
EVERY = [tl.bool, *NUMERIC]
few = settings(max_examples=25)


def names(namespace: Any, without: set[str]) -> list[str]:
    return [
        name
        for name, value in vars(namespace).items()
        if inspect.isfunction(value) and not name.startswith(("_", "requires_"))
        if name not in without
    ]


FUNCTIONS = names(xp, COMPLEX | LATER | NO_PART)
LINALG = names(xp.linalg, NOT_IN_LINALG | NO_PART)


# ---- names and signatures ------------------------------------------------------------------------

OPEN = {"expand_dims", "squeeze"}  # `axis` has a default here
UNDEFINED = {"astype", "from_dlpack"}  # a default of the standard that is no value


@pytest.mark.parametrize("name", [*FUNCTIONS, *(f"linalg.{n}" for n in LINALG)])
def test_signature_is_the_standards(name: str) -> None:
    ours, theirs = (
        list(inspect.signature(operator.attrgetter(name)(module)).parameters.values())
        for module in (tl, xp)
    )
    assert [p.kind for p in ours] == [p.kind for p in theirs]
    named = [p.name for p in theirs if p.kind is not p.VAR_POSITIONAL]
    assert [p.name for p in ours if p.kind is not p.VAR_POSITIONAL] == named
    if name not in OPEN | UNDEFINED:
        assert [repr(p.default) for p in ours] == [repr(p.default) for p in theirs]


def test_the_array_object_has_the_standards_methods() -> None:
    x = tl.ones((2, 2))
    missing = [
        name
        for name in dir(xp.ones((2, 2)))
        if name not in {"__module__", "__doc__", "__dict__", "__annotations__", "__buffer__"}
        and (not name.startswith("_") or name.startswith("__"))
        and not hasattr(x, name)
    ]
    # In-place operators fall back to the ordinary ones, which bind the name anew.
    assert [n for n in missing if not n.startswith("__i")] == []


def test_constants_are_pythons() -> None:
    assert (tl.e, tl.inf, tl.pi, tl.newaxis) == (math.e, math.inf, math.pi, None)
    assert math.isnan(tl.nan)


def test_what_can_be_asked() -> None:
    info = tl.__array_namespace_info__()
    assert tl.__array_api_version__ == "2024.12"
    assert info.capabilities()["boolean indexing"] is True
    assert info.capabilities()["max dimensions"] == 64
    assert info.default_device() in info.devices() == tl.devices()
    assert info.default_dtypes(device="cpu") == {
        "real floating": tl.float32,
        "integral": tl.int64,
        "indexing": tl.int64,
    }
    assert set(info.dtypes()) == {d.name for d in EVERY}
    assert info.dtypes(kind=("bool", "real floating")) == {
        "bool": tl.bool,
        "float32": tl.float32,
        "float64": tl.float64,
    }
    assert info.dtypes(kind="complex floating") == {}
    with pytest.raises(ValueError, match="isdtype: no kind 'text'"):
        info.dtypes(kind="text")
    with pytest.raises(ValueError, match="no device 'moon'"):
        info.default_dtypes(device="moon")


def test_a_tensor_names_its_namespace() -> None:
    x = tl.ones(1)
    assert x.__array_namespace__() is tl
    assert x.__array_namespace__(api_version="2024.12") is tl
    with pytest.raises(ValueError, match="no version '1999.01'.*2024.12"):
        x.__array_namespace__(api_version="1999.01")


@pytest.mark.parametrize("dtype", [*EVERY, tl.float16, tl.bfloat16], ids=str)
def test_limits_of_dtypes(dtype: Any) -> None:
    if dtype in dtypes.INTEGERS:
        info, limits = tl.iinfo(dtype), np.iinfo(dtype)
        assert (info.bits, info.min, info.max) == (limits.bits, limits.min, limits.max)
        assert type(info.max) is int and info.dtype == dtype
        assert tl.iinfo(tl.ones(1, dtype=dtype)) == info
        with pytest.raises(TypeError, match="finfo: .*use iinfo"):
            tl.finfo(dtype)
        return
    with pytest.raises(TypeError, match="iinfo: .*use finfo"):
        tl.iinfo(dtype)
    if dtype == tl.bool:
        return
    found = tl.finfo(tl.ones(1, dtype=dtype))
    assert found == tl.finfo(dtype) and type(found.eps) is float
    one = np.ones((), dtype)
    assert found.eps == float(np.nextafter(one, one * 2)) - 1
    assert found.max == -found.min and found.bits == 8 * dtype.itemsize


@pytest.mark.parametrize("target", NUMERIC, ids=str)
@pytest.mark.parametrize("source", NUMERIC, ids=str)
def test_dtypes_meet_and_cast_as_the_standard_says(source: Any, target: Any) -> None:
    theirs = getattr(xp, source.name), getattr(xp, target.name)
    assert tl.can_cast(source, source)
    try:
        expected = xp.result_type(*theirs)
    except TypeError:
        return  # across kinds the standard leaves it open
    assert tl.result_type(source, target).name == str(expected).split(".")[-1]
    assert tl.can_cast(source, target) == xp.can_cast(*theirs)


@pytest.mark.parametrize(("source", "target"), [(tl.int64, tl.float32), (tl.bool, tl.int8)])
def test_no_cast_changes_the_kind(source: Any, target: Any) -> None:
    assert not tl.can_cast(source, target)
    assert not tl.can_cast(tl.ones(1, dtype=source), target)
    assert tl.can_cast(tl.bfloat16, tl.float32) and not tl.can_cast(tl.float16, tl.bfloat16)


# ---- mistakes ------------------------------------------------------------------------------------

MISTAKES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: tl.linalg.inv(tl.ones((2, 3))), ValueError, "inv: takes .*square.*float32\\[2,3\\]"),
    (lambda: tl.linalg.inv(tl.ones((2, 2))), np.linalg.LinAlgError, "inv: Singular"),
    (lambda: tl.linalg.cholesky(-tl.eye(2)), np.linalg.LinAlgError, "cholesky: .*positive"),
    (lambda: tl.linalg.qr(tl.eye(2), mode="raw"), ValueError, "qr: mode is .* 'raw'"),
    (lambda: tl.linalg.cross(tl.ones(2), tl.ones(2)), ValueError, "cross: axis -1 .* not 3"),
    (lambda: tl.linalg.matrix_norm(tl.eye(2), ord=5), ValueError, "matrix_norm: ord is"),
    (lambda: tl.linalg.matrix_power(tl.eye(2), 0.5), TypeError, "matrix_power: n is an integer"),
    (lambda: tl.linalg.solve(tl.eye(2), tl.ones(3)), ValueError, "solve: .*do not fit"),
    (lambda: tl.linalg.det(tl.eye(2, dtype=tl.bool)), TypeError, "det: .*floating-point"),
    (lambda: tl.linalg.pinv(tl.eye(2), rtol=tl.ones(3)), ValueError, "pinv: rtol is one number"),
    (lambda: tl.expand_dims(tl.ones(2), axis=5), IndexError, "axis 5 is out of range"),
    (lambda: tl.expand_dims(tl.ones(2), axis=5), ValueError, "axis 5 is out of range"),
    (lambda: tl.nonzero(tl.ones(())), ValueError, "nonzero: needs at least one dimension"),
    (lambda: tl.meshgrid(tl.ones(2), indexing="yx"), ValueError, 'indexing is "xy" or "ij"'),
    (lambda: tl.searchsorted(tl.ones(2), tl.ones(2), side="up"), ValueError, "side is"),
    (lambda: tl.searchsorted(tl.eye(2), tl.ones(2)), ValueError, "x1 is one-dimensional"),
    (lambda: tl.repeat(tl.ones(2), -1), ValueError, "repeat: .*not be negative"),
    (lambda: tl.repeat(tl.ones(2), tl.asarray([1, 2, 3])), ValueError, "repeat: .*one number or 2"),
    (lambda: tl.tile(tl.ones(2), (-1,)), ValueError, "tile: .*not be negative"),
    (lambda: tl.roll(tl.eye(2), (1, 2, 3), axis=(0, 1)), ValueError, "roll: 3 shifts"),
    (lambda: tl.diff(tl.ones(3), n=-1), ValueError, "diff: n is an integer of at least 0"),
    (lambda: tl.diff(tl.ones(3), n=1.5), TypeError, "diff: n is an integer .* got 1.5"),
    (lambda: tl.tile(tl.ones(2), 1.5), TypeError, "tile: repetitions is an int .* got 1.5"),
    (lambda: tl.tile(tl.ones(2), (2, 1.5)), TypeError, r"tile: repetitions .* got \(2, 1.5\)"),
    (lambda: tl.roll(tl.ones(3), 1.5), TypeError, "roll: shift is an int .* got 1.5"),
    (lambda: tl.roll(tl.ones(3), (1, 0.5), axis=(0, 0)), TypeError, r"roll: .* got \(1, 0.5\)"),
    (lambda: tl.roll(tl.ones(3), 1, axis="0"), TypeError, "roll: axis is an int.* got '0'"),
    (lambda: tl.tril(tl.eye(2), k=0.5), TypeError, "tril: k is an integer, got 0.5"),
    (lambda: tl.clip(tl.asarray([1, 2]), 0.5), TypeError, "clip: a bound of float32"),
    (lambda: tl.from_dlpack([1.0]), TypeError, "from_dlpack: list has no __dlpack__"),
    (lambda: tl.asarray(1j), TypeError, "complex128"),
]


@pytest.mark.parametrize(("mistake", "error", "message"), MISTAKES)
def test_mistakes_are_named(mistake: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        mistake()


@pytest.mark.parametrize(
    "function",
    [tl.unique_all, tl.unique_counts, tl.unique_inverse, tl.unique_values, tl.nonzero],
    ids=lambda f: f.__name__,
)
def test_shapes_that_depend_on_values_need_values(function: Any) -> None:
    for transform in (tl.jit, tl.vmap):
        with pytest.raises(tl.TracerError, match=f"{function.__name__}, whose result's shape"):
            transform(function)(tl.ones((2, 3)))


def test_unique_values_have_a_gradient() -> None:
    x = tl.asarray([3.0, 1.0, 3.0, 2.0])
    weights = tl.asarray([1.0, 10.0, 100.0])
    gradient = tl.grad(lambda x: tl.sum(tl.unique_values(x) * weights))(x)
    assert gradient.tolist() == [100.0, 1.0, 0.0, 10.0]


def test_factorizations_without_a_derivative_say_so() -> None:
    tall, wide = tl.ones((3, 2)), tl.ones((2, 3))
    for factorize, message in (
        (lambda: tl.grad(lambda x: tl.sum(tl.linalg.svd(x).U))(tall), "svd: .*full_matrices=False"),
        (lambda: tl.grad(lambda x: tl.sum(tl.linalg.qr(x).R))(wide), "qr: .*mode='reduced'"),
        (
            lambda: tl.grad(lambda x: tl.sum(tl.linalg.qr(x, mode="complete").Q))(tall),
            "qr: .*not wider than high",
        ),
    ):
        with pytest.raises(NotImplementedError, match=message):
            factorize()


@pytest.mark.parametrize("name", ["inv", "det", "cholesky", "svdvals", "pinv"])
@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16], ids=str)
def test_factorizations_of_narrow_floats(name: str, dtype: Any) -> None:
    x = tl.asarray([[4.0, 1.0], [1.0, 3.0]])
    function = getattr(tl.linalg, name)
    narrow = function(tl.astype(x, dtype))
    assert narrow.dtype == dtype
    np.testing.assert_allclose(
        narrow.numpy().astype(np.float32), function(x).numpy(), rtol=0.02, atol=0.01
    )


def minors(x: np.ndarray) -> list[list[float]]:
    """The cofactors of a matrix, from their definition."""
    places = range(len(x))

    def cofactor(i: int, j: int) -> float:
        rest = np.delete(np.delete(x, i, 0), j, 1)
        return (-1) ** (i + j) * float(np.linalg.det(rest))

    return [[cofactor(i, j) for j in places] for i in places]


@pytest.mark.parametrize(("n", "rank"), [(n, r) for n in (1, 2, 3, 4) for r in range(n + 1)])
def test_the_gradient_of_a_determinant_is_finite_at_singular_matrices(n: int, rank: int) -> None:
    # Integer matrices whose elimination is exact: NumPy finds a pivot of zero and no inverse.
    rng = np.random.default_rng(10 * n + rank)
    left = np.eye(n, rank)[rng.permutation(n)]
    x = left @ rng.integers(1, 4, (rank, n)).astype(float)
    others = rng.normal(size=(n, n))
    expected = minors(x)
    for function in (
        tl.grad(tl.linalg.det),
        tl.jit(tl.grad(tl.linalg.det)),
        tl.jacfwd(tl.linalg.det),
    ):
        np.testing.assert_allclose(function(tl.asarray(x)).numpy(), expected, atol=1e-12)
    both = tl.vmap(tl.grad(tl.linalg.det))(tl.asarray(np.stack([x, others]))).numpy()
    np.testing.assert_allclose(both, [expected, minors(others)], atol=1e-12)


def test_second_derivatives_of_determinants_need_an_inverse() -> None:
    with pytest.raises(np.linalg.LinAlgError, match="Singular"):
        tl.hessian(tl.linalg.det)(tl.zeros((2, 2)))


@pytest.mark.parametrize("order", [0.5, 1, 2, 3, math.inf])
def test_gradients_of_norms(order: float) -> None:
    x = tl.asarray([0.5, -2.0, 1.5], dtype=tl.float64)
    gradient = tl.grad(lambda x: tl.linalg.vector_norm(x, ord=order))(x).numpy()
    step = 1e-6 * np.eye(3)
    norm = [[np.linalg.norm(x.numpy() + sign * h, order) for h in step] for sign in (1, -1)]
    np.testing.assert_allclose(gradient, np.subtract(*norm) / 2e-6, rtol=1e-6, atol=1e-9)


def test_the_norm_of_zero_has_gradient_zero() -> None:
    assert tl.grad(tl.linalg.vector_norm)(tl.zeros(2)).tolist() == [0.0, 0.0]
