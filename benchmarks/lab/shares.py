"""A share of one processor for each host: a cgroup with a quota of processor time in each period.

The kernel lets a group run until its quota for the period is used up and then stops all of its
threads, those that serve the network too. The shortest quota that it takes is 1 ms, so a host with
a share of 0.2 runs for 1 ms and may then stand still for 4 ms of real time, which are 0.8 ms of its
own, dilated time. But a kernel looks at the clock of a group that runs undisturbed only at its own
tick, 4 ms at 250 Hz, and then the group has run four times too long, and stands still for 16 ms. So
a pacemaker interrupts each processor once in a millisecond; whoever is interrupted is charged.

Both generations of cgroups serve, the first (`cpu.cfs_quota_us`) and the second (`cpu.max`)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import time

from .commands import PREFIX, LabError

QUOTA = 1000  # microseconds; the least that the kernel takes
BEAT = 0.001  # seconds between two beats of a pacemaker
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PATIENCE = 10.0  # seconds for killed processes to go


class Share:
    """The cgroup of one host. It is unlimited until `limit` is called."""

    def __init__(self, name: str):
        root, self._first_generation = controller()
        self.folder = root / f"{PREFIX}-{name}"
        self.folder.mkdir()

    @property
    def procs(self) -> pathlib.Path:
        """The file to which a process writes its number to belong to the group."""
        return self.folder / "cgroup.procs"

    def limit(self, share: float | None) -> None:
        """Let the group have this share of a processor; None: as much as it can get."""
        period = round(QUOTA / share) if share else 100_000
        if self._first_generation:
            if share:
                (self.folder / "cpu.cfs_period_us").write_text(str(period))
            (self.folder / "cpu.cfs_quota_us").write_text(str(QUOTA) if share else "-1")
        else:
            (self.folder / "cpu.max").write_text(f"{QUOTA if share else 'max'} {period}")

    def end_all(self) -> None:
        """End all processes of the group.

        Raises:
            LabError: one does not go.
        """
        _end(self.folder)


def controller() -> tuple[pathlib.Path, bool]:
    """The folder under which groups with quotas are made, and whether it is of the first
    generation.

    Raises:
        LabError: no such cgroups are mounted, or the kernel has no quotas.
    """
    root = find_controller(pathlib.Path("/proc/mounts").read_text())
    if root is None:
        raise LabError(
            "no cgroup hierarchy with the cpu controller is mounted; mount one: mount -t cgroup "
            "-o cpu none /sys/fs/cgroup/cpu"
        )
    folder, first_generation = root
    if first_generation:
        if not (folder / "cpu.cfs_quota_us").exists():
            raise LabError("the kernel has no quotas: it needs CONFIG_CFS_BANDWIDTH")
    elif "cpu" not in (folder / "cgroup.subtree_control").read_text().split():
        (folder / "cgroup.subtree_control").write_text("+cpu")
    return folder, first_generation


def find_controller(mounts: str) -> tuple[pathlib.Path, bool] | None:
    """The cpu controller in the text of /proc/mounts: where, and whether it is of the first
    generation. A machine may have both hierarchies, and the controller belongs to one."""
    second = None
    for line in mounts.splitlines():
        _, where, kind, options = line.split()[:4]
        if kind == "cgroup" and "cpu" in options.split(","):
            return pathlib.Path(where), True
        if kind == "cgroup2":
            second = pathlib.Path(where), False
    return second


def remove() -> None:
    """End what still runs in the laboratory's cgroups, of this run or an earlier one, and remove
    them.

    Raises:
        LabError: a process does not go.
    """
    root, _ = controller()
    for folder in sorted(root.glob(f"{PREFIX}-*")):
        _end(folder)
        folder.rmdir()


def _end(folder: pathlib.Path) -> None:
    """End all processes of a group, those too that they start meanwhile."""
    deadline = time.monotonic() + PATIENCE
    while processes := (folder / "cgroup.procs").read_text().split():
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        if time.monotonic() > deadline:
            raise LabError(f"processes {', '.join(processes)} in {folder} cannot be ended")
        time.sleep(0.01)


class Pacemaker:
    """Interrupts each of `processors` every `BEAT` seconds. Use as a context manager."""

    def __init__(self, processors: list[int]):
        self._processors = processors
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Pacemaker:
        for processor in self._processors:
            command = [sys.executable, "-m", __spec__.name, str(processor), str(BEAT)]
            self._running.append(subprocess.Popen(command, cwd=ROOT))
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._running:
            process.kill()
            process.wait()


def beat(processor: int, seconds: float) -> None:
    """Run on `processor` for a moment every so many seconds, until the parent ends."""
    set_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    os.sched_setaffinity(0, {processor})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    while os.getppid() != 1:
        time.sleep(seconds)


if __name__ == "__main__":
    beat(int(sys.argv[1]), float(sys.argv[2]))
