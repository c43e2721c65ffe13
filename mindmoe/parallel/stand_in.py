"""Collectives of a rank whose partners are not there: shapes are checked, and every other rank passes for a copy.

With them one process runs the program of one rank of any cluster. What comes out has the shape and the type of the
real thing, and finite values that mean nothing: an all-reduce is a product with the number of ranks, a gather repeats
the own part, and a message is noise.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindmoe.parallel.groups import Group
from mindmoe.parallel.primitives import Primitives

_NOISE = 0.02  # of hidden states and of their gradients


class StandIn(Primitives):
    """The collectives of one group, without gradients; arguments as in composed.Composed.

    Raises:
        ValueError: an argument does not have the shape that the collective needs.
    """

    table = dict.fromkeys(
        ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "all_to_all_v", "shift"),
        "a stand-in, every other rank a copy of this one",
    ) | {"send, receive": "a stand-in, noise arrives"}

    def __init__(self, group: Group):
        super().__init__(group)
        # seeded by the rank, so that a run can be repeated
        self.noise = np.random.default_rng(group.ranks[group.index])

    def all_reduce(self, x: Tensor) -> Tensor:
        """x times the number of ranks."""
        return x * self.size

    def all_gather(self, x: Tensor) -> Tensor:
        """x repeated on a new first dimension; a flat x, which holds weights, turned round by its rank's place.

        Equal rows of a gathered router would send all tokens to the same experts.
        """
        if x.ndim == 1:
            own = x.asnumpy()
            rows = np.empty((self.size, own.size), own.dtype)
            for place in range(self.size):
                rows[place] = np.roll(own, place - self.index)
            return Tensor.from_numpy(rows)
        return ops.broadcast_to(x.expand_dims(0), (self.size, *x.shape))

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """x (P, ...) -> own row times the number of ranks."""
        self.check_rows("reduce_scatter", x)
        return x[self.index] * self.size

    def all_to_all(self, x: Tensor) -> Tensor:
        """x (P, ...) -> what every rank would send here if it were this one: own row, repeated."""
        self.check_rows("all_to_all", x)
        return ops.broadcast_to(x[self.index].expand_dims(0), x.shape)

    def all_to_all_v(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Rows of x (R, ...) -> as many rows as would arrive, filled with those of x in turn."""
        # what a rank keeps for itself it both sends and receives
        fits = len(sent) == len(received) == self.size and min(*sent, *received) >= 0
        if not fits or sum(sent) != x.shape[0] or sent[self.index] != received[self.index]:
            raise self.misfit(
                "all_to_all_v",
                f"sent={sent} of {x.shape[0]} rows and received={received}",
                f"{self.size} counts each, sent adding up to the rows, and equal counts for the rank itself",
            )
        rows = sum(received)
        if rows == 0 or x.shape[0] == 0:
            return ops.zeros((rows, *x.shape[1:]), x.dtype)
        return ops.gather(x, Tensor(np.arange(rows, dtype=np.int32) % x.shape[0]), 0)

    def send(self, x: Tensor, to: int) -> None:
        """Nothing; x is computed."""
        self.check_place("send", to)
        # MindSpore runs ops behind the host's back: reading waits for all that lead to x, as a real message does
        x.asnumpy()

    def receive(self, shape: tuple[int, ...], dtype: ms.Type, source: int) -> Tensor:
        """Noise of the shape."""
        self.check_place("receive", source)
        return Tensor(self.noise.standard_normal(shape, np.float32) * np.float32(_NOISE)).astype(dtype)

    def shift(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def check_rows(self, kind: str, x: Tensor) -> None:
        """There must be one row for each rank."""
        if x.ndim == 0 or x.shape[0] != self.size:
            raise self.misfit(kind, f"shape {x.shape}", f"a first dimension of {self.size}, one row for each rank")

    def check_place(self, kind: str, place: int) -> None:
        """The other end must be in the group."""
        if not 0 <= place < self.size or place == self.index:
            raise self.misfit(kind, f"the place {place}", f"another place among the {self.size} of the group")

    def misfit(self, kind: str, found: str, rule: str) -> ValueError:
        """What to raise."""
        return ValueError(f"{kind} over {self.group.axis}, rank {self.group.ranks[self.index]}: {found}, needs {rule}")
