"""Collectives for MindSpore's CPU backend, composed of what it has.

mccl has one collective for every group, the fp32 all-reduce, and point-to-point messages; everything else is written
with them. Integers travel as two halves of 16 bits, so they are exact; bf16 and fp16 travel as fp32. Large floats of
ranks on one host go through memory that they share.
"""

from functools import cached_property

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, ops

from mindmoe.parallel.groups import WORLD, Group
from mindmoe.parallel.primitives import Primitives
from mindmoe.parallel.shared import MIN_BYTES, Shared, join

_HALF = 1 << 16
_MESSAGE = 1 << 18  # elements of a point-to-point message: 1 MB of fp32, mccl stalls on messages of 8 MB


class Composed(Primitives):
    """The collectives of one group, without gradients. `table` says what each is made of."""

    table = {
        "all_reduce": "AllReduce in fp32",
        "all_gather": "AllReduce of zeros with one row filled; AllGather where the group is the world",
        "reduce_scatter": "AllReduce, own row kept",
        "all_to_all": "all_gather, own column kept",
        "all_to_all_v": "send and receive in messages of 1 MB",
        "shift": "send and receive",
        "send, receive": "send and receive in messages of 1 MB",
        "on one host": "memory that the ranks share, for large floats in all but messages",
    }

    def __init__(self, group: Group):
        super().__init__(group)
        self.reduce = ops.AllReduce(group=group.name)
        # (P): 1 at this rank's place, else 0
        self.mine = Tensor((np.arange(group.size) == group.index).astype(np.float32))
        # mccl gathers in its group of all ranks only
        self.gather = ops.AllGather(group.name) if group.name == WORLD["cpu"] else None

    @cached_property
    def shared(self) -> Shared | None:
        """The memory of this group; all its ranks ask for it first in the same call."""
        return join(self.group, lambda values: self.reduce(Tensor(values)).asnumpy())

    def memory_for(self, x: Tensor) -> Shared | None:
        """The memory that x goes through; None where MindSpore's own collective takes no longer, or there is none."""
        # By type and size alone, which are the same on all ranks of a collective: ranks that chose differently would
        # wait for each other for ever. All that is not int32 travels as fp32, 4 bytes an element.
        return None if x.dtype == ms.int32 or 4 * x.size < MIN_BYTES else self.shared

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the group, in x's dtype."""
        memory = self.memory_for(x)
        return (memory("all_reduce", wire(x)) if memory else self.summed(wire(x))).astype(x.dtype)

    def all_gather(self, x: Tensor) -> Tensor:
        """x of every rank, stacked on a new first dimension in the order of the ranks."""
        memory = self.memory_for(x)
        return (memory("all_gather", wire(x)) if memory else self.gathered(wire(x))).astype(x.dtype)

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """x (P, ...) -> the sum over the group of row `index`."""
        memory = self.memory_for(x)
        return (memory("reduce_scatter", wire(x)) if memory else self.summed(wire(x))[self.index]).astype(x.dtype)

    def all_to_all(self, x: Tensor) -> Tensor:
        """x (P, ...) -> (P, ...): row p goes to rank p, row q of the result comes from rank q."""
        memory = self.memory_for(x)
        # without memory, (P, P, ...) by source and target: the column of this rank
        return (memory("all_to_all", wire(x)) if memory else self.gathered(wire(x))[:, self.index]).astype(x.dtype)

    def summed(self, x: Tensor) -> Tensor:
        """The sum over the group of fp32 or int32."""
        if x.dtype == ms.float32:
            return self.reduce(x)
        # x = 2^16 * high + low with 0 <= low < 2^16, for negative x too. fp32 holds integers below 2^24 exactly, so the
        # sum of low is exact for up to 256 ranks.
        low = ops.bitwise_and(x, ops.full_like(x, _HALF - 1))
        high = self.reduce(((x - low) // _HALF).astype(ms.float32)).astype(ms.int32)
        return high * _HALF + self.reduce(low.astype(ms.float32)).astype(ms.int32)

    def gathered(self, x: Tensor) -> Tensor:
        """fp32 or int32 of every rank, stacked."""
        if self.gather is not None and x.dtype == ms.float32:
            return self.gather(x.expand_dims(0))
        return self.summed(self.placed(x))

    def placed(self, x: Tensor) -> Tensor:
        """x (...), finite, -> (P, ...): x in this rank's row, zeros in the others."""
        # finite: 0 * inf would put NaN into the rows of others, and the sum would carry it there
        return x.expand_dims(0) * self.mine.astype(x.dtype).reshape((self.size,) + (1,) * x.ndim)

    def all_to_all_v(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Rows of x (R, ...) in order of their target -> the rows received, in order of their source.

        Without shared memory, in round r ranks i and r - i exchange, the lower one sending first, so that no cycle of
        ranks waits in sending.
        """
        # Whatever the size: it differs from rank to rank, and all must go the same way.
        if self.size > 1 and x.dtype != ms.int32 and self.shared is not None:
            # the op takes at least one row in and out, even where nothing is sent or received
            there = wire(x) if x.shape[0] else ops.zeros((1, *x.shape[1:]), ms.float32)
            return self.shared.all_to_all_v(there, sent, max(1, sum(received)))[: sum(received)].astype(x.dtype)
        starts = [sum(sent[:place]) for place in range(self.size)]
        parts = {self.index: x[starts[self.index] : starts[self.index] + sent[self.index]]}
        for turn in range(self.size):
            # so peer + index = turn modulo P: both ends of a pair meet in the same round
            peer = (turn - self.index) % self.size
            if peer == self.index:
                continue
            rows = x[starts[peer] : starts[peer] + sent[peer]]
            if self.index < peer:
                self.send(rows, peer)
            parts[peer] = self.receive((received[peer], *x.shape[1:]), x.dtype, peer)
            if self.index > peer:
                self.send(rows, peer)
        kept = [parts[place] for place in range(self.size) if received[place]]
        return ops.concat(kept, 0) if kept else x[:0]

    def send(self, x: Tensor, to: int) -> None:
        """Sends x to the rank in place `to`."""
        # Cut where `receive` cuts, so that message meets message; of an empty tensor there is none at either end.
        flat = x.reshape(-1).contiguous()
        for start in range(0, flat.shape[0], _MESSAGE):
            # mint names the other end by its global rank, in a group too
            mint.distributed.send(flat[start : start + _MESSAGE].contiguous(), self.ranks[to], group=self.group.name)

    def receive(self, shape: tuple[int, ...], dtype: ms.Type, source: int) -> Tensor:
        """A tensor from the rank in place `source`."""
        count = 1
        for size in shape:
            count *= size
        parts = []
        for start in range(0, count, _MESSAGE):
            part = ops.zeros((min(_MESSAGE, count - start),), dtype)
            mint.distributed.recv(part, self.ranks[source], group=self.group.name)
            parts.append(part)
        return ops.concat(parts, 0).reshape(shape) if parts else ops.zeros(shape, dtype)


def wire(x: Tensor) -> Tensor:
    """x as it travels: int32 as it is, floats in fp32."""
    return x if x.dtype == ms.int32 else x.astype(ms.float32)
