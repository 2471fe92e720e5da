"""Attacks on the connections among workers, over real sockets: whoever is not of this attempt costs
a closed socket, and the run ends with the bits of an undisturbed one."""

import ast
import contextlib
import errno
import functools
import json
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import nn, optim, random
from tensorlite.distributed import ring
from tensorlite.distributed.agreement import HEADER
from tensorlite.distributed.frames import frame
from tensorlite.distributed.life import Options, Place, live
from tensorlite.distributed.monitor import Monitor, Reporter, _connect
from tensorlite.distributed.rendezvous import meet
from tensorlite.distributed.steps import Job
from tensorlite.distributed.streams import receive_exactly, send_all
from tensorlite.distributed.tls import Identity
from tensorlite.distributed.training import train

from .attackers import GOOD, Strangers, relays
from .worlds import SECRET, World, run_processes, soon, tls_pair

IDENTITIES = {rank: Identity.make(f"rank {rank}") for rank in range(3)}
both = pytest.mark.parametrize("encrypt", [False, True], ids=["plain", "tls"])


# ---- frames of those who are inside --------------------------------------------------------------


def _sum(worker):
    return worker.ring.all_reduce_(np.ones(100_000, np.float32))[0]


def _attack_from_inside(channel, words, encrypt):
    """What becomes of rank 0 when rank 1 sends `words` and hangs up."""
    hosts = ("127.0.0.1",) * 2
    messages, barrier, outcomes = [None, None], threading.Barrier(2), []

    def gather(rank, message):
        messages[rank] = message
        barrier.wait()
        return list(messages)

    options = Options(SECRET, timeout=20.0, grace=0.1, encrypt=encrypt)
    victim = threading.Thread(
        target=lambda: outcomes.append(
            live(_sum, Place(0, hosts), options, lambda message: gather(0, message))
        )
    )
    victim.start()
    links = meet(lambda message: gather(1, message), 1, 2, "127.0.0.1", SECRET, 0, encrypt=encrypt)
    attacked = {"ring": links.next, "control": links.control[0]}[channel]
    send_all(attacked, words, soon())
    attacked.close()
    victim.join()
    for link in (links.next, links.previous, links.control[0]):
        link.close()
    return outcomes[0].failure


TOO_LONG = struct.pack("!I", 2**32 - 1) + b"{"
CUT = frame({"kind": "bye"})[:-3]
DEEP = struct.pack("!I", 100_000) + b"[" * 100_000
BOTTOMLESS = {"kind": "abort", "failure": json.dumps({"cause": {"cause": {"cause": {}}}})}


@both
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (HEADER.pack(b"TLCO", 2**32 - 1, 1, bytes(16)), "begin no collective"),
        (HEADER.pack(b"EVIL", 3, 1, bytes(16)), "begin no collective"),
        (HEADER.pack(b"TLCO", 1000, 1, bytes(16)) + b"cut", "rank 1 .* left the ring"),
        (HEADER.pack(b"TLCO", 1000, 1, bytes(16))[:5], "rank 1 .* left the ring"),
    ],
    ids=["oversized", "garbage", "cut", "cut header"],
)
def test_frames_on_the_ring(words, complaint, encrypt, monkeypatch):
    monkeypatch.setattr(ring, "NEWS_SECONDS", 0.1)
    assert re.search(complaint, _attack_from_inside("ring", words, encrypt).message)


@both
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (TOO_LONG, "a message of 4294967295 bytes is longer than"),
        (CUT, "it closed the connection"),
        (DEEP, "nested too deeply"),
        (frame({"kind": "evil"}), "unknown control message 'evil'"),
        (frame({"kind": ["abort"]}), "unknown control message"),
        (frame({"kind": "abort", "failure": "[]"}), "must be a JSON object"),
        (frame(BOTTOMLESS), "cause has no cause of its own"),
        (b"\xff" * 1000, "is longer than"),
    ],
    ids=["oversized", "cut", "deep", "kind", "no kind", "no failure", "bottomless", "garbage"],
)
def test_frames_on_the_control_channel(words, complaint, encrypt):
    failure = _attack_from_inside("control", words, encrypt).root()
    assert (failure.rank, failure.kind) == (1, "lost")
    assert complaint in failure.message


