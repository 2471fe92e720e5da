"""Every example runs, in a short form, and what it prints makes sense."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import tensorlite as tl

ROOT = pathlib.Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"

# Options of a short run; what a run has to print is in the test of the example's name.
SHORT = {
    "characters": ["--steps", "60", "--hidden", "64", "--length", "32"],
    "cifar10": ["--workers", "0", "--steps", "8", "--batch-size", "32"],
    "digits": ["--epochs", "6"],
    "per_example_gradients": ["--epochs", "8", "--batch-size", "64"],
    "pytorch_weights": [],
    "resnet20": ["--workers", "2", "--epochs", "2", "--batch-size", "128"],
    "spark_ml": ["--epochs", "4"],
    "transformer": ["--epochs", "8", "--depth", "2"],
    "vgg": ["--epochs", "4", "--width", "8"],
}


def start(name: str, *options: str, timeout: float = 150) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *options]
    # Spark listens on the loopback interface only.
    env = os.environ | {"SPARK_LOCAL_IP": "127.0.0.1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)


def output(name: str, *options: str) -> str:
    run = start(name, *SHORT[name], *options)
    assert run.returncode == 0, run.stderr
    assert not re.search(r"\b(nan|inf)\b", run.stdout, re.IGNORECASE), run.stdout
    return run.stdout


def numbers(pattern: str, text: str) -> list[float]:
    found = [float(number) for number in re.findall(pattern, text)]
    assert found, f"{pattern} is not in:\n{text}"
    return found


def accuracy(text: str) -> float:
    return numbers(r"held-out accuracy ([\d.]+)%", text)[-1]


def losses(text: str) -> list[float]:
    return numbers(r"loss ([\d.]+)", text)


def test_no_example_is_without_a_test() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SHORT)
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(SHORT) <= tests


def test_every_example_is_described() -> None:
    page = (ROOT / "docs" / "examples.md").read_text()
    for name in SHORT:
        assert f"`{name}.py`" in page


def test_digits() -> None:
    printed = output("digits")
    first, *_, last = losses(printed)
    assert last < 0.1 < first
    assert accuracy(printed) > 95


@pytest.mark.spark
def test_resnet20() -> None:
    printed = output("resnet20")  # in two barrier tasks
    assert "in 2 Spark barrier tasks" in printed
    first, last = numbers(r"([\d.]+) at the (?:first|last)", printed.replace(" step", ""))
    assert last < first / 2
    assert 0 <= accuracy(printed) <= 100  # running statistics lag behind for the first epochs


@pytest.mark.parametrize("options", [[], ["--precision", "bf16", "--checkpoint"]])
def test_vgg(options: list[str]) -> None:
    printed = output("vgg", *options)
    first, *_, last = losses(printed)
    assert last < first / 3
    assert accuracy(printed) > 85


def test_vgg_computed_twice_learns_the_same() -> None:
    # Dropout, batch norm and its running statistics pass through tl.checkpoint. What is left of a
    # difference is that of another order of sums.
    plain, twice = (output("vgg", "--epochs", "1", *options) for options in ([], ["--checkpoint"]))
    assert losses(twice) == pytest.approx(losses(plain), rel=0.02)


def test_transformer() -> None:
    printed = output("transformer")
    first, *_, last = losses(printed)
    assert last < first / 2
    assert accuracy(printed) > 50


def test_characters() -> None:
    printed = output("characters")
    first, *_, last = losses(printed.partition("characters/s")[0])
    assert last < first - 1
    assert printed.partition("-" * 72 + "\n")[2].startswith("The ")


def test_characters_of_a_file(tmp_path: pathlib.Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abc" * 200)
    # What comes next is certain, so that it must be learnt without a mistake.
    printed = output("characters", "--text", str(text), "--start", "ab", "--steps", "100")
    assert "600 characters, 3 different ones" in printed
    assert printed.splitlines()[-1] == ("abc" * 134)[:402]


def test_per_example_gradients() -> None:
    printed = output("per_example_gradients")
    assert numbers(r"between vmap and loop: ([\d.e+-]+)", printed)[0] < 1e-5
    assert numbers(r"clipped (\d+)%", printed)[0] > 10
    assert accuracy(printed) > 70


def test_pytorch_weights() -> None:
    printed = output("pytorch_weights")
    assert re.search(
        r"features.0.weight +\(16, 1, 3, 3\) +-> conv1.weight +\(3, 3, 1, 16\)", printed
    )
    assert numbers(r"at most ([\d.e+-]+) from", printed)[0] < 1e-4


def test_pytorch_weights_that_do_not_fit(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "weights.safetensors"
    tl.save(path, {"features.0.weight": np.zeros((16, 3, 3, 3), np.float32)})
    run = start("pytorch_weights", str(path))
    assert run.returncode == 1
    assert "features.0.weight: has shape (16, 3, 3, 3)" in run.stderr
    assert "Traceback" not in run.stderr


def test_cifar10(tmp_path: pathlib.Path) -> None:
    plot = tmp_path / "loss.png"
    printed = output("cifar10", "--plot", str(plot))
    assert "training 8 steps of 32 images in this process" in printed
    assert plot.stat().st_size > 1000


@pytest.mark.spark
def test_spark_ml() -> None:
    assert accuracy(output("spark_ml")) > 85


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("characters", ["--start", "\u00ff"], "must be made of characters of the text"),
        ("characters", ["--text", "nowhere.txt"], "No such file"),
        ("digits", ["--batch-size", "0"], "between 1 and 1438 images, got 0"),
        ("per_example_gradients", ["--clip", "0"], "--clip 0.0 must be positive"),
        ("resnet20", ["--workers", "65"], "between 0 and the batch size, got 65"),
        ("resnet20", ["--data", "nowhere"], "nowhere"),
        ("transformer", ["--heads", "3"], "--heads 3 must divide --width 64"),
        ("vgg", ["--width", "0"], "--width must be at least 1"),
    ],
)
def test_what_is_typed_wrong_is_said(name: str, options: list[str], message: str) -> None:
    run = start(name, *options)
    assert run.returncode != 0
    assert message in run.stderr
    assert "Traceback" not in run.stderr
