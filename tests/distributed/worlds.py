"""Workers without Spark whose rendezvous a test can watch and disturb: in threads, which only meet,
and in processes of their own, which run a function."""

import contextlib
import json
import multiprocessing
import secrets
import socket
import threading
import time

from tensorlite.distributed import local
from tensorlite.distributed.life import Options, Place
from tensorlite.distributed.rendezvous import meet
from tensorlite.distributed.streams import PlainStream, receive_exactly, send_all
from tensorlite.distributed.tls import Identity, TlsAcceptor, dial_tls

SECRET = b"k" * 32


def soon():
    """A deadline for what should take no time."""
    return time.monotonic() + 20.0


class World:
    """`size` threads that meet; `meddle(entries)` may look at and change what they publish, and
    `told(rank, entries)` what one of them gets to see."""

    def __init__(
        self, size, meddle=lambda entries: None, told=lambda rank, entries: entries, **options
    ):
        self._barrier = threading.Barrier(size)
        self._entries = [None] * size
        self._meddle = meddle
        self._told = told
        self.results = [None] * size
        self._host = options.pop("host", "127.0.0.1")
        secrets = options.pop("secrets", [SECRET] * size)
        threads = [
            threading.Thread(target=self._meet, args=(rank, size, secrets[rank], options))
            for rank in range(size)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _meet(self, rank, size, secret, options):
        def gather(message):
            self._entries[rank] = json.loads(message)
            if self._barrier.wait() == 0:
                self._meddle(self._entries)
            self._barrier.wait()
            return [json.dumps(entry) for entry in self._told(rank, self._entries)]

        try:
            self.results[rank] = meet(gather, rank, size, self._host, secret, attempt=7, **options)
        except Exception as error:
            self.results[rank] = error

    def check_and_close(self):
        """All links carry bytes between the ranks that they should."""
        size = len(self.results)
        for rank, links in enumerate(self.results):
            assert not isinstance(links, Exception), links
            send_all(links.next, bytes([rank]), soon())
        for rank, links in enumerate(self.results):
            assert receive_exactly(links.previous, 1, soon()) == bytes([(rank - 1) % size])
        hub = self.results[0].control
        assert sorted(hub) == list(range(1, size))
        for rank in range(1, size):
            send_all(hub[rank], bytes([rank]), soon())
            assert receive_exactly(self.results[rank].control[0], 1, soon()) == bytes([rank])
        self.close()

    def close(self):
        for links in self.results:
            if not isinstance(links, Exception):
                for link in (links.next, links.previous, *links.control.values()):
                    link.close()


def run_processes(main, args=(), *, size, meddle=lambda entries: None, **options):
    """`run_local` with processes and all data over connections, where `meddle` may change what is
    published; the `Outcome` of each rank."""
    context = multiprocessing.get_context("spawn")
    settings = Options(secrets.token_bytes(32), shared_memory=False, **options)
    hosts = ("127.0.0.1",) * size
    pipes, processes = [], []
    with contextlib.ExitStack() as stack:
        for rank in range(size):
            ours, theirs = context.Pipe()
            place = Place(rank, hosts, cpus=1)
            process = context.Process(
                target=local._process_main, args=(theirs, main, args, place, settings)
            )
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
            stack.callback(ours.close)
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        entries = [json.loads(pipe.recv()) for pipe in pipes]
        meddle(entries)
        for pipe in pipes:
            pipe.send([json.dumps(entry) for entry in entries])
        return [pipe.recv() for pipe in pipes]


def socket_pair(buffer_bytes=None):
    """Two ends of a TCP connection; the sending buffers may be kept small."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    if buffer_bytes is not None:
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    return ours, theirs


def tls_pair(buffer_bytes=None):
    """Two `TlsStream`s that have shaken hands: of rank 0, who was called, and of rank 1."""
    called, calling = Identity.make("rank 0"), Identity.make("rank 1")
    theirs, ours = socket_pair(buffer_bytes)
    accepted = TlsAcceptor(called, {0: called.certificate, 1: calling.certificate})(ours)
    dialled = dial_tls(theirs, calling, 0, called.certificate)
    done = [False, False]
    while not all(done):
        done = [stream.handshake() for stream in (dialled, accepted)]
    return accepted, dialled


def plain_pair(buffer_bytes=None):
    """Two `PlainStream`s."""
    ours, theirs = socket_pair(buffer_bytes)
    return PlainStream(ours), PlainStream(theirs)
