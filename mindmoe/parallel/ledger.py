"""What this process has asked of collectives, call by call: recorded op by op, held against lists made dry (dry)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One collective as one rank calls it. The calls of all ranks of a group are equal, but for messages.

    Attributes:
        kind: the verb, such as `all_gather`; `send` and `receive` are messages.
        axis: what the group runs along.
        ranks: global ranks of the group in order of their place.
        shape: what the rank passes, of a receive what it gets; -1 where the size follows the routing.
        dtype: of that.
        peer: the global rank at the other end of a message, else -1.
        sent: bytes that this rank sends to others; no part of what is compared.
    """

    kind: str
    axis: str
    ranks: tuple[int, ...]
    shape: Shape
    dtype: str = "Float32"
    peer: int = -1
    sent: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        sizes = ", ".join("?" if size < 0 else str(size) for size in self.shape)
        to = {"send": f" to rank {self.peer}", "receive": f" from rank {self.peer}"}.get(self.kind, "")
        return f"{self.kind}{to} over {self.axis} ({len(self.ranks)} ranks) of ({sizes}) {self.dtype}"


_OPEN: list[list[Call]] = []
"""Lists that are being filled."""


@contextmanager
def recording() -> Iterator[list[Call]]:
    """A list of the calls that this process makes in the context, in their order."""
    calls: list[Call] = []
    _OPEN.append(calls)
    try:
        yield calls
    finally:
        _OPEN.pop()


def is_open() -> bool:
    """Whether somebody listens."""
    return bool(_OPEN)


def note(call: Call) -> None:
    """Adds a call; a group of one exchanges nothing."""
    if len(call.ranks) > 1:
        # recordings may be nested: an outer one hears what an inner one hears
        for calls in _OPEN:
            calls.append(call)


def all_reduce_bytes(num_bytes: float, ranks: int) -> float:
    """Bytes that a rank sends for a ring all-reduce of a tensor of `num_bytes`: reduce-scatter, then all-gather."""
    return 2.0 * num_bytes * (ranks - 1) / ranks


def exchange_bytes(num_bytes: float, ranks: int) -> float:
    """Bytes that a rank sends of a tensor of `num_bytes`, one part for each rank: reduce-scatter and all-to-all."""
    return num_bytes * (ranks - 1) / ranks


def gather_bytes(num_bytes: float, ranks: int) -> float:
    """Bytes that a rank sends for an all-gather where it contributes `num_bytes`."""
    # round the ring a rank sends its own part and passes on all others but that of the rank after it
    return num_bytes * (ranks - 1)
