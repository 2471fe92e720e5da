"""Checkpoints that are damaged, that cannot be written, and that lie elsewhere."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import optim, random
from tensorlite.data import files
from tensorlite.distributed import checkpoint
from tensorlite.distributed.checkpoint import CheckpointFolder, DamagedError, Writer
from tests.distributed.conftest import wait_for_port
from tests.distributed.test_training import Classifier, dataset, job, leaves, loss_fn, train


def tree(step: int) -> dict[str, Any]:
    return {"state": {"model": {"w": tl.asarray(np.arange(4.0) + step)}}, "losses": tl.zeros(step)}


def folder_with(path: pathlib.Path, steps: list[int], **options: Any) -> CheckpointFolder:
    folder = CheckpointFolder(str(path), **options)
    for step in steps:
        folder.save(step, tree(step), {"seed": "0"}, loss=abs(step - 2.0))
    return folder


def file_of(path: pathlib.Path, step: int) -> pathlib.Path:
    return path / f"step-{step:09d}.safetensors"


# ---- what is kept, and what is read --------------------------------------------------------------


def test_the_newest_and_the_best_are_kept(tmp_path: pathlib.Path) -> None:
    assert folder_with(tmp_path / "a", [1, 2, 3, 4, 5, 6], keep=2).steps() == [5, 6]
    folder_with(tmp_path / "b", [1, 2, 3, 4], keep=2, keep_best=True)
    again = folder_with(tmp_path / "b", [5, 6], keep=2, keep_best=True)  # losses are in the files
    assert again.steps() == [2, 5, 6]


@pytest.mark.parametrize("how", ["cut", "emptied", "flipped"])
def test_a_damaged_one_is_skipped_with_a_warning(tmp_path: pathlib.Path, how: str) -> None:
    folder = folder_with(tmp_path, [1, 2, 3])
    file = file_of(tmp_path, 3)
    content = bytearray(file.read_bytes())
    if how == "flipped":
        content[-3] ^= 64  # the header is whole, so only the digest tells
    file.write_bytes({"cut": content[:-9], "emptied": b"", "flipped": content}[how])
    with pytest.raises(DamagedError, match="step 3"):
        folder.check(3)
    with pytest.warns(RuntimeWarning, match=r"step 3 in .*; an older one is used"):
        assert folder.newest() == 2


def test_one_of_a_newer_version_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 7)
        folder = folder_with(tmp_path, [1])
    with pytest.raises(ValueError, match="newer version of tensorlite .format 7, .* up to 1"):
        folder.newest()


def test_what_a_killed_writer_has_left_is_removed(tmp_path: pathlib.Path) -> None:
    folder_with(tmp_path, [1])
    for name in ("ab-step-000000002.safetensors", "ab-step-000000002.safetensors.cd.tmp"):
        (tmp_path / f"{files.UNFINISHED}{name}").write_bytes(b"half")
    (tmp_path / f".{files.UNFINISHED}ab-step-000000002.safetensors.cd.tmp").write_bytes(b"half")
    folder = CheckpointFolder(str(tmp_path))
    assert folder.steps() == [1]
    folder.prepare()
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000000001.safetensors"]


def test_a_folder_that_cannot_be_made_is_named_at_the_start(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "run"
    with pytest.raises(OSError, match=r"checkpoint: .*/run cannot be written to: .*choose another"):
        CheckpointFolder(str(place)).prepare()
    the_job = job(dataset(), 3, checkpoint=str(place))
    with pytest.raises(dist.WorkerError, match="cannot be written to"):
        train(2, the_job, Classifier(random.key(0)))


# ---- the writer ----------------------------------------------------------------------------------


class Slow(CheckpointFolder):
    """Saves when it is let."""

    def __init__(self) -> None:
        self.saved: list[int] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def save(self, step: int, tree: Any, metadata: Any, loss: float | None = None) -> None:
        self.begun.set()
        self.go_on.wait(20)
        self.saved.append(step)
        self.last = tree


def test_training_does_not_wait_for_the_disk() -> None:
    folder, problems = Slow(), []
    writer = Writer(folder, problems.append)
    value = np.ones(3)
    writer.put(1, {"w": tl.asarray(value, copy=False)}, {}, 0.0)
    folder.begun.wait(20)
    for step in (2, 3, 4):
        writer.put(step, {"w": tl.asarray(value, copy=False)}, {}, 0.0)
    value[:] = 99.0  # a step that donates its state writes over it
    folder.go_on.set()
    writer.close()
    assert folder.saved == [1, 4]  # 2 and 3 were overtaken
    np.testing.assert_array_equal(folder.last["w"], np.ones(3))
    assert problems == []


def test_a_problem_is_told_once() -> None:
    class Full(Slow):
        def save(self, step: int, *rest: Any, **options: Any) -> None:
            super().save(step, *rest, **options)
            raise OSError(28, "No space left on device" if step < 3 else "Input/output error")

        def __str__(self) -> str:
            return "/runs"

    folder, problems = Full(), []
    folder.go_on.set()
    writer = Writer(folder, problems.append)
    for step in (1, 2, 3):
        writer.put(step, {"w": tl.zeros(1)}, {}, 0.0)
        while len(folder.saved) < step:
            pass
    writer.close()
    first, second = problems
    assert first.startswith("the checkpoint of step 1 could not be saved to /runs: No space left")
    assert "training goes on" in first and "Input/output error" in second


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system that is full with the second checkpoint."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_costs_a_warning(small_disk: pathlib.Path) -> None:
    trainer = dist.Trainer(
        loss=loss_fn,
        optimizer=optim.adam(0.01),
        batch_size=16,
        checkpoint=str(small_disk / "run"),
        checkpoint_every=2,
        progress=False,
    )
    with pytest.warns(RuntimeWarning, match="could not be saved to .*: No space left on device"):
        result = trainer.fit(Classifier(random.key(0)), dataset(), steps=12)
    assert len(result.history["loss"]) == 12
    names = [entry.name for entry in (small_disk / "run").iterdir()]
    assert names and not [name for name in names if name.startswith(files.UNFINISHED)]


# ---- whole runs ----------------------------------------------------------------------------------


def test_a_run_goes_on_from_the_last_one_that_is_whole(tmp_path: pathlib.Path) -> None:
    model = Classifier(random.key(0))
    undisturbed = train(2, job(dataset(), 9), model)[0]
    options = {"checkpoint": str(tmp_path), "checkpoint_every": 2}
    train(2, job(dataset(), 6, **options), model)
    torn = file_of(tmp_path, 6)
    torn.write_bytes(torn.read_bytes()[:100])
    told: list[str] = []

    def report(record: dict[str, Any], last: bool = False) -> None:
        told.extend([record["warning"]] if "warning" in record else [])

    resumed = train(2, job(dataset(), 9, **options), model, report)[0]
    assert len(told) == 1 and "step 6" in told[0] and "an older one is used" in told[0]
    assert resumed.losses == undisturbed.losses
    for a, b in zip(leaves(resumed), leaves(undisturbed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_finished_run_is_not_run_again(tmp_path: pathlib.Path) -> None:
    the_job = job(dataset(), 5, checkpoint=str(tmp_path))
    first = train(2, the_job, Classifier(random.key(0)))[0]
    again = train(2, the_job, Classifier(random.key(0)))[0]
    assert again.losses == first.losses and again.timing.rows == 0
    for a, b in zip(leaves(again), leaves(first), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_rank_that_sees_the_newest_brings_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a path is local and rank 0 is on another host than before."""
    model, options = Classifier(random.key(0)), {"checkpoint": str(tmp_path)}
    undisturbed = train(2, job(dataset(), 8), model)[0]
    train(2, job(dataset(), 4, **options), model)
    plain = CheckpointFolder.steps

    def steps(folder: CheckpointFolder) -> list[int]:
        return plain(folder) if dist.current_worker().rank == 1 else []

    monkeypatch.setattr(CheckpointFolder, "steps", steps)
    resumed = train(2, job(dataset(), 8, **options), model)[0]
    assert resumed.losses == undisturbed.losses


