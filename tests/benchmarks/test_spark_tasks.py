"""Two Spark tasks beside one and beside TorchDistributor: options, verdicts, the same training."""

import itertools

import numpy as np
import pytest

from benchmarks import spark_tasks
from benchmarks.spark_tasks import BATCH, COMPARED, ONE, ROWS, TWO, Result, judge, order
from benchmarks.workers import interpreter


def result(rate: float, loss: float = 2.0) -> Result:
    return Result([rate, rate + 1, rate - 1], [loss] * COMPARED)


def test_every_epoch_takes_every_row_once() -> None:
    rows = order(steps=2 * ROWS // BATCH)
    first, second = np.split(rows, 2)
    assert sorted(first.reshape(-1)) == sorted(second.reshape(-1)) == list(range(ROWS))
    assert (first != second).any()


def test_bars_are_set_against_the_best_of_the_peers() -> None:
    results = {ONE: result(500), TWO: result(950), "torch": result(400), "torch-nhwc": result(640)}
    lines = judge(results)
    assert [met for met, _ in lines] == [True] * 5 + [False]
    assert lines[-2][1] == "two tasks beside one: 1.90x, bar 1.85x, met"
    assert lines[-1][1] == "beside TorchDistributor (torch-nhwc): 1.48x, bar 1.5x, MISSED"


def test_losses_that_differ_are_found() -> None:
    results = {ONE: result(500), TWO: result(950), "torch": result(400, loss=2.001)}
    assert [met for met, _ in judge(results)] == [True, True, False, True, True]


def test_without_peers_one_bar_is_left() -> None:
    assert len(judge({ONE: result(500), TWO: result(950)})) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds must be at least 1, not 0"),
        (["--steps", "5"], "--steps must be at least 10, not 5"),
        (["--peers", "horovod"], "--peers: there is no 'horovod'; of torch"),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        spark_tasks.parse(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.spark
@pytest.mark.timeout(400)  # three Sparks, one after the other
def test_all_train_the_same_model_on_the_same_rows() -> None:
    names = [ONE, TWO] if interpreter("torch") is None else [ONE, TWO, "torch"]
    results = spark_tasks.measure(names, rounds=1, steps=10)
    for name, other in itertools.combinations(names, 2):
        np.testing.assert_allclose(results[name].losses, results[other].losses, rtol=1e-4)
    assert all(len(set(result.losses)) == COMPARED for result in results.values())
