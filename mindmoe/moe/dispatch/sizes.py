"""How many rows an expert may take (dry)."""

import math

from mindmoe.moe.config import MoeConfig


def capacity_rows(moe: MoeConfig, num_tokens: int) -> int:
    """Rows an expert may take from `num_tokens` tokens: ceil(factor * T * K / E), at most all T."""
    rows = math.ceil(moe.dispatch.capacity_factor * num_tokens * moe.num_experts_per_tok / moe.num_experts)
    return min(num_tokens, rows)


def chunk_tokens(moe: MoeConfig, seq_length: int) -> int:
    """Tokens of a chunk: as configured, else the whole sequence."""
    return moe.dispatch.capacity_chunk or seq_length


def node_grid(ranks: tuple[int, ...], node_size: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The expert ranks as nodes x places: groups of equal places across nodes, and groups inside nodes."""
    nodes = [ranks[start : start + node_size] for start in range(0, len(ranks), node_size)]
    # Column i of the grid: place i of every node
    return [tuple(place) for place in zip(*nodes, strict=True)], nodes
