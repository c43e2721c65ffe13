"""What every layer of tests shares."""

import os
import shutil
import subprocess
import sys
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


@pytest.fixture(scope="session")
def router_package(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed examples/router-min-p."""
    source, target = tmp_path_factory.mktemp("source") / "router-min-p", tmp_path_factory.mktemp("installed")
    shutil.copytree(root / "examples" / "router-min-p", source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, timeout=300)
    return target


@pytest.fixture
def ram() -> Iterator[Path]:
    """An empty folder, in memory where the system has such a place."""
    folder = Path(tempfile.mkdtemp(dir=RAM if RAM.is_dir() else None))
    yield folder
    shutil.rmtree(folder)
