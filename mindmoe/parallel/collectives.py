"""Collectives as named verbs over a group, each with its own backward; the identity in a group of one.

Ranks run op by op, so collectives start in the order of the program, the same on every rank. What a verb is made of
depends on the device: `composed` on the CPU, `native` on Ascend, `stand_in` where the partners are not there. Ranks
that hold parts of one sum get parts of its gradient, so the backward of a gather is a reduce-scatter.
"""

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindmoe.host.errors import UserError
from mindmoe.host.position import during
from mindmoe.parallel import ledger
from mindmoe.parallel.composed import Composed
from mindmoe.parallel.groups import Group
from mindmoe.parallel.native import Native
from mindmoe.parallel.stand_in import StandIn

Verb = Callable[[Tensor], Tensor]
_FEW = 64  # pieces that are worth taking one by one


def _on_cpu() -> bool:
    return ms.get_context("device_target") == "CPU"


# One object for each group: its operators are made, and its memory is shared, once.
@cache
def primitives(group: Group) -> Any:
    """The collectives of a group on this device, without gradients."""
    if group.stand_in:
        return StandIn(group)
    return Composed(group) if _on_cpu() else Native(group)


def table() -> dict[str, str]:
    """What each collective is made of on this device."""
    return (Composed if _on_cpu() else Native).table


# Verbs are Cells for the sake of `bprop`, their own backward pass: it gets the inputs, the output and the gradient of
# the output, and returns a gradient for each input.
class _Verb(nn.Cell):
    """Base of the verbs: runs a primitive, records the position and counts what is sent."""

    def __init__(self, group: Group):
        super().__init__(auto_prefix=False)
        self.group, self.size = group, group.size
        self.on = primitives(group)

    def reduce(self, x: Tensor) -> Tensor:
        return self.recorded("all_reduce", ledger.all_reduce_bytes(_bytes(x), self.size), self.on.all_reduce, x)

    def gather(self, x: Tensor) -> Tensor:
        return self.recorded("all_gather", ledger.gather_bytes(_bytes(x), self.size), self.on.all_gather, x)

    def scatter(self, x: Tensor) -> Tensor:
        return self.recorded("reduce_scatter", ledger.exchange_bytes(_bytes(x), self.size), self.on.reduce_scatter, x)

    def exchange(self, x: Tensor) -> Tensor:
        return self.recorded("all_to_all", ledger.exchange_bytes(_bytes(x), self.size), self.on.all_to_all, x)

    def recorded(self, kind: str, sent: float, primitive: Callable[..., Tensor], *args: Any) -> Tensor:
        """Runs a primitive."""
        return recorded(self.group, kind, sent, primitive, *args)


def recorded(
    group: Group, kind: str, sent: float, primitive: Callable[..., Any], *args: Any, peer: int | None = None
) -> Any:
    """Runs a primitive, leaving word of where this rank is and of what it sends.

    Args:
        group: where.
        kind: the verb.
        sent: bytes to others.
        primitive: takes args, of which the first is a tensor, or the shape and the second the type of what will come.
        args: its arguments.
        peer: place of the other end of a message.
    """
    if ledger.is_open():
        shape, dtype = (args[0], args[1]) if isinstance(args[0], tuple) else (args[0].shape, args[0].dtype)
        # the number of rows follows the routing, which a list made dry does not know
        if kind == "all_to_all_v":
            shape = (-1, *shape[1:])
        other = -1 if peer is None else group.ranks[peer]
        ledger.note(ledger.Call(kind, group.axis, group.ranks, tuple(shape), str(dtype), other, sent))
    with during(f"{kind} over {group.axis}", group.ranks):
        return primitive(*args)


def _bytes(x: Tensor) -> int:
    return prod(x.shape) * x.itemsize


