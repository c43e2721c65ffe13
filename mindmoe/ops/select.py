"""Which sibling of each op a run uses: chosen once, when the model is built, and logged."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from mindspore import Tensor

from mindmoe.model.config import ModelConfig
from mindmoe.moe.config import MoeConfig
from mindmoe.ops.attention import build_attention
from mindmoe.ops.cross_entropy import build_cross_entropy
from mindmoe.ops.expert_ffn import build_expert_ffn
from mindmoe.ops.linear import build_linear
from mindmoe.ops.rms_norm import build_rms_norm
from mindmoe.ops.rope import rope_tables

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpSet:
    """The ops of one model, already bound to its constants. The builders document the calls.

    `attention` maps a window to an attention function, as windows differ between layers.
    """

    linear: Callable[..., Tensor]
    rms_norm: Callable[..., Tensor]
    attention: Callable[[int], Callable[..., Tensor]]
    expert_ffn: Callable[..., Tensor] | None
    cross_entropy: Callable[..., Tensor]


def select_ops(
    model: ModelConfig, moe: MoeConfig | None, *, seq_length: int, precision: str, documents: bool
) -> OpSet:
    return reference_ops(model, moe, seq_length=seq_length, precision=precision, documents=documents)


def reference_ops(
    model: ModelConfig, moe: MoeConfig | None, *, seq_length: int, precision: str, documents: bool
) -> OpSet:
    """Plain MindSpore ops: they run on every backend and are the oracle of every other sibling."""
    cos, sin = rope_tables(model, seq_length)
    log.info("ops: reference (plain MindSpore), %s operands", precision)

    def attention(window: int) -> Callable[..., Tensor]:
        return build_attention(cos=cos, sin=sin, head_dim=model.head_dim, window=window, documents=documents,
                               precision=precision)

    return OpSet(
        linear=build_linear(precision),
        rms_norm=build_rms_norm(model.rms_norm_eps),
        attention=attention,
        expert_ffn=None if moe is None else build_expert_ffn(
            num_experts=moe.num_experts, alpha=model.swiglu_alpha, limit=model.swiglu_limit, precision=precision),
        cross_entropy=build_cross_entropy(precision),
    )
