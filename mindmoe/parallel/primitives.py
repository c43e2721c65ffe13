"""What all collectives share, whatever they are made of: a group, and what follows from sending and receiving."""

import mindspore as ms
from mindspore import Tensor, nn

from mindmoe.parallel.groups import Group


class Primitives(nn.Cell):
    """The collectives of one group, without gradients."""

    def __init__(self, group: Group):
        super().__init__(auto_prefix=False)
        self.group, self.size, self.index, self.ranks = group, group.size, group.index, group.ranks

    def send(self, x: Tensor, to: int) -> None:
        """Sends x to the rank in place `to`."""
        raise NotImplementedError

    def receive(self, shape: tuple[int, ...], dtype: ms.Type, source: int) -> Tensor:
        """A tensor from the rank in place `source`."""
        raise NotImplementedError

    def shift(self, x: Tensor) -> Tensor:
        """x of the rank one place before, round the ring; even places send first."""
        following, before = (self.index + 1) % self.size, (self.index - 1) % self.size
        # A send may wait for its receive: if all sent first, the ring would stand still. Place 1, which there always
        # is, receives first, so the ring never closes, odd sizes included.
        if self.index % 2 == 0:
            self.send(x, following)
            return self.receive(x.shape, x.dtype, before)
        received = self.receive(x.shape, x.dtype, before)
        self.send(x, following)
        return received
