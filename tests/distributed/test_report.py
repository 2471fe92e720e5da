"""The report of a run: what is kept, what the page shows, and TensorBoard's files."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import optim
from tensorlite.data import ArrayDataset
from tensorlite.distributed import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


def loss(model, x, y):
    return tl.mean((x @ model["w"] - y) ** 2)


def trained(folder, **options):
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    data = ArrayDataset(x, x @ np.asarray([1, 2], np.float32))
    train, held = data.split(48)
    trainer = dist.Trainer(
        loss=loss,
        optimizer=optim.sgd(0.1),
        batch_size=16,
        progress=False,
        report=str(folder),
        **options,
    )
    return trainer.fit({"w": tl.zeros(2)}, train, epochs=4, validation=held)


def data_of(html):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return json.loads(found[1])


def test_a_run_is_kept_and_shown(tmp_path):
    result = trained(tmp_path / "run")
    run = data_of((tmp_path / "run" / "report.html").read_text())
    assert run["state"] == "done" and run["options"]["batch_size"] == "16"
    assert run["options"]["loss"] == "loss" and run["environment"]["NumPy"] == np.__version__
    assert [record["step"] for record in run["records"]] == list(range(1, 13))
    assert [record["loss"] for record in run["records"]] == result.history["loss"]
    points = run["validation"]["validation_loss"]
    assert [step for step, _ in points] == [3, 6, 9, 12]
    assert [value for _, value in points] == result.history["validation_loss"]
    assert run["ranks"] == result.summary["ranks"] and run["ranks"][0]["steps"] == 11
    assert report.page(tmp_path / "run") == (tmp_path / "run" / "report.html").read_text()


def test_a_run_that_fails_says_so(tmp_path):
    def broken(model, x, y):
        raise KeyError("</script> is nothing to trip over")

    trainer = dist.Trainer(
        loss=broken, optimizer=optim.sgd(0.1), batch_size=1, progress=False, report=str(tmp_path)
    )
    with pytest.raises(KeyError):
        trainer.fit({"w": tl.zeros(2)}, ArrayDataset(np.zeros((1, 2)), np.zeros(1)), steps=1)
    run = data_of((tmp_path / "report.html").read_text())
    assert run["state"] == "failed" and "</script> is nothing" in run["error"]
    assert run["records"] == []


def test_steps_that_come_again_replace_those_before(tmp_path):
    page = report.RunReport(tmp_path, "a run", {})
    for step, value in [(1, 1.0), (2, 2.0), (3, float("nan")), (2, 5.0)]:
        page({"step": step, "steps": 4, "loss": value})
    page.warn("something")
    page.finish(None, None)
    with open(tmp_path / "records.jsonl", "a") as file:
        file.write('{"step": 3, "st')  # as a process leaves it that is killed
    run = data_of(report.page(tmp_path))
    assert [(r["step"], r["loss"]) for r in run["records"]] == [(1, 1.0), (2, 5.0)]
    assert run["warnings"] == ["something"]
    with pytest.raises(FileNotFoundError, match=r"has no run\.json"):
        report.page(tmp_path / "other")


@pytest.mark.parametrize("count", [0, 1, 1999, 2000, 2001, 5000])
def test_long_curves_are_thinned(count):
    records = [{"step": step} for step in range(1, count + 1)]
    kept = report.thinned(records)
    assert len(kept) <= report.MOST_POINTS and kept[-1:] == records[-1:]
    assert count > report.MOST_POINTS or kept == records


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_the_page_in_a_browser(tmp_path):
    trained(tmp_path)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    page = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path}/report.html"],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert "<b>12 / 12</b>" in page.stdout, page.stderr
    assert page.stdout.count("<polyline") >= 4  # training and validation loss, and two more
    assert "Where each worker's time goes" in page.stdout and "127.0.0.1" in page.stdout
