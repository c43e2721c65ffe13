"""A box of a tensor: what a rank holds of a parameter, a file of a checkpoint stores, or a reader asks for (dry)."""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class Box:
    """Consecutive indices along every dimension of a tensor.

    Attributes:
        offset: first index of each dimension, in the whole tensor.
        shape: size of the box.
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> "Box":
        """All of a tensor."""
        return cls((0,) * len(shape), shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def index(self) -> tuple[slice, ...]:
        """The box as an index into the whole tensor."""
        return tuple(slice(start, start + size) for start, size in zip(self.offset, self.shape, strict=True))

    def cut(self, dim: int, start: int, size: int) -> "Box":
        """The part of the box that begins `start` after its own offset along `dim`."""
        offset = [at + start * (d == dim) for d, at in enumerate(self.offset)]
        shape = [size if d == dim else length for d, length in enumerate(self.shape)]
        return Box(tuple(offset), tuple(shape))

    def overlap(self, other: "Box") -> "Box | None":
        """What two boxes share; None if they share nothing."""
        low = tuple(map(max, self.offset, other.offset))
        high = (min(one.stop, two.stop) for one, two in zip(self.index, other.index, strict=True))
        size = tuple(end - start for end, start in zip(high, low, strict=True))
        return Box(low, size) if all(length > 0 for length in size) else None

    def inside(self, other: "Box") -> "Box":
        """The same box as seen from the first element of `other`: its index is one into an array that holds `other`."""
        return Box(tuple(at - origin for at, origin in zip(self.offset, other.offset, strict=True)), self.shape)
