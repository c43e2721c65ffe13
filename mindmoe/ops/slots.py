"""Moving rows between token order and slot order. Both moves are gathers, and each is the other's gradient."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindmoe.ops.zeros import zeros_like


def with_zero_row(x: Tensor) -> Tensor:
    """x (N, D) with a row of zeros appended: what an index of N reads."""
    return ops.concat((x, ops.zeros((1, x.shape[1]), ms.float32)), 0)


class ToSlots(nn.Cell):
    """Copies token rows into slots."""

    def construct(self, x: Tensor, slot: Tensor, source: Tensor) -> Tensor:
        """Rows in slot order.

        Args:
            x: (T, D) rows.
            slot: (T*K) the slot of each assignment, M where it has none.
            source: (M) the assignment in each slot, T*K where it is empty.

        Returns:
            (M, D), zeros in empty slots.
        """
        # Assignment a = t * K + k belongs to token a // K; the assignment of an empty slot, T*K, to the row of zeros.
        per_token = slot.shape[0] // x.shape[0]
        return ops.gather(with_zero_row(x), source // per_token, 0)

    def bprop(
        self, x: Tensor, slot: Tensor, source: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of a token is the sum over its slots."""
        # Automatic differentiation would scatter and add here; as both directions are known, a gather and a sum do.
        rows = ops.gather(with_zero_row(dout), slot, 0).reshape((x.shape[0], -1, x.shape[1]))
        # A backward pass returns something for every input, the integers too.
        return rows.sum(1), zeros_like(slot), zeros_like(source)


class FromSlots(nn.Cell):
    """Copies slots back to assignment order."""

    def construct(self, y: Tensor, slot: Tensor, source: Tensor) -> Tensor:
        """y (M, D), slot (T*K), source (M) -> (T*K, D), zeros for assignments without a slot."""
        return ops.gather(with_zero_row(y), slot, 0)

    def bprop(
        self, y: Tensor, slot: Tensor, source: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of a slot is that of its assignment."""
        # A slot holds one assignment at most, so nothing is summed.
        return ops.gather(with_zero_row(dout), source, 0), zeros_like(slot), zeros_like(source)
