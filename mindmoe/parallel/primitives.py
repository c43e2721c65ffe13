"""What all collectives share, whatever they are made of: a group, and what follows from sending and receiving."""

import mindspore as ms
from mindspore import Tensor, nn

from mindmoe.parallel.groups import Group


class Primitives(nn.Cell):
    """The collectives of one group, without gradients."""

    def __init__(self, group: Group):
        super().__init__(auto_prefix=False)
        self.group, self.size, self.index, self.ranks = group, group.size, group.index, group.ranks

    def eager(self, verb: str, x: Tensor) -> Tensor:
        """A verb of x op by op, where it may be made of something else than in graphs."""
        return getattr(self, verb)(x)

    def send(self, x: Tensor, to: int) -> None:
        """Sends x to the rank in place `to`; not in graphs."""
        raise NotImplementedError

    def receive(self, shape: tuple[int, ...], dtype: ms.Type, source: int) -> Tensor:
        """A tensor from the rank in place `source`; not in graphs."""
        raise NotImplementedError

    def all_gather(self, x: Tensor) -> Tensor:
        """x of every rank, stacked on a new first dimension in the order of the ranks."""
        raise NotImplementedError

    def shift_in_graph(self, x: Tensor) -> Tensor:
        """What `shift` does, for graphs: x of every rank, of which one is kept."""
        return self.all_gather(x)[(self.index - 1) % self.size]

    def shift(self, x: Tensor) -> Tensor:
        """x of the rank one place before, round the ring; even places send first. Not in graphs."""
        following, before = (self.index + 1) % self.size, (self.index - 1) % self.size
        if self.index % 2 == 0:
            self.send(x, following)
            return self.receive(x.shape, x.dtype, before)
        received = self.receive(x.shape, x.dtype, before)
        self.send(x, following)
        return received
