"""What launch has to ask of Spark: a session, enough slots, and where a task died.

Spark waits, silently and for ever, when a barrier stage wants more tasks than the cluster can run
at once. So everything that would make a stage wait or fail is looked at first, and named."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DistributedError, Failure, SlotsError

if TYPE_CHECKING:
    from pyspark import SparkContext

INSTALL_JAVA = (
    "Spark needs Java 17 or newer, and there is none: install it (Debian, Ubuntu: apt install "
    "openjdk-17-jre-headless; Fedora: dnf install java-17-openjdk-headless; macOS: brew install "
    "openjdk@17), or point JAVA_HOME to one"
)
SETTLE_SECONDS = 15.0  # without a new slot, once there is one, before there are said to be too few
_LOCAL_CLUSTER = re.compile(r"local-cluster\[\s*(\d+)\s*,\s*(\d+)\s*,\s*\d+\s*\]")
_ENCRYPTION = (
    "spark.network.crypto.enabled",
    "spark.authenticate.enableSaslEncryption",
    "spark.ssl.enabled",
    "spark.ssl.rpc.enabled",
    "spark.io.encryption.enabled",
)
_FAILED_TASK = re.compile(r"ResultTask\((\d+), (\d+)\)")


def spark_context(spark: Any, num_workers: int) -> SparkContext:
    """The SparkContext of `spark`, of the active session, or of a new local session with
    `num_workers` slots.

    Raises:
        DistributedError: PySpark or Java is missing, or the session is one of Spark Connect.
    """
    try:
        from pyspark import SparkContext
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise without_pyspark(error) from None
    if spark is None:
        spark = SparkSession.getActiveSession() or SparkContext._active_spark_context
    if spark is None:
        spark = _new_session(num_workers)
    context = spark if isinstance(spark, SparkContext) else getattr(spark, "_sc", None)
    if context is None:
        raise DistributedError(
            f"launch: got {type(spark).__name__}, which gives no access to barrier stages; pass a "
            "classic SparkSession (not one of Spark Connect), or a SparkContext"
        )
    return context


def without_pyspark(error: ImportError) -> DistributedError:
    """The error for a machine that has no PySpark."""
    return DistributedError(
        f"launch needs PySpark ({error}): pip install 'tensorlite[spark]'; "
        "without it, run_local runs workers on this machine"
    )


def known_to_spark(context: SparkContext, resources: Any) -> Any:
    """A `ResourceProfile` that the session knows, from one that was made with or without it.

    Raises:
        TypeError: it is something else.
        DistributedError: it asks for executors, or Spark refuses it.
    """
    from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
    from pyspark.resource import ResourceProfile

    if not isinstance(resources, ResourceProfile):
        raise TypeError(
            "launch: resources is a pyspark.resource.ResourceProfile, as "
            "ResourceProfileBuilder().require(TaskResourceRequests().resource('gpu', 1)).build "
            f"makes one, got {type(resources).__name__}"
        )
    if resources.executorResources:
        raise DistributedError(
            "launch: resources asks for executors of its own "
            f"({', '.join(resources.executorResources)}), which needs dynamic allocation, and "
            "Spark's barrier stages do not work with that; name TaskResourceRequests only, and "
            "give the executors what they need in the session's configuration"
        )
    try:
        java = context.parallelize([0], 1).withResources(resources)._jrdd.getResourceProfile()
    except Py4JJavaError as error:
        reason = str(error.java_exception.getMessage())
        raise DistributedError(f"launch: Spark does not take these resources: {reason}") from None
    return ResourceProfile(_java_resource_profile=java)


def check(
    context: SparkContext, num_workers: int, slots_timeout: float, resources: Any = None
) -> None:
    """Refuse what would hang or fail later. `resources` are what `known_to_spark` gives.

    Raises:
        SlotsError: the cluster cannot run `num_workers` tasks at the same time.
        DistributedError: dynamic allocation is on.
    """
    conf = context.getConf()
    local = _is_local(context)
    if not local and conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        raise DistributedError(
            "launch: spark.dynamicAllocation.enabled is true, and Spark's barrier stages do not "
            "work with it; set it to false and ask for a fixed number of executors "
            "(spark.executor.instances)"
        )
    if local:
        slots = _slots(context, resources)
    else:
        slots = _settled_slots(context, num_workers, slots_timeout, resources)
    if slots < num_workers:
        raise SlotsError(_too_few(context, num_workers, slots, local, resources))


def must_encrypt(context: SparkContext, asked: bool | None) -> bool:
    """Whether the connections among the workers are to be encrypted: as was asked for, or else as
    Spark does."""
    if asked is not None:
        return asked
    conf = context.getConf()
    return any(str(conf.get(key, "false")).lower() == "true" for key in _ENCRYPTION)


def driver_host(context: SparkContext) -> str:
    """The address at which the executors reach the driver."""
    return str(context.getConf().get("spark.driver.host")).strip("[]")


@contextlib.contextmanager
def own_python(context: SparkContext) -> Iterator[None]:
    """Let the tasks of a local master run in this very interpreter, unless PYSPARK_PYTHON names
    another."""
    usual = context.pythonExec
    if _is_local(context) and "PYSPARK_PYTHON" not in os.environ:
        context.pythonExec = sys.executable
    try:
        yield
    finally:
        context.pythonExec = usual


_OF_JOBS = ("spark.jobGroup.id", "spark.job.description", "spark.job.interruptOnCancel")
_POOL = "spark.scheduler.pool"


@contextlib.contextmanager
def job(context: SparkContext, description: str, pool: str | None) -> Iterator[None]:
    """Let Spark's pages say what the jobs of the block are, and end them on Ctrl-C. The group is
    the caller's, where there is one, so that cancelling that ends them, too."""
    before = {key: context.getLocalProperty(key) for key in (*_OF_JOBS, _POOL)}
    group = before["spark.jobGroup.id"] or f"tensorlite-{secrets.token_hex(4)}"
    context.setJobGroup(group, description, interruptOnCancel=True)
    if pool is not None:
        context.setLocalProperty(_POOL, pool)
    try:
        yield
    except KeyboardInterrupt:
        context.cancelJobGroup(group)
        raise
    finally:
        for key, value in before.items():
            context.setLocalProperty(key, value)  # type: ignore[arg-type]  # None removes it


