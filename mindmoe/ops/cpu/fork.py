"""One activation for several readers, by the CPU pack."""

from collections.abc import Callable

from mindspore import Tensor, nn

from mindmoe.ops.contract import OpShape
from mindmoe.ops.cpu.pack import Pack, load


class Fork(nn.Cell):
    """x -> (x, ..., x), one for each reader; their gradients are summed in fp32 and stored as they came.

    Args:
        readers: how many.
        pack: the library, by default the best of this machine.
    """

    def __init__(self, readers: int, pack: Pack | None = None):
        super().__init__(auto_prefix=False)
        self.readers = readers
        self.sum = (pack or load()).op("sum_tensors", lambda x, *_: x, lambda x, *_: x)

    def construct(self, x: Tensor) -> tuple[Tensor, ...]:
        """x of any shape -> `readers` times x."""
        return (x,) * self.readers

    def bprop(self, x: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]) -> tuple[Tensor]:
        """The sum of the readers' gradients."""
        return (self.sum(*dout),)


def build_fork(shape: OpShape, pack: Pack) -> Callable[[int], Fork]:
    """Fork by number of readers."""
    return lambda readers: Fork(readers, pack)
