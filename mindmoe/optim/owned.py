"""What this rank updates, and how the other ranks learn of it."""

from collections.abc import Sequence
from dataclasses import replace

from mindspore import Parameter, Tensor, ops

from mindmoe.optim.reduction import Reduction
from mindmoe.parallel.collectives import AllGather
from mindmoe.parallel.sharding import buckets
from mindmoe.parallel.unit import ShardedTensor
from mindmoe.parallel.zero import ZeroBuffer


class Owned:
    """The tensors that the optimizer of this rank updates.

    Without ZeRO, and with ZeRO 3, they are the model's own. With ZeRO 1 and 2 they are fp32 master copies of this
    rank's parts, and `publish` brings the updated parts to everybody.

    Args:
        tensors: trainable parameters of the model on this rank.
        reduction: of their gradients.

    Attributes:
        tensors: what is updated, in the order of the reduced gradients.
        counted: places of those whose gradient this rank counts in the norm of the whole gradient.
    """

    def __init__(self, tensors: list[ShardedTensor], reduction: Reduction):
        # by place, so that masters stand where their parameters do, in the order of the reduced gradients
        updated = {place: tensors[place] for place in reduction.updated}
        masters = {place: _master(tensor) for place, tensor in updated.items() if tensor.placement.zero in (1, 2)}
        self.tensors = list((updated | masters).values())
        # Parts differ, so each rank counts its own; a whole gradient is equal on all replicas: the first counts it.
        self.counted = [
            i for i, tensor in enumerate(self.tensors) if tensor.placement.zero or tensor.placement.index == 0
        ]
        self._published: list[tuple[ZeroBuffer, AllGather, tuple[Parameter, ...], tuple[Parameter, ...]]] = []
        for group, places in reduction.groups.items():
            # all of a group are under the same stage of ZeRO, and none is under 3 (see Reduction)
            if not tensors[places[0]].placement.zero:
                continue
            for bucket in buckets([tensors[place].box.size for place in places]):  # bounds what is whole at a time
                chosen = [places[i] for i in bucket]
                buffer = ZeroBuffer([tensors[place].box.shape for place in chosen], group.size, group.index)
                # empty parts have no master; ZeroBuffer.row fills in for them
                own = tuple(masters[place].param for place in chosen if place in masters)
                targets = tuple(tensors[place].param for place in chosen)
                self._published.append((buffer, AllGather(group), own, targets))

    def beside(self, params: Sequence[Parameter], prefix: str) -> list[ShardedTensor]:
        """Tensors that lie as the updated ones do, such as their moments; their names begin with `prefix`."""
        return [
            replace(tensor, spec=replace(tensor.spec, name=prefix + tensor.spec.name), param=param)
            for tensor, param in zip(self.tensors, params, strict=True)
        ]

    def publish(self) -> None:
        """Sets the model's parameters from everybody's master parts; nothing to do where they are the same."""
        for buffer, gather, masters, targets in self._published:
            for target, whole in zip(targets, buffer.whole(gather(buffer.row(masters))), strict=True):
                ops.assign(target, whole)  # in place: a compiled step would not see a new tensor


def _master(tensor: ShardedTensor) -> ShardedTensor:
    """An fp32 copy of this rank's part."""
    part = tensor.placement.part
    # `part` counts from the whole tensor's first element, the array from the box's
    values = tensor.param.asnumpy()[part.inside(tensor.box).index].copy()
    param = Parameter(Tensor(values), name=f"master.{tensor.param.name}", requires_grad=False)
    return replace(tensor, box=part, param=param)
