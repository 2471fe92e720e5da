"""From OpenCL C to kernels, by way of a cache on disk.

A binary is good for one device, driver and source. Drivers that cannot load a binary that is on
disk get the source instead.

With TENSORLITE_OPENCL_KERNELS a folder of binaries that were made ahead of time takes the place of
the compiler, as devices such as FPGAs need it; `export` writes the sources for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import threading
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

from ... import observe
from .. import cache
from .kernels import Kernel

try:
    import pyopencl as cl
except ImportError:
    cl: Any = None  # type: ignore[no-redef]

OPTIONS = "-cl-mad-enable -w"  # a * b + c may be rounded once; remarks help nobody
MANIFEST = "manifest.json"
_VERSION = 1


class BuildError(RuntimeError):
    """A device's compiler refuses a program."""


class MissingKernelError(RuntimeError):
    """A folder of binaries lacks a kernel."""


class Programs:
    """The programs of one device."""

    def __init__(self, context: Any, device: Any, key: str):
        self._context = context
        self._device = device
        self._key = key
        self._built: dict[tuple[str, str], Any] = {}
        self._lock = threading.RLock()
        folder = os.environ.get("TENSORLITE_OPENCL_KERNELS")
        self._offline = _Offline(pathlib.Path(folder)) if folder else None

    def kernel(self, kernel: Kernel) -> Any:
        """A pyopencl.Kernel, whose arguments are nobody else's.

        Raises:
            BuildError: the device's compiler refuses the source.
            MissingKernelError: binaries come from a folder, and this one is not there.
        """
        options = f"{OPTIONS} {kernel.options}".strip()
        with self._lock:
            program = self._built.get((kernel.source, options))
            if program is None:
                program = self._program(kernel, options)
                self._built[kernel.source, options] = program
            return cl.Kernel(program, kernel.name)

    def build_folder(self, folder: str | os.PathLike[str]) -> int:
        """Compile what a manifest lists with the device's own compiler, where its driver has one;
        how many programs were compiled. (An FPGA's tool is run by hand.)

        Raises:
            BuildError: the compiler refuses a source.
            MissingKernelError: there is no manifest.
        """
        place = pathlib.Path(folder)
        entries = _manifest_in(place)
        for entry in entries:
            kernel = Kernel(entry.kernels[0], (place / entry.source).read_text(), (), None)
            program = self._build(self._from_source(kernel.source), kernel, entry.options)
            _replace(place / entry.binary, program.binaries[0])
        return len(entries)

    def _program(self, kernel: Kernel, options: str) -> Any:
        if self._offline is not None:
            return self._from_binary(self._offline.binary(kernel, self._key), kernel, options)
        if observe.verbosity.level >= 3:
            observe.logger.debug(f"OpenCL C of {kernel.name}:\n{kernel.source}")
        name = cache.key(kernel.source, options, self._key)
        binary = cache.read("opencl", name)
        if binary is not None:
            try:
                return self._from_binary(binary, kernel, options)
            except BuildError:  # the driver has changed in a way that its version does not tell
                pass
        with observe.span(f"build {kernel.name}"):
            program = self._build(self._from_source(kernel.source), kernel, options)
        cache.write("opencl", name, program.binaries[0])
        return program

    def _from_source(self, source: str) -> Any:
        """A program that PyOpenCL's own cache does not see: a file guards that one, which stays
        where a process is killed, and makes every other process wait for a minute and fail."""
        program = cl.Program(self._context, source)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*defeats compiler caching")
            program.get_info(cl.program_info.REFERENCE_COUNT)
        return program

    def _from_binary(self, binary: bytes, kernel: Kernel, options: str) -> Any:
        try:
            program = cl.Program(self._context, [self._device], [binary])
        except cl.Error as error:
            raise BuildError(f"{kernel.name}: the driver refuses the binary: {error}") from error
        return self._build(program, kernel, options)

    def _build(self, program: Any, kernel: Kernel, options: str) -> Any:
        try:
            with warnings.catch_warnings():  # some compilers say what they have done
                warnings.simplefilter("ignore", cl.CompilerWarning)
                return program.build(options.split(), devices=[self._device])
        except cl.Error as error:
            numbered = "\n".join(
                f"{number:4} {line}" for number, line in enumerate(kernel.source.splitlines(), 1)
            )
            raise BuildError(
                f"{kernel.name}: the compiler of {self._key} refuses\n{numbered}\n{error}"
            ) from error


# ---- binaries made ahead of time -----------------------------------------------------------------


class Entry(NamedTuple):
    """A program in a manifest."""

    kernels: tuple[str, ...]
    source: str  # file names
    binary: str
    sha256: str  # of options and source
    options: str


def identity(kernel: Kernel) -> str:
    """What a binary must have been made from."""
    options = f"{OPTIONS} {kernel.options}".strip()
    return hashlib.sha256(f"{options}\n{kernel.source}".encode()).hexdigest()


def export(kernels: Iterable[Kernel], folder: str | os.PathLike[str]) -> list[Entry]:
    """Write the sources of `kernels` as .cl files with a manifest, which names for each the file in
    which a vendor's compiler is to leave the binary. What is in the manifest already stays."""
    place = pathlib.Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    known = {entry.sha256: entry for entry in _read_manifest(place)}
    for kernel in kernels:
        digest = identity(kernel)
        if digest in known:
            continue
        stem = f"{kernel.name}-{digest[:12]}"
        options = f"{OPTIONS} {kernel.options}".strip()
        known[digest] = Entry((kernel.name,), f"{stem}.cl", f"{stem}.bin", digest, options)
        (place / f"{stem}.cl").write_text(kernel.source)
    document = {"version": _VERSION, "programs": [entry._asdict() for entry in known.values()]}
    _replace(place / MANIFEST, (json.dumps(document, indent=1) + "\n").encode())
    return list(known.values())


def _replace(path: pathlib.Path, content: bytes) -> None:
    """Write a file so that readers see all of it, or what was there before."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _manifest_in(place: pathlib.Path) -> list[Entry]:
    if not (place / MANIFEST).exists():
        raise MissingKernelError(
            f"there is no {MANIFEST} in {place}; write one with `tensorlite kernels export`"
        )
    return _read_manifest(place)


def _read_manifest(place: pathlib.Path) -> list[Entry]:
    path = place / MANIFEST
    if not path.exists():
        return []
    try:
        document = json.loads(path.read_text())
        if document["version"] != _VERSION:
            raise ValueError(f"version {document['version']}, this is {_VERSION}")
        return [Entry(**{**e, "kernels": tuple(e["kernels"])}) for e in document["programs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no manifest of kernels: {error}") from error


class _Offline:
    """A folder of binaries."""

    def __init__(self, place: pathlib.Path):
        self._place = place
        self._entries = {entry.sha256: entry for entry in _manifest_in(place)}

    def binary(self, kernel: Kernel, device: str) -> bytes:
        entry = self._entries.get(identity(kernel))
        if entry is None:
            raise MissingKernelError(
                f"kernel {kernel.name} is not in {self._place / MANIFEST}, and with "
                "TENSORLITE_OPENCL_KERNELS set nothing is compiled; export the function again "
                "for the same shapes and dtypes, and compile it"
            )
        path = self._place / entry.binary
        if not path.exists():
            raise MissingKernelError(
                f"kernel {kernel.name} has not been compiled: {path} is missing; compile "
                f"{self._place / entry.source} for {device} with options {entry.options!r}"
            )
        return path.read_bytes()
