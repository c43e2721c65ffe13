"""What every layer of tests shares."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("GLOG_v", "3")  # MindSpore's own log: errors only


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return Path(__file__).resolve().parents[1]
