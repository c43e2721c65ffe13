"""The degrees of the mesh axes."""

from typing import Literal

from pydantic import PositiveInt

from mindmoe.schema import Section


class ParallelConfig(Section):
    """Degrees: data, tensor, pipeline, expert and context. `dp: auto` takes the cards the others leave."""

    dp: PositiveInt | Literal["auto"] = "auto"
    tp: PositiveInt = 1
    pp: PositiveInt = 1
    ep: PositiveInt = 1
    cp: PositiveInt = 1
