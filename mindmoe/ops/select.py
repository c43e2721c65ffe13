"""Which sibling of each op a run uses: chosen once, when the model is built, and logged."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mindspore import Tensor, float32

from mindmoe.errors import UserError
from mindmoe.model.config import ModelConfig
from mindmoe.moe.config import MoeConfig
from mindmoe.ops.precision import keep
from mindmoe.ops.reference.attention import build_attention, build_cached_attention
from mindmoe.ops.reference.cross_entropy import CrossEntropyPart, build_cross_entropy
from mindmoe.ops.reference.embedding import embedding
from mindmoe.ops.reference.expert_ffn import build_expert_ffn
from mindmoe.ops.reference.fork import Fork
from mindmoe.ops.reference.linear import build_linear
from mindmoe.ops.reference.optimizer import build_adamw, square_sum
from mindmoe.ops.reference.rms_norm import build_rms_norm
from mindmoe.ops.reference.swiglu import build_swiglu
from mindmoe.ops.rope import rope_tables
from mindmoe.ops.routing import build_combine, build_permute

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpSet:
    """The ops of one model, already bound to its constants. The reference builders document each call.

    Attributes:
        name: which siblings these are.
        shape: what they are bound to.
        linear: x, w, b -> activations, in the precision of the policy.
        linear_out: x, w, b, residual -> fp32, for what joins the residual stream and for logits.
        attention: maps a window to an attention function, as windows differ between layers.
        cached_attention: the same for generation, with the keys and values of earlier tokens in a cache.
        cache_dtype: of that cache.
        fork: maps a number of readers to x -> (x, ..., x), which sums their gradients.
        router: the static router in one; None in a dense model, and where the layer composes it of plain ops.
        expert_ffn: None in a dense model.
        permute: maps a number E of targets to x (T, D), ids (T, K) -> rows (T*K, D) in order of id, zeros after them,
            counts (E) int32, and the row (T, K) int32 of each assignment, -1 where its id is none of 0..E-1.
        combine: rows (R, D), gates (T, K), slot (T, K) -> (T, D), the sums of gates * rows[slot]; -1 adds nothing.
        cross_entropy_part: what a part of the vocabulary contributes, in two halves.
        adamw: builds the update of a list of parameters.
        arrive: x -> x, marks in a graph what `wait` on the host waits for.
        wait: returns once `arrive` has run, or when waiting is no use; reading the value is what waits for certain.
    """

    name: str
    shape: "OpShape"
    embedding: Callable[..., Tensor]
    linear: Callable[..., Tensor]
    linear_out: Callable[..., Tensor]
    rms_norm: Callable[..., Tensor]
    attention: Callable[[int], Callable[..., Tensor]]
    cached_attention: Callable[[int], Callable[..., Tensor]]
    cache_dtype: Any
    swiglu: Callable[[Tensor], Tensor]
    fork: Callable[[int], Callable[[Tensor], tuple[Tensor, ...]]]
    router: Callable[..., Any] | None
    expert_ffn: Callable[..., Tensor] | None
    permute: Callable[[int], Callable[..., tuple[Tensor, Tensor, Tensor]]]
    combine: Callable[..., Tensor]
    cross_entropy: Callable[..., Tensor]
    cross_entropy_part: Any
    adamw: Callable[..., Callable[..., Tensor]]
    square_sum: Callable[..., Tensor]
    arrive: Callable[[Tensor], Tensor]
    wait: Callable[[], object]


Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OpShape:
    """What ops are bound to.

    Attributes:
        model: sizes.
        moe: routing, None for a dense model.
        seq_length: of the batches [tokens].
        precision: `fp32` or `bf16` operands.
        documents: whether attention stays inside documents.
    """

    model: ModelConfig
    moe: MoeConfig | None
    seq_length: int
    precision: Precision = "fp32"
    documents: bool = False


def select_ops(shape: OpShape, *, device: str, kernels: str, threads: int) -> OpSet:
    """The ops of a run.

    Args:
        shape: what they are bound to.
        device: `cpu` or `ascend`.
        kernels: `reference`, `cpu`, `ascend` (needs the installed Ascend C kernels), or `auto`: the C++ pack on a CPU
            that has a compiler, else the reference.
        threads: threads of this rank.

    Raises:
        UserError: the kernels asked for are not available here.
    """
    if kernels == "cpu" and device != "cpu":
        raise UserError(f"train.kernels=cpu does not run on train.device={device}", "set train.kernels=auto")
    if kernels == "ascend":
        from mindmoe.ops.ascend.opset import ascend_ops

        return _logged(ascend_ops(shape), "asked for")
    if kernels == "reference" or device != "cpu":
        return _logged(reference_ops(shape), "asked for" if kernels == "reference" else f"device {device}")
    from mindmoe.ops.cpu.opset import cpu_ops

    try:
        return _logged(cpu_ops(shape, threads), "C++ pack")
    except UserError as error:
        if kernels == "cpu":
            raise
        log.warning("the CPU pack is not available, plain ops are several times slower: %s", error)
        return _logged(reference_ops(shape), "no CPU pack")


def _logged(chosen: OpSet, why: str) -> OpSet:
    log.info("ops: %s (%s)", chosen.name, why)
    return chosen


def reference_ops(shape: OpShape) -> OpSet:
    """Plain MindSpore ops: they run on every backend and are the oracle of every other sibling."""
    model, moe, precision = shape.model, shape.moe, shape.precision
    cos, sin = rope_tables(model, shape.seq_length)

    def attention(window: int) -> Callable[..., Tensor]:
        return build_attention(
            cos=cos, sin=sin, head_dim=model.head_dim, window=window, documents=shape.documents, precision=precision
        )

    def cached_attention(window: int) -> Callable[..., Tensor]:
        return build_cached_attention(cos=cos, sin=sin, head_dim=model.head_dim, window=window, precision=precision)

    expert_ffn: Any = None
    if moe is not None:
        expert_ffn = build_expert_ffn(alpha=model.swiglu_alpha, limit=model.swiglu_limit, precision=precision)

    def permute(targets: int) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        inner = build_permute(targets)

        def permuted(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            rows, slot, counts = inner(x, ids)
            return rows, counts, slot

        return permuted

    summed = build_combine()

    def combine(rows: Tensor, gates: Tensor, slot: Tensor) -> Tensor:
        return summed(rows, slot, gates, None)

    linear = build_linear(precision)
    return OpSet(
        name=f"reference, {precision} operands",
        shape=shape,
        embedding=embedding,
        linear=linear,
        linear_out=linear,
        rms_norm=build_rms_norm(model.rms_norm_eps),
        attention=attention,
        cached_attention=cached_attention,
        cache_dtype=float32,
        fork=Fork,
        router=None,
        expert_ffn=expert_ffn,
        permute=permute,
        combine=combine,
        swiglu=build_swiglu(model.swiglu_alpha, model.swiglu_limit),
        cross_entropy=build_cross_entropy(precision),
        cross_entropy_part=CrossEntropyPart(precision),
        adamw=build_adamw,
        square_sum=square_sum,
        arrive=keep,
        wait=lambda: None,
    )
