"""Time of one layer, and of the head, for one micro-batch on one rank: a list of terms that add up.

Matrix products are bound by the cores at a shape-dependent share of the peak, or by memory; vector work by the
bytes it moves; each kernel adds an idle gap; each collective its time from `network`. Operands are bf16, weight
gradients accumulate in fp32.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Literal

from mindmoe.plan import network
from mindmoe.plan.architecture import Architecture, LayerShape
from mindmoe.plan.hardware import Hardware
from mindmoe.plan.layout import Dispatcher, Recompute
from mindmoe.plan.network import RankSpan

Category = Literal["gemm", "experts", "attention", "vector", "launch", "tp comm", "cp comm", "ep comm"]
Precision = Literal["fp32", "bf16", "fp8"]
_WIDTH: dict[Precision, float] = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0}  # bytes of an operand

_TILE = (128, 256)  # the output tile of one core
_KERNELS_ATTENTION = 14  # kernels of a forward pass: norm, projections, rope, attention, residual
_KERNELS_FFN = 6
_KERNELS_BIASES = 10  # biases and clamps of gpt-oss experts
_KERNELS_MOE = 24  # router, top-k, counts, permutation, two grouped products, activation, combine


@dataclass(frozen=True, slots=True)
class Term:
    """One contribution to the time of a layer for one micro-batch [s].

    Attributes:
        backward: input gradients and all else that the gradient of the layer below waits for.
        weight: weight gradients.
        redone: part of the forward time that selective recomputation repeats.
        ffn: share of the forward time that belongs to the FFN, which `ffn` recomputation repeats.
        in_layer: False for the head, which is never recomputed.
    """

    category: Category
    name: str
    forward: float
    backward: float
    weight: float = 0.0
    redone: float = 0.0
    ffn: float = 0.0
    detail: str = ""
    in_layer: bool = True

    def repeated(self, recompute: Recompute) -> float:
        """Time that recomputation adds to the backward pass [s]."""
        if recompute == "none" or not self.in_layer:
            return 0.0
        if recompute == "full":
            return self.forward
        return self.redone if recompute == "selective" else max(self.redone, self.ffn * self.forward)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one rank does of a layer; the part of a layout on which a layer's time depends.

    Attributes:
        tokens: of one micro-batch on this rank before tensor parallelism: micro_batch_size * S / cp.
        imbalance: rows of the busiest expert rank over the mean.
    """

    seq_length: int
    tokens: int
    tp: int
    cp: int
    ep: int
    etp: int
    dispatcher: Dispatcher
    imbalance: float
    precision: Precision = "bf16"

    @property
    def expert_rows(self) -> float:
        """Tokens that this rank sends to experts, each counted once."""
        return self.tokens / self.tp

    def ep_group(self) -> RankSpan:
        """The ranks that hold a layer's experts."""
        return RankSpan(self.ep, self.etp)


def _vector(hardware: Hardware, moved: float) -> float:
    """Time of vector work that moves `moved` bytes."""
    return moved / (hardware.hbm_tb_s * 1e12 * hardware.efficiency.hbm)


def _gemm(
    hardware: Hardware,
    m: float,
    n: float,
    k: float,
    *,
    count: int,
    grouped: bool,
    precision: Precision,
    accumulate: bool = False,
) -> float:
    """Time of `count` products (m, k) x (k, n), run together.

    The share of the peak falls with unfilled tiles, with a last wave that leaves cores idle, and with a short k.
    `accumulate` adds the read and write of an fp32 result, as a weight gradient needs.
    """
    constants, bandwidth = hardware.efficiency, hardware.hbm_tb_s * 1e12
    rows, columns = ceil(m / _TILE[0]), ceil(n / _TILE[1])
    waves = count * rows * columns / hardware.cores
    share = constants.grouped_gemm * m / (m + constants.half_rows) if grouped else constants.gemm
    share *= waves / (waves + 0.5) * k / (k + constants.half_depth)
    compute = 2.0 * count * rows * _TILE[0] * columns * _TILE[1] * k / (hardware.peak(precision) * share)
    if accumulate:
        return compute + count * 8.0 * m * n / bandwidth
    width = _WIDTH[precision]
    moved = count * (width * (m * k + k * n) + 2.0 * m * n)
    return max(compute, moved / (bandwidth * constants.hbm))


