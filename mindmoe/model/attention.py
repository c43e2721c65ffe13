"""Self-attention of one layer: projections around the attention op."""

from mindspore import Tensor, nn

from mindmoe.model.config import ModelConfig
from mindmoe.ops.fork import Fork
from mindmoe.ops.select import OpSet
from mindmoe.parallel.weights import Weights


class SelfAttention(nn.Cell):
    """Grouped-query attention with sinks; even layers slide a window in gpt-oss."""

    def __init__(self, model: ModelConfig, layer: int, kernels: OpSet, weights: Weights):
        super().__init__(auto_prefix=False)
        self.linear, self.linear_out = kernels.linear, kernels.linear_out
        self.fork = Fork(3)
        self.attend = kernels.attention(model.window(layer))
        self.q, self.q_bias = weights["q_proj.weight"], weights.get("q_proj.bias")
        self.k, self.k_bias = weights["k_proj.weight"], weights.get("k_proj.bias")
        self.v, self.v_bias = weights["v_proj.weight"], weights.get("v_proj.bias")
        self.o, self.o_bias = weights["o_proj.weight"], weights.get("o_proj.bias")
        self.sinks = weights.get("sinks")

    def construct(self, x: Tensor, segment_ids: Tensor, residual: Tensor) -> Tensor:
        """x (B, S, D), segment_ids (B, S), residual (B, S, D) -> residual + attention (B, S, D)."""
        to_q, to_k, to_v = self.fork(x)
        q = self.linear(to_q, self.q, self.q_bias)
        k = self.linear(to_k, self.k, self.k_bias)
        v = self.linear(to_v, self.v, self.v_bias)
        out = self.attend(q, k, v, self.sinks, segment_ids)
        return self.linear_out(out, self.o, self.o_bias, residual)
