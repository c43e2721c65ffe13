"""One function per op that has kernels of its own, whichever sibling computes it.

Siblings take the same arguments, return the same, and share one test (tests/wet/ops/test_siblings.py). `reference` runs
everywhere and is the oracle; `cpu` is the C++ pack; `ascend` are the Ascend C kernels. A sibling that is asked for and
cannot run here is an error.
"""

from collections.abc import Callable
from typing import Literal

from mindspore import Tensor

from mindmoe.ops import routing
from mindmoe.ops.ascend import routing as ascend_routing
from mindmoe.ops.ascend.pack import Pack, load
from mindmoe.ops.ascend.swiglu import Swiglu
from mindmoe.ops.reference.swiglu import build_swiglu as reference_swiglu
from mindmoe.ops.reference.swiglu import clamped_swiglu
from mindmoe.ops.routing import Score

Sibling = Literal["reference", "cpu", "ascend"]


def build_route(
    sibling: Sibling,
    k: int,
    *,
    score: Score = "softmax_after_topk",
    norm_topk: bool = True,
    scale: float = 1.0,
    groups: int = 1,
    topk_groups: int = 1,
    pack: Pack | None = None,
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns route(logits (T, E), bias (E)) -> gates (T, K) fp32, ids (T, K) int32, as `mindmoe.ops.routing` does.

    Raises:
        UserError: the sibling cannot run here.
    """
    constants = (k, score, norm_topk, scale, groups, topk_groups)
    if sibling == "ascend":
        return ascend_routing.Route(pack or load(), *constants)
    if sibling == "cpu":
        from mindmoe.ops.cpu.routing import Route

        return Route(*constants)
    return routing.build_route(*constants)


def build_permute(
    sibling: Sibling, num_experts: int, *, pack: Pack | None = None
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Returns permute(x (T, D), ids (T, K)) -> rows (T*K, D), slot (T, K) int32, counts (E) int32.

    Raises:
        UserError: the sibling cannot run here.
    """
    if sibling == "ascend":
        return ascend_routing.Permute(pack or load(), num_experts)
    if sibling == "cpu":
        from mindmoe.ops.cpu.experts import Permute

        op = Permute(num_experts)

        def permute(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            rows, counts, slot = op(x, ids)
            return rows, slot, counts

        return permute
    return routing.build_permute(num_experts)


def build_combine(sibling: Sibling, *, pack: Pack | None = None) -> Callable[..., Tensor]:
    """Returns combine(rows (R, D), slot (T, K), gates (T, K), counts (E)) -> (T, D).

    Raises:
        UserError: the sibling cannot run here.
    """
    if sibling == "ascend":
        return ascend_routing.Combine(pack or load())
    if sibling == "cpu":
        from mindmoe.ops.cpu.experts import Combine

        op = Combine()

        def combine(rows: Tensor, slot: Tensor, gates: Tensor, counts: Tensor) -> Tensor:
            return op(rows, gates, slot)

        return combine
    return routing.build_combine()


def build_weighted_swiglu(
    sibling: Literal["reference", "triton"], alpha: float, limit: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns swiglu(h (N, 2F), weight (N)) -> (N, F), each row times its weight.

    Raises:
        UserError: Triton is not installed.
    """
    if sibling == "triton":
        from mindmoe.ops.triton_swiglu import WeightedSwiglu

        return WeightedSwiglu(alpha, limit)

    def swiglu(h: Tensor, weight: Tensor) -> Tensor:
        return clamped_swiglu(h, alpha, limit) * weight.expand_dims(1)

    return swiglu


def build_swiglu(
    sibling: Sibling, alpha: float, limit: float, *, pack: Pack | None = None
) -> Callable[[Tensor], Tensor]:
    """Returns swiglu(h (.., 2F)) -> (.., F). The CPU pack has it inside its experts only, so `cpu` is the reference.

    Raises:
        UserError: the sibling cannot run here.
    """
    return Swiglu(pack or load(), alpha, limit) if sibling == "ascend" else reference_swiglu(alpha, limit)