# ---- reading them elsewhere ----------------------------------------------------------------------


def test_the_model_of_a_checkpoint(tmp_path: pathlib.Path) -> None:
    model = Classifier(random.key(0))
    options = {"checkpoint": str(tmp_path)}
    train(1, job(dataset(), 2, **options), model)
    trained = train(1, job(dataset(), 4, **options), model)[0]
    found = dist.load_checkpoint(str(tmp_path), like=model)
    wanted = tl.tree.leaves(trained.state["model"])
    for a, b in zip(tl.tree.leaves(found), wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    earlier = dist.load_checkpoint(str(tmp_path), like=model, step=2)
    assert float(tl.max(tl.abs(earlier.head.weight - found.head.weight))) > 0
    file_of(tmp_path, 2).write_bytes(file_of(tmp_path, 2).read_bytes()[:-9])
    with pytest.raises(DamagedError, match="step 2"):
        dist.load_checkpoint(str(tmp_path), like=model, step=2)
    with pytest.raises(FileNotFoundError, match="has steps 2, 4, not 3"):
        dist.load_checkpoint(str(tmp_path), like=model, step=3)
    with pytest.raises(ValueError, match=r"does not fit:\n  other: .* is expected, and not saved"):
        dist.load_checkpoint(str(tmp_path), like={"other": tl.zeros(3)})


# ---- other file systems --------------------------------------------------------------------------


def test_through_pyarrow(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system of pyarrow's that is no object store, as HDFS."""
    fs = pytest.importorskip("pyarrow.fs")

    def opened(location: Any, op: str) -> tuple[files.Store, str]:
        return files.ArrowStore(fs.LocalFileSystem(), "far://"), str(location)

    monkeypatch.setattr(checkpoint, "open_store", opened)
    folder = folder_with(tmp_path / "run", [1, 2, 3, 4], keep=2)
    folder.prepare()
    assert folder.steps() == [3, 4] and folder.newest() == 4
    assert str(folder) == f"far://{tmp_path}/run"
    found = folder.load(4, tree(4))
    np.testing.assert_array_equal(np.asarray(found["state"]["model"]["w"]), np.arange(4.0) + 4)
    names = [entry.name for entry in (tmp_path / "run").iterdir()]
    assert len(names) == 2, names


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A real server that speaks S3 on this machine; the end of a URI that reaches it."""
    pytest.importorskip("moto")
    pytest.importorskip("pyarrow.fs")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, server)
        address = f"http://127.0.0.1:{port}"
        urllib.request.urlopen(urllib.request.Request(f"{address}/runs", method="PUT")).close()
        yield f"scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
    finally:
        server.terminate()
        server.wait()


def test_on_s3(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "thing")
    place, model = f"s3://runs/cifar?{s3}", Classifier(random.key(0))
    undisturbed = train(2, job(dataset(), 9), model)[0]
    options = {"checkpoint": place, "checkpoint_every": 2}
    train(2, job(dataset(), 5, **options), model)
    assert CheckpointFolder(place).steps()[-1] == 5  # one before it may have been overtaken
    resumed = train(2, job(dataset(), 9, **options), model)[0]
    assert resumed.losses == undisturbed.losses
    found = dist.load_checkpoint(place, like=model)
    wanted = tl.tree.leaves(resumed.state["model"])
    for a, b in zip(tl.tree.leaves(found), wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    with pytest.raises(OSError, match=r"checkpoint: s3://nowhere/x cannot be written to: .*"):
        CheckpointFolder(f"s3://nowhere/x?{s3}").prepare()


def test_a_place_that_is_none() -> None:
    with pytest.raises(ValueError, match="checkpoint: cannot open nosuch://runs"):
        dist.Trainer(loss=len, optimizer=optim.sgd(0.1), batch_size=4, checkpoint="nosuch://runs/a")
