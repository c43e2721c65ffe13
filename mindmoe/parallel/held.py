"""What a rank holds of the training state: the record that checkpoints and comparisons read."""

from dataclasses import dataclass
from typing import Any

from mindmoe.parallel.box import Box


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A box of a tensor of the whole run.

    Attributes:
        name: the tensor's name; both moments of a parameter are `adam_m.<name>` and `adam_v.<name>`.
        shape: global shape.
        box: which; it may be empty.
        param: MindSpore's parameter with the values of the box, shape box.shape.
    """

    name: str
    shape: tuple[int, ...]
    box: Box
    param: Any
