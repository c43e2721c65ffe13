"""The dense FFN of the dense twin and of shared experts: the experts' activation, one expert for all tokens."""

from mindspore import Tensor, nn

from mindmoe.ops.contract import OpSet
from mindmoe.parallel.groups import Groups
from mindmoe.parallel.tensor import build_gather_sequence, build_row_linear
from mindmoe.parallel.weights import Slots


class DenseFFN(nn.Cell):
    """down(swiglu(gate_up(x))); each tensor rank has some of the width."""

    def __init__(self, kernels: OpSet, groups: Groups, slots: Slots):
        super().__init__(auto_prefix=False)
        self.swiglu = kernels.swiglu
        self.linear = kernels.linear
        self.gather = build_gather_sequence(groups["tp"])
        self.project = build_row_linear(kernels.linear_out, groups["tp"])
        self.gate_up, self.gate_up_bias = slots["gate_up_proj.weight"], slots["gate_up_proj.bias"]
        self.down, self.down_bias = slots["down_proj.weight"], slots["down_proj.bias"]

    def construct(self, x: Tensor, residual: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """x (B, S/tp, D), residual likewise -> residual + ffn(x) (B, S/tp, D)."""
        # Columns of gate_up and rows of down are cut alike, gate and up of a unit on one rank: no exchange in between.
        h = self.linear(self.gather(x), weights[self.gate_up], weights[self.gate_up_bias])
        return self.project(self.swiglu(h), weights[self.down], weights[self.down_bias], residual)
