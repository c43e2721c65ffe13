"""The dense FFN of the dense twin and of shared experts: the experts' activation, one expert for all tokens."""

from mindspore import Tensor, nn

from mindmoe.model.config import ModelConfig
from mindmoe.ops.select import OpSet
from mindmoe.ops.swiglu import clamped_swiglu
from mindmoe.parallel.weights import Weights


class DenseFFN(nn.Cell):
    """down(clamped_swiglu(gate_up(x)))."""

    def __init__(self, model: ModelConfig, kernels: OpSet, weights: Weights):
        super().__init__(auto_prefix=False)
        self.alpha, self.limit = model.swiglu_alpha, model.swiglu_limit
        self.linear = kernels.linear
        self.gate_up, self.gate_up_bias = weights["gate_up_proj.weight"], weights["gate_up_proj.bias"]
        self.down, self.down_bias = weights["down_proj.weight"], weights["down_proj.bias"]

    def construct(self, x: Tensor) -> Tensor:
        """x (T, D) -> (T, D)."""
        h = self.linear(x, self.gate_up, self.gate_up_bias)
        return self.linear(clamped_swiglu(h, self.alpha, self.limit), self.down, self.down_bias)
