"""Which steps stay: the newest, every n-th, the best, and those a person has pinned; and room for the next one."""

import logging
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindmoe.checkpoint import disk
from mindmoe.checkpoint.config import CheckpointConfig
from mindmoe.checkpoint.folder import list_steps, read_manifest, rename_away
from mindmoe.checkpoint.manifest import Manifest
from mindmoe.host.errors import CheckpointError

_log = logging.getLogger(__name__)

PIN = "PINNED"  # a file of this name in the folder of a step keeps the step
SCORE = "eval_loss"  # key of Meta.state that ranks the best


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """How many complete steps stay; a step stays if any rule wants it.

    Attributes:
        keep_last: newest, at least 1.
        keep_every: steps that are a multiple of this many; 0 for none.
        keep_best: with the lowest held-out loss recorded when they were saved.
    """

    keep_last: int = 1
    keep_every: int = 0
    keep_best: int = 0

    @classmethod
    def of(cls, rules: CheckpointConfig) -> "Retention":
        """The `keep_` rules of a config."""
        return cls(keep_last=rules.keep_last, keep_every=rules.keep_every, keep_best=rules.keep_best)

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ValueError(f"keep_last={self.keep_last} must be at least 1")


def superfluous(complete: Sequence[tuple[Path, Manifest]], rule: Retention) -> list[Path]:
    """The steps that no rule wants.

    Args:
        complete: folders and manifests of the complete steps, newest first.
        rule: the rules.
    """
    # Any rule is enough, and the newest always stay: there is a step to resume from.
    keep = {path for path, _ in complete[: rule.keep_last]}
    keep |= {path for path, _ in complete if (path / PIN).exists()}
    if rule.keep_every:
        keep |= {path for path, manifest in complete if manifest.step and manifest.step % rule.keep_every == 0}
    scored = [(score, path) for path, m in complete if isinstance(score := m.meta.state.get(SCORE), (int, float))]
    keep |= {path for _, path in sorted(scored, key=lambda item: item[0])[: rule.keep_best]}
    return [path for path, _ in complete if path not in keep]


def prune_after(root: Path, retention: Retention, protect: Collection[Path]) -> None:
    """Prunes after a save, but not `protect`; a disk that refuses is a warning, as old steps merely occupy space."""
    try:
        prune(root, retention, protect)
    except CheckpointError as error:
        _log.warning("%s", error)


def require_space(root: Path, needed: int, min_free: int, retention: Retention) -> None:
    """Refuses a save that would fill the disk, after deleting what no rule wants any more.

    Args:
        root: the checkpoint folder.
        needed: size of the checkpoint [bytes].
        min_free: space that must remain free afterwards [bytes].
        retention: which complete steps survive.

    Raises:
        CheckpointError: there is too little space.
    """

    def free() -> int:
        with disk.reported(f"save into {root}"):
            return shutil.disk_usage(root).free

    if free() - needed >= min_free:
        return
    prune(root, retention)
    if free() - needed < min_free:
        raise CheckpointError(
            f"a checkpoint of {needed / 2**20:.1f} MiB would leave less than checkpoint.min_free="
            f"{min_free / 2**20:.1f} MiB on the disk of {root}, which has {free() / 2**20:.1f} MiB free",
            "free space, lower checkpoint.keep_last or checkpoint.min_free, or move output_dir",
        )


def prune(root: Path, retention: Retention, protect: Collection[Path] = ()) -> list[Path]:
    """Deletes the complete steps that no rule wants, and returns them.

    Incomplete steps do not count as kept and are left for `newest_valid` to judge.

    Args:
        root: the checkpoint folder.
        retention: which complete steps survive.
        protect: steps to keep in any case.

    Raises:
        CheckpointError: the disk refused.
    """
    # Incomplete ones do not fill the places of the newest, or a run of damaged steps would push out the sound ones.
    complete = [(path, manifest) for path in list_steps(root) if (manifest := complete_manifest(path))]
    old = [path for path in superfluous(complete, retention) if path not in protect]
    if old:
        with disk.reported(f"delete old checkpoints in {root}"):
            for path in rename_away(root, old):
                disk.remove(path)
    return old


def complete_manifest(path: Path) -> Manifest | None:
    """The manifest if it is intact and every shard has its size, else None; digests of tensors are not read."""
    try:
        manifest = read_manifest(path)
        whole = all((path / shard.file).stat().st_size == shard.size for shard in manifest.shards)
    except (CheckpointError, OSError):
        return None
    return manifest if whole else None
