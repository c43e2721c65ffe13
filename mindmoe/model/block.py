"""One decoder layer: pre-norm attention and pre-norm FFN on the residual stream."""

from typing import Any

from mindspore import Tensor, nn

from mindmoe.model.attention import SelfAttention
from mindmoe.model.config import ModelConfig
from mindmoe.model.ffn import DenseFFN
from mindmoe.moe.config import MoeConfig
from mindmoe.moe.layer import MoeLayer, RouterStats
from mindmoe.ops.fork import Fork
from mindmoe.ops.select import OpSet
from mindmoe.parallel.weights import Weights


class Block(nn.Cell):
    """x + attention(norm(x)), then x + ffn(norm(x)); shared experts see every token."""

    def __init__(self, model: ModelConfig, moe: MoeConfig | None, layer: int, kernels: OpSet, weights: Weights):
        super().__init__(auto_prefix=False)
        self.rms_norm = kernels.rms_norm
        self.attention_norm = weights["input_layernorm.weight"]
        self.attention = SelfAttention(model, layer, kernels, weights.at("self_attn"))
        self.ffn_norm = weights["post_attention_layernorm.weight"]
        ffn = weights.at("mlp")
        self.moe: Any = None if moe is None else MoeLayer(moe, kernels, ffn)
        self.dense = DenseFFN(kernels, ffn) if moe is None else None
        shared = moe is not None and moe.num_shared_experts > 0
        self.fork = Fork(2)
        self.shared = DenseFFN(kernels, ffn.at("shared_experts")) if shared else None

    def construct(self, x: Tensor, segment_ids: Tensor) -> tuple[Tensor, RouterStats | tuple[()]]:
        """x (B, S, D) -> (B, S, D) and the router's statistics, empty in a dense layer."""
        x = self.attention(self.rms_norm(x, self.attention_norm), segment_ids, x)
        h = self.rms_norm(x, self.ffn_norm)
        if self.dense is not None:
            return self.dense(h, x), ()
        if self.shared is not None:
            h, to_shared = self.fork(h)
            x = self.shared(to_shared, x)
        y, stats = self.moe(h)
        return x + y, stats
