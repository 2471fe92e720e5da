"""TensorBoard's files: scalars, histograms of parameters and gradients, and the graph."""

import math
import warnings

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import nn, optim, random
from tensorlite.data import ArrayDataset
from tensorlite.distributed import details, tensorboard
from tests.distributed.networks import DigitNet


def loss(model, images, labels, key=None):
    logits = model(images, training=True, key=key)
    return tl.mean(nn.softmax_cross_entropy(logits, labels)), model


def data():
    images = np.random.default_rng(0).normal(size=(48, 8, 8, 3)).astype(np.float32)
    return ArrayDataset(images, np.arange(48) % 10).split(32)


def fitted(folder, **options):
    trainer = dist.Trainer(
        loss=loss,
        optimizer=optim.sgd(0.1),
        batch_size=16,
        tensorboard=str(folder),
        **({"progress": False} | options),
    )
    training, held = data()
    network = DigitNet(random.key(0), rate=0.1)
    return trainer.fit(network, training, epochs=3, validation=held)


def events(folder):
    """What a folder's one file holds: by tag the values of each step; and the graph."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.graph_pb2 import GraphDef

    (path,) = folder.iterdir()
    content, found, graph = path.read_bytes(), {}, None
    while content:  # a length, its checksum, the event, its checksum
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        if event.graph_def:
            assert graph is None
            graph = GraphDef.FromString(event.graph_def)
        for value in event.summary.value:
            kind = "histo" if value.HasField("histo") else "simple_value"
            found.setdefault(value.tag, {})[event.step] = getattr(value, kind)
    return found, graph


def test_scalars_and_parameters(tmp_path):
    result = fitted(tmp_path)
    found, graph = events(tmp_path)
    losses = [found["training/loss"][step] for step in range(1, 7)]
    np.testing.assert_allclose(losses, result.history["loss"], rtol=1e-6)
    assert set(found["validation/loss"]) == {2, 4, 6}
    last = found["parameters/head.weight"][6]
    weight = np.asarray(result.model.head.weight)
    assert (last.min, last.max, last.num) == (weight.min(), weight.max(), weight.size)
    assert sum(last.bucket) == weight.size and last.sum == pytest.approx(weight.sum(), rel=1e-3)
    assert not any(tag.startswith("gradients/") for tag in found)
    assert list(found["parameters/conv1.weight"]) == [6]
    assert graph is not None


def test_the_graph_has_modules_as_scopes_and_all_its_inputs(tmp_path):
    fitted(tmp_path)
    _, graph = events(tmp_path)
    nodes = {node.name: node for node in graph.node}
    assert len(nodes) == len(graph.node)
    convolution = nodes["DigitNet/conv1/conv"]
    assert convolution.op == "conv" and "parameters/conv1/weight" in convolution.input
    (shape,) = convolution.attr["_output_shapes"].list.shape
    assert [dim.size for dim in shape.dim] == [16, 8, 8, 16]
    assert {i.partition(":")[0] for node in graph.node for i in node.input} <= set(nodes)
    assert nodes["argument_0"].op == "Placeholder"


@pytest.mark.parametrize("options", [{}, {"shards": 2}, {"accumulate": 2}])
def test_histograms_while_training(tmp_path, options):
    usual = fitted(tmp_path / "usual", **options)
    result = fitted(tmp_path / "told", histograms_every=2, **options)
    assert result.history == usual.history
    found, _ = events(tmp_path / "told")
    for name in ("conv1.weight", "norm.scale", "head.bias"):
        assert list(found[f"parameters/{name}"]) == [2, 4, 6]
        assert list(found[f"gradients/{name}"]) == [2, 4, 6]
    assert not any("mean" in tag and tag.startswith("gradients") for tag in found)


def test_the_gradients_are_those_of_the_step(tmp_path):
    training, _ = data()
    network = DigitNet(random.key(0))
    trainer = dist.Trainer(
        loss=lambda model, x, y: loss(model, x, y)[0],
        optimizer=optim.sgd(0.1),
        batch_size=32,
        progress=False,
        tensorboard=str(tmp_path),
        histograms_every=1,
    )
    result = trainer.fit(network, training, steps=1)
    moved = np.asarray(network.head.weight) - np.asarray(result.model.head.weight)
    histogram = events(tmp_path)[0]["gradients/head.weight"][1]
    assert histogram.sum_squares == pytest.approx(np.sum((moved / 0.1) ** 2), rel=1e-4)


def test_a_histogram():
    found = details.histogram(np.asarray([1.0, 2.0, np.nan, np.inf, 5.0], np.float32))
    assert found["num"] == 3 and found["sum"] == 8 and sum(found["counts"]) == 3
    assert (found["min"], found["max"], found["sum_squares"]) == (1.0, 5.0, 30.0)
    assert details.histogram(np.asarray([np.nan])) is None
    assert details.histogram(np.zeros((0, 3))) is None
    large = np.arange(1_000_000, dtype=np.float32).reshape(1000, 1000)
    sample = details.histogram(large)
    assert sample["num"] == details.SAMPLE and math.isclose(
        sample["sum"] / sample["num"], large.mean(), rel_tol=0.02
    )


def test_many_histograms_travel_in_several_records():
    told = []

    def report(record, last):
        told.append(record["details"])

    job = type("Job", (), {"histograms_every": 5, "tensorboard": True})
    teller = details.Details(job, report)
    model = {f"p{n}": tl.zeros(1) for n in range(details.TOGETHER)}
    teller.after(4, [tl.zeros((2, 3))], model, [])
    teller.after(5, [tl.zeros((2, 3))], model, list(model.values()))
    assert told[0] == {"batch": [["float32", [2, 3]]]}
    assert [len(t["histograms"]) for t in told[1:]] == [details.TOGETHER] * 2


def test_a_loss_that_the_driver_cannot_trace_is_told():
    def broken(model, x):
        raise OSError("no such accelerator")

    board = object.__new__(tensorboard.TensorBoard)
    board._loss, board._model, board._has_graph = broken, {"w": tl.zeros(2)}, False
    with pytest.warns(RuntimeWarning, match="gets no graph: OSError .*no such accelerator"):
        board.details({"batch": [["float32", [3]]]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        board.details({"batch": [["float32", [3]]]})


def test_what_the_option_needs():
    with pytest.raises(ValueError, match="histograms_every needs a folder for tensorboard"):
        dist.Trainer(loss=loss, optimizer=optim.sgd(0.1), batch_size=1, histograms_every=5)
    with pytest.raises(ValueError, match="histograms_every must be a whole number of at least 1"):
        dist.Trainer(
            loss=loss, optimizer=optim.sgd(0.1), batch_size=1, histograms_every=0, tensorboard="x"
        )


@pytest.mark.spark
@pytest.mark.xdist_group("spark")
@pytest.mark.parametrize("options", [{}, {"shard_optimizer": True}])
def test_from_the_workers_of_a_spark_job(tmp_path, options):
    from tests.distributed.conftest import spark_session

    seen = []
    with spark_session("local[2]"):
        fitted(tmp_path, num_workers=2, histograms_every=3, progress=seen.append, **options)
    assert all("loss" in record for record in seen)
    found, graph = events(tmp_path)
    assert list(found["parameters/head.weight"]) == [3, 6] and graph is not None
    assert ("gradients/head.weight" in found) == (not options)
