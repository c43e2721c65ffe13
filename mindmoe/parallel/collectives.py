"""Collectives as named verbs over a group, usable in graphs and op by op; the identity in a group of one."""

from collections.abc import Callable
from math import prod

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindmoe.parallel.groups import Group
from mindmoe.position import during

_BUCKET = 1 << 22  # elements per all-reduce: 16 MB of fp32, enough to hide the latency of a call


def build_all_reduce(group: Group) -> Callable[[Tensor], Tensor]:
    """Returns all_reduce(x) -> sum of x over the group, same shape."""
    if group.size == 1:
        return _identity
    return ops.AllReduce(group=group.name)


def _identity(x: Tensor) -> Tensor:
    return x


def host_sum(values: np.ndarray, group: Group) -> np.ndarray:
    """Sum over the group of a small host array; fp32 on the wire, so integers are exact below 2^24."""
    if group.size == 1:
        return values
    with during(f"sum of host values over {group.axis}", group.ranks):
        total = ops.AllReduce(group=group.name)(Tensor(np.ascontiguousarray(values, np.float32)))
        return total.asnumpy().astype(values.dtype)


def buckets(sizes: list[int], limit: int = _BUCKET) -> list[list[int]]:
    """Indices of consecutive tensors grouped so that a bucket holds at most `limit` elements, or one tensor."""
    result: list[list[int]] = []
    held = limit + 1
    for index, size in enumerate(sizes):
        if held + size > limit:
            result.append([])
            held = 0
        result[-1].append(index)
        held += size
    return result


def build_all_reduce_many(shapes: list[tuple[int, ...]], group: Group) -> Callable[..., tuple[Tensor, ...]]:
    """Returns all_reduce_many(*tensors) -> their sums over the group.

    Tensors are packed into buckets, and the buckets are chained: independent collectives in one compiled graph may be
    issued in a different order on different ranks, which deadlocks.

    Args:
        shapes: shapes of the fp32 tensors, fixed.
        group: where to sum.
    """
    if group.size == 1:
        return _identity_many
    reduce = ops.AllReduce(group=group.name)
    sizes = [prod(shape) for shape in shapes]
    plan = tuple(tuple(bucket) for bucket in buckets(sizes))

    def all_reduce_many(*tensors: Tensor) -> tuple[Tensor, ...]:
        summed: tuple[Tensor, ...] = ()
        previous = None
        for bucket in plan:
            flat = ops.concat([tensors[i].reshape(-1) for i in bucket])
            if previous is not None:
                flat = ops.depend(flat, previous)
            flat = reduce(flat)
            previous = flat
            start = 0
            for i in bucket:
                summed = (*summed, flat[start : start + sizes[i]].reshape(shapes[i]))
                start = start + sizes[i]
        return summed

    return all_reduce_many


def _identity_many(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tensors


def barrier(group: Group) -> None:
    """Returns once every rank of the group has called it."""
    if group.size > 1:
        with during(f"barrier over {group.axis}", group.ranks):
            ops.AllReduce(group=group.name)(Tensor(np.zeros(1, np.float32), ms.float32)).asnumpy()
