"""The benchmark of training steps: its options, its verdicts, its tables."""

import math

import pytest

from benchmarks import train_step
from benchmarks.train_step import Bar, Configuration, Result, bars_of, disagreements, markdown

TUTORIAL = Configuration("tutorial", 128, 2, "f32")


def result(step: float = 1.0, loss: float = 2.0) -> Result:
    return Result(step=step, first=1.0, memory=100.0, losses=[loss])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "alexnet"], "--models: there is no 'alexnet'; of tutorial, resnet20"),
        (["--batch", "many"], "--batch and --threads are integers"),
        (["--batch", "0"], "--batch: sizes are even and positive, got [0]"),
        (["--batch", "33"], "--batch: sizes are even and positive, got [33]"),
        (["--threads", "0"], "--threads: between 1 and the"),
        (["--threads", "100000"], "--threads: between 1 and the"),
        (["--rounds", "0"], "--rounds must be at least 1, not 0"),
        (["--peers", "caffe"], "--peers: there is no 'caffe'; of torch"),
        (["--ours", "--peers", "jax"], "--ours is without peers"),
        (["--precision", "f16"], "--precision: invalid choice"),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train_step.parse(arguments)
    assert message in capsys.readouterr().err


def test_a_peer_that_is_asked_for_must_have_an_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_step, "interpreter", lambda framework: None)
    with pytest.raises(SystemExit):
        train_step.parse(["--peers", "jax"])
    assert "jax has no environment; make one with `make peers`" in capsys.readouterr().err
    assert train_step.parse([]).peers == []
    assert "without jax" in capsys.readouterr().out


def test_a_bar_is_set_against_the_best_rival() -> None:
    bar = Bar("step", ("torch", "jax"), 1.4)
    results = {"tensorlite": result(1.0), "torch": result(3.0), "jax": result(1.3)}
    assert bar.verdict(results) == (False, "step: jax takes 1.30 times ours, bar 1.4, MISSED")
    del results["jax"]
    assert bar.verdict(results) == (True, "step: torch takes 3.00 times ours, bar 1.4, met")
    del results["torch"]
    assert bar.verdict(results) is None


def test_bars_hold_for_the_configurations_that_they_name() -> None:
    assert {bar.what for bar in bars_of(TUTORIAL)} == {"step", "memory", "first"}
    assert bars_of(Configuration("tutorial", 32, 2, "f32")) == []
    assert bars_of(Configuration("tutorial", 128, 2, "bf16")) == []
    assert [bar.ratio for bar in bars_of(Configuration("mlp", 32, 1, "f32"))] == [1.0, 2.0]


def test_losses_that_differ_are_named() -> None:
    results = {"tensorlite": result(), "torch": result(loss=2.00001), "jax": result(loss=2.1)}
    assert disagreements(results, 1e-4) == ["the losses of jax and tensorlite differ by 5.0e-02"]
    results["jax"] = result(loss=math.nan)
    assert disagreements(results, 1e-4) == ["the losses of jax and tensorlite differ by nan"]


def test_only_images_have_layouts() -> None:
    assert train_step.CONTESTANTS["torch-nhwc"].enters("tutorial")
    assert not train_step.CONTESTANTS["torch-nhwc"].enters("mlp")
    assert train_step.CONTESTANTS["torch"].enters("mlp")


def test_the_tables_have_a_column_for_each_contestant() -> None:
    table = {
        TUTORIAL: {"tensorlite": result(0.06), "jax": result(0.25)},
        Configuration("mlp", 32, 1, "f32"): {"tensorlite": result(0.001)},
    }
    lines = markdown(table).splitlines()
    assert "| model | batch | threads | tensorlite | jax |" in lines
    assert "| tutorial | 128 | 2 | 60.00 | 250.00 (4.17x) |" in lines
    assert "| mlp | 32 | 1 | 1.00 | - |" in lines
    assert "| tutorial | 128 | 2 | 100 / 1.0 | 100 / 1.0 |" in lines
