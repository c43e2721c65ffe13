"""The checkpoint folder of a run: publish a step so that it cannot be lost, find the newest valid one.

The protocol of a save, each step durable before the next:
  1. shards are written into `.tmp-step-00000020-<generation>` and fsynced;
  2. the manifest is written last;
  3. the folder is renamed to `step-00000020`; only then is the step acknowledged;
  4. older steps are renamed away, then deleted.
Whatever moment a kill, a full disk or a power loss chooses, the last acknowledged step is found again. A step
that is saved again is published beside the old one as `step-00000020.1` before the old one goes.

One process writes at a time: `claim` makes a new generation the owner, and a writer that is no longer the
owner cannot publish. With several ranks, one claims, begins and commits; every rank calls `write_shard`.
"""

import errno
import itertools
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindmoe.checkpoint import chunks as shards
from mindmoe.checkpoint import disk
from mindmoe.checkpoint.chunks import Chunk
from mindmoe.checkpoint.manifest import (
    CorruptCheckpoint,
    Manifest,
    Meta,
    ShardRecord,
    check_tiling,
    parse,
)
from mindmoe.errors import CheckpointError

MANIFEST = "MANIFEST.json"
_OWNER = "WRITER"
_DELETED = ".del-"
_QUARANTINE = "quarantine-"
_STEP = re.compile(r"step-(\d{8,})(?:\.(\d+))?")
_MAX_MANIFEST = 2**30  # [bytes]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """A step that was found corrupt: where it lies now and why."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The newest valid checkpoint, its verified tensors (read-only), and the corrupt ones passed over."""

    path: Path
    manifest: Manifest
    tensors: dict[str, np.ndarray]
    quarantined: tuple[Quarantined, ...]


def step_name(step: int) -> str:
    """The folder name of a step."""
    return f"step-{step:08d}"


def staging_path(root: Path, step: int, generation: str) -> Path:
    """Where the shards of a step are written before it is published; the same on every rank."""
    return root / f"{disk.TEMPORARY}{step_name(step)}-{generation}"


def list_steps(root: Path) -> list[Path]:
    """Published step folders, newest first, by name only: none is opened."""
    try:
        names = os.listdir(root)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [(int(match[1]), int(match[2] or 0), name) for name in names if (match := _STEP.fullmatch(name))]
    return [root / name for _, _, name in sorted(found, reverse=True)]


