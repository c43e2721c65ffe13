"""The dense FFN of the dense twin and of shared experts: the experts' activation, one expert for all tokens."""

from mindspore import Tensor, nn

from mindmoe.ops.select import OpSet
from mindmoe.parallel.weights import Weights


class DenseFFN(nn.Cell):
    """down(swiglu(gate_up(x)))."""

    def __init__(self, kernels: OpSet, weights: Weights):
        super().__init__(auto_prefix=False)
        self.swiglu = kernels.swiglu
        self.linear, self.linear_out = kernels.linear, kernels.linear_out
        self.gate_up, self.gate_up_bias = weights["gate_up_proj.weight"], weights["gate_up_proj.bias"]
        self.down, self.down_bias = weights["down_proj.weight"], weights["down_proj.bias"]

    def construct(self, x: Tensor, residual: Tensor) -> Tensor:
        """x (B, S, D), residual (B, S, D) -> residual + ffn(x) (B, S, D)."""
        h = self.linear(x, self.gate_up, self.gate_up_bias)
        return self.linear_out(self.swiglu(h), self.down, self.down_bias, residual)
