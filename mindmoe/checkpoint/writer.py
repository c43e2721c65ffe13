"""Saving while training goes on: copy the state into a staging buffer, and let a thread make it durable.

Training waits for the copy only, and for the previous save if that is not finished: never more than one copy of the
state is under way. Every rank writes its own boxes; rank 0 gathers their records, publishes the step and tells the
others how it went. What rank 0 says is the outcome on all of them: either the step is durable, or none believes so.
"""

import atexit
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from pydantic import JsonValue, TypeAdapter

from mindmoe.checkpoint import disk, store
from mindmoe.checkpoint.balance import share_out
from mindmoe.checkpoint.chunks import Image, Staging, write_image
from mindmoe.checkpoint.exchange import Exchange
from mindmoe.checkpoint.folder import inode_of, list_steps, shard_name, staging_path
from mindmoe.checkpoint.manifest import ChunkRecord, Manifest, Meta, ShardRecord
from mindmoe.checkpoint.retention import Retention, prune_after, require_space
from mindmoe.checkpoint.tier import Tier
from mindmoe.host.errors import CheckpointError

_log = logging.getLogger(__name__)
_EXIT_WAIT = 60.0  # [s] that the end of a process waits for a save under way


@cache
def _boxes() -> TypeAdapter[dict[str, ChunkRecord]]:
    return TypeAdapter(dict[str, ChunkRecord])


