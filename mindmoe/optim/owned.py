"""What this rank updates, and how the other ranks learn of it."""

from mindspore import Parameter, Tensor, ops

from mindmoe.optim.reduction import Reduction
from mindmoe.parallel.box import Box
from mindmoe.parallel.collectives import AllGather
from mindmoe.parallel.held import Held
from mindmoe.parallel.sharding import buckets
from mindmoe.parallel.unit import Entry, Placement
from mindmoe.parallel.zero import ZeroBuffer


class Owned:
    """The parameters that the optimizer of this rank updates.

    Without ZeRO, and with ZeRO 3, they are the model's own. With ZeRO 1 and 2 they are fp32 master copies of this
    rank's parts, and `publish` brings the updated parts to everybody.

    Args:
        entries: trainable parameters of the model on this rank.
        reduction: says which of them are cut.
    """

    def __init__(self, entries: list[Entry], reduction: Reduction):
        self.entries, self.reduction = entries, reduction
        self.params: list[Parameter] = []
        self.boxes: list[Box] = []
        for place in reduction.updated:
            entry = entries[place]
            self.params.append(_master(entry) if reduction.is_cut[place] else entry.param)
            self.boxes.append(entry.placement.part if reduction.is_cut[place] else entry.shard)
        self.placements: list[Placement] = [entries[place].placement for place in reduction.updated]
        self.decays = [placement.spec.decay for placement in self.placements]
        self._published = self._publications()

    @property
    def counted(self) -> list[int]:
        """Places of the updated parameters whose gradient this rank counts in the norm of the whole gradient."""
        return [
            i
            for i, place in enumerate(self.reduction.updated)
            if self._in_parts(place) or self.placements[i].replicas.index == 0
        ]

    def _in_parts(self, place: int) -> bool:
        return self.reduction.is_cut[place] or self.entries[place].in_parts

    def held(self, params: list[Parameter], prefix: str = "") -> list[Held]:
        """Records of tensors that lie as the updated parameters do: these themselves, or their moments."""
        return [
            Held(name=prefix + placement.spec.name, shape=placement.spec.shape, box=box, param=param)
            for param, placement, box in zip(params, self.placements, self.boxes, strict=True)
        ]

    def publish(self) -> None:
        """Sets the model's parameters from everybody's master parts; nothing to do where they are the same."""
        for buffer, gather, masters, targets in self._published:
            for target, whole in zip(targets, buffer.whole(gather(buffer.row(masters))), strict=True):
                ops.assign(target, whole)  # in place: a compiled step would not see a new tensor

    def _publications(self) -> list[tuple[ZeroBuffer, AllGather, tuple[Parameter, ...], tuple[Parameter, ...]]]:
        """One collective each: the buffer, the collective, this rank's masters, and what they are the parts of.

        Buckets bound what is whole at a time.
        """
        at = {place: i for i, place in enumerate(self.reduction.updated)}
        made = []
        for group, places in self.reduction.groups.items():
            if not self.reduction.is_cut[places[0]]:
                continue
            for bucket in buckets([self.entries[place].placement.box.size for place in places]):
                chosen = [places[i] for i in bucket]
                entries = [self.entries[place] for place in chosen]
                buffer = ZeroBuffer([entry.placement.box.shape for entry in entries], group.size, group.index)
                masters = tuple(self.params[at[place]] for place in chosen if place in at)
                made.append((buffer, AllGather(group), masters, tuple(entry.param for entry in entries)))
        return made


def _master(entry: Entry) -> Parameter:
    """An fp32 copy of this rank's part."""
    box, part = entry.placement.box, entry.placement.part
    values = entry.param.asnumpy()[part.inside(box).index].copy()
    return Parameter(Tensor(values), name=f"master.{entry.param.name}", requires_grad=False)
