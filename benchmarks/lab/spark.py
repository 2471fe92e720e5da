"""A standalone Spark cluster in the laboratory: its master and the driver at the desk, a worker
with one executor of one core on each host. What trains is the same as in `rank`, by `Trainer.fit`.

    python -m benchmarks.lab.spark MASTER WORKERS BATCH OPTIONS    is the driver
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from .commands import LabError
from .hosts import ROOT, THREAD_VARIABLES, Host, Laboratory
from .network import BRIDGE_ADDRESS
from .rank import FOREVER, data, model, say, told, trainer

PORT = 7077
SLOTS_SECONDS = 180.0  # until all executors are there; their machines share this one's processors
EXECUTOR_MEMORY = "700m"
_DAEMON = {"SPARK_DAEMON_MEMORY": "200m", "SPARK_DAEMON_JAVA_OPTS": "-XX:+UseSerialGC"}
_PACKAGE = "org.apache.spark.deploy"


class SparkWorld:
    """A cluster on some of the laboratory's hosts, and a driver that trains on it. It can be
    listened to like a `World`."""

    def __init__(
        self,
        laboratory: Laboratory,
        hosts: Sequence[Host],
        batch: int,
        options: dict[str, Any] | None = None,
    ):
        self.size = len(hosts)
        self._hosts = [*hosts, laboratory.desk]
        self.messages: list[dict[str, Any]] = []
        self._heard = b""
        self._folder = tempfile.TemporaryDirectory()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._processes: list[subprocess.Popen[bytes]] = []
        desk, master = laboratory.desk, f"spark://{BRIDGE_ADDRESS}:{PORT}"
        place = ["--host", BRIDGE_ADDRESS, "--port", str(PORT), "--webui-port", "0"]
        self._start_daemon(desk, "master.Master", place)
        for host in hosts:
            place = ["--host", host.address, "--webui-port", "0", "--cores", "1", "--memory", "1g"]
            folder = ["--work-dir", f"{self._folder.name}/{host.name}"]
            self._start_daemon(host, "worker.Worker", [*place, *folder, master])
        module = [sys.executable, "-m", "benchmarks.lab.spark"]
        self._driver = desk.start(
            [*module, master, str(self.size), str(batch), json.dumps(options or {})],
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=self._environment(desk),
        )
        self._processes.append(self._driver)

    def outputs(self) -> list[int]:
        """The file descriptor to listen to."""
        assert self._driver.stdout is not None
        return [self._driver.stdout.fileno()]

    def hear(self, rank: int) -> None:
        """Take in what the driver has said.

        Raises:
            LabError: it has ended.
        """
        part = os.read(self.outputs()[rank], 65536)
        if not part:
            self._driver.wait()
            self._log.seek(0)
            raise LabError(f"the driver of {self.size} workers ended:\n{self._log.read()[-4000:]}")
        *lines, self._heard = (self._heard + part).split(b"\n")
        self.messages += map(json.loads, lines)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the driver, the workers, the master, and all that they have started."""
        for pid in descendants([process.pid for process in self._processes]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def close(self) -> None:
        """End the driver, the workers with all that they have started, and the master."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        if self._driver.stdout is not None:
            self._driver.stdout.close()
        for host in self._hosts:
            host.share.end_all()
        self._log.close()
        self._folder.cleanup()

    def _start_daemon(self, host: Host, name: str, arguments: list[str]) -> None:
        import pyspark

        spark_class = pathlib.Path(pyspark.__file__).parent / "bin" / "spark-class"
        process = host.start(
            [str(spark_class), f"{_PACKAGE}.{name}", *arguments],
            stdout=self._log,
            stderr=self._log,
            env=self._environment(host),
        )
        self._processes.append(process)

    def _environment(self, host: Host) -> dict[str, str]:
        own = {
            "PYTHONPATH": str(ROOT),
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": host.address,
            "SPARK_LOCAL_DIRS": self._folder.name,
        }
        return os.environ | _DAEMON | dict.fromkeys(THREAD_VARIABLES, "1") | own


def descendants(roots: list[int]) -> list[int]:
    """The processes `roots`, their children, the children of these, and so on."""
    children: dict[int, list[int]] = {}
    for place in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            after_name = place.read_text().rpartition(")")[2].split()
            children.setdefault(int(after_name[1]), []).append(int(place.parent.name))
    found = list(roots)
    for pid in found:  # which grows meanwhile
        found += children.get(pid, [])
    return found


def drive(master: str, workers: int, batch: int, options: dict[str, Any]) -> None:
    """Train on a cluster for as long as it lasts, and tell of every step."""
    from pyspark.sql import SparkSession

    settings: dict[str, bool | float | int | str | None] = {
        "spark.master": master,
        "spark.driver.host": BRIDGE_ADDRESS,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.cores.max": str(workers),
        "spark.executor.cores": "1",
        "spark.executor.memory": EXECUTOR_MEMORY,
        "spark.executor.extraJavaOptions": "-XX:+UseSerialGC",
    }
    spark = SparkSession.builder.config(map=settings).getOrCreate()
    training = trainer(
        batch,
        num_workers=workers,
        spark=spark,
        progress=lambda record: say(told(record, batch)),
        launch_options={"slots_timeout": SLOTS_SECONDS},
        **options,
    )
    training.fit(model(), data(batch), steps=FOREVER)


if __name__ == "__main__":
    drive(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
