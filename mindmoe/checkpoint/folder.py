"""The names inside a checkpoint folder."""

import errno
import os
import re
import uuid
from pathlib import Path

from mindmoe.checkpoint import disk
from mindmoe.checkpoint.manifest import CorruptCheckpoint, Manifest, parse
from mindmoe.host.errors import CheckpointError
from mindmoe.host.files import FileError, FileMissing, read_bytes

MANIFEST = "MANIFEST.json"
OWNER = "WRITER"
DELETED = ".del-"
QUARANTINE = "quarantine-"
STEP = re.compile(r"step-([0-9]{8,15})(?:\.([0-9]{1,15}))?")
_MAX_MANIFEST = 2**28  # [bytes]; 100,000 chunks take about 30 MB


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
    """Published step folders, or links to some, newest first, by name only: none is opened.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    try:
        with disk.reported(f"list the checkpoints in {root}"):
            names = os.listdir(root)
    except CheckpointError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            return []
        raise
    # Numbers, not names: more than 8 digits sort behind, and a revision counts after its step.
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
    # A name of its own for each, since one that is left by a crash must not be in the way of another.
    hidden = [root / f"{DELETED}{path.name}-{uuid.uuid4().hex}" for path in paths]
    for path, away in zip(paths, hidden, strict=True):
        os.rename(path, away)
    disk.sync_dir(root)
    return hidden


def read_manifest(path: Path) -> Manifest:
    """The verified manifest of a step's folder.

    Raises:
        CorruptCheckpoint: missing, altered, or of a form that no writer gives it.
        CheckpointError: another format version wrote it.
        OSError: it cannot be read.
    """
    file = path / MANIFEST
    try:
        raw = read_bytes(file, _MAX_MANIFEST, follow=False)
    except FileMissing:
        raise CorruptCheckpoint(f"{path} is incomplete: {MANIFEST} is missing") from None
    except FileError as error:
        # A disk that refuses is no damage, and must not be taken for it.
        if isinstance(error.__cause__, OSError) and not is_misplaced(error.__cause__):
            raise error.__cause__ from None
        raise CorruptCheckpoint(error.message) from None
    return parse(raw, file)


def is_misplaced(error: OSError) -> bool:
    """Whether the system found something else in the place of a file: a link, or a path through no folder."""
    return error.errno in (errno.ELOOP, errno.ENOTDIR)


def inode_of(path: Path) -> int:
    """The identity of a folder, or of a link to one; 0 if it has gone."""
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return 0
