"""What the README shows is there and runs."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_model_runs() -> None:
    model = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    run = subprocess.run([sys.executable, "-c", model], capture_output=True, text=True, check=True)
    loss, _, cache = run.stdout.strip().partition(" ")
    assert float(loss) < 1.5  # guessing costs ln(10), which is 2.3
    assert cache == "CacheInfo(traces=1, hits=49)"


def test_the_trainer_runs_without_spark(tmp_path: pathlib.Path) -> None:
    model, trainer = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[:2]
    model = model.replace("range(50)", "range(1)")
    folder = str(tmp_path / "data_batch_1.bin")
    trainer = trainer.replace("num_workers=4", "num_workers=0, progress=False")
    trainer = trainer.replace("/shared/cifar-10-batches-bin", folder)
    trainer = trainer.replace("epochs=20", "steps=2")
    records = f"""
import numpy as np
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (256, 32, 32, 3)).astype(np.uint8)
tl.data.write_cifar10({folder!r}, images, np.arange(256) % 10)
"""
    program = model + records + trainer + "print(len(result.history['loss']))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == "2"


@pytest.mark.parametrize("page", sorted(["README.md", *map(str, (ROOT / "docs").rglob("*.md"))]))
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{page} links to {target}"


def test_every_source_file_that_it_names_exists() -> None:
    table = README[README.index("| Where | What |") :]
    folder = ""
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", table):
        place = ROOT / name
        if not place.exists():  # named beside the file before it
            place = ROOT / folder / name
        assert place.exists(), name
        folder = str(place.parent.relative_to(ROOT)) if not name.endswith("/") else folder
