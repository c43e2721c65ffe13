"""One MindSpore process on the CPU for all wet tests."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def device() -> None:
    """Selects the CPU; without launch_blocking the error of one op surfaces at a later op."""
    import mindspore as ms

    ms.set_device("CPU")
    ms.runtime.launch_blocking()
