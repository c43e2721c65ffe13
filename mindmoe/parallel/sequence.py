"""Which tokens of a sequence a rank holds (dry).

Context parallelism cuts a sequence into 2 * cp chunks and gives rank r chunks r and 2 * cp - 1 - r, so that causal
attention costs every rank the same. Sequence parallelism cuts what a context rank holds into tp contiguous parts.
"""

import numpy as np

from mindmoe.parallel.mesh import Mesh


def context_positions(seq_length: int, cp: int, index: int) -> np.ndarray:
    """Global positions (S / cp) int64 of the tokens of a context rank, in the order in which it holds them."""
    if cp == 1:
        return np.arange(seq_length)
    # row i is chunk i: an early one has few keys before it, and its late partner makes up for that
    chunks = np.arange(seq_length).reshape(2 * cp, -1)
    return np.concatenate([chunks[index], chunks[2 * cp - 1 - index]])


def token_positions(seq_length: int, mesh: Mesh, rank: int) -> np.ndarray:
    """Global positions (S / (cp * tp)) int64 of the tokens whose hidden states a rank holds between blocks."""
    place = mesh.places[rank]
    return np.split(context_positions(seq_length, mesh.cp, place.cp), mesh.tp)[place.tp]


def context_order(seq_length: int, cp: int) -> np.ndarray:
    """Where each global position stands when the context ranks' tokens are laid one after the other (S) int64."""
    held = np.concatenate([context_positions(seq_length, cp, index) for index in range(cp)])
    # `held` gives the position at each place; sorting a permutation by its values inverts it
    return np.argsort(held)
