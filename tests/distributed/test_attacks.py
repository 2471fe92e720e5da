"""Attacks on the connections among workers, over real sockets: whoever is not of this attempt costs
a closed socket, and the run ends with the bits of an undisturbed one."""

import ast
import base64
import contextlib
import dataclasses
import errno
import functools
import json
import os
import pathlib
import re
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import nn, optim, random
from tensorlite.distributed import RendezvousError, acceptor, handshake, ring
from tensorlite.distributed.agreement import HEADER
from tensorlite.distributed.frames import frame
from tensorlite.distributed.handshake import HandshakeError
from tensorlite.distributed.life import Options, Place, live
from tensorlite.distributed.monitor import Monitor, Reporter, _connect
from tensorlite.distributed.rendezvous import meet
from tensorlite.distributed.streams import PlainStream, receive_exactly, send_all
from tensorlite.distributed.tls import Identity, dial_tls
from tensorlite.distributed.training import Job, train

from .attackers import GOOD, Door, Relay, Strangers, TlsRelay, hello_of, relays
from .worlds import SECRET, World, run_processes, socket_pair, soon, tls_pair

IDENTITIES = {rank: Identity.make(f"rank {rank}") for rank in range(3)}
both = pytest.mark.parametrize("encrypt", [False, True], ids=["plain", "tls"])


@pytest.fixture
def door():
    with contextlib.closing(Door()) as door:
        yield door


@pytest.fixture
def tls_door():
    with contextlib.closing(Door(IDENTITIES)) as door:
        yield door


# ---- the handshake -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(GOOD, secret=b"x" * 32),
        dataclasses.replace(GOOD, nonce=b"x" * 32),
        dataclasses.replace(GOOD, attempt=3),
    ],
    ids=["wrong secret", "another rendezvous", "another attempt"],
)
@both
def test_a_peer_with_other_credentials(encrypt, other, request):
    door = request.getfixturevalue("tls_door" if encrypt else "door")
    with pytest.raises(HandshakeError, match="lacks the secret"):
        door.knock(other)
    # It may pass over the proof that it cannot check, and answer all the same.
    if not encrypt:
        attacker = socket.create_connection(door.address)
        hello, _ = hello_of(other)
        attacker.sendall(hello)
        answer = attacker.recv(64, socket.MSG_WAITALL)
        attacker.sendall(other.proof("dial", hello, answer[:32]))
        door.refuses(attacker)
        assert "a caller that says it is rank 1 lacks the secret" in door.reasons


def test_a_recorded_handshake_played_back(door):
    with contextlib.closing(Relay(door.address)) as relay:
        door.knock(address=relay.address)
    attacker = socket.create_connection(door.address)
    attacker.sendall(relay.recorded["there"])
    assert len(relay.recorded["there"]) == 49 + 32
    door.refuses(attacker)
    assert "a caller that says it is rank 1 lacks the secret" in door.reasons


def test_recorded_tls_played_back(tls_door):
    with contextlib.closing(Relay(tls_door.address)) as relay:
        tls_door.knock(address=relay.address)
    attacker = socket.create_connection(tls_door.address)
    attacker.sendall(relay.recorded["there"])
    tls_door.refuses(attacker)


def test_a_proof_sent_back_to_its_sender(door):
    attacker = socket.create_connection(door.address)
    hello, _ = hello_of()
    attacker.sendall(hello)
    attacker.sendall(attacker.recv(64, socket.MSG_WAITALL)[32:])
    door.refuses(attacker)


def test_a_second_connection_as_an_oracle(door):
    """The door proves itself to whoever asks; that must not help to answer its own challenge."""
    attacker = socket.create_connection(door.address)
    hello, _ = hello_of()
    attacker.sendall(hello)
    challenge = attacker.recv(64, socket.MSG_WAITALL)[:32]
    with socket.create_connection(door.address) as oracle:
        oracle.sendall(hello[:-32] + challenge)
        proof = oracle.recv(64, socket.MSG_WAITALL)[32:]
    attacker.sendall(proof)
    door.refuses(attacker)


def test_a_dialler_is_not_taken_in_by_its_own_words(door):
    """An impostor that sends back what it hears, or relays it from elsewhere."""
    for answer in (lambda hello: (hello * 2)[:64], lambda hello: hello[-32:] * 2):
        ours, theirs = socket_pair()
        with ours, theirs:
            hello, steps = hello_of()
            with pytest.raises(HandshakeError, match="lacks the secret"):
                steps.send(answer(hello))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (hello_of(rank=2)[0], "rank 2 has no business on the ring channel"),
        (hello_of(channel="control")[0], "rank 1 has no business on the control channel"),
        (hello_of(callee=2)[0], "not a tensorlite worker of this job"),
        (hello_of()[0].replace(handshake.MAGIC, b"tlring01"), "not a tensorlite worker"),
        (b"\xff" * 49, "not a tensorlite worker of this job"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n".ljust(49), "not a tensorlite worker"),
        (bytes(1_000_000), "not a tensorlite worker of this job"),
    ],
    ids=["rank", "channel", "callee", "old protocol", "garbage", "http", "a megabyte"],
)
def test_callers_who_do_not_belong_here_get_no_answer(door, words, reason):
    attacker = socket.create_connection(door.address)
    with contextlib.suppress(ConnectionError):
        attacker.sendall(words)
    assert door.refuses(attacker) == b""
    assert any(reason in text for text in door.reasons)


