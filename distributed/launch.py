"""`launch`: run a function once in each task of a Spark barrier stage, and bring back its results
or the one error that counts."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from . import cluster
from .dataframes import dealt_out
from .errors import DistributedError, Failure, WorkerError, first_cause
from .life import Options, check_call

LEAST_SILENCE = 3.0  # seconds


def launch(
    main: Callable[..., Any],
    args: Sequence[Any] = (),
    *,
    num_workers: int,
    data: Any = None,
    spark: Any = None,
    device: str = "auto",
    timeout: float = 300.0,
    connect_timeout: float = 60.0,
    heartbeat_timeout: float = 6.0,
    slots_timeout: float = 60.0,
    port_range: tuple[int, int] | None = None,
    bind: str | None = None,
    encrypt: bool | None = None,
    description: str | None = None,
    pool: str | None = None,
    resources: Any = None,
) -> list[Any]:
    """Run `main(worker, *args)` in `num_workers` workers at the same time, each a task of one Spark
    barrier stage.

    The workers are connected in a ring when `main` starts, so it can call `all_reduce` and the
    other collectives. NumPy's BLAS uses as many threads in each as `spark.task.cpus` allows.

    Args:
        main: a function; it and `args` are pickled, so it may be a closure. `worker` is a `Worker`.
        num_workers: how many; the cluster must have as many free slots.
        data: a Spark DataFrame. `main` is then called as `main(worker, batches, *args)`, where
            `batches` yields the worker's rows as `pyarrow.RecordBatch`es, once; all must be read.
            Rows are dealt to the workers and ordered by a hash of their content (in the last
            column, `dist.dataframes.KEY`), so that the same rows come again after a failure.
        spark: a SparkSession or SparkContext. None takes the active one; without one it takes the
            master that spark-submit was given, and in a plain Python script starts a session on
            `local[num_workers]`, which stays open for later calls.
        device: where the workers' tensors are made unless told otherwise. "auto" is the accelerator
            that Spark's scheduler gives a task (`spark.task.resource.<name>.amount`), whose address
            is the number or the name of an OpenCL device; and the CPU of a task that has none.
        timeout: seconds without any progress after which a collective gives up.
        connect_timeout: seconds within which the workers must have connected.
        heartbeat_timeout: seconds without a sign of life after which a worker counts as lost. A
            thread of its own gives one each second, so a worker may compute, or wait for its input,
            for as long as it likes.
        slots_timeout: seconds to wait at most for the first executors of a new session. Once some
            are there and a few seconds bring no more, it is decided whether they suffice.
        port_range: first and last port on which workers may listen; None leaves the choice to the
            system.
        bind: the address on which workers listen, where it is not the one that Spark reports for
            the task.
        encrypt: whether all connections among the workers speak TLS 1.3, with keys that are made
            for this run. None does as Spark does: yes if its network encryption, its SSL or its
            encryption of files is on. It needs the package cryptography on the workers (and on the
            driver, where `Trainer` shows progress). Tasks of
            one host may still share memory.
        description: what Spark's pages say of the job; None says what runs with how many workers.
            The job's group is the one that the caller has set, so that cancelling it ends the
            workers; Ctrl-C does, too.
        pool: of Spark's fair scheduler.
        resources: a `pyspark.resource.ResourceProfile` of what each worker's task needs, where that
            is not what the session's configuration says of all tasks.

    Returns:
        [result of rank 0, result of rank 1, ...]

    Raises:
        WorkerError: a worker raised an exception or died; it names rank, host and partition and
            holds the worker's traceback. All other workers have been stopped.
        SlotsError: the cluster cannot run so many tasks at once.
        DistributedError: Spark cannot be started, or is set up in a way that barrier stages do not
            work with.
        TypeError, ValueError: an argument makes no sense.
    """
    check_call("launch", main, args, num_workers, timeout, port_range)
    if not isinstance(heartbeat_timeout, int | float) or not heartbeat_timeout >= LEAST_SILENCE:
        raise ValueError(
            f"launch: heartbeat_timeout must be at least {LEAST_SILENCE:g} seconds, since there is "
            f"a sign of life each second, got {heartbeat_timeout!r}"
        )
    call = _pickled(main, args)
    if data is not None and spark is None:
        spark = getattr(data, "sparkSession", None)
    context = cluster.spark_context(spark, num_workers)
    if resources is not None:
        resources = cluster.known_to_spark(context, resources)
    cluster.check(context, num_workers, slots_timeout, resources)
    from .task import BarrierTask  # which needs PySpark

    options = Options(
        secret=secrets.token_bytes(32),
        device=device,
        timeout=timeout,
        connect_timeout=connect_timeout,
        heartbeat_timeout=heartbeat_timeout,
        bind=bind,
        port_range=port_range,
        encrypt=cluster.must_encrypt(context, encrypt),
    )
    name = getattr(main, "__qualname__", type(main).__name__)
    about = description or f"tensorlite: {name} on {num_workers} workers"
    with cluster.job(context, about, pool):
        task = BarrierTask(call, options, data is not None)
        return _run(context, task, data, num_workers, resources)


def _pickled(main: Callable[..., Any], args: Sequence[Any]) -> bytes:
    try:
        from pyspark import cloudpickle
    except ImportError as error:
        raise cluster.without_pyspark(error) from None
    try:
        return cloudpickle.dumps((main, tuple(args)))
    except Exception as error:  # pickle raises whatever the objects' own methods raise
        raise TypeError(
            f"launch: main or args cannot be sent to the workers: {type(error).__name__}: {error}; "
            "open files, sockets, locks and Spark objects must be made inside main"
        ) from error


def _run(context: Any, task: Any, data: Any, num_workers: int, resources: Any) -> list[Any]:
    from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
    from pyspark import cloudpickle

    from .task import failure_in

    try:
        with cluster.own_python(context):
            reports = _reports(context, task, data, num_workers, resources)
    except Py4JJavaError as error:
        text = str(error.java_exception)
        raise WorkerError(failure_in(text) or cluster.failed_task(context, text)) from None
    failures: list[Failure] = [report.failure for report in reports if report.failure is not None]
    if failures:
        raise WorkerError(first_cause(failures))
    if len(reports) != num_workers:
        raise DistributedError(f"launch: {len(reports)} of {num_workers} workers reported")
    return [cloudpickle.loads(report.result) for report in sorted(reports, key=lambda r: r.rank)]


def _reports(context: Any, task: Any, data: Any, num_workers: int, resources: Any) -> list[Any]:
    from pyspark import cloudpickle

    from .task import ARROW_SCHEMA, in_arrow

    if data is None:
        ranks = context.parallelize(range(num_workers), num_workers)
        if resources is not None:
            ranks = ranks.withResources(resources)
        return ranks.barrier().mapPartitions(task).collect()
    dealt = dealt_out(data, num_workers)
    # As an RDD, whose errors still hold the text that the task has failed with.
    reported = dealt.mapInArrow(in_arrow(task), ARROW_SCHEMA, barrier=True, profile=resources).rdd
    return [cloudpickle.loads(bytes(row.report)) for row in reported.collect()]
