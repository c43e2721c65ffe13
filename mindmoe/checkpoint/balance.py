"""Who writes what: every box of the state once, and every rank about as many bytes as any other."""

from collections.abc import Mapping, Sequence

from mindmoe.checkpoint.manifest import ChunkRecord


def share_out(held: Sequence[Mapping[str, ChunkRecord]]) -> list[list[str]]:
    """The names of the tensors whose box each rank writes.

    Boxes that several ranks hold go to the holder with the least to write so far, the largest box first, so no rank
    writes more than 4/3 of the best possible maximum plus what it alone holds. The result depends only on `held`.
    Source: Graham, "Bounds on multiprocessing timing anomalies" (1969).

    Args:
        held: the boxes of every rank by tensor name; empty boxes are written by nobody.

    Raises:
        ValueError: ranks disagree about dtype or shape of a tensor.
    """
    holders: dict[tuple[str, ChunkRecord], list[int]] = {}
    known: dict[str, ChunkRecord] = {}
    for rank, boxes in enumerate(held):
        for name, box in boxes.items():
            first = known.setdefault(name, box)
            if (first.dtype, first.global_shape) != (box.dtype, box.global_shape):
                raise ValueError(f"{name} is {box.dtype} {box.global_shape} on rank {rank}, elsewhere {first}")
            # The box of an empty tensor is kept, or the tensor would be missing.
            if box.nbytes or 0 in box.global_shape:
                holders.setdefault((name, box), []).append(rank)
    load = [0] * len(held)
    names: list[list[str]] = [[] for _ in held]
    # Boxes with one holder leave no choice: they come first, so that the others even out what they leave.
    for (name, box), ranks in sorted(holders.items(), key=lambda i: (len(i[1]) > 1, -i[0][1].nbytes, i[0][0], i[1])):
        rank = min(ranks, key=lambda r: (load[r], r))
        load[rank] += box.nbytes
        names[rank].append(name)
    return names
