"""What the collectives of this process have sent, by axis and kind: counted op by op, held against closed forms."""

from collections import defaultdict

SENT: dict[tuple[str, str], float] = defaultdict(float)
"""(axis, kind of collective) -> bytes that this rank has sent to others."""


def count(axis: str, kind: str, num_bytes: float) -> None:
    """Adds to what was sent [bytes]."""
    SENT[axis, kind] += num_bytes


def all_reduce_bytes(num_bytes: float, ranks: int) -> float:
    """Bytes that a rank sends for a ring all-reduce of a tensor of `num_bytes`: reduce-scatter, then all-gather."""
    return 2.0 * num_bytes * (ranks - 1) / ranks


def exchange_bytes(num_bytes: float, ranks: int) -> float:
    """Bytes that a rank sends of a tensor of `num_bytes`, one part for each rank: reduce-scatter and all-to-all."""
    return num_bytes * (ranks - 1) / ranks


def gather_bytes(num_bytes: float, ranks: int) -> float:
    """Bytes that a rank sends for an all-gather where it contributes `num_bytes`."""
    return num_bytes * (ranks - 1)
