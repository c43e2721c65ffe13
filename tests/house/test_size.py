"""Files and functions that fit in a reader's head."""

import ast
from collections.abc import Iterator
from pathlib import Path

MAX_FILE = 500  # [lines]
MAX_FUNCTION = 80  # [lines]
SOURCES = {".py", ".sh", ".h", ".hpp", ".cc", ".cpp"}

# What is too large today: "path" or "path::function" -> (allowed lines, day it was granted). It may only shrink:
# an entry that has become smaller than its figure, or has disappeared, fails until the figure follows.
EXCEPTIONS: dict[str, tuple[int, str]] = {}


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _oversized(texts: dict[Path, str], trees: dict[Path, ast.Module]) -> dict[str, int]:
    """Maps every file and function above its limit to its number of lines."""
    large = {}
    for path, text in texts.items():
        if path.suffix in SOURCES and (lines := text.count("\n")) > MAX_FILE:
            large[str(path)] = lines
    for path, tree in trees.items():
        for function in _functions(tree):
            if (lines := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION:
                large[f"{path}::{function.name}"] = lines
    return large


def test_files_and_functions_are_small(texts: dict[Path, str], trees: dict[Path, ast.Module]) -> None:
    allowed = {name: lines for name, (lines, _) in EXCEPTIONS.items()}
    found = _oversized(texts, trees)
    assert found == allowed, f"limits: {MAX_FILE} lines a file, {MAX_FUNCTION} a function"


def test_the_size_rule_catches_a_long_function_and_file() -> None:
    path = Path("a.py")
    body = "def f():\n" + "    x = 1\n" * MAX_FUNCTION
    assert _oversized({path: body}, {path: ast.parse(body)}) == {"a.py::f": MAX_FUNCTION + 1}
    assert _oversized({path: "x = 1\n" * (MAX_FILE + 1)}, {}) == {"a.py": MAX_FILE + 1}
