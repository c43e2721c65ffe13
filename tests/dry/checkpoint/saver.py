"""A program to be killed: `python saver.py ROOT` forks, for each line it reads, a child that saves for ever.

The child prints its process id, then each step once it is acknowledged; when it is dead, the parent prints `dead`.
"""

import os
import sys
from pathlib import Path

import numpy as np

from mindmoe.checkpoint import store
from mindmoe.checkpoint.chunks import Chunk
from mindmoe.checkpoint.manifest import Meta
from mindmoe.checkpoint.retention import Retention

SHAPES = {
    "w.0": (64, 96),
    "w.1": (7,),
    "scale": (),
    "bias.bf16": (5, 3),
    "half": (33,),
    "ids": (11,),
    "long": (2, 2),
    "bytes": (13,),
    "mask": (9,),
    "empty": (0, 4),
}
DTYPES = {"bias.bf16": "BF16", "half": "<f2", "ids": "<i4", "long": "<i8", "bytes": "|u1", "mask": "|b1"}


def state(step: int) -> dict[str, Chunk]:
    """A state of every dtype; each value tells its step."""
    tensors = {}
    for index, (name, shape) in enumerate(SHAPES.items()):
        dtype = DTYPES.get(name, "<f4")
        values = np.random.default_rng((step, index)).integers(0, 100, shape)
        tag = "BF16" if dtype == "BF16" else ""
        tensors[name] = Chunk(np.asarray(values, "<u2" if tag else dtype), tag)
    return tensors


def is_state(step: int, tensors: dict[str, np.ndarray]) -> bool:
    """Whether the tensors are bitwise the state of a step."""
    expected = {name: chunk.array for name, chunk in state(step).items()}
    return expected.keys() == tensors.keys() and all(
        tensors[name].dtype == array.dtype
        and tensors[name].shape == array.shape
        and tensors[name].tobytes() == array.tobytes()
        for name, array in expected.items()
    )


def meta(generation: str) -> Meta:
    """What the saved states belong to."""
    return Meta(model={"hidden_size": 96}, topology={"dp": 1}, config_digest="0" * 32, generation=generation)


def say(text: object) -> None:
    """Prints a line in one system call, so that a kill cannot tear it."""
    os.write(1, f"{text}\n".encode())


def save_for_ever(root: Path) -> None:
    """Resumes, saves the same step once more, and goes on."""
    say(os.getpid())
    own = meta(store.claim(root))
    found = store.newest_valid(root)
    step = found.manifest.step if found else 1
    while True:
        store.save(root, step, state(step), own, Retention(keep_last=2), 0)
        say(step)
        step += 1


if __name__ == "__main__":
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            save_for_ever(Path(sys.argv[1]))
        os.waitpid(child, 0)
        say("dead")
