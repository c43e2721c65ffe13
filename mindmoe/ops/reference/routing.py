"""Rows into the order of their experts and back."""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.ops.contract import CombineOp, OpShape, PermuteOp
from mindmoe.ops.reference.expert_ffn import build_block_layout
from mindmoe.ops.slots import FromSlots, ToSlots


def build_permute(shape: OpShape) -> Callable[[int], PermuteOp]:
    """A permutation by number of targets."""
    return _permute


def _permute(num_targets: int) -> PermuteOp:
    # Blocks of one row: experts lie without gaps between them.
    layout, to_slots, on, off = build_block_layout(1), ToSlots(), Tensor(1.0), Tensor(0.0)

    def permute(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = ids.reshape(-1)
        # Below 0 and above N alike are dropped, which the layout knows as N.
        flat = ops.select((flat >= 0) & (flat < num_targets), flat, ops.full_like(flat, num_targets))
        slot, source, _ = layout(flat, num_targets)
        # The layout has T*K + N blocks, its bound for any block size; with one row the first T*K hold all.
        rows = to_slots(x, slot, source)[: flat.shape[0]]
        slot = ops.select(flat < num_targets, slot, ops.full_like(slot, -1)).reshape(ids.shape)
        return rows, slot, ops.one_hot(flat, num_targets, on, off).sum(0).astype(ms.int32)

    return permute


def build_combine(shape: OpShape) -> CombineOp:
    """A gather and a sum; it needs no counts."""
    from_slots = FromSlots()

    def combine(rows: Tensor, slot: Tensor, gates: Tensor, counts: Tensor | None) -> Tensor:
        num, flat = rows.shape[0], slot.reshape(-1)
        flat = ops.select(flat >= 0, flat, ops.full_like(flat, num))
        # The inverse that FromSlots needs for its gradient. It exists because no two assignments name the same row.
        index = ops.arange(0, flat.shape[0], dtype=ms.int32)
        source = ops.tensor_scatter_elements(ops.full((num + 1,), flat.shape[0], dtype=ms.int32), flat, index)[:-1]
        chosen = from_slots(rows, flat, source).reshape((*slot.shape, -1))
        return (chosen * gates.expand_dims(2)).sum(1)

    return combine
