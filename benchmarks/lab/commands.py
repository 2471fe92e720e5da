"""Commands of the system, and what to say where one is missing or the user may not run it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

# Of every name that a laboratory makes, and by which the next one finds what is left over.
PREFIX = os.environ.get("TENSORLITE_LAB", "tlab")

NEEDED = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
}


class LabError(RuntimeError):
    """The laboratory cannot be built on this machine, or something in it failed."""


def run(*command: str) -> str:
    """Run a command and return what it prints.

    Raises:
        LabError: it failed; holds the command and its last words.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr or done.stdout).strip()
        raise LabError(f"`{' '.join(command)}` failed: {words}")
    return done.stdout


def require() -> None:
    """Refuse to begin where the user is not root or a command is missing.

    Raises:
        LabError: says which, and what to install.
    """
    if os.geteuid() != 0:
        raise LabError("the laboratory makes network namespaces and cgroups: run it as root")
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        packages = " ".join(sorted({NEEDED[name] for name in missing}))
        raise LabError(
            f"there is no {', '.join(missing)}; on Debian and Ubuntu: apt install {packages}, on "
            "Fedora: dnf install iproute-tc util-linux"
        )


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let nobody else have a laboratory of these names within the block. What this one leaves
    behind when it is killed, the lock is not.

    Raises:
        LabError: somebody has one.
    """
    path = pathlib.Path(f"/run/lock/{PREFIX}.lock")
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(
                f"a laboratory is running already ({path} is locked); wait for it, or give this "
                "one another name in TENSORLITE_LAB"
            ) from None
        yield
