"""Computing a function again in its backward pass instead of keeping what it made (arXiv 1604.06174), op by op.

In graphs MindSpore's own pass does this for cells that ask for it; its op-by-op counterpart fails on cells with a
backward of their own, of which our ops are made.
"""

from collections.abc import Callable
from typing import Any

from mindspore import Tensor, nn, ops


class Recomputed(nn.Cell):
    """A function of tensors that keeps its arguments only; op by op.

    Args:
        function: (*tensors) -> a tensor, or a tuple of tensors whose first one has a gradient.
    """

    def __init__(self, function: Callable[..., Any]):
        super().__init__(auto_prefix=False)
        self.function = function
        self.gradient = ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, *inputs: Tensor) -> Any:
        """What the function makes of the inputs."""
        return self.function(*inputs)

    def bprop(self, *given: Any) -> tuple[Tensor, ...]:
        """Gradients of all inputs."""
        *inputs, _, dout = given
        return self.gradient(self.function)(*inputs, dout)
