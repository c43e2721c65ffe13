"""Collectives for Ascend: HCCL's own operators by MindSpore's documented interface. Never run for want of a card."""

import mindspore as ms
from mindspore import Tensor, mint, ops

from mindmoe.parallel.groups import Group
from mindmoe.parallel.primitives import Primitives


class Native(Primitives):
    """The collectives of one group, without gradients; arguments as in composed.Composed."""

    table = {
        "all_reduce": "AllReduce",
        "all_gather": "AllGather",
        "reduce_scatter": "ReduceScatter",
        "all_to_all": "AlltoAll",
        "all_to_all_v": "AlltoAllV",
        "shift": "Send, Receive",
        "send, receive": "Send, Receive",
    }

    def __init__(self, group: Group):
        super().__init__(group)
        self.reduce = ops.AllReduce(group=group.name)
        self.gather = ops.AllGather(group.name)
        self.scatter = ops.ReduceScatter(group=group.name)
        self.exchange = ops.AlltoAll(split_count=group.size, split_dim=0, concat_dim=0, group=group.name)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the group."""
        return self.reduce(x)

    def all_gather(self, x: Tensor) -> Tensor:
        """x of every rank, stacked on a new first dimension."""
        # HCCL lays the parts one after the other along the first dimension: of size 1, it becomes the stack
        return self.gather(x.expand_dims(0))

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """x (P, ...) -> the sum over the group of row `index`."""
        # (P, ...) -> (1, ...): HCCL cuts the first dimension and keeps it
        return self.scatter(x)[0]

    def all_to_all(self, x: Tensor) -> Tensor:
        """Row p of x (P, ...) goes to rank p."""
        return self.exchange(x)

    def all_to_all_v(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Rows of x (R, ...) in order of their target."""
        out = ops.zeros((sum(received), *x.shape[1:]), x.dtype)
        # the output comes first, and its splits before those of the input
        mint.distributed.all_to_all_single(out, x, received, sent, group=self.group.name)
        return out

    def send(self, x: Tensor, to: int) -> None:
        """Sends x to the rank in place `to`."""
        mint.distributed.send(x, self.ranks[to], group=self.group.name)

    def receive(self, shape: tuple[int, ...], dtype: ms.Type, source: int) -> Tensor:
        """A tensor from the rank in place `source`."""
        out = ops.zeros(shape, dtype)
        mint.distributed.recv(out, self.ranks[source], group=self.group.name)
        return out
