"""The checkpoint folder of a run: publish a step so that it cannot be lost, find the newest valid one.

The protocol of a save, each step durable before the next:
  1. shards are written into `.tmp-step-00000020-<generation>` and fsynced;
  2. the manifest is written last;
  3. the folder is renamed to `step-00000020`; only then is the step acknowledged;
  4. older steps are renamed away, then deleted.
Whatever moment a kill, a full disk or a power loss chooses, the last acknowledged step is found again. A step
that is saved again is published beside the old one as `step-00000020.1` before the old one goes.

One run writes at a time: `claim` makes a new generation the owner, and a writer that is no longer the owner cannot
publish. With several ranks, rank 0 claims, begins and commits what all of them wrote (`writer.py`).
"""

import errno
import itertools
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import time

import numpy as np

from mindmoe.checkpoint import chunks as shards
from mindmoe.checkpoint import disk
from mindmoe.checkpoint.agree import Agreement, Alone, from_rank_0
from mindmoe.checkpoint.chunks import Chunk
from mindmoe.checkpoint.folder import (
    DELETED,
    MANIFEST,
    OWNER,
    QUARANTINE,
    STEP,
    inode_of,
    list_steps,
    parsed,
    read_manifest,
    rename_away,
    shard_name,
    staging_path,
    step_name,
    step_of,
)
from mindmoe.checkpoint.manifest import CorruptCheckpoint, Manifest, Meta, ShardRecord, check_tiling
from mindmoe.checkpoint.reader import Checkpoint
from mindmoe.checkpoint.retention import Retention, prune_after, require_space
from mindmoe.host.errors import CheckpointError
from mindmoe.host.files import FileError, FileMissing, read_text, shown

Tensors = dict[str, np.ndarray]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """A step that was found corrupt: where it lies now and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"put the corrupt {self.path.name} aside: {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The newest valid checkpoint, the verified tensors that were asked for, and the corrupt ones passed over."""

    path: Path
    manifest: Manifest
    tensors: Tensors
    quarantined: tuple[Quarantined, ...]


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
        # The new owner first, then the cleaning: an earlier writer can begin nothing more in between.
        disk.replace_file(root / OWNER, f"{generation}\n".encode())
        clean_staging(root)
    return generation


def require_owner(root: Path, generation: str) -> None:
    """Raises CheckpointError unless `generation` is the one that claimed the folder last."""
    try:
        owner = read_text(root / OWNER, follow=False).strip()
    except FileMissing:
        owner = ""
    except FileError as error:
        raise CheckpointError(error.message, error.remedy) from error.__cause__
    if owner != generation:
        raise CheckpointError(
            f"{root} is claimed by {'writer ' + shown(owner) if owner else 'no writer'}, not by this one",
            "if two runs share the folder, stop one or give it another name",
        )


def begin(root: Path, step: int, generation: str, attempt: str = "") -> Path:
    """An empty staging folder for a step.

    Raises:
        CheckpointError: the folder cannot be written, or `generation` is not the one that claimed it last.
    """
    with disk.reported(f"begin checkpoint {step} in {root}"):
        require_owner(root, generation)
        staging = staging_path(root, step, generation, attempt)
        # What an attempt of the same name has left would mix with this one.
        disk.remove(staging)
        os.mkdir(staging)
    return staging


