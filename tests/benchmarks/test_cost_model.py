"""The model of the cost of a step: its limits, its order, and itself beside small simulations."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import cost_model
from benchmarks.cost_model import Calibration
from benchmarks.lab import calibrate
from benchmarks.lab.model import (
    SMALL_BYTES,
    Bucket,
    Cluster,
    Step,
    all_reduce,
    mean_of_largest,
    moved,
    predict,
)
from benchmarks.lab.points import Point, Series, save
from benchmarks.lab.rank import buckets_of

FREE = Cluster(bandwidth=math.inf)
SLOW = Cluster(bandwidth=1e8)
STEP = Step(0.9, 0.1, 0.0, [Bucket(4e6, 0.3), Bucket(4e5, 0.6), Bucket(2e4, 0.9)])

hosts = st.integers(2, 64)
sizes = st.floats(SMALL_BYTES + 1, 1e9)
clusters = st.builds(
    Cluster,
    bandwidth=st.floats(1e6, 1e10),
    latency=st.floats(0, 0.01),
    call=st.floats(0, 0.01),
    work=st.floats(0, 1e-8),
    shares_core=st.booleans(),
)
steps = st.builds(
    lambda backward, update, buckets: Step(
        backward, update, 0.0, [Bucket(n, ready * backward) for n, ready in buckets]
    ),
    st.floats(0.01, 10),
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(1e3, 1e8), st.floats(0, 1)), min_size=1, max_size=6),
)


# ---- limits --------------------------------------------------------------------------------------


@given(steps, clusters, st.booleans())
def test_one_host_takes_its_own_time(step: Step, cluster: Cluster, overlap: bool) -> None:
    predicted = predict(dataclasses.replace(step, deviation=0.1), 1, cluster, overlap)
    assert predicted.step == pytest.approx(step.alone) and predicted.exposed == pytest.approx(0)


@given(steps, hosts, st.booleans())
def test_a_network_that_costs_nothing_adds_nothing(step: Step, n: int, overlap: bool) -> None:
    assert predict(step, n, FREE, overlap).step == pytest.approx(step.alone)


@given(sizes, hosts)
def test_without_latency_the_bytes_of_the_ring_count_alone(nbytes: float, n: int) -> None:
    assert all_reduce(nbytes, n, SLOW) == pytest.approx(2 * (n - 1) / n * nbytes / 1e8)


@given(hosts)
def test_small_arrays_are_gathered_whole(n: int) -> None:
    cluster = Cluster(bandwidth=1e8, latency=0.001)
    assert all_reduce(1000, n, cluster) == pytest.approx((n - 1) * (0.001 + 1e-5))
    assert moved(1000, n) == (n - 1) * 1000


def test_processors_that_are_slower_than_the_link_set_the_speed() -> None:
    assert all_reduce(1e6, 2, Cluster(1e9, work=1e-8)) == pytest.approx(0.01)


def test_ranks_of_one_host_send_no_more_than_one() -> None:
    two_level = dataclasses.replace(SLOW, ranks=4, memory=1e9)
    within = 2 * 3 / 4 * 4e6 / 1e9
    assert all_reduce(4e6, 2, two_level) == pytest.approx(within + all_reduce(4e6, 2, SLOW))
    assert all_reduce(4e6, 1, two_level) == pytest.approx(within)


def test_without_overlap_everything_is_exposed() -> None:
    predicted = predict(STEP, 4, SLOW, overlap=False)
    assert predicted.exposed == pytest.approx(all_reduce(4.42e6, 4, SLOW))
    assert predicted.step == pytest.approx(1.0 + predicted.exposed)


def test_what_is_ready_early_is_hidden_behind_what_is_not() -> None:
    predicted = predict(STEP, 4, SLOW, overlap=True)
    assert predicted.exposed == pytest.approx(all_reduce(2e4, 4, SLOW))


def test_work_of_the_ring_takes_time_from_a_core_that_computes() -> None:
    step = Step(1.0, 0.0, 0.0, [Bucket(1e7, 0.5)])
    shared = Cluster(bandwidth=1e8, work=2e-9)
    assert predict(step, 2, shared, overlap=True).step == pytest.approx(1.02)
    spare = dataclasses.replace(shared, shares_core=False)
    assert predict(step, 2, spare, overlap=True).step == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("count", "mean"), [(1, 0.0), (2, math.pi**-0.5), (3, 1.5 * math.pi**-0.5)]
)
def test_the_largest_of_normal_variables(count: int, mean: float) -> None:
    assert mean_of_largest(count) == pytest.approx(mean, abs=1e-6)


def test_everybody_waits_for_the_slowest() -> None:
    step = dataclasses.replace(STEP, deviation=0.01)
    predicted = predict(step, 2, FREE, overlap=True)
    assert predicted.step == pytest.approx(1.0 + 0.01 * math.pi**-0.5)


# ---- order ---------------------------------------------------------------------------------------


@given(steps, clusters, hosts, st.booleans())
def test_more_hosts_never_make_a_step_shorter(
    step: Step, cluster: Cluster, n: int, overlap: bool
) -> None:
    cluster = dataclasses.replace(cluster, work=0.0)
    fewer, more = (predict(step, count, cluster, overlap).step for count in (n, n + 1))
    assert fewer <= more * (1 + 1e-9)


@given(steps, clusters, hosts, st.booleans(), st.floats(1, 10))
def test_a_better_network_never_makes_a_step_longer(
    step: Step, cluster: Cluster, n: int, overlap: bool, factor: float
) -> None:
    cluster = dataclasses.replace(cluster, work=0.0)
    better = dataclasses.replace(
        cluster, bandwidth=cluster.bandwidth * factor, latency=cluster.latency / factor
    )
    assert predict(step, n, better, overlap).step <= predict(step, n, cluster, overlap).step * (
        1 + 1e-9
    )


@given(steps, hosts, st.floats(1e6, 1e10))
def test_overlap_never_costs_where_messages_are_free(step: Step, n: int, bandwidth: float) -> None:
    large = [Bucket(max(b.nbytes, SMALL_BYTES + 1), b.ready) for b in step.buckets]
    step, cluster = dataclasses.replace(step, buckets=large), Cluster(bandwidth)
    with_overlap, without = (predict(step, n, cluster, overlap).step for overlap in (True, False))
    assert with_overlap <= without * (1 + 1e-9)


# ---- simulations ---------------------------------------------------------------------------------


def simulated_ring(nbytes: float, n: int, bandwidth: float, latency: float) -> float:
    """When the last host has the last chunk: every message of every host, one after the other."""
    received = [0.0] * n  # when each host has what it sends next
    free = [0.0] * n  # when its link is
    for _ in range(2 * (n - 1)):
        arrivals = [0.0] * n
        for host in range(n):
            begin = max(received[host], free[host])
            free[host] = begin + nbytes / n / bandwidth
            arrivals[(host + 1) % n] = free[host] + latency
        received = arrivals
    return max(received)


@given(sizes, hosts, st.floats(1e6, 1e10), st.floats(0, 0.01))
def test_the_ring_beside_every_message(
    nbytes: float, n: int, bandwidth: float, latency: float
) -> None:
    expected = simulated_ring(nbytes, n, bandwidth, latency)
    assert all_reduce(nbytes, n, Cluster(bandwidth, latency)) == pytest.approx(expected)


def simulated_step(step: Step, n: int, cluster: Cluster, tick: float) -> float:
    """The step with overlap, a moment at a time."""
    waiting = sorted(step.buckets, key=lambda bucket: bucket.ready)
    now = computed = left = taken = 0.0
    while computed < step.backward - 1e-12 or left > 0 or waiting:
        if left <= 0 and waiting and computed >= waiting[0].ready - 1e-12:
            nbytes = waiting.pop(0).nbytes
            left = all_reduce(nbytes, n, cluster)
            taken = min(1.0, cluster.work * moved(nbytes, n) / left) if cluster.shares_core else 0.0
        busy = left > 0
        computed = min(step.backward, computed + tick * (1 - taken if busy else 1.0))
        left -= tick
        now += tick
    return now + step.update


@given(
    st.lists(st.tuples(st.floats(1e5, 2e7), st.floats(0, 1)), min_size=1, max_size=4),
    st.integers(2, 8),
    st.floats(0, 1e-8),
    st.booleans(),
)
def test_overlap_beside_every_moment(
    buckets: list[tuple[float, float]], n: int, work: float, shares_core: bool
) -> None:
    step = Step(0.5, 0.1, 0.0, [Bucket(nbytes, 0.5 * ready) for nbytes, ready in buckets])
    cluster = Cluster(1e8, latency=0.001, call=0.001, work=work, shares_core=shares_core)
    tick = 2e-4
    expected = simulated_step(step, n, cluster, tick)
    assert predict(step, n, cluster, overlap=True).step == pytest.approx(expected, abs=12 * tick)


# ---- the command ---------------------------------------------------------------------------------


def test_latency_is_what_more_hosts_add() -> None:
    ring = calibrate.solve((2, 0.0015), (8, 0.0045), wire=0.0001, work=1e-9)
    assert (ring.latency, ring.call) == pytest.approx((0.0004, 0.001))


def test_the_large_network_is_as_large_as_resnet50() -> None:
    step = cost_model.resnet50(flops=1e11)
    assert sum(bucket.nbytes for bucket in step.buckets) == 4 * 25_557_032
    assert step.backward == pytest.approx(32 * 6 * 4.089e9 / 1e11, rel=1e-3)
    ready = [bucket.ready for bucket in step.buckets]
    assert ready == sorted(ready) and ready[-1] == step.backward


CALIBRATION = {"latency": 0.0, "call": 0.0, "work": 0.0, "buckets": [[4e6, 1.0]]}


def measured(n: int, step: float) -> Point:
    series = Series("weak", 1e9, overlap=False)
    return Point(series, n, 128 * n, step, 0.0, 0.0, alone=0.1, alone_batch=128, compute=0.1)


def test_points_are_held_against_predictions(tmp_path: pathlib.Path) -> None:
    wire = 4e6 / (1e9 / 8 * cost_model.GOODPUT)
    points = [measured(1, 0.1), measured(2, 0.1 + wire), measured(4, 0.2)]
    save(tmp_path / "points.json", points, {"calibration": CALIBRATION})
    found = cost_model.calibration_of(tmp_path / "points.json")
    errors = [error for _, _, error in cost_model.checks(points, found)]
    assert errors == pytest.approx([0.0, (0.1 + 1.5 * wire) / 0.2 - 1])


def test_the_command_fails_if_a_prediction_is_off(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["cost_model.py", str(tmp_path / "points.json")]
    monkeypatch.setattr("sys.argv", [*arguments, "--figure", str(tmp_path / "figure.png")])
    wire = 4e6 / (1e9 / 8 * cost_model.GOODPUT)
    for step, status in ((0.1 + wire, 0), (0.2, 1)):
        points = [measured(1, 0.1), measured(2, step)]
        save(tmp_path / "points.json", points, {"calibration": CALIBRATION})
        assert cost_model.main() == status
    assert "bar 10%, MISSED" in capsys.readouterr().out
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_points_without_calibration_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "points.json"
    path.write_text(json.dumps({"about": {}, "points": []}))
    with pytest.raises(ValueError, match="has no calibration; measure again"):
        cost_model.calibration_of(path)


def test_calibrations_scale_with_the_step() -> None:
    step = Calibration(0.0, 0.0, 0.0, [(4e6, 0.5)]).step(alone=2.0, deviation=0.0)
    assert (step.backward, step.update, step.buckets[0].ready) == pytest.approx((2.0, 0.0, 1.0))


def test_a_profile_tells_when_buckets_are_ready() -> None:
    def event(name: str, cat: str, ts: float, dur: float, **args: int) -> dict[str, Any]:
        return {"ph": "X", "name": name, "cat": cat, "ts": ts, "dur": dur, "args": args}

    events = [{"ph": "M", "name": "thread_name", "args": {}}]
    for begin in (0.0, 100.0):
        events += [
            event("call step", "op", begin, 90),
            event("conv", "step", begin + 1, 20),
            event("start sum", "step", begin + 21, 9),
            event("all_reduce, bucket 1", "span", begin + 21, 50, bytes=4000),
            event("conv", "step", begin + 30, 20),
            event("all_reduce, bucket 2", "span", begin + 75, 5, bytes=100),
            event("wait sum", "step", begin + 50, 30),
        ]
    assert buckets_of(events) == [(4000, 0.5), (100, 1.0)]
