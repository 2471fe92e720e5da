"""Hosts as network namespaces, each with one link to a bridge that has a namespace of its own.

Nothing leads from there to the machine's own interfaces. Links are pairs of veth interfaces, held
to a rate in both directions by a token bucket: one at the host's end for what it sends, one at the
bridge's end for what it receives. Packets of TCP stay large until they have arrived, as with
network cards that cut and join them; the bucket counts the headers of the small ones. TCP makes
packets of what it can send in a millisecond, which would be too small where a millisecond is not
one of the hosts'; it is told a least size. The burst is one large packet: so much is sent at once
after a pause.

Everything carries `PREFIX`, and lives in namespaces that carry it: removing these removes all."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal

from .commands import PREFIX, LabError, run

WIRE = f"{PREFIX}-wire"
BRIDGE_ADDRESS = "10.99.0.1"
SEGMENTS = 43  # of 1448 bytes in a large packet: the most that 64 KiB hold, as at full rate
LARGE_PACKET = SEGMENTS * 1448  # bytes; half a millisecond at 1 Gbit/s
BURST = LARGE_PACKET * 5 // 4  # one of them, and the headers of what it is cut into: a packet that
# is larger than the burst would be cut by this machine's processors
_TCP = "/proc/sys/net/ipv4"
QUEUE = 1024 * 1024  # bytes that may wait for a link; less than this is never dropped


class Network:
    """`hosts` namespaces on one bridge. Use as a context manager.

    Raises:
        LabError: the kernel cannot do it.
    """

    def __init__(self, hosts: int):
        self.hosts = hosts

    def __enter__(self) -> Network:
        try:
            self._build()
        except BaseException:
            remove()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        remove()

    def limit(self, rate: float, latency: float = 0.0, queue: int = QUEUE) -> None:
        """Hold every link to `rate` bits per second in both directions and delay what it carries by
        `latency` seconds each way. Up to `queue` bytes wait at either end; what comes on top is
        lost.

        Raises:
            LabError: latency is asked for, and the kernel has no netem.
        """
        for host in range(self.hosts):
            for space, device in ((name_of(host), "eth0"), (WIRE, f"port{host}")):
                _in(space, "tc", *bucket(device, rate, queue))
                # Half of the delay at either end of the link, on the way out of it.
                if latency:
                    _in(space, "tc", *delay(device, latency / 2))

    def lost(self) -> int:
        """How many packets the links have lost so far."""
        texts = [_in(name_of(host), "tc", "-s", "qdisc", "show") for host in range(self.hosts)]
        texts.append(_in(WIRE, "tc", "-s", "qdisc", "show"))
        return sum(int(count) for text in texts for count in re.findall(r"dropped (\d+)", text))

    def cut(self, host: int, off: bool = True) -> None:
        """Pull the plug of a host's link, or put it back: what is sent meets nobody, and nobody is
        told."""
        way = ("nomaster",) if off else ("master", "bridge")
        _in(WIRE, "ip", "link", "set", f"port{host}", *way)

    def part(self, one: int, other: int) -> None:
        """Let two hosts send what they have for each other to an address that nobody has; all
        others still reach both."""
        for host, lost in ((one, other), (other, one)):
            nobody = ("lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent")
            _in(name_of(host), "ip", "neighbour", "replace", address_of(lost), *nobody)

    def _build(self) -> None:
        run("ip", "netns", "add", WIRE)
        _in(WIRE, "ip", "link", "set", "lo", "up")
        _in(WIRE, "ip", "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
        _in(WIRE, "ip", "address", "add", f"{BRIDGE_ADDRESS}/24", "dev", "bridge")
        _in(WIRE, "ip", "link", "set", "bridge", "up")
        for host in range(self.hosts):
            space, port = name_of(host), f"port{host}"
            run("ip", "netns", "add", space)
            size = ("gso_max_size", str(LARGE_PACKET + 100))  # with its own headers
            peer = ("peer", "name", "eth0", "netns", space)
            _in(WIRE, "ip", "link", "add", port, "type", "veth", *peer)
            _in(WIRE, "ip", "link", "set", port, *size, "master", "bridge", "up")
            _in(space, "ip", "link", "set", "lo", "up")
            _in(space, "ip", "address", "add", f"{address_of(host)}/24", "dev", "eth0")
            _in(space, "ip", "link", "set", "eth0", *size, "up")
            _in(space, "sh", "-c", f"echo {congestion()} > {_TCP}/tcp_congestion_control")
            _in(space, "sh", "-c", f"echo {SEGMENTS} > {_TCP}/tcp_min_tso_segs")


def congestion() -> str:
    """How TCP reacts to losses in the laboratory: cubic, as on most hosts, or its ancestor, where a
    namespace may not choose that. Without losses they do the same; the machine itself may be set to
    something that paces what it sends by a model of the link, which an interrupted clock upsets."""
    allowed = pathlib.Path(_TCP, "tcp_allowed_congestion_control").read_text().split()
    return "cubic" if "cubic" in allowed else "reno"


def name_of(host: int) -> str:
    """The namespace of a host."""
    return f"{PREFIX}-host{host}"


def address_of(host: int) -> str:
    """The address of a host."""
    return f"10.99.0.{10 + host}"


def bucket(device: str, rate: float, queue: int = QUEUE) -> list[str]:
    """Arguments of tc that hold what leaves `device` to `rate` bits per second."""
    limits = ["burst", str(BURST), "limit", str(queue)]
    how = ["root", "handle", "1:", "tbf", "rate", f"{round(rate)}bit", *limits]
    return ["qdisc", "replace", "dev", device, *how]


def delay(device: str, seconds: float) -> list[str]:
    """Arguments of tc that delay what the bucket of `device` lets pass."""
    how = ["parent", "1:", "handle", "2:", "netem", "delay", f"{round(seconds * 1e6)}us"]
    return ["qdisc", "replace", "dev", device, *how, "limit", "100000"]


def can_delay() -> bool:
    """Whether this kernel has netem, which is what delays packets."""
    with contextlib.suppress(LabError):
        run("ip", "netns", "add", f"{PREFIX}-probe")
        try:
            probe = ("lo", "root", "netem", "delay", "1ms")
            _in(f"{PREFIX}-probe", "tc", "qdisc", "add", "dev", *probe)
            return True
        finally:
            run("ip", "netns", "delete", f"{PREFIX}-probe")
    return False


def remove() -> None:
    """End what still runs in the laboratory's namespaces, of this run or an earlier one, and remove
    them."""
    for space in spaces():
        for process in run("ip", "netns", "pids", space).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        run("ip", "netns", "delete", space)


def spaces() -> list[str]:
    """The laboratory's namespaces that there are."""
    folder = pathlib.Path("/run/netns")
    return sorted(path.name for path in folder.glob(f"{PREFIX}-*")) if folder.exists() else []


def counters(host: int) -> tuple[int, int]:
    """Bytes that a host has received and sent over its link so far."""
    text = _in(name_of(host), "ip", "-json", "-statistics", "link", "show", "dev", "eth0")
    statistics = json.loads(text)[0]["stats64"]
    return statistics["rx"]["bytes"], statistics["tx"]["bytes"]


def _in(space: str, *command: str) -> str:
    return run("ip", "netns", "exec", space, *command)
