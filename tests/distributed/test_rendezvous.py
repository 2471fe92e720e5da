"""Workers find each other among strangers, and say clearly why when they cannot."""

import contextlib
import socket
import sys

import pytest

from tensorlite.distributed import RendezvousError, acceptor
from tensorlite.distributed.rendezvous import host_of, listen

from .worlds import SECRET, World


@pytest.mark.parametrize("encrypt", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_everyone_finds_everyone(size, encrypt):
    world = World(size, encrypt=encrypt)
    assert {links.credentials.attempt for links in world.results} == {7}
    assert len({links.credentials.nonce for links in world.results}) == 1
    world.check_and_close()


def test_ipv6():
    try:
        listen("::1").close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    World(3, host="::1").check_and_close()


@pytest.mark.parametrize("encrypt", [False, True])
def test_strangers_only_lose_their_connections(monkeypatch, encrypt):
    monkeypatch.setattr(acceptor, "HANDSHAKE_SECONDS", 0.5)
    strangers = []

    def meddle(entries):
        for entry in entries:
            address = (entry["host"], entry["port"])
            for message in (b"", b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100, b"tlring01", b"\0" * 5000):
                stranger = socket.create_connection(address)
                stranger.sendall(message)
                strangers.append(stranger)
            socket.create_connection(address).close()

    World(3, meddle, encrypt=encrypt).check_and_close()
    for stranger in strangers:
        stranger.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            while stranger.recv(1000):
                pass
        stranger.close()


def test_more_strangers_than_may_be_half_open(monkeypatch):
    monkeypatch.setattr(acceptor, "MAX_HALF_OPEN", 4)
    strangers = []

    def meddle(entries):
        for _ in range(40):
            strangers.append(socket.create_connection((entries[0]["host"], entries[0]["port"])))

    World(2, meddle).check_and_close()
    for stranger in strangers:
        stranger.close()


def test_a_worker_with_another_secret_is_named():
    world = World(3, secrets=[SECRET, b"x" * 32, SECRET], timeout=1.0)
    assert all(isinstance(result, RendezvousError) for result in world.results)
    assert any("lacks the secret" in str(result) for result in world.results)


def test_a_worker_that_never_calls_is_named():
    silent = socket.create_server(("127.0.0.1", 0))

    def meddle(entries):
        entries[1]["port"] = silent.getsockname()[1]

    with silent:
        world = World(2, meddle, timeout=0.5)
    assert "rank 0 could not reach rank 1 at 127.0.0.1" in str(world.results[0])
    assert "may open TCP connections" in str(world.results[0])


def test_an_unusable_address_is_named_on_every_rank():
    world = World(2, bind="203.0.113.7")
    for result in world.results:
        assert isinstance(result, RendezvousError)
        assert "cannot listen at 203.0.113.7" in str(result)
        assert 'bind="0.0.0.0"' in str(result)


def test_ports_stay_in_the_range():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        first = probe.getsockname()[1]
        span = (first, min(first + 50, 65535))
        ports = []
        World(3, lambda entries: ports.extend(e["port"] for e in entries), port_range=span)
    assert all(span[0] < port <= span[1] for port in ports)
    assert len(set(ports)) == 3


def test_an_exhausted_range_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        world = World(2, port_range=(port, port))
    assert f"on ports {port}-{port}" in str(world.results[0])
    assert "choose another port_range" in str(world.results[0])


def test_another_version_is_named():
    def meddle(entries):
        entries[1]["protocol"] = 99

    world = World(2, meddle)
    assert "rank 1 speaks version 99" in str(world.results[0])
    assert "install the same tensorlite on all hosts" in str(world.results[0])


def test_a_worker_that_does_not_encrypt_is_refused():
    def meddle(entries):
        entries[1]["certificate"] = None

    world = World(2, meddle, encrypt=True)
    assert all("some workers encrypt and others do not" in str(r) for r in world.results)


def test_without_cryptography_every_rank_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    world = World(2, encrypt=True)
    for result in world.results:
        assert isinstance(result, RendezvousError)
        assert "rank 0 (host 127.0.0.1) encryption among the workers needs" in str(result)
        assert "pip install 'tensorlite[spark]'" in str(result)


@pytest.mark.parametrize(
    ("hosts", "reachable"),
    [(["127.0.0.1", "198.51.100.1"], True), (["127.0.0.1", "127.0.0.1"], False)],
)
def test_loopback_is_not_enough_when_others_are_elsewhere(hosts, reachable):
    answers = []

    def meddle(entries):
        # Another address of this machine, as a host elsewhere would use one.
        with socket.socket() as probe:
            answers.append(probe.connect_ex(("127.0.0.2", entries[0]["port"])) == 0)

    World(2, meddle, hosts=hosts).check_and_close()
    assert answers == [reachable]


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.0.0.1:4000", "10.0.0.1"),
        ("node-7.example:4000", "node-7.example"),
        ("[fd00::2]:4000", "fd00::2"),
        ("[fd00::2]", "fd00::2"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_hosts_in_sparks_addresses(address, host):
    assert host_of(address) == host
