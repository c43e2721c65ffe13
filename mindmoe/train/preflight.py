"""Everything that can be refused before a process is started or MindSpore imported (dry)."""

import os
from functools import lru_cache
from pathlib import Path

from mindmoe.checkpoint import store
from mindmoe.checkpoint.folder import list_steps, step_of
from mindmoe.checkpoint.manifest import Manifest
from mindmoe.checkpoint.retention import complete_manifest
from mindmoe.config import RunConfig
from mindmoe.data.dataset import Split
from mindmoe.data.identity import data_identity
from mindmoe.data.loader import TokenBatches
from mindmoe.errors import UserError
from mindmoe.moe.config import DmrConfig
from mindmoe.parallel.mesh import Mesh
from mindmoe.train.folder import RunFolder
from mindmoe.train.resume import changes


def preflight(config: RunConfig, world: int) -> tuple[TokenBatches, TokenBatches]:
    """Checks a resolved config against the data and the run folder; returns the training and held-out batches.

    Raises:
        UserError: the first thing that cannot work, with its remedy.
    """
    Mesh.build(config.parallel, world)
    folder = RunFolder.of(config)
    folder.check_continues(config)
    batches = open_batches(config, "train"), open_held_out(config)
    if (newest := _newest_complete(folder.checkpoints)) is not None:
        changes(newest, config, data_identity(config.data), folder.recorded())
    return batches


def _newest_complete(root: Path) -> Manifest | None:
    return next((found for path in list_steps(root) if (found := complete_manifest(path)) is not None), None)


def open_batches(config: RunConfig, split: Split) -> TokenBatches:
    """The batches of a split as the run sees them."""
    router = config.moe.router if config.moe is not None else None
    hidden = router.domain.label_dropout if isinstance(router, DmrConfig) and router.features.domain else 0.0
    return TokenBatches(
        config.data, split, config.train.seq_length, config.train.global_batch_size, config.model.vocab_size, hidden
    )


def open_held_out(config: RunConfig) -> TokenBatches:
    """The held-out batches, at least one of them.

    Raises:
        UserError: the held-out set is shorter than a batch.
    """
    batches = open_batches(config, "valid")
    if batches.num_samples < config.train.global_batch_size:
        raise UserError(
            f"the held-out set has {batches.num_samples} sequences of train.seq_length={config.train.seq_length} "
            f"tokens, fewer than train.global_batch_size={config.train.global_batch_size}",
            "prepare more text, raise valid_fraction, or lower train.seq_length or the batch size",
        )
    return batches


def finished_steps(config: RunConfig) -> int:
    """The newest step of the run folder that counts.

    It does if its manifest is sound and all its files are there with their sizes. The last step of a run, after which
    nothing would look at it any more, counts only if every byte of it verifies.
    """
    for path in list_steps(RunFolder.of(config).checkpoints):
        if not _is_complete(path, _files(path)):
            continue
        if step_of(path) < config.train.steps or next(store.damage(path), None) is None:
            return step_of(path)
    return 0


def _files(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Name, inode, size [bytes] and time of change of everything in a folder; nothing if it is none."""
    try:
        with os.scandir(path) as files:
            status = [(file.name, file.stat()) for file in files]
    except OSError:
        return ()
    return tuple((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in status)


@lru_cache(maxsize=16)
def _is_complete(path: Path, files: tuple[tuple[str, int, int, int], ...]) -> bool:
    """Whether a step seems whole; asked again about the same files, as a launcher does, it need not be read again."""
    return complete_manifest(path) is not None