@both
def test_frames_on_the_monitor(encrypt):
    records = []
    with Monitor("127.0.0.1", records.append, encrypt) as monitor:
        for words in (TOO_LONG, CUT, DEEP, b"\xff" * 1000, frame({"step": 1})[:-1]):
            stream = _connect(monitor.address)
            send_all(stream, words, soon())
            stream.close()
        reporter = Reporter(monitor.address)
        reporter({"step": 2}, last=True)
        reporter.close()
    assert records == [{"step": 2}]


# ---- strangers in great number -------------------------------------------------------------------


@both
def test_a_thousand_strangers_during_the_rendezvous(encrypt):
    undisturbed = dist.run_local(share_noise, num_workers=3)
    with Strangers() as strangers:

        def meddle(entries):
            # Nobody has begun to accept: all of them are in front of those who belong here.
            strangers.come([(entry["host"], entry["port"]) for entry in entries], 1000)

        disturbed = run_processes(share_noise, size=3, meddle=meddle, encrypt=encrypt)
    assert strangers.made == 1000
    assert [outcome.failure for outcome in disturbed] == [None] * 3
    assert [outcome.result for outcome in disturbed] == undisturbed


@functools.cache
def _undisturbed_training():
    return [outcome.result for outcome in run_processes(train_a_little, (None, None), size=2)]


@both
def test_a_thousand_strangers_during_training(encrypt, tmp_path):
    steps, refused, places = [], [], []
    all_there = tmp_path / "all there"  # after the first step, training goes on when this exists
    with Strangers() as strangers:

        def watch(record):
            steps.append(record["step"])
            if record["step"] == 1:
                strangers.come([(monitor.address.host, monitor.address.port)], 1000)
                for place in places:
                    with socket.socket() as probe:
                        refused.append(probe.connect_ex(place) == errno.ECONNREFUSED)
                all_there.touch()

        def meddle(entries):
            places.extend((entry["host"], entry["port"]) for entry in entries)

        with Monitor("127.0.0.1", watch, encrypt) as monitor:
            address = monitor.address
            disturbed = run_processes(
                train_a_little, (address, all_there), size=2, meddle=meddle, encrypt=encrypt
            )
            late = Reporter(monitor.address)
            late({"step": "late"}, last=True)
            late.close()
    assert strangers.made == 1000
    assert refused == [True, True], "the ring's own ports are closed by then"
    assert steps[0] == 1
    assert {STEPS, "late"} <= set(steps)
    assert [outcome.failure for outcome in disturbed] == [None] * 2
    assert [outcome.result for outcome in disturbed] == _undisturbed_training()


# ---- what a man in the middle can see and do -----------------------------------------------------


@both
def test_what_goes_over_the_wire(encrypt):
    """Without encryption the pattern is found, so the search would find it."""
    with relays() as (meddle, made):
        outcomes = run_processes(share_pattern, size=2, meddle=meddle, encrypt=encrypt)
        assert [outcome.result for outcome in outcomes] == [PATTERN * 20_000] * 2
        wires = [bytes(relay.recorded[way]) for relay in made for way in ("there", "back")]
    assert sum(map(len, wires)) > 2 * len(PATTERN) * 20_000, "all of it went through the relays"
    words = [PATTERN, b"all_reduce", b"kind", b"bye", b"float32"]
    found = [word for word in words if any(word in wire for wire in wires)]
    assert found == ([] if encrypt else words)


@both
def test_no_secret_goes_over_the_wire(encrypt):
    with relays() as (meddle, made):
        World(2, meddle, encrypt=encrypt).check_and_close()
        wires = [bytes(relay.recorded[way]) for relay in made for way in ("there", "back")]
    assert any(wires)
    assert not any(SECRET[:8] in wire for wire in wires)


