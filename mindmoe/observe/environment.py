"""The machine and the software of a run, recorded beside it so that its figures can be understood later.

MindSpore is looked up, not imported. User names, host names and paths are left out: run folders get shared.
"""

import os
import platform
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from mindmoe.host.env import usable_cores

PACKAGES = (
    "mindspore",
    "numpy",
    "pydantic",
    "safetensors",
    "xxhash",
    "sentencepiece",
    "tokenizers",
    "tiktoken",
    "transformers",
    "torch",
    "mindformers",
    "tensorboardX",
)
_PROBE = 64 * 2**20  # [bytes] written to measure a disk
SOURCE_TREE = Path(__file__).resolve().parents[2]


def describe() -> dict[str, Any]:
    """Versions, processor, memory and source revision; what cannot be found out is null."""
    return {
        "mindmoe": version("mindmoe") or "not installed, run from a source tree",
        "git_commit": _git_commit(SOURCE_TREE),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores_usable": usable_cores(),
        "cores": os.cpu_count(),
        "memory_gib": None if (total := memory("MemTotal")) is None else round(total / 2**30, 1),
        "packages": {name: found for name in PACKAGES if (found := version(name)) is not None},
    }


def version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str | None:
    """The marketing name of the processor, or its architecture where the system tells no name."""
    return _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or None


def memory(field: str) -> int | None:
    """A line of /proc/meminfo [bytes], such as MemTotal or MemAvailable; None where there is none."""
    text = _field(Path("/proc/meminfo"), field)
    return int(text.split()[0]) * 1024 if text else None


def _field(file: Path, name: str) -> str | None:
    """The value of the first `name : value` line of a file."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), None)


def _git_commit(folder: Path) -> str | None:
    """The commit of a source tree, with `+` if files differ from it; None outside of a checkout."""
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def disk_rate(folder: Path) -> float:
    """Durable write speed of a folder's disk [bytes/s].

    Raises:
        OSError: nothing can be written there.
    """
    data = os.urandom(2**20)
    with tempfile.TemporaryFile(dir=folder) as file:
        began = perf_counter()
        for _ in range(_PROBE // len(data)):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return _PROBE / (perf_counter() - began)
