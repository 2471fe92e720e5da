"""What `tensorlite doctor` examines: whether this machine has what tensorlite uses, what is wrong,
and how to mend it.

Nothing is started that would have to be stopped: Java is asked for its version, drivers for their
devices, and sockets connect to this process itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Literal

Grade = Literal["ok", "note", "fault"]

JAVA, PYSPARK = 17, 4  # the least versions
ROOMY = 64 << 20  # bytes of /dev/shm that container runtimes give by default
CONNECT_SECONDS = 3.0


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one examination has found.

    Attributes:
        subject: what was examined.
        grade: "ok"; "note" for what costs speed or an optional part; "fault" for what keeps a part
            of tensorlite that this machine was asked to have from working.
        found: what is there.
        cure: what to do; "" where nothing is wrong.
    """

    subject: str
    grade: Grade
    found: str
    cure: str = ""


def examine(ports: tuple[int, int] | None = None) -> Iterator[Finding]:
    """The findings, one after the other.

    Args:
        ports: the first and last port on which workers are to listen; None where the system
            chooses.
    """
    yield python()
    yield onednn()
    yield compiler()
    yield opencl()
    yield java()
    yield pyspark()
    yield from network(ports)
    yield shared_memory()
    yield cache()


# ---- the engine ----------------------------------------------------------------------------------


def python() -> Finding:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    for variable in ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"):
        other = os.environ.get(variable)
        if other and shutil.which(other) is None:
            found = f"{variable}={other} is no interpreter"
            return Finding("Python", "fault", found, f"correct or unset {variable}")
    return Finding("Python", "ok", f"{version} at {sys.executable}")


def onednn() -> Finding:
    """The library of heavy operations on the CPU."""
    from .backends.cpu.onednn import load

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        library = load()
    if library is not None:
        return Finding("oneDNN", "ok", str(library.path))
    said_so = str(said[0].message).partition(": ")[0] if said else "oneDNN 3 was not found"
    place = os.environ.get("TENSORLITE_ONEDNN")
    cure = "pip install onednn-cpu-gomp (Linux, x86-64)"
    if place:
        cure = f"TENSORLITE_ONEDNN={place} is the only place that is looked at: correct or unset it"
    found = f"{said_so}: convolutions and products run on NumPy, much slower"
    return Finding("oneDNN", "fault", found, cure)


def compiler() -> Finding:
    """What makes machine code of jitted functions."""
    from .backends.cpu.executor import compiles_natively

    chosen = os.environ.get("TENSORLITE_COMPILER")
    if chosen == "numpy":
        found = "TENSORLITE_COMPILER=numpy: jitted functions run on NumPy"
        return Finding("compiler", "note", found, "unset it for compiled code")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        native = compiles_natively()
    if native:
        return Finding("compiler", "ok", f"llvmlite {importlib.metadata.version('llvmlite')}")
    found = "jitted functions run on NumPy, several times slower"
    return Finding("compiler", "fault", found, "pip install llvmlite; libgomp comes with gcc")


def opencl() -> Finding:
    """Devices beside the CPU, which are optional."""
    from .backends.opencl.runtime import find_all, problems, why_none

    devices = find_all()
    if not devices:
        return Finding("OpenCL", "note", "no device", why_none())
    names = ", ".join(f"{found.name} {found.device.name.strip()}" for found in devices)
    if problems():
        return Finding("OpenCL", "note", names, "; ".join(problems()))
    return Finding("OpenCL", "ok", names)


# ---- Spark ---------------------------------------------------------------------------------------


