"""Digests: of bytes, to notice one that changed, and of tensors, to tell whether two are equal under any layout.

A tensor's digest is the sum modulo 2^64, over its elements, of the element's bits times a weight that depends only
on its global index. Boxes can therefore be digested where they lie, and the sums of boxes that tile a tensor add up
to the same number whatever the boxes are: it tells whether a checkpoint that was resharded is still the same one.
The weight of (i, j, ...) is the product of one odd pseudo-random word per dimension, so a whole row takes one dot
product. It is no cryptographic hash: it finds accidents, not forgeries.
Source: multilinear hashing, Lemire and Kaser, "Strongly universal string hashing is fast" (2014).
"""

import ctypes
import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import xxhash

from mindmoe.host.errors import UserError
from mindmoe.ops.cpu.build import best_isa, built

_MIX = tuple(np.uint64(word) for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_SHIFT = tuple(np.uint64(bits) for bits in (30, 27, 31))
_MIN_BLOCK, _MAX_BLOCK, _BLOCKS = 4096, 2**20, 128  # [bytes], [bytes], blocks of a tensor between those sizes


@lru_cache(maxsize=64)
def _weights(dim: int, start: int, count: int) -> np.ndarray:
    """Odd words (count) u64 of indices start .. start + count along a dimension: SplitMix64 at that place."""
    with np.errstate(over="ignore"):
        word = (np.arange(start, start + count, dtype=np.uint64) + np.uint64((dim + 1) << 40)) * _MIX[0]
        word = (word ^ (word >> _SHIFT[0])) * _MIX[1]
        word = (word ^ (word >> _SHIFT[1])) * _MIX[2]
        return (word ^ (word >> _SHIFT[2])) | np.uint64(1)


def tensor_sum(array: np.ndarray, offset: tuple[int, ...]) -> int:
    """The digest of a box of a tensor, below 2^64; the digests of boxes that tile it add up modulo 2^64.

    Args:
        array: the box, C-contiguous.
        offset: global index of its first element.
    """
    if not array.size:
        return 0
    # Bits, not values: -0.0 and NaN count as what they are.
    bits = array.view(f"u{array.itemsize}")
    # A scalar has no index, so its weight is the empty product, 1.
    if not array.ndim:
        return int(bits)
    total, weighted_sums = bits.reshape(-1, array.shape[-1]), _compiled_sums() or numpy_sums
    # (R, N) -> (R) for the last dimension, then again for the one before, down to one word.
    for dim in reversed(range(array.ndim)):
        total = weighted_sums(total.reshape(-1, array.shape[dim]), _weights(dim, offset[dim], array.shape[dim]))
    return int(total[0])


def numpy_sums(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums of rows (R, N) of unsigned integers times weights (N) u64, modulo 2^64: (R) u64."""
    # The casting einsum runs in cache-sized pieces: no widened copy of the tensor is made.
    return np.einsum("ij,j->i", rows, weights, dtype=np.uint64, casting="safe")


@lru_cache
def _compiled_sums() -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """`numpy_sums` by the C++ pack, several times as fast, where that was built already; None where it was not."""
    try:
        path = built(best_isa())
    except UserError:
        return None
    if path is None:
        return None
    entry = ctypes.CDLL(str(path)).mindmoe_weighted_sums
    entry.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]

    def weighted_sums(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        rows, sums = np.ascontiguousarray(rows), np.empty(len(rows), np.uint64)
        if entry(rows.ctypes.data, rows.itemsize, *rows.shape, weights.ctypes.data, sums.ctypes.data):
            raise ValueError(f"no digest of words of {rows.itemsize} bytes")
        return sums

    return weighted_sums


def add(first: int, second: int) -> int:
    """The digest of two boxes together."""
    return (first + second) % 2**64


def block_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """How many bytes of a box are verified at a time: whole slices along its last dimensions where they are small.

    A reader of a part fetches whole blocks. Blocks of whole slices make a cut along the first dimensions cost
    nothing extra; 4 KiB to 1 MiB keep the list of digests below half a percent.
    """
    size = math.prod(shape) * itemsize
    limit = min(max(size // _BLOCKS, _MIN_BLOCK), _MAX_BLOCK)
    unit = size
    # Dimensions are taken off from the front until a slice is small enough; then as many slices as fit.
    for length in shape:
        if unit <= limit:
            break
        unit //= length
    return unit * max(1, limit // unit) if unit else 1


def block_digests(data: memoryview, block: int) -> str:
    """The xxh3_64 of every block of `data`, 16 hexadecimal digits each, one after the other."""
    return "".join(xxhash.xxh3_64_hexdigest(data[start : start + block]) for start in range(0, len(data), block))


def num_blocks(size: int, block: int) -> int:
    """How many blocks `size` bytes have."""
    return -(-size // block)
