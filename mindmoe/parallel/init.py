"""Initial values as a pure function of (seed, parameter name, global index).

Any rank can draw any box of any parameter by itself, so every layout starts from bit-identical weights and no seed
checkpoint is needed. Element i of a parameter uses word i of a Philox stream keyed by (seed, name).
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np

from mindmoe.host.env import usable_cores
from mindmoe.models.gpt_oss.parameters import ParamSpec
from mindmoe.parallel.box import Box

_WORDS_PER_COUNTER = 4
_CHUNK = 1 << 16  # elements drawn at a time: their fp64 temporaries stay in the cache, and threads share a tensor


def _normal_run(key: int, start: int, count: int) -> np.ndarray:
    """Standard normal values (count) fp32 of the stream's words start .. start + count, by Box-Muller."""
    # The stream can be entered at any counter, which makes four words: draw from there and drop those before `start`.
    skip = start % _WORDS_PER_COUNTER
    philox = np.random.Philox(key=key, counter=start // _WORDS_PER_COUNTER)
    words = philox.random_raw(skip + count)[skip:]
    # One word makes one value: u, its upper half, lies in (0, 1), for its logarithm is taken; v, the lower, in [0, 1).
    u = ((words >> np.uint64(32)).astype(np.float64) + 0.5) / 2.0**32
    v = (words & np.uint64(0xFFFFFFFF)).astype(np.float64) / 2.0**32
    return (np.sqrt(-2.0 * np.log(u)) * np.cos(2.0 * np.pi * v)).astype(np.float32)


def _normal(key: int, start: int, count: int) -> np.ndarray:
    out = np.empty(count, np.float32)

    def draw(at: int) -> None:
        size = min(_CHUNK, count - at)
        out[at : at + size] = _normal_run(key, start + at, size)

    if count <= _CHUNK:
        draw(0)
    else:  # every chunk is a function of its place alone, and NumPy lets other threads run meanwhile
        with ThreadPoolExecutor(usable_cores()) as workers:
            list(workers.map(draw, range(0, count, _CHUNK)))
    return out


def initial_value(spec: ParamSpec, box: Box, seed: int, std: float) -> np.ndarray:
    """A box of a parameter's initial value (box.shape) fp32.

    Args:
        spec: the parameter.
        box: the box wanted.
        seed: seed of the run.
        std: standard deviation of `normal` parameters.
    """
    if spec.init != "normal":
        return np.full(box.shape, 1.0 if spec.init == "ones" else 0.0, np.float32)
    # 128 bits, as many as a key of Philox has
    key = int.from_bytes(hashlib.sha256(f"{seed}/{spec.name}".encode()).digest()[:16], "little")
    # Trailing dimensions that are held whole make contiguous runs of the global array.
    split = max((dim for dim, size in enumerate(box.shape) if size != spec.shape[dim]), default=0)
    run = prod(box.shape[split:])
    stride = np.array([prod(spec.shape[dim + 1 :]) for dim in range(len(spec.shape))], np.int64)
    # index of the box's first element in the flat parameter
    base = int(np.dot(stride, box.offset))
    out = np.empty((prod(box.shape[:split]), run), np.float32)
    # one run for each index of the dimensions before `split`, the last one that is cut
    for row, place in enumerate(np.ndindex(*box.shape[:split])):
        out[row] = _normal(key, base + int(np.dot(stride[:split], place)), run)
    return out.reshape(box.shape) * np.float32(std)