def java() -> Finding:
    """What Spark runs on. It looks where JAVA_HOME says first."""
    home = os.environ.get("JAVA_HOME")
    command = str(pathlib.Path(home) / "bin" / "java") if home else "java"
    install = (
        "install Java 17 or 21 (Debian, Ubuntu: apt install openjdk-17-jre-headless; Fedora: dnf "
        "install java-21-openjdk-headless; macOS: brew install openjdk@17)"
    )
    elsewhere = f"; or correct JAVA_HOME={home}" if home else "; or point JAVA_HOME to one"
    if shutil.which(command) is None:
        return Finding("Java", "fault", f"{command} was not found", install + elsewhere)
    try:
        answer = subprocess.run([command, "-version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("Java", "fault", f"{command} does not run: {error}", install + elsewhere)
    version = re.search(r'version "(\d+)([^"]*)"', answer.stderr + answer.stdout)
    if version is None:
        said = (answer.stderr + answer.stdout).strip().splitlines()
        found = f"{command} says no version: {said[0] if said else 'nothing'}"
        return Finding("Java", "fault", found, install + elsewhere)
    # Java 8 calls itself 1.8.
    number = int(version[1]) if version[1] != "1" else int(version[2].lstrip(".").split(".")[0])
    found = f"{version[1]}{version[2]} at {shutil.which(command)}"
    if number < JAVA:
        found += f": Spark needs {JAVA} or newer"
        return Finding("Java", "fault", found, install + elsewhere)
    return Finding("Java", "ok", found)


def pyspark() -> Finding:
    """Spark itself, as the Python package."""
    install = "pip install 'tensorlite[spark]'"
    try:
        version = importlib.metadata.version("pyspark")
    except importlib.metadata.PackageNotFoundError:
        found = "PySpark is not installed: training runs in this process only"
        return Finding("Spark", "fault", found, install)
    if int(version.split(".")[0]) < PYSPARK:
        found = f"PySpark {version}, and {PYSPARK}.0 or newer is needed"
        return Finding("Spark", "fault", found, install)
    home = os.environ.get("SPARK_HOME")
    if home and not (pathlib.Path(home) / "bin" / "spark-submit").exists():
        found = f"SPARK_HOME={home} holds no Spark"
        return Finding("Spark", "fault", found, "correct it, or unset it to use PySpark's own")
    return Finding("Spark", "ok", f"PySpark {version}" + (f", SPARK_HOME={home}" if home else ""))


# ---- between machines ----------------------------------------------------------------------------


def network(ports: tuple[int, int] | None) -> Iterator[Finding]:
    """Whether this machine reaches itself at the address that others will be told."""
    name = socket.gethostname()
    try:
        host = str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        cure = f"add it to /etc/hosts, or set SPARK_LOCAL_IP to this machine's address ({error})"
        yield Finding("network", "fault", f"the name of this machine, {name}, is unknown", cure)
        host = "127.0.0.1"
    problem = _connects(host, 0)
    if problem is not None:
        found = f"a connection from this machine to itself at {host} fails: {problem}"
        cure = (
            "a firewall drops it, or the interface is down (ip link set lo up); set SPARK_LOCAL_IP "
            "to an address that works"
        )
        yield Finding("network", "fault", found, cure)
    else:
        yield Finding("network", "ok", f"{name} is {host}, and listens")
    if ports is not None and problem is None:
        yield _ports(host, *ports)


def _ports(host: str, first: int, last: int) -> Finding:
    blocked: dict[int, str] = {}
    for port in range(first, last + 1):
        problem = _connects(host, port)
        if problem is not None:
            blocked[port] = problem
    free = last - first + 1 - len(blocked)
    if not blocked:
        return Finding("ports", "ok", f"{first} to {last} are free")
    port, problem = next(iter(blocked.items()))
    found = f"{free} of {last - first + 1} ports are free; {port}: {problem}"
    if free:
        cure = "each task on a host needs one port: choose a wider range where tasks are more"
        return Finding("ports", "note", found, cure)
    cure = "stop what listens there (ss -ltnp), open the firewall, or choose another port_range"
    return Finding("ports", "fault", found, cure)


def _connects(host: str, port: int) -> str | None:
    """Why nobody can listen and be reached there, or None."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen()
            with socket.create_connection(listener.getsockname()[:2], CONNECT_SECONDS):
                return None
        except (OSError, OverflowError) as error:
            return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def shared_memory() -> Finding:
    """What tasks of one host exchange gradients through."""
    try:
        os.close(os.memfd_create("tensorlite"))
    except (AttributeError, OSError) as error:
        found = f"this system makes no anonymous files in memory ({error})"
        cure = "nothing has to be done: tasks of one host use TCP, at a third of the speed"
        return Finding("shared memory", "note", found, cure)
    try:
        about = os.statvfs("/dev/shm")
    except OSError as error:
        return Finding("shared memory", "note", f"/dev/shm: {error.strerror}", _MORE_MEMORY)
    size = about.f_frsize * about.f_blocks
    found = f"anonymous files; /dev/shm has {size / 2**20:,.0f} MiB"
    if size < ROOMY:
        return Finding("shared memory", "note", found, _MORE_MEMORY)
    return Finding("shared memory", "ok", found)


_MORE_MEMORY = (
    "tensorlite does not need /dev/shm, but other libraries in your tasks may: docker run "
    "--shm-size=1g, or in Kubernetes an emptyDir of medium Memory at /dev/shm"
)


def cache() -> Finding:
    """Where compiled code is kept."""
    from .backends.cache import folder

    place = folder("llvm")
    if place is None:
        found = "TENSORLITE_CACHE is empty: every process compiles for itself"
        return Finding("cache", "note", found, "unset it, or name a folder")
    base = place.parent
    try:
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=base):
            pass
    except OSError as error:
        found = f"{base} cannot be written to ({error.strerror}): every process compiles for itself"
        return Finding("cache", "note", found, "set TENSORLITE_CACHE to a folder that can be")
    return Finding("cache", "ok", str(base))


def report(findings: Iterator[Finding], show: Callable[[str], None]) -> bool:
    """Show findings as they come, what is wrong with its cure below; whether there is no fault."""
    faults = notes = 0
    for finding in findings:
        faults += finding.grade == "fault"
        notes += finding.grade == "note"
        mark = {"ok": "ok   ", "note": "note ", "fault": "FAULT"}[finding.grade]
        show(f"{mark}  {finding.subject:14}{finding.found}")
        if finding.cure:
            show(f"{'':7}{'':14}-> {finding.cure}")
    plural = "s" * (faults != 1)
    show(f"\n{faults} fault{plural}" if faults else "\nNothing is wrong")
    if notes:
        show(f"{notes} note{'s' * (notes != 1)}: what is optional, or costs speed only")
    return faults == 0
