"""One decoder layer: pre-norm attention and pre-norm FFN on the residual stream.

A block is a pure function of activations and weights: it owns no parameters. So one compiled block serves every layer
of its kind, ZeRO hands it weights that were gathered for this call, and recomputation calls it again. What the router
reads of the tokens comes behind the weights.
"""

from typing import Any

from mindspore import Tensor, nn

from mindmoe.models.gpt_oss.attention import SelfAttention
from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.models.gpt_oss.ffn import DenseFFN
from mindmoe.moe.config import MoeConfig
from mindmoe.moe.layer import MoeLayer, RouterStats
from mindmoe.moe.router.base import Routing
from mindmoe.ops.contract import OpSet
from mindmoe.parallel.config import ParallelConfig
from mindmoe.parallel.groups import Groups
from mindmoe.parallel.weights import Slots, below


class FeedForward(nn.Cell):
    """The FFN half: x + ffn(norm(x)); shared experts see every token."""

    def __init__(
        self,
        moe: MoeConfig | None,
        routing: Routing | None,
        told: tuple[str, ...],
        kernels: OpSet,
        groups: Groups,
        slots: Slots,
        parallel: ParallelConfig,
    ):
        super().__init__(auto_prefix=False)
        self.rms_norm, self.norm = kernels.rms_norm, slots["post_attention_layernorm.weight"]
        ffn = below(slots, "mlp")
        self.moe: Any = None
        if moe is not None and routing is not None:
            self.moe = MoeLayer(moe, routing, told, kernels, groups, ffn, parallel)
        self.dense = DenseFFN(kernels, groups, ffn) if moe is None else None
        shared = moe is not None and moe.num_shared_experts > 0
        # The normalised input has two readers, router with experts and the shared experts; see ops/reference/fork.py.
        self.fork = kernels.fork(2)
        self.shared = DenseFFN(kernels, groups, below(ffn, "shared_experts")) if shared else None

    def construct(self, x: Tensor, *weights: Tensor) -> tuple[Tensor, RouterStats | tuple[()]]:
        """x (B, S, D) -> (B, S, D) and the router's statistics, empty in a dense layer."""
        h = self.rms_norm(x, weights[self.norm])
        if self.dense is not None:
            # The residual goes in with it, so that a fused projection adds it without another pass over memory.
            return self.dense(h, x, weights), ()
        if self.shared is not None:
            h, to_shared = self.fork(h)
            # The shared experts' output joins the residual first, then that of the routed ones.
            x = self.shared(to_shared, x, weights)
        y, stats = self.moe(h, weights)
        return x + y, stats


class Block(nn.Cell):
    """x + attention(norm(x)), then the FFN half."""

    def __init__(
        self,
        model: ModelConfig,
        moe: MoeConfig | None,
        routing: Routing | None,
        told: tuple[str, ...],
        layer: int,
        kernels: OpSet,
        groups: Groups,
        slots: Slots,
        parallel: ParallelConfig,
    ):
        super().__init__(auto_prefix=False)
        self.rms_norm, self.norm = kernels.rms_norm, slots["input_layernorm.weight"]
        self.attention = SelfAttention(model, layer, kernels, groups, below(slots, "self_attn"), parallel.cp_method)
        self.ffn: Any = FeedForward(moe, routing, told, kernels, groups, slots, parallel)

    def construct(self, x: Tensor, segment_ids: Tensor, *weights: Tensor) -> tuple[Tensor, RouterStats | tuple[()]]:
        """x (B, S/tp, D), segment_ids (B, S) -> (B, S/tp, D) and the router's statistics."""
        return self.ffn(self.attend(x, segment_ids, *weights), *weights)

    def attend(self, x: Tensor, segment_ids: Tensor, *weights: Tensor) -> Tensor:
        """The attention half."""
        return self.attention(self.rms_norm(x, weights[self.norm]), segment_ids, x, weights)

    def extend(self, x: Tensor, start: Tensor, keys: Tensor, values: Tensor, *weights: Tensor) -> Tensor:
        """x (B, N, D), the next tokens of a sequence whose earlier ones are in the cache -> (B, N, D)."""
        h = self.rms_norm(x, weights[self.norm])
        return self.ffn(self.attention.extend(h, x, start, keys, values, weights), *weights)[0]
