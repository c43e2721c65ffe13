"""The ops a model computes with: one signature, one order of results and one meaning, whoever computes them.

A sibling is a folder beside this file: `reference` (plain MindSpore ops, on every backend, the oracle of the others),
`cpu` (the C++ pack), `ascend` (the Ascend C kernels). A function `build_<op>(shape)` in any of its files, or
`build_<op>(shape, pack)` where it needs a library, makes its form of the op `<op>` of `OpSet`; the reference serves for
an op that it lacks. So another form of an op is another file, and tests/wet/ops/test_contract.py holds it to what is
written here.

The letters of shapes are those of docs/glossary.md. Results and weights are fp32 unless said otherwise; ids, slots,
counts and labels int32. *Activations* are fp32, or bf16 where a sibling stores them so. A gradient has the type of what
it is of; what `Gradients` does not name has none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mindspore import Parameter, Tensor

from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.moe.config import MoeConfig

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OpShape:
    """What ops are bound to.

    Attributes:
        model: sizes.
        moe: routing, None for a dense model.
        seq_length: of the batches [tokens].
        precision: of the operands of matrix products; sums are fp32 either way.
        documents: whether attention stays inside documents.
    """

    model: ModelConfig
    moe: MoeConfig | None
    seq_length: int
    precision: Precision = "fp32"
    documents: bool = False


class EmbeddingOp(Protocol):
    """Rows of a table. Gradients: w."""

    def __call__(self, ids: Tensor, w: Tensor) -> Tensor:
        """ids (..) and w (V, D) -> (.., D)."""


class LinearOp(Protocol):
    """x w^T + bias + residual. Gradients: all."""

    def __call__(self, x: Tensor, w: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """x (.., I) activations, w (O, I), bias (O), residual (.., O) -> (.., O)."""


class RmsNormOp(Protocol):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in fp32. Gradients: all."""

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """x (.., D) and weight (D) -> activations (.., D)."""


class AttentionOp(Protocol):
    """Causal attention with grouped queries, rotary positions, sinks and a window. Gradients: q, k, v, sinks.

    Key j is visible to query i iff i - window < j <= i (window 0: j <= i) and, where the model keeps to documents, both
    lie in the same one. A sink is a logit of each query head that joins the softmax and is then dropped.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, segment_ids: Tensor) -> Tensor:
        """q (B, S, H*hd), k and v (B, S, KV*hd) activations before rotation, sinks (H) -> activations (B, S, H*hd).

        segment_ids (B, S) int32: a document is a run of equal numbers.
        """


class CachedAttentionOp(Protocol):
    """`AttentionOp` of the next N tokens, given the keys and values of all before them. Gradients: none."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, start: Tensor, keys: Parameter, values: Parameter
    ) -> Tensor:
        """q (B, N, H*hd), k and v (B, N, KV*hd), sinks (H) -> activations (B, N, H*hd).

        start (1) int32 is the position of the first token; keys and values (B, KV, C, hd) of `cache_dtype` hold those
        of the positions before it, keys rotated, and afterwards of these tokens too.
        """


class SwigluOp(Protocol):
    """(up + 1) * gate * sigmoid(alpha * gate) with gate cut at limit and up at -limit and limit.

    Gradients: h, 0 beyond a limit.
    """

    def __call__(self, h: Tensor) -> Tensor:
        """h (.., 2F) activations, gate and up in turn on the last axis -> (.., F)."""


class ForkOp(Protocol):
    """One activation for several readers, whose gradients are summed. Gradients: x."""

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x -> (x, .., x), one for each reader."""


class RouterOp(Protocol):
    """The K experts with the largest score + selection_bias, and sums over the T tokens. In fp32.

    Gradients: x, weight, bias, through the gates, the probabilities and z.
    """

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, selection_bias: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """x (.., D) activations, weight (E, D), bias (E), selection_bias (E).

        Returns:
            gates (T, K), ids (T, K) best first, and (counts (E), probabilities (E), z (), entropy () [nats]).
        """


class ExpertFfnOp(Protocol):
    """The sum over k of gates[:, k] * expert ids[:, k] of x, an expert being linear, `SwigluOp`, linear.

    Gradients: x, gates and the four weights.
    """

    def __call__(
        self,
        x: Tensor,
        gates: Tensor,
        ids: Tensor,
        gate_up: Tensor,
        gate_up_bias: Tensor,
        down: Tensor,
        down_bias: Tensor,
    ) -> Tensor:
        """x (.., D) with T rows -> like x.

        gates (T, K); ids (T, K), E where an assignment was dropped; gate_up (E, D, 2F), gate and up in turn on the last
        axis, gate_up_bias (E, 2F), down (E, F, D), down_bias (E, D).
        """


class PermuteOp(Protocol):
    """Copies of tokens in order of id, by token inside an id. Gradients: x."""

    def __call__(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (T, D) and ids (T, K) among N targets; an id outside 0..N-1 drops the assignment.

        Returns:
            rows (T*K, D), zeros past the kept ones; slot (T, K), the row of each assignment, -1 where it is dropped;
            counts (N).
        """