def _product(
    hardware: Hardware, work: Work, category: Category, name: str, shape: tuple[float, float, float], count: int = 1
) -> Term:
    """A product's forward, input-gradient and weight-gradient time; `shape` is (m, k, n) on this rank."""
    m, k, n = shape
    multiply = partial(_gemm, hardware, count=count, grouped=category == "experts", precision=work.precision)
    return Term(
        category,
        name,
        forward=multiply(m, n, k),
        backward=multiply(m, k, n),
        weight=multiply(k, n, m, accumulate=True),
        detail=f"{count} x ({m:.0f}, {k:.0f}) x ({k:.0f}, {n:.0f})",
    )


def _matrix_peak(precision: Precision) -> Precision:
    """The format of products that are never in fp8."""
    return "fp32" if precision == "fp32" else "bf16"


def _attention(hardware: Hardware, layer: LayerShape, work: Work) -> Term:
    """The attention kernel: causal work is half; a window costs one extra tile; backward recomputes (2.5 x)."""
    context = layer.context(work.seq_length) + (_TILE[0] if layer.window else 0)
    context = min(context, work.seq_length / 2)
    flops = 2.0 * layer.heads * (layer.qk_dim + layer.v_dim) * context * work.tokens / work.tp
    dim = (layer.qk_dim + layer.v_dim) / 2
    share = hardware.efficiency.attention * dim / (dim + hardware.efficiency.attention_half_dim)
    forward = flops / (hardware.peak(_matrix_peak(work.precision)) * share)
    return Term(
        "attention",
        "attention kernel",
        forward,
        2.5 * forward * 1.15,
        detail=f"{flops / 1e12:.3f} TFLOP forward, mean context {context:.0f}",
    )


def _vector_terms(hardware: Hardware, layer: LayerShape, hidden: int, work: Work) -> Iterator[Term]:
    """Vector work outside the experts, by the bytes it moves; the backward pass moves twice as many."""
    rows = work.tokens / work.tp
    norms = _vector(hardware, rows * 2 * (2 * 2.0 * hidden))
    residual = _vector(hardware, rows * 2 * (3 * 2.0 * hidden))
    q_width = layer.heads * layer.qk_dim
    rope = _vector(hardware, rows * 2 * 2.0 * (q_width + layer.kv_width / 2) * 1.0)
    yield Term("vector", "norms", norms, 2 * norms, redone=norms)
    yield Term("vector", "residuals", residual, residual)
    yield Term("vector", "rotary embedding", rope, rope)
    if layer.dense_ffn:
        activation = _vector(hardware, work.tokens * 3 * 2.0 * layer.dense_ffn / work.tp)
        yield Term("vector", "dense activation", activation, 5 / 3 * activation, redone=activation, ffn=1.0)


def _moe_terms(hardware: Hardware, layer: LayerShape, hidden: int, work: Work) -> Iterator[Term]:
    """Router, permutation, experts and their exchange."""
    local = layer.experts // work.ep
    sent = work.expert_rows * layer.top_k
    rows = sent * work.etp * work.imbalance  # with etp > 1 the tensor ranks see each other's tokens
    width, ffn = 2.0 * hidden, layer.expert_ffn / work.etp
    router = _vector(hardware, work.expert_rows * (4.0 * layer.experts * 4 + width))
    permute = _vector(hardware, rows * width * 2)
    # SwiGLU reads gate and up and writes one. gpt-oss adds its biases (read and write of gate, up and the output)
    # and clamps gate and up (read and write) before it.
    passes = 11 if layer.expert_biases else 3
    activation = _vector(hardware, rows * 2.0 * (passes * ffn + (2 * hidden if layer.expert_biases else 0)))
    combine = _vector(hardware, rows * width + work.expert_rows * width)
    yield Term("vector", "router", router, 2 * router)
    yield Term("vector", "permutation", permute, permute, redone=permute)
    yield Term("vector", "expert activation", activation, 5 / 3 * activation, redone=activation)
    yield Term("vector", "combination", combine, 2 * combine)
    each = rows / local
    yield _product(hardware, work, "experts", "expert gate and up", (each, hidden, 2 * ffn), local)
    yield _product(hardware, work, "experts", "expert down", (each, ffn, hidden), local)
    if work.ep > 1:
        exchange = dispatch_time(hardware, hidden, layer, work) * work.imbalance
        # dispatch and combine forward, and the same pair in reverse backward
        yield Term(
            "ep comm",
            f"{work.dispatcher} x 2",
            2 * exchange,
            2 * exchange,
            detail=f"{sent * width / 2**20:.0f} MiB sent a rank over {work.ep} ranks",
        )
    if work.etp > 1:
        gather = network.all_gather(hardware, RankSpan(work.etp, 1), rows * width)
        yield Term("tp comm", "expert tensor gather and scatter", 2 * gather, 2 * gather)


