"""One rank of a run, without MindSpore: `python rank.py ROOT RANK WORLD GENERATION STEPS [FAULT NUMBER]`.

Holds boxes of a known state, saves it step after step and prints the outcome of each. FAULT names what goes wrong on
this rank at step NUMBER: `die` kills the process in the middle of the save, `slow` takes longer than the timeout to
write, `fail` makes its disk refuse, `linger` takes far longer than the timeout to publish, and `mute` to tell that it
did. `kill NUMBER` kills the process just before its so many-th change of the file system from step 2 on. `end 0` ends
this rank after its first failed save.

The ranks share a clock that the test moves: the seconds of the machine's, which on a busy one say nothing, are few
against TIMEOUT, and `advance` lets the timeout pass for all of them at once.
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mindmoe.checkpoint import store
from mindmoe.checkpoint import writer as writer_module
from mindmoe.checkpoint.manifest import ChunkRecord, Meta
from mindmoe.checkpoint.retention import Retention
from mindmoe.checkpoint.writer import SavePolicy, Writer
from mindmoe.parallel.box import Box

TIMEOUT = 600.0  # [s] checkpoint.timeout
CLOCK, DEAD = ".tmp-clock", ".tmp-dead"  # as many bytes as seconds that were added; one rank or more will not come
SHAPES = {"experts": (10, 16, 24), "embed": (101, 8), "norm": (33,), "scale": ()}


def state(step: int) -> dict[str, np.ndarray]:
    """The whole state of a step."""
    return {
        name: np.asarray(np.random.default_rng((step, index)).standard_normal(shape), np.float32)
        for index, (name, shape) in enumerate(SHAPES.items())
    }


def held(rank: int, world: int) -> dict[str, ChunkRecord]:
    """Experts and embedding rows are cut unevenly, the rest is replicated."""
    boxes = {}
    for name, shape in SHAPES.items():
        offset, size = [0] * len(shape), list(shape)
        if name in ("experts", "embed"):
            part = np.array_split(np.arange(shape[0]), world)[rank]
            offset[0], size[0] = int(part[0]), len(part)
        boxes[name] = ChunkRecord.of("F32", shape, Box(tuple(offset), tuple(size)))
    return boxes


def advance(root: Path, seconds: float) -> None:
    """Adds to the clock of all ranks."""
    with (root / CLOCK).open("ab") as file:
        file.write(bytes(int(seconds)))


def share_clock(root: Path) -> None:
    """Makes `time.monotonic` of this process the shared clock."""
    real = time.monotonic

    def clock() -> float:
        try:
            return real() + (root / CLOCK).stat().st_size
        except FileNotFoundError:
            return real()

    time.monotonic = clock


def meeting(root: Path, generation: str, word: str, world: int) -> list[Path]:
    """The files that the ranks leave where they meet."""
    return [root / f".tmp-{word}-{generation}-{rank}" for rank in range(world)]


def meet(root: Path, generation: str, word: str, rank: int, world: int) -> None:
    """Waits for the other ranks, as the collectives of training do, unless one is dead."""
    files = meeting(root, generation, word, world)
    files[rank].touch()
    while not all(file.exists() for file in files) and not (root / DEAD).exists():
        time.sleep(0.005)


def break_commit(kind: str, root: Path, others: list[Path]) -> None:
    """Makes the next commit take longer than anybody waits: until the others have ended the save, before it or after.

    Args:
        others: files that the other ranks leave when they are done with this save.
    """

    def broken(folder: Path, staging: Path, *args: Any) -> Path:
        while kind == "linger" and staging.exists():
            advance(root, TIMEOUT)
            time.sleep(0.05)
        path = real(folder, staging, *args)
        while kind == "mute" and not all(file.exists() for file in others):
            advance(root, TIMEOUT)
            time.sleep(0.05)
        return path

    real = store.commit
    store.commit = broken


def break_writing(kind: str, root: Path) -> None:
    """Makes the next shards go wrong."""

    def broken(path: Path, image: Any) -> Any:
        if kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "slow":
            advance(root, 1.5 * TIMEOUT)
            return real(path, image)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    real = writer_module.write_image
    writer_module.write_image = broken


def kill_at_change(number: int) -> None:
    """Kills this process just before its `number`-th change of the file system from here on."""
    left = [number]

    def count() -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link"):
            count()

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any) -> Any:
            count()
            return call(*args)

        return counting

    sys.addaudithook(audit)
    os.pwrite, os.fsync = counted(os.pwrite), counted(os.fsync)


def main(root: Path, rank: int, world: int, generation: str, steps: int, *fault: str) -> None:
    """Saves `steps` steps; prints `STEP saved|failed REASON`."""
    share_clock(root)
    boxes = held(rank, world)
    meta = Meta(model={}, topology={"world": world}, config_digest="", generation=generation)
    policy = SavePolicy(retention=Retention(keep_last=3), min_free=0, timeout=TIMEOUT)
    meet(root, generation, "start", rank, world)
    writer = Writer(root, boxes, rank=rank, world=world, meta=meta, policy=policy)
    intact = writer_module.write_image, store.commit
    for step in range(1, steps + 1):
        values = state(step)
        meet(root, generation, str(step), rank, world)
        if fault and fault[0] == "kill" and step == 2:
            kill_at_change(int(fault[1]))
        elif fault and fault[0] in ("linger", "mute") and step == int(fault[1]):
            done = [file for index, file in enumerate(meeting(root, generation, str(step + 1), world)) if index != rank]
            break_commit(fault[0], root, done)
        elif fault and step == int(fault[1]):
            break_writing(fault[0], root)
        writer.save(
            step, lambda name, now=values: now[name][boxes[name].box.index]
        )
        (outcome,) = writer.wait()
        writer_module.write_image, store.commit = intact
        word = "saved" if outcome.error is None else "failed"
        print(step, word, outcome.error or "", flush=True)
        if fault and fault[0] == "end" and word == "failed":
            break


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:4]), sys.argv[4], int(sys.argv[5]), *sys.argv[6:])
