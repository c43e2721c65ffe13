"""One MindSpore process for all wet tests: on the CPU, unless MINDMOE_TEST_DEVICE names another device."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def device() -> None:
    """Selects the device; without launch_blocking the error of one op surfaces at a later op."""
    import mindspore as ms

    ms.set_device(os.environ.get("MINDMOE_TEST_DEVICE", "CPU"))
    ms.runtime.launch_blocking()
