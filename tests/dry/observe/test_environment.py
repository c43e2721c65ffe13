"""What is recorded of a machine, and what is not."""

import getpass
import json
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mindmoe.observe import environment


def test_figures_of_this_machine() -> None:
    found = environment.describe()
    assert found["packages"]["numpy"] == metadata.version("numpy")
    assert found["python"].endswith(".".join(map(str, sys.version_info[:3])))
    assert 1 <= found["cores_usable"] <= found["cores"]
    assert found["memory_gib"] is None or 0.1 < found["memory_gib"] < 2**20
    assert json.loads(json.dumps(found)) == found


def test_nothing_private(monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(environment.describe())
    for private in (socket.gethostname(), str(Path.home()), str(environment.SOURCE_TREE)):
        assert private not in text
    assert getpass.getuser() not in json.loads(text)["system"]


def test_commit_of_a_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment._git_commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout[:12]
    assert environment._git_commit(tmp_path) == head
    (tmp_path / "file").write_text("2")
    assert environment._git_commit(tmp_path) == head + "+"
    monkeypatch.setenv("PATH", "")
    assert environment._git_commit(tmp_path) is None


def test_a_system_without_proc(tmp_path: Path) -> None:
    assert environment._field(tmp_path / "meminfo", "MemTotal") is None
    (tmp_path / "meminfo").write_text("MemFree:  1 kB\nMemTotal:   2048 kB\n")
    assert environment._field(tmp_path / "meminfo", "MemTotal") == "2048 kB"
