"""States whose every byte is known, and folders in memory so that fsync costs nothing."""

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from mindmoe.checkpoint import store
from mindmoe.checkpoint.retention import Retention

RAM = Path("/dev/shm")


@pytest.fixture(scope="session")
def saver() -> ModuleType:
    """The module that makes and checks states; it is also the program that gets killed."""
    spec = importlib.util.spec_from_file_location("saver", Path(__file__).with_name("saver.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ram() -> Iterator[Path]:
    """An empty folder, in memory where the system has such a place."""
    folder = Path(tempfile.mkdtemp(dir=RAM if RAM.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def save(saver: ModuleType) -> Callable[..., Path]:
    """Saves the known state of a step as a new writer."""

    def run(root: Path, step: int, keep_last: int = 9, content: int | None = None) -> Path:
        state = saver.state(step if content is None else content)
        return store.save(root, step, state, saver.meta(store.claim(root)), Retention(keep_last=keep_last), 0)

    return run