def test_a_changed_byte_ends_an_encrypted_run():
    changed = []

    def tamper(direction, data):
        # So much at once is no handshake.
        if len(data) > 30_000 and not changed:
            changed.append(data)
            position = len(data) // 2
            return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        return data

    with relays(tamper=tamper) as (meddle, _):
        outcomes = run_processes(share_pattern, size=2, meddle=meddle, encrypt=True, grace=0.5)
    assert any(outcome.failure is not None for outcome in outcomes)
    assert "TLS: " in " ".join(str(outcome.failure) for outcome in outcomes)


# ---- secrets stay where they are -----------------------------------------------------------------


def test_no_repr_shows_a_secret():
    monitor = Monitor("127.0.0.1", print, encrypt=True)
    monitor._listener.close()
    identity = IDENTITIES[0]
    shown = repr([GOOD, Options(GOOD.secret), identity, monitor.address, Place(0, ("a",))])
    for secret in (GOOD.secret, monitor.address.credentials.secret, identity.key):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown


def test_keys_are_neither_logged_nor_written(tmp_path):
    """In a process whose temporary folder is its own and which is asked to log keys."""
    code = """
import numpy as np, os, tensorlite.distributed as dist
run = lambda worker: float(worker.ring.all_reduce_(np.ones(9))[0])
print(dist.run_local(run, num_workers=2, encrypt=True))
"""
    log = tmp_path / "keys.log"
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"SSLKEYLOGFILE": str(log), "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "[2.0, 2.0]\n", done.stderr
    assert not log.exists()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_no_connection_can_be_resumed():
    one, other = tls_pair()
    with contextlib.closing(one), contextlib.closing(other):
        send_all(one, b"a", soon())
        assert receive_exactly(other, 1, soon()) == b"a"
        for stream in (one, other):
            assert stream._tls.version() == "TLSv1.3"
            assert not stream._tls.session_reused
        assert not other._tls.session.has_ticket


def test_nothing_that_reads_a_socket_can_unpickle():
    folder = pathlib.Path(dist.__file__).parent
    # Spark's own channel brings the function and takes its result; local.py has pipes to children.
    pickling = {"launch.py", "task.py", "local.py"}
    readers = {path for path in folder.rglob("*.py") if path.name not in pickling}
    assert {"control.py", "frames.py", "monitor.py", "tcp.py"} <= {path.name for path in readers}
    for path in readers:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")]
            names.append(getattr(node, "module", None) or "")
            bad = {"pickle", "cloudpickle", "marshal", "shelve", "dill"}
            assert not bad & {part for name in names for part in name.split(".")}, path


# ---- what the workers run ------------------------------------------------------------------------

STEPS = 12
PATTERN = b"0123456789abcdef"  # 16 bytes, which four float32 stand for


def share_noise(worker):
    """The bytes of a sum whose rounding depends on the order of the ranks."""
    noise = np.random.default_rng(worker.rank).normal(size=300_000).astype(np.float32)
    return worker.ring.all_reduce_(noise, "sum").tobytes()


def share_pattern(worker):
    """The largest of equal values, which is what went over the wire."""
    data = np.frombuffer(PATTERN * 20_000, np.float32).copy()
    return worker.ring.all_reduce_(data, "max").tobytes()


def train_a_little(worker, address, go_on):
    """The bits of losses and parameters. Rank 0 reports to `address`, and waits for the file
    `go_on` after the first step."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 64)
    images = rng.normal(size=(64, 20)).astype(np.float32) + labels[:, None]
    job = Job(
        loss=lambda model, x, y: tl.mean(nn.softmax_cross_entropy(model(x), y)),
        optimizer=optim.sgd(0.1, momentum=0.9),
        arrays=(images, labels),
        batch_size=16,
        steps=STEPS,
        seed=0,
        augment=None,
        ema=None,
        checkpoint=None,
        checkpoint_every=None,
        drop_last=False,
    )
    reporter = Reporter(address if worker.rank == 0 else None)

    def report(record, last=False):
        reporter(record, last=True)
        while go_on is not None and record["step"] == 1 and not go_on.exists():
            time.sleep(0.01)

    progress = train(worker, job, nn.Linear(20, 3, key=random.key(0)), report)
    reporter.close()
    leaves = [np.asarray(leaf).tobytes() for leaf in tl.tree.leaves(progress.state)]
    return progress.losses, leaves
