"""All frameworks train the same models: their losses agree, step for step."""

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.models import definitions
from benchmarks.workers import Worker, interpreter

BATCH = 4
STEPS = 3
MODELS = list(definitions.MODELS)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A file of weights and a batch for each model."""
    folder = tmp_path_factory.mktemp("arrays")
    paths = {model: folder / f"{model}.npz" for model in MODELS}
    for model, path in paths.items():
        definitions.save(path, model, BATCH)
    return {model: str(path) for model, path in paths.items()}


def losses(worker: Worker, arrays: dict[str, str], model: str, **options: bool) -> list[float]:
    worker.ask(build="build_step", arguments={"arrays": arrays[model], "model": model, **options})
    values: list[float] = worker.ask(run=STEPS)["values"]
    return values


@pytest.fixture(scope="module")
def expected(arrays: dict[str, str]) -> dict[str, list[float]]:
    with Worker("tensorlite", "models.in_tensorlite", threads=1) as worker:
        return {model: losses(worker, arrays, model) for model in MODELS}


@pytest.fixture(scope="module", params=["torch", "tensorflow", "jax"])
def peer(request: pytest.FixtureRequest) -> Iterator[Worker]:
    if interpreter(request.param) is None:
        pytest.skip(f"no environment for {request.param}; make peers")
    with Worker(request.param, f"models.in_{request.param}", threads=1) as worker:
        yield worker


@pytest.mark.parametrize("model", MODELS)
def test_it_trains(expected: dict[str, list[float]], model: str) -> None:
    assert np.all(np.isfinite(expected[model]))
    assert len(set(expected[model])) == STEPS  # every step changes the weights


@pytest.mark.parametrize("model", MODELS)
def test_peers_agree(
    peer: Worker, arrays: dict[str, str], expected: dict[str, list[float]], model: str
) -> None:
    np.testing.assert_allclose(losses(peer, arrays, model), expected[model], rtol=1e-4)


@pytest.mark.parametrize("model", ["tutorial", "vgg11"])
def test_layouts_agree(arrays: dict[str, str], model: str) -> None:
    if interpreter("torch") is None:
        pytest.skip("no environment for torch; make peers")
    with Worker("torch", "models.in_torch", threads=1) as worker:
        plain = losses(worker, arrays, model)
        last = losses(worker, arrays, model, channels_last=True)
    np.testing.assert_allclose(last, plain, rtol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_every_image_is_there_twice_with_two_labels(model: str) -> None:
    images, labels = definitions.batch_of(model, 32)
    assert images.shape == (32, *definitions.MODELS[model].image) and images.dtype == np.float32
    np.testing.assert_array_equal(images[:16], images[16:])
    assert np.all(labels[:16] != labels[16:]) and set(labels) <= set(range(definitions.CLASSES))


def test_files_hold_parameters_and_statistics_apart(tmp_path: pathlib.Path) -> None:
    definitions.save(tmp_path / "arrays.npz", "resnet20", BATCH)
    parameters, statistics, images, labels = definitions.load(str(tmp_path / "arrays.npz"))
    assert sum(array.size for array in parameters.values()) == 272_474
    assert {name.rpartition(".")[2] for name in statistics} == {"mean", "variance"}
    assert images.shape == (BATCH, 32, 32, 3) and labels.shape == (BATCH,)
