"""A machine whose ranks share its cores: what mindmoe's CPU pack does in a step, counted op by op, at measured rates.

`mindmoe doctor --measure` times each op alone at a few sizes and fits `HostConfig` to it; nothing is fitted to steps.
The counts of this file serve both, so a rate means the same where it is measured and where it is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mindmoe.config.schema import NonNegativeFp32, PositiveFp32, PositiveInt32, Section

OpName = Literal[
    "linear",
    "attention",
    "experts",
    "loss",
    "norm",
    "routing",
    "plain",
    "update",
    "split_loss",
    "split_sequence",
    "routed_rows",
    "gathered_tokens",
    "zero",
]
"""Ops of the pack, MindSpore's own vector work (`plain`), and what surrounds collectives, which MindSpore does too."""
Verb = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "message"]
_FP32 = 4.0


class Rate(Section):
    """Time of an op = us + FLOPs / gflops + bytes / gb_s; an absent rate costs nothing.

    Attributes:
        us: of a call [us].
        gflops: of its products [GFLOP/s].
        gb_s: of what it reads and writes [GB/s].
    """

    us: NonNegativeFp32
    gflops: PositiveFp32 | None = None
    gb_s: PositiveFp32 | None = None

    def __str__(self) -> str:
        parts = [f"{self.us:,.0f} us"]
        parts += [f"{self.gflops:,.0f} GFLOP/s"] if self.gflops else []
        return " + ".join([*parts, *([f"{self.gb_s:,.2f} GB/s"] if self.gb_s else [])])

    def seconds(self, count: "Count") -> float:
        """Time of an op [s]."""
        flops = count.flops / (self.gflops * 1e9) if self.gflops else 0.0
        return 1e-6 * self.us + flops + (count.moved / (self.gb_s * 1e9) if self.gb_s else 0.0)


class OpRates(Section):
    """One op on one core, its forward and its backward part."""

    forward: Rate
    backward: Rate


class VerbRate(Section):
    """One collective in groups of `size` out of `ranks` on the machine; bytes are those of the tensor passed in."""

    verb: Verb
    ranks: PositiveInt32
    size: PositiveInt32
    rate: Rate


class HostConfig(Section):
    """What was measured of a machine.

    Attributes:
        cores: that all ranks share.
        ranks: how many share them, which a file leaves at 1: `Hardware.shared_by` says it for a layout.
        scaling: speed of the pack's ops on all cores over that on one, divided by the cores.
        ops: rates by precision and op, on one core, by processor time.
        verbs: collectives, with as many ranks at work as `ranks` says.
        layer_us, micro_batch_us, step_us: what a layer of a micro-batch, a micro-batch and a step take beside the
            ops that are counted, run op by op [us].
        process_gib: memory of a rank before it has a model [GiB].
    """

    cores: PositiveInt32
    ranks: PositiveInt32 = 1
    scaling: PositiveFp32
    ops: dict[Literal["fp32", "bf16"], dict[OpName, OpRates]]
    verbs: list[VerbRate]
    layer_us: NonNegativeFp32
    micro_batch_us: NonNegativeFp32
    step_us: NonNegativeFp32
    process_gib: NonNegativeFp32


@dataclass(frozen=True, slots=True)
class Count:
    """FLOPs, and bytes that are read or written, of one op in one direction."""

    flops: float
    moved: float


Both = tuple[Count, Count]
"""Forward and backward."""


def linear(m: float, k: float, n: float, kept: float) -> Both:
    """(m, k) x (k, n); weights are fp32.

    Args:
        m: rows.
        k: depth.
        n: columns.
        kept: bytes of an element of activations.
    """
    acts, weights = kept * m * (k + n), _FP32 * k * n
    return Count(2 * m * k * n, acts + weights), Count(4 * m * k * n, acts + kept * m * k + 2 * weights)


def attention(tokens: float, context: float, heads: float, kv_heads: float, dim: float, kept: float) -> Both:
    """Tokens that see `context` keys on average."""
    flops = 4.0 * tokens * heads * dim * context
    moved = kept * tokens * dim * (2 * heads + 2 * kv_heads)
    return Count(flops, moved), Count(2.5 * flops, 2 * moved)


def experts(rows: float, dim: float, ffn: float, count: float, kept: float) -> Both:
    """Rows through `count` experts of three matrices each; the backward pass also writes their gradients."""
    flops, weights = 6.0 * rows * dim * ffn, _FP32 * count * 3 * dim * ffn
    moved = rows * (2 * _FP32 * dim + 3 * kept * ffn)
    return Count(flops, moved + weights), Count(2 * flops, 2 * moved + 2 * weights)


def loss(tokens: float, dim: float, vocab: float) -> Both:
    """Logits, loss and both gradients at once; the backward pass scales the gradients."""
    table, states = _FP32 * vocab * dim, _FP32 * tokens * dim
    return Count(6.0 * tokens * dim * vocab, 2 * _FP32 * tokens * vocab + 2 * table), Count(0.0, 2 * (table + states))


def split_loss(tokens: float, dim: float, columns: float) -> Both:
    """The loss over a part of the vocabulary; the backward pass makes the logits again."""
    flops, logits = 2.0 * tokens * dim * columns, _FP32 * tokens * columns
    return Count(flops, logits), Count(3 * flops, logits)


def around(moved: float) -> Both:
    """What surrounds a collective, by the bytes of its whole tensor."""
    return Count(0.0, moved), Count(0.0, moved)


def norm(tokens: float, dim: float, kept: float) -> Both:
    """RMSNorm."""
    return Count(0.0, tokens * dim * (_FP32 + kept)), Count(0.0, tokens * dim * (2 * _FP32 + kept))


def routing(tokens: float, count: float) -> Both:
    """Selection and statistics over `count` experts; the gradient reads as much."""
    return Count(0.0, _FP32 * tokens * count), Count(0.0, _FP32 * tokens * count)


def plain(moved: float) -> Count:
    """MindSpore's own vector ops, by the bytes they move."""
    return Count(0.0, moved)


def update(params: float) -> Count:
    """The norm of the gradient, and AdamW: weights and moments read and written, gradients read twice."""
    return Count(0.0, 32.0 * params)


def rate_of(host: HostConfig, verb: Verb, ranks: int, size: int) -> Rate:
    """The measured rate nearest to a collective of `size` ranks where `ranks` share the machine."""
    known = [entry for entry in host.verbs if entry.verb == verb]
    return min(known, key=lambda entry: (abs(entry.ranks - ranks), abs(entry.size - size))).rate


def op_table(host: HostConfig, precision: str) -> Mapping[OpName, OpRates]:
    """Rates of a precision; fp8 is bf16 here."""
    return host.ops["fp32" if precision == "fp32" else "bf16"]