@both
def test_a_caller_who_hangs_up_half_way(encrypt, request):
    door = request.getfixturevalue("tls_door" if encrypt else "door")
    attacker = socket.create_connection(door.address)
    attacker.sendall(hello_of()[0][:20])
    attacker.shutdown(socket.SHUT_WR)
    door.refuses(attacker)


@both
def test_a_byte_now_and_then_does_not_hold_the_door(encrypt, request, monkeypatch):
    monkeypatch.setattr(acceptor, "HANDSHAKE_SECONDS", 0.5)
    door = request.getfixturevalue("tls_door" if encrypt else "door")
    attacker = socket.create_connection(door.address)
    words = iter(b"\x16\x03\x01\x02\x00" + bytes(1000) if encrypt else hello_of()[0])
    with contextlib.suppress(ConnectionError):
        while True:
            attacker.send(bytes([next(words)]))
            time.sleep(0.05)
    door.refuses(attacker)
    assert "the caller did not finish the handshake in time" in door.reasons


@both
def test_a_byte_now_and_then_does_not_hold_a_dialler(encrypt):
    ours, theirs = socket_pair()
    stopped = threading.Event()
    words = iter(b"\x16\x03\x03\x02\x00\x02\x00\x01\xfc\x03\x03" + bytes(1000))

    def drip():
        with theirs, contextlib.suppress(OSError):
            while not stopped.wait(0.05):
                theirs.send(bytes([next(words)]))

    thread = threading.Thread(target=drip)
    thread.start()
    certificate = IDENTITIES[0].certificate
    stream = dial_tls(ours, IDENTITIES[1], 0, certificate) if encrypt else PlainStream(ours)
    with pytest.raises(TimeoutError):
        handshake.call(stream, GOOD, "ring", 1, 0, time.monotonic() + 0.5)
    stopped.set()
    thread.join()
    stream.close()


# ---- TLS -----------------------------------------------------------------------------------------


def _tls_client(identity, version):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    if identity is not None:
        with tempfile.NamedTemporaryFile("wb") as file:
            file.write(ssl.DER_cert_to_PEM_cert(identity.certificate).encode() + identity.key)
            file.flush()
            context.load_cert_chain(file.name)
    return context


@pytest.mark.parametrize(
    ("identity", "version", "reason"),
    [
        (None, ssl.TLSVersion.TLSv1_3, "did not return a certificate"),
        (Identity.make("rank 1"), ssl.TLSVersion.TLSv1_3, "certificate verify failed"),
        (IDENTITIES[2], ssl.TLSVersion.TLSv1_3, "not the one that rank 1 published"),
        (IDENTITIES[1], ssl.TLSVersion.TLSv1_2, "unsupported protocol"),
    ],
    ids=["no certificate", "a stranger's", "another rank's", "TLS 1.2"],
)
def test_callers_with_another_certificate(tls_door, identity, version, reason):
    attacker = _tls_client(identity, version).wrap_socket(
        socket.create_connection(tls_door.address, 20), do_handshake_on_connect=False
    )
    with contextlib.suppress(OSError):
        attacker.do_handshake()
        attacker.sendall(hello_of()[0])
    tls_door.refuses(attacker)
    assert any(reason in text for text in tls_door.reasons), tls_door.reasons


def test_a_plain_client_on_a_tls_port(tls_door):
    attacker = socket.create_connection(tls_door.address)
    attacker.sendall(hello_of()[0])
    answer = tls_door.refuses(attacker)
    assert GOOD.secret not in answer
    assert len(answer) < 64, "an alert, and no proof"


def test_a_client_that_pins_another_certificate(tls_door):
    connection = socket.create_connection(tls_door.address)
    stream = dial_tls(connection, IDENTITIES[1], 0, IDENTITIES[2].certificate)
    with contextlib.closing(stream), pytest.raises(HandshakeError, match="verify failed"):
        handshake.call(stream, GOOD, "ring", 1, 0, soon())


def test_a_man_in_the_middle_with_a_key_of_his_own():
    men = []

    def meddle(entries):
        certificate = base64.b64decode(entries[0]["certificate"])
        men.append(TlsRelay(("127.0.0.1", entries[0]["port"]), certificate))
        entries[0]["port"] = men[0].address[1]

    world = World(2, meddle, encrypt=True, timeout=1.0)
    men[0].close()
    assert all(isinstance(result, RendezvousError) for result in world.results)
    assert "TLS: certificate verify failed" in str(world.results[1])


def test_a_man_in_the_middle_who_also_forges_what_is_published():
    """Both ranks take his key for the other's; he passes on their handshake, which fails for what
    they were told is not the same."""
    men = []

    def meddle(entries):
        certificate = base64.b64decode(entries[0]["certificate"])
        men.append(TlsRelay(("127.0.0.1", entries[0]["port"]), certificate))

    def told(rank, entries):
        forged = [dict(entry) for entry in entries]
        forged[1 - rank]["certificate"] = base64.b64encode(men[0].identity.certificate).decode()
        # Rank 0 finds nobody who answers, so that it waits for rank 1 with his key.
        forged[1 - rank]["port"] = men[0].address[1] if rank == 1 else silent.getsockname()[1]
        return forged

    with socket.create_server(("127.0.0.1", 0)) as silent:
        world = World(2, meddle, told, encrypt=True, timeout=1.0)
    men[0].close()
    assert all(isinstance(result, RendezvousError) for result in world.results)
    assert men[0].read[:8] == handshake.MAGIC, "he got as far as the handshake"
    assert "lacks the secret" in str(world.results[1])


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
