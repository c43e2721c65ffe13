"""Computing a function again in its backward pass instead of keeping what it made (arXiv 1604.06174), op by op.

MindSpore's own recomputation fails, op by op, on cells with a backward of their own, of which our ops are made; in
compiled graphs on the CPU it lowered no peak. A pipeline stage does the same with its whole piece, see
pipeline/executor.py.
"""

from collections.abc import Callable
from typing import Any

from mindspore import Tensor, nn, ops


class Recomputed(nn.Cell):
    """A function of tensors that keeps its arguments only.

    Args:
        function: (*tensors) -> a tensor, or a tuple of tensors whose first one has a gradient.
    """

    def __init__(self, function: Callable[..., Any]):
        super().__init__(auto_prefix=False)
        self.function = function
        # Of the inputs alone: weights must be among them, one that the function closes over would get no gradient.
        self.gradient = ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, *inputs: Tensor) -> Any:
        """What the function makes of the inputs."""
        return self.function(*inputs)

    def bprop(self, *given: Any) -> tuple[Tensor, ...]:
        """Gradients of all inputs."""
        # MindSpore hands over the inputs, the output, and the gradient of the output
        *inputs, _, dout = given
        return self.gradient(self.function)(*inputs, dout)
