"""Routing: how experts are selected, how load is balanced, how tokens travel. Three independent choices."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from mindmoe.schema import Section


class RouterConfig(Section):
    """Selection of experts.

    `score` turns logits into gates: `softmax_after_topk` (gpt-oss: softmax over the chosen logits),
    `softmax` (over all experts, then top-k), `sigmoid` (DeepSeek-V3). With `num_groups` > 1 only the
    best `topk_groups` groups may be chosen from (a group's score: the sum of its two best experts).
    """

    type: Literal["static"] = "static"
    score: Literal["softmax_after_topk", "softmax", "sigmoid"] = "softmax_after_topk"
    norm_topk: bool = True
    route_scale: PositiveFloat = 1.0
    num_groups: PositiveInt = 1
    topk_groups: PositiveInt = 1
    linear_bias: bool = True


class BalanceConfig(Section):
    """Load balancing; every term may be combined with every router, 0 switches a term off.

    `aux_coef`: Switch load-balancing loss over the global batch (arXiv 2101.03961 eq. 4).
    `z_coef`: router z-loss (arXiv 2202.08906 eq. 5).
    `bias_rate`: step of the aux-loss-free selection bias (arXiv 2408.15664).
    """

    aux_coef: NonNegativeFloat = 0.0
    z_coef: NonNegativeFloat = 0.0
    bias_rate: NonNegativeFloat = 0.0


class DispatchConfig(Section):
    """Which assignments are computed: all (`dropless`), or at most capacity_factor * T * K / E an expert (`capacity`).

    The capacity holds in each chunk of `capacity_chunk` consecutive tokens of a sequence; 0 means the whole sequence.
    """

    kind: Literal["dropless", "capacity"] = "dropless"
    capacity_factor: PositiveFloat = 1.25
    capacity_chunk: NonNegativeInt = 0


class MoeConfig(Section):
    """The mixture-of-experts FFN of every layer."""

    num_experts: PositiveInt
    num_experts_per_tok: PositiveInt
    num_shared_experts: NonNegativeInt = 0
    router: RouterConfig = RouterConfig()
    balance: BalanceConfig = BalanceConfig(aux_coef=0.001)
    dispatch: DispatchConfig = DispatchConfig()

    @model_validator(mode="after")
    def _check(self) -> "MoeConfig":
        experts, k, router, problems = self.num_experts, self.num_experts_per_tok, self.router, []
        if k > experts:
            problems.append(f"num_experts_per_tok={k} must be at most num_experts={experts}: lower num_experts_per_tok")
        if experts % router.num_groups:
            problems.append(
                f"router.num_groups={router.num_groups} must divide num_experts={experts}: change router.num_groups"
            )
        elif router.num_groups > 1 and experts // router.num_groups < 2:
            problems.append(
                f"router.num_groups={router.num_groups} must leave 2 of num_experts={experts} in a group "
                "(it is scored by its two best): lower num_groups"
            )
        if router.topk_groups > router.num_groups:
            problems.append(
                f"router.topk_groups={router.topk_groups} must be at most "
                f"router.num_groups={router.num_groups}: lower topk_groups"
            )
        reachable = experts // router.num_groups * router.topk_groups
        if reachable < k <= experts:
            problems.append(
                f"num_experts_per_tok={k} must be at most the {reachable} experts of "
                f"router.topk_groups={router.topk_groups} groups: raise router.topk_groups"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self
