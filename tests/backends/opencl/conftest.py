"""The tests here need an OpenCL device whose driver works."""

import pytest

import tensorlite as tl
from tensorlite.backends.opencl.runtime import why_none


@pytest.fixture(autouse=True, scope="session")
def a_device_that_works() -> None:
    if len(tl.devices()) == 1:  # the CPU
        pytest.skip(why_none())
