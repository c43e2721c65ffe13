"""Where a block finds its own among the weights that it is called with."""

from mindspore import Tensor

Slots = dict[str, int]
"""The place of each weight in the tuple of a block's, by its name from the block on."""


def below(slots: Slots, name: str) -> Slots:
    """The weights of a part of a block, by their names from that part on."""
    return {full.removeprefix(f"{name}."): place for full, place in slots.items() if full.startswith(f"{name}.")}


def take(weights: tuple[Tensor, ...], place: int | None) -> Tensor | None:
    """An optional weight."""
    return None if place is None else weights[place]
