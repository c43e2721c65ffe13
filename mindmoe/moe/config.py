"""Routing: how experts are selected, how load is balanced, how tokens travel. Three independent choices."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from mindmoe.schema import Coefficient, Decay, NonNegativeInt32, PositiveInt32, Scale, Section, Share

Score = Literal["softmax_after_topk", "softmax", "sigmoid"]


class Scoring(Section):
    """What all routers share: how logits become gates.

    `score`: `softmax_after_topk` (gpt-oss: softmax over the chosen logits), `softmax` (over all experts, then top-k),
    `sigmoid` (DeepSeek-V3). `tau` divides the logits. `norm_topk` divides the gates of a token by their sum.
    """

    causal: ClassVar[bool] = True  # whether a token's routing depends on itself and earlier tokens alone

    score: Score = "softmax_after_topk"
    tau: Scale = 1.0
    norm_topk: bool = True
    route_scale: Scale = 1.0
    linear_bias: bool = True

    def slots(self, moe: "MoeConfig") -> int:
        """Experts that a token may have at most, K of the shapes."""
        return moe.num_experts_per_tok

    def mean_slots(self, moe: "MoeConfig") -> float:
        """The most experts of a token on average over a micro-batch; as many rows may be computed."""
        return self.slots(moe)

    @property
    def group_share(self) -> float:
        """The share of the groups of experts that a token may choose from."""
        return 1.0

    @property
    def unbounded(self) -> "Scoring":
        """The router for inference: no bound on the slots of a batch, in which later tokens would take part."""
        return self

    def problems(self, moe: "MoeConfig") -> Iterator[str]:
        """What does not fit the section that this one is part of."""
        yield from ()


class RouterConfig(Scoring):
    """Static top-k. With `num_groups` > 1 only the best `topk_groups` groups may be chosen from (a group's score: the
    sum of its two best experts, arXiv 2412.19437)."""

    type: Literal["static"] = "static"
    num_groups: PositiveInt32 = 1
    topk_groups: PositiveInt32 = 1

    @property
    def group_share(self) -> float:
        """topk_groups of num_groups."""
        return self.topk_groups / self.num_groups

    def problems(self, moe: "MoeConfig") -> Iterator[str]:
        """Groups that do not divide the experts or cannot hold the choice."""
        yield from _group_problems(moe, self.num_groups, self.topk_groups, "router.topk_groups")


class MogeConfig(Scoring):
    """The same number of experts in each group, so that groups on different cards carry equal load (arXiv 2505.21411).

    A group chooses num_experts_per_tok / num_groups experts.
    """

    type: Literal["moge"]
    num_groups: PositiveInt32

    def problems(self, moe: "MoeConfig") -> Iterator[str]:
        """Groups that do not divide the experts, or experts per token that groups cannot share."""
        for name, size in (("num_experts", moe.num_experts), ("num_experts_per_tok", moe.num_experts_per_tok)):
            if size % self.num_groups:
                yield f"router.num_groups={self.num_groups} must divide {name}={size}: change router.num_groups"


class TopPConfig(Scoring):
    """The fewest experts whose probabilities add up to `p`, at least one and at most `k_max` (arXiv 2403.07652).

    Nothing holds the mean number of experts: it follows how sure the router is.
    """

    type: Literal["top_p"]
    p: Share
    k_max: PositiveInt32

    def slots(self, moe: "MoeConfig") -> int:
        """k_max."""
        return self.k_max

    def problems(self, moe: "MoeConfig") -> Iterator[str]:
        """More slots than experts."""
        yield from _slot_problems(moe, self.k_max, "router.k_max")


class ExpertChoiceConfig(Scoring):
    """Each expert takes the T * num_experts_per_tok / E tokens that score it highest (arXiv 2202.09368).

    For training research only: which tokens an expert takes depends on later ones. A token keeps at most `k_max`.
    """

    causal: ClassVar[bool] = False

    type: Literal["expert_choice"]
    k_max: PositiveInt32

    def slots(self, moe: "MoeConfig") -> int:
        """k_max."""
        return self.k_max

    def mean_slots(self, moe: "MoeConfig") -> float:
        """num_experts_per_tok: experts take no more."""
        return min(self.k_max, moe.num_experts_per_tok)

    def problems(self, moe: "MoeConfig") -> Iterator[str]:
        """More slots than experts."""
        yield from _slot_problems(moe, self.k_max, "router.k_max")


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


class DmrConfig(Scoring):
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

    def slots(self, moe: "MoeConfig") -> int:
        """budget.k_max."""
        return self.budget.k_max

    def mean_slots(self, moe: "MoeConfig") -> float:
        """As slot_slack bounds it, without its rounding."""
        slack = self.budget.slot_slack
        most = float(self.budget.k_max)
        return most if slack is None else min(most, moe.num_experts_per_tok * (1.0 + slack))

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
    def unbounded(self) -> "DmrConfig":
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
        yield from _slot_problems(moe, budget.k_max, f"{at}.k_max")
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
        yield from _group_problems(moe, groups.num_groups, groups.hard, "router.groups.hard")
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


def _group_problems(moe: "MoeConfig", num_groups: int, topk_groups: int, key: str) -> Iterator[str]:
    """Groups of experts that cannot be formed or do not hold the choice; `key` names the number of chosen groups."""
    experts, k = moe.num_experts, moe.num_experts_per_tok
    name = key.rpartition(".")[0] + ".num_groups"
    if experts % num_groups:
        yield f"{name}={num_groups} must divide num_experts={experts}: change {name}"
    elif num_groups > 1 and experts // num_groups < 2:
        yield (
            f"{name}={num_groups} must leave 2 of num_experts={experts} in a group "
            "(it is scored by its two best): lower num_groups"
        )
    if topk_groups > num_groups:
        yield f"{key}={topk_groups} must be at most {name}={num_groups}: lower {key.rpartition('.')[2]}"
    reachable = experts // num_groups * topk_groups
    if reachable < k <= experts:
        yield (
            f"num_experts_per_tok={k} must be at most the {reachable} experts of {key}={topk_groups} groups: "
            f"raise {key}"
        )


def _slot_problems(moe: "MoeConfig", k_max: int, key: str) -> Iterator[str]:
    if k_max > moe.num_experts:
        yield f"{key}={k_max} must be at most num_experts={moe.num_experts}: lower {key}"


def _router_type(value: Any) -> Any:
    """The tag of a router section; `static` where it is not written."""
    return value.get("type", "static") if isinstance(value, dict) else getattr(value, "type", "static")


Router = Annotated[
    Annotated[RouterConfig, Tag("static")]
    | Annotated[MogeConfig, Tag("moge")]
    | Annotated[TopPConfig, Tag("top_p")]
    | Annotated[ExpertChoiceConfig, Tag("expert_choice")]
    | Annotated[DmrConfig, Tag("dmr")],
    Discriminator(_router_type),
]
"""The section of any router; `type` says which."""


class BalanceConfig(Section):
    """Load balancing; every term may be combined with every router, 0 switches a term off.

    `aux_coef`: Switch load-balancing loss (arXiv 2101.03961 eq. 4) over each micro-batch of all data ranks together,
    averaged over the micro-batches of a step; with one micro-batch a step it is over the global batch.
    `seq_aux_coef`: the same loss over each sequence by itself (arXiv 2412.19437 eq. 17-20); a sequence is a row of the
    batch, with all documents that are packed into it.
    `z_coef`: router z-loss (arXiv 2202.08906 eq. 5).
    `bias_rate`: step of the aux-loss-free selection bias (arXiv 2408.15664).
    """

    aux_coef: Coefficient = 0.0
    seq_aux_coef: Coefficient = 0.0
    z_coef: Coefficient = 0.0
    bias_rate: Coefficient = 0.0


class DispatchConfig(Section):
    """Which assignments are computed: all (`dropless`), or at most capacity_factor * T * K / E an expert (`capacity`).

    The capacity holds in each chunk of `capacity_chunk` consecutive tokens of a sequence; 0 means the whole sequence.
    """

    kind: Literal["dropless", "capacity"] = "dropless"
    capacity_factor: float = Field(1.25, ge=1e-3, le=1e4)
    capacity_chunk: NonNegativeInt32 = 0


class MoeConfig(Section):
    """The mixture-of-experts FFN of every layer."""

    num_experts: int = Field(gt=0, le=65_535)  # records of routing are uint16
    num_experts_per_tok: PositiveInt32
    num_shared_experts: int = Field(0, ge=0, le=65_535)
    router: Router = RouterConfig()
    balance: BalanceConfig = BalanceConfig(aux_coef=0.001)
    dispatch: DispatchConfig = DispatchConfig()

    @model_validator(mode="after")
    def _check(self) -> "MoeConfig":
        problems = []
        if self.num_experts_per_tok > self.num_experts:
            problems.append(
                f"num_experts_per_tok={self.num_experts_per_tok} must be at most num_experts={self.num_experts}: "
                "lower num_experts_per_tok"
            )
        problems += self.router.problems(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self
