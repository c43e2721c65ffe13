"""Birth of parameters, and where a block finds its own among those it is called with."""

from collections.abc import Sequence

from mindspore import Parameter, Tensor

from mindmoe.model.shapes import ParamSpec
from mindmoe.parallel.box import Box
from mindmoe.parallel.init import initial_value


def new_parameter(spec: ParamSpec, shard: Box, seed: int, std: float) -> Parameter:
    """A parameter holding a box of `spec`, initialised.

    Args:
        spec: the parameter in the table.
        shard: the box.
        seed: seed of the run.
        std: standard deviation of `normal` parameters.
    """
    return Parameter(Tensor(initial_value(spec, shard, seed, std)), name=spec.name, requires_grad=spec.trainable)


class Slots:
    """Places of names in the tuple of weights that a block is called with, seen from below a prefix.

    Args:
        names: of the weights, in their order.
        prefix: what all names that are asked for begin with.
    """

    def __init__(self, names: Sequence[str], prefix: str = ""):
        self.names, self.prefix = tuple(names), prefix

    def at(self, name: str) -> "Slots":
        """The same, seen from below `name`."""
        return Slots(self.names, f"{self.prefix}{name}.")

    def __getitem__(self, name: str) -> int:
        """The place of a name.

        Raises:
            ValueError: there is no such weight.
        """
        return self.names.index(self.prefix + name)

    def get(self, name: str) -> int | None:
        """The place of an optional weight, None where the model has none."""
        return self[name] if self.prefix + name in self.names else None


def take(weights: tuple[Tensor, ...], place: int | None) -> Tensor | None:
    """An optional weight."""
    return None if place is None else weights[place]
