"""One name, one class: a reader who searches for a class finds that class."""

import ast
from pathlib import Path

# Backends of ops: the class of an op has the name of the op in each of them.
BACKENDS = Path("mindmoe/ops")


def _twice(modules: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """The files of every class name that is given to several classes of modules, names with an underscore left out."""
    homes: dict[str, set[str]] = {}
    for path, tree in modules.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                home = BACKENDS if BACKENDS in path.parents else path
                homes.setdefault(node.name, set()).add(home.as_posix())
    return {name: found for name, found in homes.items() if len(found) > 1}


def test_no_two_classes_have_one_name(modules: dict[Path, ast.Module]) -> None:
    assert not _twice(modules), "name what each of them is"


def test_the_rule_catches_a_second_class_and_lets_backends_be() -> None:
    tree = ast.parse("class Group: ...\nclass _Group: ...\n")
    assert _twice({Path("mindmoe/a.py"): tree, Path("mindmoe/b/c.py"): tree}) == {
        "Group": {"mindmoe/a.py", "mindmoe/b/c.py"}
    }
    assert not _twice({Path("mindmoe/ops/cpu/a.py"): tree, Path("mindmoe/ops/ascend/a.py"): tree})
    assert _twice({Path("mindmoe/ops/cpu/a.py"): tree, Path("mindmoe/optim/a.py"): tree})
