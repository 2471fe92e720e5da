"""Attacks on who may connect: the handshake and TLS, over real sockets. Whoever is not of this
attempt costs a closed socket, and those who are get through after him."""

import base64
import contextlib
import dataclasses
import socket
import ssl
import tempfile
import threading
import time

import pytest

from tensorlite.distributed import RendezvousError, acceptor, handshake
from tensorlite.distributed.handshake import HandshakeError
from tensorlite.distributed.streams import PlainStream
from tensorlite.distributed.tls import Identity, dial_tls

from .attackers import GOOD, Door, Relay, TlsRelay, hello_of
from .worlds import World, socket_pair, soon

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