def claim(root: Path) -> str:
    """Makes the caller the only writer of a folder, and returns its generation.

    Creates the folder if missing and removes what earlier writers left unfinished. A writer that claimed
    earlier and is still alive can no longer publish.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    generation = uuid.uuid4().hex
    with disk.reported(f"open the checkpoint folder {root}"):
        disk.make_dirs(root)
        disk.replace_file(root / _OWNER, f"{generation}\n".encode())
        clean_staging(root)
    return generation


def _require_owner(root: Path, generation: str) -> None:
    try:
        owner = (root / _OWNER).read_text().strip()
    except FileNotFoundError:
        owner = ""
    if owner != generation:
        raise CheckpointError(
            f"{root} is claimed by {'writer ' + owner if owner else 'no writer'}, not by this one",
            "if two runs share the folder, stop one or give it another name",
        )


def begin(root: Path, step: int, generation: str) -> Path:
    """An empty staging folder for a step.

    Raises:
        CheckpointError: the folder cannot be written, or `generation` is not the one that claimed it last.
    """
    with disk.reported(f"begin checkpoint {step} in {root}"):
        _require_owner(root, generation)
        staging = staging_path(root, step, generation)
        disk.remove(staging)
        os.mkdir(staging, 0o700)
    return staging


def write_shard(staging: Path, rank: int, tensors: Mapping[str, np.ndarray | Chunk]) -> ShardRecord:
    """Writes the chunks of one rank durably and returns the record that goes into the manifest.

    Raises:
        CheckpointError: the disk refused; the message says why.
        ValueError: a dtype that cannot be stored.
    """
    with disk.reported(f"write the checkpoint in {staging.parent}"):
        return shards.write_shard(
            staging / f"shard-{rank:05d}.safetensors", {name: shards.as_chunk(value) for name, value in tensors.items()}
        )


def commit(root: Path, staging: Path, manifest: Manifest) -> Path:
    """Publishes a staged step; when this returns, it survives a power loss.

    Args:
        manifest: holds the shard records of all ranks, whose files are already in `staging`.

    Returns:
        the published folder.

    Raises:
        CheckpointError: a shard is missing, chunks do not cover their tensor, another writer has claimed the
            folder, or the disk refused. What was published before is untouched.
    """
    check_tiling(manifest)
    with disk.reported(f"publish checkpoint {manifest.step} in {root}"):
        for shard in manifest.shards:
            if (staging / shard.file).stat().st_size != shard.size:
                raise CheckpointError(
                    f"{staging / shard.file} does not have the {shard.size} bytes its rank wrote",
                    "check that all ranks write to one shared folder",
                )
        disk.write_new(staging / MANIFEST, [manifest.to_bytes()])
        disk.sync_dir(staging)
        _require_owner(root, manifest.meta.generation)
        return _publish(root, staging, manifest.step)


def _publish(root: Path, staging: Path, step: int) -> Path:
    """Renames a complete staging folder to the name of its step, replacing an earlier save of that step."""
    final = root / step_name(step)
    earlier = [path for path in list_steps(root) if _parsed(path)[0] == step]
    if not earlier:
        os.rename(staging, final)
        disk.sync_dir(root)
        return final
    beside = root / f"{final.name}.{_parsed(earlier[0])[1] + 1}"
    os.rename(staging, beside)
    disk.sync_dir(root)  # from here on the new one is safe, so the old one may go
    removed = _rename_away(root, earlier)
    os.rename(beside, final)  # if the power fails before this is durable, the step is found under the other name
    for path in removed:
        disk.remove(path)
    return final


def step_of(path: Path) -> int:
    """The step of a folder that `list_steps` returned."""
    return _parsed(path)[0]


def _parsed(path: Path) -> tuple[int, int]:
    """(step, revision) of a published folder."""
    match = _STEP.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _rename_away(root: Path, paths: list[Path]) -> list[Path]:
    """Takes published folders out of sight durably, so that a half-deleted one can never look valid."""
    hidden = [root / f"{_DELETED}{path.name}-{uuid.uuid4().hex}" for path in paths]
    for path, away in zip(paths, hidden, strict=True):
        os.rename(path, away)
    disk.sync_dir(root)
    return hidden


def save(
    root: Path, step: int, tensors: Mapping[str, np.ndarray | Chunk], meta: Meta, keep_last: int, min_free: int
) -> Path:
    """Saves whole tensors from one process: begin, write, commit, prune.

    Args:
        root: the checkpoint folder, claimed by `meta.generation`.
        step: completed optimizer steps.
        tensors: everything that training needs to go on, keyed by name.
        keep_last: how many of the newest complete steps survive.
        min_free: space that must remain free on the disk afterwards [bytes].

    Returns:
        the published folder; its step is then durable.

    Raises:
        CheckpointError: it was not saved; earlier steps are untouched and a later save may succeed.
    """
    _require_space(root, sum(shards.as_chunk(value).array.nbytes for value in tensors.values()), min_free)
    staging = begin(root, step, meta.generation)
    try:
        record = write_shard(staging, 0, tensors)
        path = commit(root, staging, Manifest(step=step, meta=meta, shards=(record,)))
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    try:
        prune(root, keep_last, protect=path)
    except CheckpointError as error:  # the new step is durable; old ones merely occupy space
        _log.warning("%s", error)
    return path


def _require_space(root: Path, needed: int, min_free: int) -> None:
    with disk.reported(f"save into {root}"):
        free = shutil.disk_usage(root).free
    if free - needed < min_free:
        raise CheckpointError(
            f"a checkpoint of {needed / 2**20:.1f} MiB would leave less than checkpoint.min_free="
            f"{min_free / 2**20:.1f} MiB on the disk of {root}, which has {free / 2**20:.1f} MiB free",
            "free space, lower checkpoint.keep_last or checkpoint.min_free, or move output_dir",
        )


def prune(root: Path, keep_last: int, protect: Path | None = None) -> list[Path]:
    """Deletes all but the newest complete steps, and returns the deleted ones.

    Incomplete steps do not count as kept and are left for `newest_valid` to judge.

    Args:
        keep_last: how many complete steps to keep, at least 1.
        protect: a step to keep in any case.

    Raises:
        CheckpointError: the disk refused.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last={keep_last} must be at least 1")
    complete = [path for path in list_steps(root) if _is_complete(path)]
    old = [path for path in complete[keep_last:] if path != protect]
    if old:
        with disk.reported(f"delete old checkpoints in {root}"):
            for path in _rename_away(root, old):
                disk.remove(path)
    return old


def _is_complete(path: Path) -> bool:
    """Whether the manifest is intact and every shard has its size; digests of tensors are not read."""
    try:
        manifest = _read_manifest(path)
        return all((path / shard.file).stat().st_size == shard.size for shard in manifest.shards)
    except (CheckpointError, OSError):
        return False


