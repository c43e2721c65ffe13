"""What a rank holds of the training state: the record that checkpoints and comparisons read."""

from dataclasses import dataclass
from typing import Any

from mindmoe.parallel.sharding import Shard


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A box of a tensor of the whole run.

    Attributes:
        name: the tensor's name; both moments of a parameter are `adam_m.<name>` and `adam_v.<name>`.
        shape: global shape.
        shard: the box; it may be empty.
        owner: True on exactly one of the ranks that hold this box, so that the owners' boxes tile the tensor.
        param: MindSpore's parameter with the values of the box, shape shard.shape.
    """

    name: str
    shape: tuple[int, ...]
    shard: Shard
    owner: bool
    param: Any
