"""The whole model: embedding, layers, final norm and vocabulary projection."""

from typing import Any

from mindspore import Tensor, nn, ops

from mindmoe.model.block import Block
from mindmoe.model.config import ModelConfig
from mindmoe.model.shapes import param_specs
from mindmoe.moe.config import MoeConfig
from mindmoe.moe.layer import RouterStats
from mindmoe.ops.select import OpSet
from mindmoe.parallel.mesh import Mesh
from mindmoe.parallel.weights import Weights


def stack_layers(collected: tuple[Any, ...]) -> RouterStats:
    """Statistics of each layer -> each statistic stacked over layers."""
    none: tuple[Tensor, ...] = ()
    counts, prob_sum, z_sum, entropy, dropped = none, none, none, none, none
    for stats in collected:
        counts, prob_sum, z_sum = (*counts, stats[0]), (*prob_sum, stats[1]), (*z_sum, stats[2])
        entropy, dropped = (*entropy, stats[3]), (*dropped, stats[4])
    return ops.stack(counts), ops.stack(prob_sum), ops.stack(z_sum), ops.stack(entropy), ops.stack(dropped)


class CausalLM(nn.Cell):
    """A gpt-oss decoder, or its dense twin where `moe` is None.

    Calling it gives the training objective's parts; `logits` gives next-token logits.
    """

    def __init__(
        self,
        model: ModelConfig,
        moe: MoeConfig | None,
        kernels: OpSet,
        *,
        mesh: Mesh | None = None,
        rank: int = 0,
        seed: int = 0,
    ):
        super().__init__(auto_prefix=False)
        weights = Weights(
            param_specs(model, moe), mesh=mesh or Mesh(), rank=rank, seed=seed, std=model.initializer_range
        )
        self.embedding, self.rms_norm = kernels.embedding, kernels.rms_norm
        self.linear_out, self.cross_entropy = kernels.linear_out, kernels.cross_entropy
        self.embed = weights["model.embed_tokens.weight"]
        self.layers = nn.CellList(auto_prefix=False)
        for layer in range(model.num_hidden_layers):
            self.layers.append(Block(model, moe, layer, kernels, weights.at(f"model.layers.{layer}")))
        self.norm = weights["model.norm.weight"]
        self.lm_head = self.embed if model.tie_word_embeddings else weights["lm_head.weight"]
        self.is_moe = moe is not None

    def hidden(self, input_ids: Tensor, segment_ids: Tensor) -> tuple[Tensor, RouterStats | tuple[()]]:
        """input_ids (B, S) -> final hidden states (B, S, D) and statistics stacked over layers, (L, E) and (L)."""
        x = self.embedding(input_ids, self.embed)
        collected: tuple[RouterStats | tuple[()], ...] = ()
        for layer in self.layers:
            x, stats = layer(x, segment_ids)
            collected = (*collected, stats)
        x = self.rms_norm(x, self.norm)
        return x, stack_layers(collected) if self.is_moe else ()

    def construct(
        self, input_ids: Tensor, labels: Tensor, loss_mask: Tensor, segment_ids: Tensor
    ) -> tuple[Tensor, RouterStats | tuple[()]]:
        """All (B, S) -> summed cross-entropy over unmasked tokens [nats] and the stacked statistics."""
        x, stats = self.hidden(input_ids, segment_ids)
        return self.cross_entropy(x, self.lm_head, labels, loss_mask), stats

    def logits(self, input_ids: Tensor, segment_ids: Tensor) -> Tensor:
        """input_ids (B, S) -> (B, S, V)."""
        x, _ = self.hidden(input_ids, segment_ids)
        return self.linear_out(x, self.lm_head)

    def next_logits(self, input_ids: Tensor, segment_ids: Tensor, last: Tensor) -> Tensor:
        """input_ids (B, S), last (1) int32 the position of the last token -> (B, V) logits of the token after it."""
        return ops.gather(self.logits(input_ids, segment_ids), last, 1)[:, 0]