def clean_staging(root: Path) -> int:
    """Removes unfinished saves and unfinished deletions; returns the number of saves. Only for the folder's owner.

    Unfinished saves are renamed away first: an earlier writer that is just publishing one then either has
    published it whole, or fails.

    Raises:
        CheckpointError: the disk refused.
    """
    with disk.reported(f"clean {root}"):
        names = os.listdir(root)
        left = [root / name for name in names if name.startswith(disk.TEMPORARY)]
        for path in [root / name for name in names if name.startswith(_DELETED)] + _rename_away(root, left):
            disk.remove(path)
    return len(left)


def load(path: Path) -> tuple[dict[str, np.ndarray], Manifest]:
    """The tensors of one step and its manifest, after every byte was verified.

    A tensor saved as one chunk is a read-only view of a memory map; one saved as several is assembled. BF16
    comes as its bits in uint16; the manifest's dtype tells.

    Raises:
        CorruptCheckpoint: incomplete or altered; the message names the file and the tensor.
        CheckpointError: it cannot be read, or a newer format wrote it.
    """
    with disk.reported(f"read checkpoint {path}"):
        try:
            return _load(path)
        except FileNotFoundError as error:
            raise CorruptCheckpoint(f"{path} is incomplete: {Path(error.filename).name} is missing") from None


def _load(path: Path) -> tuple[dict[str, np.ndarray], Manifest]:
    manifest = _read_manifest(path)
    if (named := _STEP.fullmatch(path.name)) and int(named[1]) != manifest.step:
        raise CorruptCheckpoint(f"{path} holds step {manifest.step}, not the step of its name")
    check_tiling(manifest)
    tensors: dict[str, np.ndarray] = {}
    for shard in manifest.shards:
        for name, array in shards.read_shard(path / shard.file, shard).items():
            chunk = shard.tensors[name]
            if chunk.shape == chunk.global_shape:
                tensors[name] = array
                continue
            if name not in tensors:
                tensors[name] = np.empty(chunk.global_shape, array.dtype)
            tensors[name][tuple(slice(o, o + n) for o, n in zip(chunk.offset, chunk.shape, strict=True))] = array
    return tensors, manifest


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if file.stat().st_size > _MAX_MANIFEST:
        raise CorruptCheckpoint(f"{file} has more than {_MAX_MANIFEST} bytes")
    return parse(file.read_bytes(), file)


def newest_valid(root: Path) -> Found | None:
    """The newest step that verifies, with its tensors; None if nothing was ever saved.

    Steps are tried from the newest. A corrupt one is renamed to `quarantine-...`, logged as an error and
    reported in `Found.quarantined`; unfinished saves are ignored.

    Raises:
        CheckpointError: a step cannot be read for a reason other than corruption (permission, a newer format),
            or steps existed and none is valid. Training must not silently start over then.
    """
    bad: list[Quarantined] = []
    with disk.reported(f"search checkpoints in {root}"):
        for path, inode in _walk(root):
            try:
                tensors, manifest = load(path)
            except CheckpointError as error:
                if not _is_damage(error):
                    raise
                moved = _quarantine(path, inode)
                if moved is not None:
                    bad.append(Quarantined(path=moved, reason=error.message))
                    _log.error("corrupt checkpoint set aside as %s: %s", moved.name, error.message)
                continue
            return Found(path=path, manifest=manifest, tensors=tensors, quarantined=tuple(bad))
    aside = len(bad) or len(list(root.glob(f"{_QUARANTINE}*")))
    if aside:
        raise CheckpointError(
            f"{root} holds {aside} corrupt checkpoints and no valid one",
            f"restore a copy, or delete {root} to start over",
        )
    return None


def _walk(root: Path) -> Iterator[tuple[Path, int]]:
    """Published steps and their inodes from the newest.

    Lists again after each, because a live writer may publish and prune at the same time.
    """
    seen: set[tuple[Path, int]] = set()
    while left := [item for path in list_steps(root) if (item := (path, _inode(path))) not in seen]:
        seen.add(left[0])
        yield left[0]


def _inode(path: Path) -> int:
    """The identity of a folder; 0 if it has gone."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _is_damage(error: CheckpointError) -> bool:
    """Corrupt content, or a disk that cannot read it back (EIO); not a permission or a newer format."""
    cause = error.__cause__
    return isinstance(error, CorruptCheckpoint) or isinstance(cause, OSError) and cause.errno == errno.EIO


def _quarantine(path: Path, inode: int) -> Path | None:
    """Renames a corrupt step aside and returns its new path; None if a live writer has removed it meanwhile."""
    if _inode(path) != inode:
        return None
    name = f"{_QUARANTINE}{path.name}"
    taken = set(os.listdir(path.parent))
    target = next(path.with_name(n) for i in itertools.count() if (n := name + (f"-{i}" if i else "")) not in taken)
    try:
        os.rename(path, target)
        disk.sync_dir(path.parent)
    except OSError as error:
        _log.warning("cannot rename %s (%s): it stays and will be found corrupt again", path, error.strerror)
        return path
    return target
