"""The core stands without the lab."""

import subprocess
import sys
from pathlib import Path

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "mindmoe.lab" or name.startswith("mindmoe.lab."):
            raise ImportError(f"{name} is hidden")
sys.meta_path.insert(0, Hidden())
"""


def test_the_core_works_where_the_lab_is_hidden(root: Path) -> None:
    """Its own tests of routers, models and steps, in a process that cannot import the lab."""
    chosen = ["tests/dry/moe", "tests/dry/models", "tests/wet/moe/test_router.py", "tests/wet/moe/test_ties.py"]
    chosen += ["tests/wet/moe/test_balance.py", "tests/wet/moe/test_contract.py", "tests/wet/inference"]
    chosen += ["tests/wet/train/test_step.py"]
    options = ["-q", "-x", "-k", "not dynamic", "-p", "no:cacheprovider"]
    code = f"{HIDE}\nimport pytest\nsys.exit(pytest.main({options + chosen!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=1700)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
