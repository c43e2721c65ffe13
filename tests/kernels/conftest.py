"""Fixtures: one compiled driver per kernel group and session."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from host_model import Driver, build  # noqa: E402


@pytest.fixture(scope="session")
def driver() -> Callable[[str], Driver]:
    """driver("gating") is the compiled driver; MINDMOE_KERNEL_LIBRARY replaces it (mutation job)."""
    if shutil.which("g++") is None:
        pytest.skip("the host model needs g++")
    replacement = os.environ.get("MINDMOE_KERNEL_LIBRARY")
    loaded: dict[str, Driver] = {}
    broken: dict[str, RuntimeError] = {}  # compiled once, reported by every test that needs it

    def load(name: str) -> Driver:
        if name in broken:
            raise broken[name]
        if name not in loaded:
            try:
                loaded[name] = Driver(Path(replacement) if replacement else build(name))
            except RuntimeError as error:
                broken[name] = error
                raise
        return loaded[name]

    return load
