"""Real text without a download: the standard library that every Python installation carries.

Its modules (source code with docstrings), and the prose that is in no module file: the chapters of the language
reference behind `help()`, and the docstrings of the modules written in C. Left out are test suites (some
files are broken on purpose), the character tables in `encodings`, and whatever is not part of the library.
"""

import importlib
import inspect
import os
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

from mindmoe.data.records import MAX_TEXT, Input, Record, Rejected
from mindmoe.host.errors import UserError
from mindmoe.host.files import FileError, read_bytes, shown

_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings"}
_TOPICS = "pydoc_data/topics.py"


def stdlib_inputs() -> list[Input]:
    """The inputs of the source `python-stdlib`, sorted by name, the prose last.

    Raises:
        UserError: this Python carries no library source.
    """
    root = Path(sysconfig.get_path("stdlib"))
    version = platform.python_version()
    inputs = []
    for name in sorted(_modules(root)):
        path = root / name
        # The version as the stamp: times of change differ between installations of the same text.
        inputs.append(Input(name, path.stat().st_size, version, partial(_read_module, path)))
    if not inputs:
        raise UserError(f"this Python has no library source in {root}", "name a folder of text as the source")
    inputs.append(Input("language-reference", 0, version, partial(_read_documents, "language-reference", _topics)))
    inputs.append(Input("builtin-docstrings", 0, version, partial(_read_documents, "builtin-docstrings", _docstrings)))
    return inputs


def _modules(root: Path) -> Iterator[str]:
    """The paths of the module files, relative to the library."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        for file in files:
            name = Path(folder, file).relative_to(root).as_posix()
            if name.endswith(".py") and name != _TOPICS and Path(folder, file).is_file():
                yield name


def _read_module(path: Path) -> Iterator[Record | Rejected]:
    try:
        content = read_bytes(path, MAX_TEXT)
    except FileError as error:
        yield Rejected(shown(str(path), 4096), 0, f"unreadable: {error}")
        return
    yield Record(str(path), 0, content, is_json=False, position=len(content))


def _read_documents(name: str, documents: Callable[[], Iterator[str]]) -> Iterator[Record | Rejected]:
    for number, text in enumerate(documents(), start=1):
        yield Record(name, number, text.encode("utf-8"), is_json=False, position=0)


def _topics() -> Iterator[str]:
    """The chapters of the language reference, by name."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions leave it out
        return
    for name in sorted(topics):
        yield topics[name]


def _docstrings() -> Iterator[str]:
    """For each module compiled into the interpreter, the docstrings of everything public in it."""
    for name in sorted(sys.builtin_module_names):
        module = importlib.import_module(name)
        entries = [f"{name}\n\n{inspect.getdoc(module)}"] if module.__doc__ else []
        entries += _entries(module, name)
        if entries:
            yield "\n\n\n".join(entries) + "\n"


def _entries(owner: ModuleType | type, path: str) -> list[str]:
    """`path.name` and docstring of the public members of a module, and of its classes one level down."""
    entries = []
    for name, member in sorted(vars(owner).items()):
        # A hook of `sys` may have been replaced, and the text would differ from process to process.
        if name.startswith("_") or name.endswith("hook") or isinstance(member, ModuleType):
            continue
        documented = callable(member) or inspect.isdatadescriptor(member) or inspect.ismethoddescriptor(member)
        if documented and isinstance(text := getattr(member, "__doc__", None), str) and text.strip():
            entries.append(f"{path}.{name}\n\n{inspect.cleandoc(text)}")
        if isinstance(owner, ModuleType) and inspect.isclass(member):
            entries += _entries(member, f"{path}.{name}")
    return entries
