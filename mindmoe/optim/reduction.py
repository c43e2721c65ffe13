"""From gradients of each rank's tokens to the gradient of the batch, in the form that the optimizer updates.

A gradient is summed over the ranks that hold the same box of its parameter: for dense weights those with other tokens,
for expert weights the expert-data replicas, and so on, with no special case, because the sharding table says who they
are. Without ZeRO everybody keeps the sum; with ZeRO 1 and 2 each replica keeps its part; with ZeRO 3 the sum was taken
where the weights had been gathered.
"""

from collections.abc import Callable
from math import prod

from mindspore import Tensor, ops

from mindmoe.parallel.collectives import AllReduce, ReduceScatter
from mindmoe.parallel.groups import Group, Groups
from mindmoe.parallel.sharding import buckets
from mindmoe.parallel.unit import ShardedTensor
from mindmoe.parallel.zero import ZeroBuffer


class Reduction:
    """The sums of the gradients of some parameters.

    Args:
        tensors: trainable parameters of the model on this rank.
        groups: this rank's groups.

    Attributes:
        groups: places of the parameters whose gradients are summed over a group.
        updated: places of those that this rank updates: it has a part of them that is not empty.
    """

    def __init__(self, tensors: list[ShardedTensor], groups: Groups):
        self.tensors = tensors
        self.groups: dict[Group, list[int]] = {}
        for place, tensor in enumerate(tensors):
            replicas = tensor.placement.replicas
            # under ZeRO 3 the backward of the gather has summed already; without replicas the own gradient is the sum
            if len(replicas) > 1 and tensor.placement.zero != 3:
                self.groups.setdefault(groups.of(replicas, "replicas"), []).append(place)
        self.updated = [place for place, tensor in enumerate(tensors) if tensor.placement.part.size]

    def build(self) -> Callable[..., tuple[Tensor, ...]]:
        """Returns reduce(*gradients) -> the gradients of those in `updated`; it runs op by op."""
        # in the order of the model's parameters, which is the same on all ranks of a stage
        steps = [step for group, places in self.groups.items() for step in self._steps(group, places)]
        updated = tuple(self.updated)

        def reduce(*gradients: Tensor) -> tuple[Tensor, ...]:
            summed = list(gradients)
            for places, pack, collective, unpack in steps:
                # one bucket at a time bounds what is packed
                parts = unpack(collective(pack(tuple(gradients[place] for place in places))))
                for place, part in zip(places, parts, strict=True):
                    summed[place] = part
            return tuple(summed[place] for place in updated)

        return reduce

    def _steps(self, group: Group, places: list[int]) -> list[tuple]:
        """One collective each: places, how their tensors are packed, the collective, how its result is unpacked."""
        shapes = [self.tensors[place].box.shape for place in places]
        steps: list[tuple] = []
        for bucket in buckets([prod(shape) for shape in shapes]):
            chosen, sizes = tuple(places[i] for i in bucket), [shapes[i] for i in bucket]
            if self.tensors[places[0]].placement.zero:  # all of a group are under the same stage, 1 or 2
                buffer = ZeroBuffer(sizes, group.size, group.index)
                steps.append((chosen, buffer.rows, ReduceScatter(group), _spread(buffer)))
            else:
                steps.append((chosen, _flat, AllReduce(group), _split(sizes)))
        return steps


def _flat(tensors: tuple[Tensor, ...]) -> Tensor:
    # no copy for a tensor that is alone in its bucket, as large ones are
    return ops.concat([tensor.reshape(-1) for tensor in tensors]) if len(tensors) > 1 else tensors[0].reshape(-1)


def _split(shapes: list[tuple[int, ...]]) -> Callable[[Tensor], list[Tensor]]:
    """Returns split(flat) -> tensors of these shapes."""
    sizes = [prod(shape) for shape in shapes]

    def split(flat: Tensor) -> list[Tensor]:
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return [flat[end - size : end].reshape(shape) for end, size, shape in zip(ends, sizes, shapes, strict=True)]

    return split


def _spread(buffer: ZeroBuffer) -> Callable[[Tensor], list[Tensor]]:
    """Returns spread(row) -> a part for each tensor; for an empty part the row itself, which nobody reads."""

    def spread(row: Tensor) -> list[Tensor]:
        parts = iter(buffer.parts(row))
        return [next(parts) if buffer.size(i) else row for i in range(len(buffer.shapes))]

    return spread
