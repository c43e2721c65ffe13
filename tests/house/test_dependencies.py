"""What is imported is declared, and what is declared is imported."""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PART_OF = {"pydantic-core": "pydantic", "botocore": "boto3"}  # which pins it to one version
# Used without an import: started as a program, loaded as a plugin, or stubs for the type checker.
# Pins rich==10.9.0, which excludes ours, so no extra can hold it: docs/routing-lab.md says how to install it.
APART = {"mindquantum"}
NOT_IMPORTED = {
    "mypy",
    "ruff",
    "pytest-timeout",
    "pytest-xdist",
    "types-psutil",
    "types-pyyaml",
    "mindformers",
    "flask",
    "flask-cors",
}


def _name(requirement: str) -> str:
    """The normalised distribution name of a requirement."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match[0]).lower()


@pytest.fixture(scope="module")
def declared(root: Path) -> dict[str, set[str]]:
    """Distribution names by group: `core` and the extras."""
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    return {group: {_name(requirement) for requirement in requirements} for group, requirements in groups.items()}


def _imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names of the modules imported below a node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
            yield from (str(arg.value).split(".")[0] for arg in node.args if isinstance(arg, ast.Constant))


@pytest.fixture(scope="module")
def owners() -> Mapping[str, list[str]]:
    """The distributions that provide each top-level module."""
    return packages_distributions()


def _distributions(trees: dict[Path, ast.Module], owners: Mapping[str, list[str]]) -> dict[str, Path]:
    """Maps every third-party distribution to a file that imports it."""
    local = {"mindmoe"} | {path.stem for path in trees}
    found = {}
    for path, tree in trees.items():
        for module in _imported(tree):
            if module not in sys.stdlib_module_names and module not in local:
                name = _name(owners.get(module, [module])[0])
                found[PART_OF.get(name, name)] = path
    return found


def test_the_package_imports_what_it_declares(
    modules: dict[Path, ast.Module], declared: dict[str, set[str]], owners: Mapping[str, list[str]]
) -> None:
    allowed = set().union(*declared.values(), APART) - declared["dev"]
    undeclared = {name: str(path) for name, path in _distributions(modules, owners).items() if name not in allowed}
    assert not undeclared, "add these to pyproject.toml"


def test_everything_imported_is_declared_and_the_reverse(
    trees: dict[Path, ast.Module], declared: dict[str, set[str]], owners: Mapping[str, list[str]]
) -> None:
    own = {path: tree for path, tree in trees.items() if path.parts[0] != "examples"}  # which declare theirs
    used, known = _distributions(own, owners), set().union(*declared.values())
    undeclared = {name: str(path) for name, path in used.items() if name not in known | APART}
    assert not undeclared, "add these to an extra of pyproject.toml"
    assert not known - set(used) - NOT_IMPORTED, "remove these from pyproject.toml"
