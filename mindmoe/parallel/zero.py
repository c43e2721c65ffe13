"""ZeRO: tensors that are replicated over a group, cut into one part for each rank (arXiv 1910.02054).

Every tensor is cut along one dimension (sharding.zero_dim), so that a part is a box like any other. For a collective
the parts of several tensors are laid side by side: row r of a (P, L) buffer holds what rank r keeps of each, padded to
equal sizes.
"""

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindmoe.parallel.collectives import copies_are_slow, stacked, unstacked
from mindmoe.parallel.sharding import zero_columns, zero_depth, zero_dim

Shape = tuple[int, ...]


class ZeroBuffer:
    """How some tensors lie in the buffer of a group.

    Args:
        shapes: of the whole tensors.
        ranks: size of the group.
        index: place of this rank.
    """

    def __init__(self, shapes: list[Shape], ranks: int, index: int):
        self.shapes, self.ranks, self.index = tuple(shapes), ranks, index
        self.dims = tuple(zero_dim(shape, ranks) for shape in shapes)
        self.depths = tuple(zero_depth(shape, ranks) for shape in shapes)
        self.columns = tuple(zero_columns(shape, ranks) for shape in shapes)

    def rows(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Whole tensors -> (P, L)."""
        parts: tuple[Tensor, ...] = ()
        for i in range(len(self.shapes)):
            # (.., size, ..) -> (.., P * depth, ..) -> (P, columns)
            padded = self.padded(tensors[i], i, self.depths[i] * self.ranks)
            parts = (*parts, stacked(padded, self.dims[i], self.ranks).reshape((self.ranks, -1)))
        return ops.concat(parts, 1)

    def whole(self, rows: Tensor) -> tuple[Tensor, ...]:
        """(P, L) -> whole tensors."""
        tensors: tuple[Tensor, ...] = ()
        start = 0
        for i in range(len(self.shapes)):
            dim, size = self.dims[i], self.shapes[i][self.dims[i]]
            full = self.joined(rows, start, i)
            # cut the padding off
            if full.shape[dim] != size:
                full = ops.slice(full, (0,) * full.ndim, self.shapes[i])
            tensors = (*tensors, full)
            start = start + self.columns[i]
        return tensors

    def joined(self, rows: Tensor, start: int, i: int) -> Tensor:
        """Tensor i with its padding, of the columns of (P, L) from `start` on."""
        end, shape, dim = start + self.columns[i], self.part_shape(i), self.dims[i]
        # (P, columns) -> (P, *part) -> parts in order along the cut
        if not copies_are_slow(rows):
            return unstacked(rows[:, start:end].reshape((self.ranks, *shape)), dim)
        return ops.concat([rows[rank, start:end].reshape(shape) for rank in range(self.ranks)], dim)

    def row(self, parts: tuple[Tensor, ...]) -> Tensor:
        """This rank's parts, those that are not empty -> its row (L)."""
        flat: tuple[Tensor, ...] = ()
        given = 0
        for i in range(len(self.shapes)):
            # an empty part has no tensor, but takes its columns: rows of all ranks are equally long
            if self.size(i) == 0:
                flat = (*flat, ops.zeros((self.columns[i],), ms.float32))
            else:
                flat = (*flat, self.padded(parts[given], i, self.depths[i]).reshape(-1))
                given = given + 1
        return ops.concat(flat, 0)

    def parts(self, row: Tensor) -> tuple[Tensor, ...]:
        """A row (L) -> this rank's parts, those that are not empty."""
        parts: tuple[Tensor, ...] = ()
        start = 0
        for i in range(len(self.shapes)):
            if self.size(i) > 0:
                part = row[start : start + self.columns[i]].reshape(self.part_shape(i))
                # the last part that is not empty may be short
                if self.size(i) < self.depths[i]:
                    kept = tuple(
                        self.size(i) if dim == self.dims[i] else size for dim, size in enumerate(self.shapes[i])
                    )
                    part = ops.slice(part, (0,) * part.ndim, kept)
                parts = (*parts, part)
            start = start + self.columns[i]
        return parts

    def size(self, i: int) -> int:
        """What this rank keeps of tensor i along its cut."""
        # as in sharding.zero_part
        return max(0, min(self.depths[i], self.shapes[i][self.dims[i]] - self.index * self.depths[i]))

    def part_shape(self, i: int) -> Shape:
        """The padded part of tensor i."""
        return tuple(self.depths[i] if dim == self.dims[i] else size for dim, size in enumerate(self.shapes[i]))

    def padded(self, x: Tensor, i: int, size: int) -> Tensor:
        """x with zeros behind it along the cut of tensor i, to `size`."""
        dim = self.dims[i]
        missing = size - x.shape[dim]
        if missing == 0:
            return x
        shape = tuple(missing if d == dim else length for d, length in enumerate(x.shape))
        return ops.concat((x, ops.zeros(shape, x.dtype)), dim)


class Whole(nn.Cell):
    """`ZeroBuffer.whole` with a gradient: those of the whole tensors are laid out as one buffer.

    A single tensor comes without a tuple: op by op MindSpore takes a tuple of one for its member in the backward pass.

    MindSpore's own makes a buffer for every tensor, zeros but for its columns, and adds them all up; and its CPU kernel
    for the gradient of a slice refuses a buffer of more than 2 GiB, which a vocabulary projection fills.

    Args:
        buffer: how the tensors lie.
    """

    def __init__(self, buffer: ZeroBuffer):
        super().__init__(auto_prefix=False)
        self.buffer = buffer

        self.alone = len(buffer.shapes) == 1

    def construct(self, rows: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(P, L) -> whole tensors, or the only one."""
        tensors = self.buffer.whole(rows)
        return tensors[0] if self.alone else tensors

    def bprop(self, rows: Tensor, out: Any, dout: Any) -> tuple[Tensor]:
        """The gradients of whole tensors -> (P, L); padding has none."""
        return (self.buffer.rows((dout,) if self.alone else dout),)
