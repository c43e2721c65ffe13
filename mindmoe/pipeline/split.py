"""Which layers form which piece of the network, and which stage holds it (dry)."""

from dataclasses import dataclass

from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.parallel.config import ParallelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Consecutive layers of the network, with the embedding before the first and the head after the last.

    Attributes:
        layers: numbers of its layers.
        first: whether it starts from token ids.
        last: whether it ends in the loss.
    """

    layers: range
    first: bool
    last: bool

    def holds(self, name: str, tied: bool) -> bool:
        """Whether a parameter belongs to this piece; tied embeddings belong to the first and the last one, what routers
        of all layers share to each."""
        if name.startswith("model.layers."):
            return int(name.split(".")[2]) in self.layers
        # tied embeddings are the head's weight too: two stages hold them, and their gradients are summed
        if name == "model.embed_tokens.weight":
            return self.first or (tied and self.last)
        if name.startswith(("model.norm.", "lm_head.")):
            return self.last
        return True  # what is left is the routers'

    def recomputed(self, config: ParallelConfig) -> int:
        """How many of its layers, from the first on, compute something again in their backward pass."""
        if config.recompute == "none":
            return 0
        count = len(self.layers)
        return count if config.recompute_layers == "all" else min(count, config.recompute_layers)


def layer_counts(num_layers: int, config: ParallelConfig) -> list[int]:
    """Layers of every piece, in the order of the forward pass; an even split gives early pieces one layer more.

    The last piece also computes the logits, so where the layers do not divide evenly it is among the short ones.
    """
    if config.split != "even":
        return list(config.split)
    pieces = config.pp * config.chunks
    short, extra = divmod(num_layers, pieces)
    # the first `extra` pieces have one layer more
    return [short + (place < extra) for place in range(pieces)]


def build_pieces(model: ModelConfig, config: ParallelConfig) -> list[Piece]:
    """All pieces in the order of the forward pass; piece `p` is chunk `p // pp` of stage `p % pp`."""
    counts = layer_counts(model.num_hidden_layers, config)
    starts = [sum(counts[:place]) for place in range(len(counts))]
    return [
        Piece(layers=range(start, start + count), first=place == 0, last=place == len(counts) - 1)
        for place, (start, count) in enumerate(zip(starts, counts, strict=True))
    ]


def whole(model: ModelConfig) -> Piece:
    """The network as one piece."""
    return Piece(layers=range(model.num_hidden_layers), first=True, last=True)


def stage_pieces(pieces: list[Piece], stage: int, stages: int) -> list[Piece]:
    """The pieces of a stage, by chunk."""
    return pieces[stage::stages]


def holding_stages(pieces: list[Piece], stages: int, name: str, tied: bool) -> tuple[int, ...]:
    """The stages that hold a parameter, ascending."""
    return tuple(sorted({place % stages for place, piece in enumerate(pieces) if piece.holds(name, tied)}))
