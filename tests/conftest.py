"""What every layer of tests shares."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("mindmoe", deadline=None)  # how long an example takes is the machine's
settings.load_profile("mindmoe")

os.environ.setdefault("GLOG_v", "3")  # MindSpore's own log: errors only
RAM = Path("/dev/shm")  # fsync costs nothing there


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def ram() -> Iterator[Path]:
    """An empty folder, in memory where the system has such a place."""
    folder = Path(tempfile.mkdtemp(dir=RAM if RAM.is_dir() else None))
    yield folder
    shutil.rmtree(folder)
