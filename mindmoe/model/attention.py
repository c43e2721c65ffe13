"""Self-attention of one layer: projections around the attention op."""

from mindspore import Tensor, nn

from mindmoe.model.config import ModelConfig
from mindmoe.ops.select import OpSet
from mindmoe.parallel.weights import Weights


class SelfAttention(nn.Cell):
    """Grouped-query attention with sinks; even layers slide a window in gpt-oss."""

    def __init__(self, model: ModelConfig, layer: int, kernels: OpSet, weights: Weights):
        super().__init__(auto_prefix=False)
        self.linear = kernels.linear
        self.attend = kernels.attention(model.window(layer))
        self.q, self.q_bias = weights["q_proj.weight"], weights.get("q_proj.bias")
        self.k, self.k_bias = weights["k_proj.weight"], weights.get("k_proj.bias")
        self.v, self.v_bias = weights["v_proj.weight"], weights.get("v_proj.bias")
        self.o, self.o_bias = weights["o_proj.weight"], weights.get("o_proj.bias")
        self.sinks = weights.get("sinks")

    def construct(self, x: Tensor, segment_ids: Tensor) -> Tensor:
        """x (T, D), segment_ids (B, S) with B * S = T -> (T, D)."""
        batch, seq_length = segment_ids.shape
        q = self.linear(x, self.q, self.q_bias).reshape((batch, seq_length, -1))
        k = self.linear(x, self.k, self.k_bias).reshape((batch, seq_length, -1))
        v = self.linear(x, self.v, self.v_bias).reshape((batch, seq_length, -1))
        out = self.attend(q, k, v, self.sinks, segment_ids)
        return self.linear(out.reshape((batch * seq_length, -1)), self.o, self.o_bias)