class AllReduce(_Verb):
    """x -> its sum over the group. The sum is one value on all ranks, so its gradient passes through."""

    def construct(self, x: Tensor) -> Tensor:
        """x of any shape -> the same shape."""
        return self.reduce(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient as it is (`g` of arXiv 1909.08053)."""
        return (dout,)


class AllGather(_Verb):
    """x -> (P, ...) x of every rank."""

    def construct(self, x: Tensor) -> Tensor:
        """x (...) -> (P, ...)."""
        return self.gather(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """Own row of the summed gradients."""
        return (self.scatter(dout),)


class ReduceScatter(_Verb):
    """x (P, ...) -> the sum over the group of own row."""

    def construct(self, x: Tensor) -> Tensor:
        """x (P, ...) -> (...)."""
        return self.scatter(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """Everybody's gradient."""
        return (self.gather(dout),)


class AllToAll(_Verb):
    """x (P, ...) -> (P, ...): row p goes to rank p."""

    def construct(self, x: Tensor) -> Tensor:
        """Row q of the result comes from rank q."""
        return self.exchange(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """Every row goes back where it came from."""
        return (self.exchange(dout),)


class AllToAllV(_Verb):
    """Rows to each rank in any numbers, known on the host.

    Args:
        group: where.
        sent: rows for each rank; x holds them in this order.
        received: rows from each rank.
        rows: of the result, None for as many as are received. Rows of x beyond those to send stay here, and rows of
            the result beyond those received are zeros: so neither need be empty.
    """

    def __init__(self, group: Group, sent: list[int], received: list[int], rows: int | None = None):
        super().__init__(group)
        self.sent, self.received = sent, received
        self.rows = sum(received) if rows is None else rows

    def construct(self, x: Tensor) -> Tensor:
        """x (at least sum of sent, ...) -> (rows, ...) in order of the source."""
        return self.move(x, self.sent, self.received, self.rows)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """Every row goes back where it came from."""
        # rows of x that stayed here had no part in the result: `move` fills their gradient with zeros
        return (self.move(dout, self.received, self.sent, x.shape[0]),)

    def move(self, x: Tensor, sent: list[int], received: list[int], rows: int) -> Tensor:
        """Rows there."""
        count, away = sum(received), sum(sent) - sent[self.group.index]  # own rows do not travel
        if x.shape[0] < sum(sent) or rows < count:
            raise ValueError(f"all_to_all_v: {x.shape[0]} rows to send sent={sent}, {rows} for received={received}")
        x = x if x.shape[0] == sum(sent) else x[: sum(sent)]
        y = self.recorded(
            "all_to_all_v", away * prod(x.shape[1:]) * x.itemsize, self.on.all_to_all_v, x, sent, received
        )
        if rows == count:
            return y
        none = ops.zeros((rows - count, *y.shape[1:]), y.dtype)
        return ops.concat((y, none), 0) if count else none


def shift(group: Group, on: Any, x: Tensor) -> Tensor:
    """x of the rank one place before, round the ring; without gradient.

    Args:
        group: the ring.
        on: its primitives.
        x: of equal shape on all ranks.
    """
    return recorded(group, "shift", float(_bytes(x)), on.shift, x)


def _identity(x: Tensor) -> Tensor:
    return x


def build_all_reduce(group: Group) -> Verb:
    """Returns all_reduce(x) -> sum of x over the group; its gradient passes through."""
    return _identity if group.size == 1 else AllReduce(group)


def build_all_gather(group: Group, dim: int) -> Verb:
    """Returns all_gather(x) -> x of every rank laid one after the other along `dim`; backward: reduce-scatter."""
    if group.size == 1:
        return _identity
    # Collectives stack on a new first dimension, which is one piece of memory for each rank; `lay` moves it to `dim`.
    gather, lay = AllGather(group), _Relaid(dim, group.size, stack=False)

    def all_gather(x: Tensor) -> Tensor:
        return lay(gather(x))

    return all_gather


def build_reduce_scatter(group: Group, dim: int) -> Verb:
    """Returns reduce_scatter(x) -> own part along `dim` of the sum over the group; backward: all-gather."""
    if group.size == 1:
        return _identity
    scatter, lay = ReduceScatter(group), _Relaid(dim, group.size, stack=True)

    def reduce_scatter(x: Tensor) -> Tensor:
        return scatter(lay(x))

    return reduce_scatter


class _Relaid(nn.Cell):
    """Parts along a dimension <-> parts on a new first dimension; each is the other's gradient.

    Args:
        dim: where the parts lie one after the other.
        parts: how many.
        stack: whether they go to the first dimension, or come from there.
    """

    def __init__(self, dim: int, parts: int, stack: bool):
        super().__init__(auto_prefix=False)
        self.dim, self.parts, self.stack = dim, parts, stack

    def construct(self, x: Tensor) -> Tensor:
        """x (..., parts * n, ...) -> (parts, ..., n, ...), or back."""
        return stacked(x, self.dim, self.parts) if self.stack else unstacked(x, self.dim)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient the other way."""
        return (unstacked(dout, self.dim) if self.stack else stacked(dout, self.dim, self.parts),)


def stacked(x: Tensor, dim: int, parts: int) -> Tensor:
    """x cut into `parts` along `dim`, the parts on a new first dimension."""
    shape, size = x.shape, x.shape[dim] // parts
    inner = (*shape[:dim], size, *shape[dim + 1 :])
    # the parts lie one after the other already: a view
    if dim == 0:
        return x.reshape((parts, *inner))
    # (.., parts * size, ..) -> (.., parts, size, ..) -> (parts, .., size, ..)
    if prod(shape[:dim]) > _FEW or not copies_are_slow(x):
        x = x.reshape((*shape[:dim], parts, size, *shape[dim + 1 :]))
        return x.transpose((dim, *range(dim), *range(dim + 1, len(x.shape))))
    # Part by part, and row by row in each: every piece is contiguous, and end to end they are the result.
    rows = x.reshape((-1, *shape[dim:]))
    pieces = [rows[row, part * size : (part + 1) * size] for part in range(parts) for row in range(rows.shape[0])]
    return ops.concat(pieces, 0).reshape((parts, *inner))


def unstacked(x: Tensor, dim: int) -> Tensor:
    """x (P, ...) with its first dimension laid out along `dim` of the rest."""
    shape = x.shape[1:]
    full = (*shape[:dim], x.shape[0] * shape[dim], *shape[dim + 1 :])
    if dim == 0:
        return x.reshape(full)
    # (P, .., n, ..) -> (.., P, n, ..) -> (.., P * n, ..)
    if not copies_are_slow(x):
        return x.transpose((*range(1, dim + 1), 0, *range(dim + 1, len(shape) + 1))).reshape(full)
    return ops.concat([x[part] for part in range(x.shape[0])], dim)


def copies_are_slow(x: Tensor) -> bool:
    """Whether x should be taken apart and put together in whole pieces: MindSpore's transpositions and strided copies
    of fp32 on the CPU move 0.13 GB/s."""
    return x.dtype == ms.float32 and _on_cpu()


def exchanged_counts(counts: np.ndarray, group: Group) -> np.ndarray:
    """Row p of counts (P, ...) int goes to rank p; row q of the result comes from rank q. On the host."""
    if group.size == 1:
        return counts
    # in fp32, which has no need of halves (see composed) and is exact for counts below 2^24
    on, sent = primitives(group), ledger.exchange_bytes(counts.size * 4.0, group.size)
    wire = Tensor(np.ascontiguousarray(counts, np.float32))
    return recorded(group, "all_to_all", sent, on.all_to_all, wire).asnumpy().astype(np.int64)


def host_sum(values: np.ndarray, group: Group) -> np.ndarray:
    """Sum over the group of a small host array; fp32 on the wire, so integers are exact below 2^24."""
    if group.size == 1:
        return values
    wire = Tensor(np.ascontiguousarray(values, np.float32))
    sent = ledger.all_reduce_bytes(values.size * 4.0, group.size)
    ledger.note(ledger.Call("all_reduce", group.axis, group.ranks, values.shape, "Float32", -1, sent))
    with during(f"sum of host values over {group.axis}", group.ranks):
        return primitives(group).all_reduce(wire).asnumpy().astype(values.dtype)


def barrier(group: Group) -> None:
    """Returns once every rank of the group has called it."""
    # the host reads the sum, so it has been made when this returns
    host_sum(np.zeros(1, np.float32), group)


def probe(groups: list[Group]) -> None:
    """A tiny exchange in each group at start-up.

    Raises:
        UserError: a rank's contribution did not arrive; names the group and the ranks.
    """
    for group in groups:
        if group.size == 1:
            continue
        # not the bare rank: rank 0 must differ from zeros that nobody has written
        word = Tensor(np.array([group.ranks[group.index] + 1.0], np.float32))
        with during(f"probe of {group.axis}", group.ranks):
            heard = primitives(group).all_gather(word).asnumpy().reshape(-1)
        wrong = [rank for rank, value in zip(group.ranks, heard, strict=True) if value != rank + 1.0]
        if wrong:
            raise UserError(
                f"in the {group.axis} group of ranks {list(group.ranks)} what ranks {wrong} sent did not arrive",
                "look at the links and the logs of these ranks",
            )
