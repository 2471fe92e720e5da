"""The commands that train and report."""

import pathlib
import re

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import cli

MODEL = """
import tensorlite as tl
from tensorlite import nn


class Net(nn.Module):
    def __init__(self, key):
        self.head = nn.Linear(12, 3, key=key)

    def __call__(self, x):
        return self.head(x.reshape(x.shape[0], -1))


def other(key):
    return 3
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "some_networks.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    images = (rng.normal(size=(300, 2, 2, 3)) * 0.1 + labels[:, None, None, None]).astype(
        np.float32
    )
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_train_and_report(place, capsys):
    command = ["train", "some_networks:Net", "--data", "data.npz", "--epochs", "30"]
    options = ["--learning-rate", "0.05", "--report", "run", "--out", "net.safetensors"]
    assert cli.main([*command, *options, "--tensorboard", "board"]) == 0
    assert any(path.name.startswith("events.") for path in pathlib.Path("board").iterdir())
    out, shown = capsys.readouterr()
    assert "270 images to train on, 30 held out" in shown and "step 90/90" in shown
    assert float(out.partition("accuracy ")[2].partition("%")[0]) > 90
    assert tl.load("net.safetensors")["head.weight"].shape == (12, 3)
    assert cli.main(["report", "run", "--out", "page.html"]) == 0
    assert pathlib.Path("page.html").read_text() == pathlib.Path("run/report.html").read_text()


def test_a_worker_that_fails_is_told_without_a_traceback_of_the_command(place, capsys, monkeypatch):
    def fit(*args, **options):
        raise dist.WorkerError(dist.errors.Failure(1, "h", "error", "KeyError", "'colour'"))

    monkeypatch.setattr(dist.Trainer, "fit", fit)
    assert cli.main(["train", "some_networks:Net", "--data", "data.npz", "--workers", "2"]) == 1
    told = capsys.readouterr().err
    assert "tensorlite train: rank 1 (host h) raised KeyError: 'colour'" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Net", "--data", "data.npz"], "'Net' is not written module:name"),
        (["nowhere:Net", "--data", "data.npz"], "cannot import 'nowhere'"),
        (["some_networks:Nett", "--data", "data.npz"], "'some_networks' has no 'Nett'"),
        (["some_networks:other", "--data", "data.npz"], "makes a int, not an nn.Module"),
        (["some_networks:Net", "--data", "nothing.npz"], "No such file.*nothing.npz"),
        (["some_networks:Net", "--data", "x"], "x does not exist"),
        (["some_networks:Net", "--data", "data.npz", "--out", "x.pt"], "--out ends in"),
        (["some_networks:Net", "--data", "data.npz", "--epochs", "0"], "epochs must be"),
    ],
)
def test_what_is_typed_wrong_is_said(place, capsys, arguments, message):
    assert cli.main(["train", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_folder_without_a_run(place, capsys):
    assert cli.main(["report", "."]) == 2
    assert "has no run.json" in capsys.readouterr().err
