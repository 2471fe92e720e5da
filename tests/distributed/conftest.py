"""Spark sessions for the tests: one at a time in a process, so each module stops the one before."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest


@contextlib.contextmanager
def spark_session(master, **settings):
    """A session on `master`; an older one is stopped first, and this one afterwards."""
    from pyspark import cloudpickle
    from pyspark.sql import SparkSession

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        # The helpers of this file are used inside workers, which cannot import it.
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        stop_spark()
        builder = SparkSession.builder.master(master)
        quiet = {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.log.level": "OFF",
        }
        for key, value in (quiet | settings).items():
            builder = builder.config(key, value)
        session = builder.getOrCreate()
        try:
            yield session
        finally:
            stop_spark()


def stop_spark():
    """Stop the active session, if there is one."""
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    if session is not None:
        session.stop()
    if SparkContext._active_spark_context is not None:
        SparkContext._active_spark_context.stop()
    # What one test sets on the builder must not reach the next one's session.
    SparkSession.builder._options.clear()


@contextlib.contextmanager
def spark_local_cluster(workers, cores=1, **settings):
    """A session on `workers` executors of so many cores, each a process of its own."""
    import pyspark

    logs = Path(pyspark.__file__).parent / "work"  # where Spark's local cluster keeps its logs
    settings = SMALL_EXECUTORS | settings
    with spark_session(f"local-cluster[{workers},{cores},1024]", **settings) as session:
        own = logs / session.sparkContext.applicationId  # executors of others may run beside it
        yield session
    shutil.rmtree(own, ignore_errors=True)


@contextlib.contextmanager
def spark_standalone(workers, folder):
    """A session on a master and `workers` worker daemons, started here and stopped afterwards."""
    import pyspark

    home = Path(pyspark.__file__).parent
    environment = os.environ | {
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_DAEMON_MEMORY": "256m",
    }
    with contextlib.ExitStack() as stack:

        def daemon(name, *arguments):
            log = stack.enter_context(open(folder / f"{name}-{len(processes)}.log", "wb"))
            command = [str(home / "bin" / "spark-class"), f"org.apache.spark.deploy.{name}"]
            process = subprocess.Popen(
                [*command, *arguments], env=environment, stdout=log, stderr=log, cwd=folder
            )
            processes.append(process)

        processes = []
        stack.callback(lambda: stop_processes(processes))
        port = free_port()
        daemon("master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0")
        wait_for_port(port, processes[0])
        for number in range(workers):
            own = folder / f"worker{number}"
            options = [
                "--cores",
                "1",
                "--memory",
                "1g",
                "--work-dir",
                str(own),
                "--webui-port",
                "0",
            ]
            daemon("worker.Worker", "--host", "127.0.0.1", *options, f"spark://127.0.0.1:{port}")
        master = f"spark://127.0.0.1:{port}"
        session = stack.enter_context(spark_session(master, **SMALL_EXECUTORS))
        yield session


SMALL_EXECUTORS = {"spark.executor.memory": "512m", "spark.executor.cores": "1"}


def stop_processes(processes):
    for process in reversed(processes):
        process.terminate()
    for process in processes:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def wait_for_port(port, process):
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the Spark master ended with exit code {process.returncode}")


def wait_until_gone(pid):
    """Wait for the end of a process; the test's own time limit ends the wait."""
    with contextlib.suppress(ProcessLookupError):
        while Path(f"/proc/{pid}/stat").exists() and not is_zombie(pid):
            os.kill(pid, 0)
            time.sleep(0.05)


def is_zombie(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
