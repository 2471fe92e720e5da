"""Data-parallel training on Spark, by tensorlite's `Trainer` and by PySpark's `TorchDistributor`.

Both start from the same weights and take the same rows at each step. `build_training` in a file
`in_<framework>` starts a local Spark and returns a function that trains once and returns
`{"images_per_second": ..., "losses": [...]}`, for `benchmarks/spark_tasks.py`.
"""

MODEL = "tutorial"  # of benchmarks/models


def master(tasks: int) -> dict[str, bool | float | int | str | None]:
    """The settings of a Spark that runs so many tasks at a time on this machine."""
    return {
        "spark.master": f"local[{tasks}]",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
    }
