"""The second, safer home of checkpoints: some steps are copied there in the background, and verified there.

The copy is a checkpoint folder like any other: claimed, published by a rename, pruned by its own rule. Resuming looks
in both places and prefers the near one.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mindmoe.checkpoint import disk, store
from mindmoe.checkpoint.folder import read_manifest, step_of
from mindmoe.checkpoint.manifest import Manifest
from mindmoe.checkpoint.reader import Checkpoint
from mindmoe.checkpoint.retention import Retention, prune_after, require_space
from mindmoe.host.errors import CheckpointError
from mindmoe.host.files import open_regular

_PIECE = 2**23  # [bytes] copied at once
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Copied:
    """How a copy ended: where it lies, or why there is none."""

    step: int
    place: str | None
    error: CheckpointError | None
    seconds: float


def copy_step(source: Path, root: Path, generation: str, retention: Retention, min_free: int = 0) -> Path:
    """Publishes a copy of a step in another checkpoint folder; when this returns it is durable and was read back.

    Args:
        source: the published step.
        root: the other checkpoint folder, claimed by `generation`.
        generation: of the writer of `root`.
        retention: which steps survive there.
        min_free: space that must remain free there [bytes].

    Raises:
        CheckpointError: it was not copied, or the copy does not verify; what `root` held is untouched.
    """
    with store.reading(source):
        manifest = read_manifest(source)
    require_space(root, manifest.size, min_free, retention)
    staging = store.begin(root, manifest.step, generation)
    try:
        with disk.reported(f"copy {source} to {root}"):
            for shard in manifest.shards:
                _copy_file(source / shard.file, staging / shard.file)
        # Before it is published: nothing there is ever seen that was not read back.
        _verify(staging, manifest)
        path = store.commit(root, staging, store.as_writer(manifest, generation))
    except BaseException:
        disk.remove(staging)
        raise
    prune_after(root, retention, [path])
    return path


def _copy_file(source: Path, target: Path) -> None:
    with open_regular(source, follow=False) as stream, disk.new_file(target) as fd:
        position = 0
        while piece := stream.read(_PIECE):
            disk.write_all(fd, piece, position)
            position += len(piece)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # so that reading back asks the disk, not the cache


def _verify(staging: Path, manifest: Manifest) -> None:
    with Checkpoint(staging, manifest) as copy:
        problem = next(copy.damage(), None)
    if problem:
        raise CheckpointError(f"the copy does not verify: {problem}", "run ckpt verify on the original")


def folder_copier(root: Path, retention: Retention, min_free: int) -> Callable[[Path], str]:
    """Returns put(source) -> where its copy lies, for another checkpoint folder, which is claimed.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    generation = store.claim(root)
    return lambda source: str(copy_step(source, root, generation, retention, min_free))


class Tier:
    """Copies steps of a run while training goes on, one at a time; belongs to rank 0.

    Args:
        put: copies a published step durably and verified, and returns where it lies.
        every: steps that are a multiple of this are copied.
    """

    def __init__(self, put: Callable[[Path], str], every: int):
        self.put, self.every = put, every
        self.copying: Path | None = None
        self._thread: threading.Thread | None = None
        self._finished: list[Copied] = []

    def offer(self, path: Path) -> None:
        """Starts to copy a step that was just published, if it is one of those; waits for a copy under way."""
        if step_of(path) % self.every:
            return
        self.join()
        self.copying = path  # keeps it from being pruned
        self._thread = threading.Thread(target=self._run, args=(path,), name="checkpoint-tier", daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Waits for a copy under way."""
        if self._thread is not None:
            self._thread.join(timeout)

    def poll(self) -> list[Copied]:
        """How copies ended since this was last asked."""
        done, self._finished = self._finished, []
        return done

    def _run(self, source: Path) -> None:
        started, place, error = time.perf_counter(), None, None
        try:
            place = self.put(source)
        except CheckpointError as raised:
            error = raised
        except Exception as raised:  # a bug must not look like a copy that worked
            _log.exception("copying %s failed", source)
            error = CheckpointError(f"{source} was not copied: {type(raised).__name__}: {raised}", "report this")
        finally:
            # Whatever happened, the step may be pruned again.
            self.copying = None
        seconds = time.perf_counter() - started
        self._finished.append(Copied(step=step_of(source), place=place, error=error, seconds=seconds))