def write_shard(staging: Path, rank: int, tensors: Mapping[str, np.ndarray | Chunk]) -> ShardRecord:
    """Writes the chunks of one rank durably and returns the record that goes into the manifest.

    Raises:
        CheckpointError: the disk refused; the message says why.
        ValueError: a dtype that cannot be stored.
    """
    with disk.reported(f"write the checkpoint in {staging.parent}"):
        return shards.write_shard(
            staging / shard_name(rank), {name: shards.as_chunk(value) for name, value in tensors.items()}
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
            # Sizes alone: contents are held against their digests when they are read.
            if (staging / shard.file).stat().st_size != shard.size:
                raise CheckpointError(
                    f"{staging / shard.file} does not have the {shard.size} bytes its rank wrote",
                    "check that all ranks write to one shared folder",
                )
        disk.write_new(staging / MANIFEST, replace(manifest, saved_at=time()).to_bytes())
        # The names of the shards and of the manifest, before the folder gets the name that makes them count.
        disk.sync_dir(staging)
        # As late as possible. Who claims the folder after this line moves `staging` away: either that or the rename
        # below comes first, and the other one fails.
        require_owner(root, manifest.meta.generation)
        return _publish(root, staging, manifest.step)


def as_writer(manifest: Manifest, generation: str) -> Manifest:
    """The manifest of a copy that another writer publishes."""
    return replace(manifest, meta=replace(manifest.meta, generation=generation))


def _publish(root: Path, staging: Path, step: int) -> Path:
    """Renames a complete staging folder to the name of its step, replacing an earlier save of that step."""
    final = root / step_name(step)
    # A rename cannot replace a folder that holds files, so a step that is saved again goes through a second name.
    earlier = [path for path in list_steps(root) if parsed(path)[0] == step]
    if not earlier:
        os.rename(staging, final)
        disk.sync_dir(root)
        return final
    beside = root / f"{final.name}.{parsed(earlier[0])[1] + 1}"
    os.rename(staging, beside)
    disk.sync_dir(root)  # from here on the new one is safe, so the old one may go
    removed = rename_away(root, earlier)
    os.rename(beside, final)  # if the power fails before this is durable, the step is found under the other name
    for path in removed:
        disk.remove(path)
    return final


def save(
    root: Path, step: int, tensors: Mapping[str, np.ndarray | Chunk], meta: Meta, retention: Retention, min_free: int
) -> Path:
    """Saves whole tensors from one process: begin, write, commit, prune.

    Args:
        root: the checkpoint folder, claimed by `meta.generation`.
        step: completed optimizer steps.
        tensors: everything that training needs to go on, keyed by name.
        retention: which complete steps survive.
        min_free: space that must remain free on the disk afterwards [bytes].

    Returns:
        the published folder; its step is then durable.

    Raises:
        CheckpointError: it was not saved; earlier steps are untouched and a later save may succeed.
    """
    require_space(root, sum(shards.as_chunk(value).array.nbytes for value in tensors.values()), min_free, retention)
    staging = begin(root, step, meta.generation)
    try:
        record = write_shard(staging, 0, tensors)
        path = commit(root, staging, Manifest(step=step, meta=meta, shards=(record,)))
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    prune_after(root, retention, [path])
    return path


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
        for path in [root / name for name in names if name.startswith(DELETED)] + rename_away(root, left):
            disk.remove(path)
    return len(left)


def open_step(path: Path) -> Checkpoint:
    """A published step, open for reading.

    Raises:
        CorruptCheckpoint: the manifest is missing or altered, or belongs to another step.
        CheckpointError: it cannot be read, or another format version wrote it.
    """
    with reading(path):
        manifest = read_manifest(path)
    # A folder that was renamed by hand would resume from a wrong step, and read wrong data from there on.
    if (named := STEP.fullmatch(path.name)) and int(named[1]) != manifest.step:
        raise CorruptCheckpoint(f"{path} holds step {manifest.step}, not the step of its name")
    return Checkpoint(path, manifest)


def damage(path: Path) -> Iterator[str]:
    """Everything that is wrong with a step, one sentence each; every byte is read."""
    try:
        with open_step(path) as checkpoint:
            yield from checkpoint.damage()
    except CheckpointError as error:
        yield error.message


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what the disk says while a step is read into a CheckpointError."""
    with disk.reported(f"read checkpoint {path}"):
        try:
            yield
        except FileNotFoundError as error:
            raise CorruptCheckpoint(f"{path} is incomplete: {Path(error.filename).name} is missing") from None


def load(path: Path, read: Callable[[Checkpoint], Tensors] = Checkpoint.read_all) -> tuple[Tensors, Manifest]:
    """Verified tensors of one step, by default all, and its manifest.

    BF16 comes as its bits in uint16; the manifest's dtype tells.

    Raises:
        CorruptCheckpoint: incomplete or altered; the message names the file and the tensor.
        CheckpointError: it cannot be read, or another format version wrote it.
    """
    with open_step(path) as checkpoint, reading(path):
        return read(checkpoint), checkpoint.manifest


_FINE, _DAMAGED, _FAILED = 0, 1, 2


def newest_valid(
    root: Path,
    read: Callable[[Checkpoint], Tensors] = Checkpoint.read_all,
    agree: Agreement | None = None,
    second: Path | None = None,
) -> Found | None:
    """The newest step that verifies, with the tensors asked for; None if nothing was ever saved.

    Steps are tried from the newest. A corrupt one is renamed to `quarantine-...` and reported in `Found.quarantined`,
    or in the error if there is no other; unfinished saves are ignored. With several ranks rank 0 chooses the step and
    puts corrupt ones aside; a step counts only if every rank could read its part.

    Args:
        root: the checkpoint folder.
        read: what to read of a step.
        agree: how the ranks agree; None for a process alone.
        second: another checkpoint folder of the run, where a step counts if it is newer than all valid ones here.

    Raises:
        CheckpointError: a step cannot be read for a reason other than corruption (permission, a newer format),
            or steps existed and none is valid. Training must not silently start over then.
    """
    agree = agree or Alone()
    bad: list[Quarantined] = []
    roots = [root, second] if second else [root]
    steps = _walk(roots)

    def next_place() -> str:
        with disk.reported(f"search checkpoints in {root}"):
            path = next(steps, None)
        return f"{roots.index(path.parent)}/{path.name}" if path else ""

    # Paths may differ in how ranks see them, so rank 0 names a step by the number of its folder and its name.
    while place := from_rank_0(agree, next_place):
        number, name = place.split("/")
        path = roots[int(number)] / name
        # A live writer may replace the folder while it is read: the inode tells which one was found damaged.
        inode = inode_of(path)
        level, error = _FINE, CheckpointError(f"another rank found {path} damaged", "see its message")
        try:
            tensors, manifest = load(path, read)
        except CheckpointError as raised:
            level, error = (_DAMAGED if _is_damage(raised) else _FAILED), raised
        # All ranks take the same step or none: that ranks hold the state of two steps would go unnoticed.
        worst = agree.worst(level)
        if worst == _FINE:
            return Found(path=path, manifest=manifest, tensors=tensors, quarantined=tuple(bad))
        if worst == _FAILED:
            # Not damage: a step that only cannot be read now must not be passed over for an older one.
            raise error if level == _FAILED else CheckpointError(f"another rank cannot read {path}", "see its message")
        # Only one rank renames, the one that chooses the next step.
        moved = _quarantine(path, inode) if agree.rank == 0 else None
        if moved is not None:
            bad.append(Quarantined(path=moved, reason=error.message))
        elif level == _DAMAGED and agree.rank:
            _log.error("corrupt checkpoint: %s", error.message)
    # Those of earlier starts count as well: a run that lost all of its steps must not begin anew by itself.
    aside = max(len(bad), num_quarantined(root))
    if aside:
        reasons = "".join(f"; {item}" for item in bad)
        raise CheckpointError(
            f"{root} holds {aside} corrupt checkpoints and no valid one{reasons}",
            f"restore a copy, or delete {root} to start over",
        )
    return None


def num_quarantined(root: Path) -> int:
    """How many corrupt steps lie aside in a folder."""
    return len(list(root.glob(f"{QUARANTINE}*")))


def _walk(roots: list[Path]) -> Iterator[Path]:
    """Published steps from the newest; of equal steps the one in the earlier folder first.

    Lists again after each, because a live writer may publish and prune at the same time.
    """
    seen: set[tuple[Path, int]] = set()

    def published() -> list[Path]:
        found = [(-step_of(path), order, path) for order, root in enumerate(roots) for path in list_steps(root)]
        return [path for _, _, path in sorted(found, key=lambda item: item[:2])]

    # An inode beside the path: a step that is saved again under its old name has not been seen yet.
    while left := [item for path in published() if (item := (path, inode_of(path))) not in seen]:
        seen.add(left[0])
        yield left[0][0]


def _is_damage(error: CheckpointError) -> bool:
    """Corrupt content, or a disk that cannot read it back (EIO); not a permission or a newer format."""
    cause = error.__cause__
    return isinstance(error, CorruptCheckpoint) or isinstance(cause, OSError) and cause.errno == errno.EIO


def _quarantine(path: Path, inode: int) -> Path | None:
    """Sets a corrupt step aside and returns its new path; None if a live writer has removed it meanwhile."""
    if inode_of(path) != inode:
        return None
    try:
        return set_aside(path)
    except CheckpointError as error:
        _log.warning("%s: it stays and will be found corrupt again", error.message)
        return path


def set_aside(path: Path) -> Path:
    """Renames a corrupt step so that nothing loads it, and returns its new path.

    Raises:
        CheckpointError: the disk refused.
    """
    name = f"{QUARANTINE}{path.name}"
    with disk.reported(f"set aside {path}"):
        taken = set(os.listdir(path.parent))
        target = next(path.with_name(n) for i in itertools.count() if (n := name + (f"-{i}" if i else "")) not in taken)
        os.rename(path, target)
        disk.sync_dir(path.parent)
    return target
