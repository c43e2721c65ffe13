"""What several routers check of their settings (dry)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mindmoe.moe.config import MoeConfig


def group_problems(moe: "MoeConfig", num_groups: int, topk_groups: int, key: str) -> Iterator[str]:
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
    # More experts a token than experts at all is told elsewhere (MoeConfig).
    reachable = experts // num_groups * topk_groups
    if reachable < k <= experts:
        yield (
            f"num_experts_per_tok={k} must be at most the {reachable} experts of {key}={topk_groups} groups: "
            f"raise {key}"
        )


def slot_problems(moe: "MoeConfig", k_max: int, key: str) -> Iterator[str]:
    """More slots than experts; `key` names their number."""
    if k_max > moe.num_experts:
        yield f"{key}={k_max} must be at most num_experts={moe.num_experts}: lower {key}"
