"""The training objective of one micro-batch: cross-entropy, balancing losses, and the sums that are reported."""

from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from mindmoe.models.decoder import CausalLM
from mindmoe.moe.balance import balance_loss, z_loss
from mindmoe.moe.config import MoeConfig
from mindmoe.moe.router.scores import named
from mindmoe.parallel.collectives import build_all_reduce
from mindmoe.parallel.groups import Groups
from mindmoe.train.counts import StepCounts

Report = tuple[Tensor, ...]
"""Sums over this rank's tokens, named by `Objective.names`: `cross_entropy` (1); with experts also `aux`, where
sequences are balanced `seq_aux`, and `z`, each (1), `counts` (L, E), `entropy` (L), `dropped` (L), the router's
signals, each (L, ..), and its sums; and, where routing is recorded, `ids` (L, T, K)."""


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
        # All ranks that hold tokens of these layers: dp, cp and tp, but not the other stages of the pipeline.
        self.all_reduce = build_all_reduce(groups["stage"])
        self.ranks = groups["dp_cp"].size
        self.seq_coef = moe.balance.seq_aux_coef if moe is not None else 0.0
        self.of_part, self.of_context = build_all_reduce(groups["tp"]), build_all_reduce(groups["cp"])
        self.context = groups["cp"].size
        # What stands for a loss that a piece does not have.
        self.none = Tensor(0.0)
        self.aux_coef: Any = moe.balance.aux_coef if moe is not None else 0.0
        # A loss without weight is reported too, but needs no counts of other micro-batches, nor passes to have them.
        self.over = moe.balance.aux_over if moe is not None and self.aux_coef > 0 else "micro"
        # A parameter that a compiled step reads in each run; a Python number would be a constant of its graph.
        if live:
            self.aux_coef = Parameter(Tensor(self.aux_coef, ms.float32), name="aux_coef", requires_grad=False)
        self.learn, self.names = net.learn, self.report_names(net)

    def report_names(self, net: CausalLM) -> tuple[str, ...]:
        """The names of a report, in its order."""
        if self.moe is None:
            return ("cross_entropy",)
        more = ("seq_aux",) if self.seq_coef > 0 else ()
        more = (*more, *net.signals, *net.learned_sums, *(("ids",) if self.record_routing else ()))
        return ("cross_entropy", "aux", "z", "counts", "entropy", "dropped", *more)

    def step_counts(self) -> StepCounts:
        """What the micro-batches of a step tell each other about this piece."""
        size = (len(self.net.layers), self.moe.num_experts) if self.moe is not None else (0, 0)
        return StepCounts(self.over, self.names, size, self.all_reduce)

    def construct(
        self,
        x: Tensor,
        labels: Tensor,
        loss_mask: Tensor,
        segment_ids: Tensor,
        token_weight: Tensor,
        micro_weight: Tensor,
        *more: Tensor,
    ) -> tuple[Tensor, Report]:
        """The share of the loss of a network in one piece, and what is reported; arguments as for `parts`."""
        (y, balance), report = self.parts(x, labels, loss_mask, segment_ids, token_weight, micro_weight, *more)
        return y + balance, report

    def parts(
        self,
        x: Tensor,
        labels: Tensor,
        loss_mask: Tensor,
        segment_ids: Tensor,
        token_weight: Tensor,
        micro_weight: Tensor,
        *more: Tensor,
    ) -> tuple[tuple[Tensor, Tensor], Report]:
        """What the piece makes, its share of the balancing losses, and what is reported.

        Args:
            x: input_ids (B, S) int32, or the hidden states that the piece before made.
            labels: (B, S) int32 next tokens.
            loss_mask: (B, S) 1 where a label counts.
            segment_ids: (B, S) int32 document of each token.
            token_weight: 1 / number of counted tokens of the whole batch, over all ranks and micro-batches.
            micro_weight: 1 / number of micro-batches.
            more: (B, S) int32 each, what the router reads of the tokens; behind them what other micro-batches tell, as
                `StepCounts.known` says. Without that, only the counts of the report are of use under `exact`, and
                `running` takes the micro-batch for the first of its step.

        Returns:
            The share of the cross-entropy from the last piece, else hidden states.
        """
        read, known = more[: len(self.net.reads)], more[len(self.net.reads) :]
        y, told = self.net(x, labels, loss_mask, segment_ids, token_weight, *read)
        cross_entropy = self.none.reshape(1)
        if self.net.last:
            # y is the summed cross-entropy: reported as it is, differentiated as a share of the mean over the batch.
            cross_entropy, y = ops.stop_gradient(y).reshape(1), y * token_weight
        if self.moe is None:
            return (y, self.none), (cross_entropy,)
        counts, prob_sum = told["counts"], told["probs"]
        # `labels` are whole over a tensor group: times dp and cp, they are the tokens of all ranks.
        num_tokens = float(labels.shape[0] * labels.shape[1] * self.ranks)
        # (L, B, E) where sequences are balanced, else (L, E)
        sequences = counts, prob_sum
        if self.seq_coef > 0:
            counts, prob_sum = counts.sum(1), prob_sum.sum(1)
        # f of docs/balancing.md: counts of everybody's tokens, without a gradient, which flows through `prob_sum`
        # alone.
        everywhere = counts
        if self.over == "running" and known:
            everywhere = counts + known[0]
        # Under `exact`, `known` brings counts that are summed over ranks already.
        if self.over != "exact":
            everywhere = self.all_reduce(ops.stop_gradient(everywhere))
        if known:
            everywhere = (known[0] if self.over == "exact" else everywhere) * known[1]
        aux = balance_loss(self.moe, everywhere, prob_sum, num_tokens, num_tokens) * micro_weight
        z = z_loss(told["z"], num_tokens) * micro_weight
        layers = counts.shape[0]
        # `aux` and `z` are means over layers; the loss adds up the layers.
        balance = (self.aux_coef * aux + self.moe.balance.z_coef * z) * layers
        told["cross_entropy"], told["counts"] = cross_entropy, counts
        told["aux"], told["z"] = aux.reshape(1) * layers, z.reshape(1) * layers
        if self.seq_coef > 0:
            # A sequence is cut into parts over tp and cp: counts of the whole of it, scores of this rank's part.
            in_sequence = self.of_context(self.of_part(ops.stop_gradient(sequences[0])))
            length = float(labels.shape[1] * self.context)
            seq = balance_loss(self.moe, in_sequence, sequences[1], num_tokens, length) * micro_weight
            balance = balance + self.seq_coef * seq * layers
            told["seq_aux"] = seq.reshape(1) * layers
        if self.learn is not None:
            # (B, S) -> (T): of the tokens that this tensor rank routes, as everything else that the router told.
            told["mask"] = self.net.own_part(loss_mask).reshape(-1)
            own = self.net.own_reads(named(self.net.reads, read))
            learned, sums = self.learn(told, own, self.net.shared_state(), self.all_reduce)
            balance = balance + learned * micro_weight
            for name in self.net.learned_sums:
                told[name] = sums[name]
        report: Report = ()
        for name in self.names:
            report = (*report, ops.stop_gradient(told[name]))
        return (y, balance), report