class CombineOp(Protocol):
    """The sum over k of gates[:, k] * rows[slot[:, k]]. Gradients: rows, 0 where no slot names one, and gates."""

    def __call__(self, rows: Tensor, slot: Tensor, gates: Tensor, counts: Tensor | None) -> Tensor:
        """rows (R, D), slot (T, K) with -1 adding nothing, gates (T, K) -> (T, D).

        counts (N) of `PermuteOp` if rows lie as it laid them, None for any other layout.
        """


class CrossEntropyOp(Protocol):
    """The sum of mask * -log softmax(x w^T)[label] [nats]. Gradients: x, w."""

    def __call__(self, x: Tensor, w: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """x (.., D), w (V, D), labels (..), mask (..) -> ()."""


class CrossEntropyPartOp(Protocol):
    """What a part of the vocabulary contributes to the cross-entropy over all of it; neither half has a gradient.

    Labels are counted from the first word of the part.
    """

    def forward(self, x: Tensor, w: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """x (T, D), w (V / P, D), labels (T) -> log of the denominator over the part (T), label's logit (T) or 0."""

    def backward(self, dnll: Tensor, lse: Tensor, x: Tensor, w: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x and w, given that of each token's loss (T) and the log of the whole denominator (T)."""


class AdamWOp(Protocol):
    """Decoupled, bias-corrected AdamW (arXiv 1711.05101) of a list of parameters, in place. Gradients: none."""

    def __call__(
        self, params: tuple, first: tuple, second: tuple, grads: tuple, lr: Tensor, scale: Tensor, step: Tensor
    ) -> Tensor:
        """Four tuples of equal length; lr, the factor of all gradients, and the number of this update, from 1, are ().

        Returns:
            step; a graph drops the update if this is not used.
        """


class BuildAdamW(Protocol):
    """AdamW with its constants; `decays` says which parameters decay."""

    def __call__(
        self, decays: Sequence[bool], *, beta1: float, beta2: float, eps: float, weight_decay: float
    ) -> AdamWOp: ...


class SquareSumOp(Protocol):
    """The sum of squares of all elements. Gradients: none."""

    def __call__(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Tensors of any shapes -> ()."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpSet:
    """The ops of one model, bound to its constants.

    Attributes:
        name: which siblings these are.
        shape: what they are bound to.
        linear: its result is an activation.
        linear_out: its result is fp32: for what joins the residual stream and for logits.
        attention: by window [tokens], as windows differ between layers.
        cached_attention: likewise.
        cache_dtype: of the keys and values in its cache.
        fork: by number of readers.
        router: None where the sibling has no such router in one; the layer composes it of plain ops then.
        permute: by number of targets.
        arrive: x -> x, marks in a graph what `wait` on the host waits for.
        wait: returns once `arrive` has run, or when waiting is no use; reading the value is what waits for certain.
    """

    name: str
    shape: OpShape
    embedding: EmbeddingOp
    linear: LinearOp
    linear_out: LinearOp
    rms_norm: RmsNormOp
    attention: Callable[[int], AttentionOp]
    cached_attention: Callable[[int], CachedAttentionOp]
    cache_dtype: Any
    swiglu: SwigluOp
    fork: Callable[[int], ForkOp]
    router: RouterOp | None = None
    expert_ffn: ExpertFfnOp
    permute: Callable[[int], PermuteOp]
    combine: CombineOp
    cross_entropy: CrossEntropyOp
    cross_entropy_part: CrossEntropyPartOp
    adamw: BuildAdamW
    square_sum: SquareSumOp
    arrive: Callable[[Tensor], Tensor]
    wait: Callable[[], object]
