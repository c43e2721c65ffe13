"""The training objective of one micro-batch: cross-entropy, balancing losses, and the sums that are reported."""

from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from mindmoe.model.decoder import CausalLM
from mindmoe.moe.balance import balance_loss, z_loss
from mindmoe.moe.config import DmrConfig, MoeConfig
from mindmoe.moe.difficulty import build_regression, moments, standardised, table_sums, told_by
from mindmoe.parallel.collectives import build_all_reduce
from mindmoe.parallel.groups import Groups

Report = tuple[Tensor, ...]
"""Sums over this rank's tokens: cross-entropy (1); with experts also aux (1, or 2 with that of sequences), z (1),
counts (L, E), entropy (L), dropped (L); with dynamic routing the signals of its controllers, each (L, ..), and the sums
of the tables (2, V) where there are any, over the rows of all; and, where routing is recorded, ids (L, T, K)."""


class Objective(nn.Cell):
    """This rank's share of the loss: the shares of all ranks and micro-batches add up to the loss of the batch.

    Where the network is cut into pieces, the objective of a piece: its layers' balancing losses, and what it passes on.

    Args:
        net: the model, or a piece of it.
        moe: routing, None for a dense model.
        groups: this rank's groups.
        record_routing: whether the report ends in the chosen experts.
        live: whether the weight of the load-balancing loss is read anew in every step.
    """

    def __init__(
        self,
        net: CausalLM,
        moe: MoeConfig | None,
        groups: Groups,
        record_routing: bool = False,
        live: bool = False,
    ):
        super().__init__(auto_prefix=False)
        self.net, self.moe, self.record_routing = net, moe, record_routing
        self.all_reduce = build_all_reduce(groups["stage"])
        self.ranks = groups["dp_cp"].size
        self.seq_coef = moe.balance.seq_aux_coef if moe is not None else 0.0
        self.of_part, self.of_context = build_all_reduce(groups["tp"]), build_all_reduce(groups["cp"])
        self.context = groups["cp"].size
        self.none = Tensor(0.0)
        self.aux_coef: Any = moe.balance.aux_coef if moe is not None else 0.0
        if live:
            self.aux_coef = Parameter(Tensor(self.aux_coef, ms.float32), name="aux_coef", requires_grad=False)
        self.dynamic: Any = moe.router if moe is not None and isinstance(moe.router, DmrConfig) else None
        self.learns, self.from_table, self.sums_table = False, False, False
        if self.dynamic is not None:
            features, difficulty = self.dynamic.features, self.dynamic.difficulty
            self.learns = features.difficulty_head
            self.from_table = self.learns and difficulty.target == "table"
            self.regression = build_regression(difficulty.loss_coef)
            if net.table is not None and features.grad_source == "head" and net.last:
                self.sums_table = True

    def construct(
        self,
        x: Tensor,
        labels: Tensor,
        loss_mask: Tensor,
        segment_ids: Tensor,
        tokens: Tensor,
        token_weight: Tensor,
        micro_weight: Tensor,
    ) -> tuple[Tensor, Report]:
        """The share of the loss of a network in one piece, and what is reported; arguments as for `parts`."""
        (y, balance), report = self.parts(x, labels, loss_mask, segment_ids, tokens, token_weight, micro_weight)
        return y + balance, report

    def parts(
        self,
        x: Tensor,
        labels: Tensor,
        loss_mask: Tensor,
        segment_ids: Tensor,
        tokens: Tensor,
        token_weight: Tensor,
        micro_weight: Tensor,
    ) -> tuple[tuple[Tensor, Tensor], Report]:
        """What the piece makes, its share of the balancing losses, and what is reported.

        Args:
            x: input_ids (B, S) int32, or the hidden states that the piece before made.
            labels: (B, S) int32 next tokens.
            loss_mask: (B, S) 1 where a label counts.
            segment_ids: (B, S) int32 document of each token.
            tokens: (B, S, 4) int32 id, domain and place of each token, and the token before it.
            token_weight: 1 / number of counted tokens of the whole batch, over all ranks and micro-batches.
            micro_weight: 1 / number of micro-batches.

        Returns:
            The share of the cross-entropy from the last piece, else hidden states.
        """
        learned = self.none
        y, stats = self.net(x, labels, loss_mask, segment_ids, tokens, token_weight)
        cross_entropy = self.none.reshape(1)
        if self.net.last:
            cross_entropy, y = ops.stop_gradient(y).reshape(1), y * token_weight
        if self.moe is None:
            return (y, self.none), (cross_entropy,)
        counts, prob_sum, z_sum, entropy, dropped, ids = stats[:6]
        num_tokens = float(labels.shape[0] * labels.shape[1] * self.ranks)
        sequences = counts, prob_sum
        if self.seq_coef > 0:
            counts, prob_sum = counts.sum(1), prob_sum.sum(1)
        everywhere = counts
        if self.learns:
            mask = self.net.own_part(loss_mask).reshape(-1)
            known = ops.stop_gradient(self.net.features(tokens)[0]) if self.from_table else None
            if known is None:
                target = stats[-1]
            else:
                target, seen = told_by(known)
                mask = mask * seen
            # In one collective: two that do not depend on each other might run in another order on another rank.
            both = ops.concat((ops.stop_gradient(counts).reshape(-1), moments(target, mask)))
            both = self.all_reduce(ops.stop_gradient(both))
            everywhere, of_all = both[:-3].reshape(counts.shape), both[-3:]
            target = target if self.from_table else standardised(target, of_all)
            learned = self.regression(stats[10], target, mask, of_all[0]) * micro_weight
        elif self.moe.balance.aux_coef > 0:
            everywhere = self.all_reduce(ops.stop_gradient(counts))
        aux = balance_loss(self.moe, everywhere, prob_sum, num_tokens, num_tokens) * micro_weight
        z = z_loss(z_sum, num_tokens) * micro_weight
        layers = counts.shape[0]
        balance = (self.aux_coef * aux + self.moe.balance.z_coef * z) * layers
        aux = aux.reshape(1)
        if self.seq_coef > 0:
            in_sequence = self.of_context(self.of_part(ops.stop_gradient(sequences[0])))
            length = float(labels.shape[1] * self.context)
            seq = balance_loss(self.moe, in_sequence, sequences[1], num_tokens, length) * micro_weight
            balance = balance + self.seq_coef * seq * layers
            aux = ops.concat((aux, seq.reshape(1)))
        report: Report = (cross_entropy, aux * layers, z.reshape(1) * layers, counts, entropy, dropped)
        if self.dynamic is not None:
            balance = balance + learned
            report = (*report, *stats[6:10])
            if self.sums_table:
                rows = self.net.table_rows(self.net.own_part(tokens))
                report = (*report, table_sums(stats[-1], rows, self.net.own_part(loss_mask), self.net.table_size))
        if self.record_routing:
            report = (*report, ids)
        return (y, balance), ops.stop_gradient(report)
