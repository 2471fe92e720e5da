"""What all tests share: how hypothesis runs, and where the tests that start Spark run."""

import os

# Test processes run side by side; a BLAS that takes every core in each of them makes all of them
# slow. This must happen before NumPy is first imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

import pytest
from hypothesis import settings

# No example has a deadline, because no test may depend on time. In continuous integration the
# examples are fixed, so that a failure there can be repeated anywhere.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep all Spark tests in one process: two Spark masters at once need more than two cores."""
    for item in items:
        if item.get_closest_marker("spark"):
            item.add_marker(pytest.mark.xdist_group("spark"))