def failed_task(context: SparkContext, text: str) -> Failure:
    """What Spark's message about a failed barrier stage says about the task that failed."""
    found = _FAILED_TASK.search(text)
    stage, partition = (int(found[1]), int(found[2])) if found else (-1, -1)
    host = _host_of_task(context, stage, partition) if found else ""
    if "No module named 'tensorlite" in text:
        reason = (
            f"the executors' Python ({context.pythonExec}) has no tensorlite; install it there, or "
            "set PYSPARK_PYTHON to an interpreter that has it"
        )
    elif "crashed" in text or "ExecutorLostFailure" in text or "Worker died" in text:
        reason = (
            "its process ended without a report; it was probably killed (out of memory?) or crashed"
        )
    else:
        reason = "Spark ended the stage; its message follows"
    story = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("at "))
    return Failure(partition, host, "lost", "SparkException", reason, story, partition)


def _new_session(num_workers: int) -> Any:
    """A session as the script's user would expect it: that of spark-submit, or else a quiet local
    one."""
    from pyspark.sql import SparkSession

    if "PYSPARK_GATEWAY_PORT" in os.environ:  # started by spark-submit, which has chosen the master
        return SparkSession.builder.getOrCreate()
    java_home = os.environ.get("JAVA_HOME")
    java = Path(java_home, "bin", "java") if java_home else None
    if not (java.exists() if java else shutil.which("java")):
        raise DistributedError(INSTALL_JAVA)
    # The loopback interface works on every laptop, whatever its host name resolves to.
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    return (
        SparkSession.builder.master(f"local[{num_workers}]")
        .appName("tensorlite")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.log.level", "ERROR")
        .getOrCreate()
    )


def _is_local(context: SparkContext) -> bool:
    master = str(context.master)
    return master == "local" or master.startswith("local[")


def _settled_slots(
    context: SparkContext, num_workers: int, slots_timeout: float, resources: Any
) -> int:
    """The number of slots once it suffices, or once it is clear that no more will come."""
    promised = _promised_slots(context) if resources is None else None
    if promised is not None and promised < num_workers:
        return promised
    start = last_growth = time.monotonic()
    slots = most = _slots(context, resources)
    while slots < num_workers:
        now = time.monotonic()
        # Nothing yet means a session that has just begun; something, that the rest is close behind,
        # unless the configuration has promised it.
        settled = promised is None and most and now - last_growth > SETTLE_SECONDS
        if now - start > slots_timeout or settled:
            break
        time.sleep(0.1)
        slots = _slots(context, resources)
        if slots > most:
            most, last_growth = slots, now
    return slots


def _promised_slots(context: SparkContext) -> int | None:
    """How many slots the cluster has at most once all executors are there, where its configuration
    says so."""
    conf = context.getConf()
    master, task_cpus = str(context.master), int(conf.get("spark.task.cpus", "1"))
    cluster = _LOCAL_CLUSTER.fullmatch(master)
    if cluster:
        return int(cluster[1]) * (int(cluster[2]) // task_cpus)
    if master.startswith("spark://"):
        most = conf.get("spark.cores.max")
        return int(most) // task_cpus if most else None
    instances, cores = conf.get("spark.executor.instances"), conf.get("spark.executor.cores")
    return int(instances) * (int(cores) // task_cpus) if instances and cores else None


def _slots(context: SparkContext, resources: Any) -> int:
    """How many tasks with these resources (None: those of the session) the executors that are there
    can run at the same time."""
    scala = context._jsc.sc()
    if resources is None:
        return scala.maxNumConcurrentTasks(scala.resourceProfileManager().defaultResourceProfile())
    return scala.maxNumConcurrentTasks(resources._java_resource_profile)


def _too_few(
    context: SparkContext, num_workers: int, slots: int, local: bool, resources: Any
) -> str:
    cpus = context.getConf().get("spark.task.cpus", "1")
    each = f"spark.task.cpus={cpus}"
    if resources is not None:
        wanted = resources.taskResources.items()
        each = "the resources " + ", ".join(f"{name}={r.amount:g}" for name, r in wanted)
    if local:
        more = f"start the session with master local[{num_workers * int(cpus)}]"
    else:
        more = (
            "give Spark more executors or cores (spark.executor.instances, spark.executor.cores, "
            "spark.cores.max)"
        )
    fewer = f"lower num_workers to {slots}, or " if slots else "no executor has registered; "
    return (
        f"launch: num_workers={num_workers} but {context.master} has {slots} slots for tasks of "
        f"{each}, and all workers must run at the same time; {fewer}{more}"
    )


def _host_of_task(context: SparkContext, stage: int, partition: int) -> str:
    """The host on which a task ran, from the driver's own records; "" where it has none."""
    try:
        tasks = context._jsc.sc().statusStore().taskList(stage, 0, 100_000)
        for position in range(tasks.size()):
            task = tasks.apply(position)
            if task.index() == partition:
                return str(task.host())
    except Exception:
        # The records are Spark's internals: an error without a host beats an error about them.
        return ""
    return ""
