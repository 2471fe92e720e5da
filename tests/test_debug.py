"""Finding the first NaN, tracers that leak, and the ladder of TENSORLITE_DEBUG."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import nn, observe, random


@pytest.fixture(autouse=True)
def nothing_is_left_on() -> Iterator[None]:
    plain = tl.devices()[0].run
    assert not observe.watchers
    yield
    assert not observe.watchers, "a watcher was left behind"
    assert tl.devices()[0].run.func == plain.func, "devices run as before"


def line(function: Any, offset: int) -> str:
    return rf"{os.path.basename(__file__)}:{function.__code__.co_firstlineno + offset} in "


def loss(x: tl.Tensor) -> tl.Tensor:
    y = tl.sqrt(x)
    return tl.sum(y * 2)


ZERO = tl.asarray([1.0, 0.0])
NEGATIVE = tl.asarray([1.0, -4.0])


# ---- debug_nans ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: f,
        tl.jit,
        tl.grad,
        lambda f: tl.jit(tl.grad(f)),
        lambda f: tl.grad(tl.jit(f)),
        lambda f: tl.vmap(lambda x: f(x)),
        lambda f: tl.jit(lambda x: tl.jit(f)(x)),
        lambda f: tl.checkpoint(f),
        lambda f: tl.jit(lambda x: tl.cond(x[0] > 0, f, f, x)),
        lambda f: tl.jit(lambda x: tl.scan(lambda c, v: (f(tl.stack([c, v])), v), x[1], x)[0]),
    ],
)
def test_the_first_nan_names_the_operation_and_the_line(transform: Any) -> None:
    function = transform(lambda x: loss(x)) if transform is not tl.grad else tl.grad(loss)
    message = (
        rf"debug_nans: sqrt gave NaN in 1 of \d values of its result .*\n  at .*{line(loss, 1)}"
    )
    with tl.debug_nans(), pytest.raises(FloatingPointError, match=message):
        function(NEGATIVE)


def test_the_message_shows_the_code_and_the_arguments() -> None:
    x = tl.asarray(np.array([[-4.0, 0.5, np.nan]], np.float16))
    with tl.debug_nans(), pytest.raises(FloatingPointError) as caught:
        tl.pow(x, tl.asarray(0.5, dtype=tl.float16))
    text = str(caught.value)
    assert "pow gave NaN in 2 of 3 values of its result float16[1,3]" in text
    assert "tl.pow(x, tl.asarray(0.5, dtype=tl.float16))" in text
    assert "argument 0: float16[1,3], from -4 to 0.5, 1 NaN already" in text
    assert "argument 1: float16[]" in text


@pytest.mark.parametrize(
    "gradient",
    [tl.grad(loss), tl.jit(tl.grad(loss)), tl.grad(tl.jit(loss)), tl.grad(tl.checkpoint(loss))],
    ids=["eager", "jit(grad)", "grad(jit)", "checkpoint"],
)
def test_a_backward_operation_is_named_with_the_forward_line(gradient: Any) -> None:
    message = rf"gave infinity .*\n  at the derivative of .*{line(loss, 1)}loss: y = tl.sqrt\(x\)"
    with (
        pytest.raises(FloatingPointError, match=message),
        tl.debug_nans(infinities=True),
    ):
        gradient(ZERO)
    with tl.debug_nans():
        assert gradient(ZERO).tolist() == [1, np.inf], "infinities are no NaNs"


def test_infinities_are_found_on_demand() -> None:
    with tl.debug_nans(infinities=True):
        with pytest.raises(
            FloatingPointError, match=r"(?s)log gave infinity in 1 of 2.*from 0 to 1"
        ):
            tl.log(ZERO)
        with pytest.raises(FloatingPointError, match=r"log gave NaN in 1 of 2"):
            tl.log(NEGATIVE)
        with pytest.raises(FloatingPointError, match=r"log gave NaN and infinity in 2 of 2"):
            tl.log(tl.asarray([-1.0, 0.0]))
    with tl.debug_nans():
        assert tl.log(ZERO).tolist() == [0, -np.inf]


def test_scopes_are_named_and_what_is_right_passes() -> None:
    layer = nn.Linear(2, 2, key=random.key(0))

    def f(x: tl.Tensor) -> tl.Tensor:
        with tl.named_scope("stage"):
            return layer(x)

    with tl.debug_nans():
        for run in (f, tl.jit(f)):
            assert run(tl.ones(2)).shape == (2,)
            with pytest.raises(
                FloatingPointError, match=r"reshape gave NaN.*\n.*\(scope stage/Linear\)"
            ):
                run(tl.asarray([np.nan, 1.0]))
        assert np.isnan(tl.full(2, np.nan).numpy()).all(), "what was asked for is no mistake"
        assert tl.isnan(tl.full(2, np.nan)).tolist() == [True, True]


def test_it_is_a_decorator_a_switch_and_holds_in_all_threads() -> None:
    @tl.debug_nans()
    def f(x: tl.Tensor) -> tl.Tensor:
        return tl.log(x)

    for _ in range(2):
        with pytest.raises(FloatingPointError):
            f(NEGATIVE)
    assert np.isnan(tl.log(NEGATIVE).numpy()[1])
    switch = tl.debug_nans()
    switch.start()
    errors: list[Exception] = []

    def work() -> None:
        try:
            tl.log(NEGATIVE)
        except FloatingPointError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    switch.stop()
    assert len(errors) == 1


def test_a_compiled_function_runs_as_before_afterwards() -> None:
    f = tl.jit(loss)
    expected = f(ZERO).item()
    with tl.debug_nans():
        assert f(ZERO).item() == expected
    assert f(ZERO).item() == expected
    assert f.cache_info().traces == 1


# ---- leaked tracers ------------------------------------------------------------------------------


def test_a_leaked_tracer_names_the_transform_and_where_it_was_made() -> None:
    leaks: list[tl.Tensor] = []

    def f(x: tl.Tensor) -> tl.Tensor:
        leaks.append(tl.exp(x))
        leaks.append(x)
        return x

    tl.jit(f)(tl.ones(2))
    made = rf"add: got a value traced by tl.jit of f, .* result of exp at .*{line(f, 1)}"
    with pytest.raises(tl.TracerError, match=made):
        leaks[0] + 1
    with pytest.raises(tl.TracerError, match=r"by tl.jit of f, .* \(it is an argument of the"):
        leaks[1] + 1
    with pytest.raises(tl.TracerError, match=rf"tl.jit of f, .* result of exp at .*{line(f, 1)}"):
        tl.jit(lambda x: x * leaks[0])(tl.ones(2))
    leaks.clear()
    tl.vmap(f)(tl.ones((2, 2)))
    with pytest.raises(tl.TracerError, match=r"add: got a value traced by tl.vmap of f, which"):
        leaks[0] + 1
    leaks.clear()
    tl.grad(lambda x: tl.sum(f(x)))(tl.ones(2))
    with pytest.raises(tl.TracerError, match=r"add: got a value traced by tl.grad of <lambda>, wh"):
        leaks[0] + 1


def test_asking_a_tracer_for_its_value_names_where_it_was_made() -> None:
    def f(x: tl.Tensor) -> Any:
        y = tl.exp(x)
        return np.asarray(y)

    message = rf"conversion to NumPy .* tl.jit of f .* result of exp at .*{line(f, 1)}.*static"
    with pytest.raises(tl.TracerError, match=message):
        tl.jit(f)(tl.ones(2))
    with pytest.raises(tl.TracerError, match=r"bool\(\) needs .* \(it is an argument of"):
        tl.jit(lambda x: 1 if x else 2)(tl.ones(()))


# ---- TENSORLITE_DEBUG ----------------------------------------------------------------------------


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    def at(level: int) -> list[str]:
        observe.set_verbosity(level)
        caplog.clear()
        return caplog.messages

    caplog.set_level(logging.DEBUG, logger="tensorlite")
    yield lambda: caplog.messages, at
    observe.set_verbosity(0)


def test_level_1_tells_what_is_traced_and_why_again(logged: Any) -> None:
    messages, at = logged
    at(1)
    f = tl.jit(lambda x, n, *, flag: x["w"] * n, static_argnums=(1,))
    x = {"w": tl.ones(3)}
    f(x, 2, flag=True)
    f(x, 2, flag=True)
    assert len(messages()) == 1
    assert messages()[0].startswith("trace <lambda>(argument 0.w: float32[3]")
    assert "keyword flag: bool[] (Python scalar), static argument 1: 2" in messages()[0]
    f(x, 3, flag=True)
    assert "<lambda> is traced again, since static argument 1 was 2, is 3" in messages()[-1]
    f({"w": tl.ones(4)}, 3, flag=True)
    assert messages()[-1].endswith("since argument 0.w was float32[3], is float32[4]")
    assert f.cache_info().traces == 3


def test_levels_2_to_4_tell_what_is_compiled_launched_and_timed(logged: Any) -> None:
    messages, at = logged

    def f(x: tl.Tensor) -> tl.Tensor:
        with tl.named_scope("block"):
            return tl.jit(lambda x: tl.exp(x) * 2)(x)

    at(2)
    tl.jit(f)(tl.ones(2))
    lines = messages()
    (compiled,) = [m for m in lines if m.startswith("compile ")]
    assert compiled.startswith("compile f for the CPU: 2 equations after inlining, ")
    assert "1 of them loop nests; 1 launches, 0 of them in Python" in compiled
    assert not any(m.lstrip().startswith(("launch ", "step ")) for m in lines)
    at(3)
    run = tl.jit(f)
    run(tl.ones(2))
    step = next(
        m for m in messages() if m.startswith("  step exp_multiply(float32[2]) -> float32[2] on")
    )
    assert step.endswith("# block test_debug.py:" + str(f.__code__.co_firstlineno + 2))
    assert "launch call f(float32[2]) -> float32[2] on cpu" in messages()
    at(4)
    run(tl.ones(2))
    assert any(" us  launch call f(" in m for m in messages())
    at(0)
    tl.jit(f)(tl.ones(2))
    assert not messages()


def test_bad_levels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"TENSORLITE_DEBUG\) is 0 to 4, got 5"):
        observe.set_verbosity(5)


def in_a_process(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_environment_switches_everything_on() -> None:
    code = "import tensorlite as tl; tl.jit(tl.log)(tl.asarray([-1.0]))"
    assert in_a_process(code).returncode == 0
    nans = in_a_process(code, TENSORLITE_DEBUG_NANS="1", TENSORLITE_DEBUG="3")
    assert nans.returncode == 1
    assert "FloatingPointError: debug_nans: log gave NaN" in nans.stderr
    assert "tensorlite: trace log(argument 0: float32[1]" in nans.stderr
    infinities = in_a_process(
        "import tensorlite as tl; 1 / tl.zeros(1)", TENSORLITE_DEBUG_NANS="inf"
    )
    assert "divide gave infinity" in infinities.stderr
    bad = in_a_process("import tensorlite", TENSORLITE_DEBUG_NANS="yes", TENSORLITE_DEBUG="")
    assert "TENSORLITE_DEBUG_NANS is 0, 1 or inf, got 'yes'" in bad.stderr
    bad = in_a_process("import tensorlite", TENSORLITE_DEBUG="all")
    assert "TENSORLITE_DEBUG is a number from 0 to 4, got 'all'" in bad.stderr
