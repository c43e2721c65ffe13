"""The shell scripts parse and can be started."""

import os
import subprocess
from pathlib import Path


def _scripts(root: Path, tracked: list[Path]) -> list[Path]:
    return [root / path for path in tracked if path.suffix == ".sh" or path == Path(".ci/run")]


def test_scripts_parse(root: Path, tracked: list[Path]) -> None:
    scripts = _scripts(root, tracked)
    assert scripts
    for script in scripts:
        done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_scripts_are_executable_and_stop_at_the_first_error(root: Path, tracked: list[Path]) -> None:
    for script in _scripts(root, tracked):
        assert os.access(script, os.X_OK), f"chmod +x {script}"
        assert "set -euo pipefail" in script.read_text().splitlines()[:12], f"{script} goes on after an error"
