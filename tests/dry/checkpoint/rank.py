"""One rank of a run, without MindSpore: `python rank.py ROOT RANK WORLD GENERATION STEPS TIMEOUT [FAULT STEP]`.

Holds boxes of a known state, saves it step after step and prints the outcome of each. FAULT names what goes wrong on
this rank at that step: `die` kills the process in the middle of the save, `slow` sleeps beyond the timeout, `fail`
makes its disk refuse, `linger` sleeps far beyond the timeout before it publishes, and `mute` after it. `end 0` ends
this rank after its first failed save.
"""

import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mindmoe.checkpoint import store
from mindmoe.checkpoint import writer as writer_module
from mindmoe.checkpoint.chunks import Box
from mindmoe.checkpoint.manifest import Meta
from mindmoe.checkpoint.reader import at
from mindmoe.checkpoint.retention import Retention
from mindmoe.checkpoint.writer import SavePolicy, Writer

START = 60.0  # [s] that the ranks wait for each other to start
SHAPES = {"experts": (10, 16, 24), "embed": (101, 8), "norm": (33,), "scale": ()}


def state(step: int) -> dict[str, np.ndarray]:
    """The whole state of a step."""
    return {
        name: np.asarray(np.random.default_rng((step, index)).standard_normal(shape), np.float32)
        for index, (name, shape) in enumerate(SHAPES.items())
    }


def held(rank: int, world: int) -> dict[str, Box]:
    """Experts and embedding rows are cut unevenly, the rest is replicated."""
    boxes = {}
    for name, shape in SHAPES.items():
        offset, size = [0] * len(shape), list(shape)
        if name in ("experts", "embed"):
            part = np.array_split(np.arange(shape[0]), world)[rank]
            offset[0], size[0] = int(part[0]), len(part)
        boxes[name] = Box("F32", tuple(size), shape, tuple(offset))
    return boxes


def meet(root: Path, generation: str, word: str, rank: int, world: int, patience: float) -> None:
    """Waits for the other ranks, as the collectives of training do, but no longer than `patience` [s]."""
    (root / f".tmp-{word}-{generation}-{rank}").touch()
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if all((root / f".tmp-{word}-{generation}-{other}").exists() for other in range(world)):
            return
        time.sleep(0.005)


def break_commit(kind: str, timeout: float) -> None:
    """Makes the next commit take longer than anybody waits."""

    def broken(*args: Any) -> Path:
        if kind == "linger":
            time.sleep(4 * timeout)
        path = real(*args)
        if kind == "mute":
            time.sleep(4 * timeout)
        return path

    real = store.commit
    store.commit = broken


def break_writing(kind: str, timeout: float) -> None:
    """Makes the next shards go wrong."""

    def broken(path: Path, image: Any) -> Any:
        if kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "slow":
            time.sleep(1.5 * timeout)
            return real(path, image)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    real = writer_module.write_image
    writer_module.write_image = broken


def main(root: Path, rank: int, world: int, generation: str, steps: int, timeout: float, *fault: str) -> None:
    """Saves `steps` steps; prints `STEP saved|failed SECONDS REASON`."""
    boxes = held(rank, world)
    meta = Meta(model={}, topology={"world": world}, config_digest="", generation=generation)
    policy = SavePolicy(retention=Retention(keep_last=3), min_free=0, timeout=timeout)
    meet(root, generation, "start", rank, world, START)
    writer = Writer(root, boxes, rank=rank, world=world, meta=meta, policy=policy)
    intact = writer_module.write_image, store.commit
    for step in range(1, steps + 1):
        if fault and step == int(fault[1]):
            (break_commit if fault[0] in ("linger", "mute") else break_writing)(fault[0], timeout)
        values = state(step)
        meet(root, generation, str(step), rank, world, 5 * timeout)
        writer.save(
            step, lambda name, now=values: now[name][at(boxes[name].offset, boxes[name].shape, (0,) * now[name].ndim)]
        )
        (outcome,) = writer.wait()
        writer_module.write_image, store.commit = intact
        word = "saved" if outcome.error is None else "failed"
        print(step, word, f"{outcome.seconds:.2f}", outcome.error or "", flush=True)
        if fault and fault[0] == "end" and word == "failed":
            break


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:4]), sys.argv[4], int(sys.argv[5]), float(sys.argv[6]), *sys.argv[7:])
