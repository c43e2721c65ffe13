"""Weights that are used together: those of a block, of the embedding, or of the head."""

from dataclasses import dataclass

import mindspore as ms
from mindspore import Parameter, Tensor, nn

from mindmoe.models.gpt_oss.parameters import ParamSpec
from mindmoe.parallel.box import Box
from mindmoe.parallel.collectives import AllGather
from mindmoe.parallel.groups import Group, Groups
from mindmoe.parallel.init import initial_value
from mindmoe.parallel.sharding import Placement
from mindmoe.parallel.zero import Whole, ZeroBuffer


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardedTensor:
    """A box of a tensor of the whole run, on this rank: a weight, its master copy, or a moment of its.

    Attributes:
        spec: what it is. A moment has the row of its parameter under a name of its own, `adam_m.<name>`.
        placement: where it lies.
        box: what `param` holds of the placement: what the model keeps, or the part that this rank updates.
        param: MindSpore's parameter, shape box.shape.
    """

    spec: ParamSpec
    placement: Placement
    box: Box
    param: Parameter


class Unit(nn.Cell):
    """The parameters of a unit, created on this rank; under ZeRO 3 only its parts, gathered by `whole`.

    Args:
        placed: its weights in order, each with its place.
        groups: this rank's groups.
        seed: seed of the run.
        std: standard deviation of `normal` parameters.
    """

    def __init__(self, placed: list[tuple[ParamSpec, Placement]], groups: Groups, seed: int, std: float):
        # Parameters keep the names of their specs, which files and moments go by; a prefix would rename them.
        super().__init__(auto_prefix=False)
        self.count = len(placed)
        self.tensors: list[ShardedTensor] = []
        self.intact: list[int] = []  # places of weights that are there as they are
        self.gathers: list[_Gather] = []
        # One collective for all weights with the same replicas: those of dense and of expert weights usually differ.
        spread: dict[tuple[int, ...], list[int]] = {}
        for place, (_, placement) in enumerate(placed):
            if placement.zero == 3:
                spread.setdefault(placement.replicas, []).append(place)
            else:
                self.intact.append(place)
        created = list(self.intact)
        for ranks, places in spread.items():
            shapes = [placed[place][1].box.shape for place in places]
            # what a gather needs is one run of `params`, from len(created) on; empty parts have no parameter
            self.gathers.append(_Gather(shapes, groups.of(ranks, "replicas"), places, len(created)))
            created += [place for place in places if placed[place][1].part.size]
        for spec, placement in (placed[place] for place in created):
            value = Tensor(initial_value(spec, placement.kept, seed, std))
            param = Parameter(value, name=spec.name, requires_grad=spec.trainable)
            self.tensors.append(ShardedTensor(spec=spec, placement=placement, box=placement.kept, param=param))
        self.params = ms.ParameterTuple([tensor.param for tensor in self.tensors])

    def whole(self, params: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What `params` holds of the weights -> all weights in the order of the unit."""
        if not self.gathers:
            return params
        # the intact ones come first in `params`, those of the gathers follow: hence not strict
        full: dict[int, Tensor] = dict(zip(self.intact, params, strict=False))
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
        # see Whole: a single tensor comes without a tuple
        return (whole,) if len(self.places) == 1 else whole
