"""What every layer of tests shares."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("mindmoe", deadline=None)  # how long an example takes is the machine's
settings.load_profile("mindmoe")

os.environ.setdefault("GLOG_v", "3")  # MindSpore's own log: errors only


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return Path(__file__).resolve().parents[1]
