"""States whose every byte is known."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from mindmoe.checkpoint import store
from mindmoe.checkpoint.retention import Retention


@pytest.fixture(scope="session")
def saver() -> ModuleType:
    """The module that makes and checks states; it is also the program that gets killed."""
    spec = importlib.util.spec_from_file_location("saver", Path(__file__).with_name("saver.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def save(saver: ModuleType) -> Callable[..., Path]:
    """Saves the known state of a step as a new writer."""

    def run(root: Path, step: int, keep_last: int = 9, content: int | None = None) -> Path:
        state = saver.state(step if content is None else content)
        return store.save(root, step, state, saver.meta(store.claim(root)), Retention(keep_last=keep_last), 0)

    return run
