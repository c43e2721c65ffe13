"""States whose every byte is known, so that a loss or a wrong byte is seen."""

import numpy as np

from mindmoe.checkpoint.chunks import Chunk
from mindmoe.checkpoint.manifest import Meta

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


def plain(step: int) -> dict[str, np.ndarray]:
    """A state of fp32 tensors, for contenders that know fewer dtypes; 1 MiB, so that a kill finds it half-written."""
    rng = np.random.default_rng(step)
    return {f"w.{n}": rng.standard_normal((256, 256), np.float32) for n in range(4)}