@cache
def _record() -> TypeAdapter[ShardRecord]:
    return TypeAdapter(ShardRecord)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a save ended; the same on every rank.

    Attributes:
        step: completed optimizer steps.
        path: the published folder, None if it was not saved.
        error: why it was not saved, None if it was.
        stall: how long training waited [s]; of that `copy` for the copy.
        seconds: from the start of the save until it was durable, or had failed [s].
        nbytes: written by all ranks, if it was saved [bytes].
    """

    step: int
    path: Path | None
    error: CheckpointError | None
    stall: float
    copy: float
    seconds: float
    nbytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SavePolicy:
    """What a save must leave behind.

    Attributes:
        retention: which complete steps survive.
        min_free: space that must remain free [bytes].
        timeout: longest wait for another rank [s].
    """

    retention: Retention
    min_free: int
    timeout: float


class Writer:
    """Saves the state of one rank again and again. A collective: every rank makes one and calls it alike.

    Args:
        root: the checkpoint folder.
        held: the boxes of this rank by tensor name.
        rank: this rank.
        world: number of ranks.
        meta: `meta.generation` is the one that rank 0 claimed.
        policy: what a save must leave behind.
        tier: where rank 0 copies some of the steps.

    Raises:
        CheckpointError: the folder cannot be used, or a rank is missing.
    """

    def __init__(
        self,
        root: Path,
        held: Mapping[str, ChunkRecord],
        *,
        rank: int,
        world: int,
        meta: Meta,
        policy: SavePolicy,
        tier: Tier | None = None,
    ):
        self.root, self.rank, self.world, self.meta, self.policy, self.tier = root, rank, world, meta, policy, tier
        self._exchange = Exchange(root, meta.generation, rank, world, policy.timeout)
        # Replicated tensors are held by several ranks and written by one; who writes what never changes in a run.
        own, self._total = self._agree_on_boxes(held)
        self.boxes = {name: held[name] for name in own}
        self._staging = Staging()
        self._thread: threading.Thread | None = None
        self._attempt = 0
        self._finished: list[Outcome] = []
        # The thread is a daemon, which the end of the interpreter would cut off in the middle of a save.
        atexit.register(self.close)

    def _agree_on_boxes(self, held: Mapping[str, ChunkRecord]) -> tuple[list[str], int]:
        """The names of this rank's share, and the size of the whole state [bytes]."""
        started = time.monotonic()
        self._exchange.send("held", _boxes().dump_python(dict(held), mode="json"))
        if self.rank == 0:
            answers = self._exchange.gather("held", range(self.world), started)
            everything = [_boxes().validate_python(answers[rank]) for rank in range(self.world)]
            shares = share_out(everything)
            total = sum(boxes[name].nbytes for boxes, names in zip(everything, shares, strict=True) for name in names)
            self._exchange.send("shares", {"names": shares, "total": total})
        answer = self._exchange.wait("shares", 0, started)
        return answer["names"][self.rank], answer["total"]

    def save(
        self, step: int, values: Callable[[str], np.ndarray], state: Mapping[str, JsonValue] | None = None
    ) -> None:
        """Copies the state and returns; the outcome is told later by `poll` or `wait`.

        Args:
            step: completed optimizer steps.
            values: the values of a box by tensor name, called once for every name of `boxes`.
            state: small values to keep beside the tensors; those of rank 0 count.
        """
        started = time.perf_counter()
        # One save at a time: they share the buffer, and a second copy of the state might not fit into memory.
        self._join(None)
        copying = time.perf_counter()
        image = Image(self.boxes, self._staging)
        for name in self.boxes:
            image.put(name, values(name))
        copied = time.perf_counter()
        # Ranks call `save` alike, so that their attempts have the same number without a word exchanged.
        self._attempt += 1
        meta = replace(self.meta, state={**self.meta.state, **(state or {})})
        arguments = (step, self._attempt, image, meta, started, copied - started, copied - copying)
        self._thread = threading.Thread(target=self._run, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    def poll(self) -> list[Outcome]:
        """The outcomes since they were last asked for, without waiting."""
        done, self._finished = self._finished, []
        return done

    def wait(self) -> list[Outcome]:
        """Waits for a save under way; the outcomes since they were last asked for."""
        self._join(None)
        return self.poll()

    def close(self, timeout: float = _EXIT_WAIT) -> None:
        """Waits for a save under way, but not for ever; what is not published then is not saved."""
        atexit.unregister(self.close)
        if not self._join(timeout):
            _log.error("a save was still being written after %.0f s and is given up", timeout)
        if self.tier is not None:
            self.tier.join(timeout)

    def _join(self, timeout: float | None) -> bool:
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.busy

    def _run(
        self, step: int, attempt: int, image: Image, meta: Meta, started: float, stall: float, copy: float
    ) -> None:
        """The save itself, in the thread. Whatever happens ends as an outcome."""
        path, error = None, None
        topic = f"save-{attempt}"
        try:
            path = self._lead(step, topic, image, meta) if self.rank == 0 else self._follow(step, topic, image)
        except CheckpointError as raised:
            error = raised
        except Exception as raised:  # a bug must not look like a save that worked
            _log.exception("saving step %d failed", step)
            error = CheckpointError(f"step {step} was not saved: {type(raised).__name__}: {raised}", "report this")
        self._finished.append(
            Outcome(
                step=step,
                path=path,
                error=error,
                stall=stall,
                copy=copy,
                seconds=time.perf_counter() - started,
                nbytes=self._total if path else 0,
            )
        )
        if path is not None and self.rank == 0:
            self._after(path)

    def _lead(self, step: int, topic: str, image: Image, meta: Meta) -> Path:
        """Rank 0: writes its shard, gathers the records of all, publishes, tells the others."""
        staging = staging_path(self.root, step, self.meta.generation, topic)
        try:
            require_space(self.root, self._total, self.policy.min_free, self.policy.retention)
            store.begin(self.root, step, meta.generation, topic)
            # One deadline for all ranks, and for the writing of this one.
            started = time.monotonic()
            # Only now is the folder there that the others write into.
            self._exchange.send(f"{topic}-begun", True)
            # While the others write theirs.
            records = [self._write(staging, image)]
            answers = self._exchange.gather(topic, range(1, self.world), started)
            for rank, answer in answers.items():
                if "error" in answer:
                    raise CheckpointError(f"rank {rank}: {answer['error']}", answer["remedy"])
            records += [_record().validate_python(answers[rank]["record"]) for rank in range(1, self.world)]
            if time.monotonic() - started > self.policy.timeout:  # the others may have given up by now
                raise CheckpointError(
                    f"writing took longer than checkpoint.timeout={self.policy.timeout:.0f} s",
                    "see how full and fast the disk is, or raise checkpoint.timeout",
                )
            path = store.commit(self.root, staging, Manifest(step=step, meta=meta, shards=tuple(records)))
        except CheckpointError as error:
            if not _discard(staging) and self.world > 1:  # first, as on a full disk the message needs the space
                _log.error("another rank has ended this save, or removed %s", staging)
            self._tell(topic, {"error": error.message, "remedy": error.remedy})
            raise
        except BaseException as error:
            _discard(staging)
            self._tell(topic, {"error": f"{type(error).__name__}: {error}", "remedy": "see the log of rank 0"})
            raise
        self._tell(topic, {"path": path.name})
        self._forget_before(topic)
        return path

    def _after(self, path: Path) -> None:
        """Rank 0, once the step is acknowledged: copies it if it is one of those, and lets older ones go."""
        protect = [path]
        if self.tier is not None:
            self.tier.offer(path)
            protect += [copying] if (copying := self.tier.copying) else []
        prune_after(self.root, self.policy.retention, protect)

    def _tell(self, topic: str, outcome: dict[str, str]) -> None:
        if self.world == 1:
            return
        try:
            self._exchange.send(f"{topic}-outcome", outcome)
        except CheckpointError as error:  # they will run into their deadline
            _log.error("the other ranks could not be told how the save went: %s", error)

    def _forget_before(self, topic: str) -> None:
        """Removes the messages of the save before: all ranks have sent a later one, so nobody reads them any more."""
        earlier = f"save-{int(topic.removeprefix('save-')) - 1}"
        for kind in ("", "-begun", "-outcome"):
            self._exchange.forget(earlier + kind)

    def _follow(self, step: int, topic: str, image: Image) -> Path:
        """Any other rank: writes its shard once rank 0 has begun, reports, and waits for the outcome."""
        staging = staging_path(self.root, step, self.meta.generation, topic)
        started = time.monotonic()
        answer: dict[str, object]
        inode = 0
        try:
            self._exchange.wait(f"{topic}-begun", 0, started, or_topic=f"{topic}-outcome")
            # Taken before this rank answers, and so before rank 0 can publish: see `_settle`.
            inode = inode_of(staging)
            answer = {"record": _record().dump_python(self._write(staging, image), mode="json")}
        except CheckpointError as error:
            answer = {"error": error.message, "remedy": error.remedy}
        except Exception as error:  # rank 0 must hear of it, whatever it is
            _log.exception("saving step %d failed", step)
            answer = {"error": f"{type(error).__name__}: {error}", "remedy": f"see the log of rank {self.rank}"}
        # Also after a failure, or rank 0 would wait for this rank until its deadline.
        self._exchange.send(topic, answer)
        try:  # rank 0 may be waiting for others for one timeout before it gives up
            outcome = self._exchange.wait(f"{topic}-outcome", 0, time.monotonic(), patience=2.0)
        except CheckpointError as late:
            path = self._settle(staging, inode, late)
        else:
            if "error" in outcome:
                raise CheckpointError(outcome["error"], outcome["remedy"])
            path = self.root / outcome["path"]
        with disk.reported(f"publish checkpoint {step} in {self.root}"):
            disk.sync_dir(self.root)
        return path

    def _settle(self, staging: Path, inode: int, late: CheckpointError) -> Path:
        """Any other rank, when rank 0 is silent: ends the save, unless it is published already; all agree on which.

        Publishing is one rename of the staging folder. Whoever moves it first decides: if this rank moves it away, rank
        0 cannot publish it any more; if it has gone, it was published, and carries `inode` under its new name.
        """
        if _discard(staging):
            raise late
        for path in list_steps(self.root):
            if inode and inode_of(path) == inode:
                return path
        raise late

    def _write(self, staging: Path, image: Image) -> ShardRecord:
        path = staging / shard_name(self.rank)
        try:
            with disk.reported(f"write the checkpoint in {self.root}"):
                return write_image(path, image)
        except CheckpointError:
            path.unlink(missing_ok=True)
            raise


def _discard(staging: Path) -> bool:
    """Removes an unfinished save, also while another rank may still be writing into it; False if it has gone."""
    # Renamed in one piece first: from there on nobody can publish it, or write into it by its name.
    away = staging.with_name(f"{disk.TEMPORARY}{uuid.uuid4().hex}")
    try:
        os.rename(staging, away)
        disk.remove(away)
    except FileNotFoundError:
        return away.exists()  # of this rank's doing, or of another's
    except OSError as error:  # the next claim of the folder removes it
        _log.warning("cannot remove the unfinished save %s: %s", staging, error.strerror)
    return True
