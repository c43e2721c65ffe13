"""The training objective of one micro-batch: cross-entropy, balancing losses, and the sums that are reported."""

from mindspore import Tensor, nn, ops

from mindmoe.model.decoder import CausalLM
from mindmoe.moe.balance import balance_loss
from mindmoe.moe.config import MoeConfig
from mindmoe.parallel.collectives import build_all_reduce
from mindmoe.parallel.groups import Group

Report = tuple[Tensor, ...]
"""Sums over this rank's tokens: cross-entropy (1); with experts also aux (1), z (1), counts (L, E), entropy (L),
dropped (L)."""


class Objective(nn.Cell):
    """This rank's share of the loss: the shares of all ranks and micro-batches add up to the loss of the batch."""

    def __init__(self, net: CausalLM, moe: MoeConfig | None, group: Group):
        """`group` spans the ranks that see different tokens of a micro-batch."""
        super().__init__(auto_prefix=False)
        self.net, self.moe = net, moe
        self.all_reduce = build_all_reduce(group)
        self.ranks = group.size

    def construct(
        self,
        input_ids: Tensor,
        labels: Tensor,
        loss_mask: Tensor,
        segment_ids: Tensor,
        token_weight: Tensor,
        micro_weight: Tensor,
    ) -> tuple[Tensor, Report]:
        """The share of the loss and what is reported.

        Args:
            input_ids: (B, S) int32; labels, loss_mask and segment_ids likewise.
            labels: next tokens.
            loss_mask: 1 where a label counts.
            segment_ids: document of each token.
            token_weight: 1 / number of counted tokens of the whole batch, over all ranks and micro-batches.
            micro_weight: 1 / number of micro-batches.
        """
        cross_entropy, stats = self.net(input_ids, labels, loss_mask, segment_ids)
        loss = cross_entropy * token_weight
        if self.moe is None:
            return loss, (ops.stop_gradient(cross_entropy).reshape(1),)
        counts, prob_sum, z_sum, entropy, dropped = stats
        num_tokens = float(input_ids.shape[0] * input_ids.shape[1] * self.ranks)
        everywhere = self.all_reduce(ops.stop_gradient(counts)) if self.moe.balance.aux_coef > 0 else counts
        aux, z = balance_loss(self.moe, everywhere, prob_sum, z_sum, num_tokens)
        aux, z = aux * micro_weight, z * micro_weight
        layers = counts.shape[0]
        loss = loss + (self.moe.balance.aux_coef * aux + self.moe.balance.z_coef * z) * layers
        report = (cross_entropy.reshape(1), aux.reshape(1), z.reshape(1), counts, entropy, dropped)
        return loss, ops.stop_gradient(report)
