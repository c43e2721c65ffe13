"""What the package defines is used by the package, a script, a kernel's program or an example; tests do not count."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

FOUND_BY_NAME = re.compile(  # by mindmoe/ops/select.py, and by mindmoe/cli/main.py
    r"mindmoe/ops/\w+/\w+\.py:build_\w+|mindmoe/cli/\w+\.py:(EXAMPLE|declare|run)"
)
REFERENCE = re.compile(r"\b(mindmoe[\w.]*):(\w+)")  # an entry point, or a function to import on another process

Name = tuple[str, str]
"""Module and name in it."""


def _module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _defined(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Functions, classes and constants of a module, and their lines."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node.lineno
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield from ((name.id, node.lineno) for name in ast.walk(target) if isinstance(name, ast.Name))


def _used(path: Path, tree: ast.Module) -> Iterator[Name]:
    """What a file reads. A name stands for all that it may be, and a definition does not use itself."""
    meanings: dict[str, set[Name]] = {name: {(_module(path), name)} for name, _ in _defined(tree)}
    modules: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                meanings.setdefault(alias.asname or alias.name, set()).add((node.module, alias.name))
                modules.setdefault(alias.asname or alias.name, set()).add(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                modules.setdefault(alias.asname or alias.name, set()).add(alias.name)
    for statement in tree.body:
        own = (_module(path), getattr(statement, "name", ""))
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                yield from meanings.get(node.id, set()) - {own}
            elif isinstance(node, ast.Attribute):
                yield from ((module, node.attr) for module in modules.get(ast.unparse(node.value), ()))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from REFERENCE.findall(node.value)


def dead(trees: dict[Path, ast.Module], project: str = "") -> list[str]:
    """Definitions of the package that nothing outside tests uses.

    Args:
        trees: Python files.
        project: the text of pyproject.toml, for its entry points.
    """
    used = set(REFERENCE.findall(project))
    for path, tree in trees.items():
        if path.parts[0] != "tests":
            used.update(_used(path, tree))
    return [
        f"{path}:{line} {name}"
        for path, tree in trees.items()
        if path.parts[0] == "mindmoe"
        for name, line in _defined(tree)
        if (_module(path), name) not in used and not FOUND_BY_NAME.fullmatch(f"{path.as_posix()}:{name}")
    ]


def test_what_is_defined_is_used(trees: dict[Path, ast.Module], root: Path) -> None:
    found = dead(trees, (root / "pyproject.toml").read_text())
    assert not found, "remove these, or move what only tests call into the tests:\n" + "\n".join(found)


def test_the_rule_finds_what_is_dead() -> None:
    sources = {
        "mindmoe/a.py": "LIMIT = 3\nUNREAD = 4\ndef alone(n): return alone(n - 1)\ndef called(): return LIMIT\n",
        "mindmoe/b.py": "from mindmoe.a import called\n"
        "def main():\n    from mindmoe.c import main\n    called()\n    main()\n",
        "mindmoe/c.py": "import mindmoe.d as d\ndef main(): d.late()\n",
        "mindmoe/d.py": "def late(): pass\ndef tested(): pass\ndef entry(): pass\n",
        "tests/test_d.py": "from mindmoe.d import tested\ntested()\n",
    }
    trees = {Path(path): ast.parse(text) for path, text in sources.items()}
    assert [line.split()[1] for line in dead(trees, 'run = "mindmoe.d:entry"\nmindmoe.b:main')] == [
        "UNREAD",
        "alone",
        "tested",
    ]
