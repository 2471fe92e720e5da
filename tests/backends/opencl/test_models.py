"""Training steps of whole models on an OpenCL device give the losses that the CPU gives."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from benchmarks.models import definitions, in_tensorlite

BATCH, STEPS = 4, 3


@pytest.mark.parametrize("model", definitions.MODELS)
def test_training_like_the_cpu(model: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "arrays.npz"
    definitions.save(path, model, BATCH)
    losses = {}
    for device in ("cpu", "opencl:0"):
        step = in_tensorlite.build_step(str(path), model, device=device)
        losses[device] = [step() for _ in range(STEPS)]
    np.testing.assert_allclose(losses["opencl:0"], losses["cpu"], rtol=1e-4)
