"""Which set the i-th sample of a mixture comes from, as a pure function of i.

Time is cut into blocks of BLOCK samples. A set of weight w gives the same number of samples to every block,
w * BLOCK rounded so that the counts add up, and they are spread evenly through the block: the shares are exact
after every block and within a sample or so at every point between. One table of a block is all the state.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mindmoe.host.errors import UserError

BLOCK = 1 << 16


def block_counts(weights: Sequence[float]) -> NDArray[np.int64]:
    """(sets,) samples of each set in a block: the shares by largest remainder, summing to BLOCK.

    Args:
        weights: (sets,) positive, of any sum.

    Raises:
        UserError: a weight is so small beside the others that its set would never be read.
    """
    exact = np.asarray(weights, np.float64) / np.sum(weights) * BLOCK
    counts = np.floor(exact).astype(np.int64)
    # Ties go to the earlier set: a stable sort makes the mixture the same everywhere.
    by_remainder = np.argsort(-(exact - counts), kind="stable")
    # Rounding down leaves fewer than `sets` samples over; those that lost most by it get one each.
    counts[by_remainder[: BLOCK - int(counts.sum())]] += 1
    if (counts == 0).any():
        unread = int(np.argmin(counts))
        raise UserError(
            f"weight {weights[unread]} of source {unread} is a share below 1/{BLOCK} and would never be read",
            "raise that weight or remove the source",
        )
    return counts


class Blend:
    """The mixture of sets by weight.

    Args:
        weights: (sets,) positive, of any sum.
    """

    def __init__(self, weights: Sequence[float]):
        self.counts = block_counts(weights)
        sets = np.repeat(np.arange(len(weights)), self.counts)
        ranks = np.concatenate([np.arange(count) for count in self.counts])
        # The m-th of c samples stands in the middle of the m-th of c equal parts of the block.
        order = np.argsort((ranks + 0.5) / self.counts[sets], kind="stable")
        self._set = sets[order].astype(np.int32)
        self._rank = ranks[order].astype(np.int32)

    def __call__(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The origin of samples.

        Args:
            index: (k,) sample numbers from 0.

        Returns:
            (k,) the set of each, and (k,) how many samples that set has given before.
        """
        block, position = np.divmod(np.asarray(index, np.int64), BLOCK)
        sets = self._set[position].astype(np.int64)
        # Every block takes the same number from a set, so those before this one need no table.
        return sets, block * self.counts[sets] + self._rank[position]
