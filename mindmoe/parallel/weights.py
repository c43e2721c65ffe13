"""Birth of parameters: a cell asks for its weights by name and gets this rank's shard, initialised."""

from mindspore import Parameter, Tensor

from mindmoe.model.shapes import ParamSpec
from mindmoe.parallel.init import initial_value
from mindmoe.parallel.mesh import Mesh
from mindmoe.parallel.sharding import local_shard


class Weights:
    """The parameters of one rank, created on demand from the table.

    Args:
        specs: the table of the whole model.
        mesh: the rank grid.
        rank: this rank.
        seed: seed of the run.
        std: standard deviation of `normal` parameters.
    """

    def __init__(self, specs: dict[str, ParamSpec], *, mesh: Mesh, rank: int, seed: int, std: float, prefix: str = ""):
        self.specs, self.mesh, self.rank, self.seed, self.std, self.prefix = specs, mesh, rank, seed, std, prefix

    def at(self, name: str) -> "Weights":
        """The same, seen from below `name`."""
        return Weights(
            self.specs, mesh=self.mesh, rank=self.rank, seed=self.seed, std=self.std, prefix=f"{self.prefix}{name}."
        )

    def __getitem__(self, name: str) -> Parameter:
        """A new parameter holding this rank's shard.

        Raises:
            KeyError: the table has no such parameter.
        """
        spec = self.specs[self.prefix + name]
        value = initial_value(spec, local_shard(spec, self.mesh, self.rank), self.seed, self.std)
        return Parameter(Tensor(value), name=spec.name, requires_grad=spec.trainable)

    def get(self, name: str) -> Parameter | None:
        """The parameter if the table has it, else None: optional biases and sinks."""
        return self[name] if self.prefix + name in self.specs else None
