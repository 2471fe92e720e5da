"""Who shares memory with whom: found out by proof, and left alone where the proof fails."""

import itertools
import logging
import os
import resource
import signal
import socket
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

import tensorlite.distributed as dist
from tensorlite.distributed.transport import memory
from tensorlite.distributed.transport.memory import Segment, Unshared, map_segment
from tests.distributed.transports import TRANSPORTS, reached_through


def algorithm_and_sum(worker):
    total = worker.ring.all_reduce_(np.full(300_000, worker.rank + 1.0, np.float32))
    return type(worker.ring._fabric.algorithm).__name__, float(total[0]), float(total[-1])


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def files_in_memory():
    """What is in /dev/shm, without the semaphores of whoever uses multiprocessing just now."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.")}


@pytest.mark.parametrize("mode", ["threads", "processes"])
@pytest.mark.parametrize(("shared", "name"), [(True, "Direct"), (False, "Around")])
def test_workers_of_one_host_share_memory(mode, shared, name):
    got = dist.run_local(algorithm_and_sum, num_workers=3, mode=mode, shared_memory=shared)
    assert got == [(name, 6.0, 6.0)] * 3


@pytest.mark.parametrize(("size", "name"), [(2, "Around"), (3, "TwoLevel"), (5, "TwoLevel")])
def test_two_hosts_are_two_levels_where_one_has_several_workers(size, name):
    with reached_through("two levels") as options:
        got = dist.run_local(algorithm_and_sum, num_workers=size, **options)
    total = size * (size + 1) / 2
    assert got == [(name, total, total)] * size


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nothing_is_left_behind(transport):
    with reached_through(transport) as options:
        dist.run_local(algorithm_and_sum, num_workers=3, **options)
        before = descriptors(), files_in_memory()
        dist.run_local(algorithm_and_sum, num_workers=3, **options)
    assert (descriptors(), files_in_memory()) == before


def test_memory_that_is_not_the_owners_is_found_out(monkeypatch, caplog):
    """As in another container, where the published process id means another process."""
    decoys = []

    def address(self):
        decoys.append(Segment())
        return {
            "domain": memory.domain(),
            "pid": os.getpid(),
            "descriptor": decoys[-1].descriptor,
        }

    monkeypatch.setattr(Segment, "address", address)
    with caplog.at_level(logging.WARNING, "tensorlite.distributed"):
        got = dist.run_local(algorithm_and_sum, num_workers=3)
    for decoy in decoys:
        decoy.close()
    assert got == [("Around", 6.0, 6.0)] * 3
    (record,) = caplog.records
    assert "workers of one host exchange data over connections" in record.getMessage()
    assert "does not see the memory of rank" in record.getMessage()


def test_one_rank_that_cannot_open_the_others(monkeypatch, caplog):
    monkeypatch.setattr(
        Segment,
        "address",
        lambda self: {"domain": memory.domain(), "pid": 2**22 + 1, "descriptor": self.descriptor},
    )
    with caplog.at_level(logging.WARNING, "tensorlite.distributed"):
        got = dist.run_local(algorithm_and_sum, num_workers=2)
    assert got == [("Around", 3.0, 3.0)] * 2
    (record,) = caplog.records
    assert "cannot open the segment of another rank" in record.getMessage()


def test_too_little_memory(capfd):
    """A limit on the size of files holds for files in memory, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory.SEGMENT_BYTES - 1, hard))
    try:
        got = dist.run_local(algorithm_and_sum, num_workers=2, mode="processes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert got == [("Around", 3.0, 3.0)] * 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "over connections" in line]
    assert len(lines) == 1
    assert f"no {memory.SEGMENT_BYTES} bytes of shared memory" in lines[0]


def test_only_sealed_segments_are_mapped():
    with tempfile.TemporaryFile() as file, socket.socket() as connection:
        file.truncate(memory.SEGMENT_BYTES)
        short = os.memfd_create("short", os.MFD_ALLOW_SEALING)
        unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
        os.truncate(unsealed, memory.SEGMENT_BYTES)
        for descriptor in (file.fileno(), connection.fileno(), short, unsealed, 10**6):
            with pytest.raises(Unshared, match="segment of another rank"):
                map_segment({"pid": os.getpid(), "descriptor": descriptor})
        os.close(short)
        os.close(unsealed)


# Death and silence


def all_reduce_until_the_end(worker, folder, victim):
    array = np.ones(500_000, np.float32)
    worker.ring.all_reduce_(array)
    if worker.rank == victim:
        threading.Event().wait(0.3)  # the others are asleep by now
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:
            worker.ring.all_reduce_(array, "max")
    except dist.PeerError as error:
        Path(folder, str(worker.rank)).write_text(str(error))
        raise


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_noticed_by_the_others(victim, tmp_path):
    before = files_in_memory()
    with pytest.raises(dist.WorkerError, match=f"rank {victim} .* was lost"):
        dist.run_local(
            all_reduce_until_the_end,
            (str(tmp_path), victim),
            num_workers=3,
            mode="processes",
            timeout=100.0,
        )
    noticed = {int(path.name): path.read_text() for path in tmp_path.iterdir()}
    assert sorted(noticed) == sorted({0, 1, 2} - {victim})
    for text in noticed.values():
        assert f"rank {victim}" in text
    assert files_in_memory() == before


def test_a_stuck_rank_is_named_by_the_deadline():
    release = threading.Event()

    def main(worker):
        if worker.rank == 1:
            release.wait(30)
        try:
            worker.ring.all_reduce_(np.ones(10**6))
        finally:
            release.set()

    with pytest.raises(dist.WorkerError, match=r"rank 1 .*nothing arrived from it for 0.3 s"):
        dist.run_local(main, num_workers=2, timeout=0.3)


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_error_in_one_worker_wakes_all_others(transport, victim):
    """Whoever waits for whom: leaders for other hosts, and workers of a host for each other."""
    woken = {}

    def main(worker):
        array = np.ones(400_000, np.float32)
        try:
            for step in itertools.count():
                if step == 2 and worker.rank == victim:
                    raise KeyError("a missing file")
                worker.ring.all_reduce_(array, "max")
        except dist.PeerError as error:
            woken[worker.rank] = str(error)
            raise

    with (
        reached_through(transport) as options,
        pytest.raises(dist.WorkerError, match="KeyError: 'a missing file'"),
    ):
        dist.run_local(main, num_workers=4, **options)
    assert sorted(woken) == sorted({0, 1, 2, 3} - {victim})
    for text in woken.values():
        assert f"stopped, because rank {victim}" in text
