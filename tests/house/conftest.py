"""The sources under the house rules, read once."""

import ast
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tracked(root: Path) -> list[Path]:
    """Every file that is in the repository or about to be, relative to its root."""
    command = ["git", "-c", "safe.directory=*", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    listed = subprocess.run([*command, "--exclude-standard"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return sorted({Path(name) for name in listed.stdout.split("\0") if name and (root / name).is_file()})


@pytest.fixture(scope="session")
def texts(root: Path, tracked: list[Path]) -> dict[Path, str]:
    """The contents of every tracked text file; a file with a NUL byte is binary and left out."""
    contents = {path: (root / path).read_bytes() for path in tracked}
    return {path: raw.decode() for path, raw in contents.items() if b"\0" not in raw}


@pytest.fixture(scope="session")
def trees(texts: dict[Path, str]) -> dict[Path, ast.Module]:
    """Every Python file, parsed."""
    return {path: ast.parse(text, str(path)) for path, text in texts.items() if path.suffix == ".py"}


@pytest.fixture(scope="session")
def modules(trees: dict[Path, ast.Module]) -> dict[Path, ast.Module]:
    """The modules of the package, parsed."""
    return {path: tree for path, tree in trees.items() if path.parts[0] == "mindmoe"}
