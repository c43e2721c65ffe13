"""Self-attention of one layer: projections around the attention op."""

from mindspore import Tensor, nn

from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.ops.contract import OpSet
from mindmoe.parallel.context import build_context_attention
from mindmoe.parallel.groups import Groups
from mindmoe.parallel.tensor import build_gather_sequence, build_row_linear
from mindmoe.parallel.weights import Slots, take


class SelfAttention(nn.Cell):
    """Grouped-query attention with sinks; even layers slide a window in gpt-oss. Each tensor rank has some heads."""

    def __init__(self, model: ModelConfig, layer: int, kernels: OpSet, groups: Groups, slots: Slots, cp_method: str):
        super().__init__(auto_prefix=False)
        self.linear = kernels.linear
        self.gather = build_gather_sequence(groups["tp"])
        self.project = build_row_linear(kernels.linear_out, groups["tp"])
        # q, k and v read one input.
        self.fork = kernels.fork(3)
        # `window` depends on the layer, so each layer takes an op of its own; under cp it is one that spans ranks.
        self.attend = build_context_attention(kernels, model.window(layer), groups["cp"], cp_method)
        self.attend_cached = kernels.cached_attention(model.window(layer))
        self.q, self.q_bias = slots["q_proj.weight"], slots.get("q_proj.bias")
        self.k, self.k_bias = slots["k_proj.weight"], slots.get("k_proj.bias")
        self.v, self.v_bias = slots["v_proj.weight"], slots.get("v_proj.bias")
        self.o, self.o_bias = slots["o_proj.weight"], slots.get("o_proj.bias")
        self.sinks = slots.get("sinks")

    def construct(self, x: Tensor, segment_ids: Tensor, residual: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """x and residual (B, S/tp, D), segment_ids (B, S) -> residual + attention (B, S/tp, D); S is this rank's."""
        # (B, S/tp, D) -> (B, S, D): every rank attends with its heads over the whole sequence, and the row-parallel
        # output projection sums the ranks' parts and keeps own S/tp.
        out = self.attend(*self.heads(self.gather(x), weights), take(weights, self.sinks), segment_ids)
        return self.project(out, weights[self.o], take(weights, self.o_bias), residual)

    def heads(self, x: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, S, D) -> queries, keys and values of this rank's heads."""
        to_q, to_k, to_v = self.fork(x)
        q = self.linear(to_q, weights[self.q], take(weights, self.q_bias))
        k = self.linear(to_k, weights[self.k], take(weights, self.k_bias))
        v = self.linear(to_v, weights[self.v], take(weights, self.v_bias))
        return q, k, v

    def extend(
        self, x: Tensor, residual: Tensor, start: Tensor, keys: Tensor, values: Tensor, weights: tuple[Tensor, ...]
    ) -> Tensor:
        """The same for the next tokens of a sequence, x and residual (B, N, D), at positions from start (1) on.

        keys and values (B, KV, C, hd) hold the earlier positions and are extended in place. On one rank only.
        """
        # No gather along the sequence: there is one rank.
        out = self.attend_cached(*self.heads(x, weights), take(weights, self.sinks), start, keys, values)
        return self.project(out, weights[self.o], take(weights, self.o_bias), residual)
