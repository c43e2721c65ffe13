"""Weights that are used together: those of a block, of the embedding, or of the head."""

from dataclasses import dataclass

import mindspore as ms
from mindspore import Parameter, Tensor, nn

from mindmoe.model.shapes import ParamSpec
from mindmoe.parallel.box import Box
from mindmoe.parallel.collectives import AllGather
from mindmoe.parallel.groups import Group
from mindmoe.parallel.sharding import zero_shard
from mindmoe.parallel.weights import new_parameter
from mindmoe.parallel.zero import Whole, ZeroBuffer


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """One parameter on this rank.

    Attributes:
        spec: its row of the table.
        box: what this rank computes with.
        replicas: the ranks that compute with the same box.
    """

    spec: ParamSpec
    box: Box
    replicas: Group

    @property
    def part(self) -> Box:
        """What ZeRO leaves to this rank of the box."""
        return zero_shard(self.box, self.replicas.size, self.replicas.index)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A parameter of the model on this rank.

    Attributes:
        param: MindSpore's parameter.
        placement: where it lies.
        shard: the box that `param` holds: the placement's, or its part under ZeRO 3.
    """

    param: Parameter
    placement: Placement
    shard: Box

    @property
    def in_parts(self) -> bool:
        """Whether every replica holds another part of the box."""
        return self.shard != self.placement.box


class Unit(nn.Cell):
    """The parameters of a unit, created on this rank; under ZeRO 3 only its parts, gathered by `whole`.

    Args:
        placements: of its weights, in order.
        sharded: whether trainable weights are kept in parts.
        seed: seed of the run.
        std: standard deviation of `normal` parameters.
    """

    def __init__(self, placements: list[Placement], sharded: bool, seed: int, std: float):
        super().__init__(auto_prefix=False)
        self.count = len(placements)
        self.entries: list[Entry] = []
        self.kept: list[int] = []  # places of weights that are there as they are
        self.gathers: list[_Gather] = []
        cut: dict[Group, list[int]] = {}

        def create(at: Placement, shard: Box) -> None:
            param = new_parameter(at.spec, shard, seed, std)
            self.entries.append(Entry(param=param, placement=at, shard=shard))

        for place, at in enumerate(placements):
            if sharded and at.spec.trainable and at.replicas.size > 1:
                cut.setdefault(at.replicas, []).append(place)
            else:
                self.kept.append(place)
                create(at, at.box)
        for group, places in cut.items():
            shapes = [placements[place].box.shape for place in places]
            self.gathers.append(_Gather(shapes, group, places, len(self.entries)))
            for place in places:
                if placements[place].part.size:
                    create(placements[place], placements[place].part)
        self.params = ms.ParameterTuple([entry.param for entry in self.entries])

    def whole(self, params: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What `params` holds of the weights -> all weights in the order of the unit."""
        if not self.gathers:
            return params
        full: dict[int, Tensor] = dict(zip(self.kept, params, strict=False))
        for gather in self.gathers:
            full |= dict(zip(gather.places, gather(params), strict=True))
        return tuple(full[place] for place in range(self.count))


class _Gather:
    """Gathers the parts of weights with the same replicas in one collective; their gradients are reduce-scattered."""

    def __init__(self, shapes: list[tuple[int, ...]], group: Group, places: list[int], start: int):
        self.places, self.start = places, start
        self.buffer = ZeroBuffer(shapes, group.size, group.index)
        self.gather, self.whole = AllGather(group), Whole(self.buffer)
        self.count = sum(self.buffer.size(i) > 0 for i in range(len(shapes)))

    def __call__(self, params: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        row = self.buffer.row(params[self.start : self.start + self.count])
        whole = self.whole(self.gather(row))
        return (whole,) if len(self.places) == 1 else whole
