"""Dynamic routing as a router: its settings, what it adds to a model, what it reads, how its state moves (dry)."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from mindmoe.config.schema import Coefficient, Decay, NonNegativeInt32, PositiveInt32, Scale, Section, Share
from mindmoe.lab.dmr.control import (
    DIFFICULTY_BINS,
    MARGIN_BINS,
    NORMS,
    num_controls,
    score_bins,
    table_sizes,
    updated_control,
    updated_table,
)
from mindmoe.moe.router.base import Read, Router, RouterSpecs, RouterStep, Routing, Score, Weight
from mindmoe.moe.router.problems import group_problems, slot_problems
from mindmoe.parallel.config import ParallelConfig

if TYPE_CHECKING:
    from mindmoe.moe.config import MoeConfig


class BudgetConfig(Section):
    """How the mean number of experts is held at moe.num_experts_per_tok.

    A threshold per layer decides which of the slots beyond `k_min` are used; it follows, with rate `rho`, the quantile
    that would have met the target, and `mu` times the excess of the mean. For the first `warmup_steps` routing is
    static: scores of a fresh router move faster than the threshold can follow. `slot_slack` bounds the slots that a
    micro-batch may use to T * num_experts_per_tok * (1 + slack), rounded up to 512; the rest are dropped, least
    wanted first. Null switches the bound off.
    """

    k_min: PositiveInt32 = 1
    k_max: PositiveInt32 = 8
    rho: Share = 0.1
    mu: Coefficient = 0.05
    warmup_steps: NonNegativeInt32 = 500
    slot_slack: Coefficient | None = 0.1


class GroupsConfig(Section):
    """Stage 1: an easy token chooses from its best `easy` groups of `num_groups`, a hard one from its best `hard`.

    Which tokens are easy is decided such that the mean is `target` groups. `easy` = `hard` switches stage 1 off.
    """

    num_groups: PositiveInt32 = 1
    easy: PositiveInt32 = 1
    hard: PositiveInt32 = 1
    target: Scale = 1.0


class FeaturesConfig(Section):
    """What a token brings besides its hidden state, all of it known before the token is routed.

    `alpha`: weight of the predicted difficulty in the choice of k; 0 leaves it to the scores. `difficulty_head`: a
    linear head per layer predicts how hard the token is. `grad_ema`: a table by token id of the mean log gradient
    norm seen in earlier steps, with forgetting factor `decay` per occurrence; `grad_source` says of which gradient:
    `head`, of the token's own loss at its logits, or `tap`, of the whole loss at the token's embedding. `bigram`: the
    same by token and the one before it, hashed into `buckets` rows; repeated epochs may be memorised there. `domain`:
    a learned bias of the logits by the source that a sequence comes from.
    """

    alpha: Coefficient = 0.5
    difficulty_head: bool = True
    grad_ema: bool = False
    grad_source: Literal["head", "tap"] = "head"
    decay: Decay = Field(0.95, gt=0.0)
    bigram: bool = False
    buckets: int = Field(2**18, ge=2, le=2**18)
    domain: bool = False

    @property
    def has_table(self) -> bool:
        """Whether gradient norms of earlier steps are kept."""
        return self.grad_ema or self.bigram


class DifficultyConfig(Section):
    """How the difficulty heads learn: `loss_coef` times the Huber loss of their predictions.

    `target`: `loss_head`, the log gradient norm of this step at the logits, standardised over the batch, or `table`,
    what the table says of the token, which every pipeline stage can know.
    """

    loss_coef: Coefficient = 0.1
    target: Literal["loss_head", "table"] = "loss_head"


class DomainConfig(Section):
    """Domain n is the n-th of data.sources, from 1; 0 is unknown, as everything held out or generated is.

    `num`: domains that there is room for. `label_dropout`: share of training sequences whose domain is hidden.
    """

    num: int = Field(32, gt=0, le=1_000_000)
    label_dropout: Decay = 0.2


class Dmr(Router):
    """Dynamic routing: the number of experts varies by token around a mean that is held.

    `variant`: `threshold` keeps a slot whose score relative to the token's best, plus alpha times difficulty, is above
    the layer's threshold; `null` compares the score itself, as null experts do (arXiv 2406.13233); `expert_threshold`
    keeps a threshold per expert (arXiv 2603.11535); `random_k` draws k from the ids and places of tokens, a placebo:
    every number within an equal distance below and above the mean is as likely, as far as `k_min`, `k_max` and the
    experts of the chosen groups allow on both sides, so that the mean is held.
    """

    type: Literal["dmr"]
    score: Score = "sigmoid"
    variant: Literal["threshold", "null", "expert_threshold", "random_k"] = "threshold"
    budget: BudgetConfig = BudgetConfig()
    groups: GroupsConfig = GroupsConfig()
    features: FeaturesConfig = FeaturesConfig()
    difficulty: DifficultyConfig = DifficultyConfig()
    domain: DomainConfig = DomainConfig()

    def specs(self, moe: "MoeConfig", hidden_size: int, vocab_size: int) -> RouterSpecs:
        """Thresholds, difficulty heads and biases of domains in each layer, and the tables of all layers."""
        tables = table_sizes(self, vocab_size)
        layer = [Weight(name="control", shape=(num_controls(self, moe),), trainable=False)]
        if self.features.difficulty_head:
            read = hidden_size + 2 * max(1, len(tables))
            layer += [Weight(name="difficulty.weight", shape=(read,)), Weight(name="difficulty.bias", shape=(1,))]
        if self.features.domain:
            layer.append(Weight(name="domain", shape=(self.domain.num + 1, moe.num_experts)))
        scores = moe.num_experts * score_bins(self).count if self.variant == "expert_threshold" else 1
        return RouterSpecs(
            layer=tuple(layer),
            shared=tuple(Weight(name=name, shape=(rows, 2), trainable=False) for name, rows in tables.items()),
            signals={
                "margins": MARGIN_BINS.count,
                "difficulty": DIFFICULTY_BINS.count,
                "tokens": 1,
                "scores": scores,
            },
            sums={NORMS: (2, sum(tables.values()))} if tables else {},
        )

    def reads(self) -> tuple[Read, ...]:
        """Hidden states for the heads, ids for tables and draws, places for draws, what stands before for pairs."""
        wanted: dict[Read, bool] = {
            "hidden": self.features.difficulty_head,
            "token_id": self.features.has_table or self.variant == "random_k",
            "position": self.variant == "random_k",
            "previous": self.features.bigram,
            "domain": self.features.domain,
        }
        return tuple(name for name, needed in wanted.items() if needed)

    def build(self, moe: "MoeConfig") -> Routing:
        """Two stages around thresholds, and what its difficulty heads and tables learn from."""
        from mindmoe.lab.dmr.routing import build_routing

        return build_routing(self, moe)

    def after_step(
        self, moe: "MoeConfig", state: Mapping[str, np.ndarray], step: RouterStep
    ) -> Mapping[str, np.ndarray]:
        """The thresholds follow the quantiles of the step, the tables its gradient norms."""
        moved, start = {}, 0
        if "control" in state:
            moved["control"] = updated_control(self, moe, state["control"], step)
        for name, table in ((name, state[name]) for name in table_sizes(self, 0) if name in state):
            counts, sums = step.sums[NORMS][:, start : start + table.shape[0]]
            moved[name] = updated_table(table, counts, sums, self.features.decay)
            start += table.shape[0]
        return moved

    def slots(self, moe: "MoeConfig") -> int:
        """budget.k_max."""
        return self.budget.k_max

    def mean_slots(self, moe: "MoeConfig") -> float:
        """As slot_slack bounds it, without its rounding."""
        slack = self.budget.slot_slack
        most = float(self.budget.k_max)
        return most if slack is None else min(most, moe.num_experts_per_tok * (1.0 + slack))

    def mean_range(self, moe: "MoeConfig") -> tuple[float, float]:
        """The budget is held."""
        return float(moe.num_experts_per_tok), float(moe.num_experts_per_tok)

    @property
    def expert_groups(self) -> int:
        """groups.num_groups."""
        return self.groups.num_groups

    @property
    def group_share(self) -> float:
        """The target of stage 1."""
        return self.groups.target / self.groups.num_groups

    def drawn(self, moe: "MoeConfig") -> range:
        """The numbers of experts that `random_k` draws from, each as likely; their mean is num_experts_per_tok."""
        k, budget, groups = moe.num_experts_per_tok, self.budget, self.groups
        reachable = moe.num_experts // groups.num_groups * groups.hard
        reach = min(k - budget.k_min, budget.k_max - k, reachable - k)
        return range(k - reach, k + reach + 1)

    @property
    def hidden_domains(self) -> float:
        """domain.label_dropout."""
        return self.domain.label_dropout if self.features.domain else 0.0

    @property
    def unbounded(self) -> "Dmr":
        """Without slot_slack."""
        return self.model_copy(update={"budget": self.budget.model_copy(update={"slot_slack": None})})

    @property
    def uses_difficulty(self) -> bool:
        """Whether a layer needs the difficulty of its tokens."""
        return self.features.difficulty_head or self.features.has_table

    @property
    def measures_loss(self) -> bool:
        """Whether the gradient at the logits is measured."""
        learns = self.features.difficulty_head and self.difficulty.target == "loss_head"
        return learns or (self.features.has_table and self.features.grad_source == "head")

    @property
    def taps(self) -> bool:
        """Whether the gradient at the embedding is measured."""
        return self.features.has_table and self.features.grad_source == "tap"

    def problems(self, moe: "MoeConfig") -> Iterator[str]:
        """Budgets and groups that do not hold the target."""
        k, budget, groups, at = moe.num_experts_per_tok, self.budget, self.groups, "router.budget"
        if not budget.k_min <= k:
            yield f"{at}.k_min={budget.k_min} must be at most num_experts_per_tok={k}: lower {at}.k_min"
        if budget.k_max < k:
            yield f"{at}.k_max={budget.k_max} must be at least num_experts_per_tok={k}: raise {at}.k_max"
        yield from slot_problems(moe, budget.k_max, f"{at}.k_max")
        if not groups.easy <= groups.target <= groups.hard:
            yield (
                f"router.groups.target={groups.target} must lie between easy={groups.easy} and hard={groups.hard}: "
                "change router.groups.target"
            )
        if groups.easy < groups.hard and not self.uses_difficulty:
            yield (
                f"router.groups.hard={groups.hard} must equal easy={groups.easy} without difficulty: "
                "set router.features.difficulty_head=true"
            )
        yield from group_problems(moe, groups.num_groups, groups.hard, "router.groups.hard")
        if groups.easy * (moe.num_experts // groups.num_groups) < budget.k_min:
            yield f"router.groups.easy={groups.easy} must leave {at}.k_min={budget.k_min} experts: raise it"
        if self.variant == "random_k" and (self.uses_difficulty or groups.easy < groups.hard):
            yield (
                "router.variant=random_k must not look at difficulty: set router.features.difficulty_head=false, "
                "router.features.grad_ema=false, router.features.bigram=false and groups.easy = groups.hard"
            )
        if self.variant == "random_k" and len(self.drawn(moe)) == 1:
            yield (
                f"router.variant=random_k must have room below and above num_experts_per_tok={k} to hold that mean: "
                f"set {at}.k_min below it, and {at}.k_max and the experts of router.groups.hard groups above it"
            )
        if self.features.difficulty_head and self.difficulty.target == "table" and not self.features.has_table:
            yield (
                "router.difficulty.target=table must have a table: set router.features.grad_ema=true or "
                "router.difficulty.target=loss_head"
            )
        if self.features.alpha and not self.uses_difficulty and self.variant in ("threshold", "null"):
            yield (
                f"router.features.alpha={self.features.alpha} must be 0 without difficulty: "
                "set router.features.difficulty_head=true or alpha=0"
            )

    def layout_problems(self, parallel: ParallelConfig) -> Iterator[str]:
        """Difficulty that stages cannot measure or share."""
        if self.features.difficulty_head and self.difficulty.target == "loss_head" and parallel.pp > 1:
            yield (
                f"parallel.pp={parallel.pp} must be 1 with moe.router.difficulty.target=loss_head, which the last "
                "stage alone can measure: set moe.router.difficulty.target=table and moe.router.features.grad_ema=true"
            )
        if self.features.has_table and parallel.chunks > 1:
            feature = "grad_ema" if self.features.grad_ema else "bigram"
            yield (
                f"parallel.chunks={parallel.chunks} must be 1 with moe.router.features.{feature}, of which a stage "
                "holds one table: set parallel.schedule=1f1b and parallel.chunks=1"
            )

    def data_problems(self, num_sources: int) -> Iterator[str]:
        """More sources than domains."""
        if self.features.domain and num_sources > self.domain.num:
            yield (
                f"data.sources={num_sources} sources must be at most moe.router.domain.num={self.domain.num}: "
                "raise moe.router.domain.num"
            )
