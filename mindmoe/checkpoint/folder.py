"""The names inside a checkpoint folder."""

import os
import re
import uuid
from pathlib import Path

from mindmoe.checkpoint import disk
from mindmoe.checkpoint.manifest import CorruptCheckpoint, Manifest, parse

MANIFEST = "MANIFEST.json"
OWNER = "WRITER"
DELETED = ".del-"
QUARANTINE = "quarantine-"
STEP = re.compile(r"step-(\d{8,})(?:\.(\d+))?")
_MAX_MANIFEST = 2**30  # [bytes]


def step_name(step: int) -> str:
    """The folder name of a step."""
    return f"step-{step:08d}"


def staging_path(root: Path, step: int, generation: str, attempt: str = "") -> Path:
    """Where the shards of a step are written before it is published; the same on every rank.

    Args:
        root: the checkpoint folder.
        step: completed optimizer steps.
        generation: of the writer.
        attempt: tells apart the saves of one writer that may overlap.
    """
    return root / f"{disk.TEMPORARY}{step_name(step)}-{generation}{attempt and '-' + attempt}"


def shard_name(rank: int) -> str:
    """The file name of a rank's shard."""
    return f"shard-{rank:05d}.safetensors"


def list_steps(root: Path) -> list[Path]:
    """Published step folders, newest first, by name only: none is opened."""
    try:
        names = os.listdir(root)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [(int(match[1]), int(match[2] or 0), name) for name in names if (match := STEP.fullmatch(name))]
    return [root / name for _, _, name in sorted(found, reverse=True)]


def step_of(path: Path) -> int:
    """The step of a folder that `list_steps` returned."""
    return parsed(path)[0]


def parsed(path: Path) -> tuple[int, int]:
    """(step, revision) of a published folder."""
    match = STEP.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def rename_away(root: Path, paths: list[Path]) -> list[Path]:
    """Takes published folders out of sight durably, so that a half-deleted one can never look valid."""
    hidden = [root / f"{DELETED}{path.name}-{uuid.uuid4().hex}" for path in paths]
    for path, away in zip(paths, hidden, strict=True):
        os.rename(path, away)
    disk.sync_dir(root)
    return hidden


def read_manifest(path: Path) -> Manifest:
    """The verified manifest of a step's folder.

    Raises:
        CorruptCheckpoint: altered.
        CheckpointError: another format version wrote it.
        OSError: it cannot be read.
    """
    file = path / MANIFEST
    if file.stat().st_size > _MAX_MANIFEST:
        raise CorruptCheckpoint(f"{file} has more than {_MAX_MANIFEST} bytes")
    return parse(file.read_bytes(), file)


def inode_of(path: Path) -> int:
    """The identity of a folder; 0 if it has gone."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0
