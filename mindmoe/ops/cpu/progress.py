"""A wait for the pack's ops that sleeps.

MindSpore's own wait for a value spins on a core, which the pack's threads then lack: on two cores a third of a step.
"""

import ctypes
from collections.abc import Callable

from mindspore import Tensor, nn

from mindmoe.ops.contract import OpShape
from mindmoe.ops.cpu.pack import Pack, load


class Arrive(nn.Cell):
    """x -> x, and wakes whoever sleeps in `build_wait`."""

    def __init__(self, pack: Pack | None = None):
        super().__init__(auto_prefix=False)
        self.forward = (pack or load()).op("arrive", lambda x: x, lambda x: x)

    def construct(self, x: Tensor) -> Tensor:
        """x, fp32 or bf16."""
        return self.forward(x)


def build_wait(shape: OpShape, pack: Pack) -> Callable[[], bool]:
    """Returns wait(), whose n-th call sleeps until `Arrive` has run n more times than it had before.

    wait() gives up, and returns False, when no op of the pack ends for a quarter of a second: other work takes the
    time then, or an op has failed, which reading the value will tell.
    """
    # The library that the ops run in: one path is loaded once in a process, so the counter is the same.
    library = ctypes.CDLL(str(pack.path))
    library.mindmoe_arrivals.restype = ctypes.c_int64
    library.mindmoe_await.argtypes = [ctypes.c_int64]
    # Arrivals before now, as of another model of this process, are none of this wait's.
    awaited = library.mindmoe_arrivals()

    def wait() -> bool:
        nonlocal awaited
        awaited += 1
        return bool(library.mindmoe_await(awaited))

    return wait


def build_arrive(shape: OpShape, pack: Pack) -> Arrive:
    """Wakes the host."""
    return Arrive(pack)