def dispatch_time(hardware: Hardware, hidden: int, layer: LayerShape, work: Work) -> float:
    """Time [s] of one dispatch (or one combine) with balanced routing."""
    group, rows, width = work.ep_group(), work.expert_rows, 2.0 * hidden
    match work.dispatcher:
        case "all_to_all":
            return network.all_to_all(hardware, group, rows * width * layer.top_k)
        case "two_hop":
            return network.two_hop(hardware, group, rows, width, layer.top_k, layer.group_share)
        case "all_gather":
            return network.all_gather(hardware, group, rows * width * work.ep)


def layer_terms(hardware: Hardware, architecture: Architecture, layer: LayerShape, work: Work) -> list[Term]:
    """Everything that takes time in one layer."""
    hidden = architecture.hidden_size
    terms = []
    for gemm in layer.gemms:
        k, n = gemm.local(work.tp)
        m = work.tokens if gemm.split != "none" else work.tokens / work.tp
        term = _product(hardware, work, "gemm", gemm.name, (m, k, n))
        remade = layer.latent_width and gemm.name in ("q_up", "kv_up")
        terms.append(replace(term, redone=term.forward if remade else 0.0, ffn=float(gemm.block == "ffn")))
    terms.append(_attention(hardware, layer, work))
    terms += _vector_terms(hardware, layer, hidden, work)
    kernels = _KERNELS_ATTENTION + (_KERNELS_FFN if layer.dense_ffn else 0)
    if layer.experts:
        terms += [replace(term, ffn=1.0) for term in _moe_terms(hardware, layer, hidden, work)]
        kernels += _KERNELS_MOE + (_KERNELS_BIASES if layer.expert_biases else 0)
    gap = 1e-6 * hardware.efficiency.launch_us * kernels
    terms.append(
        Term(
            "launch",
            "gaps around kernels",
            gap,
            2 * gap,
            redone=gap / 4,
            ffn=1 - _KERNELS_ATTENTION / kernels,
            detail=f"{kernels} kernels forward",
        )
    )
    if work.tp > 1:
        blocks = 2 if layer.dense_ffn else 1
        gather = network.all_gather(hardware, RankSpan(work.tp, 1), 2.0 * work.tokens * hidden)
        terms.append(
            Term(
                "tp comm",
                "sequence-parallel gather and scatter",
                2 * blocks * gather,
                3 * blocks * gather,
                ffn=1 - 1 / blocks,
            )
        )
    if work.cp > 1:
        exchange = network.all_gather(
            hardware, RankSpan(work.cp, work.tp), 2.0 * work.tokens * work.cp * layer.local_kv_width(work.tp)
        )
        terms.append(Term("cp comm", "keys and values of the other ranks", exchange, 2 * exchange))
    return terms


def head_terms(hardware: Hardware, architecture: Architecture, work: Work) -> list[Term]:
    """The LM head and the loss, on the last stage: logits in fp32, split over the vocabulary."""
    columns = architecture.vocab_size / work.tp
    loss = _vector(hardware, work.tokens * columns * 10.0)
    product = _product(hardware, work, "gemm", "LM head", (work.tokens, architecture.hidden_size, columns))
    return [replace(product, in_layer=False), Term("vector", "loss over the vocabulary", loss, loss, in_layer=False)]
