"""One activation for several readers, with the sum of their gradients written out.

Automatic differentiation sums gradients with AddN, which MindSpore's CPU backend does not have in bf16; plain addition
it has.
"""

from collections.abc import Callable

from mindspore import Tensor, nn

from mindmoe.ops.contract import OpShape


class Fork(nn.Cell):
    """See the contract.

    Args:
        readers: how many.
    """

    def __init__(self, readers: int):
        super().__init__(auto_prefix=False)
        self.readers = readers

    def construct(self, x: Tensor) -> tuple[Tensor, ...]:
        """x of any shape -> `readers` times x."""
        return (x,) * self.readers

    def bprop(self, x: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]) -> tuple[Tensor]:
        """The sum of the readers' gradients."""
        total = dout[0]
        for part in dout[1:]:
            total = total + part
        return (total,)


def build_fork(shape: OpShape) -> Callable[[int], Fork]:
    """Fork by number of readers."""
    return Fork
